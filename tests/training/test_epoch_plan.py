"""Schedules, inner attacks and optimizers of a configuration reach the step."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.config import command_line, fields
from at_jax.methods import gairat, objective
from at_jax.training import epoch_plan, optimizers, setup
from tests.fixtures import composed_runs

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def parsed(name, *arguments):
  return command_line.parse([f'--config={CONFIGS}/{name}', *arguments]).config


@pytest.mark.parametrize('arguments, expected', [
    # The intended piecewise schedule of the released code, shortened; epochs are counted from 0.
    (('--config.weights.later_lams=(-2.,-2.5)', '--config.weights.lam_epochs=(3,4)'),
     [-1., -1., -1., -2., -2.5]),
    # Its linear schedule: 1 − (e/5)·(1 − (−1)), with epochs e counted from 1.
    (('--config.weights.schedule=linear', '--config.weights.lam_first=1.'),
     [.6, .2, -.2, -.6, -1.]),
])
def test_lambda_follows_its_schedule_in_one_program(arguments, expected):
  c = parsed('gairat_cifar10.py:smoke', '--config.epochs=5', '--config.optimizer.decay_epochs=(4,)',
             *arguments)
  recipe = epoch_plan.recipe(setup.build(c), 'pgd_at')
  kappa, traces = jnp.arange(2), []

  @jax.jit
  def weigh(values):
    traces.append(1)
    evidence = objective.Evidence(kappa, None, None, None)
    return recipe.weigh(evidence, axis_name=None, lam=values.lam)

  for epoch, lam in enumerate(expected):
    values = epoch_plan.epoch_values(c, epoch)
    assert values.lam == pytest.approx(lam, abs=1e-6)
    np.testing.assert_allclose(weigh(values), gairat.geometry_weights(
        kappa, num_steps=c.attack.num_steps, lam=lam), rtol=1e-5)
  assert len(traces) == 1


def test_kappa_counts_the_deployed_decision():
  c = parsed('ducat_cifar10.py:small', '--config.dataset.name=digits')
  attack = epoch_plan.recipe(setup.build(c), 'pgd_at').attack
  # The dummy of the true class is the largest of the 20 logits, whatever the attack does.
  x, y = jnp.full((3, 4, 4, 3), .5), jnp.array([0, 4, 9])
  logits = lambda x: 3. * (jnp.arange(20) == y[:, None] + 10) + 0 * x.sum((1, 2, 3))[:, None]
  np.testing.assert_array_equal(attack(logits, x, y, jax.random.key(0), None).kappa, 5)


def test_entropy_sgd_is_one_field_of_any_config():
  theirs = parsed('entropy_sgd_cifar10.py:small').optimizer
  ours = parsed('pgd_at_cifar10.py:small', '--config.optimizer.name=entropy_sgd').optimizer
  assert ours == theirs
  # The outer rate of the released code: 1, then a fifth. 20 inner steps are one outer step.
  c = fields.default()
  c.optimizer.name, c.optimizer.decay_epochs = 'entropy_sgd', (1,)
  rate = optimizers.make(c, steps_per_epoch=40, key=jax.random.key(0)).learning_rate
  assert [float(rate(step)) for step in (0, 39, 40, 79)] == pytest.approx([1., 1., .2, .2])


def inner_attack(config, *arguments):
  c = parsed(config, '--config.dataset.name=digits', *arguments)
  return epoch_plan.recipe(setup.build(c), c.loss).attack


def test_the_inner_attack_takes_an_import_path(monkeypatch, tmp_path):
  (tmp_path / 'half_radius.py').write_text("""
from at_jax.methods import inner_attacks

def attack(*, epsilon, **options):
  return inner_attacks.uniform(epsilon=epsilon / 2, random_start=False, **options)
""")
  monkeypatch.syspath_prepend(tmp_path)
  x, y = jnp.full((1, 4, 4, 3), .5), jnp.array([0])
  logits = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=-1)

  def radius(*arguments):
    """The distance from x in 1/255; the gradient of these logits is the same at all pixels."""
    found = inner_attack('pgd_at_cifar10.py:small', *arguments)(logits, x, y, jax.random.key(0), None)
    return float(jnp.max(jnp.abs(found.x - x)) * 255)

  # Five steps of 2.5/255 reach the edge of the ball: 8/255, and 4/255 for `half_radius`.
  assert radius() == pytest.approx(8, abs=1e-3)
  assert radius('--config.attack.kind=half_radius.attack') == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize('arguments, name', [
    (['pgd_at_cifar10.py:small'], 'uniform'), (['consistency_cifar10.py:small'], 'uniform'),
    (['mart_cifar10.py:small'], 'gaussian'), (['trades_cifar10.py:small'], 'kl'),
    (['gair_trades_cifar10.py:small'], 'kl_and_margin'), (['mail_at_cifar10.py:small'], 'gaussian'),
    (['fgsm_rs_cifar10.py:small'], 'fgsm_rs'), (['n_fgsm_cifar10.py:small'], 'n_fgsm'),
    (['nuat_cifar10.py:small'], 'nuclear'), (['fgsm_pgi_cifar10.py:small'], 'prior'),
    (['ducat_cifar10.py:small'], 'uniform'),
    (['ducat_trades_cifar10.py:small'], 'kl'),
    (['finetune_cifar10.py:small'], 'kl'),
    (['finetune_cifar10.py:small', '--config.finetune.distance=cross_entropy'], 'uniform'),
    (['pgd_at_cifar10.py:small', '--config.attack.kind=kl'], 'kl'),
], ids=lambda value: '-'.join(value) if isinstance(value, list) else value)
def test_each_method_has_the_attack_of_its_paper(arguments, name):
  assert inner_attack(*arguments).__qualname__ == f'{name}.<locals>.attack'


def test_a_radius_of_zero_trains_on_clean_examples():
  def after_one(**fields):
    c = composed_runs.config_of()
    c.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return composed_runs.take_steps(c, epochs=1)[0]

  scheduled = after_one(attack__ramp_epochs=(0, 1), attack__kind='n_fgsm')
  np.testing.assert_allclose(scheduled, after_one(loss='standard'), atol=1e-6)


def test_beta_follows_its_schedule():
  c = parsed('nuat_cifar10.py:small')
  found = [epoch_plan.epoch_values(c, epoch) for epoch in range(8)]
  # β rises from 0 to 4.5 at epoch 7, as it does at epoch 90 of 100 in the released code.
  np.testing.assert_allclose([each.beta for each in found], np.interp(range(8), [0, 7], [0, 4.5]), rtol=1e-6)
  assert epoch_plan.epoch_values(fields.default(), 0).beta is None


def test_a_model_without_a_radius_is_not_the_best():
  c = parsed('nuat_cifar10.py:small', '--config.attack.ramp_epochs=(2,6)')
  assert [epoch_plan.method_started(c, epoch) for epoch in range(5)] == [False, False, True, True, True]


def test_the_cyclic_rate_is_linear_to_the_middle_and_back():
  c = parsed('fgsm_rs_cifar10.py')  # 15 epochs, a peak of .2
  rate = optimizers.make(c, steps_per_epoch=10, key=jax.random.key(0)).learning_rate
  # PyTorch's CyclicLR from 0 to .2 with step_size_up = step_size_down = 75.
  steps = [0, 1, 37, 75, 76, 149, 150]
  expected = np.interp(steps, [0, 75, 150], [0, .2, 0])
  np.testing.assert_allclose([rate(step) for step in steps], expected, atol=1e-7)

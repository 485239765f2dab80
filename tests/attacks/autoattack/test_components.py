"""The attacks of each AutoAttack version: runs, targets, and averaging over passes.

Expected runs and targets are those of the released code; make_reference.py records how it calls its attacks.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _gradients, _loops, _stepper
from at_jax.attacks.apgd import schedule
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.autoattack import components
from tests.fixtures import reference_numbers

KEY, NUMBERS, LOSSES = jax.random.key(0), reference_numbers.NUMBERS, reference_numbers.LOSSES


def record_options(monkeypatch):
  """Makes `components.plan` return the options of each stepper, (kind, options), instead of the stepper."""
  def recorder(kind):
    signature = inspect.signature(getattr(components, f'{kind}_stepper'))

    def record(**options):
      bound = signature.bind(**options)
      bound.apply_defaults()
      return kind, bound.arguments
    monkeypatch.setattr(components, f'{kind}_stepper', record)
  for kind in ('apgd', 'fab', 'square'):
    recorder(kind)


def as_in_reference(kind, options):
  """The options of a stepper in the notation of make_reference.py."""
  if kind == 'square':
    return {'queries': options['num_queries'], 'p': options['p_init']}
  if kind == 'fab':
    return {'steps': options['num_steps'], 'targeted': options['targeted'],
            'random start': options['random_start']}
  loss = next(name for name, loss in LOSSES.items() if loss is options['loss'])
  assert options['targeted'] == (loss == 'dlr-targeted')
  noted = {'loss': loss, 'steps': options['num_steps'], 'passes': options['eot'] or 1}
  if options['large_start']:
    table = schedule(options['num_steps'], options['norm'], True)
    # A run of n steps takes n + 1 gradients.
    noted['lengths'] = [int(n) - 1 for n in np.diff([*np.flatnonzero(table.first),
                                                     len(table.first)])]
    noted['radii'] = table.radius[table.first].tolist()
  return noted


@pytest.mark.parametrize('norm', ['Linf', 'L2', 'L1'])
@pytest.mark.parametrize('version', ['standard', 'plus', 'rand'])
def test_versions_make_the_runs_of_the_reference(version, norm, monkeypatch):
  record_options(monkeypatch)
  ours = norm.lower()
  plan = components.plan(components.choose(None, version, ours), ours, version, 12, 100, 5000)
  assert all(part.stepper[1]['norm'] == ours for part in plan)
  steppers = [part.stepper for part in plan]
  found = [[kind, as_in_reference(kind, options), len(part.runs)]
           for (kind, options), part in zip(steppers, plan, strict=True)]
  assert found == NUMBERS[f'version {version} {norm}']
  assert [part.targeted for part in plan] == [options.get('targeted', False) for _, options in steppers]
  # The runs of an attack are numbered across its parts, so no two have the same draws or target.
  for name in {part.name for part in plan}:
    runs = [run for part in plan if part.name == name for run in part.runs]
    assert runs == list(range(len(runs)))


def test_defaults_are_those_of_published_numbers():
  defaults = {name: parameter.default
              for name, parameter in inspect.signature(attacks.autoattack).parameters.items()}
  assert (defaults['version'], defaults['num_steps'], defaults['num_queries']) == (
      'standard', 100, 5000)


def test_targets_are_those_of_the_reference():
  numbers = NUMBERS['targets']
  ours = components.targets(np.array(numbers['logits']))
  assert ours.shape == (20, 11)
  np.testing.assert_array_equal(ours[:, :9], numbers['targets'])


def test_driver_attacks_the_nine_likeliest_other_classes():
  # z = u + 20 g h: the gate g of an example is open (1) for a single class. There, a change of h by ε = .1
  # raises the logit by 2, more than any lead of u. With the gate shut both factors are at most ε, and the
  # gain is .2, and .2 from u, less than the smallest lead, .5. So of FAB-T, which starts at the input, only
  # the run that aims at the open class can succeed. Example i opens the class of rank i.
  random = np.random.RandomState(0)
  u, gate = np.zeros((11, 12)), np.zeros((11, 12))
  for i in range(11):
    order = random.permutation(12)
    u[i, order[0]] = 1
    u[i, order[1:]] = np.linspace(.5, .1, 11)
    gate[i, order[i + 1]] = 1
  x = jnp.asarray(np.stack([u, gate, np.zeros_like(u)], axis=1), jnp.float32)
  logits_fn = lambda x: x[:, 0] + 20 * x[:, 1] * x[:, 2]
  result = attacks.autoattack(logits_fn, x, u.argmax(1), KEY, epsilon=.1, attacks=('fab-t',),
                              num_steps=5)
  np.testing.assert_array_equal(result.robust, np.arange(11) >= 9)


@pytest.mark.parametrize('unrolls, eot', [(True, 3), (False, 20)])  # 20 unrolled passes compile slowly
def test_gradient_of_a_random_model_is_the_mean_of_passes(unrolls, eot, monkeypatch):
  # z_0 = n · x with a normal n drawn from the key, so the gradient of z_0 is n.
  monkeypatch.setattr(_loops, 'unrolls', lambda: unrolls)
  slope = lambda key: jax.random.normal(key, (6,))
  logits_fn = lambda x, key: jnp.stack([x @ slope(key), jnp.zeros(len(x))], axis=1)
  loss = lambda logits, y: logits[:, 0]
  x, counts = jnp.full((3, 6), .5), jnp.array([0, 7, 7])
  problem = _stepper.make_problem(x, jnp.zeros(3, int), KEY, epsilon=.1)

  def drawn(i, count, n):
    key = jax.random.fold_in(jax.random.fold_in(KEY, i), count)
    return np.asarray(slope(jax.random.fold_in(key, n)))

  each = lambda counts: np.array([[drawn(i, counts[i], n) for n in range(eot)] for i in range(3)])
  of_loss = jax.jit(lambda x, counts: _gradients.of_loss(
      logits_fn, problem, x, counts, loss=loss, targeted=False, eot=eot))
  gradient, zero_gradient, value, logits = of_loss(x, counts)
  np.testing.assert_allclose(gradient, each(counts).mean(axis=1), atol=1e-6)
  assert not zero_gradient.any()
  # The value and the logits are those of the last pass, as in the released code.
  np.testing.assert_allclose(value, each(counts)[:, -1] @ np.full(6, .5), atol=1e-6)
  np.testing.assert_array_equal(logits[:, 0], value)
  # APGD follows this gradient: its first one is that of the start.
  stepper = apgd_stepper(norm='linf', num_steps=1, loss=loss, eot=eot)
  state = jax.jit(lambda: stepper.step(logits_fn, problem, stepper.init(problem)))()
  np.testing.assert_allclose(state.gradient_best, each(np.zeros(3, int)).mean(axis=1), atol=1e-6)

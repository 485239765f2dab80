"""What AutoAttack's versions consist of: their runs, their targets, and passes averaged over.

Expected runs and targets are those of the authors' implementation, which make_reference.py watches as
it calls its attacks.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _gradients, _loops, _stepper
from at_jax.attacks.apgd import schedule as apgd_schedule
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.autoattack import components
from tests.fixtures import reference_numbers

KEY, NUMBERS, LOSSES = jax.random.key(0), reference_numbers.NUMBERS, reference_numbers.LOSSES


def tell(monkeypatch):
  """Lets `ensemble.plan` give what each stepper is asked for instead of the stepper."""
  def teller(kind):
    signature = inspect.signature(getattr(components, f'{kind}_stepper'))

    def asked(**options):
      bound = signature.bind(**options)
      bound.apply_defaults()
      return kind, bound.arguments
    monkeypatch.setattr(components, f'{kind}_stepper', asked)
  for kind in ('apgd', 'fab', 'square'):
    teller(kind)


def in_their_words(kind, options):
  """A stepper's options as make_reference.py notes those of the reference."""
  if kind == 'square':
    return {'queries': options['num_queries'], 'p': options['p_init']}
  if kind == 'fab':
    return {'steps': options['num_steps'], 'targeted': options['targeted'],
            'random start': options['random_start']}
  loss = next(name for name, loss in LOSSES.items() if loss is options['loss'])
  assert options['targeted'] == (loss == 'dlr-targeted')
  told = {'loss': loss, 'steps': options['num_steps'], 'passes': options['eot'] or 1}
  if options['large_start']:
    table = apgd_schedule(options['num_steps'], options['norm'], True)
    # A run of n steps takes n + 1 gradients.
    told['lengths'] = [int(n) - 1 for n in np.diff([*np.flatnonzero(table.first),
                                                    len(table.first)])]
    told['radii'] = table.radius[table.first].tolist()
  return told


@pytest.mark.parametrize('norm', ['Linf', 'L2', 'L1'])
@pytest.mark.parametrize('version', ['standard', 'plus', 'rand'])
def test_a_version_makes_the_runs_of_the_reference(version, norm, monkeypatch):
  tell(monkeypatch)
  ours = norm.lower()
  plan = components.plan(components.choose(None, version, ours), ours, version, 12, 100, 5000)
  assert all(one.stepper[1]['norm'] == ours for one in plan)
  asked = [one.stepper for one in plan]
  found = [[kind, in_their_words(kind, options), len(one.runs)]
           for (kind, options), one in zip(asked, plan, strict=True)]
  assert found == NUMBERS[f'version {version} {norm}']
  assert [one.targeted for one in plan] == [options.get('targeted', False) for _, options in asked]
  # An attack's runs count on from pass to pass, so that no two draw or aim alike.
  for name in {one.name for one in plan}:
    runs = [run for one in plan if one.name == name for run in one.runs]
    assert runs == list(range(len(runs)))


def test_the_defaults_are_those_of_published_numbers():
  defaults = {name: parameter.default
              for name, parameter in inspect.signature(attacks.autoattack).parameters.items()}
  assert (defaults['version'], defaults['num_steps'], defaults['num_queries']) == (
      'standard', 100, 5000)


def test_the_targets_are_the_reference_s():
  numbers = NUMBERS['targets']
  ours = components.targets(np.array(numbers['logits']))
  assert ours.shape == (20, 11)
  np.testing.assert_array_equal(ours[:, :9], numbers['targets'])


def test_the_driver_goes_to_the_nine_likeliest_other_classes_and_to_no_more():
  # z = u + 20 g h: an example's gate g is open, 1, for a single class. Where h moves by ε = .1 that
  # class gains 2, more than any lead of u; with the gate shut both factors are at most ε, and the
  # gain is .2, and .2 from u, less than the smallest lead, .5. So of FAB-T, which starts at the
  # input, only the run that aims at the open class can succeed. Example i opens the class of rank i.
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


@pytest.mark.parametrize('writes_out, eot', [(True, 3), (False, 20)])  # written out, 20 compile slowly
def test_the_gradient_of_a_random_model_is_the_mean_of_its_passes(writes_out, eot, monkeypatch):
  # z_0 = n · x with a normal n drawn from the key, so that the gradient of z_0 is n itself.
  monkeypatch.setattr(_loops, 'writes_out', lambda: writes_out)
  slope = lambda key: jax.random.normal(key, (6,))
  logits_fn = lambda x, key: jnp.stack([x @ slope(key), jnp.zeros(len(x))], axis=1)
  loss = lambda logits, y: logits[:, 0]
  x, counts = jnp.full((3, 6), .5), jnp.array([0, 7, 7])
  problem = _stepper.make_problem(x, jnp.zeros(3, int), KEY, epsilon=.1)

  def drawn(i, count, n):
    key = jax.random.fold_in(jax.random.fold_in(KEY, i), count)
    return np.asarray(slope(jax.random.fold_in(key, n)))

  each = lambda counts: np.array([[drawn(i, counts[i], n) for n in range(eot)] for i in range(3)])
  gradient, zero_gradient, value, logits = _gradients.of_loss(
      logits_fn, problem, x, counts, loss=loss, targeted=False, eot=eot)
  np.testing.assert_allclose(gradient, each(counts).mean(axis=1), atol=1e-6)
  assert not zero_gradient.any()
  # The value and the logits are the last pass's, as in the authors' code.
  np.testing.assert_allclose(value, each(counts)[:, -1] @ np.full(6, .5), atol=1e-6)
  np.testing.assert_array_equal(logits[:, 0], value)
  # And APGD follows it: its first gradient is that of the start.
  stepper = apgd_stepper(norm='linf', num_steps=1, loss=loss, eot=eot)
  state = stepper.step(logits_fn, problem, stepper.init(problem))
  np.testing.assert_allclose(state.gradient_best, each(np.zeros(3, int)).mean(axis=1), atol=1e-6)

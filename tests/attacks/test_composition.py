"""APGD, FAB and Square inside the caller's jit and vmap, looped and unrolled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _loops, _stepper
from at_jax.attacks.apgd import stepper as apgd_stepper
from tests.fixtures.composition import network

KEY = jax.random.key(1)
SHORT = {
    'pgd': lambda *arguments, epsilon: attacks.pgd(
        *arguments, epsilon=epsilon, step_size=epsilon / 3, num_steps=6),
    'apgd': functools.partial(attacks.apgd, num_steps=9),
    'fab': functools.partial(attacks.fab, num_steps=4),
    'square': functools.partial(attacks.square, num_queries=20),
    'square l1': functools.partial(attacks.square, norm='l1', num_queries=20),
    'apgd l1': functools.partial(attacks.apgd, norm='l1', num_steps=9),
    'apgd l2': functools.partial(attacks.apgd, norm='l2', num_steps=4),
    'fab l2': functools.partial(attacks.fab, norm='l2', num_steps=3),
    'fab l1': functools.partial(attacks.fab, norm='l1', num_steps=3),
    'square l2': functools.partial(attacks.square, norm='l2', num_queries=20),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name not in ('pgd', 'apgd l2', 'fab l1')))
    for name in SHORT])
def test_a_robustness_curve_in_one_compiled_call(name):
  logits_fn, x, y = network()
  attack = lambda epsilon: SHORT[name](logits_fn, x, y, KEY, epsilon=epsilon).success
  with jax.enable_x64(True):  # in float32, rounding may decide an example
    x, radii = x.astype(float), jnp.array([.02, .1, .3]) * {'l1': 3, 'l2': 2}.get(name[-2:], 1)
    curve = jax.jit(jax.vmap(attack))(radii)
    np.testing.assert_array_equal(curve, [attack(epsilon) for epsilon in radii])
  assert 0 < curve.sum() < curve.size


@pytest.mark.parametrize('name', ['apgd', 'apgd l1', 'fab', 'square'])
def test_float32_inputs_stay_float32_with_x64(name):
  logits_fn, x, y = network()
  with jax.enable_x64(True):
    result = SHORT[name](logits_fn, x, y, KEY, epsilon=.1)
    assert result.x.dtype == np.float32 and result.kappa.dtype == np.int32


@pytest.mark.parametrize('written_out', [True, False])
def test_pgd_stays_float32_with_float64_options(written_out, monkeypatch):
  logits_fn, x, y = network()
  monkeypatch.setattr(_loops, 'unrolls', lambda: written_out)
  with jax.enable_x64(True):
    for options in (dict(momentum=np.float64(.5)), dict(momentum=jnp.array(.5)),
                    dict(start=np.array(x, np.float64)), dict(bounds=np.array([0., 1.]))):
      result = attacks.pgd(logits_fn, x, y, KEY, epsilon=.1, step_size=.05, num_steps=2, **options)
      assert result.x.dtype == np.float32 and result.kappa.dtype == np.int32


@pytest.mark.parametrize('norm', [
    'linf', *(pytest.param(norm, marks=pytest.mark.long) for norm in ('l2', 'l1'))])
def test_looped_and_unrolled_steps_agree(norm, monkeypatch):
  logits_fn, x, y = network()
  run = lambda: attacks.apgd(logits_fn, x, y, KEY, epsilon=.1, norm=norm, num_steps=12)
  monkeypatch.setattr(_loops, 'unrolls', lambda: True)
  out = run()
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)
  jax.clear_caches()
  for one, other in zip(out, run(), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_one_program_for_many_radii_and_parameters():
  def apply(scale, x):
    return jnp.stack([scale * x.sum((1, 2)), jnp.ones(len(x))], axis=1)

  _, x, _ = network()
  sizes = []
  for n in range(4):
    logits_fn = jax.tree_util.Partial(apply, jnp.float32(n + 1))
    attacks.apgd(logits_fn, x, jnp.zeros(5, int), KEY, epsilon=.1 * n, num_steps=3)
    sizes.append(_stepper.advance._cache_size())
  assert sizes[0] == sizes[-1] > 0


def test_a_finished_example_stays_as_it_is():
  logits_fn, x, y = network()
  attack = apgd_stepper(norm='linf', num_steps=5)
  problem = _stepper.make_problem(x, y, KEY, epsilon=.1)
  model, done = _stepper.run(logits_fn, problem, stepper=attack)
  again = _stepper.advance(model, problem, done, stepper=attack, num_steps=3)
  jax.tree.map(np.testing.assert_array_equal, again, done)


def test_large_start_ends_in_the_ball():
  logits_fn, x, y = network()
  result = attacks.apgd(logits_fn, x, y, KEY, epsilon=.3, norm='l1', large_start=True, num_steps=20)
  assert np.abs(result.x - x).sum((1, 2)).max() <= .3 * (1 + 1e-5)
  for options, message in ((dict(norm='l1', num_steps=1), 'num_steps = 1: use at least 2 with large_start'),
                        (dict(norm='l2'), 'large_start needs')):
    with pytest.raises(ValueError, match=message):
      attacks.apgd(logits_fn, x, y, KEY, epsilon=.3, large_start=True, **options)


@pytest.mark.parametrize('norm, order', [('linf', np.inf), ('l1', 1)])
def test_a_start_outside_the_ball_is_projected_into_it(norm, order):
  logits_fn, x, y = network()
  # At 0 all logits are 0 and class 0 is predicted: counted, that start would be the success found.
  assert (y != 0).any()
  result = attacks.apgd(logits_fn, x, y, KEY, epsilon=.01, norm=norm, num_steps=1, start=0 * x)
  size = np.linalg.norm((result.x - x).reshape(len(x), -1), order, axis=1)
  np.testing.assert_array_less(size, .01 * (1 + 1e-4))


@pytest.mark.parametrize('name', SHORT)
def test_invalid_inputs_are_refused(name):
  logits_fn, x, y = network()
  with pytest.raises(ValueError, match='convert it'):
    SHORT[name](logits_fn, jnp.zeros((5, 3, 2), int), y, KEY, epsilon=.1)
  with pytest.raises(ValueError, match='one class per example'):
    SHORT[name](logits_fn, x, y[:2], KEY, epsilon=.1)

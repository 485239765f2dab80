"""Averages and optimizer state of bfloat16 and float16 parameters, against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.methods import awp, entropy_sgd, weight_averaging

LOW = [jnp.bfloat16, jnp.float16]


def averaged(average, walk, dtype):
  """The average's state and the parameters to evaluate, after the parameters took the values of `walk`."""
  def step(carry, w):
    params, state = carry
    _, state = average.update(w - params, state, params)
    return (w, state), None

  @jax.jit
  def run(walk):
    start = (walk[0], average.init(walk[0]))
    (params, state), _ = jax.lax.scan(step, start, walk)
    return state, weight_averaging.eval_params(state, params)

  return run(jnp.asarray(walk, dtype))


@pytest.mark.parametrize('dtype', LOW)
def test_averages_of_low_precision_equal_closed_forms(dtype):
  # From 1 at the start, parameters of 2: 2 − δⁿ. Half of them 1 and half 2: 1.5.
  walk = np.full(3001, 2.)
  walk[0] = 1
  state, evaluated = averaged(weight_averaging.ema(.999, ramp=False), walk, dtype)
  np.testing.assert_allclose(state.average, 2 - .999 ** 3000, rtol=1e-4)
  assert state.average.dtype == jnp.float32 and evaluated.dtype == dtype
  state, _ = averaged(weight_averaging.swa(0), np.repeat([1., 2.], 500), dtype)
  np.testing.assert_allclose(state.average, 1.5, rtol=1e-6)


def test_long_averages_equal_float64():
  # A mean of (1 − s) a + s w, with 1 − s rounded, is 2e-4 off here.
  walk = np.float32(1 + .01 * np.random.default_rng(0).normal(size=100_000))
  state, _ = averaged(weight_averaging.swa(0), walk, np.float32)
  np.testing.assert_allclose(state.average, np.float64(walk).mean(), rtol=2e-5)
  state, _ = averaged(weight_averaging.ema(.9999, ramp=False), walk, np.float32)
  shares = 1e-4 * .9999 ** np.arange(len(walk))[::-1]
  expected = shares @ walk + .9999 ** len(walk) * walk[0]
  np.testing.assert_allclose(state.average, expected, rtol=2e-5)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    state, evaluated = averaged(weight_averaging.ema(.999, ramp=False), np.float64([1, 2, 2, 2]), np.float64)
    np.testing.assert_allclose(state.average, 2 - .999 ** 3, rtol=1e-14)
    assert evaluated.dtype == np.float64
    inner = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=2, key=jax.random.key(0))
    assert inner.init(jnp.ones(2)).anchor.dtype == np.float64


@pytest.mark.parametrize('dtype', LOW)
def test_fair_average_of_low_precision_equals_a_loop(dtype):
  state, expected = weight_averaging.init_fair_average(jnp.zeros(1, dtype)), 1.
  for _ in range(300):  # a ← .99 a + .02, from 1: 2 − .99ⁿ
    state = weight_averaging.add_if_fair(state, np.full(1, 2. if state.count else 1., dtype), 1., decay=.99,
                                         threshold=0.)
    expected = .99 * expected + .02 if state.count > 1 else 1.
  np.testing.assert_allclose(state.average, expected, rtol=1e-5)
  assert state.average.dtype == np.float32
  assert weight_averaging.eval_params(state, jnp.zeros(1, dtype)).dtype == dtype


@pytest.mark.parametrize('dtype', LOW)
def test_anchor_of_entropy_sgd_moves_by_less_than_a_rounding(dtype):
  # L = 1, μ = w − η', so that a cycle moves the anchor by −η'/1250 = −1e-4: after 100 it is .99.
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1 / 1250), inner_steps=1, key=jax.random.key(0), noise=0.,
                                      gamma=0., momentum=0., averaging=0., inner_learning_rate=.125)
  params = jnp.ones(1, dtype)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for _ in range(100):
    updates, state = update(jnp.ones(1, dtype), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(state.anchor, .99, atol=5e-4)
  assert {state.anchor.dtype, state.average.dtype, state.momentum.dtype} == {jnp.dtype('float32')}
  np.testing.assert_array_equal(params, state.anchor.astype(dtype))
  # Parameters that someone else changed are not overwritten by the anchor.
  _, state = update(jnp.ones(1, dtype), state, 3 * params)
  np.testing.assert_allclose(state.anchor, 3 * params.astype(np.float32), atol=.01)


@pytest.mark.parametrize('dtype', LOW)
def test_perturbed_weights_are_not_rounded(dtype):
  rng = np.random.default_rng(0)
  w, g = (jnp.asarray(300 * rng.normal(size=(40, 50)), dtype) for _ in range(2))
  exact_w, exact_g = (np.asarray(value, np.float64) for value in (w, g))
  size = .005 * np.linalg.norm(exact_w) / np.linalg.norm(exact_g)
  # ‖w‖² is above the largest float16 number.
  np.testing.assert_allclose(awp.perturb(w, g, gamma=.005) - np.float32(w), size * exact_g, atol=1e-4)
  _, gradient = awp.awp_value_and_grad(lambda w: jnp.sum(w ** 2) / 2, gamma=.01)(w / 100)
  assert gradient.dtype == dtype
  np.testing.assert_allclose(np.float32(gradient), 1.01 * exact_w / 100, rtol=.01, atol=1e-5)


def test_averages_of_earlier_versions_move_again():
  params = jnp.full(1, 2, jnp.bfloat16)
  state = weight_averaging.AverageState(jnp.array(5), jnp.ones(1, jnp.bfloat16))
  _, state = weight_averaging.ema(.999, ramp=False).update(0 * params, state, params)
  np.testing.assert_allclose(state.average, 1.001, rtol=1e-6)


def injected(dtype):
  make = optax.inject_hyperparams(weight_averaging.ema, static_args=('start', 'ramp'), hyperparam_dtype=dtype)
  return make(.999, ramp=False)


def test_injected_decay_that_rounds_to_one_is_refused():
  params = jnp.ones(1, jnp.bfloat16)
  with pytest.raises(ValueError, match=r'decay = bfloat16\[\]: use float32.*hyperparam_dtype'):
    injected(None).init(params)
  with pytest.raises(ValueError, match=r'averaging = bfloat16\[\]: use float32'):
    entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=1, key=jax.random.key(0),
                            averaging=jnp.bfloat16(.999))
  optimizer = injected(jnp.float32)
  state = optimizer.init(params)
  for _ in range(2):
    _, state = jax.jit(optimizer.update)(params, state, params)
  np.testing.assert_allclose(state.inner_state.average, 2 - .999 ** 2, rtol=1e-6)


@pytest.mark.parametrize('decay', [1 - 1e-9, .99999999])
def test_decay_that_rounds_to_one_in_float32_is_refused(decay):
  with pytest.raises(ValueError, match='rounds to 1'):
    weight_averaging.ema(decay)
  with pytest.raises(ValueError, match='averaging = .*: rounds to 1'):
    entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=1, key=jax.random.key(0), averaging=decay)
  with pytest.raises(ValueError, match='rounds to 1'):
    weight_averaging.add_if_fair(weight_averaging.init_fair_average(jnp.ones(1)), jnp.ones(1), 1.,
                                 decay=decay, threshold=0.)
  weight_averaging.ema(.999999)
  weight_averaging.ema(1.)  # on purpose: the average stays at the start
  with jax.enable_x64(True):
    weight_averaging.ema(decay)

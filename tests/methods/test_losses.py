"""Training losses against numbers worked by hand, slow float64 loops, and confident logits."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import losses
from tests.fixtures.slow_losses import probabilities, slow_boost, slow_js, slow_kl

RNG = np.random.default_rng(0)
CLEAN, ADV = RNG.normal(size=(2, 7, 10)).astype(np.float32) * 3
Y = RNG.integers(0, 5, 7)  # below 5: also labels of a doubled head with C = 5


def test_cross_entropy_by_hand():
  # softmax(log 3, 0) = (3/4, 1/4): −log 3/4 = .287682 and −log 1/4 = 1.386294.
  z = jnp.log(jnp.array([[3., 1.], [3., 1.]]))
  np.testing.assert_allclose(losses.cross_entropy(z, jnp.array([0, 1])), [.287682, 1.386294],
                             rtol=1e-5)
  # ¼ of the first and ¾ of the second: .071921 + 1.039721.
  soft = losses.cross_entropy(z[:1], jnp.array([[.25, .75]]))
  np.testing.assert_allclose(soft, [1.111641], rtol=1e-5)


def test_hard_targets_are_one_hot_targets_to_the_bit():
  hard = lambda z: jnp.mean(losses.cross_entropy(z, Y))
  soft = lambda z: jnp.mean(losses.cross_entropy(z, jax.nn.one_hot(Y, 10)))
  np.testing.assert_array_equal(hard(ADV), soft(ADV))
  np.testing.assert_array_equal(jax.grad(hard)(ADV), jax.grad(soft)(ADV))


def test_soft_targets_scale_with_their_sum():
  t = jax.nn.softmax(CLEAN)
  np.testing.assert_allclose(losses.cross_entropy(ADV, .5 * t), .5 * losses.cross_entropy(ADV, t),
                             rtol=1e-6)


@pytest.mark.parametrize('targets', [np.zeros(6, int), np.zeros((7, 9)), np.zeros(7),
                                     np.zeros((7, 10), int)])
def test_cross_entropy_refuses_other_targets(targets):
  with pytest.raises(ValueError, match='targets are'):
    losses.cross_entropy(ADV, targets)


def test_against_slow_loops():
  check = lambda ours, slow: np.testing.assert_allclose(ours, slow, rtol=1e-5, atol=1e-6)
  check(losses.kl(CLEAN, ADV), [slow_kl(*z) for z in zip(CLEAN, ADV)])
  check(losses.mart_boost(ADV, Y), [slow_boost(*z) for z in zip(ADV, Y)])
  check(losses.mart_kl(CLEAN, ADV, Y),
        [slow_kl(a, b) * (1 - probabilities(a)[y]) for a, b, y in zip(CLEAN, ADV, Y)])
  for t in (.5, 1., 3.):
    check(losses.js_consistency(CLEAN, ADV, temperature=t),
          [slow_js(a, b, t) for a, b in zip(CLEAN, ADV)])


def test_kl_by_hand():
  # p = (3/4, 1/4), p' = (1/2, 1/2): ¾ log 3/2 + ¼ log ½ = .304099 − .173287 = .130812.
  z, z_adv = jnp.log(jnp.array([[3., 1.]])), jnp.zeros((1, 2))
  np.testing.assert_allclose(losses.kl(z, z_adv), [.130812], atol=1e-6)
  # 1 − p_0 = ¼, 1 − p_1 = ¾.
  np.testing.assert_allclose(losses.mart_kl(z, z_adv, jnp.array([0])), [.032703], atol=1e-6)
  np.testing.assert_allclose(losses.mart_kl(z, z_adv, jnp.array([1])), [.098109], atol=1e-6)


def test_mart_boost_of_a_doubled_head_takes_the_own_dummy():
  # C = 2, y = 0, so its dummy is 2. p = (1, 1, 5, 1)/8: −log(1.0001 − 5/8) = .980563.
  z = jnp.log(jnp.array([[1., 1., 5., 1.]]))
  np.testing.assert_allclose(losses.mart_boost(z, jnp.array([0])), [.980563], atol=1e-6)
  # Of y = 2 the likeliest wrong class has 1/8: −log(1.0001 − 1/8) = .133417.
  np.testing.assert_allclose(losses.mart_boost(z, jnp.array([2])), [.133417], atol=1e-6)


def test_js_by_hand():
  # Certain of different classes: m = (½, ½) and each half is ½ log 2. Equal views: 0.
  apart = losses.js_consistency(jnp.array([[90., 0.]]), jnp.array([[0., 90.]]))
  np.testing.assert_allclose(apart, [np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(losses.js_consistency(ADV, ADV), np.zeros(7), atol=1e-6)


def test_temperature_is_a_scale_of_the_logits():
  np.testing.assert_allclose(losses.js_consistency(CLEAN, ADV, temperature=.5),
                             losses.js_consistency(2 * CLEAN, 2 * ADV, temperature=1.), rtol=1e-6)


EVERY = {
    'cross_entropy': lambda a, b: losses.cross_entropy(b, Y),
    'soft cross_entropy': lambda a, b: losses.cross_entropy(b, jax.nn.softmax(CLEAN)),
    'kl': losses.kl,
    'mart_boost': lambda a, b: losses.mart_boost(b, Y),
    'mart_kl': lambda a, b: losses.mart_kl(a, b, Y),
    'js_consistency': losses.js_consistency,
}


@pytest.mark.parametrize('name', EVERY)
def test_gradients_are_differences(name):
  loss = lambda z: jnp.sum(EVERY[name](*z))
  with jax.enable_x64(True):
    z = jnp.asarray(np.stack([CLEAN, ADV]), jnp.float64)
    gradient = jax.grad(loss)(z)
    rng = np.random.default_rng(3)
    for _ in range(5):
      d = rng.normal(size=z.shape)
      slope = (loss(z + 1e-5 * d) - loss(z - 1e-5 * d)) / 2e-5
      np.testing.assert_allclose(jnp.sum(gradient * d), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', EVERY)
def test_float32_gradients_agree_with_float64(name):
  loss = lambda z: jnp.sum(EVERY[name](*z))
  z = np.stack([CLEAN, ADV])
  single = jax.grad(loss)(z)
  with jax.enable_x64(True):
    double = jax.grad(loss)(jnp.asarray(z, jnp.float64))
  np.testing.assert_allclose(single, double, atol=3e-6)


@pytest.mark.parametrize('name', EVERY)
@hypothesis.given(seed=st.integers(0, 1000), scale=st.sampled_from([0., 1., 30., 1e3, 1e5]))
@hypothesis.settings(max_examples=25)
def test_confident_logits(name, seed, scale):
  a, b = (np.random.default_rng(seed).normal(size=(2, 7, 10)) * scale).astype(np.float32)
  value = EVERY[name](a, b)
  gradient = jax.grad(lambda z: jnp.sum(EVERY[name](*z)))(jnp.stack([a, b]))
  with jax.enable_x64(True):
    exact = EVERY[name](jnp.asarray(a, jnp.float64), jnp.asarray(b, jnp.float64))
  assert np.isfinite(value).all() and np.isfinite(gradient).all()
  # A logit of size s is known to s·6e-8, and so is a difference of two.
  np.testing.assert_allclose(value, exact, rtol=2e-5, atol=1e-5 + 5e-7 * scale)
  assert (np.asarray(value) > -1.1e-4).all()


def test_a_shift_of_the_logits_changes_nothing():
  for loss in EVERY.values():
    np.testing.assert_allclose(loss(CLEAN + 20, ADV - 30), loss(CLEAN, ADV), atol=3e-5)


def test_gradient_of_kl_reaches_both_arguments():
  z = np.stack([CLEAN, ADV])
  gradient = jax.grad(lambda z: jnp.sum(losses.kl(*z)))(z)
  # d KL/d z' = p' − p.
  np.testing.assert_allclose(gradient[1], jax.nn.softmax(ADV) - jax.nn.softmax(CLEAN), atol=1e-6)
  assert np.abs(gradient[0]).max() > .1
  attack = jax.grad(lambda z: jnp.sum(losses.kl_to_reference(z[1], Y, z[0])))(z)
  np.testing.assert_array_equal(attack[0], 0.)

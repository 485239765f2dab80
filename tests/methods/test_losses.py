"""Loss terms of all methods: numbers worked by hand, slow float64 loops, confident logits."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import consistency, losses, mart
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


def test_labels_equal_one_hot_targets_exactly():
  hard = lambda z: jnp.mean(losses.cross_entropy(z, Y))
  soft = lambda z: jnp.mean(losses.cross_entropy(z, jax.nn.one_hot(Y, 10)))
  np.testing.assert_array_equal(hard(ADV), soft(ADV))
  np.testing.assert_array_equal(jax.grad(hard)(ADV), jax.grad(soft)(ADV))


def test_cross_entropy_scales_with_soft_targets():
  t = jax.nn.softmax(CLEAN)
  np.testing.assert_allclose(losses.cross_entropy(ADV, .5 * t), .5 * losses.cross_entropy(ADV, t),
                             rtol=1e-6)


@pytest.mark.parametrize('targets', [np.zeros(6, int), np.zeros((7, 9)), np.zeros(7),
                                     np.zeros((7, 10), int)])
def test_other_targets_raise(targets):
  with pytest.raises(ValueError, match='targets are'):
    losses.cross_entropy(ADV, targets)


def test_terms_equal_slow_loops():
  check = lambda ours, slow: np.testing.assert_allclose(ours, slow, rtol=1e-5, atol=1e-6)
  check(losses.kl(CLEAN, ADV), [slow_kl(*z) for z in zip(CLEAN, ADV, strict=True)])
  check(mart.boost(ADV, Y), [slow_boost(*z) for z in zip(ADV, Y, strict=True)])
  check(mart.weighted_kl(CLEAN, ADV, Y),
        [slow_kl(a, b) * (1 - probabilities(a)[y]) for a, b, y in zip(CLEAN, ADV, Y, strict=True)])
  for t in (.5, 1., 3.):
    check(consistency.js_divergence(CLEAN, ADV, temperature=t),
          [slow_js(a, b, t) for a, b in zip(CLEAN, ADV, strict=True)])


def test_kl_by_hand():
  # p = (3/4, 1/4), p' = (1/2, 1/2): ¾ log 3/2 + ¼ log ½ = .304099 − .173287 = .130812.
  z, z_adv = jnp.log(jnp.array([[3., 1.]])), jnp.zeros((1, 2))
  np.testing.assert_allclose(losses.kl(z, z_adv), [.130812], atol=1e-6)
  # 1 − p_0 = ¼, 1 − p_1 = ¾.
  np.testing.assert_allclose(mart.weighted_kl(z, z_adv, jnp.array([0])), [.032703], atol=1e-6)
  np.testing.assert_allclose(mart.weighted_kl(z, z_adv, jnp.array([1])), [.098109], atol=1e-6)


def test_boost_of_a_doubled_head_may_take_the_own_dummy():
  # C = 2, y = 0, so its dummy is 2. p = (1, 1, 5, 1)/8: −log(1.0001 − 5/8) = .980563.
  z = jnp.log(jnp.array([[1., 1., 5., 1.]]))
  np.testing.assert_allclose(mart.boost(z, jnp.array([0])), [.980563], atol=1e-6)
  # For y = 2 the likeliest wrong class has 1/8: −log(1.0001 − 1/8) = .133417.
  np.testing.assert_allclose(mart.boost(z, jnp.array([2])), [.133417], atol=1e-6)


def test_js_by_hand():
  # Certain of different classes: m = (½, ½) and each half is ½ log 2. Equal views: 0.
  divergence = consistency.js_divergence(jnp.array([[90., 0.]]), jnp.array([[0., 90.]]))
  np.testing.assert_allclose(divergence, [np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(consistency.js_divergence(ADV, ADV), np.zeros(7), atol=1e-6)


def test_temperature_divides_the_logits():
  np.testing.assert_allclose(consistency.js_divergence(CLEAN, ADV, temperature=.5),
                             consistency.js_divergence(2 * CLEAN, 2 * ADV, temperature=1.), rtol=1e-6)


EVERY = {
    'cross_entropy': lambda a, b: losses.cross_entropy(b, Y),
    'soft cross_entropy': lambda a, b: losses.cross_entropy(b, jax.nn.softmax(CLEAN)),
    'kl': losses.kl,
    'mart.boost': lambda a, b: mart.boost(b, Y),
    'mart.weighted_kl': lambda a, b: mart.weighted_kl(a, b, Y),
    'js_divergence': consistency.js_divergence,
}


@pytest.mark.parametrize('name', EVERY)
def test_gradients_equal_finite_differences(name):
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
def test_float32_gradients_equal_float64(name):
  loss = lambda z: jnp.sum(EVERY[name](*z))
  z = np.stack([CLEAN, ADV])
  single = jax.grad(loss)(z)
  with jax.enable_x64(True):
    double = jax.grad(loss)(jnp.asarray(z, jnp.float64))
  np.testing.assert_allclose(single, double, atol=3e-6)


@pytest.mark.parametrize('name', EVERY)
@hypothesis.given(seed=st.integers(0, 1000), scale=st.sampled_from([0., 1., 30., 1e3, 1e5]))
@hypothesis.settings(max_examples=25)
def test_confident_logits_are_finite_and_exact(name, seed, scale):
  a, b = (np.random.default_rng(seed).normal(size=(2, 7, 10)) * scale).astype(np.float32)
  value = EVERY[name](a, b)
  gradient = jax.grad(lambda z: jnp.sum(EVERY[name](*z)))(jnp.stack([a, b]))
  with jax.enable_x64(True):
    exact = EVERY[name](jnp.asarray(a, jnp.float64), jnp.asarray(b, jnp.float64))
  assert np.isfinite(value).all() and np.isfinite(gradient).all()
  # A float32 logit of size s has an error of s·6e-8, and so has a difference of two.
  np.testing.assert_allclose(value, exact, rtol=2e-5, atol=1e-5 + 5e-7 * scale)
  assert (np.asarray(value) > -1.1e-4).all()


def test_terms_do_not_depend_on_a_shift_of_the_logits():
  for loss in EVERY.values():
    np.testing.assert_allclose(loss(CLEAN + 20, ADV - 30), loss(CLEAN, ADV), atol=3e-5)


def test_gradient_of_kl_flows_through_both_arguments():
  z = np.stack([CLEAN, ADV])
  gradient = jax.grad(lambda z: jnp.sum(losses.kl(*z)))(z)
  # d KL/d z' = p' − p.
  np.testing.assert_allclose(gradient[1], jax.nn.softmax(ADV) - jax.nn.softmax(CLEAN), atol=1e-6)
  assert np.abs(gradient[0]).max() > .1
  attack = jax.grad(lambda z: jnp.sum(losses.kl_to_reference(z[1], Y, z[0])))(z)
  np.testing.assert_array_equal(attack[0], 0.)

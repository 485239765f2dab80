"""Losses against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import losses
from at_jax.evaluation import attack_names

# C = 3 and y = 0, whose dummy is output 3; the best of the others is output 5, a dummy, at 5.
LOGITS, Y = jnp.array([[3., 1., 2., .5, -1., 5.]]), jnp.array([0])
# 5 − λ·3 − (1 − λ)·½ at λ = 0, .2, .5 and 1.
BY_HAND = {0.: 4.5, .2: 4., .5: 3.25, 1.: 2.}


@pytest.mark.parametrize('weight, expected', BY_HAND.items())
def test_weighted_margin_by_hand(weight, expected):
  np.testing.assert_allclose(losses.weighted_dummy_margin(LOGITS, Y, weight), [expected], rtol=1e-6)
  np.testing.assert_allclose(losses.dummy_margin(weight)(LOGITS, Y), [expected], rtol=1e-6)
  # The push is λ against the class, 1 − λ against its dummy, and all of it towards the rival.
  slope = jax.grad(lambda z: losses.weighted_dummy_margin(z, Y, weight)[0])(LOGITS)
  np.testing.assert_allclose(slope, [[-weight, 0, 0, weight - 1, 0, 1]], atol=1e-6)


def test_weights_may_differ_between_examples():
  found = losses.weighted_dummy_margin(jnp.tile(LOGITS, (4, 1)), jnp.zeros(4, int),
                                       jnp.array(list(BY_HAND)))
  np.testing.assert_allclose(found, list(BY_HAND.values()), rtol=1e-6)


def test_a_class_and_its_dummy_are_not_rivals():
  # y = 2: both of its outputs are above the best of the others, 3 of output 0. 3 − .2·2 − .8·5.
  np.testing.assert_allclose(losses.weighted_dummy_margin(LOGITS, jnp.array([2]), .2), [-1.4],
                             rtol=1e-5)


def test_the_name_of_an_attack_carries_its_weight():
  attack = attack_names.attack(attack_names.parse('dummy0.2_pgd1'), norm='linf', epsilon=.1, step_size=.1)
  same = lambda x: jnp.tile(LOGITS, (len(x), 1))  # wherever the attack goes
  found = attack(same, jnp.full((1, 2), .5), Y, jax.random.key(0), None)
  np.testing.assert_allclose(found.loss, [BY_HAND[.2]], rtol=1e-6)


def test_soft_dummy_margin_has_a_gradient_in_both_halves():
  # e^z = (3, 2 | 1, 4) with C = 2, y = 0: s_0 = ln(3 + 1), s_1 = ln(2 + 4), their margin ln(6/4).
  # Of each s the gradient is each output's share of its sum: 3/4 and 1/4, 2/6 and 4/6.
  z = jnp.log(jnp.array([[3., 2., 1., 4.]]))
  value, slope = jax.value_and_grad(lambda z: losses.soft_dummy_margin(z, Y)[0])(z)
  np.testing.assert_allclose(value, np.log(1.5), rtol=1e-5)
  np.testing.assert_allclose(slope, [[-3 / 4, 2 / 6, -1 / 4, 4 / 6]], rtol=1e-5)


def test_losses_with_a_parameter_are_cached_and_do_not_underflow():
  assert losses.scaled(20.) is losses.scaled(20.)
  assert losses.dummy_margin(.5) is losses.dummy_margin(.5)
  confident, y = jnp.array([[300., 0., 1.]]), jnp.array([0])
  slope = lambda loss: np.abs(jax.grad(lambda z: loss(z, y)[0])(confident)).max()
  assert slope(losses.masking_scaled(1.)) == 0
  assert slope(losses.scaled(1.)) > .5
  np.testing.assert_allclose(losses.scaled(1e4)(confident, y), losses.margin(confident, y))


def test_gradient_of_scaled_has_the_direction_of_cross_entropy():
  # (1 - p_y) / T times the gradient of the bracket, times T for the division by the scale.
  with jax.enable_x64(True):
    logits, y = jnp.array([[1., .3, -.5, .2]]), jnp.array([0])
    for scale in (.2, 1., 5.):
      plain = jax.grad(lambda z, scale=scale: losses.cross_entropy(scale * z, y)[0])(logits)
      scaled = jax.grad(lambda z, scale=scale: losses.scaled(scale)(z, y)[0])(logits)
      wrong = 1 - jax.nn.softmax(scale * logits)[0, 0]
      np.testing.assert_allclose(plain, scale * wrong * scaled, rtol=1e-10)


def test_dlr_of_few_classes_by_hand():
  # With 2 classes DLR is the margin, with 3 it is -(z_y - rival) / (3 - 1).
  dlr, targeted_dlr = losses.dlr, losses.targeted_dlr
  two, three = jnp.array([[3., 1.], [1., 3.]]), jnp.array([[3., 1., 2.]] * 3)
  zeros, classes = jnp.zeros(2, int), jnp.arange(3)
  np.testing.assert_allclose(dlr(two, zeros), [-2, 2])
  np.testing.assert_allclose(dlr(three, classes), [-.5, 1, .5])
  # Below 4 classes the targeted one is z_t - z_y, so its slope is 1 at t and -1 at y.
  np.testing.assert_allclose(targeted_dlr(two, zeros, zeros + 1), [-2, 2])
  np.testing.assert_allclose(targeted_dlr(three, classes, jnp.array([1, 2, 0])), [-2, 1, 1])
  slope = lambda logits, *classes: jax.grad(lambda z: targeted_dlr(z, *classes).sum())(logits)
  np.testing.assert_array_equal(slope(two, zeros, zeros + 1), [[-1, 1], [-1, 1]])
  np.testing.assert_array_equal(
      slope(three, classes, jnp.array([1, 2, 0])), [[-1, 1, 0], [0, -1, 1], [1, 0, -1]])
  np.testing.assert_array_equal(
      jax.grad(lambda z: dlr(z, zeros).sum())(two), [[-1, 1], [-1, 1]])

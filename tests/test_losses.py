"""Training losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import losses


def test_cross_entropy_of_classes_and_soft_targets_by_hand():
  # softmax(ln 1, ln 2, ln 5) = (1, 2, 5)/8.
  logits = jnp.log(jnp.array([[1., 2., 5.]]))
  np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([1])), [np.log(4)], rtol=1e-6)
  np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([[.5, .5, 0.]])),
                             [.5 * np.log(8) + .5 * np.log(4)], rtol=1e-6)


def test_cross_entropy_stays_finite_for_confident_logits():
  value, gradient = jax.value_and_grad(
      lambda z: losses.cross_entropy(z, jnp.array([0]))[0])(jnp.array([[-1e4, 1e4]]))
  np.testing.assert_allclose(value, 2e4)  # z_1 − z_0
  np.testing.assert_allclose(gradient, [[-1., 1.]])


def test_targets_of_another_shape_are_refused():
  with pytest.raises(ValueError, match='targets have shape'):
    losses.cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 4)))

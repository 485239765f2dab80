"""DUCAT's targets, folding and loss against numbers worked by hand."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import ducat, losses


def test_soft_targets_by_hand():
  # C = 3, w = .25: class 2 keeps .75 and its dummy, output 2 + 3, gets .25.
  np.testing.assert_allclose(ducat.soft_targets(jnp.array([2, 0]), num_classes=3, dummy_weight=.25),
                             [[0, 0, .75, 0, 0, .25], [.75, 0, 0, .25, 0, 0]])


def test_loss_by_hand():
  # C = 2, y = 0. Clean logits (ln 2, 0, 0, 0): softmax (2, 1, 1, 1)/5.
  #   CE against (.75, 0, .25, 0) = .75·ln(5/2) + .25·ln 5.
  # Adversarial logits (0, 0, ln 3, 0): softmax (1, 1, 3, 1)/6; its target is the dummy, output 2.
  #   CE = ln(6/3) = ln 2.
  clean, adversarial = jnp.array([[np.log(2), 0, 0, 0]]), jnp.array([[0, 0, np.log(3), 0]])
  benign_term, adversarial_term = .75 * np.log(2.5) + .25 * np.log(5), np.log(2)
  y = jnp.array([0])
  np.testing.assert_allclose(ducat.loss(clean, adversarial, y),
                             [.5 * (benign_term + adversarial_term)], rtol=1e-6)
  np.testing.assert_allclose(ducat.loss(clean, adversarial, y, alpha=2.),
                             [.5 * (benign_term + 2 * adversarial_term)], rtol=1e-6)
  # w_a = .5: half of the mass goes to class 0, of probability 1/6.
  np.testing.assert_allclose(
      ducat.loss(clean, adversarial, y, adversarial_weight=.5),
      [.5 * (benign_term + .5 * np.log(6) + .5 * np.log(2))], rtol=1e-6)


def test_loss_without_dummy_weights_is_mean_cross_entropy():
  clean, adversarial = jax.random.normal(jax.random.key(0), (2, 7, 10))
  y = jnp.arange(7) % 5
  expected = .5 * (losses.cross_entropy(clean, y) + losses.cross_entropy(adversarial, y))
  np.testing.assert_allclose(
      ducat.loss(clean, adversarial, y, benign_weight=0., adversarial_weight=0.), expected,
      rtol=1e-6)


logits = hnp.arrays(np.float32, (3, 8), elements=st.floats(-1e4, 1e4, width=32), unique=True)


@hypothesis.given(logits)
def test_folded_decision_is_the_recovered_one(z):
  # Without ties (the logits are unique) argmax of g_c = max(z_c, z_{c+C}) is argmax(z) mod C.
  np.testing.assert_array_equal(jnp.argmax(ducat.fold(z), axis=-1), ducat.recover(z))
  np.testing.assert_array_equal(ducat.recover(z), np.argmax(z, axis=-1) % 4)


def test_odd_head_raises():
  with pytest.raises(ValueError, match='even'):
    ducat.fold(jnp.zeros((1, 5)))

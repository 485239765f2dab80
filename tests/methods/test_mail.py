"""MAIL's weights: a slow loop, and values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import mail


def test_margin_weights_equal_a_loop():
  rng = np.random.default_rng(2)
  logits, y = rng.normal(size=(20, 5)) * 3, rng.integers(0, 5, 20)
  for bias, slope in ((-.5, 10.), (0., 2.)):
    expected = []
    for z, label in zip(logits, y, strict=False):
      p = np.exp(z) / np.exp(z).sum()
      m = p[label] - max(p[j] for j in range(5) if j != label)
      expected.append(3 / (1 + np.exp(slope * (m - bias))))
    w = mail.margin_weights(logits.astype(np.float32), y, bias=bias, slope=slope)
    np.testing.assert_allclose(w, expected, rtol=2e-5)


def test_margin_weights_of_certain_predictions():
  # m = ±1: 3·σ(∓10·(1 ± .5)) = 3·σ(−15) and 3·σ(5); at the boundary 3·σ(−5).
  logits = jnp.array([[99., 0.], [0., 99.], [0., 0.]])
  w = mail.margin_weights(logits, jnp.zeros(3, int), bias=-.5, slope=10.)
  np.testing.assert_allclose(w, [9.1771e-7, 2.979921, .0200786], rtol=1e-4)


def test_no_gradient_flows_through_margin_weights():
  weigh = lambda z: mail.margin_weights(z, jnp.array([0, 1]), bias=0., slope=2.)
  gradient = jax.grad(lambda z: jnp.sum(weigh(z) ** 2))(jnp.array([[1., 2.], [.5, .3]]))
  np.testing.assert_array_equal(gradient, 0.)

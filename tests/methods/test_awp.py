"""Adversarial weight perturbation against its definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import awp as awp_lib
from at_jax.methods import losses

RNG = np.random.default_rng(0)
PARAMS = {'conv': {'kernel': RNG.normal(size=(3, 3, 2, 4)), 'bias': RNG.normal(size=4)},
          'scale': RNG.normal(size=4), 'head': RNG.normal(size=(4, 5)), 'dead': np.ones((2, 2))}
PARAMS = jax.tree.map(lambda p: p.astype(np.float32), PARAMS)
X, Y = RNG.normal(size=(8, 6, 6, 2)).astype(np.float32), RNG.integers(0, 5, 8)


def loss(params, x, y):
  h = jax.lax.conv_general_dilated(x, params['conv']['kernel'], (1, 1), 'SAME',
                                   dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  h = jax.nn.relu(h + params['conv']['bias']) * params['scale']
  logits = jnp.mean(h, (1, 2)) @ params['head']
  return jnp.mean(losses.cross_entropy(logits, y)), logits


gradient_at = jax.jit(jax.grad(loss, has_aux=True))


def awp(**options):
  return jax.jit(awp_lib.awp_value_and_grad(loss, has_aux=True, **options))


def test_value_and_gradient_equal_the_definition():
  gradient = jax.tree.map(np.asarray, gradient_at(PARAMS, X, Y)[0])
  moved = jax.tree.map(np.copy, PARAMS)
  for w, g in ((moved['conv']['kernel'], gradient['conv']['kernel']),
               (moved['head'], gradient['head'])):
    w += .02 * np.sqrt(np.sum(np.float64(w) ** 2)) * g / np.sqrt(np.sum(np.float64(g) ** 2))
  expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(moved, X, Y)
  found = awp(gamma=.02)(PARAMS, X, y=Y)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
  # The loss rises by about γ Σ‖w‖‖g‖.
  rise = sum(.02 * np.linalg.norm(np.ravel(p)) * np.linalg.norm(np.ravel(g)) for p, g in (
      (PARAMS['conv']['kernel'], gradient['conv']['kernel']), (PARAMS['head'], gradient['head'])))
  np.testing.assert_allclose(found[0][0] - loss(PARAMS, X, Y)[0], rise, rtol=.1)


def test_only_weights_move_by_gamma_times_their_norm():
  gradient = jax.tree.map(np.asarray, gradient_at(PARAMS, X, Y)[0])
  moved = awp_lib.perturb(PARAMS, gradient, gamma=.01)
  for leaf in (lambda p: p['conv']['bias'], lambda p: p['scale'], lambda p: p['dead']):
    np.testing.assert_array_equal(leaf(moved), leaf(PARAMS))
  for leaf in (lambda p: p['conv']['kernel'], lambda p: p['head']):
    step = np.linalg.norm(np.ravel(leaf(moved) - leaf(PARAMS)))
    np.testing.assert_allclose(step, .01 * np.linalg.norm(np.ravel(leaf(PARAMS))), rtol=1e-4)


@pytest.mark.parametrize('gamma', [0, 0., jnp.array(0.)])
def test_gamma_of_zero_is_exactly_value_and_grad(gamma):
  found = awp_lib.awp_value_and_grad(loss, gamma=gamma, has_aux=True)(PARAMS, X, Y)
  chex.assert_trees_all_equal(found, jax.value_and_grad(loss, has_aux=True)(PARAMS, X, Y))


def test_gamma_may_be_traced():
  value = jax.jit(lambda gamma: awp_lib.awp_value_and_grad(
      loss, gamma=gamma, has_aux=True)(PARAMS, X, Y)[0][0])
  fixed = awp(gamma=.02)(PARAMS, X, Y)[0][0]
  np.testing.assert_allclose(value(.02), fixed, rtol=1e-6)
  assert value(0.) < value(.01) < value(.02)


def test_ascent_uses_the_gradient_of_all_devices():
  grad = awp(gamma=.02, axis_name='batch')
  parts = jax.vmap(lambda x, y: jax.lax.pmean(grad(PARAMS, x, y)[1], 'batch'), axis_name='batch')(
      X.reshape(4, 2, 6, 6, 2), Y.reshape(4, 2))
  whole = awp(gamma=.02)(PARAMS, X, Y)[1]
  chex.assert_trees_all_close(jax.tree.map(lambda g: g[3], parts), whole, rtol=1e-4, atol=1e-6)
  alone = jax.vmap(lambda x, y: awp(gamma=.02)(PARAMS, x, y)[1])(
      X.reshape(4, 2, 6, 6, 2), Y.reshape(4, 2))
  assert np.abs(np.mean(alone['head'], 0) - whole['head']).max() > 1e-3

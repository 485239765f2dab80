"""Optimizers and files of bfloat16 parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from at_jax import config as configs
from at_jax.methods import precision
from at_jax.training import checkpoints, optimizers


def optimizer_of(**fields):
  config = configs.default()
  config.optimizer.update(fields)
  return optimizers.optimizer(config, lambda _: 1e-3, steps_per_epoch=1, key=jax.random.key(0))


def test_momentum_and_decay_of_bfloat16_equal_a_loop():
  optimizer = optimizer_of(weight_decay=5e-4, momentum=.99, ema_decay=.9)
  params = jnp.full(1, 2, jnp.bfloat16)
  state = optimizer.init(params)
  trace = optax.tree_utils.tree_get(state, 'trace')
  for _ in range(3):  # the decay of 1e-3 is less than a rounding of the gradient
    updates, state = optimizer.update(jnp.ones(1, jnp.bfloat16), state, params)
    trace = .99 * trace + 1.001
  np.testing.assert_allclose(optax.tree_utils.tree_get(state, 'trace'), trace, rtol=1e-6)
  np.testing.assert_allclose(updates, -1e-3 * trace, rtol=1e-6)
  assert precision.apply_updates(params, updates).dtype == jnp.bfloat16


def test_state_of_bfloat16_is_restored_to_the_bit(tmp_path):
  optimizer = optimizer_of(ema_decay=.9)
  params = {'w': jnp.asarray([1., 2.], jnp.bfloat16)}
  template = jax.device_get((params, optimizer.init(params)))
  updates, opt_state = optimizer.update({'w': jnp.asarray([.3, .7], jnp.bfloat16)}, template[1], params)
  state = jax.device_get((precision.apply_updates(params, updates), opt_state))
  store = checkpoints.Checkpoints(tmp_path, keep=1)
  store.save(1, state, {})
  store.wait()
  saved, messages = store.newest(template)
  assert not messages
  chex.assert_trees_all_equal_dtypes(saved.state, state)
  chex.assert_trees_all_equal(saved.state, state)


def test_weights_file_keeps_bfloat16(tmp_path):
  variables = {'params': {'w': np.asarray(jnp.asarray([1., 2.5], jnp.bfloat16))}}
  checkpoints.write_weights(tmp_path / 'weights.npz', checkpoints.Weights(1, variables, {}))
  found = checkpoints.read_weights(tmp_path / 'weights.npz', variables)
  assert found.variables['params']['w'].dtype == jnp.bfloat16
  chex.assert_trees_all_equal(found.variables, variables)

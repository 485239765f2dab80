"""Devices: the only file that counts them."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from at_jax import devices as devices_lib
from at_jax.attacks import _loops
from at_jax.training import step as step_lib

LONGEST_CALL = 100


def replicate(tree: Any) -> Any:
  """Copies a pytree to every device, with a leading axis of devices, as `pmap` takes it."""
  # By pmap itself, so that the copies have its sharding: donation of any other is lost.
  devices = np.arange(jax.local_device_count())  # pmap wants something to map over
  # The same axis name as the step's: a mesh of another name would compile the step twice.
  return jax.pmap(lambda _, t: t, devices_lib.AXIS, in_axes=(0, None))(devices, tree)


def unreplicate(tree: Any) -> Any:
  """The first device's copy, on the host."""
  return jax.device_get(jax.tree.map(lambda leaf: leaf[0], tree))


def train_steps(recipe: step_lib.Recipe) -> Callable[..., tuple[step_lib.TrainState, Any]]:
  """`step.train_steps` over all devices, as a function of replicated arguments.

  Args:
    recipe: what a step does.

  Returns:
    `(state, images, labels, order i32[S, B], key, values) -> (state, metrics of S steps)`. The
    state that is passed in is given up to the call (donated).

  Source: ours.
  """
  return _over_devices(step_lib.train_steps, recipe)


def batchnorm_steps(recipe: step_lib.Recipe) -> Callable[..., tuple[step_lib.TrainState, None]]:
  """`step.settle_steps` over all devices, as `train_steps`.

  Args:
    recipe: what a step of training does.

  Returns:
    `(state, images, labels, order i32[S, B], key, values) -> (state, None)`. The state that is
    passed in is given up to the call (donated).

  Source: ours.
  """
  return _over_devices(step_lib.batchnorm_steps, recipe)


def _over_devices(steps: Callable, recipe: step_lib.Recipe) -> Callable:
  per_device = functools.partial(steps, recipe=recipe, axis_name=devices_lib.AXIS)
  mapped = jax.pmap(per_device, devices_lib.AXIS, in_axes=(0, 0, 0, 0, None, None), donate_argnums=0)

  def call(state, images, labels, order, key, values=step_lib.DEFAULT_VALUES):
    devices = jax.local_device_count()
    shares = np.asarray(order).reshape(len(order), devices, -1).swapaxes(0, 1)
    state, metrics = mapped(state, images, labels, shares, key, values)
    if devices > 1 and jax.default_backend() == 'cpu':
      # There the devices are threads: those of a step in flight may wait for those of the next.
      jax.block_until_ready(state)
    return state, jax.tree.map(lambda leaf: leaf[0], metrics)

  return call


def steps_per_call(steps_per_epoch: int) -> int:
  """How many steps to compile into one call: one where loops are slow, else up to `LONGEST_CALL`.

  A divisor of the epoch, so that every call has the same shape and compiles once.

  Args:
    steps_per_epoch: the steps of an epoch.

  Returns:
    A divisor of it.

  Source: ours.
  """
  if _loops.writes_out():
    return 1
  return max(n for n in range(1, LONGEST_CALL + 1) if steps_per_epoch % n == 0)

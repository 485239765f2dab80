"""Runs the training step of one device on all devices, of all processes, with `jax.pmap`."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import numpy as np

from at_jax import devices as devices_lib
from at_jax.attacks import _loops
from at_jax.training import step as step_lib

LONGEST_CALL = 100


def replicate(tree: Any) -> Any:
  """Copies a pytree to every device, with a leading axis of this process's devices, as `pmap` takes it.

  Args:
    tree: pytree of arrays.

  Returns:
    The pytree with arrays of shape [devices, ...].
  """
  # pmap itself makes the copies, so that they have its sharding: arrays of another are not donated.
  devices = np.arange(jax.local_device_count())  # pmap needs an argument to map over
  # The axis has the name of the step's axis: with another name the step would compile twice.
  return jax.pmap(lambda _, t: t, devices_lib.AXIS, in_axes=(0, None))(devices, tree)


def unreplicate(tree: Any) -> Any:
  """Copies the part of the first device to the host.

  Args:
    tree: pytree of arrays of shape [devices, ...].

  Returns:
    The pytree of NumPy arrays without the leading axis.

  Example:
    >>> unreplicate(replicate(np.arange(2)))
    array([0, 1], dtype=int32)
  """
  return jax.device_get(jax.tree.map(lambda leaf: leaf[0], tree))


@functools.cache
def _identity() -> Callable[[Any], Any]:
  # One function, so that it compiles once.
  return jax.pmap(lambda tree: tree, devices_lib.AXIS)


def place(batch: Any) -> Any:
  """Copies the minibatch of one step to the devices of this process, each its share.

  Args:
    batch: pytree of arrays [B, ...], the examples of this process.

  Returns:
    The pytree with arrays [devices, 1, B / devices, ...], as streamed steps take them.

  Example:
    >>> place(np.arange(3)).tolist()  # on one device
    [[[0, 1, 2]]]
  """
  count = jax.local_device_count()
  return _identity()(jax.tree.map(lambda leaf: leaf.reshape(count, 1, -1, *leaf.shape[1:]), batch))


def train_steps(recipe: step_lib.Recipe, *, streamed: bool = False
                ) -> Callable[..., tuple[step_lib.TrainState, Any]]:
  """Runs `step.train_steps` on all devices, as a function of a replicated state.

  Args:
    recipe: what a step does.
    streamed: whether images and labels are those of the steps.

  Returns:
    `(state, images, labels, order i32[S, B], key, values) -> (state, metrics of S steps)`; state,
    images and labels are replicated, or the latter as `place` returns them if streamed. The order is that of
    the global batches, in every process. The state that is passed in is donated.
  """
  return _over_devices(step_lib.train_steps, recipe, streamed)


def batchnorm_steps(recipe: step_lib.Recipe, *, streamed: bool = False
                    ) -> Callable[..., tuple[step_lib.TrainState, None]]:
  """Runs `step.batchnorm_steps` on all devices, as `train_steps`.

  Args:
    recipe: what a training step does.
    streamed: as in `train_steps`.

  Returns:
    `(state, images, labels, order i32[S, B], key, values) -> (state, None)`. The state that is passed
    in is donated.
  """
  return _over_devices(step_lib.batchnorm_steps, recipe, streamed)


def mapped(steps: Callable, recipe: step_lib.Recipe, devices: Sequence[jax.Device] | None = None, *,
           streamed: bool = False) -> Callable:
  """Maps steps of one device over devices, as they are compiled.

  Args:
    steps: `step.train_steps` or `step.batchnorm_steps`.
    recipe: what a step does.
    devices: the devices, which need not be of this machine to lower and compile; None for all local ones.
    streamed: as in `train_steps`.

  Returns:
    `(state, images, labels, order i32[devices, S, b], key, values) -> (state, metrics)`, by `jax.pmap`; all
    but key and values have a leading axis of devices. The state is donated.
  """
  per_device = functools.partial(steps, recipe=recipe, axis_name=devices_lib.AXIS, streamed=streamed)
  return jax.pmap(per_device, devices_lib.AXIS, in_axes=(0, 0, 0, 0, None, None), devices=devices,
                  donate_argnums=0)


def _over_devices(steps: Callable, recipe: step_lib.Recipe, streamed: bool) -> Callable:
  run = mapped(steps, recipe, streamed=streamed)

  def call(state, images, labels, order, key, values=step_lib.DEFAULT_VALUES):
    devices = jax.device_count()  # of all processes; pmap puts those of process 0 first
    shares = np.asarray(order).reshape(len(order), devices, -1).swapaxes(0, 1)
    state, metrics = run(state, images, labels, devices_lib.share(shares), key, values)
    if devices > 1 and jax.default_backend() == 'cpu':
      # CPU devices are threads; those of two steps in flight can deadlock in their collectives.
      jax.block_until_ready(state)
    return state, jax.tree.map(lambda leaf: leaf[0], metrics)

  return call


def steps_per_call(steps_per_epoch: int) -> int:
  """Returns the number of steps that one compiled call takes.

  It is 1 where compiled loops are slow (XLA:CPU), else at most `LONGEST_CALL`. It divides the epoch, so
  that every call has the same shape and compiles once.

  Args:
    steps_per_epoch: number of steps of an epoch.

  Returns:
    A divisor of `steps_per_epoch`.

  Example:
    >>> 390 % steps_per_call(390)
    0
  """
  if _loops.unrolls():
    return 1
  return max(n for n in range(1, LONGEST_CALL + 1) if steps_per_epoch % n == 0)

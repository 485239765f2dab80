"""Placement of the driver's arrays on several devices: examples are divided, everything else is replicated.

No computation of an attack combines two examples, so the devices need no communication. XLA cannot know this
for a loop that runs until the last example of the batch is done, and would synchronise all devices in every
iteration. Therefore each device runs the steps on its own share (`per_device`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

_AXIS = 'examples'


def choose(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
  """The devices to use, in order: those given (also as an array, as in a mesh), or all of this process."""
  devices = jax.local_devices() if devices is None else devices
  chosen = tuple(np.ravel(devices)) if np.iterable(devices) else ()
  if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
    raise ValueError(f'devices = {devices!r}: use some of jax.local_devices(), or None for all')
  return chosen


def shard(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Divides arrays [B, ...] among the devices and replicates scalars; with one device, nothing moves."""
  if len(devices) == 1:
    return tree
  split, whole = (NamedSharding(_mesh(devices), spec) for spec in (PartitionSpec(_AXIS), PartitionSpec()))
  return jax.tree.map(lambda leaf: jax.device_put(leaf, split if leaf.ndim else whole), tree)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Copies every array to every device; with one device, nothing moves. Other leaves stay as they are."""
  if len(devices) == 1:
    return tree
  whole = NamedSharding(_mesh(devices), PartitionSpec())
  is_array = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray))
  return jax.tree.map(lambda leaf: jax.device_put(leaf, whole) if is_array(leaf) else leaf, tree)


def per_device(step: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
  """Lets each device compute a step on its own examples.

  Args:
    step: `(shared, problem, state) -> state`, in which examples are independent and every array of the state
      is [B, ...].
    devices: with one device, the result is `step` itself.

  Returns:
    The same function, for `shared` placed by `replicate`, and `problem` and `state` placed by `shard`.
  """
  if len(devices) == 1:
    return step

  def run(shared, problem, state):
    spec = lambda leaf: PartitionSpec(_AXIS) if leaf.ndim else PartitionSpec()
    # check_vma would require a proof that scalar outputs are equal everywhere; there are none.
    return jax.shard_map(
        step, mesh=_mesh(devices), check_vma=False, out_specs=PartitionSpec(_AXIS),
        in_specs=(PartitionSpec(), *jax.tree.map(spec, (problem, state))))(shared, problem, state)

  return run


def round_up(batch_size: int, devices: Sequence[jax.Device]) -> int:
  """The smallest multiple of the number of devices that is at least `batch_size`.

  >>> round_up(5, [None] * 4)
  8
  """
  return -(-batch_size // len(devices)) * len(devices)


def num_slots(num_items: int, batch_size: int, devices: Sequence[jax.Device]) -> int:
  """The number of slots for a list of items: a multiple of a 32nd of the batch size.

  Runs that go to their end come in rounds, and empty slots are not free: 258 items take two rounds of 136
  slots instead of 256. The multiple bounds the number of compiled programs: otherwise, one would be compiled
  for each number of remaining examples.

  Args:
    num_items: M, items to attack.
    batch_size: the largest number of slots, a multiple of the number of devices.
    devices: the slots are divided among these.

  Returns:
    A multiple of the number of devices.

  Example:
    >>> cpu = jax.local_devices()[:1]
    >>> num_slots(1000, 250, cpu), num_slots(258, 256, cpu), num_slots(1, 250, cpu)
    (250, 136, 8)
  """
  multiple = round_up(-(-batch_size // 32), devices)
  num_items = max(num_items, 1)
  num_rounds = -(-num_items // batch_size)
  share = -(-num_items // num_rounds)
  return min(batch_size, -(-share // multiple) * multiple)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.asarray(devices), (_AXIS,))

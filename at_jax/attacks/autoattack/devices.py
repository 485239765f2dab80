"""Where the driver's arrays lie on several devices: examples dealt out, the rest everywhere.

Nothing in an attack looks at two examples at once, so the devices need not talk to each other. XLA
does not know that of a loop that goes on until the last example of the batch is done, and would have
all devices wait for it at every turn: so each runs the steps on its own share (`apart`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

_AXIS = 'examples'


def choose(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
  """The devices to use.

  Args:
    devices: some, also an array of them such as a mesh has; None for all of this process.

  Returns:
    Them, in order.

  Raises:
    ValueError: for none at all.

  Example:
    >>> choose(None) == tuple(jax.local_devices())
    True

  Source: ours.
  """
  devices = jax.local_devices() if devices is None else devices
  chosen = tuple(devices.flat if isinstance(devices, np.ndarray) else devices)
  if not chosen:
    raise ValueError('devices is empty: use some of jax.local_devices(), or None for all')
  return chosen


def shard(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Places arrays [B, ...] so that each device holds its share of the examples, scalars everywhere.

  Args:
    tree: a pytree of arrays; B is a multiple of the number of devices.
    devices: with one only, nothing is moved, and the arrays stay as they are.

  Returns:
    The same arrays.

  Example:
    >>> print(spread(np.arange(3), jax.local_devices()[:1]))
    [0 1 2]

  Source: ours.
  """
  if len(devices) == 1:
    return tree
  split, whole = (_sharding(devices, spec) for spec in (PartitionSpec(_AXIS), PartitionSpec()))
  return jax.tree.map(lambda leaf: jax.device_put(leaf, split if leaf.ndim else whole), tree)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Gives every device the whole of every array; what is no array stays as it is.

  Args:
    tree: a pytree, such as a `jax.tree_util.Partial` of a model.
    devices: with one only, nothing is moved.

  Returns:
    The same pytree.

  Example:
    >>> print(copy({'w': np.ones(2), 'name': 'conv'}, jax.local_devices()[:1]))
    {'w': array([1., 1.]), 'name': 'conv'}

  Source: ours.
  """
  if len(devices) == 1:
    return tree
  whole = _sharding(devices, PartitionSpec())
  is_array = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray))
  return jax.tree.map(lambda leaf: jax.device_put(leaf, whole) if is_array(leaf) else leaf, tree)


def per_device(step: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
  """A function of a batch, computed by each device on its own examples alone.

  Args:
    step: `(shared, problem, state) -> state`; each example's part depends on its own alone.
    devices: with one only, it is `step` itself.

  Returns:
    The same function, of arrays that lie as `copy` leaves them in `shared`, and `spread` in the
    others; every array of a state is [B, ...].

  Example:
    >>> apart(len, jax.local_devices()[:1]) is len
    True

  Source: ours.
  """
  if len(devices) == 1:
    return step

  def run(shared, problem, state):
    own = lambda leaf: PartitionSpec(_AXIS) if leaf.ndim else PartitionSpec()
    # What is not checked is that scalars are alike everywhere; none are given back.
    return jax.shard_map(
        step, mesh=_mesh(devices), check_vma=False, out_specs=PartitionSpec(_AXIS),
        in_specs=(PartitionSpec(), *jax.tree.map(own, (problem, state))))(shared, problem, state)

  return run


def round_up(batch_size: int, devices: Sequence[jax.Device]) -> int:
  """The smallest batch of at least this size that divides evenly.

  Args:
    batch_size: at least 1.
    devices: over which it is divided.

  Returns:
    A multiple of their number.

  Example:
    >>> round_up(5, jax.local_devices()[:1])
    5

  Source: ours.
  """
  return -(-batch_size // len(devices)) * len(devices)


def num_slots(num_items: int, batch_size: int, devices: Sequence[jax.Device]) -> int:
  """The size of a batch for a list: as many eighths of the largest as share it out evenly.

  Runs of one attack that all go to their end come in rounds, and an empty seat costs as much as a taken
  one: 258 are two rounds of 160 seats and not of 256. Eighths, because each size is a program of its
  own, and an evaluation in parts would else compile one for each number of examples that is left.

  Args:
    num_items: M, that are to be attacked.
    batch_size: the largest, a multiple of the number of devices.
    devices: over which it is divided.

  Returns:
    A multiple of their number.

  Example:
    >>> cpu = jax.local_devices()[:1]
    >>> num_seats(1000, 250, cpu), num_seats(258, 256, cpu), num_seats(1, 250, cpu)
    (250, 160, 32)

  Source: ours.
  """
  eighth = round_up(-(-batch_size // 8), devices)
  num_items = max(num_items, 1)
  rounds = -(-num_items // batch_size)
  share = -(-num_items // rounds)
  return min(batch_size, -(-share // eighth) * eighth)


def _sharding(devices: Sequence[jax.Device], spec: PartitionSpec) -> NamedSharding:
  return NamedSharding(_mesh(devices), spec)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.asarray(devices), (_AXIS,))

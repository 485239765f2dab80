"""Devices and processes: the name of the batch axis, how arrays are placed, and how processes share work.

Several processes of `jax.distributed` run the same program on their own devices. With one process, the
functions that share work do nothing, and there is no collective.
"""

from collections.abc import Callable
import contextlib
import os
import pickle
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from at_jax import errors, xla_flags

AXIS = 'batch'


class Cluster(NamedTuple):
  """The processes of a run.

  Attributes:
    address: 'HOST:PORT' of process 0; None if JAX reads everything from the environment of a TPU pod or of
      Kubernetes.
    count: number of processes.
    index: number of this process, from 0.
    gpus: ordinals of the GPUs of this process; None for all that it sees.
  """
  address: str | None = None
  count: int | None = None
  index: int | None = None
  gpus: tuple[int, ...] | None = None


def initialize(cluster: Cluster | None) -> None:
  """Connects this process with the others; call it before the first array.

  Args:
    cluster: the processes; None for one process, which does nothing.

  Raises:
    errors.UserError: if there is no cluster, or the other processes do not answer within five minutes.
  """
  if cluster is None:
    return
  xla_flags.wait_longer()
  options = {}
  if cluster.address is not None:
    options = dict(coordinator_address=cluster.address, num_processes=cluster.count,
                   process_id=cluster.index, local_device_ids=cluster.gpus,
                   cluster_detection_method='deactivate')
  try:
    jax.distributed.initialize(**options)
  except (ValueError, RuntimeError) as error:
    reason = str(error).splitlines()[0]
    if cluster.address is None:
      remedy = f'no TPU pod, Slurm step or Kubernetes job was found ({reason}): use ADDRESS,N,I'
      raise errors.UserError('--distributed', 'auto', remedy) from error
    text = f'{cluster.address},{cluster.count},{cluster.index}'
    raise errors.UserError('--distributed', text, f'no connection ({reason}): start all {cluster.count} '
                           'processes, and use a free port on the host of process 0') from error
  # JAX has replaced the effect of SIGTERM by one of its own.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  # XLA's CPU backend gives devices 30 seconds to connect, in the first collective of each group of them. Here
  # the processes are in step. Before their first training step they compile, some longer than others.
  total = jax.pmap(lambda one: jax.lax.psum(one, AXIS), AXIS)(np.ones(jax.local_device_count(), np.int32))
  largest(int(np.asarray(total)[0]))


def leave(code: int) -> None:
  """Ends this process after an error, without the others; with one process it does nothing.

  A process that exits normally waits for all others, so a failed one exits at once. The others stop in their
  next collective, or after 100 s; at once if process 0 failed.

  Args:
    code: the exit code.
  """
  if not jax.distributed.is_initialized():
    return
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.flush()
  if is_first():
    time.sleep(2)  # others may be about to report the same error
  os._exit(code)


def is_first() -> bool:
  """Returns whether this is process 0, the only one that writes and logs."""
  return _count() == 1 or jax.process_index() == 0


def _count() -> int:
  """Number of processes. It does not start the accelerator of a process that is alone."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def share(tree: Any) -> Any:
  """Takes the part of this process, in the order of devices.

  Args:
    tree: pytree of arrays whose leading axis divides over the devices of all processes; the same in every
      process.

  Returns:
    The same pytree with the rows of this process.

  Example:
    >>> share(np.arange(4))  # of one process
    array([0, 1, 2, 3])
  """
  if _count() == 1:
    return tree
  count, index = jax.process_count(), jax.process_index()
  return jax.tree.map(lambda a: a[len(a) // count * index:len(a) // count * (index + 1)], tree)


def gather(tree: Any) -> Any:
  """Joins the parts of all processes, the inverse of `share`.

  Args:
    tree: pytree of arrays on the devices of this process, of the same shapes in every process.

  Returns:
    The same pytree of NumPy arrays, in every process.
  """
  if _count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.process_allgather(jax.tree.map(np.asarray, tree), tiled=True)


def largest(number: int) -> int:
  """Returns the largest of the numbers of all processes.

  Args:
    number: of 32 bits.

  Returns:
    The same number in every process.

  Example:
    >>> largest(3)
    3
  """
  if _count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number)).max())


def from_first(call: Callable[..., Any], *arguments: Any) -> Any:
  """Calls a function in process 0, and returns its result in every process.

  Args:
    call: the function; with several processes, its result must be picklable.
    *arguments: its arguments.

  Returns:
    Its result.

  Raises:
    Exception: what the function raises, in every process.

  Example:
    >>> from_first(max, 1, 2)
    2
  """
  if _count() == 1:
    return call(*arguments)
  data = b''
  if is_first():
    try:
      data = pickle.dumps((call(*arguments), None))
    except Exception as error:
      data = pickle.dumps((None, error))
  buffer = np.zeros(largest(len(data)), np.uint8)
  buffer[:len(data)] = np.frombuffer(data, np.uint8)
  result, error = pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
  if error is not None:
    raise error
  return result


def arrays_of_first(tree: Any) -> Any:
  """Returns the arrays of process 0 in every process, bit for bit.

  Args:
    tree: pytree of arrays, each at most 2 GiB, with the same structure in every process.

  Returns:
    The same pytree; of NumPy arrays with several processes.

  Example:
    >>> arrays_of_first({'w': np.arange(2)})
    {'w': array([0, 1])}
  """
  if _count() == 1:
    return tree
  return jax.tree.map(lambda leaf: from_first(np.asarray, leaf), tree)


def first_then_others(call: Callable[[], Any]) -> Any:
  """Calls a function in process 0 and then in the others: what process 0 downloads, the others read.

  Args:
    call: the function.

  Returns:
    The result in this process.

  Raises:
    Exception: what the function raises; that of process 0 in every process.

  Example:
    >>> first_then_others(lambda: 1)
    1
  """
  results = []
  from_first(lambda: results.append(call()))
  return results[0] if results else call()


def check_batch_size(field: str, batch_size: int, devices: int | None = None) -> None:
  """Checks that a batch divides evenly over the devices.

  Args:
    field: name of the field that sets the batch size, for the error message.
    batch_size: number of examples, over the devices of all processes.
    devices: number of devices; None for those of JAX's default backend.

  Raises:
    errors.UserError: if it does not divide.
  """
  devices = devices or jax.device_count()
  if batch_size % devices:
    nearest = max(devices, round(batch_size / devices) * devices)
    raise errors.UserError(field, batch_size,
                           f'use a multiple of the number of devices, {devices}, such as {nearest}')


def spread(batch: Any, *, replicated: bool = False) -> Any:
  """Places arrays on all devices of this process, for a jit-compiled function that runs on all of them.

  Args:
    batch: pytree of arrays whose leading axis divides over the devices.
    replicated: copy the whole to every device instead of a share.

  Returns:
    The same pytree, on the devices.
  """
  mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
  spec = PartitionSpec() if replicated else PartitionSpec(AXIS)
  return jax.device_put(batch, NamedSharding(mesh, spec))

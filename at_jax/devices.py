"""Devices: the batch axis, and how arrays are placed over them."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from at_jax import errors

AXIS = 'batch'


def check_batch_size(field: str, batch_size: int) -> None:
  """Raises unless a batch divides evenly over the devices.

  Args:
    field: the field the batch size was set by.
    batch_size: of all devices together.

  Raises:
    errors.UserError: if it does not divide.

  Source: ours.
  """
  devices = jax.device_count()
  if batch_size % devices:
    nearest = max(devices, round(batch_size / devices) * devices)
    raise errors.UserError(field, batch_size,
                           f'use a multiple of the number of devices, {devices} ({nearest}, say)')


def spread(batch: Any, *, replicated: bool = False) -> Any:
  """Places arrays for a jit-compiled function that is to run on all devices.

  Args:
    batch: arrays whose leading axis divides over the devices.
    replicated: give every device the whole instead of a share.

  Returns:
    The same arrays, on the devices.

  Source: ours.
  """
  mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
  spec = PartitionSpec() if replicated else PartitionSpec(AXIS)
  return jax.device_put(batch, NamedSharding(mesh, spec))

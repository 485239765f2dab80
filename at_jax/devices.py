"""Devices: the name of the batch axis, and how arrays are placed."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from at_jax import errors

AXIS = 'batch'


def check_batch_size(field: str, batch_size: int, devices: int | None = None) -> None:
  """Checks that a batch divides evenly over the devices.

  Args:
    field: name of the field that sets the batch size, for the error message.
    batch_size: number of examples, over all devices.
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
  """Places arrays on all local devices, for a jit-compiled function that runs on all of them.

  Args:
    batch: pytree of arrays whose leading axis divides over the devices.
    replicated: copy the whole to every device instead of a share.

  Returns:
    The same pytree, on the devices.
  """
  mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
  spec = PartitionSpec() if replicated else PartitionSpec(AXIS)
  return jax.device_put(batch, NamedSharding(mesh, spec))

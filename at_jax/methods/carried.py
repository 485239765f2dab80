"""Perturbations that are carried from step to step, one byte for each entry, for Free-AT and FGSM-PGI.

They are stored in units of ε/120, with the ε of the configuration. Perturbations of uint8 images that are
products of signs, ε and clipping are whole 255ths, so for a radius of 1, 2, 3, 4, 5, 6, 8, 10 or 12 255ths
nothing is rounded; else the error is at most ε/240.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_UNITS = 120


def pack(delta: Array, epsilon: float) -> Array:
  """Converts perturbations to bytes.

  Args:
    delta: f32[...], of at most ε in L∞.
    epsilon: ε, in units of x.

  Returns:
    int8[...], from −120 to 120.

  Example:
    >>> print(pack(jnp.array([-8., 0., 3.]) / 255, 8 / 255))
    [-120    0   45]
  """
  return jnp.round(delta * (_UNITS / (epsilon or 1))).astype(jnp.int8)


def unpack(packed: Array, epsilon: float, dtype: jnp.dtype = jnp.float32) -> Array:
  """Converts bytes to perturbations, the inverse of `pack`.

  Args:
    packed: int8[...].
    epsilon: ε, in units of x.
    dtype: the type of the result.

  Returns:
    f32[...].

  Example:
    >>> print((255 * unpack(jnp.array([-120, 0, 45], jnp.int8), 8 / 255)).round())
    [-8.  0.  3.]
  """
  return packed.astype(dtype) * (epsilon / _UNITS)


def store(carried: Array, places: Array, delta: Array, epsilon: float, *,
          axis_name: str | None = None) -> Array:
  """Stores the perturbations of a batch.

  Args:
    carried: int8[N, D], the same on all devices.
    places: i32[B], the rows of this device's examples. No row appears twice in the batch of all devices.
    delta: f32[B, ...], of D entries each.
    epsilon: ε, in units of x.
    axis_name: the axis over devices, or None. Every device stores the perturbations of all devices.

  Returns:
    int8[N, D].

  Example:
    >>> print(store(jnp.zeros((3, 1), jnp.int8), jnp.array([2]), jnp.array([[.1]]), .1)[:, 0])
    [  0   0 120]
  """
  packed = pack(delta, epsilon).reshape(len(delta), -1)
  if axis_name is not None:
    places, packed = jax.lax.all_gather((places, packed), axis_name, tiled=True)
  return carried.at[places].set(packed)

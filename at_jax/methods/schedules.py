"""Schedules of a method's parameter over the epochs: λ of GAIRAT, τ of FAT."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def by_epoch(epoch: int | Array, first: float, changes: Mapping[int, float]) -> Array:
  """A piecewise constant schedule: `first`, then `changes[e]` from epoch e on.

  With epochs counted from 1, GAIRAT's λ with its burn-in is `by_epoch(epoch, inf, {60: -1.})` for
  WideResNet-32-10 in 120 epochs and `by_epoch(epoch, inf, {30: -1.})` for ResNet-18 in 100.

  Args:
    epoch: the current epoch, counted as in `changes`. Traced if it is an array.
    first: the value before all changes.
    changes: from an epoch to the value that begins there.

  Returns:
    A scalar, i32 if all values are integers, else f32.

  Example:
    >>> print(*[by_epoch(epoch, jnp.inf, {60: -1.}) for epoch in (1, 59, 60, 120)])
    inf inf -1.0 -1.0

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, released code.
  It also has a piecewise λ of −1, −2 and −2.5 from epochs 60, 90 and 110, but never reaches the last two.
  """
  starts = sorted(changes)
  values = jnp.array([first, *(changes[start] for start in starts)])
  passed = jnp.sum(jnp.asarray(epoch) >= jnp.array(starts), dtype=jnp.int32)
  return values[passed]


def linear(epoch: int | Array, *, first: float, last: float, epochs: int) -> Array:
  """A linear schedule, first − (epoch/epochs) · (first − last).

  Args:
    epoch: the current epoch, counted from 1. Traced if it is an array.
    first: the value before the first epoch, finite.
    last: the value in the last epoch.
    epochs: the number of epochs.

  Returns:
    f32[].

  Example:
    >>> print(*[linear(epoch, first=1., last=-1., epochs=100) for epoch in (30, 50, 100)])
    0.4 0.0 -1.0

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, released code,
  where λ follows this schedule after the burn-in. There `first` is +∞ by default, which gives NaN.
  """
  return jnp.asarray(first - epoch / epochs * (first - last), jnp.float32)

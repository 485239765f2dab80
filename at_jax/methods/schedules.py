"""Schedules of a method's parameter over the epochs: λ of GAIRAT, τ of FAT, ε of Epsilon-Scheduling."""

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


def ramp(epoch: float | Array, start: int, end: int) -> Array:
  """A hinge schedule: 0 up to the epoch `start`, (epoch − start)/(end − start), and 1 from `end` on.

  Epsilon-Scheduling multiplies the radius by it: the model first adapts to clean examples. With start = 0
  it is a linear warm-up; with start = end = 0 it is always 1.

  Args:
    epoch: epochs since the start, with their fraction for a value of each step. Traced if it is an array.
    start: T₁, up to where the value is 0.
    end: T₂ ≥ T₁, from where it is 1.

  Returns:
    f32[].

  Example:
    >>> print(*[ramp(epoch, 2, 6) for epoch in (0, 2, 3, 6, 9)])
    0.0 0.0 0.25 1.0 1.0

  Reference: Ngnawé et al., Robust Fine-Tuning from Non-Robust Pretrained Models: Mitigating Suboptimal
  Transfer With Epsilon-Scheduling, 2025, where T₁ = 12 and T₂ = 37 of 50 epochs (as reported; the paper's
  text could not be read in full).
  """
  share = (epoch - start) / max(end - start, 1)
  return jnp.where(epoch >= end, 1., jnp.clip(share, 0., 1.)).astype(jnp.float32)

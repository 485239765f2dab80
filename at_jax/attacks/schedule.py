"""When APGD checks its step size, and in L1 how its radius shrinks: a table with a row a gradient."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Stage(NamedTuple):
  """What happens at each count. As a table, columns of L rows; an example looks up its own row.

  Attributes:
    first: bool, a run begins.
    last: bool, it ends.
    window: gradients since the last check if this is one, else 0.
    radius: of the ball, in ε.
    next_radius: of the run after this one.
  """
  first: np.ndarray
  last: np.ndarray
  window: np.ndarray
  radius: np.ndarray
  next_radius: np.ndarray


def table(num_steps: int, norm: str, large_start: bool = False) -> Stage:
  """The stages of a whole attack; a run of n steps takes n + 1 gradients.

  Args:
    num_steps: steps of all runs together.
    norm: 'linf', 'l2' or 'l1'.
    large_start: three runs of 30, 30 and 40 % of the steps, in the balls of 3ε, 2ε and ε.

  Returns:
    A `Stage` of arrays [L].

  Example:
    >>> print(np.flatnonzero(table(100, 'linf').window))
    [22 41 57 70 80 87 93 99]

  Source: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 3.1; L1: Croce and Hein, Mind the Box, 2021, section 3.
  """
  radii = (3., 2., 1.) if large_start else (1.,)
  early = math.ceil(.3 * num_steps)
  lengths = (early, early, num_steps - 2 * early) if large_start else (num_steps,)
  rows = [(n == 0, n == length, window, radius, radii[min(run + 1, len(radii) - 1)])
          for run, (radius, length) in enumerate(zip(radii, lengths, strict=True))
          for n, window in enumerate(_windows(length, norm))]
  return Stage(*(np.array(column) for column in zip(*rows, strict=True)))


def row(table: Stage, count: Array, dtype: Any) -> Stage:
  """The stage of one example.

  Args:
    table: what `table` gave.
    count: i32[], gradients taken.
    dtype: of the inputs: radii are rounded to it, or float64 ones would raise what they multiply
      where float64 is enabled.

  Returns:
    A `Stage` of scalars.

  Example:
    >>> print(row(table(100, 'linf'), 22, np.float32).window)
    22

  Source: ours.
  """
  kind = lambda column: dtype if column.dtype.kind == 'f' else None
  return jax.tree.map(lambda column: jnp.asarray(column, kind(column))[count], table)


def _windows(num_steps: int, norm: str) -> list[int]:
  """After each gradient, how many there were since the last check if it is time for one, else 0."""
  at, windows = 0, [0] * (num_steps + 1)
  window = max(int((.04 if norm == 'l1' else .22) * num_steps), 1)
  while at + window <= num_steps:
    at += window
    windows[at] = window
    if norm != 'l1':
      window = max(window - max(int(.03 * num_steps), 1), max(int(.06 * num_steps), 1))
  return windows

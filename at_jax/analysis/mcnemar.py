"""Two models on the same examples."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class McNemar(NamedTuple):
  """What `mcnemar` found.

  Attributes:
    gained: examples on which the first stands and the second does not.
    lost: the other way round.
    p: how often a difference at least as large arises when neither is better, two-sided and exact.
  """
  gained: int
  lost: int
  p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
  """McNemar's exact test: of the examples on which two models differ, does one win more than half?

  p = min(1, 2·P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), b and c the two counts. Examples on which
  both stand or both fall say nothing about which is better, so they do not enter.

  Args:
    first: bool[N], the verdicts of one model.
    second: bool[N], those of the other on the same examples.

  Returns:
    A `McNemar`.

  Raises:
    ValueError: if they are of different lengths.

  Example:
    >>> mcnemar(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 0], bool))
    McNemar(gained=3, lost=0, p=0.25)

  Source: McNemar, Note on the Sampling Error of the Difference between Correlated Proportions or
  Percentages, 1947; the exact form is the sign test's.
  """
  if first.shape != second.shape:
    raise ValueError(f'{first.shape} and {second.shape}: the verdicts are not of the same examples')
  gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
  p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.
  return McNemar(gained, lost, float(p))

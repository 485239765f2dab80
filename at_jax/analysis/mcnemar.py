"""A paired test of two models on the same examples."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class McNemar(NamedTuple):
  """Result of `mcnemar`.

  Attributes:
    gained: number of examples that only the first model classifies correctly.
    lost: number of examples that only the second model classifies correctly.
    p: two-sided exact p-value of the hypothesis that both counts are equally likely.
  """
  gained: int
  lost: int
  p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
  """McNemar's exact test of whether two models are equally often correct.

  p = min(1, 2·P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), where b and c are the numbers of examples that only
  the first and only the second model classifies correctly. Examples on which both agree do not enter.

  Args:
    first: bool[N], whether the first model is correct.
    second: bool[N], the same of the second model on the same examples.

  Returns:
    A `McNemar`.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> mcnemar(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 0], bool))
    McNemar(gained=3, lost=0, p=0.25)

  Reference: McNemar, Note on the Sampling Error of the Difference between Correlated Proportions or
  Percentages, 1947; the exact form is the sign test of the discordant pairs.
  """
  if first.shape != second.shape:
    raise ValueError(f'second.shape = {second.shape}: use verdicts of the same examples as first, '
                     f'{first.shape}')
  gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
  p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.
  return McNemar(gained, lost, float(p))

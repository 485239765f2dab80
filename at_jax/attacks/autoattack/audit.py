"""The audit of a fast version: an interval for its robust accuracy together with AutoAttack's.

A fast version leaves S of n examples robust, its survivors. K of them, an unknown number, are not robust
under AutoAttack. The audit attacks a random sample of m survivors with AutoAttack, and k of them fall. So k
is hypergeometric, and its tails give an interval for K and for the robust accuracy (S − K)/n.
"""

import bisect
import math
from typing import NamedTuple

import jax
import numpy as np

from at_jax.attacks import _random

Array = jax.Array
_TAILS = 40   # each tail of the interval has probability 1/40, so 95 % are between them
# Folded into the key of the evaluation to draw the sample; attacks fold in small numbers.
_SAMPLE = 2**31 - 2


class Audit(NamedTuple):
  """What an audit found; as text, one sentence that reports it.

  Attributes:
    total: n, the number of examples, clean errors included.
    survivors: S, the number of examples that are robust under the fast version.
    sampled: m, how many of the survivors were attacked with AutoAttack.
    fallen: k, how many of these were fooled.
    low: lower end of the 95 % interval for the robust accuracy under both, in 0..1.
    high: upper end, equal to `low` if every survivor was attacked.
    name: 'fast', or the attacks that were given in its place.

  Example:
    >>> number, _, rest = str(summarise(1000, 249, 200, 1)).partition(' (')
    >>> print(number)
    Robust accuracy under fast and AutoAttack is between 24.6 % and 24.8 %
    >>> print(rest)
    95 %, 200 of 249 survivors audited, 1 fell); fast alone: 24.9 %
  """
  total: int
  survivors: int
  sampled: int
  fallen: int
  low: float
  high: float
  name: str = 'fast'

  def __str__(self) -> str:
    percent = lambda share: f'{100 * share:.1f} %'
    low, high = percent(self.low), percent(self.high)
    value = low if low == high else f'between {low} and {high}'
    number = f'all {self.survivors}' if self.sampled == self.survivors else (
        f'95 %, {self.sampled} of {self.survivors}')
    audited = f'{number} survivors audited, {self.fallen or "none"} fell'
    return (f'Robust accuracy under {self.name} and AutoAttack is {value} '
            f'({audited if self.survivors else "no survivors to audit"}); '
            f'{self.name} alone: {percent(self.survivors / self.total)}')


def summarise(total: int, survivors: int, sampled: int, fallen: int, name: str = 'fast') -> Audit:
  """The result of an audit; arguments as in `Audit`.

  >>> summarise(1000, 249, 200, 0)
  Audit(total=1000, survivors=249, sampled=200, fallen=0, low=0.247, high=0.249, name='fast')
  """
  least, most = interval(survivors, sampled, fallen)
  low, high = (survivors - most) / total, (survivors - least) / total
  return Audit(total, survivors, sampled, fallen, low, high, name)


def interval(survivors: int, sampled: int, fallen: int) -> tuple[int, int]:
  """The smallest and the largest K of the 95 % interval: P(X ≥ k) > 0.025 and P(X ≤ k) > 0.025 under K.

  X is hypergeometric, the number of the K examples that are in the sample. The first probability rises with
  K and the second falls, so the interval has no gap. Each end excludes the true K with a probability of at
  most 0.025. Computed in whole numbers, without rounding.

  Args:
    survivors: S.
    sampled: m, in 0..S.
    fallen: k, in 0..m.

  Returns:
    Two numbers in k..S − m + k.

  Example:
    >>> interval(249, 200, 0)
    (0, 2)

  Reference: Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the
    Binomial, 1934, whose tails are binomial.
  """
  possible, num_samples = range(fallen, survivors - sampled + fallen + 1), math.comb(survivors, sampled)
  at_most = lambda k, marked: _num_samples(survivors, marked, sampled, k)
  is_few = lambda marked: _TAILS * (num_samples - at_most(fallen - 1, marked)) > num_samples
  is_many = lambda marked: _TAILS * at_most(fallen, marked) <= num_samples
  return (possible[bisect.bisect_left(possible, True, key=is_few)],
          possible[bisect.bisect_left(possible, True, key=is_many) - 1])


def _num_samples(survivors: int, marked: int, sampled: int, most: int) -> int:
  """The number of possible samples with at most `most` of the marked survivors in them."""
  others = survivors - marked
  least = max(sampled - others, 0)
  ways, total = math.comb(marked, least) * math.comb(others, sampled - least), 0
  for i in range(least, most + 1):
    total += ways
    ways = ways * (marked - i) * (sampled - i) // ((i + 1) * (others - sampled + i + 1))
  return total


def choose(key: Array, index: Array, robust: np.ndarray, sampled: int) -> np.ndarray:
  """Draws a sample of the robust examples without replacement, all of them if there are no more.

  Each example draws a number from its own index; those with the smallest numbers are in the sample. So the
  sample depends neither on the order of the examples nor on devices.

  Args:
    key: PRNG key of the evaluation.
    index: i32[N], distinct.
    robust: bool[N].
    sampled: m.

  Returns:
    bool[N].

  Example:
    >>> print(choose(jax.random.key(0), np.arange(4), np.array([True, False, True, True]), 2).sum())
    2
  """
  key = jax.random.fold_in(_random.threefry(key), _SAMPLE)
  draw = lambda i: jax.random.bits(jax.random.fold_in(key, i), (2,), 'uint32')  # the same under x64
  high, low = np.asarray(jax.vmap(draw)(index)).T
  order = np.lexsort((low, high))
  sample = np.zeros(len(robust), bool)
  sample[order[robust[order]][:sampled]] = True
  return sample

"""Statistics of examples that several models misclassify, against independent models: in NumPy."""

from typing import NamedTuple

import numpy as np
from scipy import special, stats


class Overlap(NamedTuple):
  """Result of `overlap`. What is not defined, because a set is empty or has all examples, is NaN.

  Attributes:
    jaccard: |A ∩ B| / |A ∪ B|.
    jaccard_by_chance: the same with the expected intersection |A||B|/n in place of |A ∩ B|.
    ratio: observed / expected intersection, n|A ∩ B| / (|A||B|). It is at most n / max(|A|, |B|).
    h: (observed − expected) / (min(|A|, |B|) − expected), Loevinger's H: 1 if one set contains the other,
      0 by chance. It is the same for the complements of both sets.
    p: P(X ≥ |A ∩ B|) of hypergeometric X, the intersection of A with |B| examples drawn at random.
  """
  jaccard: float
  jaccard_by_chance: float
  ratio: float
  h: float
  p: float


def overlap(first: np.ndarray, second: np.ndarray) -> Overlap:
  """Compares two sets of the same n examples with independent sets of their sizes.

  Args:
    first: bool[n], membership in A, for example misclassified by one model.
    second: bool[n], membership in B.

  Returns:
    An `Overlap`.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> found = overlap(np.arange(6) < 2, np.arange(6) < 3)  # 2 of 2 in a set of 3: p = 3/6 · 2/5
    >>> [round(value, 3) for value in found]
    [0.667, 0.25, 2.0, 1.0, 0.2]

  Reference: J. Loevinger, The Technic of Homogeneous Tests Compared with Some Aspects of "Scale Analysis" and
  Factor Analysis, 1948, for H; the test is Fisher's exact test, one-sided.
  """
  if first.shape != second.shape:
    raise ValueError(f'second.shape = {second.shape}: use the same examples as first, {first.shape}')
  n, a, b, both = (int(count) for count in (first.size, first.sum(), second.sum(), (first & second).sum()))
  expected, divided = a * b / n, lambda over, under: over / under if under else np.nan
  return Overlap(divided(both, a + b - both), divided(expected, a + b - expected), divided(both, expected),
                 divided(both - expected, min(a, b) - expected),
                 float(stats.hypergeom.sf(both - 1, n, a, b)))


class Common(NamedTuple):
  """Result of `common`.

  Attributes:
    mean: mean share of examples that one model misclassifies.
    lowest: lowest share of a model.
    highest: highest share of a model.
    always: share of examples that every model misclassifies, at most `lowest`.
    always_by_chance: the same if the models were independent, Π_i s_i with their shares s_i.
    always_by_class: the same if they were independent within each class, Σ_c (n_c / n) Π_i s_ic.
    never: share of examples that no model misclassifies.
    never_by_chance: the same if the models were independent, Π_i (1 − s_i).
  """
  mean: float
  lowest: float
  highest: float
  always: float
  always_by_chance: float
  always_by_class: float
  never: float
  never_by_chance: float


def common(wrong: np.ndarray, labels: np.ndarray) -> Common:
  """Counts the examples that all models misclassify, and how many would be by chance.

  Args:
    wrong: bool[K, n], whether a model misclassifies an example.
    labels: i32[n].

  Returns:
    A `Common`.

  Example:
    >>> found = common(np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool), np.array([0, 0, 0, 1]))
    >>> found.always, found.always_by_chance, round(found.always_by_class, 3)  # ¾ · ⅔ · ⅔
    (0.25, 0.25, 0.333)
  """
  shares = wrong.mean(axis=1)
  members = labels == np.unique(labels)[:, None]
  by_class = (wrong @ members.T.astype(float)) / members.sum(axis=1)
  return Common(*map(float, (
      shares.mean(), shares.min(), shares.max(), wrong.all(axis=0).mean(), shares.prod(),
      members.mean(axis=1) @ by_class.prod(axis=0), (~wrong).all(axis=0).mean(), (1 - shares).prod())))


def among(wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Computes which share of examples all of k models misclassify, for each k, as the mean over choices of k.

  With f_j of K models that misclassify example j, it is mean_j C(f_j, k) / C(K, k). For independent models it
  is e_k(s_1, …, s_K) / C(K, k), with the elementary symmetric polynomial of their shares.

  Args:
    wrong: bool[K, n], whether a model misclassifies an example.

  Returns:
    f64[K], for k = 1 to K, and f64[K], the same if the models were independent.

  Example:
    >>> observed, by_chance = among(np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool))
    >>> observed.tolist(), by_chance.tolist()
    ([0.5, 0.5], [0.5, 0.25])

  Reference: S. H. Hurlbert, The Nonconcept of Species Diversity, 1971, for the mean over choices.
  """
  total = len(wrong)
  k = np.arange(1, total + 1)
  choices = special.comb(total, k)
  symmetric = np.ones(1)
  for share in wrong.mean(axis=1):
    symmetric = np.convolve(symmetric, [1, share])
  return special.comb(wrong.sum(axis=0)[:, None], k).mean(axis=0) / choices, symmetric[1:] / choices

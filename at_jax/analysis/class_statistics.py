"""Statistics of class-wise robustness: of verdicts, predictions and class accuracies, in NumPy."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats

from at_jax.evaluation import metrics

LEVEL = .05  # of significance: classes whose p is not below it may be equal


class Spread(NamedTuple):
  """Result of `spread`. Classes without examples are left out.

  Attributes:
    mean: mean of the class accuracies, the balanced accuracy.
    worst: index of the worst class, the first of several.
    lowest: its accuracy.
    gap: highest minus lowest accuracy.
    variance: mean squared distance of the class accuracies from their mean.
  """
  mean: float
  worst: int
  lowest: float
  gap: float
  variance: float


def spread(accuracy: np.ndarray) -> Spread:
  """Summarises the accuracies of classes.

  Args:
    accuracy: f64[C], NaN for a class without examples.

  Returns:
    A `Spread`.

  Example:
    >>> spread(np.array([.75, .25, .5]))
    Spread(mean=0.5, worst=1, lowest=0.25, gap=0.5, variance=0.041666666666666664)
  """
  low, high = np.nanmin(accuracy), np.nanmax(accuracy)
  return Spread(float(np.nanmean(accuracy)), int(np.nanargmin(accuracy)), float(low), float(high - low),
                float(np.nanvar(accuracy)))


def equality_p(verdicts: np.ndarray, labels: np.ndarray) -> float:
  """Computes the p-value of the hypothesis that all classes have the same accuracy.

  Pearson's chi-square test of the 2 × C table of correct and wrong examples by class.

  Args:
    verdicts: bool[N].
    labels: i32[N].

  Returns:
    The p-value; 1 if all verdicts are equal or there is one class.

  Example:
    >>> equality_p(np.arange(200) < 100, np.repeat([0, 1], 100)) < 1e-9
    True

  Reference: K. Pearson, On the criterion that a given system of deviations …, 1900.
  """
  total = np.bincount(labels)
  correct = np.bincount(labels, weights=verdicts)[total > 0]
  counts = np.stack([correct, total[total > 0] - correct])
  if counts.shape[1] < 2 or not counts.sum(axis=1).all():
    return 1.
  return float(stats.chi2_contingency(counts, correction=False).pvalue)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
  """Counts the examples of each class by the class that is predicted.

  Args:
    labels: i32[N].
    predictions: i32[N]; −1 for none, as for logits of NaN, which is left out.
    num_classes: C.

  Returns:
    i64[C, C], a row for each class and a column for each prediction.

  Example:
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
  """
  valid = predictions >= 0
  cells = labels[valid].astype(np.int64) * num_classes + predictions[valid]
  return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def top_confounders(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Finds the class that each class is most often mistaken for.

  Args:
    confusion: i64[C, C], as from `confusion_matrix`.

  Returns:
    i64[C], that class, the first of several, or −1; and f64[C], its share of the misclassified examples of
    the row, or NaN. A class without misclassified examples has −1 and NaN.

  Example:
    >>> confounder, share = top_confounders(np.array([[5, 1, 3], [0, 9, 0], [2, 0, 1]]))
    >>> confounder.tolist(), share.tolist()
    ([2, -1, 0], [0.75, nan, 1.0])
  """
  wrong = confusion - np.diag(np.diag(confusion))
  total = wrong.sum(axis=1)
  share = np.where(total > 0, wrong.max(axis=1) / np.maximum(total, 1), np.nan)
  return np.where(total > 0, wrong.argmax(axis=1), -1), share


def within(confusion: np.ndarray, members: Sequence[int]) -> tuple[float, float]:
  """Computes how many mistakes stay within a superclass, and how many would by chance.

  Args:
    confusion: i64[C, C], as from `confusion_matrix`.
    members: the classes of the superclass S.

  Returns:
    The share of the misclassified examples of S that are taken for another class of S, NaN without such
    examples; and (|S| − 1)/(C − 1), the share if all wrong classes were equally frequent.

  Example:
    >>> within(np.array([[5, 3, 1], [3, 5, 1], [0, 0, 9]]), [0, 1])
    (0.75, 0.5)
  """
  wrong = (confusion - np.diag(np.diag(confusion)))[list(members)]
  total = wrong.sum()
  share = wrong[:, list(members)].sum() / total if total else np.nan
  return float(share), (len(members) - 1) / (len(confusion) - 1)


class RankCorrelation(NamedTuple):
  """Result of `rank_correlation`.

  Attributes:
    rho: Spearman's ρ, NaN if it is not defined.
    p: two-sided p-value of the hypothesis that the orders are independent.
  """
  rho: float
  p: float


def rank_correlation(first: np.ndarray, second: np.ndarray) -> RankCorrelation:
  """Spearman's rank correlation of two numbers that each class has.

  ρ = 1 − 6 Σ d² / (C (C² − 1)) without ties, where d is the difference of a class's two ranks.

  Args:
    first: f64[C]; a class with NaN in either is left out.
    second: f64[C].

  Returns:
    A `RankCorrelation`, of NaN if fewer than three classes remain or all have one value.

  Example:
    >>> round(rank_correlation(np.array([1., 2., 3., 4.]), np.array([1., 2., 4., 3.])).rho, 3)
    0.8

  Reference: C. Spearman, The Proof and Measurement of Association between Two Things, 1904.
  """
  both = ~(np.isnan(first) | np.isnan(second))
  first, second = first[both], second[both]
  if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
    return RankCorrelation(np.nan, np.nan)
  found = stats.spearmanr(first, second)
  return RankCorrelation(float(found.statistic), float(found.pvalue))


class Gain(NamedTuple):
  """Result of `gain`.

  Attributes:
    points: f64[C], accuracy that a class loses when the stronger attack is used too.
    share: f64[C], the same as a share of the class's examples that are robust to the weaker attack; NaN
      if there are none.
    of_points: rank correlation of `points` with the accuracy under the weaker attack.
    of_share: that of `share`. Negative: the stronger attack gains most on the weak classes.
  """
  points: np.ndarray
  share: np.ndarray
  of_points: RankCorrelation
  of_share: RankCorrelation


def gain(weak: np.ndarray, strong: np.ndarray, labels: np.ndarray, num_classes: int) -> Gain:
  """Computes on which classes a stronger attack gains.

  Examples that the weaker attack fools count as fooled by both. A class with few robust examples cannot lose
  many points, so ρ of `points` is biased upwards; `share` is not bounded by the class's robustness.

  Args:
    weak: bool[N], robust to the weaker attack.
    strong: bool[N], robust to the stronger attack.
    labels: i32[N].
    num_classes: C.

  Returns:
    A `Gain`.

  Example:
    >>> labels = np.repeat([0, 1, 2], 4)
    >>> weak = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0], bool)
    >>> strong = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    >>> found = gain(weak, strong, labels, 3)
    >>> found.points.tolist(), found.share.round(2).tolist(), round(found.of_share.rho, 3)
    ([0.0, 0.25, 0.25], [0.0, 0.33, 0.5], -1.0)
  """
  before = metrics.accuracy_by_class(weak, labels, num_classes)
  after = metrics.accuracy_by_class(weak & strong, labels, num_classes)
  points = before - after
  share = np.where(before > 0, points / np.where(before > 0, before, 1), np.nan)
  return Gain(points, share, rank_correlation(before, points), rank_correlation(before, share))


class Concordance(NamedTuple):
  """Result of `concordance`.

  Attributes:
    orders: number of orders that were compared.
    mean_rho: mean of Spearman's ρ over all pairs of them.
    lowest_rho: lowest ρ of a pair.
    w: Kendall's W, from 0 to 1 for equal orders.
    p: p-value of the hypothesis that the orders are independent (Friedman's test).
  """
  orders: int
  mean_rho: float
  lowest_rho: float
  w: float
  p: float


def concordance(scores: np.ndarray) -> Concordance:
  """Measures how far several orders of the classes agree, one for each attack or method.

  W = 12 S / (m² (C³ − C)) without ties, where m is the number of orders and S the sum of squared distances of
  the classes' rank sums from their mean. Without ties the mean of ρ is (m W − 1)/(m − 1). The p-value is
  approximate for few orders.

  Args:
    scores: f64[M, C], accuracies. A row of one value has no order and is left out, and so is a class with
      NaN.

  Returns:
    A `Concordance`, of NaN if fewer than two orders or three classes remain.

  Example:
    >>> found = concordance(np.array([[1., 2., 3., 4.], [1., 2., 3., 4.], [2., 1., 3., 4.]]))
    >>> round(found.mean_rho, 3), round(found.lowest_rho, 3), round(found.w, 3)
    (0.867, 0.8, 0.911)

  Reference: Kendall and Babington Smith, The Problem of m Rankings, 1939.
  """
  scores = scores[:, ~np.isnan(scores).any(axis=0)]
  if scores.shape[1] < 3:
    return Concordance(len(scores), np.nan, np.nan, np.nan, np.nan)
  scores = scores[np.ptp(scores, axis=1) > 0]
  if len(scores) < 2:
    return Concordance(len(scores), np.nan, np.nan, np.nan, np.nan)
  pairs = [rank_correlation(*pair).rho for pair in itertools.combinations(scores, 2)]
  found = stats.friedmanchisquare(*scores.T)
  w = float(found.statistic) / (len(scores) * (scores.shape[1] - 1))
  return Concordance(len(scores), float(np.mean(pairs)), min(pairs), w, float(found.pvalue))


def interval(correct: int, total: int) -> tuple[float, float]:
  """Computes the exact 95 % confidence interval of an accuracy.

  Args:
    correct: number of correct examples.
    total: number of examples, at least 1.

  Returns:
    Its two ends.

  Example:
    >>> '{:.3f} {:.3f}'.format(*interval(0, 10))  # 1 − .025^(1/10)
    '0.000 0.308'

  Reference: Clopper and Pearson, The Use of Confidence or Fiducial Limits …, 1934.
  """
  found = stats.binomtest(correct, total).proportion_ci()
  return float(found.low), float(found.high)

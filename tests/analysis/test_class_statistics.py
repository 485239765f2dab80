"""Class-wise statistics against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from at_jax.analysis import class_statistics, superclasses
from at_jax.evaluation import metrics

RNG = np.random.default_rng(0)
LABELS, PREDICTIONS = RNG.integers(0, 5, 200), RNG.integers(0, 5, 200)
# The coarse label of each of CIFAR-100's fine labels, as in the archive's files.
COARSE = [4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3,
          15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17,
          4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13,
          15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13]


def test_confusion_matrix_is_that_of_scikit_learn():
  found = class_statistics.confusion_matrix(LABELS, PREDICTIONS, 6)
  np.testing.assert_array_equal(found, reference.confusion_matrix(LABELS, PREDICTIONS, labels=range(6)))
  # An example without a prediction is in no cell.
  without = np.where(np.arange(200) < 50, -1, PREDICTIONS)
  np.testing.assert_array_equal(class_statistics.confusion_matrix(LABELS, without, 6),
                                class_statistics.confusion_matrix(LABELS[50:], PREDICTIONS[50:], 6))


def test_accuracies_are_recalls_of_scikit_learn():
  accuracy = metrics.accuracy_by_class(LABELS == PREDICTIONS, LABELS, 6)
  recalls = reference.recall_score(LABELS, PREDICTIONS, average=None)
  np.testing.assert_allclose(accuracy, [*recalls, np.nan], rtol=1e-12)
  found = class_statistics.spread(accuracy)
  assert found.mean == pytest.approx(reference.balanced_accuracy_score(LABELS, PREDICTIONS))
  assert (found.worst, found.lowest) == (recalls.argmin(), recalls.min())
  assert found.gap == recalls.max() - recalls.min() and found.variance == pytest.approx(recalls.var())


def test_top_confounders_are_those_of_the_confusion_matrix():
  confusion = reference.confusion_matrix(LABELS, PREDICTIONS)
  found, share = class_statistics.top_confounders(confusion)
  for c in range(5):
    wrong = PREDICTIONS[(LABELS == c) & (PREDICTIONS != c)]
    assert found[c] == stats.mode(wrong).mode and share[c] == (wrong == found[c]).mean()


def test_mistakes_within_a_superclass_are_counted():
  confusion = reference.confusion_matrix(LABELS, PREDICTIONS)
  mistakes = PREDICTIONS[(LABELS < 2) & (PREDICTIONS != LABELS)]
  # Of 4 wrong classes, one is in {0, 1}.
  assert class_statistics.within(confusion, [0, 1]) == ((mistakes < 2).mean(), 1 / 4)
  assert np.isnan(class_statistics.within(np.eye(3, dtype=int), [0, 1])[0])


def test_p_of_equal_classes_is_pearsons():
  # 30 of 50 and 20 of 50: every expected count is 25, so the statistic is 4 · 5²/25 = 4 with one degree of
  # freedom. An absent class changes nothing.
  labels, correct = np.repeat([0, 2], 50), np.r_[np.arange(50) < 30, np.arange(50) < 20]
  assert class_statistics.equality_p(correct, labels) == pytest.approx(stats.chi2.sf(4, 1))
  assert class_statistics.equality_p(np.zeros(100, bool), labels) == 1
  assert class_statistics.equality_p(correct, np.zeros(100, int)) == 1


def test_rank_correlation_has_the_closed_form():
  first, second = RNG.permutation(8), RNG.permutation(8)
  rho = 1 - 6 * ((first - second)**2).sum() / (8 * 63)
  found = class_statistics.rank_correlation(np.exp(first), second**3.)
  assert found.rho == pytest.approx(rho)
  assert found.p == pytest.approx(stats.spearmanr(first, second).pvalue)
  with_nan = class_statistics.rank_correlation(np.r_[np.exp(first), np.nan], np.r_[second**3., 1])
  assert with_nan == found


@pytest.mark.parametrize('first, second', [
    ([1., 1., 1.], [1., 2., 3.]), ([1., 2., np.nan], [1., 2., 3.])])
def test_rank_correlation_without_an_order_is_nan(first, second):
  assert np.isnan(class_statistics.rank_correlation(np.array(first), np.array(second))).all()


def test_gain_is_counted_by_class():
  # Class 0 loses 1 of 4 robust examples, class 1 1 of 2, class 2 has none, class 3 loses none of 3. The
  # stronger attack alone misses one example of class 2, which the weaker one fools.
  weak = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
  strong = np.array([1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0], bool)
  found = class_statistics.gain(weak, strong, np.repeat(range(4), 4), 4)
  assert found.points.tolist() == [.25, .25, 0, 0]
  np.testing.assert_array_equal(found.share, [.25, .5, np.nan, 0])
  assert found.of_share.rho == stats.spearmanr([1, .5, .75], [.25, .5, 0]).statistic


def test_concordance_has_the_closed_form():
  # Kendall and Babington Smith: W = 12 S/(m²(n³ − n)), and ρ has the mean (m W − 1)/(m − 1).
  ranks = np.array([RNG.permutation(6) for _ in range(4)])
  sums = ranks.sum(axis=0)
  w = 12 * ((sums - sums.mean())**2).sum() / (4**2 * (6**3 - 6))
  # A row of one value and a class with NaN are left out.
  scores = np.c_[np.vstack([ranks, np.ones(6)]), np.full(5, np.nan)]
  found = class_statistics.concordance(scores)
  assert found.orders == 4 and found.w == pytest.approx(w)
  assert found.mean_rho == pytest.approx((4 * w - 1) / 3)
  assert found.p == pytest.approx(stats.chi2.sf(4 * 5 * w, 5))  # Friedman's test
  assert found.lowest_rho == pytest.approx(min(
      stats.spearmanr(ranks[i], ranks[j]).statistic for i in range(4) for j in range(i)))


@pytest.mark.parametrize('shape', [(1, 4), (0, 4), (3, 2)])
def test_concordance_of_too_few_is_nan(shape):
  assert np.isnan(class_statistics.concordance(RNG.uniform(size=shape))[1:]).all()


def test_interval_has_the_closed_form():
  # Clopper and Pearson: of n of n correct the lower end is (α/2)^(1/n).
  assert class_statistics.interval(20, 20) == (pytest.approx(.025**(1 / 20)), 1)


def test_superclasses_are_the_published_ones():
  names = sorted(sum((each.split() for each in superclasses._CIFAR100.values()), []))  # alphabetical
  found = superclasses.members(names)
  assert len(names) == 100 and list(found) == list(superclasses._CIFAR100)
  for coarse, labels in enumerate(found.values()):
    assert labels == [fine for fine in range(100) if COARSE[fine] == coarse]
  # The published order of CIFAR-10's classes.
  cifar10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
  assert superclasses.members(cifar10) == {'animals': [2, 3, 4, 5, 6, 7], 'vehicles': [0, 1, 8, 9]}
  assert superclasses.members(cifar10[:-1])['vehicles'] == [0, 1, 8]
  assert superclasses.members(cifar10[:5]) == superclasses.members(list('0123456789')) == {}

"""Overlap of misclassified examples, against counts over all sets, permutations and choices."""

import itertools
import math

import numpy as np
import pytest

from at_jax.analysis import overlap

LABELS = np.array([0, 0, 0, 1, 1])
WRONG = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1], [1, 1, 1, 1, 0]], bool)


def test_overlap_is_that_of_all_sets_of_its_size():
  first, second = np.arange(7) < 4, np.isin(np.arange(7), [1, 2, 3, 6])
  both = 3
  counts = [sum(place < 4 for place in chosen) for chosen in itertools.combinations(range(7), 4)]
  found = overlap.overlap(first, second)
  assert found.p == pytest.approx(np.mean([count >= both for count in counts]))
  assert found.ratio == pytest.approx(both / np.mean(counts))
  assert found.h == pytest.approx((both - np.mean(counts)) / (4 - np.mean(counts)))
  assert found.jaccard == 3 / 5  # of 5 in either


def test_h_is_that_of_the_complements_and_1_for_nested_sets():
  first, second = WRONG[:2]
  assert overlap.overlap(first, second).h == pytest.approx(overlap.overlap(~first, ~second).h)
  assert overlap.overlap(first, WRONG[2]).h == 1  # a subset


@pytest.mark.parametrize('size', [0, 3])
def test_set_without_a_choice_has_p_1_and_no_h(size):
  found = overlap.overlap(np.arange(3) < size, np.arange(3) < 2)
  assert found.p == pytest.approx(1) and math.isnan(found.h)


def test_other_examples_are_refused():
  with pytest.raises(ValueError, match=r'second.shape = \(2,\): use the same examples as first, \(3,\)'):
    overlap.overlap(np.ones(3, bool), np.ones(2, bool))


def test_chance_is_the_mean_over_all_permutations():
  found = overlap.common(WRONG[:2], LABELS)
  orders = [list(order) for order in itertools.permutations(range(5))]
  within = [order for order in orders if (LABELS[order] == LABELS).all()]
  both = lambda orders: np.mean([(WRONG[0] & WRONG[1][order]).mean() for order in orders])
  neither = np.mean([~(WRONG[0] | WRONG[1][order]) for order in orders])
  assert found.always_by_chance == pytest.approx(both(orders))
  assert found.always_by_class == pytest.approx(both(within))
  assert found.never_by_chance == pytest.approx(neither)
  # Counted by hand: examples 0 and 3 are wrong twice, and 2 never.
  assert (found.always, found.never, found.lowest, found.highest) == (.4, .2, .6, .6)


def test_choices_of_k_models_are_averaged():
  observed, by_chance = overlap.among(WRONG)
  for k in range(1, 4):
    chosen = [WRONG[list(places)] for places in itertools.combinations(range(3), k)]
    assert observed[k - 1] == pytest.approx(np.mean([each.all(axis=0).mean() for each in chosen]))
    assert by_chance[k - 1] == pytest.approx(np.mean([each.mean(axis=1).prod() for each in chosen]))

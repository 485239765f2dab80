"""McNemar's test, against the sign test computed by hand."""

import numpy as np
import pytest

from at_jax.analysis import mcnemar


def test_p_is_that_of_the_sign_test():
  # b = 1, c = 5: p = 2·(C(6,0) + C(6,1))/2⁶ = 14/64.
  first = np.array([1, 0, 0, 0, 0, 0, 1, 0], bool)
  second = np.array([0, 1, 1, 1, 1, 1, 1, 0], bool)
  assert mcnemar.mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
  assert mcnemar.mcnemar(first, first) == (0, 0, 1.)


def test_verdicts_of_other_examples_are_refused():
  with pytest.raises(ValueError, match='same examples'):
    mcnemar.mcnemar(np.ones(8, bool), np.ones(3, bool))

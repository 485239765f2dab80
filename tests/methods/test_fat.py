"""FAT's schedule of τ."""

import numpy as np
import pytest

from at_jax.methods import fat


@pytest.mark.parametrize('taus, epochs, expected', [
    ((0, 3, 6), (40, 70), [0] * 40 + [3] * 30 + [6] * 50),  # GAIR-FAT, 120 epochs
    ((0, 1, 2), (50, 90), [0] * 50 + [1] * 40 + [2] * 30),  # FAT
    ((3,), (), [3] * 120),
])
def test_tau_changes_at_the_given_epochs(taus, epochs, expected):
  found = [fat.tau_schedule(epoch, taus=taus, epochs=epochs) for epoch in range(120)]
  assert all(tau.dtype == np.int32 for tau in found)
  assert [int(tau) for tau in found] == expected


def test_lengths_that_do_not_fit_raise():
  with pytest.raises(ValueError):
    fat.tau_schedule(0, taus=(0, 1, 2), epochs=(50,))

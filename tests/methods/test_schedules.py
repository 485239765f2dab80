"""The piecewise schedule of λ."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import schedules


def test_by_epoch_reaches_every_stage():
  # Every stage of a piecewise λ is reached, in whatever order they are written.
  stages = {110: -2.5, 60: -1., 90: -2.}
  lam = jax.vmap(lambda epoch: schedules.by_epoch(epoch, jnp.inf, stages))(jnp.arange(1, 121))
  np.testing.assert_array_equal(lam, [np.inf] * 59 + [-1.] * 30 + [-2.] * 20 + [-2.5] * 11)
  assert schedules.by_epoch(7, -1., {}) == -1

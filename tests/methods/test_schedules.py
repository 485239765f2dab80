"""Schedules of a parameter over the epochs."""

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


def test_ramp_is_the_hinge_of_epsilon_scheduling():
  # T₁ = 12 and T₂ = 37 of 50 epochs, the values of the paper.
  epochs = np.arange(50)
  found = jax.vmap(lambda epoch: schedules.ramp(epoch, 12, 37))(jnp.asarray(epochs))
  np.testing.assert_allclose(found, np.interp(epochs, [12, 37], [0, 1]), atol=1e-6)
  # Without a ramp the radius is whole from its epoch on; from epoch 0 on it is a warm-up.
  assert [float(schedules.ramp(epoch, 2, 2)) for epoch in range(4)] == [0, 0, 1, 1]
  assert [float(schedules.ramp(epoch, 0, 4)) for epoch in range(4)] == [0, .25, .5, .75]
  assert schedules.ramp(0, 0, 0) == 1

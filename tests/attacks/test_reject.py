"""FAB searching on one model where another decides: what is not confirmed does not end its search."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks
from at_jax.attacks import refill

KEY, START = jax.random.key(0), .25


def gap(t):
  """z_1 − z_0 at a distance t: falling steeply to .09, then flat, and above 0 from a jump at .1 on."""
  return jnp.where(t < .09, 10 * t - 1, jnp.where(t < .1, t - .19, t + .1))


def logits(gap):
  return jnp.stack([jnp.zeros(len(gap)), gap], axis=1)


search = lambda x: logits(gap(x[:, 0] - START))
decides = lambda x: logits(x[:, 0] - START - .15)


def test_fab_goes_further_than_a_point_that_is_not_confirmed(monkeypatch):
  # The first step overshoots to .105, which only the search model calls misclassified. From nine
  # tenths of that, where it is flat, the next one goes to about .195, and both models agree. That
  # one is further away: it is taken only if the first has been forgotten.
  run = lambda: attacks.autoattack(
      decides, jnp.full((3, 1), START), jnp.zeros(3, int), KEY, epsilon=.3, search_fn=search,
      attacks=('fab-t',), num_steps=4)
  result = run()
  assert result.clean.all() and not result.robust.any()
  assert (result.x[:, 0] - START > .15).all()
  np.testing.assert_array_equal(np.asarray(decides(result.x)).argmax(1), 1)
  monkeypatch.setattr(refill, '_reject', lambda state, rejected: state)
  assert run().robust.all()

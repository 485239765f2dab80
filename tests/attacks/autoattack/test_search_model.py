"""Searching on one model where another decides: what is not confirmed does not end the search."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks
from at_jax.attacks.autoattack import batching

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
  monkeypatch.setattr(batching, '_reject', lambda state, rejected: state)
  assert run().robust.all()


def test_square_goes_on_from_a_start_at_which_the_search_model_is_no_number():
  # All stripes are alike from top to bottom, and nothing else is: a model that is no number there and
  # the deciding one elsewhere finds what the deciding one finds by itself.
  w = jax.random.normal(jax.random.key(3), (64,))

  def plain(x):
    return logits((x - .5).reshape(len(x), -1) @ w - 1.2)

  def blind_at_stripes(x):
    stripes = jnp.all(x == x[:, :1], axis=(1, 2, 3)) & jnp.any(x != .5, axis=(1, 2, 3))
    return jnp.where(stripes[:, None], jnp.nan, plain(x))

  run = lambda model: attacks.autoattack(
      plain, jnp.full((8, 8, 8, 1), .5), jnp.zeros(8, int), KEY, epsilon=.05, attacks=('square',),
      num_queries=800, search_fn=model)
  assert run(plain).clean.all() and not run(plain).robust.any()
  assert not run(blind_at_stripes).robust.any()

"""Slots are refilled as soon as they are free, without waiting for others and without compiling again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _stepper
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.autoattack import batching
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.attacks.square import stepper as square_stepper
from tests.fixtures import small_models

KEY = jax.random.key(3)
STEPPERS = {
    'square': square_stepper(num_queries=25),
    'apgd': apgd_stepper(norm='linf', num_steps=8),
    'fab': fab_stepper(norm='linf', num_steps=8, targeted=False),
}


def run_batched(logits_fn, x, y, stepper, *, batch_size, epsilon=.1):
  """The slots after every call, which examples were fooled, and the passes."""
  n = len(x)
  work = batching.Work(x, y, y[:, None], jnp.arange(n), KEY, jnp.full(n, epsilon), (0., 1.))
  items = np.array([(i, 0) for i in range(n)])
  fooled, diagnostics, passes = np.zeros(n, bool), np.zeros((3, n), bool), np.zeros(3, int)
  devices = jax.local_devices()[:1]
  slots = batching.empty_slots(items, batch_size, devices)
  calls = list(batching.run_batched(
      logits_fn, logits_fn, work, slots, fooled, np.array(x), diagnostics, passes, devices=devices,
      stepper=stepper))
  assert diagnostics[0].all() and calls[-1].num_loaded == n and (calls[-1].example == -1).all()
  return calls, fooled, batching.Passes(*passes)


@pytest.mark.parametrize('name', STEPPERS)
def test_free_slot_is_refilled_while_the_other_runs(name):
  # Odd examples are fooled at their first step, even ones need all steps. With 2 slots:
  #   slot A   0 0 … 0 3 4 4 … 4     0, 2 and 4 are robust and take c calls each; 1, 3 and 5 take one.
  #   slot B   1 2 2 … 2 5           2c + 1 calls; if both slots had to be free first, 3c.
  # Square makes 26 steps in calls of 20, so c is 2.
  stepper = STEPPERS[name]
  logits_fn = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], 1) + 0 * x.sum()
  x, y = jnp.full((6, 4), .5), jnp.arange(6) % 2
  calls, fooled, passes = run_batched(logits_fn, x, y, stepper, batch_size=2)
  np.testing.assert_array_equal(fooled, np.arange(6) % 2 == 1)
  c = -(-stepper.length // batching.steps_per_refill(stepper))
  assert c > 1 and len(calls) == 2 * c + 1
  # After the first call slot B is free and 0 has not ended; after the second, slot B holds 2, and 0 has
  # continued from its own state.
  first, second = calls[:2]
  assert first.example.tolist() == [0, -1]
  assert second.example.tolist() == [-1 if c == 2 else 0, 2]
  before, after = np.asarray(first.state.count)[0], np.asarray(second.state.count)
  assert 0 < before < stepper.length
  assert after[0] == min(2 * before, stepper.length) and after[1] == before
  # The steps of three whole runs and of three single steps, and one pass to confirm each of three points.
  # FAB takes two forward passes in a step, and one backward pass for each of the two classes; Square none.
  num_taken = 3 * stepper.length + 3
  forward, backward = {'apgd': (1, 1), 'fab': (2, 2), 'square': (1, 0)}[name]
  computed = 2 * (len(calls) * batching.steps_per_refill(stepper) * forward + 3)
  assert passes[:2] == (forward * num_taken + 3, backward * num_taken)
  assert passes.forward + passes.empty == computed


def test_refilling_compiles_nothing_and_leaves_no_slot_free():
  logits_fn, x, y = small_models.network(n=24)
  advance = batching._advance(True, tuple(jax.local_devices()[:1]))
  num_programs = lambda: (advance._cache_size(), _stepper.is_wrong._cache_size())
  run = lambda n: run_batched(logits_fn, x[:n], y[:n], STEPPERS['apgd'], batch_size=4, epsilon=.05)
  _, fooled, _ = run(4)  # fills the slots once; some are fooled, so the verifying model is compiled too
  assert fooled.any()
  first = num_programs()
  calls, fooled, _ = run(24)
  assert num_programs() == first and min(first) > 0
  assert 0 < fooled.sum() < 24
  # Each call loads as many examples as there were free slots, or as remain. Some slots were free while
  # others were not.
  num_free = [int((slots.example == -1).sum()) for slots in calls]
  num_loaded = [slots.num_loaded for slots in calls]
  loadable = [min(free, 24 - loaded) for free, loaded in zip(num_free, num_loaded, strict=True)]
  assert np.diff(num_loaded).tolist() == loadable[:-1]
  assert any(0 < n < 4 for n in loadable)


def test_short_list_gets_no_more_slots_than_it_fills():
  # 7 examples, batch size 100: a 32nd is 4, so 8 slots are enough. The draws, and therefore the fooled
  # examples, are those of any other batch size.
  logits_fn, x, y = small_models.network(n=7)
  calls, fooled, _ = run_batched(logits_fn, x, y, STEPPERS['square'], batch_size=100)
  assert {len(slots.example) for slots in calls} == {8}
  calls, fooled_in_4, _ = run_batched(logits_fn, x, y, STEPPERS['square'], batch_size=4)
  assert {len(slots.example) for slots in calls} == {4}
  np.testing.assert_array_equal(fooled, fooled_in_4)
  assert 0 < fooled.sum() < 7


# A separate search model: the search continues after a point that the verifying model does not confirm.
START = .25


def two_logits(gap):
  return jnp.stack([jnp.zeros(len(gap)), gap], axis=1)


def gap(t):
  """z_1 - z_0 at distance t: it rises steeply up to .09, is then flat, and jumps above 0 at .1."""
  return jnp.where(t < .09, 10 * t - 1, jnp.where(t < .1, t - .19, t + .1))


search_fn = lambda x: two_logits(gap(x[:, 0] - START))
verify_fn = lambda x: two_logits(x[:, 0] - START - .15)


def test_fab_moves_past_a_point_that_is_not_confirmed(monkeypatch):
  # The first step overshoots to .105, which only the search model misclassifies. From nine tenths of that,
  # where the model is flat, the next step goes to about .195, which both models misclassify. That point is
  # further away, so it is only taken if the first one was rejected.
  run = lambda: attacks.autoattack(
      verify_fn, jnp.full((3, 1), START), jnp.zeros(3, int), KEY, epsilon=.3, search_fn=search_fn,
      attacks=('fab-t',), num_steps=4)
  result = run()
  assert result.clean.all() and not result.robust.any()
  assert (result.x[:, 0] - START > .15).all()
  np.testing.assert_array_equal(np.asarray(verify_fn(result.x)).argmax(1), 1)
  monkeypatch.setattr(batching, '_reject', lambda state, rejected: state)
  assert run().robust.all()


def test_square_continues_from_a_start_with_nan_logits():
  # Stripes, the start of Square, are constant from top to bottom, and no later point is. A search model that
  # is NaN on stripes and equal to the verifying model elsewhere fools what the verifying model fools.
  w = jax.random.normal(jax.random.key(3), (64,))

  def plain(x):
    return two_logits((x - .5).reshape(len(x), -1) @ w - 1.2)

  def nan_on_stripes(x):
    stripes = jnp.all(x == x[:, :1], axis=(1, 2, 3)) & jnp.any(x != .5, axis=(1, 2, 3))
    return jnp.where(stripes[:, None], jnp.nan, plain(x))

  run = lambda model: attacks.autoattack(
      plain, jnp.full((8, 8, 8, 1), .5), jnp.zeros(8, int), jax.random.key(0), epsilon=.05,
      attacks=('square',), num_queries=800, search_fn=model)
  assert run(plain).clean.all() and not run(plain).robust.any()
  assert not run(nan_on_stripes).robust.any()


def test_square_continues_where_a_point_is_not_confirmed():
  # The search model is always wrong, but its margin is that of the verifying model plus 50, so both accept
  # the same proposals: the search must take the same path to the same verdicts.
  logits_fn, x, y = small_models.network(2, n=60)
  x, calls = x[y == 0], []
  run = lambda **options: attacks.autoattack(
      logits_fn, x, jnp.zeros(len(x), int), KEY, epsilon=.08, attacks=('square',), num_queries=100,
      progress=calls.append, **options).robust
  robust = run(search_fn=lambda x: logits_fn(x) + jnp.array([0., 50.]))
  assert len(calls) < 40  # of 101 queries, 6 calls if none were rejected
  assert 0 < robust.sum() < len(x)
  np.testing.assert_array_equal(robust, run())

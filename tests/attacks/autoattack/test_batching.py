"""Seats that come free are taken at once, while the neighbours go on, by the program that is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def drain(logits_fn, x, y, stepper, *, batch_size, epsilon=.1):
  """The seats after every call, the steps that each example took, and which fell."""
  n = len(x)
  work = batching.Work(x, y, y[:, None], jnp.arange(n), KEY, jnp.full(n, epsilon), (0., 1.))
  items = np.array([(i, 0) for i in range(n)])
  fell, signs = np.zeros(n, bool), np.zeros((3, n), bool)
  seats = list(batching.run_batched(logits_fn, logits_fn, work, items, fell, np.array(x), signs,
                            batch_size=batch_size, devices=jax.local_devices()[:1],
                            stepper=stepper))
  assert signs[0].all() and seats[-1].num_loaded == n and (seats[-1].example == -1).all()
  return seats, fell


@pytest.mark.parametrize('name', STEPPERS)
def test_a_seat_is_taken_again_while_its_neighbour_is_on_the_way(name):
  # Half of the examples fall at their first step, every other one needs all of them. In 2 seats:
  #   seat A   0 0 … 0 3 4 4 … 4     0, 2 and 4 stand and take c calls each; 1, 3 and 5 fall in one.
  #   seat B   1 2 2 … 2 5           2c + 1 calls; if both seats had to be free first, 3c.
  # Square makes 26 steps in calls of 20, so that c is 2.
  stepper = STEPPERS[name]
  logits_fn = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], 1) + 0 * x.sum()
  seats, fell = drain(logits_fn, jnp.full((6, 4), .5), jnp.arange(6) % 2, stepper, batch_size=2)
  np.testing.assert_array_equal(fell, np.arange(6) % 2 == 1)
  calls = -(-stepper.length // batching.steps_per_call(stepper))
  assert calls > 1 and len(seats) == 2 * calls + 1
  # After the first call seat B is free and 0 is on its way; after the second 2 sits there, and 0 has
  # gone on from where it was.
  first, second = seats[:2]
  assert first.example.tolist() == [0, -1]
  assert second.example.tolist() == [-1 if calls == 2 else 0, 2]
  before, after = np.asarray(first.state.count)[0], np.asarray(second.state.count)
  assert 0 < before < stepper.length
  assert after[0] == min(2 * before, stepper.length) and after[1] == before


def test_a_refilled_batch_is_compiled_no_more_often_and_waits_for_nobody():
  logits_fn, x, y = small_models.network(n=24)
  traces = []

  def counted(x):
    traces.append(1)
    return logits_fn(x)

  run = lambda n: drain(counted, x[:n], y[:n], STEPPERS['apgd'], batch_size=4, epsilon=.05)
  _, fell = run(4)  # fills its seats once; some fall, which traces the model that confirms it too
  assert fell.any()
  first = len(traces)
  seats, fell = run(24)
  assert len(traces) == first > 0
  assert 0 < fell.sum() < 24
  # Each call begins with all seats taken that were free after the one before, as far as examples go;
  # and some were free while others were not.
  free = [int((one.example == -1).sum()) for one in seats]
  taken = [one.num_loaded for one in seats]
  waiting = [min(n, 24 - at) for n, at in zip(free, taken)]
  assert np.diff(taken).tolist() == waiting[:-1]
  assert any(0 < n < 4 for n in waiting)


def test_a_short_list_is_given_no_more_seats_than_it_fills():
  # 7 examples, a batch of 32: its eighths are of 4, so that 8 seats hold them; the draws, and so who
  # falls, are those of any other batch.
  logits_fn, x, y = small_models.network(n=7)
  seats, fell = drain(logits_fn, x, y, STEPPERS['square'], batch_size=32)
  assert {len(one.example) for one in seats} == {8}
  seats, as_fell = drain(logits_fn, x, y, STEPPERS['square'], batch_size=4)
  assert {len(one.example) for one in seats} == {4}
  np.testing.assert_array_equal(fell, as_fell)
  assert 0 < fell.sum() < 7

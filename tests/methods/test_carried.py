"""Free-AT and FGSM-PGI: bytes, closed forms, and training steps by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax import devices
from at_jax.datasets import pipeline
from at_jax.methods import carried, fgsm_pgi, free_at
from at_jax.training import epoch_plan, loop, setup
from at_jax.training import step as step_lib
from tests.fixtures import composed_runs

EPSILON = 8 / 255


@pytest.mark.parametrize('whole', [1, 2, 3, 4, 5, 6, 8, 10, 12])
def test_whole_radii_lose_nothing_in_bytes(whole):
  delta = np.arange(-whole, whole + 1, dtype=np.float32) / 255
  found = carried.unpack(carried.pack(delta, whole / 255), whole / 255)
  np.testing.assert_allclose(found, delta, atol=1e-8)


def test_other_radii_lose_a_240th():
  delta = np.random.default_rng(0).uniform(-.031, .031, 1000).astype(np.float32)
  error = np.abs(carried.unpack(carried.pack(delta, .031), .031) - delta)
  assert .031 / 250 < error.max() <= .031 / 240 + 1e-8
  assert not carried.unpack(carried.pack(np.zeros(3), 0.), 0.).any()


def test_two_devices_store_what_one_stores():
  delta = np.float32([[8], [-8], [0], [3]]) / 255
  places, kept = np.array([4, 0, 2, 3]), jnp.full((5, 1), 7, jnp.int8)
  one = carried.store(kept, places, delta, EPSILON)
  np.testing.assert_array_equal(one[:, 0], [-120, 7, 0, 45, 120])
  two = jax.vmap(functools.partial(carried.store, epsilon=EPSILON, axis_name='batch'), axis_name='batch',
                 in_axes=(None, 0, 0))(kept, places.reshape(2, 2), delta.reshape(2, 2, 1))
  np.testing.assert_array_equal(two, [one, one])


def test_fgsm_pgi_s_attack_goes_on_from_its_start():
  # On a linear model the step is ε·s: from −ε·s to 0, from ε·s and from 0 to ε·s.
  w = np.float32([[1, -1], [-1, 1], [1, -1]]) / 10
  x, y, s = np.full((1, 3), .5, np.float32), np.array([0]), np.float32([[-1, 1, -1]])
  start = x + EPSILON * s * np.float32([[-1, 1, 0]])
  attack = fgsm_pgi.prior(norm='linf', epsilon=EPSILON)
  run = lambda w: attack(lambda x: x @ w, x, y, jax.random.key(0), None, start=start).x - x
  np.testing.assert_allclose(run(w), EPSILON * s * np.float32([[0, 1, 1]]), atol=1e-6)
  # Where p_y > .6, here .73, the loss with smoothed labels rises with p_y.
  np.testing.assert_allclose(run(10 * w), -EPSILON * s * np.float32([[1, 0, 1]]), atol=1e-6)


def steps_of(loss, **fields):
  """A run on 16 images without augmentation, its first state, and its step on one or two devices."""
  c = composed_runs.config_of(loss=loss)
  c.update_from_flattened_dict({'dataset.pad': 0, 'dataset.flip': False} | fields)
  run = setup.build(c)
  recipe = epoch_plan.recipe(run, loss)
  step = functools.partial(step_lib.train_step, recipe=recipe, axis_name=devices.AXIS)
  over_devices = jax.jit(jax.vmap(step, in_axes=(None, 0, 0, 0, None, None), axis_name=devices.AXIS))

  def take(state, count, epoch=0, shares=1):
    images, labels = run.dataset.train
    split = lambda leaf: leaf.reshape(shares, -1, *leaf.shape[1:])
    for _ in range(count):
      state, _ = over_devices(state, split(images), split(labels), split(np.arange(16)), run.keys['train'],
                              epoch_plan.epoch_values(c, epoch))
      state = jax.tree.map(lambda leaf: leaf[0], state)
    return state

  return run, setup.init_state(run), take


@pytest.mark.long
def test_free_at_is_its_algorithm_by_hand():
  run, state, take = steps_of('free_at', replays=2)
  found = take(state, 2)
  x, y = pipeline.to_unit(run.dataset.train.images), run.dataset.train.labels
  params, statistics, delta = state.params, state.batch_stats, jnp.zeros_like(x)
  momentum = jax.tree.map(jnp.zeros_like, params)

  @jax.jit
  def gradients(params, delta):
    def loss(params, delta):
      one = lambda x: run.network.train({'params': params, 'batch_stats': statistics}, x)[0]
      logits = jax.vmap(one, axis_name=devices.AXIS)((x + delta)[None])[0]
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    return jax.grad(loss, argnums=(0, 1))(params, delta)

  for _ in range(2):
    slope, ascent = gradients(params, delta)
    momentum = jax.tree.map(lambda m, g, w: .9 * m + g + 5e-4 * w, momentum, slope, params)
    params = jax.tree.map(lambda w, m: w - .1 * m, params, momentum)
    delta = jnp.clip(delta + EPSILON * jnp.sign(ascent), -EPSILON, EPSILON)
    delta = jnp.clip(x + delta, 0, 1) - x
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, params)
  np.testing.assert_allclose(carried.unpack(found.tuning, EPSILON), delta.reshape(len(delta), -1), atol=2e-7)
  assert np.abs(delta).max() == pytest.approx(EPSILON, rel=1e-5)


def test_a_batch_is_replayed_with_one_augmentation():
  c = composed_runs.config_of(loss='free_at')
  c.update_from_flattened_dict({'batch_size': 8, 'replays': 3, 'epochs': 1})
  run = setup.build(c)
  assert run.steps_per_epoch == 6
  order = np.concatenate([call.order for call in loop._calls(run, 0)])
  assert order.shape == (6, 8) and len(np.unique(order)) == 16
  np.testing.assert_array_equal(order[:3], order[[0, 0, 0]])
  np.testing.assert_array_equal(order[3:], order[[3, 3, 3]])
  state, recipe = setup.init_state(run), epoch_plan.recipe(run, 'free_at')
  images, labels = run.dataset.train

  @jax.jit
  def x_at(step):
    return step_lib._examples(state._replace(step=step), images[:8], labels[:8], np.arange(8),
                              run.keys['train'], step_lib.DEFAULT_VALUES, recipe, step_lib.cfa.ByClass(),
                              None).x

  first, same, other = (x_at(jnp.int32(step)) for step in (0, 2, 3))
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - other).max() > .1


@pytest.mark.long
def test_fgsm_pgi_hands_its_perturbation_to_the_next_epoch():
  run, state, take = steps_of('fgsm_pgi', **{'attack.reset_epochs': 2})
  first = take(state, 1)
  # ±ε at random and a step of ±ε give 0 or ±ε, or whole 255ths at the bounds, 15 units each.
  kept = np.asarray(first.tuning, np.int32)
  assert (kept % 15 == 0).all() and {-120, 0, 120} <= set(kept.ravel())
  # In the second epoch the attack begins there; in the third, with reset_epochs = 2, at random again.
  other = first._replace(tuning=-first.tuning)
  assert (take(first, 1, epoch=1).tuning != take(other, 1, epoch=1).tuning).any()
  np.testing.assert_array_equal(take(first, 1, epoch=2).tuning, take(other, 1, epoch=2).tuning)


@pytest.mark.long
@pytest.mark.parametrize('loss', ['free_at', 'fgsm_pgi', 'nuat'])
def test_two_devices_take_the_step_of_one(loss):
  _, state, take = steps_of(loss)
  one, two = take(state, 1, epoch=1), take(state, 1, epoch=1, shares=2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, two.params)
  np.testing.assert_array_equal(one.tuning, two.tuning)


def test_ascend_stays_in_the_ball_and_the_bounds():
  rng = np.random.default_rng(0)
  x, gradient = rng.uniform(size=(4, 9)).astype(np.float32), rng.normal(size=(4, 9))
  delta = np.clip(x + rng.uniform(-.1, .1, x.shape).astype(np.float32), 0, 1) - x
  moved = free_at.ascend(x, x + delta, gradient, .1)
  assert np.abs(moved).max() <= .1 + 1e-6 and (x + moved).min() >= 0 and (x + moved).max() <= 1


def test_fgsm_pgi_starts_within_the_ramped_radius():
  # A schedule of ε multiplies the radius, so at 0 the random start of the first epoch is x itself.
  x = jnp.full((2, 4), .5)
  recipe = types.SimpleNamespace(radius=.1, ramp_epochs=(0, 2), steps_per_epoch=4)
  for epoch, step, moved in ((None, 0, .1), (0, 0, 0.), (0, 2, .025), (1, 4, .05), (1, 7, .0875), (2, 8, .1)):
    state = types.SimpleNamespace(tuning=jnp.zeros((2, 4), jnp.int8), step=step)
    values = step_lib.EpochValues(fresh=True, epoch=epoch)
    start = step_lib._prior(state, x, jnp.arange(2), jax.random.key(0), values, recipe)
    np.testing.assert_allclose(jnp.abs(start - x), moved, atol=1e-7)

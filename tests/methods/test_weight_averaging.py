"""Weight averages against their sums, and the parameters that are evaluated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.methods import entropy_sgd, weight_averaging

KEY = jax.random.key(0)
GRADS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
START = np.zeros(3, np.float32)


def run(optimizer, params=START, grads=GRADS):
  update, state, trail = jax.jit(optimizer.update), optimizer.init(params), []
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    trail.append((params, state))
  return trail


def evaluated(trail):
  return np.array([weight_averaging.eval_params(state, params) for params, state in trail])


def walk(trail):
  return np.array([params for params, _ in trail], np.float64)


def test_ema_equals_its_sum():
  trail = run(optax.chain(optax.sgd(.1), weight_averaging.ema(.8, ramp=False)))
  average, expected = np.float64(START), []
  for w in walk(trail):
    average = .8 * average + .2 * w
    expected.append(average)
  np.testing.assert_allclose(evaluated(trail), expected, atol=1e-6)


def test_ema_with_start_and_ramp_equals_a_loop():
  trail = run(optax.chain(optax.sgd(.1), weight_averaging.ema(.35, start=3)))
  w, average, expected = walk(trail), None, []
  for count, point in enumerate(w):
    n = count - 3
    decay = 0. if n < 0 else min(.35, (1 + n) / (10 + n))  # .1, 2/11, 3/12, 4/13, then .35
    average = point if average is None else decay * average + (1 - decay) * point
    expected.append(average)
  np.testing.assert_allclose(evaluated(trail), expected, atol=1e-6)
  np.testing.assert_allclose(evaluated(trail)[:3], w[:3], atol=1e-7)


@pytest.mark.parametrize('start, every', [(0, 1), (2, 1), (2, 3)])
def test_swa_equals_the_mean(start, every):
  trail = run(optax.chain(optax.sgd(.1), weight_averaging.swa(start, every=every)))
  w = walk(trail)
  for count, found in enumerate(evaluated(trail)):
    counted = w[start:count + 1:every] if count >= start else w[count:count + 1]
    np.testing.assert_allclose(found, counted.mean(0), atol=1e-6)


def test_averages_do_not_change_the_updates():
  plain = run(optax.sgd(.1, .9))
  for average in (weight_averaging.ema(.99), weight_averaging.swa(3)):
    chex.assert_trees_all_equal(walk(plain), walk(run(optax.chain(optax.sgd(.1, .9), average))))


def test_without_an_average_the_parameters_are_evaluated():
  for optimizer in (optax.sgd(.1, .9), optax.adamw(1e-3), optax.MultiSteps(optax.sgd(.1), 2)):
    params = {'w': jnp.ones(3)}
    chex.assert_trees_all_equal(weight_averaging.eval_params(optimizer.init(params), params), params)


def test_entropy_sgd_is_evaluated_at_its_anchor():
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=4, key=KEY)
  trail = run(optimizer)
  ours, w = evaluated(trail), walk(trail).astype(np.float32)
  np.testing.assert_array_equal(ours[:3], np.zeros((3, 3)))  # the first anchor
  for end in (3, 7):
    np.testing.assert_array_equal(ours[end], w[end])  # exactly the next anchor
  np.testing.assert_allclose(ours[4:7], [w[3]] * 3, atol=1e-7)
  np.testing.assert_allclose(ours[8], w[7], atol=1e-7)
  assert np.abs(ours[8] - w[8]).max() > 1e-3


@pytest.mark.parametrize('wrap', [
    lambda inner: inner, lambda inner: optax.masked(inner, {'w': True, 'b': False})], ids=['whole', 'masked'])
def test_schedule_free_is_evaluated_at_its_mean(wrap):
  # Defazio et al., 2024: x is the mean of z, here of 3.5, 3 and 2.5, and y = .9 x + .1 z.
  params = {'w': jnp.array(4.), 'b': jnp.array(7.)}
  optimizer = wrap(optax.contrib.schedule_free_sgd(.5, b1=.9))
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update({'w': jnp.array(1.), 'b': jnp.array(0.)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params['w'], .9 * 3 + .1 * 2.5, rtol=1e-6)
  found = weight_averaging.eval_params(state, params)
  np.testing.assert_allclose((found['w'], found['b']), (3., 7.), rtol=1e-6)


def test_average_inside_entropy_sgd_is_of_the_anchors():
  outer = optax.chain(optax.sgd(1.), weight_averaging.swa(0))
  optimizer = entropy_sgd.entropy_sgd(outer, inner_steps=2, key=KEY)
  trail = run(optimizer)
  w, ours = walk(trail), evaluated(trail)
  np.testing.assert_allclose(ours[7], w[1:8:2].mean(0), atol=1e-6)
  np.testing.assert_allclose(ours[8], w[1:8:2].mean(0), atol=1e-6)  # mid-cycle too
  np.testing.assert_array_equal(ours[0], START)


def test_two_averages_of_one_parameter_raise():
  smoothed = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=2, key=KEY)
  optimizer = optax.chain(smoothed, weight_averaging.ema(.9))
  with pytest.raises(ValueError, match='in its outer optimizer'):
    weight_averaging.eval_params(optimizer.init(START), START)
  with pytest.raises(ValueError, match='AverageState and AverageState'):
    twice = optax.chain(weight_averaging.ema(.9), weight_averaging.swa(1))
    weight_averaging.eval_params(twice.init(START), START)


def test_each_part_of_a_partition_has_its_own_average():
  params = {'head': jnp.ones(3), 'body': {'w': jnp.ones(3), 'b': jnp.ones(3)}}
  optimizer = optax.partition(
      {'average': optax.chain(optax.sgd(.1), weight_averaging.swa(0)), 'plain': optax.sgd(.1),
       'smooth': entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=4, key=KEY)},
      {'head': 'average', 'body': {'w': 'smooth', 'b': 'plain'}})
  trail = run(optimizer, params, [params] * 2)
  ours = weight_averaging.eval_params(trail[-1][1], trail[-1][0])
  # w: 1 → .9 → .8; their mean, the last of them, and the initial anchor.
  np.testing.assert_allclose(ours['head'], .85 * np.ones(3), rtol=1e-6)
  np.testing.assert_allclose(ours['body']['b'], .8 * np.ones(3), rtol=1e-6)
  np.testing.assert_array_equal(ours['body']['w'], np.ones(3))


def test_states_are_found_inside_wrappers():
  averaged = optax.chain(optax.sgd(.1), weight_averaging.swa(0))
  wrapped = optax.MultiSteps(averaged, every_k_schedule=3)
  trail = run(wrapped)
  w = walk(trail)
  np.testing.assert_allclose(evaluated(trail)[-1], w[[2, 5, 8]].mean(0), atol=1e-6)
  finite = optax.apply_if_finite(averaged, 3)
  np.testing.assert_allclose(evaluated(run(finite))[-1], walk(run(finite)).mean(0), atol=1e-6)
  jitted = jax.jit(weight_averaging.eval_params)(*trail[-1][::-1])
  np.testing.assert_array_equal(jitted, evaluated(trail)[-1])


def test_state_resumes_from_its_leaves():
  optimizer = optax.chain(optax.sgd(.1, .9), weight_averaging.ema(.9))
  whole = run(optimizer)
  leaves = [np.array(leaf) for leaf in jax.tree.leaves(whole[4][1])]
  state = jax.tree.unflatten(jax.tree.structure(optimizer.init(START)), leaves)
  params = whole[4][0]
  for g in GRADS[5:]:
    updates, state = jax.jit(optimizer.update)(g, state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_trees_all_equal((params, state), whole[-1])


@pytest.mark.parametrize('make', [lambda: weight_averaging.ema(1.1), lambda: weight_averaging.swa(-1),
                                  lambda: weight_averaging.swa(0, every=0)])
def test_invalid_arguments_raise(make):
  with pytest.raises(ValueError, match='use'):
    make()


def taken_in(walk, worsts, **options):
  state, evaluated = weight_averaging.init_fair_average(START), []
  for w, worst in zip(walk, worsts, strict=True):
    state = weight_averaging.add_if_fair(state, w, worst, **options)
    evaluated.append(weight_averaging.eval_params(state, w))
  return state, np.array(evaluated)


def test_fair_average_equals_a_loop():
  worsts = [.1, .3, .19, .2, .5, 0., .2, .1, .9]
  state, found = taken_in(GRADS, worsts, decay=.85, threshold=.2)
  average, expected = None, []
  for w, worst in zip(np.float64(GRADS), worsts, strict=True):
    if worst >= .2:
      average = w if average is None else .85 * average + .15 * w
    expected.append(w if average is None else average)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert state.count == 5 and state.average.dtype == START.dtype


def test_fair_average_that_averages_nothing_is_exact():
  worsts = np.linspace(0, 1, len(GRADS))
  np.testing.assert_array_equal(taken_in(GRADS, worsts, decay=0., threshold=0.)[1], GRADS)
  state, found = taken_in(GRADS, worsts, decay=.85, threshold=1.1)
  np.testing.assert_array_equal(found, GRADS)
  assert state.count == 0


def test_fair_average_is_of_the_anchors_of_entropy_sgd():
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=5, key=KEY)
  params, opt_state = run(optimizer)[6]  # in the middle of a cycle
  anchor = weight_averaging.eval_params(opt_state, params)
  assert np.abs(anchor - params).max() > 1e-3
  state = weight_averaging.add_if_fair(weight_averaging.init_fair_average(START), anchor, 1., decay=.5,
                                   threshold=0.)
  np.testing.assert_array_equal(weight_averaging.eval_params(state, params), anchor)

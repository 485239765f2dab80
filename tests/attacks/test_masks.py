"""Entries that may not change: masks, and bounds that are equal or differ between examples."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _patches, _stepper, losses
from at_jax.attacks import norms as norms_lib
from at_jax.attacks.square import _free_lines
from at_jax.attacks.square import stepper as square_stepper

KEY, N, D = jax.random.key(0), 5, 8
RANDOM = np.random.default_rng(10)
W = RANDOM.normal(size=(D, 4)).astype(np.float32)
X = RANDOM.uniform(size=(N, D)).astype(np.float32)
MASK = RANDOM.uniform(size=(N, D)) < .5
MASK[:, :2] = True, False  # every example has both kinds
model = lambda x: jnp.tanh(x @ W)
Y = np.asarray(model(X).argmax(1))
ATTACKS = {
    'pgd': functools.partial(attacks.pgd, step_size=.1, num_steps=3),
    'apgd': functools.partial(attacks.apgd, num_steps=3),
    'fab': functools.partial(attacks.fab, num_steps=3, random_start=True),
    'square': functools.partial(attacks.square, num_queries=10),
    'autoattack': functools.partial(
        attacks.autoattack, num_steps=3, num_queries=10, batch_size=3, attacks=('apgd-ce', 'square')),
}
# Every attack in one norm, and those whose steps differ between norms. The others take longer.
QUICK = [*((name, 'linf') for name in ATTACKS), ('pgd', 'l2'), ('pgd', 'l1'), ('square', 'l2')]
LONG = [(name, norm) for name in ATTACKS for norm in ('l2', 'l1') if (name, norm) not in QUICK]
ALL = pytest.mark.parametrize(
    'name, norm', QUICK + [pytest.param(*pair, marks=pytest.mark.long) for pair in LONG])


@ALL
def test_masks_and_bounds_hold_in_each_example(name, norm):
  epsilon = {'linf': .4, 'l2': .8, 'l1': 1.5}[norm]
  run = lambda order, **options: ATTACKS[name](
      model, X[order], Y[order], KEY, epsilon=epsilon, norm=norm, index=order, **options)
  attack = lambda order, **options: np.asarray(run(order, **options).x)
  every = np.arange(N)
  found = attack(every, mask=MASK)
  np.testing.assert_array_equal(found[~MASK], X[~MASK])
  assert np.abs(found - X).max() > .05 and found.min() >= 0 and found.max() <= 1
  # By definition a mask is bounds that are equal where it is 0.
  low, high = np.where(MASK, 0, X), np.where(MASK, 1, X)
  np.testing.assert_array_equal(found, attack(every, bounds=(low, high)))
  # Every example has its own bounds, whatever its place in the batch.
  order = np.array([3, 0, 4, 2, 1])
  if (name, norm) == ('autoattack', 'l1'):  # the first of several restarts to succeed depends on the batch
    verdicts = run(every, mask=MASK).robust[order], run(order, bounds=(low[order], high[order])).robust
  else:
    verdicts = found[order], attack(order, bounds=(low[order], high[order]))
  np.testing.assert_array_equal(*verdicts)
  # Bounds of columns, and a mask of one example, hold in all examples.
  high = np.linspace(1, 2, D, dtype=np.float32)
  found = attack(every, bounds=(np.zeros(D), high), mask=MASK[0].astype(np.float32))
  np.testing.assert_array_equal(found[:, ~MASK[0]], X[:, ~MASK[0]])
  assert (found <= high).all()


def free_plane():
  """A linear model of two classes, points of class 1, and the weights of the entries that may change.

  Many points are at the bounds, from where they can move.
  """
  w = np.where(RANDOM.uniform(size=D) < .5, -1, 1) * np.linspace(.5, 2, D)
  mask = np.arange(D) % 3 > 0
  w = np.where(mask, w, 5 * w).astype(np.float32)  # the steepest entries are held back
  x = RANDOM.uniform(.4, .6, size=(N, D)).astype(np.float32)
  x = np.where(RANDOM.uniform(size=x.shape) < .4, w > 0, x).astype(np.float32)
  return lambda x: jnp.stack([-x @ w, x @ w], axis=1), x, np.ones(N, int), w * mask, mask


# The smallest value of a linear function in a ball is below that at its centre by ε times the dual norm, here
# of the weights of the free entries. The gradient at a pixel of exactly 0 or 1 is not cut by the bounds.
@pytest.mark.parametrize('norm, epsilon, dual', [('linf', .2, 1), ('l2', .3, 2), ('l1', .35, np.inf)])
def test_free_entries_use_the_whole_radius(norm, epsilon, dual):
  logits_fn, x, y, w, mask = free_plane()
  options = dict(epsilon=epsilon, norm=norm, mask=mask)
  lost = epsilon * np.linalg.norm(w, dual)
  results = [attacks.fgsm(logits_fn, x, y, **options)]
  if norm == 'l2':
    results += [attacks.apgd(logits_fn, x, y, KEY, num_steps=8, loss=losses.margin, **options)]
  for result in results:
    np.testing.assert_array_equal(result.x[:, ~mask], x[:, ~mask])
    np.testing.assert_allclose((x - result.x) @ w, lost, rtol=1e-4)
  if norm != 'linf':
    return
  # The nearest point of the plane is its distance over the dual norm away.
  shifted = lambda z: logits_fn(z) + jnp.array([1., -1.]) * (logits_fn(x)[:, 1:] - .1)
  distance = .1 / np.linalg.norm(w, dual)
  result = attacks.fab(shifted, x, y, num_steps=8, **options)
  np.testing.assert_allclose(-result.loss, distance, rtol=.06)


@pytest.mark.parametrize('norm, order', [('l2', 2), ('l1', 1)])
def test_samples_fill_the_ball_of_the_free_entries(norm, order):
  # The share of a d-dimensional ball within half its radius is 2^-d: 1/8 of 4,000, give or take 4 standard
  # deviations of .0052.
  mask = np.arange(D) % 3 == 1
  sample = functools.partial(getattr(norms_lib, norm).sample, shape=(D,), epsilon=jnp.float32(2.))
  points = np.asarray(jax.vmap(lambda key: sample(key, free=mask))(jax.random.split(KEY, 4000)))
  assert mask.sum() == 3 and (points[:, ~mask] == 0).all()
  length = np.linalg.norm(points, order, axis=1)
  assert length.max() <= 2 + 1e-5
  assert abs(np.mean(length < 1) - .125) < .021


@pytest.mark.parametrize('name', ATTACKS)
def test_an_example_without_free_entries_stays_as_it_is(name):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = ATTACKS[name](model, X, Y, KEY, epsilon=.4, index=np.arange(N), mask=MASK & (X[:, :1] != X[2, 0]))
  np.testing.assert_array_equal(found.x[2], X[2])
  assert np.isfinite(found.x).all() and (found.x[:2] != X[:2]).any()
  if name == 'autoattack':
    assert found.robust[2] and not any('zero gradients' in line for line in found.warnings)
  with pytest.warns(UserWarning, match='no entry may change: the mask is 0') if name != 'fab' else (
      warnings.catch_warnings()):
    found = ATTACKS[name](model, X, Y, KEY, epsilon=.4, index=np.arange(N), mask=0 * MASK)
  np.testing.assert_array_equal(found.x, X)


def test_the_whole_range_within_a_mask_is_no_mistake():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    ATTACKS['pgd'](model, X, Y, KEY, epsilon=1., step_size=.3, mask=MASK)
  with pytest.warns(UserWarning, match='epsilon = 8 covers the whole input domain'):
    ATTACKS['pgd'](model, X, Y, KEY, epsilon=8., mask=MASK)


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('options, message', [
    (dict(mask=np.ones((N, 1, D))), r'mask of shape \(5, 1, 8\): use an array that broadcasts with x, '),
    (dict(mask=np.ones(4)), r'mask of shape \(4,\)'),
    (dict(mask=1), r'mask of shape \(\)'),
    (dict(mask=255 * MASK), 'mask reaches from 0 to 255: use 1 where an entry may change, else 0'),
    (dict(mask=np.full(D, np.nan)), 'mask reaches from nan to nan'),
    (dict(bounds=(np.zeros(3), 1.)), r'bounds of shape \(3,\): use numbers, or arrays that broadcast with x'),
    (dict(bounds=(0., np.ones((4, D)))), r'bounds of shape \(4, 8\)'),
    (dict(bounds=(.5, .5)), r'bounds = 0\.5\.\.0\.5: use the smallest and the largest'),
    (dict(bounds=(np.zeros(D), np.arange(D) - 1.)), r'bounds = 0\.\.-1: use'),
    (dict(bounds=(X + .5, X + .5)), 'x reaches from'),
    (dict(x=np.where(MASK, X, np.nan), mask=MASK), 'x is NaN in 5 of 5 examples')])
def test_invalid_masks_and_bounds_are_named(name, options, message):
  options = dict(x=X, index=np.arange(N), epsilon=.1) | options
  with pytest.raises(ValueError, match=message) as caught:
    ATTACKS[name](model, y=Y, key=KEY, **options)
  assert '\n' not in str(caught.value)


def test_axes_of_masks_and_channel_bounds_are_advised():
  x = np.full((N, 3, 4, 4), .5, np.float32)
  flat = lambda x: x.reshape(len(x), -1)[:, :3]
  with pytest.raises(ValueError, match=r'bounds of shape \(3,\).*\.reshape\(-1, 1, 1\) for channels first'):
    attacks.fgsm(flat, x, Y * 0, epsilon=.1, bounds=(np.zeros(3), 1.))
  # Four images [4, 4, 4] would fit a mask [H, W] of each, and be cut along other axes.
  for shape in ((N, 3, 4, 4), (N, 4, 4, 4)):
    with pytest.raises(ValueError, match=r'mask of shape \(4, 4\).*\[\.\.\., None\] adds a last axis'):
      attacks.fgsm(flat, np.full(shape, .5, np.float32), Y * 0, epsilon=.1, mask=np.ones((4, 4)))


def test_state_of_another_mask_is_refused(tmp_path):
  run = lambda mask: attacks.autoattack(
      model, X, Y, KEY, epsilon=.1, attacks=('square',), num_queries=10, batch_size=3, mask=mask,
      state_path=tmp_path / 'state.npz')
  run(MASK)
  with pytest.raises(ValueError, match=r'another evaluation \(different bounds\)'):
    run(~MASK)


@ALL
def test_epsilon_zero_is_quiet_and_changes_nothing(name, norm):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = ATTACKS[name](model, X, Y, KEY, epsilon=0., norm=norm, index=np.arange(N), mask=MASK)
  np.testing.assert_array_equal(found.x, X)


def test_squares_of_a_masked_image_cover_its_free_part():
  # With windows anywhere in the image, a window of 3 pixels would meet this patch in 1 of 10 queries.
  mask = np.zeros((9, 7, 1), np.float32)
  mask[5:8, 2:4] = 1
  x, y = np.full((1, 9, 7, 2), .5, np.float32), np.array([0])
  logits_fn = lambda x: jnp.stack([jnp.ones(len(x)), jnp.abs(x - .5).sum((1, 2, 3)) - 9.], axis=1)
  # In L1 a projection leaves some entries as they are.
  for norm, epsilon, share in (('linf', .3, .9), ('l2', 1., .9), ('l1', 3., .2)):
    attack = square_stepper(norm=norm, num_queries=30)
    problem = _stepper.make_problem(x, y, KEY, epsilon=epsilon, mask=mask)
    free = _free_lines(tuple(bound[0] for bound in problem.bounds), x[0], (9, 7, 2))
    assert [tuple(map(int, lines)) for lines in free] == [(5, 3), (2, 2)]
    _, state = _stepper.run(logits_fn, problem, stepper=attack)
    change = np.abs(np.asarray(state.x_adv - x))[0]
    assert (change[mask[..., 0] == 0] == 0).all() and (change[5:8, 2:4] > 0).mean() > share
  for draw in (0., .5, .999):
    for side, length, begin, room in ((3, 9, 5, 3), (2, 7, 2, 2), (5, 9, 5, 3), (9, 9, 5, 3), (1, 9, 4, 4)):
      place = int(_patches.first(jnp.float32(draw), side, length, begin, room))
      assert 0 <= place <= length - side
      inside, covers = begin <= place <= begin + room - side, place <= begin and place + side >= begin + room
      assert inside or covers

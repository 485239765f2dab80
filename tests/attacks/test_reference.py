"""The numbers of the released code of AutoAttack, in float64, where rounding decides nothing.

They were written by `python tests/attacks/make_reference.py` with pyautoattack 0.2.0, which the authors
publish, and torch 2.13.0. Commit a392200 of github.com/fra31/auto-attack gives the same numbers.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _hyperplane, _patches, _stepper, losses, norms
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.fab import fab
from at_jax.attacks.square import _apply, sides
from at_jax.attacks.square import stepper as square_stepper
from tests.fixtures.reference_numbers import LOSSES, NUMBERS

EPSILON = {'Linf': .1, 'L2': .25, 'L1': .6}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def small_network():
  random = np.random.RandomState(0)
  w1, w2 = random.randn(12, 16), random.randn(16, 5)
  x = random.uniform(size=(6, 1, 3, 4))
  logits_fn = lambda x: jnp.tanh(x.reshape(len(x), -1) @ w1) @ w2
  return logits_fn, jnp.asarray(x), jnp.array(NUMBERS['y']), jnp.array(NUMBERS['target'])


def planes():
  random = np.random.RandomState(1)
  points, normals = random.uniform(size=(40, 12)), random.randn(40, 12)
  points = np.clip(1.6 * points - .3, 0, 1)
  normals = normals * (random.uniform(size=normals.shape) < .8)
  values = (points * normals).sum(1) + random.randn(40)
  return points, normals, values, random.randn(40, 12)


@pytest.mark.parametrize('norm, loss, large', [
    *((norm, loss, False) for norm in EPSILON for loss in LOSSES), ('L1', 'ce', True)])
def test_apgd_follows_the_reference_step_by_step(norm, loss, large):
  logits_fn, x, y, target = small_network()
  targeted = loss == 'dlr-targeted'
  attack = apgd_stepper(
      norm=norm.lower(), loss=LOSSES[loss], targeted=targeted, large_start=large)
  problem = _stepper.make_problem(x, y, jax.random.key(0), epsilon=EPSILON[norm], target=target)
  state = _stepper.begin(problem, stepper=attack)
  if norm == 'L1':
    box, radius = (-x, 1 - x), .6 * (3 if large else 1)
    project = jax.vmap(lambda d, low, high: norms.project_l1_box(d, radius, low, high))
    start = x + project(jnp.full_like(x, .01), *box)
  else:
    start = jnp.clip(x + .05 * jnp.sin(jnp.arange(72.)).reshape(x.shape), 0, 1)
  state = state._replace(x=start)
  step = jax.jit(lambda state: attack.step(logits_fn, problem, state))
  trace, begins = [], (0, 31, 62) if large else (0,)
  for count in range(103 if large else 101):
    state = step(state)
    trace.append(state.loss_best if count in begins else state.loss_last)
  numbers = NUMBERS[f'apgd {norm} {loss}' + ' large start' * large]
  # Where the prediction is wrong DLR has poles, and rounding decides on which side of one it lands:
  # an example is followed until its loss first exceeds 1. The others have none. Nine digits are kept
  # in the file; two of them are lost in 100 steps.
  follows = np.maximum.accumulate(numbers['losses'], axis=0) <= (1 if loss == 'dlr' else np.inf)
  assert follows.mean() > .6
  trace, expected = (np.where(follows, t, 0) for t in (trace, numbers['losses']))
  np.testing.assert_allclose(trace, expected, rtol=0, atol=1e-6)
  best, expected = (np.where(follows[-1], t, 0) for t in (state.loss_best, numbers['best']))
  np.testing.assert_allclose(best, expected, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(~state.found, numbers['correct'])


def test_dlr_losses_equal_the_reference():
  numbers = {name: np.array(value) for name, value in NUMBERS['dlr'].items()}
  given = numbers['logits'], numbers['y']
  # Nine digits of the logits are kept, of which the ratio of two small differences loses some.
  np.testing.assert_allclose(losses.dlr(*given), numbers['dlr'], rtol=1e-6)
  np.testing.assert_allclose(
      losses.targeted_dlr(*given, numbers['target']), numbers['targeted'], rtol=1e-6)
  assert (numbers['dlr'] > 1).any() and (numbers['dlr'] < 0).any()


@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('norm', EPSILON)
def test_fab_finds_the_points_of_the_reference(norm, targeted):
  logits_fn, x, y, target = small_network()
  result = fab(logits_fn, x, y, epsilon=jnp.inf, norm=norm.lower(), num_steps=20,
                   target=target if targeted else None)
  np.testing.assert_allclose(result.x, NUMBERS[f'fab {norm} {targeted}'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_plane_projection_equals_the_reference(norm):
  points, normals, values, _ = planes()
  excess = (points * normals).sum(1) - values
  project = jax.vmap(lambda x, w, e: _hyperplane.project(x, w, e, (0., 1.), norm=norm))
  np.testing.assert_allclose(
      project(points, normals, excess), NUMBERS[f'projection {norm}'], rtol=0, atol=1e-7)


def test_l1_box_projection_equals_the_reference():
  points, _, _, moves = planes()
  ours = jax.vmap(lambda d, x: norms.project_l1_box(d, 1., -x, 1 - x))(moves, points)
  np.testing.assert_allclose(ours, NUMBERS['projection l1 box'], rtol=0, atol=1e-7)


@pytest.mark.parametrize('norm, epsilon', [('l2', .5), ('l1', 6.)])
def test_square_windows_equal_the_reference(norm, epsilon):
  numbers = {name: np.array(value) for name, value in NUMBERS[f'square {norm}'].items()}
  x, draws = numbers['x'], numbers['draws']
  into = jax.jit(lambda change: _apply(norm, change, x, epsilon, (0., 1.)))
  # A start of 5 × 5 tiles, then a query for every four places.
  tiles, queries = draws[:25], draws[25:]
  grid = np.pad(tiles.reshape(5, 5, -1), ((0, 6), (0, 6), (0, 0)))
  start = _patches.tiling(x.shape, jnp.asarray(grid), norm)
  point = into(start)
  np.testing.assert_allclose(point, numbers['start'], rtol=0, atol=1e-8)
  move = jax.jit(_patches.move, static_argnames='norm')
  table = _patches.odd_sides(sides(len(queries), .8, 121), x.shape)
  for side, places, draw in zip(table[1:], numbers['places'].reshape(-1, 4), queries, strict=True):
    eta = _patches.patch(side, norm)
    point = into(move(point - x, side, eta, epsilon, places, draw, norm=norm))
  # Nine digits are kept in the file, of x as well.
  np.testing.assert_allclose(point, numbers['end'], rtol=0, atol=1e-7)


@pytest.mark.parametrize('norm', [
    'linf', *(pytest.param(norm, marks=pytest.mark.long) for norm in ('l2', 'l1'))])
def test_square_accepts_the_same_proposals_as_the_reference(norm):
  numbers, points, best = NUMBERS['square keeps'][norm], [], []
  attack = square_stepper(norm=norm, num_queries=len(numbers['margins']) - 1)
  problem = _stepper.make_problem(
      np.full((1, 28, 28, 3), .5), np.array([0]), jax.random.key(0), epsilon=.1)
  state = _stepper.begin(problem, stepper=attack)
  for margin in numbers['margins']:  # the model says what comes next, whatever it is asked about
    state = attack.step(lambda x: points.append(x) or jnp.array([[margin, 0.]]), problem, state)
    which, = [n for n, point in enumerate(points) if jnp.array_equal(point, state.x_adv)]
    best.append(which)
  assert best == numbers['best']

"""FMN against the exact distance of a plane, its own properties, and adv-lib."""

import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks.fmn import stepper
from tests.fixtures.bisection import bisect

ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1, 'l0': 0}
N, D = 12, 10
RANDOM = np.random.RandomState(3)
W = (RANDOM.choice([-1, 1], D) * np.linspace(.5, 2, D)).astype(np.float32)
INPUTS = RANDOM.uniform(size=(N, D)).astype(np.float32)
# Many entries are at the bound to which the attack would move them.
INPUTS = np.where(RANDOM.uniform(size=INPUTS.shape) < .4, W > 0, INPUTS).astype(np.float32)
MARGIN = .12 * np.abs(W).sum()
CLASS_0 = np.zeros(N, int)
W1, W2 = RANDOM.normal(size=(D, 8)).astype(np.float32), RANDOM.normal(size=(8, 4)).astype(np.float32)
LABELS = np.array((jnp.tanh((INPUTS - .5) @ W1) @ W2).argmax(1))
LABELS[0] = (LABELS[0] + 1) % 4  # the first input is misclassified


def plane(x):
  """Two classes with the margin MARGIN − w · (x − input), each example with its own plane."""
  offset = (INPUTS @ W)[:len(x)] + MARGIN
  return jnp.stack([jnp.zeros(len(x)), jnp.sum(x * W, axis=1) - offset], axis=1)


def network(x):
  return jnp.tanh((x - .5) @ W1) @ W2


def largest_gain(norm, radius, room):
  """max w · δ over ‖δ‖ ≤ radius within the bounds, room being the distance to them along sign(w)."""
  size = np.abs(W).astype(float)
  if norm == 'linf':
    return size @ np.minimum(radius, room)
  if norm == 'l2':  # δ = min(λ|w|, room)
    scale = bisect(lambda t: np.linalg.norm(np.minimum(t * size, room)) - radius, 0, 1e3)
    return size @ np.minimum(scale * size, room)
  order = np.argsort(-size)  # the steepest entries first
  before = np.cumsum(room[order]) - room[order]
  return size[order] @ np.clip(radius - before, 0, room[order])


@pytest.mark.parametrize('norm, dual', [('linf', 1), ('l2', 2), ('l1', np.inf)])
def test_the_distance_of_a_plane_is_found(norm, dual):
  run = lambda **bounds: attacks.fmn(plane, INPUTS, CLASS_0, norm=norm, step_size=1., **bounds)
  # Without bounds it is the margin over the dual norm of w.
  np.testing.assert_allclose(run(bounds=(-9., 9.)).radius, MARGIN / np.linalg.norm(W, dual), rtol=1e-3)
  # With bounds it is where the largest gain equals the margin; one example cannot gain as much.
  result, room = run(), np.where(W > 0, 1 - INPUTS, INPUTS).astype(float)
  exact = np.array([bisect(lambda radius: largest_gain(norm, radius, room[i]) - MARGIN, 0, 99)
                    for i in range(N)])
  assert (exact > 98).sum() == 1
  np.testing.assert_allclose(result.radius, np.where(exact > 98, np.inf, exact), rtol=2e-3)
  assert result.x.min() >= 0 and result.x.max() <= 1


def test_the_fewest_entries_that_cross_a_plane_are_found():
  # From the middle each entry gains at most |w|/2, so the steepest are taken first.
  x, gains = np.full((N, D), .5, np.float32), np.cumsum(np.sort(np.abs(W))[::-1]) / 2
  margins = np.linspace(.1, .9, N).astype(np.float32) * gains[-1]
  logits_fn = lambda z: jnp.stack([jnp.zeros(N), (z - x) @ W - margins], axis=1)
  result = attacks.fmn(logits_fn, x, CLASS_0, norm='l0')
  np.testing.assert_array_equal(result.radius, 1 + np.searchsorted(gains, margins))
  np.testing.assert_array_equal((result.x != x).sum(1), result.radius)


@pytest.mark.parametrize('norm', ORDER)
def test_radius_is_that_of_a_misclassified_point(norm):
  run = lambda x, y, **options: attacks.fmn(network, x, y, norm=norm, num_steps=30, **options)
  result = run(INPUTS, LABELS)
  assert np.isfinite(result.radius).all() and result.radius[0] == 0
  np.testing.assert_array_equal(result.x[0], INPUTS[0])
  assert (result.radius[1:] > 0).all() and (network(result.x).argmax(1) != LABELS).all()
  np.testing.assert_allclose(
      np.linalg.norm(np.asarray(result.x) - INPUTS, ORDER[norm], axis=1), result.radius, rtol=1e-6)
  # Each example for itself: in another order, each with its own step size and bounds.
  order, step_size = np.arange(N)[::-1], np.linspace(.5, 2, N)
  mask = (np.arange(N)[:, None] + np.arange(D)) % 3 > 0
  mask[1] = False  # nothing may change
  masked = run(INPUTS, LABELS, step_size=step_size, mask=mask)
  moved = run(INPUTS[order], LABELS[order], step_size=step_size[order],
              bounds=tuple(np.where(mask, bound, INPUTS)[order] for bound in (0, 1)))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), masked, moved)
  np.testing.assert_array_equal(masked.x[~mask], INPUTS[~mask])
  assert np.isinf(masked.radius[1]) and not np.array_equal(masked.x, result.x)


def test_fmn_composes_inside_jit_and_vmap():
  run = lambda step_size: attacks.fmn(network, INPUTS, LABELS, num_steps=3, step_size=step_size)
  sizes = jnp.array([.3, 1.])
  curve = jax.jit(jax.vmap(run))(sizes).radius
  np.testing.assert_allclose(curve, [run(size).radius for size in sizes], rtol=1e-5)


def test_ties_and_broken_models_have_the_right_radius():
  x, y = np.full((3, 4), .5, np.float32), np.zeros(3, int)
  flat = attacks.fmn(lambda x: jnp.ones((len(x), 2)), x, y, num_steps=2)
  assert np.isinf(flat.radius).all()  # argmax takes the first of equal logits, which is y
  np.testing.assert_array_equal(flat.x, x)
  nan = attacks.fmn(lambda x: x * jnp.nan, x, y, num_steps=2)
  assert (nan.radius == 0).all()
  # The boundary goes through the input.
  tie = attacks.fmn(lambda x: jnp.stack([x[:, 1] - x[:, 0], x[:, 0] - x[:, 1]], axis=1), x, y)
  assert (tie.radius < 1e-4).all()
  # A class with a logit of −∞ is never predicted.
  only = attacks.fmn(lambda x: jnp.stack([x[:, 0], jnp.full(len(x), -jnp.inf)], axis=1), x, y, num_steps=2)
  assert np.isinf(only.radius).all() and np.isfinite(only.x).all()


def test_the_default_step_size_is_the_range_of_the_inputs():
  start = lambda bounds: stepper(norm='linf').init(attacks._stepper.make_problem(
      INPUTS, LABELS, jax.random.key(0), epsilon=1., bounds=bounds)).step_size
  rows = np.zeros((N, 1)), np.arange(1, N + 1)[:, None]
  for bounds, width in (((0., 255.), 255), ((-np.inf, 3.), 1), (rows, np.arange(1, N + 1))):
    np.testing.assert_array_equal(start(bounds), np.broadcast_to(np.float32(width), N))


@pytest.mark.parametrize('options, message', [
    (dict(norm='l3'), r"norm = 'l3': use one of linf, l2, l1, l0"),
    (dict(num_steps=0), 'num_steps = 0: use a whole number above 0'),
    (dict(step_size=-1.), 'step_size = -1: use a number of at least 0 and finite'),
    (dict(step_size=np.ones(3)), r'step_size has shape \(3,\)'),
    (dict(mask=np.ones(3)), r'mask of shape \(3,\)')])
def test_invalid_options_of_fmn_are_named(options, message):
  with pytest.raises(ValueError, match=f'^{message}') as error:
    attacks.fmn(network, INPUTS, LABELS, **options)
  assert '\n' not in str(error.value)


def test_robust_accuracy_counts_larger_radii():
  radius = np.array([0., .1, .1, .4, np.inf], np.float32)
  curve = attacks.robust_accuracy(radius, [0., .05, .1, .3, .4, 9.])
  np.testing.assert_allclose(curve, [.8, .8, .4, .4, .2, .2])
  assert attacks.robust_accuracy(radius, .2) == np.float32(.4)
  assert attacks.robust_accuracy(radius, np.ones((2, 3))).shape == (2, 3)


@pytest.fixture
def adv_lib_fmn(monkeypatch):
  """The module of adv-lib, without the others of its packages, which need torchvision."""
  root = pytest.importorskip('adv_lib').__path__[0]
  for name in ('attacks', 'utils'):
    package = types.ModuleType(f'adv_lib.{name}')
    package.__path__ = [f'{root}/{name}']
    monkeypatch.setitem(sys.modules, package.__name__, package)
  return importlib.import_module('adv_lib.attacks.fast_minimum_norm')


# adv-lib 0.2.8. The inputs are far from the bounds, where both agree; in float64 rounding decides nothing.
@pytest.mark.long
@pytest.mark.parametrize('norm', ORDER)
def test_fmn_equals_adv_lib_step_by_step(norm, adv_lib_fmn):
  torch = pytest.importorskip('torch')
  random = np.random.RandomState(0)
  w1, w2 = 3 * random.randn(60, 24), random.randn(24, 5) / 2
  x = random.uniform(.45, .55, size=(40, 60))
  t1, t2 = torch.tensor(w1), torch.tensor(w2)
  theirs = lambda x: torch.tanh((x - .5) @ t1) @ t2
  with jax.enable_x64(True):
    ours = lambda x: jnp.tanh((x - .5) @ w1) @ w2
    y = np.array(ours(x).argmax(1))
    y[0] = (y[0] + 1) % 5
    for num_steps in (1, 2, 3, 5, 10, 40):
      result = attacks.fmn(ours, x, y, norm=norm, num_steps=num_steps)
      expected = adv_lib_fmn.fmn(theirs, torch.tensor(x), torch.tensor(y), norm=ORDER[norm], steps=num_steps)
      expected = expected.numpy()
      found = np.asarray(ours(expected).argmax(1)) != y
      np.testing.assert_array_equal(np.isfinite(result.radius), found)
      size = np.linalg.norm(expected - x, ORDER[norm], axis=1)
      np.testing.assert_allclose(result.radius[found], size[found], rtol=1e-9)
      if num_steps <= 5:  # later, two iterates may have the same distance but for rounding
        np.testing.assert_allclose(result.x, expected, rtol=0, atol=1e-9)
  assert found.all()

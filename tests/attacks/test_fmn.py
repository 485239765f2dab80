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


@pytest.mark.parametrize('norm', ['linf', *(pytest.param(norm, marks=pytest.mark.long)
                                            for norm in ('l2', 'l1', 'l0'))])
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
  assert np.isfinite(curve).sum() > 2  # more than the input that is misclassified


def test_ties_and_broken_models_have_the_right_radius():
  def logits_fn(x):
    zero, slope = jnp.zeros(len(x)), x[:, 2] - x[:, 1]
    kind = [[zero, zero], [zero, zero * jnp.nan], [slope, -slope], [zero, zero - jnp.inf]]
    return sum(jnp.where(x[:, :1] == i, jnp.stack(pair, axis=1), 0) for i, pair in enumerate(kind))

  x, y = np.array([[i, .5, .5] for i in range(4)], np.float32), np.zeros(4, int)
  found = attacks.fmn(logits_fn, x, y, mask=np.array([0, 1, 1]), bounds=(0., 4.), step_size=1.)
  # Equal logits everywhere, of which argmax takes the first, which is y; NaN, which is always wrong; a
  # boundary through the input; and a class with a logit of −∞, which is never predicted.
  np.testing.assert_array_equal(found.radius[jnp.array([0, 1, 3])], [np.inf, 0, np.inf])
  assert 0 < found.radius[2] < 1e-4
  np.testing.assert_array_equal(np.isfinite(found.x), True)
  np.testing.assert_array_equal(found.x[jnp.array([0, 1, 3])], x[[0, 1, 3]])


def test_the_default_step_size_is_the_range_of_the_inputs():
  start = lambda bounds: stepper(norm='linf').init(attacks._stepper.make_problem(
      INPUTS, LABELS, jax.random.key(0), epsilon=1., bounds=bounds)).step_size
  rows = np.zeros((N, 1)), np.arange(1, N + 1)[:, None]
  for bounds, width in (((0., 255.), 255), ((-np.inf, 3.), 1), (rows, np.arange(1, N + 1))):
    np.testing.assert_array_equal(start(bounds), np.broadcast_to(np.float32(width), N))


@pytest.mark.parametrize('options, message', [
    (dict(norm='l3'), r"norm = 'l3': use one of linf, l2, l1, l0"),
    (dict(num_steps=0), 'num_steps = 0: use a whole number above 0'),
    (dict(num_steps=1), 'num_steps = 1: use at least 2'),
    (dict(step_size=-1.), 'step_size = -1: use a number of at least 0 and finite'),
    (dict(step_size=0.), 'step_size = 0: use a number above 0, or leave it out$'),
    (dict(step_size=np.arange(float(N))), 'step_size = 0: use a number above 0'),
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
  assert attacks.robust_accuracy(radius, np.inf) == 0
  np.testing.assert_allclose(jax.jit(attacks.robust_accuracy)(radius, .2), .4)


@pytest.mark.parametrize('radius, epsilon, message', [
    ([.1, np.nan], .1, 'radius = nan: use a number of at least 0'),
    ([-.1], .1, 'radius = -0.1: use a number of at least 0'),
    ([.1], [.1, np.nan], 'epsilon = nan: use a number of at least 0'),
    ([.1], -.1, 'epsilon = -0.1: use a number of at least 0'),
    ([.1], '8/255', "epsilon = '8/255': use a number, without quotes"),
    ([], .1, r'radius has shape \(0,\): give at least one example'),
    (attacks.MinimumNormResult(INPUTS, LABELS), .1, 'radius is a MinimumNormResult: give its field radius')])
def test_invalid_radii_of_a_curve_are_named(radius, epsilon, message):
  with pytest.raises(ValueError, match=f'^{message}') as error:
    attacks.robust_accuracy(radius, epsilon)
  assert '\n' not in str(error.value)


@pytest.fixture
def adv_lib_fmn(monkeypatch):
  """The module of adv-lib, without the others of its packages, which need torchvision."""
  root = pytest.importorskip('adv_lib').__path__[0]
  for name in ('attacks', 'utils'):
    package = types.ModuleType(f'adv_lib.{name}')
    package.__path__ = [f'{root}/{name}']
    monkeypatch.setitem(sys.modules, package.__name__, package)
  return importlib.import_module('adv_lib.attacks.fast_minimum_norm')


# adv-lib 0.2.8, in float64. In L∞, L2 and L1 the inputs are far from the bounds, where both agree but for the
# least growth of ε. Without that, rounding decides whether a point just before the boundary crosses it.
@pytest.mark.long
@pytest.mark.parametrize('norm', ORDER)
def test_fmn_equals_adv_lib_step_by_step(norm, adv_lib_fmn, monkeypatch):
  torch = pytest.importorskip('torch')
  random = np.random.RandomState(0)
  w1, w2 = (.25 if norm == 'l0' else 3) * random.randn(60, 24), random.randn(24, 5) / 2
  x = .5 + (.2 if norm == 'l0' else .05) * random.uniform(-1, 1, size=(40, 60))
  t1, t2 = torch.tensor(w1), torch.tensor(w2)
  monkeypatch.setattr(sys.modules['at_jax.attacks.fmn'], '_LEAST_GROWTH', 0.)
  with jax.enable_x64(True):
    logits_fn = lambda x: jnp.tanh((x - .5) @ w1) @ w2
    y = np.array(logits_fn(x).argmax(1))
    y[0] = (y[0] + 1) % 5

    def compare(num_steps):
      """Both radii, and the largest difference between points that both found."""
      ours = attacks.fmn(logits_fn, x, y, norm=norm, num_steps=num_steps)
      theirs = adv_lib_fmn.fmn(lambda x: torch.tanh((x - .5) @ t1) @ t2, torch.tensor(x), torch.tensor(y),
                               norm=ORDER[norm], steps=num_steps).numpy()
      found = np.asarray(logits_fn(theirs).argmax(1)) != y
      radius = np.where(found, np.linalg.norm(theirs - x, ORDER[norm], axis=1), np.inf)
      return np.asarray(ours.radius), radius, np.abs(ours.x - theirs)[found].max()

    for num_steps in (2, 3, 5, 10, 40):
      ours, theirs, difference = compare(num_steps)
      found = np.isfinite(theirs)
      np.testing.assert_allclose(ours[found], theirs[found], rtol=1e-9, atol=1e-12)
      assert difference < 1e-9 or num_steps > 5  # later, two iterates may differ in distance by rounding only
    assert found.mean() > .8
    monkeypatch.undo()
    ours, theirs, _ = compare(80)
    assert np.isfinite(ours).all() and np.median(ours) <= 1.001 * np.median(theirs)

"""Projections against slow reference computations on random inputs."""

import warnings

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _hyperplane
from at_jax.attacks import norms as norms_lib
from tests.fixtures import analytic_models, rounding
from tests.fixtures.bisection import bisect

D = 7
# XLA takes subnormal numbers for zero.
unit = st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=D, max_size=D)
real = st.lists(st.floats(-4, 4, width=32), min_size=D, max_size=D)
radius = st.floats(0, 5, width=32)
few = hypothesis.settings(max_examples=60)
_project = jax.jit(_hyperplane.project, static_argnames='norm')
_l1_box = jax.jit(norms_lib.project_l1_box)
_l1 = jax.jit(norms_lib.l1.project)


@few
@hypothesis.given(real, unit, radius)
def test_l1_box_is_the_nearest_point(move, x, epsilon):
  move, x = np.array(move, np.float32), np.array(x, np.float32)
  ours = np.asarray(_l1_box(move, epsilon, -x, 1 - x), np.float64)
  assert np.abs(ours).sum() <= epsilon + 1e-5
  assert np.all(x + ours >= -1e-6) and np.all(x + ours <= 1 + 1e-6)
  move = move.astype(np.float64)
  room = np.where(move > 0, 1. - x, x)
  rest = lambda shrink: np.clip(np.abs(move) - shrink, 0, room)
  shrink = 0 if rest(0).sum() <= epsilon else bisect(lambda t: epsilon - rest(t).sum(), 0, 5)
  np.testing.assert_allclose(ours, np.sign(move) * rest(shrink), atol=1e-5)


@few
@hypothesis.given(real, radius)
def test_l1_projection_is_the_nearest_point(move, epsilon):
  move = np.array(move, np.float32)
  ours = np.asarray(_l1(move, epsilon), np.float64)
  rest = lambda shrink: np.maximum(np.abs(move.astype(np.float64)) - shrink, 0)
  shrink = 0 if rest(0).sum() <= epsilon else bisect(lambda t: epsilon - rest(t).sum(), 0, 5)
  np.testing.assert_allclose(ours, np.sign(move) * rest(shrink), atol=1e-5)


def test_l1_projection_of_a_far_point_is_in_the_ball():
  # λ has the precision of |v|: with v 3e5 radii away its rounding alone is a tenth of the radius.
  move, epsilon = np.linspace(-1e4, 1e4, D).astype(np.float32) ** 3 / 1e8, np.float32(.03)
  for ours in (_l1(move, epsilon), _l1_box(move + 9e3, epsilon, -np.ones(D), np.ones(D))):
    total = np.abs(np.asarray(ours, np.float64)).sum()
    assert .5 * epsilon < total <= epsilon * (1 + 16 * D * 2**-24), total


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@few
@hypothesis.given(x=unit, normal=real, excess=st.floats(-9, 9, width=32))
def test_plane_projection_is_the_smallest_move(norm, x, normal, excess):
  x, normal = np.array(x, np.float32), np.array(normal, np.float32)
  ours = np.asarray(_project(x, normal, excess, (0., 1.), norm=norm), np.float64)
  assert np.all(x + ours >= -1e-6) and np.all(x + ours <= 1 + 1e-6)
  assert np.all(ours[normal == 0] == 0)
  x, w = x.astype(np.float64), np.abs(normal.astype(np.float64))
  room = np.where(normal * np.where(excess >= 0, 1, -1) > 0, x, 1 - x)
  reach = (w * room).sum()
  assert abs(abs((normal * ours).sum()) - min(abs(excess), reach)) <= 1e-4
  if reach <= abs(excess) + 1e-4 or w.max() < 1e-3:
    return
  if norm == 'l1':
    order, left, length = np.argsort(-w, kind='stable'), abs(excess), 0.
    for i in order:
      if w[i] > 0:
        step = min(room[i], left / w[i])
        left, length = left - step * w[i], length + step
    assert abs(np.abs(ours).sum() - length) <= 1e-4 * max(1, length)
    return
  move = {'linf': lambda t: np.minimum(t, room), 'l2': lambda t: np.minimum(t * w, room)}[norm]
  t = bisect(lambda t: (w * move(t)).sum() - abs(excess), 0, 1e7)
  # Where the sum is nearly flat in t, t is not determined in float32; its length is.
  size = {'linf': lambda v: np.abs(v).max(), 'l2': lambda v: np.sqrt((v * v).sum())}[norm]
  assert abs(size(ours) - size(move(t))) <= 1e-3


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@few
@hypothesis.given(x=unit, normal=real, excess=st.floats(-9, 9, width=32))
def test_unbounded_plane_distance_is_the_dual_norm(norm, x, normal, excess):
  # Hölder: the nearest point of a plane is |excess| over the dual norm of its normal away.
  x, normal = np.array(x, np.float32), np.array(normal, np.float32)
  if np.abs(normal).max() < 1e-3:
    return
  ours = np.asarray(_project(x, normal, excess, (-np.inf, np.inf), norm=norm), np.float64)
  length, dual = {'linf': (np.inf, 1), 'l2': (2, 2), 'l1': (1, np.inf)}[norm]
  expected = abs(excess) / np.linalg.norm(normal.astype(np.float64), dual)
  np.testing.assert_allclose(np.linalg.norm(ours, length), expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose((normal * ours).sum(), -excess, rtol=1e-4, atol=1e-6)


def test_root_search_does_not_alternate_between_breaks():
  # f is flat, steep between .6 and .65, flat again: from either flat, Newton leaves the bracket.
  def f(t):
    return jnp.clip(40 * (t - .625), -1, 1) + .01 * t, jnp.where(jnp.abs(t - .625) < .025, 40.01, .01)
  t = _hyperplane.find_root(f, jnp.array(0.), jnp.array(2.))
  np.testing.assert_allclose(t, 25 / 40.01, rtol=1e-5)


def test_a_plane_with_a_tiny_normal_is_reached():
  # Gradients of confident models are below 1e-12; squares of these are zero in float32.
  slope = np.arange(1, D + 1, dtype=np.float32)
  for norm in ('linf', 'l2', 'l1'):  # the programs of test_plane_projection_is_the_smallest_move
    move = _project(np.full(D, .5, np.float32), slope * np.float32(1e-25), 1e-25, (0., 1.), norm=norm)
    np.testing.assert_allclose(-np.sum(move * slope), 1, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('name', ['apgd', 'fab', 'square'])
@hypothesis.settings(max_examples=40)
@hypothesis.given(x=st.lists(unit, min_size=3, max_size=3), epsilon=st.floats(0, 1), seed=st.integers(0, 99))
def test_attacks_leave_the_ball_by_rounding_only(name, norm, x, epsilon, seed):
  sizes = {'square': dict(num_queries=20), 'fab': dict(num_steps=5, random_start=True)}
  run = lambda x: getattr(attacks, name)(
      analytic_models.quadratic, x, np.arange(3), jax.random.key(seed), epsilon=epsilon, norm=norm,
      **sizes.get(name, dict(num_steps=9)))
  for dtype in (np.float32, np.float64):
    with jax.enable_x64(dtype == np.float64), warnings.catch_warnings():
      warnings.simplefilter('ignore')  # radii that cover all
      rounding.check_ball(run(np.array(x, dtype)).x, np.array(x, dtype), epsilon, norm)


def test_samples_of_the_l1_ball_are_uniform():
  # The share of a d-dimensional ball within half its radius is 2^-d: 1/8 of 4,000, give or take
  # 4 standard deviations of .0052.
  draw = jax.jit(jax.vmap(lambda key: norms_lib.l1.sample(key, (3,), jnp.float32(2.))))
  norms = np.abs(draw(jax.random.split(jax.random.key(0), 4000))).sum(axis=1)
  assert norms.max() <= 2 + 1e-5
  assert abs(np.mean(norms < 1) - .125) < .021

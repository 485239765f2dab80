"""Exact projection onto a hyperplane within a box in L∞, L2 and L1, without sorting."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def project(x: Array, normal: Array, excess: Array, bounds: tuple[Array, Array], *, norm: str) -> Array:
  """The smallest d with normal · (x + d) = normal · x − excess and x + d within the bounds.

  Every entry moves against sign(excess · normal), at most by the room r_i that the bounds leave. With
  w = |normal| the move is min(t, r_i) in L∞ and min(t·w_i, r_i) in L2, where t solves
  Σ w_i · move_i = |excess|. In L1 the entries of largest w_i move by all of r_i, one after the other, until
  that holds; entries of equal w_i move by the same fraction. If the box does not meet the plane, d goes
  as far towards it as the box allows. For one example; callers `jax.vmap` it. Not differentiable.

  Args:
    x: f32[...], within the bounds.
    normal: f32[...], the normal of the plane.
    excess: f32[], normal · x minus the value on the plane.
    bounds: smallest and largest value of an entry; they may be infinite.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    f32[...], d; zero if the normal is zero.

  Example:
    >>> x, normal = jnp.array([.5, .125]), jnp.array([1., 1.])
    >>> print(project(x, normal, .5, (0., 1.), norm='linf'))
    [-0.375 -0.125]

  Reference: Croce and Hein, Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary
  Attack, 2020, section 2.2 and appendix A. The paper sorts; this implementation finds t by a root search.
  """
  x, normal = jnp.asarray(x), jnp.asarray(normal)
  low, high = bounds
  # Scaled so that the largest weight is 1: gradients of confident models are far below 1e-8.
  largest = jnp.max(jnp.abs(normal))
  scale = jnp.where(largest > 0, largest, 1)
  towards = -jnp.sign(normal) * jnp.where(jnp.asarray(excess) >= 0, 1, -1)
  weight, needed = jnp.abs(normal) / scale, jnp.abs(excess) / scale
  room = jnp.where(towards < 0, x - low, jnp.where(towards > 0, high - x, 0))
  # An unbounded entry gets twice the room it would need alone, because ∞ · 0 is NaN.
  enough = jnp.where(weight > 0, 2 * needed / jnp.where(weight > 0, weight, 1), 0)
  room = jnp.where(jnp.isinf(room), enough, room)
  reached = jnp.sum(weight * room) > needed
  return towards * jnp.where(reached, _MOVES[norm](weight, room, needed), room)


def _move_along(v: Array, weight: Array, room: Array, needed: Array) -> Array:
  """The move min(t · v, room) with Σ weight · move = needed."""
  def progress(t: Array) -> tuple[Array, Array]:
    move = t * v
    free = room > move
    slope = jnp.sum(jnp.where(free, weight * v, 0))
    return jnp.sum(weight * jnp.where(free, move, room)) - needed, slope
  far = jnp.max(jnp.where(v > 0, room / jnp.where(v > 0, v, 1), 0))
  far = jnp.minimum(far, jnp.finfo(weight.dtype).max)
  return jnp.minimum(find_root(progress, jnp.zeros_like(needed), far) * v, room)


def _move_l1(weight: Array, room: Array, needed: Array) -> Array:
  # The weights are not negative, so their bits, read as integers, have the same order. Bisection over
  # the bits finds the weight at which to stop in as many passes as there are bits.
  whole = jnp.dtype(f'int{weight.dtype.itemsize * 8}')
  bits = jax.lax.bitcast_convert_type(weight, whole)

  def progress(stop: Array) -> Array:
    return jnp.sum(jnp.where(bits > stop, weight * room, 0))

  def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = low + (high - low) // 2
    enough = progress(middle) <= needed
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  ends = jnp.array(-1, whole), jnp.max(bits)
  _, stop = jax.lax.fori_loop(0, weight.dtype.itemsize * 8, halve, ends)
  last = bits == stop
  rest = jnp.sum(jnp.where(last, weight * room, 0))
  share = jnp.clip((needed - progress(stop)) / jnp.where(rest > 0, rest, 1), 0, 1)
  return jnp.where(bits > stop, room, jnp.where(last, share * room, 0))


_MOVES = {
    'linf': lambda weight, *rest: _move_along(jnp.ones_like(weight), weight, *rest),
    'l2': lambda weight, *rest: _move_along(weight, weight, *rest),
    'l1': _move_l1}
_MOST_STEPS = 100


def find_root(f: Callable[[Array], tuple[Array, Array]], low: Array, high: Array) -> Array:
  """The root t of f by Newton's method, kept within a bracket by bisection.

  It starts at `low`, so a concave f needs no bisection. For one example; callers `jax.vmap` it. Not
  differentiable (a while loop).

  Args:
    f: maps t f32[] to (f(t), f'(t)); nondecreasing and piecewise linear, with either slope at a break point.
    low: f32[], at most the root.
    high: f32[], at least the root.

  Returns:
    f32[], the root to the precision of its dtype; the nearer end of the bracket if it contains no root.

  Example:
    >>> print(find_root(lambda t: (jnp.minimum(t, 1) + t - 3, jnp.where(t < 1, 2., 1.)),
    ...                 jnp.array(0.), jnp.array(9.)))
    2.0

  Reference: for the L1 ball, Michelot, A Finite Algorithm for Finding the Projection of a Point onto the
  Canonical Simplex of R^n, 1986.
  """
  low, high = jnp.asarray(low), jnp.asarray(high)
  resolution = 2 * jnp.finfo(low.dtype).eps

  def newton(carry):
    t, low, high, steps, _ = carry
    value, slope = f(t)
    beyond = value > 0
    low, high = jnp.where(beyond, low, t), jnp.where(beyond, t, high)
    flat = slope == 0
    candidate = t - value / jnp.where(flat, 1, slope)
    small = ~flat & (jnp.abs(candidate - t) <= resolution * jnp.abs(candidate))
    # Strictly inside the bracket; otherwise Newton's method could alternate between two break points.
    inside = ~flat & (candidate > low) & (candidate < high)
    middle = low + (high - low) / 2
    closed = (middle <= low) | (middle >= high)
    candidate = jnp.where(small | (value == 0), t, jnp.where(inside, candidate, middle))
    going = ~small & (value != 0) & ~(closed & ~inside) & (steps < _MOST_STEPS)
    return candidate, low, high, steps + 1, going

  start = (low, low, high, jnp.array(0), high > low)
  return jnp.clip(jax.lax.while_loop(lambda carry: carry[-1], newton, start)[0], low, high)

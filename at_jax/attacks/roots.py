"""The zero of an increasing, piecewise linear function: what every exact projection here comes down to.

A projection onto an intersection of simple sets has a dual with one number, and the condition that
fixes this number is piecewise linear. The usual way sorts the break-points; Newton's method needs no
sort, only a few passes over the image, and its last step solves the right linear piece exactly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
_MOST_STEPS = 100


def root(f: Callable[[Array], tuple[Array, Array]], low: Array, high: Array) -> Array:
  """Newton's method, kept within a bracket by bisection: t with f(t) = 0.

  For one example; callers `jax.vmap` it. Not differentiable (a while loop). It starts at `low`, so
  that where f is concave no bisection is ever needed.

  Args:
    f: from t f32[] to (f(t), f'(t)), nowhere decreasing and piecewise linear; at a break-point
      either slope.
    low: f32[], below the zero (or the zero itself).
    high: f32[], above it.

  Returns:
    f32[], the zero to the precision of its dtype; the nearer end if there is none in between.

  Example:
    >>> print(root(lambda t: (jnp.minimum(t, 1) + t - 3, jnp.where(t < 1, 2., 1.)),
    ...            jnp.array(0.), jnp.array(9.)))
    2.0

  Source: for the L1 ball it is Michelot, A Finite Algorithm for Finding the Projection of a Point
  onto the Canonical Simplex of R^n, 1986; the bracket and its use for the other sets are ours.
  """
  low, high = jnp.asarray(low), jnp.asarray(high)
  resolution = 2 * jnp.finfo(low.dtype).eps

  def moving(carry):
    return carry[-1]

  def newton(carry):
    t, low, high, steps, _ = carry
    value, slope = f(t)
    beyond = value > 0
    low = jnp.where(beyond, low, t)
    high = jnp.where(beyond, t, high)
    flat = slope == 0
    candidate = t - value / jnp.where(flat, 1, slope)
    small = ~flat & (jnp.abs(candidate - t) <= resolution * jnp.abs(candidate))
    # Strictly inside, or Newton's method goes to and fro between two break-points for ever.
    inside = ~flat & (candidate > low) & (candidate < high)
    middle = low + (high - low) / 2
    closed = (middle <= low) | (middle >= high)
    candidate = jnp.where(small | (value == 0), t, jnp.where(inside, candidate, middle))
    going = ~small & (value != 0) & ~(closed & ~inside) & (steps < _MOST_STEPS)
    return candidate, low, high, steps + 1, going

  start = (low, low, high, jnp.array(0), high > low)
  t = jax.lax.while_loop(moving, newton, start)[0]
  return jnp.clip(t, low, high)

"""The sets an attack may move in: how to step, to project and to draw a start in each.

Everything here is written for *one* example of any shape; callers `jax.vmap` it. That is the point:
`‖·‖` is then the norm of one image, never of a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Ball(NamedTuple):
  """A norm ball of radius ε around zero, as three functions of one example.

  Attributes:
    project: `(delta f32[...], epsilon f32[]) -> f32[...]`, the nearest point of the ball (in the
      Euclidean distance).
    ascend: `(gradient f32[...]) -> f32[...]`, the direction of norm 1 along which a linear function
      with this gradient grows fastest; zero where the gradient is zero.
    sample: `(key, shape, epsilon f32[]) -> f32[shape]`, a point drawn uniformly from the ball.
  """
  project: Callable[[Array, Array], Array]
  ascend: Callable[[Array], Array]
  sample: Callable[..., Array]


def _project_linf(delta: Array, epsilon: Array) -> Array:
  return jnp.clip(delta, -epsilon, epsilon)


def _sample_linf(key: Array, shape: tuple[int, ...], epsilon: Array) -> Array:
  epsilon = jnp.asarray(epsilon)
  return epsilon * jax.random.uniform(key, shape, epsilon.dtype, -1, 1)


def _norm(v: Array) -> Array:
  return jnp.sqrt(jnp.sum(jnp.square(v)))


def _project_l2(delta: Array, epsilon: Array) -> Array:
  norm = _norm(delta)
  outside = norm > epsilon
  # Divides by a number that is never zero, also in the branch that `where` throws away: a 0/0 there
  # would still poison the derivative.
  return delta * jnp.where(outside, epsilon / jnp.where(outside, norm, 1), 1)


def _ascend_l2(gradient: Array) -> Array:
  # Scaled by the largest entry first: the square of a gradient below 1e-19 is zero in float32, and
  # a confident model gives such gradients.
  largest = jnp.max(jnp.abs(gradient))
  moves = largest > 0
  scaled = gradient / jnp.where(moves, largest, 1)
  return jnp.where(moves, scaled / jnp.where(moves, _norm(scaled), 1), 0)


def _sample_l2(key: Array, shape: tuple[int, ...], epsilon: Array) -> Array:
  epsilon = jnp.asarray(epsilon)
  direction_key, radius_key = jax.random.split(key)
  direction = _ascend_l2(jax.random.normal(direction_key, shape, epsilon.dtype))
  # A share r^d of a d-dimensional ball lies within r of its centre, so r = u^(1/d).
  radius = jax.random.uniform(radius_key, (), epsilon.dtype) ** (1 / max(direction.size, 1))
  return epsilon * radius * direction


linf = Ball(_project_linf, jnp.sign, _sample_linf)
l2 = Ball(_project_l2, _ascend_l2, _sample_l2)

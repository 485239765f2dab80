"""The sets an attack may move in: how to step, to project and to draw a start in each.

Everything here is written for *one* example of any shape; callers `jax.vmap` it. That is the point:
`‖·‖` is then the norm of one image, never of a batch.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from at_jax.attacks import _hyperplane

Array = jax.Array
NORMS = ('linf', 'l2', 'l1')  # the names of the balls below


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


def project_l1_box(delta: Array, epsilon: Array, lowest: Array, highest: Array) -> Array:
  """The nearest point of the L1 ball of radius ε that also lies in a box around zero.

  d = sign(v) · min(max(|v| − λ, 0), c), where c is the room the box leaves in the direction of v and
  λ ≥ 0 is the smallest number with ‖d‖₁ ≤ ε. Clipping after the projection is not the same: it leaves
  the ball less than full, which costs an attack most of its strength. Not differentiable.

  Args:
    delta: f32[...], v, one example.
    epsilon: f32[], the radius.
    lowest: f32[...] ≤ 0, the box; for images in [0, 1], −x.
    highest: f32[...] ≥ 0; for images in [0, 1], 1 − x.

  Returns:
    f32[...], the projection, exact to the precision of its dtype.

  Example:
    >>> print(project_l1_box(jnp.array([3., 2., 0.]), 1.5, -1., 1.))
    [1.  0.5 0. ]

  Source: Croce and Hein, Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers,
  2021, section 2.3; by Newton's method instead of a sort: ours.
  """
  delta = jnp.asarray(delta)
  size = jnp.abs(delta)
  room = jnp.where(delta > 0, highest, -jnp.asarray(lowest)).astype(size.dtype)

  def shortage(shrink: Array) -> tuple[Array, Array]:
    shrinking = (size > shrink) & (size - shrink < room)
    slope = jnp.sum(shrinking).astype(size.dtype)
    return epsilon - jnp.sum(jnp.clip(size - shrink, 0, room)), slope

  least = jnp.zeros((), size.dtype)
  fits = shortage(least)[0] >= 0
  shrink = _hyperplane.find_root(shortage, least, jnp.where(fits, 0, jnp.max(size)))
  return jnp.sign(delta) * jnp.clip(size - shrink, 0, room)


def _project_l1(delta: Array, epsilon: Array) -> Array:
  return project_l1_box(delta, epsilon, -jnp.inf, jnp.inf)


def _ascend_l1(gradient: Array) -> Array:
  flat = gradient.reshape(-1)
  largest = jnp.argmax(jnp.abs(flat))
  return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(gradient.shape)


def _sample_l1(key: Array, shape: tuple[int, ...], epsilon: Array) -> Array:
  epsilon = jnp.asarray(epsilon)
  sign_key, size_key = jax.random.split(key)
  signs = jax.random.rademacher(sign_key, shape, epsilon.dtype)
  # d of the d + 1 gaps between sorted uniform numbers are uniform in the simplex, and such gaps are
  # exponential numbers over their sum.
  gaps = jax.random.exponential(size_key, (math.prod(shape) + 1,), epsilon.dtype)
  return epsilon * signs * (gaps[:-1] / jnp.sum(gaps)).reshape(shape)


linf = Ball(_project_linf, jnp.sign, _sample_linf)
l2 = Ball(_project_l2, _ascend_l2, _sample_l2)
# Its `ascend` moves one entry, the one that matters most: exact, but slow in an attack. APGD takes a
# share of the entries instead.
l1 = Ball(_project_l1, _ascend_l1, _sample_l1)

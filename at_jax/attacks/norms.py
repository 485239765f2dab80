"""Norm balls: steepest ascent, projection and uniform sampling in L∞, L2 and L1.

Every function takes one example of any shape; callers `jax.vmap` it. So `‖·‖` is the norm of one image,
never of a batch.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _hyperplane

Array = jax.Array
NORMS = ('linf', 'l2', 'l1')
DUAL = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}


class Ball(NamedTuple):
  """Three functions of one example for a norm ball of radius ε around zero.

  Attributes:
    project: `(delta f32[...], epsilon f32[]) -> f32[...]`, the Euclidean projection onto the ball.
    ascend: `(gradient f32[...]) -> f32[...]`, the direction of norm 1 along which a linear function
      with this gradient grows fastest; zero where the gradient is zero.
    sample: `(key, shape, epsilon f32[]) -> f32[shape]`, a point drawn uniformly from the ball. With
      `free`, bool[shape], it is drawn from the ball of these entries, in L2 and L1; the others are 0.
  """
  project: Callable[[Array, Array], Array]
  ascend: Callable[[Array], Array]
  sample: Callable[..., Array]


def _sample_linf(key: Array, shape: tuple[int, ...], epsilon: Array, free: Any = True) -> Array:
  del free  # every entry is drawn on its own
  epsilon = jnp.asarray(epsilon)
  return epsilon * jax.random.uniform(key, shape, epsilon.dtype, -1, 1)


def length(delta: Array, norm: str) -> Array:
  """f32[], the norm of one example; `norm` is 'linf', 'l2' or 'l1'."""
  size = jnp.abs(delta)
  if norm == 'linf':
    return jnp.max(size)
  return jnp.sum(size) if norm == 'l1' else jnp.sqrt(jnp.sum(size * size))


def unit(v: Array, norm: str) -> Array:
  """f32[...], v divided by its norm; zero if v is zero."""
  # Scaled by the largest entry first: the square of a gradient below 1e-19 is zero in float32, and
  # a confident model gives such gradients.
  largest = jnp.max(jnp.abs(v))
  nonzero = largest > 0
  scaled = v / jnp.where(nonzero, largest, 1)
  return jnp.where(nonzero, scaled / jnp.where(nonzero, length(scaled, norm), 1), 0)


def free(bounds: tuple[Any, Any]) -> Any:
  """bool[...], where the bounds let an entry change; True, everywhere, if both are numbers."""
  low, high = bounds
  return low < high if np.ndim(low) or np.ndim(high) else True


def clip_to_ball(delta: Array, x: Array, epsilon: Array, bounds: tuple[Array, Array], *, norm: str) -> Array:
  """Projects x + delta onto the ball around x, and clips it to the bounds.

  In L1 the projection is onto both sets at once, because clipping afterwards would leave most of the
  radius unused.

  Args:
    delta: f32[...], the change of one example.
    x: f32[...], the input, within the bounds.
    epsilon: f32[], the radius.
    bounds: the smallest and the largest value of an input, numbers or f32[...].
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    f32[...], a point of the ball and the bounds.

  Example:
    >>> print(clip_to_ball(jnp.array([.3, -.3]), jnp.array([.5, .1]), .2, (0., 1.), norm='linf'))
    [0.7 0. ]
  """
  low, high = bounds
  if norm == 'l1':
    delta = project_l1_box(delta, epsilon, low - x, high - x)
  else:
    delta = {'linf': linf, 'l2': l2}[norm].project(jnp.where(free(bounds), delta, 0), epsilon)
  return jnp.clip(x + delta, low, high)


def _project_l2(delta: Array, epsilon: Array) -> Array:
  norm = length(delta, 'l2')
  outside = norm > epsilon
  # The divisor is never zero, not even in the branch that `where` discards: a 0/0 there would make the
  # derivative NaN.
  return delta * jnp.where(outside, epsilon / jnp.where(outside, norm, 1), 1)


def _sample_l2(key: Array, shape: tuple[int, ...], epsilon: Array, free: Any = True) -> Array:
  epsilon = jnp.asarray(epsilon)
  direction_key, radius_key = jax.random.split(key)
  direction = unit(jnp.where(free, jax.random.normal(direction_key, shape, epsilon.dtype), 0), 'l2')
  size = max(math.prod(shape), 1)
  if free is not True:
    size = jnp.maximum(jnp.sum(jnp.broadcast_to(free, shape)), 1).astype(epsilon.dtype)
  # The fraction r^d of a d-dimensional ball lies within r of its centre, so r = u^(1/d).
  radius = jax.random.uniform(radius_key, (), epsilon.dtype) ** (1 / size)
  return epsilon * radius * direction


def project_l1_box(delta: Array, epsilon: Array, lowest: Array, highest: Array) -> Array:
  """Projects onto the intersection of the L1 ball of radius ε and a box that contains zero.

  d = sign(v) · min(max(|v| − λ, 0), c), where c is the distance from zero to the box in the direction of
  v, and λ ≥ 0 is the smallest number with ‖d‖₁ ≤ ε. Clipping after the projection gives ‖d‖₁ < ε, which
  costs an attack most of its strength. Not differentiable.

  Args:
    delta: f32[...], v, the change of one example.
    epsilon: f32[], the radius.
    lowest: f32[...] ≤ 0, the lower corner of the box; for images in [0, 1], −x.
    highest: f32[...] ≥ 0, the upper corner; for images in [0, 1], 1 − x.

  Returns:
    f32[...], the projection, exact to the precision of its dtype.

  Example:
    >>> print(project_l1_box(jnp.array([3., 2., 0.]), 1.5, -1., 1.))
    [1.  0.5 0. ]

  Reference: Croce and Hein, Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers,
  2021, section 2.3. The paper sorts; this implementation uses Newton's method.
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
  left = jnp.clip(size - shrink, 0, room)
  # λ is exact relative to |v|. Where v is far outside of the ball, that would leave more than ε of v.
  total, allowed = jnp.sum(left), epsilon * (1 + 8 * size.size * float(jnp.finfo(size.dtype).epsneg))
  left = left * jnp.where(total > allowed, epsilon / jnp.where(total > allowed, total, 1), 1)
  return jnp.where(epsilon > 0, jnp.sign(delta) * left, 0)


def _ascend_l1(gradient: Array) -> Array:
  flat = gradient.reshape(-1)
  largest = jnp.argmax(jnp.abs(flat))
  return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(gradient.shape)


def _sample_l1(key: Array, shape: tuple[int, ...], epsilon: Array, free: Any = True) -> Array:
  epsilon = jnp.asarray(epsilon)
  sign_key, size_key = jax.random.split(key)
  signs = jax.random.rademacher(sign_key, shape, epsilon.dtype)
  # d of the d + 1 gaps between sorted uniform numbers are uniform in the simplex. Such gaps are
  # exponential numbers divided by their sum.
  gaps = jax.random.exponential(size_key, (math.prod(shape) + 1,), epsilon.dtype)
  gaps = jnp.where(jnp.append(jnp.broadcast_to(free, shape), True), gaps, 0)
  return epsilon * signs * (gaps[:-1] / jnp.sum(gaps)).reshape(shape)


linf = Ball(lambda delta, epsilon: jnp.clip(delta, -epsilon, epsilon), jnp.sign, _sample_linf)
l2 = Ball(_project_l2, functools.partial(unit, norm='l2'), _sample_l2)
# `ascend` changes only the entry of largest gradient: exact, but slow in an attack. APGD changes a
# fraction of the entries instead.
l1 = Ball(functools.partial(project_l1_box, lowest=-jnp.inf, highest=jnp.inf), _ascend_l1, _sample_l1)

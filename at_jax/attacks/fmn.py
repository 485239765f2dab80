"""FMN: finds the nearest misclassified point by gradient steps in a ball whose radius adapts."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _diagnostics, _gradients, _stepper, losses, norms

Array = jax.Array
NORMS = (*norms.NORMS, 'l0')
# Both decay with a cosine: the step size to this share of its first value, γ between these values.
_LAST_STEP = .01
_GAMMA = .05, .001
_LEAST_GROWTH = .001  # of ε, as long as no misclassified point is known


class MinimumNormResult(NamedTuple):
  """Result of a minimum-norm attack, one row per example.

  Attributes:
    x: f32[B, ...], the nearest misclassified point that was found; the input if there is none.
    radius: f32[B], its distance from the input: 0 if the input itself is misclassified, +inf if no
      misclassified point was found. It is an upper bound of the distance of the decision boundary.
  """
  x: Array
  radius: Array


class State(NamedTuple):
  """State of each example. Images are f32[B, ...], all others [B]."""
  count: Array
  found: Array       # whether a misclassified point within the problem's ε is known
  x_adv: Array       # nearest misclassified point so far
  distance: Array    # its distance; +inf if there is none
  x: Array
  epsilon: Array     # radius of the ball of the next step
  step_size: Array   # of the first step


def fmn(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, *, norm: str = 'linf', num_steps: int = 100,
    step_size: float | Array | None = None, bounds: tuple[float, float] = (0., 1.), mask: Array | None = None,
) -> MinimumNormResult:
  """Fast minimum-norm attack: the distance of the nearest misclassified point, for each example.

  δ ← clip(Π_ε(δ + α g / ‖g‖₂)), where g is the gradient of the margin max_{j≠y} z_j − z_y and Π_ε the
  projection onto the ball of radius ε. After each step ε adapts to the point that it reached:

    misclassified                      ε ← min((1 − γ) ε, smallest ‖δ‖ so far)
    correct, but misclassified before  ε ← (1 + γ) ε
    correct, as all points before      ε ← ‖δ‖ + |margin| / ‖g‖_*          ‖·‖_* is the dual norm

  In L0, ε counts entries: it begins at 1 and changes by at least 1. α and γ decay with a cosine, α to a
  hundredth, γ from .05 to .001. Nothing is random. Composes inside the caller's jit and vmap. On the CPU the
  steps are unrolled there, and compiling 100 takes minutes.

  Two details are not the paper's. In the last rule ε grows from max(‖δ‖, ε) by at least a thousandth, since
  bounds or rounding could stop it for good. In L1 the projection is onto the ball and the bounds at once.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], inputs within `bounds`.
    y: i32[B], true classes.
    norm: 'linf', 'l2', 'l1' or 'l0', the norm of the distance. L0 is the number of entries that change, not
      of pixels. Static.
    num_steps: number of steps, each of one gradient, at least 2, because the first one is at the input; the
      paper uses up to 1,000. Static.
    step_size: α of the first step, the L2 length of the change before the projection, a number or f32[B] in
      units of x, above 0. By default the largest distance of the two bounds, 1 for inputs in 0..1, and 1
      without bounds. Traced.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change. None lets all change.

  Returns:
    A `MinimumNormResult`. `robust_accuracy` makes a curve of it.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .4], [.2, .9], [.2, .9]]), jnp.array([0, 1, 0])
    >>> result = fmn(lambda x: x @ w, x, y)
    >>> print((100 * result.radius).round(1))
    [ 5. 35.  0.]

  Reference: Pintor et al., Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints, 2021,
  algorithm 1.
  """
  attack = stepper(norm=norm, num_steps=num_steps)
  problem = _stepper.make_problem(x, y, jax.random.key(0), epsilon=jnp.inf, bounds=bounds, mask=mask,
                                  infinite=True)
  changes = {}
  if step_size is not None:
    _arguments.check_radius(step_size, len(problem.x), 'step_size')
    _arguments.check_values(radii={'step_size': step_size})
    if _arguments.is_known(step_size) and not np.all(np.asarray(step_size)):
      raise ValueError('step_size = 0: use a number above 0, or leave it out')  # no point would move
    changes['step_size'] = jnp.broadcast_to(jnp.asarray(step_size, problem.x.dtype), problem.y.shape)
  _diagnostics.warn_of_scale(jnp.inf, problem.x, problem.bounds, 'linf', any_distance=True)
  _, state = _stepper.run(logits_fn, problem, stepper=attack, **changes)
  return MinimumNormResult(state.x_adv, state.distance)


def robust_accuracy(radius: Array, epsilon: float | Array) -> Array:
  """The share of examples without a misclassified point within ε, the curve of a minimum-norm attack.

  A(ε) = mean(radius > ε). A(0) is the clean accuracy. Each point is an upper bound of the robust accuracy,
  as that under any attack.

  Args:
    radius: f32[N], distances of the nearest misclassified points: `MinimumNormResult.radius`, of several
      batches one after the other.
    epsilon: f32[...], radii.

  Returns:
    f32[...], one share for each radius.

  Raises:
    ValueError: if there is no radius, or a radius or ε is negative or NaN.

  Example:
    >>> print(robust_accuracy(jnp.array([0., .02, .05, jnp.inf]), jnp.array([0., .03, .1])))
    [0.75 0.5  0.25]
  """
  if isinstance(radius, MinimumNormResult):
    raise ValueError('radius is a MinimumNormResult: give its field radius')
  _arguments.check_number('epsilon', epsilon)
  radius, epsilon = _arguments.as_array('radius', radius), _arguments.as_array('epsilon', epsilon)
  if not radius.size:
    raise ValueError(f'radius has shape {radius.shape}: give at least one example')
  _arguments.check_values(radii={'radius': radius, 'epsilon': epsilon}, infinite=True)
  epsilon = epsilon.astype(radius.dtype)[..., None]
  return jnp.mean(radius.reshape((1,) * (epsilon.ndim - 1) + (-1,)) > epsilon, axis=-1)


@_arguments.cached
def stepper(*, norm: str, num_steps: int = 100) -> _stepper.Stepper:
  """FMN as a `Stepper`; the same object for the same options of `fmn`.

  Example:
    >>> stepper(norm='l2').length
    100
  """
  _arguments.check_name('norm', norm, NORMS)
  _arguments.check_count('num_steps', num_steps)
  if num_steps < 2:
    raise ValueError(f'num_steps = {num_steps}: use at least 2, because the first is taken at the input')
  length = jax.vmap(functools.partial(_length, norm=norm))

  def init(problem: _stepper.Problem) -> State:
    x, none = problem.x, jnp.zeros(len(problem.x), jnp.int32)
    infinite = jnp.full(len(x), jnp.inf, x.dtype)
    epsilon = jnp.ones_like(infinite) if norm == 'l0' else infinite
    return State(none, none.astype(bool), x, infinite, x, epsilon, _stepper.each(_widest, problem, x))

  def step(logits_fn, problem: _stepper.Problem, state: State) -> State:
    gradient, _, margin, logits = _gradients.of_loss(
        logits_fn, problem, state.x, state.count, loss=losses.margin, targeted=False, eot=0)
    wrong, size = ~_stepper.is_correct(logits, problem.y), length(state.x - problem.x)
    x_adv, distance = _stepper.where(
        wrong & (size < state.distance), (state.x, size), (state.x_adv, state.distance))

    decay = (1 + jnp.cos(jnp.pi * state.count.astype(size.dtype) / num_steps)) / 2
    gamma = _GAMMA[1] + (_GAMMA[0] - _GAMMA[1]) * decay
    shrunk, grown = (1 - gamma) * state.epsilon, (1 + gamma) * state.epsilon
    if norm == 'l0':
      shrunk = jnp.maximum(jnp.minimum(state.epsilon - 1, jnp.floor(shrunk)), 0)
      grown = jnp.maximum(state.epsilon + 1, jnp.floor(grown))
    else:
      dual = jax.vmap(functools.partial(norms.length, norm=norms.DUAL[norm]))
      # The paper's ‖δ‖ + |margin| / ‖g‖_* stops growing where the bounds cut δ off, where rounding keeps a
      # point just before the boundary, and where two logits of the input tie.
      reached = jnp.maximum(size, jnp.where(jnp.isfinite(state.epsilon), state.epsilon, 0))
      least = _LEAST_GROWTH * jnp.where(reached > 0, reached, state.step_size)
      ahead = jnp.maximum(jnp.abs(margin) / jnp.maximum(dual(gradient), 1e-12), least)
      grown = jnp.where(jnp.isfinite(distance), grown, reached + ahead)
    epsilon = jnp.where(wrong, jnp.minimum(shrunk, distance), grown)
    low, high = problem.bounds
    epsilon = jnp.minimum(epsilon, length(jnp.maximum(problem.x - low, high - problem.x)))

    direction = jax.vmap(functools.partial(norms.unit, norm='l2'))(gradient)
    step_size = state.step_size * (_LAST_STEP + (1 - _LAST_STEP) * decay)
    delta = state.x - problem.x + jax.vmap(jnp.multiply)(step_size, direction)
    x = _stepper.each(functools.partial(_project, norm=norm), problem, delta, problem.x, epsilon)
    found = jnp.isfinite(distance) & (distance <= problem.epsilon)
    return State(state.count + 1, found, x_adv, distance, x, epsilon, state.step_size)

  return _stepper.Stepper(init, step, num_steps)


def _length(delta: Array, *, norm: str) -> Array:
  return jnp.sum(delta != 0).astype(delta.dtype) if norm == 'l0' else norms.length(delta, norm)


def _widest(bounds, x: Array) -> Array:
  """The largest distance of two finite bounds, or 1."""
  width = jnp.broadcast_to(bounds[1] - bounds[0], x.shape)
  widest = jnp.max(jnp.where(jnp.isfinite(width), width, 0))
  return jnp.where(widest > 0, widest, 1)


def _project(bounds, delta: Array, x: Array, epsilon: Array, *, norm: str) -> Array:
  """The point x + δ, projected; in L0 with the ε entries of largest change, at least 1, and equal ones."""
  if norm != 'l0':
    return norms.clip_to_ball(delta, x, epsilon, bounds, norm=norm)
  size = jnp.abs(delta)
  least = jnp.sort(size, axis=None)[-jnp.maximum(epsilon, 1).astype(jnp.int32)]
  return jnp.clip(x + jnp.where(size >= least, delta, 0), *bounds)

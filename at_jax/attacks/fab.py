"""FAB: moves to the nearest point of the decision boundary by linearising the model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from at_jax.attacks import _arguments, _diagnostics, _gradients, _hyperplane, _loops, _stepper, losses, norms
from at_jax.attacks.pgd import AttackResult

Array = jax.Array
_ALPHA_MAX = .1    # largest weight of the projection of the clean input
_ETA = 1.05        # overshoot
_BETA = .9         # after a success, continue from this fraction of the way to it
# Number of classes whose gradients are computed together where loops are loops; all classes could exceed
# the memory. Where steps are unrolled, XLA holds all of them at once anyway.
_SIDE_BY_SIDE = 10


class State(NamedTuple):
  """State of each example. Images are f32[B, ...], all others [B]."""
  count: Array
  found: Array       # whether the nearest misclassified point lies within ε
  x_adv: Array       # nearest misclassified point so far
  distance: Array    # its distance; +inf if there is none
  x: Array
  zero_gradient: Array  # number of gradients that were zero in every entry or not finite in some


def fab(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array | None = None, *,
    epsilon: float | Array, norm: str = 'linf', num_steps: int = 100, target: Array | None = None,
    random_start: bool = False, bounds: tuple[float, float] = (0., 1.), mask: Array | None = None,
    index: Array | None = None,
) -> AttackResult:
  """Fast adaptive boundary attack: finds the nearest misclassified point.

  Each step linearises the decision boundary at the iterate. d₁ and d₂ are the exact projections of the
  iterate and of the clean input onto it within the bounds:
  x ← clip((x + ηd₁)(1 − α) + (x₀ + ηd₂)α), α = min(‖d₁‖/(‖d₁‖ + ‖d₂‖), 0.1).
  After a success the attack continues from x₀ + 0.9(x − x₀). Composes inside the caller's jit and vmap. On
  the CPU the steps are unrolled there, and compiling 100 takes minutes.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], inputs within `bounds`.
    y: i32[B], true classes.
    key: PRNG key, needed only for a random start.
    epsilon: a number or f32[B]: the largest distance of a success, and twice the distance of a random
      start. Infinite to find the nearest point at any distance; a random start is then ½ away.
    norm: 'linf', 'l2' or 'l1', the norm of the distance. Static.
    num_steps: at least 1. Static.
    target: i32[B], use only the boundary with this class (FAB-T); otherwise the nearest of all, which
      takes C gradients per step.
    random_start: start at distance ε/2 instead of at x.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change. None lets all change.
    index: i32[B], the number each example folds into `key`; by default its place in the batch.

  Returns:
    An `AttackResult`. `x` is the nearest misclassified point within ε, or the input if there is none.
    `loss` is the negated distance of the nearest misclassified point at any distance, −inf if there is
    none. `kappa` is 0. An input that is misclassified already is its own nearest point, at distance 0.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .4], [.2, .9]]), jnp.array([0, 1])
    >>> result = fab(lambda x: x @ w, x, y, epsilon=.1)
    >>> print(result.success, -result.loss.round(2))
    [ True False] [0.05 0.35]

  Reference: Croce and Hein, Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary
  Attack, 2020, section 2. FAB-T: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an
  Ensemble of Diverse Parameter-free Attacks, 2020, section 5.
  """
  _arguments.check_flag('random_start', random_start)
  if random_start and key is None:
    raise ValueError('random_start needs a key')
  attack = stepper(norm=norm, num_steps=num_steps, targeted=target is not None, random_start=random_start)
  problem = _stepper.make_problem(x, y, jax.random.key(0) if key is None else key, epsilon=epsilon,
                                  bounds=bounds, mask=mask, target=target, index=index, infinite=True)
  _diagnostics.warn_of_scale(epsilon, problem.x, problem.bounds, norm, any_distance=True)
  model, state = _stepper.run(logits_fn, problem, stepper=attack)
  # The steps do not evaluate the input itself, because AutoAttack attacks only correct ones.
  already = _stepper.is_wrong(model, problem.x, problem)
  point = _stepper.where(state.found & ~already, state.x_adv, problem.x)
  distance = jnp.where(already, 0, state.distance)
  return AttackResult(point, state.found | already, jnp.zeros_like(state.count), -distance)


@_arguments.cached
def stepper(
    *, norm: str, num_steps: int = 100, targeted: bool = True, random_start: bool = False
) -> _stepper.Stepper:
  """FAB as a `Stepper`; the same object for the same options of `fab`.

  Example:
    >>> stepper(norm='l2').length
    100
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_count('num_steps', num_steps)

  def init(problem: _stepper.Problem) -> State:
    x = problem.x
    draw = functools.partial(_draw, norm=norm)
    start = _stepper.each(draw, problem, x, problem.key, problem.epsilon) if random_start else x
    none = jnp.zeros(len(x), jnp.int32)
    return State(none, none.astype(bool), x, jnp.full(len(x), jnp.inf, x.dtype), start, none)

  def step(logits_fn, problem: _stepper.Problem, state: State) -> State:
    linearise = _towards_target if targeted else functools.partial(_towards_nearest, norm=norm)
    gap, normal = linearise(logits_fn, problem, state.x)
    zero_gradient = state.zero_gradient + _gradients.zero_gradient(normal).astype(jnp.int32)
    gap, normal = _gradients.finite((gap.astype(normal.dtype), normal))
    x = _stepper.each(functools.partial(_move, norm=norm), problem, state.x, problem.x, normal, gap)
    wrong = ~_stepper.is_correct(logits_fn(x), problem.y)
    distance = jax.vmap(functools.partial(norms.length, norm=norm))(x - problem.x)
    nearer = wrong & (distance < state.distance)
    x_adv, distance = _stepper.where(nearer, (x, distance), (state.x_adv, state.distance))
    found = jnp.isfinite(distance) & (distance <= problem.epsilon)
    x = _stepper.where(wrong, problem.x + (x - problem.x) * _BETA, x)
    return State(state.count + 1, found, x_adv, distance, x, zero_gradient)

  # One forward pass at the iterate and one at the next.
  return _stepper.Stepper(init, step, num_steps, forward=2, backward=1 if targeted else None)


def _draw(bounds, x: Array, key: Array, epsilon: Array, *, norm: str) -> Array:
  # An infinite radius means any distance; half of it is no distance.
  epsilon = jnp.where(jnp.isfinite(epsilon), epsilon, 1)
  draw = (jax.random.uniform(key, x.shape, x.dtype, -1, 1) if norm == 'linf'
          else jax.random.normal(key, x.shape, x.dtype))
  draw = jnp.where(norms.free(bounds), draw, 0)
  # The length is 0 only if nothing is free.
  return jnp.clip(x + epsilon / 2 * draw / jnp.maximum(norms.length(draw, norm=norm), 1e-12), *bounds)


def _towards_target(logits_fn, problem: _stepper.Problem, x: Array) -> tuple[Array, Array]:
  """z_t − z_y [B] and its gradient [B, ...]."""
  def gap(x: Array) -> tuple[Array, Array]:
    logits = _stepper.logits_of(logits_fn, x)
    gaps = losses.logit_of(logits, problem.target) - losses.logit_of(logits, problem.y)
    return jnp.sum(gaps), gaps
  normal, gaps = jax.grad(gap, has_aux=True)(x)
  return gaps, jnp.where(norms.free(problem.bounds), normal, 0)


def _towards_nearest(logits_fn, problem: _stepper.Problem, x: Array, *, norm: str):
  """z_j − z_y and its gradient for the class j whose linearised boundary is nearest."""
  logits, pull = jax.vjp(functools.partial(_stepper.logits_of, logits_fn), x)
  b, num_classes = logits.shape
  one_hot = functools.partial(jax.nn.one_hot, num_classes=num_classes, dtype=logits.dtype)
  dual = functools.partial(norms.length, norm=norms.DUAL[norm])
  width = num_classes if _loops.unrolls() else min(_SIDE_BY_SIDE, num_classes)

  def nearest(first: Array) -> tuple[Array, Array, Array]:
    classes = first + jnp.arange(width)
    pull_free = lambda cotangent: jnp.where(norms.free(problem.bounds), pull(cotangent)[0], 0)
    normals = jax.vmap(lambda j: pull_free(one_hot(j)[None] - one_hot(problem.y)))(classes)
    gaps = logits.T[jnp.minimum(classes, num_classes - 1)] - losses.logit_of(logits, problem.y)[None]
    away = jnp.abs(gaps) / (jax.vmap(jax.vmap(dual))(normals) + 1e-12)
    none = (classes[:, None] == problem.y[None]) | (classes[:, None] >= num_classes)
    away, rows = jnp.where(none, jnp.inf, away), jnp.arange(b)
    place = jnp.argmin(away, axis=0)
    return away[place, rows], gaps[place, rows], normals[place, rows]

  def look(carry):
    first, best = carry
    new = nearest(first)
    return first + width, _stepper.where(new[0] < best[0], new, best)

  best = nearest(jnp.array(0))
  if width < num_classes:
    best = _loops.repeat(look, (jnp.array(width), best), -(-num_classes // width) - 1)[1]
  return best[1:]


def _move(bounds, x: Array, clean: Array, normal: Array, gap: Array, *, norm: str) -> Array:
  """One step of one example; the hyperplane is gap + normal · (x' − x) = 0."""
  excess = jnp.stack([gap, gap + jnp.sum(normal * (clean - x))])
  project = jax.vmap(lambda point, e: _hyperplane.project(point, normal, e, bounds, norm=norm))
  d_x, d_clean = project(jnp.stack([x, clean]), excess)
  a_x, a_clean = (jnp.maximum(norms.length(d, norm=norm), 1e-8) for d in (d_x, d_clean))
  alpha = jnp.clip(a_x / (a_x + a_clean), 0, _ALPHA_MAX)
  return jnp.clip((x + _ETA * d_x) * (1 - alpha) + (clean + _ETA * d_clean) * alpha, *bounds)

"""FGSM and PGD in L∞, L2 and L1, with any loss."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import (
  _arguments,
  _diagnostics,
  _functions,
  _gradients,
  _loops,
  _model,
  _random,
  _stepper,
  losses,
  norms,
)

Array = jax.Array


class AttackResult(NamedTuple):
  """Result of an attack, one row per example.

  Attributes:
    x: f32[B, ...], a point in the ball around the input and within the bounds. Because it is rounded to the
      dtype of x, as ε is, an entry may be off by half a unit in the last place of |input| + ε (at most 6e-8
      for float32 in 0..1, 1.1e-16 for float64). In L∞ nothing else leaves the ball; in L2 and L1 sums over
      the D entries add at most 2 D u ε and 16 D u ε, where u = 2⁻²⁴ (float64: 2⁻⁵³).
    success: bool[B], whether `x` is misclassified (targeted: classified as the target). The compiled model
      decides, in its own dtype: in bfloat16 it can differ from the same model called without jit, because
      XLA may keep excess precision. NaN logits are misclassified, whatever the class.
    kappa: i32[B] in 0..num_steps, GAIRAT's κ: the number of points at which a gradient was taken,
      including the start, that were still classified correctly (targeted: not as the target).
    loss: f32[B], the attack's loss at `x`.
  """
  x: Array
  success: Array
  kappa: Array
  loss: Array


def pgd(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *,
    epsilon: float | Array, step_size: float | Array, num_steps: int, norm: str = 'linf',
    loss: Callable[..., Array] = losses.cross_entropy, loss_args: tuple[Array, ...] = (),
    decide: Callable[[Array], Array] | None = None, bounds: tuple[float, float] = (0., 1.),
    mask: Array | None = None, random_start: bool = True, start: Array | None = None,
    tau: int | Array | None = None, momentum: float | Array = 0.,
    restarts: int = 1, targeted: bool = False, index: Array | None = None,
) -> AttackResult:
  """Projected gradient descent: x ← P(x + α · ascend(∇ loss(f(x), y))), `num_steps` times.

  P projects onto the ball of radius ε around the input, then clips to `bounds`, in L1 onto both at
  once. ascend is the sign in L∞, the normalised gradient in L2, and in L1 the sign of the largest
  entry that can still move within the bounds. The last iterate is returned.

  The attack compiles itself, and it composes inside the caller's jit, vmap, scan and pmap. Each example is
  attacked on its own: its random numbers depend only on `key` and its `index`, not on the batch.

  Args:
    logits_fn: any callable from f32[B, ...] to logits f32[B, C]. Each call uses its present weights, and
      a new lambda over the same function compiles nothing. An eager call traces it, except a
      `jax.tree_util.Partial(apply, variables)` of a function `apply` that depends on its arguments only.
    x: f32[B, ...], inputs within `bounds`.
    y: i32[B], true classes (targeted: the target classes).
    key: PRNG key for the random start.
    epsilon: radius, a number or f32[B], in units of x (8/255). Traced.
    step_size: α, a number or f32[B], in units of x. Traced.
    num_steps: number of steps, at least 1. Static.
    norm: 'linf', 'l2' or 'l1'. Static.
    loss: `(logits, y, *loss_args) -> f32[B]`, maximised (targeted: minimised); it is traced for another
      B too, so it closes over no array with a row per example: those are `loss_args`. Static.
    loss_args: further arguments of `loss`: arrays with one row per example (for TRADES the clean logits),
      numbers, or pytrees of these. Traced; no gradient is taken with respect to them.
    decide: maps the attacked logits to the logits whose argmax is the model's decision, if they differ
      (`ducat.fold` for a head with dummy classes). It defines success, κ and τ. Static.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x. An entry whose
      two bounds are equal does not change.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change, for example in a patch. It
      has the axes of x, or those of one example. None lets all change.
    random_start: start at a uniform random point of the ball instead of x.
    start: f32[B, ...], the starting point, projected onto the ball; `random_start` is then ignored.
    tau: τ of friendly PGD, a number or i32[B]: the number of steps an example takes from points that are
      already misclassified (targeted: classified as the target) before it stops. 0 stops at the first
      such point; None never stops. Traced.
    momentum: μ of MI-FGSM: the step direction is a sum of L1-normalised gradients with decay μ per step.
      MI-FGSM uses μ = 1, a step size of ε / num_steps and no random start. The number 0 is exactly plain
      PGD; any other value is traced.
    restarts: number of independent runs from random starts. For each example the successful run of
      highest loss is returned, or the run of highest loss if none succeeded (targeted: lowest). The runs
      are vectorised, so memory grows with their number.
    targeted: make the model predict y instead of anything but y.
    index: i32[B], the number each example folds into `key`; by default its place in the batch.

  Returns:
    An `AttackResult`; with restarts, that of the selected run.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .4], [.2, .9]]), jnp.array([0, 1])
    >>> result = pgd(lambda x: x @ w, x, y, jax.random.key(0),
    ...              epsilon=.1, step_size=.025, num_steps=8)
    >>> print(result.success, result.kappa)
    [ True False] [5 8]

  Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section
  2.1. κ: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
  τ: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, 2020,
  algorithm 1. μ: Dong et al., Boosting Adversarial Attacks with Momentum, 2018,
  algorithm 1.
  """
  x, y = _arguments.as_examples(x, y)
  draw = random_start and start is None
  start = None if start is None else _arguments.as_start(start, x)
  tau = None if tau is None else _arguments.as_array('tau', tau)
  for name, flag in (('random_start', random_start), ('targeted', targeted)):
    _arguments.check_flag(name, flag)
  _check(x, y, epsilon, step_size, num_steps, norm, loss, loss_args, decide, tau, momentum, restarts)
  if restarts > 1 and not draw:
    raise ValueError(f'restarts = {restarts}: use 1 without a random start, as all would be one run')
  index, key = _arguments.indices(index, len(x)), _random.threefry(key)
  bounds = _arguments.bounds_of(bounds, mask, x)
  logits_fn, num_classes = _model.capture(logits_fn, x)
  num_classes = _functions.num_decided(decide, jax.ShapeDtypeStruct((len(x), num_classes), x.dtype))
  radii = {'epsilon': epsilon, 'step_size': step_size, 'momentum': momentum}
  _arguments.check_values(x=x, bounds=bounds, classes={'y': y}, num_classes=num_classes, start=start,
                          radii=radii if tau is None else radii | {'tau': tau})
  path = .5 if draw else 1. if start is None else 0.  # a start may continue another attack
  _diagnostics.warn_of_scale(epsilon, x, bounds, norm, steps=(step_size, num_steps, path))
  epsilon, step_size = (jnp.broadcast_to(jnp.asarray(v, x.dtype), y.shape) for v in (epsilon, step_size))
  tau = None if tau is None else jnp.broadcast_to(jnp.minimum(tau, num_steps).astype(jnp.int32), y.shape)
  bounds = tuple(jnp.asarray(bound, x.dtype) for bound in bounds)
  plain = isinstance(momentum, (int, float)) and momentum == 0
  momentum = None if plain else jnp.asarray(momentum, x.dtype)
  static = dict(loss=loss, decide=decide, targeted=targeted)

  def run(key: Array) -> AttackResult:
    begin = x if start is None else start
    state = _begin(x, begin, key, index, epsilon, bounds, tau, momentum, norm=norm, draw=draw)
    for n in _loops.calls(num_steps):
      state = _advance(logits_fn, state, x, y, epsilon, step_size, bounds, loss_args,
                       momentum, num_steps=n, norm=norm, **static)
    return _finish(logits_fn, state, y, loss_args, **static)

  if restarts == 1:
    return run(key)
  return _keep_best(jax.vmap(run)(_random.fold(key, jnp.arange(restarts))), targeted=targeted)


def _check(x, y, epsilon, step_size, num_steps, norm, loss, loss_args, decide, tau, momentum,
           restarts) -> None:
  """Raises ValueError for an invalid option, and for rows that do not fit the examples."""
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_count('num_steps', num_steps)
  _arguments.check_count('restarts', restarts)
  if not isinstance(loss_args, (tuple, list)):
    raise ValueError(f'loss_args is a {type(loss_args).__name__}: use a tuple, (clean_logits,) for example')
  names = [f'loss_args[{i}]' for i in range(len(loss_args))]
  _functions.check_function('loss', loss, 'logits', 'y', *names, like='losses.dlr')
  if decide is not None:
    _functions.check_function('decide', decide, 'logits', like='ducat.fold')

  _arguments.check_radius(epsilon, len(x))
  _arguments.check_radius(step_size, len(x), 'step_size')
  for name, given in zip(names, loss_args, strict=True):
    for rows in jax.tree.leaves(given):
      _arguments.check_shape(name, rows, (), y.shape + np.shape(rows)[1:])
  if tau is not None:
    _arguments.check_shape('tau', tau, (), (1,), y.shape)
    _arguments.check_integers('tau', tau)
  _arguments.check_number('momentum', momentum)
  _arguments.check_shape('momentum', momentum, ())


def fgsm(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, *, epsilon: float | Array, **options) -> AttackResult:
  """Fast gradient sign method: one PGD step of size ε from the input, x + ε · sign(∇ loss(f(x), y)).

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], inputs within the bounds.
    y: i32[B], true classes.
    epsilon: radius, a number or f32[B], in units of x.
    **options: `norm`, `loss`, `loss_args`, `decide`, `bounds`, `mask` and `targeted` of `pgd`.

  Returns:
    An `AttackResult`.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> print(fgsm(lambda x: x @ w, jnp.array([[.5, .4]]), jnp.array([0]), epsilon=.1).x)
    [[0.4 0.5]]

  Reference: Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015, section 4.
  """
  # Without a random start the key is not used.
  return pgd(logits_fn, x, y, jax.random.key(0), epsilon=epsilon, step_size=epsilon, num_steps=1,
             random_start=False, **options)


def gaussian_start(x: Array, key: Array, *, scale: float = .001, index: Array | None = None) -> Array:
  """Gaussian starting point x + scale · N(0, 1), used by TRADES, MART and MAIL.

  Args:
    x: f32[B, ...].
    key: PRNG key, different from the attack's.
    scale: standard deviation in units of x.
    index: i32[B], the number each example folds into `key`; by default its place in the batch.

  Returns:
    f32[B, ...], the `start` for `pgd`, which clips it to the bounds. The released codes clip only after
    the first step.

  Example:
    >>> start = gaussian_start(jnp.full((1, 2), .5), jax.random.key(0))
    >>> print(jnp.abs(start - .5).max() < .01)
    True

  Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1.
  """
  x = _arguments.as_inputs(x)
  _arguments.check_number('scale', scale)
  _arguments.check_shape('scale', scale, ())
  draw = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))
  return x + scale * draw(_random.fold(key, _arguments.indices(index, len(x))))


class _State(NamedTuple):
  x: Array
  kappa: Array
  left: Array | None  # i32[B], steps still allowed from misclassified points; None without a limit
  velocity: Array | None  # decayed sum of gradients; None without momentum


def _project(norm: str, moved: Array, x: Array, epsilon: Array, bounds: tuple[Array, Array]) -> Array:
  bounds = tuple(jnp.broadcast_to(bound, x.shape) for bound in bounds)
  return jax.vmap(functools.partial(norms.clip_to_ball, norm=norm))(moved - x, x, epsilon, bounds)


@functools.partial(jax.jit, static_argnames=('norm', 'draw'))
def _begin(x, begin, key, index, epsilon, bounds, tau, momentum, *, norm, draw) -> _State:
  if draw:
    sample, free = functools.partial(getattr(norms, norm).sample, shape=x.shape[1:]), norms.free(bounds)
    rows = _random.fold(key, index), epsilon
    begin = x + (jax.vmap(lambda k, e: sample(k, epsilon=e))(*rows) if free is True else
                 jax.vmap(lambda k, e, f: sample(k, epsilon=e, free=f))(*rows, free))
  return _State(_project(norm, begin, x, epsilon, bounds), jnp.zeros(len(x), jnp.int32), tau,
                None if momentum is None else jnp.zeros_like(x))


@functools.partial(jax.jit, static_argnames=('num_steps', 'norm', 'loss', 'decide', 'targeted'))
def _advance(logits_fn, state, x, y, epsilon, step_size, bounds, loss_args, momentum, *, num_steps, norm,
             loss, decide, targeted) -> _State:
  def objective(x):
    logits = _stepper.logits_of(logits_fn, x)
    _functions.check_loss(loss, logits, y, *loss_args)
    return (-1 if targeted else 1) * jnp.sum(loss(logits, y, *loss_args)), logits

  def step(state: _State) -> _State:
    gradient, logits = jax.grad(objective, has_aux=True)(state.x)
    gradient = _gradients.finite(gradient)
    gradient = jnp.where(norms.free(bounds), gradient, 0)  # so that entries held back use no part of a step
    robust = ~_succeeds(logits, y, decide, targeted)
    velocity = state.velocity
    if velocity is not None:
      velocity = gradient = momentum * velocity + jax.vmap(lambda g: norms.unit(g, 'l1'))(gradient)
    if norm == 'l1':  # only one entry moves, so entries that the bounds hold back are left out
      slack = 4 * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(state.x))
      room = jnp.where(gradient > 0, bounds[1] - state.x, state.x - bounds[0])
      gradient = jnp.where(room > slack, gradient, 0)
    direction = jax.vmap(getattr(norms, norm).ascend)(gradient)
    moved = _project(norm, state.x + jax.vmap(jnp.multiply)(step_size, direction), x, epsilon, bounds)
    left = state.left
    if left is not None:
      moves = robust | (left > 0)
      moved = _stepper.where(moves, moved, state.x)
      left = left - (moves & ~robust).astype(left.dtype)
    return _State(moved, state.kappa + robust.astype(jnp.int32), left, velocity)

  return _loops.repeat(step, state, num_steps)


@functools.partial(jax.jit, static_argnames=('loss', 'decide', 'targeted'))
def _finish(logits_fn, state, y, loss_args, *, loss, decide, targeted) -> AttackResult:
  logits = _stepper.logits_of(logits_fn, state.x)
  success = _succeeds(logits, y, decide, targeted)
  return AttackResult(state.x, success, state.kappa, loss(logits, y, *loss_args))


def _succeeds(logits: Array, y: Array, decide, targeted: bool) -> Array:
  hit = _stepper.is_correct(logits if decide is None else decide(logits), y)
  return hit if targeted else ~hit


@functools.partial(jax.jit, static_argnames='targeted')
def _keep_best(runs: AttackResult, *, targeted: bool) -> AttackResult:
  """From [R, B, ...] to [B, ...]: per example the successful run with the best loss."""
  eligible = runs.success | ~jnp.any(runs.success, axis=0, keepdims=True)
  gain = -runs.loss if targeted else runs.loss
  best = jnp.argmax(jnp.where(eligible, gain, -jnp.inf), axis=0)
  return jax.tree.map(lambda leaf: leaf[best, jnp.arange(len(best))], runs)

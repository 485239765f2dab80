"""Auto-PGD: projected gradient descent whose step size adapts to the progress of the loss."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _diagnostics, _functions, _gradients, _stepper, losses, norms
from at_jax.attacks.pgd import AttackResult

Array = jax.Array


class Stage(NamedTuple):
  """What happens at each count of gradients; a table of columns with a row per count.

  Attributes:
    first: bool, a run begins.
    window: number of gradients since the last check if there is a check now, else 0.
    radius: radius of the ball, in ε.
  """
  first: np.ndarray
  window: np.ndarray
  radius: np.ndarray


def schedule(num_steps: int, norm: str, large_start: bool = False) -> Stage:
  """The table of `Stage` columns for an attack; a run of n steps takes n + 1 gradients.

  With `large_start` there are three runs of 30, 30 and 40 % of the steps, in the balls of 3ε, 2ε and ε.

  Example:
    >>> print(np.flatnonzero(schedule(100, 'linf').window))
    [22 41 57 70 80 87 93 99]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 3.1. L1: Croce and Hein, Mind the Box, 2021, section 3.
  """
  radii = (3., 2., 1.) if large_start else (1.,)
  early = math.ceil(.3 * num_steps)
  lengths = (early, early, num_steps - 2 * early) if large_start else (num_steps,)
  rows = [(n == 0, window, radius) for radius, length in zip(radii, lengths, strict=True)
          for n, window in enumerate(_windows(length, norm))]
  return Stage(*(np.array(column) for column in zip(*rows, strict=True)))


def stage_at(table: Stage, count: Array, dtype: Any) -> Stage:
  """The table's row for one example; radii are in `dtype`, so that float64 does not spread.

  Example:
    >>> print(stage_at(schedule(100, 'linf'), 22, np.float32).window)
    22
  """
  kind = lambda column: dtype if column.dtype.kind == 'f' else None
  return jax.tree.map(lambda column: jnp.asarray(column, kind(column))[count], table)


def _windows(num_steps: int, norm: str) -> list[int]:
  """For each gradient the number of gradients since the last check if there is a check, else 0."""
  at, windows = 0, [0] * (num_steps + 1)
  window = max(int((.04 if norm == 'l1' else .22) * num_steps), 1)
  while at + window <= num_steps:
    at += window
    windows[at] = window
    if norm != 'l1':
      window = max(window - max(int(.03 * num_steps), 1), max(int(.06 * num_steps), 1))
  return windows


_RISES = .75        # the step size is halved if the loss rose in at most this fraction of a window
_MOMENTUM = .25
_SPARSITY = .2      # L1: fraction of the entries that the first step changes
_LEAST_STEP = 10.   # L1: the step size is at least ε divided by this
_SHRINK = 1.5       # L1: divisor of the step size and of the sparsity


class State(NamedTuple):
  """State of each example. Images are f32[B, ...], all others [B]."""
  count: Array          # gradients taken
  found: Array
  x_adv: Array          # the latest misclassified iterate
  loss_adv: Array
  x: Array              # where the next gradient is taken
  x_old: Array          # where the last step began
  x_best: Array         # iterate of highest loss, with its gradient and loss
  gradient_best: Array
  loss_best: Array
  loss_last: Array
  loss_checked: Array   # highest loss at the last check
  rises: Array          # number of rises of the loss since then
  halved: Array         # whether that check halved the step
  step_size: Array
  sparsity: Array       # L1: fraction of the entries to change
  moved: Array          # number of entries that differed from x at the last check
  kappa: Array
  zero_gradient: Array  # number of gradients that were zero in every entry or not finite in some
  rose: Array           # whether the loss ever rose above that of the run's start


def apgd(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *,
    epsilon: float | Array, norm: str = 'linf', num_steps: int = 100,
    loss: Callable[..., Array] = losses.cross_entropy, target: Array | None = None,
    bounds: tuple[float, float] = (0., 1.), mask: Array | None = None, start: Array | None = None,
    large_start: bool = False, eot: int = 0, index: Array | None = None,
) -> AttackResult:
  """Auto-PGD: x ← P(x + ¾(z − x) + ¼(x − x_old)), z = P(x + α · direction of ∇ loss(f(x), y)).

  The step size α starts at 2ε. It is halved at checks, which become more frequent, if the loss rose in too
  few steps or its best value did not improve; the search then continues from the best point. In L1 there
  is no momentum, α starts at ε, and a step changes only the entries of largest gradient; their number
  follows from the sparsity of the best point. Composes inside the caller's jit, vmap and pmap.

  On the CPU the steps are unrolled, so inside the caller's jit they form one program, whose compile time
  is quadratic in the number of steps: 100 steps take minutes. Without an outer jit, also under `jax.vmap`,
  each step is a program of its own.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]; with `eot` > 0, `(x f32[1, ...], key) -> f32[1, C]`.
    x: f32[B, ...], inputs within `bounds`.
    y: i32[B], true classes.
    key: PRNG key for the start.
    epsilon: radius, a number or f32[B], in units of x. Traced.
    norm: 'linf', 'l2' or 'l1'. Static.
    num_steps: at least 1; one more gradient is taken. Static.
    loss: `(logits, y) -> f32[B]`, maximised; with `target`, `(logits, y, target) -> f32[B]`. Static.
    target: i32[B], for targeted losses. Any misclassification is a success.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change. None lets all change.
    start: f32[B, ...], the starting point instead of a random one, projected onto the ball. In L1 the first
      step changes as many entries as from a random point; the released code counts the entries in which the
      start differs from x.
    large_start: L1 only, for at least 2 steps: 30 % of them in the ball of 3ε, 30 % in 2ε, the rest in ε.
    eot: number of passes to average a gradient over, for a random model; 0 for a deterministic one.
    index: i32[B], the number each example folds into `key`; by default its place in the batch.

  Returns:
    An `AttackResult`. `x` is the latest misclassified iterate, or the iterate of highest loss if there is
    none. `kappa` is in 0..num_steps + 1, with `large_start` in 0..num_steps + 3, because each of its three
    runs takes one gradient more than it has steps.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .375], [.25, .875]]), jnp.array([0, 1])
    >>> result = apgd(lambda x: x @ w, x, y, jax.random.key(0), epsilon=.125, num_steps=10)
    >>> print(result.success, result.x[1])
    [ True False] [0.375 0.75 ]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 3. L1: Croce and Hein, Mind the Box, 2021, section 3.
  """
  targeted = target is not None
  _functions.check_function('loss', loss, 'logits', 'y', *['target'] * targeted, like='losses.dlr')
  attack = stepper(norm=norm, num_steps=num_steps, loss=loss, targeted=targeted, large_start=large_start,
                   eot=eot)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds, mask=mask, target=target,
                                  index=index)
  _diagnostics.warn_of_scale(epsilon, problem.x, problem.bounds, norm)
  changes = {}
  if start is not None:
    start = _arguments.as_start(start, problem.x)
    _arguments.check_values(start=start)
    into = lambda bounds, start, x, radius: _project(start, x, radius, bounds, norm)
    radius = problem.epsilon * (3 if large_start else 1)
    changes = dict(x=_stepper.each(into, problem, start, problem.x, radius))
  _, state = _stepper.run(logits_fn, problem, stepper=attack, random=bool(eot), **changes)
  x, loss = _stepper.where(state.found, (state.x_adv, state.loss_adv), (state.x_best, state.loss_best))
  return AttackResult(x, state.found, state.kappa, loss)


@_arguments.cached
def stepper(
    *, norm: str, num_steps: int = 100, loss: Callable[..., Array] = losses.cross_entropy,
    targeted: bool = False, large_start: bool = False, eot: int = 0,
) -> _stepper.Stepper:
  """APGD as a `Stepper`, one step per gradient; the same object for the same options of `apgd`.

  Example:
    >>> stepper(norm='linf', num_steps=100).length
    101
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_count('num_steps', num_steps)
  if eot != 0:
    _arguments.check_count('eot', eot)
  _arguments.check_flag('large_start', large_start)
  rule = make_rule(norm, num_steps, large_start)

  def step(logits_fn, problem: _stepper.Problem, state: State) -> State:
    gradient, zero_gradient, value, logits = _gradients.of_loss(
        logits_fn, problem, state.x, state.count, loss=loss, targeted=targeted, eot=eot)
    wrong = ~_stepper.is_correct(logits, problem.y)
    return rule.follow(problem, state, gradient, zero_gradient, value, wrong)

  num_passes = max(eot, 1)
  return _stepper.Stepper(rule.init, step, rule.length, forward=num_passes, backward=num_passes)


class Rule(NamedTuple):
  """APGD without its model: where it takes gradients, and how it follows them.

  Attributes:
    init: `Problem -> State`.
    follow: `(Problem, state, gradient, zero_gradient, value, wrong) -> State`, one step, from what the model
      gave at `state.x`: a gradient f32[B, ...], whether it was zero bool[B], the loss f32[B], and whether
      the class was wrong bool[B].
    length: the number of steps.
  """
  init: Callable[[_stepper.Problem], State]
  follow: Callable[..., State]
  length: int


def make_rule(norm: str, num_steps: int, large_start: bool = False) -> Rule:
  """The `Rule` for options of `apgd`; raises ValueError where they do not fit `large_start`."""
  if large_start and norm != 'l1':
    raise ValueError(f"large_start needs norm='l1': norm = {norm!r}")
  if large_start and num_steps < 2:
    raise ValueError(f'num_steps = {num_steps}: use at least 2 with large_start, as in '
                     "AutoAttack's L1 version")
  table = schedule(num_steps, norm, large_start)
  check, move = (_check_l1, _move_l1) if norm == 'l1' else (_check, _move)

  def init(problem: _stepper.Problem) -> State:
    init_one = lambda bounds, x, key, epsilon: _init(x, key, epsilon * float(table.radius[0]), bounds, norm)
    return _stepper.each(init_one, problem, problem.x, problem.key, problem.epsilon)

  def follow(problem: _stepper.Problem, state: State, gradient, zero_gradient, value, wrong) -> State:
    def update(bounds, state, x, epsilon, gradient, zero_gradient, value, wrong):
      stage = stage_at(table, state.count, x.dtype)
      radius = epsilon * stage.radius
      state = _record(
          state, stage, x, radius, gradient, zero_gradient, value, wrong, norm, large_start)
      back, changes = check(state, stage, x, radius)
      checked, back = stage.window > 0, back & (stage.window > 0)
      state = state._replace(x=jnp.where(back, state.x_best, state.x), **{
          name: jnp.where(checked, value, getattr(state, name)) for name, value in changes.items()})
      gradient = jnp.where(back, state.gradient_best, gradient)
      moved = move(state, stage, x, radius, gradient, bounds, norm)
      if large_start:  # the next run begins at the best point of this one
        following = stage_at(table, state.count + 1, x.dtype)
        again = _project(state.x_best, x, epsilon * following.radius, bounds, norm)
        moved = jnp.where(following.first, again, moved)
      return state._replace(x=moved, x_old=state.x, count=state.count + 1)

    return _stepper.each(update, problem, state, problem.x, problem.epsilon, gradient, zero_gradient, value,
                         wrong)

  return Rule(init, follow, len(table.first))


def _init(x, key, epsilon, bounds, norm) -> State:
  zero, zeros, none = jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros((), jnp.int32)
  start = _draw(x, key, epsilon, bounds, norm)
  return State(
      count=none, found=jnp.array(False), x_adv=x, loss_adv=zero, x=start, x_old=start,
      x_best=start, gradient_best=zeros, loss_best=zero, loss_last=zero, loss_checked=zero,
      rises=none, halved=jnp.array(True), step_size=zero, sparsity=zero, moved=zero,
      kappa=none, zero_gradient=none, rose=jnp.array(False))


def _draw(x, key, epsilon, bounds, norm) -> Array:
  free = norms.free(bounds)
  if norm == 'linf':
    # Scaled so that one entry lies on the boundary of the ball.
    draw = jnp.where(free, jax.random.uniform(key, x.shape, x.dtype, -1, 1), 0)
    delta = epsilon * draw / (jnp.max(jnp.abs(draw)) + 1e-12)
  else:
    draw = jnp.where(free, jax.random.normal(key, x.shape, x.dtype), 0)
    delta = epsilon * norms.l2.ascend(draw) if norm == 'l2' else draw
  return _project(x + delta, x, epsilon, bounds, norm)


def _project(point, x, epsilon, bounds, norm) -> Array:
  return norms.clip_to_ball(point - x, x, epsilon, bounds, norm=norm)


def _record(state, stage, x, radius, gradient, zero_gradient, value, wrong, norm, large_start) -> State:
  """Records the loss and gradient at the iterate of one example; a run's first gradient resets its checks."""
  fresh = functools.partial(jnp.where, stage.first)
  better = stage.first | (value > state.loss_best)
  hit = wrong & (stage.radius == 1)
  moved = jnp.sum(state.x != x).astype(x.dtype) if large_start else jnp.array(x.size, x.dtype)
  return state._replace(
      found=state.found | hit,
      x_adv=jnp.where(hit, state.x, state.x_adv),
      loss_adv=jnp.where(hit, value, state.loss_adv),
      x_best=jnp.where(better, state.x, state.x_best),
      gradient_best=jnp.where(better, gradient, state.gradient_best),
      loss_best=jnp.where(better, value, state.loss_best),
      kappa=state.kappa + (~wrong).astype(jnp.int32),
      zero_gradient=state.zero_gradient + zero_gradient.astype(jnp.int32),
      rose=state.rose | (~stage.first & (value > state.loss_best)),
      # A run's second loss is compared with 0, not with the loss at the start, because the released code
      # compares with the last entry of an empty record. So cross-entropy always rises once.
      loss_last=fresh(0, value),
      rises=fresh(0, state.rises + (value > state.loss_last).astype(jnp.int32)),
      loss_checked=fresh(value, state.loss_checked),
      halved=fresh(True, state.halved),
      step_size=fresh((1 if norm == 'l1' else 2) * radius, state.step_size),
      sparsity=fresh(moved / x.size / _SHRINK if large_start else _SPARSITY, state.sparsity),
      moved=fresh(moved, state.moved))


def _check(state, stage, _x, _radius) -> tuple[Array, dict[str, Any]]:
  """Whether to continue from the best point, and the fields that a check changes."""
  stuck = ~state.halved & (state.loss_checked >= state.loss_best)
  dtype = state.step_size.dtype
  halve = (state.rises.astype(dtype) <= _RISES * stage.window.astype(dtype)) | stuck
  step_size = jnp.where(halve, state.step_size / 2, state.step_size)
  return halve, dict(step_size=step_size, halved=halve, loss_checked=state.loss_best, rises=0)


def _check_l1(state, _stage, x, radius) -> tuple[Array, dict[str, Any]]:
  moved = jnp.sum(state.x_best != x).astype(x.dtype)
  sparser = moved < .95 * state.moved
  step_size = jnp.where(sparser, radius, state.step_size / _SHRINK)
  return sparser, dict(step_size=jnp.clip(step_size, radius / _LEAST_STEP, radius),
                       sparsity=moved / x.size / _SHRINK, moved=moved)


def _move(state, stage, x, radius, gradient, bounds, norm) -> Array:
  direction = getattr(norms, norm).ascend(gradient)
  ahead = _project(state.x + state.step_size * direction, x, radius, bounds, norm)
  share = jnp.where(stage.first, 0, _MOMENTUM)
  blend = state.x + (ahead - state.x) * (1 - share) + (state.x - state.x_old) * share
  return _project(blend, x, radius, bounds, norm)


def _move_l1(state, _stage, x, radius, gradient, bounds, norm) -> Array:
  size = jnp.abs(gradient)
  place = jnp.clip((1 - state.sparsity) * x.size, 0, x.size - 1).astype(jnp.int32)
  direction = jnp.where(size >= jnp.sort(size.reshape(-1))[place], jnp.sign(gradient), 0)
  direction = direction / (jnp.sum(jnp.abs(direction)) + 1e-10)
  return _project(state.x + state.step_size * direction, x, radius, bounds, norm)

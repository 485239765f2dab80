"""What APGD, FAB and Square have in common: an attack as a state that is stepped, example by example.

Every example carries its own counter, so a batch may hold examples at different stages. One that is
finished can leave and another take its place while the rest go on, and nothing they compute or draw
changes by it.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax.attacks import _arguments, _loops, _model, _random

Array = jax.Array
LogitsFn = Callable[..., Array]


class Problem(NamedTuple):
  """What is attacked; every field but `bounds` has the batch as its first axis.

  Attributes:
    x: f32[B, ...], inputs within the bounds.
    y: i32[B], true classes.
    target: i32[B], the class to go to, for targeted attacks; else not read.
    key: B PRNG keys, one an example.
    epsilon: f32[B], radii.
    bounds: the smallest and the largest value of an input, two numbers.
  """
  x: Array
  y: Array
  target: Array
  key: Array
  epsilon: Array
  bounds: tuple[Array, Array]


class Stepper(NamedTuple):
  """An attack as two pure functions. Static for jit: make each once (they come from cached functions).

  Attributes:
    init: `Problem -> state`, without calling the model. A state is a NamedTuple whose leaves have the
      batch first, among them `count` i32[B], steps done; `found` bool[B], an adversarial example
      within ε is in hand; and `x_adv` f32[B, ...], that example where found.
    step: `(logits_fn, Problem, state) -> state`; it may do anything to an example that has `length`
      steps, as `take_steps` keeps that one as it was.
    length: the steps an example needs.
    differentiates: whether a step takes a gradient of the model; if not, steps may be looped over on
      any backend.
  """
  init: Callable[[Problem], Any]
  step: Callable[[LogitsFn, Problem, Any], Any]
  length: int
  differentiates: bool = True


def make_problem(
    x, y, key, *, epsilon, bounds=(0., 1.), target=None, index=None, infinite=False) -> Problem:
  """A `Problem` from what a caller has: one key, one radius.

  Args:
    x: f32[B, ...].
    y: i32[B].
    key: a PRNG key; every example folds its index into it.
    epsilon: a number or f32[B].
    bounds: the smallest and the largest value of an input, numbers or arrays that broadcast with one.
    target: i32[B], or None for untargeted attacks.
    index: i32[B], by default the place in the batch.
    infinite: whether a radius may be.

  Returns:
    A `Problem`.

  Raises:
    ValueError: for inputs that are integers, of less precision than float32, NaN or beyond the bounds,
      bounds that are not two, the wrong way round or not those of one example, classes or a key that
      are none, a radius below 0 or infinite, and where x, y, target, epsilon and index do not belong
      together.

  Example:
    >>> problem = make_problem(jnp.zeros((2, 3)), jnp.array([0, 1]), jax.random.key(0), epsilon=.1)
    >>> print(problem.epsilon)
    [0.1 0.1]

  Source: ours.
  """
  x, y = jnp.asarray(x), jnp.asarray(y)
  _arguments.check_examples(x, y)
  _arguments.check_radius(epsilon, len(x))
  _arguments.check_values(x=x, bounds=bounds, classes={'y': y}, radii={'epsilon': epsilon}, infinite=infinite)
  index = _arguments.indices(index, len(x))
  epsilon = jnp.broadcast_to(jnp.asarray(epsilon, x.dtype), y.shape)
  bounds = tuple(_arguments.bound_of_one(bound, x) for bound in bounds)
  target = y if target is None else jnp.asarray(target)
  _arguments.check_shape('target', target, y.shape)
  _arguments.check_integers('target', target)
  return Problem(x, y, target, _random.fold(key, index), epsilon, bounds)


def capture(
    logits_fn: LogitsFn, x: Array, num_examples: int, key: Array | None = None
) -> tuple[jax.tree_util.Partial, int]:
  """`_model.capture` for batches of `num_examples` inputs like `x`; with a key, for one input and a key."""
  batch = jax.ShapeDtypeStruct((num_examples if key is None else 1, *x.shape[1:]), x.dtype)
  return _model.capture(logits_fn, batch, None if key is None else jax.ShapeDtypeStruct(key.shape, key.dtype))


def prepare(logits_fn: LogitsFn, problem: Problem, random: bool = False) -> jax.tree_util.Partial:
  """Captures the model for the problem's batch, and checks that it has logits for all classes."""
  x, key = problem.x, jax.eval_shape(lambda keys: keys[0], problem.key)
  model, num_classes = capture(logits_fn, x, 1, key) if random else _model.capture(logits_fn, x)
  classes = {'y': problem.y, 'target': problem.target}
  _arguments.check_values(classes=classes, num_classes=num_classes)
  return model


def ask(logits_fn: LogitsFn, x: Array) -> Array:
  """One pass of a model, its logits in float32 at least.

  In bfloat16 a loss that gains less than a hundredth of itself stands still.

  Args:
    logits_fn: from f32[B, ...] to logits [B, C] of any dtype.
    x: f32[B, ...].

  Returns:
    f32[B, C].

  Raises:
    ValueError: if these are no logits.

  Example:
    >>> print(ask(lambda x: x.astype(jnp.bfloat16), jnp.ones((1, 2))).dtype)
    float32

  Source: ours.
  """
  logits = logits_fn(x)
  _model.check_answer(logits, len(x))
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def one_by_one(logits_fn: LogitsFn, x: Array, keys: Array) -> Array:
  """One pass of a random model, called for every example by itself with a key of its own.

  Args:
    logits_fn: from f32[1, ...] and a key to logits f32[1, C].
    x: f32[B, ...].
    keys: B PRNG keys.

  Returns:
    f32[B, C].

  Example:
    >>> noisy = lambda x, key: x + jax.random.normal(key, x.shape)
    >>> one_by_one(noisy, jnp.zeros((2, 3)), jax.random.split(jax.random.key(0))).shape
    (2, 3)

  Source: ours.
  """
  return jax.vmap(lambda x, key: ask(lambda x: logits_fn(x, key), x[None])[0])(x, keys)


def is_correct(logits: Array, y: Array) -> Array:
  """Whether each prediction is right; with a NaN or +inf among the logits it never is.

  argmax alone would call an all-NaN model right on every example of class 0. A logit of −inf says that
  a class is none, and is no fault.

  Args:
    logits: f32[B, C].
    y: i32[B].

  Returns:
    bool[B].

  Example:
    >>> print(is_correct(jnp.array([[2., 1.], [jnp.nan, 1.]]), jnp.array([0, 0])))
    [ True False]

  Source: ours.
  """
  return (jnp.argmax(logits, axis=-1) == y) & jnp.isfinite(jnp.max(logits, axis=-1))


def where(chosen: Array, new: Any, old: Any) -> Any:
  """Per example `new` where chosen, else `old`, for every leaf of two equal trees.

  Args:
    chosen: bool[B].
    new: a pytree of arrays [B, ...].
    old: the same.

  Returns:
    The same.

  Example:
    >>> print(where(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))))
    [[1. 1.]
     [0. 0.]]

  Source: ours.
  """
  def pick(a, b):
    return jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, new, old)


@functools.partial(jax.jit, static_argnames='stepper')
def begin(problem: Problem, *, stepper: Stepper) -> Any:
  """The stepper's first state, compiled."""
  return stepper.init(problem)


def take_steps(
    logits_fn: LogitsFn, problem: Problem, state: Any, *, stepper: Stepper, num_steps: int
) -> Any:
  """`num_steps` steps; examples that have finished stay as they are. Not compiled: see `advance`."""
  def step(state):
    moved = stepper.step(logits_fn, problem, state)
    return where(state.count < stepper.length, moved, state)
  return _loops.repeat(step, state, num_steps, differentiates=stepper.differentiates)


advance = functools.partial(jax.jit, static_argnames=('stepper', 'num_steps'))(take_steps)


def resume(logits_fn: LogitsFn, problem: Problem, state: Any, *, stepper: Stepper) -> Any:
  """All steps of an attack from its first state on, for a batch whose examples begin together.

  Args:
    logits_fn: a `jax.tree_util.Partial` that the stepper calls.
    problem: the batch.
    state: what `begin` gave.
    stepper: the attack.

  Returns:
    The stepper's last state.

  Example: see `apgd.apgd`, `fab.fab` and `square.square`.

  Source: ours.
  """
  # One step a call where steps are written out: a call costs nothing beside a step, and its program
  # compiles several times faster than one of ten.
  for n in _loops.calls(stepper.length, stepper.differentiates, at_once=1):
    state = advance(logits_fn, problem, state, stepper=stepper, num_steps=n)
  return state

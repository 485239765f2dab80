"""The interface of APGD, FAB, FMN and Square: an attack is a state that is advanced step by step.

Every example has its own step counter, so a batch may hold examples at different stages. A finished
example can be replaced while the others continue; their computations and random numbers do not change.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _functions, _loops, _model, _random

Array = jax.Array
LogitsFn = Callable[..., Array]


class Problem(NamedTuple):
  """The examples to attack; the batch is the first axis of every field, except bounds that are numbers.

  Attributes:
    x: f32[B, ...], inputs within the bounds.
    y: i32[B], true classes.
    target: i32[B], target classes; untargeted attacks ignore them.
    key: B PRNG keys, one per example.
    epsilon: f32[B], radii.
    bounds: smallest and largest value of an input, each a number or f32[B, ...] with the axes of x.
  """
  x: Array
  y: Array
  target: Array
  key: Array
  epsilon: Array
  bounds: tuple[Array, Array]


class Stepper(NamedTuple):
  """An attack as two pure functions, a static argument of jit; cached functions make each one once.

  Attributes:
    init: `Problem -> state`, without calling the model. A state is a NamedTuple whose leaves have the
      batch as their first axis. It has `count` i32[B], the steps done; `found` bool[B], whether an
      adversarial example within ε is known; and `x_adv` f32[B, ...], that example.
    step: `(logits_fn, Problem, state) -> state`. `take_steps` discards its result for finished examples.
    length: number of steps per example.
    forward: forward passes of an example in a step.
    backward: backward passes of an example in a step; None if there is one for each class.
  """
  init: Callable[[Problem], Any]
  step: Callable[[LogitsFn, Problem, Any], Any]
  length: int
  forward: int = 1
  backward: int | None = 1

  @property
  def differentiates(self) -> bool:
    """Whether a step takes a gradient of the model.

    If not, there are many short steps: a caller's program loops over them on every backend, and the driver
    refills its slots less often.
    """
    return self.backward != 0


def make_problem(x, y, key, *, epsilon, bounds=(0., 1.), mask=None, target=None, index=None,
                 infinite=False) -> Problem:
  """Checks an attack's arguments and makes a `Problem` of them: one key and one radius per example.

  `infinite` allows infinite radii. Raises ValueError for an invalid shape, dtype or value.
  """
  x, y = _arguments.as_examples(x, y)
  _arguments.check_radius(epsilon, len(x))
  bounds = _arguments.bounds_of(bounds, mask, x)
  _arguments.check_values(x=x, bounds=bounds, classes={'y': y}, radii={'epsilon': epsilon}, infinite=infinite)
  index = _arguments.indices(index, len(x))
  epsilon = jnp.broadcast_to(jnp.asarray(epsilon, x.dtype), y.shape)
  in_dtype = lambda bound: jnp.asarray(bound, x.dtype)
  bounds = tuple(_arguments.keep_known(in_dtype, bound) for bound in bounds)
  target = y if target is None else _arguments.as_array('target', target)
  _arguments.check_shape('target', target, y.shape)
  _arguments.check_integers('target', target)
  return Problem(x, y, target, _random.fold(key, index), epsilon, bounds)


def capture(logits_fn: LogitsFn, x: Array, num_examples: int,
            key: Array | None = None, name: str = 'logits_fn') -> tuple[jax.tree_util.Partial, int]:
  """`_model.capture` for batches of `num_examples` inputs like `x`; with a key, for one input and a key."""
  batch = jax.ShapeDtypeStruct((num_examples if key is None else 1, *x.shape[1:]), x.dtype)
  key = None if key is None else jax.ShapeDtypeStruct(key.shape, key.dtype)
  return _model.capture(logits_fn, batch, key, name)


def prepare(logits_fn: LogitsFn, problem: Problem, random: bool = False) -> jax.tree_util.Partial:
  """Captures the model for the problem's batch, and checks that it has logits for all classes."""
  key = problem.key[0] if random else None
  model, num_classes = capture(logits_fn, problem.x, len(problem.x), key)
  classes = {'y': problem.y, 'target': problem.target}
  _arguments.check_values(classes=classes, num_classes=num_classes)
  return model


def logits_of(logits_fn: LogitsFn, x: Array, keys: Array | None = None) -> Array:
  """f32[B, C], the logits of one pass, in float32 at least.

  With keys, a random model is called for each example alone with that example's key. In bfloat16 a loss that
  increases by less than a hundredth would seem constant.
  """
  if keys is not None:
    return jax.vmap(lambda x, key: logits_of(lambda x: logits_fn(x, key), x[None])[0])(x, keys)
  logits = logits_fn(x)
  _functions.check_answer(logits, len(x))
  return logits if jnp.finfo(logits.dtype).bits >= 32 else logits.astype(jnp.float32)


def is_correct(logits: Array, y: Array) -> Array:
  """bool[B], whether each prediction is correct; never if a logit is NaN or +inf.

  argmax alone would count an all-NaN output as correct on class 0. A logit of −inf excludes its class
  and is valid.
  """
  return (jnp.argmax(logits, axis=-1) == y) & jnp.isfinite(jnp.max(logits, axis=-1))


@functools.partial(jax.jit, static_argnames='draw')
def is_wrong(logits_fn: LogitsFn, x: Array, problem: Problem, *, draw: int | None = None) -> Array:
  """bool[B], whether each prediction is wrong; a random model gets the keys with `draw` folded in."""
  keys = None if draw is None else jax.vmap(lambda key: jax.random.fold_in(key, draw))(problem.key)
  return ~is_correct(logits_of(logits_fn, x, keys), problem.y)


def each(function: Callable[..., Any], problem: Problem, *rows: Any) -> Any:
  """`function(bounds, *row)` for each example: `jax.vmap` over rows [B, ...], with the example's bounds."""
  own = tuple(0 if np.ndim(bound) else None for bound in problem.bounds)
  return jax.vmap(function, in_axes=(own, *(0 for _ in rows)))(tuple(problem.bounds), *rows)


def where(chosen: Array, new: Any, old: Any) -> Any:
  """Selects per example from two equal pytrees of arrays [B, ...]: `new` where chosen, else `old`."""
  return jax.tree.map(
      lambda a, b: jnp.where(jnp.expand_dims(chosen, tuple(range(1, a.ndim))), a, b), new, old)


@functools.partial(jax.jit, static_argnames='stepper')
def begin(problem: Problem, *, stepper: Stepper) -> Any:
  """The initial state of a stepper."""
  return stepper.init(problem)


def take_steps(logits_fn: LogitsFn, problem: Problem, state: Any, *, stepper: Stepper, num_steps: int) -> Any:
  """Takes `num_steps` steps; finished examples do not change. Not compiled: see `advance`."""
  def step(state):
    return where(state.count < stepper.length, stepper.step(logits_fn, problem, state), state)
  return _loops.repeat(step, state, num_steps)


advance = functools.partial(jax.jit, static_argnames=('stepper', 'num_steps'))(take_steps)


def run(logits_fn: LogitsFn, problem: Problem, *, stepper: Stepper, random: bool = False,
        **changes: Array) -> tuple[jax.tree_util.Partial, Any]:
  """Runs an attack on examples that start together; returns the captured model and the final state.

  `changes` replace fields of the initial state.
  """
  state = begin(problem, stepper=stepper)._replace(**changes)
  model = prepare(logits_fn, problem, random)
  step = functools.partial(advance, model, problem, stepper=stepper)
  traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, state)))
  if traced and not stepper.differentiates:  # too many steps to unroll in the caller's program
    return model, jax.lax.fori_loop(0, stepper.length, lambda _, state: step(state, num_steps=1), state)
  # One step per call where steps are unrolled: a call is cheap compared with a step, and a program of one
  # step compiles several times faster than one of ten.
  for n in _loops.calls(stepper.length, at_once=1):
    state = step(state, num_steps=n)
  return model, state

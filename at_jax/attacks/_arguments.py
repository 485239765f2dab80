"""Checks of an attack's arguments: each message names the argument, its value and the remedy.

Shapes and dtypes are checked always, values where they are known: not under jit, vmap and the like. Values
are looked at on their device, and only one flag is fetched, unless something is wrong.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def check_examples(x: Array, y: Array) -> None:
  """Raises ValueError unless the shapes and dtypes of inputs and classes fit an attack."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'x has dtype {x.dtype}: convert it, x.astype(float32) / 255 for images')
  if jnp.finfo(x.dtype).bits < 32:
    raise ValueError(f'x has dtype {x.dtype}, which rounds steps and radii away: use float32, and let '
                     'logits_fn convert it')
  if y.shape != x.shape[:1]:
    remedy = 'argmax(y, axis=-1) of one-hot rows' if y.ndim > 1 else 'x[None], y[None] of one example'
    remedy = 'y[:, 0] of a column' if y.shape == (len(x), 1) else remedy
    raise ValueError(f'y has shape {y.shape}: use one class per example of x, {x.shape[:1]}; {remedy}')
  if not len(x):
    raise ValueError('x has no examples')
  check_integers('y', y)


def check_values(
    *, x: Array | None = None, bounds: Sequence[Any] = (None, None), classes: dict[str, Array] | None = None,
    radii: dict[str, Any] | None = None, start: Array | None = None, num_classes: int | None = None,
    infinite: bool = False,
) -> None:
  """Raises ValueError for values that cannot be attacked; those that are not known yet pass.

  Args:
    x: f32[B, ...], must lie within the bounds, up to rounding, and not be NaN.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    classes: i32[B] by argument name, at least 0.
    radii: numbers or f32[B] by argument name, at least 0 and finite.
    start: f32[B, ...], must not be NaN.
    num_classes: C, larger than every class, if it is known.
    infinite: whether radii may be infinite.
  """
  number = len(bounds) if isinstance(bounds, (tuple, list)) or np.ndim(bounds) else 0
  if number != 2:
    raise ValueError(f'bounds = {bounds}: use two, the smallest and the largest value of an input')
  known = lambda value: value if value is not None and is_known(value) else None
  by_name = [{name: known(value) for name, value in (values or {}).items()} for values in (classes, radii)]
  values = known(x), tuple(map(known, bounds)), *by_name, known(start)
  with jax.ensure_compile_time_eval():
    if not _are_valid(*values, num_classes=num_classes, infinite=infinite):
      _raise(*values, num_classes, infinite)


@functools.partial(jax.jit, static_argnames=('num_classes', 'infinite'))
def _are_valid(x, bounds, classes, radii, start, *, num_classes, infinite) -> Array:
  checks = [jnp.all(values >= 0) for values in jax.tree.leaves((classes, radii))]
  if num_classes is not None:
    checks += [jnp.all(values < num_classes) for values in jax.tree.leaves(classes)]
  if not infinite:
    checks += [jnp.all(jnp.isfinite(values)) for values in jax.tree.leaves(radii)]
  if start is not None:
    checks.append(~jnp.any(jnp.isnan(start)))
  if all(bound is not None for bound in bounds):
    low, high = map(jnp.asarray, bounds)
    checks.append(jnp.all(low < high))
    if x is not None:
      checks.append(~jnp.any(_beyond(x, low, high, x.dtype)))
  return jnp.all(jnp.array([True, *checks]))


def _beyond(x: Any, low: Any, high: Any, dtype: Any) -> Any:
  """Which inputs are NaN or beyond their bounds by more than rounding, which attacks clip."""
  slack = max(1e-5, float(jnp.finfo(dtype).eps))
  return ~((x >= low - slack * (1 + abs(low))) & (x <= high + slack * (1 + abs(high))))


def _raise(x, bounds, classes, radii, start, num_classes, infinite) -> None:
  """Raises the error of the first invalid value, computed on the host."""
  named = lambda values: ((name, value) for name, value in values.items() if value is not None)
  for name, numbers in named(radii):
    numbers = np.ravel(np.asarray(numbers, np.float64))
    wrong = ~(numbers >= 0) | (np.isinf(numbers) & (not infinite))
    if wrong.any():
      raise ValueError(f'{name} = {numbers[wrong][0]:g}: use a number of at least 0'
                       f'{"" if infinite else " and finite"}, 8/255 for example')
  for name, numbers in named(classes):
    lowest, highest = int(np.min(numbers)), int(np.max(numbers))
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
      remedy = 'count up from 0' if num_classes is None else f'are 0..{num_classes - 1}'
      raise ValueError(f'{name} reaches from {lowest} to {highest}: classes {remedy}; leave out '
                       'examples without one')
  if start is not None and np.isnan(np.asarray(start)).any():
    raise ValueError('start is NaN in places: leave these examples out, or mend them')
  if any(bound is None for bound in bounds):
    return
  low, high = (np.asarray(bound, np.float64) for bound in bounds)
  interval = f'{low.min():g}..{high.max():g}'
  if not np.all(low < high):
    raise ValueError(f'bounds = {interval}: use the smallest and the largest value of an input')
  if x is None:
    return
  numbers = np.asarray(x).astype(np.float64)
  if np.isnan(numbers).any():
    broken = int(np.isnan(numbers.reshape(len(numbers), -1)).any(axis=1).sum())
    raise ValueError(f'x is NaN in {broken} of {len(numbers)} examples: leave these out, or mend them')
  if _beyond(numbers, low, high, x.dtype).any():
    raise ValueError(f'x reaches from {numbers.min():.3g} to {numbers.max():.3g}, beyond '
                     f'{interval}: give bounds=, or normalise inside logits_fn')


def check_classes(name: str, classes: Array, num_classes: int | None = None) -> None:
  """Raises ValueError unless these are class numbers, integers in 0..C−1."""
  check_integers(name, classes)
  check_values(classes={name: classes}, num_classes=num_classes)


def check_integers(name: str, classes: Array) -> None:
  """Raises ValueError unless classes are integers."""
  if not jnp.issubdtype(classes.dtype, jnp.integer):
    raise ValueError(f'{name} has dtype {classes.dtype}: use integers')


def check_outside_jit(**values: Any) -> None:
  """Raises ValueError under jit, vmap and the like, where a driver on the host cannot run."""
  traced = [name for name, value in values.items() if isinstance(value, jax.core.Tracer)]
  if traced:
    raise ValueError(f'{", ".join(traced)} has no value here: call autoattack outside of jit, vmap and '
                     'the like, or apgd, fab and square, which compose with them')


def check_radius(radius: Any, num_examples: int, name: str = 'epsilon') -> None:
  """Raises ValueError unless the shape is that of a number, or of one number per example."""
  if isinstance(radius, str):
    raise ValueError(f'{name} = {radius!r}: use a number, without quotes')
  check_shape(name, radius, (), (1,), (num_examples,))


def check_count(name: str, number: Any) -> None:
  """Raises ValueError unless a number of steps, restarts or the like is an integer of at least 1."""
  if not isinstance(number, (int, np.integer)) or number < 1:
    raise ValueError(f'{name} = {number}: use a whole number above 0')


def check_name(name: str, value: str, known: Sequence[str]) -> None:
  """Raises ValueError unless the value is one of the known names."""
  if value not in known:
    raise ValueError(f'{name} = {value!r}: use one of {", ".join(known)}')


def check_shape(name: str, array: Any, *shapes: tuple[int, ...]) -> None:
  """Raises ValueError unless an argument has one of these shapes; the last has one row per example."""
  if np.shape(array) not in shapes:
    raise ValueError(f'{name} has shape {np.shape(array)}: use {"a number, or " if () in shapes else ""}'
                     f'{shapes[-1]}, one row per example of x')


def bound_of_one(bound: Any, x: Array) -> Array:
  """f32[...], the bound of one example; ValueError for an array that differs between examples."""
  bound = jnp.asarray(bound, x.dtype)
  if bound.ndim < x.ndim:
    return bound
  if bound.ndim > x.ndim or bound.shape[0] > 1:
    raise ValueError(f'bounds have shape {bound.shape}: use numbers, or arrays that broadcast with one '
                     f'example, {x.shape[1:]}')
  return bound[0]


def indices(index: Array | None, num_examples: int, once: bool = False) -> Array:
  """i32[B], what each example folds into a key: by default its place in the batch.

  Raises ValueError for another shape or dtype and, with `once`, for repeated numbers.
  """
  index = jnp.arange(num_examples) if index is None else jnp.asarray(index)
  if index.shape != (num_examples,) or not jnp.issubdtype(index.dtype, jnp.integer):
    raise ValueError(f'index has shape {index.shape} and dtype {index.dtype}: use one integer per '
                     f'example of x, {(num_examples,)}')
  if once and is_known(index):
    values, counts = np.unique(np.asarray(index), return_counts=True)
    if counts.max(initial=1) > 1:
      raise ValueError(f'index has {values[counts.argmax()]} more than once: examples of one index '
                       'draw alike; use arange(len(x)), or the places in a larger set')
  return index


def is_known(value: Any) -> bool:
  """Whether a value can be looked at: not under a transformation, and not on another machine."""
  return not isinstance(value, jax.core.Tracer) and getattr(value, 'is_fully_addressable', True)

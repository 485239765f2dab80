"""What an attack refuses, in one line that names the field, its value and the remedy.

Values can be looked at only outside of jit, vmap and the like; there, and only there, they are.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def check_examples(x: Array, y: Array) -> None:
  """Raises unless inputs and classes can be attacked.

  Args:
    x: f32[B, ...].
    y: i32[B].

  Raises:
    ValueError: for inputs that are integers or of less precision than float32, classes that are no
      integers or below 0, x and y of different lengths, or no examples at all.

  Source: ours.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'x has dtype {x.dtype}: convert it, x.astype(float32) / 255 for images')
  if jnp.finfo(x.dtype).bits < 32:
    raise ValueError(f'x has dtype {x.dtype}, which rounds steps and radii away: use float32, and let '
                     'logits_fn convert it')
  if y.shape != x.shape[:1]:
    cure = 'argmax(y, axis=-1) of one-hot rows' if y.ndim > 1 else 'x[None], y[None] of one example'
    cure = 'y[:, 0] of a column' if y.shape == (len(x), 1) else cure
    raise ValueError(f'y has shape {y.shape}: use one class per example of x, {x.shape[:1]}; {cure}')
  if not len(x):
    raise ValueError('x has no examples')
  check_classes('y', y)


def check_classes(name: str, classes: Array, num_classes: int | None = None) -> None:
  """Raises unless these are numbers of classes.

  Args:
    name: of the argument.
    classes: i32[B].
    num_classes: C, where it is known.

  Raises:
    ValueError: for other dtypes, and for numbers below 0 or not below C.

  Example:
    >>> check_classes('y', jnp.array([0, 3]), 4)

  Source: ours.
  """
  if not jnp.issubdtype(classes.dtype, jnp.integer):
    raise ValueError(f'{name} has dtype {classes.dtype}: use integers')
  if not is_known(classes) or not classes.size:
    return
  classes = np.asarray(classes)  # before any arithmetic, which jit would trace
  lowest, highest = int(classes.min()), int(classes.max())
  if lowest < 0 or (num_classes is not None and highest >= num_classes):
    several = 'count up from 0' if num_classes is None else f'are 0..{num_classes - 1}'
    raise ValueError(f'{name} reaches from {lowest} to {highest}: classes {several}; leave out '
                     'examples without one')


def check_outside_jit(**values: Any) -> None:
  """Raises under jit, vmap and the like, where a driver on the host cannot run.

  Args:
    **values: by the names of the arguments.

  Raises:
    ValueError: if one has no value yet.

  Example:
    >>> check_outside_jit(x=jnp.zeros(2))

  Source: ours.
  """
  traced = [name for name, value in values.items() if isinstance(value, jax.core.Tracer)]
  if traced:
    raise ValueError(f'{", ".join(traced)} has no value here: call autoattack outside of jit, vmap and '
                     'the like, or apgd, fab and square, which compose with them')


def check_radius(
    epsilon: Any, num_examples: int, name: str = 'epsilon', infinite: bool = False) -> None:
  """Raises unless this is a radius, or one an example.

  Args:
    epsilon: a number or f32[B].
    num_examples: B.
    name: of the argument, if it is another length.
    infinite: whether it may be.

  Raises:
    ValueError: for another shape, and for numbers below 0, infinite or NaN.

  Example:
    >>> check_radius(8 / 255, 2)

  Source: ours.
  """
  if isinstance(epsilon, str):
    raise ValueError(f'{name} = {epsilon!r}: use a number, without quotes')
  check_shape(name, epsilon, (), (1,), (num_examples,))
  if not is_known(epsilon):
    return
  numbers = np.ravel(np.asarray(epsilon, np.float64))
  wrong = ~(numbers >= 0) | (np.isinf(numbers) & (not infinite))
  if wrong.any():
    raise ValueError(f'{name} = {numbers[wrong][0]:g}: use a number of at least 0'
                     f'{"" if infinite else " and finite"}, 8/255 for example')


def check_count(name: str, number: Any) -> None:
  """Raises unless this is a number of steps, restarts or the like.

  Args:
    name: of the argument.
    number: at least 1.

  Raises:
    ValueError: for numbers below 1, and for what is no integer.

  Example:
    >>> check_count('num_steps', 20)

  Source: ours.
  """
  if not isinstance(number, (int, np.integer)) or number < 1:
    raise ValueError(f'{name} = {number}: use a whole number above 0')


def check_name(name: str, value: str, known: Sequence[str]) -> None:
  """Raises unless this is one of a few names.

  Args:
    name: of the argument.
    value: of it.
    known: what it can be.

  Raises:
    ValueError: for any other, and lists them.

  Example:
    >>> check_name('norm', 'l2', ('linf', 'l2'))

  Source: ours.
  """
  if value not in known:
    raise ValueError(f'{name} = {value!r}: use one of {", ".join(known)}')


def check_shape(name: str, array: Array, *shapes: tuple[int, ...]) -> None:
  """Raises unless an argument that goes with the examples has a shape they ask for.

  Args:
    name: of the argument.
    array: it.
    *shapes: what it may be; the last is that of one row an example.

  Raises:
    ValueError: for another.

  Example:
    >>> check_shape('start', jnp.zeros((2, 3)), (2, 3))

  Source: ours.
  """
  if np.shape(array) not in shapes:
    raise ValueError(f'{name} has shape {np.shape(array)}: use {"a number, or " if () in shapes else ""}'
                     f'{shapes[-1]}, one row per example of x')


def check_start(start: Array, x: Array) -> None:
  """Raises unless attacks can begin there.

  Args:
    start: f32[B, ...].
    x: f32[B, ...].

  Raises:
    ValueError: for another shape than that of x, and for NaN.

  Example:
    >>> check_start(jnp.zeros((2, 3)), jnp.ones((2, 3)))

  Source: ours.
  """
  check_shape('start', start, x.shape)
  if is_known(start) and np.isnan(np.asarray(start)).any():  # NumPy, as jit would trace it
    raise ValueError('start is NaN in places: leave these examples out, or mend them')


def check_bounds(x: Array, bounds: tuple[float, float]) -> None:
  """Raises unless inputs are within their bounds, but for what rounding took out: attacks clip that.

  Args:
    x: f32[B, ...].
    bounds: the smallest and the largest value of an input, numbers or arrays that broadcast with x.

  Raises:
    ValueError: for inputs beyond them or that are NaN, and for bounds that are not two or of which
      the second is not the larger.

  Example:
    >>> check_bounds(jnp.array([0., 1.0000001]), (0., 1.))

  Source: ours.
  """
  number = len(bounds) if isinstance(bounds, (tuple, list)) or np.ndim(bounds) else 0
  if number != 2:
    raise ValueError(f'bounds = {bounds}: use two, the smallest and the largest value of an input')
  if not all(map(is_known, bounds)):
    return
  low, high = (np.asarray(bound, np.float64) for bound in bounds)
  told = f'{low.min():g}..{high.max():g}'
  if not np.all(low < high):
    raise ValueError(f'bounds = {told}: use the smallest and the largest value of an input')
  if not is_known(x) or not x.size:
    return
  slack = lambda bound: max(1e-5, float(jnp.finfo(x.dtype).eps)) * (1 + np.abs(bound))
  numbers = np.asarray(x).astype(np.float64)  # before any arithmetic, which jit would trace
  if np.isnan(numbers).any():
    broken = int(np.isnan(numbers.reshape(len(numbers), -1)).any(axis=1).sum())
    raise ValueError(f'x is NaN in {broken} of {len(numbers)} examples: leave these out, or mend them')
  if np.any((numbers < low - slack(low)) | (numbers > high + slack(high))):
    raise ValueError(f'x reaches from {numbers.min():.3g} to {numbers.max():.3g}, beyond '
                     f'{told}: give bounds=, or normalise inside logits_fn')


def bound_of_one(bound: Any, x: Array) -> Array:
  """A bound as it is for one example.

  Args:
    bound: a number, or an array that broadcasts with an example, or with a batch by a first axis of 1.
    x: f32[B, ...].

  Returns:
    f32[...].

  Raises:
    ValueError: for one of several examples.

  Example:
    >>> bound_of_one(jnp.zeros((1, 1, 1, 3)), jnp.zeros((2, 8, 8, 3))).shape
    (1, 1, 3)

  Source: ours.
  """
  bound = jnp.asarray(bound, x.dtype)
  if bound.ndim < x.ndim:
    return bound
  if bound.ndim > x.ndim or bound.shape[0] > 1:
    raise ValueError(f'bounds have shape {bound.shape}: use numbers, or arrays that broadcast with one '
                     f'example, {x.shape[1:]}')
  return bound[0]


def indices(index: Array | None, num_examples: int, once: bool = False) -> Array:
  """What each example folds into a key.

  Args:
    index: i32[B], or None for the places in the batch.
    num_examples: B.
    once: whether no two may have the same.

  Returns:
    i32[B].

  Raises:
    ValueError: for another shape or dtype and, with `once`, for numbers that come twice.

  Example:
    >>> print(indices(None, 2), indices([4, 7], 2, once=True))
    [0 1] [4 7]

  Source: ours.
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
  """Whether a value can be looked at here: under a transformation, or on another machine, not."""
  return not isinstance(value, jax.core.Tracer) and getattr(value, 'is_fully_addressable', True)

"""Checks of an attack's arguments: each message names the argument, its value and the remedy.

Shapes and dtypes are always checked. Values are checked where they are known, which they are not under a
transformation such as jit. The checks run on the device of the values, and only one flag is fetched unless
a value is invalid.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def as_examples(x: Any, y: Any) -> tuple[Array, Array]:
  """Inputs and classes as arrays; raises ValueError unless their shapes and dtypes fit an attack."""
  x, y = as_inputs(x), as_array('y', y)
  if y.shape != x.shape[:1]:
    raise ValueError(f'y has shape {y.shape}: use one class per example of x, {x.shape[:1]}; '
                     f'{_classes(x, y)}')
  if not len(x):
    raise ValueError('x has no examples: give at least one')
  check_integers('y', y)
  return x, y


def as_inputs(x: Any) -> Array:
  """Inputs as an array; raises ValueError unless it is of floats, in float32 at least."""
  x = as_array('x', x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'x has dtype {x.dtype}: convert it, x.astype(float32) / 255 for images')
  if jnp.finfo(x.dtype).bits < 32:
    raise ValueError(f'x has dtype {x.dtype}, which rounds steps and radii away: use float32, and let '
                     'logits_fn convert it')
  return x


def as_start(start: Any, x: Array) -> Array:
  """A starting point in the dtype of x; raises ValueError unless it is numbers of x's shape."""
  check_number('start', start)
  check_shape('start', start, x.shape)
  return keep_known(lambda start: jnp.asarray(start, x.dtype), start)


def as_array(name: str, value: Any) -> Array:
  """The value as an array; raises ValueError unless JAX can hold it."""
  try:
    array = keep_known(jnp.asarray, value)
  except (TypeError, ValueError, RuntimeError, OverflowError) as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(f'{name} is a {type(value).__name__}, {reason}: use an array of numbers') from error
  is_integer = isinstance(value, np.ndarray) and value.dtype.kind in 'iu'
  if is_integer and np.any(value != value.astype(array.dtype)):
    raise ValueError(f'{name} reaches from {value.min()} to {value.max()}, which {array.dtype} cannot hold: '
                     'use smaller integers, or jax.enable_x64')
  return array


def _classes(x: Array, y: Array) -> str:
  """How to get one class per example of x from y."""
  if y.ndim < 2:
    one = {(): 'x[None], y[None] of one example', (1,): 'x[None] of one example'}
    return one.get(y.shape, 'give both of the same examples')
  if y.shape == (len(x), 1):
    return 'y[:, 0] of a column'
  if y.shape[0] != len(x):
    return 'give both of the same examples'
  if y.ndim > 2:
    return 'a label for each pixel or token is not supported'
  if not is_known(y):
    return 'argmax(y, axis=-1) if each row is one-hot'
  rows = np.asarray(y, np.float64)
  if not np.isin(rows, (0, 1)).all():
    soft = np.allclose(rows.sum(1), 1, atol=1e-3)
    return ('soft labels go into loss_args of pgd, for a loss of your own' if soft else
            'a label for each pixel or token is not supported')
  if (rows.sum(1) == 1).all():
    return 'argmax(y, axis=-1) of one-hot rows'
  return ('of several labels attack one at a time, y[:, j] with the logits stack([0 * z[:, j], z[:, j]], '
          'axis=-1)')


def check_values(
    *, x: Array | None = None, bounds: Sequence[Any] = (None, None), classes: dict[str, Array] | None = None,
    radii: dict[str, Any] | None = None, start: Array | None = None, num_classes: int | None = None,
    infinite: bool = False,
) -> None:
  """Raises ValueError for values that cannot be attacked; traced values are not checked.

  Args:
    x: f32[B, ...], must be finite, and within the bounds up to rounding.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    classes: i32[B] by argument name, at least 0.
    radii: numbers, or arrays with one per example, by argument name, at least 0 and finite.
    start: f32[B, ...], must be finite.
    num_classes: C, larger than every class, if it is known.
    infinite: whether radii may be infinite.
  """
  if_known = lambda value: value if value is not None and is_known(value) else None
  # Of ordered dicts, because jax.tree sorts the names of others, and the first invalid value is reported.
  by_name = [OrderedDict((name, value) for name, value in (values or {}).items() if is_known(value))
             for values in (radii, classes)]
  with jax.ensure_compile_time_eval():
    # Radii are checked in the attack's precision, in which a float64 number can become infinite.
    with np.errstate(over='ignore'):
      by_name[0] = OrderedDict((name, jnp.asarray(value, float)) for name, value in by_name[0].items())
    values = *by_name, if_known(start), tuple(map(if_known, bounds)), if_known(x)
    if not _are_valid(*values, num_classes=num_classes, infinite=infinite):
      values = jax.tree.map(lambda value: np.asarray(jnp.asarray(value), np.float64), values)
      for wrong, message in _checks(*values, num_classes, infinite):
        if np.any(wrong):
          raise ValueError(message())


@functools.partial(jax.jit, static_argnames=('num_classes', 'infinite'))
def _are_valid(*values: Any, num_classes: int | None, infinite: bool) -> Array:
  wrong = [jnp.any(wrong) for wrong, _ in _checks(*values, num_classes, infinite)]
  return ~jnp.any(jnp.array([False, *wrong]))


def _checks(radii, classes, start, bounds, x, num_classes, infinite) -> Iterator[tuple[Any, Callable]]:
  """For each check, where it finds a value invalid, and a function that makes the message on the host."""
  example = dict.fromkeys(('epsilon', 'step_size'), ', 8/255 for example')
  for name, numbers in radii.items():
    wrong = ~(numbers >= 0) | (jnp.isinf(numbers) & (not infinite))
    yield wrong, lambda: (f'{name} = {np.ravel(numbers)[np.ravel(wrong)][0]:g}: use a number of at least 0'
                          f'{"" if infinite else " and finite"}{example.get(name, "")}')
  remedy = 'count up from 0' if num_classes is None else f'are 0..{num_classes - 1}'
  for name, numbers in classes.items():
    yield (numbers < 0) | (False if num_classes is None else numbers >= num_classes), lambda: (
        f'{name} reaches from {numbers.min():.0f} to {numbers.max():.0f}: classes {remedy}; leave out '
        'examples without one')
  if start is not None:
    yield ~jnp.isfinite(start), lambda: (
        'start is NaN or infinite in places: leave these examples out, or mend them')
  if x is not None:
    broken = (~jnp.isfinite(x)).any(axis=tuple(range(1, x.ndim)))
    yield broken, lambda: (f'x is {"NaN" if np.isnan(x).any() else "infinite"} in {broken.sum()} of {len(x)} '
                           'examples: leave these out, or mend them')
  if any(bound is None for bound in bounds):
    return
  low, high = bounds
  interval = lambda: f'{low.min():g}..{high.max():g}'
  # Arrays may be equal in places, where an entry must not change; two equal numbers would fix all entries.
  crossed = ~(low <= high) if np.ndim(low) or np.ndim(high) else ~(low < high)
  first = lambda bound: np.broadcast_to(bound, crossed.shape)[crossed].flat[0]
  yield crossed, lambda: (f'bounds = {first(low):g}..{first(high):g}: use the smallest and the largest value '
                          'of an input')
  if x is not None:
    # Attacks clip what is beyond the bounds by rounding.
    slack = max(1e-5, float(jnp.finfo(x.dtype).eps))
    inside = (x >= low - slack * (1 + abs(low))) & (x <= high + slack * (1 + abs(high)))
    yield ~inside, lambda: (f'x reaches from {x.min():.3g} to {x.max():.3g}, beyond {interval()}: '
                            'give bounds=, or normalise inside logits_fn')


def check_integers(name: str, classes: Array) -> None:
  """Raises ValueError unless classes are integers."""
  if not jnp.issubdtype(classes.dtype, jnp.integer):
    raise ValueError(f'{name} has dtype {classes.dtype}: use integers')


def check_outside_jit(**values: Any) -> None:
  """Raises ValueError under jit, vmap and the like, where a driver on the host cannot run."""
  is_traced = lambda value: any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
  traced = [name for name, value in values.items() if is_traced(value)]
  if traced or is_traced(jnp.zeros(())):  # in jit even constants are
    raise ValueError(f'{", ".join(traced) or "the caller"} is traced: call autoattack outside of jit, vmap '
                     'and the like, or use apgd, fab and square, which can be transformed')


def check_radius(radius: Any, num_examples: int, name: str = 'epsilon') -> None:
  """Raises ValueError unless the shape is that of a number, or of one number per example."""
  check_number(name, radius)
  check_shape(name, radius, (), (1,), (num_examples,))


def check_number(name: str, value: Any) -> None:
  """Raises ValueError unless the value is a number or an array of numbers."""
  try:
    dtype = getattr(value, 'dtype', None) or np.asarray(value).dtype
  except ValueError:  # lists of different lengths
    dtype = np.dtype(object)
  if not jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.complexfloating):
    without = ', without quotes' if isinstance(value, str) else ''
    raise ValueError(f'{name} = {_shown(value)}: use a number{without}')


def check_count(name: str, number: Any, or_none: bool = False) -> None:
  """Raises ValueError unless a number of steps, restarts or the like is an integer above 0, or 0 for none."""
  if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < (0 if or_none else 1):
    remedy = ', or 0 for none' if or_none else ''
    raise ValueError(f'{name} = {_shown(number)}: use a whole number above 0{remedy}')


def check_name(name: str, value: str, known: Sequence[str]) -> None:
  """Raises ValueError unless the value is one of the known names."""
  if not isinstance(value, str) or value not in known:
    raise ValueError(f'{name} = {_shown(value)}: use one of {", ".join(known)}')


def check_flag(name: str, value: Any) -> None:
  """Raises ValueError unless the value is True or False; any text would count as True."""
  if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
    raise ValueError(f'{name} = {_shown(value)}: use True or False')


def _shown(value: Any) -> str:
  """A value in one short line."""
  is_number = isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0
  text = ' '.join(repr(value.item() if is_number else value).split())
  return text if len(text) <= 80 else text[:77] + '...'


def cached(function: Callable) -> Callable:
  """Caches by static options, which are given by name; raises ValueError for values without a hash."""
  made = functools.lru_cache(maxsize=None, typed=True)(function)  # 1 == 1. == True, but only 1 is a count

  @functools.wraps(function)
  def call(**options):
    for name, value in options.items():
      try:
        hash(value)
      except TypeError:
        raise ValueError(f'{name} = {_shown(value)}: use a value that can be hashed') from None
    return made(**options)

  return call


def check_shape(name: str, array: Any, *shapes: tuple[int, ...]) -> None:
  """Raises ValueError unless an argument has one of these shapes; the last has one row per example."""
  if np.shape(array) not in shapes:
    wanted = ['a number'] * (() in shapes) + [f'{s}, one row per example of x' for s in shapes[-1:] if s]
    raise ValueError(f'{name} has shape {np.shape(array)}: use {", or ".join(wanted)}')


def bounds_of(bounds: Sequence[Any], mask: Array | None, x: Array) -> tuple[Array, Array]:
  """Both bounds, each a number or f32[B, ...] with the axes of x; both are x where the mask is 0.

  What is known stays so, also under jit.
  Raises ValueError unless there are two bounds that broadcast with x, and a mask of 0 and 1 that does.
  """
  if not isinstance(bounds, (tuple, list)) and not np.ndim(bounds) or len(bounds) != 2:
    raise ValueError(f'bounds = {_shown(bounds)}: use two, the smallest and the largest value of an input')
  for bound in bounds:
    check_number('bounds', bound)
  low, high = (_rows('bounds', bound, x, 'numbers, or arrays that broadcast') for bound in bounds)
  if mask is None:
    return low, high
  as_array('mask', mask)
  # A mask [H, W] could fit the last axes of images [B, H, W, C], so no axis but the first may be left out.
  mask = _rows('mask', mask, x, 'an array that broadcasts', least=x.ndim - 1)
  if is_known(mask) and not keep_known(lambda mask: ((mask == 0) | (mask == 1)).all(), mask):
    values = np.asarray(mask)
    raise ValueError(f'mask reaches from {values.min():g} to {values.max():g}: use 1 where an entry may '
                     'change, else 0')
  check_values(bounds=(low, high))  # before they depend on x, which may be traced
  hold = lambda mask, x, bound: jnp.where(mask == 0, x, jnp.asarray(bound, x.dtype))
  return tuple(keep_known(hold, mask, x, bound) for bound in (low, high))


def _rows(name: str, array: Any, x: Array, wanted: str, least: int = 0) -> Array:
  """A number as it is, or an array [B, ...] with all axes of x, where those of length 1 may stay so."""
  array = array if isinstance(array, jax.Array) else np.asarray(array)
  shape = (1,) * (x.ndim - array.ndim) + array.shape
  fits = least <= array.ndim <= x.ndim and all(n in (1, m) for n, m in zip(shape, x.shape, strict=True))
  if not fits or array.dtype == object:
    remedy = (f'.reshape{(-1,) + (1,) * (x.ndim - 2)} for channels first' if array.shape == x.shape[1:2] else
              '[..., None] adds a last axis, [None] a first one')
    raise ValueError(f'{name} of shape {array.shape}: use {wanted} with x, {x.shape}; {remedy}')
  broadcast_to = (jnp if isinstance(array, jax.Array) else np).broadcast_to
  rows = lambda array: broadcast_to(array.reshape(shape), (len(x), *shape[1:]))
  return keep_known(rows, array) if array.ndim else array


def indices(index: Array | None, num_examples: int, once: bool = False) -> Array:
  """i32[B], what each example folds into a key: by default its place in the batch.

  Raises ValueError for another shape or dtype and, with `once`, for repeated numbers.
  """
  index = jnp.arange(num_examples) if index is None else as_array('index', index)
  if index.shape != (num_examples,) or not jnp.issubdtype(index.dtype, jnp.integer):
    raise ValueError(f'index has shape {index.shape} and dtype {index.dtype}: use one integer per '
                     f'example of x, {(num_examples,)}')
  if index.dtype.itemsize > 4 and is_known(index):
    numbers = np.asarray(index)
    if np.any(numbers != numbers.astype(np.int32)):
      raise ValueError(f'index reaches from {numbers.min()} to {numbers.max()}: use integers of 32 bits')
  if once and is_known(index):
    values, counts = np.unique(np.asarray(index), return_counts=True)
    if counts.max(initial=1) > 1:
      raise ValueError(f'index has {values[counts.argmax()]} more than once: examples of one index '
                       'draw alike; use arange(len(x)), or the places in a larger set')
  return index


def is_known(value: Any) -> bool:
  """Whether a value can be read: it is not traced, and it is on this machine."""
  return not isinstance(value, jax.core.Tracer) and getattr(value, 'is_fully_addressable', True)


def keep_known(function: Callable[..., Any], *values: Any) -> Any:
  """The function's result, itself known if all values are: under the caller's jit it would be traced."""
  if not all(map(is_known, jax.tree.leaves(values))):
    return function(*values)
  with jax.ensure_compile_time_eval():
    return function(*values)

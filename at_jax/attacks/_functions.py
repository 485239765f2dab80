"""Judges a user's functions by what they return: one line says what that was and what is wanted."""

from collections.abc import Callable
import inspect
import itertools
import re
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
_UNTRACEABLE = {'torch', 'sklearn', 'tensorflow'}
# Only its cached eval_shape is used.
_TRACED = jax.jit(lambda function, *args: function(*args), static_argnums=0)


def check_answer(answer: Any, num_examples: int, name: str = 'logits_fn') -> None:
  """Raises ValueError unless the output of a model, an array or its shape, is logits [B, C], C ≥ 2."""
  if not hasattr(answer, 'shape'):
    part = "['logits']" if isinstance(answer, dict) else '[0]'
    raise ValueError(f'{name} gives a {type(answer).__name__}: return the logits alone, '
                     f'lambda x: model(x){part} for example')
  if not jnp.issubdtype(answer.dtype, jnp.floating):
    raise ValueError(f'{name} gives dtype {answer.dtype}: return logits, which are floats, before any argmax')
  shape = tuple(answer.shape)
  if len(shape) != 2 or shape[0] != num_examples or shape[1] < 2:
    remedy = 'return one row per example, one column per class'
    if shape in ((num_examples,), (num_examples, 1)):
      remedy = 'for one logit z of two classes return stack([0 * z, z], axis=-1) of shape [B, 2]'
    if len(shape) > 2 and shape[0] == num_examples:
      remedy += '; a class for each pixel or token is not supported'
    raise ValueError(f'{name} gives shape {shape} for {num_examples} examples: {remedy}')


def num_decided(decide: Callable[[Array], Array] | None, logits: jax.ShapeDtypeStruct) -> int:
  """The number of classes that y can have: the smaller of those that are attacked and that decide."""
  if decide is None:
    return logits.shape[1]
  try:
    answer = _TRACED.eval_shape(decide, logits)
  except Exception as error:
    raise failure('decide', decide, (logits,), error) from error
  check_answer(answer, logits.shape[0], 'decide')
  return min(answer.shape[1], logits.shape[1])


def check_loss(loss: Callable[..., Array], *args: Any) -> None:
  """Raises ValueError unless a loss of these arguments gives one number per example.

  It is traced for a number of examples that no other axis has. There a loss of one-hot rows fails, which
  would broadcast y over the classes where B is 1 or C. A loss that closes over an array with a row per
  example fails there as well; it is accepted where B is no other axis, or where it does not depend on C.
  """
  (b, c), *_ = shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
  axes = {1, c}.union(*(shape[1:] for shape in shapes))
  failed = _loss_error(loss, args, next(n for n in itertools.count(2) if n not in axes | {b}), c)
  if failed is None or b == c and _loss_error(loss, args, b, max(axes) + 1) is None:
    return
  actual = _loss_error(loss, args, b, c)
  if actual is None and b in axes:
    actual = ValueError(f'{failed} (with B = {b} it fits an axis by chance): y has one class per example '
                        'and is not one-hot; loss_args have a row per example')
  if actual is not None:
    raise actual from actual.__cause__


def _loss_error(loss: Callable, args: tuple, num_examples: int, num_classes: int) -> ValueError | None:
  """What is wrong with a loss where the sizes are these."""
  actual_classes = args[0].shape[1]

  def resized(leaf):
    if not np.ndim(leaf):
      return leaf
    rest = (num_classes if n == actual_classes else n for n in leaf.shape[1:])
    return jax.ShapeDtypeStruct((num_examples, *rest), leaf.dtype)

  args = jax.tree.map(resized, args)
  try:
    value = jax.eval_shape(loss, *args)
  except Exception as error:
    failed = failure('loss', loss, args, error)
    failed.__cause__ = error
    return failed
  remedy = 'return one number per example, without the mean'
  if not hasattr(value, 'shape'):
    return ValueError(f'loss gives a {type(value).__name__}: {remedy}')
  if value.shape != (num_examples,):
    return ValueError(f'loss gives shape {value.shape} for {num_examples} examples: {remedy}')
  if not jnp.issubdtype(value.dtype, jnp.floating):
    return ValueError(f'loss gives dtype {value.dtype}: return floats, which have a gradient')
  return None


def failure(name: str, function: Any, args: tuple, error: Exception) -> ValueError:
  """The error of a user's function as one line."""
  text = str(error).strip().partition('\n')[0]
  kind, given = type(error).__name__, _name_of(function)
  modules = {frame.f_globals.get('__name__', '').partition('.')[0] for frame, _ in
             traceback.walk_tb(error.__traceback__)}
  if re.search('[Tt]race[rd]', text) or modules & _UNTRACEABLE:
    others = ('; make a PyTorch model a models.torch_model.TorchModel; for square alone, wrap it in '
              'jax.pure_callback' if name == 'logits_fn' else '')
    return ValueError(f'{name} = {given} cannot be traced by JAX, {kind}: write it in jax.numpy, without '
                      f'NumPy, PyTorch or an if on its input{others}')
  shapes = ', '.join(f'{a.dtype}{list(a.shape)}' for a in args if hasattr(a, 'shape'))
  text = text if len(text) < 160 else text[:157] + '...'
  return ValueError(f'{name} = {given} fails on {shapes}, {kind}: {text}')


def _name_of(function: Any) -> str:
  return getattr(function, '__name__', type(function).__name__)


def check_function(name: str, function: Any, *arguments: str, like: str,
                   remedy: str = 'use a function of these arguments') -> None:
  """Raises ValueError unless this is a function of the named arguments; `like` is one for the message."""
  if not callable(function):
    raise ValueError(f'{name} = {function!r}: use a function, {like} for example')
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError as error:
    raise ValueError(f'{name} = {_name_of(function)} cannot be called as ({", ".join(arguments)}), {error}: '
                     f'{remedy}') from None
  except ValueError:  # a builtin without a signature
    pass

"""What an attack is given to call, models and losses: refused in one line where they cannot be."""

from collections.abc import Callable
import inspect
from typing import Any

import jax

from at_jax.attacks import inputs

Array = jax.Array


def check_call(logits_fn: jax.tree_util.Partial, x: Array, **classes: Array) -> None:
  """Raises unless the model gives logits, and those of all classes named.

  The model is traced for it, once for all calls, and not compiled. Under a transformation, where
  classes cannot be looked at, nothing is done.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...].
    **classes: i32[B] each, by the names of the arguments.

  Raises:
    ValueError: as `check_answer` and `inputs.check_classes`.

  Example:
    >>> check_call(jax.tree_util.Partial(lambda x: x), jax.numpy.ones((1, 2)), y=jax.numpy.array([1]))

  Source: ours.
  """
  if not all(map(inputs.is_known, (x, *classes.values()))):
    return
  answer = _answer.eval_shape(logits_fn, x)
  check_answer(answer, len(x))
  for name, numbers in classes.items():
    inputs.check_classes(name, numbers, answer.shape[1])


def check_answer(answer: Any, num_examples: int) -> None:
  """Raises unless what a model gave are logits of several classes for each example.

  Args:
    answer: an array, or the shape and dtype of one.
    num_examples: that it was given.

  Raises:
    ValueError: for tuples, dictionaries and the like, and any shape but [B, C], C of at least 2.

  Example:
    >>> check_answer(jax.numpy.zeros((2, 10)), 2)

  Source: ours.
  """
  if not hasattr(answer, 'shape'):
    raise ValueError(f'logits_fn gives a {type(answer).__name__}: return the logits alone, '
                     'lambda x: model(x)[0] for example')
  shape = answer.shape
  if len(shape) == 2 and shape[0] == num_examples and shape[1] > 1:
    return
  cure = 'return one row per example, one column per class'
  if shape in ((num_examples,), (num_examples, 1)):
    cure = 'for one logit z of two classes return stack([0 * z, z], axis=-1) of shape [B, 2]'
  raise ValueError(f'logits_fn gives shape {tuple(shape)} for {num_examples} examples: {cure}')


def check_arguments(logits_fn: Callable[..., Any], x: Array, *, random: bool) -> None:
  """Raises unless a model can be called with inputs and nothing else, or with one example and a key.

  Args:
    logits_fn: the model; one whose signature cannot be read passes.
    x: f32[B, ...].
    random: whether it is one that draws from a key.

  Raises:
    ValueError: if it takes fewer arguments, or needs more.

  Example:
    >>> check_arguments(lambda x, key: x, jax.numpy.ones((1, 2)), random=True)

  Source: ours.
  """
  names = ('x', 'key') if random else ('x',)
  reason = _misfit(logits_fn, *names)
  if reason is None:
    return
  try:  # A decorator may pass on the signature of what it wraps, and give it what it needs.
    jax.eval_shape(logits_fn, *((x[:1], jax.random.key(0)) if random else (x,)))
  except TypeError:
    cure = ('a random model is given one example and a key' if random else
            'give what else it needs, lambda x: model(x, train=False) for example; one that draws from a '
            "key is for autoattack's version='rand'")
    raise ValueError(f'logits_fn cannot be called as ({", ".join(names)}), {reason}: {cure}') from None


def check_search(
    search_fn: jax.tree_util.Partial, x: Array, y: Array, num_classes: int) -> None:
  """Raises unless a model that is searched on has a logit for each class of the one that decides.

  Args:
    search_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...].
    y: i32[B].
    num_classes: of the model that decides.

  Raises:
    ValueError: as `check_call`, and for fewer classes.

  Example:
    >>> model = jax.tree_util.Partial(lambda x: x)
    >>> check_search(model, jax.numpy.ones((1, 2)), jax.numpy.array([1]), 2)

  Source: ours.
  """
  check_call(search_fn, x, y=y)
  given = _answer.eval_shape(search_fn, x).shape[1]
  if given < num_classes:
    raise ValueError(f'search_fn gives {given} logits, logits_fn {num_classes}: use the same classes')


def check_function(name: str, function: Any, *arguments: str, like: str) -> None:
  """Raises unless this is a function that can be called with these.

  Args:
    name: of it.
    function: one whose signature cannot be read passes.
    *arguments: their names.
    like: one that could be given, for the message.

  Raises:
    ValueError: for what is no function, or one of other arguments.

  Example:
    >>> check_function('loss', lambda logits, y: y, 'logits', 'y', like='losses.dlr')

  Source: ours.
  """
  if not callable(function):
    raise ValueError(f'{name} = {function!r}: use a function, {like} for example')
  if reason := _misfit(function, *arguments):
    given = getattr(function, '__name__', repr(function))
    raise ValueError(f'{name} = {given} cannot be called as ({", ".join(arguments)}), {reason}: use one '
                     'that can, or give what it needs')


def _misfit(function: Callable[..., Any], *arguments: str) -> TypeError | None:
  """Why it cannot be called with these; None where it can, or its signature cannot be read."""
  try:
    signature = inspect.signature(function)
  except ValueError:  # a builtin
    return None
  try:
    signature.bind(*arguments)
  except TypeError as error:
    return error
  return None


_answer = jax.jit(lambda logits_fn, x: logits_fn(x))

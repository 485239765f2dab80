"""Config fields that name a function or a class by a short name or an import path."""

from collections.abc import Callable, Mapping, Sequence
import importlib
import inspect
import os
import pathlib
import traceback
from typing import Any

from at_jax import errors

_PACKAGE = str(pathlib.Path(__file__).parents[1])


def load(field: str, path: str, known: Mapping[str, Callable] | None = None, *,
         takes: Sequence[str] = (), keywords: Sequence[str] = ()) -> Callable:
  """Loads the function that a config field names, and checks that it can be called.

  Args:
    field: the field without 'config.', for the error message.
    path: a key of `known`, or an import path `module.function`.
    known: the functions of this package that have a short name.
    takes: names of the positional arguments that it is called with.
    keywords: names of the keyword arguments that it is called with.

  Returns:
    The function.

  Raises:
    errors.UserError: if the path cannot be imported, is not callable or takes other arguments.

  Example:
    >>> load('loss', 'math.floor')(2.5), load('loss', 'up', {'up': round})(2.6)
    (2, 3)
    >>> load('loss', 'colorsys.rgb_to_hsv', takes=('x', 'y'))
    Traceback (most recent call last):
    at_jax.errors.UserError: config.loss = 'colorsys.rgb_to_hsv': missing a required argument: 'b': it is \
called as rgb_to_hsv(x, y)
  """
  known = known or {}
  if path in known:
    return known[path]
  module, _, name = path.rpartition('.')
  if not module:
    remedy = f'{errors.nearest(path, known)}; or use an import path module.function'
    raise errors.UserError(f'config.{field}', path, remedy)
  try:
    found = getattr(importlib.import_module(module), name)
  except Exception as error:  # a module of the user's own may raise anything
    raise errors.UserError(f'config.{field}', path, f'cannot be imported ({reason(error)}): use '
                           'module.function, and run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError(f'config.{field}', path,
                           f'is of type {type(found).__name__}, not a function: use module.function')
  signature = _signature(found)
  if signature is not None and (takes or keywords):
    try:
      signature.bind(*takes, **dict.fromkeys(keywords))
    except TypeError as error:
      call = ', '.join([*takes, *(f'{each}=…' for each in keywords)])
      raise errors.UserError(f'config.{field}', path, f'{error}: it is called as {name}({call})') from error
  return found


def accepts(function: Callable, name: str) -> bool:
  """Whether a function takes a keyword argument.

  Args:
    function: a function or a class.
    name: name of the argument.

  Returns:
    True if it has the parameter, or takes any.

  Example:
    >>> accepts(load, 'field'), accepts(load, 'fields'), accepts(dict, 'anything')
    (True, False, True)
  """
  signature = _signature(function)
  if signature is None:
    return True
  return name in signature.parameters or any(
      p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


def check_options(field: str, function: Callable, options: Mapping[str, Any]) -> None:
  """Checks the names of keyword arguments that a group of config fields gives.

  Args:
    field: the group without 'config.', for the error message.
    function: the function or class.
    options: the keyword arguments.

  Raises:
    errors.UserError: with the first one that the function does not take.

  Example:
    >>> check_options('model', load, {'pth': 'mine.Net'})
    Traceback (most recent call last):
    at_jax.errors.UserError: config.model.pth = 'mine.Net': load has no such argument; did you mean 'path'? \
known: field, keywords, known, path, takes
  """
  for name, value in options.items():
    if not accepts(function, name):
      known = [each for each in _signature(function).parameters if each not in ('parent', 'name')]  # of linen
      title = getattr(function, '__name__', function)
      raise errors.UserError(f'config.{field}.{name}', value,
                             f'{title} has no such argument; {errors.nearest(name, known)}')


def reason(error: BaseException) -> str:
  """Describes in one line what the code of a user raised, and where.

  Args:
    error: the exception.

  Returns:
    Its type, the first line of its message, and the file and line of the user's code that failed.

  Example:
    >>> reason(KeyError('x'))
    "KeyError: 'x'"
  """
  message = (str(error).strip().splitlines() or [''])[0].rstrip('.')
  own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
  place = f' ({os.path.basename(own[-1].filename)}:{own[-1].lineno})' if own else ''
  return f'{type(error).__name__}: {message}{place}'


def _is_own(filename: str) -> bool:
  libraries = ('<', _PACKAGE, os.path.dirname(os.__file__))
  return not filename.startswith(libraries) and 'site-packages' not in filename


def _signature(function: Callable) -> inspect.Signature | None:
  try:
    return inspect.signature(function)
  except (TypeError, ValueError):  # some built-in functions have none
    return None

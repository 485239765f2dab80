"""Config fields that name a function by a short name or an import path."""

from collections.abc import Callable, Mapping
import importlib

from at_jax import errors


def load(field: str, path: str, known: Mapping[str, Callable] | None = None) -> Callable:
  """Loads the function that a config field names.

  Args:
    field: the field without 'config.', for the error message.
    path: a key of `known`, or an import path `module.function`.
    known: the functions of this package that have a short name.

  Returns:
    The function.

  Raises:
    errors.UserError: if the path cannot be imported or is not callable.

  Example:
    >>> load('loss', 'math.floor')(2.5), load('loss', 'up', {'up': round})(2.6)
    (2, 3)
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
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise errors.UserError(f'config.{field}', path, f'cannot be imported ({reason}): use module.function, '
                           'and run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError(f'config.{field}', path, 'is not a function: use module.function')
  return found

"""The exception for mistakes of the user, and the remedies for misspelt names and for failed writes."""

from collections.abc import Iterable
import difflib
import errno
import os
import pathlib
from typing import Any
import warnings

_format = warnings.formatwarning
# By the operating system's reason why a file cannot be written.
_REMEDIES = {os.strerror(getattr(errno, name)): remedy for names, remedy in (
    ('ENOSPC EDQUOT EFBIG', 'free some space or name another folder'),
    ('EACCES EPERM EROFS', 'name another folder, where you may write'),
    ('EEXIST ENOTDIR EISDIR ENOTEMPTY', 'something else has that name: name another folder'),
    ('EMFILE ENFILE', 'raise the limit of open files (ulimit -n)'),
) for name in names.split() if hasattr(errno, name)}


class UserError(Exception):
  """A mistake of the user. The command prints it as one line without a traceback and exits with 2.

  Args:
    field: name of what is wrong, as the user writes it ('attack.epsilon_255').
    value: its value.
    remedy: what to do, as a clause ('use a number above 0').

  Example:
    >>> str(UserError('batch_size', 0, 'use a whole number above 0'))
    'batch_size = 0: use a whole number above 0'
  """

  def __init__(self, field: str, value: object, remedy: str):
    super().__init__(field, value, remedy)  # `args`, from which pickle makes it again in another process
    self.field, self.value, self.remedy = field, value, remedy

  def __str__(self) -> str:
    return f'{self.field} = {self.value!r}: {self.remedy}'


def one_line(message: Warning | str, category: type[Warning], *place: Any) -> str:
  """Formats a `UserWarning` as one line without file and line number, for `warnings.formatwarning`.

  Args:
    message: the warning.
    category: its class.
    *place: file, line number and, optionally, source line.

  Returns:
    The line; for another class, Python's own format.

  Example:
    >>> one_line('validation_size = 9: use fewer', UserWarning, 'local.py', 7)
    'warning: validation_size = 9: use fewer\\n'
  """
  return f'warning: {message}\n' if category is UserWarning else _format(message, category, *place)


def nearest(name: str, known: Iterable[str]) -> str:
  """Suggests the known name that is closest to an unknown one.

  Args:
    name: the unknown name.
    known: the known names.

  Returns:
    A clause for the remedy of a `UserError`, with all known names.

  Example:
    >>> nearest('cifar_10', ['mnist', 'cifar10'])
    "did you mean 'cifar10'? known: cifar10, mnist"
  """
  known = sorted(known)
  close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  return f'{hint}known: {", ".join(known)}'


def unwritable(directory: pathlib.Path, error: Exception, failed: str = 'cannot write there',
               field: str = 'workdir') -> UserError:
  """Makes the error for a folder in which something cannot be written.

  Args:
    directory: the folder.
    error: the error of the operating system, or of a library that repeats its reason.
    failed: what failed, as a clause.
    field: name of the argument or field with the folder.

  Returns:
    The exception to raise; its remedy fits the reason.

  Example:
    >>> str(unwritable(pathlib.Path('runs/x'), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    "workdir = 'runs/x': cannot write there (No space left on device): free some space or name another folder"
  """
  # A library's message names each of its layers; the operating system's reason comes last.
  text = getattr(error, 'strerror', None) or ' '.join(str(error).split())
  reason, remedy = next(((known, remedy) for known, remedy in _REMEDIES.items() if known in text),
                        (text.rpartition(': ')[2].rstrip(']') or type(error).__name__, 'name another folder'))
  return UserError(field, str(directory), f'{failed} ({reason}): {remedy}')

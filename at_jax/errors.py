"""The one exception that a user's mistake raises, and how close a wrong name was to a right one."""

from collections.abc import Iterable
import difflib


class UserError(Exception):
  """A mistake the user can mend: shown as one line, without a traceback, exit code 2.

  Args:
    field: what was set wrongly, under the name the user set it by ('attack.epsilon_255').
    value: what it was set to.
    remedy: what to do about it, as a clause ('use a number above 0').

  Example:
    >>> str(UserError('batch_size', 0, 'use a whole number above 0'))
    'batch_size = 0: use a whole number above 0'

  Source: ours.
  """

  def __init__(self, field: str, value: object, remedy: str):
    super().__init__(f'{field} = {value!r}: {remedy}')
    self.field, self.value, self.remedy = field, value, remedy


def nearest(name: str, known: Iterable[str]) -> str:
  """Says which of the known names was probably meant, else lists them.

  Args:
    name: the name that is not known.
    known: the names that are.

  Returns:
    A clause for `UserError`'s remedy.

  Example:
    >>> nearest('cifar_10', ['mnist', 'cifar10'])
    "did you mean 'cifar10'? known: cifar10, mnist"

  Source: ours.
  """
  known = sorted(known)
  close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  return f'{hint}known: {", ".join(known)}'

"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Formats a table.

  Args:
    head: the headers of the columns.
    rows: the cells of each row.

  Returns:
    The table.

  Example:
    >>> print(table(['run', 'robust'], [['x', '25.0']]))
    | run | robust |
    | --- | --- |
    | x | 25.0 |
  """
  lines = [[cell.strip() for cell in line] for line in (head, ['---'] * len(head), *rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def percent(*shares: float | None) -> str:
  """Formats shares in percent.

  Args:
    *shares: one share in 0..1, or those of several runs.

  Returns:
    The mean, ± the standard deviation of several; '' if one is NaN or None.

  Example:
    >>> percent(.25), percent(.2, .3), percent(None)
    ('25.0', '25.0 ± 7.1', '')
  """
  if None in shares or np.isnan(shares).any():
    return ''
  spread = f' ± {100 * np.std(shares, ddof=1):.1f}' if len(shares) > 1 else ''
  return f'{100 * np.mean(shares):.1f}{spread}'


def p_value(p: float) -> str:
  """Formats a p-value, or its bound if it is too small for a float.

  Args:
    p: from 0 to 1.

  Returns:
    The text.

  Example:
    >>> p_value(.0321), p_value(0.)
    ('0.03', '< 1e-300')
  """
  return f'{p:.1g}' if p != 0 else '< 1e-300'

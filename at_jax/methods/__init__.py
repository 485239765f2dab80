"""Training methods, one module a paper: its formula, its objective and its weights.

`objective` has the protocol that they share, `losses` the terms that several of them use,
`inner_attacks` the attacks of training.
"""

import importlib

from at_jax import errors
from at_jax.methods import consistency, gairat, mart, pgd_at, trades
from at_jax.methods.objective import Objective

OBJECTIVES = {'standard': pgd_at.standard, 'pgd_at': pgd_at.pgd_at, 'trades': trades.trades,
              'gair_trades': gairat.gair_trades, 'mart': mart.mart, 'consistency': consistency.consistency}


def named(name: str) -> Objective:
  """The objective that a config's `loss` names.

  Args:
    name: of one of this module, or the import path of one of your own, 'mine.smoothed'.

  Returns:
    The function.

  Raises:
    errors.UserError: there is nothing of that name to import.

  Example:
    >>> named('at_jax.methods.trades.trades') is named('trades')
    True
  """
  if '.' not in name:
    return OBJECTIVES[name]
  module, _, function = name.rpartition('.')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError('config.loss', name, f'{error}: name a function as module.function, and '
                           'run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError('config.loss', name, 'is no function: name one as module.function')
  return found

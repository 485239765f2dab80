"""Training methods, one module per paper: its formula, objective, weights and inner attack.

Modules are exported, not functions: `methods.trades.trades`, `methods.gairat.geometry_weights`,
`methods.ducat.fold`. `objective` holds the protocol that they share, `losses` the terms that several of
them use, `inner_attacks` the attacks of training.
"""

import importlib

from at_jax import errors
from at_jax.methods import (
  awp,
  cfa,
  consistency,
  ducat,
  entropy_sgd,
  fat,
  finetune,
  gairat,
  inner_attacks,
  losses,
  mail,
  mart,
  objective,
  pgd_at,
  trades,
  weight_averaging,
)

__all__ = ['OBJECTIVES', 'awp', 'cfa', 'consistency', 'ducat', 'entropy_sgd', 'fat', 'finetune', 'gairat',
           'inner_attacks', 'losses', 'mail', 'mart', 'named', 'objective', 'pgd_at', 'trades',
           'weight_averaging']

OBJECTIVES = {'standard': pgd_at.standard, 'pgd_at': pgd_at.pgd_at, 'trades': trades.trades,
              'gair_trades': gairat.gair_trades, 'mart': mart.mart, 'consistency': consistency.consistency}


def named(loss: str) -> objective.Objective:
  """The objective that `config.loss` names.

  Args:
    loss: a key of `OBJECTIVES`, or the import path of a function of your own, 'package.module.function'.

  Returns:
    The objective.

  Raises:
    errors.UserError: if the path cannot be imported or is not a function.

  Example:
    >>> named('at_jax.methods.trades.trades') is named('trades')
    True
  """
  if '.' not in loss:
    return OBJECTIVES[loss]
  module, _, function = loss.rpartition('.')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError('config.loss', loss, f'{error}: name a function as module.function, and '
                           'run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError('config.loss', loss, 'is no function: name one as module.function')
  return found

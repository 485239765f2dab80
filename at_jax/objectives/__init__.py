"""How a loss meets the network: which examples go through it, and in how many passes.

An objective is `(forward, batch_stats, x, x_adv, y) -> Outcome`, where `forward(x, batch_stats)` is
the network in train mode and returns its logits and the statistics that this pass has updated, so
that several passes follow each other as they do in the released code. A config names an objective,
so a new method is a function, here or in a module of your own, and a config.

Each comes apart as in `losses`, a fit and a regulariser, one number an example; `mean_loss` joins
them with importance weights. An objective that takes `ducat` replaces its cross-entropy by it.
"""

import importlib

from at_jax import errors
from at_jax.objectives.outcome import Forward
from at_jax.objectives.outcome import Objective
from at_jax.objectives.outcome import Outcome
from at_jax.objectives.outcome import check
from at_jax.objectives.outcome import mean_loss
from at_jax.objectives.paired import consistency
from at_jax.objectives.paired import gair_trades
from at_jax.objectives.paired import mart
from at_jax.objectives.paired import trades
from at_jax.objectives.plain import ducat
from at_jax.objectives.plain import pgd_at
from at_jax.objectives.plain import standard

__all__ = ['Forward', 'Objective', 'Outcome', 'check', 'consistency', 'ducat', 'gair_trades', 'mart',
           'mean_loss', 'named', 'pgd_at', 'standard', 'trades']


def named(name: str) -> Objective:
  """The objective that a config's `loss` names.

  Args:
    name: of one of this module, or the import path of one of your own, 'mine.smoothed'.

  Returns:
    The function.

  Raises:
    errors.UserError: there is nothing of that name to import.

  Example:
    >>> named('at_jax.objectives.trades') is named('trades')
    True

  Source: ours.
  """
  if '.' not in name:
    return globals()[name]
  module, _, function = name.rpartition('.')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError('config.loss', name, f'{error}: name a function as module.function, and '
                           'run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError('config.loss', name, 'is no function: name one as module.function')
  return found

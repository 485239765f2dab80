"""Training methods, one module per paper: its formula, objective, weights and inner attack.

Modules are exported, not functions: `methods.trades.trades`, `methods.gairat.geometry_weights`,
`methods.ducat.fold`. `objective` holds the protocol that they share, `losses` the terms that several of
them use, `inner_attacks` the attacks of training, `schedules` parameters that change over the epochs,
`precision` the dtypes of averages and of optimizer state.
"""

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
  precision,
  schedules,
  trades,
  weight_averaging,
)

__all__ = ['OBJECTIVES', 'awp', 'cfa', 'consistency', 'ducat', 'entropy_sgd', 'fat', 'finetune', 'gairat',
           'inner_attacks', 'losses', 'mail', 'mart', 'objective', 'pgd_at', 'precision', 'schedules',
           'trades', 'weight_averaging']

OBJECTIVES = {'standard': pgd_at.standard, 'pgd_at': pgd_at.pgd_at, 'trades': trades.trades,
              'gair_trades': gairat.gair_trades, 'mart': mart.mart, 'consistency': consistency.consistency}

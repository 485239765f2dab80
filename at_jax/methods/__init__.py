"""Training methods, one module per paper: its formula, objective, weights and inner attack.

Modules are exported, not functions: `methods.trades.trades`, `methods.gairat.geometry_weights`,
`methods.ducat.fold`. `objective` holds the protocol that they share, `losses` the terms that several of
them use, `inner_attacks` the attacks of training, `schedules` parameters that change over the epochs,
`precision` the dtypes of averages and of optimizer state, `carried` perturbations that steps hand on.
"""

from at_jax.methods import (
  awp,
  carried,
  cfa,
  consistency,
  ducat,
  entropy_sgd,
  fat,
  fgsm_pgi,
  fgsm_rs,
  finetune,
  free_at,
  gairat,
  inner_attacks,
  losses,
  mail,
  mart,
  n_fgsm,
  nuat,
  objective,
  pgd_at,
  precision,
  schedules,
  trades,
  weight_averaging,
)

__all__ = ['ATTACKS', 'OBJECTIVES', 'SINGLE_STEP', 'awp', 'carried', 'cfa', 'consistency', 'ducat',
           'entropy_sgd', 'fat', 'fgsm_pgi', 'fgsm_rs', 'finetune', 'free_at', 'gairat', 'inner_attacks',
           'losses', 'mail', 'mart', 'n_fgsm', 'nuat', 'objective', 'pgd_at', 'precision', 'schedules',
           'trades', 'weight_averaging']

OBJECTIVES = {'standard': pgd_at.standard, 'pgd_at': pgd_at.pgd_at, 'trades': trades.trades,
              'gair_trades': gairat.gair_trades, 'mart': mart.mart, 'consistency': consistency.consistency,
              'nuat': nuat.nuat, 'free_at': free_at.free_at, 'fgsm_pgi': fgsm_pgi.fgsm_pgi}
# By the name in `config.attack.kind`.
ATTACKS = {'uniform': inner_attacks.uniform, 'gaussian': inner_attacks.gaussian, 'kl': inner_attacks.kl,
           'kl_and_margin': inner_attacks.kl_and_margin, 'fgsm_rs': fgsm_rs.fgsm_rs, 'n_fgsm': n_fgsm.n_fgsm,
           'nuclear': nuat.nuclear}
# Attacks of one step, whose size is their own.
SINGLE_STEP = (fgsm_rs.fgsm_rs, n_fgsm.n_fgsm, nuat.nuclear, fgsm_pgi.prior)

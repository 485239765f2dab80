"""FAT, friendly adversarial training: each example's attack stops τ steps past the decision boundary.

  L = CE(f(x'), y), with x' from PGD that allows τ steps from points that are already misclassified

τ increases during training: 0 in the first 50 of 120 epochs, 1 until epoch 90, then 2.

The objective is `pgd_at.pgd_at`; the early stop is the argument `tau` of `attacks.pgd`, which every inner
attack takes. `tau_schedule` gives τ. GAIR-FAT adds the weights of `gairat`, with τ = 0, 3, 6 from epochs
0, 40 and 70.

Reference: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, 2020,
algorithm 1.
"""

from collections.abc import Sequence

import jax

from at_jax.methods import schedules

Array = jax.Array


def tau_schedule(epoch: int | Array, *, taus: Sequence[int], epochs: Sequence[int]) -> Array:
  """τ in an epoch: taus[0], then taus[i + 1] from epoch epochs[i] on.

  Args:
    epoch: the current epoch, counted from 0. Traced if it is an array.
    taus: the values of τ.
    epochs: the increasing epochs at which τ changes, one fewer than `taus`.

  Returns:
    i32[], for `attacks.pgd`.

  Raises:
    ValueError: if the lengths do not fit.

  Example:
    >>> print(*[tau_schedule(epoch, taus=(0, 1, 2), epochs=(50, 90)) for epoch in (0, 49, 50, 90)])
    0 0 1 2

  Reference: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, 2020,
  released code.
  """
  first, *later = taus
  return schedules.by_epoch(epoch, first, dict(zip(epochs, later, strict=True)))

"""Consistency regularization: two augmented views, attacked, should be predicted alike."""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import losses
from at_jax.methods.objective import Forward, Objective, Outcome
from at_jax.methods.pgd_at import pgd_at

Array = jax.Array


def consistency(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                temperature: float, ducat: Objective | None = None) -> Outcome:
  """Consistency on PGD-AT: the fit is CE(f(x'), y) of two views, the regulariser their divergence.

  That is `losses.js_consistency`. Both views go through in one pass.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[2·B, ...], the first views of all examples, then the second; read by DUCAT only.
    x_adv: f32[2·B, ...], each view attacked.
    y: i32[2·B].
    temperature: of `losses.js_consistency`.
    ducat: as for `trades`.

  Returns:
    An `Outcome` of two views.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> views = jnp.array([[1., 0.], [0., 1.]])
    >>> found = consistency(f, {}, views, views, jnp.array([0, 0]), temperature=.5)
    >>> print(f'{found.regulariser[0]:.4f}')
    0.3278

  Source: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3; with
  DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  found = (ducat or pgd_at)(forward, batch_stats, x, x_adv, y)
  apart = losses.js_consistency(*jnp.split(found.logits, 2), temperature=temperature)
  return found._replace(regulariser=apart)

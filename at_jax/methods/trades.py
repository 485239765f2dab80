"""Objectives that ask two predictions to agree: TRADES and its kin, MART, and Consistency."""

from typing import Any

import jax

from at_jax.methods import inner_attacks, losses, objective
from at_jax.methods.objective import Forward, Objective, Outcome

Array = jax.Array


@objective.attacked_by(inner_attacks.kl)
def trades(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
           ducat: Objective | None = None) -> Outcome:
  """TRADES: the fit is CE(f(x), y), the regulariser KL(f(x) ‖ f(x')).

  x and x' go through apart, each normalised by its own statistics. The released code passes x
  twice, which only weighs the running statistics towards it. With DUCAT its concatenation goes
  first.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples, found for the KL.
    y: i32[B].
    ducat: the objective that gives the fit instead, once DUCAT has begun.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> found = trades(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.4f} {found.regulariser[0]:.4f}')
    0.1269 0.8287

  Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1; with DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats)

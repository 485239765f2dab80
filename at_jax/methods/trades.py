"""TRADES: learn the clean example, and keep the prediction at x' equal to that at x.

  L = CE(f(x), y) + β · KL(f(x) ‖ f(x'))          β = 6

Inner attack: `inner_attacks.kl`, PGD on KL(f(x) ‖ f(x')) from x + .001 · N(0, 1).

Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
algorithm 1.
"""

from typing import Any

import jax

from at_jax.methods import inner_attacks, losses, objective

Array = jax.Array


@objective.attacked_by(inner_attacks.kl)
def trades(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
           ducat: objective.Objective | None = None) -> objective.Outcome:
  """TRADES: the fit is CE(f(x), y), the regulariser is KL(f(x) ‖ f(x')).

  x and x' take one pass each, each normalised by its own BatchNorm statistics. The released code
  passes x twice, which changes only the running statistics.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    ducat: the DUCAT objective whose fit replaces the cross-entropy, with a pass before these; or None.

  Returns:
    An `objective.Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jax.numpy.array([[2., 0.]]), jax.numpy.array([[0., 1.]])
    >>> outcome = trades(f, {}, x, x_adv, jax.numpy.array([0]))
    >>> print(f'{outcome.fit[0]:.4f} {outcome.regulariser[0]:.4f}')
    0.1269 0.8287

  Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1. With DUCAT: Wang et al., arXiv 2410.12671, 2024, released code.
  """
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return objective.Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats)

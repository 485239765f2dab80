"""MART: a boosted cross-entropy, and a KL that counts where the clean prediction is unsure."""

from typing import Any

import jax

from at_jax.methods import inner_attacks, losses, objective
from at_jax.methods.objective import Forward, Objective, Outcome

Array = jax.Array


@objective.attacked_by(inner_attacks.gaussian)
def mart(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
         ducat: Objective | None = None) -> Outcome:
  """MART: the fit is CE(f(x'), y) + `mart_boost`, the regulariser KL(p ‖ p') · (1 − p_y).

  Passes as in `trades`. DUCAT replaces the cross-entropy and not the boost, whose likeliest wrong
  class may then be the dummy of y.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    ducat: as for `trades`.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> found = mart(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.3f} {found.regulariser[0]:.4f}')
    2.626 0.0988

  Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3; with DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(adversarial, y) if fit is None else fit
  return Outcome(fit + losses.mart_boost(adversarial, y), losses.mart_kl(clean, adversarial, y),
                 adversarial, batch_stats)

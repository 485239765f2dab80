"""MART: boosted cross-entropy, and a KL term that counts more for misclassified clean examples.

With p = softmax(f(x)) and p' = softmax(f(x')):

  L = BCE(p', y) + β · KL(p ‖ p') · (1 − p_y)          β = 5
  BCE(p', y) = −log p'_y − log(1.0001 − max_{k≠y} p'_k)

Inner attack: `inner_attacks.gaussian`, PGD on CE from x + .001 · N(0, 1).

Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
2020, section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import inner_attacks, losses, objective, precision

Array = jax.Array


def boost(adv_logits: Array, y: Array) -> Array:
  """The term that MART adds to the cross-entropy, −log(1.0001 − p'_k), k the likeliest wrong class.

  With a doubled head k is the likeliest of all 2C outputs except y, so it may be the dummy of y.

  Args:
    adv_logits: f32[B, K], at the adversarial input, K ≥ 2.
    y: i32[B], true classes.

  Returns:
    f32[B], in nats, from −.0001 to 9.22.

  Example:
    >>> print(f'{boost(jnp.array([[0., 0., -50.]]), jnp.array([0]))[0]:.4f}')
    0.6929

  Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3. The .0001, and the choice of k in a doubled head, are those of the released code.
  """
  own = jax.nn.one_hot(y, adv_logits.shape[-1], dtype=bool)
  # Masked classes get a finite logit, so that the argmax is never y, even if all others are masked.
  wrong = jnp.where(own, -jnp.inf, jnp.maximum(adv_logits, jnp.finfo(adv_logits.dtype).min))
  return -jnp.log(1e-4 + _complement(adv_logits, jnp.argmax(wrong, axis=-1)))


def weighted_kl(clean_logits: Array, adv_logits: Array, y: Array) -> Array:
  """MART's regulariser, KL(p ‖ p') · (1 − p_y).

  Args:
    clean_logits: f32[B, K], at the clean input.
    adv_logits: f32[B, K], at the adversarial input.
    y: i32[B], true classes.

  Returns:
    f32[B], in nats. The gradient flows through 1 − p_y too.

  Example:
    >>> print(f'{weighted_kl(jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))[0]:.4f}')
    0.0988

  Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3. The released code clips p' at 1e-12 inside the logarithm; this implementation does not.
  """
  return losses.kl(clean_logits, adv_logits) * _complement(clean_logits, y)


@objective.attacked_by(inner_attacks.gaussian)
def mart(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
         ducat: objective.Objective | None = None) -> objective.Outcome:
  """MART: the fit is CE(f(x'), y) + `boost`, the regulariser is `weighted_kl`.

  x and x' take one pass each, as in `trades`.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    ducat: the DUCAT objective whose fit replaces the cross-entropy and not the boost; or None.

  Returns:
    An `objective.Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> outcome = mart(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> print(f'{outcome.fit[0]:.3f} {outcome.regulariser[0]:.4f}')
    2.626 0.0988

  Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3. With DUCAT: Wang et al., arXiv 2410.12671, 2024, released code.
  """
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(adversarial, y) if fit is None else fit
  return objective.Outcome(fit + boost(adversarial, y), weighted_kl(clean, adversarial, y), adversarial,
                           batch_stats)


def _complement(logits: Array, y: Array) -> Array:
  """1 − p_y, summed over the other classes: the difference loses all but 3 digits where p_y ≈ 1."""
  own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
  p = jax.nn.softmax(precision.float32_at_least(logits))
  return jnp.sum(jnp.where(own, 0., p), axis=-1)

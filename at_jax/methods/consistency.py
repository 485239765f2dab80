"""Consistency regularization: two attacked views of an example get the same prediction.

With two augmentations x₁, x₂ of x, adversarial examples x'₁, x'₂, and q_i = softmax(f(x'_i) / T):

  L = ½ [CE(f(x'₁), y) + CE(f(x'₂), y)] + λ · JS(q₁ ‖ q₂)          λ = 1, T = .5
  JS(p ‖ q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2

λ is the β of `objective.mean_loss`. Inner attack: `inner_attacks.uniform`, for each view on its own.

Reference: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import losses, objective, pgd_at

Array = jax.Array


def js_divergence(logits_1: Array, logits_2: Array, *, temperature: float | Array = .5) -> Array:
  """Jensen-Shannon divergence of two predictions at a temperature.

  ½ KL(p ‖ m) + ½ KL(q ‖ m) with p = softmax(z₁/T), q = softmax(z₂/T), m = (p + q)/2.

  Args:
    logits_1: f32[B, K], at the adversarial input of the first view.
    logits_2: f32[B, K], at that of the second view.
    temperature: T. Values below 1 sharpen the predictions.

  Returns:
    f32[B], in nats, from 0 to log 2.

  Example:
    >>> print(f'{js_divergence(jnp.array([[1., 0.]]), jnp.array([[0., 1.]]))[0]:.4f}')
    0.3278

  Reference: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3. The
  released code clips m at 1e-8 inside the logarithm; this implementation does not.
  """
  log_p = losses.log_softmax(logits_1 / temperature)
  log_q = losses.log_softmax(logits_2 / temperature)
  # The gradient of logaddexp at two −∞ is NaN.
  masked = jnp.isneginf(log_p) & jnp.isneginf(log_q)
  log_m = jnp.logaddexp(*(jnp.where(masked, 0, each) for each in (log_p, log_q))) - jnp.log(2.)
  return (losses.relative_entropy(log_p, log_m) + losses.relative_entropy(log_q, log_m)) / 2


def consistency(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                temperature: float, ducat: objective.Objective | None = None) -> objective.Outcome:
  """Consistency on PGD-AT: the fit is CE(f(x'), y) of each view, the regulariser `js_divergence`.

  Both views take one pass together.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[2·B, ...], the first views of all examples, then the second views; used by DUCAT only.
    x_adv: f32[2·B, ...], the adversarial examples, in the same order.
    y: i32[2·B].
    temperature: T of `js_divergence`.
    ducat: the DUCAT objective whose fit replaces the cross-entropy; or None.

  Returns:
    An `objective.Outcome` of two views.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> views = jnp.array([[1., 0.], [0., 1.]])
    >>> outcome = consistency(f, {}, views, views, jnp.array([0, 0]), temperature=.5)
    >>> print(f'{outcome.regulariser[0]:.4f}')
    0.3278

  Reference: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3. With
  DUCAT: Wang et al., arXiv 2410.12671, 2024, released code.
  """
  outcome = (ducat or pgd_at.pgd_at)(forward, batch_stats, x, x_adv, y)
  divergence = js_divergence(*jnp.split(outcome.logits, 2), temperature=temperature)
  return outcome._replace(regulariser=divergence)

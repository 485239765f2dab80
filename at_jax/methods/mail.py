"""MAIL: examples are weighted by the probabilistic margin at their adversarial example.

With p' = softmax(f(x')):

  m = p'_y − max_{j≠y} p'_j
  w = 3 · σ(−s(m − b))          `margin_weights`, not normalised

  MAIL-AT      L = mean(w · CE(f(x'), y))                      b = −.5, s = 10
  MAIL-TRADES  L = mean(CE(f(x), y) + β · w · KL(p ‖ p'))      b = 0, s = 2, β = 5

w is 1 during burn-in, 75 of 120 epochs. Inner attacks: PGD from x + .001 · N(0, 1), on CE
(`inner_attacks.gaussian`) for MAIL-AT and on the KL (`inner_attacks.kl`) for MAIL-TRADES.

Reference: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021.
"""

import jax
import jax.numpy as jnp

from at_jax.methods import objective, precision

Array = jax.Array


def margin_weights(
    adv_logits: Array, y: Array, *, bias: float | Array, slope: float | Array, scale: float = 3.
) -> Array:
  """MAIL's weights, scale · σ(−s(m − b)), with m = p'_y − max_{j≠y} p'_j.

  Args:
    adv_logits: f32[B, K], at the adversarial input, in train mode. For a doubled head pass the folded
      logits; else the dummy of y counts as a wrong class.
    y: i32[B], true classes.
    bias: b, the margin at which the weight is half of `scale`.
    slope: s.
    scale: the largest weight.

  Returns:
    f32[B], from 0 to `scale`. No gradient flows through them.

  Example:
    >>> w = margin_weights(jnp.array([[0., 0.], [9., 0.]]), jnp.array([0, 0]), bias=0., slope=2.)
    >>> print(' '.join(f'{v:.4f}' for v in w))
    1.5000 0.3578

  Reference: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021.
  The constant 3 in place of a normalisation is that of the released code.
  """
  p = jax.nn.softmax(precision.float32_at_least(jax.lax.stop_gradient(adv_logits)))
  own = jax.nn.one_hot(y, p.shape[-1], dtype=bool)
  margin = jnp.sum(jnp.where(own, p, 0), axis=-1) - jnp.max(jnp.where(own, 0, p), axis=-1)
  return scale * jax.nn.sigmoid(slope * (bias - margin))


def weigh(evidence: objective.Evidence, *, bias: float, slope: float, axis_name: str | None) -> Array:
  """MAIL's weights in a training step, from the deployed logits at x'.

  Args:
    evidence: its logits and labels are read.
    bias: b of `margin_weights`.
    slope: s of `margin_weights`.
    axis_name: ignored; these weights are not normalised.

  Returns:
    f32[B].

  Example:
    >>> evidence = objective.Evidence(None, jnp.array([[0., 5.], [5., 0.]]), jnp.array([0, 0]), None)
    >>> print(weigh(evidence, bias=-.5, slope=10., axis_name=None).round(2))
    [2.98 0.  ]
  """
  del axis_name
  return margin_weights(evidence.logits, evidence.y, bias=bias, slope=slope)

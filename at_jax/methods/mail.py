"""MAIL: weights from the margin of the probabilities at the adversarial example."""


import jax
import jax.numpy as jnp

from at_jax.methods import objective

Array = jax.Array


def weigh(evidence: objective.Evidence, *, bias: float, slope: float, axis_name: str | None) -> Array:
  """MAIL's weights, by the margin of the deployed logits at x'.

  Args:
    evidence: of the step.
    bias: of `weights.margin_weights`.
    slope: of `weights.margin_weights`.
    axis_name: not read; these weights are not normalised.

  Returns:
    f32[B].

  Example:
    >>> seen = Evidence(None, jax.numpy.array([[0., 5.], [5., 0.]]), jax.numpy.array([0, 0]), None)
    >>> print(margin(seen, bias=-.5, slope=10., axis_name=None).round(2))
    [2.98 0.  ]

  Source: `weights.margin_weights`.
  """
  del axis_name
  return margin_weights(evidence.logits, evidence.y, bias=bias, slope=slope)


def margin_weights(
    adv_logits: Array, y: Array, *, bias: float | Array, slope: float | Array, scale: float = 3.
) -> Array:
  """MAIL's weights, scale · σ(−s(m − b)) with the probabilistic margin m = p'_y − max_{j≠y} p'_j.

  They are *not* normalised. MAIL-AT uses b = −.5, s = 10 on the whole loss; MAIL-TRADES b = 0 and
  s = 2 on the KL term.

  Args:
    adv_logits: f32[B, K], at the adversarial input, in train mode. Of a doubled head give the
      folded logits, else the dummy of y counts as a wrong class.
    y: i32[B], the true classes.
    bias: b, the margin at which a weight is half of `scale`.
    slope: s.
    scale: the largest weight.

  Returns:
    f32[B], from 0 to `scale`.

  Example:
    >>> w = margin_weights(jnp.array([[0., 0.], [9., 0.]]), jnp.array([0, 0]), bias=0., slope=2.)
    >>> print(' '.join(f'{v:.4f}' for v in w))
    1.5000 0.3578

  Source: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021;
  the constant 3 in place of a normalisation is the released code's.
  """
  p = jax.nn.softmax(jax.lax.stop_gradient(adv_logits))
  own = jax.nn.one_hot(y, p.shape[-1], dtype=bool)
  margin = jnp.sum(jnp.where(own, p, 0), axis=-1) - jnp.max(jnp.where(own, 0, p), axis=-1)
  return scale * jax.nn.sigmoid(slope * (bias - margin))

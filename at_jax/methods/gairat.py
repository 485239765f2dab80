"""GAIRAT: adversarial training whose examples are weighted by their distance to the decision boundary.

κ counts the points at which the K-step attack took a gradient (the start is one, the last point is not)
and which were still classified correctly, 0..K:

  w(κ) = (1 + tanh(λ + 5(1 − 2κ/K))) / 2          `unnormalized_weights`
  w ← B · w / Σw over the global batch             `geometry_weights`
  L = mean(w · CE(f(x'), y))                       `pgd_at.pgd_at`, weights on the fit

λ is +∞ (w = 1) during burn-in, then −1 for GAIRAT, 0 for GAIR-FAT (with `fat`), and 3 for GAIR-RST, which
is GAIR-TRADES with unlabelled data; such data are not used here.
GAIR-TRADES weights two attacks against each other, with w not normalised:

  L = CE(f(x), y) + β · [w · KL(p ‖ p'_KL) + (1 − w) · KL(p ‖ p'_margin)]          `gair_trades`

Inner attacks: `inner_attacks.uniform` for GAIRAT, `inner_attacks.kl_and_margin` for GAIR-TRADES.

>>> kappa = jnp.array([0, 5, 10])  # K = 10
>>> w = geometry_weights(kappa, num_steps=10, lam=-1.)
>>> print(' '.join(f'{v:.4f}' for v in w))
2.6804 0.3196 0.0000

Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import inner_attacks, losses, objective

Array = jax.Array


def unnormalized_weights(kappa: Array, *, num_steps: int, lam: float | Array, form: str = 'tanh') -> Array:
  """Weights in [0, 1] that decrease with κ, before normalisation.

  With a = λ + 5(1 − 2κ/K): tanh: (1 + tanh a)/2; sigmoid: σ(a); discrete: (K + 1 − κ)/(K + 1), which
  does not depend on λ. λ = +∞ gives exactly 1 in each form: training without weights.

  Args:
    kappa: i32[B], 0..K, as in `attacks.AttackResult`.
    num_steps: K, the number of attack steps.
    lam: λ. Traced.
    form: 'tanh', 'sigmoid' or 'discrete'. Static.

  Returns:
    f32[B]. No gradient flows through them.

  Raises:
    ValueError: if the form is unknown.

  Example:
    >>> w = unnormalized_weights(jnp.array([0, 5, 6]), num_steps=10, lam=-1.)
    >>> print(' '.join(f'{v:.4f}' for v in w))
    0.9997 0.1192 0.0180

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
  The released code has K//2 for K/2, which differs for odd K. Ours: λ = +∞ also switches off the discrete
  form.
  """
  kappa = jax.lax.stop_gradient(jnp.asarray(kappa, float))
  lam = jnp.asarray(lam, kappa.dtype)
  a = lam + 5 * (1 - 2 * kappa / num_steps)
  if form == 'tanh':
    # (1 + tanh a)/2 = σ(2a), without the cancellation that leaves 2 digits of a weight of 1e-5.
    return jax.nn.sigmoid(2 * a)
  if form == 'sigmoid':
    return jax.nn.sigmoid(a)
  if form == 'discrete':
    return jnp.where(jnp.isposinf(lam), 1., (num_steps + 1 - kappa) / (num_steps + 1))
  raise ValueError(f'form = {form!r}: use one of tanh, sigmoid, discrete')


def geometry_weights(
    kappa: Array,
    *,
    num_steps: int,
    lam: float | Array,
    form: str = 'tanh',
    axis_name: str | None = None,
) -> Array:
  """GAIRAT's weights: `unnormalized_weights`, scaled to mean 1 over the global batch.

  Args:
    kappa: i32[B], 0..K, as in `attacks.AttackResult`.
    num_steps: K, the number of attack steps.
    lam: λ; +∞ gives exactly ones. Traced.
    form: 'tanh', 'sigmoid' or 'discrete'. Static.
    axis_name: the axis over devices whose batches count as one, or None.

  Returns:
    f32[B]. No gradient flows through them.

  Raises:
    ValueError: if the form is unknown.

  Example:
    >>> print(geometry_weights(jnp.array([0, 10]), num_steps=10, lam=jnp.inf))
    [1. 1.]

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
  """
  w = unnormalized_weights(kappa, num_steps=num_steps, lam=lam, form=form)
  return objective.normalize_weights(w, axis_name=axis_name)


def weigh(evidence: objective.Evidence, *, num_steps: int, lam: float | Array, form: str, normalized: bool,
          axis_name: str | None) -> Array:
  """GAIRAT's weights in a training step, with or without normalisation.

  Args:
    evidence: its κ is read.
    num_steps: K, the number of attack steps.
    lam: λ. Traced.
    form: 'tanh', 'sigmoid' or 'discrete'. Static.
    normalized: True for `geometry_weights`, False for `unnormalized_weights`.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> evidence = objective.Evidence(jnp.array([0, 10]), None, None, None)
    >>> options = dict(num_steps=10, lam=-1., form='tanh', normalized=True)
    >>> print(weigh(evidence, **options, axis_name=None).round(2))
    [2. 0.]
  """
  w = unnormalized_weights(evidence.kappa, num_steps=num_steps, lam=lam, form=form)
  return objective.normalize_weights(w, axis_name=axis_name) if normalized else w


@objective.attacked_by(inner_attacks.kl_and_margin)
def gair_trades(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                ducat: objective.Objective | None = None) -> objective.Outcome:
  """TRADES with two attacks: the regulariser is KL(p ‖ p'_KL), its complement is KL(p ‖ p'_margin).

  `objective.mean_loss` joins them to w · KL(p ‖ p'_KL) + (1 − w) · KL(p ‖ p'_margin).

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[2·B, ...], the adversarial examples of the KL, then those of the margin.
    y: i32[B].
    ducat: the DUCAT objective whose fit replaces the cross-entropy, with a pass before these; or None.

  Returns:
    An `objective.Outcome`; its logits are those of the KL's adversarial examples.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[2., 0.]]), jnp.array([[0., 1.], [1., 1.]])
    >>> outcome = gair_trades(f, {}, x, x_adv, jnp.array([0]))
    >>> print(f'{outcome.regulariser[0]:.4f} {outcome.complement[0]:.4f}')
    0.8287 0.3278

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, released code
  for robust self-training (GAIR-RST), here without unlabelled data.
  """
  by_kl, by_margin = jnp.split(x_adv, 2)
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, by_kl, y, ducat)
  other, batch_stats = forward(by_margin, batch_stats)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return objective.Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats,
                           complement=losses.kl(clean, other))

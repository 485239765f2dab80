"""How much each example counts: f32[B] importance weights, and the schedules that switch them on.

No gradient flows through a weight. The geometry and the class-wise weights have mean 1 over the
*global* batch: inside pmap, shard_map or vmap give the name of the axis over devices, and the loss
is the mean of weight · loss.

>>> kappa = jnp.array([0, 5, 10])  # attack steps that each example withstood, of 10
>>> w = geometry_weights(kappa, num_steps=10, lam=-1.)
>>> print(' '.join(f'{v:.4f}' for v in w))
2.6804 0.3196 0.0000
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def geometry(kappa: Array, *, num_steps: int, lam: float | Array, form: str = 'tanh') -> Array:
  """Weights in [0, 1] that fall with κ, the attack steps an example withstood; not normalised.

  tanh: (1 + tanh(λ + 5(1 − 2κ/K)))/2; sigmoid: σ(λ + 5(1 − 2κ/K)); discrete: (K + 1 − κ)/(K + 1),
  which does not depend on λ. At λ = +∞ each of them is exactly 1: training without weights.

  Args:
    kappa: i32[B], 0..K, as `attacks.pgd` counts it.
    num_steps: K, the attack's steps.
    lam: λ, a number; traced. −1 is GAIRAT's, 0 GAIR-FAT's, 3 GAIR-RST's.
    form: 'tanh', 'sigmoid' or 'discrete'. Static.

  Returns:
    f32[B].

  Raises:
    ValueError: for an unknown form.

  Example:
    >>> w = geometry(jnp.array([0, 5, 6]), num_steps=10, lam=-1.)
    >>> print(' '.join(f'{v:.4f}' for v in w))
    0.9997 0.1192 0.0180

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
  The released code puts K//2 for K/2, which differs for odd K. That λ = +∞ switches the discrete
  form off too is ours.
  """
  kappa = jax.lax.stop_gradient(jnp.asarray(kappa, float))
  lam = jnp.asarray(lam, kappa.dtype)
  guarded = lam + 5 * (1 - 2 * kappa / num_steps)
  if form == 'tanh':
    # (1 + tanh a)/2 = σ(2a), without the cancellation that leaves 2 digits of a weight of 1e-5.
    return jax.nn.sigmoid(2 * guarded)
  if form == 'sigmoid':
    return jax.nn.sigmoid(guarded)
  if form == 'discrete':
    return jnp.where(jnp.isposinf(lam), 1., (num_steps + 1 - kappa) / (num_steps + 1))
  raise ValueError(f'form = {form!r}: use one of tanh, sigmoid, discrete')


def normalize(weights: Array, *, axis_name: str | None = None) -> Array:
  """Scales weights to mean 1 over the global batch, w · B/Σw.

  Args:
    weights: f32[B], not negative.
    axis_name: the axis over devices, whose batches count as one; None for a single batch.

  Returns:
    f32[B]; all ones where every weight is 0.

  Example:
    >>> print(normalize(jnp.array([1., 3.])))
    [0.5 1.5]

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, algorithm 2.
  That a batch of zeros counts in full is ours.
  """
  weights = jax.lax.stop_gradient(weights)
  mean = jnp.mean(weights)
  if axis_name is not None:
    mean = jax.lax.pmean(mean, axis_name)
  some = mean > 0
  return jnp.where(some, weights / jnp.where(some, mean, 1), 1)


def geometry_weights(
    kappa: Array,
    *,
    num_steps: int,
    lam: float | Array,
    form: str = 'tanh',
    axis_name: str | None = None,
) -> Array:
  """GAIRAT's weights: `geometry`, normalised to mean 1 over the global batch.

  Args:
    kappa: i32[B], 0..K, as `attacks.pgd` counts it.
    num_steps: K, the attack's steps.
    lam: λ, a number; traced. +∞ gives exactly ones.
    form: 'tanh', 'sigmoid' or 'discrete'. Static.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Raises:
    ValueError: for an unknown form.

  Example:
    >>> print(geometry_weights(jnp.array([0, 10]), num_steps=10, lam=jnp.inf))
    [1. 1.]

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, section 3.3.
  """
  return normalize(geometry(kappa, num_steps=num_steps, lam=lam, form=form), axis_name=axis_name)


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


def class_scale(robust_accuracy: Array, *, base: float | Array) -> Array:
  """CFA's factor for class k, λ + t_k: less for a class that is hard, more for one that is easy.

  ε_k = (λ₁ + t_k)·ε is the class's training radius (λ₁ = .5 for PGD-AT, .3 for TRADES, .7 for FAT)
  and β_k = (λ₂ + t_k)·β its weight in TRADES (λ₂ = .5), whose loss is then (CE + β_y·KL)/(1 + β_y).
  Index the result with y: pgd takes f32[B] for ε. In its first 10 epochs the released code
  has factors of 1.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch.
    base: λ.

  Returns:
    f32[C].

  Example:
    >>> print(class_scale(jnp.array([.25, .75]), base=.5)[jnp.array([1, 1, 0])])
    [1.25 1.25 0.75]

  Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.
  """
  return base + jax.lax.stop_gradient(robust_accuracy)


def class_weights(
    robust_accuracy: Array, y: Array, *, base: float | Array, axis_name: str | None = None
) -> Array:
  """Loss weights that favour hard classes, λ + 1 − t_y, scaled to mean 1 over the global batch.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch;
      equal accuracies give ones.
    y: i32[B], the true classes.
    base: λ > 0; the larger, the flatter.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> print(class_weights(jnp.array([.2, .8]), jnp.array([0, 1]), base=.5))
    [1.3 0.7]

  Source: ours, updated as the radii of Wei et al., CFA, 2023, are.
  """
  return normalize(class_scale(1 - robust_accuracy, base=base)[y], axis_name=axis_name)


def linear(epoch: int | Array, *, first: float, last: float, epochs: int) -> Array:
  """A schedule on a line, first − (epoch/epochs)·(first − last).

  GAIRAT's linear λ, which the released code takes up after the burn-in; there `first` is +∞ unless
  it is set, and λ not a number.

  Args:
    epoch: the epoch that runs, counted from 1; traced if it is an array.
    first: the value before the first epoch, finite.
    last: the value in the last.
    epochs: how many there are.

  Returns:
    f32[].

  Example:
    >>> print(*[linear(epoch, first=1., last=-1., epochs=100) for epoch in (30, 50, 100)])
    0.4 0.0 -1.0

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, its released
  code.
  """
  return jnp.asarray(first - epoch / epochs * (first - last), jnp.float32)


def by_epoch(epoch: int | Array, first: float, changes: Mapping[int, float]) -> Array:
  """A schedule in stages: `first`, and from each epoch in `changes` on the value there.

  GAIRAT's λ with its burn-in is `by_epoch(epoch, inf, {60: -1.})` for WideResNet-32-10 in 120
  epochs and `{30: -1.}` for ResNet-18 in 100; GAIR-FAT's τ is `by_epoch(epoch, 0, {41: 3, 71: 6})`.
  What the released code's piecewise λ was meant to be, `{60: -1., 90: -2., 110: -2.5}`, its
  branches never reach.

  Args:
    epoch: the epoch that runs, counted from 1; traced if it is an array.
    first: the value before all changes: the burn-in.
    changes: from which epoch on there is which value.

  Returns:
    A scalar: i32 if all values are whole numbers, else f32.

  Example:
    >>> print(*[by_epoch(epoch, jnp.inf, {60: -1.}) for epoch in (1, 59, 60, 120)])
    inf inf -1.0 -1.0
    >>> print(*[by_epoch(epoch, 0, {41: 3, 71: 6}) for epoch in (40, 41, 70, 71)])
    0 3 3 6

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, its released
  code, which counts epochs from 1 here.
  """
  starts = sorted(changes)
  values = jnp.array([first, *(changes[start] for start in starts)])
  passed = jnp.sum(jnp.asarray(epoch) >= jnp.array(starts), dtype=jnp.int32)
  return values[passed]

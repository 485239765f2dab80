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
from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import inner_attacks, losses, objective
from at_jax.methods.objective import Forward, Objective, Outcome

Array = jax.Array


def unnormalized_weights(kappa: Array, *, num_steps: int, lam: float | Array, form: str = 'tanh') -> Array:
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
  return objective.normalize_weights(unnormalized_weights(kappa, num_steps=num_steps, lam=lam, form=form), axis_name=axis_name)


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


@objective.attacked_by(inner_attacks.kl_and_margin)
def gair_trades(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                ducat: Objective | None = None) -> Outcome:
  """TRADES whose KL is shared between two attacks, w · KL(p ‖ p'_KL) + (1 − w) · KL(p ‖ p'_margin).

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[2·B, ...], first those found for the KL, then those found for the margin.
    y: i32[B].
    ducat: as for `trades`.

  Returns:
    An `Outcome`; the second KL is its complement.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[2., 0.]]), jnp.array([[0., 1.], [1., 1.]])
    >>> found = gair_trades(f, {}, x, x_adv, jnp.array([0]))
    >>> print(f'{found.regulariser[0]:.4f} {found.complement[0]:.4f}')
    0.8287 0.3278

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, its released
  code for robust self-training (GAIR-RST), here without unlabelled data.
  """
  by_kl, by_margin = jnp.split(x_adv, 2)
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, by_kl, y, ducat)
  other, batch_stats = forward(by_margin, batch_stats)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats,
                 complement=losses.kl(clean, other))


def weigh(evidence: objective.Evidence, *, num_steps: int, lam: float | Array, form: str, normalized: bool,
             axis_name: str | None) -> Array:
  """GAIRAT's weights, by κ.

  Args:
    evidence: of the step.
    num_steps: of the attack.
    lam: λ of `weights.geometry`; traced.
    form: of `weights.geometry`.
    normalized: scale them to mean 1 over the global batch.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> seen = Evidence(jax.numpy.array([0, 10]), None, None, None)
    >>> options = dict(num_steps=10, lam=-1., form='tanh', normalized=True)
    >>> print(geometry(seen, **options, axis_name=None).round(2))
    [2. 0.]

  Source: `weights.geometry_weights`.
  """
  w = unnormalized_weights(evidence.kappa, num_steps=num_steps, lam=lam, form=form)
  return objective.normalize_weights(w, axis_name=axis_name) if normalized else w

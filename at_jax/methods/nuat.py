"""NuAT: the logits at x and x' differ by a matrix of small nuclear norm; x' takes one step.

With D = f(x) − f(x'), a row for each of the B examples of a batch, and ‖D‖_* the sum of its singular values:

  L = mean CE(f(x), y) + β · ‖D‖_* / B                   β rises linearly from 0 to 4.5
  x' = P(x + η + ε · sign ∇ [Σ CE(f(x + η), y) + β · ‖f(x) − f(x + η)‖_*])

η is ±ε/2 in each pixel, with equal probability. P projects onto the ball and clips to the bounds.

The norm couples the examples of the batch, in the attack too: it is that of the batch over all devices, and
one collective of the logits. Each example contributes a share to it, `nuclear_shares`, so importance weights
can be combined with it.

Reference: Sriramanan et al., Towards Efficient and Effective Adversarial Training, 2021, and its released
code for ResNet-18. The code leaves the nuclear norm out of the attack in every other step; its attack
compares with logits in train mode, here both are in inference mode.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax import attacks
from at_jax.methods import inner_attacks, losses, objective, precision

Array = jax.Array


def nuclear_shares(difference: Array, *, axis_name: str | None = None) -> Array:
  """The share of each example in the nuclear norm of a batch, the diagonal of (D Dᵀ)^½.

  With D = U S Vᵀ the shares are the row sums of D ∘ U Vᵀ. Their sum is ‖D‖_* = Σ S, and its gradient is
  that of the norm, U Vᵀ, which is held constant.

  Args:
    difference: f32[B, K], D, this device's rows.
    axis_name: the axis over devices whose rows form one matrix, or None.

  Returns:
    f32[B], not negative.

  Example:
    >>> print(nuclear_shares(jnp.array([[3., 0.], [0., -4.]])).round(4))
    [3. 4.]

  Reference: for the norm, Sriramanan et al., Towards Efficient and Effective Adversarial Training, 2021,
  section 3; the shares are ours.
  """
  difference = precision.float32_at_least(difference)
  rows = jax.lax.stop_gradient(difference)
  if axis_name is not None:
    rows = jax.lax.all_gather(rows, axis_name, tiled=True)
  u, s, vt = jnp.linalg.svd(rows, full_matrices=False)
  # Directions whose singular value is rounding have no gradient.
  known = s > jnp.finfo(s.dtype).eps * max(rows.shape) * s[0]
  polar = jnp.where(known[None], u, 0) @ vt
  if axis_name is not None:
    first = jax.lax.axis_index(axis_name) * len(difference)
    polar = jax.lax.dynamic_slice_in_dim(polar, first, len(difference))
  return jnp.sum(difference * polar, axis=-1)


def nuclear(*, norm: str, epsilon: float, step_size: float | None = None, num_steps: int = 1,
            axis_name: str | None = None, **options) -> inner_attacks.Attack:
  """The inner attack of NuAT: one step of size ε on CE + β · `nuclear_shares`, from x ± ε/2.

  Args:
    norm: 'linf', as in the paper, or 'l2', where signs are scaled to the length ε/2.
    epsilon: radius, in units of x.
    step_size: ignored; the step is ε.
    num_steps: 1.
    axis_name: the axis over devices whose examples form one batch, or None.
    **options: keyword arguments of `attacks.pgd`: decide.

  Returns:
    An `inner_attacks.Attack` that also takes `beta`, the β of the step.

  Example:
    >>> attack = nuclear(norm='linf', epsilon=.1)
    >>> x, y = jnp.array([[.5, .5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, jax.random.key(0), None, beta=0.).x[0, 0] < .46)
    True

  Reference: Sriramanan et al., Towards Efficient and Effective Adversarial Training, 2021, section 3.
  """
  del step_size

  def loss(logits, y, clean, beta):
    return losses.cross_entropy(logits, y) + beta * nuclear_shares(_difference(clean, logits),
                                                                  axis_name=axis_name)

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1., beta=0.):
    radius = scale * epsilon
    signs = jnp.where(inner_attacks.unit_noise(x, key, index) < 0, -1, 1).astype(x.dtype)
    if norm == 'l2':
      signs = jax.vmap(lambda v: attacks.norms.unit(v, 'l2'))(signs)
    return attacks.pgd(logits_fn, x, y, key, tau=tau, index=index, norm=norm, epsilon=radius,
                       step_size=radius, num_steps=num_steps, loss=loss,
                       start=x + inner_attacks.scaled(radius / 2, signs),
                       loss_args=(logits_fn(x), jnp.asarray(beta, x.dtype)), **options)
  return attack


@objective.attacked_by(nuclear)
def nuat(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
         axis_name: str | None = None, ducat: objective.Objective | None = None) -> objective.Outcome:
  """NuAT: the fit is CE(f(x), y), the regulariser is each example's share of the nuclear norm.

  x and x' take one pass each, as in `trades`.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    axis_name: the axis over devices whose examples form one batch, or None.
    ducat: the DUCAT objective whose fit replaces the cross-entropy, with a pass before these; or None.

  Returns:
    An `objective.Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[3., 0.], [0., 4.]]), jnp.zeros((2, 2))
    >>> print(nuat(f, {}, x, x_adv, jnp.array([0, 1])).regulariser.round(4))
    [3. 4.]

  Reference: Sriramanan et al., Towards Efficient and Effective Adversarial Training, 2021, section 3.
  """
  clean, adversarial, fit, batch_stats = objective.two_passes(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  shares = nuclear_shares(_difference(clean, adversarial), axis_name=axis_name)
  return objective.Outcome(fit, shares, adversarial, batch_stats)


def _difference(clean: Array, adversarial: Array) -> Array:
  """f(x) − f(x'), 0 for a class that both mask with −∞."""
  masked = jnp.isneginf(clean) & jnp.isneginf(adversarial)
  return jnp.where(masked, 0, clean) - jnp.where(masked, 0, adversarial)

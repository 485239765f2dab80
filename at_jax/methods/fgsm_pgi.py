"""FGSM-PGI: one step from the perturbation that the example had in the epoch before.

With δ₀ of the epoch before, and ±ε at random every `config.attack.reset_epochs` epochs:

  δ = clip(P(δ₀ + ε · sign ∇ LS(f(x + δ₀), y)))          kept as the next δ₀
  L = LS(f(x + δ), y) + λ · mean_k (f_k(x + δ) − f_k(x + δ₀))²          λ = 10

LS is the cross-entropy with smoothed labels, .6 for y. Where p_y > .6 it rises with p_y, so the step is then
towards y, as in the released code. P clips to ±ε, and clip keeps x + δ within the bounds. Every example's
perturbation is stored as bytes (`carried`). As in the released code it does not follow the example's crop
and flip. λ is the β of `objective.mean_loss`.

This is the paper's FGSM-EP. Its FGSM-MEP, whose δ₀ moves by a sum of the gradients of all epochs, needs two
numbers for each pixel of the training set, and is left out.

Reference: Jia et al., Prior-Guided Adversarial Initialization for Fast Adversarial Training, 2022, section
3, and its released code with a momentum of 0. The code attacks the network in train mode; here every attack
sees inference mode, and x + δ₀ is clipped to the bounds too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax import attacks
from at_jax.methods import inner_attacks, losses, objective, precision

Array = jax.Array

_TRUE_CLASS = .6  # of the smoothed label


def smoothed_cross_entropy(logits: Array, y: Array) -> Array:
  """Cross-entropy with .6 on the true class and the rest shared by the others.

  Args:
    logits: f32[B, K].
    y: i32[B].

  Returns:
    f32[B], in nats.

  Example:
    >>> print(f'{smoothed_cross_entropy(jnp.array([[2., 0.]]), jnp.array([0]))[0]:.4f}')
    0.9269

  Reference: Jia et al., Prior-Guided Adversarial Initialization for Fast Adversarial Training, 2022,
  released code.
  """
  logits = precision.float32_at_least(logits)
  own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
  others = ~own & ~jnp.isneginf(logits)
  share = jnp.where(others, 1 - _TRUE_CLASS, 0) / jnp.sum(others, axis=-1, keepdims=True, dtype=logits.dtype)
  return losses.cross_entropy(logits, jnp.where(own, _TRUE_CLASS, share))


def prior(*, epsilon: float, step_size: float | None = None, num_steps: int = 1,
          **options) -> inner_attacks.Attack:
  """The inner attack of FGSM-PGI: one step of size ε from a start that the training step gives.

  Args:
    epsilon: radius, in units of x.
    step_size: ignored; the step is ε.
    num_steps: 1.
    **options: keyword arguments of `attacks.pgd`: norm, decide.

  Returns:
    An `inner_attacks.Attack` that also takes `start`, f32[B, ...], x + δ₀.

  Example:
    >>> x, y, start = jnp.full((1, 2), .5), jnp.array([0]), jnp.array([[.6, .6]])
    >>> found = prior(norm='linf', epsilon=.1)(lambda x: x, x, y, jax.random.key(0), None, start=start)
    >>> print(found.x)
    [[0.5 0.6]]

  Reference: Jia et al., Prior-Guided Adversarial Initialization for Fast Adversarial Training, 2022,
  section 3.
  """
  del step_size

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1., *, start):
    radius = scale * epsilon
    return attacks.pgd(logits_fn, x, y, key, tau=tau, index=index, epsilon=radius, step_size=radius,
                       num_steps=num_steps, start=start, loss=smoothed_cross_entropy, **options)
  return attack


@objective.attacked_by(prior)
def fgsm_pgi(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array
             ) -> objective.Outcome:
  """FGSM-PGI: the fit is LS(f(x + δ), y), the regulariser the mean squared change of the logits.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], x + δ₀, where the attack began.
    x_adv: f32[B, ...], x + δ.
    y: i32[B].

  Returns:
    An `objective.Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(fgsm_pgi(f, {}, jnp.zeros((1, 2)), jnp.array([[2., 0.]]), jnp.array([0])).regulariser)
    [2.]

  Reference: Jia et al., Prior-Guided Adversarial Initialization for Fast Adversarial Training, 2022,
  section 3.
  """
  before, batch_stats = forward(x, batch_stats)
  after, batch_stats = forward(x_adv, batch_stats)
  there = ~(jnp.isneginf(before) & jnp.isneginf(after))
  gap = jnp.where(there, after, 0) - jnp.where(there, before, 0)
  squared = losses.mean_where(precision.float32_at_least(gap) ** 2, there)
  return objective.Outcome(smoothed_cross_entropy(after, y), squared, after, batch_stats)

"""The objective of fine-tuning: learn from x, be consistent at x', stay near a teacher."""

import jax
import jax.numpy as jnp

from at_jax import losses
from at_jax import objectives

Array = jax.Array
DISTANCES = ('kl', 'cross_entropy')
ANCHORS = ('kl', 'squared')


def finetune(forward: objectives.Forward, batch_stats: object, x: Array, x_adv: Array, y: Array, *,
             distance: str, anchor: str, anchor_weight: float,
             reference: Array | None = None) -> objectives.Outcome:
  """The fit is CE(f(x), y) + μ · A(f₀(x), f(x)), the regulariser D(f(x'), ·).

  D is KL(p ‖ p') with p, the clean prediction, held fixed, so that x' follows x and not x x'; or
  CE(f(x'), y). A is KL(p₀ ‖ p) or the mean over classes of (z₀ − z)². x and x' go through apart,
  and with two BatchNorms each through its own.

  Args:
    forward: the network in train mode, told which branch an input belongs to.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    distance: D, 'kl' or 'cross_entropy'.
    anchor: A, 'kl' or 'squared'.
    anchor_weight: μ.
    reference: f32[B, K], the teacher's logits at x; None for no anchor.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats, branch: (x, batch_stats)
    >>> x, x_adv, y = jnp.array([[2., 0.]]), jnp.array([[0., 2.]]), jnp.array([0])
    >>> found = finetune(f, {}, x, x_adv, y, distance='kl', anchor='squared', anchor_weight=.5,
    ...                  reference=x_adv)
    >>> print(f'{found.fit[0]:.4f} {found.regulariser[0]:.4f}')
    2.1269 1.5232

  Source: ours, in the spirit of Hou et al., Adversarial Fine-tune with Dynamically Regulated
  Adversary, 2022, of which the abstract could be read.
  """
  clean, batch_stats = forward(x, batch_stats, branch='clean')
  adversarial, batch_stats = forward(x_adv, batch_stats, branch='adversarial')
  fit = losses.cross_entropy(clean, y)
  if reference is not None:
    away = (losses.kl(reference, clean) if anchor == 'kl'
            else jnp.mean((reference - clean) ** 2, axis=-1))
    fit += anchor_weight * away
  apart = (losses.kl(jax.lax.stop_gradient(clean), adversarial) if distance == 'kl'
           else losses.cross_entropy(adversarial, y))
  return objectives.Outcome(fit, apart, adversarial, batch_stats)

"""Objectives of one pass: clean training, PGD-AT, and DUCAT on it."""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax import dummy
from at_jax import losses
from at_jax.objectives.outcome import Forward
from at_jax.objectives.outcome import Outcome

Array = jax.Array


def standard(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Training on clean examples: the fit is CE(f(x), y).

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: not read.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(standard(f, {}, jnp.zeros((1, 2)), None, jnp.array([0])).fit)
    [0.6931472]

  Source: the usual definition.
  """
  del x_adv
  logits, batch_stats = forward(x, batch_stats)
  return Outcome(losses.cross_entropy(logits, y), None, logits, batch_stats)


def pgd_at(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Adversarial training: the fit is CE(f(x'), y), with no clean term.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: not read.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(pgd_at(f, {}, None, jnp.zeros((1, 2)), jnp.array([0])).fit)
    [0.6931472]

  Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
  section 2.
  """
  return standard(forward, batch_stats, x_adv, x, y)


def ducat(
    forward: Forward,
    batch_stats: Any,
    x: Array,
    x_adv: Array,
    y: Array,
    *,
    benign_weight: float,
    adversarial_weight: float,
    alpha: float,
) -> Outcome:
  """PGD-AT with dummy classes: the fit is `dummy.loss` of one pass over the concatenation [x; x'].

  One pass, so that clean and adversarial examples share their BatchNorm statistics.

  Args:
    forward: the network in train mode, with 2C outputs.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    benign_weight: of `dummy.loss`.
    adversarial_weight: of `dummy.loss`.
    alpha: of `dummy.loss`.

  Returns:
    An `Outcome`; its logits are those of x'.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[2., 0., 1., 0.]]), jnp.array([[0., 0., 3., 0.]])
    >>> found = ducat(f, {}, x, x_adv, jnp.array([0]), benign_weight=.25, adversarial_weight=1.,
    ...               alpha=1.)
    >>> print(f'{found.fit[0]:.4f}')
    0.4415

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024), and its released code.
  """
  logits, batch_stats = forward(jnp.concatenate([x, x_adv]), batch_stats)
  clean, adversarial = jnp.split(logits, 2)
  fit = dummy.loss(clean, adversarial, y, benign_weight=benign_weight,
                   adversarial_weight=adversarial_weight, alpha=alpha)
  return Outcome(fit, None, adversarial, batch_stats)

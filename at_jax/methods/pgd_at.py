"""Objectives of one pass: clean training, PGD-AT, and DUCAT on it."""

from typing import Any

import jax

from at_jax.methods import losses
from at_jax.methods.objective import Forward, Outcome

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

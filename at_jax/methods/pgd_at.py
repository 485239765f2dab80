"""PGD adversarial training, and training on clean examples.

  PGD-AT    fit = CE(f(x'), y)
  standard  fit = CE(f(x), y)

Inner attack: `inner_attacks.uniform`, PGD on CE from a uniform random start.

Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section 2.
"""

from typing import Any

import jax

from at_jax.methods import losses, objective

Array = jax.Array


def standard(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array
             ) -> objective.Outcome:
  """Training on clean examples: the fit is CE(f(x), y).

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: ignored.
    y: i32[B].

  Returns:
    An `objective.Outcome` without a regulariser.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(standard(f, {}, jax.numpy.zeros((1, 2)), None, jax.numpy.array([0])).fit)
    [0.6931472]
  """
  del x_adv
  logits, batch_stats = forward(x, batch_stats)
  return objective.Outcome(losses.cross_entropy(logits, y), None, logits, batch_stats)


def pgd_at(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array
           ) -> objective.Outcome:
  """PGD adversarial training: the fit is CE(f(x'), y). There is no clean term.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: ignored.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].

  Returns:
    An `objective.Outcome` without a regulariser.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(pgd_at(f, {}, None, jax.numpy.zeros((1, 2)), jax.numpy.array([0])).fit)
    [0.6931472]

  Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section 2.
  """
  return standard(forward, batch_stats, x_adv, x, y)

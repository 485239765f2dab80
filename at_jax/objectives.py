"""How a loss meets the network: which examples go through it, and in how many passes.

An objective is `(forward, x, x_adv, y) -> Outcome`, where `forward(x)` is the network in train mode and
returns its logits and its updated BatchNorm statistics. Objectives are looked up by name from a
config, so a new method is a function here and a config that names it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax import dummy
from at_jax import losses

Array = jax.Array
Forward = Callable[[Array], tuple[Array, Any]]


class Outcome(NamedTuple):
  """What an objective returns.

  Attributes:
    loss: f32[B], unreduced, in nats.
    logits: f32[B, K], in train mode, of the examples that the method learns from: x', or x where
      there is no x'.
    batch_stats: the updated BatchNorm statistics.
  """
  loss: Array
  logits: Array
  batch_stats: Any


def standard(forward: Forward, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Training on clean examples: CE(f(x), y).

  Args:
    forward: the network in train mode.
    x: f32[B, ...], clean examples.
    x_adv: not read.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x: (x, {})
    >>> print(standard(f, jnp.zeros((1, 2)), None, jnp.array([0])).loss)
    [0.6931472]

  Source: the usual definition.
  """
  del x_adv
  logits, batch_stats = forward(x)
  return Outcome(losses.cross_entropy(logits, y), logits, batch_stats)


def pgd_at(forward: Forward, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Adversarial training: CE(f(x'), y), with no clean term.

  Args:
    forward: the network in train mode.
    x: not read.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x: (x, {})
    >>> print(pgd_at(f, None, jnp.zeros((1, 2)), jnp.array([0])).loss)
    [0.6931472]

  Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section 2.
  """
  return standard(forward, x_adv, x, y)


def ducat(
    forward: Forward,
    x: Array,
    x_adv: Array,
    y: Array,
    *,
    benign_weight: float,
    adversarial_weight: float,
    alpha: float,
) -> Outcome:
  """PGD-AT with dummy classes: `dummy.loss` of one pass over the concatenation [x; x'].

  One pass, so that clean and adversarial examples share their BatchNorm statistics.

  Args:
    forward: the network in train mode, with 2C outputs.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    benign_weight: of `dummy.loss`.
    adversarial_weight: of `dummy.loss`.
    alpha: of `dummy.loss`.

  Returns:
    An `Outcome`; its logits are those of x'.

  Example:
    >>> f = lambda x: (x, {})
    >>> zeros = jnp.zeros((1, 4))
    >>> print(ducat(f, zeros, zeros, jnp.array([0]), benign_weight=.25, adversarial_weight=1.,
    ...             alpha=1.).loss)
    [1.3862944]

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024), and its released code.
  """
  logits, batch_stats = forward(jnp.concatenate([x, x_adv]))
  clean, adversarial = jnp.split(logits, 2)
  loss = dummy.loss(clean, adversarial, y, benign_weight=benign_weight,
                    adversarial_weight=adversarial_weight, alpha=alpha)
  return Outcome(loss, adversarial, batch_stats)

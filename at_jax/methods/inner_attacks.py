"""The inner maximisation of training: attacks with everything but the model and the examples given.

Each is `(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.) -> AttackResult`. With τ it
is friendly PGD, which stops τ steps past the boundary; ε may be f32[B], a radius for each example;
scale, a number or f32[B], multiplies the radius and the step size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from at_jax import attacks
from at_jax.methods import losses

Array = jax.Array
Attack = Callable[..., attacks.AttackResult]


def uniform(*, epsilon: float, step_size: float,
            loss: Callable[..., Array] = attacks.losses.cross_entropy, **options) -> Attack:
  """PGD from a point drawn uniformly from the ball: PGD-AT's attack.

  Args:
    epsilon: of `attacks.pgd`, unless the call says another.
    step_size: of `attacks.pgd`.
    loss: of `attacks.pgd`.
    **options: of `attacks.pgd`: norm, num_steps, random_start.

  Returns:
    An attack.

  Example:
    >>> attack = uniform(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (1, 2)

  Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section
  2.1.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    return attacks.pgd(logits_fn, x, y, key, loss=loss, tau=tau, index=index,
                       epsilon=scale * epsilon, step_size=scale * step_size, **options)
  return attack


def gaussian(*, epsilon: float, step_size: float,
           loss: Callable[..., Array] = attacks.losses.cross_entropy, **options) -> Attack:
  """PGD from x + .001 · N(0, 1): MART's and MAIL's attack.

  Args:
    epsilon: of `attacks.pgd`, unless the call says another.
    step_size: of `attacks.pgd`.
    loss: of `attacks.pgd`.
    **options: of `attacks.pgd`: norm, num_steps.

  Returns:
    An attack.

  Example:
    >>> attack = beside(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (1, 2)

  Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, its released code.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    # With a start of its own the attack draws nothing, so the key is used once.
    return attacks.pgd(logits_fn, x, y, key, loss=loss, tau=tau, index=index,
                       epsilon=scale * epsilon, step_size=scale * step_size,
                       start=attacks.gaussian_start(x, key, index=index), **options)
  return attack


def kl(*, epsilon: float, step_size: float, **options) -> Attack:
  """PGD on KL(f(x) ‖ f(x')) from x + .001 · N(0, 1): TRADES' attack.

  Args:
    epsilon: of `attacks.pgd`, unless the call says another.
    step_size: of `attacks.pgd`.
    **options: of `attacks.pgd`: norm, num_steps.

  Returns:
    An attack.

  Example:
    >>> attack = kl(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> found = attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None)
    >>> print(found.loss > 0)
    [ True]

  Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1, and its released code.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    return attacks.pgd(logits_fn, x, y, key, loss=losses.kl_to_reference, tau=tau, index=index,
                       loss_args=(logits_fn(x),), start=attacks.gaussian_start(x, key, index=index),
                       epsilon=scale * epsilon, step_size=scale * step_size, **options)
  return attack


def kl_and_margin(*, epsilon: float, **options) -> Attack:
  """`kl`, and beside it the attack on the margin from the same kind of start: GAIR-TRADES'.

  Args:
    epsilon: of `attacks.pgd`, unless the call says another.
    **options: of `attacks.pgd`: norm, step_size, num_steps.

  Returns:
    An attack whose x is f32[2·B, ...], those found by `kl` first; all else is of `kl`.

  Example:
    >>> attack = kl_and_margin(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (2, 2)

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, its released
  code for robust self-training, which clips the margin at a confidence of 50.
  """
  by_kl = kl(epsilon=epsilon, **options)
  by_margin = gaussian(epsilon=epsilon, loss=attacks.losses.margin, **options)

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    keys = jax.random.split(key)
    found = by_kl(logits_fn, x, y, keys[0], index, tau, epsilon, scale)
    other = by_margin(logits_fn, x, y, keys[1], index, tau, epsilon, scale)
    return found._replace(x=jnp.concatenate([found.x, other.x]))
  return attack

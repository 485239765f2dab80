"""Inner attacks of training: PGD with a loss, a start and everything but the model and the examples.

A method names its own with `objective.attacked_by`; a config overrides it with `config.attack.kind`,
a name of `methods.ATTACKS` or the import path of a function of your own.

An inner attack is a factory, called once a run:

  factory(*, norm, epsilon, step_size, num_steps, decide) -> Attack

  norm: as for `attacks.pgd`. epsilon, step_size: numbers, in units of x. num_steps: K, an integer.
  decide: `f32[B, K'] -> f32[B, C]`, from the attacked logits to those whose argmax is the deployed
    decision, or None where they are the same. κ and success are counted by that decision.

An `Attack` is called in every step, inside jit, on one device's share of the batch:

  attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.) -> attacks.AttackResult

  logits_fn: `f32[B, ...] -> f32[B, K']`, the network in inference mode. x: f32[B, ...]. y: i32[B].
  key: a PRNG key. index: i32[B], each example's place in the training set, or None; draws depend on
    the key and the index alone.
  tau: i32[] or None. With τ the attack is friendly PGD: it stops τ steps past the boundary.
  epsilon: a number or f32[B], radii that replace the factory's.
  scale: a number or f32[B], multiplies the radius and the step size.
  start, beta: passed to `fgsm_pgi`'s and `nuclear`, which alone couples the examples of a batch.

The result's x is f32[V·B, ...], V = 1 unless the objective expects another layout (`kl_and_margin`).
Only options in use are passed: an attack that does not take `tau` can be used with any config that
sets no friendly steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from at_jax import attacks
from at_jax.attacks import _random
from at_jax.methods import losses

Array = jax.Array
Attack = Callable[..., attacks.AttackResult]


def uniform(*, epsilon: float, step_size: float,
            loss: Callable[..., Array] = attacks.losses.cross_entropy, **options) -> Attack:
  """PGD from a uniform random point of the ball: the attack of PGD-AT.

  Args:
    epsilon: radius, in units of x.
    step_size: step size, in units of x.
    loss: what the attack maximises, as for `attacks.pgd`.
    **options: keyword arguments of `attacks.pgd`: norm, num_steps, decide, random_start.

  Returns:
    An `Attack`.

  Example:
    >>> attack = uniform(norm='linf', epsilon=.1, step_size=.1, num_steps=4)
    >>> x, y = jnp.array([[.5, .5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, jax.random.key(0), None).x)
    [[0.4 0.6]]

  Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, section
  2.1.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    return attacks.pgd(logits_fn, x, y, key, loss=loss, tau=tau, index=index,
                       epsilon=scale * epsilon, step_size=scale * step_size, **options)
  return attack


def gaussian(*, epsilon: float, step_size: float,
             loss: Callable[..., Array] = attacks.losses.cross_entropy, **options) -> Attack:
  """PGD from x + .001 · N(0, 1): the attack of MART and MAIL.

  Args:
    epsilon: radius, in units of x.
    step_size: step size, in units of x.
    loss: what the attack maximises, as for `attacks.pgd`.
    **options: keyword arguments of `attacks.pgd`: norm, num_steps, decide.

  Returns:
    An `Attack`.

  Example:
    >>> attack = gaussian(norm='linf', epsilon=.1, step_size=0., num_steps=1)
    >>> x, y = jnp.full((1, 2), .5), jnp.array([0])
    >>> found = attack(lambda x: x, x, y, jax.random.key(0), None)
    >>> print(0 < jnp.max(jnp.abs(found.x - x)) < .005)
    True

  Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, released code.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    # With a given start PGD draws nothing, so the key is used only once.
    return attacks.pgd(logits_fn, x, y, key, loss=loss, tau=tau, index=index,
                       epsilon=scale * epsilon, step_size=scale * step_size,
                       start=attacks.gaussian_start(x, key, index=index), **options)
  return attack


def kl(*, epsilon: float, step_size: float, **options) -> Attack:
  """PGD on KL(f(x) ‖ f(x')) from x + .001 · N(0, 1): the attack of TRADES.

  Args:
    epsilon: radius, in units of x.
    step_size: step size, in units of x.
    **options: keyword arguments of `attacks.pgd`: norm, num_steps, decide.

  Returns:
    An `Attack`.

  Example:
    >>> attack = kl(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> found = attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None)
    >>> print(found.loss > 0)
    [ True]

  Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1, and its released code.
  """
  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    return attacks.pgd(logits_fn, x, y, key, loss=losses.kl_to_reference, tau=tau, index=index,
                       loss_args=(logits_fn(x),), start=attacks.gaussian_start(x, key, index=index),
                       epsilon=scale * epsilon, step_size=scale * step_size, **options)
  return attack


def kl_and_margin(*, epsilon: float, **options) -> Attack:
  """Two attacks of each example, `kl` and PGD on the margin: the attack of GAIR-TRADES.

  Both start from x + .001 · N(0, 1), each with its own draw.

  Args:
    epsilon: radius, in units of x.
    **options: step_size, and keyword arguments of `attacks.pgd`: norm, num_steps, decide.

  Returns:
    An `Attack` whose x is f32[2·B, ...], the examples of `kl` first. All other fields are those of `kl`.

  Example:
    >>> attack = kl_and_margin(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (2, 2)

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, released code
  for robust self-training, which also clips the margin at a confidence of 50.
  """
  by_kl = kl(epsilon=epsilon, **options)
  by_margin = gaussian(epsilon=epsilon, loss=attacks.losses.margin, **options)

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    keys = jax.random.split(key)
    found = by_kl(logits_fn, x, y, keys[0], index, tau, epsilon, scale)
    other = by_margin(logits_fn, x, y, keys[1], index, tau, epsilon, scale)
    return found._replace(x=jnp.concatenate([found.x, other.x]))
  return attack


def unit_noise(x: Array, key: Array, index: Array | None, *, norm: str = 'linf') -> Array:
  """Uniform random points of the unit ball, one for each example.

  Args:
    x: f32[B, ...], only its shape and dtype matter.
    key: a PRNG key.
    index: i32[B], the number each example folds into `key`; None for its place in the batch.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    f32[B, ...].

  Example:
    >>> noise = unit_noise(jnp.zeros((1, 1000)), jax.random.key(0), None)
    >>> print(.99 < jnp.max(noise) < 1, -1 <= jnp.min(noise) < -.99)
    True True
  """
  index = jnp.arange(len(x)) if index is None else index
  sample = getattr(attacks.norms, norm).sample
  return jax.vmap(lambda k: sample(k, x.shape[1:], jnp.ones((), x.dtype)))(_random.fold(key, index))


def scaled(radius: float | Array, direction: Array) -> Array:
  """Multiplies each example's direction by its radius.

  Args:
    radius: a number or f32[B].
    direction: f32[B, ...].

  Returns:
    f32[B, ...].

  Example:
    >>> print(scaled(jnp.array([1., 2.]), jnp.ones((2, 3))))
    [[1. 1. 1.]
     [2. 2. 2.]]
  """
  return jax.vmap(jnp.multiply)(jnp.broadcast_to(jnp.asarray(radius, direction.dtype), len(direction)),
                                direction)

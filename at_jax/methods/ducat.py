"""DUCAT: a dummy class for every class, learnt in training and folded back when deployed.

A head has 2C outputs; the dummy of class c is output c + C. The deployed model predicts c whenever c
or its dummy is on top: `argmax(fold(logits))`. An attack that is judged by anything else attacks a
model that nobody deploys.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import losses
from at_jax.methods.objective import Forward, Outcome

Array = jax.Array


def soft_targets(y: Array, *, num_classes: int, dummy_weight: float | Array) -> Array:
  """Splits the mass of class y between itself and its dummy: (1 − w)·e_y + w·e_{y+C}.

  Args:
    y: i32[B], classes below C.
    num_classes: C.
    dummy_weight: w, the dummy's share, in [0, 1].

  Returns:
    f32[B, 2C].

  Example:
    >>> print(soft_targets(jnp.array([1]), num_classes=2, dummy_weight=.25))
    [[0.   0.75 0.   0.25]]

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024), and its released code.
  """
  own, dummy = (jax.nn.one_hot(y + shift, 2 * num_classes) for shift in (0, num_classes))
  return (1 - dummy_weight) * own + dummy_weight * dummy


def fold(logits: Array) -> Array:
  """The deployed logits, g_c = max(z_c, z_{c+C}).

  argmax(fold(z)) is the deployed decision: argmax(z) mod C, but for exact ties. It is
  differentiable almost everywhere, so every attack can be run on it.

  Args:
    logits: f32[..., 2C].

  Returns:
    f32[..., C].

  Raises:
    ValueError: for an odd number of logits.

  Example:
    >>> print(fold(jnp.array([1., 5., 3., 2.])))
    [3. 5.]

  Source: ours; the decision is that of Wang et al., DUCAT, arXiv 2410.12671 (2024).
  """
  if logits.shape[-1] % 2:
    raise ValueError(f'logits have {logits.shape[-1]} outputs: a head with dummies has an even number')
  return jnp.maximum(*jnp.split(logits, 2, axis=-1))


def recover(logits: Array) -> Array:
  """The recovered class as the paper words it, argmax(z) mod C.

  Args:
    logits: f32[..., 2C].

  Returns:
    i32[...].

  Example:
    >>> print(recover(jnp.array([1., 2., 3., 5.])))
    1

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024).
  """
  return jnp.argmax(logits, axis=-1) % (logits.shape[-1] // 2)


def loss(
    clean_logits: Array,
    adversarial_logits: Array,
    y: Array,
    *,
    benign_weight: float = 0.25,
    adversarial_weight: float = 1.0,
    alpha: float = 1.0,
) -> Array:
  """DUCAT's loss with PGD-AT, ½[CE(f(x), t_b) + α·CE(f(x'), t_a)].

  t_b and t_a are `soft_targets` with the benign and the adversarial weight; at the defaults the
  adversarial example belongs to the dummy entirely. With both weights 0 and α = 1 it is the mean of
  two ordinary cross-entropies over 2C classes.

  Args:
    clean_logits: f32[B, 2C], f(x).
    adversarial_logits: f32[B, 2C], f(x').
    y: i32[B], classes below C.
    benign_weight: the dummy's share of the clean target.
    adversarial_weight: the dummy's share of the adversarial target.
    alpha: α, the weight of the adversarial term.

  Returns:
    f32[B], in nats.

  Example:
    >>> print(loss(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.array([0])))
    [1.3862944]

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024), and its released code, which gives the ½ and
  the defaults.
  """
  num_classes = clean_logits.shape[-1] // 2
  benign = soft_targets(y, num_classes=num_classes, dummy_weight=benign_weight)
  adversarial = soft_targets(y, num_classes=num_classes, dummy_weight=adversarial_weight)
  return 0.5 * (losses.cross_entropy(clean_logits, benign)
                + alpha * losses.cross_entropy(adversarial_logits, adversarial))


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
  fit = loss(clean, adversarial, y, benign_weight=benign_weight,
                   adversarial_weight=adversarial_weight, alpha=alpha)
  return Outcome(fit, None, adversarial, batch_stats)

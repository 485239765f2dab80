"""DUCAT: a dummy class for every class, learned in training and mapped back to its class when deployed.

The head has 2C outputs; the dummy of class c is output c + C. With the targets

  t_benign = (1 − w_b) · e_y + w_b · e_{y+C}          w_b = .25          `soft_targets`
  t_adv    = (1 − w_a) · e_y + w_a · e_{y+C}          w_a = 1

the loss on PGD-AT is, from a start epoch on,

  L = ½ [CE(f(x), t_benign) + α · CE(f(x'), t_adv)]          α = 1          `loss`

In other methods it replaces the cross-entropy. The deployed model predicts argmax(z) mod C, which is the
argmax of the folded logits:

  g_c = max(z_c, z_{c+C})          `fold`

Evaluate g: an attack on the 2C logits with label y stops at argmax z = y + C, which the deployed model
classifies correctly.

Inner attack in training: that of the base method, on the 2C logits with label y.

Reference: Wang et al., DUCAT, arXiv 2410.12671, 2024, and its released code.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import losses, objective

Array = jax.Array


def soft_targets(y: Array, *, num_classes: int, dummy_weight: float | Array) -> Array:
  """Targets that split the mass between a class and its dummy, (1 − w) · e_y + w · e_{y+C}.

  Args:
    y: i32[B], classes below C.
    num_classes: C.
    dummy_weight: w, the share of the dummy, in [0, 1]. The weight λ of `attacks.losses.dummy_margin` is that
      of the true class instead: λ = 1 − w.

  Returns:
    f32[B, 2C].

  Example:
    >>> print(soft_targets(jnp.array([1]), num_classes=2, dummy_weight=.25))
    [[0.   0.75 0.   0.25]]

  Reference: Wang et al., DUCAT, arXiv 2410.12671, 2024, and its released code.
  """
  own, dummy = (jax.nn.one_hot(y + shift, 2 * num_classes) for shift in (0, num_classes))
  return (1 - dummy_weight) * own + dummy_weight * dummy


def fold(logits: Array) -> Array:
  """The deployed logits, g_c = max(z_c, z_{c+C}).

  argmax(fold(z)) is the deployed decision, argmax(z) mod C, except for exact ties. It is differentiable
  almost everywhere, so every attack can run on it.

  Args:
    logits: f32[..., 2C].

  Returns:
    f32[..., C].

  Raises:
    ValueError: if the number of logits is odd.

  Example:
    >>> print(fold(jnp.array([1., 5., 3., 2.])))
    [3. 5.]

  Reference: for the decision, Wang et al., DUCAT, arXiv 2410.12671, 2024. The paper has no folded logits.
  """
  if logits.shape[-1] % 2:
    raise ValueError(f'logits have {logits.shape[-1]} outputs: a head with dummies has an even number')
  return jnp.maximum(*jnp.split(logits, 2, axis=-1))


def recover(logits: Array) -> Array:
  """The decision as the paper defines it, argmax(z) mod C.

  Args:
    logits: f32[..., 2C].

  Returns:
    i32[...].

  Example:
    >>> print(recover(jnp.array([1., 2., 3., 5.])))
    1

  Reference: Wang et al., DUCAT, arXiv 2410.12671, 2024.
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
  """DUCAT's loss on PGD-AT, ½ [CE(f(x), t_benign) + α · CE(f(x'), t_adv)].

  With both weights 0 and α = 1 it is the mean of two ordinary cross-entropies over 2C classes.

  Args:
    clean_logits: f32[B, 2C], f(x).
    adversarial_logits: f32[B, 2C], f(x').
    y: i32[B], classes below C.
    benign_weight: w_b, the share of the dummy in t_benign.
    adversarial_weight: w_a, the share of the dummy in t_adv.
    alpha: α, the weight of the adversarial term.

  Returns:
    f32[B], in nats.

  Example:
    >>> print(loss(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.array([0])))
    [1.3862944]

  Reference: Wang et al., DUCAT, arXiv 2410.12671, 2024. The ½ and the defaults are those of its released
  code.
  """
  num_classes = clean_logits.shape[-1] // 2
  benign = soft_targets(y, num_classes=num_classes, dummy_weight=benign_weight)
  adversarial = soft_targets(y, num_classes=num_classes, dummy_weight=adversarial_weight)
  return 0.5 * (losses.cross_entropy(clean_logits, benign)
                + alpha * losses.cross_entropy(adversarial_logits, adversarial))


def ducat(
    forward: objective.Forward,
    batch_stats: Any,
    x: Array,
    x_adv: Array,
    y: Array,
    *,
    benign_weight: float,
    adversarial_weight: float,
    alpha: float,
) -> objective.Outcome:
  """PGD-AT with dummy classes: the fit is `loss`, from one pass over the concatenation [x; x'].

  In one pass, clean and adversarial examples share their BatchNorm statistics.

  Args:
    forward: the network in train mode, with 2C outputs.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    benign_weight: w_b of `loss`.
    adversarial_weight: w_a of `loss`.
    alpha: α of `loss`.

  Returns:
    An `objective.Outcome`; its logits are those of x'.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[2., 0., 1., 0.]]), jnp.array([[0., 0., 3., 0.]])
    >>> outcome = ducat(f, {}, x, x_adv, jnp.array([0]), benign_weight=.25, adversarial_weight=1.,
    ...                 alpha=1.)
    >>> print(f'{outcome.fit[0]:.4f}')
    0.4415

  Reference: Wang et al., DUCAT, arXiv 2410.12671, 2024, and its released code.
  """
  logits, batch_stats = forward(jnp.concatenate([x, x_adv]), batch_stats)
  clean, adversarial = jnp.split(logits, 2)
  fit = loss(clean, adversarial, y, benign_weight=benign_weight, adversarial_weight=adversarial_weight,
             alpha=alpha)
  return objective.Outcome(fit, None, adversarial, batch_stats)

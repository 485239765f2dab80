"""Loss terms that several methods share: functions of logits that return f32[B], one number per example.

A method is a *fit* (loss of the labels) plus β times a *regulariser* (distance between predictions). The
two are separate and not averaged, so that an importance weight can multiply either, and DUCAT can replace
the cross-entropy:

  method       fit                                           regulariser
  PGD-AT       cross_entropy(adv, y)                         none
  TRADES       cross_entropy(clean, y)                       kl(clean, adv)
  MART         cross_entropy(adv, y) + mart.boost(adv, y)    mart.weighted_kl(clean, adv, y)
  Consistency  cross_entropy(adv, y), over both views        consistency.js_divergence(adv_1, adv_2)

>>> clean, adv, y = jnp.array([[2., 0.]]), jnp.array([[1., 0.]]), jnp.array([0])
>>> trades = jnp.mean(cross_entropy(clean, y) + 6. * kl(clean, adv))
>>> print(f'{trades:.4f}')
0.5297

No function of training stops a gradient: as in the released code of each method it flows
through both the clean and the adversarial logits.

A logit of −∞ masks its class: terms are those of the other classes, and its gradient is 0. If the class of
the label, or one with p > 0 in a divergence, is masked, the term is +∞, and training ends with a message.
Terms are float32 at least, whatever the dtype of the logits.
"""

import jax
import jax.numpy as jnp

from at_jax.methods import precision

Array = jax.Array


def log_softmax(logits: Array) -> Array:
  """log softmax(z)_k, float32 at least.

  Args:
    logits: float[..., K].

  Returns:
    f32[..., K], −∞ for a masked class.

  Example:
    >>> print(log_softmax(jnp.array([0., 0., -jnp.inf], jnp.bfloat16)).round(4))
    [-0.6931 -0.6931    -inf]
  """
  return jax.nn.log_softmax(precision.float32_at_least(logits))


def relative_entropy(log_p: Array, log_q: Array) -> Array:
  """KL(p ‖ q) = Σ_k p_k (log p_k − log q_k), where a class with p_k = 0 adds 0.

  Args:
    log_p: f32[B, K], log-probabilities.
    log_q: f32[B, K], log-probabilities.

  Returns:
    f32[B], in nats.

  Example:
    >>> log_p = jnp.log(jnp.array([[.5, .5, 0.]]))
    >>> print(relative_entropy(log_p, log_p))
    [0.]
  """
  there = ~jnp.isneginf(log_p)
  # `where` before the difference, because that of two −∞ is NaN.
  gap = jnp.where(there, log_p, 0) - jnp.where(there, log_q, 0)
  return jnp.sum(jnp.exp(log_p) * gap, axis=-1)


def mean_where(values: Array, there: Array) -> Array:
  """Mean over the classes that are there.

  Args:
    values: f32[B, K].
    there: bool[B, K], False for masked classes. If all are True, the bits are those of `jnp.mean`.

  Returns:
    f32[B].

  Example:
    >>> print(mean_where(jnp.array([[1., 5., jnp.inf]]), jnp.array([[True, True, False]])))
    [3.]
  """
  scale = values.shape[-1] / jnp.sum(there, axis=-1, dtype=values.dtype)
  return scale * jnp.mean(jnp.where(there, values, 0), axis=-1)


def cross_entropy(logits: Array, targets: Array) -> Array:
  """Cross-entropy with labels or with soft targets, −Σ_k t_k · log softmax(z)_k.

  Args:
    logits: f32[B, K], all K outputs of the head, 2C for a doubled head.
    targets: i32[B], classes; or f32[B, K], soft targets, which need not sum to 1.

  Returns:
    f32[B], in nats.

  Raises:
    ValueError: if `targets` has an invalid shape or dtype.

  Example:
    >>> logits = jnp.array([[2., 0.], [2., 0.]])
    >>> print(cross_entropy(logits, jnp.array([0, 1])).round(4))
    [0.1269 2.1269]
    >>> print(cross_entropy(logits, jnp.array([[.5, .5], [0., 1.]])).round(4))
    [1.1269 2.1269]

  Reference: for soft targets, Szegedy et al., Rethinking the Inception Architecture for Computer Vision,
  2016, section 7.
  """
  log_p = log_softmax(logits)
  if targets.shape == logits.shape and jnp.issubdtype(targets.dtype, jnp.floating):
    return -jnp.sum(targets * jnp.where((targets == 0) & jnp.isneginf(log_p), 0, log_p), axis=-1)
  if targets.shape != logits.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(f'targets are {targets.dtype}{list(targets.shape)}: use classes as integers, '
                     f'{list(logits.shape[:-1])}, or weights as floats, {list(logits.shape)}')
  return -jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]


def kl(clean_logits: Array, adv_logits: Array) -> Array:
  """TRADES' regulariser, KL(p ‖ p') = Σ_k p_k (log p_k − log p'_k), p clean and p' adversarial.

  Args:
    clean_logits: f32[B, K], at the clean input, or those of a teacher.
    adv_logits: f32[B, K], at the adversarial input.

  Returns:
    f32[B], in nats. Zero, with zero gradient, where the two are equal.

  Example:
    >>> print(f'{kl(jnp.array([[2., 0.]]), jnp.array([[0., 1.]]))[0]:.4f}')
    0.8287

  Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1.
  """
  return relative_entropy(log_softmax(clean_logits), log_softmax(adv_logits))


def kl_to_reference(logits: Array, y: Array, reference: Array) -> Array:
  """The loss that TRADES' attack maximises, KL(p ‖ p') to fixed logits, as a loss for `attacks.pgd`.

  Its gradient is zero at the reference, so the attack must not start at the clean input.

  Args:
    logits: f32[B, K], at the current iterate.
    y: i32[B], ignored; an attack passes the labels to every loss.
    reference: f32[B, K], logits at the clean input, passed to the attack as `loss_args=(reference,)`.

  Returns:
    f32[B], in nats. No gradient flows through the reference.

  Example:
    >>> from at_jax import attacks
    >>> f = lambda x: x @ jnp.array([[4., -4.], [-4., 4.]])
    >>> x, y, key = jnp.array([[.6, .5]]), jnp.array([0]), jax.random.key(0)
    >>> start = attacks.gaussian_start(x, key)
    >>> result = attacks.pgd(f, x, y, key, epsilon=.1, step_size=.05, num_steps=4,
    ...                      loss=kl_to_reference, loss_args=(f(x),), start=start)
    >>> print(f'{result.loss[0]:.3f}')
    0.212

  Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1.
  """
  del y
  return kl(jax.lax.stop_gradient(reference), logits)

"""What training minimises: functions of logits that return f32[B], one number an example.

A method is a *fit* (how well the labels are learnt) plus β times a *regulariser* (how far the
adversarial prediction is from the clean one). They are apart, and not averaged, so that an
importance weight can multiply either, and DUCAT can replace the cross-entropy in any of them:

  method       fit                                       regulariser
  PGD-AT       cross_entropy(adv, y)                     none
  TRADES       cross_entropy(clean, y)                   kl(clean, adv)
  MART         cross_entropy(adv, y) + mart_boost(adv, y)  mart_kl(clean, adv, y)
  Consistency  cross_entropy(adv, y), over both views    js_consistency(adv_1, adv_2)

>>> clean, adv, y = jnp.array([[2., 0.]]), jnp.array([[1., 0.]]), jnp.array([0])
>>> trades = jnp.mean(cross_entropy(clean, y) + 6. * kl(clean, adv))
>>> print(f'{trades:.4f}')
0.5297

Nothing here stops a gradient: as in the released code of each method it flows through the clean and
the adversarial logits alike.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, targets: Array) -> Array:
  """Cross-entropy with labels or with soft targets, −Σ_k t_k · log softmax(z)_k.

  Args:
    logits: f32[B, K]; all K classes of the head, so 2C where it is doubled.
    targets: i32[B], the classes; or f32[B, K], a weight for each class, which need not sum to 1.

  Returns:
    f32[B], in nats.

  Raises:
    ValueError: when `targets` is neither of the two shapes.

  Example:
    >>> logits = jnp.array([[2., 0.], [2., 0.]])
    >>> print(cross_entropy(logits, jnp.array([0, 1])).round(4))
    [0.1269 2.1269]
    >>> print(cross_entropy(logits, jnp.array([[.5, .5], [0., 1.]])).round(4))
    [1.1269 2.1269]

  Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7
  (soft targets).
  """
  log_p = jax.nn.log_softmax(logits)
  if targets.shape == logits.shape and jnp.issubdtype(targets.dtype, jnp.floating):
    return -jnp.sum(targets * log_p, axis=-1)
  if targets.shape != logits.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(f'targets are {targets.dtype}{list(targets.shape)}: use classes as integers, '
                     f'{list(logits.shape[:-1])}, or weights as floats, {list(logits.shape)}')
  return -_at(log_p, targets)


def kl(clean_logits: Array, adv_logits: Array) -> Array:
  """TRADES' regulariser, KL(p ‖ p') = Σ_k p_k (log p_k − log p'_k), p clean and p' adversarial.

  Args:
    clean_logits: f32[B, K], at the clean input (or a teacher's).
    adv_logits: f32[B, K], at the adversarial input.

  Returns:
    f32[B], in nats. Zero, with zero gradient, where the two agree.

  Example:
    >>> print(f'{kl(jnp.array([[2., 0.]]), jnp.array([[0., 1.]]))[0]:.4f}')
    0.8287

  Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1.
  """
  log_p = jax.nn.log_softmax(clean_logits)
  return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(adv_logits)), axis=-1)


def kl_to_reference(logits: Array, y: Array, reference: Array) -> Array:
  """What TRADES' attack maximises, KL(p ‖ p') to fixed reference logits: a loss for `attacks.pgd`.

  Its gradient is zero at the reference itself, so the attack must start beside it.

  Args:
    logits: f32[B, K], at the point the attack has reached.
    y: i32[B], not read; there because an attack gives the labels to every loss.
    reference: f32[B, K], the logits at the clean input, given to the attack as
      `loss_args=(reference,)`.

  Returns:
    f32[B], in nats.

  Example:
    >>> from at_jax import attacks
    >>> f = lambda x: x @ jnp.array([[4., -4.], [-4., 4.]])
    >>> x, y, key = jnp.array([[.6, .5]]), jnp.array([0]), jax.random.key(0)
    >>> start = attacks.beside(x, key)
    >>> result = attacks.pgd(f, x, y, key, epsilon=.1, step_size=.05, num_steps=4,
    ...                      loss=kl_to_reference, loss_args=(f(x),), start=start)
    >>> print(f'{result.loss[0]:.3f}')
    0.212

  Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1.
  """
  del y
  return kl(jax.lax.stop_gradient(reference), logits)


def mart_boost(adv_logits: Array, y: Array) -> Array:
  """What MART adds to the cross-entropy, −log(1.0001 − p'_k) for the likeliest wrong class k.

  Cross-entropy plus this is its boosted cross-entropy. With a doubled head k is the likeliest of
  all 2C classes but y, so it may be y's own dummy, y + C.

  Args:
    adv_logits: f32[B, K], at the adversarial input, K ≥ 2.
    y: i32[B], the true classes.

  Returns:
    f32[B], in nats, from −.0001 to 9.22.

  Example:
    >>> print(f'{mart_boost(jnp.array([[0., 0., -50.]]), jnp.array([0]))[0]:.4f}')
    0.6929

  Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3; the .0001 and, for doubled heads, the choice of k are the released code's.
  """
  wrong = jnp.where(jax.nn.one_hot(y, adv_logits.shape[-1], dtype=bool), -jnp.inf, adv_logits)
  return -jnp.log(1e-4 + _others(adv_logits, jnp.argmax(wrong, axis=-1)))


def mart_kl(clean_logits: Array, adv_logits: Array, y: Array) -> Array:
  """MART's regulariser, KL(p ‖ p') · (1 − p_y): most where the clean example is not yet learnt.

  Args:
    clean_logits: f32[B, K], at the clean input.
    adv_logits: f32[B, K], at the adversarial input.
    y: i32[B], the true classes.

  Returns:
    f32[B], in nats. The gradient flows through 1 − p_y too.

  Example:
    >>> print(f'{mart_kl(jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))[0]:.4f}')
    0.0988

  Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3. The released code cuts p' off at 1e-12 inside the logarithm; this does not.
  """
  return kl(clean_logits, adv_logits) * _others(clean_logits, y)


def js_consistency(logits_1: Array, logits_2: Array, *, temperature: float | Array = .5) -> Array:
  """Consistency's regulariser, the Jensen-Shannon divergence of two views at a temperature.

  ½ KL(p ‖ m) + ½ KL(q ‖ m) with p = softmax(z₁/T), q = softmax(z₂/T), m = (p + q)/2.

  Args:
    logits_1: f32[B, K], at the adversarial input made from the first augmentation.
    logits_2: f32[B, K], from the second.
    temperature: T, below 1 to sharpen.

  Returns:
    f32[B], in nats, from 0 to log 2.

  Example:
    >>> print(f'{js_consistency(jnp.array([[1., 0.]]), jnp.array([[0., 1.]]))[0]:.4f}')
    0.3278

  Source: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3. The
  released code cuts m off at 1e-8 inside the logarithm; this does not.
  """
  log_p = jax.nn.log_softmax(logits_1 / temperature)
  log_q = jax.nn.log_softmax(logits_2 / temperature)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.)
  from_p = jnp.sum(jnp.exp(log_p) * (log_p - log_m), axis=-1)
  from_q = jnp.sum(jnp.exp(log_q) * (log_q - log_m), axis=-1)
  return (from_p + from_q) / 2


def _at(values: Array, y: Array) -> Array:
  return jnp.take_along_axis(values, y[:, None], axis=-1)[:, 0]


def _others(logits: Array, y: Array) -> Array:
  """1 − p_y as the sum of the others: the difference would keep 3 digits of 1e-4, where p_y ≈ 1."""
  own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
  return jnp.sum(jnp.where(own, 0., jax.nn.softmax(logits)), axis=-1)

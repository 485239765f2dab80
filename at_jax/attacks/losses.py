"""What an attack maximises: functions `(logits f32[B, C], y i32[B]) -> f32[B]`.

An attack takes any such function. None of them averages over the batch: every example is attacked on
its own, and a mean would scale its gradient by the number of its neighbours.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def _at(logits: Array, y: Array) -> Array:
  return jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]


def _without(logits: Array, y: Array) -> Array:
  """The logits with class y's at −∞."""
  return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def cross_entropy(logits: Array, y: Array) -> Array:
  """Cross-entropy, −log softmax(z)_y = logsumexp(z) − z_y.

  Args:
    logits: f32[B, C].
    y: i32[B], the true classes.

  Returns:
    f32[B], in nats.

  Example:
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    [1.3862944]

  Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
  section 2.
  """
  return jax.nn.logsumexp(logits, axis=-1) - _at(logits, y)


def margin(logits: Array, y: Array) -> Array:
  """The margin by which the example is misclassified, max_{j≠y} z_j − z_y.

  Positive exactly where the prediction is wrong. Its gradient does not vanish on confident examples,
  as that of cross-entropy does.

  Args:
    logits: f32[B, C], C ≥ 2.
    y: i32[B], the true classes.

  Returns:
    f32[B], in logits.

  Example:
    >>> print(margin(jnp.array([[3., 1., 2.]]), jnp.array([0])))
    [-1.]

  Source: Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017, section V
  (f_6, without its clipping).
  """
  return jnp.max(_without(logits, y), axis=-1) - _at(logits, y)

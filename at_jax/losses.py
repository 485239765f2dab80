"""What training minimises: unreduced losses `(logits, targets) -> f32[B]`."""

import jax
import jax.numpy as jnp

Array = jax.Array

# The values of `config.loss`: training on clean examples, or on adversarial ones (PGD-AT).
METHODS = ('standard', 'pgd_at')


def cross_entropy(logits: Array, targets: Array) -> Array:
  """Cross-entropy against classes or soft targets, −Σ_k t_k log softmax(z)_k.

  Args:
    logits: f32[B, K].
    targets: i32[B] classes, or f32[B, K] soft targets (they need not add up to 1).

  Returns:
    f32[B], in nats.

  Raises:
    ValueError: for targets of another shape.

  Example:
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([[.5, .5, 0., 0.]])))
    [1.3862944]

  Source: the usual definition.
  """
  if targets.ndim == 1 and targets.shape == logits.shape[:1]:
    targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
  if targets.shape != logits.shape:
    raise ValueError(f'targets have shape {targets.shape}: use {logits.shape[:1]} or {logits.shape}')
  return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)

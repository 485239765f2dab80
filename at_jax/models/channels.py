"""Means over all axes but the channels, and broadcasts whose gradients are sums over these axes.

Without the library YNNPACK, which commands switch off (`xla_flags`), XLA's CPU backend is much slower at one
sum over batch and space than at a sum over the height followed by one over the rest, which is also more
exact. XLA merges the two sums, unless they are kept apart.
"""

import jax
import jax.numpy as jnp


def mean(x: jax.Array) -> jax.Array:
  """Mean over all axes but the last.

  Args:
    x: float[B, H, ..., C]; at least one axis between the first and the last.

  Returns:
    float[C], with the dtype of x.

  Example:
    >>> mean(jnp.arange(8.).reshape(1, 2, 2, 2)).tolist()
    [3.0, 4.0]
  """
  rows = _apart(x.sum(1))
  return rows.sum(tuple(range(rows.ndim - 1))) / (x.size // x.shape[-1])


def broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Broadcasts one number for each channel to the shape of features.

  Args:
    vector: float[C].
    shape: (B, H, ..., C), as in `mean`.

  Returns:
    float[B, H, ..., C], with the dtype of the vector.

  Example:
    >>> broadcast(jnp.array([1., 2.]), (1, 1, 2, 2)).tolist()
    [[[[1.0, 2.0], [1.0, 2.0]]]]
  """
  rows = jnp.broadcast_to(vector, (shape[0], *shape[2:]))
  return jnp.broadcast_to(_apart(rows)[:, None], shape)


def _apart(x: jax.Array) -> jax.Array:
  """The argument. On the CPU, XLA does not merge its producer with its consumer, nor in the gradient."""
  # On a TPU merged sums are as good, and a barrier would keep XLA from fusing them with other operations.
  return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)

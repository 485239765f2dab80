"""Means over all axes but the channels, and broadcasts whose gradients are such sums, both fast on a CPU.

As commands configure it (`xla_flags`), XLA's CPU backend adds up three axes at a tenth of the speed of one
axis, the height, and then the others. It merges the two sums, unless they are kept apart.
"""

import jax
import jax.numpy as jnp


def mean(x: jax.Array) -> jax.Array:
  """Mean over all axes but the last.

  Args:
    x: float[B, H, W, C].

  Returns:
    float[C] of the same dtype.

  Example:
    >>> mean(jnp.arange(8.).reshape(1, 2, 2, 2)).tolist()
    [3.0, 4.0]
  """
  return _apart(x.sum(1)).sum((0, 1)) / (x.size // x.shape[-1])


def broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Broadcasts one number for each channel to the shape of features.

  Args:
    vector: float[C].
    shape: (B, H, W, C).

  Returns:
    float[B, H, W, C] of the same dtype.

  Example:
    >>> broadcast(jnp.array([1., 2.]), (1, 1, 2, 2)).tolist()
    [[[[1.0, 2.0], [1.0, 2.0]]]]
  """
  rows = jnp.broadcast_to(vector, (shape[0], *shape[2:]))
  return jnp.broadcast_to(_apart(rows)[:, None], shape)


def _apart(x: jax.Array) -> jax.Array:
  """The argument; on the CPU, XLA does not merge what computes it with what uses it, in the gradient too."""
  # Elsewhere the two sums are merged, and a barrier would keep XLA from fusing them with other operations.
  return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)

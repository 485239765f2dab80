"""The layers that every model here is made of, and PyTorch's initialisations of them."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default for convolutions and dense layers (kaiming_uniform_, a = √5): U(±1/√fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# torch.nn.init.kaiming_normal_ as it is without arguments: N(0, 2/fan_in).
kaiming_normal = nn.initializers.variance_scaling(2, 'fan_in', 'normal')
# The wide residual networks' N(0, 2/(kh·kw·out)).
kaiming_normal_fan_out = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


def torch_default_bias(fan_in: int) -> Callable[..., jax.Array]:
  """PyTorch's default initialiser of a dense layer's bias, U(±1/√fan_in).

  Args:
    fan_in: number of inputs of the layer, which linen does not tell the bias' initialiser.

  Returns:
    An initialiser (key, shape, dtype) -> float[shape].

  Example:
    >>> torch_default_bias(4)(jax.random.key(0), (3,)).shape
    (3,)

  Source: torch.nn.Linear.reset_parameters.
  """

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in ** 0.5

  return init


def param_dtype(dtype: Any) -> jnp.dtype:
  """The dtype of parameters, statistics and logits: float32, or float64 for float64 compute.

  Example:
    >>> param_dtype('bfloat16')
    dtype('float32')

  Source: ours.
  """
  return jnp.promote_types(dtype, jnp.float32)


def prepare(x: jax.Array, normalize: tuple | None, dtype: Any) -> jax.Array:
  """Normalises images per channel, in full precision, and casts them to the compute dtype.

  Args:
    x: float[B, H, W, C] images in [0, 1].
    normalize: (mean, std), each a number or C numbers; None leaves the images alone.
    dtype: what the model computes in.

  Returns:
    dtype[B, H, W, C].

  Example:
    >>> float(prepare(jnp.ones((1, 1, 1, 1)), ((0.5,), (0.25,)), jnp.float32)[0, 0, 0, 0])
    2.0

  Source: ours.
  """
  if normalize is not None:
    x = x.astype(jnp.promote_types(x.dtype, param_dtype(dtype)))
    mean, std = (jnp.asarray(part, x.dtype) for part in normalize)
    x = (x - mean) / std
  return x.astype(dtype)


def batch_norm(*, train: bool, axis_name: str | None, dtype: Any) -> Callable[..., nn.Module]:
  """`nn.BatchNorm` as PyTorch's defaults have it, with global statistics over `axis_name`.

  PyTorch's momentum 0.1 is linen's 0.9. The running variance is the batch's own (divided by n),
  PyTorch's is the unbiased one (n − 1); with n = batch × height × width the two differ by less than
  1e-3 from 1,024 on.

  Args:
    train: normalise by the batch and update the running statistics; else normalise by those, with
      no communication.
    axis_name: named axis over which training statistics are averaged, so that they are the whole
      batch's.
    dtype: of the output. Statistics are float32 at least.

  Returns:
    `nn.BatchNorm` with all but its name filled in.

  Example:
    >>> norm = batch_norm(train=False, axis_name=None, dtype=jnp.float32)

  Source: torch.nn.BatchNorm2d for the constants.
  """
  # Under float64 linen's float32 statistics would turn into float64 at the first step, and a loop's
  # carry must not change its dtype; forced only where compute is narrower.
  return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5,
      axis_name=axis_name if train else None, dtype=dtype, param_dtype=param_dtype(dtype),
      force_float32_reductions=jnp.dtype(dtype) != jnp.float64)


def dense(
    features: int, x: jax.Array, *, dtype: Any, name: str,
    kernel_init: Callable[..., jax.Array] = torch_default,
    bias_init: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """A dense layer applied to x, PyTorch's default initialisation unless told otherwise.

  Args:
    features: number of outputs.
    x: float[B, D].
    dtype: what it computes in.
    name: of the layer in the parameter tree.
    kernel_init, bias_init: initialisers; None for PyTorch's bias.

  Returns:
    dtype[B, features].

  Example: see `small_cnn.py`.

  Source: torch.nn.Linear.
  """
  bias_init = torch_default_bias(x.shape[-1]) if bias_init is None else bias_init
  return nn.Dense(
      features, dtype=dtype, param_dtype=param_dtype(dtype), kernel_init=kernel_init,
      bias_init=bias_init, name=name)(x)


def max_pool(x: jax.Array) -> jax.Array:
  """2×2 max-pooling with stride 2; an odd last row or column is dropped, as PyTorch does.

  A reshape and a maximum, whose gradient is a comparison; that of `nn.max_pool`
  (select-and-scatter) is slow on every platform. Where several of the four tie, the gradient is
  shared among them (PyTorch: the first has all).

  Args:
    x: float[B, H, W, C].

  Returns:
    float[B, H // 2, W // 2, C].

  Example:
    >>> max_pool(jnp.arange(16.).reshape(1, 4, 4, 1)).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]

  Source: ours.
  """
  b, h, w, c = x.shape
  x = x[:, :h // 2 * 2, :w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))

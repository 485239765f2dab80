"""The layers of the models, with PyTorch's initialisation and BatchNorm conventions."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from at_jax.models import channels

# PyTorch's default for convolutions and dense layers (kaiming_uniform_, a = √5): U(±1/√fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# torch.nn.init.kaiming_normal_ with its default arguments: N(0, 2/fan_in).
kaiming_normal = nn.initializers.variance_scaling(2, 'fan_in', 'normal')
# The initialisation of wide residual networks: N(0, 2/(kh·kw·out)).
kaiming_normal_fan_out = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


def torch_default_bias(fan_in: int) -> Callable[..., jax.Array]:
  """Returns PyTorch's default initialiser of a dense layer's bias, U(±1/√fan_in).

  Args:
    fan_in: number of inputs of the layer; linen does not pass it to the initialiser of the bias.

  Returns:
    An initialiser (key, shape, dtype) -> float[shape].

  Example:
    >>> bias = torch_default_bias(4)(jax.random.key(0), (100,))
    >>> bool((abs(bias) <= .5).all())
    True

  Reference: torch.nn.Linear.reset_parameters.
  """

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in ** 0.5

  return init


def param_dtype(dtype: Any) -> jnp.dtype:
  """Returns the dtype of parameters, statistics and logits: float32, or float64 for float64 compute.

  Args:
    dtype: compute dtype of the model.

  Returns:
    The dtype.

  Example:
    >>> param_dtype('bfloat16')
    dtype('float32')
  """
  return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def mean_and_std(normalize: tuple, channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers by which images are normalised, one for all channels or one for each.

  Args:
    normalize: (mean, std), each a number, 1 or C numbers.
    channels: C.

  Returns:
    Two arrays, f64[1] or f64[C].

  Raises:
    ValueError: if `normalize` has not two parts, a part has another length, or a std is not above 0.

  Example:
    >>> mean_and_std((.5, (.25, .5, .25)), 3)
    (array([0.5]), array([0.25, 0.5 , 0.25]))
  """
  if len(normalize) != 2:
    raise ValueError(f'{len(normalize)} parts: use two, (mean, std)')
  mean, std = (np.asarray(part, np.float64).reshape(-1) for part in normalize)
  for name, part in (('mean', mean), ('std', std)):
    # C numbers would turn images of one channel into images of C.
    if len(part) not in (1, channels):
      raise ValueError(f'{name} has {len(part)} numbers for {channels} channels: use one for each')
  if not (std > 0).all():
    raise ValueError(f'std reaches down to {std.min():g}: use numbers above 0')
  return mean, std


def prepare(x: jax.Array, normalize: tuple | None, dtype: Any) -> jax.Array:
  """Normalises images per channel, in float32 at least, and casts them to the compute dtype.

  Args:
    x: float[B, H, W, C] images in [0, 1].
    normalize: (mean, std), each a number or C numbers; None for no normalisation.
    dtype: compute dtype of the model.

  Returns:
    dtype[B, H, W, C].

  Raises:
    ValueError: as `mean_and_std`.

  Example:
    >>> float(prepare(jnp.ones((1, 1, 1, 1)), ((0.5,), (0.25,)), jnp.float32)[0, 0, 0, 0])
    2.0
  """
  if normalize is not None:
    x = x.astype(max(param_dtype(x.dtype), param_dtype(dtype), key=lambda each: each.itemsize))
    by_channel = (1,) * (x.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(part, x.dtype).reshape(by_channel)
                 for part in mean_and_std(normalize, x.shape[-1]))
    x = (x - mean) / std
  return x.astype(dtype)


class BatchNorm(nn.Module):
  """BatchNorm with PyTorch's defaults, and statistics over all devices of `axis_name`.

  y = (x − mean) / √(var + ε) · scale + bias for each channel, with ε = 1e-5. In training mode mean and
  variance are those of the batch, and the running ones move towards them by a tenth: PyTorch's momentum .1.
  The running variance is the biased one (divided by n), PyTorch's is unbiased (n − 1). With n = batch ×
  height × width the relative difference is below 1e-3 for n > 1,024.

  It replaces `nn.BatchNorm`, whose sums over batch and space are slow on a CPU (`channels`), and has its
  variables.

  Attributes:
    train: normalise by the batch statistics and update the running statistics; otherwise normalise by the
      running statistics, without communication.
    axis_name: named axis over which batch statistics are averaged; None for none.
    dtype: dtype of the output. Parameters and statistics are float32 at least.

  Example:
    >>> norm = BatchNorm(train=True, axis_name=None, dtype=jnp.float32)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1)
    >>> y, updated = norm.init_with_output(jax.random.key(0), x)
    >>> y.ravel().round(3).tolist()
    [-1.0, 1.0]

  Reference: S. Ioffe and C. Szegedy, Batch Normalization, 2015, algorithm 1; torch.nn.BatchNorm2d.
  """

  train: bool
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises features.

    Args:
      x: float[B, H, W, C].

    Returns:
      dtype[B, H, W, C].
    """
    kept = x.shape[-1:], param_dtype(self.dtype)  # shape and dtype of parameters and statistics
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, *kept)
    running_var = self.variable('batch_stats', 'var', jnp.ones, *kept)
    scale = self.param('scale', nn.initializers.ones, *kept)
    bias = self.param('bias', nn.initializers.zeros, *kept)
    x = x.astype(kept[1])
    mean, var = running_mean.value, running_var.value
    broadcast = jnp.broadcast_to  # an attack's gradient in inference mode needs no sums here
    if self.train:
      moments = jnp.stack([channels.mean(x), channels.mean(x * x)])
      if self.axis_name is not None and not self.is_initializing():
        moments = jax.lax.pmean(moments, self.axis_name)
      mean = moments[0]
      var = jnp.maximum(moments[1] - mean * mean, 0)  # not negative by rounding
      broadcast = channels.broadcast
      if not self.is_initializing():
        running_mean.value = 0.9 * running_mean.value + 0.1 * mean
        running_var.value = 0.9 * running_var.value + 0.1 * var
    factor = jax.lax.rsqrt(var + 1e-5) * scale
    y = (x - broadcast(mean, x.shape)) * broadcast(factor, x.shape) + broadcast(bias, x.shape)
    return y.astype(self.dtype)


def dense(
    features: int, x: jax.Array, *, dtype: Any, name: str,
    kernel_init: Callable[..., jax.Array] = torch_default,
    bias_init: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """Applies a dense layer, by default with PyTorch's initialisation; to be called in a linen module.

  Args:
    features: number of outputs.
    x: float[B, D].
    dtype: compute dtype.
    name: name of the layer in the parameter tree.
    kernel_init: initialiser of the kernel.
    bias_init: initialiser of the bias; None for PyTorch's.

  Returns:
    dtype[B, features].

  Reference: torch.nn.Linear.
  """
  bias_init = torch_default_bias(x.shape[-1]) if bias_init is None else bias_init
  return nn.Dense(
      features, dtype=dtype, param_dtype=param_dtype(dtype), kernel_init=kernel_init,
      bias_init=bias_init, name=name)(x)


def max_pool(x: jax.Array) -> jax.Array:
  """2×2 max-pooling with stride 2; drops an odd last row or column, like PyTorch.

  It is computed by a reshape and a maximum, because the gradient of `nn.max_pool` (select-and-scatter) is
  slow on every platform. If several of the four values are the maximum, they share the gradient; in PyTorch
  the first has all of it.

  Args:
    x: float[B, H, W, C].

  Returns:
    float[B, H // 2, W // 2, C].

  Example:
    >>> max_pool(jnp.arange(16.).reshape(1, 4, 4, 1)).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
  """
  b, h, w, c = x.shape
  x = x[:, :h // 2 * 2, :w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))

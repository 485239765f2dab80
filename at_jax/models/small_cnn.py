"""A small convolutional network: that of TRADES for MNIST, and those of the variants :small and :smoke."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from at_jax import errors
from at_jax.models import layers


class SmallCNN(nn.Module):
  """Pairs of 3×3 convolutions with 2×2 max-pooling after each pair, then dense layers.

  With the default arguments it is TRADES' MNIST network, with 312,202 parameters for 28×28×1 images and 10
  outputs, but without the dropout of 0.5 after the first dense layer.

  Features are flattened in the order (H, W, C). PyTorch flattens (C, H, W), so `importers.from_torch`
  permutes the rows of the kernel of `fc1`.

  Initialisation, as in the TRADES code: convolutions N(0, 2/fan_in) with zero bias (kaiming_normal_), dense
  layers PyTorch's default U(±1/√fan_in). The TRADES code also sets the last layer to zero: `zero_head=True`.
  Then the input gradient of the untrained network is zero, and an attack on it returns its random start.

  Attributes:
    num_outputs: number of logits.
    features: channels of the convolutions; their number is even.
    hidden: widths of the dense layers before the last.
    batch_norm: apply BatchNorm after each convolution, before its ReLU.
    padding: 'VALID' as in the TRADES code, or 'SAME', which images below 16×16 need, such as 8×8 digits.
    stem_stride: stride of the first convolution; 2 reduces the cost of a wider network for 32×32 images.
    normalize: (mean, std) per channel, applied to the images first; None for no normalisation.
    zero_head: initialise the last layer to zero.
    axis_name: named axis over which BatchNorm's batch statistics are averaged.
    dtype: compute dtype: float32, bfloat16 or float64; parameters are float32 at least.

  Example:
    >>> model = SmallCNN(num_outputs=10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> jax.eval_shape(model.apply, variables, jnp.zeros((2, 28, 28, 1))).shape
    (2, 10)

  Reference: H. Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  section 5.3.1; layout and initialisation of models/small_cnn.py in the released code
  (github.com/yaodongyu/TRADES).
  """

  num_outputs: int
  features: tuple[int, ...] = (32, 32, 64, 64)
  hidden: tuple[int, ...] = (200, 200)
  batch_norm: bool = False
  padding: str = 'VALID'
  stem_stride: int = 1
  normalize: tuple | None = None
  zero_head: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images to logits.

    Args:
      x: float[B, H, W, C] images in [0, 1].
      train: normalise by the batch statistics; without effect if `batch_norm` is False.

    Returns:
      float32[B, num_outputs] (float64 for dtype float64).
    """
    param_dtype = layers.param_dtype(self.dtype)
    norm = functools.partial(
        layers.BatchNorm, train=train, axis_name=self.axis_name, dtype=self.dtype)
    shape = x.shape[1:3]
    x = layers.prepare(x, self.normalize, self.dtype)
    for i, features in enumerate(self.features, 1):
      x = nn.Conv(
          features, (3, 3), strides=self.stem_stride if i == 1 else 1, padding=self.padding,
          dtype=self.dtype, param_dtype=param_dtype, kernel_init=layers.kaiming_normal,
          name=f'conv{i}')(x)
      if self.batch_norm:
        x = norm(name=f'bn{i}')(x)
      x = nn.relu(x)
      if i % 2 == 0:
        x = layers.max_pool(x)
      if 0 in x.shape[1:3]:
        raise errors.UserError(
            'model.padding', self.padding,
            f"{shape[0]}×{shape[1]} images are too small: use 'SAME' or fewer features")
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.hidden, 1):
      x = nn.relu(layers.dense(features, x, dtype=self.dtype, name=f'fc{i}'))
    zeros = {'kernel_init': nn.initializers.zeros, 'bias_init': nn.initializers.zeros}
    head = zeros if self.zero_head else {}
    x = layers.dense(
        self.num_outputs, x, dtype=self.dtype, name=f'fc{len(self.hidden) + 1}', **head)
    return x.astype(param_dtype)

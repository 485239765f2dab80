"""Residual networks for CIFAR, Tiny-ImageNet and ImageNet."""

from collections.abc import Callable
import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from at_jax import errors
from at_jax.models import layers


def _pre_activation_block(
    x: jax.Array, features: int, stride: int, conv: Callable, norm: Callable, name: str,
    raw_shortcut: bool = False) -> jax.Array:
  """Two 3×3 convolutions, each after BatchNorm and ReLU; a 1×1 shortcut if the shape changes."""
  out = nn.relu(norm(name=f'{name}_bn1')(x))
  if stride != 1 or x.shape[-1] != features:
    # The shortcut starts after the first activation, unless raw; an identity shortcut starts before it.
    begin = x if raw_shortcut else out
    x = conv(features, (1, 1), strides=stride, padding=0, name=f'{name}_shortcut')(begin)
  out = conv(features, (3, 3), strides=stride, name=f'{name}_conv1')(out)
  out = nn.relu(norm(name=f'{name}_bn2')(out))
  return x + conv(features, (3, 3), name=f'{name}_conv2')(out)


def _basic_block(
    x: jax.Array, features: int, stride: int, conv: Callable, norm: Callable, name: str) -> jax.Array:
  """Two 3×3 convolutions, each before BatchNorm; ReLU between them and after the sum."""
  out = nn.relu(norm(name=f'{name}_bn1')(conv(features, (3, 3), strides=stride, name=f'{name}_conv1')(x)))
  out = norm(name=f'{name}_bn2')(conv(features, (3, 3), name=f'{name}_conv2')(out))
  return nn.relu(_projection(x, features, stride, conv, norm, name) + out)


def _projection(
    x: jax.Array, features: int, stride: int, conv: Callable, norm: Callable, name: str) -> jax.Array:
  """The shortcut after which a sum is taken: a 1×1 convolution and BatchNorm if the shape changes."""
  if stride == 1 and x.shape[-1] == features:
    return x
  x = conv(features, (1, 1), strides=stride, padding=0, name=f'{name}_shortcut')(x)
  return norm(name=f'{name}_shortcut_bn')(x)


def _bottleneck_block(
    x: jax.Array, features: int, stride: int, conv: Callable, norm: Callable, name: str) -> jax.Array:
  """1×1, 3×3 (with the stride) and 1×1 convolutions to 4·features channels; ReLU after the sum."""
  point = functools.partial(conv, kernel_size=(1, 1), padding=0)
  out = nn.relu(norm(name=f'{name}_bn1')(point(features, name=f'{name}_conv1')(x)))
  out = conv(features, (3, 3), strides=stride, name=f'{name}_conv2')(out)
  out = nn.relu(norm(name=f'{name}_bn2')(out))
  out = norm(name=f'{name}_bn3')(point(4 * features, name=f'{name}_conv3')(out))
  return nn.relu(_projection(x, 4 * features, stride, conv, norm, name) + out)


def _builders(module: nn.Module, train: bool, kernel_init: Callable) -> tuple[Callable, Callable]:
  """The convolution (padding 1, no bias) and the BatchNorm of a model."""
  # Padding 1 and not 'SAME': at stride 2 PyTorch pads both sides, 'SAME' only the last row and column.
  conv = functools.partial(
      nn.Conv, padding=1, use_bias=False, dtype=module.dtype,
      param_dtype=layers.param_dtype(module.dtype), kernel_init=kernel_init)
  norm = functools.partial(
      layers.BatchNorm, train=train, axis_name=module.axis_name, dtype=module.dtype)
  return conv, norm


def _stages(x, block, sizes, width, conv, norm, prefix='layer'):
  """The blocks of all stages; each stage after the first doubles the channels and halves the image."""
  for stage, size in enumerate(sizes):
    for i in range(size):
      stride = 2 if stage > 0 and i == 0 else 1
      x = block(x, width * 2 ** stage, stride, conv, norm, f'{prefix}{stage + 1}_{i}')
  return x


class PreActResNet18(nn.Module):
  """Pre-activation ResNet-18 for small images: 11,172,170 parameters with 10 outputs.

  Initialisation: PyTorch's default, U(±1/√fan_in), for convolutions and the head.

  Attributes:
    num_outputs: number of logits.
    width: channels of the first stage; each further stage doubles them.
    stage_sizes: number of blocks in each stage.
    stem_stride: stride of the first convolution; 2 for 64×64 images.
    final_norm: BatchNorm and ReLU before the pooling, as in the released code of Rice and of Wu; False is the
      variant of github.com/kuangliu/pytorch-cifar, with 11,171,146 parameters.
    raw_shortcut: start the 1×1 shortcuts before the first activation, like RobustBench's PreActBlock; False
      is its PreActBlockV2.
    normalize: (mean, std) per channel, applied to the images first; None for no normalisation.
    axis_name: named axis over which BatchNorm's batch statistics are averaged.
    dtype: compute dtype: float32, bfloat16 or float64; parameters are float32 at least.

  Example:
    >>> model = PreActResNet18(num_outputs=10, width=8, stage_sizes=(1, 1))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
    (2, 10)

  Reference: K. He et al., Identity Mappings in Deep Residual Networks, 2016; with the layout of the released
  code of L. Rice et al., Overfitting in Adversarially Robust Deep Learning, 2020
  (github.com/locuslab/robust_overfitting), and of D. Wu et al., Adversarial Weight Perturbation Helps Robust
  Generalization, 2020 (github.com/csdongxian/AWP).
  """

  num_outputs: int
  width: int = 64
  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
  stem_stride: int = 1
  final_norm: bool = True
  raw_shortcut: bool = False
  normalize: tuple | None = None
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images float[B, H, W, C] in [0, 1] to logits float32[B, num_outputs]."""
    conv, norm = _builders(self, train, layers.torch_default)
    x = layers.prepare(x, self.normalize, self.dtype)
    x = conv(self.width, (3, 3), strides=self.stem_stride, name='conv1')(x)
    block = functools.partial(_pre_activation_block, raw_shortcut=self.raw_shortcut)
    x = _stages(x, block, self.stage_sizes, self.width, conv, norm)
    if self.final_norm:
      x = nn.relu(norm(name='bn')(x))
    x = layers.dense(self.num_outputs, x.mean(axis=(1, 2)), dtype=self.dtype, name='linear')
    return x.astype(layers.param_dtype(self.dtype))


class _PostActivationResNet(nn.Module):
  """A ResNet for small images, whose blocks end with a ReLU; a subclass names its `block`."""

  block: ClassVar[Callable[..., jax.Array]]

  num_outputs: int
  width: int = 64
  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
  stem_stride: int = 1
  normalize: tuple | None = None
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images float[B, H, W, C] in [0, 1] to logits float32[B, num_outputs]."""
    conv, norm = _builders(self, train, layers.torch_default)
    x = layers.prepare(x, self.normalize, self.dtype)
    x = conv(self.width, (3, 3), strides=self.stem_stride, name='conv1')(x)
    x = nn.relu(norm(name='bn1')(x))
    x = _stages(x, self.block, self.stage_sizes, self.width, conv, norm)
    x = layers.dense(self.num_outputs, x.mean(axis=(1, 2)), dtype=self.dtype, name='linear')
    return x.astype(layers.param_dtype(self.dtype))


class ResNet18(_PostActivationResNet):
  """ResNet-18 with basic blocks for small images: 11,173,962 parameters with 10 outputs.

  Initialisation: PyTorch's default, U(±1/√fan_in), for convolutions and the head.

  Attributes:
    num_outputs: number of logits.
    width: channels of the first stage; each further stage doubles them.
    stage_sizes: number of blocks in each stage.
    stem_stride: stride of the first convolution; 2 for 64×64 images.
    normalize, axis_name, dtype: as in `PreActResNet18`.

  Example:
    >>> model = ResNet18(num_outputs=10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> sum(x.size for x in jax.tree.leaves(variables['params']))
    11173962

  Reference: K. He et al., Deep Residual Learning for Image Recognition, 2016; with the layout of
  github.com/kuangliu/pytorch-cifar (models/resnet.py).
  """

  block = staticmethod(_basic_block)


class DucatResNet18(_PostActivationResNet):
  """The 'resnet18' of DUCAT's released code: 13,958,986 parameters with 10 outputs.

  It has bottleneck blocks. A ResNet-18 has basic blocks and 11.17 M parameters, but the paper's results are
  of this network.

  Initialisation: PyTorch's default, U(±1/√fan_in), for convolutions and the head.

  Attributes:
    num_outputs: number of logits, 2C for C classes with dummy classes.
    width: inner channels of the first stage; its output has 4 times as many.
    stage_sizes: number of blocks in each stage.
    stem_stride: stride of the first convolution; 2 for Tiny-ImageNet's 64×64.
    normalize, axis_name, dtype: as in `PreActResNet18`.

  Example:
    >>> model = DucatResNet18(num_outputs=20)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
    (2, 20)

  Reference: Y. Wang et al., New Paradigm of Adversarial Training: Breaking Inherent Trade-Off between
  Accuracy and Robustness via Dummy Classes, 2024 (models/resnet.py of github.com/FlaAI/DUCAT).
  """

  block = staticmethod(_bottleneck_block)


class ResNet50(nn.Module):
  """ResNet-50 for ImageNet: 25,557,032 parameters with 1,000 outputs.

  The stem is a 7×7 convolution and a 3×3 max-pooling, both of stride 2. Blocks are bottlenecks with the
  stride in the 3×3 convolution, as in torchvision (version 1.5 of the network).

  Initialisation, as in torchvision: convolutions N(0, 2/(kh·kw·out)), PyTorch's default for the head.

  Attributes:
    num_outputs: number of logits.
    width: inner channels of the first stage; its output has 4 times as many.
    stage_sizes: number of blocks in each stage.
    normalize, axis_name, dtype: as in `PreActResNet18`.

  Example:
    >>> model = ResNet50(num_outputs=1000)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    >>> sum(x.size for x in jax.tree.leaves(variables['params']))
    25557032

  Reference: K. He et al., Deep Residual Learning for Image Recognition, 2016; layout of
  torchvision.models.resnet50.
  """

  num_outputs: int
  width: int = 64
  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
  normalize: tuple | None = None
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images float[B, H, W, C] in [0, 1] to logits float32[B, num_outputs]."""
    conv, norm = _builders(self, train, layers.kaiming_normal_fan_out)
    x = layers.prepare(x, self.normalize, self.dtype)
    x = conv(self.width, (7, 7), strides=2, padding=3, name='conv1')(x)
    x = nn.max_pool(nn.relu(norm(name='bn1')(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    x = _stages(x, _bottleneck_block, self.stage_sizes, self.width, conv, norm)
    x = layers.dense(self.num_outputs, x.mean(axis=(1, 2)), dtype=self.dtype, name='fc')
    return x.astype(layers.param_dtype(self.dtype))


class WideResNet(nn.Module):
  """Wide residual network without dropout: 3 stages of (depth − 4) / 6 pre-activation blocks.

  With widen_factor 10 and 10 outputs it has 36,479,194 parameters at depth 28 and 46,160,474 at depth 34. The
  TRADES code has more, because it defines a block that it never calls.

  Initialisation, as in the TRADES code: convolutions N(0, 2/(kh·kw·out)), the head's kernel U(±1/√fan_in),
  and its bias zero.

  Attributes:
    num_outputs: number of logits.
    depth: number of layers, 6n + 4.
    widen_factor: channels of the first stage, divided by 16.
    stem_stride: stride of the first convolution; 2 for 64×64 images.
    normalize, axis_name, dtype: as in `PreActResNet18`.

  Example:
    >>> model = WideResNet(num_outputs=10, depth=28, widen_factor=10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> sum(x.size for x in jax.tree.leaves(variables['params']))
    36479194

  Reference: S. Zagoruyko and N. Komodakis, Wide Residual Networks, 2016; layout and initialisation of
  models/wideresnet.py in github.com/yaodongyu/TRADES, which the released code of AWP also has.
  """

  num_outputs: int
  depth: int = 34
  widen_factor: int = 10
  stem_stride: int = 1
  normalize: tuple | None = None
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images float[B, H, W, C] in [0, 1] to logits float32[B, num_outputs]."""
    if self.depth < 10 or (self.depth - 4) % 6:
      raise errors.UserError('model.depth', self.depth, 'use 6n + 4: 10, 16, 22, 28, 34, ...')
    conv, norm = _builders(self, train, layers.kaiming_normal_fan_out)
    x = layers.prepare(x, self.normalize, self.dtype)
    x = conv(16, (3, 3), strides=self.stem_stride, name='conv1')(x)
    sizes = [(self.depth - 4) // 6] * 3
    x = _stages(x, _pre_activation_block, sizes, 16 * self.widen_factor, conv, norm, 'block')
    x = nn.relu(norm(name='bn1')(x)).mean(axis=(1, 2))
    x = layers.dense(
        self.num_outputs, x, dtype=self.dtype, bias_init=nn.initializers.zeros, name='fc')
    return x.astype(layers.param_dtype(self.dtype))


def WideResNet28_10(num_outputs: int, **other: Any) -> WideResNet:
  """Makes a `WideResNet` with depth 28 and widen_factor 10: 36.48 M parameters with 10 outputs.

  Args:
    num_outputs: number of logits.
    **other: other fields of `WideResNet`.

  Returns:
    The network.
  """
  return WideResNet(num_outputs=num_outputs, depth=28, widen_factor=10, **other)


def WideResNet34_10(num_outputs: int, **other: Any) -> WideResNet:
  """Makes a `WideResNet` with depth 34 and widen_factor 10: 46.16 M parameters with 10 outputs.

  Args:
    num_outputs: number of logits.
    **other: other fields of `WideResNet`.

  Returns:
    The network.
  """
  return WideResNet(num_outputs=num_outputs, depth=34, widen_factor=10, **other)

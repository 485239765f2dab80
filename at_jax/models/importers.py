"""Imports the weights of PyTorch models from published state dicts, without PyTorch."""

from collections.abc import Mapping
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from at_jax import errors
from at_jax.models import resnet, small_cnn

# Keys under which checkpoints store the state dict.
_WRAPPED = ('state_dict', 'model_state_dict', 'model', 'net')
# Prefixes of DataParallel and of a model behind a normalising layer.
_PREFIX = re.compile(r'^(?:module\.|model\.)+')
# Counters, and a block that TRADES' WideResNet defines but never calls.
_UNUSED = re.compile(r'(?:^|\.)num_batches_tracked$|^sub_block1\.')
_LEAVES = {('params', 'kernel'): 'weight', ('params', 'scale'): 'weight',
           ('params', 'bias'): 'bias', ('batch_stats', 'mean'): 'running_mean',
           ('batch_stats', 'var'): 'running_var'}
_LISTED = 4  # number of names of each kind in an error message


def from_torch(
    model: nn.Module, state_dict: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Converts the PyTorch state dict of a network to the variables of the same linen network.

  Layers must have the names of the TRADES, AWP and RobustBench code for `SmallCNN`, `PreActResNet18` and
  `WideResNet`. Kernels [out, in, h, w] and [out, in] are transposed, and the rows of `SmallCNN`'s first
  dense layer are reordered from channels first to channels last. The names do not determine the
  normalisation of the images, or where the shortcuts of a PreActResNet-18 start: set the model's
  `normalize` and `raw_shortcut`, and compare the clean accuracy with the published one.

  Args:
    model: a `SmallCNN`, `PreActResNet18` or `WideResNet` with the sizes of the weights.
    state_dict: mapping from names to arrays, or a mapping that has it under 'state_dict',
      'model_state_dict', 'model' or 'net'. Names may start with 'module.' or 'model.'.
    image_shape: (H, W, C) of one input.

  Returns:
    `{'params': …, 'batch_stats': …}` for `model.apply`; without 'batch_stats' if the model has no BatchNorm.

  Raises:
    errors.UserError: if the model is of another class, if `image_shape` or the stem's stride does not fit, or
      if names are missing, unknown or have another shape; the message lists the first four of each kind.

  Example:
    >>> from at_jax import models
    >>> model = models.SmallCNN(num_outputs=2, features=(4, 4), hidden=())
    >>> # state_dict = {name: tensor.numpy() for name, tensor in torch.load(path, 'cpu').items()}
    >>> shapes = {'feature_extractor.conv1': (4, 1, 3, 3), 'feature_extractor.conv2': (4, 4, 3, 3),
    ...           'classifier.fc1': (2, 16)}
    >>> state_dict = {f'{name}.weight': np.ones(shape) for name, shape in shapes.items()}
    >>> state_dict |= {f'{name}.bias': np.full(shape[0], 3.) for name, shape in shapes.items()}
    >>> variables = from_torch(model, state_dict, (8, 8, 1))
    >>> variables['params']['conv2']['kernel'].shape
    (3, 3, 4, 4)
    >>> print(model.apply(variables, jnp.zeros((1, 8, 8, 1))))  # 16 · (4 · 9 · 3 + 3) + 3
    [[1779. 1779.]]

  Reference: github.com/yaodongyu/TRADES, github.com/csdongxian/AWP and github.com/RobustBench/robustbench
  (the names).
  """
  _check(model, image_shape)
  arrays = _unwrap(state_dict)
  template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
  wanted = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
  keys = {path: tuple(key.key for key in path) for path in wanted}
  names = {path: f'{_layer(model, layer)}.{_LEAVES[collection, leaf]}'
           for path, (collection, layer, leaf) in keys.items()}
  missing = sorted(set(names.values()) - arrays.keys())
  unknown = sorted(arrays.keys() - set(names.values()))
  if missing or unknown:
    raise _mismatch(model, {'missing': missing, 'unknown': unknown})
  transposed = {path: _transpose(arrays[name]) for path, name in names.items()}
  other = sorted(f'{names[path]} {arrays[names[path]].shape}' for path, leaf in wanted.items()
                 if transposed[path].shape != leaf.shape)
  if other:
    raise _mismatch(model, {f'of another shape for inputs {image_shape}, which is (H, W, C)': other})
  for path, (_, layer, leaf) in keys.items():
    if isinstance(model, small_cnn.SmallCNN) and (layer, leaf) == ('fc1', 'kernel'):
      transposed[path] = _channels_last(transposed[path], model, image_shape)
  leaves = [jnp.asarray(transposed[path], leaf.dtype) for path, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
  if not isinstance(model, (small_cnn.SmallCNN, resnet.PreActResNet18, resnet.WideResNet)):
    raise errors.UserError('model', type(model).__name__,
                           'weights can be read for SmallCNN, PreActResNet18 and WideResNet')
  if isinstance(model, small_cnn.SmallCNN) and model.stem_stride != 1:
    raise errors.UserError('model.stem_stride', model.stem_stride,
                           'published weights have stride 1, and the rows of fc1 are ordered for it: use 1')
  if len(image_shape) != 3:
    raise errors.UserError('image_shape', image_shape, 'use (H, W, C) of one input, such as (28, 28, 1)')


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
  if not isinstance(state_dict, Mapping):
    raise errors.UserError('state_dict', type(state_dict).__name__, 'give a mapping from names to '
                           'arrays, such as model.state_dict()')
  for key in _WRAPPED:
    if isinstance(state_dict.get(key), Mapping):
      return _unwrap(state_dict[key])
  if other := [name for name in state_dict if not isinstance(name, str)]:
    raise errors.UserError('state_dict', other[0], 'names are strings, such as conv1.weight')
  named = {_PREFIX.sub('', name): value for name, value in state_dict.items()}
  return {name: np.asarray(value) for name, value in named.items() if not _UNUSED.search(name)}


def _layer(model: nn.Module, layer: str) -> str:
  """The PyTorch name of a linen layer."""
  if isinstance(model, small_cnn.SmallCNN):
    return f'{"classifier" if layer.startswith("fc") else "feature_extractor"}.{layer}'
  if isinstance(model, resnet.PreActResNet18):
    layer = re.sub(r'^layer(\d+)_(\d+)_', r'layer\1.\2.', layer)
    return re.sub(r'\.shortcut$', '.shortcut.0', layer)
  layer = re.sub(r'^block(\d+)_(\d+)_', r'block\1.layer.\2.', layer)
  return re.sub(r'\.shortcut$', '.convShortcut', layer)


def _mismatch(model: nn.Module, names: Mapping[str, list[str]]) -> errors.UserError:
  parts = []
  for kind, each in names.items():
    if each:
      more = [f'and {len(each) - _LISTED} more'] if len(each) > _LISTED else []
      parts.append(f'{kind}: {", ".join(each[:_LISTED] + more)}')
  return errors.UserError('model', type(model).__name__,
                          f'the state dict is of another network; {"; ".join(parts)}')


def _transpose(value: np.ndarray) -> np.ndarray:
  """[out, in, h, w] to [h, w, in, out], [out, in] to [in, out]."""
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _channels_last(kernel: np.ndarray, model: nn.Module, image_shape: tuple[int, int, int]) -> np.ndarray:
  """Reorders the rows of a dense kernel from (C, H, W) to (H, W, C)."""
  height, width = image_shape[:2]
  # Two 3×3 convolutions without padding remove 4 pixels; the pooling halves the size.
  removed = 0 if model.padding == 'SAME' else 4
  for _ in range(len(model.features) // 2):
    height, width = (height - removed) // 2, (width - removed) // 2
  parts = kernel.reshape(model.features[-1], height, width, -1)
  return parts.transpose(1, 2, 0, 3).reshape(kernel.shape)

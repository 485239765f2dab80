"""Weights of PyTorch models, as the state dicts that are published, read without PyTorch.

>>> from at_jax import models
>>> model = models.SmallCNN(num_outputs=10)
>>> # arrays = {name: tensor.numpy() for name, tensor in torch.load(path, 'cpu').items()}
>>> # logits_fn = lambda x: model.apply(from_torch(model, arrays, (28, 28, 1)), x)
"""

from collections.abc import Mapping
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from at_jax import errors
from at_jax.models import resnet, small_cnn

# What a checkpoint keeps the state dict under, where it is not the state dict itself.
_WRAPPED = ('state_dict', 'model_state_dict', 'model', 'net')
# DataParallel's prefix, and that of a model behind a normalising layer.
_PREFIX = re.compile(r'^(?:module\.|model\.)+')
# Counters, and the block that TRADES' WideResNet makes and never calls.
_UNUSED = re.compile(r'(?:^|\.)num_batches_tracked$|^sub_block1\.')
_LEAVES = {('params', 'kernel'): 'weight', ('params', 'scale'): 'weight',
           ('params', 'bias'): 'bias', ('batch_stats', 'mean'): 'running_mean',
           ('batch_stats', 'var'): 'running_var'}
_TOLD = 4  # how many names a message gives of each kind


def from_torch(
    model: nn.Module, state_dict: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """The variables of a model from the PyTorch state dict of the same network.

  Known are the names that TRADES, AWP and RobustBench give to the layers of `SmallCNN`,
  `PreActResNet18` and `WideResNet`. Kernels are turned from [out, in, h, w] and [out, in]; the first
  dense layer of `SmallCNN` from channels first. The names do not tell how images were normalised
  before the network, nor, of a PreActResNet-18, where its shortcuts start: see the model's
  `normalize` and `raw_shortcut`, and compare the clean accuracy with the published one.

  Args:
    model: a `SmallCNN`, `PreActResNet18` or `WideResNet` of the sizes of the weights.
    state_dict: name -> array, or a mapping that holds it under 'state_dict' or 'model'; names may
      begin with 'module.' or 'model.'.
    image_shape: (H, W, C) of one input.

  Returns:
    `{'params': …, 'batch_stats': …}` for `model.apply`; no 'batch_stats' without BatchNorm.

  Raises:
    errors.UserError: for another model, a `SmallCNN` whose stem has a stride, another `image_shape`,
      and where names are missing, unknown or of another shape; the message has the first
      four of each kind.

  Example:
    >>> from at_jax import models
    >>> model = models.SmallCNN(num_outputs=2, features=(4, 4), hidden=())
    >>> names = {f'feature_extractor.conv{i}': (4, c, 3, 3) for i, c in ((1, 1), (2, 4))}
    >>> names['classifier.fc1'] = (2, 16)
    >>> arrays = {f'{k}.weight': np.ones(s) for k, s in names.items()}
    >>> arrays |= {f'{k}.bias': np.zeros(s[0]) for k, s in names.items()}
    >>> from_torch(model, {'state_dict': arrays}, (8, 8, 1))['params']['conv2']['kernel'].shape
    (3, 3, 4, 4)

  Source: ours; the names are those of the authors' code (github.com/yaodongyu/TRADES,
  github.com/csdongxian/AWP, github.com/RobustBench/robustbench).
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
  turned = {path: _turn(arrays[name]) for path, name in names.items()}
  other = sorted(f'{names[path]} {arrays[names[path]].shape}' for path, leaf in wanted.items()
                 if turned[path].shape != leaf.shape)
  if other:
    raise _mismatch(model, {f'of another shape for inputs {image_shape}, which is (H, W, C)': other})
  for path, (_, layer, leaf) in keys.items():
    if isinstance(model, small_cnn.SmallCNN) and (layer, leaf) == ('fc1', 'kernel'):
      turned[path] = _channels_last(turned[path], model, image_shape)
  leaves = [jnp.asarray(turned[path], leaf.dtype) for path, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
  if not isinstance(model, (small_cnn.SmallCNN, resnet.PreActResNet18, resnet.WideResNet)):
    raise errors.UserError('model', type(model).__name__,
                           'weights can be read for SmallCNN, PreActResNet18 and WideResNet')
  if isinstance(model, small_cnn.SmallCNN) and model.stem_stride != 1:
    raise errors.UserError('model.stem_stride', model.stem_stride, 'published weights are of stride 1, and the '
                           'rows of fc1 are put in order for that: use 1')
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
  """The PyTorch name of a layer of ours."""
  if isinstance(model, small_cnn.SmallCNN):
    return f'{"classifier" if layer.startswith("fc") else "feature_extractor"}.{layer}'
  if isinstance(model, resnet.PreActResNet18):
    layer = re.sub(r'^layer(\d+)_(\d+)_', r'layer\1.\2.', layer)
    return re.sub(r'\.shortcut$', '.shortcut.0', layer)
  layer = re.sub(r'^block(\d+)_(\d+)_', r'block\1.layer.\2.', layer)
  return re.sub(r'\.shortcut$', '.convShortcut', layer)


def _mismatch(model: nn.Module, names: Mapping[str, list[str]]) -> errors.UserError:
  told = []
  for kind, each in names.items():
    if each:
      more = [f'and {len(each) - _TOLD} more'] if len(each) > _TOLD else []
      told.append(f'{kind}: {", ".join(each[:_TOLD] + more)}')
  return errors.UserError('model', type(model).__name__, f'the state dict is not of it; {"; ".join(told)}')


def _turn(value: np.ndarray) -> np.ndarray:
  """[out, in, h, w] to [h, w, in, out], [out, in] to [in, out]."""
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _channels_last(kernel: np.ndarray, model: nn.Module, image_shape) -> np.ndarray:
  """The rows of a dense kernel from (C, H, W) to (H, W, C)."""
  height, width = image_shape[:2]
  # A pair of 3×3 convolutions takes 4 pixels off where they do not pad; the pooling halves.
  taken = 0 if model.padding == 'SAME' else 4
  for _ in range(len(model.features) // 2):
    height, width = (height - taken) // 2, (width - taken) // 2
  parts = kernel.reshape(model.features[-1], height, width, -1)
  return parts.transpose(1, 2, 0, 3).reshape(kernel.shape)

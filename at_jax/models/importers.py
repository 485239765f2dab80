"""Imports the weights of PyTorch models from published state dicts, without PyTorch."""

from collections.abc import Iterator, Mapping
import os
import pathlib
import re
from typing import Any, NamedTuple
import zipfile

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from at_jax import errors
from at_jax.models import resnet, small_cnn

# Modules that PyTorch puts around others (DataParallel, torch.compile, FSDP), at any place of a name.
_WRAPPER = re.compile(
    r'(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
# Counters, and a block that TRADES' WideResNet defines but never calls.
_UNUSED = re.compile(r'(?:^|\.)(?:num_batches_tracked|n_averaged)$|^sub_block1\.')
# Buffers of a normalising layer, by their last name.
_MEAN = ('mean', 'means', 'mu', 'new_mean')
_STD = ('std', 'stds', 'sd', 'sds', 'sigma', 'new_std')
# Pairs of names of torch.nn.utils.weight_norm, old and new: the norm and the direction of a weight.
_WEIGHT_NORM = (('weight_g', 'weight_v'),
                ('parametrizations.weight.original0', 'parametrizations.weight.original1'))
_LEAVES = {('params', 'kernel'): 'weight', ('params', 'scale'): 'weight',
           ('params', 'bias'): 'bias', ('batch_stats', 'mean'): 'running_mean',
           ('batch_stats', 'var'): 'running_var'}
_WITH_LAYERS = (resnet.PreActResNet18, resnet.ResNet18, resnet.ResNet50)  # whose blocks are layer1.0, …
SUFFIXES = ('.pt', '.pth', '.safetensors', '.npz')  # of files with a state dict
_LISTED = 4  # number of names of each kind in an error message


def from_torch(
    model: nn.Module, state_dict: Mapping[str, Any] | str | os.PathLike, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Converts the PyTorch state dict of a network to the variables of the same linen network.

  Layers must have the names of the TRADES, AWP and RobustBench code for `SmallCNN`, `PreActResNet18` and
  `WideResNet`, those of kuangliu's code for `ResNet18`, and torchvision's for `ResNet50`. Kernels [out, in,
  h, w] and [out, in] are transposed, and the rows of `SmallCNN`'s first dense layer are reordered from
  channels first to channels last. Pairs of weight normalisation become weights. The names do not determine
  where the shortcuts of a PreActResNet-18 start, and most files do not have the normalisation of the images:
  set the model's `raw_shortcut` and `normalize`, and compare the clean accuracy with the published one. If
  the file has a mean and a std, `normalize` must equal them.

  Args:
    model: a `SmallCNN`, `PreActResNet18`, `ResNet18`, `ResNet50` or `WideResNet`, with the sizes of the
      weights.
    state_dict: mapping from names to arrays or tensors of any floating-point dtype and device; what
      `torch.load` returns, in which one nested mapping fits the model; or the path of a file with one of
      them: .safetensors, .npz (names and arrays), or .pt and .pth, which PyTorch reads without running code
      of the file. Names may have a common prefix, such as 'module.' or '1.'.
    image_shape: (H, W, C) of one input.

  Returns:
    `{'params': …, 'batch_stats': …}` for `model.apply`; without 'batch_stats' if the model has no BatchNorm.

  Raises:
    errors.UserError: if the model is of another class, if `image_shape` or the stem's stride does not fit, if
      names are missing, unknown or have another shape (the message lists the first four of each kind), if
      several mappings fit, if the file normalises images in another way than the model, or if it cannot be
      read.

  Example:
    >>> from at_jax import models
    >>> model = models.SmallCNN(num_outputs=2, features=(4, 4), hidden=())
    >>> # state_dict = torch.load(path, 'cpu')
    >>> shapes = {'feature_extractor.conv1': (4, 1, 3, 3), 'feature_extractor.conv2': (4, 4, 3, 3),
    ...           'classifier.fc1': (2, 16)}
    >>> state_dict = {f'{name}.weight': np.ones(shape) for name, shape in shapes.items()}
    >>> state_dict |= {f'{name}.bias': np.full(shape[0], 3.) for name, shape in shapes.items()}
    >>> variables = from_torch(model, state_dict, (8, 8, 1))
    >>> variables['params']['conv2']['kernel'].shape
    (3, 3, 4, 4)
    >>> print(model.apply(variables, jnp.zeros((1, 8, 8, 1))))  # 16 · (4 · 9 · 3 + 3) + 3
    [[1779. 1779.]]

  Reference: github.com/yaodongyu/TRADES, github.com/csdongxian/AWP, github.com/RobustBench/robustbench,
  github.com/kuangliu/pytorch-cifar and github.com/pytorch/vision (the names).
  """
  _check(model, image_shape)
  if isinstance(state_dict, (str, os.PathLike)):
    state_dict = _read(state_dict)
  template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
  wanted = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
  keys = {path: tuple(key.key for key in path) for path in wanted}
  names = {path: f'{_layer(model, layer)}.{_LEAVES[collection, leaf]}'
           for path, (collection, layer, leaf) in keys.items()}
  arrays, others = _find(state_dict, {names[path]: leaf.shape for path, leaf in wanted.items()})
  missing = sorted(set(names.values()) - arrays.keys())
  if not missing:
    others = _without_normalization(model, others, image_shape[-1])
  if missing or others:
    raise _mismatch(model, {'missing': missing, 'unknown': sorted(others)})
  other = sorted(f'{names[path]} {tuple(arrays[names[path]].shape)}' for path, leaf in wanted.items()
                 if _transposed(arrays[names[path]].shape) != leaf.shape)
  if other:
    raise _mismatch(model, {f'of another shape for inputs {image_shape}, which is (H, W, C)': other})
  arrays = {name: _array(value) for name, value in arrays.items()}
  if other := [f'{name} {value.dtype}' for name, value in arrays.items()
               if not jnp.issubdtype(value.dtype, jnp.floating)]:
    raise _mismatch(model, {'not of floating point, so quantised': sorted(other)})
  transposed = {path: _transpose(arrays[name]) for path, name in names.items()}
  for path, (_, layer, leaf) in keys.items():
    if isinstance(model, small_cnn.SmallCNN) and (layer, leaf) == ('fc1', 'kernel'):
      transposed[path] = _channels_last(transposed[path], model, image_shape)
  leaves = [jnp.asarray(transposed[path], leaf.dtype) for path, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
  if not isinstance(model, (small_cnn.SmallCNN, *_WITH_LAYERS, resnet.WideResNet)):
    raise errors.UserError(
        'model', type(model).__name__, 'weights can be read for SmallCNN, PreActResNet18, ResNet18, ResNet50 '
        'and WideResNet; to attack any other PyTorch model, use torch_model.TorchModel')
  if isinstance(model, small_cnn.SmallCNN) and model.stem_stride != 1:
    raise errors.UserError('model.stem_stride', model.stem_stride,
                           'published weights have stride 1, and the rows of fc1 are ordered for it: use 1')
  if len(image_shape) != 3:
    raise errors.UserError('image_shape', image_shape, 'use (H, W, C) of one input, such as (28, 28, 1)')


def _read(path: str | os.PathLike) -> Mapping[str, Any]:
  """What a file of `SUFFIXES` holds."""
  path = os.path.expanduser(os.fspath(path))
  suffix = pathlib.Path(path).suffix
  if suffix not in SUFFIXES:
    raise errors.UserError('state_dict', path, f'use a file that ends in {", ".join(SUFFIXES)}')
  if not os.path.isfile(path):
    raise errors.UserError('state_dict', path, 'cannot be read: there is no such file')
  try:
    return {'.npz': _read_npz, '.safetensors': _read_safetensors}.get(suffix, _read_torch)(path)
  except ImportError as error:
    package = 'safetensors' if suffix == '.safetensors' else 'torch'
    raise errors.UserError('state_dict', path, f'to read it, pip install {package}') from error
  except Exception as error:  # a damaged file makes each package raise errors of many types
    reason = f'{type(error).__name__}: ' + str(error).partition('\n')[0]
    raise errors.UserError('state_dict', path, f'cannot be read: name a complete {suffix} file with the '
                           f'state dict; {reason}') from error


def _read_npz(path: str) -> Mapping[str, Any]:
  if not zipfile.is_zipfile(path):  # which NumPy would offer to unpickle
    raise ValueError('it is no archive of arrays')
  with np.load(path) as file:
    return dict(file)


def _read_safetensors(path: str) -> Mapping[str, Any]:
  from safetensors import flax  # the one for NumPy has no bfloat16
  return flax.load_file(path)


def _read_torch(path: str) -> Mapping[str, Any]:
  import torch
  return torch.load(path, 'cpu', weights_only=True)


class _Found(NamedTuple):
  """The arrays of a mapping whose names, after a prefix, are those that are wanted, and its other arrays."""
  place: str  # how the user writes it
  arrays: dict[str, Any]
  others: dict[str, Any]
  fits: bool


def _find(state_dict: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
          ) -> tuple[dict[str, Any], dict[str, Any]]:
  """The arrays with the wanted names, and all others, of the mapping and the prefix that fit best."""
  if not isinstance(state_dict, Mapping):
    raise errors.UserError('state_dict', type(state_dict).__name__, 'give a mapping from names to '
                           'arrays, such as model.state_dict()')
  if other := [name for name, value in state_dict.items() if _is_array(value) and not isinstance(name, str)]:
    raise errors.UserError('state_dict', other[0], 'names are strings, such as conv1.weight')
  found = [each for place, arrays in _mappings('', state_dict) for each in _prefixes(place, arrays, wanted)]
  fits = [each for each in found if each.fits]
  if len(fits) > 1:
    raise errors.UserError('state_dict', [each.place for each in fits],
                           f'each of these holds the network: give one, such as {fits[0].place} alone')
  best = max(fits or found, key=lambda each: (len(each.arrays), -len(each.others)),
             default=_Found('', {}, {}, False))
  return best.arrays, best.others


def _mappings(place: str, tree: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The mapping and those inside it, as names to arrays, each with its place."""
  arrays = {name: value for name, value in tree.items() if isinstance(name, str) and _is_array(value)}
  if arrays:
    yield place, _join_weight_norm({_WRAPPER.sub('', name): value for name, value in arrays.items()})
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _mappings(f'{place}[{name!r}]', value)


def _prefixes(place: str, arrays: Mapping[str, Any],
              wanted: Mapping[str, tuple[int, ...]]) -> Iterator[_Found]:
  """The arrays by every prefix that one of them has before a wanted name."""
  parts = [name.split('.') for name in arrays]
  splits = [(name[:i], '.'.join(name[i:])) for name in parts for i in range(len(name))]
  for prefix in dict.fromkeys(['', *('.'.join([*begin, '']) for begin, end in splits if end in wanted)]):
    taken = {name: arrays[prefix + name] for name in wanted if prefix + name in arrays}
    used = {prefix + name for name in taken}
    others = {name: value for name, value in arrays.items()
              if name not in used and not _UNUSED.search(name.removeprefix(prefix))}
    fits = all(name in taken and _transposed(taken[name].shape) == shape for name, shape in wanted.items())
    where = [each for each in (place, f'names that begin with {prefix!r}' if prefix else '') if each]
    yield _Found(', '.join(where) or 'the mapping itself', taken, others, fits)


def _join_weight_norm(arrays: dict[str, Any]) -> dict[str, Any]:
  """Replaces each pair of weight normalisation by its weight, g · v / ‖v‖."""
  for norm, direction in _WEIGHT_NORM:
    for name in [name for name in arrays if f'.{name}'.endswith(f'.{norm}')]:
      base = name.removesuffix(norm)
      if base + direction in arrays:
        g, v = (np.float64(_array(arrays.pop(base + part))) for part in (norm, direction))
        # The norm is over the axes that g does not have.
        axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
        arrays[f'{base}weight'] = g * v / np.sqrt(np.sum(v ** 2, axis=axes, keepdims=True))
  return arrays


def _without_normalization(model: nn.Module, others: dict[str, Any], channels: int) -> dict[str, Any]:
  """The other arrays without mean and std of a normalising layer, which must be those of the model."""
  last = {name: name.rpartition('.')[2].strip('_') for name in others}
  pair = [[name for name in others if last[name] in kind] for kind in (_MEAN, _STD)]
  if [len(names) for names in pair] != [1, 1]:
    return others
  mean, std = (np.float64(_array(others[name])).ravel() for (name,) in pair)
  if {mean.size, std.size} - {1, channels}:
    return others
  if max(mean.max(), std.max()) > 2:  # of pixels up to 255; a mean of 0 and a std of 255 change no image
    mean, std = mean / 255, std / 255
  ours = (0., 1.) if model.normalize is None else model.normalize
  if not all(np.allclose(each, own, atol=1e-4) for each, own in zip((mean, std), ours, strict=True)):
    inside = tuple(tuple(float(f'{value:.6g}') for value in each) for each in (mean, std))
    inside = None if inside == ((0.,), (1.,)) else inside
    raise errors.UserError(
        'model.normalize', model.normalize, 'the state dict normalises images by '
        f'{" and ".join(name for (name,) in pair)}: make the model with normalize={inside}')
  return {name: value for name, value in others.items() if [name] not in pair}


def _is_array(value: Any) -> bool:
  return hasattr(value, 'shape') and hasattr(value, 'dtype')


def _array(value: Any) -> np.ndarray:
  """An array or a PyTorch tensor as a NumPy array; bfloat16 and half tensors as float32."""
  if hasattr(value, 'detach'):
    value = value.detach().cpu()
    value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()
  return np.asarray(value)


def _layer(model: nn.Module, layer: str) -> str:
  """The PyTorch name of a linen layer."""
  if isinstance(model, small_cnn.SmallCNN):
    return f'{"classifier" if layer.startswith("fc") else "feature_extractor"}.{layer}'
  if isinstance(model, _WITH_LAYERS):
    layer = re.sub(r'^layer(\d+)_(\d+)_', r'layer\1.\2.', layer)
    shortcut = 'downsample' if isinstance(model, resnet.ResNet50) else 'shortcut'
    layer = re.sub(r'\.shortcut_bn$', f'.{shortcut}.1', layer)
    return re.sub(r'\.shortcut$', f'.{shortcut}.0', layer)
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


def _transposed(shape: tuple[int, ...]) -> tuple[int, ...]:
  return (*shape[2:], shape[1], shape[0]) if len(shape) > 1 else tuple(shape)


def _channels_last(kernel: np.ndarray, model: nn.Module, image_shape: tuple[int, int, int]) -> np.ndarray:
  """Reorders the rows of a dense kernel from (C, H, W) to (H, W, C)."""
  height, width = image_shape[:2]
  # Two 3×3 convolutions without padding remove 4 pixels; the pooling halves the size.
  removed = 0 if model.padding == 'SAME' else 4
  for _ in range(len(model.features) // 2):
    height, width = (height - removed) // 2, (width - removed) // 2
  parts = kernel.reshape(model.features[-1], height, width, -1)
  return parts.transpose(1, 2, 0, 3).reshape(kernel.shape)

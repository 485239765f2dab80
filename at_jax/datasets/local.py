"""Data sets that need no download: scikit-learn's digits, and .npz files of the user's own."""

from collections.abc import Mapping
import hashlib
import os
from typing import NamedTuple
import warnings
import zipfile
import zlib

import numpy as np

from at_jax import errors

Examples = tuple[np.ndarray, np.ndarray]  # images uint8[N, H, W, C], labels int32[N]
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_MAX_CLASSES = 2**16  # a larger label is probably an identifier, not a class
_DARK = 16  # pixels in 0..1 or 0..16 are probably of another scale
_DIGITS_TEST = 397  # of 1,797, which leaves 1,400 for training
_SEED = 0  # independent of the run's seed, so that runs with different seeds have the same split


class Arrays(NamedTuple):
  """A data set as it is stored. `validation` is None if it has no validation split of its own."""

  train: Examples
  validation: Examples | None
  test: Examples
  class_names: tuple[str, ...]


def digest(arrays: Arrays) -> str:
  """Computes a digest of images, labels and class names, by which a file that was moved is identified.

  Args:
    arrays: the data set as it is stored.

  Returns:
    Hexadecimal digits of SHA-256; independent of the compression of a file and of the order of its arrays.

  Example:
    >>> x, y = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1], np.int32)
    >>> other = Arrays((x, y), None, (x + 1, y), ('a', 'b'))
    >>> digest(other) == digest(other._replace(test=(x, y)))
    False
  """
  found = hashlib.sha256(repr((arrays.class_names, arrays.validation is None)).encode())
  for array in (*arrays.train, *(arrays.validation or ()), *arrays.test):
    found.update(f'{array.dtype}{array.shape}'.encode())
    found.update(np.ascontiguousarray(array))
  return found.hexdigest()


def fixed_permutation(n: int) -> np.ndarray:
  """Returns the same random permutation of 0..n−1 in every run and with every version of NumPy.

  Args:
    n: length.

  Returns:
    int[n].

  Example:
    >>> fixed_permutation(4).tolist()
    [2, 3, 1, 0]
  """
  # NumPy guarantees the stream of RandomState, but not that of default_rng (NEP 19).
  return np.random.RandomState(_SEED).permutation(n)


def read_digits() -> Arrays:
  """Reads scikit-learn's 1,797 handwritten digits, 8×8, with a fixed split of 1,400 and 397.

  Pixel values v in 0..16 become round(255 v / 16).

  Returns:
    `Arrays` with images uint8[N, 8, 8, 1] and labels int32[N].

  Raises:
    ImportError: if scikit-learn is not installed.

  Example:
    >>> digits = read_digits()
    >>> digits.train[0].shape, digits.train[0].max().item(), digits.class_names[:2]
    ((1400, 8, 8, 1), 255, ('0', '1'))

  Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, test set.
  """
  from sklearn import datasets
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  order = fixed_permutation(len(labels))
  test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
  names = tuple(str(name) for name in digits.target_names)
  return Arrays((images[train], labels[train]), None, (images[test], labels[test]), names)


def read_npz(path: str | os.PathLike) -> Arrays:
  """Reads and checks a data set in a .npz file. Pickled arrays are never loaded.

  Args:
    path: path of the file; `~` is the home directory.

  Returns:
    `Arrays`, as `check` returns them for the arrays of the file.

  Raises:
    UserError: if the file cannot be read, or as `check` (field 'dataset').

  Example:
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), 'tiny.npz')
    >>> x, y = np.full((3, 2, 2), 255, np.uint8), np.array([0, 2, 1])
    >>> np.savez(path, train_images=x, train_label=y, test_images=x, test_label=y)
    >>> read_npz(path).class_names
    ('0', '1', '2')
  """
  return check(str(path), _load(path))


def check(name: str, arrays: Mapping[str, np.ndarray | None]) -> Arrays:
  """Checks the arrays of a data set.

  Keys: train_images and test_images, uint8[N, H, W, C] or uint8[N, H, W]; train_label and test_label (or
  train_labels, test_labels), whole numbers [N] or [N, 1] from 0; optionally val_images and val_label (or
  val_labels), and label_names, str[C]. Without label_names there are max label + 1 classes, named '0',
  '1', …, and each has training examples. Other keys are ignored.

  Args:
    name: name of the data set, for messages.
    arrays: the arrays by key; None for one that is pickled.

  Returns:
    `Arrays`.

  Raises:
    UserError: if a key has an invalid shape, dtype or value (field 'dataset').

  Example:
    >>> x, y = np.full((3, 2, 2), 255, np.uint8), np.array([[0], [2], [1]])
    >>> found = check('mine', dict(train_images=x, train_label=y, test_images=x, test_label=y))
    >>> found.train[0].shape, found.train[1].tolist(), found.validation
    ((3, 2, 2, 1), [0, 2, 1], None)
  """
  splits = {}
  for split in ('train', 'val', 'test'):
    if split == 'val' and 'val_images' not in arrays:
      continue
    keys = [key for key in (f'{split}_label', f'{split}_labels') if key in arrays] or [f'{split}_label']
    if len(keys) > 1:
      raise _error(name, f'has both {keys[0]} and {keys[1]}: store one of them')
    images = _checked_images(name, f'{split}_images', _take(name, arrays, f'{split}_images'))
    labels = _checked_labels(name, keys[0], _take(name, arrays, keys[0]))
    if len(images) != len(labels):
      axis = images.shape.index(len(labels)) if len(labels) in images.shape else 0
      raise _error(name, f'{split}_images has {len(images)} examples and {keys[0]} {len(labels)}: ' + (
          f'move the axis of the examples to the front, numpy.moveaxis(images, {axis}, 0)' if axis else
          'store one label for each image'))
    splits[split] = images, labels
  shape = splits['train'][0].shape[1:]
  for split, (images, _) in splits.items():
    if images.shape[1:] != shape:
      raise _error(name, f'train_images are {shape}, {split}_images {images.shape[1:]}: '
                         'store images of one shape')
  names = _class_names(name, arrays, {split: labels for split, (_, labels) in splits.items()})
  return Arrays(splits['train'], splits.get('val'), splits['test'], names)


def _error(name: str | os.PathLike, remedy: str) -> errors.UserError:
  return errors.UserError('dataset', str(name), remedy)


def _warn(name: str, line: str) -> None:
  warnings.warn(f'dataset = {name!r}: {line}', stacklevel=2)


def _load(path: str | os.PathLike) -> dict[str, np.ndarray | None]:
  """The arrays of a .npz file; None for an array that is pickled."""
  try:
    archive = np.load(os.path.expanduser(path), allow_pickle=False)
  except FileNotFoundError as error:
    remedy = 'copy the file to this machine' if '://' in str(path) else 'check the path'
    raise _error(path, f'no such file: {remedy}') from error
  except _UNREADABLE as error:
    raise _error(path, 'cannot be read as .npz: write it with numpy.savez') from error
  if not isinstance(archive, np.lib.npyio.NpzFile):
    raise _error(path, 'holds one array (.npy): write it with numpy.savez')
  arrays = {}
  with archive:
    for key in archive.files:
      try:
        arrays[key] = archive[key]
      except ValueError as error:
        if 'allow_pickle' not in str(error):
          raise _error(path, f'{key} is damaged ({error}): write the file again') from error
        arrays[key] = None
      except _UNREADABLE as error:
        raise _error(path, f'{key} is damaged ({error}): write the file again') from error
  return arrays


def _take(name: str, arrays: Mapping[str, np.ndarray | None], key: str) -> np.ndarray:
  if key not in arrays:
    raise _error(name, f'has no {key}: store it; found: {", ".join(sorted(arrays)) or "nothing"}')
  if not isinstance(arrays[key], np.ndarray):
    raise _error(name, f'{key} is a pickled object, not an array of numbers: store plain numbers')
  return arrays[key]


def _checked_images(name: str, key: str, images: np.ndarray) -> np.ndarray:
  if not images.size:
    raise _error(name, f'{key} is empty, shape {images.shape}: store at least one image')
  if images.dtype != np.uint8:
    raise _error(name, f'{key} is {images.dtype}{_values(images)}: store uint8 pixels, 0..255'
                       f'{_as_uint8(images)}')
  if images.ndim not in (3, 4):
    raise _error(name, f'{key} has shape {images.shape}: store [N, H, W, C] or [N, H, W]')
  if images.ndim == 4:
    _check_channels_last(name, key, images)
  if images.max() <= _DARK:
    _warn(name, f'{key} has no pixel above {images.max()}, and pixels are taken to be in 0..255: '
                'scale them to that range')
  return images[..., None] if images.ndim == 3 else images


def _values(images: np.ndarray) -> str:
  if images.dtype.kind not in 'iuf':
    return ''
  low, high = images.min(), images.max()
  return ' and holds NaN' if np.isnan(low) else f' in {low:g}..{high:g}'


def _as_uint8(images: np.ndarray) -> str:
  """The expression that makes uint8 pixels of numbers in 0..1 or 0..255, or what to do about others."""
  if images.dtype.kind not in 'iuf' or not np.isfinite(images).all():
    return ''
  low, high = images.min(), images.max()
  if low < 0 or high > 255:
    return ' (undo the normalisation first)' if low < 0 else ' (scale them to that range first)'
  scale = '255 * ' if high <= 1 and images.dtype.kind == 'f' else ''
  return f', for example numpy.round({scale}images).astype(numpy.uint8)'


def _check_channels_last(name: str, key: str, images: np.ndarray) -> None:
  """Images of 1 to 4 rows and over 4 channels are probably channels first."""
  first, *rest = images.shape[1:]
  if first > 4 or min(rest) <= 4:
    return
  line = f'{key} has shape {images.shape}'
  remedy = 'numpy.moveaxis(images, 1, -1)'
  # One row and many channels may also be a series.
  if first > 2 or rest[0] == rest[1]:
    raise _error(name, f'{line}, channels first: store [N, H, W, C], {remedy}')
  _warn(name, f'{line}, read as [N, H, W, C], images of {first}x{rest[0]} with {rest[1]} channels: if '
              f'channels are first, store {remedy}')


def _checked_labels(name: str, key: str, labels: np.ndarray) -> np.ndarray:
  if labels.dtype.kind not in 'iuf':
    raise _error(name, f'{key} is {labels.dtype}: store whole numbers from 0')
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise _error(name, f'{key} has shape {labels.shape}{_label_remedy(labels)}')
  if not labels.size:
    raise _error(name, f'{key} is empty: store at least one label')
  if labels.dtype.kind == 'f':
    if np.isnan(labels).any():
      raise _error(name, f'{key} holds NaN: store whole numbers from 0')
    if not (np.isfinite(labels) & (labels == np.floor(labels))).all():
      raise _error(name, f'{key} holds numbers that are not whole: store whole numbers from 0')
  if labels.min() < 0:
    raise _error(name, f'{key} holds the negative label {labels.min()}: number classes from 0')
  if labels.max() >= _MAX_CLASSES:
    raise _error(name, f'{key} holds the label {labels.max()}: number classes 0, 1, 2, …')
  return labels.astype(np.int32)


def _label_remedy(labels: np.ndarray) -> str:
  if labels.ndim == 2 and labels.size and np.isin(labels, (0, 1)).all():
    if (labels.sum(axis=1) == 1).all():
      return ', one-hot: store the classes, labels.argmax(axis=1)'
    return ', several labels for an image: only one class for each image is supported'
  if labels.ndim > 2:
    return ', a label for each pixel: only one class for each image is supported'
  return ': store one label for each image, [N]'


def _class_names(name: str, arrays: Mapping[str, np.ndarray | None],
                 labels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
  highest = int(max(each.max() for each in labels.values()))
  if 'label_names' not in arrays:
    _check_classes(name, labels, highest + 1)
    return tuple(str(i) for i in range(highest + 1))
  names = _take(name, arrays, 'label_names')
  if names.ndim != 1 or names.dtype.kind not in 'US':
    raise _error(name, 'label_names is not a list of strings: store one string for each class')
  if highest >= len(names):
    raise _error(name, f'holds the label {highest} but {len(names)} label_names: '
                       'store one name for each class, labels from 0')
  return tuple(each.decode('utf-8', 'replace') if isinstance(each, bytes) else str(each)
               for each in names)


def _check_classes(name: str, labels: Mapping[str, np.ndarray], num_classes: int) -> None:
  """Raises UserError for a class without training examples, which only `label_names` can declare."""
  seen = np.bincount(labels['train'], minlength=num_classes) > 0
  if seen.all():
    return
  absent = listed(np.flatnonzero(~seen))
  if all(each.min() == 1 for each in labels.values()) and seen[1:].all():
    raise _error(name, f'labels are 1..{num_classes - 1}, not from 0: labels must be 0..C-1, subtract 1')
  if not seen[labels['train'].max() + 1:].any() and seen[:labels['train'].max() + 1].all():
    raise _error(name, f'no training example has the label {absent} of other splits: remove these examples, '
                       'or name the classes in label_names')
  raise _error(name, f'no training example has the label {absent}: number the classes 0..C-1, '
                     'numpy.unique(labels, return_inverse=True)[1], or name them in label_names')


def listed(numbers: np.ndarray) -> str:
  """Lists at most five numbers, for a message.

  Args:
    numbers: int[N].

  Returns:
    The numbers, separated by commas.

  Example:
    >>> listed(np.arange(9))
    '0, 1, 2, 3, 4, …'
  """
  return ', '.join(str(number) for number in numbers[:5]) + ', …' * (len(numbers) > 5)

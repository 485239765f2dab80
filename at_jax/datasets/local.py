"""Data sets that need no download: scikit-learn's digits, and .npz files of the user's own."""

from collections.abc import Mapping
import os
import zipfile
import zlib

import numpy as np

from at_jax import errors

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8[N, H, W, C], labels int32[N]
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_MAX_CLASSES = 2**16  # a larger label is probably an identifier, not a class
_DIGITS_TEST = 397  # of 1,797, which leaves 1,400 for training
_SEED = 0  # independent of the run's seed, so that runs with different seeds have the same split


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


def read_digits() -> tuple[Arrays, Arrays, tuple[str, ...]]:
  """Reads scikit-learn's 1,797 handwritten digits, 8×8, with a fixed split of 1,400 and 397.

  Pixel values v in 0..16 become round(255 v / 16).

  Returns:
    (images, labels) of train, (images, labels) of test, and the class names; images
    uint8[N, 8, 8, 1], labels int32[N].

  Raises:
    ImportError: if scikit-learn is not installed.

  Example:
    >>> (images, labels), test, names = read_digits()
    >>> images.shape, images.max().item(), names[:2]
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
  return (images[train], labels[train]), (images[test], labels[test]), names


def read_npz(path: str | os.PathLike) -> tuple[Arrays, Arrays, tuple[str, ...]]:
  """Reads and checks a data set in a .npz file. Pickled arrays are never loaded.

  Keys: train_images and test_images, uint8[N, H, W, C] or uint8[N, H, W]; train_label and test_label (or
  train_labels, test_labels), whole numbers [N] from 0; optionally label_names, str[C]. Without label_names
  there are max label + 1 classes, named '0', '1', ….

  Args:
    path: path of the file.

  Returns:
    (images, labels) of train, (images, labels) of test, and the class names; images
    uint8[N, H, W, C], labels int32[N].

  Raises:
    UserError: if the file cannot be read or a key has an invalid shape, dtype or value (field 'dataset').

  Example:
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), 'tiny.npz')
    >>> x, y = np.zeros((3, 2, 2), np.uint8), np.array([0, 2, 1])
    >>> np.savez(path, train_images=x, train_label=y, test_images=x, test_label=y)
    >>> (images, labels), test, names = read_npz(path)
    >>> images.shape, labels.dtype.name, names
    ((3, 2, 2, 1), 'int32', ('0', '1', '2'))
  """
  arrays = _load(path)
  splits = {}
  for split in ('train', 'test'):
    images = _checked_images(path, f'{split}_images', _take(path, arrays, f'{split}_images'))
    key = f'{split}_labels' if f'{split}_labels' in arrays else f'{split}_label'
    labels = _checked_labels(path, key, _take(path, arrays, key))
    if len(images) != len(labels):
      raise _error(path, f'{split}_images has {len(images)} examples and {key} {len(labels)}: '
                         'store one label for each image')
    splits[split] = images, labels
  train, test = (splits[split][0].shape[1:] for split in ('train', 'test'))
  if train != test:
    raise _error(path, f'train_images are {train}, test_images {test}: store images of one shape')
  highest = int(max(labels.max() for _, labels in splits.values()))
  return splits['train'], splits['test'], _class_names(path, arrays, highest)


def _error(path: str | os.PathLike, remedy: str) -> errors.UserError:
  return errors.UserError('dataset', str(path), remedy)


def _load(path: str | os.PathLike) -> dict[str, np.ndarray | None]:
  """The arrays of a .npz file; None for an array that is pickled."""
  try:
    archive = np.load(path, allow_pickle=False)
  except FileNotFoundError as error:
    raise _error(path, 'no such file: check the path') from error
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


def _take(path: str | os.PathLike, arrays: Mapping[str, np.ndarray | None], key: str) -> np.ndarray:
  if key not in arrays:
    raise _error(path, f'has no {key}: store it; found: {", ".join(sorted(arrays)) or "nothing"}')
  if not isinstance(arrays[key], np.ndarray):
    raise _error(path, f'{key} is a pickled object, not an array of numbers: store plain numbers')
  return arrays[key]


def _checked_images(path: str | os.PathLike, key: str, images: np.ndarray) -> np.ndarray:
  if images.dtype != np.uint8:
    has_nan = images.dtype.kind == 'f' and np.isnan(images).any()
    raise _error(path, f'{key} is {images.dtype}{" and holds NaN" * bool(has_nan)}: '
                       'store uint8 pixels, 0..255')
  if images.ndim not in (3, 4):
    raise _error(path, f'{key} has shape {images.shape}: store [N, H, W, C] or [N, H, W]')
  if not images.size:
    raise _error(path, f'{key} is empty, shape {images.shape}: store at least one image')
  return images[..., None] if images.ndim == 3 else images


def _checked_labels(path: str | os.PathLike, key: str, labels: np.ndarray) -> np.ndarray:
  if labels.dtype.kind not in 'iuf':
    raise _error(path, f'{key} is {labels.dtype}: store whole numbers from 0')
  if labels.ndim != 1:
    raise _error(path, f'{key} has shape {labels.shape}: store one label for each image, [N]')
  if not labels.size:
    raise _error(path, f'{key} is empty: store at least one label')
  if labels.dtype.kind == 'f':
    if np.isnan(labels).any():
      raise _error(path, f'{key} holds NaN: store whole numbers from 0')
    if not (np.isfinite(labels) & (labels == np.floor(labels))).all():
      raise _error(path, f'{key} holds numbers that are not whole: store whole numbers from 0')
  if labels.min() < 0:
    raise _error(path, f'{key} holds the negative label {labels.min()}: number classes from 0')
  if labels.max() >= _MAX_CLASSES:
    raise _error(path, f'{key} holds the label {labels.max()}: number classes 0, 1, 2, …')
  return labels.astype(np.int32)


def _class_names(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray | None], highest: int) -> tuple[str, ...]:
  if 'label_names' not in arrays:
    return tuple(str(i) for i in range(highest + 1))
  names = _take(path, arrays, 'label_names')
  if names.ndim != 1 or names.dtype.kind not in 'US':
    raise _error(path, 'label_names is not a list of strings: store one string for each class')
  if highest >= len(names):
    raise _error(path, f'holds the label {highest} but {len(names)} label_names: '
                       'store one name for each class, labels from 0')
  return tuple(name.decode('utf-8', 'replace') if isinstance(name, bytes) else str(name)
               for name in names)

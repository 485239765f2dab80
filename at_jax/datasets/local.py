"""Sets that need no download: scikit-learn's digits, and what users pack themselves as one .npz.

A packed set is checked; each thing that can be wrong with it is one line.
"""

import zipfile
import zlib

import numpy as np

from at_jax import errors

_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_MAX_CLASSES = 2**16  # a larger label is an identifier rather than a class
_DIGITS_TEST = 397  # of 1,797: leaves a round 1,400 to train on
_SEED = 0  # of the fixed subsets; never the run's seed, else runs could not be compared


def fixed_permutation(n) -> np.ndarray:
  """The same random order of 0..n−1 in every run and under every version of NumPy.

  Args:
    n: how many.

  Returns:
    int[n].

  Example:
    >>> fixed_permutation(4).tolist()
    [2, 3, 1, 0]

  Source: ours.
  """
  # RandomState and not default_rng: NumPy promises never to change its streams (NEP 19).
  return np.random.RandomState(_SEED).permutation(n)


def read_digits() -> tuple[tuple, tuple, tuple[str, ...]]:
  """scikit-learn's 1,797 handwritten digits, 8×8, under a fixed split of 1,400 and 397.

  Their values v in 0..16 become round(255 v / 16).

  Returns:
    (images, labels) of train, (images, labels) of test, and the class names; images
    uint8[N, 8, 8, 1], labels int32[N].

  Raises:
    ImportError: scikit-learn is missing.

  Example:
    >>> (images, labels), test, names = read_digits()
    >>> images.shape, images.max().item(), names[:2]
    ((1400, 8, 8, 1), 255, ('0', '1'))

  Source: the split is ours; the images are the test part of Alpaydin and Kaynak, Optical
  Recognition of Handwritten Digits, UCI 1998.
  """
  from sklearn import datasets
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  order = fixed_permutation(len(labels))
  test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
  names = tuple(str(name) for name in digits.target_names)
  return (images[train], labels[train]), (images[test], labels[test]), names


def read_npz(path) -> tuple[tuple, tuple, tuple[str, ...]]:
  """Reads and checks a packed data set. Pickled arrays are never loaded.

  Keys: train_images and test_images, uint8[N, H, W, C] or uint8[N, H, W]; train_label and
  test_label (or train_labels, test_labels), whole numbers [N] from 0; optionally label_names,
  str[C]. Without names there are max label + 1 classes, named '0', '1', ….

  Args:
    path: of the file.

  Returns:
    (images, labels) of train, (images, labels) of test, and the class names; images
    uint8[N, H, W, C], labels int32[N].

  Raises:
    UserError: field 'dataset', naming the key and what was found.

  Example:
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), 'tiny.npz')
    >>> x, y = np.zeros((3, 2, 2), np.uint8), np.array([0, 2, 1])
    >>> np.savez(path, train_images=x, train_label=y, test_images=x, test_label=y)
    >>> (images, labels), test, names = read_npz(path)
    >>> images.shape, labels.dtype.name, names
    ((3, 2, 2, 1), 'int32', ('0', '1', '2'))

  Source: ours.
  """
  arrays = _load(path)
  splits = {}
  for split in ('train', 'test'):
    images = _checked_images(path, f'{split}_images', _take(path, arrays, f'{split}_images'))
    key = f'{split}_labels' if f'{split}_labels' in arrays else f'{split}_label'
    labels = _checked_labels(path, key, _take(path, arrays, key))
    if len(images) != len(labels):
      raise _error(path, f'{split}_images has {len(images)} examples and {key} {len(labels)}: '
                         'store one label an image')
    splits[split] = images, labels
  train, test = (splits[split][0].shape[1:] for split in ('train', 'test'))
  if train != test:
    raise _error(path, f'train_images are {train}, test_images {test}: store images of one shape')
  highest = int(max(labels.max() for _, labels in splits.values()))
  return splits['train'], splits['test'], _class_names(path, arrays, highest)


def _error(path, remedy):
  return errors.UserError('dataset', str(path), remedy)


def _load(path):
  """{key: array} of a .npz; a key whose array would need unpickling maps to None."""
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


def _take(path, arrays, key):
  if key not in arrays:
    raise _error(path, f'has no {key}: store it; found: {", ".join(sorted(arrays)) or "nothing"}')
  if not isinstance(arrays[key], np.ndarray):
    raise _error(path, f'{key} is a pickled object, not an array of numbers: store plain numbers')
  return arrays[key]


def _checked_images(path, key, images):
  if images.dtype != np.uint8:
    has_nan = images.dtype.kind == 'f' and np.isnan(images).any()
    raise _error(path, f'{key} is {images.dtype}{" and holds NaN" * bool(has_nan)}: '
                       'store uint8 pixels, 0..255')
  if images.ndim not in (3, 4):
    raise _error(path, f'{key} has shape {images.shape}: store [N, H, W, C] or [N, H, W]')
  if not images.size:
    raise _error(path, f'{key} is empty, shape {images.shape}: store at least one image')
  return images[..., None] if images.ndim == 3 else images


def _checked_labels(path, key, labels):
  if labels.dtype.kind not in 'iuf':
    raise _error(path, f'{key} is {labels.dtype}: store whole numbers from 0')
  if labels.ndim != 1:
    raise _error(path, f'{key} has shape {labels.shape}: store one label an image, [N]')
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


def _class_names(path, arrays, highest):
  if 'label_names' not in arrays:
    return tuple(str(i) for i in range(highest + 1))
  names = _take(path, arrays, 'label_names')
  if names.ndim != 1 or names.dtype.kind not in 'US':
    raise _error(path, 'label_names is not a list of strings: store one string a class')
  if highest >= len(names):
    raise _error(path, f'holds the label {highest} but {len(names)} label_names: '
                       'store one name a class, labels from 0')
  return tuple(name.decode('utf-8', 'replace') if isinstance(name, bytes) else str(name)
               for name in names)

"""Reads data sets into host arrays, and makes batches of them with pure functions.

`load` reads a whole data set: scikit-learn's digits, a TFDS data set (downloaded if needed; TensorFlow is not
used) or a .npz file. `from_arrays` makes one of arrays in memory. `epoch_order`, `augment` and `to_unit` are
pure JAX functions of their arguments, so a run that is resumed, or continued on another number of devices,
sees the same data.

The command `python -m at_jax.datasets cifar100 [--data_dir=DIR]` prepares a data set and prints its sizes.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from at_jax import errors
from at_jax.datasets import local

Array = jax.Array
SIZES = {  # shape of an image, number of training examples
    'digits': ((8, 8, 1), 1400), 'cifar10': ((32, 32, 3), 50000), 'cifar100': ((32, 32, 3), 50000),
    'fashion_mnist': ((28, 28, 1), 60000), 'mnist': ((28, 28, 1), 60000), 'stl10': ((96, 96, 3), 5000),
    'svhn_cropped': ((32, 32, 3), 73257), 'tiny_imagenet': ((64, 64, 3), 100000)}
TFDS_SETS = tuple(name for name in SIZES if name != 'digits')
IMAGENET_SIZE = 1281167  # training examples, of several shapes
_QUANTILE = .999  # of chi-square, up to which the classes of examples pass for a random draw


class Split(NamedTuple):
  """Examples in host memory: images uint8[N, H, W, C], labels int32[N]."""

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in host memory.

  `validation` is empty unless `load` was given a `validation_size`. `digest` is that of a .npz file's content
  (`local.digest`), empty for other data.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  digest: str = ''

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C)."""
    return self.train.images.shape[1:]

  @property
  def train_size(self) -> int:
    """Number of training examples."""
    return len(self.train.images)  # a stream would read all labels


class DeferredDataset:
  """A data set whose sizes are known, and whose examples are read when they are first used.

  It has the attributes of a `Dataset`.

  Args:
    name: name of the data set.
    num_classes: C.
    image_shape: (H, W, C).
    train_size: number of training examples.
    read: function that reads the `Dataset`.
    digest: its digest, or '' if it is not known.

  Raises:
    UserError: when examples are used, if they cannot be read, or have other sizes or another digest (field
      'config.dataset.name').
  """

  def __init__(self, name: str, num_classes: int, image_shape: Sequence[int], train_size: int,
               read: Callable[[], Dataset], digest: str = ''):
    self.name, self.num_classes = name, num_classes
    self.image_shape, self.train_size = tuple(image_shape), train_size
    self._read, self.digest = read, digest

  @functools.cached_property
  def _dataset(self) -> Dataset:
    found = self._read()
    sizes = lambda dataset: (dataset.num_classes, dataset.image_shape, dataset.train_size)
    if sizes(found) != sizes(self):
      text = '{} classes, images {} and {} training examples'
      raise errors.UserError('config.dataset.name', self.name, 'these are not the data of the run: they have '
                             f'{text.format(*sizes(found))}, and the run had {text.format(*sizes(self))}')
    if self.digest not in ('', found.digest):
      raise errors.UserError('config.dataset.name', self.name, 'these are not the data of the run: the file '
                             'has another content')
    return found

  @property
  def train(self) -> Split:
    return self._dataset.train

  @property
  def validation(self) -> Split:
    return self._dataset.validation

  @property
  def test(self) -> Split:
    return self._dataset.test

  @property
  def class_names(self) -> tuple[str, ...]:
    return self._dataset.class_names


def load(name: str | os.PathLike, *, validation_size: int = 0,
         data_dir: str | os.PathLike | None = None, drop_class: int | None = None) -> Dataset:
  """Reads a data set, and downloads it first if needed.

  Validation examples are taken by `hold_out` from the validation split that the data set has, otherwise from
  the training split. The test split is the published one.
  STL-10 has its labelled images only, SVHN is without its `extra` split, and CIFAR-100 has the fine labels.
  Tiny-ImageNet's test split is its official validation split, because its test labels are not public.

  Args:
    name: 'digits', 'tiny_imagenet', the name of a TFDS data set with images of one shape and labels (such as
      `TFDS_SETS`, 'kmnist' or 'emnist/letters'), or a path that ends in '.npz' (format: `local.check`).
    validation_size: number of validation examples.
    data_dir: folder of the prepared TFDS data sets; None for the default of TFDS. `~` is the home directory.
    drop_class: label of a class whose examples are left out of all splits; higher labels move down by one,
      and validation examples are held out of the rest. None for no class.

  Returns:
    A `Dataset`.

  Raises:
    UserError: if `name` is unknown or the data set cannot be read or downloaded (field 'dataset'), or if
      `validation_size` or `drop_class` is out of range.

  Warns:
    UserWarning: if more examples are held out than remain, or classes have no training example.

  Example:
    >>> digits = load('digits', validation_size=100)
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1300, 8, 8, 1), (397, 8, 8, 1), 10)
  """
  name, digest = str(name), ''  # a path is a name too
  try:
    if name == 'digits':
      arrays = local.read_digits()
    elif name.endswith('.npz'):
      arrays = local.read_npz(name)
      digest = local.digest(arrays)
    else:
      arrays = _read_tfds(name, os.path.expanduser(data_dir) if data_dir else None)
  except ImportError as error:
    hint = '' if name in SIZES else f'{errors.nearest(name, SIZES)}; another data set of TFDS '
    remedy = f"{hint}needs a package that is missing ({error}): pip install 'at_jax[data]'"
    raise errors.UserError('dataset', name, remedy) from error
  return _split(name, arrays, validation_size, drop_class)._replace(digest=digest)


def _read_tfds(name: str, data_dir: str | None) -> local.Arrays:
  from at_jax.datasets import tfds  # needs tensorflow_datasets, which other data sets do not
  try:
    return tfds.read(name, data_dir=data_dir)
  except tfds.UnknownName as error:
    remedy = (f'{errors.nearest(name, SIZES)}; or another data set of TFDS, a path that '
              'ends in .npz, or in a configuration an import path module.function')
    raise errors.UserError('dataset', name, remedy) from error


def from_arrays(name: str, arrays: Mapping[str, np.ndarray] | Dataset, *, validation_size: int = 0,
                drop_class: int | None = None) -> Dataset:
  """Makes a data set of arrays in memory, which a loader function gives.

  Args:
    name: name of the data set.
    arrays: the arrays by the keys of a .npz file (`local.check`), or a `Dataset`.
    validation_size: as in `load`.
    drop_class: as in `load`.

  Returns:
    A `Dataset`.

  Raises:
    UserError: if `arrays` is neither, or as `load` (field 'dataset').

  Warns:
    UserWarning: as `load`.

  Example:
    >>> x, y = np.full((4, 2, 2), 255, np.uint8), np.array([0, 1, 0, 1])
    >>> arrays = {'train_images': x, 'train_label': y, 'test_images': x, 'test_label': y}
    >>> len(from_arrays('mine', arrays, validation_size=2).train.labels)
    2
  """
  if isinstance(arrays, Dataset):
    whole = {'train': arrays.train, 'val': arrays.validation, 'test': arrays.test}
    arrays = {'label_names': np.array(arrays.class_names)} if arrays.class_names else {}
    for split, (images, labels) in whole.items():
      if split != 'val' or len(labels):
        arrays |= {f'{split}_images': images, f'{split}_label': labels}
  if not isinstance(arrays, Mapping):
    raise errors.UserError('dataset', name, f'returns {type(arrays).__name__}: return a dictionary with '
                           'train_images, train_label, test_images and test_label, or a Dataset')
  try:
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
  except ValueError as error:  # lists of lists of different lengths
    remedy = f'returns lists that are not arrays ({error}): return NumPy arrays'
    raise errors.UserError('dataset', name, remedy) from error
  return _split(name, local.check(name, arrays), validation_size, drop_class)


def _split(name: str, arrays: local.Arrays, validation_size: int, drop_class: int | None) -> Dataset:
  if drop_class is not None:
    arrays = _without_class(arrays, drop_class)
  train, test = Split(*arrays.train), Split(*arrays.test)
  if arrays.validation is None:
    train, validation = hold_out(train, validation_size)
    n, rest = validation_size, len(train.labels)
    if n > rest:
      warnings.warn(f'validation_size = {n}: {n} of {n + rest} training examples are held out, and {rest} '
                    f'remain to train on: use fewer, such as {max((n + rest) // 10, 1)}', stacklevel=3)
  else:
    validation = Split(*arrays.validation)
    check_validation_size(validation_size, np.inf, 'use a whole number of at least 0')
    if validation_size < len(validation.labels):
      validation = hold_out(validation, validation_size)[1]
    elif validation_size > len(validation.labels):
      warnings.warn(f'validation_size = {validation_size}: {name} has a validation split of '
                    f'{len(validation.labels)} examples, which are used', stacklevel=3)
  num_classes = len(arrays.class_names)
  absent = np.flatnonzero(np.bincount(train.labels, minlength=num_classes) == 0)
  if len(absent):
    tested = np.isin(test.labels, absent).sum()
    warnings.warn(f'dataset = {name!r}: {len(absent)} of {num_classes} classes have no training example '
                  f'(labels {local.listed(absent)}), and {tested} test examples are of these '
                  'classes', stacklevel=3)
  return Dataset(name, train, validation, test, num_classes, arrays.class_names)


def _without_class(arrays: local.Arrays, label: int) -> local.Arrays:
  names = arrays.class_names
  is_integer = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
  if not is_integer or not 0 <= label < len(names) or len(names) < 3:
    remedy = f'use a class from 0 to {len(names) - 1}' if len(names) > 2 else 'two classes must remain'
    raise errors.UserError('drop_class', label, remedy)

  def rest(examples: local.Examples) -> local.Examples:
    images, labels = examples
    kept = labels != label
    if not kept.any():
      raise errors.UserError('drop_class', label, 'a split has no other class: use another one')
    return images[kept], labels[kept] - (labels[kept] > label).astype(labels.dtype)

  return local.Arrays(rest(arrays.train), arrays.validation and rest(arrays.validation), rest(arrays.test),
                      names[:label] + names[label + 1:])


def hold_out(split: Split, size: int) -> tuple[Split, Split]:
  """Divides a split into a fixed stratified random subset and the rest.

  In a fixed random order, the k-th of the n_c examples of class c has position (k + 1/2) / n_c. The `size`
  examples with the lowest positions are held out. Each class contributes in proportion to n_c, to within one
  example, and a smaller subset is part of a larger one.

  Args:
    split: N examples.
    size: number of examples to hold out, 0 ≤ size < N.

  Returns:
    The other N − size examples and the `size` held-out examples, both in their original order.

  Raises:
    UserError: if `size` is not an integer in that range (field 'validation_size').

  Example:
    >>> split = Split(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int32))
    >>> sorted(hold_out(split, 2)[1].labels.tolist())
    [0, 1]
  """
  n = len(split.labels)
  check_validation_size(size, n - 1, f'use a whole number from 0 to {n - 1}; there are {n} training examples')
  if size == 0:  # avoids a copy of the images, which may take gigabytes
    return split, Split(split.images[:0], split.labels[:0])
  held_out = _stratified(split.labels, size)
  return (Split(split.images[~held_out], split.labels[~held_out]),
          Split(split.images[held_out], split.labels[held_out]))


def check_validation_size(size: int, largest: float, remedy: str) -> None:
  """Checks a number of examples to hold out.

  Args:
    size: the number.
    largest: the largest that is possible.
    remedy: what to do about a wrong one.

  Raises:
    UserError: if it is not a whole number from 0 to `largest` (field 'validation_size').
  """
  is_integer = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
  if not is_integer or not 0 <= size <= largest:
    raise errors.UserError('validation_size', size, remedy)


def _stratified(labels: np.ndarray, size: int) -> np.ndarray:
  """bool[N], the examples that `hold_out` takes."""
  n = len(labels)
  order = local.fixed_permutation(n)
  position = np.empty(n)
  for label in np.unique(labels):
    members = order[labels[order] == label]
    position[members] = (np.arange(len(members)) + 0.5) / len(members)
  # The stable sort breaks ties between classes by the same fixed order.
  chosen = order[np.argsort(position[order], kind='stable')[:size]]
  held_out = np.zeros(n, bool)
  held_out[chosen] = True
  return held_out


def subset(split: Split, size: int) -> tuple[Split, str]:
  """Takes the first examples, or a fixed stratified subset if their classes are not those of a random draw.

  With o_c of the first n of N examples in class c, whose share of all is p_c, they pass for a random draw if
  (N − 1)/(N − n) Σ_c (o_c − n p_c)² / (n p_c) is at most the .999 quantile of chi-square with C − 1 degrees
  of freedom. The first examples of a split that is sorted by class do not pass. The stratified subset is
  that of `hold_out`, the same in every run.

  Args:
    split: N examples.
    size: n; 0 or more than N for all.

  Returns:
    The examples in their original order, and which they are: 'all', 'first' or 'stratified'.

  Example:
    >>> split = Split(np.zeros((90, 2, 2, 1), np.uint8), np.repeat(np.arange(3, dtype=np.int32), 30))
    >>> found, which = subset(split, 30)  # the first 30 are of one class
    >>> np.bincount(found.labels).tolist(), which
    ([10, 10, 10], 'stratified')

  Reference: K. Pearson, On the criterion that a given system of deviations …, 1900; the factor is the finite
  population correction.
  """
  n = len(split.labels)
  if not 0 < size < n:
    # The images of a stream are decoded here.
    return split if isinstance(split, Split) else Split(split.images[:], split.labels), 'all'
  counts = np.bincount(split.labels)
  expected = size * counts[counts > 0] / n
  observed = np.bincount(split.labels[:size], minlength=len(counts))[counts > 0]
  statistic = (n - 1) / (n - size) * ((observed - expected)**2 / expected).sum()
  if len(expected) == 1 or statistic <= special.chdtri(len(expected) - 1, 1 - _QUANTILE):
    return Split(split.images[:size], split.labels[:size]), 'first'
  chosen = _stratified(split.labels, size)
  return Split(split.images[chosen], split.labels[chosen]), 'stratified'


@functools.partial(jax.jit, static_argnames='n')
def epoch_order(key: Array, epoch: int | Array, n: int) -> Array:
  """Returns the order in which an epoch visits the training set, a function of key and epoch only.

  order = permutation(fold_in(key, epoch), n)

  Args:
    key: typed PRNG key of the run.
    epoch: i32[], index of the epoch; may be traced.
    n: number of examples; static.

  Returns:
    i32[n], a permutation of 0..n−1.

  Example:
    >>> sorted(epoch_order(jax.random.key(0), 3, 4).tolist())
    [0, 1, 2, 3]
  """
  return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


def to_unit(images: Array | np.ndarray) -> Array:
  """Converts uint8 pixels to float32 in [0, 1], with the rounding of NumPy's images / 255.

  Args:
    images: uint8[...].

  Returns:
    f32[...] in [0, 1], of the same shape.

  Raises:
    TypeError: if the images are not uint8, because they are probably scaled already.

  Example:
    >>> to_unit(np.array([0, 51, 255], np.uint8)).tolist() == np.float32([0, 0.2, 1]).tolist()
    True
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'images.dtype = {images.dtype}: use uint8 pixels in 0..255')
  # XLA compiles `/ 255` to a product, which for some pixels differs from the quotient of NumPy and PyTorch in
  # the last bit. 1/255 = 257/2¹⁶ + 1/(255·2¹⁶): the first product is exact, the second is tiny.
  pixels = jnp.asarray(images).astype(jnp.float32)
  return pixels * np.float32(257 / 2**16) + pixels * np.float32(1 / (255 * 2**16))


def in_unit(images: Array | np.ndarray) -> Array | np.ndarray:
  """Returns images in [0, 1]: pixels by `to_unit`, floating-point images as they are.

  Args:
    images: uint8[...] in 0..255, or float[...] in [0, 1].

  Returns:
    float[...] in [0, 1], of the same shape.

  Raises:
    TypeError: for another dtype.

  Example:
    >>> in_unit(np.array([255], np.uint8)).tolist(), in_unit(np.array([.5], np.float32)).tolist()
    ([1.0], [0.5])
  """
  return images if jnp.issubdtype(images.dtype, jnp.floating) else to_unit(images)


@functools.partial(jax.jit, static_argnames=('pad', 'flip'))
def augment(images: Array | np.ndarray, keys: Array, *, pad: int = 4, flip: bool = True) -> Array:
  """Crops each zero-padded image at random, and mirrors it with probability 1/2.

  x'[i, j] = padded[i + a, j + b], mirrored to x'[i, W − 1 − j] with probability 1/2; a and b are uniform on
  0..2·pad. The draws for an example depend on its own key only, not on the batch.

  Args:
    images: [B, H, W, C], usually uint8.
    keys: typed PRNG keys [B], one for each example (threefry, JAX's default).
    pad: number of zeros added on each side; static. 0 means no crop.
    flip: whether to mirror left and right; static.

  Returns:
    [B, H, W, C] of the images' dtype.

  Raises:
    TypeError: if the keys are not typed threefry keys.
    ValueError: if `pad` is negative.

  Example:
    >>> images, keys = np.full((2, 8, 8, 3), 255, np.uint8), jax.random.split(jax.random.key(0), 2)
    >>> bool((augment(images, keys, pad=0) == images).all()), augment(images, keys, pad=1).shape
    (True, (2, 8, 8, 3))

  Reference: K. He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
  """
  if pad < 0:
    raise ValueError(f'pad = {pad}: use 0 or more')
  # Under vmap, rbg keys draw from the first key only, so draws would depend on the batch.
  if str(jax.random.key_impl(keys)) != 'threefry2x32':
    raise TypeError(f'keys = {jax.random.key_impl(keys)}: use threefry keys, '
                    "jax.random.key(seed, impl='threefry2x32')")
  return jax.vmap(functools.partial(_augment_one, pad=pad, flip=flip))(jnp.asarray(images), keys)


def _augment_one(image: Array, key: Array, *, pad: int, flip: bool) -> Array:
  # One draw of raw bits takes a third of the time of randint and bernoulli on a CPU. The remainder's bias is
  # below (2·pad + 1) / 2³².
  bits = jax.random.bits(key, (3,), jnp.uint32)
  if pad:
    offset = (bits[:2] % (2 * pad + 1)).astype(jnp.int32)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    image = jax.lax.dynamic_slice(padded, (offset[0], offset[1], jnp.int32(0)), image.shape)
  return jnp.where(bits[2] & 1, image[:, ::-1], image) if flip else image

"""Reads data sets into host arrays, and makes batches of them with pure functions.

`load` reads a whole data set: scikit-learn's digits, a TFDS data set (downloaded if needed; TensorFlow is not
used) or a .npz file. `epoch_order`, `augment` and `to_unit` are pure JAX functions of their arguments, so a
run that is resumed, or continued on another number of devices, sees the same data.

The command `python -m at_jax.datasets cifar100 [--data_dir=DIR]` prepares a data set and prints its sizes.
"""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import errors
from at_jax.datasets import local

Array = jax.Array
TFDS_SETS = ('cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'stl10', 'svhn_cropped', 'tiny_imagenet')


class Split(NamedTuple):
  """Examples in host memory: images uint8[N, H, W, C], labels int32[N]."""

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in host memory. `validation` is empty unless `load` was given a `validation_size`."""

  name: str
  train: Split
  validation: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]


def load(name: str | os.PathLike, *, validation_size: int = 0,
         data_dir: str | os.PathLike | None = None) -> Dataset:
  """Reads a data set, and downloads it first if needed.

  Validation examples are taken from the training split by `hold_out`; the test split is the published one.
  STL-10 has its labelled images only, SVHN is without its `extra` split, and CIFAR-100 has the fine labels.
  Tiny-ImageNet's test split is its official validation split, because its test labels are not public.

  Args:
    name: 'digits', one of `TFDS_SETS`, or a path that ends in '.npz' (format: `local.read_npz`).
    validation_size: number of training examples to hold out.
    data_dir: folder of the prepared TFDS data sets; None for the default of TFDS.

  Returns:
    A `Dataset`.

  Raises:
    UserError: if `name` is unknown or the data set cannot be read or downloaded (field 'dataset'), or if
      `validation_size` is out of range.

  Example:
    >>> digits = load('digits', validation_size=100)
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1300, 8, 8, 1), (397, 8, 8, 1), 10)
  """
  name = str(name)  # of a path
  try:
    if name == 'digits':
      train, test, class_names = local.read_digits()
    elif name in TFDS_SETS:
      from at_jax.datasets import tfds  # needs tensorflow_datasets, which other data sets do not
      train, test, class_names = tfds.read(name, data_dir=data_dir)
    elif name.endswith('.npz'):
      train, test, class_names = local.read_npz(name)
    else:
      known = errors.nearest(name, ('digits', *TFDS_SETS))
      raise errors.UserError('dataset', name, f'{known}; or a path that ends in .npz')
  except ImportError as error:
    remedy = f"needs a package that is missing ({error}): pip install 'at_jax[data]'"
    raise errors.UserError('dataset', name, remedy) from error
  train, validation = hold_out(Split(*train), validation_size)
  return Dataset(name, train, validation, Split(*test), len(class_names), class_names)


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
  is_integer = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
  if not is_integer or not 0 <= size < n:
    remedy = f'use a whole number from 0 to {n - 1}; there are {n} training examples'
    raise errors.UserError('validation_size', size, remedy)
  if size == 0:  # avoids a copy of the images, which may take gigabytes
    return split, Split(split.images[:0], split.labels[:0])
  order = local.fixed_permutation(n)
  position = np.empty(n)
  for label in np.unique(split.labels):
    members = order[split.labels[order] == label]
    position[members] = (np.arange(len(members)) + 0.5) / len(members)
  # The stable sort breaks ties between classes by the same fixed order.
  chosen = order[np.argsort(position[order], kind='stable')[:size]]
  held_out = np.zeros(n, bool)
  held_out[chosen] = True
  return (Split(split.images[~held_out], split.labels[~held_out]),
          Split(split.images[held_out], split.labels[held_out]))


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

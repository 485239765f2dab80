"""Data sets as host arrays, and the pure functions that turn them into batches inside jit.

`load` reads a whole data set: scikit-learn's digits, a TFDS set (downloaded where needed, never
with TensorFlow) or a .npz. `epoch_order`, `augment` and `to_unit` are pure JAX: a run can stop,
resume or change its number of devices and see the same data.

  python -m at_jax.datasets cifar100 [--data_dir=DIR]    downloads and prepares, then says what it has
"""

import argparse
import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import errors
from at_jax.datasets import local

TFDS_SETS = ('cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'stl10', 'svhn_cropped',
             'tiny_imagenet')


class Split(NamedTuple):
  """Examples in host memory: images uint8[N, H, W, C], labels int32[N]."""

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A whole data set in host memory; `validation` is empty unless some was asked for."""

  name: str
  train: Split
  validation: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]


def load(name, *, validation_size=0, data_dir=None) -> Dataset:
  """Reads a data set, downloading it first where that is needed.

  The validation examples are taken out of the training split (see `hold_out`); the test split is
  the published one. STL-10 gives its labelled images only, SVHN no `extra`, CIFAR-100 the fine
  labels, Tiny-ImageNet its official validation split as test (its test labels are not public).

  Args:
    name: 'digits', one of `TFDS_SETS`, or a path that ends in '.npz' (keys: `local_sets.read_npz`).
    validation_size: how many training examples to hold out.
    data_dir: folder of the prepared TFDS sets; TFDS's own default where None.

  Returns:
    The `Dataset`.

  Raises:
    UserError: field 'dataset' (unknown, unreadable or not to be had), or 'validation_size'.

  Example:
    >>> digits = load('digits', validation_size=100)
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1300, 8, 8, 1), (397, 8, 8, 1), 10)

  Source: ours.
  """
  name = str(name)  # a path may come as pathlib.Path
  try:
    if name == 'digits':
      train, test, class_names = local.read_digits()
    elif name in TFDS_SETS:
      from at_jax.datasets import tfds  # here, so that `at_jax.datasets` needs no tensorflow_datasets
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


def hold_out(split, size) -> tuple[Split, Split]:
  """Divides a split in two: a fixed, stratified random subset, and the rest.

  In a fixed random order, the k-th of the n_c examples of a class has place (k + 1/2) / n_c; the
  `size` lowest are held out. Each class gives its share to within one example; subsets nest.

  Args:
    split: `Split` of N examples.
    size: how many to hold out, 0 ≤ size < N.

  Returns:
    The rest (N − size) and the held-out subset (size), both in the order they had.

  Raises:
    UserError: size is no whole number in range; field 'validation_size'.

  Example:
    >>> split = Split(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int32))
    >>> sorted(hold_out(split, 2)[1].labels.tolist())
    [0, 1]

  Source: ours.
  """
  n = len(split.labels)
  whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
  if not whole or not 0 <= size < n:
    remedy = f'use a whole number from 0 to {n - 1}; there are {n} training examples'
    raise errors.UserError('validation_size', size, remedy)
  if size == 0:  # no copy of what may be more than a gigabyte
    return split, Split(split.images[:0], split.labels[:0])
  order = local.fixed_permutation(n)
  place = np.empty(n)
  for label in np.unique(split.labels):
    members = order[split.labels[order] == label]
    place[members] = (np.arange(len(members)) + 0.5) / len(members)
  # Ties (equal places in several classes) are broken by the same fixed order.
  chosen = order[np.argsort(place[order], kind='stable')[:size]]
  held_out = np.zeros(n, bool)
  held_out[chosen] = True
  return (Split(split.images[~held_out], split.labels[~held_out]),
          Split(split.images[held_out], split.labels[held_out]))


@functools.partial(jax.jit, static_argnames='n')
def epoch_order(key, epoch, n) -> jax.Array:
  """The order in which an epoch visits the training set; depends on (key, epoch) alone.

  order = permutation(fold_in(key, epoch), n)

  Args:
    key: typed PRNG key of the run.
    epoch: which epoch, i32[]; may be traced.
    n: number of examples; static.

  Returns:
    i32[n], a permutation of 0..n−1.

  Example:
    >>> sorted(epoch_order(jax.random.key(0), 3, 4).tolist())
    [0, 1, 2, 3]

  Source: ours.
  """
  return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


def to_unit(images) -> jax.Array:
  """Pixels as the floats that attacks and models see: images / 255, as NumPy rounds it.

  Args:
    images: uint8[...].

  Returns:
    f32[...] in [0, 1], of the same shape.

  Raises:
    TypeError: the images are not uint8, so most likely are scaled already.

  Example:
    >>> to_unit(np.array([0, 51, 255], np.uint8)).tolist() == np.float32([0, 0.2, 1]).tolist()
    True

  Source: ours.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'to_unit takes uint8 pixels in 0..255, not {images.dtype}')
  # XLA turns `/ 255` into a product that misses the quotient of NumPy and PyTorch in the last bit
  # for some pixels. 1/255 = 257/2¹⁶ + 1/(255·2¹⁶): the first product is exact, the second tiny.
  pixels = jnp.asarray(images).astype(jnp.float32)
  return pixels * np.float32(257 / 2**16) + pixels * np.float32(1 / (255 * 2**16))


@functools.partial(jax.jit, static_argnames=('pad', 'flip'))
def augment(images, keys, *, pad=4, flip=True) -> jax.Array:
  """Random crops of the zero-padded images, half of them mirrored.

  x'[i, j] = padded[i + a, j + b], then x'[i, W − 1 − j] with probability 1/2; a, b uniform on
  0..2·pad. Each example's draw depends on its own key alone, not on the batch it is in.

  Args:
    images: [B, H, W, C], usually uint8.
    keys: typed PRNG keys [B], one an example (threefry, JAX's default).
    pad: zeros added on each side; static. 0 does not crop.
    flip: whether to mirror left and right; static.

  Returns:
    [B, H, W, C] of the images' dtype; with pad=0 and flip=False the images themselves.

  Raises:
    TypeError: the keys are not typed threefry keys.
    ValueError: pad is negative.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> augment(np.ones((2, 8, 8, 3), np.uint8), keys, pad=1).shape
    (2, 8, 8, 3)

  Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016,
  section 4.2.
  """
  if pad < 0:
    raise ValueError(f'pad = {pad}: must not be negative')
  # Batched rbg keys draw from the first key only, which would break the promise made above.
  if str(jax.random.key_impl(keys)) != 'threefry2x32':
    raise TypeError("augment needs threefry keys: jax.random.key(seed, impl='threefry2x32')")
  return jax.vmap(functools.partial(_augment_one, pad=pad, flip=flip))(jnp.asarray(images), keys)


def _augment_one(image, key, *, pad, flip):
  # One draw of raw bits, not randint and bernoulli: a third of the time on a CPU. The bias of the
  # remainder is below (2·pad + 1) / 2³².
  bits = jax.random.bits(key, (3,), jnp.uint32)
  if pad:
    offset = (bits[:2] % (2 * pad + 1)).astype(jnp.int32)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    image = jax.lax.dynamic_slice(padded, (offset[0], offset[1], jnp.int32(0)), image.shape)
  return jnp.where(bits[2] & 1, image[:, ::-1], image) if flip else image


def main(argv=None) -> int:
  """Downloads and prepares a data set where needed, reads it, and says what is in it."""
  parser = argparse.ArgumentParser(prog='python -m at_jax.datasets', description=main.__doc__)
  parser.add_argument('name', help=f'digits, {", ".join(TFDS_SETS)}, or a path to a .npz')
  parser.add_argument('--data_dir', help="where to put prepared sets; default: TFDS's own folder")
  args = parser.parse_args(argv)
  try:
    found = load(args.name, data_dir=args.data_dir)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 2
  shape = 'x'.join(str(size) for size in found.train.images.shape[1:])
  print(f'{found.name}: {len(found.train.labels)} to train on, {len(found.test.labels)} to test on,'
        f' {shape}, {found.num_classes} classes')
  return 0

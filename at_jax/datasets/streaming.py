"""Data sets that are read while they are used, for those that do not fit into memory.

TFDS's array_record files are read at random places, by the threads of grain. `load` opens a data set, and
`batches` reads its minibatches ahead.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import functools
import io
import os
from typing import Any

import grain
import numpy as np
from PIL import Image

from at_jax import errors
from at_jax.datasets import local, pipeline, resized_crop, tfds

_THREADS = 16  # that read and decode; Pillow decodes without holding Python's lock
_MIN_AHEAD = 64  # examples


class Images:
  """The images of a split, which are read and decoded when they are indexed, like an array uint8[N, H, W, C].

  Args:
    records: the records of TFDS, whose images are encoded.
    rows: i64[N], the records that belong to the split.
    shape: (H, W, C).
    decode: from an encoded image to uint8[H, W, C].
    guard: context manager that turns errors of reading into one line.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, records: Sequence[dict[str, Any]], rows: np.ndarray, shape: tuple[int, ...],
               decode: Callable[[bytes], np.ndarray], guard: Callable[[], contextlib.AbstractContextManager]):
    self.records, self.rows, self.shape = records, rows, (len(rows), *shape)
    self.guard, self._decode = guard, decode

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
    """Images of a slice, or of i64[M] or bool[N]: uint8[M, H, W, C]."""
    rows = self.rows[index]
    found = np.empty((len(rows), *self.shape[1:]), np.uint8)
    for place, image in enumerate(self.read(rows, lambda record: self._decode(record['image']))):
      found[place] = image
    return found

  def read(self, rows: np.ndarray, take: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    """What a function takes of each of these records, in their order."""
    with self.guard(), futures.ThreadPoolExecutor(_THREADS) as threads:
      yield from threads.map(lambda row: take(self.records[row]), rows)


class Split:
  """A split that is read when it is used; its attributes are those of a `pipeline.Split`.

  Attributes:
    images: the images, decoded when they are indexed.
    labels: i32[N]; the first use reads all records.
  """

  def __init__(self, images: Images):
    self.images = images

  @functools.cached_property
  def labels(self) -> np.ndarray:
    found = self.images.read(self.images.rows, lambda record: record['label'])
    return np.fromiter(found, np.int32, len(self.images))


class TrainSplit(Split):
  """The training split of a stream.

  Args:
    images: the images, as they are outside training.
    augment: `(encoded image, key, step, index) -> uint8[H, W, C]`, where key, step and index are those of
      `resized_crop.draws`.
  """

  def __init__(self, images: Images, augment: Callable[[bytes, int, int, int], np.ndarray]):
    super().__init__(images)
    self._augment = augment

  def example(self, index: int, key: int, step: int) -> tuple[np.ndarray, np.int32]:
    """Reads the example of a minibatch: its image, uint8[H, W, C], and its label."""
    with self.images.guard():
      record = self.images.records[self.images.rows[index]]
      return self._augment(record['image'], key, step, index), np.int32(record['label'])


def load(name: str, *, validation_size: int = 0, data_dir: str | os.PathLike | None = None,
         image_size: int = 0) -> pipeline.Dataset:
  """Opens a TFDS data set as a stream, and prepares it first if needed. No training example is read.

  Validation examples are a fixed random subset: of the validation split, or of the training split if there is
  none, or if it takes the place of the test split. That is so if there is no test split, or one without
  labels, as ImageNet's. Validation examples are decoded once, into memory.

  Args:
    name: as `pipeline.load`; of images of one shape, unless there is an `image_size`.
    validation_size: number of validation examples.
    data_dir: as `pipeline.load`.
    image_size: side of the crops of `resized_crop`, random in training and central otherwise; 0 for images of
      one shape, as they are.

  Returns:
    A `pipeline.Dataset` whose train and test splits are a `TrainSplit` and a `Split` of this module.

  Raises:
    tfds.UnknownName: if TFDS has no such data set.
    UserError: if the data set cannot be read or prepared (field 'dataset'), or `validation_size` is out of
      range.
  """
  builder = tfds.open_builder(name, data_dir, any_shape=image_size > 0)
  feature, classes = builder.info.features['image'], tuple(builder.info.features['label'].names)
  if image_size:
    shape, decode = (image_size, image_size, 3), lambda data: resized_crop.test_image(_open(data), image_size)
    augment = lambda data, *draw: resized_crop.train_image(
        _open(data), image_size, resized_crop.draws(*draw))
  else:
    shape, decode = feature.shape, feature.decode_example_np
    augment = lambda data, *draw: decode(data)
  guard = functools.partial(tfds.reading, name, builder)
  with guard():
    records = {split: tfds.encoded(builder, split) for split in builder.info.splits}
    tested = next((split for split in ('test', 'validation')
                   if split in records and records[split][0]['label'] >= 0), None)
  if tested is None or 'train' not in records:
    raise errors.UserError('dataset', name, f'has the splits {", ".join(records)}, but no train or no test '
                           'with labels: give splits of your own, in a .npz file')
  part = lambda split, rows: Images(records[split], rows, shape, decode, guard)
  held_from = 'validation' if 'validation' in records and tested == 'test' else 'train'
  held_out = _held_out(len(records[held_from]), validation_size, all_but=held_from == 'train')
  rows = np.arange(len(records['train']))
  train = TrainSplit(part('train', np.delete(rows, held_out) if held_from == 'train' else rows), augment)
  validation = Split(part(held_from, held_out))
  return pipeline.Dataset(
      name, train, pipeline.Split(validation.images[:], validation.labels),
      Split(part(tested, np.arange(len(records[tested])))), len(classes), classes)


def _open(data: bytes) -> Image.Image:
  return Image.open(io.BytesIO(data))


def _held_out(n: int, size: int, *, all_but: bool) -> np.ndarray:
  """The rows of a fixed random subset, rising; a smaller one is part of a larger one."""
  largest = n - all_but  # one training example must remain
  pipeline.check_validation_size(size, largest, f'use a whole number from 0 to {largest}')
  return np.sort(local.fixed_permutation(n)[:size])


def batches(split: TrainSplit, order: np.ndarray, first: int, key: int
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Reads minibatches in the background, a few ahead.

  Args:
    split: the training split.
    order: i32[M, B], positions of the examples of each minibatch in the split.
    first: number of the first minibatch, from the start of the run; random crops depend on it.
    key: of the random crops, below 2¹²⁸.

  Returns:
    An iterator of M tuples, images uint8[B, H, W, C] and labels i32[B]; its `close()` ends the threads.
  """
  size = order.shape[1]

  def example(position: int) -> tuple[np.ndarray, np.int32]:
    number, place = divmod(position, size)
    return split.example(int(order[number, place]), key, first + number)

  ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(2 * size, _MIN_AHEAD))
  return iter(grain.MapDataset.range(order.size).map(example).to_iter_dataset(ahead).batch(size))

"""The data of a configuration: read now, or known by their sizes and read when they are used."""

import functools
import os
import re
from typing import Any

import ml_collections

from at_jax import errors
from at_jax.config import import_path
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics

_IMPORT_PATH = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)+')


def read(config: ml_collections.ConfigDict) -> pipeline.Dataset:
  """Reads the data set of a configuration, by name, from a .npz file or from a loader.

  Args:
    config: the configuration. The name `module.function` is that of a loader, a function of `config.dataset`.

  Returns:
    The data set.

  Raises:
    errors.UserError: if it cannot be read.
  """
  name, drop = config.dataset.name, config.dataset.drop_class
  options = dict(validation_size=config.dataset.validation_size, drop_class=None if drop < 0 else drop)
  is_loader = _IMPORT_PATH.fullmatch(name) and not name.endswith('.npz')
  if not name.endswith('.npz') and os.path.isfile(os.path.expanduser(name)):
    raise errors.UserError('config.dataset.name', name, 'files cannot be read, except .npz files: store '
                           'the arrays with numpy.savez, or name a loader module.function')
  loader = import_path.load('dataset.name', name, takes=('options',)) if is_loader else None
  try:
    if config.dataset.source == 'stream':
      return _open_stream(config.dataset)
    if loader:
      try:
        arrays = loader(config.dataset)
      except errors.UserError:
        raise
      except Exception as error:  # a function of the user's own may raise anything
        raise errors.UserError('dataset', name, f'{import_path.reason(error)}: it is called with '
                               'config.dataset, and returns the arrays') from error
      return pipeline.from_arrays(name, arrays, **options)
    return pipeline.load(name, data_dir=config.dataset.data_dir or None, **options)
  except errors.UserError as error:
    field = {'dataset': 'dataset.name', 'validation_size': 'dataset.validation_size',
             'dataset.source': 'dataset.source', 'drop_class': 'dataset.drop_class'}.get(error.field)
    raise errors.UserError(f'config.{field}', error.value, error.remedy) if field else error from error


def _open_stream(options: ml_collections.ConfigDict) -> pipeline.Dataset:
  try:
    from at_jax.datasets import streaming, tfds  # need packages that other data sets do not
  except ImportError as error:
    raise errors.UserError('dataset.source', 'stream', f'needs a package that is missing ({error}): '
                           "pip install 'at_jax[stream]'") from error
  try:
    return streaming.load(options.name, validation_size=options.validation_size,
                          data_dir=options.data_dir or None,
                          image_size=options.image_size if options.augment == 'resized_crop' else 0)
  except tfds.UnknownName as error:
    raise errors.UserError('dataset', options.name, "a stream needs a data set of TFDS: use its name, or "
                           "dataset.source = 'device'") from error


def info(dataset: pipeline.Dataset | pipeline.DeferredDataset) -> dict[str, Any]:
  """Returns what a checkpoint stores of its data.

  With the sizes, `restore` builds the run without its data. By the digest, a .npz file that was moved is
  identified.

  Args:
    dataset: the data set.

  Returns:
    A JSON object.

  Example:
    >>> info(pipeline.load('digits'))
    {'image_shape': [8, 8, 1], 'train_size': 1400}
  """
  found = {'image_shape': list(dataset.image_shape), 'train_size': dataset.train_size}
  return found | ({'digest': dataset.digest} if dataset.digest else {})


def identity(dataset: pipeline.Dataset) -> dict[str, Any]:
  """Returns what two processes compare of their data.

  Args:
    dataset: the data set.

  Returns:
    `info`, and a digest of the labels of each split in their order; none of a stream, whose labels are in its
    files.

  Example:
    >>> data = pipeline.load('digits')
    >>> identity(data) == identity(data)
    True
  """
  splits = {'train': dataset.train, 'validation': dataset.validation, 'test': dataset.test}
  held = {name: split.labels for name, split in splits.items() if isinstance(split, pipeline.Split)}
  return info(dataset) | {f'{name} labels': metrics.digests(labels) for name, labels in held.items()}


def known_sizes(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
  """Returns the sizes of a data set that are known by its name, without reading it.

  Args:
    config: the configuration.

  Returns:
    As `info`; None if the sizes are not known by name, or if a class is left out.

  Raises:
    errors.UserError: if no training example would be left.

  Example:
    >>> from at_jax import config
    >>> known_sizes(config.default())
    {'image_shape': (32, 32, 3), 'train_size': 49000}
  """
  c, name, held_out = config.dataset, config.dataset.name, config.dataset.validation_size
  sizes = pipeline.SIZES
  if c.augment == 'resized_crop':
    sizes = {'imagenet2012': ((c.image_size, c.image_size, 3), pipeline.IMAGENET_SIZE)}
  if name not in sizes or c.drop_class >= 0:
    return None
  shape, whole = sizes[name]
  if held_out >= whole:
    raise errors.UserError('config.dataset.validation_size', held_out, 'use a whole number from 0 to '
                           f'{whole - 1}; there are {whole} training examples')
  return {'image_shape': shape, 'train_size': whole - held_out}


def deferred(config: ml_collections.ConfigDict, known: dict[str, Any]) -> pipeline.DeferredDataset:
  """Makes a data set of known sizes, which is read when its examples are first used.

  Args:
    config: the configuration.
    known: what `info` returns of it.

  Returns:
    The data set.
  """
  return pipeline.DeferredDataset(
      config.dataset.name, config.dataset.num_classes, known['image_shape'], known['train_size'],
      functools.partial(read, config), known.get('digest', ''))

"""Reads TFDS data sets into host arrays; downloads and prepares them without TensorFlow.

TFDS reads array_record files without TensorFlow, but its preparation uses TensorFlow in two places: to encode
images given as arrays, and to open downloaded files (`tf.io.gfile`). This module converts array images to PIL
images, which TFDS encodes without TensorFlow, and replaces `tf` by a substitute of two functions while
preparing. Everything else is stock TFDS, and so are the prepared files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import importlib.resources.abc
import io
import logging
import os
import sys
import types
from typing import Any
import zipfile

from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core.download import checksums, download_manager, downloader, extractor, util

from at_jax import errors
from at_jax.datasets import local

_CHUNK = 1000  # number of records read at once: half the time of single reads, little memory
_ROOT = 'tiny-imagenet-200'  # folder in the archive
_NETWORK_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError,
                   extractor.ExtractError, util.DownloadError,
                   download_manager.NonMatchingChecksumError)
_READ_ERRORS = (OSError, RuntimeError, ValueError, IndexError, KeyError)


class UnknownName(Exception):
  """TFDS has no data set of this name."""


def read(name: str, *, data_dir: str | os.PathLike | None = None) -> local.Arrays:
  """Reads the train, validation (if any) and test splits of a TFDS data set, and prepares it first if needed.

  Args:
    name: a TFDS data set with the features `image` (of one shape) and `label` (a class), also with a
      configuration ('emnist/letters'), or 'tiny_imagenet'.
    data_dir: folder of the prepared data sets; None for the default of TFDS.

  Returns:
    `local.Arrays`, images uint8[N, H, W, C], labels int32[N], in the order in which TFDS stores them.

  Raises:
    UnknownName: if TFDS has no such data set.
    UserError: if it is not of images of one shape with classes, or cannot be downloaded or read (field
      'dataset').

  Reference: www.tensorflow.org/datasets/catalog.
  """
  builder = open_builder(name, data_dir)
  missing = [split for split in ('train', 'test') if split not in builder.info.splits]
  if missing:
    remedy = (f'has no split {missing[0]} but {", ".join(builder.info.splits)}: '
              'give a split of your own, in a .npz file')
    raise errors.UserError('dataset', name, remedy)
  with reading(name, builder):
    splits = {split: _examples(builder, split) for split in ('train', 'validation', 'test')
              if split in builder.info.splits}
    return local.Arrays(splits['train'], splits.get('validation'), splits['test'],
                        tuple(builder.info.features['label'].names))


def open_builder(name: str, data_dir: str | os.PathLike | None, *, any_shape: bool = False
                 ) -> dataset_builder.DatasetBuilder:
  """Opens a data set, and prepares it first if needed.

  Args:
    name: as `read`.
    data_dir: as `read`.
    any_shape: take images of several shapes.

  Returns:
    The builder of TFDS, whose data are prepared.

  Raises:
    UnknownName, UserError: as `read`.
  """
  builder = _builder(name, data_dir)
  _check_features(name, builder, any_shape)
  if not _is_prepared(builder):
    _prepare(name, builder)
    builder = _builder(name, data_dir)  # a builder reads the folder only when it is created
  return builder


def encoded(builder: dataset_builder.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
  """Opens a split whose images are left encoded.

  Args:
    builder: of a prepared data set.
    split: name of the split.

  Returns:
    The records, in the order of the files, with `image`, bytes, and `label`.
  """
  return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


@contextlib.contextmanager
def reading(name: str, builder: dataset_builder.DatasetBuilder) -> Iterator[None]:
  """Turns errors of the prepared files into one line.

  Args:
    name: name of the data set.
    builder: its builder.

  Raises:
    UserError: if files have no random access, or cannot be read (field 'dataset').
  """
  try:
    yield
  except NotImplementedError as error:  # raised by TFDS if the file format has no random access
    remedy = (f'is prepared in {builder.data_path} as {builder.info.file_format.value}, not as '
              'array_record: use another data_dir, or move that folder away to prepare it again')
    raise errors.UserError('dataset', name, remedy) from error
  except _READ_ERRORS as error:
    remedy = (f'the prepared files in {builder.data_path} cannot be read ({_brief(error)}): '
              'move that folder away and run again')
    raise errors.UserError('dataset', name, remedy) from error


def _builder(name: str, data_dir: str | os.PathLike | None) -> dataset_builder.DatasetBuilder:
  if name == 'tiny_imagenet':
    return TinyImagenet(data_dir=data_dir)
  try:
    return tfds.builder(name, data_dir=data_dir)
  except Exception as error:  # the module of a data set may raise errors of any type
    if isinstance(error, tfds.core.registered.DatasetNotFoundError) or 'Parsing builder name' in str(error):
      raise UnknownName(name) from error
    raise errors.UserError('dataset', name, f'TFDS cannot open it ({_brief(error)}): check the name, or give '
                           'the images as a .npz file') from error


def _check_features(name: str, builder: dataset_builder.DatasetBuilder, any_shape: bool) -> None:
  """Images of one shape (or of any, in colour), and one class for each."""
  features = builder.info.features
  names = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
  image, label = (features[key] if key in names else None for key in ('image', 'label'))
  reason = ''
  if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
    reason = f'has the features {", ".join(names) or features}, not `image` and `label`'
  elif None in image.shape and not any_shape:
    reason = f'has images of shape {image.shape}, which are not of one shape'
  elif image.np_dtype != np.uint8:
    reason = f'has images of {np.dtype(image.np_dtype)}, not of uint8'
  if reason:
    stream = ("; dataset.source = 'stream' with dataset.augment = 'resized_crop' gives them one"
              if 'of one shape' in reason else '')
    raise errors.UserError('dataset', name, f'{reason}: convert it to a .npz file with uint8 images of '
                           f'one shape{stream}')


def _is_prepared(builder: dataset_builder.DatasetBuilder) -> bool:
  return (builder.data_path / 'dataset_info.json').exists()  # TFDS writes it last


def _examples(builder: dataset_builder.DatasetBuilder, split: str) -> local.Examples:
  source = builder.as_data_source(split)
  images = np.empty((len(source), *builder.info.features['image'].shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _CHUNK):
    records = source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))
    images[start:start + len(records)] = [record['image'] for record in records]
    labels[start:start + len(records)] = [record['label'] for record in records]
  return images, labels


def _prepare(name: str, builder: dataset_builder.DatasetBuilder) -> None:
  """Downloads and writes the data set. TFDS renames the finished folder, so no folder is incomplete."""
  stock = builder._generate_examples
  builder._generate_examples = lambda *args, **kwargs: _as_pil(stock(*args, **kwargs))
  # The copy in Google's cloud storage is in TFRecords, which need TensorFlow.
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  retries = logging.getLogger('urllib3')
  level = retries.level
  retries.setLevel(logging.ERROR)  # without a network, the user sees one message only
  try:
    with _substitutes(sys.modules[type(builder).__module__]):
      builder.download_and_prepare(download_config=config, file_format='array_record')
  except Exception as error:  # the code of a data set may raise errors of any type
    if _is_prepared(builder):  # by another process in the meantime
      return
    folder = builder.data_path.parents[1 + bool(builder.builder_config)]
    remedy = (f'is not prepared in {folder} and could not be downloaded ({_brief(error)}): on a '
              f'machine with a network run `python -m at_jax.datasets {name} '
              f'--data_dir={folder}` and copy the folder {builder.name} here; or use '
              "'digits', which needs no download")
    if not isinstance(error, _NETWORK_ERRORS):
      remedy = (f'could not be prepared without TensorFlow ({_brief(error)}): where TensorFlow is installed '
                f'run `tfds build {name} --file_format=array_record --data_dir={folder}`, or give the '
                'images as a .npz file')
    raise errors.UserError('dataset', name, remedy) from error
  finally:
    retries.setLevel(level)


def _as_pil(examples: Iterable[tuple[Any, dict]]) -> Iterator[tuple[Any, dict]]:
  """The examples with array images as PIL images, which TFDS encodes without TensorFlow."""
  for key, example in examples:
    image = example['image']
    if isinstance(image, np.ndarray):
      grey = image.shape[-1] == 1
      example = {**example, 'image': Image.fromarray(image[..., 0] if grey else image)}
    yield key, example


@contextlib.contextmanager
def _substitutes(stock: types.ModuleType) -> Iterator[None]:
  """Replaces what TFDS uses of packages that may be missing, here and in the builder's module `stock`."""
  gfile = types.SimpleNamespace(GFile=lambda path, mode='r': epath.Path(path).open(mode))
  tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile),
                             compat=types.SimpleNamespace(as_text=str))
  substitutes = [
      (extractor, 'tf', tf),
      (stock, 'tf', tf),
      # A backport of a standard module, which TFDS 4.9.10 uses but does not require.
      (dataset_builder, 'importlib_resources', importlib.resources),
      (downloader, 'MAX_RETRIES', 5),  # 10 retries take over three minutes without a network
  ]
  replaced = [(module, name, value, vars(module)[name]) for module, name, value in substitutes
              if name in vars(module)]
  try:
    for module, name, value, _ in replaced:
      setattr(module, name, value)
    yield
  finally:
    for module, name, _, original in replaced:
      setattr(module, name, original)


def _brief(error: Exception) -> str:
  """The error (for a failed connection, its reason) in one line of at most 200 characters."""
  error = getattr(error.args[0], 'reason', error) if error.args else error
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= 200 else f'{text[:200]}…'


with tfds.core.registered.skip_registration():  # the user may have registered this name

  class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet: 200 classes of ImageNet at 64×64, with 100,000 training and 10,000 test images.

    The split 'test' is the archive's `val`, as is usual, because the labels of its test split are not public.
    Labels are indices into the sorted WordNet ids. The archive (248 MB) is downloaded, or read from
    <data_dir>/downloads/manual/tiny-imagenet-200.zip if it is there.

    Reference: Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, Stanford, 2015.
    """

    name = 'tiny_imagenet'
    VERSION = tfds.core.Version('1.0.0')
    URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
    # TFDS verifies the archive with these, whether it was downloaded or copied by the user.
    url_infos = {URL: checksums.UrlInfo(
        size=248_100_043, filename='tiny-imagenet-200.zip',
        checksum='6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821')}

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
          builder=self,
          description='Tiny-ImageNet; the split `test` is the validation split of the archive.',
          features=tfds.features.FeaturesDict({
              'id': tfds.features.Text(),
              'image': tfds.features.Image(shape=(64, 64, 3), encoding_format='jpeg'),
              'label': tfds.features.ClassLabel(num_classes=200),
          }),
          supervised_keys=('image', 'label'),
          homepage='http://cs231n.stanford.edu/')

    def _split_generators(self, dl_manager: download_manager.DownloadManager) -> dict[str, Iterator]:
      archive = dl_manager.download(self.URL)
      with zipfile.ZipFile(archive) as opened:
        ids = sorted(_lines(opened, 'wnids.txt'))
        words = dict(line.split('\t', 1) for line in _lines(opened, 'words.txt'))
        annotations = [line.split('\t')[:2] for line in _lines(opened, 'val/val_annotations.txt')]
        images = sorted(name for name in opened.namelist() if name.endswith('.JPEG'))
      # A class name is the id, which is unique, and the first of its synonyms.
      self.info.features['label'].names = [
          f'{wnid} {words[wnid].split(",")[0]}' if wnid in words else wnid for wnid in ids]
      number = {wnid: i for i, wnid in enumerate(ids)}
      train = {name: number[name.split('/')[2]] for name in images
               if name.startswith(f'{_ROOT}/train/')}
      test = {f'{_ROOT}/val/images/{name}': number[wnid] for name, wnid in annotations}
      return {'train': self._generate_examples(archive, train),
              'test': self._generate_examples(archive, test)}

    def _generate_examples(
        self, archive: os.PathLike, labels: Mapping[str, int]) -> Iterator[tuple[str, dict]]:
      with zipfile.ZipFile(archive) as opened:
        for name, label in labels.items():
          example_id = name.rsplit('/', 1)[1]
          yield example_id, {
              'id': example_id, 'label': label, 'image': _rgb_file(opened.read(name))}


def _lines(archive: zipfile.ZipFile, name: str) -> list[str]:
  return archive.read(f'{_ROOT}/{name}').decode('utf-8').splitlines()


def _rgb_file(encoded: bytes) -> io.BytesIO:
  """The JPEG itself if it is RGB, else (some are grey) a lossless RGB PNG of it."""
  with Image.open(io.BytesIO(encoded)) as picture:
    if picture.mode == 'RGB':
      return io.BytesIO(encoded)
    converted = io.BytesIO()
    picture.convert('RGB').save(converted, format='png')
    return io.BytesIO(converted.getvalue())

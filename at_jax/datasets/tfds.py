"""TFDS sets as host arrays: downloaded, prepared and read without TensorFlow.

TFDS reads array_record files without TensorFlow, but its stock preparation calls TensorFlow in two
places. Images given as arrays are encoded by it: so they are handed over as PIL images. Downloaded
files are opened with `tf.io.gfile`: so while preparing, a stand-in of two functions takes the place
of `tf`. All else, and so the prepared set, is stock TFDS. Imported by `at_jax.datasets`, when needed.
"""

import contextlib
import importlib.resources.abc
import io
import logging
import sys
import types
import zipfile

from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core.download import checksums, download_manager, downloader, extractor, util

from at_jax import errors

_CHUNK = 1000  # records decoded at once: a chunk of dicts is small beside the array they go into
_PREPARE_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError,
                   extractor.ExtractError, util.DownloadError,
                   download_manager.NonMatchingChecksumError)
_READ_ERRORS = (OSError, RuntimeError, ValueError, IndexError, KeyError)


def read(name, *, data_dir=None) -> tuple[tuple, tuple, tuple[str, ...]]:
  """Reads the train and test splits of a TFDS set, preparing the set first if it is not there.

  Args:
    name: a TFDS set with the features `image` (of one shape) and `label`, or 'tiny_imagenet'.
    data_dir: folder of the prepared sets; TFDS's own default where None.

  Returns:
    (images, labels) of train, (images, labels) of test, and the class names; images
    uint8[N, H, W, C], labels int32[N], in the order in which TFDS stores them.

  Raises:
    UserError: field 'dataset'; not prepared and not to be downloaded, or not readable.

  Example (downloads 11 MB the first time):
    >>> (images, labels), test, names = read('mnist')  # doctest: +SKIP
    >>> images.shape, names[:3]  # doctest: +SKIP
    ((60000, 28, 28, 1), ('0', '1', '2'))

  Source: ours; the sets are those of www.tensorflow.org/datasets/catalog.
  """
  builder = _builder(name, data_dir)
  if not _is_prepared(builder):
    _prepare(builder)
    builder = _builder(name, data_dir)  # a builder reads what is on disk when it is made
  try:
    return (_arrays(builder, 'train'), _arrays(builder, 'test'),
            tuple(builder.info.features['label'].names))
  except NotImplementedError as error:  # TFDS's way to say that the files allow no random access
    remedy = (f'is prepared in {builder.data_path} as {builder.info.file_format.value}, not as '
              'array_record: take another data_dir, or move that folder away to prepare it anew')
    raise errors.UserError('dataset', name, remedy) from error
  except _READ_ERRORS as error:
    remedy = (f'the prepared files in {builder.data_path} cannot be read ({_brief(error)}): '
              'move that folder away and run again')
    raise errors.UserError('dataset', name, remedy) from error


def _builder(name, data_dir):
  if name == 'tiny_imagenet':
    return TinyImagenet(data_dir=data_dir)
  return tfds.builder(name, data_dir=data_dir)


def _is_prepared(builder):
  return (builder.data_path / 'dataset_info.json').exists()  # written last


def _arrays(builder, split):
  """(uint8[N, H, W, C], int32[N]) of one split."""
  source = builder.as_data_source(split)
  images = np.empty((len(source), *builder.info.features['image'].shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _CHUNK):
    # By the chunk this is half the time of reading one by one.
    records = source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))
    images[start:start + len(records)] = [record['image'] for record in records]
    labels[start:start + len(records)] = [record['label'] for record in records]
  return images, labels


def _prepare(builder):
  """Downloads and writes the set. TFDS renames a finished folder into place, so none is partial."""
  stock = builder._generate_examples
  builder._generate_examples = lambda *args, **kwargs: _as_pil(stock(*args, **kwargs))
  # Not the copy in Google's cloud storage: it is in TFRecords and needs TensorFlow.
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  retries = logging.getLogger('urllib3')
  level = retries.level
  retries.setLevel(logging.ERROR)  # if there is no network, one line says so
  try:
    with _stand_ins(sys.modules[type(builder).__module__]):
      builder.download_and_prepare(download_config=config, file_format='array_record')
  except _PREPARE_ERRORS as error:
    if _is_prepared(builder):  # another process of this run was faster; its folder is complete
      return
    folder = builder.data_path.parent.parent
    remedy = (f'is not prepared in {folder} and could not be downloaded ({_brief(error)}): on a '
              f'machine with a network run `python -m at_jax.datasets {builder.name} '
              f'--data_dir={folder}` and copy the folder {builder.name} here; or take '
              "'digits', which needs no download")
    raise errors.UserError('dataset', builder.name, remedy) from error
  finally:
    retries.setLevel(level)


def _as_pil(examples):
  """The same examples with each array image as a PIL image, which TFDS encodes by itself."""
  for key, example in examples:
    image = example['image']
    if isinstance(image, np.ndarray):
      grey = image.shape[-1] == 1
      example = {**example, 'image': Image.fromarray(image[..., 0] if grey else image)}
    yield key, example


@contextlib.contextmanager
def _stand_ins(stock):
  """Replaces, while preparing, what TFDS calls of packages that need not be installed."""
  gfile = types.SimpleNamespace(GFile=lambda path, mode='r': epath.Path(path).open(mode))
  tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile),
                             compat=types.SimpleNamespace(as_text=str))
  wanted = [
      (extractor, 'tf', tf),
      (stock, 'tf', tf),
      # The backport of a standard module, which TFDS 4.9.10 uses but does not require.
      (dataset_builder, 'importlib_resources', importlib.resources),
      (downloader, 'MAX_RETRIES', 5),  # 10 take over three minutes to say that there is no network
  ]
  replaced = [(module, name, vars(module)[name]) for module, name, _ in wanted
              if name in vars(module)]
  try:
    for module, name, value in wanted:
      if name in vars(module):
        setattr(module, name, value)
    yield
  finally:
    for module, name, value in replaced:
      setattr(module, name, value)


def _brief(error):
  """One line of at most 200 characters; of a failed connection, its reason."""
  error = getattr(error.args[0], 'reason', error) if error.args else error
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= 200 else f'{text[:200]}…'


with tfds.core.registered.skip_registration():  # a set of this name of the user's may be registered

  class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet: 200 classes of ImageNet at 64×64; 100,000 to train, 10,000 to test.

    The split called 'test' is the archive's `val`, as is usual: the labels of its own test split
    are not public. Labels number the sorted WordNet ids. The zip is downloaded, or taken from
    <data_dir>/downloads/manual/tiny-imagenet-200.zip.

    Example (downloads 248 MB):
      >>> TinyImagenet().download_and_prepare(file_format='array_record')  # doctest: +SKIP

    Source: Le and Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, Stanford, 2015.
    """

    name = 'tiny_imagenet'
    VERSION = tfds.core.Version('1.0.0')
    URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
    # What TFDS checks the zip against, be it downloaded or put there by hand.
    url_infos = {URL: checksums.UrlInfo(
        size=248_100_043, filename='tiny-imagenet-200.zip',
        checksum='6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821')}

    def _info(self):
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

    def _split_generators(self, dl_manager):
      archive = dl_manager.download(self.URL)
      with zipfile.ZipFile(archive) as opened:
        ids = sorted(_lines(opened, 'wnids.txt'))
        words = dict(line.split('\t', 1) for line in _lines(opened, 'words.txt'))
        annotations = [line.split('\t')[:2] for line in _lines(opened, 'val/val_annotations.txt')]
        pictures = sorted(name for name in opened.namelist() if name.endswith('.JPEG'))
      # The id makes a name unique; the first of the synonyms makes it readable.
      self.info.features['label'].names = [
          f'{wnid} {words[wnid].split(",")[0]}' if wnid in words else wnid for wnid in ids]
      number = {wnid: i for i, wnid in enumerate(ids)}
      train = {name: number[name.split('/')[2]] for name in pictures
               if name.startswith(f'{_ROOT}/train/')}
      test = {f'{_ROOT}/val/images/{name}': number[wnid] for name, wnid in annotations}
      return {'train': self._generate_examples(archive, train),
              'test': self._generate_examples(archive, test)}

    def _generate_examples(self, archive, labels):
      with zipfile.ZipFile(archive) as opened:
        for name, label in labels.items():
          example_id = name.rsplit('/', 1)[1]
          yield example_id, {
              'id': example_id, 'label': label, 'image': _rgb_file(opened.read(name))}
_ROOT = 'tiny-imagenet-200'


def _lines(archive, name):
  return archive.read(f'{_ROOT}/{name}').decode('utf-8').splitlines()


def _rgb_file(encoded):
  """The JPEG as it is; one that is not in colour (some are grey) as a lossless PNG in RGB."""
  with Image.open(io.BytesIO(encoded)) as picture:
    if picture.mode == 'RGB':
      return io.BytesIO(encoded)
    converted = io.BytesIO()
    picture.convert('RGB').save(converted, format='png')
    return io.BytesIO(converted.getvalue())

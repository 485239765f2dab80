"""Tests of at_jax.data: what is read, what is refused, and the draws of the augmentation.

The TFDS path runs whole and offline: tiny archives in the original formats are served by an HTTP
server on this machine, and TFDS downloads, verifies, prepares and reads them back.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import threading
import zipfile

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import data, errors

# The published sizes: LeCun et al. 1998; Xiao et al. 2017; Krizhevsky 2009.
PUBLISHED = {
    'mnist': ((60000, 28, 28, 1), (10000, 28, 28, 1), 10),
    'fashion_mnist': ((60000, 28, 28, 1), (10000, 28, 28, 1), 10),
    'cifar10': ((50000, 32, 32, 3), (10000, 32, 32, 3), 10),
    'cifar100': ((50000, 32, 32, 3), (10000, 32, 32, 3), 100),
}


def _same(split, other):
  np.testing.assert_array_equal(split.images, other.images)
  np.testing.assert_array_equal(split.labels, other.labels)


def _rows(split):
  """The examples of a split as a sorted list, to compare sets whose order may differ."""
  return sorted((int(y), x.tobytes()) for x, y in zip(split.images, split.labels, strict=True))


# Order, scaling, augmentation.

_traced_order = jax.jit(lambda key, epoch, n: data.epoch_order(key, epoch, n), static_argnums=2)


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.sampled_from([1, 17, 200]))
def test_epoch_order_is_a_permutation_and_a_function_of_key_and_epoch(seed, epoch, n):
  key = jax.random.key(seed)
  order = data.epoch_order(key, epoch, n)
  assert order.dtype == jnp.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(n))
  np.testing.assert_array_equal(order, _traced_order(key, jnp.int32(epoch), n))


def test_epoch_order_differs_between_epochs_and_keys():
  orders = [data.epoch_order(jax.random.key(s), e, 100).tolist() for s in (0, 1) for e in (0, 1)]
  assert len({tuple(order) for order in orders}) == 4


def test_to_unit_divides_by_255_and_keeps_the_shape():
  pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
  for function in (data.to_unit, jax.jit(data.to_unit)):
    unit = function(pixels)
    assert unit.dtype == jnp.float32
    np.testing.assert_array_equal(unit, pixels.astype(np.float32) / np.float32(255))  # exactly
  with pytest.raises(TypeError, match='float32'):
    data.to_unit(np.zeros((2, 2), np.float32))


def _crops(image, pad, flip):
  """Every result that augmentation may give of one image, by slow NumPy."""
  height, width, _ = image.shape
  padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
  padded[pad:pad + height, pad:pad + width] = image
  for top in range(2 * pad + 1):
    for left in range(2 * pad + 1):
      crop = padded[top:top + height, left:left + width]
      yield (top, left, False), crop
      if flip:
        yield (top, left, True), crop[:, ::-1]


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 2]), st.booleans(),
                  st.sampled_from([(4, 4, 1), (5, 3, 3)]))
def test_augment_gives_a_crop_of_the_padded_image(seed, pad, flip, shape):
  images = np.random.RandomState(seed % 2**31).randint(1, 256, (3, *shape)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(seed), 3)
  results = np.asarray(data.augment(images, keys, pad=pad, flip=flip))
  assert results.dtype == np.uint8
  for image, result in zip(images, results, strict=True):
    assert any(np.array_equal(result, crop) for _, crop in _crops(image, pad, flip))


def test_augment_draws_every_crop_about_equally_often():
  n, pad = 4000, 1
  image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
  keys = jax.random.split(jax.random.key(1), n)
  results = np.asarray(data.augment(np.repeat(image[None], n, 0), keys, pad=pad))
  found = {crop.tobytes(): 0 for _, crop in _crops(image, pad, True)}
  assert len(found) == 18  # 3 rows × 3 columns × 2, all different for these pixels
  for result in results:
    found[result.tobytes()] += 1
  # Binomial(4000, 1/18): mean 222, standard deviation 14.5; five of them to either side.
  assert all(abs(count - n / 18) < 5 * (n / 18 * 17 / 18) ** 0.5 for count in found.values())


def test_augment_does_not_depend_on_the_batch():
  images = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(3), 6)
  whole = np.asarray(data.augment(images, keys))
  order = np.array([4, 1, 5, 0])
  np.testing.assert_array_equal(data.augment(images[order], keys[order]), whole[order])
  np.testing.assert_array_equal(data.augment(images[2:3], keys[2:3]), whole[2:3])
  halves = jax.vmap(data.augment)(images.reshape(2, 3, 8, 8, 3), keys.reshape(2, 3))
  np.testing.assert_array_equal(halves.reshape(whole.shape), whole)
  np.testing.assert_array_equal(jax.jit(lambda x, k: data.augment(x, k))(images, keys), whole)


def test_augment_without_padding_and_mirroring_is_the_identity():
  images = np.random.RandomState(0).randint(0, 256, (4, 5, 7, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(0), 4)
  np.testing.assert_array_equal(data.augment(images, keys, pad=0, flip=False), images)


def test_augment_refuses_what_would_break_its_promise():
  images = np.zeros((2, 4, 4, 1), np.uint8)
  with pytest.raises(TypeError, match='threefry'):
    data.augment(images, jax.random.split(jax.random.key(0, impl='rbg'), 2))
  with pytest.raises(ValueError, match='pad = -1'):
    data.augment(images, jax.random.split(jax.random.key(0), 2), pad=-1)


# Digits, validation, names.


def test_digits_are_scikit_learns_under_a_fixed_split():
  from sklearn import datasets
  whole = datasets.load_digits()
  digits = data.load('digits')
  assert digits.train.images.shape == (1400, 8, 8, 1) and digits.test.images.shape == (397, 8, 8, 1)
  assert digits.validation.images.shape == (0, 8, 8, 1)
  assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
  assert digits.class_names == tuple('0123456789') and digits.num_classes == 10
  both = data.Split(*(np.concatenate(pair) for pair in zip(digits.train, digits.test)))
  expected = data.Split(np.round(whole.images * 255 / 16).astype(np.uint8), whole.target)
  assert _rows(both) == _rows(expected)
  assert both.images.max() == 255  # their 16


def test_validation_is_held_out_of_train_only():
  whole, digits = data.load('digits'), data.load('digits', validation_size=200)
  _same(whole.test, digits.test)
  assert len(digits.validation.labels) == 200 and len(digits.train.labels) == 1200
  both = data.Split(*(np.concatenate(pair) for pair in zip(digits.train, digits.validation)))
  assert _rows(both) == _rows(whole.train)
  _same(digits.validation, data.load('digits', validation_size=200).validation)


@hypothesis.given(st.integers(0, 59), st.integers(0, 2**32 - 1))
def test_hold_out_is_stratified_and_nested(size, seed):
  labels = np.random.RandomState(seed).randint(0, 4, 60).astype(np.int32)
  split = data.Split(np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), labels)
  rest, held_out = data.hold_out(split, size)
  assert len(held_out.labels) == size and len(rest.labels) == 60 - size
  for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
    assert abs((held_out.labels == label).sum() - size * count / 60) <= 1
  smaller = data.hold_out(split, size // 2)[1]
  assert set(smaller.images.ravel()) <= set(held_out.images.ravel())


@pytest.mark.parametrize('size', [-1, 1400, 10**9, 0.5, True, None, '10'])
def test_validation_size_out_of_range(size):
  with pytest.raises(errors.UserError, match='whole number from 0 to 1399') as caught:
    data.load('digits', validation_size=size)
  assert caught.value.field == 'validation_size'


def test_unknown_name_says_which_was_meant():
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'.*digits.*npz") as caught:
    data.load('cifar_10')
  assert caught.value.field == 'dataset' and '\n' not in str(caught.value)


# Packed sets.


def _packed(**changes):
  arrays = {
      'train_images': np.arange(5 * 4 * 3 * 3, dtype=np.uint8).reshape(5, 4, 3, 3),
      'train_label': np.array([0, 1, 2, 1, 0]),
      'test_images': np.ones((2, 4, 3, 3), np.uint8),
      'test_label': np.array([2, 3], np.uint8),
  }
  return {key: value for key, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize('changes, names', [
    ({}, ('0', '1', '2', '3')),
    ({'label_names': np.array(['a', 'b', 'c', 'd', 'e'])}, tuple('abcde')),
    ({'label_names': np.array([b'a', b'b', b'c', b'd'])}, tuple('abcd')),
    ({'train_label': None, 'train_labels': np.array([0., 1, 2, 1, 0])}, ('0', '1', '2', '3')),
    ({'unrelated': np.array([object()])}, ('0', '1', '2', '3')),
])
def test_packed_set(tmp_path, changes, names):
  path, arrays = tmp_path / 'set.npz', _packed(**changes)
  np.savez_compressed(path, **arrays)
  found = data.load(str(path), validation_size=1)
  assert found.class_names == names and found.num_classes == len(names)
  assert len(found.train.labels) == 4 and len(found.validation.labels) == 1
  _same(found.test, data.Split(arrays['test_images'], arrays['test_label']))
  assert found.test.labels.dtype == np.int32
  whole = data.load(path)
  _same(whole.train, data.Split(arrays['train_images'], [0, 1, 2, 1, 0]))


def test_packed_grey_images_gain_a_channel(tmp_path):
  path = tmp_path / 'grey.npz'
  arrays = _packed(train_images=np.ones((5, 4, 3), np.uint8),
                   test_images=np.ones((2, 4, 3, 1), np.uint8))
  np.savez(path, **arrays)
  assert data.load(path).train.images.shape == (5, 4, 3, 1)


_FLOATS = np.zeros((5, 4, 3, 3), np.float32)
BAD = {
    'missing key': ({'test_images': None}, r'has no test_images: .*train_images, train_label'),
    'missing label': ({'train_label': None}, 'has no train_label'),
    'float images': ({'train_images': _FLOATS}, r'train_images is float32: store uint8.*0\.\.255'),
    'nan images': ({'train_images': _FLOATS + np.nan}, 'train_images is float32 and holds NaN'),
    'int64 images': ({'test_images': np.ones((2, 4, 3, 3), int)}, 'test_images is int64'),
    'flat images': ({'train_images': np.ones((5, 36), np.uint8)}, r'has shape \(5, 36\): store'),
    'no images': ({'train_images': np.ones((0, 4, 3, 3), np.uint8), 'train_label': np.ones(0, int)},
                  'train_images is empty'),
    'no pixels': ({'train_images': np.ones((5, 0, 3, 3), np.uint8)}, 'train_images is empty'),
    'lengths': ({'train_label': np.zeros(4, int)}, 'has 5 examples and train_label 4'),
    'no labels': ({'train_label': np.zeros(0, int)}, 'train_label is empty'),
    'one-hot': ({'train_label': np.eye(5, dtype=int)}, r'train_label has shape \(5, 5\)'),
    'negative': ({'train_label': np.array([0, 1, -2, 1, 0])}, 'negative label -2'),
    'fractions': ({'train_label': np.array([0, 1, .5, 1, 0])}, 'train_label .* not whole'),
    'nan label': ({'train_label': np.array([0, 1, np.nan, 1, 0])}, 'train_label holds NaN'),
    'inf label': ({'train_label': np.array([0, 1, np.inf, 1, 0])}, 'train_label .* not whole'),
    'text label': ({'train_label': np.array(list('abcde'))}, 'train_label is <U1'),
    'identifiers': ({'test_label': np.array([0, 10**12])}, 'holds the label 1000000000000'),
    'beyond names': ({'label_names': np.array(['a', 'b', 'c'])}, 'label 3 but 3 label_names'),
    'name numbers': ({'label_names': np.arange(4)}, 'label_names is not a list of strings'),
    'shapes': ({'test_images': np.ones((2, 3, 4, 3), np.uint8)}, r'\(4, 3, 3\).*\(3, 4, 3\)'),
    'pickled label': ({'train_label': np.array([0, 1, None, 1, 0])}, 'train_label is a pickled'),
    'pickled names': ({'label_names': np.array(['a', None])}, 'label_names is a pickled'),
}


def _refused(path, pattern):
  with pytest.raises(errors.UserError, match=pattern) as caught:
    data.load(path)
  assert caught.value.field == 'dataset' and caught.value.value == str(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('case', BAD)
def test_bad_packed_set(tmp_path, case):
  changes, pattern = BAD[case]
  np.savez(tmp_path / 'set.npz', **_packed(**changes))
  _refused(tmp_path / 'set.npz', pattern)


def test_files_that_are_no_packed_set(tmp_path):
  path = tmp_path / 'set.npz'
  _refused(path, 'no such file')
  for content in (b'', b'no archive', b'PK\x03\x04 broken', b'\x80\x04\x95'):
    path.write_bytes(content)
    _refused(path, 'cannot be read as .npz')
  with path.open('wb') as file:
    np.save(file, np.ones(3))
  _refused(path, r'holds one array \(\.npy\)')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('train_images', 'text')
  _refused(path, 'train_images is a pickled object, not an array|has no')
  np.savez(path, **_packed())
  content = bytearray(path.read_bytes())
  content[content.index(b'train_images.npy') + 200] ^= 1  # in the pixels: the checksum is wrong
  path.write_bytes(content)
  _refused(path, 'train_images is damaged')
  (tmp_path / 'folder.npz').mkdir()
  _refused(tmp_path / 'folder.npz', 'cannot be read as .npz')


# TFDS sets: tiny archives in the original formats.


def _pixels(n, *shape):
  return np.random.RandomState(n).randint(0, 256, (n, *shape)).astype(np.uint8)


def _tar_gz(files):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def _cifar(images, *labels):
  """Rows of labels, then red, green and blue planes (Krizhevsky 2009, the binary version)."""
  planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  return np.concatenate([np.stack(labels, 1), planes], 1).astype(np.uint8).tobytes()


def _cifar10_files():
  train, test = (_pixels(5, 32, 32, 3), np.array([9, 0, 3, 3, 1])), (_pixels(2, 32, 32, 3), [4, 9])
  folder = 'cifar-10-batches-bin/'
  files = {f'{folder}data_batch_{i + 1}.bin': _cifar(train[0][i:i + 1], train[1][i:i + 1])
           for i in range(5)}
  files[f'{folder}test_batch.bin'] = _cifar(*test)
  files[f'{folder}batches.meta.txt'] = '\n'.join(f'class{i}' for i in range(10)).encode()
  return {'cifar-10-binary.tar.gz': _tar_gz(files)}, train, test, 'class3'


def _cifar100_files():
  train, test = (_pixels(5, 32, 32, 3), np.array([99, 0, 3, 3, 1])), (_pixels(2, 32, 32, 3), [4, 9])
  folder = 'cifar-100-binary/'
  files = {
      # Coarse labels come first: fine labels mod 20 here, so that taking them would be seen.
      f'{folder}train.bin': _cifar(train[0], train[1] % 20, train[1]),
      f'{folder}test.bin': _cifar(test[0], [0, 0], test[1]),
      f'{folder}coarse_label_names.txt': '\n'.join(f'coarse{i}' for i in range(20)).encode(),
      f'{folder}fine_label_names.txt': '\n'.join(f'fine{i}' for i in range(100)).encode(),
  }
  return {'cifar-100-binary.tar.gz': _tar_gz(files)}, train, test, 'fine3'


def _mnist_files(third_class='3'):
  train, test = (_pixels(5, 28, 28, 1), np.array([9, 0, 3, 3, 1])), (_pixels(2, 28, 28, 1), [4, 9])
  files = {}
  for prefix, (images, labels) in (('train', train), ('t10k', test)):
    # idx: 16 bytes of header before the images, 8 before the labels (LeCun et al. 1998).
    files[f'{prefix}-images-idx3-ubyte.gz'] = gzip.compress(bytes(16) + images.tobytes())
    files[f'{prefix}-labels-idx1-ubyte.gz'] = gzip.compress(bytes(8) + bytes(list(labels)))
  return files, train, test, third_class


def _svhn_files():
  from scipy import io as scipy_io
  train, test = (_pixels(5, 32, 32, 3), np.array([9, 0, 3, 3, 1])), (_pixels(2, 32, 32, 3), [4, 0])
  files = {}
  for split, (images, labels) in (('train', train), ('test', test), ('extra', test)):
    buffer = io.BytesIO()
    digits = np.where(np.asarray(labels) == 0, 10, labels)[:, None]  # SVHN writes 0 as 10
    scipy_io.savemat(buffer, {'X': images.transpose(1, 2, 3, 0), 'y': digits.astype(np.uint8)})
    files[f'{split}_32x32.mat'] = buffer.getvalue()
  return files, train, test, '3'


def _stl10_files():
  train, test = (_pixels(5, 96, 96, 3), np.array([9, 0, 3, 3, 1])), (_pixels(2, 96, 96, 3), [4, 0])
  files = {'stl10_binary/class_names.txt': ''.join(f'thing{i}\n' for i in range(10)).encode(),
           'stl10_binary/unlabeled_X.bin': test[0].transpose(0, 3, 2, 1).tobytes()}
  for split, (images, labels) in (('train', train), ('test', test)):
    # Planes column by column, labels from 1 (Coates, Lee and Ng 2011).
    files[f'stl10_binary/{split}_X.bin'] = images.transpose(0, 3, 2, 1).tobytes()
    files[f'stl10_binary/{split}_y.bin'] = bytes([label + 1 for label in labels])
  return {'stl10_binary.tar.gz': _tar_gz(files)}, train, test, 'thing3'


def _tiny_imagenet_files():
  from PIL import Image
  root, ids = 'tiny-imagenet-200', [f'n{i:08d}' for i in range(200)]
  files = {'wnids.txt': '\n'.join(reversed(ids)) + '\n',
           'words.txt': ''.join(f'{wnid}\tthing {i}, object\n' for i, wnid in enumerate(ids))}
  decoded = {'train': ([], []), 'test': ([], [])}
  annotations = []
  # The last of each split is grey, as some of the real ones are.
  for split, labels in (('train', [199, 0, 3, 3, 1]), ('test', [4, 0])):
    for i, label in enumerate(labels):
      grey = i == len(labels) - 1
      buffer = io.BytesIO()
      Image.fromarray(_pixels(1, 64, 64, 3)[0] // (i + 1)).convert('L' if grey else 'RGB').save(
          buffer, format='jpeg')
      decoded[split][0].append(np.asarray(Image.open(buffer).convert('RGB')))
      decoded[split][1].append(label)
      if split == 'train':
        files[f'train/{ids[label]}/images/{ids[label]}_{i}.JPEG'] = buffer.getvalue()
        files[f'train/{ids[label]}/{ids[label]}_boxes.txt'] = ''
      else:
        files[f'val/images/val_{i}.JPEG'] = buffer.getvalue()
        annotations.append(f'val_{i}.JPEG\t{ids[label]}\t0\t0\t62\t62\n')
  files['val/val_annotations.txt'] = ''.join(annotations)
  files['test/images/test_0.JPEG'] = b'without a label'
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, content in files.items():
      archive.writestr(f'{root}/{name}', content)
  train, test = ((np.stack(images), labels) for images, labels in decoded.values())
  return {f'{root}.zip': buffer.getvalue()}, train, test, 'n00000003 thing 3'


ARCHIVES = {
    'cifar10': _cifar10_files, 'cifar100': _cifar100_files, 'mnist': _mnist_files,
    'fashion_mnist': lambda: _mnist_files('Dress'), 'svhn_cropped': _svhn_files,
    'stl10': _stl10_files, 'tiny_imagenet': _tiny_imagenet_files,
}
SPLITS = {'svhn_cropped': {'train', 'test', 'extra'}, 'stl10': {'train', 'test', 'unlabelled'}}


@contextlib.contextmanager
def _internet(monkeypatch, served, checksums_of=None):
  """Serves {file name: bytes} in the place of every host; TFDS knows their sizes and checksums."""
  import requests
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import checksums, download_manager
  from tensorflow_datasets.image_classification import mnist
  tfds.disable_progress_bar()
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
      name = self.path.rsplit('/', 1)[1]
      asked.append(name)
      self.send_response(200 if name in served else 404)
      self.send_header('Content-Length', str(len(served.get(name, b''))))
      self.end_headers()
      self.wfile.write(served.get(name, b''))

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  get, stock = requests.Session.get, download_manager.DownloadManager.__init__

  def get_here(session, url, **kwargs):
    return get(session, f'http://127.0.0.1:{server.server_port}/{url.rsplit("/", 1)[1]}', **kwargs)

  class Infos(dict):  # by URL; every URL of a known file name is known

    def get(self, url, default=None):
      content = (checksums_of or served).get(url.rsplit('/', 1)[1])
      return default if content is None else checksums.UrlInfo(
          size=len(content), checksum=hashlib.sha256(content).hexdigest(),
          filename=url.rsplit('/', 1)[1])

    def __contains__(self, url):
      return self.get(url) is not None

  def init(self, **kwargs):
    stock(self, **kwargs)
    self._url_infos = Infos()

  with monkeypatch.context() as patch:
    patch.setattr(requests.Session, 'get', get_here)
    patch.setattr(download_manager.DownloadManager, '__init__', init)
    patch.setattr(mnist, '_TRAIN_EXAMPLES', 5)  # the stock reader wants to know the count
    patch.setattr(mnist, '_TEST_EXAMPLES', 2)
    patch.setenv('NO_PROXY', '127.0.0.1')
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield asked
    finally:
      server.shutdown()
      server.server_close()
      thread.join()


_READ_BACK = '''
import sys
import numpy as np
import tensorflow_datasets as tfds
from at_jax import data
name, data_dir, splits = sys.argv[1:]
found = data.load(name, data_dir=data_dir)
print(len(found.train.labels), len(found.test.labels), found.class_names[3])
if name != 'tiny_imagenet':  # as an ordinary TFDS set, by TFDS alone
  sources = tfds.data_source(name, data_dir=data_dir)
  assert set(sources) == set(splits.split(',')), set(sources)
  assert set(sources['train'][0]) == set(tfds.builder_cls(name)(data_dir='/none').info.features)
  images = np.stack([record['image'] for record in sources['train']])
  np.testing.assert_array_equal(images, found.train.images)
assert 'tensorflow' not in sys.modules and 'tensorflow_datasets' in sys.modules
'''


def _without_tensorflow(tmp_path, *args):
  """Runs Python where any attempt to import tensorflow ends in an error that nothing catches."""
  trap = tmp_path / 'trap' / 'tensorflow'
  trap.mkdir(parents=True, exist_ok=True)
  (trap / '__init__.py').write_text('import os\nprint("tensorflow imported")\nos._exit(3)\n')
  root = pathlib.Path(data.__file__).parents[1]
  env = os.environ | {'PYTHONPATH': f'{trap.parent}{os.pathsep}{root}', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, *args]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('name', ARCHIVES)
def test_a_set_is_downloaded_prepared_and_read_without_tensorflow(name, tmp_path, monkeypatch):
  files, train, test, third_class = ARCHIVES[name]()
  with _internet(monkeypatch, files) as asked:
    found = data.load(name, data_dir=tmp_path)
    assert sorted(asked) == sorted(files)
    data.load(name, data_dir=tmp_path)
    assert len(asked) == len(files)  # nothing is downloaded twice
  assert 'tensorflow' not in sys.modules
  assert _rows(found.train) == _rows(data.Split(*train))
  assert _rows(found.test) == _rows(data.Split(*test))
  assert found.train.images.dtype == np.uint8 and found.train.labels.dtype == np.int32
  assert found.class_names[3] == third_class
  assert found.num_classes == {'cifar100': 100, 'tiny_imagenet': 200}.get(name, 10)
  splits = ','.join(SPLITS.get(name, {'train', 'test'}))
  done = _without_tensorflow(tmp_path, '-c', _READ_BACK, name, str(tmp_path), splits)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.split('\n')[0] == f'5 2 {third_class}'


def _prepared(folder, name):
  return [str(path) for path in (folder / name).rglob('*')]


@pytest.mark.parametrize('trouble', ['absent', 'wrong checksum', 'broken archive'])
def test_a_failed_download_is_explained_and_leaves_nothing(trouble, tmp_path, monkeypatch):
  files, train, _, _ = _cifar100_files()
  archive = files['cifar-100-binary.tar.gz']
  served, known = {
      'absent': ({}, files),
      'wrong checksum': ({'cifar-100-binary.tar.gz': archive[:-9]}, files),
      'broken archive': ({'cifar-100-binary.tar.gz': archive[:-900]}, None),
  }[trouble]
  with _internet(monkeypatch, served, known):
    with pytest.raises(errors.UserError, match='python -m at_jax.data cifar100') as caught:
      data.load('cifar100', data_dir=tmp_path)
  assert caught.value.field == 'dataset' and 'dataset=digits' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not _prepared(tmp_path, 'cifar100')
  with _internet(monkeypatch, files):  # and the next attempt works
    assert _rows(data.load('cifar100', data_dir=tmp_path).train) == _rows(data.Split(*train))


def test_without_a_network_the_command_says_what_to_do(tmp_path):
  code = ('import requests, sys\n'
          'def no(*args, **kwargs): raise requests.ConnectionError("no network")\n'
          'requests.Session.get = no\n'
          'from at_jax import data\n'
          'sys.exit(data.main(["mnist", "--data_dir", sys.argv[1]]))\n')
  done = _without_tensorflow(tmp_path, '-c', code, str(tmp_path / 'sets'))
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().split('\n')[-1]
  assert last.startswith("dataset = 'mnist': is not prepared in") and 'no network' in last
  assert 'Traceback' not in done.stderr


def test_the_command_says_what_it_has(capsys):
  assert data.main(['digits']) == 0
  assert capsys.readouterr().out == (
      'digits: 1400 to train on, 397 to test on, 8x8x1, 10 classes\n')


def test_tiny_imagenet_from_a_zip_put_there_by_hand(tmp_path, monkeypatch):
  files, train, _, _ = _tiny_imagenet_files()
  manual = tmp_path / 'downloads' / 'manual'
  manual.mkdir(parents=True)
  (manual / 'tiny-imagenet-200.zip').write_bytes(files['tiny-imagenet-200.zip'])
  with _internet(monkeypatch, {}, files) as asked:
    found = data.load('tiny_imagenet', data_dir=tmp_path)
  assert not asked
  assert _rows(found.train) == _rows(data.Split(*train))


def test_tiny_imagenets_zip_is_checked_when_it_is_put_there_by_hand(tmp_path):
  manual = tmp_path / 'downloads' / 'manual'
  manual.mkdir(parents=True)
  (manual / 'tiny-imagenet-200.zip').write_bytes(b'another file')
  with pytest.raises(errors.UserError, match='NonMatchingChecksumError'):
    data.load('tiny_imagenet', data_dir=tmp_path)


def test_prepared_files_that_cannot_be_read(tmp_path, monkeypatch):
  with _internet(monkeypatch, _cifar10_files()[0]):
    data.load('cifar10', data_dir=tmp_path)
  (tmp_path / 'cifar10' / 'incomplete.AAAAAA_3.0.2').mkdir()  # of a process that was killed
  data.load('cifar10', data_dir=tmp_path)
  folder = tmp_path / 'cifar10' / '3.0.2'
  info = (folder / 'dataset_info.json').read_text()
  (folder / 'dataset_info.json').write_text(info.replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UserError, match='as tfrecord, not as array_record'):
    data.load('cifar10', data_dir=tmp_path)
  (folder / 'dataset_info.json').write_text(info)
  for shard in folder.glob('*train*'):
    shard.unlink()
  with pytest.raises(errors.UserError, match='cannot be read.*move that folder away'):
    data.load('cifar10', data_dir=tmp_path)


def test_the_trap_for_tensorflow_works(tmp_path):
  assert _without_tensorflow(tmp_path, '-c', 'import tensorflow').returncode == 3


def test_importing_the_module_loads_no_reader():
  code = ('import sys, at_jax.data; print([name for name in '
          '("tensorflow_datasets", "sklearn", "PIL", "flax") if name in sys.modules])')
  root = pathlib.Path(data.__file__).parents[1]
  done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
  assert done.stdout.strip() == '[]', done.stderr


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(errors.UserError, match=r"sklearn.*pip install 'at_jax\[data\]'"):
    data.load('digits')


@pytest.mark.long
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes_of_prepared_sets(name):
  folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
  if not (folder / name).exists():
    pytest.skip(f'{name} is not prepared in {folder}')
  found = data.load(name)
  assert (found.train.images.shape, found.test.images.shape, found.num_classes) == PUBLISHED[name]
  assert len(found.class_names) == found.num_classes == len(np.unique(found.train.labels))

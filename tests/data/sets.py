"""Data sets small enough to make here, in the formats of their authors, and who serves them."""

import contextlib
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np


def same(split, other):
  np.testing.assert_array_equal(split.images, other.images)
  np.testing.assert_array_equal(split.labels, other.labels)


def rows(split):
  """The examples of a split as a sorted list, to compare sets whose order may differ."""
  return sorted((int(y), x.tobytes()) for x, y in zip(split.images, split.labels, strict=True))


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


def cifar10_files():
  train, test = (_pixels(5, 32, 32, 3), np.array([9, 0, 3, 3, 1])), (_pixels(2, 32, 32, 3), [4, 9])
  folder = 'cifar-10-batches-bin/'
  files = {f'{folder}data_batch_{i + 1}.bin': _cifar(train[0][i:i + 1], train[1][i:i + 1])
           for i in range(5)}
  files[f'{folder}test_batch.bin'] = _cifar(*test)
  files[f'{folder}batches.meta.txt'] = '\n'.join(f'class{i}' for i in range(10)).encode()
  return {'cifar-10-binary.tar.gz': _tar_gz(files)}, train, test, 'class3'


def cifar100_files():
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


def tiny_imagenet_files():
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
    'cifar10': cifar10_files, 'cifar100': cifar100_files, 'mnist': _mnist_files,
    'fashion_mnist': lambda: _mnist_files('Dress'), 'svhn_cropped': _svhn_files,
    'stl10': _stl10_files, 'tiny_imagenet': tiny_imagenet_files,
}
SPLITS = {'svhn_cropped': {'train', 'test', 'extra'}, 'stl10': {'train', 'test', 'unlabelled'}}


@contextlib.contextmanager
def internet(monkeypatch, served, checksums_of=None):
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

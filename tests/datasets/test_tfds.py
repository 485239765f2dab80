"""TFDS data sets without a network: TFDS downloads, prepares and reads tiny archives of a local server."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from at_jax import errors
from at_jax.datasets import __main__ as command
from at_jax.datasets import pipeline
from tests.fixtures import data_sets

pytestmark = pytest.mark.filterwarnings('ignore:.*have no training example')  # the archives are tiny
# The published sizes: LeCun et al., 1998; Xiao et al., 2017; Krizhevsky, 2009.
PUBLISHED = {
    'mnist': ((60000, 28, 28, 1), (10000, 28, 28, 1), 10),
    'fashion_mnist': ((60000, 28, 28, 1), (10000, 28, 28, 1), 10),
    'cifar10': ((50000, 32, 32, 3), (10000, 32, 32, 3), 10),
    'cifar100': ((50000, 32, 32, 3), (10000, 32, 32, 3), 100),
}
_READ_BACK = '''
import json, sys
import numpy as np
import tensorflow_datasets as tfds
from at_jax.datasets import pipeline
data_dir, splits = sys.argv[1], json.loads(sys.argv[2])
for name, expected in splits.items():
  folder = f"{data_dir}/{name}"
  found = pipeline.load(name, data_dir=folder)
  print(name, len(found.train.labels), len(found.test.labels), found.class_names[3])
  if name != 'tiny_imagenet':  # read by TFDS alone, as for any TFDS data set
    sources = tfds.data_source(name, data_dir=folder)
    assert set(sources) == set(expected), (name, set(sources))
    assert set(sources['train'][0]) == set(tfds.builder_cls(name)(data_dir='/none').info.features)
    images = np.stack([record['image'] for record in sources['train']])
    np.testing.assert_array_equal(images, found.train.images)
assert 'tensorflow' not in sys.modules and 'tensorflow_datasets' in sys.modules
'''


def _without_tensorflow(tmp_path, *args):
  """Runs Python in a process that ends with status 3 if it imports tensorflow."""
  trap = tmp_path / 'trap' / 'tensorflow'
  trap.mkdir(parents=True, exist_ok=True)
  (trap / '__init__.py').write_text('import os\nprint("tensorflow imported")\nos._exit(3)\n')
  root = pathlib.Path(pipeline.__file__).parents[2]
  env = os.environ | {'PYTHONPATH': f'{trap.parent}{os.pathsep}{root}', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, *args]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """A folder in which each data set is prepared in a folder of its own."""
  return tmp_path_factory.mktemp('sets')


@pytest.mark.parametrize('name', data_sets.ARCHIVES)
def test_downloaded_prepared_and_read(name, sets, monkeypatch):
  files, train, test, third_class = data_sets.ARCHIVES[name]()
  with data_sets.serve(monkeypatch, files) as requested:
    found = pipeline.load(name, data_dir=sets / name)
    assert sorted(requested) == sorted(files)
    pipeline.load(name, data_dir=sets / name)
    assert len(requested) == len(files)  # nothing is downloaded twice
  assert 'tensorflow' not in sys.modules
  assert data_sets.sorted_examples(found.train) == data_sets.sorted_examples(pipeline.Split(*train))
  assert data_sets.sorted_examples(found.test) == data_sets.sorted_examples(pipeline.Split(*test))
  assert found.train.images.dtype == np.uint8 and found.train.labels.dtype == np.int32
  assert found.class_names[3] == third_class
  assert found.num_classes == {'cifar100': 100, 'tiny_imagenet': 200}.get(name, 10)


def test_prepared_sets_are_read_without_tensorflow(sets, tmp_path, monkeypatch):
  splits, lines = {}, []
  for name, make in data_sets.ARCHIVES.items():
    files, _, _, third_class = make()
    with data_sets.serve(monkeypatch, files):
      pipeline.load(name, data_dir=sets / name)  # already prepared, unless this test runs alone
    splits[name] = sorted(data_sets.SPLITS.get(name, {'train', 'test'}))
    lines.append(f'{name} 5 2 {third_class}')
  done = _without_tensorflow(tmp_path, '-c', _READ_BACK, str(sets), json.dumps(splits))
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[:len(lines)] == lines


def _prepared(folder, name):
  return [str(path) for path in (folder / name).rglob('*')]


@pytest.mark.parametrize('failure', ['absent', 'wrong checksum', 'broken archive'])
def test_failed_download_leaves_no_files(failure, tmp_path, monkeypatch):
  files, train, _, _ = data_sets.cifar100_files()
  archive = files['cifar-100-binary.tar.gz']
  served, known = {
      'absent': ({}, files),
      'wrong checksum': ({'cifar-100-binary.tar.gz': archive[:-9]}, files),
      'broken archive': ({'cifar-100-binary.tar.gz': archive[:-900]}, None),
  }[failure]
  with data_sets.serve(monkeypatch, served, known):
    with pytest.raises(errors.UserError, match='python -m at_jax.datasets cifar100') as caught:
      pipeline.load('cifar100', data_dir=tmp_path)
  assert caught.value.field == 'dataset' and "'digits'" in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not _prepared(tmp_path, 'cifar100')
  with data_sets.serve(monkeypatch, files):  # the next attempt succeeds
    found = pipeline.load('cifar100', data_dir=tmp_path)
  assert data_sets.sorted_examples(found.train) == data_sets.sorted_examples(pipeline.Split(*train))


def test_command_without_a_network_names_the_remedy(tmp_path):
  script = ('import requests, runpy, sys\n'
            'def fail(*args, **kwargs): raise requests.ConnectionError("no network")\n'
            'requests.Session.get = fail\n'
            'runpy.run_module("at_jax.datasets", run_name="__main__")\n')
  done = _without_tensorflow(tmp_path, '-c', script, 'mnist', '--data_dir', str(tmp_path / 'sets'))
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().split('\n')[-1]
  assert last.startswith("dataset = 'mnist': is not prepared in") and 'no network' in last
  assert 'Traceback' not in done.stderr


def test_command_prints_the_sizes(capsys):
  assert command.main(['digits']) == 0
  assert capsys.readouterr().out == 'digits: 1400 training images, 397 test images, 8x8x1, 10 classes\n'


def test_tiny_imagenet_from_a_copied_archive(tmp_path, monkeypatch):
  files, train, _, _ = data_sets.tiny_imagenet_files()
  manual = tmp_path / 'downloads' / 'manual'
  manual.mkdir(parents=True)
  (manual / 'tiny-imagenet-200.zip').write_bytes(files['tiny-imagenet-200.zip'])
  with data_sets.serve(monkeypatch, {}, files) as requested:
    found = pipeline.load('tiny_imagenet', data_dir=tmp_path)
  assert not requested
  assert data_sets.sorted_examples(found.train) == data_sets.sorted_examples(pipeline.Split(*train))


def test_checksum_of_a_copied_archive_is_verified(tmp_path):
  manual = tmp_path / 'downloads' / 'manual'
  manual.mkdir(parents=True)
  (manual / 'tiny-imagenet-200.zip').write_bytes(b'another file')
  with pytest.raises(errors.UserError, match='NonMatchingChecksumError'):
    pipeline.load('tiny_imagenet', data_dir=tmp_path)


def test_unreadable_prepared_files_are_reported(tmp_path, monkeypatch):
  with data_sets.serve(monkeypatch, data_sets.cifar10_files()[0]):
    pipeline.load('cifar10', data_dir=tmp_path)
  (tmp_path / 'cifar10' / 'incomplete.AAAAAA_3.0.2').mkdir()  # left by a killed process
  pipeline.load('cifar10', data_dir=tmp_path)
  folder = tmp_path / 'cifar10' / '3.0.2'
  info = (folder / 'dataset_info.json').read_text()
  (folder / 'dataset_info.json').write_text(info.replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UserError, match='as tfrecord, not as array_record'):
    pipeline.load('cifar10', data_dir=tmp_path)
  (folder / 'dataset_info.json').write_text(info)
  for shard in folder.glob('*train*'):
    shard.unlink()
  with pytest.raises(errors.UserError, match='cannot be read.*move that folder away'):
    pipeline.load('cifar10', data_dir=tmp_path)


def test_other_names_of_tfds_are_taken(tmp_path, monkeypatch):
  files, train, test, third_class = data_sets.mnist_files('tsu')  # KMNIST has the files of MNIST
  monkeypatch.setenv('HOME', str(tmp_path))
  with data_sets.serve(monkeypatch, files):
    found = pipeline.load('kmnist', data_dir='~/sets')
  assert data_sets.sorted_examples(found.train) == data_sets.sorted_examples(pipeline.Split(*train))
  assert data_sets.sorted_examples(found.test) == data_sets.sorted_examples(pipeline.Split(*test))
  assert found.class_names[3] == third_class and (tmp_path / 'sets' / 'kmnist').is_dir()
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('name, pattern', [
    ('cats_vs_dogs', r'images of shape \(None, None, 3\), which are not of one shape: convert it'),
    ('celeb_a', 'has the features image, landmarks, .*, not `image` and `label`'),
    ('mnist/large', 'TFDS cannot open it .*BuilderConfig large not f'),
    ('a/path.npy', r'known: cifar10.*or another data set of TFDS, a path that ends in \.npz'),
])
def test_names_without_images_of_one_shape_are_refused(tmp_path, name, pattern):
  with pytest.raises(errors.UserError, match=pattern) as caught:
    pipeline.load(name, data_dir=tmp_path)
  assert caught.value.field == 'dataset' and '\n' not in str(caught.value)


def test_own_builder_with_a_validation_split(tmp_path):
  import tensorflow_datasets as tfds
  with tfds.core.registered.skip_registration():
    class Own(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')
      splits = {'train': 6, 'validation': 3, 'test': 3}

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(4, 4, 1)), 'label': tfds.features.ClassLabel(num_classes=3)}))

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in self.splits.items()}

      def _generate_examples(self, n):
        for i in range(n):
          yield i, {'image': np.full((4, 4, 1), 20 + n + i, np.uint8), 'label': i % 3}

  import at_jax.datasets.tfds as reader
  builders = {'own': Own, 'untested': type('Untested', (Own,), {'splits': {'train': 6}}),
              'broken': type('Broken', (Own,), {'_generate_examples': lambda self, n: iter([n.missing])})}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reader.tfds, 'builder', lambda name, data_dir: builders[name](data_dir=data_dir))
    found = pipeline.load('own', data_dir=tmp_path, validation_size=3)
    assert sorted(found.validation.images[:, 0, 0, 0].tolist()) == [23, 24, 25] and found.train_size == 6
    with pytest.raises(errors.UserError, match='has no split test but train: give a split of your own'):
      pipeline.load('untested', data_dir=tmp_path)
    with pytest.raises(errors.UserError, match='without TensorFlow .AttributeError.* `tfds build broken'):
      pipeline.load('broken', data_dir=tmp_path)


def test_importing_tensorflow_ends_the_test_process(tmp_path):
  assert _without_tensorflow(tmp_path, '-c', 'import tensorflow').returncode == 3


@pytest.mark.long
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes_of_prepared_sets(name):
  folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
  if not list((folder / name).glob('*/dataset_info.json')):  # written last
    pytest.skip(f'{name} is not prepared in {folder}')
  found = pipeline.load(name)
  assert (found.train.images.shape, found.test.images.shape, found.num_classes) == PUBLISHED[name]
  assert len(found.class_names) == found.num_classes == len(np.unique(found.train.labels))

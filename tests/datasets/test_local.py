"""Local data sets: scikit-learn's digits, and .npz files, valid and invalid."""

import zipfile

import numpy as np
import pytest

from at_jax import errors
from at_jax.datasets import pipeline
from tests.fixtures import data_sets


def test_digits_are_those_of_scikit_learn():
  from sklearn import datasets
  whole = datasets.load_digits()
  digits = pipeline.load('digits')
  assert digits.train.images.shape == (1400, 8, 8, 1) and digits.test.images.shape == (397, 8, 8, 1)
  assert digits.validation.images.shape == (0, 8, 8, 1)
  assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
  assert digits.class_names == tuple('0123456789') and digits.num_classes == 10
  both = pipeline.Split(*map(np.concatenate, zip(digits.train, digits.test, strict=True)))
  expected = pipeline.Split(np.round(whole.images * 255 / 16).astype(np.uint8), whole.target)
  assert data_sets.sorted_examples(both) == data_sets.sorted_examples(expected)
  assert both.images.max() == 255  # scikit-learn's 16


def _arrays(**changes):
  arrays = {
      'train_images': np.arange(5 * 4 * 3 * 3, dtype=np.uint8).reshape(5, 4, 3, 3),
      'train_label': np.array([0, 1, 2, 1, 0]),
      'test_images': np.full((2, 4, 3, 3), 200, np.uint8),
      'test_label': np.array([2, 1], np.uint8),
  }
  return {key: value for key, value in (arrays | changes).items() if value is not None}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('changes, names', [
    ({}, ('0', '1', '2')),
    ({'label_names': np.array(['a', 'b', 'c'])}, tuple('abc')),
    ({'label_names': np.array([b'a', b'b', b'c'])}, tuple('abc')),
    ({'train_label': None, 'train_labels': np.array([0., 1, 2, 1, 0])}, ('0', '1', '2')),
    ({'train_label': np.array([[0], [1], [2], [1], [0]])}, ('0', '1', '2')),  # as MedMNIST stores them
    ({'unrelated': np.array([object()])}, ('0', '1', '2')),
])
def test_npz_is_read(tmp_path, changes, names):
  path, arrays = tmp_path / 'set.npz', _arrays(**changes)
  np.savez_compressed(path, **arrays)
  found = pipeline.load(str(path), validation_size=1)
  assert found.class_names == names and found.num_classes == len(names)
  assert len(found.train.labels) == 4 and len(found.validation.labels) == 1
  data_sets.assert_same(found.test, pipeline.Split(arrays['test_images'], arrays['test_label']))
  assert found.test.labels.dtype == np.int32
  whole = pipeline.load(path)
  data_sets.assert_same(whole.train, pipeline.Split(arrays['train_images'], [0, 1, 2, 1, 0]))


def test_images_without_channels_get_one(tmp_path):
  path = tmp_path / 'grey.npz'
  arrays = _arrays(train_images=np.full((5, 4, 3), 255, np.uint8),
                   test_images=np.full((2, 4, 3, 1), 255, np.uint8))
  np.savez(path, **arrays)
  assert pipeline.load(path).train.images.shape == (5, 4, 3, 1)


_FLOATS = np.zeros((5, 4, 3, 3), np.float32)
INVALID = {
    'missing key': ({'test_images': None}, r'has no test_images: .*train_images, train_label'),
    'missing label': ({'train_label': None}, 'has no train_label'),
    'float images': ({'train_images': _FLOATS}, r'train_images is float32 in 0\.\.0: store uint8.*0\.\.255'),
    'unit images': ({'train_images': _FLOATS + .5}, r'in 0\.5\.\.0\.5: .* numpy\.round\(255 \* images\)'),
    'float pixels': ({'train_images': _FLOATS + 200}, r'in 200\.\.200: .* numpy\.round\(images\)'),
    'normalised': ({'train_images': _FLOATS - 1}, r'in -1\.\.-1: .*undo the normalisation'),
    '16 bits': ({'train_images': np.full((5, 4, 3, 3), 4000, np.uint16)}, 'uint16 in .*scale them'),
    'channels first': ({'train_images': np.ones((5, 3, 8, 8), np.uint8)},
                       r'\(5, 3, 8, 8\), channels first: store .*numpy.moveaxis\(images, 1, -1\)'),
    'grey channels first': ({'train_images': np.ones((5, 1, 8, 8), np.uint8)}, 'channels first'),
    'tall channels first': ({'train_images': np.ones((5, 3, 9, 8), np.uint8)}, 'channels first'),
    'examples last': ({'train_images': np.full((8, 7, 3, 5), 99, np.uint8)}, r'moveaxis\(images, 3, 0\)'),
    'nan images': ({'train_images': _FLOATS + np.nan}, 'train_images is float32 and holds NaN'),
    'int64 images': ({'test_images': np.ones((2, 4, 3, 3), int)}, 'test_images is int64'),
    'flat images': ({'train_images': np.ones((5, 36), np.uint8)}, r'has shape \(5, 36\): store'),
    'no images': ({'train_images': np.ones((0, 4, 3, 3), np.uint8), 'train_label': np.ones(0, int)},
                  'train_images is empty'),
    'no pixels': ({'train_images': np.ones((5, 0, 3, 3), np.uint8)}, 'train_images is empty'),
    'lengths': ({'train_label': np.zeros(4, int)}, 'has 5 examples and train_label 4'),
    'no labels': ({'train_label': np.zeros(0, int)}, 'train_label is empty'),
    'one-hot': ({'train_label': np.eye(5, dtype=int)}, r'\(5, 5\), one-hot: .*labels.argmax\(axis=1\)'),
    'several': ({'train_label': np.tri(5, dtype=int)}, r'shape \(5, 5\), several labels .* only one class'),
    'a label a pixel': ({'train_label': np.ones((5, 4, 3), int)}, 'a label for each pixel: only one class'),
    'pairs': ({'train_label': np.full((5, 2), 3)}, r'shape \(5, 2\): store one label for each image'),
    'both keys': ({'train_labels': np.zeros(5, int)}, 'has both train_label and train_labels: store one'),
    'from 1': ({'train_label': np.array([1, 2, 3, 2, 1]), 'test_label': np.array([3, 1])},
               r'labels are 1\.\.3, not from 0: labels must be 0\.\.C-1, subtract 1'),
    'train from 1': ({'train_label': np.array([1, 2, 3, 2, 1]), 'test_label': np.array([3, 0])},
                     'no training example has the label 0: number the classes'),
    'a gap': ({'train_label': np.array([0, 1, 4, 1, 0])}, 'no training example has the label 2, 3: number'),
    'only tested': ({'test_label': np.array([2, 4])}, 'the label 3, 4 of other splits: remove'),
    'no val label': ({'val_images': np.full((2, 4, 3, 3), 99, np.uint8)}, 'has no val_label'),
    'val shape': ({'val_images': np.full((1, 5, 3, 3), 99, np.uint8), 'val_label': np.zeros(1, int)},
                  r'train_images are \(4, 3, 3\), val_images \(5, 3, 3\)'),
    'negative': ({'train_label': np.array([0, 1, -2, 1, 0])}, 'negative label -2'),
    'fractions': ({'train_label': np.array([0, 1, .5, 1, 0])}, 'train_label .* not whole'),
    'nan label': ({'train_label': np.array([0, 1, np.nan, 1, 0])}, 'train_label holds NaN'),
    'inf label': ({'train_label': np.array([0, 1, np.inf, 1, 0])}, 'train_label .* not whole'),
    'text label': ({'train_label': np.array(list('abcde'))}, 'train_label is <U1'),
    'identifiers': ({'test_label': np.array([0, 10**12])}, 'holds the label 1000000000000'),
    'beyond names': ({'label_names': np.array(['a', 'b'])}, 'label 2 but 2 label_names'),
    'name numbers': ({'label_names': np.arange(4)}, 'label_names is not a list of strings'),
    'shapes': ({'test_images': np.full((2, 3, 4, 3), 99, np.uint8)}, r'\(4, 3, 3\).*\(3, 4, 3\)'),
    'pickled label': ({'train_label': np.array([0, 1, None, 1, 0])}, 'train_label is a pickled'),
    'pickled names': ({'label_names': np.array(['a', None])}, 'label_names is a pickled'),
}


def _assert_rejected(path, pattern):
  with pytest.raises(errors.UserError, match=pattern) as caught:
    pipeline.load(path)
  assert caught.value.field == 'dataset' and caught.value.value == str(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('case', INVALID)
def test_invalid_npz_is_rejected(tmp_path, case):
  changes, pattern = INVALID[case]
  np.savez(tmp_path / 'set.npz', **_arrays(**changes))
  _assert_rejected(tmp_path / 'set.npz', pattern)


@pytest.mark.parametrize('changes, pattern', [
    # Constant images: no method can tell 0..1 from 0..255 but by the values.
    ({'train_images': np.ones((5, 4, 3, 3), np.uint8)}, 'train_images has no pixel above 1.*0..255: scale'),
    ({name: np.full((n, 1, 9, 8), 99, np.uint8) for name, n in (('train_images', 5), ('test_images', 2))},
     r'read as \[N, H, W, C\], images of 1x9 with 8 channels: if'),  # it may be a series of 9 times
    ({'label_names': np.array(list('abcde')), 'test_label': np.array([0, 4])},
     r'2 of 5 classes have no training example \(labels 3, 4\), and 1 test examples'),
])
def test_doubtful_npz_gets_a_warning(tmp_path, changes, pattern):
  np.savez(tmp_path / 'set.npz', **_arrays(**changes))
  with pytest.warns(UserWarning, match=pattern) as caught:
    pipeline.load(tmp_path / 'set.npz')
  assert '\n' not in str(caught[0].message)


def test_validation_images_of_the_file_are_used(tmp_path):
  path = tmp_path / 'set.npz'
  images, labels = np.full((6, 4, 3, 3), 99, np.uint8), np.array([[0], [1], [2]] * 2)
  np.savez(path, **_arrays(val_images=images, val_labels=labels))
  for size, by_class in ((0, [0, 0, 0]), (3, [1, 1, 1]), (6, [2, 2, 2])):
    found = pipeline.load(path, validation_size=size)
    assert len(found.train.labels) == 5  # nothing is held out
    assert np.bincount(found.validation.labels, minlength=3).tolist() == by_class
  with pytest.warns(UserWarning, match='validation_size = 7: .*split of 6 examples, which are used'):
    assert len(pipeline.load(path, validation_size=7).validation.labels) == 6
  with pytest.raises(errors.UserError, match='validation_size = -1: use a whole number of at least 0'):
    pipeline.load(path, validation_size=-1)


def test_digest_is_of_the_content_of_a_file(tmp_path):
  arrays = _arrays(label_names=np.array(list('abc')))
  np.savez(tmp_path / 'mine.npz', **arrays)
  np.savez_compressed(tmp_path / 'moved.npz', **dict(reversed(arrays.items())))
  load = lambda name, **options: pipeline.load(tmp_path / f'{name}.npz', **options)
  expected = load('mine').digest
  assert len(expected) == 64 and load('moved', validation_size=1).digest == expected
  for key, value in (('train_label', np.array([0, 1, 2, 1, 1])), ('label_names', np.array(list('abd'))),
                     ('test_images', arrays['test_images'] + 1)):
    np.savez(tmp_path / 'other.npz', **arrays | {key: value})
    assert load('other').digest != expected
  assert pipeline.load('digits').digest == ''


def test_home_directory_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  np.savez(tmp_path / 'set.npz', **_arrays())
  assert pipeline.load('~/set.npz').image_shape == (4, 3, 3)
  with pytest.raises(errors.UserError, match="'~/none.npz': no such file: check the path"):
    pipeline.load('~/none.npz')
  with pytest.raises(errors.UserError, match='no such file: copy the file to this machine'):
    pipeline.load('gs://bucket/none.npz')


def test_other_files_are_rejected(tmp_path):
  path = tmp_path / 'set.npz'
  _assert_rejected(path, 'no such file')
  for content in (b'', b'not an archive', b'PK\x03\x04 broken', b'\x80\x04\x95'):
    path.write_bytes(content)
    _assert_rejected(path, 'cannot be read as .npz')
  with path.open('wb') as file:
    np.save(file, np.ones(3))
  _assert_rejected(path, r'holds one array \(\.npy\)')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('train_images', 'text')
  _assert_rejected(path, 'train_images is a pickled object, not an array|has no')
  np.savez(path, **_arrays())
  content = bytearray(path.read_bytes())
  content[content.index(b'train_images.npy') + 200] ^= 1  # a pixel, so the checksum is wrong
  path.write_bytes(content)
  _assert_rejected(path, 'train_images is damaged')
  (tmp_path / 'folder.npz').mkdir()
  _assert_rejected(tmp_path / 'folder.npz', 'cannot be read as .npz')

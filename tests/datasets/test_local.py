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
  arrays = _arrays(train_images=np.ones((5, 4, 3), np.uint8),
                   test_images=np.ones((2, 4, 3, 1), np.uint8))
  np.savez(path, **arrays)
  assert pipeline.load(path).train.images.shape == (5, 4, 3, 1)


_FLOATS = np.zeros((5, 4, 3, 3), np.float32)
INVALID = {
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

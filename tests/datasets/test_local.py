"""Sets that are read from this machine: scikit-learn's digits, packed files, and what is refused."""

import zipfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from at_jax import errors
from at_jax.datasets import pipeline
from tests.fixtures import data_sets as sets


def test_digits_are_scikit_learns_under_a_fixed_split():
  from sklearn import datasets
  whole = datasets.load_digits()
  digits = pipeline.load('digits')
  assert digits.train.images.shape == (1400, 8, 8, 1) and digits.test.images.shape == (397, 8, 8, 1)
  assert digits.validation.images.shape == (0, 8, 8, 1)
  assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
  assert digits.class_names == tuple('0123456789') and digits.num_classes == 10
  both = pipeline.Split(*(np.concatenate(pair) for pair in zip(digits.train, digits.test)))
  expected = pipeline.Split(np.round(whole.images * 255 / 16).astype(np.uint8), whole.target)
  assert sets.rows(both) == sets.rows(expected)
  assert both.images.max() == 255  # their 16


def test_validation_is_held_out_of_train_only():
  whole, digits = pipeline.load('digits'), pipeline.load('digits', validation_size=200)
  sets.same(whole.test, digits.test)
  assert len(digits.validation.labels) == 200 and len(digits.train.labels) == 1200
  both = pipeline.Split(*(np.concatenate(pair) for pair in zip(digits.train, digits.validation)))
  assert sets.rows(both) == sets.rows(whole.train)
  sets.same(digits.validation, pipeline.load('digits', validation_size=200).validation)


@hypothesis.given(st.integers(0, 59), st.integers(0, 2**32 - 1))
def test_hold_out_is_stratified_and_nested(size, seed):
  labels = np.random.RandomState(seed).randint(0, 4, 60).astype(np.int32)
  split = pipeline.Split(np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), labels)
  rest, held_out = pipeline.hold_out(split, size)
  assert len(held_out.labels) == size and len(rest.labels) == 60 - size
  for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
    assert abs((held_out.labels == label).sum() - size * count / 60) <= 1
  smaller = pipeline.hold_out(split, size // 2)[1]
  assert set(smaller.images.ravel()) <= set(held_out.images.ravel())


@pytest.mark.parametrize('size', [-1, 1400, 10**9, 0.5, True, None, '10'])
def test_validation_size_out_of_range(size):
  with pytest.raises(errors.UserError, match='whole number from 0 to 1399') as caught:
    pipeline.load('digits', validation_size=size)
  assert caught.value.field == 'validation_size'


def test_unknown_name_says_which_was_meant():
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'.*digits.*npz") as caught:
    pipeline.load('cifar_10')
  assert caught.value.field == 'dataset' and '\n' not in str(caught.value)


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
  found = pipeline.load(str(path), validation_size=1)
  assert found.class_names == names and found.num_classes == len(names)
  assert len(found.train.labels) == 4 and len(found.validation.labels) == 1
  sets.same(found.test, pipeline.Split(arrays['test_images'], arrays['test_label']))
  assert found.test.labels.dtype == np.int32
  whole = pipeline.load(path)
  sets.same(whole.train, pipeline.Split(arrays['train_images'], [0, 1, 2, 1, 0]))


def test_packed_grey_images_gain_a_channel(tmp_path):
  path = tmp_path / 'grey.npz'
  arrays = _packed(train_images=np.ones((5, 4, 3), np.uint8),
                   test_images=np.ones((2, 4, 3, 1), np.uint8))
  np.savez(path, **arrays)
  assert pipeline.load(path).train.images.shape == (5, 4, 3, 1)


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
    pipeline.load(path)
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

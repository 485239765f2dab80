"""Loading by name, held-out examples, the order of an epoch, pixel scaling, and augmentation."""

import pathlib
import subprocess
import sys

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors
from at_jax.datasets import pipeline
from tests.fixtures import data_sets

_traced_order = jax.jit(lambda key, epoch, n: pipeline.epoch_order(key, epoch, n), static_argnums=2)


def test_importing_datasets_imports_no_reader():
  script = ('import sys, at_jax.datasets; print([name for name in '
            '("tensorflow", "tensorflow_datasets", "sklearn", "PIL", "flax") if name in sys.modules])')
  root = pathlib.Path(pipeline.__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', script], cwd=root, capture_output=True, text=True)
  assert done.stdout.strip() == '[]', done.stderr


def test_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(errors.UserError, match=r"sklearn.*pip install 'at_jax\[data\]'"):
    pipeline.load('digits')


def test_unknown_name_gets_a_suggestion():
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'.*digits.*npz") as caught:
    pipeline.load('cifar_10')
  assert caught.value.field == 'dataset' and '\n' not in str(caught.value)


def test_validation_comes_from_the_training_split():
  whole, digits = pipeline.load('digits'), pipeline.load('digits', validation_size=200)
  data_sets.assert_same(whole.test, digits.test)
  assert len(digits.validation.labels) == 200 and len(digits.train.labels) == 1200
  both = pipeline.Split(*map(np.concatenate, zip(digits.train, digits.validation, strict=True)))
  assert data_sets.sorted_examples(both) == data_sets.sorted_examples(whole.train)
  data_sets.assert_same(digits.validation, pipeline.load('digits', validation_size=200).validation)


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
def test_validation_size_out_of_range_is_rejected(size):
  with pytest.raises(errors.UserError, match='whole number from 0 to 1399') as caught:
    pipeline.load('digits', validation_size=size)
  assert caught.value.field == 'validation_size'


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.sampled_from([1, 17, 200]))
def test_epoch_order_is_a_permutation_also_when_traced(seed, epoch, n):
  key = jax.random.key(seed)
  order = pipeline.epoch_order(key, epoch, n)
  assert order.dtype == jnp.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(n))
  np.testing.assert_array_equal(order, _traced_order(key, jnp.int32(epoch), n))


def test_epoch_order_differs_between_epochs_and_keys():
  orders = [pipeline.epoch_order(jax.random.key(s), e, 100).tolist() for s in (0, 1) for e in (0, 1)]
  assert len({tuple(order) for order in orders}) == 4


def test_to_unit_equals_numpy_division_by_255():
  pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
  for function in (pipeline.to_unit, jax.jit(pipeline.to_unit)):
    unit = function(pixels)
    assert unit.dtype == jnp.float32
    np.testing.assert_array_equal(unit, pixels.astype(np.float32) / np.float32(255))
  with pytest.raises(TypeError, match='float32: use uint8'):
    pipeline.to_unit(np.zeros((2, 2), np.float32))


def _crops(image, pad, flip):
  """Every possible result of the augmentation of one image, in NumPy."""
  height, width, _ = image.shape
  padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
  padded[pad:pad + height, pad:pad + width] = image
  for top in range(2 * pad + 1):
    for left in range(2 * pad + 1):
      crop = padded[top:top + height, left:left + width]
      yield crop
      if flip:
        yield crop[:, ::-1]


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 2]), st.booleans(),
                  st.sampled_from([(4, 4, 1), (5, 3, 3)]))
def test_augment_returns_a_crop_of_the_padded_image(seed, pad, flip, shape):
  images = np.random.RandomState(seed % 2**31).randint(1, 256, (3, *shape)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(seed), 3)
  results = np.asarray(pipeline.augment(images, keys, pad=pad, flip=flip))
  assert results.dtype == np.uint8
  for image, result in zip(images, results, strict=True):
    assert any(np.array_equal(result, crop) for crop in _crops(image, pad, flip))


def test_augment_draws_every_crop_equally_often():
  n, pad = 4000, 1
  image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
  keys = jax.random.split(jax.random.key(1), n)
  results = np.asarray(pipeline.augment(np.repeat(image[None], n, 0), keys, pad=pad))
  counts = {crop.tobytes(): 0 for crop in _crops(image, pad, True)}
  assert len(counts) == 18  # 3 rows × 3 columns × 2; all different for these pixels
  for result in results:
    counts[result.tobytes()] += 1
  # Binomial(4000, 1/18): mean 222, standard deviation 14.5; the limit is five standard deviations.
  assert all(abs(count - n / 18) < 5 * (n / 18 * 17 / 18) ** 0.5 for count in counts.values())


def test_augment_does_not_depend_on_the_batch():
  images = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(3), 6)
  whole = np.asarray(pipeline.augment(images, keys))
  order = np.array([4, 1, 5, 0])
  np.testing.assert_array_equal(pipeline.augment(images[order], keys[order]), whole[order])
  np.testing.assert_array_equal(pipeline.augment(images[2:3], keys[2:3]), whole[2:3])
  halves = jax.vmap(pipeline.augment)(images.reshape(2, 3, 8, 8, 3), keys.reshape(2, 3))
  np.testing.assert_array_equal(halves.reshape(whole.shape), whole)
  np.testing.assert_array_equal(jax.jit(lambda x, k: pipeline.augment(x, k))(images, keys), whole)


def test_augment_without_pad_and_flip_is_the_identity():
  images = np.random.RandomState(0).randint(0, 256, (4, 5, 7, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(0), 4)
  np.testing.assert_array_equal(pipeline.augment(images, keys, pad=0, flip=False), images)


def test_augment_rejects_rbg_keys_and_a_negative_pad():
  images = np.zeros((2, 4, 4, 1), np.uint8)
  with pytest.raises(TypeError, match='rbg: use threefry keys'):
    pipeline.augment(images, jax.random.split(jax.random.key(0, impl='rbg'), 2))
  with pytest.raises(ValueError, match='pad = -1'):
    pipeline.augment(images, jax.random.split(jax.random.key(0), 2), pad=-1)

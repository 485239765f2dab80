"""Loading by name, held-out examples, the order of an epoch, pixel scaling, and augmentation."""

import fractions
import pathlib
import subprocess
import sys
import warnings

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
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'.*digits.*npz.*import path") as caught:
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


def test_dropped_class_is_in_no_split():
  whole, rest = pipeline.load('digits'), pipeline.load('digits', validation_size=100, drop_class=3)
  assert rest.num_classes == 9 and rest.class_names == tuple('012456789')
  assert len(rest.validation.labels) == 100
  both = pipeline.Split(*map(np.concatenate, zip(rest.train, rest.validation, strict=True)))
  for split, before in ((both, whole.train), (rest.test, whole.test)):
    # By its name every other example keeps its class.
    named = pipeline.Split(split.images, np.array(rest.class_names, int)[split.labels])
    kept = pipeline.Split(before.images[before.labels != 3], before.labels[before.labels != 3])
    assert data_sets.sorted_examples(named) == data_sets.sorted_examples(kept)
    assert split.labels.dtype == np.int32


@pytest.mark.parametrize('label', [-1, 10, 1.5, True, '3'])
def test_dropped_class_out_of_range_is_rejected(label):
  with pytest.raises(errors.UserError, match='use a class from 0 to 9') as caught:
    pipeline.load('digits', drop_class=label)
  assert caught.value.field == 'drop_class'


def test_two_classes_and_an_image_remain():
  x, labels = np.full((3, 2, 2), 255, np.uint8), np.array([0, 1, 2])
  arrays = dict(train_images=x, train_label=labels, test_images=x, test_label=labels * 0 + 2)
  with pytest.raises(errors.UserError, match='a split has no other class'):
    pipeline.from_arrays('mine', arrays, drop_class=2)
  two = arrays | dict(train_label=np.array([0, 1, 1]), test_label=np.array([0, 1, 0]))
  with pytest.raises(errors.UserError, match='two classes must remain'):
    pipeline.from_arrays('mine', two, drop_class=0)


@pytest.mark.parametrize('size', [-1, 1400, 10**9, 0.5, True, None, '10'])
def test_validation_size_out_of_range_is_rejected(size):
  with pytest.raises(errors.UserError, match='whole number from 0 to 1399') as caught:
    pipeline.load('digits', validation_size=size)
  assert caught.value.field == 'validation_size'


def test_large_validation_split_gets_a_warning():
  with pytest.warns(UserWarning, match='701 of 1400 .* held out, and 699 remain .* such as 140'):
    pipeline.load('digits', validation_size=701)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    pipeline.load('digits', validation_size=700)


def test_arrays_of_a_loader_are_checked_like_a_file():
  digits = pipeline.load('digits', validation_size=200)
  for labels in (digits.train.labels, digits.train.labels[:, None], digits.train.labels.tolist()):
    found = pipeline.from_arrays('mine', dict(
        train_images=digits.train.images, train_label=labels, val_images=digits.validation.images,
        val_label=digits.validation.labels, test_images=digits.test.images, test_label=digits.test.labels),
        validation_size=200)
    for split in ('train', 'validation', 'test'):
      data_sets.assert_same(getattr(found, split), getattr(digits, split))
  again = pipeline.from_arrays('mine', digits, validation_size=100)
  assert again.class_names == digits.class_names and len(again.validation.labels) == 100
  data_sets.assert_same(again.train, digits.train)
  for wrong, pattern in (((1, 2), 'returns tuple: return a dictionary'), ({}, 'has no train_images'),
                         ({'train_images': [[1], [1, 2]]}, 'lists that are not arrays'),
                         (digits._replace(train=digits.train._replace(images=digits.train.images / 255.)),
                          r'is float64 in 0\.\.1: .*255 \* images')):
    with pytest.raises(errors.UserError, match=pattern) as caught:
      pipeline.from_arrays('mine', wrong)
    assert '\n' not in str(caught.value)


def _examples(labels):
  return pipeline.Split(np.arange(len(labels)), np.asarray(labels, np.int32))


def test_first_examples_are_taken_unless_sorted_by_class():
  rng = np.random.RandomState(0)
  shuffled, ordered = _examples(rng.randint(0, 10, 1000)), _examples(np.repeat(np.arange(10), 100))
  for size in (0, 1000, 2000):
    assert pipeline.subset(ordered, size) == (ordered, 'all')
  for size in (1, 10, 60, 500):
    found, which = pipeline.subset(shuffled, size)
    assert which == 'first' and found.images.tolist() == list(range(size))
  previous = set()
  for size in (10, 60, 500):
    found, which = pipeline.subset(ordered, size)
    assert which == 'stratified' and np.bincount(found.labels).tolist() == [size // 10] * 10
    assert previous < set(found.images.tolist())  # a smaller subset is part of a larger one
    previous = set(found.images.tolist())
  interleaved = _examples(np.tile(np.arange(10), 100))
  assert pipeline.subset(interleaved, 60)[1] == 'first'


def test_random_orders_pass_as_often_as_the_quantile_says():
  rng, labels = np.random.RandomState(1), np.repeat(np.arange(5), [100, 200, 300, 150, 250])
  which = [pipeline.subset(_examples(rng.permutation(labels)), 400)[1] for _ in range(4000)]
  # Chi-square test at level .001: Binomial(4000, .001) has mean 4 and is at most 12 but for 3 in 10,000.
  assert which.count('stratified') <= 12


def test_subset_of_cifar10_is_the_first_images():
  path = pathlib.Path(pipeline.__file__).parents[2] / 'results/small_cifar10/pgd_at_cifar10-0/verdicts.npz'
  first = np.load(path)['labels']  # of the first 1,000 test images; CIFAR-10 has 1,000 of each class
  rest = np.repeat(np.arange(10), 1000 - np.bincount(first, minlength=10))
  found, which = pipeline.subset(_examples([*first, *rest]), 1000)
  assert which == 'first'
  np.testing.assert_array_equal(found.labels, first)


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


def test_to_unit_is_correctly_rounded():
  pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
  for function in (pipeline.to_unit, jax.jit(pipeline.to_unit)):
    unit = np.asarray(function(pixels))
    assert unit.dtype == np.float32
    # NumPy and PyTorch divide so too, as IEEE 754 demands of a division.
    np.testing.assert_array_equal(unit, pixels.astype(np.float32) / np.float32(255))
    for pixel, value in zip(pixels.ravel().tolist(), unit.ravel(), strict=True):
      error = lambda v, exact=fractions.Fraction(pixel, 255): abs(fractions.Fraction(float(v)) - exact)
      assert all(error(value) < error(np.nextafter(value, np.float32(end))) for end in (-1, 2)), pixel
  with pytest.raises(TypeError, match='float32: use uint8'):
    pipeline.to_unit(np.zeros((2, 2), np.float32))


def test_to_unit_is_the_same_if_products_are_fused():
  # A compiler may round the sum of a product once. Exactly: 1/255 as the two float32 constants of to_unit.
  high, low = (fractions.Fraction(float(np.float32(c))) for c in (257 / 2**16, 1 / (255 * 2**16)))
  for pixel in range(256):
    fused = np.float32(float(pixel * (high + low)))  # the sum has at most 48 bits: float64 holds it exactly
    assert fractions.Fraction(float(pixel * (high + low))) == pixel * (high + low)
    assert fused == np.float32(pixel) / np.float32(255)


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

"""The order of an epoch, and what the augmentation draws."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.datasets import pipeline

_traced_order = jax.jit(lambda key, epoch, n: pipeline.epoch_order(key, epoch, n), static_argnums=2)


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.sampled_from([1, 17, 200]))
def test_epoch_order_is_a_permutation_and_a_function_of_key_and_epoch(seed, epoch, n):
  key = jax.random.key(seed)
  order = pipeline.epoch_order(key, epoch, n)
  assert order.dtype == jnp.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(n))
  np.testing.assert_array_equal(order, _traced_order(key, jnp.int32(epoch), n))


def test_epoch_order_differs_between_epochs_and_keys():
  orders = [pipeline.epoch_order(jax.random.key(s), e, 100).tolist() for s in (0, 1) for e in (0, 1)]
  assert len({tuple(order) for order in orders}) == 4


def test_to_unit_divides_by_255_and_keeps_the_shape():
  pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
  for function in (pipeline.to_unit, jax.jit(pipeline.to_unit)):
    unit = function(pixels)
    assert unit.dtype == jnp.float32
    np.testing.assert_array_equal(unit, pixels.astype(np.float32) / np.float32(255))  # exactly
  with pytest.raises(TypeError, match='float32'):
    pipeline.to_unit(np.zeros((2, 2), np.float32))


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
  results = np.asarray(pipeline.augment(images, keys, pad=pad, flip=flip))
  assert results.dtype == np.uint8
  for image, result in zip(images, results, strict=True):
    assert any(np.array_equal(result, crop) for _, crop in _crops(image, pad, flip))


def test_augment_draws_every_crop_about_equally_often():
  n, pad = 4000, 1
  image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
  keys = jax.random.split(jax.random.key(1), n)
  results = np.asarray(pipeline.augment(np.repeat(image[None], n, 0), keys, pad=pad))
  found = {crop.tobytes(): 0 for _, crop in _crops(image, pad, True)}
  assert len(found) == 18  # 3 rows × 3 columns × 2, all different for these pixels
  for result in results:
    found[result.tobytes()] += 1
  # Binomial(4000, 1/18): mean 222, standard deviation 14.5; five of them to either side.
  assert all(abs(count - n / 18) < 5 * (n / 18 * 17 / 18) ** 0.5 for count in found.values())


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


def test_augment_without_padding_and_mirroring_is_the_identity():
  images = np.random.RandomState(0).randint(0, 256, (4, 5, 7, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(0), 4)
  np.testing.assert_array_equal(pipeline.augment(images, keys, pad=0, flip=False), images)


def test_augment_refuses_what_would_break_its_promise():
  images = np.zeros((2, 4, 4, 1), np.uint8)
  with pytest.raises(TypeError, match='threefry'):
    pipeline.augment(images, jax.random.split(jax.random.key(0, impl='rbg'), 2))
  with pytest.raises(ValueError, match='pad = -1'):
    pipeline.augment(images, jax.random.split(jax.random.key(0), 2), pad=-1)

"""AutoAugment's operations against Pillow, pixel by pixel.

`by_pillow` calls Pillow as the released code of Tack et al. does for each operation
(github.com/alinlab/consistency-adversarial, datasets/autoaugment.py).
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from at_jax.datasets import autoaugment, image_operations, pipeline
from at_jax.datasets.image_operations import Operation

OPERATIONS = tuple(dict.fromkeys(sum((operations for operations, _ in autoaugment.CHOICES), ())))
GREY = (128, 128, 128)


def by_pillow(image, operation):
  """Applies one operation to uint8[H, W, C] with Pillow."""
  name, m = operation.name, operation.magnitude
  picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
  width, height = picture.size
  fill = GREY if picture.mode == 'RGB' else GREY[0]
  affine = lambda matrix, resample=Image.Resampling.NEAREST: picture.transform(
      picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)
  if name == 'Identity':
    found = picture
  elif name == 'ShearY':
    found = affine((1, 0, 0, m, 1, 0), Image.Resampling.BICUBIC)
  elif name == 'TranslateX':
    found = affine((1, 0, m * width, 0, 1, 0))
  elif name == 'TranslateY':
    found = affine((1, 0, 0, 0, 1, m * height))
  elif name == 'Rotate':
    rotated = picture.convert('RGBA').rotate(m)
    grey = Image.new('RGBA', rotated.size, (128,) * 4)
    found = Image.composite(rotated, grey, rotated).convert(picture.mode)
  elif name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
    found = getattr(ImageEnhance, name)(picture).enhance(1 + m)
  elif name == 'Posterize':
    found = ImageOps.posterize(picture, int(m))
  elif name == 'Solarize':
    found = ImageOps.solarize(picture, m)
  else:
    found = getattr(ImageOps, name.lower())(picture)
  return np.asarray(found).reshape(image.shape)


@jax.jit
def by_at_jax(images):
  """Applies each operation to each image: [operations, images, H, W, C]."""
  each = jax.vmap(lambda image, which: image_operations.apply(image, which, OPERATIONS), (0, None))
  return jax.vmap(each, (None, 0))(images, jnp.arange(len(OPERATIONS)))


def varied_images(shape):
  """Noise, smooth waves, two values, one value, a narrow range, dark noise, and a bright corner."""
  rng = np.random.default_rng(0)
  height, width, channels = shape
  y, x = np.mgrid[:height, :width][..., None] / 5
  waves = 128 + 90 * np.sin(y + np.arange(channels)) + 37 * np.cos(2 * x - y)
  images = [rng.integers(0, 256, shape), waves, rng.integers(0, 2, shape) * 255,
            np.full(shape, 77), rng.integers(90, 141, shape), rng.integers(0, 256, shape) ** 2 // 300,
            np.where(y + x < 6, 250, waves / 3)]
  return np.stack(images).astype(np.uint8)


def compare(images):
  """Asserts that all operations agree with Pillow; returns the shares of pixels that differ by 1."""
  found = np.asarray(by_at_jax(images))
  assert found.dtype == np.uint8
  shares = {}
  for operation, actual in zip(OPERATIONS, found, strict=True):
    expected = np.stack([by_pillow(image, operation) for image in images])
    gap = np.abs(actual.astype(int) - expected)
    if operation.name in ('AutoContrast', 'ShearY'):
      # If the exact value is a whole number, Pillow's double may be just below it.
      assert gap.max() <= 1, operation
      shares[operation] = np.mean(gap > 0)
    else:
      np.testing.assert_array_equal(actual, expected, err_msg=str(operation))
    if operation != Operation() and operation.level != 0 and images.shape[-1] == 3:
      assert (actual != images).any(), operation
  return shares


@pytest.mark.parametrize('shape', [(32, 32, 3), (8, 8, 1)], ids=str)
def test_operations_equal_those_of_pillow(shape):
  shares = compare(varied_images(shape))
  assert max(shares.values()) < .05, shares


@pytest.mark.long
@pytest.mark.parametrize('shape', [
    (64, 64, 3), (28, 28, 1), (17, 20, 3),
    (13, 18, 1),  # fewer than 256 pixels, which Equalize does not change
], ids=str)
def test_operations_equal_those_of_pillow_at_other_sizes(shape):
  shares = compare(varied_images(shape))
  assert max(shares.values()) < .05, shares


@pytest.mark.long
@pytest.mark.skipif(
    not list(pathlib.Path(os.environ.get('TFDS_DATA_DIR', '/nowhere')).glob('cifar10/*/dataset_info.json')),
    reason='needs CIFAR-10 prepared under TFDS_DATA_DIR')
def test_operations_equal_those_of_pillow_on_cifar10():
  images = pipeline.load('cifar10').test.images[:256]
  shares = compare(images)
  assert max(shares.values()) < .01, shares

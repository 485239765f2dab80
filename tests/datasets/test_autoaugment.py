"""AutoAugment's policy against torchvision's table, the frequencies of its draws, and Cutout."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.datasets import autoaugment, image_operations
from at_jax.datasets.image_operations import Operation

# torchvision.transforms.AutoAugmentPolicy.CIFAR10 (v0.12), one sub-policy per line. '-': no level.
TORCHVISION = '''
Invert 0.1 -, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5 -, Equalize 0.9 -
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6 -, Equalize 0.5 -
Contrast 0.6 7, Sharpness 0.6 5
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3 -, AutoContrast 0.4 -
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0 -
Equalize 0.2 -, AutoContrast 0.6 -
Equalize 0.2 -, Equalize 0.6 -
Color 0.9 9, Equalize 0.6 -
AutoContrast 0.8 -, Solarize 0.2 8
Brightness 0.1 3, Color 0.7 0
Solarize 0.4 5, AutoContrast 0.9 -
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9 -, Solarize 0.8 3
Equalize 0.8 -, Invert 0.1 -
TranslateY 0.7 9, AutoContrast 0.9 -
'''
UNSIGNED = ('Rotate', 'Posterize', 'Solarize', 'Equalize', 'AutoContrast', 'Invert')


def test_policy_is_that_of_torchvision():
  lines = TORCHVISION.strip().splitlines()
  assert len(lines) == len(autoaugment.CIFAR10_POLICY) == 25
  for pair, line in zip(autoaugment.CIFAR10_POLICY, lines, strict=True):
    for (name, probability, level), theirs in zip(pair, line.split(', '), strict=True):
      assert theirs.split() == [name, str(probability), theirs.split()[2]]
      if theirs.split()[2] != '-':
        assert level == int(theirs.split()[2])


@pytest.mark.parametrize('name, level, magnitude', [
    # By hand: the ranges of Cubuk et al., 2019, table 6, in ten levels, range · level / 9.
    ('ShearY', 8, .3 * 8 / 9), ('TranslateX', 9, 150 / 331), ('TranslateY', 3, 50 / 331),
    ('Rotate', 2, 20 / 3), ('Color', 3, .3), ('Contrast', 6, .6), ('Brightness', 7, .7),
    ('Sharpness', 9, .9),
    ('Posterize', 7, 5),  # 8 − 4·7/9 = 4.9 bits
    ('Solarize', 2, 256 * 7 / 9), ('Solarize', 8, 256 / 9), ('Equalize', 5, 0)])
def test_magnitudes_are_those_of_the_paper(name, level, magnitude):
  np.testing.assert_allclose(Operation(name, level).magnitude, magnitude, rtol=1e-12)
  np.testing.assert_allclose(Operation(name, level, -1).magnitude, -magnitude, rtol=1e-12)


def _chances():
  """The probability of each pair of operations, from the policy."""
  chances = collections.Counter()
  for pair in autoaugment.CIFAR10_POLICY:
    choices = []
    for name, probability, level in pair:
      signs = (1,) if name in UNSIGNED else (-1, 1)
      choices.append([(Operation(), 1 - probability)]
                     + [(Operation(name, level, sign), probability / len(signs)) for sign in signs])
    for first, p in choices[0]:
      for second, q in choices[1]:
        chances[first, second] += p * q / 25
  return chances


def test_frequencies_of_operations_are_those_of_the_policy():
  operations = tuple(dict.fromkeys(sum((operations for operations, _ in autoaugment.CHOICES), ())))
  each = jax.jit(jax.vmap(jax.vmap(lambda image, which: image_operations.apply(
      image, which, operations), (None, 0)), (0, None)))
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
  count = len(operations)
  once = each(np.stack([image] * count), np.arange(count))[0]
  twice = np.asarray(each(once, np.arange(count)))
  expected = collections.Counter()  # the probability of each distinct result
  for (first, second), chance in _chances().items():
    expected[twice[operations.index(first), operations.index(second)].tobytes()] += chance
  np.testing.assert_allclose(sum(expected.values()), 1)
  n = 10000
  keys = jax.random.split(jax.random.key(0), n)
  results = np.asarray(jax.jit(jax.vmap(autoaugment.autoaugment, (None, 0)))(image, keys))
  found = collections.Counter(result.tobytes() for result in results)
  assert found.keys() <= {result for result, chance in expected.items() if chance > 0}
  for result, p in expected.items():  # binomial: five standard deviations, and 1 for rare results
    assert abs(found[result] - n * p) <= 5 * (n * p * (1 - p)) ** .5 + 1


def test_cutout_is_uniform_over_the_centre_pixel():
  height, width, n = 4, 6, 6000
  expected = collections.Counter()
  for y in range(height):
    for x in range(width):  # side 3, half of it 1: rows y − 1 and y, and columns x − 1 and x
      image = np.ones((height, width, 1), np.uint8)
      image[max(y - 1, 0):y + 1, max(x - 1, 0):x + 1] = 0
      expected[image.tobytes()] += 1 / (height * width)
  keys = jax.random.split(jax.random.key(0), n)
  cut = jax.jit(jax.vmap(autoaugment.cutout, (None, 0)))
  found = collections.Counter(
      image.tobytes() for image in np.asarray(cut(np.ones((height, width, 1), np.uint8), keys)))
  assert found.keys() == expected.keys()
  for image, p in expected.items():
    assert abs(found[image] - n * p) <= 5 * (n * p * (1 - p)) ** .5


def test_draws_do_not_depend_on_the_batch():
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(3), 4)
  whole = np.asarray(autoaugment.augment(images, keys))
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(autoaugment.augment(images[order], keys[order]), whole[order])
  assert (whole != images).any(axis=(1, 2, 3)).all()  # Cutout changes every image


def test_invalid_images_are_rejected():
  with pytest.raises(TypeError, match='float32: use uint8'):
    autoaugment.autoaugment(jnp.zeros((4, 4, 3)), jax.random.key(0))
  with pytest.raises(ValueError, match=r'\(4, 4, 2\): use 1 or 3 channels'):
    autoaugment.autoaugment(np.zeros((4, 4, 2), np.uint8), jax.random.key(0))

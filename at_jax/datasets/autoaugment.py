"""AutoAugment's CIFAR-10 policy and Cutout, the augmentation of Consistency-AT's second half of training."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.datasets import image_operations
from at_jax.datasets.image_operations import Operation

Array = jax.Array
# 25 sub-policies of two operations (name, probability, level).
CIFAR10_POLICY = (
    (('Invert', .1, 7), ('Contrast', .2, 6)),
    (('Rotate', .7, 2), ('TranslateX', .3, 9)),
    (('Sharpness', .8, 1), ('Sharpness', .9, 3)),
    (('ShearY', .5, 8), ('TranslateY', .7, 9)),
    (('AutoContrast', .5, 8), ('Equalize', .9, 2)),
    (('ShearY', .2, 7), ('Posterize', .3, 7)),
    (('Color', .4, 3), ('Brightness', .6, 7)),
    (('Sharpness', .3, 9), ('Brightness', .7, 9)),
    (('Equalize', .6, 5), ('Equalize', .5, 1)),
    (('Contrast', .6, 7), ('Sharpness', .6, 5)),
    (('Color', .7, 7), ('TranslateX', .5, 8)),
    (('Equalize', .3, 7), ('AutoContrast', .4, 8)),
    (('TranslateY', .4, 3), ('Sharpness', .2, 6)),
    (('Brightness', .9, 6), ('Color', .2, 8)),
    (('Solarize', .5, 2), ('Invert', .0, 3)),
    (('Equalize', .2, 0), ('AutoContrast', .6, 0)),
    (('Equalize', .2, 8), ('Equalize', .6, 4)),
    (('Color', .9, 9), ('Equalize', .6, 6)),
    (('AutoContrast', .8, 4), ('Solarize', .2, 8)),
    (('Brightness', .1, 3), ('Color', .7, 0)),
    (('Solarize', .4, 5), ('AutoContrast', .9, 3)),
    (('TranslateY', .9, 9), ('TranslateY', .7, 9)),
    (('AutoContrast', .9, 2), ('Solarize', .8, 3)),
    (('Equalize', .8, 8), ('Invert', .1, 3)),
    (('TranslateY', .7, 9), ('AutoContrast', .9, 1)),
)
# Operations whose magnitude has a random sign. Consistency-AT's released code rotates in one direction only.
_SIGNED = ('ShearY', 'TranslateX', 'TranslateY', 'Color', 'Contrast', 'Brightness', 'Sharpness')


def _choices(position: int) -> tuple[tuple[Operation, ...], np.ndarray]:
  """The operations of one position of the sub-policies, and their indices i[25, 2] by sub-policy and sign."""
  signed = [[Operation(name, level, sign if name in _SIGNED else 1) for sign in (-1, 1)]
            for name, _, level in (sub_policy[position] for sub_policy in CIFAR10_POLICY)]
  operations = tuple(dict.fromkeys([Operation(), *sum(signed, [])]))  # the identity has index 0
  return operations, np.array([[operations.index(o) for o in pair] for pair in signed])


CHOICES = (_choices(0), _choices(1))


def autoaugment(image: Array | np.ndarray, key: Array) -> Array:
  """Applies one of CIFAR-10's 25 sub-policies at random: two operations, each with its probability.

  The sign of a magnitude is random, except that rotations have one direction.

  Args:
    image: uint8[H, W, C], C = 1 or 3.
    key: typed PRNG key.

  Returns:
    uint8[H, W, C].

  Raises:
    TypeError: if the image is not uint8.
    ValueError: if C is neither 1 nor 3.

  Example:
    >>> image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    >>> found = jax.jit(autoaugment)(image, jax.random.key(0))
    >>> found.shape, found.dtype.name
    ((8, 8, 3), 'uint8')

  Reference: E. D. Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, 2019, table 7, and
  the released code of J. Tack et al., Consistency Regularization for Adversarial Robustness, 2022.
  """
  # The bias of the remainder is below 25 / 2³².
  bits = jax.random.bits(key, (5,), jnp.uint32)
  chosen = (bits[0] % len(CIFAR10_POLICY)).astype(jnp.int32)
  for position, (operations, indices) in enumerate(CHOICES):
    probability = jnp.asarray(np.float32([pair[position][1] for pair in CIFAR10_POLICY]))[chosen]
    is_applied = (bits[1 + 2 * position] >> 8).astype(jnp.float32) / 2**24 < probability
    sign = (bits[2 + 2 * position] & 1).astype(jnp.int32)
    index = jnp.where(is_applied, jnp.asarray(indices)[chosen, sign], 0)
    image = image_operations.apply(image, index, operations)
  return image


def cutout(image: Array | np.ndarray, key: Array) -> Array:
  """Sets a square around a random pixel to zero; its side is half the image's width.

  The square is clipped to the image.

  Args:
    image: [H, W, C] of any dtype.
    key: typed PRNG key.

  Returns:
    [H, W, C] of the image's dtype.

  Example:
    >>> zeros = 64 - int(cutout(np.ones((8, 8, 1), np.uint8), jax.random.key(0)).sum())
    >>> 4 <= zeros <= 16
    True

  Reference: T. DeVries and G. W. Taylor, Improved Regularization of Convolutional Neural Networks with
  Cutout, 2017, section 3.2; the size is that of Tack et al., 2022.
  """
  height, width, _ = image.shape
  bits = jax.random.bits(key, (2,), jnp.uint32)
  half_side = width // 2 // 2
  masks = []
  for drawn, size in zip(bits, (height, width), strict=True):
    from_center = jnp.arange(size) - (drawn % size).astype(jnp.int32)
    masks.append((-half_side <= from_center) & (from_center < half_side))
  return jnp.where((masks[0][:, None] & masks[1][None])[..., None], 0, image)


@jax.jit
def augment(images: Array | np.ndarray, keys: Array) -> Array:
  """Applies `autoaugment` and then `cutout` to each image, with its own key.

  Args:
    images: uint8[B, H, W, C], C = 1 or 3, cropped and mirrored already.
    keys: typed PRNG keys [B]. They may be the keys of `pipeline.augment`; its draws are independent of these.

  Returns:
    uint8[B, H, W, C].

  Raises:
    TypeError: if the images are not uint8.
    ValueError: if C is neither 1 nor 3.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> images = np.full((2, 8, 8, 3), 200, np.uint8)
    >>> (augment(images, keys) == 0).any(axis=(1, 2, 3)).tolist()  # Cutout
    [True, True]

  Reference: J. Tack et al., Consistency Regularization for Adversarial Robustness, 2022, and its released
  code.
  """
  def one(image: Array, key: Array) -> Array:
    policy_key, cutout_key = jax.random.split(jax.random.fold_in(key, 1))
    return cutout(autoaugment(image, policy_key), cutout_key)

  return jax.vmap(one)(jnp.asarray(images), keys)

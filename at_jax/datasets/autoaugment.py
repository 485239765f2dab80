"""AutoAugment's policy for CIFAR-10 and Cutout, as the second half of Consistency-AT has them."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.datasets import image_operations
from at_jax.datasets.image_operations import Operation

# Twenty-five sub-policies of two operations: name, probability, level.
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
# The released code of Consistency-AT turns one way only.
_SIGNED = ('ShearY', 'TranslateX', 'TranslateY', 'Color', 'Contrast', 'Brightness', 'Sharpness')


def _slot(place):
  """The operations that a place of the policy may take, and which of them, by sub-policy and sign.

  The first leaves the image as it is, for where the draw says so.
  """
  signed = [[Operation(name, level, sign if name in _SIGNED else 1) for sign in (-1, 1)]
            for name, _, level in (pair[place] for pair in CIFAR10_POLICY)]
  operations = tuple(dict.fromkeys([Operation(), *sum(signed, [])]))
  return operations, np.array([[operations.index(o) for o in pair] for pair in signed])


SLOTS = (_slot(0), _slot(1))


def autoaugment(image, key) -> jax.Array:
  """One of CIFAR-10's 25 sub-policies at random: two operations, each with its probability.

  A magnitude that has a sign has either with probability 1/2, except that rotations turn one way.

  Args:
    image: uint8[H, W, C], C = 1 or 3.
    key: typed PRNG key.

  Returns:
    uint8[H, W, C].

  Raises:
    TypeError: the image is not uint8.
    ValueError: C is neither 1 nor 3.

  Example:
    >>> jax.jit(autoaugment)(np.zeros((8, 8, 3), np.uint8), jax.random.key(0)).shape
    (8, 8, 3)

  Source: Cubuk, Zoph, Mane, Vasudevan and Le, AutoAugment: Learning Augmentation Strategies from
  Data, CVPR 2019, table 7, as the code of Tack et al., 2022, has it.
  """
  # The bias of the remainder is below 25 / 2³².
  bits = jax.random.bits(key, (5,), jnp.uint32)
  chosen = (bits[0] % len(CIFAR10_POLICY)).astype(jnp.int32)
  for place, (operations, choices) in enumerate(SLOTS):
    probability = jnp.asarray(np.float32([pair[place][1] for pair in CIFAR10_POLICY]))[chosen]
    drawn = (bits[1 + 2 * place] >> 8).astype(jnp.float32) / 2**24 < probability
    sign = (bits[2 + 2 * place] & 1).astype(jnp.int32)
    which = jnp.where(drawn, jnp.asarray(choices)[chosen, sign], 0)
    image = image_operations.apply(image, which, operations)
  return image


def cutout(image, key) -> jax.Array:
  """A square of zeros with half the image's width, around a pixel at random, clipped to the image.

  Args:
    image: [H, W, C] of any dtype.
    key: typed PRNG key.

  Returns:
    [H, W, C] of the image's dtype.

  Example:
    >>> int(cutout(np.ones((8, 8, 1), np.uint8), jax.random.key(0)).sum()) >= 64 - 16
    True

  Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
  2017, section 3.2; the size is that of Tack et al., 2022.
  """
  height, width, _ = image.shape
  bits = jax.random.bits(key, (2,), jnp.uint32)
  reach = width // 2 // 2
  hidden = []
  for drawn, size in zip(bits, (height, width), strict=True):
    from_center = jnp.arange(size) - (drawn % size).astype(jnp.int32)
    hidden.append((-reach <= from_center) & (from_center < reach))
  return jnp.where((hidden[0][:, None] & hidden[1])[..., None], 0, image)


@jax.jit
def augment(images, keys) -> jax.Array:
  """`autoaugment` and then `cutout` on each image, with a key of its own.

  Args:
    images: uint8[B, H, W, C], C = 1 or 3; cropped and mirrored already.
    keys: typed PRNG keys [B], those of `data.augment`: the draws are others.

  Returns:
    uint8[B, H, W, C].

  Raises:
    TypeError: the images are not uint8.
    ValueError: C is neither 1 nor 3.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> augment(np.zeros((2, 8, 8, 3), np.uint8), keys).dtype
    dtype('uint8')

  Source: Tack et al., Consistency Regularization for Adversarial Robustness, AAAI 2022, and its
  released code.
  """
  def one(image, key):
    policy_key, cutout_key = jax.random.split(jax.random.fold_in(key, 1))
    return cutout(autoaugment(image, policy_key), cutout_key)

  return jax.vmap(one)(jnp.asarray(images), keys)

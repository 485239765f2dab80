"""Random resized crops of images of any shape, and central crops to evaluate, on the host with Pillow."""

import math

import numpy as np
from PIL import Image

_AREA, _RATIO = (.08, 1.), (3 / 4, 4 / 3)
_ATTEMPTS = 10
_SHORTER_SIDE = 256 / 224  # of an image to evaluate, relative to the side of its crop


def draws(key: int, step: int, index: int) -> np.ndarray:
  """Returns the uniform random numbers of one example in one step.

  They depend on nothing else, so they are the same in any batch, thread and process.

  Args:
    key: of the run, below 2¹²⁸.
    step: number of the minibatch, from the start of the run.
    index: position of the example in the training set.

  Returns:
    f64[40] in [0, 1).

  Example:
    >>> bool((draws(7, 0, 3) == draws(7, 0, 3)).all()), bool((draws(7, 0, 3) == draws(7, 1, 3)).any())
    (True, False)

  Reference: J. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (Philox). NumPy guarantees
  its stream (NEP 19).
  """
  # The lowest word counts the blocks of one stream.
  bits = np.random.Philox(key=key, counter=[0, step, index, 0]).random_raw(4 * _ATTEMPTS)
  return (bits >> np.uint64(11)) * 2.**-53


def box(height: int, width: int, uniforms: np.ndarray) -> tuple[int, int, int, int]:
  """Draws the box of a random resized crop.

  Area / (height · width) is uniform in [.08, 1], and the logarithm of width / height is uniform between those
  of 3/4 and 4/3. The position is uniform. If ten such boxes are larger than the image, it is the largest box
  in the centre whose ratio is within these limits.

  Args:
    height: of the image.
    width: of the image.
    uniforms: f64[40] in [0, 1).

  Returns:
    left, top, right, bottom, as Pillow takes them.

  Example:
    >>> box(100, 100, np.full(40, .5))  # half of .08 + 1 of the area, square, in the centre
    (14, 14, 87, 87)

  Reference: C. Szegedy et al., Going Deeper with Convolutions, 2015, section 6; as
  torchvision.transforms.RandomResizedCrop.
  """
  for area, ratio, down, right in uniforms.reshape(_ATTEMPTS, 4):
    area = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
    ratio = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
      return left, top, left + w, top + h
  w = min(width, round(height * _RATIO[1]))
  h = min(height, round(width / _RATIO[0]))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def train_image(image: Image.Image, size: int, uniforms: np.ndarray) -> np.ndarray:
  """Crops at random and resizes to a square.

  Args:
    image: any image.
    size: side of the result.
    uniforms: f64[40] in [0, 1), as `draws` gives them.

  Returns:
    uint8[size, size, 3].

  Example:
    >>> train_image(Image.new('L', (20, 30), 9), 8, np.full(40, .5)).shape
    (8, 8, 3)
  """
  crop = image.crop(box(image.height, image.width, uniforms)).convert('RGB')
  return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))


def test_image(image: Image.Image, size: int) -> np.ndarray:
  """Resizes the shorter side to 256/224 · size, and takes the central square.

  Args:
    image: any image.
    size: side of the result.

  Returns:
    uint8[size, size, 3].

  Example:
    >>> test_image(Image.new('L', (20, 30), 9), 8).shape
    (8, 8, 3)

  Reference: the usual evaluation on ImageNet; size 224 gives torchvision's Resize(256), CenterCrop(224).
  """
  image = image.convert('RGB')
  shorter = round(size * _SHORTER_SIDE)
  # torchvision truncates the longer side.
  scaled = [max(side * shorter // min(image.size), shorter) for side in image.size]
  image = image.resize(scaled, Image.Resampling.BILINEAR)
  left, top = (round((side - size) / 2) for side in scaled)
  return np.asarray(image.crop((left, top, left + size, top + size)))

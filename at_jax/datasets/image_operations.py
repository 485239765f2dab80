"""AutoAugment's operations on a uint8 image, bit for bit like Pillow.

The index of the operation may be traced, so under vmap each image has its own operation. Operations of one
kind share their arithmetic and differ in parameters that are looked up: geometric operations are one table of
source pixels, enhancements one blend, and the others one table of 256 entries per channel.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
FILL = 128  # value of pixels from outside the image
# Magnitudes of levels 0..9. Units: ShearY pixels per pixel, TranslateX and TranslateY fractions of the size,
# Rotate degrees, enhancements |factor − 1|, Posterize bits kept, Solarize the lowest value that is inverted.
MAGNITUDES = {
    'ShearY': np.linspace(0, .3, 10),
    'TranslateX': np.linspace(0, 150 / 331, 10),
    'TranslateY': np.linspace(0, 150 / 331, 10),
    'Rotate': np.linspace(0, 30, 10),
    'Color': np.linspace(0, .9, 10),
    'Contrast': np.linspace(0, .9, 10),
    'Brightness': np.linspace(0, .9, 10),
    'Sharpness': np.linspace(0, .9, 10),
    'Posterize': np.round(np.linspace(8, 4, 10)),
    'Solarize': np.linspace(256, 0, 10),
}
_GEOMETRY = ('ShearY', 'TranslateX', 'TranslateY', 'Rotate')
_ENHANCEMENT = ('Color', 'Contrast', 'Brightness', 'Sharpness')


class Operation(NamedTuple):
  """An operation with its magnitude.

  Attributes:
    name: a key of `MAGNITUDES`, or 'AutoContrast', 'Equalize', 'Invert' or 'Identity'.
    level: index into `MAGNITUDES[name]`, 0..9.
    sign: sign of the magnitude, 1 or −1.
  """
  name: str = 'Identity'
  level: int = 0
  sign: int = 1

  @property
  def magnitude(self) -> float:
    """The signed magnitude, in the units of `MAGNITUDES`; 0 if the operation has none."""
    return self.sign * float(MAGNITUDES[self.name][self.level]) if self.name in MAGNITUDES else 0.


def apply(image: Array | np.ndarray, index: int | Array, operations: tuple[Operation, ...]) -> Array:
  """Applies `operations[index]` to an image.

  The result equals Pillow's bit for bit, with one exception: for 'AutoContrast' and 'ShearY' a pixel whose
  exact value is a whole number may differ by 1, because Pillow truncates a double that may be just below that
  number. With one channel, 'Color' is the identity.

  Args:
    image: uint8[H, W, C], C = 1 or 3.
    index: i32[], index into `operations`; may be traced.
    operations: the possible operations; static.

  Returns:
    uint8[H, W, C].

  Raises:
    TypeError: if the image is not uint8.
    ValueError: if C is neither 1 nor 3.

  Example:
    >>> apply(jnp.full((2, 2, 1), 200, jnp.uint8), 1, (Operation(), Operation('Invert')))[0, 0, 0]
    Array(55, dtype=uint8)

  Reference: E. D. Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, 2019, table 6. As in
  the released code of Tack et al., 2022, ShearY interpolates bicubically, the other geometric operations take
  the nearest pixel, and pixels from outside the image are grey.
  """
  if image.dtype != jnp.uint8:
    raise TypeError(f'image.dtype = {image.dtype}: use uint8 pixels in 0..255')
  if image.shape[-1] not in (1, 3):
    raise ValueError(f'image.shape = {image.shape}: use 1 or 3 channels, [H, W, C]')
  pixels = _transform(jnp.asarray(image).astype(jnp.int32), index, operations)
  pixels = _enhance(pixels, index, operations)
  return _map_values(pixels, index, operations).astype(jnp.uint8)


def _is_named(name: str, index: int | Array, operations: tuple[Operation, ...]) -> Array:
  return jnp.asarray(np.array([operation.name == name for operation in operations]))[index]


def _transform(pixels: Array, index: int | Array, operations: tuple[Operation, ...]) -> Array:
  """The geometric operations; the identity for the others."""
  geometric = tuple(o if o.name in _GEOMETRY else Operation() for o in operations)
  distinct = tuple(dict.fromkeys(geometric))
  if distinct == (Operation(),):
    return pixels
  height, width, _ = pixels.shape
  rows, columns, fractions = _sources(distinct, height, width)
  index = jnp.asarray(np.array([distinct.index(operation) for operation in geometric]))[index]
  row, column = jnp.asarray(rows)[index], jnp.asarray(columns)[index]
  tap = lambda k: pixels.at[jnp.clip(row + k, 0, height - 1), column].get(
      mode='promise_in_bounds')
  result = tap(0)
  if fractions.any():
    t = jnp.asarray(fractions)[index][None, :, None]
    before, here, after, later = (tap(k).astype(t.dtype) for k in (-1, 0, 1, 2))
    cubic = -before + here - after + later
    # With t = 0 this is exactly the pixel itself, so one formula serves all geometric operations.
    result = here + t * ((after - before) + t * ((2 * (before - here) + after - later) + t * cubic))
    result = jnp.clip(result, 0, 255).astype(jnp.int32)
  return jnp.where((row < -height)[..., None], FILL, result)


@functools.cache
def _sources(
    operations: tuple[Operation, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Source rows and columns int32[M, H, W], and the rows' fractions f32[M, W], of M geometric operations."""
  # A row far below 0 means that the source is outside the image. NumPy in double precision, like Pillow.
  y, x = np.mgrid[:height, :width]
  rows, columns = np.empty((2, len(operations), height, width), np.int32)
  fractions = np.zeros((len(operations), width), np.float32)
  for i, operation in enumerate(operations):
    row, column = y.astype(float), x.astype(float)
    if operation.name == 'TranslateX':
      column = np.floor(x + .5 + operation.magnitude * width)
    elif operation.name == 'TranslateY':
      row = np.floor(y + .5 + operation.magnitude * height)
    elif operation.name == 'Rotate':
      row, column = _rotated(operation.magnitude, y, x)
    inside = (0 <= row) & (row < height) & (0 <= column) & (column < width)
    if operation.name == 'ShearY':
      source = operation.magnitude * (x + .5) + (y + .5)
      inside = (0 <= source) & (source < height)
      row = np.floor(source - .5)
      fractions[i] = (source - .5 - row)[0]
    rows[i] = np.where(inside, row, -3 * height - 3)
    columns[i] = np.where(inside, column, 0)
  return rows, columns, fractions


def _rotated(degrees: float, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Source rows and columns of a rotation about the centre, computed in 16.16 fixed point."""
  height, width = y.shape
  cosine, sine = (round(f(-math.radians(degrees % 360)), 15) for f in (math.cos, math.sin))
  dx = cosine * -(width / 2) + sine * -(height / 2) + width / 2
  dy = -sine * -(width / 2) + cosine * -(height / 2) + height / 2
  fixed = lambda v: math.floor(v * 65536 + .5)
  column = fixed(dx + .5 * cosine + .5 * sine) + fixed(cosine) * x + fixed(sine) * y
  row = fixed(dy - .5 * sine + .5 * cosine) + fixed(-sine) * x + fixed(cosine) * y
  return row >> 16, column >> 16


def _enhance(pixels: Array, index: int | Array, operations: tuple[Operation, ...]) -> Array:
  """The enhancements: a blend of the image and its degenerate version; the identity for the others."""
  enhancements = tuple(o if o.name in _ENHANCEMENT else Operation() for o in operations)
  grey = _grey(pixels)
  count = grey.size
  mean = (2 * jnp.sum(grey) + count) // (2 * count)
  degenerate = jnp.select(
      [_is_named(name, index, operations) for name in ('Color', 'Contrast', 'Sharpness')],
      [jnp.broadcast_to(grey, pixels.shape), jnp.broadcast_to(mean, pixels.shape),
       _smooth(pixels)], 0)
  # The products come from a table: a fused multiply-add, which compilers would use here, does not round the
  # product and so gives other pixels.
  factors = np.array([1 + o.magnitude for o in enhancements], np.float32)
  products = jnp.asarray(factors[:, None] * np.arange(-255, 256, dtype=np.float32))
  change = products.at[index, pixels - degenerate + 255].get(mode='promise_in_bounds')
  blended = degenerate.astype(jnp.float32) + change
  return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _grey(pixels: Array) -> Array:
  """ITU-R 601 luma i32[H, W, 1], with Pillow's 16-bit weights."""
  if pixels.shape[-1] == 1:
    return pixels
  r, g, b = pixels[..., :1], pixels[..., 1:2], pixels[..., 2:]
  return (19595 * r + 38470 * g + 7471 * b + 2**15) >> 16


def _smooth(pixels: Array) -> Array:
  """The 3×3 mean with weight 5 on the centre; border pixels are unchanged."""
  height, width, _ = pixels.shape
  if min(height, width) < 3:
    return pixels
  rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
  return pixels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def _map_values(pixels: Array, index: int | Array, operations: tuple[Operation, ...]) -> Array:
  """The operations that map pixel values, by one table per channel; the identity for the others."""
  value, channel = jnp.arange(256)[None], jnp.arange(pixels.shape[-1])
  parameter = lambda name, default: jnp.asarray(np.array(
      [math.ceil(o.magnitude) if o.name == name else default for o in operations]))[index]
  # 'Invert' is 'Solarize' with threshold 0, and 8 bits are all bits.
  threshold = jnp.where(_is_named('Invert', index, operations), 0, parameter('Solarize', 256))
  table = jnp.where(value < threshold, value, 255 - value)
  table = table & -jnp.left_shift(1, 8 - parameter('Posterize', 8))
  entries = pixels + 256 * channel[None, None]
  histogram = jnp.zeros(256 * len(channel), jnp.int32).at[entries].add(
      1, mode='promise_in_bounds').reshape(-1, 256)
  table = jnp.where(_is_named('AutoContrast', index, operations), _stretched(histogram), table)
  table = jnp.where(_is_named('Equalize', index, operations), _equalized(histogram), table)
  # The product with the identity is exact. It keeps XLA from fusing the computation of the table into the
  # look-up and repeating it for each pixel, which makes this five times faster on a CPU.
  table = (table.astype(jnp.float32) @ jnp.eye(256)).astype(jnp.int32).reshape(-1)
  return table.at[entries].get(mode='promise_in_bounds')


def _stretched(histogram: Array) -> Array:
  """The table i32[C, 256] that maps the lowest value to 0 and the highest to 255."""
  value = jnp.arange(256)[None]
  lowest = jnp.min(jnp.where(histogram > 0, value, 255), axis=-1, keepdims=True)
  span = jnp.max(jnp.where(histogram > 0, value, 0), axis=-1, keepdims=True) - lowest
  over = jnp.broadcast_to(jnp.maximum(span, 1), histogram.shape)
  table = jnp.clip(jax.lax.div((value - lowest) * 255, over), 0, 255)
  return jnp.where(span > 0, table, value)


def _equalized(histogram: Array) -> Array:
  """The table i32[C, 256] of histogram equalization."""
  below = jnp.cumsum(histogram, axis=-1) - histogram
  # The number of pixels below the highest value that occurs, by 255.
  step = jnp.max(jnp.where(histogram > 0, below, 0), axis=-1, keepdims=True) // 255
  over = jnp.broadcast_to(jnp.maximum(step, 1), below.shape)
  table = jnp.minimum(jax.lax.div(step // 2 + below, over), 255)
  return jnp.where(step > 0, table, jnp.arange(256)[None])

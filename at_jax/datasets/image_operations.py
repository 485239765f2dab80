"""AutoAugment's operations on one uint8 image, with the pixels that Pillow gives.

Which operation an image takes is a traced number, so that under vmap each image takes its own. All
of a kind are one piece of arithmetic whose parameters are looked up: geometry one table of source
pixels, enhancement one blend, the rest one 256-entry table a channel.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FILL = 128  # what geometry brings in from outside
# By level 0..9: pixels a pixel, shares of the image, degrees, |factor − 1|, bits kept, and the
# smallest value inverted.
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
  """One operation at one strength.

  Attributes:
    name: of `MAGNITUDES`, or 'AutoContrast', 'Equalize', 'Invert' or 'Identity'.
    level: 0..9, of `MAGNITUDES`.
    sign: of the magnitude, 1 or −1.
  """
  name: str = 'Identity'
  level: int = 0
  sign: int = 1

  @property
  def magnitude(self) -> float:
    """The signed magnitude in the unit of `MAGNITUDES`; 0 where the operation has none."""
    return self.sign * float(MAGNITUDES[self.name][self.level]) if self.name in MAGNITUDES else 0.


def apply(image, which, operations) -> jax.Array:
  """One of several operations, `operations[which]`, on an image.

  Bit for bit what Pillow computes, except that 'AutoContrast' and 'ShearY' may be one level off
  where the exact result is a whole number: Pillow rounds in double precision before it truncates.
  Colour operations see a single channel as grey: 'Color' leaves it as it is.

  Args:
    image: uint8[H, W, C], C = 1 or 3.
    which: i32[], an index into operations; may be traced.
    operations: a tuple of `Operation`; static.

  Returns:
    uint8[H, W, C].

  Raises:
    TypeError: the image is not uint8.
    ValueError: C is neither 1 nor 3.

  Example:
    >>> apply(jnp.full((2, 2, 1), 200, jnp.uint8), 1, (Operation(), Operation('Invert')))[0, 0, 0]
    Array(55, dtype=uint8)

  Source: Cubuk, Zoph, Mane, Vasudevan and Le, AutoAugment: Learning Augmentation Strategies from
  Data, CVPR 2019, table 6, as the code of Tack et al., 2022, does them: ShearY is bicubic, the
  others take the nearest pixel, and what comes in is grey.
  """
  if image.dtype != jnp.uint8:
    raise TypeError(f'operations take uint8 pixels in 0..255, not {image.dtype}')
  if image.shape[-1] not in (1, 3):
    raise ValueError(f'operations take 1 or 3 channels, not {image.shape[-1]}')
  pixels = _move(jnp.asarray(image).astype(jnp.int32), which, operations)
  pixels = _enhance(pixels, which, operations)
  return _look_up(pixels, which, operations).astype(jnp.uint8)


def _are(which, operations, *names):
  return jnp.asarray(np.array([operation.name in names for operation in operations]))[which]


def _move(pixels, which, operations):
  moves = tuple(o if o.name in _GEOMETRY else Operation() for o in operations)
  distinct = tuple(dict.fromkeys(moves))
  if distinct == (Operation(),):
    return pixels
  height, width, _ = pixels.shape
  rows, columns, fractions = _sources(distinct, height, width)
  which = jnp.asarray(np.array([distinct.index(move) for move in moves]))[which]
  row, column = jnp.asarray(rows)[which], jnp.asarray(columns)[which]
  tap = lambda k: pixels.at[jnp.clip(row + k, 0, height - 1), column].get(
      mode='promise_in_bounds')
  moved = tap(0)
  if fractions.any():
    before, here, after, later = tap(-1), moved, tap(1), tap(2)
    t = jnp.asarray(fractions)[which][None, :, None]
    cubic = -before + here - after + later
    # A sum of whole numbers with t = 0 is the pixel itself, so that one form serves all.
    moved = here + t * ((after - before) + t * ((2 * (before - here) + after - later) + t * cubic))
    moved = jnp.clip(moved, 0, 255).astype(jnp.int32)
  return jnp.where((row < -height)[..., None], FILL, moved)


@functools.cache
def _sources(moves, height, width):
  """Where pixels come from: rows and columns int32[M, H, W], and how far beyond them, f32[M, W].

  A row far below 0 is outside. In NumPy and in double precision, as Pillow computes them.
  """
  y, x = np.mgrid[:height, :width]
  rows, columns = np.empty((2, len(moves), height, width), np.int32)
  fractions = np.zeros((len(moves), width), np.float32)
  for i, move in enumerate(moves):
    row, column = y.astype(float), x.astype(float)
    if move.name == 'TranslateX':
      column = np.floor(x + .5 + move.magnitude * width)
    elif move.name == 'TranslateY':
      row = np.floor(y + .5 + move.magnitude * height)
    elif move.name == 'Rotate':
      row, column = _rotated(move.magnitude, y, x)
    inside = (0 <= row) & (row < height) & (0 <= column) & (column < width)
    if move.name == 'ShearY':
      source = move.magnitude * (x + .5) + (y + .5)
      inside = (0 <= source) & (source < height)
      row = np.floor(source - .5)
      fractions[i] = (source - .5 - row)[0]
    rows[i] = np.where(inside, row, -3 * height - 3)
    columns[i] = np.where(inside, column, 0)
  return rows, columns, fractions


def _rotated(degrees, y, x):
  """The source of each pixel under a rotation about the centre, in 16.16 fixed point."""
  height, width = y.shape
  cosine, sine = (round(f(-math.radians(degrees % 360)), 15) for f in (math.cos, math.sin))
  dx = cosine * -(width / 2) + sine * -(height / 2) + width / 2
  dy = -sine * -(width / 2) + cosine * -(height / 2) + height / 2
  fixed = lambda v: math.floor(v * 65536 + .5)
  column = fixed(dx + .5 * cosine + .5 * sine) + fixed(cosine) * x + fixed(sine) * y
  row = fixed(dy - .5 * sine + .5 * cosine) + fixed(-sine) * x + fixed(cosine) * y
  return row >> 16, column >> 16


def _enhance(pixels, which, operations):
  enhancements = tuple(o if o.name in _ENHANCEMENT else Operation() for o in operations)
  grey = _grey(pixels)
  count = grey.size
  mean = (2 * jnp.sum(grey) + count) // (2 * count)
  without = jnp.select(
      [_are(which, operations, name) for name in ('Color', 'Contrast', 'Sharpness')],
      [jnp.broadcast_to(grey, pixels.shape), jnp.broadcast_to(mean, pixels.shape),
       _smooth(pixels)], 0)
  # The products by table, because a fused multiply-add, which compilers like to make of this,
  # gives another pixel than a product that is rounded first.
  factors = np.array([1 + o.magnitude for o in enhancements], np.float32)
  products = jnp.asarray(factors[:, None] * np.arange(-255, 256, dtype=np.float32))
  blended = without + products.at[which, pixels - without + 255].get(mode='promise_in_bounds')
  return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _grey(pixels):
  """Luma of ITU-R 601 in Pillow's 16-bit weights, i32[H, W, 1]."""
  if pixels.shape[-1] == 1:
    return pixels
  r, g, b = pixels[..., :1], pixels[..., 1:2], pixels[..., 2:]
  return (19595 * r + 38470 * g + 7471 * b + 2**15) >> 16


def _smooth(pixels):
  """The mean over 3×3 in which the centre counts five times; the border stays as it is."""
  height, width, _ = pixels.shape
  if min(height, width) < 3:
    return pixels
  rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
  return pixels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def _look_up(pixels, which, operations):
  value, channel = jnp.arange(256), jnp.arange(pixels.shape[-1])
  parameter = lambda name, default: jnp.asarray(np.array(
      [math.ceil(o.magnitude) if o.name == name else default for o in operations]))[which]
  # Solarizing from 0 on inverts; keeping 8 bits changes nothing.
  threshold = jnp.where(_are(which, operations, 'Invert'), 0, parameter('Solarize', 256))
  table = jnp.where(value < threshold, value, 255 - value)
  table = table & -jnp.left_shift(1, 8 - parameter('Posterize', 8))
  places = pixels + 256 * channel
  histogram = jnp.zeros(256 * len(channel), jnp.int32).at[places].add(
      1, mode='promise_in_bounds').reshape(-1, 256)
  table = jnp.where(_are(which, operations, 'AutoContrast'), _stretched(histogram), table)
  table = jnp.where(_are(which, operations, 'Equalize'), _equalized(histogram), table)
  # A product, exact for such small numbers, and so the end of what XLA would fuse into the look-up
  # and compute again for each pixel: a fifth of the time on a CPU.
  table = (table.astype(jnp.float32) @ jnp.eye(256)).astype(jnp.int32).reshape(-1)
  return table.at[places].get(mode='promise_in_bounds')


def _stretched(histogram):
  """The table, i32[C, 256], that takes the lowest value to 0 and the highest to 255."""
  value = jnp.arange(256)
  lowest = jnp.min(jnp.where(histogram > 0, value, 255), axis=-1, keepdims=True)
  span = jnp.max(jnp.where(histogram > 0, value, 0), axis=-1, keepdims=True) - lowest
  over = jnp.broadcast_to(jnp.maximum(span, 1), histogram.shape)
  table = jnp.clip(jax.lax.div((value - lowest) * 255, over), 0, 255)
  return jnp.where(span > 0, table, value)


def _equalized(histogram):
  """The table, i32[C, 256], that makes the histogram flat."""
  below = jnp.cumsum(histogram, axis=-1) - histogram
  # How many are below the highest value that there is.
  step = jnp.max(jnp.where(histogram > 0, below, 0), axis=-1, keepdims=True) // 255
  over = jnp.broadcast_to(jnp.maximum(step, 1), below.shape)
  table = jnp.minimum(jax.lax.div(step // 2 + below, over), 255)
  return jnp.where(step > 0, table, jnp.arange(256))

"""The changes that Square proposes in L2 and L1: they move norm from one window to another.

All functions take one example of shape (H, W, C). The random numbers are arguments in [0, 1), so that the
geometry can be compared with the released code for the same numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def first(draw: Array, side: Array, length: int, begin: int | Array = 0, size: Array | None = None) -> Array:
  """i32[] in 0..length − side, the first pixel of a window of `side` pixels, uniform for a uniform draw.

  With `size`, the window lies within the pixels begin..begin + size − 1, or covers them if it is longer. The
  released code never takes the last position.

  Example:
    >>> print(first(jnp.float32(.99), jnp.int32(3), 10))
    7
  """
  if size is None:
    return jnp.floor(draw * jnp.asarray(length - side + 1, draw.dtype)).astype(jnp.int32)
  place = begin + jnp.floor(draw * (jnp.maximum(size - side, 0) + 1).astype(draw.dtype)).astype(jnp.int32)
  return jnp.minimum(place, length - side)


def span(begin: Array, side: Array, length: int) -> Array:
  """bool[length], true on `side` neighbours from `begin` on."""
  places = jnp.arange(length)
  return (places >= begin) & (places < begin + side)


def odd_sides(sides: list[int], shape: tuple[int, ...]) -> list[int]:
  """Window sides in L2 and L1, as in the released code: odd, at least 3, at most the image's sides.

  Example:
    >>> odd_sides([29, 14, 10, 3, 1], (28, 28))
    [28, 15, 11, 3, 3]
  """
  return [min(max(side, 3) // 2 * 2 + 1, *shape[:2]) for side in sides]


# A peak decreases with the distance from its centre as 1 / (distance + 1) to this power.
_DECAY = {'l2': 2, 'l1': 4}
_CANCELLED = 1e-3  # length of a sum of two opposite unit vectors, beyond rounding


def patch(side: int, norm: str = 'l2') -> np.ndarray:
  """f64[side, side], η of Square: a positive peak above a negative one, of norm 1; steeper in L1 than in L2.

  Example:
    >>> print(patch(2).round(2))
    [[ 0.14  0.69]
     [-0.14 -0.69]]

  Reference: Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
  random search, 2020, section 3.4, as in the released code of AutoAttack. L1: that code.
  """
  delta = np.concatenate([_hill(side // 2, side, norm), -_hill(side - side // 2, side, norm)])
  return delta / _size(delta, norm)


def _hill(height: int, width: int, norm: str) -> np.ndarray:
  delta = np.zeros((height, width))
  top, left = height // 2, width // 2
  for ring in range(max(top, left) + 1):
    rows = slice(max(top - ring, 0), min(top + ring + 1, height))
    columns = slice(max(left - ring, 0), min(left + ring + 1, width))
    delta[rows, columns] += 1 / (ring + 1) ** _DECAY[norm]
  return delta / max(_size(delta, norm), 1e-12)


def _size(delta: np.ndarray, norm: str) -> float:
  return np.abs(delta).sum() if norm == 'l1' else np.linalg.norm(delta)


@functools.cache
def patches(sides: tuple[int, ...], norm: str = 'l2') -> np.ndarray:
  """f64[K, S, S], patches of several sides, padded with zeros to the largest."""
  largest = max(sides)
  return np.stack([np.pad(patch(side, norm), (0, largest - side)) for side in sides])


def tiling(shape: tuple[int, int, int], draws: Array, norm: str = 'l2') -> Array:
  """f32[H, W, C], the start: a tiling of patches, each channel with a random sign.

  Their side is a fifth of the image's shorter one; the released code's is a fifth of the height.

  `draws` is f32[H, W, C + 1] in [0, 1). Its first rows and columns are used, one of each per tile: for the
  channels' signs, and for whether the tile is transposed.

  Example:
    >>> tiling((10, 10, 1), jnp.zeros((10, 10, 2))).shape
    (10, 10, 1)
  """
  height, width, _ = shape
  shorter = min(height, width)
  side = max(shorter // 5, 1)
  begin = (shorter - 5 * side) // 2 if shorter >= 5 else 0
  rows, columns = np.arange(height) - begin, np.arange(width) - begin
  inside = lambda places, length: (places >= 0) & (places < length // side * side)
  covered = inside(rows, height)[:, None] & inside(columns, width)[None, :]
  rows, columns = np.maximum(rows, 0), np.maximum(columns, 0)
  upright = patch(side, norm)
  upright, turned = (p[rows % side][:, columns % side] for p in (upright, upright.T))
  draw = draws[np.minimum(rows // side, height - 1)][:, np.minimum(columns // side, width - 1)]
  values = jnp.where(draw[..., -1:] < .5, upright[..., None], turned[..., None])
  values = jnp.where(draw[..., :-1] < .5, -values, values)
  return jnp.where(covered[..., None], values, 0).astype(draws.dtype)


def move(delta: Array, side: Array, eta: Array, epsilon: Array, places: Array, draws: Array,
         norm: str = 'l2') -> Array:
  """Clears one window, and fills another with η plus its old content, scaled to the norm that is free.

  In each channel the new window has the direction of η + δ/‖δ‖, where δ is its old content. Its norm is
  that of both windows together plus the channel's share of the image's unused radius.

  Args:
    delta: f32[H, W, C], the change so far.
    side: i32[], the side of both windows.
    eta: f32[S, S], a patch of this side, padded with zeros.
    epsilon: f32[], the radius.
    places: i32[4], first row and column of the filled window, then of the cleared one.
    draws: f32[C + 1] in [0, 1): the channels' signs, and whether η is transposed.
    norm: 'l2' or 'l1'.

  Returns:
    f32[H, W, C] of any norm, for the caller to scale in L2, to project in L1.
  """
  height, width, channels = delta.shape
  rows, columns = jnp.arange(height), jnp.arange(width)
  window = lambda row, column: (span(row, side, height)[:, None, None]
                                & span(column, side, width)[None, :, None])
  filled, emptied = window(*places[:2]), window(*places[2:])
  eta = jnp.where(draws[-1] < .5, eta, eta.T)
  bound = lambda steps: jnp.clip(steps, 0, len(eta) - 1)
  placed = eta[bound(rows - places[0])][:, bound(columns - places[1]), None]
  placed = jnp.where(filled, jnp.where(draws[:-1] < .5, -placed, placed), 0)
  here, both = jnp.where(filled, delta, 0), jnp.where(filled | emptied, delta, 0)
  if norm == 'l1':
    length = lambda part: jnp.sum(jnp.abs(part), axis=(0, 1), keepdims=True)
    # The channel's share times the number of channels, as in the released code; the projection removes
    # the excess.
    free = jnp.maximum(epsilon - jnp.sum(jnp.abs(delta)), 0) + channels * length(both)
  else:
    length = lambda part: jnp.sqrt(jnp.sum(part ** 2, axis=(0, 1), keepdims=True))
    lacking = jnp.maximum(epsilon ** 2 - jnp.sum(delta ** 2), 0) / channels
    free = jnp.sqrt(lacking + length(both) ** 2)
  direction = placed + here / (length(here) + 1e-12)
  # Where the two directions cancel, only rounding is left, and XLA may round dividend and divisor apart.
  new = direction / jnp.maximum(length(direction) + 1e-12, _CANCELLED) * free
  return jnp.where(filled, new, jnp.where(emptied, 0, delta))


def spread(delta: Array, epsilon: Array) -> Array:
  """delta scaled to L2 norm ε; zero stays zero."""
  return delta / (jnp.sqrt(jnp.sum(delta ** 2)) + 1e-12) * epsilon

"""Pictures of an attacked batch, to look at while a run trains."""

import numpy as np


def attacked(x: np.ndarray, x_adv: np.ndarray) -> np.ndarray:
  """Draws an attacked batch as three rows: clean, adversarial, and their difference magnified.

  The third row is (1 + (x' − x) / max|x' − x|) / 2: grey where nothing changed, and black or white at the
  largest change of the batch. Images with neither 1 nor 3 channels are drawn as their mean over channels.

  Args:
    x: f32[K, H, W, C] in 0..1, one column for each example.
    x_adv: f32[K, H, W, C] in 0..1.

  Returns:
    uint8[3H, KW, C], C is 1 or 3.

  Example:
    >>> attacked(np.full((1, 1, 1, 1), .2), np.full((1, 1, 1, 1), .4)).ravel()
    array([ 51, 102, 255], dtype=uint8)
  """
  x, x_adv = np.asarray(x, np.float32), np.asarray(x_adv, np.float32)
  if x.shape[-1] not in (1, 3):
    x, x_adv = (each.mean(axis=-1, keepdims=True) for each in (x, x_adv))
  change = x_adv - x
  rows = x, x_adv, (1 + change / (np.abs(change).max() or 1)) / 2
  drawn = np.concatenate([np.concatenate(row, axis=1) for row in rows])
  return np.round(255 * drawn).astype(np.uint8)

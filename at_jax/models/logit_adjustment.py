"""Class-wise adjustment of the deployed logits, which raises the accuracy of the worst class.

The adjustment is part of the deployed model: `Network.deployed` applies it if it is in the variables, under
`COLLECTION`. Every attack of an evaluation therefore sees it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import losses

Array = jax.Array
COLLECTION = 'inference'  # the key in the variables; checkpoints contain it


def identity(num_classes: int) -> dict[str, np.ndarray]:
  """Returns the adjustment that leaves the logits unchanged.

  Args:
    num_classes: C.

  Returns:
    `{'bias': f32[C] of zeros, 'scale': f32[C] of ones}`.

  Example:
    >>> identity(2)['scale']
    array([1., 1.], dtype=float32)
  """
  return {'bias': np.zeros(num_classes, np.float32), 'scale': np.ones(num_classes, np.float32)}


def adjust(logits: Array, adjustment: dict[str, Array],
           fold: Callable[[Array], Array] = lambda logits: logits) -> Array:
  """Scales the logits of each class about the example's mean, and adds a bias.

  z' = z + (s − 1)(z − z̄) + b, where z̄ is the example's mean deployed logit. A logit of −∞, of a masked
  class, stays −∞ and is left out of the mean.

  The argmax is that of s(z − z̄) + b. Without the mean, a constant added to all logits, which softmax ignores,
  would change the decision. In this form s = 1 and b = 0 leave every bit unchanged. A dummy class is adjusted
  like its class; since s > 0, adjusting and folding commute.

  Args:
    logits: f32[B, C] deployed logits, or f32[B, 2C] logits with dummy classes.
    adjustment: 'bias' f32[C], b, and 'scale' f32[C], s > 0. The temperature of a class is 1/s.
    fold: function from `logits` to the deployed logits.

  Returns:
    Adjusted logits with the shape of `logits`.

  Example:
    >>> adjustment = {'bias': jnp.array([0., .5]), 'scale': jnp.array([1., 2.])}
    >>> print(adjust(jnp.array([[1., 3.]]), adjustment))
    [[1.  4.5]]

  Reference: A. K. Menon et al., Long-tail Learning via Logit Adjustment, 2021, for a bias for each class.
  """
  by_class = (1,) * (logits.ndim - 1) + (-1,)
  scale, bias = (jnp.tile(adjustment[name], logits.shape[-1] // len(adjustment[name])).reshape(by_class)
                 for name in ('scale', 'bias'))
  folded = fold(logits)
  centered = logits - losses.mean_where(folded, ~jnp.isneginf(folded))[..., None]
  centered = jnp.where(jnp.isneginf(logits), 0, centered)  # 0 · ∞ is NaN
  return logits + (scale - 1) * centered + bias


def update(
    adjustment: dict[str, Any], accuracy: np.ndarray, *, kind: str, rate: float) -> dict[str, np.ndarray]:
  """Raises the logits of classes below the mean robust accuracy, and lowers those of the others.

  b_k += rate · (ā − a_k), or log s_k += rate · (ā − a_k), with ā the mean over classes. The fixed point has
  equal accuracies.

  Args:
    adjustment: the current adjustment, as for `adjust`.
    accuracy: f64[C], a, robust accuracies of the model with the current adjustment; NaN for a class without
      examples, whose entry does not change.
    kind: 'bias' or 'temperature'.
    rate: step size, in logits (or log scale) per unit of accuracy.

  Returns:
    The updated adjustment.

  Example:
    >>> update(identity(2), np.array([.25, .75]), kind='bias', rate=2.)['bias']
    array([ 0.5, -0.5], dtype=float32)
  """
  gain = rate * np.nan_to_num(np.nanmean(accuracy) - accuracy)
  if kind == 'bias':
    return adjustment | {'bias': (adjustment['bias'] + gain).astype(np.float32)}
  return adjustment | {'scale': (adjustment['scale'] * np.exp(gain)).astype(np.float32)}

"""A change of the deployed logits, by class, that raises the worst class.

It is part of the model: `network.deployed` applies what stands under `NAME` in the variables, so
every attack of an evaluation sees it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
NAME = 'inference'  # the entry of the variables, {'bias': f32[C], 'scale': f32[C]}


def no_change(num_classes: int) -> dict[str, np.ndarray]:
  """The change that changes nothing.

  Args:
    num_classes: C.

  Returns:
    `{'bias': f32[C] of zeros, 'scale': f32[C] of ones}`.

  Example:
    >>> no_change(2)['scale']
    array([1., 1.], dtype=float32)

  Source: ours.
  """
  return {'bias': np.zeros(num_classes, np.float32), 'scale': np.ones(num_classes, np.float32)}


def change(logits: Array, by_class: dict[str, Array],
           fold: Callable[[Array], Array] = lambda logits: logits) -> Array:
  """z + (s − 1)(z − z̄) + b, which decides as s · (z − z̄) + b does.

  z̄ is the example's mean deployed logit: a softmax does not fix it, so a scale must not depend on
  it. Written as a difference, a scale of 1 and a bias of 0 leave every bit as it was. A dummy is
  changed as its class is; s > 0 keeps the larger of the two the larger, so it is the same whether
  the logits are folded before or after.

  Args:
    logits: f32[B, C], as they would be deployed; or f32[B, 2C] of a head with dummies.
    by_class: b and s, as `no_change` gives them; a temperature is 1/s.
    fold: from these logits to those that would be deployed.

  Returns:
    Logits of the same shape.

  Example:
    >>> by_class = {'bias': jnp.array([0., .5]), 'scale': jnp.array([1., 2.])}
    >>> print(change(jnp.array([[1., 3.]]), by_class))
    [[1.  4.5]]

  Source: ours; a bias by class: Menon et al., Long-tail Learning via Logit Adjustment, 2021.
  """
  scale, bias = (jnp.tile(by_class[name], logits.shape[-1] // len(by_class[name]))
                 for name in ('scale', 'bias'))
  apart = logits - jnp.mean(fold(logits), axis=-1, keepdims=True)
  return logits + (scale - 1) * apart + bias


def favour(by_class: dict[str, Any], accuracy: np.ndarray, *, kind: str,
           rate: float) -> dict[str, np.ndarray]:
  """One round: a class below the mean robust accuracy gains, one above it loses.

  b_k += rate · (mean − a_k), or log s_k += rate · (mean − a_k). It rests where all are equal.

  Args:
    by_class: as for `change`.
    accuracy: f64[C], a, robust accuracies *through* the present change; NaN for a class that has no
      example, which stays as it is.
    kind: 'bias' or 'temperature'.
    rate: logits, or log temperature, for accuracies that differ by 1.

  Returns:
    The change after.

  Example:
    >>> favour(no_change(2), np.array([.25, .75]), kind='bias', rate=2.)['bias']
    array([ 0.5, -0.5], dtype=float32)

  Source: ours.
  """
  gain = rate * np.nan_to_num(np.nanmean(accuracy) - accuracy)
  if kind == 'bias':
    return by_class | {'bias': (by_class['bias'] + gain).astype(np.float32)}
  return by_class | {'scale': (by_class['scale'] * np.exp(gain)).astype(np.float32)}

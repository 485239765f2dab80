"""The functions of a network that training, attacks and evaluation call.

`Network.deployed` is the model that is evaluated: attacks differentiate it, and its argmax is the decision.
Make a `Network` once per run. Its functions then keep their identity, so an attack on
`jax.tree_util.Partial(network.deployed, variables)` compiles once for all values of the variables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from at_jax.methods import ducat
from at_jax.models import logit_adjustment

Array = jax.Array
Variables = dict[str, Any]


class Network(NamedTuple):
  """The functions of one model. K is the number of its outputs: C, or 2C with dummy classes.

  Attributes:
    init: `(key, x f32[B, ...]) -> variables`, a dictionary with 'params' and 'batch_stats'.
    logits: `(variables, x) -> f32[B, K]`, inference mode.
    deployed: `(variables, x) -> f32[B, C]`, inference mode: folded logits, adjusted by
      `logit_adjustment.adjust` if the variables have an adjustment. The argmax is the decision.
    train: `(variables, x, branch=None) -> (f32[B, K], batch_stats)`, train mode, with the updated BatchNorm
      statistics. `branch` selects the BatchNorm of a `dual_batchnorm` network; other networks ignore it.
    fold: `f32[B, K] -> f32[B, C]`, from the outputs of the head to class logits.
  """
  init: Callable[[Array, Array], Variables]
  logits: Callable[[Variables, Array], Array]
  deployed: Callable[[Variables, Array], Array]
  train: Callable[..., tuple[Array, Any]]
  fold: Callable[[Array], Array]


def deploy(model: nn.Module, *, has_dummies: bool) -> Network:
  """Returns the functions of a linen model.

  Args:
    model: a linen module with the signature `model(x, train=bool)`. Its BatchNorm statistics, if any, are in
      the collection 'batch_stats'.
    has_dummies: whether the head has 2C outputs, a dummy class for each class (see `methods.ducat`).

  Returns:
    A `Network`.

  Example:
    >>> import jax.numpy as jnp
    >>> from at_jax import models
    >>> network = deploy(models.SmallCNN(num_outputs=20, padding='SAME'), has_dummies=True)
    >>> x = jnp.zeros((2, 8, 8, 1))
    >>> variables = network.init(jax.random.key(0), x)
    >>> network.logits(variables, x).shape, network.deployed(variables, x).shape
    ((2, 20), (2, 10))
  """
  fold = ducat.fold if has_dummies else _identity

  def init(key: Array, x: Array) -> Variables:
    return {'batch_stats': {}} | dict(model.init(key, x))

  def logits(variables: Variables, x: Array) -> Array:
    return model.apply(variables, x, train=False)

  def deployed(variables: Variables, x: Array) -> Array:
    folded, adjustment = fold(logits(variables, x)), variables.get(logit_adjustment.COLLECTION)
    return folded if adjustment is None else logit_adjustment.adjust(folded, adjustment)

  def train(variables: Variables, x: Array, branch: str | None = None) -> tuple[Array, Any]:
    del branch
    out, updated = model.apply(variables, x, train=True, mutable=['batch_stats'])
    return out, updated.get('batch_stats', {})

  return Network(init, logits, deployed, train, fold)


def _identity(logits: Array) -> Array:
  return logits

"""A linen model as the four functions that training, attacks and evaluation call.

Each is made once a run and compares equal to itself, so `jax.tree_util.Partial(network.logits,
variables)` can be attacked under any number of parameter values without compiling again.
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
  """A model and how it is deployed.

  Attributes:
    init: `(key, x f32[B, ...]) -> variables`, a dictionary with 'params' and 'batch_stats'.
    logits: `(variables, x) -> f32[B, K]`, inference mode; K is C, or 2C with dummy classes.
    deployed: `(variables, x) -> f32[B, C]`, inference mode; its argmax is the deployed decision. It
      applies `inference.change` where the variables have one.
    train: `(variables, x, branch=None) -> (f32[B, K], batch_stats)`, train mode, with the
      statistics updated; branch is for a network of `branches.dual` and means nothing to any other.
    fold: `f32[B, K] -> f32[B, C]`, from a head's logits to the deployed ones.
  """
  init: Callable[[Array, Array], Variables]
  logits: Callable[[Variables, Array], Array]
  deployed: Callable[[Variables, Array], Array]
  train: Callable[..., tuple[Array, Any]]
  fold: Callable[[Array], Array]


def deploy(model: nn.Module, *, has_dummies: bool) -> Network:
  """Makes the functions of a model.

  Args:
    model: a linen module called as `model(x, train=bool)`; its statistics, if it has any, are in
      the collection 'batch_stats'.
    has_dummies: whether its head has a dummy for every class.

  Returns:
    A `Network`.

  Example:
    >>> import jax.numpy as jnp
    >>> from at_jax import models
    >>> net = wrap(models.SmallCNN(num_outputs=20, padding='SAME'), has_dummies=True)
    >>> x = jnp.zeros((2, 8, 8, 1))
    >>> net.deployed(net.init(jax.random.key(0), x), x).shape
    (2, 10)

  Source: ours.
  """
  fold = ducat.fold if has_dummies else _identity

  def init(key: Array, x: Array) -> Variables:
    return {'batch_stats': {}} | dict(model.init(key, x))

  def logits(variables: Variables, x: Array) -> Array:
    return model.apply(variables, x, train=False)

  def deployed(variables: Variables, x: Array) -> Array:
    out = fold(logits(variables, x))
    return logit_adjustment.change(out, variables[logit_adjustment.NAME]) if logit_adjustment.NAME in variables else out

  def train(variables: Variables, x: Array, branch: str | None = None) -> tuple[Array, Any]:
    del branch
    out, updated = model.apply(variables, x, train=True, mutable=['batch_stats'])
    return out, updated.get('batch_stats', {})

  return Network(init, logits, deployed, train, fold)


def _identity(logits: Array) -> Array:
  return logits

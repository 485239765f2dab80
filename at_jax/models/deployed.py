"""The functions of a network that training, attacks and evaluation call.

`Network.deployed` is the model that is evaluated: attacks differentiate it, and its argmax is the decision.
Make a `Network` once per run. Its functions then keep their identity, so an attack on
`jax.tree_util.Partial(network.deployed, variables)` compiles once for all values of the variables.
"""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

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
    model: a linen module with the signature `model(x, train=bool)`, or `model(x)` if it computes the same in
      both modes. Its BatchNorm statistics, if any, are in the collection 'batch_stats'.
    has_dummies: whether the head has 2C outputs, a dummy class for each class (see `methods.ducat`).

  Returns:
    A `Network`. Its `logits` and `deployed` raise ValueError for images that are not floats.

  Example:
    >>> from at_jax import models
    >>> model = models.SmallCNN(num_outputs=20, features=(4, 4), hidden=(), padding='SAME')
    >>> network = deploy(model, has_dummies=True)
    >>> x = jnp.zeros((2, 8, 8, 1))
    >>> variables = network.init(jax.random.key(0), x)
    >>> network.logits(variables, x).shape, network.deployed(variables, x).shape
    ((2, 20), (2, 10))
  """
  fold = ducat.fold if has_dummies else _identity
  has_modes = 'train' in inspect.signature(type(model).__call__).parameters
  mode = lambda train: {'train': train} if has_modes else {}

  def init(key: Array, x: Array) -> Variables:
    with jax.numpy_dtype_promotion('standard'):  # flax's layers mix dtypes where 'strict' forbids it
      return {'batch_stats': {}} | dict(model.init(key, x))

  def logits(variables: Variables, x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):  # flax would take pixels as they are, in 0..255
      raise ValueError(f'x has dtype {x.dtype}: use images in 0..1, datasets.to_unit(x) for uint8')
    with jax.numpy_dtype_promotion('standard'):
      return _wide(model.apply(variables, x, **mode(False)))

  def deployed(variables: Variables, x: Array) -> Array:
    folded, adjustment = fold(logits(variables, x)), variables.get(logit_adjustment.COLLECTION)
    return folded if adjustment is None else logit_adjustment.adjust(folded, adjustment)

  def train(variables: Variables, x: Array, branch: str | None = None) -> tuple[Array, Any]:
    del branch
    with jax.numpy_dtype_promotion('standard'):
      out, updated = model.apply(variables, x, **mode(True), mutable=['batch_stats'])
    return _wide(out), updated.get('batch_stats', {})

  return Network(init, logits, deployed, train, fold)


def _wide(logits: Array) -> Array:
  """Logits in float32 at least, for losses; other values pass unchanged, and later checks report them."""
  narrow = getattr(logits, 'dtype', None) in (jnp.bfloat16, jnp.float16)
  return logits.astype(jnp.float32) if narrow else logits


def _identity(logits: Array) -> Array:
  return logits

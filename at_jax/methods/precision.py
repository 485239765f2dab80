"""Precision of averages of weights and of optimizer state: float32 at least.

A bfloat16 number has 8 significant bits, so an average that moves by less than 0.4 % of its value in a step
does not move at all, and a decay of .999 is 1. Averages, anchors and momentum of bfloat16 and float16
parameters are therefore float32. float32 and float64 parameters are unaffected.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
PyTree = Any


def float32_at_least(tree: PyTree) -> PyTree:
  """Converts the floating-point leaves below float32 to float32.

  Args:
    tree: pytree of arrays.

  Returns:
    Like `tree`, with other dtypes. No other leaf is changed or copied.

  Example:
    >>> tree = {'a': jnp.ones(2, jnp.bfloat16), 'b': jnp.ones(2, jnp.int32)}
    >>> print({name: leaf.dtype.name for name, leaf in float32_at_least(tree).items()})
    {'a': 'float32', 'b': 'int32'}
  """
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_low(leaf) else leaf, tree)


def like(tree: PyTree, params: PyTree) -> PyTree:
  """Converts leaves to the dtypes of the parameters where these are below float32.

  Args:
    tree: pytree of arrays.
    params: pytree of the same structure.

  Returns:
    Like `tree`.

  Example:
    >>> print(like(jnp.array(1.001), jnp.array(0., jnp.bfloat16)))
    1
  """
  return jax.tree.map(lambda leaf, p: leaf.astype(p.dtype) if _is_low(p) else leaf, tree, params)


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """An optimizer whose state and arithmetic are float32 at least, whatever the parameters' dtype.

  Args:
    optimizer: any optax transformation.

  Returns:
    A transformation. Its updates are float32 at least: add them with `apply_updates`.

  Example:
    >>> state = in_float32(optax.trace(.9)).init(jnp.ones(2, jnp.bfloat16))
    >>> print(state.trace.dtype)
    float32
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra_args):
    return optimizer.update(float32_at_least(updates), state, float32_at_least(params), **extra_args)

  return optax.GradientTransformationExtraArgs(
      lambda params: optimizer.init(float32_at_least(params)), update)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
  """`optax.apply_updates`, whose sums are float32 at least.

  Args:
    params: the parameters.
    updates: like params, of any dtypes.

  Returns:
    Like params.

  Example:
    >>> print(apply_updates(jnp.array(1., jnp.bfloat16), jnp.array(.0625)).dtype)
    bfloat16
  """
  return like(optax.apply_updates(float32_at_least(params), float32_at_least(updates)), params)


def check_rates(**rates: float | Array) -> None:
  """Checks that no rate below 1 rounds to 1, and that none has a dtype in which .999 rounds to 1.

  `optax.inject_hyperparams` converts hyperparameters to the dtype of the first parameter. Values that are
  traced cannot be checked.

  Args:
    **rates: the rates by name, numbers or arrays.

  Raises:
    ValueError: if a rate is bfloat16, float16 or smaller, or is below 1 and rounds to 1 in float32 (in
      float64, where that is JAX's default).

  Example:
    >>> check_rates(decay=jnp.array(.999, jnp.bfloat16))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: decay = bfloat16[]: use float32, with optax.inject_hyperparams(…, hyperparam_dtype=...
  """
  for name, rate in rates.items():
    if hasattr(rate, 'dtype') and _is_low(rate):
      raise ValueError(f'{name} = {rate.dtype}{list(rate.shape)}: use float32, with '
                       'optax.inject_hyperparams(…, hyperparam_dtype=jnp.float32); in bfloat16 .999 is 1')
    if not isinstance(rate, jax.core.Tracer) and rate < 1 and jnp.asarray(rate, float) == 1:
      raise ValueError(f'{name} = {rate}: rounds to 1 in float32, use at most .999999')


def _is_low(leaf: Any) -> bool:
  dtype = jnp.result_type(leaf)
  return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32

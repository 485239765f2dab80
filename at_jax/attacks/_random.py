"""One key an example, so that what it draws depends on its index and on nothing around it."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
_THREEFRY = 'threefry2x32'


def fold(key: Array, index: Array) -> Array:
  """Folds the index of each example into one key.

  Args:
    key: a PRNG key.
    index: i32[B].

  Returns:
    B keys, of threefry.

  Example:
    >>> fold(jax.random.key(0, impl='rbg'), jnp.arange(3)).shape
    (3,)

  Source: ours.
  """
  return jax.vmap(functools.partial(jax.random.fold_in, threefry(key)))(index)


def threefry(key: Array) -> Array:
  """The key itself if it is one of threefry, else one derived from it.

  Under `jax.vmap`, generators such as `rbg` draw for the whole batch from its first key: what an example
  draws would hang on its company, as the documentation of `jax.random` says.

  Args:
    key: a PRNG key.

  Returns:
    A PRNG key.

  Raises:
    ValueError: it is no key.

  Example:
    >>> threefry(jax.random.key(0)) == jax.random.key(0)
    Array(True, dtype=bool)

  Source: ours.
  """
  dtype = getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not (typed and key.ndim == 0) and not (dtype == jnp.uint32 and key.ndim == 1):
    told = key if dtype is None else f'{dtype}{list(key.shape)}'
    raise ValueError(f'key = {told}: use one such as jax.random.key(0)')
  words = jax.random.key_data(key) if typed else key
  if str(jax.random.key_impl(key)) == _THREEFRY if typed else len(words) == 2:
    return key
  derived = jax.random.wrap_key_data(words[:2], impl=_THREEFRY)
  for word in words[2:]:
    derived = jax.random.fold_in(derived, word)
  return derived

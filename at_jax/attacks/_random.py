"""One PRNG key per example, so that its random numbers depend on its index and not on the batch."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
_THREEFRY = 'threefry2x32'


def fold(key: Array, index: Array) -> Array:
  """B threefry keys: `key` with the index i32[B] of each example folded in."""
  return jax.vmap(functools.partial(jax.random.fold_in, threefry(key)))(index)


def threefry(key: Array) -> Array:
  """The key itself if it is a threefry key, else a threefry key derived from it; ValueError for no key.

  Under `jax.vmap`, generators such as `rbg` draw for the whole batch from its first key (see the
  documentation of `jax.random`), so the random numbers of an example would depend on the batch.
  """
  dtype = getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not (typed and key.ndim == 0) and not (dtype == jnp.uint32 and key.ndim == 1):
    given = key if dtype is None else f'{dtype}{list(key.shape)}'
    raise ValueError(f'key = {given}: use one such as jax.random.key(0)')
  words = jax.random.key_data(key) if typed else key
  if str(jax.random.key_impl(key)) == _THREEFRY if typed else len(words) == 2:
    return key
  derived = jax.random.wrap_key_data(words[:2], impl=_THREEFRY)
  for word in words[2:]:
    derived = jax.random.fold_in(derived, word)
  return derived

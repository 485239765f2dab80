"""By what an evaluation is known again, so that it goes on from its own state and from no other."""

from collections.abc import Sequence
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import refill

Array = jax.Array


def of_evaluation(
    work: refill.Work, clean: np.ndarray, models: tuple[jax.tree_util.Partial, ...],
    options: dict[str, object],
) -> dict[str, str]:
  """Digests of everything that decides a result, by what they are of.

  Of the models these are their weights, where they are arguments of a `jax.tree_util.Partial`, and
  which clean inputs they are right about. What they say of them, to the bit, is no mark, nor is the
  order of the other classes: other devices round it otherwise (see `saves.reopen`). How a model is
  differentiated leaves no mark.

  Args:
    work: the examples.
    clean: bool[N].
    models: that are searched on and that decide.
    options: by name, anything with a stable repr.

  Returns:
    Hexadecimal digits by name.

  Source: ours.
  """
  key = work.key
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  # Keys and counters, single integers, may have gone on since.
  weights = [leaf for leaf in jax.tree.leaves(models)
             if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
             and (np.ndim(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))]
  arrays = {'weights': weights, 'x': [work.x], 'y': [work.y], 'index': [work.index], 'key': [key],
            'epsilon': [work.epsilon], 'bounds': work.bounds, 'clean verdicts': [clean]}
  return {name: _digest([], value) for name, value in options.items()} | {
      name: _digest(several) for name, several in arrays.items()}


def _digest(arrays: Sequence[Array], told: object = None) -> str:
  digest = hashlib.sha256(repr(told).encode())
  for array in map(np.asarray, arrays):
    digest.update(repr((array.shape, array.dtype)).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()[:32]

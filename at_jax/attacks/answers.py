"""Does a model answer the same question alike: again, in other company, and when it is compiled?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import outputs

Array = jax.Array


def check(
    logits_fn: Callable[..., Array], x: Array, y: Array, compiled: np.ndarray | None = None
) -> tuple[str, ...]:
  """Calls the model more than once: does it answer alike?

  Is it random: five calls, counts of right answers differ, or logits of norm 1 by more than 1e-4? Does
  an output depend on the other inputs of the batch, or on its place among them? Does it answer
  otherwise when it is compiled, as one does that was compiled with the weights of another day?

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]. It is not compiled here: what Python or NumPy
      draw would be drawn once and be part of the program.
    x: f32[B, ...], one batch of clean inputs; with fewer than two there is no company to depend on.
    y: i32[B].
    compiled: f32[B, C], what it answered when it was.

  Returns:
    Warnings; none if nothing is odd.

  Example:
    >>> print(check(lambda x: x - x.mean(0), jnp.eye(2), jnp.arange(2))[0][:74])
    an output depends on the rest of the batch, or on its place in it: is Batc

  Source: randomness: Croce et al., RobustBench, 2021, and the checks of AutoAttack's authors; the
  others: ours.
  """
  passes = np.stack([outputs.numbers(logits_fn(x)) for _ in range(5)])
  logits, keep = passes[0], np.isfinite(passes[0]).all(axis=-1)
  if not keep.any():
    return ()
  # A random model's outputs differ in any company, and compiled.
  if random := _randomness(passes[:, keep], np.asarray(y)[keep]):
    return tuple(random)
  return tuple(_batch_dependence(logits_fn, x, logits, keep) + _compiling(logits, compiled, keep))


def _randomness(passes: np.ndarray, y: np.ndarray) -> list[str]:
  unit = passes / (np.linalg.norm(passes, axis=-1, keepdims=True) + 1e-10)
  spread = max(np.linalg.norm(a - b, axis=-1).max() for a in unit for b in unit)
  right = {int((logits.argmax(axis=-1) == y).sum()) for logits in passes}
  if len(right) == 1 and spread <= 1e-4:
    return []
  return ["the model is random: use version='rand', whose apgd-ce and apgd-dlr average over passes, "
          'with a model that takes a key']


def _batch_dependence(logits_fn, x: Array, logits: np.ndarray, keep: np.ndarray) -> list[str]:
  if len(x) < 2:
    return []
  # The same inputs in other company, the first half replaced by copies of the last example, and in
  # other places, each in that of the one after it.
  half = len(x) // 2
  mixed = jnp.concatenate([jnp.broadcast_to(x[-1:], x[:half].shape), x[half:]])
  again = np.roll(outputs.numbers(logits_fn(jnp.roll(mixed, 1, axis=0))), -1, axis=0)
  again, keep = again[half:], keep[half:]
  if not keep.any():
    return []
  scale = np.abs(logits[half:][keep]).max() + 1e-10
  if np.abs(again - logits[half:])[keep].max() / scale < 1e-3:
    return []
  return ['an output depends on the rest of the batch, or on its place in it: is BatchNorm in training '
          'mode, or noise drawn for the whole batch? if it must, let logits_fn be '
          'vmap(lambda x: f(x[None])[0])']


def _compiling(logits: np.ndarray, compiled: np.ndarray | None, keep: np.ndarray) -> list[str]:
  if compiled is None:
    return []
  apart = np.abs(outputs.numbers(compiled) - logits)[keep].max()
  share = apart / (np.abs(logits[keep]).max() + 1e-10)
  if share < 1e-3:
    return []
  return [f'compiled, the model answers otherwise, by {100 * share:.2g} % of its logits: unless it is '
          'rounding, of bfloat16 for example, pass jax.tree_util.Partial(f, weights), f a function '
          'of the weights and x']

"""Gradients for attacks: averaged over passes for random models, and always finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from at_jax.attacks import _functions, _loops, _stepper, norms

Array = jax.Array


def of_loss(
    logits_fn: _stepper.LogitsFn, problem: _stepper.Problem, x: Array, count: Array, *,
    loss: Callable[..., Array], targeted: bool, eot: int,
) -> tuple[Array, Array, Array, Array]:
  """The gradient of a loss with respect to x, for each example.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]; with `eot`, from one example and a key.
    problem: classes, targets, keys and bounds.
    x: f32[B, ...], where the gradient is taken.
    count: i32[B], the number of gradients taken before; folded into the keys.
    loss: `(logits, y) -> f32[B]`, targeted `(logits, y, target) -> f32[B]`.
    targeted: whether the loss takes targets.
    eot: number of passes to average over, 0 for a deterministic model.

  Returns:
    The gradient f32[B, ...], zero where it is not finite and where the bounds hold an entry back;
    `zero_gradient` bool[B]; the losses f32[B] and the logits f32[B, C], with `eot` those of the last pass,
    as in the released code.
  """
  labels = (problem.y, problem.target) if targeted else (problem.y,)

  def objective(x, keys):
    logits = _stepper.logits_of(logits_fn, x, keys)
    _functions.check_loss(loss, logits, *labels)
    value = loss(logits, *labels)
    return jnp.sum(value), (value, logits)

  differentiate = jax.grad(objective, has_aux=True)

  def one_pass(carry):
    n, total, _, _ = carry
    fold = jax.vmap(lambda key, count: jax.random.fold_in(jax.random.fold_in(key, count), n))
    gradient, (value, logits) = differentiate(x, fold(problem.key, count))
    return n + 1, total + gradient, value, logits

  if eot:
    shapes = jax.eval_shape(lambda: objective(x, problem.key)[1])
    empty = (jnp.array(0), jnp.zeros_like(x), *(jnp.zeros(s.shape, s.dtype) for s in shapes))
    _, total, value, logits = _loops.repeat(one_pass, empty, eot)
    gradient = total / eot
  else:
    gradient, (value, logits) = differentiate(x, None)
  gradient = jnp.where(norms.free(problem.bounds), gradient, 0)
  return finite(gradient), zero_gradient(gradient), value.astype(x.dtype), logits


def finite(tree: Any) -> Any:
  """Replaces NaN and infinite entries of a pytree by zero, so that no step leaves the ball."""
  return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)


def zero_gradient(gradient: Array) -> Array:
  """bool[B], whether a gradient is zero in every entry or not finite in some entry, before `finite`."""
  axes = tuple(range(1, gradient.ndim))
  return jnp.all(gradient == 0, axis=axes) | ~jnp.all(jnp.isfinite(gradient), axis=axes)

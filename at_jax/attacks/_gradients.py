"""The gradients that attacks follow: averaged where the model is random, and always finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from at_jax.attacks import _loops, _stepper

Array = jax.Array


def of_loss(
    logits_fn: _stepper.LogitsFn, problem: _stepper.Problem, x: Array, count: Array, *,
    loss: Callable[..., Array], targeted: bool, eot: int,
) -> tuple[Array, Array, Array, Array]:
  """The gradient of a loss with respect to x, each example's own.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]; with `eot`, from one example and a key.
    problem: the classes, targets and keys.
    x: f32[B, ...], where to take it.
    count: i32[B], how many were taken before; folded into the keys.
    loss: `(logits, y) -> f32[B]`, targeted `(logits, y, target) -> f32[B]`.
    targeted: whether the loss takes targets.
    eot: passes to average over, 0 for a model that is not random.

  Returns:
    The gradient f32[B, ...], zero where it is not finite; whether it `zero_gradient`, bool[B]; the losses
    f32[B] and the logits f32[B, C], with `eot` those of the last pass.

  Source: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, and the authors' code.
  """
  labels = (problem.y, problem.target) if targeted else (problem.y,)

  def objective(x, keys):
    logits = _stepper.one_by_one(logits_fn, x, keys) if eot else _stepper.ask(logits_fn, x)
    value = loss(logits, *labels)
    return jnp.sum(value), (value, logits)

  differentiate = jax.grad(objective, has_aux=True)
  if not eot:
    gradient, (value, logits) = differentiate(x, None)
    return finite(gradient), zero_gradient(gradient), value, logits

  def one_pass(carry):
    n, total, _, _ = carry
    fold = jax.vmap(lambda key, count: jax.random.fold_in(jax.random.fold_in(key, count), n))
    gradient, (value, logits) = differentiate(x, fold(problem.key, count))
    return n + 1, total + gradient, value, logits

  value, logits = jax.eval_shape(lambda: objective(x, problem.key)[1])
  empty = (jnp.array(0), jnp.zeros_like(x),
           jnp.zeros(value.shape, value.dtype), jnp.zeros(logits.shape, logits.dtype))
  # The value and the logits are the last pass's alone, as in the reference.
  _, total, value, logits = _loops.repeat(one_pass, empty, eot)
  gradient = total / eot
  return finite(gradient), zero_gradient(gradient), value, logits


def finite(tree: Any) -> Any:
  """Zero wherever an array is not a number or infinite, so that no step leads out of the ball.

  Args:
    tree: a pytree of float arrays, such as gradients.

  Returns:
    The same.

  Example:
    >>> print(finite(jnp.array([jnp.nan, 1.])))
    [0. 1.]

  Source: ours.
  """
  return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)


def zero_gradient(gradient: Array) -> Array:
  """Whether the gradient of an example does not show where to go.

  That is one that is zero in every entry, or has an entry that is not a number or infinite: `finite`
  makes a zero of that one, so the attack goes on, but without all of the direction.

  Args:
    gradient: f32[B, ...], before `finite`.

  Returns:
    bool[B].

  Example:
    >>> print(zero_gradient(jnp.array([[0., 0.], [0., 1.], [jnp.nan, 1.]])))
    [ True False  True]

  Source: ours.
  """
  axes = tuple(range(1, gradient.ndim))
  return jnp.all(gradient == 0, axis=axes) | ~jnp.all(jnp.isfinite(gradient), axis=axes)

"""Adversarial weight perturbation, as a wrapper of value-and-grad."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


def perturb(params: PyTree, gradient: PyTree, *, gamma: float | Array) -> PyTree:
  """Moves each weight along its gradient by a share of its own norm, w + γ‖w‖·g/‖g‖.

  Leaves with fewer than two axes (biases, scales of BatchNorm) and those of zero gradient stay.

  Args:
    params: weights.
    gradient: like params, of the loss to raise.
    gamma: γ, .01, or .005 with TRADES; a number, traced if it is an array.

  Returns:
    Like params.

  Example:
    >>> w, g = jnp.array([[3., 4.]]), jnp.array([[0., 7.]])  # ‖w‖ = 5
    >>> print(perturb({'w': w, 'b': w[0]}, {'w': g, 'b': g[0]}, gamma=.1))
    {'b': Array([3., 4.], dtype=float32), 'w': Array([[3. , 4.5]], dtype=float32)}

  Source: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, section 4,
  and its released code, where one step of a proxy's SGD is rescaled to this; which leaves, too.
  """
  def move(w: Array, g: Array) -> Array:
    if w.ndim < 2:
      return w
    norm = jnp.linalg.norm(g.reshape(-1))
    some = norm > 0
    size = jnp.where(some, gamma * jnp.linalg.norm(w.reshape(-1)) / jnp.where(some, norm, 1), 0)
    return (w + size * g).astype(w.dtype)

  return jax.tree.map(move, params, gradient)


def awp_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    gamma: float | Array,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> Callable[..., tuple[Any, PyTree]]:
  """`jax.value_and_grad` at weights that `perturb` first moves up the loss, on the same batch.

  v = γ‖w‖·g/‖g‖ with g = ∇loss(w); returns loss and ∇loss at w + v, for an update of w itself. So
  it goes with any optimizer. Value and auxiliary output (BatchNorm statistics among it) are those
  at w + v. The released code also takes its weight decay at w + v; here the optimizer takes it at
  w, which differs by weight_decay·v.

  Args:
    loss_fn: `(params, *args, **kwargs) -> loss`, or `(loss, aux)`; of one device's batch.
    gamma: γ, .01, or .005 with TRADES. The number 0 costs and changes nothing.
    has_aux: whether `loss_fn` returns a pair.
    axis_name: the axis over devices. g is averaged over it, so that every device moves to the same
      weights; the gradient that is returned is not.

  Returns:
    A function of `loss_fn`'s arguments, which returns what `jax.value_and_grad` would.

  Example:
    >>> w = jnp.array([[3., 4.]])
    >>> value, gradient = awp_value_and_grad(lambda w: w[0, 1] ** 2, gamma=.1)(w)
    >>> print(value, gradient)  # at w = (3, 4.5)
    20.25 [[0. 9.]]

  Source: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, section 4,
  and its released code.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)
  if isinstance(gamma, (int, float)) and gamma == 0:
    return value_and_grad

  def at_moved_weights(params: PyTree, *args, **kwargs) -> tuple[Any, PyTree]:
    _, gradient = value_and_grad(params, *args, **kwargs)
    if axis_name is not None:
      gradient = jax.lax.pmean(gradient, axis_name)
    return value_and_grad(perturb(params, gradient, gamma=gamma), *args, **kwargs)

  return at_moved_weights

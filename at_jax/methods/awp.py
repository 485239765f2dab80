"""AWP, adversarial weight perturbation: the gradient is taken at weights moved up the loss.

With g = ∇L(w), for each weight tensor w_l:

  v_l = γ ‖w_l‖ · g_l / ‖g_l‖          γ = .01, or .005 with TRADES          `perturb`
  update w with ∇L(w + v)               `awp_value_and_grad`

It wraps `jax.value_and_grad` of the loss of any method. Inner attack: that of the method, at w.

Reference: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, section 4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import precision

Array = jax.Array
PyTree = Any


def perturb(params: PyTree, gradient: PyTree, *, gamma: float | Array) -> PyTree:
  """Moves each weight tensor along its gradient by a share of its norm, w + γ‖w‖ · g/‖g‖.

  Leaves with fewer than two axes (biases, BatchNorm scales) and leaves of zero gradient do not move. Moved
  bfloat16 and float16 weights are float32: a move by 1 % would be little more than their rounding.

  Args:
    params: weights.
    gradient: like params, the gradient of the loss.
    gamma: γ. Traced if it is an array.

  Returns:
    Like params, float32 at least.

  Example:
    >>> w, g = jnp.array([[3., 4.]]), jnp.array([[0., 7.]])  # ‖w‖ = 5
    >>> print(perturb({'w': w, 'b': w[0]}, {'w': g, 'b': g[0]}, gamma=.1))
    {'b': Array([3., 4.], dtype=float32), 'w': Array([[3. , 4.5]], dtype=float32)}

  Reference: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, section 4, and
  its released code, whose proxy step gives the same perturbation of the same leaves.
  """
  def move(w: Array, g: Array) -> Array:
    if w.ndim < 2:
      return w
    norm = jnp.linalg.norm(g.reshape(-1))
    nonzero = norm > 0
    size = jnp.where(nonzero, gamma * jnp.linalg.norm(w.reshape(-1)) / jnp.where(nonzero, norm, 1), 0)
    return (w + size * g).astype(w.dtype)

  return jax.tree.map(move, precision.float32_at_least(params), precision.float32_at_least(gradient))


def awp_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    gamma: float | Array,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> Callable[..., tuple[Any, PyTree]]:
  """`jax.value_and_grad` at w + v, with v = γ‖w‖ · ∇L(w)/‖∇L(w)‖ from `perturb` on the same batch.

  The gradient updates w itself, so this works with any optimizer. The value and the auxiliary output
  (BatchNorm statistics included) are those at w + v. The released code also takes its weight decay at
  w + v; here the optimizer takes it at w, which differs by weight_decay · v.

  Args:
    loss_fn: `(params, *args, **kwargs) -> loss` or `(loss, aux)`, on one device's batch.
    gamma: γ. The number 0 returns `jax.value_and_grad(loss_fn)`.
    has_aux: whether `loss_fn` returns a pair.
    axis_name: the axis over devices, or None. ∇L(w) is averaged over it, so that every device moves to
      the same weights; the returned gradient is not averaged.

  Returns:
    A function with the arguments of `loss_fn` and the results of `jax.value_and_grad`.

  Example:
    >>> w = jnp.array([[3., 4.]])
    >>> value, gradient = awp_value_and_grad(lambda w: w[0, 1] ** 2, gamma=.1)(w)
    >>> print(value, gradient)  # at w = (3, 4.5)
    20.25 [[0. 9.]]

  Reference: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, section 4, and
  its released code.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)
  if isinstance(gamma, (int, float)) and gamma == 0:
    return value_and_grad

  def at_moved_weights(params: PyTree, *args, **kwargs) -> tuple[Any, PyTree]:
    _, gradient = value_and_grad(params, *args, **kwargs)
    if axis_name is not None:
      gradient = jax.lax.pmean(gradient, axis_name)
    value, gradient = value_and_grad(perturb(params, gradient, gamma=gamma), *args, **kwargs)
    return value, precision.like(gradient, params)

  return at_moved_weights

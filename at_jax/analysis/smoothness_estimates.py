"""Estimates of how smooth the adversarial loss is in the weights and in the input.

  L(w) = mean_i ℓ(f_w(x_i + δ_i(w)), y_i)          δ_i(w) is the attack on the network with weights w

∇L(w) takes δ_i(w) as a constant. The weights w are the leaves of two axes or more, as in `methods.awp`:
biases and scales do not move, and their gradients do not count. The attack is PGD from x itself, so that δ
depends on w only: `STEPS` steps of a quarter of the radius.

Networks are `logits_fn`, a `jax.tree_util.Partial` of `(params, x) -> f32[B, C]`. Its bound arrays, such as
BatchNorm statistics, are arguments of the compiled programs. All functions are pure, and compile themselves.

Reference: Kanai et al., Relationship Between Nonsmoothness in Adversarial Training, Constraints of Attacks,
and Flatness in the Input Space, 2024. It defines what is estimated; the estimators are ours.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from at_jax import attacks
from at_jax.attacks import losses, norms
from at_jax.methods import awp

Array = jax.Array
PyTree = Any
STEPS = 10


class Point(NamedTuple):
  """The adversarial loss at some weights.

  Attributes:
    loss: f32[], L(w), in nats.
    gradient: like the parameters, ∇L(w).
    delta: f32[N, ...], the attack δ(w).
  """
  loss: Array
  gradient: PyTree
  delta: Array


def _losses(params: PyTree, logits_fn: jax.tree_util.Partial, x: Array, y: Array) -> Array:
  return losses.cross_entropy(logits_fn(params, x), y)


def _logits(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array) -> Array:
  return logits_fn(params, x)


@jax.jit
def fixed(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array, y: Array, delta: Array) -> Point:
  """Computes loss and gradient with an attack that is given.

  Args:
    logits_fn: the network.
    params: its parameters.
    x: f32[N, ...], inputs in [0, 1].
    y: i32[N], true classes.
    delta: f32[N, ...], the perturbation of the inputs.

  Returns:
    A `Point`.
  """
  loss, gradient = jax.value_and_grad(lambda w: jnp.mean(_losses(w, logits_fn, x + delta, y)))(params)
  return Point(loss, gradient, delta)


@functools.partial(jax.jit, static_argnames='norm')
def adversarial(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array, y: Array, epsilon: float | Array,
                *, norm: str) -> Point:
  """Attacks the network, and computes loss and gradient under this attack.

  Args:
    logits_fn: the network.
    params: its parameters.
    x: f32[N, ...], inputs in [0, 1].
    y: i32[N], true classes.
    epsilon: radius, in units of x. Traced.
    norm: 'linf' or 'l2'.

  Returns:
    A `Point`.

  Example:
    >>> f = jax.tree_util.Partial(lambda w, x: jnp.concatenate([0 * x @ w, x @ w], axis=1))
    >>> x, y = jnp.array([[.5, .5]]), jnp.array([1])
    >>> found = adversarial(f, jnp.array([[3.], [-4.]]), x, y, .1, norm='l2')
    >>> print(np.asarray(found.delta).round(3))  # −ε w/‖w‖
    [[-0.06  0.08]]
  """
  attacked = jax.tree_util.Partial(_logits, logits_fn, params)
  # Without a random start the key is not used.
  found = attacks.pgd(attacked, x, y, jax.random.key(0), epsilon=epsilon, step_size=epsilon / 4,
                      num_steps=STEPS, norm=norm, random_start=False)
  return fixed(logits_fn, params, x, y, jax.lax.stop_gradient(found.x - x))


@jax.jit
def random_direction(params: PyTree, key: Array) -> PyTree:
  """Draws a direction in the space of the parameters, N(0, 1) in each entry.

  Args:
    params: the parameters.
    key: PRNG key. Leaf i draws from the key with i folded in.

  Returns:
    Like params.
  """
  leaves, tree = jax.tree.flatten(params)
  drawn = [jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
           for i, leaf in enumerate(leaves)]
  return jax.tree.unflatten(tree, drawn)


@jax.jit
def move(params: PyTree, directions: Sequence[PyTree], lengths: Sequence[float] | Array) -> PyTree:
  """Moves each weight tensor by a share of its own norm, w_l + Σ_k r_k ‖w_l‖ · v_kl/‖v_kl‖.

  Args:
    params: the parameters.
    directions: the v_k, like params.
    lengths: the r_k, relative lengths; a negative one moves backwards.

  Returns:
    Like params.

  Example:
    >>> w, v = jnp.array([[3., 4.]]), jnp.array([[0., 2.]])  # ‖w‖ = 5
    >>> print(move(w, [v], [.1]))
    [[3.  4.5]]
  """
  moved = [awp.perturb(params, direction, gamma=length)
           for direction, length in zip(directions, lengths, strict=True)]
  return jax.tree.map(lambda w, *each: w + sum(one - w for one in each), params, *moved)


class Estimate(NamedTuple):
  """How much gradient and attack change between w and w + d; f32[] each.

  Attributes:
    lipschitz: ‖∇L(w + d) − ∇L(w)‖ / ‖d‖.
    relative_lipschitz: the same in the coordinates u_l = w_l/‖w_l‖, where it does not depend on the scale of
      a layer whose output BatchNorm rescales.
    displacement: mean_i ‖δ_i(w + d) − δ_i(w)‖₂ / ‖d‖.
    relative_displacement: mean_i ‖δ_i(w + d) − δ_i(w)‖₂ / mean_i ‖δ_i(w)‖₂, over the length of d in the
      coordinates u.
  """
  lipschitz: Array
  relative_lipschitz: Array
  displacement: Array
  relative_displacement: Array


@jax.jit
def estimate(params: PyTree, base: Point, moved: PyTree, point: Point) -> Estimate:
  """Compares the adversarial loss at two sets of weights.

  Args:
    params: the parameters, with the weights w.
    base: the `Point` there.
    moved: parameters with the weights w + d.
    point: the `Point` there.

  Returns:
    An `Estimate`.

  Example:
    >>> w, d, a = jnp.array([[1., 1.]]), jnp.array([[.5, 0.]]), jnp.array([[3., 7.]])
    >>> at = lambda w: Point(jnp.sum(a * w * w) / 2, a * w, jnp.zeros((1, 2)))  # Hessian diag(3, 7)
    >>> print(estimate(w, at(w), w + d, at(w + d)).lipschitz)
    3.0
  """
  weights, change = _weights(params), _difference(moved, params)
  sizes = [jnp.linalg.norm(w) for w in weights]
  gradients = _difference(point.gradient, base.gradient)
  length = _length(change)
  relative = _length([d / jnp.where(size > 0, size, 1) for d, size in zip(change, sizes, strict=True)])
  scaled = [g * size for g, size in zip(gradients, sizes, strict=True)]
  displaced = _mean_length(point.delta - base.delta)
  return Estimate(_length(gradients) / length, _length(scaled) / relative, displaced / length,
                  displaced / _mean_length(base.delta) / relative)


def _weights(tree: PyTree) -> list[Array]:
  """The leaves that move, as vectors."""
  return [leaf.reshape(-1) for leaf in jax.tree.leaves(tree) if leaf.ndim >= 2]


def _difference(tree: PyTree, other: PyTree) -> list[Array]:
  return [a - b for a, b in zip(_weights(tree), _weights(other), strict=True)]


def _length(vectors: Sequence[Array]) -> Array:
  return jnp.linalg.norm(jnp.concatenate(vectors))


def _mean_length(delta: Array) -> Array:
  """Mean L2 norm of the perturbations."""
  return jnp.mean(jnp.linalg.norm(delta.reshape(len(delta), -1), axis=1))


def matched_radius(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array, y: Array, loss: float | Array,
                   *, norm: str, epsilon: float) -> float:
  """Finds the radius at which the attack in the other norm gives the same adversarial loss.

  Both norms then weigh equally on the loss, which equal volumes do not ensure. The L2 ball of radius ε is in
  the L∞ ball of radius ε, and this is in the L2 ball of radius ε√D. So the answer is between them.

  Args:
    logits_fn: the network.
    params: its parameters.
    x: f32[N, ...], inputs in [0, 1].
    y: i32[N], true classes.
    loss: the adversarial loss to reach.
    norm: 'linf' or 'l2', the norm of the radius that is sought.
    epsilon: the radius in the other norm.

  Returns:
    The radius, within .5 %. Where the attacks are too weak for the argument, the nearer of the two ends.

  Example:
    >>> f = jax.tree_util.Partial(lambda w, x: jnp.concatenate([0 * x @ w, x @ w], axis=1))
    >>> w, x, y = jnp.array([[3.], [-4.]]), jnp.array([[.5, .5]]), jnp.array([1])
    >>> loss = adversarial(f, w, x, y, .1, norm='linf').loss
    >>> print(round(matched_radius(f, w, x, y, loss, norm='l2', epsilon=.1), 2))  # ε ‖w‖₁/‖w‖₂
    0.14
  """
  root = math.sqrt(math.prod(x.shape[1:]))
  low, high = (epsilon, epsilon * root) if norm == 'l2' else (epsilon / root, epsilon)
  excess = lambda log_radius: float(
      adversarial(logits_fn, params, x, y, math.exp(log_radius), norm=norm).loss - loss)
  if excess(math.log(low)) >= 0:
    return low
  if excess(math.log(high)) <= 0:
    return high
  return math.exp(optimize.brentq(excess, math.log(low), math.log(high), xtol=.005, rtol=1e-6))


class Flatness(NamedTuple):
  """How the clean loss of each example changes with its input.

  Attributes:
    gradient: f32[N], ‖∇_x ℓ‖₁, by which the loss grows in L∞, per unit of radius.
    curvature: f32[N], uᵀ ∇²_x ℓ u along the gradient, u = ∇_x ℓ/‖∇_x ℓ‖₂.
  """
  gradient: Array
  curvature: Array


@jax.jit
def input_flatness(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array, y: Array) -> Flatness:
  """Computes gradient and curvature of the loss in the input.

  Args:
    logits_fn: the network.
    params: its parameters.
    x: f32[N, ...], inputs in [0, 1].
    y: i32[N], true classes.

  Returns:
    A `Flatness`. Kinks of ReLU do not count as curvature.
  """
  gradient_at = jax.grad(lambda x: jnp.sum(_losses(params, logits_fn, x, y)))
  gradient = gradient_at(x)
  u = jax.vmap(functools.partial(norms.unit, norm='l2'))(gradient)
  curved = jax.jvp(gradient_at, (x,), (u,))[1]
  per_example = lambda v: jnp.sum(v.reshape(len(x), -1), axis=1)
  return Flatness(per_example(jnp.abs(gradient)), per_example(u * curved))


def surface(logits_fn: jax.tree_util.Partial, params: PyTree, x: Array, y: Array, first: PyTree,
            second: PyTree, epsilon: float | Array, *, norm: str, lengths: Sequence[float]) -> np.ndarray:
  """Computes the adversarial loss on a plane through w, with the attack at each point.

  Args:
    logits_fn: the network.
    params: its parameters.
    x: f32[N, ...], inputs in [0, 1].
    y: i32[N], true classes.
    first: the first direction, like params.
    second: the second direction.
    epsilon: radius, in units of x.
    norm: 'linf' or 'l2'.
    lengths: K relative lengths, as in `move`.

  Returns:
    f64[K, K], rows along the first direction, columns along the second.

  Reference: Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, who scale each filter, where this
  scales each weight tensor.
  """
  return np.array([[float(adversarial(logits_fn, move(params, [first, second], [a, b]), x, y, epsilon,
                                      norm=norm).loss) for b in lengths] for a in lengths])

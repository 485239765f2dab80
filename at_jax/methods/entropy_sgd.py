"""EntropySGD: descends the local entropy of the loss, which is smoother than the loss.

  F(w) = −log ∫ exp(−f(w') − γ/2 ‖w − w'‖²) dw',    ∇F(w) = γ (w − ⟨w'⟩)

⟨w'⟩ is estimated by the running mean μ of L steps of Langevin dynamics around an anchor a. With g the
gradient of a new minibatch, attacked at the current w, and t the number of finished cycles:

  d ← g + weight_decay · w;  m ← momentum · m + d;  d ← d + momentum · m      (Nesterov)
  d ← d + γ (1 + scoping)^t · (w − a) + noise · √(2/η') · N(0, 1)
  w ← w − η' · d;  μ ← averaging · μ + (1 − averaging) · w
  after L steps: w ← a, and a − μ is the gradient of the outer optimizer

Each call of `update` is one of the L steps, so an epoch costs as much as an epoch of SGD. a, μ, m and the
state of the outer optimizer are float32 at least.

Reference: Chaudhari et al., Entropy-SGD: Biasing Gradient Descent Into Wide Valleys, 2017, algorithm 1.
In adversarial training: Kanai et al., Relationship Between Nonsmoothness in Adversarial Training,
Constraints of Attacks, and Flatness in the Input Space, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from at_jax.methods import precision

Array = jax.Array
PyTree = Any


class EntropySGDState(NamedTuple):
  """The state of `entropy_sgd`.

  Attributes:
    inner_step: i32[], Langevin steps taken in this cycle, 0..L − 1.
    outer_step: i32[], finished cycles, t. The schedules of `outer` count these.
    anchor: like the parameters, a, where the cycle began: the iterate of the outer optimizer. Between two
      cycles the parameters are its rounding to their dtype.
    average: like the parameters, μ, the running mean of the cycle's iterates.
    momentum: like the parameters, m, of the Langevin steps.
    outer_state: the state of the outer optimizer.
  """
  inner_step: Array
  outer_step: Array
  anchor: PyTree
  average: PyTree
  momentum: PyTree
  outer_state: PyTree


def entropy_sgd(
    outer: optax.GradientTransformation,
    *,
    inner_steps: int,
    key: Array,
    inner_learning_rate: float | Array = .1,
    gamma: float | Array = .03,
    scoping: float | Array = 1e-3,
    noise: float | Array = 1e-4,
    momentum: float | Array = .9,
    nesterov: bool = True,
    averaging: float | Array = .75,
    weight_decay: float | Array = 0.,
) -> optax.GradientTransformationExtraArgs:
  """EntropySGD as an optax transformation: each call of `update` is one step of its inner loop.

  The formulas are in the module docstring. The L-th call of a cycle returns to the anchor a and passes
  a − μ to `outer` as its gradient; γ is absorbed in the learning rate of `outer`, which is about 1. The
  next call starts a cycle with a = μ = w and m = 0. The schedules of `outer` therefore count cycles, and
  its weight decay and momentum are separate from the inner ones. Between two calls the parameters are a
  point of the Langevin chain: evaluate `weight_averaging.eval_params`.

  Like `optax.lookahead`, it must come after every transformation of a chain that changes updates:
  `optax.chain(optax.clip_by_global_norm(1.), entropy_sgd(…))` clips each inner gradient. With
  `optax.inject_hyperparams` name `inner_steps`, `nesterov` and `key` in `static_args`; schedules given
  there count calls, not cycles.

  Args:
    outer: the optimizer of the anchors, any optax transformation.
    inner_steps: L, the number of calls in a cycle. 0 returns `outer` itself. Static.
    key: a PRNG key for the noise. The draws depend only on the key, the cycle and the step, so they are
      the same on every device and after a resume. The key is not part of the state.
    inner_learning_rate: η'. Keep η' · γ (1 + scoping)^t well below 1.
    gamma: γ in the first cycle. The released code has .03 for CIFAR-10 and 1e-4 for MNIST.
    scoping: relative growth of γ from cycle to cycle.
    noise: the noise of a step has the standard deviation noise · √(2η'). The number 0 draws none.
    momentum: momentum of the inner steps.
    nesterov: use Nesterov momentum; otherwise d ← m. Static.
    averaging: the share of μ that is kept in a step.
    weight_decay: weight decay of the inner steps, on every parameter. For some parameters only, put
      `optax.add_decayed_weights` with a mask before this transformation.

  Returns:
    A transformation whose `update` needs `params`. Extra arguments reach `outer` in the L-th call.

  Raises:
    ValueError: if `inner_steps` is negative, if a number is a bfloat16 array or rounds to 1, or if
      `update` is called without params.

  Example:
    >>> f = lambda w: jnp.abs(w)
    >>> optimizer = entropy_sgd(optax.sgd(1.), inner_steps=2, key=jax.random.key(0), noise=0.,
    ...                         momentum=0., averaging=.5, gamma=1.)
    >>> w = jnp.array(2.)
    >>> state = optimizer.init(w)
    >>> for _ in range(2):  # w: 2 → 1.9 → 1.81, so μ: 2 → 1.95 → 1.88
    ...   updates, state = optimizer.update(jax.grad(f)(w), state, w)
    ...   w = optax.apply_updates(w, updates)
    >>> print(f'{w:.2f}', state.outer_step)
    1.88 1

  Reference: Chaudhari et al., Entropy-SGD: Biasing Gradient Descent Into Wide Valleys, 2017, algorithm 1,
  and its released code, whose PyTorch port never increments t. In adversarial training: Kanai et al.,
  Relationship Between Nonsmoothness in Adversarial Training, Constraints of Attacks, and Flatness in the
  Input Space, 2024. No code of it was found. A new attack at each inner step is ours.
  """
  if inner_steps < 0:
    raise ValueError(f'inner_steps = {inner_steps}: use 0 or more; 0 is the outer optimizer alone')
  precision.check_rates(
      inner_learning_rate=inner_learning_rate, gamma=gamma, scoping=scoping, noise=noise, momentum=momentum,
      averaging=averaging, weight_decay=weight_decay)
  outer = optax.with_extra_args_support(outer)
  if inner_steps == 0:
    return outer
  silent = isinstance(noise, (int, float)) and noise == 0

  def init(params: PyTree) -> EntropySGDState:
    params = precision.float32_at_least(params)
    # Copies: a buffer that is in a state twice cannot be donated.
    copy = lambda: jax.tree.map(jnp.copy, params)
    return EntropySGDState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), copy(), copy(),
                           jax.tree.map(jnp.zeros_like, params), outer.init(params))

  def update(updates: PyTree, state: EntropySGDState, params: PyTree = None, **extra_args):
    if params is None:
      raise ValueError('params = None: call update(updates, state, params), entropy_sgd needs an anchor')
    given, params, updates = params, *precision.float32_at_least((params, updates))
    # States of earlier versions are in the dtype of the parameters.
    state = EntropySGDState(*precision.float32_at_least(tuple(state[:-1])), state.outer_state)
    first = state.inner_step == 0
    start = lambda fresh, kept: jax.tree.map(lambda f, k: jnp.where(first, f, k), fresh, kept)
    begin = jax.tree.map(_unrounded, given, state.anchor)
    anchor = start(begin, state.anchor)
    velocity = start(jax.tree.map(jnp.zeros_like, params), state.momentum)
    pull = gamma * jax.lax.pow(jnp.asarray(1 + scoping), state.outer_step)

    drift = jax.tree.map(lambda g, w: g + weight_decay * w, updates, params)
    velocity = jax.tree.map(lambda v, d: (momentum * v + d).astype(v.dtype), velocity, drift)
    drift = jax.tree.map(lambda d, v: d + momentum * v, drift, velocity) if nesterov else velocity
    drift = jax.tree.map(lambda d, w, a: d + pull * (w - a), drift, params, anchor)
    if not silent:
      size = noise * jnp.sqrt(2 / inner_learning_rate)
      draws = _normal_like(_fold(key, state), params)
      drift = jax.tree.map(lambda d, n: d + size * n, drift, draws)
    moved = jax.tree.map(lambda w, d: (w - inner_learning_rate * d).astype(w.dtype), params, drift)
    moved = precision.like(moved, given)
    mean = lambda m, w: (averaging * m + (1 - averaging) * w).astype(w.dtype)
    average = jax.tree.map(mean, start(begin, state.average), precision.float32_at_least(moved))

    def finish():
      difference = jax.tree.map(jnp.subtract, anchor, average)
      outer_updates, outer_state = outer.update(difference, state.outer_state, anchor, **extra_args)
      landed = optax.apply_updates(anchor, outer_updates)
      return precision.like(landed, given), landed, outer_state

    last = state.inner_step == inner_steps - 1
    target, anchor, outer_state = jax.lax.cond(
        last, finish, lambda: (moved, anchor, state.outer_state))
    state = EntropySGDState(
        (state.inner_step + 1) % inner_steps, state.outer_step + jnp.asarray(last, jnp.int32), anchor,
        average, velocity, outer_state)
    return jax.tree.map(jnp.subtract, target, given), state

  return optax.GradientTransformationExtraArgs(init, update)


def _unrounded(w: Array, anchor: Array) -> Array:
  """w, or the float32 anchor whose rounding to the dtype of w it is."""
  if jnp.result_type(w) == anchor.dtype:
    return w
  exact = w.astype(anchor.dtype)
  # An update added in low precision can differ from the anchor by one rounding.
  return jnp.where(jnp.abs(anchor - exact) <= float(jnp.finfo(w.dtype).eps) * jnp.abs(exact), anchor, exact)


def _fold(key: Array, state: EntropySGDState) -> Array:
  return jax.random.fold_in(jax.random.fold_in(key, state.outer_step), state.inner_step)


def _normal_like(key: Array, tree: PyTree) -> PyTree:
  leaves, structure = jax.tree.flatten(tree)
  draws = [jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
           for i, leaf in enumerate(leaves)]
  return jax.tree.unflatten(structure, draws)

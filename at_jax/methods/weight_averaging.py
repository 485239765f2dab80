"""Averages of the parameters over training, and the parameters to evaluate.

  EMA   a ← δ a + (1 − δ) w after each update                          `ema`
  SWA   a = mean of w after updates start, start + every, …            `swa`
  fair  EMA of the epochs whose worst class is robust enough (CFA)     `add_if_fair`

An average is float32 at least; `eval_params` returns the dtype of the parameters. BatchNorm statistics are
not averaged: re-estimate them at the average before evaluating it.

Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018; Wei et
al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from at_jax.methods import entropy_sgd, precision

Array = jax.Array
PyTree = Any


class AverageState(NamedTuple):
  """The state of `ema` and `swa`.

  Attributes:
    count: i32[], number of updates so far.
    average: like the parameters, float32 at least.
  """
  count: Array
  average: PyTree


class FairAverageState(NamedTuple):
  """The state of `add_if_fair`.

  Attributes:
    count: i32[], number of epochs added.
    average: like the parameters, float32 at least; meaningless while the count is 0.
  """
  count: Array
  average: PyTree


def ema(decay: float | Array, *, start: int = 0, ramp: bool = True) -> optax.GradientTransformation:
  """Exponential moving average of the parameters, a ← δ·a + (1 − δ)·w after each update.

  Put it last in a chain: it passes updates on unchanged and reads w as params + updates.

  Args:
    decay: δ, usually .995 to .9999. With `optax.inject_hyperparams` name `start` and `ramp` in
      `static_args`.
    start: the number of updates before averaging; until then the average equals the parameters.
    ramp: use min(decay, (1 + n)/(10 + n)) for δ, n the updates since `start`, so that the first
      parameters soon lose their weight.

  Returns:
    A transformation whose `update` needs `params`. `eval_params` reads the average.

  Raises:
    ValueError: if the decay is outside [0, 1], is below 1 and rounds to 1, or is a bfloat16 array.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), ema(.5, ramp=False))
    >>> state = optimizer.init(jnp.array(4.))
    >>> _, state = optimizer.update(jnp.array(2.), state, jnp.array(4.))  # w: 4 → 2
    >>> print(eval_params(state, jnp.array(2.)))
    3.0

  Reference: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992. In
  adversarial training: Gowal et al., Uncovering the Limits of Adversarial Training against Norm-Bounded
  Adversarial Examples, 2020. The ramp is that of TensorFlow's ExponentialMovingAverage.
  """
  precision.check_rates(decay=decay)
  if not isinstance(decay, jax.core.Tracer) and not 0 <= decay <= 1:
    raise ValueError(f'decay = {decay}: use a number from 0 to 1')

  def share(count: Array) -> Array:
    n = count - start
    kept = jnp.minimum(decay, (1 + n) / (10 + n)) if ramp else decay
    return jnp.where(n < 0, 1, 1 - kept)

  return _average(share)


def swa(start: int, *, every: int = 1) -> optax.GradientTransformation:
  """Mean of the parameters after updates start, start + every, start + 2·every, …, counted from 0.

  Until then the average equals the parameters. Put it last in a chain, like `ema`.

  Args:
    start: the first update whose result is averaged, usually the first drop of the learning rate.
    every: the number of updates between two averaged ones, usually one epoch.

  Returns:
    A transformation whose `update` needs `params`. `eval_params` reads the average.

  Raises:
    ValueError: if `start` is negative or `every` is below 1.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), swa(1))
    >>> w = jnp.array(0.)
    >>> state = optimizer.init(w)
    >>> for _ in range(4):  # w: −1, −2, −3, −4, and the last three count
    ...   updates, state = optimizer.update(jnp.array(1.), state, w)
    ...   w = optax.apply_updates(w, updates)
    >>> print(eval_params(state, w))
    -3.0

  Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
  algorithm 1. In adversarial training: Chen et al., Robust Overfitting may be mitigated by Properly Learned
  Smoothening, 2021.
  """
  if start < 0 or every < 1:
    raise ValueError(f'start = {start}, every = {every}: use at least 0 and at least 1')

  def share(count: Array) -> Array:
    place, rest = jnp.divmod(count - start, every)
    return jnp.where(count < start, 1, jnp.where(rest == 0, 1 / (place + 1), 0))

  return _average(share)


def init_fair_average(params: PyTree) -> FairAverageState:
  """The state of `add_if_fair` before the first epoch.

  Args:
    params: the parameters.

  Returns:
    A `FairAverageState`, for which `eval_params` returns the parameters themselves.

  Example:
    >>> print(eval_params(init_fair_average(jnp.ones(2)), jnp.ones(2)))
    [1. 1.]
  """
  zeros = jax.tree.map(jnp.zeros_like, precision.float32_at_least(params))
  return FairAverageState(jnp.zeros((), jnp.int32), zeros)


def add_if_fair(state: FairAverageState, params: PyTree, worst: float, *, decay: float,
            threshold: float) -> FairAverageState:
  """Fairness-aware weight averaging: a ← δ·a + (1 − δ)·w if the worst class of w is robust enough.

  Called on the host once an epoch. The first parameters that are added become the average.

  Args:
    state: the average so far, on the host.
    params: w, on the host.
    worst: worst-class robust accuracy of w on held-out training data.
    decay: δ, in [0, 1).
    threshold: the smallest `worst` for which w is added to the average.

  Returns:
    The state after, on the host; `state` itself if w was not added to the average.

  Raises:
    ValueError: if the decay rounds to 1.

  Example:
    >>> state = init_fair_average(jnp.zeros(1))
    >>> for w, worst in ((8., .3), (100., .1), (4., .2)):
    ...   state = add_if_fair(state, jnp.array([w]), worst, decay=.75, threshold=.2)
    >>> print(state.count, state.average)
    2 [7.]

  Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.3. Its
  released code also averages the running BatchNorm statistics; here they are re-estimated.
  """
  precision.check_rates(decay=decay)
  if worst < threshold:
    return state
  kept = decay if state.count else 0
  mix = lambda a, w: np.asarray(kept * np.asarray(a) + (1 - kept) * np.asarray(w, a.dtype), a.dtype)
  return FairAverageState(np.asarray(state.count + 1, np.int32),
                          jax.tree.map(mix, precision.float32_at_least(state.average), params))


def eval_params(opt_state: PyTree, params: PyTree) -> PyTree:
  """The parameters to evaluate: the average or anchor that the optimizer keeps, else the parameters.

  For `ema` and `swa` it is the average; for `add_if_fair` too, once an epoch is added to it. For
  `optax.contrib.schedule_free` it is x, not the y at which gradients are taken. For
  `entropy_sgd` it is the anchor, or what its `outer` keeps in place of it: inside a cycle the parameters are
  a point of the Langevin chain and μ is a mean of few steps; between two cycles the anchor equals the
  parameters.
  States are found inside chains, `masked`, `partition`, `MultiSteps` and `inject_hyperparams`.

  Args:
    opt_state: the state of any optimizer, on one device.
    params: the parameters as the optimizer left them.

  Returns:
    A pytree like params, of the same dtypes.

  Raises:
    ValueError: if two states keep a value of the same parameter, for example an average after
      `entropy_sgd`, which would average the Langevin chain.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), ema(.5, ramp=False))
    >>> _, state = optimizer.update(jnp.array(2.), optimizer.init(jnp.array(4.)), jnp.array(4.))
    >>> print(eval_params(state, jnp.array(2.)))  # w: 4 → 2
    3.0
    >>> print(eval_params(optax.adam(1e-3).init(jnp.ones(2)), jnp.ones(2)))
    [1. 1.]
  """
  keeps = lambda node: isinstance(node, (AverageState, FairAverageState, entropy_sgd.EntropySGDState,
                                         optax.contrib.ScheduleFreeState))
  taken = {}
  for state in filter(keeps, jax.tree.leaves(opt_state, is_leaf=keeps)):
    kept = _kept(state, params)
    for path, _ in jax.tree_util.tree_leaves_with_path(kept):
      if path in taken:
        raise ValueError(
            f'{taken[path]} and {type(state).__name__} both keep a value of params'
            f'{jax.tree_util.keystr(path)}: use one, and under entropy_sgd an average in its outer '
            'optimizer')
      taken[path] = type(state).__name__
    params = _fill(kept, params)
  return params


def _kept(state: Any, params: PyTree) -> PyTree:
  if isinstance(state, AverageState):
    return state.average
  if isinstance(state, optax.contrib.ScheduleFreeState):
    # For a parameter that `masked` hides, z has a MaskedNode, which has no leaves.
    params = jax.tree.map(lambda z, p: z if _hidden(z) else p, state.z, params, is_leaf=_hidden)
    return optax.contrib.schedule_free_eval_params(state, params)
  if isinstance(state, FairAverageState):
    return jax.tree.map(lambda a, p: jnp.where(state.count > 0, a, p), state.average,
                        precision.float32_at_least(params))
  # For a parameter that `masked` hides, the anchor has a MaskedNode.
  between = state.inner_step == 0
  anchor = jax.tree.map(
      lambda a, p: a if _hidden(a) else jnp.where(between, p, a), state.anchor,
      precision.float32_at_least(params), is_leaf=_hidden)
  return eval_params(state.outer_state, anchor)


def _fill(kept: PyTree, params: PyTree) -> PyTree:
  return jax.tree.map(lambda k, p: p if _hidden(k) else precision.like(k, p), kept, params, is_leaf=_hidden)


def _hidden(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)


def _average(share: Callable[[Array], Array]) -> optax.GradientTransformation:
  """An average a ← a + s (w − a) with s = share(count)."""

  def init(params: PyTree) -> AverageState:
    # Copies: a buffer that is in the training state twice cannot be donated.
    return AverageState(jnp.zeros((), jnp.int32),
                        jax.tree.map(jnp.copy, precision.float32_at_least(params)))

  def update(updates: PyTree, state: AverageState, params: PyTree = None):
    if params is None:
      raise ValueError('params = None: call update(updates, state, params), an average needs the parameters')
    new = share(state.count)
    # Not (1 − s) a + s w: where s and the rounded 1 − s do not add up to 1, the scale of a drifts.
    mix = lambda a, w: jnp.where(new == 1, w, a + new * (w - a)).astype(a.dtype)
    moved = precision.float32_at_least(precision.apply_updates(params, updates))
    # The average of an earlier version may be in the dtype of the parameters.
    average = jax.tree.map(mix, precision.float32_at_least(state.average), moved)
    return updates, AverageState(state.count + 1, average)

  return optax.GradientTransformation(init, update)

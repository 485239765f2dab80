"""Averages of the parameters over training, and which parameters to evaluate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from at_jax.methods import entropy_sgd

Array = jax.Array
PyTree = Any


class AverageState(NamedTuple):
  """The state of `ema` and `swa`.

  Attributes:
    count: i32[], updates seen.
    average: like the parameters.
  """
  count: Array
  average: PyTree


class FairAverageState(NamedTuple):
  """The state of `take_in`.

  Attributes:
    count: i32[], parameters taken in.
    average: like the parameters; none while the count is 0.
  """
  count: Array
  average: PyTree


def ema(decay: float, *, start: int = 0, ramp: bool = True) -> optax.GradientTransformation:
  """Keeps an exponential moving average of the parameters, a ← δ·a + (1 − δ)·w, after each update.

  Put it last in a chain: it passes updates on unchanged and reads w as params + updates. Statistics
  of BatchNorm are not parameters; estimate them again at the average before evaluating it.

  Args:
    decay: δ, .995 to .9999.
    start: until this many updates the average is the parameters themselves.
    ramp: let δ rise as min(decay, (1 + n)/(10 + n)), n the updates since `start`, so that the first
      parameters are soon forgotten.

  Returns:
    A transformation whose `update` needs `params`. `eval_params` reads the average.

  Raises:
    ValueError: for a decay outside [0, 1].

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), ema(.5, ramp=False))
    >>> state = optimizer.init(jnp.array(4.))
    >>> _, state = optimizer.update(jnp.array(2.), state, jnp.array(4.))  # w: 4 → 2
    >>> print(eval_params(state, jnp.array(2.)))
    3.0

  Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; in
  adversarial training, Gowal et al., Uncovering the Limits of Adversarial Training against
  Norm-Bounded Adversarial Examples, 2020. The ramp is TensorFlow's.
  """
  if not 0 <= decay <= 1:
    raise ValueError(f'decay = {decay}: use a number from 0 to 1')

  def share(count: Array) -> Array:
    n = count - start
    kept = jnp.minimum(decay, (1 + n) / (10 + n)) if ramp else decay
    return jnp.where(n < 0, 1, 1 - kept)

  return _average(share)


def swa(start: int, *, every: int = 1) -> optax.GradientTransformation:
  """Keeps the plain mean of the parameters after updates start, start + every, start + 2·every, …

  Counted from 0, so `start` updates come before the first that is averaged; until then the average
  is the parameters themselves. Put it last in a chain, as `ema`.

  Args:
    start: from where, in updates: the first drop of the learning rate.
    every: how many updates lie between two that are averaged: an epoch of them.

  Returns:
    A transformation whose `update` needs `params`. `eval_params` reads the average.

  Raises:
    ValueError: for a negative `start` or an `every` below 1.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), swa(1))
    >>> w = jnp.array(0.)
    >>> state = optimizer.init(w)
    >>> for _ in range(4):  # w: −1, −2, −3, −4, and the last three count
    ...   updates, state = optimizer.update(jnp.array(1.), state, w)
    ...   w = optax.apply_updates(w, updates)
    >>> print(eval_params(state, w))
    -3.0

  Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
  algorithm 1; in adversarial training, Chen et al., Robust Overfitting may be mitigated by Properly
  Learned Smoothening, 2021.
  """
  if start < 0 or every < 1:
    raise ValueError(f'start = {start}, every = {every}: use at least 0 and 1')

  def share(count: Array) -> Array:
    place, rest = jnp.divmod(count - start, every)
    return jnp.where(count < start, 1, jnp.where(rest == 0, 1 / (place + 1), 0))

  return _average(share)


def no_average(params: PyTree) -> FairAverageState:
  """The state of `take_in` before anything is taken in.

  Args:
    params: the parameters.

  Returns:
    A `FairAverageState`, in whose place `eval_params` gives the parameters themselves.

  Example:
    >>> print(eval_params(no_average(jnp.ones(2)), jnp.ones(2)))
    [1. 1.]

  Source: ours.
  """
  return FairAverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))


def take_in(state: FairAverageState, params: PyTree, worst: float, *, decay: float,
            threshold: float) -> FairAverageState:
  """Fairness-aware weight averaging: a ← δ·a + (1 − δ)·w, if w's worst class is robust enough.

  It is called once an epoch, on the host, which has measured `worst`; the first parameters that are
  taken in are the average.

  Args:
    state: the average so far; leaves on the host.
    params: w, leaves on the host.
    worst: the robust accuracy of w on the class where it is lowest, on held-out training data.
    decay: δ, from 0 to below 1.
    threshold: the least `worst` that is good enough.

  Returns:
    The state after, leaves on the host; the very same if w was not taken in.

  Example:
    >>> state = no_average(jnp.zeros(1))
    >>> for w, worst in ((8., .3), (100., .1), (4., .2)):
    ...   state = take_in(state, jnp.array([w]), worst, decay=.75, threshold=.2)
    >>> print(state.count, state.average)
    2 [7.]

  Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.3. Its
  released code averages BatchNorm's running statistics along; here they are estimated again.
  """
  if worst < threshold:
    return state
  kept = decay if state.count else 0
  mix = lambda a, w: np.asarray(kept * np.asarray(a) + (1 - kept) * np.asarray(w), a.dtype)
  return FairAverageState(np.asarray(state.count + 1, np.int32),
                          jax.tree.map(mix, state.average, params))


def eval_params(opt_state: PyTree, params: PyTree) -> PyTree:
  """The parameters to evaluate: an average or an anchor if a transformation keeps one, else params.

  Of `ema` and `swa` it is the average; of `take_in` too, once anything is taken in. Of
  `entropy_sgd` it is what its `outer` says of the anchor:
  in the middle of a cycle the anchor, at whose successors the released code evaluates, for μ is
  then an average of few steps and the parameters are a point of the Langevin chain; between two
  cycles that is the parameters themselves, exactly. States are found wherever they stand: in
  chains, under `masked`, `partition`, `MultiSteps`, `inject_hyperparams`.

  Args:
    opt_state: of any optimizer; of one device.
    params: the parameters as the optimizer left them.

  Returns:
    Like params.

  Raises:
    ValueError: if two states keep values of the same parameter, as an average *after* `entropy_sgd`
      would, which averages the Langevin chain.

  Example:
    >>> print(eval_params(optax.adam(1e-3).init(jnp.ones(2)), jnp.ones(2)))
    [1. 1.]

  Source: ours.
  """
  keeps = lambda node: isinstance(node, (AverageState, FairAverageState, entropy_sgd.EntropySGDState))
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


def _kept(state: AverageState | FairAverageState | entropy_sgd.EntropySGDState,
          params: PyTree) -> PyTree:
  if isinstance(state, AverageState):
    return state.average
  if isinstance(state, FairAverageState):
    return jax.tree.map(lambda a, p: jnp.where(state.count > 0, a, p), state.average, params)
  # Where `masked` hides a parameter, the anchor has a MaskedNode in its place.
  between = state.inner_step == 0
  anchor = jax.tree.map(
      lambda a, p: a if _hidden(a) else jnp.where(between, p, a), state.anchor, params,
      is_leaf=_hidden)
  return eval_params(state.outer_state, anchor)


def _fill(kept: PyTree, params: PyTree) -> PyTree:
  return jax.tree.map(lambda k, p: p if _hidden(k) else k, kept, params, is_leaf=_hidden)


def _hidden(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)


def _average(share: Callable[[Array], Array]) -> optax.GradientTransformation:
  """Averaging where `share(count)` is the part of the new parameters."""

  def init(params: PyTree) -> AverageState:
    # Copies, because a buffer that is in the training state twice cannot be donated.
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates: PyTree, state: AverageState, params: PyTree = None):
    if params is None:
      raise ValueError('an average reads the parameters: call update(updates, state, params)')
    new = share(state.count)
    # In this form a share of 0 or 1 is exact.
    mix = lambda a, w: ((1 - new) * a + new * w).astype(a.dtype)
    average = jax.tree.map(mix, state.average, optax.apply_updates(params, updates))
    return updates, AverageState(state.count + 1, average)

  return optax.GradientTransformation(init, update)

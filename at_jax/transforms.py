"""Optax transformations that keep other parameters than those they train."""

from typing import Any, NamedTuple

import jax
import optax


class EmaState(NamedTuple):
  """The averaged parameters."""
  average: Any


def ema(decay: float) -> optax.GradientTransformation:
  """Averages the weights: a ← d·a + (1 − d)·w after every update; the updates pass unchanged.

  It must be the last of a chain, where the updates are those that will be applied. The average
  begins at the initial parameters.

  Args:
    decay: d, in [0, 1).

  Returns:
    A transformation whose average `eval_params` returns.

  Example:
    >>> optimizer = optax.chain(optax.sgd(1.), ema(.5))
    >>> state = optimizer.init(0.)
    >>> updates, state = optimizer.update(-1., state, 0.)
    >>> print(eval_params(state, optax.apply_updates(0., updates)))
    0.5

  Source: Izmailov et al., Averaging Weights Leads to Wider Optima, 2018, with an exponential in
  place of the uniform average, as Gowal et al., Uncovering the Limits of Adversarial Training, 2020.
  """
  def update(updates, state, params):
    moved = optax.apply_updates(params, updates)
    average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.average, moved)
    return updates, EmaState(average)

  return optax.GradientTransformation(EmaState, update)


def eval_params(opt_state: Any, params: Any) -> Any:
  """The parameters to evaluate: a transformation's average where there is one, else those trained.

  Args:
    opt_state: the state of any chain of transformations.
    params: the parameters that are trained.

  Returns:
    Parameters.

  Example:
    >>> print(eval_params(optax.sgd(1.).init(3.), 3.))
    3.0

  Source: ours.
  """
  is_average = lambda node: isinstance(node, EmaState)
  averages = [n.average for n in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(n)]
  return averages[0] if averages else params

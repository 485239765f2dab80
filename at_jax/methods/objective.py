"""The protocol of training objectives: what they return, and the scalar that a step minimises.

An objective is `(forward, batch_stats, x, x_adv, y) -> Outcome`, of per-example terms. A step minimises

  L = mean(w · fit) + β · mean(w · regulariser)          `mean_loss`

with importance weights w on one of the terms or on both. The weights are computed from `Evidence`.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax import errors

Array = jax.Array
Forward = Callable[[Array, Any], tuple[Array, Any]]  # x, batch_stats -> logits in train mode, batch_stats
Objective = Callable[..., 'Outcome']


def attacked_by(inner_attack: Callable) -> Callable[[Objective], Objective]:
  """Decorator that names the inner attack of an objective, as its attribute `inner_attack`.

  An objective without the attribute is trained with `inner_attacks.uniform`.

  Args:
    inner_attack: a factory of attacks, as `inner_attacks` describes it.

  Returns:
    A decorator. It returns the same function.

  Example:
    >>> from at_jax.methods import inner_attacks
    >>> @attacked_by(inner_attacks.kl)
    ... def smoothed(forward, batch_stats, x, x_adv, y): ...
    >>> smoothed.inner_attack is inner_attacks.kl
    True
  """
  def decorate(objective: Objective) -> Objective:
    objective.inner_attack = inner_attack
    return objective
  return decorate


class Outcome(NamedTuple):
  """The per-example terms of an objective, for B examples in V views.

  Attributes:
    fit: f32[V·B], loss of the labels, in nats. V is 1, or 2 for an objective of two views.
    regulariser: f32[B], distance between predictions that should agree, or None.
    logits: f32[V·B, K], in train mode, at the inputs that the method learns from: x', or x for clean
      training.
    batch_stats: the updated BatchNorm statistics.
    complement: f32[B], a second regulariser with the weight 1 − w, or None.
  """
  fit: Array
  regulariser: Array | None
  logits: Array
  batch_stats: Any
  complement: Array | None = None


class Evidence(NamedTuple):
  """What importance weights are computed from. With two views, B counts views.

  Attributes:
    kappa: i32[B], attack iterates that were still classified correctly, by the deployed decision. The
      dummy of y counts as correct. Otherwise κ would be near 0.
    logits: f32[B, C], deployed logits in train mode, at x'.
    y: i32[B], true classes.
    class_accuracy: f32[C], robust training accuracy of each class in the last epoch, or None if it is
      not counted.
  """
  kappa: Array
  logits: Array
  y: Array
  class_accuracy: Array | None


def mean_loss(outcome: Outcome, weights: Array | None, *, weights_on: str, beta: float,
              betas: Array | None = None) -> Array:
  """The loss of a batch, mean(w · fit) + β · mean(w · regulariser).

  With a β for each example it is mean((w · fit + β_y · w · regulariser) / (1 + β_y)).

  With two views each view's fit has that view's weight, and the regulariser of the pair has the mean
  of the two. A complement has the weight 1 − w if weights act on the regulariser; else it is left out.

  Args:
    outcome: what the objective returned.
    weights: f32[V·B], importance weights, or None for weights of 1.
    weights_on: the term that is weighted, 'fit', 'regulariser' or 'both'.
    beta: β, ignored if `betas` is given.
    betas: f32[V·B], β_y, equal for both views of an example; or None.

  Returns:
    f32[], in nats.

  Raises:
    errors.UserError: if weights or betas need a regulariser that the objective does not have.

  Example:
    >>> outcome = Outcome(jnp.array([1., 2.]), jnp.array([3., 4.]), None, None)
    >>> print(mean_loss(outcome, jnp.array([2., 0.]), weights_on='fit', beta=10.))
    36.0

  Reference: for β_y, Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4,
  there for TRADES.
  """
  fit, regulariser = outcome.fit, outcome.regulariser
  if weights is not None and weights_on in ('fit', 'both'):
    fit = weights * fit
  if regulariser is None:
    if betas is not None:
      raise errors.UserError('config.calibration.beta', True, 'the loss has no regulariser: use False')
    if weights is not None and weights_on == 'regulariser':
      raise errors.UserError('config.weights.on', weights_on, "the loss has no regulariser: use 'fit'")
    return jnp.mean(fit)
  if weights is not None and weights_on in ('regulariser', 'both'):
    share = jnp.mean(weights.reshape(-1, len(regulariser)), axis=0)
    regulariser = share * regulariser
    if outcome.complement is not None:
      regulariser += (1 - share) * outcome.complement
  if betas is not None:
    one_view = betas[:len(regulariser)]
    return jnp.mean(fit / (1 + betas)) + jnp.mean(one_view / (1 + one_view) * regulariser)
  return jnp.mean(fit) + beta * jnp.mean(regulariser)


def normalize_weights(weights: Array, *, axis_name: str | None = None) -> Array:
  """Scales weights to mean 1 over the global batch, w · B/Σw. No gradient flows through them.

  Args:
    weights: f32[B], not negative.
    axis_name: the axis over devices whose batches count as one, or None.

  Returns:
    f32[B]; all ones if every weight is 0.

  Example:
    >>> print(normalize_weights(jnp.array([1., 3.])))
    [0.5 1.5]

  Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, algorithm 2.
  """
  weights = jax.lax.stop_gradient(weights)
  mean = jnp.mean(weights)
  if axis_name is not None:
    mean = jax.lax.pmean(mean, axis_name)
  positive = mean > 0
  return jnp.where(positive, weights / jnp.where(positive, mean, 1), 1)


def two_passes(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array,
               ducat: Objective | None) -> tuple[Array, Array, Array | None, Any]:
  """Logits at x and at x', each from a pass with its own BatchNorm statistics.

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    ducat: the DUCAT objective, run first with a pass of its own; or None.

  Returns:
    The logits at x, the logits at x', the fit of `ducat` (None without it), and the statistics.

  Example:
    >>> f = lambda x, batch_stats: (2 * x, batch_stats + 1)
    >>> clean, adversarial, fit, passes = two_passes(f, 0, jnp.ones(1), jnp.zeros(1), None, None)
    >>> print(clean, adversarial, fit, passes)
    [2.] [0.] None 2
  """
  fit = None
  if ducat is not None:
    outcome = ducat(forward, batch_stats, x, x_adv, y)
    fit, batch_stats = outcome.fit, outcome.batch_stats
  clean, batch_stats = forward(x, batch_stats)
  adversarial, batch_stats = forward(x_adv, batch_stats)
  return clean, adversarial, fit, batch_stats


def check(outcome: Any, objective: Callable, num_examples: int, views: int = 1) -> Outcome:
  """Checks the type and the shapes of what an objective returned.

  A mean over the batch in place of one number per example would make every weight cancel out.

  Args:
    outcome: what it returned.
    objective: the function, for the error message.
    num_examples: V·B, the number of examples it was given.
    views: V.

  Returns:
    The outcome.

  Raises:
    errors.UserError: if it is not an `Outcome`, or one of its fields has another shape.

  Example:
    >>> mean = Outcome(jnp.float32(2), None, jnp.ones((3, 2)), {})
    >>> check(mean, jnp.mean, 3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    at_jax.errors.UserError: config.loss = 'jax.numpy.mean': its fit has shape (): use (3,), one number ...
  """
  while isinstance(objective, functools.partial):
    objective = objective.func
  name = f'{objective.__module__}.{getattr(objective, "__qualname__", objective)}'
  if not isinstance(outcome, Outcome):
    shape = f' of shape {jnp.shape(outcome)}' if hasattr(outcome, 'shape') else ''
    raise errors.UserError('config.loss', name, f'it returned {type(outcome).__name__}{shape}: return '
                           'methods.objective.Outcome(fit, regulariser, logits, batch_stats)')
  expected = {'fit': (num_examples,), 'regulariser': (num_examples // views,),
              'complement': (num_examples // views,)}
  for field, shape in expected.items():
    values = getattr(outcome, field)
    if values is None and field != 'fit':
      continue
    if jnp.shape(values) != shape:
      raise errors.UserError('config.loss', name, f'its {field} has shape {jnp.shape(values)}: use {shape}, '
                             'one number per example')
    if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
      raise errors.UserError('config.loss', name, f'its {field} is {jnp.result_type(values)}: use float32')
  if jnp.ndim(outcome.logits) != 2 or len(outcome.logits) != num_examples:
    raise errors.UserError('config.loss', name, f'its logits have shape {jnp.shape(outcome.logits)}: '
                           f'return one row per example, {num_examples}')
  return outcome

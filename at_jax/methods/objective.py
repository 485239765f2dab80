"""What an objective returns, and the one number that a step minimises."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax import errors

Array = jax.Array
Forward = Callable[[Array, Any], tuple[Array, Any]]
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
  """What an objective returns.

  Attributes:
    fit: f32[V·B], how badly the labels are learnt, in nats; V is 2 where there are two views.
    regulariser: f32[B], how far apart predictions are that should agree, or None.
    logits: f32[V·B, K], in train mode, of the examples that the method learns from: x', or x where
      there is no x'.
    batch_stats: the updated BatchNorm statistics.
    complement: f32[B], what takes the share of the regulariser that a weight leaves, or None.
  """
  fit: Array
  regulariser: Array | None
  logits: Array
  batch_stats: Any
  complement: Array | None = None


def check(found: Any, objective: Callable, num_examples: int, views: int = 1) -> Outcome:
  """Raises unless an objective returned what `mean_loss` can join.

  A mean over the batch would pass for one number that all examples share, and no weight would count.

  Args:
    found: what it returned.
    objective: the function, to be named.
    num_examples: V·B, those it was given.
    views: V.

  Returns:
    The same.

  Raises:
    errors.UserError: it is no `Outcome`, or not of the shapes that an `Outcome` has.

  Example:
    >>> mean = Outcome(jnp.float32(2), None, jnp.ones((3, 2)), {})
    >>> check(mean, jnp.mean, 3)
    Traceback (most recent call last):
    at_jax.errors.UserError: config.loss = 'jax.numpy.mean': its fit has shape (): use (3,), one number per example

  Source: ours.
  """
  while isinstance(objective, functools.partial):
    objective = objective.func
  name = f'{objective.__module__}.{getattr(objective, "__qualname__", objective)}'
  if not isinstance(found, Outcome):
    raise errors.UserError('config.loss', name, f'it returned {type(found).__name__}: return '
                           'objectives.Outcome(fit, regulariser, logits, batch_stats)')
  one_each, one_a_pair = (num_examples,), (num_examples // views,)
  wanted = {'fit': one_each, 'regulariser': one_a_pair, 'complement': one_a_pair}
  for part, shape in wanted.items():
    numbers = getattr(found, part)
    if numbers is None and part in ('regulariser', 'complement'):
      continue
    if jnp.shape(numbers) != shape:
      raise errors.UserError('config.loss', name,
                             f'its {part} has shape {jnp.shape(numbers)}: use {shape}, one number '
                             'per example')
  if jnp.ndim(found.logits) != 2 or len(found.logits) != num_examples:
    raise errors.UserError('config.loss', name, f'its logits have shape {jnp.shape(found.logits)}: '
                           f'return one row per example, {num_examples}')
  return found


def mean_loss(outcome: Outcome, weights: Array | None, *, weights_on: str, beta: float,
              betas: Array | None = None) -> Array:
  """mean(w · fit) + β · mean(w · regulariser), with w on one of the two terms or on both.

  With a β of its own for each example, mean((w · fit + β_y · w · regulariser) / (1 + β_y)).

  With two views each view's fit has that view's weight, and the pair's regulariser the mean of the
  two. A complement has the weight 1 − w, and none without weights.

  Args:
    outcome: what the objective returned.
    weights: f32[V·B], importance weights, or None.
    weights_on: 'fit', 'regulariser' or 'both'.
    beta: β; not read where there are `betas`.
    betas: f32[V·B], β_y, the same for both views of an example; or None.

  Returns:
    f32[], in nats.

  Raises:
    errors.UserError: weights or betas are for a regulariser that the objective does not have.

  Example:
    >>> apart = Outcome(jnp.array([1., 2.]), jnp.array([3., 4.]), None, None)
    >>> print(mean_loss(apart, jnp.array([2., 0.]), weights_on='fit', beta=10.))
    36.0

  Source: ours; the form with β_y: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training,
  2023, section 4, there for TRADES.
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


def two_passes(forward, batch_stats, x, x_adv, y, ducat):
  """Logits at x and at x' from a pass each, and DUCAT's fit from a pass before, or None."""
  fit = None
  if ducat is not None:
    begun = ducat(forward, batch_stats, x, x_adv, y)
    fit, batch_stats = begun.fit, begun.batch_stats
  clean, batch_stats = forward(x, batch_stats)
  adversarial, batch_stats = forward(x_adv, batch_stats)
  return clean, adversarial, fit, batch_stats


class Evidence(NamedTuple):
  """What a step knows of each example before it counts it.

  With two views of each example, B counts views: each has its own κ and its own margin.

  Attributes:
    kappa: i32[B], the attack's steps that the example withstood, by the deployed decision: a dummy
      class that is recovered is no fall, or soon nothing would withstand a step (ours).
    logits: f32[B, C], deployed, in train mode, at x'.
    y: i32[B].
    class_accuracy: f32[C], each class's robust accuracy on the training data of the last epoch;
      None where nobody counts it.
  """
  kappa: Array
  logits: Array
  y: Array
  class_accuracy: Array | None


def normalize_weights(weights: Array, *, axis_name: str | None = None) -> Array:
  """Scales weights to mean 1 over the global batch, w · B/Σw.

  Args:
    weights: f32[B], not negative.
    axis_name: the axis over devices, whose batches count as one; None for a single batch.

  Returns:
    f32[B]; all ones where every weight is 0.

  Example:
    >>> print(normalize(jnp.array([1., 3.])))
    [0.5 1.5]

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, algorithm 2.
  That a batch of zeros counts in full is ours.
  """
  weights = jax.lax.stop_gradient(weights)
  mean = jnp.mean(weights)
  if axis_name is not None:
    mean = jax.lax.pmean(mean, axis_name)
  some = mean > 0
  return jnp.where(some, weights / jnp.where(some, mean, 1), 1)

"""What follows each class's robust training accuracy: its radius, its β, its temperature.

A step counts how many examples of each class stand (`ClassCounts`); the next epoch's factor for
class k is λ + t_k, `weights.class_scale`, so that a hard class has less and an easy one more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax.methods import objective

Array = jax.Array


class ClassCounts(NamedTuple):
  """How robust each class is on the training data.

  Attributes:
    accuracy: f32[C], of the last epoch's x', each as it was met, by the deployed decision in train
      mode; all zero in the first epoch, and as before for a class that was not met.
    correct: f32[C], how many stood so far in this epoch.
    seen: f32[C], of how many.
  """
  accuracy: Array
  correct: Array
  seen: Array


class Calibration(NamedTuple):
  """What is calibrated by class; a base of None leaves that as it is.

  Attributes:
    epsilon: the attack's radius where every class has the same, in units of x.
    beta: the regulariser's β where every class has the same.
    radius_base: λ₁ of ε_k = (λ₁ + t_k) · ε.
    beta_base: λ₂ of β_k = (λ₂ + t_k) · β.
    temperature_base: λ₃ of T_k = λ₃ + t_k.
  """
  epsilon: float = 0.
  beta: float = 0.
  radius_base: float | None = None
  beta_base: float | None = None
  temperature_base: float | None = None


class ByClass(NamedTuple):
  """An epoch's values of what is calibrated, f32[C] each or None.

  Attributes:
    epsilon: radii, in units of x.
    beta: of the regulariser.
    temperature: that the training loss divides logits by.
  """
  epsilon: Array | None = None
  beta: Array | None = None
  temperature: Array | None = None


def by_class(calibration: Calibration, counts: Any, begun: Array | bool) -> ByClass:
  """ε_k = (λ₁ + t_k) · ε, β_k = (λ₂ + t_k) · β and T_k = λ₃ + t_k; factors of 1 before the start.

  Args:
    calibration: what is calibrated, and its λ.
    counts: `ClassCounts`, whose accuracy is t; not read where nothing is calibrated.
    begun: bool[], whether the factors count yet. Traced.

  Returns:
    A `ByClass`.

  Example:
    >>> counts = no_counts(2)._replace(accuracy=jnp.array([.25, .75]))
    >>> found = by_class(Calibration(epsilon=8., radius_base=.5), counts, True)
    >>> print(found.epsilon, found.beta)
    [ 6. 10.] None

  Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4, and its
  released code, in which factors are 1 for 10 epochs, radii are not clipped, and the step size does
  not follow them. Temperatures are ours.
  """
  def scaled(base: float | None, plain: float) -> Array | None:
    if base is None:
      return None
    return plain * jnp.where(begun, class_scale(counts.accuracy, base=base), 1)

  c = calibration
  return ByClass(scaled(c.radius_base, c.epsilon), scaled(c.beta_base, c.beta),
                 scaled(c.temperature_base, 1.))


def temper(logits: Array, y: Array, temperature: Array) -> Array:
  """z / T_y: the logits of each example over the temperature of its class.

  Below 1 it sharpens: an example that is wrong pulls 1/T times as hard, one that is right lets go
  earlier.

  Args:
    logits: f32[V·B, K], of V copies of the examples, one after the other.
    y: i32[B].
    temperature: f32[C], above 0.

  Returns:
    f32[V·B, K].

  Example:
    >>> print(temper(jnp.ones((2, 2)), jnp.array([1]), jnp.array([1., .5])))
    [[2. 2.]
     [2. 2.]]

  Source: ours.
  """
  return logits / jnp.tile(temperature[y], len(logits) // len(y))[:, None]


def no_counts(num_classes: int) -> ClassCounts:
  """`ClassCounts` before the first example.

  Args:
    num_classes: C.

  Returns:
    Zeros.

  Example:
    >>> print(no_counts(2).seen)
    [0. 0.]

  Source: ours.
  """
  # Arrays of their own, because a buffer that is in a state twice cannot be donated.
  return ClassCounts(*(jnp.zeros(num_classes) for _ in range(3)))


def begin_epoch(counts: Any, begins: Array | bool) -> Any:
  """Where an epoch begins, turns what was counted into accuracies.

  Args:
    counts: `ClassCounts`, or () where nobody counts.
    begins: bool[], whether it does. Traced.

  Returns:
    The counts to go on with.

  Example:
    >>> counts = ClassCounts(jnp.array([.3, .3]), jnp.array([1., 0.]), jnp.array([4., 0.]))
    >>> print(begin_epoch(counts, True).accuracy)
    [0.25 0.3 ]

  Source: ours.
  """
  if not counts:
    return counts
  met = counts.seen > 0
  accuracy = jnp.where(met, counts.correct / jnp.where(met, counts.seen, 1), counts.accuracy)
  fresh = ClassCounts(accuracy, jnp.zeros_like(counts.correct), jnp.zeros_like(counts.seen))
  return jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, counts)


def count(counts: Any, correct: Array, y: Array, axis_name: str | None = None) -> Any:
  """Adds a batch to the counts.

  Args:
    counts: `ClassCounts`, or () where nobody counts.
    correct: bool[B], which examples stand.
    y: i32[B].
    axis_name: the axis over devices, whose batches count as one, or None.

  Returns:
    The counts after.

  Example:
    >>> print(count(no_counts(2), jnp.array([True, False]), jnp.array([1, 1])).seen)
    [0. 2.]

  Source: ours.
  """
  if not counts:
    return counts
  seen = jax.nn.one_hot(y, len(counts.seen), dtype=counts.seen.dtype)
  stood = jnp.sum(jnp.where(correct[:, None], seen, 0), axis=0)
  seen = jnp.sum(seen, axis=0)
  if axis_name is not None:
    stood, seen = jax.lax.psum((stood, seen), axis_name)
  return counts._replace(correct=counts.correct + stood, seen=counts.seen + seen)


def weigh(evidence: objective.Evidence, *, base: float, axis_name: str | None) -> Array:
  """Weights that favour the classes that were hard in the last epoch.

  Args:
    evidence: of the step.
    base: of `weights.class_weights`.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> seen = Evidence(None, None, jax.numpy.array([0, 1]), jax.numpy.array([.1, .6]))
    >>> print(class_wise(seen, base=.5, axis_name=None).round(2))
    [1.22 0.78]

  Source: `weights.class_weights`.
  """
  return class_weights(evidence.class_accuracy, evidence.y, base=base, axis_name=axis_name)


def class_scale(robust_accuracy: Array, *, base: float | Array) -> Array:
  """CFA's factor for class k, λ + t_k: less for a class that is hard, more for one that is easy.

  ε_k = (λ₁ + t_k)·ε is the class's training radius (λ₁ = .5 for PGD-AT, .3 for TRADES, .7 for FAT)
  and β_k = (λ₂ + t_k)·β its weight in TRADES (λ₂ = .5), whose loss is then (CE + β_y·KL)/(1 + β_y).
  Index the result with y: pgd takes f32[B] for ε. In its first 10 epochs the released code
  has factors of 1.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch.
    base: λ.

  Returns:
    f32[C].

  Example:
    >>> print(class_scale(jnp.array([.25, .75]), base=.5)[jnp.array([1, 1, 0])])
    [1.25 1.25 0.75]

  Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.
  """
  return base + jax.lax.stop_gradient(robust_accuracy)


def class_weights(
    robust_accuracy: Array, y: Array, *, base: float | Array, axis_name: str | None = None
) -> Array:
  """Loss weights that favour hard classes, λ + 1 − t_y, scaled to mean 1 over the global batch.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch;
      equal accuracies give ones.
    y: i32[B], the true classes.
    base: λ > 0; the larger, the flatter.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> print(class_weights(jnp.array([.2, .8]), jnp.array([0, 1]), base=.5))
    [1.3 0.7]

  Source: ours, updated as the radii of Wei et al., CFA, 2023, are.
  """
  return objective.normalize_weights(class_scale(1 - robust_accuracy, base=base)[y], axis_name=axis_name)

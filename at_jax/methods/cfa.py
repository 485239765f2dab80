"""CFA: radius and β of each class follow the class's robust accuracy on the training data.

With t_k the robust training accuracy of class k in the last epoch (`ClassCounts`):

  ε_k = (λ₁ + t_k) · ε          λ₁ = .5 for PGD-AT, .3 for TRADES, .7 for FAT          `by_class`
  β_k = (λ₂ + t_k) · β          λ₂ = .5, in the loss (CE + β_y · KL) / (1 + β_y)

so a hard class has a smaller radius and an easy class a larger one. Its fairness-aware weight averaging
is `weight_averaging.add_if_fair`. Two modifications follow t_k in the same way and are ours: temperatures
T_k = λ₃ + t_k (`temper`), and loss weights λ + 1 − t_y with mean 1 (`class_weights`).

Inner attack: that of the base method, with the radius of each example's class.

Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax.methods import objective

Array = jax.Array


class Calibration(NamedTuple):
  """What is calibrated by class. A base of None leaves its quantity equal for all classes.

  Attributes:
    epsilon: ε, the attack's radius before calibration, in units of x.
    beta: β, the weight of the regulariser before calibration.
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
  """The calibrated quantities of an epoch, f32[C] each, or None where not calibrated.

  Attributes:
    epsilon: ε_k, radii of the attack, in units of x.
    beta: β_k, weights of the regulariser.
    temperature: T_k, by which the training loss divides logits.
  """
  epsilon: Array | None = None
  beta: Array | None = None
  temperature: Array | None = None


class ClassCounts(NamedTuple):
  """The robust accuracy of each class on the training data.

  Attributes:
    accuracy: f32[C], t, in the last epoch: of the deployed decision in train mode at the x' of each step.
      Zero in the first epoch; the previous value for a class without examples in the epoch.
    correct: f32[C], how many examples were classified correctly so far in this epoch.
    seen: f32[C], out of how many.
  """
  accuracy: Array
  correct: Array
  seen: Array


def class_scale(robust_accuracy: Array, *, base: float | Array) -> Array:
  """CFA's factor of class k, λ + t_k: smaller for a hard class, larger for an easy one.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch.
    base: λ.

  Returns:
    f32[C]. No gradient flows through them.

  Example:
    >>> print(class_scale(jnp.array([.25, .75]), base=.5)[jnp.array([1, 1, 0])])
    [1.25 1.25 0.75]

  Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.
  """
  return base + jax.lax.stop_gradient(robust_accuracy)


def by_class(calibration: Calibration, counts: Any, begun: Array | bool) -> ByClass:
  """ε_k = (λ₁ + t_k) · ε, β_k = (λ₂ + t_k) · β and T_k = λ₃ + t_k, or factors of 1 before the start.

  Args:
    calibration: what is calibrated, and its λ.
    counts: `ClassCounts` with t; ignored if nothing is calibrated.
    begun: bool[], whether calibration has started. Traced.

  Returns:
    A `ByClass`.

  Example:
    >>> counts = zero_counts(2)._replace(accuracy=jnp.array([.25, .75]))
    >>> found = by_class(Calibration(epsilon=8., radius_base=.5), counts, True)
    >>> print(found.epsilon, found.beta)
    [ 6. 10.] None

  Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4, and its
  released code: factors are 1 for 10 epochs, radii are not clipped, and the step size is not scaled.
  """
  def scaled(base: float | None, plain: float) -> Array | None:
    if base is None:
      return None
    return plain * jnp.where(begun, class_scale(counts.accuracy, base=base), 1)

  c = calibration
  return ByClass(scaled(c.radius_base, c.epsilon), scaled(c.beta_base, c.beta),
                 scaled(c.temperature_base, 1.))


def temper(logits: Array, y: Array, temperature: Array) -> Array:
  """Divides the logits of each example by the temperature of its class, z / T_y.

  T < 1 scales the gradient of a misclassified example by 1/T, and lets that of a well classified one
  vanish earlier.

  Args:
    logits: f32[V·B, K], of V copies of the examples, one after the other.
    y: i32[B].
    temperature: f32[C], positive.

  Returns:
    f32[V·B, K].

  Example:
    >>> print(temper(jnp.ones((2, 2)), jnp.array([1]), jnp.array([1., .5])))
    [[2. 2.]
     [2. 2.]]
  """
  return logits / jnp.tile(temperature[y], len(logits) // len(y))[:, None]


def class_weights(
    robust_accuracy: Array, y: Array, *, base: float | Array, axis_name: str | None = None
) -> Array:
  """Loss weights that favour hard classes, λ + 1 − t_y, scaled to mean 1 over the global batch.

  These weights are ours; they follow t as CFA's radii do.

  Args:
    robust_accuracy: f32[C], t, each class's robust accuracy on the training data of the last epoch.
    y: i32[B], true classes.
    base: λ > 0. A larger λ makes the weights more equal.
    axis_name: the axis over devices whose batches count as one, or None.

  Returns:
    f32[B]; ones if all accuracies are equal.

  Example:
    >>> print(class_weights(jnp.array([.2, .8]), jnp.array([0, 1]), base=.5))
    [1.3 0.7]
  """
  return objective.normalize_weights(class_scale(1 - robust_accuracy, base=base)[y], axis_name=axis_name)


def weigh(evidence: objective.Evidence, *, base: float, axis_name: str | None) -> Array:
  """`class_weights` in a training step.

  Args:
    evidence: its class accuracies and labels are read.
    base: λ of `class_weights`.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> evidence = objective.Evidence(None, None, jnp.array([0, 1]), jnp.array([.1, .6]))
    >>> print(weigh(evidence, base=.5, axis_name=None).round(2))
    [1.22 0.78]
  """
  return class_weights(evidence.class_accuracy, evidence.y, base=base, axis_name=axis_name)


def zero_counts(num_classes: int) -> ClassCounts:
  """`ClassCounts` before the first example: all zero.

  Args:
    num_classes: C.

  Returns:
    `ClassCounts` of zeros.

  Example:
    >>> print(zero_counts(2).seen)
    [0. 0.]
  """
  # Separate arrays: a buffer that is in a state twice cannot be donated.
  return ClassCounts(*(jnp.zeros(num_classes) for _ in range(3)))


def begin_epoch(counts: Any, begins: Array | bool) -> Any:
  """Turns the counts of the last epoch into accuracies, if a new epoch begins.

  Args:
    counts: `ClassCounts`, or () if nothing is counted.
    begins: bool[], whether a new epoch begins. Traced.

  Returns:
    The counts after.

  Example:
    >>> counts = ClassCounts(jnp.array([.3, .3]), jnp.array([1., 0.]), jnp.array([4., 0.]))
    >>> print(begin_epoch(counts, True).accuracy)
    [0.25 0.3 ]
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
    counts: `ClassCounts`, or () if nothing is counted.
    correct: bool[B], whether each example is classified correctly.
    y: i32[B].
    axis_name: the axis over devices whose batches count as one, or None.

  Returns:
    The counts after.

  Example:
    >>> print(count(zero_counts(2), jnp.array([True, False]), jnp.array([1, 1])).correct)
    [0. 1.]
  """
  if not counts:
    return counts
  seen = jax.nn.one_hot(y, len(counts.seen), dtype=counts.seen.dtype)
  robust = jnp.sum(jnp.where(correct[:, None], seen, 0), axis=0)
  seen = jnp.sum(seen, axis=0)
  if axis_name is not None:
    robust, seen = jax.lax.psum((robust, seen), axis_name)
  return counts._replace(correct=counts.correct + robust, seen=counts.seen + seen)

"""Which importance weights a step uses: from what it has seen of its examples to f32[B].

The formulas are in `weights`; a config names one of the functions here, `(evidence, …) -> weights`.
"""

from typing import NamedTuple

import jax

from at_jax import weights

Array = jax.Array


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


def geometry(evidence: Evidence, *, num_steps: int, lam: float | Array, form: str, normalized: bool,
             axis_name: str | None) -> Array:
  """GAIRAT's weights, by κ.

  Args:
    evidence: of the step.
    num_steps: of the attack.
    lam: λ of `weights.geometry`; traced.
    form: of `weights.geometry`.
    normalized: scale them to mean 1 over the global batch.
    axis_name: the axis over devices, or None.

  Returns:
    f32[B].

  Example:
    >>> seen = Evidence(jax.numpy.array([0, 10]), None, None, None)
    >>> options = dict(num_steps=10, lam=-1., form='tanh', normalized=True)
    >>> print(geometry(seen, **options, axis_name=None).round(2))
    [2. 0.]

  Source: `weights.geometry_weights`.
  """
  w = weights.geometry(evidence.kappa, num_steps=num_steps, lam=lam, form=form)
  return weights.normalize(w, axis_name=axis_name) if normalized else w


def margin(evidence: Evidence, *, bias: float, slope: float, axis_name: str | None) -> Array:
  """MAIL's weights, by the margin of the deployed logits at x'.

  Args:
    evidence: of the step.
    bias: of `weights.margin_weights`.
    slope: of `weights.margin_weights`.
    axis_name: not read; these weights are not normalised.

  Returns:
    f32[B].

  Example:
    >>> seen = Evidence(None, jax.numpy.array([[0., 5.], [5., 0.]]), jax.numpy.array([0, 0]), None)
    >>> print(margin(seen, bias=-.5, slope=10., axis_name=None).round(2))
    [2.98 0.  ]

  Source: `weights.margin_weights`.
  """
  del axis_name
  return weights.margin_weights(evidence.logits, evidence.y, bias=bias, slope=slope)


def class_wise(evidence: Evidence, *, base: float, axis_name: str | None) -> Array:
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
  return weights.class_weights(evidence.class_accuracy, evidence.y, base=base, axis_name=axis_name)

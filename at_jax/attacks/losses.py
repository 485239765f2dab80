"""Attack losses: functions `(logits f32[B, C], y i32[B]) -> f32[B]` that an attack maximises.

An attack takes any such function. No loss averages over the batch, because every example is attacked on
its own, and a mean would scale its gradient by the batch size. Losses with a parameter come from functions
that return the same object for the same number: jit compares losses by identity, so an attack is compiled
once.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

Array = jax.Array
LossFn = Callable[[Array, Array], Array]
_SOFTNESS = 3.  # 1/T of `soft_dlr`; chosen on networks for CIFAR-10 (results/README.md, "The fast version")


def logit_of(logits: Array, y: Array) -> Array:
  """The logit of class y, z_y, f32[B].

  Example:
    >>> print(logit_of(jnp.array([[3., 1., 2.]]), jnp.array([0])))
    [3.]
  """
  return jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]


def without(logits: Array, y: Array) -> Array:
  """The logits with class y's at −∞, f32[B, C].

  Example:
    >>> print(without(jnp.array([[3., 1., 2.]]), jnp.array([0])))
    [[-inf   1.   2.]]
  """
  return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def cross_entropy(logits: Array, y: Array) -> Array:
  """Cross-entropy, −log softmax(z)_y = logsumexp(z) − z_y.

  Args:
    logits: f32[B, C].
    y: i32[B], the true classes.

  Returns:
    f32[B], in nats.

  Example:
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    [1.3862944]

  Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
  section 2.
  """
  return jax.nn.logsumexp(logits, axis=-1) - logit_of(logits, y)


def margin(logits: Array, y: Array) -> Array:
  """The margin by which the example is misclassified, max_{j≠y} z_j − z_y.

  Positive exactly if the prediction is wrong. Unlike that of cross-entropy, its gradient does not vanish on
  confident examples.

  Args:
    logits: f32[B, C], C ≥ 2.
    y: i32[B], the true classes.

  Returns:
    f32[B], in logits.

  Example:
    >>> print(margin(jnp.array([[3., 1., 2.]]), jnp.array([0])))
    [-1.]

  Reference: Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017, section V
  (f₆ without clipping).
  """
  return jnp.max(without(logits, y), axis=-1) - logit_of(logits, y)


def dlr(logits: Array, y: Array) -> Array:
  """Difference of logits ratio, −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3), where π sorts z in decreasing order.

  It is invariant to a shift and a positive scale of the logits, so its gradient does not vanish if the
  model is made over-confident. With fewer than three finite logits there is no z_π3, and it is `margin`.

  Args:
    logits: f32[B, C], C ≥ 2.
    y: i32[B], the true classes.

  Returns:
    f32[B], at least −1 for C ≥ 3; positive and unbounded if the prediction is wrong.

  Example:
    >>> print(dlr(jnp.array([[3., 1., 2., 0.]]), jnp.array([0])))
    [-0.5]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 4.2.
  """
  if logits.shape[-1] < 3:
    return margin(logits, y)
  top, classes = jax.lax.top_k(logits, 3)
  rival = jnp.where(classes[:, 0] == y, top[:, 1], top[:, 0])
  return -(logit_of(logits, y) - rival) / _gap_or_one(top[:, 0], top[:, 2])


def targeted_dlr(logits: Array, y: Array, target: Array) -> Array:
  """Targeted DLR, −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2), where π sorts z in decreasing order.

  With fewer than four finite logits there is no z_π4, and it is z_t − z_y.

  Args:
    logits: f32[B, C], C ≥ 2.
    y: i32[B], the true classes.
    target: i32[B], the target classes t.

  Returns:
    f32[B].

  Example:
    >>> print(targeted_dlr(jnp.array([[3., 1., 2., 0.]]), jnp.array([0]), jnp.array([2])))
    [-0.4]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 4.3.
  """
  gap = logit_of(logits, y) - logit_of(logits, target)
  if logits.shape[-1] < 4:
    return -gap
  top = jax.lax.top_k(logits, 4)[0]
  return -gap / _gap_or_one(top[:, 0], (top[:, 2] + top[:, 3]) / 2)


def _gap_or_one(first: Array, other: Array) -> Array:
  """first − other, or 1 if other is −∞, so that the ratio is its numerator."""
  there = jnp.isfinite(other)
  # `where` twice, because the gradient of the discarded branch would be NaN.
  return jnp.where(there, first - jnp.where(there, other, 0) + 1e-12, 1)


def soft_margin(logits: Array, y: Array, scale: float | Array) -> Array:
  """Soft margin, T · logsumexp_{j≠y}(z_j / T) − z_y, with temperature T = 1/scale.

  Its gradient is that of cross-entropy at temperature T, −log softmax(z/T)_y, divided by the positive number
  (1 − p_y)/T. That number underflows to zero on confident examples, which looks like robustness; the
  gradient of the soft margin does not vanish. As scale → ∞ it becomes `margin`.

  Args:
    logits: f32[B, C].
    y: i32[B], the true classes.
    scale: 1/T > 0, a number or f32[B]; at 1 the gradient has the direction of cross-entropy's. Traced.

  Returns:
    f32[B], in logits.

  Example:
    >>> print(soft_margin(jnp.array([[3., 1., 2.]]), jnp.array([0]), 50.))
    [-1.]

  Reference: Tian et al., Analysis and Applications of Class-wise Robustness in Adversarial
  Training, 2021 (Temperature-PGD), and Hitaj et al., Evaluating the Robustness of Geometry-Aware
  Instance-Reweighted Adversarial Training, 2021 (logit scaling).
  """
  scale = jnp.asarray(scale)
  column = scale[:, None] if scale.ndim else scale
  others = jax.nn.logsumexp(column * without(logits, y), axis=-1)
  return others / scale - logit_of(logits, y)


def soft_dlr(logits: Array, y: Array) -> Array:
  """Soft margin of z / d at scale 3, d = z_π1 − z_π3 held constant, where π sorts z in decreasing order.

  Like `dlr` it is invariant to a shift and a positive scale of the logits. Its gradient is in the direction
  of that of the cross-entropy at temperature d / 3: it does not vanish on confident examples, and unlike that
  of `margin` it leads to all likely classes at once. With fewer than three finite logits it is a margin.

  Args:
    logits: f32[B, C], C ≥ 2.
    y: i32[B], the true classes.

  Returns:
    f32[B].

  Example:
    >>> print(soft_dlr(jnp.array([[3., 1., 0.]]), jnp.array([0])))
    [-0.56224614]

  Reference: this loss is ours; it joins `dlr` and `soft_margin`.
  """
  if logits.shape[-1] < 3:
    return margin(logits, y)
  top = jax.lax.stop_gradient(jax.lax.top_k(logits, 3)[0])
  return soft_margin((logits - top[:, :1]) / _gap_or_one(top[:, 0], top[:, 2])[:, None], y, _SOFTNESS)


@functools.cache
def scaled(scale: float) -> LossFn:
  """`soft_margin` at one scale, as a loss of logits and classes.

  Args:
    scale: 1/T > 0.

  Returns:
    A loss; the same object for the same scale.

  Raises:
    ValueError: if scale is not above 0.

  Example:
    >>> print(scaled(50.)(jnp.array([[3., 1., 2.]]), jnp.array([0])))
    [-1.]
  """
  _check_scale(scale)
  return functools.partial(soft_margin, scale=scale)


@functools.cache
def masking_scaled(scale: float) -> LossFn:
  """−log softmax(scale · z)_y, a diagnostic of masked gradients.

  If `scaled(scale)` finds adversarial examples and this loss does not, its gradient has underflowed.

  Args:
    scale: 1/T > 0.

  Returns:
    A loss; the same object for the same scale.

  Raises:
    ValueError: if scale is not above 0.

  Example:
    >>> confident = lambda z: masking_scaled(50.)(z, jnp.array([0]))[0]
    >>> print(jax.grad(confident)(jnp.array([[3., 0., 0.]])))
    [[0. 0. 0.]]

  Reference: Tian et al., Analysis and Applications of Class-wise Robustness in Adversarial Training,
  2021.
  """
  _check_scale(scale)
  return lambda logits, y: cross_entropy(scale * logits, y)


def weighted_dummy_margin(logits: Array, y: Array, weight: float | Array) -> Array:
  """Weighted margin over real and dummy classes, max_{j∉{y,y+C}} z_j − λ z_y − (1−λ) z_{y+C}.

  For models with 2C logits, in which class c + C is the dummy of class c and both mean c. An attack that
  only leaves y may end in y + C, which is still correct; this loss leaves both.

  Args:
    logits: f32[B, 2C], C ≥ 2.
    y: i32[B] in 0..C−1.
    weight: λ in 0..1, a number or f32[B], the weight of the true class; its dummy has 1 − λ. Traced.

  Returns:
    f32[B], in logits.

  Example:
    >>> print(weighted_dummy_margin(jnp.array([[3., 1., 2., 0.]]), jnp.array([0]), .5))
    [-1.5]

  Reference: this loss is ours. Dummy classes: Wang et al., New Paradigm of Adversarial Training: Breaking
  Inherent Trade-Off between Accuracy and Robustness via Dummy Classes, 2024.
  """
  dummy = y + logits.shape[-1] // 2
  rival = jnp.max(without(without(logits, y), dummy), axis=-1)
  return rival - weight * logit_of(logits, y) - (1 - weight) * logit_of(logits, dummy)


@functools.cache
def dummy_margin(weight: float) -> LossFn:
  """`weighted_dummy_margin` at one weight, as a loss of logits and classes.

  Args:
    weight: λ in 0..1.

  Returns:
    A loss; the same object for the same weight.

  Raises:
    ValueError: if weight is not in 0..1.

  Example:
    >>> print(dummy_margin(.5)(jnp.array([[3., 1., 2., 0.]]), jnp.array([0])))
    [-1.5]
  """
  if not 0 <= weight <= 1:
    raise ValueError(f'weight = {weight}: use a number from 0 to 1')
  return functools.partial(weighted_dummy_margin, weight=weight)


def soft_dummy_margin(logits: Array, y: Array) -> Array:
  """Margin of s_c = logsumexp(z_c, z_{c+C}), which gives a gradient to both halves of the head.

  The deployed decision takes the larger logit of a class and its dummy, and a gradient through that maximum
  reaches only one of them. This gradient weighs z_y by σ(z_y − z_{y+C}) and z_{y+C} by the rest: the weights
  adapt to the logits at each step, where those of `weighted_dummy_margin` are fixed.

  Args:
    logits: f32[B, 2C], C ≥ 2.
    y: i32[B] in 0..C−1.

  Returns:
    f32[B], in logits.

  Example:
    >>> print(soft_dummy_margin(jnp.array([[3., 1., 3., 1.]]), jnp.array([0])))
    [-2.]

  Reference: this loss is ours. That an attack should lower both logits with adaptive weights: Dummy-Aware
  Weighted Attack (DAWA), arXiv 2603.29182, 2026, abstract; its formula of the weights is not known here.
  """
  return margin(jnp.logaddexp(*jnp.split(logits, 2, axis=-1)), y)


def _check_scale(scale: float) -> None:
  if not scale > 0:
    raise ValueError(f'scale = {scale}: use a number above 0')

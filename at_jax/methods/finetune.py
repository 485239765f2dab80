"""Fine-tunes a clean model to be robust: cross-entropy at x, consistency at x', distance to the teacher.

With f₀ the model where fine-tuning begins (the teacher):

  L = ω · CE(f(x), y) + μ · A(f₀(x), f(x)) + λ · D(f(x'), ·)      `finetune`
  D = KL(p ‖ p'), p held fixed, or CE(f(x'), y)
  A = KL(p₀ ‖ p), or the mean over classes of (z₀ − z)²

λ is the β of `objective.mean_loss`. The attack is regulated during training by one of three rules:

  boundary    stop τ steps past the decision boundary, as in `fat`
  radius      r_i ← clip(r_i ± δ, 0, 1), + if x_i was robust at its radius r_i · ε          `update_radius`
  controller  s ← clip(s ± δ, 0, 1), + while clean validation accuracy ≥ start − tolerance  `control`

r_i and s multiply the radius and the step size of the attack (`attack_scale`).

Reference: based on the abstract of Hou et al., Adversarial Fine-tune with Dynamically Regulated Adversary,
2022.
Only its abstract could be read, so the formulas here are ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import inner_attacks, losses, objective, precision

Array = jax.Array
DISTANCES = ('kl', 'cross_entropy')
ANCHORS = ('kl', 'squared')
# Accuracies are multiples of 1/n. The slack keeps rounding from deciding at the edge of the tolerance.
_SLACK = 1e-6


def finetune(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
             distance: str, anchor: str, anchor_weight: float,
             clean_weight: float = 1., reference: Array | None = None) -> objective.Outcome:
  """The fit is ω · CE(f(x), y) + μ · A(f₀(x), f(x)), the regulariser is D(f(x'), ·).

  x and x' take one pass each; x takes none if no term reads f(x). With dual BatchNorm each goes through its
  own BatchNorm layers. In D = KL no gradient flows through the clean prediction, so x' is pulled towards x
  and not x towards x'.

  Args:
    forward: the network in train mode; it takes `branch`, 'clean' or 'adversarial'.
    batch_stats: its BatchNorm statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    distance: D, 'kl' or 'cross_entropy'.
    anchor: A, 'kl' or 'squared'.
    anchor_weight: μ.
    clean_weight: ω.
    reference: f32[B, K], the teacher's logits at x, or None for no anchor.

  Returns:
    An `objective.Outcome`.

  Example:
    >>> f = lambda x, batch_stats, branch: (x, batch_stats)
    >>> x, x_adv, y = jnp.array([[2., 0.]]), jnp.array([[0., 2.]]), jnp.array([0])
    >>> outcome = finetune(f, {}, x, x_adv, y, distance='kl', anchor='squared', anchor_weight=.5,
    ...                    reference=x_adv)
    >>> print(f'{outcome.fit[0]:.4f} {outcome.regulariser[0]:.4f}')
    2.1269 1.5232

  Reference: based on the abstract of Hou et al., Adversarial Fine-tune with Dynamically Regulated Adversary,
  2022.
  """
  if not uses_clean(distance, clean_weight, has_anchor=reference is not None):
    adversarial, batch_stats = forward(x_adv, batch_stats, branch='adversarial')
    regulariser = losses.cross_entropy(adversarial, y)
    return objective.Outcome(jnp.zeros_like(regulariser), regulariser, adversarial, batch_stats)
  clean, batch_stats = forward(x, batch_stats, branch='clean')
  adversarial, batch_stats = forward(x_adv, batch_stats, branch='adversarial')
  fit = clean_weight * losses.cross_entropy(clean, y)
  if reference is not None:
    fit += anchor_weight * (losses.kl if anchor == 'kl' else _squared)(reference, clean)
  regulariser = (losses.kl(jax.lax.stop_gradient(clean), adversarial) if distance == 'kl'
                 else losses.cross_entropy(adversarial, y))
  return objective.Outcome(fit, regulariser, adversarial, batch_stats)


def uses_clean(distance: str, clean_weight: float, *, has_anchor: bool) -> bool:
  """Returns whether a term of the loss reads f(x).

  Args:
    distance: D, 'kl' or 'cross_entropy'.
    clean_weight: ω.
    has_anchor: whether μ > 0.

  Returns:
    True if one does.

  Example:
    >>> uses_clean('cross_entropy', 0., has_anchor=False), uses_clean('kl', 0., has_anchor=False)
    (False, True)
  """
  return bool(clean_weight) or has_anchor or distance == 'kl'


def _squared(reference: Array, logits: Array) -> Array:
  """Mean of (z₀ − z)² over the classes that are not masked in both."""
  there = ~(jnp.isneginf(reference) & jnp.isneginf(logits))
  reference, logits = (jnp.where(there, precision.float32_at_least(z), 0) for z in (reference, logits))
  return losses.mean_where((reference - logits) ** 2, there)


def inner_attack(distance: str) -> Callable[..., inner_attacks.Attack]:
  """The inner attack of a distance: it maximises D.

  Args:
    distance: D, 'kl' or 'cross_entropy'.

  Returns:
    `inner_attacks.kl` or `inner_attacks.uniform`.

  Example:
    >>> inner_attack('kl') is inner_attacks.kl
    True
  """
  return {'kl': inner_attacks.kl, 'cross_entropy': inner_attacks.uniform}[distance]


class Tuning(NamedTuple):
  """The state of fine-tuning, besides the model.

  Attributes:
    teacher: the network's variables where fine-tuning began; zeros before.
    start_clean: f32[], the teacher's clean accuracy on the validation split.
    start_robust: f32[], its robust accuracy there, under the validation attack.
    strength: f32[], s, for the rule 'controller', else empty.
    radius: f32[N], r, one per training example, for the rule 'radius', else empty.
  """
  teacher: Any
  start_clean: Array
  start_robust: Array
  strength: Any = ()
  radius: Any = ()


def begin_tuning(variables: Any, *, rule: str, initial: float, num_examples: int,
                 accuracies: tuple[float, float] = (0., 0.)) -> Tuning:
  """The state where fine-tuning begins.

  Args:
    variables: the teacher's variables.
    rule: 'radius' or 'controller' for its state; other rules have none.
    initial: the initial r or s, a share of the radius.
    num_examples: N, the size of the training set.
    accuracies: clean and robust accuracy of the teacher on the validation split.

  Returns:
    A `Tuning`.

  Example:
    >>> print(begin_tuning({}, rule='radius', initial=.5, num_examples=3).radius)
    [0.5 0.5 0.5]
  """
  clean, robust = (jnp.asarray(accuracy, jnp.float32) for accuracy in accuracies)
  strength = jnp.asarray(initial, jnp.float32) if rule == 'controller' else ()
  radius = jnp.full(num_examples, initial, jnp.float32) if rule == 'radius' else ()
  return Tuning(variables, clean, robust, strength, radius)


def attack_scale(tuning: Tuning, index: Array) -> Array | None:
  """The share of the radius with which each example is attacked.

  Args:
    tuning: the state.
    index: i32[B], the places of the examples in the training set.

  Returns:
    f32[B], r; or f32[], s; or None if no rule scales the attack.

  Example:
    >>> tuning = begin_tuning({}, rule='radius', initial=.5, num_examples=3)
    >>> print(attack_scale(tuning, jnp.array([0, 2])))
    [0.5 0.5]
  """
  if not isinstance(tuning.radius, tuple):
    return tuning.radius[index]
  return None if isinstance(tuning.strength, tuple) else tuning.strength


def update_radius(tuning: Tuning, index: Array, robust: Array, *, delta: float,
                  axis_name: str | None) -> Tuning:
  """The rule 'radius': r_i ← clip(r_i + δ, 0, 1) for a robust example, clip(r_i − δ, 0, 1) otherwise.

  Args:
    tuning: the state, with radii.
    index: i32[B], this device's examples. No index appears twice in the batch of all devices.
    robust: bool[B], whether each was robust at its radius.
    delta: δ, a share of the radius.
    axis_name: the axis over devices, or None. Every device applies the changes of all devices.

  Returns:
    The state after.

  Example:
    >>> tuning = begin_tuning({}, rule='radius', initial=.5, num_examples=3)
    >>> robust = jnp.array([True, False])
    >>> print(update_radius(tuning, jnp.array([2, 0]), robust, delta=.25, axis_name=None).radius)
    [0.25 0.5  0.75]
  """
  if axis_name is not None:
    index, robust = jax.lax.all_gather((index, robust), axis_name, tiled=True)
  moved = tuning.radius[index] + jnp.where(robust, delta, -delta)
  return tuning._replace(radius=tuning.radius.at[index].set(jnp.clip(moved, 0, 1)))


def keeps(clean: float, start_clean: float, tolerance: float) -> bool:
  """Whether a clean accuracy is at most `tolerance` below that at the start, up to rounding.

  Args:
    clean: clean accuracy, a fraction.
    start_clean: that at the start of fine-tuning, a fraction.
    tolerance: the allowed drop, a fraction.

  Returns:
    True if it is.

  Example:
    >>> keeps(.9, .905, .005), keeps(.899, .905, .005)
    (True, False)
  """
  return bool(clean >= start_clean - tolerance - _SLACK)


def control(strength: float, clean: float, start_clean: float, *, tolerance: float,
            delta: float) -> np.ndarray:
  """The rule 'controller': s + δ while the clean accuracy is kept, s − δ otherwise, in [0, 1].

  Args:
    strength: s.
    clean: clean accuracy on the validation split after the epoch, a fraction.
    start_clean: that at the start of fine-tuning, a fraction.
    tolerance: the allowed drop, a fraction.
    delta: δ.

  Returns:
    f32[] on the host, s for the next epoch.

  Example:
    >>> print(control(.5, .90, .90, tolerance=.005, delta=.25))
    0.75
    >>> print(control(.5, .89, .90, tolerance=.005, delta=.25))
    0.25
  """
  moved = strength + (delta if keeps(clean, start_clean, tolerance) else -delta)
  return np.float32(np.clip(moved, 0, 1))

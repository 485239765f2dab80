"""The objective of fine-tuning: learn from x, be consistent at x', stay near a teacher."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import inner_attacks, losses, objective

Array = jax.Array
DISTANCES = ('kl', 'cross_entropy')
ANCHORS = ('kl', 'squared')


def finetune(forward: objective.Forward, batch_stats: object, x: Array, x_adv: Array, y: Array, *,
             distance: str, anchor: str, anchor_weight: float,
             reference: Array | None = None) -> objective.Outcome:
  """The fit is CE(f(x), y) + μ · A(f₀(x), f(x)), the regulariser D(f(x'), ·).

  D is KL(p ‖ p') with p, the clean prediction, held fixed, so that x' follows x and not x x'; or
  CE(f(x'), y). A is KL(p₀ ‖ p) or the mean over classes of (z₀ − z)². x and x' go through apart,
  and with two BatchNorms each through its own.

  Args:
    forward: the network in train mode, told which branch an input belongs to.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    distance: D, 'kl' or 'cross_entropy'.
    anchor: A, 'kl' or 'squared'.
    anchor_weight: μ.
    reference: f32[B, K], the teacher's logits at x; None for no anchor.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats, branch: (x, batch_stats)
    >>> x, x_adv, y = jnp.array([[2., 0.]]), jnp.array([[0., 2.]]), jnp.array([0])
    >>> found = finetune(f, {}, x, x_adv, y, distance='kl', anchor='squared', anchor_weight=.5,
    ...                  reference=x_adv)
    >>> print(f'{found.fit[0]:.4f} {found.regulariser[0]:.4f}')
    2.1269 1.5232

  Source: ours, in the spirit of Hou et al., Adversarial Fine-tune with Dynamically Regulated
  Adversary, 2022, of which the abstract could be read.
  """
  clean, batch_stats = forward(x, batch_stats, branch='clean')
  adversarial, batch_stats = forward(x_adv, batch_stats, branch='adversarial')
  fit = losses.cross_entropy(clean, y)
  if reference is not None:
    away = (losses.kl(reference, clean) if anchor == 'kl'
            else jnp.mean((reference - clean) ** 2, axis=-1))
    fit += anchor_weight * away
  apart = (losses.kl(jax.lax.stop_gradient(clean), adversarial) if distance == 'kl'
           else losses.cross_entropy(adversarial, y))
  return objective.Outcome(fit, apart, adversarial, batch_stats)


def inner_attack(distance: str) -> Callable[..., inner_attacks.Attack]:
  """The inner attack that fits a distance: it maximises what D measures.

  Args:
    distance: D, 'kl' or 'cross_entropy'.

  Returns:
    `inner_attacks.kl` or `inner_attacks.uniform`.

  Example:
    >>> inner_attack('kl') is inner_attacks.kl
    True
  """
  return {'kl': inner_attacks.kl, 'cross_entropy': inner_attacks.uniform}[distance]


# Accuracies are multiples of one over the number of examples; a tolerance must not turn on a bit.
_SLACK = 1e-6


class Tuning(NamedTuple):
  """What fine-tuning keeps beside the model.

  Attributes:
    teacher: the network's variables where fine-tuning began; zeros before.
    start_clean: f32[], the teacher's clean accuracy on the validation split.
    start_robust: f32[], its accuracy there under the validation attack.
    strength: f32[], the share of the radius for all, where the rule is `controller`, else empty.
    radius: f32[N], the share for each training example, where the rule is `radius`, else empty.
  """
  teacher: Any
  start_clean: Array
  start_robust: Array
  strength: Any = ()
  radius: Any = ()


def begin_tuning(variables: Any, *, rule: str, initial: float, num_examples: int,
          accuracies: tuple[float, float] = (0., 0.)) -> Tuning:
  """The state at the start of fine-tuning.

  Args:
    variables: the teacher's.
    rule: 'radius' and 'controller' have a state of their own, any other has none.
    initial: the share of the radius to begin with.
    num_examples: N.
    accuracies: the teacher's on the validation split, clean and robust.

  Returns:
    A `Tuning`.

  Example:
    >>> print(begin({}, rule='radius', initial=.5, num_examples=3).radius)
    [0.5 0.5 0.5]

  Source: ours.
  """
  clean, robust = (jnp.asarray(accuracy, jnp.float32) for accuracy in accuracies)
  strength = jnp.asarray(initial, jnp.float32) if rule == 'controller' else ()
  radius = jnp.full(num_examples, initial, jnp.float32) if rule == 'radius' else ()
  return Tuning(variables, clean, robust, strength, radius)


def attack_scale(tuning: Tuning, index: Array) -> Array | None:
  """The share of the radius that each example is attacked with.

  Args:
    tuning: the state.
    index: i32[B], the examples' places in the training set.

  Returns:
    f32[B], or f32[] where it is one for all; None where no rule scales the attack.

  Example:
    >>> tuning = begin({}, rule='none', initial=.5, num_examples=3)
    >>> scale(tuning, jnp.array([0])) is None
    True

  Source: ours.
  """
  if not isinstance(tuning.radius, tuple):
    return tuning.radius[index]
  return None if isinstance(tuning.strength, tuple) else tuning.strength


def update_radius(tuning: Tuning, index: Array, robust: Array, *, delta: float,
                  axis_name: str | None) -> Tuning:
  """r_i ← clip(r_i + δ, 0, 1) for an example that stood at its radius, clip(r_i − δ, 0, 1) else.

  Args:
    tuning: the state, with radii.
    index: i32[B], this device's examples; none is twice in the batch of all devices.
    robust: bool[B], whether each stood.
    delta: δ, a share of the attack's radius.
    axis_name: the axis over devices, or None. Every device gets the changes of all.

  Returns:
    The state with the radii of these examples moved.

  Example:
    >>> tuning = begin({}, rule='radius', initial=.5, num_examples=3)
    >>> stood = jnp.array([True, False])
    >>> print(update_radius(tuning, jnp.array([2, 0]), stood, delta=.25, axis_name=None).radius)
    [0.25 0.5  0.75]

  Source: ours, in the spirit of Hou et al., Adversarial Fine-tune with Dynamically Regulated
  Adversary, 2022.
  """
  if axis_name is not None:
    index, robust = jax.lax.all_gather((index, robust), axis_name, tiled=True)
  moved = tuning.radius[index] + jnp.where(robust, delta, -delta)
  return tuning._replace(radius=tuning.radius.at[index].set(jnp.clip(moved, 0, 1)))


def keeps(clean: float, start_clean: float, tolerance: float) -> bool:
  """Whether a clean accuracy is at most `tolerance` below that at the start.

  Args:
    clean: a fraction.
    start_clean: a fraction.
    tolerance: a fraction.

  Returns:
    True also where rounding alone makes the difference.

  Example:
    >>> keeps(.9, .905, .005), keeps(.899, .905, .005)
    (True, False)

  Source: ours.
  """
  return bool(clean >= start_clean - tolerance - _SLACK)


def control(strength: float, clean: float, start_clean: float, *, tolerance: float,
            delta: float) -> np.ndarray:
  """The strength for the next epoch: s + δ while the clean accuracy is kept, s − δ else, in [0, 1].

  Args:
    strength: s.
    clean: the clean accuracy on the validation split after an epoch, a fraction.
    start_clean: that at the start of fine-tuning.
    tolerance: how much may be lost, a fraction.
    delta: δ.

  Returns:
    f32[], on the host.

  Example:
    >>> print(control(.5, .90, .90, tolerance=.005, delta=.25))
    0.75
    >>> print(control(.5, .89, .90, tolerance=.005, delta=.25))
    0.25

  Source: ours, in the spirit of Hou et al., Adversarial Fine-tune with Dynamically Regulated
  Adversary, 2022.
  """
  moved = strength + (delta if keeps(clean, start_clean, tolerance) else -delta)
  return np.float32(np.clip(moved, 0, 1))

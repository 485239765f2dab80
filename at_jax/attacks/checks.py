"""Reasons to doubt an evaluation: each check returns warnings, sentences that say what to do.

They are warnings and not errors because each has an innocent explanation; a number published with one
of them unexplained should not be believed.
"""

from collections.abc import Mapping
import warnings

import jax
import numpy as np

from at_jax.attacks import answers
from at_jax.attacks import calls
from at_jax.attacks import inputs
from at_jax.attacks import outputs

Array = jax.Array
_SQUARE_MARGIN = .002
_MOST_CHANNELS = 4  # of an image that is looked at, not of what a layer gives


def check_model(logits_fn, x: Array, y: Array) -> tuple[str, ...]:
  """Looks at the model's outputs on clean inputs: `outputs.check` and `answers.check`.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], one batch of clean inputs.
    y: i32[B].

  Returns:
    Warnings; none if nothing is odd.

  Raises:
    ValueError: if the outputs are no logits [B, C].

  Example:
    >>> print(check_model(jax.nn.softmax, np.eye(3), np.arange(3))[0])
    the outputs are probabilities: attack the logits, before the softmax, or add square

  Source: as `outputs.check` and `answers.check`.
  """
  logits = logits_fn(x)
  calls.check_answer(logits, len(x))
  return outputs.check(logits, y) + answers.check(logits_fn, x, y)


def check_channels(shape: tuple[int, ...], channel_axis: int) -> tuple[str, ...]:
  """Says if channels seem to lie on another axis than Square is told.

  Args:
    shape: (B, ...), of the inputs.
    channel_axis: -1 or 1.

  Returns:
    Warnings.

  Example:
    >>> print(*check_channels((8, 3, 32, 32), -1))
    inputs of shape (8, 3, 32, 32) look like channels first: give square channel_axis=1

  Source: ours.
  """
  if len(shape) != 4:
    return ()
  first, last = (size <= _MOST_CHANNELS < min(others) for size, others in (
      (shape[1], shape[2:]), (shape[3], shape[1:3])))
  if first and channel_axis == -1:
    return (f'inputs of shape {shape} look like channels first: give square channel_axis=1',)
  if last and channel_axis == 1:
    return (f'inputs of shape {shape} look like channels last: give square channel_axis=-1',)
  return ()


def check_classes(num_classes: int, attacks: tuple[str, ...]) -> tuple[str, ...]:
  """Says what few classes change.

  Args:
    num_classes: C.
    attacks: names of components.

  Returns:
    Warnings.

  Example:
    >>> print(*check_classes(3, ('apgd-t',)))
    3 classes: apgd-t maximises z_t - z_y, not targeted DLR

  Source: ours.
  """
  warnings = []
  if num_classes < 3 and 'apgd-dlr' in attacks:
    warnings.append(f'{num_classes} classes: apgd-dlr maximises the margin, DLR needs 3')
  if num_classes < 4 and 'apgd-t' in attacks:
    warnings.append(f'{num_classes} classes: apgd-t maximises z_t - z_y, not targeted DLR')
  return tuple(warnings)


def check_gradients(
    name: str, attacked: int, blind: int, flat: int, ran: tuple[str, ...], random: bool = False
) -> tuple[str, ...]:
  """Says for how many examples the loss of an attack gave it nothing to climb.

  Args:
    name: the attack.
    attacked: how many examples it attacked to the end of a run.
    blind: for how many of them a gradient, at any step of any run, was zero everywhere, or not
      finite somewhere, which is made zero.
    flat: for how many the loss never rose above a start's, in no run, and which did not fall.
    ran: the attacks that were run, so as to advise others.
    random: whether the model is, which Square and FAB cannot attack.

  Returns:
    Warnings: from one example on that was blind, and where more than 1 % were flat.

  Example:
    >>> print(*check_gradients('apgd-ce', 100, 40, 0, ('apgd-ce', 'apgd-t')))
    apgd-ce: zero gradients on 40.0 % of examples; add square

  Source: ours, after the check of the start by AutoAttack's authors.
  """
  # Cross-entropy can have none where a loss without a scale has one; where such a loss has none
  # either, the model hides it, and only what asks for no gradient is left.
  free = [other for other in ('apgd-dlr', 'apgd-t') if name == 'apgd-ce' and other in ran]
  wanted = ('apgd-t',) if name == 'apgd-ce' and not free else ()
  if random:
    cure = outputs.add(wanted, ran, "hold the noise still and add square, with version='standard'")
  else:
    cure = outputs.add((*wanted, 'square'), ran,
                       f'trust {" and ".join((*free, "square"))}, with more num_queries')
  told = {'zero gradients': (blind, 0), 'the loss never rose': (flat, outputs.SHARE * attacked)}
  return tuple(f'{name}: {what} on {100 * count / attacked:.1f} % of examples; {cure}'
               for what, (count, innocent) in told.items() if count > innocent)


def check_end(logits: np.ndarray, fell: np.ndarray) -> tuple[str, ...]:
  """Says how many examples fell to outputs that are not numbers.

  Args:
    logits: f32[N, C], at the points that were found.
    fell: bool[N], classified correctly at first, and no more.

  Returns:
    Warnings.

  Example:
    >>> print(*check_end(np.array([[np.nan, 1.], [0., 1.]]), np.array([True, True])))
    1 of 2 examples fell to logits that are not finite: mend the model, or do not count them

  Source: ours.
  """
  broken = int((fell & ~outputs.are_numbers(logits)).sum())
  if not broken:
    return ()
  return (f'{broken} of {int(fell.sum())} examples fell to logits that are not finite: '
          'mend the model, or do not count them',)


def check_found(logits: np.ndarray, y: Array, fell: np.ndarray) -> tuple[str, ...]:
  """Says how many examples fell to points that the model, asked again, is right about.

  Args:
    logits: f32[N, C], at the points that were found; of a model that is not random.
    y: i32[N].
    fell: bool[N], classified correctly at first, and no more.

  Returns:
    Warnings; of a lead within rounding, 1e-3 of the logits or what their dtype has, none.

  Example:
    >>> print(check_found(np.array([[3., 1.], [0., 1.]]), np.array([0, 0]), np.ones(2, bool))[0][:67])
    1 of 2 examples fell to points that the model, asked again, is righ

  Source: ours.
  """
  slack = max(1e-3, 2 * outputs.rounding_of(logits))
  logits, y = np.asarray(logits, np.float64), np.asarray(y)
  fell = fell & outputs.are_numbers(logits)
  lead = outputs.lead(logits, y)[fell]
  size = np.abs(outputs.numbers(logits)).max(axis=-1)[fell]
  right = int((lead > slack * size).sum())
  if not right:
    return ()
  return (f'{right} of {int(fell.sum())} examples fell to points that the model, asked again, is right '
          'about: unless it is rounding, of bfloat16 for example, its outputs depend on the batch around '
          'an example or on its place in it',)


def check_reach(
    epsilon: np.ndarray, shape: tuple[int, ...], bounds: tuple[Array, Array], norm: str
) -> tuple[str, ...]:
  """Says so if a ball holds all there is within the bounds.

  Args:
    epsilon: f32[N].
    shape: of one example.
    bounds: the smallest and the largest value of an input.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    Warnings.

  Example:
    >>> print(*check_reach(np.array([8.]), (32, 32, 3), (0., 1.), 'linf'))
    epsilon = 8 reaches across all of 0..1: it is in units of x, 8/255 for example

  Source: ours.
  """
  low, high = (np.asarray(bound, np.float64) for bound in bounds)
  across = np.broadcast_to(high - low, shape).ravel()
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  farthest = float(np.max(epsilon))
  if farthest < np.linalg.norm(across, order):
    return ()
  return (f'epsilon = {farthest:g} reaches across all of {low.min():g}..{high.max():g}: it is in units '
          'of x, 8/255 for example',)


def warn_of_reach(
    epsilon: float | Array, x: Array, bounds: tuple[Array, Array], norm: str) -> None:
  """`check_reach` as a warning of Python's, where the radius has a value already.

  Args:
    epsilon: a number or f32[B].
    x: f32[B, ...].
    bounds: the smallest and the largest value of an input.
    norm: 'linf', 'l2' or 'l1'.

  Example:
    >>> warn_of_reach(8 / 255, np.ones((2, 3)), (0., 1.), 'linf')

  Source: ours.
  """
  if all(map(inputs.is_known, (epsilon, *bounds))):
    low, high = (np.asarray(bound) for bound in bounds)
    # Of bounds of an example's own the widest.
    widest = (low.min(0) if low.ndim == x.ndim else low, high.max(0) if high.ndim == x.ndim else high)
    for line in check_reach(np.asarray(epsilon), x.shape[1:], widest, norm):
      warnings.warn(line, stacklevel=3)


def check_square(accuracy: Mapping[str, float]) -> tuple[str, ...]:
  """Says so if Square, which sees no gradients, finds what the attacks before it did not.

  Args:
    accuracy: robust accuracy after each component, in 0..1, in the order they ran.

  Returns:
    Warnings.

  Example:
    >>> print(check_square({'apgd-t': .6, 'fab-t': .6, 'square': .5})[0])
    square took 10.0 % that the gradients did not find: are they masked? raise num_queries, add fab

  Source: AutoAttack's authors' checks.
  """
  names = list(accuracy)
  before = names[:names.index('square')] if 'square' in names else []
  if not before:
    return ()
  gain = accuracy[before[-1]] - accuracy['square']
  if gain <= _SQUARE_MARGIN:
    return ()
  return (f'square took {100 * gain:.1f} % that the gradients did not find: are they masked? '
          f'raise num_queries, {outputs.add(("apgd-t", "fab"), names, "trust square alone")}',)



"""Reasons to doubt an evaluation: each check returns warnings, sentences that say what to do.

They are warnings and not errors because each has an innocent explanation; a number published with one
of them unexplained should not be believed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
_SQUARE_MARGIN = .002
_SHARE = .01


def check_model(logits_fn, x: Array, y: Array) -> tuple[str, ...]:
  """Looks at the model's outputs on clean inputs.

  Is it random: five calls, counts of right answers differ, or logits of norm 1 by more than 1e-4? Are
  the outputs probabilities? Are they finite? Does an output depend on the other inputs of the batch?
  Are logits so far apart that cross-entropy's gradient is zero in this precision?

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], one batch of clean inputs.
    y: i32[B].

  Returns:
    Warnings; none if nothing is odd.

  Example:
    >>> print(check_model(lambda x: jax.nn.softmax(x), jnp.eye(3), jnp.arange(3))[0])
    the outputs are probabilities: attack the logits, before the softmax, or add square

  Source: Croce et al., RobustBench, 2021, and the checks of AutoAttack's authors; batch dependence,
  non-finite and saturated outputs: ours.
  """
  passes = np.stack([np.asarray(logits_fn(x), np.float64) for _ in range(5)])
  logits = passes[0]
  warnings, keep = check_outputs(logits, y), np.isfinite(logits).all(axis=-1)
  if not keep.any():
    return warnings
  # A random model's outputs differ in any company.
  random = _randomness(passes[:, keep], np.asarray(y)[keep])
  return warnings + tuple(random or _batch_dependence(logits_fn, x, logits, keep))


def check_outputs(logits: np.ndarray, y: Array) -> tuple[str, ...]:
  """The part of `check_model` that one pass is enough for, so that it serves random models too.

  Args:
    logits: f32[B, C], of clean inputs.
    y: i32[B].

  Returns:
    Warnings; none if nothing is odd.

  Example:
    >>> print(*check_outputs(np.array([[np.nan, 1.], [0., 1.5]]), np.array([1, 1])))
    1 of 2 clean inputs give logits that are not finite; they count as misclassified

  Source: as `check_model`.
  """
  logits, y = np.asarray(logits, np.float64), np.asarray(y)
  keep, warnings = np.isfinite(logits).all(axis=-1), []
  if not keep.all():
    warnings.append(f'{(~keep).sum()} of {len(keep)} clean inputs give logits that are not finite; '
                    'they count as misclassified')
  if keep.any():
    warnings += _probabilities(logits[keep]) + _saturation(logits[keep], y[keep])
  return tuple(warnings)


def check_classes(
    num_classes: int, attacks: tuple[str, ...], aims: int = 9
) -> tuple[str, ...]:
  """Says what few classes change.

  Args:
    num_classes: C.
    attacks: names of components.
    aims: how many targets apgd-t has where there are classes enough; fab-t has 9.

  Returns:
    Warnings.

  Example:
    >>> print(*check_classes(3, ('apgd-t',)), sep='; ')
    3 classes: apgd-t aims at the other 2 only; 3 classes: apgd-t maximises z_t - z_y, not targeted DLR

  Source: ours.
  """
  warnings = []
  if num_classes < 3 and 'apgd-dlr' in attacks:
    warnings.append(f'{num_classes} classes: apgd-dlr maximises the margin, DLR needs 3')
  for name, most in (('apgd-t', aims), ('fab-t', 9)):
    if name in attacks and num_classes - 1 < most:
      warnings.append(f'{num_classes} classes: {name} aims at the other {num_classes - 1} only')
  if num_classes < 4 and 'apgd-t' in attacks:
    warnings.append(f'{num_classes} classes: apgd-t maximises z_t - z_y, not targeted DLR')
  return tuple(warnings)


def check_gradients(
    name: str, attacked: int, blind: int, flat: int, ran: tuple[str, ...]
) -> tuple[str, ...]:
  """Says for how many examples the loss of an attack gave it nothing to climb.

  Args:
    name: the attack.
    attacked: how many examples it attacked to the end of a run.
    blind: for how many of them a gradient, at any step of any run, was zero everywhere.
    flat: for how many the loss never rose above a start's, in no run, and which did not fall.
    ran: the attacks that were run, so as to advise others.

  Returns:
    Warnings, where the share is above 1 %.

  Example:
    >>> print(*check_gradients('apgd-ce', 100, 40, 0, ('apgd-ce', 'apgd-t')))
    apgd-ce: zero gradients on 40.0 % of examples; add apgd-dlr and square

  Source: ours, after the check of the start by AutoAttack's authors.
  """
  others = [other for other in ('apgd-dlr', 'apgd-t', 'square') if other not in ran]
  cure = ('add ' + ' and '.join(others) if others else
          'trust square, with more num_queries, and pgd on losses.scaled')
  told = {'zero gradients': blind, 'the loss never rose': flat}
  return tuple(f'{name}: {what} on {100 * count / attacked:.1f} % of examples; {cure}'
               for what, count in told.items() if attacked and count / attacked > _SHARE)


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
  broken = int((fell & ~np.isfinite(logits).all(axis=-1)).sum())
  if not broken:
    return ()
  return (f'{broken} of {int(fell.sum())} examples fell to logits that are not finite: '
          'mend the model, or do not count them',)


def check_square(accuracy: Mapping[str, float]) -> tuple[str, ...]:
  """Says so if Square, which sees no gradients, finds what the attacks before it did not.

  Args:
    accuracy: robust accuracy after each component, in 0..1, in the order they ran.

  Returns:
    Warnings.

  Example:
    >>> print(*check_square({'apgd-ce': .6, 'square': .5}))
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
          'raise num_queries, add fab',)


def _randomness(passes: np.ndarray, y: np.ndarray) -> list[str]:
  unit = passes / (np.linalg.norm(passes, axis=-1, keepdims=True) + 1e-10)
  spread = max(np.linalg.norm(a - b, axis=-1).max() for a in unit for b in unit)
  right = {int((logits.argmax(axis=-1) == y).sum()) for logits in passes}
  if len(right) == 1 and spread <= 1e-4:
    return []
  return ["the model is random: use version='rand', with a model that takes a key"]


def _probabilities(logits: np.ndarray) -> list[str]:
  in_range = logits.max() < 1 + 1e-5 and logits.min() > -1e-5
  if in_range and np.all(np.abs(logits.sum(axis=-1) - 1) < 1e-5):
    return ['the outputs are probabilities: attack the logits, before the softmax, or add square']
  return []


def _saturation(logits: np.ndarray, y: np.ndarray) -> list[str]:
  others = np.where(np.arange(logits.shape[-1]) == y[:, None], -np.inf, logits).max(axis=-1)
  lead = logits[np.arange(len(y)), y] - others
  # exp(-88) is the smallest normal float32: beyond it the gradient of cross-entropy is zero.
  dead, spread = np.mean(lead > 88), logits.max(axis=-1) - logits.min(axis=-1)
  # From log(2^24) on the true class's probability rounds to 1, and the part of the gradient that
  # pulls away from it to zero. A few such inputs are ordinary, and attacks without a scale find
  # what there is; where most are such, it is the scale of the model.
  deaf, warnings = np.mean(lead > 24 * np.log(2)), []
  if dead > _SHARE:
    warnings.append(f'logits lead by more than 88 on {100 * dead:.1f} % of inputs: cross-entropy has '
                    'no gradient there; add apgd-dlr or apgd-t, whose loss has no scale')
  elif deaf > .5:
    warnings.append(f'logits lead by more than 16.6 on {100 * deaf:.1f} % of inputs: cross-entropy '
                    'has no pull away from the true class there; trust apgd-dlr and apgd-t')
  if np.median(spread) < 1e-5:
    warnings.append('logits differ by less than 1e-5: gradients are lost to rounding; scale them '
                    'up, or add square')
  return warnings


def _batch_dependence(logits_fn, x: Array, logits: np.ndarray, keep: np.ndarray) -> list[str]:
  if len(x) < 2:
    return []
  # The same inputs in other company: the first half replaced by copies of the last example.
  half = len(x) // 2
  mixed = jnp.concatenate([jnp.broadcast_to(x[-1:], x[:half].shape), x[half:]])
  again, keep = np.asarray(logits_fn(mixed), np.float64)[half:], keep[half:]
  if not keep.any():
    return []
  scale = np.abs(logits[half:][keep]).max() + 1e-10
  if np.abs(again - logits[half:])[keep].max() / scale < 1e-3:
    return []
  return ['an output depends on the rest of the batch: is BatchNorm in training mode?']

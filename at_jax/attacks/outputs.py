"""What one pass over clean inputs tells of a model: are its outputs such as attacks can follow?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
SHARE = .01  # of examples, of which more are no accident


def check(
    logits: np.ndarray, y: Array, ran: tuple[str, ...] = ()
) -> tuple[str, ...]:
  """Looks at one pass: are the outputs finite, probabilities, far apart or all the same?

  Of logits too far apart cross-entropy's gradient is zero in this precision.

  Args:
    logits: f32[B, C], of clean inputs.
    y: i32[B].
    ran: the attacks that are run, so as to advise others.

  Returns:
    Warnings; none if nothing is odd.

  Example:
    >>> print(check(np.array([[np.nan, 1.], [0., 1.5]]), np.array([1, 1]))[0][:78])
    1 of 2 clean inputs give logits that are not finite; they count as misclassifi

  Source: probabilities: Croce et al., RobustBench, 2021; the others: ours.
  """
  rounding = rounding_of(logits)
  logits, y = np.asarray(logits, np.float64), np.asarray(y)
  keep, warnings = are_numbers(logits), []
  if not keep.all():
    warnings.append(f'{(~keep).sum()} of {len(keep)} clean inputs give logits that are not finite; '
                    'they count as misclassified: mend the model, or leave them out')
  if keep.any():
    warnings += _probabilities(logits[keep], ran, rounding) + _saturation(logits[keep], y[keep], ran)
  return tuple(warnings)


def add(wanted: Sequence[str], ran: Sequence[str], otherwise: str) -> str:
  """Advice to run attacks as well, those that are not run already.

  Args:
    wanted: attacks that would help.
    ran: those that are run.
    otherwise: what to do where all are.

  Returns:
    The end of a sentence.

  Example:
    >>> add(('apgd-t', 'square'), ('square',), 'trust square')
    'add apgd-t'

  Source: ours.
  """
  missing = [name for name in wanted if name not in ran]
  return 'add ' + ' and '.join(missing) if missing else otherwise


def rounding_of(logits: Array) -> float:
  """The distance from 1 to the next number in the precision of logits.

  Args:
    logits: of any dtype.

  Returns:
    A number; of integers, bfloat16's.

  Example:
    >>> print(rounding_of(jnp.zeros((2, 3), jnp.bfloat16)))
    0.0078125

  Source: ours.
  """
  return float(jnp.finfo(jnp.promote_types(jnp.asarray(logits).dtype, jnp.bfloat16)).eps)


def are_numbers(logits: np.ndarray) -> np.ndarray:
  """Which answers count as such, as `steppers.is_correct` has it: −inf says that a class is none.

  Args:
    logits: f64[B, C].

  Returns:
    bool[B].

  Example:
    >>> print(are_numbers(np.array([[1., -np.inf], [1., np.nan]])))
    [ True False]

  Source: ours.
  """
  return np.isfinite(np.max(logits, axis=-1))


def lead(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
  """By how much the true class's logit is above all others.

  Args:
    logits: f64[B, C].
    y: i64[B].

  Returns:
    f64[B].

  Example:
    >>> print(lead(np.array([[3., 1., 2.]]), np.array([0])))
    [1.]

  Source: ours.
  """
  others = np.where(np.arange(logits.shape[-1]) == y[:, None], -np.inf, logits).max(axis=-1)
  return logits[np.arange(len(y)), y] - others


def numbers(logits: Array) -> np.ndarray:
  """Logits to compare and to measure: 0 for −inf, whose class is none, and whose differences are NaN.

  Args:
    logits: f32[B, C].

  Returns:
    f64[B, C].

  Example:
    >>> print(numbers(np.array([[1., -2., -np.inf]])))
    [[ 1. -2.  0.]]

  Source: ours.
  """
  logits = np.asarray(logits, np.float64)
  return np.where(np.isneginf(logits), 0, logits)


def _probabilities(logits: np.ndarray, ran: tuple[str, ...], rounding: float) -> list[str]:
  slack = max(1e-5, 2 * rounding)
  in_range = logits.max() < 1 + slack and logits.min() > -slack
  if in_range and np.all(np.abs(logits.sum(axis=-1) - 1) < slack):
    cure = add(('square',), ran, 'trust square')
    return [f'the outputs are probabilities: attack the logits, before the softmax, or {cure}']
  return []


def _saturation(logits: np.ndarray, y: np.ndarray, ran: tuple[str, ...]) -> list[str]:
  leads, spread = lead(logits, y), logits.max(axis=-1) - logits.min(axis=-1)
  # exp(-88) is the smallest normal float32: beyond it the gradient of cross-entropy is zero.
  dead = np.mean(leads > 88)
  # From log(2^24) on the true class's probability rounds to 1, and the part of the gradient that
  # pulls away from it to zero. A few such inputs are ordinary, and attacks without a scale find
  # what there is; where most are such, it is the scale of the model.
  deaf, warnings = np.mean(leads > 24 * np.log(2)), []
  free = [name for name in ('apgd-dlr', 'apgd-t') if name in ran]  # their losses have no scale
  cure = f'trust {" and ".join(free)}' if free else 'add apgd-dlr or apgd-t'
  if dead > SHARE:
    warnings.append(f'logits lead by more than 88 on {100 * dead:.1f} % of inputs: cross-entropy has '
                    f'no gradient there; {cure}, whose loss has no scale')
  elif deaf > .5:
    warnings.append(f'logits lead by more than 16.6 on {100 * deaf:.1f} % of inputs: cross-entropy '
                    f'has no pull away from the true class there; {cure}')
  # float32 rounds a logit of size z, and a loss near log(C), by up to 1.2e-7 times that. Where the
  # logits differ by no more than some 40 such steps, what an attack gains is mostly rounding.
  least = 40 * np.finfo(np.float32).eps * max(2., np.median(np.abs(numbers(logits)).max(axis=-1)))
  if np.median(spread) < least:
    warnings.append(f'logits differ by less than {least:.0e}: gradients are lost to rounding; scale '
                    'them up, take away what they have in common, or '
                    f'{add(("square",), ran, "trust square")}')
  return warnings

"""Checks that detect an unreliable evaluation.

Each check returns warnings: sentences that say what was seen and what to do. They are not errors, because
each finding can have a harmless cause. A robust accuracy should not be published before each is explained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _functions, _gradients, losses

Array = jax.Array
_SHARE = .01          # fraction of the examples above which a finding is reported
_SQUARE_MARGIN = .002
_SCALE_FREE = ('apgd-dlr', 'apgd-t', 'apgd-soft', 'apgd-near')
_MAX_CHANNELS = 4     # of an image; a feature map has more
_ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1}


def check_model(logits_fn: Callable[..., Array], x: Array, y: Array) -> tuple[str, ...]:
  """Checks the outputs of a model on one batch of clean inputs.

  The logits should be finite, deterministic and independent of the rest of the batch. They should not be
  probabilities, saturated, or lost to rounding, and their margin should have a gradient.

  Args:
    logits_fn: maps f32[B, ...] to logits f32[B, C].
    x: f32[B, ...], clean inputs.
    y: i32[B], true classes.

  Returns:
    Warnings; an empty tuple if nothing was found.

  Raises:
    ValueError: if x or y has an invalid shape, dtype or value, `logits_fn` fails, or the outputs are not
      logits [B, C].

  Example:
    >>> print(check_model(jax.nn.softmax, np.eye(3), np.arange(3))[0])
    the outputs are probabilities: attack the logits, before the softmax, or add square

  Reference: Croce et al., RobustBench: a standardized adversarial robustness benchmark, 2021, and the checks
    of AutoAttack's released code, for probabilities and random models.
  """
  x, y = _arguments.as_examples(x, y)
  _functions.check_function('logits_fn', logits_fn, 'x', like='lambda x: x @ weights')
  try:
    logits = logits_fn(x)
  except Exception as error:
    raise _functions.failure('logits_fn', logits_fn, (x,), error) from error
  _functions.check_answer(logits, len(x))
  _arguments.check_values(x=x, classes={'y': y}, num_classes=logits.shape[1])
  return (check_logits(logits, y, dtype=x.dtype) + check_determinism(logits_fn, x, y)
          + _check_slope(logits_fn, x, y, logits))


def _check_slope(logits_fn: Callable[..., Array], x: Array, y: Array, logits: Array) -> tuple[str, ...]:
  """Warns if the margin has no gradient at inputs, as where a model rounds them to pixels."""
  try:
    gradient = jax.grad(lambda x: jnp.sum(losses.margin(logits_fn(x), y)))(x)
  except Exception:  # a model without derivatives, which an attack with gradients refuses
    return ()
  finite = are_finite(np.asarray(logits, np.float64))  # `check_logits` warns of the others
  share = float(np.mean(np.asarray(_gradients.zero_gradient(gradient)) & finite))
  if share <= _SHARE:
    return ()
  return (f'zero gradients on {100 * share:.1f} % of inputs: the model hides its gradient, by rounding for '
          'example; add square, or attack it without that part',)


def check_logits(logits: Array, y: Array, attacks: Sequence[str] = (), dtype: Any = np.float32
                 ) -> tuple[str, ...]:
  """Checks that clean logits [B, C] are finite, no probabilities, not saturated and not lost to rounding.

  `attacks` are those that run; the advice names others. `dtype` is that of x, and of its gradient.
  """
  slack = max(1e-5, 2 * precision(logits))
  is_float64 = np.dtype(dtype) == np.float64 and precision(logits) == np.finfo(np.float64).eps
  limits = np.finfo(np.float64 if is_float64 else np.float32)
  return tuple(_logit_warnings(np.asarray(logits, np.float64), np.asarray(y), attacks, slack, limits))


def _logit_warnings(logits: np.ndarray, y: np.ndarray, attacks: Sequence[str], slack: float,
                    limits: np.finfo) -> Iterator[str]:
  finite, square = are_finite(logits), advise(('square',), attacks, 'trust square')
  if not finite.all():
    yield (f'{(~finite).sum()} of {len(finite)} clean inputs give logits that are not finite; these count as '
           'misclassified: fix the model, or leave them out')
  logits, y = logits[finite], y[finite]
  if not len(logits):
    return
  in_range = logits.max() < 1 + slack and logits.min() > -slack
  if in_range and np.all(np.abs(logits.sum(axis=-1) - 1) < slack):
    yield f'the outputs are probabilities: attack the logits, before the softmax, or {square}'
  gaps = logit_gap(logits, y)
  # Beyond e^-88, the smallest normal number of float32, the gradient of cross-entropy is zero.
  largest_gap = math.ceil(-math.log(limits.tiny))
  no_gradient = np.mean(gaps > largest_gap)
  # From log(2^24) on in float32, the probability of the true class rounds to 1, and the gradient at its logit
  # to zero. A few such inputs are normal, and attacks with a scale-free loss find their adversarial
  # examples. If most inputs are such, the scale of the model is the cause.
  saturated_gap = -math.log(limits.eps / 2)
  no_true_class_gradient = np.mean(gaps > saturated_gap)
  scale_free = [name for name in _SCALE_FREE if name in attacks]
  advice = f'trust {" and ".join(scale_free)}' if scale_free else 'add apgd-dlr or apgd-t'
  if no_gradient > _SHARE:
    yield (f'logits lead by more than {largest_gap} on {100 * no_gradient:.1f} % of inputs: cross-entropy '
           f'has no gradient there; {advice}, whose loss is scale-free')
  elif no_true_class_gradient > .5:
    yield (f'logits lead by more than {saturated_gap:.1f} on {100 * no_true_class_gradient:.1f} % of inputs: '
           f'cross-entropy has no gradient at the true class there; {advice}')
  # float32 rounds a logit of size z, and a loss near log(C), by up to 1.2e-7 times its size. If the logits
  # differ by no more than about 40 such steps, most of what an attack gains is rounding.
  size = max(2., np.median(np.abs(finite_logits(logits)).max(axis=-1)))
  smallest = 40 * limits.eps * size
  if np.median(logits.max(axis=-1) - logits.min(axis=-1)) < smallest:
    yield (f'logits differ by less than {smallest:.0e}: gradients are lost to rounding; scale them up, '
           f'subtract their common offset, or {square}')


def check_determinism(logits_fn: Callable[..., Array], x: Array, y: Array,
                      compiled: np.ndarray | None = None) -> tuple[str, ...]:
  """Checks that outputs are deterministic, independent of the batch, and unchanged under jit.

  A model is random if among five passes the numbers of correct predictions differ, or the normalised logits
  differ by more than 1e-4 (as in RobustBench and AutoAttack's released code).

  Args:
    logits_fn: maps f32[B, ...] to logits f32[B, C]. It is called uncompiled: under jit, numbers drawn by
      Python or NumPy would become constants of the program.
    x: f32[B, ...], clean inputs. One example alone cannot show a dependence on the batch.
    y: i32[B].
    compiled: f32[B, C], the logits of the compiled model, or None.
  """
  passes = np.stack([finite_logits(logits_fn(x)) for _ in range(5)])
  logits, finite = passes[0], np.isfinite(passes[0]).all(axis=-1)
  if not finite.any():
    return ()
  if _is_random(passes[:, finite], np.asarray(y)[finite]):  # the other checks would fail as well
    return ("the model is random: call eval() on a PyTorch module, or use version='rand', whose apgd-ce and "
            'apgd-dlr average over passes, with a model that takes a key',)
  found = []
  if len(x) > 1 and _depends_on_batch(logits_fn, x, logits, finite):
    found.append('an output depends on the rest of the batch or on its position in it: look for BatchNorm '
                 'in training mode or noise drawn per batch, or pass vmap(lambda x: f(x[None])[0])')
  change = 0. if compiled is None else _relative_change(finite_logits(compiled)[finite], logits[finite])
  if not change < 1e-3:
    found.append(f'the compiled model differs by {100 * change:.2g} % of its logits: unless this is rounding '
                 '(bfloat16, for example), pass jax.tree_util.Partial(f, weights) with f(weights, x)')
  return tuple(found)


def _is_random(passes: np.ndarray, y: np.ndarray) -> bool:
  unit = passes / (np.linalg.norm(passes, axis=-1, keepdims=True) + 1e-10)
  spread = np.max([np.linalg.norm(a - b, axis=-1) for a in unit for b in unit])  # NaN if one is
  num_correct = {int((logits.argmax(axis=-1) == y).sum()) for logits in passes}
  return len(num_correct) > 1 or not spread <= 1e-4


def _depends_on_batch(logits_fn, x: Array, logits: np.ndarray, finite: np.ndarray) -> bool:
  # The first half is replaced by copies of the last example, and every example moves by one place.
  half = len(x) // 2
  mixed = jnp.concatenate([jnp.broadcast_to(x[-1:], x[:half].shape), x[half:]])
  again = np.roll(finite_logits(logits_fn(jnp.roll(mixed, 1, axis=0))), -1, axis=0)
  again, logits = again[half:][finite[half:]], logits[half:][finite[half:]]
  return len(logits) > 0 and not _relative_change(again, logits) < 1e-3


def _relative_change(logits: np.ndarray, reference: np.ndarray) -> float:
  return np.abs(logits - reference).max() / (np.abs(reference).max() + 1e-10)


def check_channels(shape: tuple[int, ...], channel_axis: int) -> tuple[str, ...]:
  """Warns if inputs [B, ...] seem to have their channels on another axis than the one given to Square.

  >>> print(*check_channels((8, 3, 32, 32), -1))
  inputs of shape (8, 3, 32, 32) look like channels first: give square channel_axis=1
  """
  if len(shape) != 4:
    return ()
  layout, channels, sides = (
      ('last', shape[3], shape[1:3]) if channel_axis == 1 else ('first', shape[1], shape[2:]))
  if not channels <= _MAX_CHANNELS < min(sides):
    return ()
  return (f'inputs of shape {shape} look like channels {layout}: give square channel_axis={-channel_axis}',)


def check_classes(num_classes: int, attacks: Sequence[str]) -> tuple[str, ...]:
  """Warns if an attack replaces its loss because there are too few classes.

  >>> print(*check_classes(3, ('apgd-t',)))
  3 classes: apgd-t maximises z_t - z_y, because targeted DLR needs 4
  """
  changes = (('apgd-dlr', 3, 'the margin, because DLR needs 3'),
             ('apgd-t', 4, 'z_t - z_y, because targeted DLR needs 4'),
             ('apgd-soft', 3, 'the margin, because soft DLR needs 3'))
  return tuple(f'{num_classes} classes: {name} maximises {change}' for name, needed, change in changes
               if num_classes < needed and name in attacks)


def check_reach(epsilon: np.ndarray, x: Array, bounds: tuple[Array, Array], norm: str,
                any_distance: bool = False) -> tuple[str, ...]:
  """Warns if a ball covers the whole input domain, or if all are too small to be in units of x.

  Too small is a radius that allows less than a tenth of a grey level in every entry, and less than a tenth of
  the range in a single one: 8/255 on pixels 0..255 is a 32nd of a grey level. Published radii are larger: at
  least .25/255 in L∞, 36/255 in L2 and 10 in L1. `any_distance` allows any larger radius.
  A radius is also too large if it exceeds the range of x, and that range is below a hundredth of the bounds':
  probably x is in 0..1, but bounds and radius are in 0..255.

  >>> print(*check_reach(np.array([8.]), jnp.zeros((1, 32, 32, 3)), (0., 1.), 'linf'))
  epsilon = 8 covers the whole input domain 0..1: give epsilon in units of x, for example 8/255
  """
  low, high = (np.asarray(bound, np.float64) for bound in bounds)
  extent = high - low
  if extent.ndim == x.ndim:  # bounds that differ between examples: the widest are used
    extent = extent.max(0)
  diagonal = np.broadcast_to(extent, x.shape[1:])
  largest = float(np.max(epsilon))
  found = _check_free(diagonal)
  if not any_distance:
    found = found or _check_domain(largest, low, high, diagonal, norm)
    found = found or _check_units(largest, low, high, diagonal, x, norm)
  return found or _check_effect(largest, diagonal, x, norm) or _check_rounding(largest, low, high, x)


def _check_free(diagonal: np.ndarray) -> tuple[str, ...]:
  """Warns if no entry may change."""
  if diagonal.any():
    return ()
  return ('no entry may change: the mask is 0, or both bounds are equal, everywhere',)


def _check_domain(largest: float, low, high, diagonal: np.ndarray, norm: str) -> tuple[str, ...]:
  """Warns if a ball covers all that is within the bounds."""
  whole = _length(diagonal, norm)
  # Where only a part may change, ε is often the whole range on purpose.
  if largest < whole or largest == whole and np.any(low == high):
    return ()
  return (f'epsilon = {largest:g} covers the whole input domain {low.min():g}..{high.max():g}: '
          f'give epsilon in units of x, for example {_usual_radius(_width(diagonal), norm)}',)


def _check_units(largest: float, low, high, diagonal: np.ndarray, x: Array, norm: str) -> tuple[str, ...]:
  """Warns if a radius exceeds the range of x, which is below a hundredth of the bounds'."""
  width = _width(diagonal)
  if not 10 < width < np.inf or (high - low).ndim or not _arguments.is_known(x):
    return ()
  least, most = _range(x)
  if not 0 < most - least < width / 100 or largest <= _length(diagonal, norm) / width * (most - least):
    return ()
  return (f'epsilon = {largest:g} is larger than what x spans, {least:g}..{most:g}, within bounds '
          f'{low:g}..{high:g}: give all three in the same units',)


def _check_effect(largest: float, diagonal: np.ndarray, x: Array, norm: str) -> tuple[str, ...]:
  """Warns if all radii are too small to be in units of x."""
  tiny = min(np.count_nonzero(diagonal) ** (1 / _ORDER[norm]) / 2550, .1)
  width = _width(diagonal)
  if not 0 < largest < tiny * width or not _arguments.is_known(x):
    return ()
  least, most = _range(x)  # wide bounds say little
  if largest >= tiny * min(width, most - least):
    return ()
  return (f'epsilon = {largest:g} changes next to nothing where x is {least:g}..{most:g}: '
          f'give epsilon in units of x, for example {_usual_radius(most - least, norm)}',)


def _check_rounding(largest: float, low, high, x: Array) -> tuple[str, ...]:
  """Warns if all radii are below the rounding of x."""
  spacing = float(jnp.finfo(x.dtype).eps)
  if not 0 < largest < spacing * max(np.abs(low).max(), np.abs(high).max()) or not _arguments.is_known(x):
    return ()
  least, most = _range(x)
  if largest >= spacing / 2 * max(abs(least), abs(most)):
    return ()
  return (f'epsilon = {largest:g} is lost to rounding where x is {least:g}..{most:g} in {x.dtype}: '
          'subtract an offset and add it in logits_fn, or use float64',)


def _length(diagonal: np.ndarray, norm: str) -> float:
  return np.linalg.norm(diagonal.ravel(), _ORDER[norm])


def _width(diagonal: np.ndarray) -> float:
  """The narrowest range of an entry that may change."""
  return float(diagonal[diagonal > 0].min(initial=np.inf))


def _range(x: Array) -> tuple[float, float]:
  least, most = _arguments.keep_known(lambda x: (jnp.min(x), jnp.max(x)), x)
  return float(least), float(most)


def _usual_radius(width: float, norm: str) -> str:
  """A radius that papers use for images of this range."""
  if norm == 'linf' and width == 1:
    return '8/255'
  return f'{ {"linf": 8 / 255, "l2": .5, "l1": 12}[norm] * width:.3g}'


def check_steps(step_size: np.ndarray, epsilon: np.ndarray, num_steps: int, path: float) -> tuple[str, ...]:
  """Warns if every example's steps together are below `path` radii, or if each step jumps across its ball.

  Steps of size 0 are deliberate: they keep the start. So is a ball of radius 0. Both are left out.

  >>> print(*check_steps(np.array(.1), np.array(8), 10, path=1.))
  step_size = 0.1 takes 10 steps only a part of the way to epsilon = 8: give both in units of x, for example 2
  """
  # In float64 the ratio of two float32 numbers cannot overflow.
  step_size, epsilon = np.broadcast_arrays(*(np.asarray(size, np.float64) for size in (step_size, epsilon)))
  moving = (step_size > 0) & (epsilon > 0)
  ratio = step_size[moving] / epsilon[moving]
  if not len(ratio):
    return ()
  short = ratio.max() * num_steps < .999 * path  # FGSM and MI-FGSM reach the boundary exactly
  if not short and (ratio.min() <= 4 or num_steps == 1):
    return ()
  what = f'takes {num_steps} steps only a part of the way to' if short else 'jumps across the ball of'
  where = f' on {len(ratio)} of {moving.size} examples' if moving.ndim else ''
  step_size, epsilon = step_size[moving], epsilon[moving]
  return (f'step_size = {_span(step_size)} {what} epsilon = {_span(epsilon)}{where}: give both in units of '
          f'x, for example {_span(2.5 / max(num_steps, 3) * epsilon, ".2g")}',)


def _span(numbers: np.ndarray, form: str = 'g') -> str:
  """The smallest and the largest number, or the only one."""
  least, most = format(numbers.min(), form), format(numbers.max(), form)
  return least if least == most else f'{least}..{most}'


def warn_of_scale(epsilon: float | Array, x: Array, bounds: tuple[Array, Array], norm: str, *,
                  any_distance: bool = False, steps: tuple[Any, int, float] | None = None) -> None:
  """Issues the warnings of `check_reach` and, for `steps`, of `check_steps`, unless a value is traced."""
  lines = []
  if all(map(_arguments.is_known, (epsilon, *bounds))):
    lines += check_reach(np.asarray(epsilon), x, bounds, norm, any_distance)
  if steps and all(map(_arguments.is_known, (epsilon, steps[0]))):
    lines += check_steps(np.asarray(steps[0]), np.asarray(epsilon), *steps[1:])
  for line in lines:
    warnings.warn(line, stacklevel=3)


def check_gradients(
    name: str, num_attacked: int, num_zero: int, num_flat: int, attacks: Sequence[str], random: bool = False
) -> tuple[str, ...]:
  """Warns if an attack had no gradient to follow on some examples.

  A single example with a zero gradient is reported; a loss that never rises is reported above 1 % of the
  examples.

  Args:
    name: the attack.
    num_attacked: the examples of which at least one run ended.
    num_zero: those of which, at any step, the gradient was zero everywhere or not finite somewhere.
    num_flat: those that were not fooled and whose loss never rose above its first value. Not reported for
      apgd-soft.
    attacks: the attacks that run; the advice names others.
    random: whether the model is random, so that Square and FAB cannot attack it.

  Example:
    >>> print(*check_gradients('apgd-ce', 100, 40, 0, ('apgd-ce', 'apgd-t')))
    apgd-ce: zero gradients on 40.0 % of examples; add square
  """
  if name == 'apgd-soft':  # it follows another gradient than that of its loss, so the loss may fall
    num_flat = 0
  # If cross-entropy has no gradient, a scale-free loss may have one. If that has none either, the model hides
  # its gradient, and only an attack without gradients is left.
  scale_free = [other for other in _SCALE_FREE if name == 'apgd-ce' and other in attacks]
  wanted = ('apgd-t',) if name == 'apgd-ce' and not scale_free else ()
  otherwise = ("fix the noise and add square, with version='standard'" if random else
               f'trust {" and ".join((*scale_free, "square"))}, with more num_queries')
  advice = advise(wanted if random else (*wanted, 'square'), attacks, otherwise)
  return tuple(
      f'{name}: {what} on {100 * count / num_attacked:.1f} % of examples; {advice}'
      for what, count, allowed in (('zero gradients', num_zero, 0),
                                   ('the loss never rose', num_flat, _SHARE * num_attacked))
      if count > allowed)


def check_square(accuracy: Mapping[str, float]) -> tuple[str, ...]:
  """Warns if Square, which uses no gradients, fools examples that the attacks before it did not.

  Args:
    accuracy: robust accuracy in 0..1 after each attack, in the order they ran.

  Example:
    >>> print(check_square({'apgd-t': .6, 'fab-t': .6, 'square': .5})[0])
    square fooled another 10.0 % of examples: gradients may be masked; raise num_queries, add fab

  Reference: the checks of AutoAttack's released code.
  """
  names = list(accuracy)
  before = names[:names.index('square')] if 'square' in names else []
  gain = accuracy[before[-1]] - accuracy['square'] if before else 0.
  if gain <= _SQUARE_MARGIN:
    return ()
  advice = advise(('apgd-t', 'fab'), names, 'trust square alone')
  return (f'square fooled another {100 * gain:.1f} % of examples: gradients may be masked; '
          f'raise num_queries, {advice}',)


def check_adversarial(logits: Array, y: Array, fooled: np.ndarray, random: bool = False) -> tuple[str, ...]:
  """Warns if adversarial points have non-finite logits or, evaluated again, are classified correctly.

  Args:
    logits: f32[N, C], at the points that were found.
    y: i32[N].
    fooled: bool[N], examples that were classified correctly and then fooled.
    random: whether the model is random, so that a second evaluation may differ.

  Example:
    >>> print(*check_adversarial(np.array([[np.nan, 1.], [0., 1.]]), np.array([0, 0]), np.ones(2, bool)))
    1 of 2 fooled examples have logits that are not finite: fix the model, or leave them out
  """
  slack = max(1e-3, 2 * precision(logits))  # relative to the logits; a smaller lead is rounding
  logits, found = np.asarray(logits, np.float64), []
  finite = fooled & are_finite(logits)
  num_fooled, num_finite = int(fooled.sum()), int(finite.sum())
  if num_finite < num_fooled:
    found.append(f'{num_fooled - num_finite} of {num_fooled} fooled examples have logits that are not '
                 'finite: fix the model, or leave them out')
  size = np.abs(finite_logits(logits)).max(axis=-1)
  num_correct = int((finite & (logit_gap(logits, np.asarray(y)) > slack * size)).sum())
  if num_correct and not random:
    found.append(f'{num_correct} of {num_finite} fooled examples are correct when evaluated again: unless '
                 'this is rounding (bfloat16, for example), outputs depend on the rest of the batch or '
                 'on the position in it')
  return tuple(found)


def advise(wanted: Sequence[str], attacks: Sequence[str], otherwise: str) -> str:
  """Advice to add the wanted attacks that do not run yet, or else `otherwise`.

  >>> advise(('apgd-t', 'square'), ('square',), 'trust square')
  'add apgd-t'
  """
  missing = [name for name in wanted if name not in attacks]
  return 'add ' + ' and '.join(missing) if missing else otherwise


def precision(logits: Array) -> float:
  """Machine epsilon of the dtype of the logits, at most that of bfloat16.

  >>> print(precision(jnp.zeros((2, 3), jnp.bfloat16)))
  0.0078125
  """
  with jax.numpy_dtype_promotion('standard'):
    return float(jnp.finfo(jnp.promote_types(jnp.asarray(logits).dtype, jnp.bfloat16)).eps)


def are_finite(logits: np.ndarray) -> np.ndarray:
  """Which rows of [B, C] are valid, as in `_stepper.is_correct`: -inf marks a class that does not exist.

  >>> print(are_finite(np.array([[1., -np.inf], [1., np.nan]])))
  [ True False]
  """
  return np.isfinite(np.max(logits, axis=-1))


def finite_logits(logits: Array) -> np.ndarray:
  """Logits with 0 in place of -inf, for differences and norms.

  >>> print(finite_logits(np.array([[1., -2., -np.inf]])))
  [[ 1. -2.  0.]]
  """
  logits = np.asarray(logits, np.float64)
  return np.where(np.isneginf(logits), 0, logits)


def logit_gap(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The logit of the true class minus the largest of the others, f64[B].

  >>> print(logit_gap(np.array([[3., 1., 2.]]), np.array([0])))
  [1.]
  """
  others = np.where(np.arange(logits.shape[-1]) == y[:, None], -np.inf, logits).max(axis=-1)
  return logits[np.arange(len(y)), y] - others

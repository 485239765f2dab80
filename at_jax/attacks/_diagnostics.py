"""Reasons to doubt an evaluation: each check returns warnings, sentences that say what to do.

They are warnings and not errors because each has an innocent explanation; a number published with one
of them unexplained should not be believed.
"""

from collections.abc import Callable, Mapping, Sequence
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _model

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
  _model.check_answer(logits, len(x))
  return check_logits(logits, y) + check_determinism(logits_fn, x, y)


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
    cure = advise(wanted, ran, "hold the noise still and add square, with version='standard'")
  else:
    cure = advise((*wanted, 'square'), ran,
                       f'trust {" and ".join((*free, "square"))}, with more num_queries')
  told = {'zero gradients': (blind, 0), 'the loss never rose': (flat, SHARE * attacked)}
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
  broken = int((fell & ~are_finite(logits)).sum())
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
  slack = max(1e-3, 2 * precision(logits))
  logits, y = np.asarray(logits, np.float64), np.asarray(y)
  fell = fell & are_finite(logits)
  leads = lead(logits, y)[fell]
  size = np.abs(finite_logits(logits)).max(axis=-1)[fell]
  right = int((leads > slack * size).sum())
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
  if all(map(_arguments.is_known, (epsilon, *bounds))):
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
          f'raise num_queries, {advise(("apgd-t", "fab"), names, "trust square alone")}',)


def check_determinism(
    logits_fn: Callable[..., Array], x: Array, y: Array, compiled: np.ndarray | None = None
) -> tuple[str, ...]:
  """Calls the model more than once: does it answer alike?

  Is it random: five calls, counts of right answers differ, or logits of norm 1 by more than 1e-4? Does
  an output depend on the other inputs of the batch, or on its place among them? Does it answer
  otherwise when it is compiled, as one does that was compiled with the weights of another day?

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]. It is not compiled here: what Python or NumPy
      draw would be drawn once and be part of the program.
    x: f32[B, ...], one batch of clean inputs; with fewer than two there is no company to depend on.
    y: i32[B].
    compiled: f32[B, C], what it answered when it was.

  Returns:
    Warnings; none if nothing is odd.

  Example:
    >>> print(check(lambda x: x - x.mean(0), jnp.eye(2), jnp.arange(2))[0][:74])
    an output depends on the rest of the batch, or on its place in it: is Batc

  Source: randomness: Croce et al., RobustBench, 2021, and the checks of AutoAttack's authors; the
  others: ours.
  """
  passes = np.stack([finite_logits(logits_fn(x)) for _ in range(5)])
  logits, keep = passes[0], np.isfinite(passes[0]).all(axis=-1)
  if not keep.any():
    return ()
  # A random model's outputs differ in any company, and compiled.
  if random := _randomness(passes[:, keep], np.asarray(y)[keep]):
    return tuple(random)
  return tuple(_batch_dependence(logits_fn, x, logits, keep) + _compiling(logits, compiled, keep))


def _randomness(passes: np.ndarray, y: np.ndarray) -> list[str]:
  unit = passes / (np.linalg.norm(passes, axis=-1, keepdims=True) + 1e-10)
  spread = max(np.linalg.norm(a - b, axis=-1).max() for a in unit for b in unit)
  right = {int((logits.argmax(axis=-1) == y).sum()) for logits in passes}
  if len(right) == 1 and spread <= 1e-4:
    return []
  return ["the model is random: use version='rand', whose apgd-ce and apgd-dlr average over passes, "
          'with a model that takes a key']


def _batch_dependence(logits_fn, x: Array, logits: np.ndarray, keep: np.ndarray) -> list[str]:
  if len(x) < 2:
    return []
  # The same inputs in other company, the first half replaced by copies of the last example, and in
  # other places, each in that of the one after it.
  half = len(x) // 2
  mixed = jnp.concatenate([jnp.broadcast_to(x[-1:], x[:half].shape), x[half:]])
  again = np.roll(finite_logits(logits_fn(jnp.roll(mixed, 1, axis=0))), -1, axis=0)
  again, keep = again[half:], keep[half:]
  if not keep.any():
    return []
  scale = np.abs(logits[half:][keep]).max() + 1e-10
  if np.abs(again - logits[half:])[keep].max() / scale < 1e-3:
    return []
  return ['an output depends on the rest of the batch, or on its place in it: is BatchNorm in training '
          'mode, or noise drawn for the whole batch? if it must, let logits_fn be '
          'vmap(lambda x: f(x[None])[0])']


def _compiling(logits: np.ndarray, compiled: np.ndarray | None, keep: np.ndarray) -> list[str]:
  if compiled is None:
    return []
  apart = np.abs(finite_logits(compiled) - logits)[keep].max()
  share = apart / (np.abs(logits[keep]).max() + 1e-10)
  if share < 1e-3:
    return []
  return [f'compiled, the model answers otherwise, by {100 * share:.2g} % of its logits: unless it is '
          'rounding, of bfloat16 for example, pass jax.tree_util.Partial(f, weights), f a function '
          'of the weights and x']


SHARE = .01  # of examples, of which more are no accident


def check_logits(
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
  rounding = precision(logits)
  logits, y = np.asarray(logits, np.float64), np.asarray(y)
  keep, warnings = are_finite(logits), []
  if not keep.all():
    warnings.append(f'{(~keep).sum()} of {len(keep)} clean inputs give logits that are not finite; '
                    'they count as misclassified: mend the model, or leave them out')
  if keep.any():
    warnings += _probabilities(logits[keep], ran, rounding) + _saturation(logits[keep], y[keep], ran)
  return tuple(warnings)


def advise(wanted: Sequence[str], ran: Sequence[str], otherwise: str) -> str:
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


def precision(logits: Array) -> float:
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


def are_finite(logits: np.ndarray) -> np.ndarray:
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


def finite_logits(logits: Array) -> np.ndarray:
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
    cure = advise(('square',), ran, 'trust square')
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
  least = 40 * np.finfo(np.float32).eps * max(2., np.median(np.abs(finite_logits(logits)).max(axis=-1)))
  if np.median(spread) < least:
    warnings.append(f'logits differ by less than {least:.0e}: gradients are lost to rounding; scale '
                    'them up, take away what they have in common, or '
                    f'{advise(("square",), ran, "trust square")}')
  return warnings

"""Which attacks AutoAttack's versions consist of, and with what each is run."""

import functools
from typing import NamedTuple

import numpy as np

from at_jax.attacks import _arguments, _stepper, losses, norms
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.attacks.square import stepper as square_stepper

VERSIONS = {
    'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
    'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
    'rand': ('apgd-ce', 'apgd-dlr'),
}
NAMES = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
_EOT = 20


class Pass(NamedTuple):
  """One stepper and the runs (restarts or targets) of every example that it makes."""
  name: str
  stepper: _stepper.Stepper
  runs: tuple[int, ...]
  aims: bool = False  # each run at the target of its number


def choose(attacks, version, norm) -> tuple[str, ...]:
  """The attacks to run.

  Args:
    attacks: names, or None for those of the version.
    version: 'standard', 'plus' or 'rand'.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    Their names in order.

  Raises:
    ValueError: for an unknown norm or version, an attack that is unknown or named twice, and for one
      that does not average a random model with version='rand'.

  Example:
    >>> choose(None, 'rand', 'linf')
    ('apgd-ce', 'apgd-dlr')

  Source: ours.
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_name('version', version, tuple(VERSIONS))
  names = VERSIONS[version] if attacks is None else tuple(attacks)
  unknown = [name for name in names if name not in NAMES]
  if unknown or not names or len(set(names)) < len(names):
    raise ValueError(f'attacks = {attacks!r}: use some of {", ".join(NAMES)}, each once')
  final = [name for name in names if not name.startswith('apgd')]
  if version == 'rand' and final:
    raise ValueError(f"attacks = {attacks!r}: with version='rand' use some of apgd-ce, apgd-dlr, "
                     f"apgd-t; {', '.join(final)} needs a model whose answers are final")
  return names


def targets(logits: np.ndarray) -> np.ndarray:
  """The classes that apgd-t and fab-t go to, one after the other: from the second likeliest on down.

  Args:
    logits: f32[N, C], of the clean inputs.

  Returns:
    i64[N, C - 1].

  Example:
    >>> print(targets(np.array([[1., 3., 2., 0.]])))
    [[2 0 3]]

  Source: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 5, and the authors' code.
  """
  return np.argsort(-logits, axis=1, kind='stable')[:, 1:]


def plan(
    names, norm, version, num_classes, num_steps, num_queries, channel_axis=-1
) -> list[Pass]:
  """What to run, one stepper at a time.

  Args:
    names: of attacks, in order.
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus' or 'rand'.
    num_classes: C, at least 2; there are at most C − 1 targets.
    num_steps: of APGD and FAB.
    num_queries: of Square.
    channel_axis: of Square.

  Returns:
    A list of `Pass`; an attack has one or more in a row.

  Raises:
    ValueError: for numbers of steps or queries that the attacks refuse.

  Example:
    >>> [len(p.runs) for p in plan(('apgd-ce', 'apgd-t'), 'linf', 'standard', 10, 100, 5000)]
    [1, 9]

  Source: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 5, and the versions of the authors' code.
  """
  large = norm == 'l1' and version == 'standard'
  restarts = 5 if version == 'plus' or large else 1
  eot = _EOT if version == 'rand' else 0
  climb = functools.partial(apgd_stepper, norm=norm, num_steps=num_steps, large_start=large, eot=eot)
  walk = functools.partial(fab_stepper, norm=norm, num_steps=num_steps)
  others = num_classes - 1
  aimed = range(min(5 if large else 9, others))
  plans = {
      'apgd-ce': lambda: [(climb(loss=losses.cross_entropy), range(restarts))],
      'apgd-dlr': lambda: [(climb(loss=losses.dlr), range(restarts))],
      'apgd-t': lambda: [(climb(loss=losses.targeted_dlr, targeted=True), aimed)],
      'fab': lambda: [(walk(targeted=False), range(1)),
                      (walk(targeted=False, random_start=True), range(1, restarts))],
      'fab-t': lambda: [(walk(targeted=True), range(min(9, others)))],
      'square': lambda: [(square_stepper(norm=norm, num_queries=num_queries,
                                         channel_axis=channel_axis), range(1))],
  }
  return [Pass(name, stepper, tuple(runs), aims=name.endswith('-t'))
          for name in names for stepper, runs in plans[name]() if len(runs)]

"""The component attacks of each AutoAttack version, and their settings."""

import functools
from typing import NamedTuple

import numpy as np

from at_jax.attacks import _arguments, _stepper, losses, norms
from at_jax.attacks._nearest import stepper as nearest_stepper
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.attacks.square import stepper as square_stepper

VERSIONS = {
    'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
    'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
    'rand': ('apgd-ce', 'apgd-dlr'),
    'fast': ('apgd-soft', 'apgd-near'),
}
NAMES = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square', 'apgd-soft', 'apgd-near')
_EOT = 20


class Part(NamedTuple):
  """A stepper and the runs (restarts or targets) of each example. An attack has one or more parts."""
  name: str
  stepper: _stepper.Stepper
  runs: tuple[int, ...]
  targeted: bool = False  # run r aims at the r-th target


def choose(attacks: tuple[str, ...] | None, version: str, norm: str) -> tuple[str, ...]:
  """The names of the attacks to run, in order: `attacks`, or those of the version if it is None.

  Raises:
    ValueError: if norm, version or an attack is unknown, an attack is named twice, or version='rand' and
      an attack does not average over passes.

  Example:
    >>> choose(None, 'rand', 'linf')
    ('apgd-ce', 'apgd-dlr')
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_name('version', version, tuple(VERSIONS))
  names = VERSIONS[version] if attacks is None else tuple(attacks) if np.iterable(attacks) else ()
  if not names or not all(map(NAMES.__contains__, names)) or len(set(names)) < len(names):
    raise ValueError(f'attacks = {attacks!r}: use some of {", ".join(NAMES)}, each once')
  deterministic = [name for name in names if not name.startswith('apgd') or name == 'apgd-near']
  if version == 'rand' and deterministic:
    raise ValueError(f"attacks = {attacks!r}: with version='rand' use some of apgd-ce, apgd-dlr, apgd-t, "
                     f"apgd-soft; {', '.join(deterministic)} need a deterministic model")
  return names


def targets(logits: np.ndarray) -> np.ndarray:
  """The target classes of apgd-t and fab-t: all but the most likely class, the likeliest first.

  Args:
    logits: f32[N, C], of clean inputs.

  Returns:
    i64[N, C - 1].

  Example:
    >>> print(targets(np.array([[1., 3., 2., 0.]])))
    [[2 0 3]]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks, 2020, section 5, and the released code.
  """
  return np.argsort(-logits, axis=1, kind='stable')[:, 1:]


def plan(
    names: tuple[str, ...], norm: str, version: str, num_classes: int, num_steps: int, num_queries: int,
    channel_axis: int = -1,
) -> list[Part]:
  """The parts to run, in order; those of one attack are consecutive.

  Args:
    names: attacks, in order.
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus', 'rand' or 'fast'.
    num_classes: C, at least 2. There are at most C - 1 targets.
    num_steps: of APGD and FAB; apgd-soft of version='fast' takes half.
    num_queries: of Square.
    channel_axis: of Square.

  Raises:
    ValueError: if an attack refuses the number of steps or queries.

  Example:
    >>> [len(part.runs) for part in plan(('apgd-ce', 'apgd-t'), 'linf', 'standard', 10, 100, 5000)]
    [1, 9]

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks, 2020, section 5, and the versions of the released code.
  """
  large_start = norm == 'l1' and version in ('standard', 'fast')
  restarts = 5 if version == 'plus' or norm == 'l1' and version == 'standard' else 1
  apgd = functools.partial(apgd_stepper, norm=norm, num_steps=num_steps, large_start=large_start,
                           eot=_EOT if version == 'rand' else 0)
  fab = functools.partial(fab_stepper, norm=norm, num_steps=num_steps)
  parts = {
      'apgd-ce': lambda: [(apgd(loss=losses.cross_entropy), range(restarts))],
      'apgd-dlr': lambda: [(apgd(loss=losses.dlr), range(restarts))],
      'apgd-t': lambda: [(apgd(loss=losses.targeted_dlr, targeted=True),
                          range(min(5 if large_start else 9, num_classes - 1)))],
      'apgd-soft': lambda: [(apgd(loss=losses.soft_dlr, num_steps=_half(num_steps, version)), range(1))],
      'apgd-near': lambda: [(nearest_stepper(norm=norm, num_steps=num_steps, large_start=large_start,
                                             num_targets=min(9, num_classes - 1)), range(1))],
      'fab': lambda: [(fab(targeted=False), range(1)),
                      (fab(targeted=False, random_start=True), range(1, restarts))],
      'fab-t': lambda: [(fab(targeted=True), range(min(9, num_classes - 1)))],
      'square': lambda: [(square_stepper(norm=norm, num_queries=num_queries, channel_axis=channel_axis),
                          range(1))],
  }
  return [Part(name, stepper, tuple(runs), targeted=name.endswith('-t'))
          for name in names for stepper, runs in parts[name]() if len(runs)]


def _half(num_steps: int, version: str) -> int:
  """The steps of apgd-soft: half, at least 2 if there are 2, for version='fast'; all for others."""
  _arguments.check_count('num_steps', num_steps)
  return max(num_steps // 2, min(num_steps, 2)) if version == 'fast' else num_steps

"""Checkpoints that are written in the background, verified when read, and kept by rule.

One folder a checkpoint, named by its step, written by orbax under another name and then renamed, so
one that has its name is whole. What orbax does not notice, a byte that changed on disk, a digest of
every leaf does.
"""

import pathlib
import shutil
import sys
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from at_jax import errors
from at_jax.evaluation import metrics


class Saved(NamedTuple):
  """A checkpoint that was read.

  Attributes:
    step: the step it was written after.
    state: the pytree, leaves as host arrays.
    info: what was stored beside it.
  """
  step: int
  state: Any
  info: dict[str, Any]


class Corrupt(Exception):
  """A checkpoint that cannot be used, and why."""


def report_damage(found: tuple[Saved | None, list[str]]) -> Saved | None:
  """What `newest` or `best` found, after its lines about damaged checkpoints are on stderr.

  Args:
    found: what one of them returned.

  Returns:
    The checkpoint, or None.

  Example:
    >>> said((None, []))

  Source: ours.
  """
  saved, complaints = found
  for line in complaints:
    print(line, file=sys.stderr)
  return saved


class Checkpoints:
  """The checkpoints of one run: the newest few, and the one with the highest score.

  Args:
    directory: where they lie; made if need be.
    keep: how many of the newest stay.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int):
    self._directory = directory.absolute()
    self._keep = keep
    self._writing: tuple[int, Any] | None = None

  def steps(self) -> list[int]:
    """The steps of the checkpoints on disk, oldest first."""
    found = self._directory.iterdir() if self._directory.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal())

  def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
    """Begins to write a checkpoint; the one begun before is finished first.

    Args:
      step: the step the state is after.
      state: a pytree of host arrays.
      info: JSON to store beside it; 'score' (a number or None) decides which is best.

    Raises:
      errors.UserError: the disk is full or not writable (by this write or the one before).
    """
    self.wait()
    path = self._path(step)
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      if path.exists():
        shutil.rmtree(path)
      response = ocp.save_checkpointables_async(
          path, {'state': state}, custom_metadata={'digests': metrics.digests(state), 'info': info})
    except Exception as error:  # orbax and tensorstore wrap what the disk said in many types
      raise self._unwritable(error) from error
    self._writing = (step, response)

  def wait(self) -> None:
    """Finishes the checkpoint that is being written, then removes those the rule does not keep."""
    if self._writing is None:
      return
    _, response = self._writing
    self._writing = None
    try:
      response.result()
      for step in set(self.steps()) - self._kept():
        shutil.rmtree(self._path(step))
    except Exception as error:
      raise self._unwritable(error) from error

  def clear_unfinished(self) -> None:
    """Removes what a killed run left half written."""
    if self._directory.is_dir():
      for path in self._directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path)

  def newest(self, template: Any) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that is sound.

    A damaged one is set aside under the name STEP.corrupt, so it is neither used nor lost.

    Args:
      template: a pytree like the state, leaves as host arrays.

    Returns:
      The checkpoint, or None if there is none; and a line about each damaged one.

    Raises:
      errors.UserError: it is whole, and its state has other parts than the template.
    """
    return self._first_sound(sorted(self.steps(), reverse=True), template)

  def best(self, template: Any) -> tuple[Saved | None, list[str]]:
    """The sound checkpoint with the highest score, the earliest of several.

    Args:
      template: as for `newest`.

    Returns:
      As `newest`; None also if none has a score.

    Raises:
      errors.UserError: as `newest`.
    """
    scores = self._scores()
    return self._first_sound(sorted(scores, key=lambda step: (-scores[step], step)), template)

  def _path(self, step: int) -> pathlib.Path:
    return self._directory / f'{step:08d}'

  def _kept(self) -> set[int]:
    scores = self._scores()
    best = min(scores, key=lambda step: (-scores[step], step), default=None)
    return {*self.steps()[-self._keep:], *([] if best is None else [best])}

  def _scores(self) -> dict[int, float]:
    scores = {}
    for step in self.steps():
      try:
        scores[step] = self._metadata(step)['info'].get('score')
      except Corrupt:
        continue  # said when it is read
    return {step: score for step, score in scores.items() if score is not None}

  def _metadata(self, step: int) -> dict[str, Any]:
    try:
      metadata = ocp.checkpointables_metadata(self._path(step)).custom_metadata
      return {'digests': metadata['digests'], 'info': metadata['info']}
    except Exception as error:  # whatever a damaged file makes orbax raise
      raise Corrupt(f'its metadata cannot be read ({type(error).__name__})') from error

  def _load(self, step: int, template: Any) -> Saved:
    metadata = self._metadata(step)
    self._check_structure(step, metadata['digests'], template)
    try:
      state = ocp.load_checkpointables(self._path(step), {'state': template})['state']
    except Exception as error:  # as above
      raise Corrupt(f'it cannot be read ({type(error).__name__})') from error
    found = metrics.digests(state)
    for name, digest in metadata['digests'].items():
      if found.get(name) != digest:
        raise Corrupt(f'the digest of {name} differs')
    return Saved(step, state, metadata['info'])

  def _check_structure(self, step: int, stored: dict[str, str], template: Any) -> None:
    # Whole, but of another release or another network: neither damaged nor to be set aside.
    wanted = {jax.tree_util.keystr(path)
              for path, _ in jax.tree_util.tree_leaves_with_path(template)}
    differing = sorted(wanted ^ stored.keys())
    if differing:
      raise errors.UserError(
          'workdir', str(self._directory.parent), f'checkpoint {step} has other parts than this '
          f'version of at_jax makes of the configuration ({len(differing)}, {differing[0]} one of '
          'them): use the version that wrote it, or name another folder')

  def _first_sound(self, steps: list[int], template: Any) -> tuple[Saved | None, list[str]]:
    complaints = []
    for step in steps:
      try:
        return self._load(step, template), complaints
      except Corrupt as reason:
        aside = self._path(step).with_suffix('.corrupt')
        shutil.rmtree(aside, ignore_errors=True)
        self._path(step).rename(aside)
        complaints.append(f'checkpoint {step} is damaged, {reason}; set aside as {aside.name}')
    return None, complaints

  def _unwritable(self, error: Exception) -> errors.UserError:
    # tensorstore's message names every layer it went through; what the disk said comes last.
    reason = str(error).strip().rpartition(': ')[2] or type(error).__name__
    return errors.UserError('workdir', str(self._directory.parent),
                            f'a checkpoint could not be written ({reason}): free some space or '
                            'name another folder; the checkpoints before it are whole')

"""Checkpoints of a run: written in the background, verified when read, kept by a rule.

Each checkpoint is a folder named by its step. Orbax writes it under a temporary name and renames it, so a
folder with the final name is complete. Orbax does not detect a byte that changes on disk; digests of each
leaf and of the metadata do. `write_weights` keeps the variables of one checkpoint as a single file. Several
processes read and write checkpoints together, in a folder that they share; process 0 writes.
"""

import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from at_jax import devices, errors
from at_jax.evaluation import metrics
from at_jax.training import records

WEIGHTS = 'weights.npz'  # name of the file of `write_weights` in a folder of results
_METADATA = 'metadata'


class Saved(NamedTuple):
  """A checkpoint that was read.

  Attributes:
    step: number of training steps taken.
    state: pytree of host arrays.
    info: JSON object stored with it.
  """
  step: int
  state: Any
  info: dict[str, Any]


class Weights(NamedTuple):
  """The variables that a checkpoint is evaluated with.

  Attributes:
    step: number of training steps taken.
    variables: `{'params': …, 'batch_stats': …}`, host arrays.
    info: JSON object stored with them.
  """
  step: int
  variables: dict[str, Any]
  info: dict[str, Any]


class Corrupt(Exception):
  """A checkpoint that cannot be read; the message is the reason."""


def report_damage(found: tuple[Saved | None, list[str]]) -> Saved | None:
  """Prints the messages about damaged checkpoints to stderr, and returns the checkpoint.

  Args:
    found: result of `Checkpoints.newest` or `Checkpoints.best`.

  Returns:
    The checkpoint, or None.
  """
  saved, messages = found
  for line in messages:
    records.log(line)
  return saved


def check_path(workdir: pathlib.Path) -> None:
  """Checks that orbax can read what it writes below a folder.

  Args:
    workdir: the folder.

  Raises:
    errors.UserError: if the path is a glob pattern that does not match itself. Orbax then saves without an
      error what it cannot read.
  """
  path = str(workdir.absolute())
  if not fnmatch.fnmatchcase(path, path):
    raise errors.UserError('workdir', str(workdir), 'orbax cannot read the checkpoints that it saves below a '
                           'folder with [ and ] in its name: name another folder')


def write_weights(path: pathlib.Path, weights: Weights) -> None:
  """Writes the variables of one checkpoint to an npz file, with a digest of each leaf.

  Args:
    path: the file, `WEIGHTS` in a folder of results.
    weights: what to write.

  Raises:
    OSError: if the file cannot be written.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / WEIGHTS
    >>> write_weights(path, Weights(7, {'params': {'w': np.ones(2)}}, {}))
    >>> read_weights(path, {'params': {'w': np.zeros(2)}}).variables
    {'params': {'w': array([1., 1.])}}
  """
  arrays = _named_leaves(weights.variables)
  metadata = {'step': weights.step, 'info': weights.info, 'digests': metrics.digests(arrays)}
  temporary = path.with_suffix('.tmp.npz')
  np.savez(temporary, **arrays, **{_METADATA: json.dumps(metadata)})
  os.replace(temporary, path)


def read_weights(path: pathlib.Path, template: Any) -> Weights:
  """Reads a file of `write_weights` and verifies the digest of each leaf.

  Args:
    path: the file.
    template: pytree with the structure, shapes and dtypes of the variables.

  Returns:
    The `Weights`, equal to those written bit for bit.

  Raises:
    errors.UserError: if the file is damaged, or does not match the template.
  """
  def unusable(reason: str) -> errors.UserError:
    return errors.UserError('workdir', str(path.parent),
                            f'{path.name} {reason}: restore this file or name another folder')

  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    metadata = json.loads(str(arrays.pop(_METADATA)))
    step, info, digests = metadata['step'], metadata['info'], metadata['digests']
  except Exception as error:  # a damaged file makes NumPy raise errors of many types
    raise unusable(f'cannot be read ({type(error).__name__})') from error
  for name, leaf in _named_leaves(template).items():
    if name in arrays and arrays[name].dtype == np.dtype((np.void, leaf.dtype.itemsize)):
      arrays[name] = arrays[name].view(leaf.dtype)  # NumPy writes bfloat16 as bytes without a type
  damaged = sorted({name for name, _ in metrics.digests(arrays).items() ^ digests.items()})
  if damaged:
    raise unusable(f'is damaged (the digest of {damaged[0]} differs)')
  kinds = lambda leaves: {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
  differing = sorted({name for name, _ in kinds(arrays).items() ^ kinds(_named_leaves(template)).items()})
  if differing:
    raise unusable(f'does not match the model of config.json ({differing[0]} differs)')
  leaves = [arrays[name] for name in _named_leaves(template)]
  return Weights(step, jax.tree.unflatten(jax.tree.structure(template), leaves), info)


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object stored in a file of `write_weights`.

  Args:
    path: the file.

  Returns:
    The object; empty if it cannot be read, which `read_weights` reports.
  """
  try:
    with np.load(path) as arrays:
      return json.loads(str(arrays[_METADATA]))['info']
  except Exception:  # as in `read_weights`
    return {}


def _named_leaves(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _digest(metadata: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _alone() -> ocp.Context:
  """Orbax without the other processes: at its barriers they would wait for one that cannot read a file."""
  context, process = ocp.Context(), ocp.multihost.process_index()  # on TPUs it can differ from jax's index
  context.multiprocessing.active_processes, context.multiprocessing.primary_host = {process}, process
  return context


class Checkpoints:
  """The checkpoints of one run: the newest ones and the one with the highest score.

  Args:
    directory: the folder; created by the first `save`. Its parent must exist.
    keep: how many of the newest to keep; None to read only, which changes nothing in the folder.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int | None = None):
    self._directory = directory.absolute()
    self._keep = keep
    self._writing: Any = None

  def steps(self) -> list[int]:
    """The steps of the checkpoints on disk, oldest first. If there are any, raises as `check_path` does."""
    found = self._directory.iterdir() if self._directory.is_dir() else ()
    steps = sorted(int(path.name) for path in found if path.name.isdecimal())
    if steps:  # in a folder that was renamed so that orbax cannot read it, all would seem damaged
      check_path(self._directory.parent)
    return steps

  def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
    """Starts to write a checkpoint, after the previous write has finished.

    Args:
      step: number of training steps taken.
      state: pytree of host arrays.
      info: JSON object to store with it; 'score' (a number or None) decides which checkpoint is best.

    Raises:
      errors.UserError: if this write or the previous one fails (disk full, folder not writable).
    """
    self.wait()
    path = self._path(step)
    try:
      self._directory.mkdir(exist_ok=True)  # not its parent: a folder that vanished is an error
      if devices.is_first() and path.exists():
        shutil.rmtree(path)
      metadata = {'digests': metrics.digests(state), 'info': info}
      response = ocp.save_checkpointables_async(
          path, {'state': state}, custom_metadata=metadata | {'digest': _digest(metadata)})
    except Exception as error:  # orbax and tensorstore raise a full disk as errors of many types
      raise self._unwritable(error) from error
    self._writing = response

  def wait(self) -> None:
    """Waits for the current write, then removes the checkpoints that are no longer kept."""
    if self._writing is None:
      return
    response, self._writing = self._writing, None
    try:
      response.result()
      for step in set(self.steps()) - self._kept() if devices.is_first() else ():
        shutil.rmtree(self._path(step))
    except Exception as error:
      raise self._unwritable(error) from error

  def clear_unfinished(self) -> None:
    """Removes the temporary folders that a killed run left."""
    if devices.is_first() and self._directory.is_dir():
      for path in self._directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path)

  def newest(self, template: Any) -> tuple[Saved | None, list[str]]:
    """Reads the newest undamaged checkpoint.

    A damaged checkpoint is renamed to STEP.corrupt, unless `keep` is None: it is not used again and not
    deleted.

    Args:
      template: pytree of host arrays with the structure, shapes and dtypes of the state.

    Returns:
      The checkpoint (None if there is none), and one message for each damaged checkpoint.

    Raises:
      errors.UserError: if the state's structure differs from the template's.
    """
    return self._first_undamaged(sorted(devices.from_first(self.steps), reverse=True), template)

  def best(self, template: Any) -> tuple[Saved | None, list[str]]:
    """Reads the undamaged checkpoint with the highest score; of equal scores, the earliest.

    Args:
      template: as in `newest`.

    Returns:
      As `newest`; None also if no checkpoint has a score.

    Raises:
      errors.UserError: as `newest`.
    """
    return self._first_undamaged(devices.from_first(self._ranked), template)

  def at(self, step: int, template: Any) -> Saved:
    """Reads the checkpoint of one step. A damaged one keeps its name.

    Args:
      step: number of training steps taken.
      template: as in `newest`.

    Returns:
      The checkpoint.

    Raises:
      errors.UserError: if there is none, it is damaged, or its structure differs from the template's.
    """
    stored = devices.from_first(self.steps)
    if step not in stored:
      raise errors.UserError('checkpoint', step, f'{self._directory.parent} has none of this step: use '
                             f'one of {", ".join(map(str, stored))}')
    saved, reason = self._try(step, template)
    if saved is None:
      raise errors.UserError('checkpoint', step, f'the one in {self._directory.parent} is damaged, {reason}: '
                             f'use another step, or move {self._path(step)} away')
    return saved

  def newest_info(self) -> dict[str, Any]:
    """The JSON object of the newest checkpoint whose metadata can be read; empty without one."""
    for step in reversed(self.steps()):
      try:
        return self._metadata(step)['info']
      except Corrupt:
        continue  # reported when the checkpoint is read
    return {}

  def _path(self, step: int) -> pathlib.Path:
    return self._directory / f'{step:08d}'

  def _kept(self) -> set[int]:
    return {*self.steps()[-self._keep:], *self._ranked()[:1]}

  def _ranked(self) -> list[int]:
    """The steps of the checkpoints that have a score, best first."""
    scores = {}
    for step in self.steps():
      try:
        scores[step] = self._metadata(step)['info'].get('score')
      except Corrupt:
        continue  # reported when the checkpoint is read
    scored = (step for step, score in scores.items() if score is not None)
    return sorted(scored, key=lambda step: (-scores[step], step))

  def _metadata(self, step: int) -> dict[str, Any]:
    try:
      stored = ocp.checkpointables_metadata(self._path(step)).custom_metadata
      metadata = {'digests': stored['digests'], 'info': stored['info']}
    except Exception as error:  # a damaged file makes orbax raise errors of many types
      raise Corrupt(f'its metadata cannot be read ({type(error).__name__})') from error
    if stored.get('digest', _digest(metadata)) != _digest(metadata):  # earlier versions stored none
      raise Corrupt('the digest of its metadata differs')
    return metadata

  def _load(self, step: int, template: Any) -> Saved:
    metadata = devices.from_first(self._metadata, step)
    self._check_structure(step, metadata['digests'], template)
    if devices.largest(not self._path(step).is_dir()):
      raise errors.UserError('workdir', str(self._directory.parent), 'a process does not see checkpoint '
                             f'{step} of process 0: name a folder that all processes share')
    try:
      with _alone():
        state = ocp.load_checkpointables(self._path(step), {'state': template})['state']
    except Exception as error:  # as above
      self._check_damage(step, metadata['digests'])
      raise Corrupt(f'it cannot be read ({type(error).__name__})') from error
    found = metrics.digests(state)
    for name, digest in metadata['digests'].items():
      if found.get(name) != digest:
        self._check_damage(step, metadata['digests'])  # orbax converts a leaf of another dtype
        raise Corrupt(f'the digest of {name} differs')
    shapes = lambda tree: [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if shapes(state) != shapes(template):  # orbax does not compare them
      raise self._other_state(step, 'shapes differ')
    return Saved(step, state, metadata['info'])

  def _check_structure(self, step: int, stored: dict[str, str], template: Any) -> None:
    # Another release or another network wrote it: it is not damaged and keeps its name.
    wanted = {jax.tree_util.keystr(path)
              for path, _ in jax.tree_util.tree_leaves_with_path(template)}
    differing = sorted(wanted ^ stored.keys())
    if differing:
      raise self._other_state(step, f'{len(differing)} leaves differ, the first is {differing[0]}')

  def _check_damage(self, step: int, digests: dict[str, str]) -> None:
    """Raises UserError if the digests hold, because then the template is of another state."""
    try:
      with _alone():
        state = ocp.load_checkpointables(self._path(step))['state']
    except Exception:  # as above
      return
    if sorted(metrics.digests(state).values()) == sorted(digests.values()):
      raise self._other_state(step, 'fields or dtypes differ')

  def _other_state(self, step: int, difference: str) -> errors.UserError:
    return errors.UserError(
        'workdir', str(self._directory.parent), f'checkpoint {step} does not match the state that this '
        f'version of at_jax makes from the configuration ({difference}): use the version that wrote it, or '
        'name another folder')

  def _try(self, step: int, template: Any) -> tuple[Saved | None, str]:
    """A checkpoint and '', or None and what is damaged in it."""
    saved = reason = None
    try:
      saved = self._load(step, template)
    except (Corrupt, errors.UserError) as error:
      reason = error
    if devices.largest(saved is None) and devices.largest(saved is not None):  # not damaged
      raise errors.UserError('workdir', str(self._directory.parent), 'a process cannot read checkpoint '
                             f'{step}, which others can{f" ({reason})" if reason else ""}: start all again')
    refused = isinstance(reason, errors.UserError)
    if devices.largest(refused):
      raise reason if refused else errors.UserError(
          'workdir', str(self._directory.parent), f'another process refuses checkpoint {step}: see its line')
    return saved, str(reason or '')

  def _first_undamaged(self, steps: list[int], template: Any) -> tuple[Saved | None, list[str]]:
    messages = []
    for step in steps:
      saved, reason = self._try(step, template)
      if saved is not None:
        return saved, messages
      message = f'{self._directory.parent}: checkpoint {step} is damaged, {reason}'
      if self._keep is not None:  # a reader does not hold the lock of the work directory
        message += f'; set aside as {self._set_aside(step)}'
      messages.append(message)
    return None, messages

  def _set_aside(self, step: int) -> pathlib.Path:
    aside = self._path(step).with_suffix('.corrupt')
    if devices.is_first():
      shutil.rmtree(aside, ignore_errors=True)
      self._path(step).rename(aside)
    return aside

  def _unwritable(self, error: Exception) -> errors.UserError:
    return errors.unwritable(self._directory.parent, error, 'a checkpoint could not be written, earlier ones '
                             'are not affected')

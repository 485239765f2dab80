"""Folders of runs, as far as the runs have come: configuration, log of training, results."""

from collections.abc import Iterable, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

from at_jax import environment, errors
from at_jax.analysis import evaluations
from at_jax.training import records


class Folder(NamedTuple):
  """A run.

  Attributes:
    path: its folder.
    method: its name, without the seed.
    seed: its seed.
    config: its configuration; fields of later versions are missing.
    log: the lines of metrics.jsonl.
    run: its evaluation; None if it is not evaluated.
  """
  path: pathlib.Path
  method: str
  seed: int
  config: dict[str, Any]
  log: list[dict[str, Any]]
  run: evaluations.Run | None

  @property
  def name(self) -> str:
    """Method and seed."""
    return f'{self.method}-{self.seed}'


def read(paths: Sequence[str | os.PathLike]) -> list[Folder]:
  """Reads runs.

  Args:
    paths: work directories, and folders of them. A folder METHOD-SEED is a seed of METHOD.

  Returns:
    The runs in the order of `paths`, each once. The name of a method that is in two folders is a path.

  Raises:
    errors.UserError: if a path holds no run, or files of a run cannot be read.
  """
  places = list(dict.fromkeys(place for path in paths for place in _runs_in(path)))
  found, taken, parents = [], set(), {}
  for place in places:
    parents.setdefault(evaluations.split_name(place.name)[0], set()).add(place.parent)
  for place in places:
    run = evaluations.read_run(place) if (place / 'results.json').exists() else None
    config = run.results['config'] if run else _config(place)
    method, seed = evaluations.split_name(place.name)
    seed = config.get('seed', 0) if seed is None else seed
    if len(parents[method]) > 1:
      method = os.path.relpath(place.parent / method)
    if (method, seed) in taken:  # both X and X-0
      method = place.name
    taken.add((method, seed))
    found.append(Folder(place, _printable(method), seed, config, records.read_metrics(place), run))
  return found


def by_method(found: Iterable[Folder]) -> dict[str, list[Folder]]:
  """Groups runs by method.

  Args:
    found: runs.

  Returns:
    `{method: its runs}`, in the order of the runs.
  """
  methods: dict[str, list[Folder]] = {}
  for folder in found:
    methods.setdefault(folder.method, []).append(folder)
  return methods


def _runs_in(path: str | os.PathLike) -> list[pathlib.Path]:
  """The folder itself if it is that of a run, otherwise those of the runs in it, evaluated or going."""
  folder = environment.local_path('RUN', path).absolute()
  is_run = lambda place: (place / 'config.json').exists() or (place / 'results.json').exists()
  if is_run(folder):
    return [folder]
  found = [place for place in sorted(folder.iterdir()) if is_run(place)] if folder.is_dir() else []
  if not found:
    raise errors.UserError('RUN', str(path), 'there is no config.json in it or in its folders: name the work '
                           'directory of a run, or a folder of several')
  lacking = [place for place in found
             if (place / 'results.json').exists() and not (place / 'verdicts.npz').exists()]
  names = ', '.join(place.name for place in lacking)
  if lacking == found:
    raise errors.UserError('RUN', str(path), f'its runs have no verdicts.npz ({names}): evaluate them '
                           'again, or name another folder')
  if lacking:
    environment.log(f'{path}: runs without verdicts.npz are left out: {names}')
  return [place for place in found if place not in lacking]


def _printable(name: str) -> str:
  """A name of a folder may have bytes that are not UTF-8."""
  return name.encode('utf-8', 'backslashreplace').decode('utf-8')


def _config(folder: pathlib.Path) -> dict[str, Any]:
  try:
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    config['epochs'], config['batch_size']  # noqa: B018
    return config
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.UserError('RUN', str(folder), f'its config.json is not of a run ({error}): name the work '
                           'directory of a run, or move it away') from error


def training_seconds(folder: Folder) -> float | None:
  """Estimates how long the steps of a run take, at the best speed that its log has for each phase.

  Σ_phase (examples of the phase) / (best examples per second in it). So other programs on the machine,
  compilation, validation and pauses do not count.

  Args:
    folder: the run.

  Returns:
    Seconds for the steps of its log; None if the log has no speed.

  Example:
    >>> log = [{'step': 10, 'examples_per_second': 50.}, {'step': 20, 'examples_per_second': 100.}]
    >>> training_seconds(Folder(pathlib.Path('x'), 'x', 0, {'batch_size': 30}, log, None))
    6.0
  """
  examples, best, before = {}, {}, 0
  for line in folder.log:
    if line.get('examples_per_second'):
      phase = line.get('phase', '')
      examples[phase] = examples.get(phase, 0) + (line['step'] - before) * folder.config['batch_size']
      best[phase] = max(best.get(phase, 0), line['examples_per_second'])
      before = line['step']
  return sum(examples[phase] / best[phase] for phase in best) if best else None


class Progress(NamedTuple):
  """How far the training of a run has come, from its log.

  Attributes:
    step: number of steps that are logged.
    steps: number of steps of the whole run; None before the first line of the log.
    epochs: number of epochs that are logged.
    seconds_left: time for the steps that are left, at the last logged speed; None if that is not known.
  """
  step: int
  steps: int | None
  epochs: float
  seconds_left: float | None


def progress(folder: Folder) -> Progress:
  """Measures how far the training of a run has come.

  Args:
    folder: the run.

  Returns:
    A `Progress`.

  Example:
    >>> line = {'step': 10, 'epoch': .5, 'examples_per_second': 100.}
    >>> config = {'batch_size': 50, 'epochs': 2}
    >>> progress(Folder(pathlib.Path('x'), 'x', 0, config, [line], None))
    Progress(step=10, steps=40, epochs=0.5, seconds_left=15.0)
  """
  step, per_epoch = max((line['step'] for line in folder.log), default=0), steps_per_epoch(folder)
  if per_epoch is None:
    return Progress(step, None, 0., None)
  steps = round(per_epoch * folder.config['epochs'])
  speed = [line['examples_per_second'] for line in folder.log if line.get('examples_per_second')]
  left = max(steps - step, 0) * folder.config['batch_size'] / speed[-1] if speed else None
  return Progress(step, steps, step / per_epoch, left)


def steps_per_epoch(folder: Folder) -> float | None:
  """Reads the number of steps of an epoch from the log of a run.

  Args:
    folder: the run.

  Returns:
    The number; None before the first line of the log.
  """
  lines = [line for line in folder.log if line.get('epoch')]
  return lines[-1]['step'] / lines[-1]['epoch'] if lines else None


def last_written(folder: Folder) -> float:
  """Returns when a run wrote its log or its configuration last.

  Args:
    folder: the run.

  Returns:
    Seconds since 1970.
  """
  files = [folder.path / name for name in ('metrics.jsonl', 'config.json', 'results.json')]
  return max(file.stat().st_mtime for file in files if file.exists())


def validations(folder: Folder) -> list[dict[str, Any]]:
  """Returns the lines of the log with accuracies on the validation split, in order of their steps.

  Args:
    folder: the run.

  Returns:
    Lines with 'step', 'validation_clean' and 'validation_robust'.
  """
  lines = {line['step']: line for line in folder.log if 'validation_robust' in line}
  return [lines[step] for step in sorted(lines)]

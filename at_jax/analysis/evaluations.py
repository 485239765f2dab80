"""Evaluated runs as tables compare them: read from their files, and checked to be alike."""

import json
import os
import pathlib
from typing import Any, NamedTuple
import zipfile
import zlib

import numpy as np

from at_jax import environment, errors
from at_jax.evaluation import metrics

# What NumPy raises for an .npz file that is damaged, or lacks an array.
DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


class Run(NamedTuple):
  """One run.

  Attributes:
    results: content of results.json.
    worst_case: bool[N], worst-case verdicts of the best checkpoint.
    labels: int[N].
  """
  results: dict[str, Any]
  worst_case: np.ndarray
  labels: np.ndarray


def read_run(path: pathlib.Path) -> Run:
  """Reads an evaluated run.

  Args:
    path: its folder, with results.json.

  Returns:
    A `Run`.

  Raises:
    errors.UserError: if a file is missing, cannot be read or is not of a run.
  """
  if not (path / 'verdicts.npz').exists():
    raise errors.UserError('RUN', str(path), 'there is no verdicts.npz in it: evaluate the run '
                           'again, or move it away')
  results, verdicts = read_results(path), read_verdicts(path)
  try:
    return Run(results, verdicts['best/worst_case'], verdicts['labels'])
  except KeyError as error:
    raise unreadable(path, 'verdicts.npz', error) from error


def read_results(path: pathlib.Path) -> dict[str, Any]:
  """Reads the accuracies of a run.

  Args:
    path: its folder.

  Returns:
    The content of its results.json, with the names of this version.

  Raises:
    errors.UserError: if the file cannot be read or is not of a run.
  """
  try:
    results = json.loads((path / 'results.json').read_text(encoding='utf-8'))
    evaluate, _ = results['config']['evaluate'], results['worst_case']
    evaluate['norm'] = _norm(results['config'])
    if 'released' not in results:  # older runs have another name for it
      results['released'] = results.pop('authors')
      results['warnings'] = {name.replace("authors' protocol", 'released protocol'): lines
                             for name, lines in results.get('warnings', {}).items()}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise unreadable(path, 'results.json', error) from error
  return results


def read_verdicts(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the verdicts of a run.

  Args:
    path: its folder.

  Returns:
    The arrays of its verdicts.npz.

  Raises:
    errors.UserError: if the file cannot be read.
  """
  try:
    with np.load(path / 'verdicts.npz') as stored:
      return {'labels': stored['labels'], **stored}
  except DAMAGED as error:
    raise unreadable(path, 'verdicts.npz', error) from error


def unreadable(path: pathlib.Path, name: str, error: Exception) -> errors.UserError:
  """Makes the error for a file that is damaged or not of a run.

  Args:
    path: folder of the run.
    name: the file.
    error: what reading it raised.

  Returns:
    The exception to raise.
  """
  return errors.UserError('RUN', str(path), f'its {name} is not that of a run ({error!r}): evaluate the run '
                          'again, or move it away')


def split_name(name: str) -> tuple[str, int | None]:
  """Splits the name of a run, METHOD-SEED.

  Args:
    name: the name of its folder.

  Returns:
    The method and the seed; for another name the name and None.

  Example:
    >>> split_name('pgd_at_cifar10-l2-0'), split_name('pgd_at_cifar10-small')
    (('pgd_at_cifar10-l2', 0), ('pgd_at_cifar10-small', None))
  """
  method, _, seed = name.rpartition('-')
  return (method, int(seed)) if method and seed.isdecimal() else (name, None)


def read(directory: str | os.PathLike) -> dict[str, dict[int, Run]]:
  """Reads the runs of a folder.

  Args:
    directory: a folder of folders METHOD-SEED; those without results.json are skipped.

  Returns:
    `{method: {seed: Run}}`.

  Raises:
    errors.UserError: if runs of a method in one table attack other examples, or in another way.
  """
  runs: dict[str, dict[int, Run]] = {}
  for path in sorted(environment.local_path('directory', directory).glob('*-*/results.json')):
    method, seed = split_name(path.parent.name)
    if seed is None:  # such as X-small, the default work directory of a variant
      continue
    runs.setdefault(method, {})[seed] = read_run(path.parent)
  for method, seeds in runs.items():
    check_row(method, seeds)
  return runs


def check_row(method: str, seeds: dict[int, Run]) -> None:
  """Checks that the mean of the runs of one row has a meaning.

  Args:
    method: the method.
    seeds: its runs by seed.

  Raises:
    errors.UserError: if runs of one table attack other examples, or in another way.
  """
  first: dict[tuple, int] = {}
  for seed, run in seeds.items():
    begun = first.setdefault(place(run.results), seed)
    for what, of in (('attacks', _attacks), ('step size', _step_size), ('test examples', _examples)):
      values = [of(each) for each in (seeds[begun], run)]
      if values[0] != values[1]:
        shown = '' if what == 'test examples' else f' ({values[0]}; {values[1]})'
        raise errors.UserError('directory', f'{method}-{seed}', f'its {what} are not those of '
                               f'{method}-{begun}{shown}: evaluate both alike, or rename one')


def _attacks(run: Run) -> str:
  return ', '.join([*run.results['robust'], *(f'{name} released' for name in run.results['released'])])


def _step_size(run: Run) -> float | None:
  return run.results['config']['evaluate'].get('step_size_255')


def _examples(run: Run) -> bytes:
  return np.asarray(run.labels, np.int64).tobytes()


def place(results: dict[str, Any]) -> tuple:
  """Returns which table a run belongs to.

  Args:
    results: content of results.json.

  Returns:
    Threat model, data set and number of examples.
  """
  return threat(results), results.get('dataset'), results.get('n')


def threat(results: dict[str, Any]) -> str:
  """Names the threat model of an evaluation.

  Args:
    results: content of results.json.

  Returns:
    Norm, and radius in 255ths.

  Example:
    >>> threat({'config': {'evaluate': {'norm': 'l2', 'epsilon_255': 128.}}})
    'L2, 128/255'
  """
  c = results['config']
  return f'{metrics.norm_name(_norm(c))}, {c["evaluate"]["epsilon_255"]:g}/255'


def _norm(config: dict[str, Any]) -> str:
  """The norm of the evaluation; older runs have none, and it was that of the training attack."""
  return config['evaluate'].get('norm') or config['attack']['norm']

"""Radii of examples: `python -m at_jax.analysis radii RUN... --output=FOLDER [--steps=100]`.

Attacks the best checkpoint's deployed model of each evaluated run with FMN, on the examples and in the norm
of its evaluation, and writes FOLDER/METHOD-SEED.npz: `radius`, f32[N], the distance of the nearest
misclassified point that was found, 0 for an example that is misclassified clean and +inf where none was
found; `labels`, i32[N]; `norm` and `steps`. `report --radii=FOLDER` draws the robust accuracy over ε of these
radii.
"""

from collections.abc import Sequence
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from at_jax import attacks, devices, environment, errors
from at_jax.analysis import evaluations, folders, runs
from at_jax.datasets import pipeline
from at_jax.training import records


def measure(path: pathlib.Path, steps: int, data: dict[str, Any]) -> np.ndarray:
  """Finds the radius of each example of a run's evaluation.

  Args:
    path: folder of the run, which is evaluated.
    steps: number of steps of FMN.
    data: the examples that other runs have read, to which those of this run are added.

  Returns:
    f32[N], an upper bound of each example's distance to the decision boundary, in units of pixels in 0..1.

  Raises:
    errors.UserError: if model or data cannot be read, or the data are not those of the evaluation.
  """
  model = runs.load(runs.read(path), data, hint='')
  split, size = model.split, model.settings['batch_size']
  logits = jax.tree_util.Partial(model.parts.network.deployed,
                                 devices.spread(model.variables, replicated=True))
  found, progress = [], records.Progress(f'radii of {path.name}', len(split.labels))
  for begin in range(0, len(split.labels), size):
    places = np.arange(begin, begin + size) % len(split.labels)  # the last batch is filled with others
    x, y = devices.spread((pipeline.in_unit(split.images[places]), split.labels[places]))
    found.append(np.asarray(attacks.fmn(logits, x, y, norm=model.settings['norm'], num_steps=steps).radius))
    progress.show(min(begin + size, len(split.labels)))
  progress.close()
  return np.concatenate(found)[:len(split.labels)]


def file(directory: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file with the radii of a run.

  Args:
    directory: the folder of the files.
    name: METHOD-SEED; METHOD may be a path.

  Returns:
    Its path.

  Example:
    >>> file(pathlib.Path('radii'), 'a/x-0').name
    'a_x-0.npz'
  """
  return directory / f'{name.replace(os.sep, "_")}.npz'


def read(directory: str | os.PathLike, found: Sequence[folders.Folder]) -> dict[str, np.ndarray]:
  """Reads the radii of runs.

  Args:
    directory: the folder of the files.
    found: the runs.

  Returns:
    `{METHOD-SEED: f32[N]}` of the evaluated runs that have a file.

  Raises:
    errors.UserError: if no run has a file, or one is of other examples or another norm than the evaluation.
  """
  radii = {}
  for folder in found:
    path = file(environment.local_path('--radii', directory), folder.name)
    if folder.run and path.exists():
      remedy = 'run `python -m at_jax.analysis radii` again'
      try:
        with np.load(path) as stored:
          norm, labels, radius = str(stored['norm']), stored['labels'], stored['radius']
      except evaluations.DAMAGED as error:
        raise errors.UserError('--radii', str(path), f'cannot be read ({type(error).__name__}): {remedy}'
                               ) from error
      same_norm = norm == folder.run.results['config']['evaluate']['norm']
      if not same_norm or not np.array_equal(labels, folder.run.labels):
        raise errors.UserError('--radii', str(path), 'its norm or examples are not those of the evaluation: '
                               f'{remedy}')
      radii[folder.name] = radius
  if not radii:
    raise errors.UserError('--radii', str(directory), 'it has no METHOD-SEED.npz of these runs: name the '
                           '--output of `python -m at_jax.analysis radii`')
  return radii


def main(arguments: list[str] | None = None) -> int:
  """Measures the radii of runs and writes them.

  Args:
    arguments: the command line without `python -m at_jax.analysis radii`; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis radii', __doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--output', required=True, metavar='FOLDER', help='a folder, which is made')
  parser.add_argument('--steps', type=int, default=100, help='number of steps of FMN (default 100)')
  asked = parser.parse_args(arguments)
  try:
    if asked.steps < 2:
      raise errors.UserError('--steps', asked.steps, 'use a whole number of at least 2')
    output, data = environment.local_path('--output', asked.output), {}
    evaluated = [folder for folder in folders.read(asked.runs) if folder.run]
    if not evaluated:
      raise errors.UserError('RUN', ', '.join(asked.runs), 'none of them was evaluated: use --mode=evaluate '
                             'first')
    for folder in evaluated:
      radius = measure(folder.path, asked.steps, data)
      _write(file(output, folder.name), radius=radius, labels=folder.run.labels, steps=asked.steps,
             norm=folder.run.results['config']['evaluate']['norm'])
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  return 0


def _write(path: pathlib.Path, **arrays: Any) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp.npz')
    np.savez(temporary, **arrays)
    os.replace(temporary, path)
  except OSError as error:
    raise errors.unwritable(path.parent, error, field='--output') from error

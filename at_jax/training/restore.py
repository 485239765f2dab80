"""Reads a run from its work directory: its configuration, its weights, its deployed model."""

from collections.abc import Iterator
import contextlib
import functools
import os
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np

from at_jax import devices, environment, errors
from at_jax.config import fields
from at_jax.evaluation import metrics
from at_jax.methods import finetune
from at_jax.models import logit_adjustment
from at_jax.training import batchnorm, checkpoints, model_selection, records, run_data, setup

# The records of a finished run; results.json is written last.
_RECORDS = ('config.json', 'metrics.jsonl', 'verdicts.npz', 'results.json')


def load(workdir: str | os.PathLike, *, checkpoint: str | int = 'best'
         ) -> tuple[setup.Run, jax.tree_util.Partial]:
  """Reads the deployed model of a run as the function that attacks take.

  Args:
    workdir: the run's work directory, or a folder written by `export`.
    checkpoint: 'best' (the checkpoint of results.json), 'last', or the step of a stored one.

  Returns:
    The `Run` (configuration and data), and the deployed logits, f32[B, H, W, C] in [0, 1] ->
    f32[B, num_classes]. These use averaged weights where the configuration has them, fold dummy classes
    into their own, and apply the logit adjustment of the last evaluation, or else of `config.inference`. The
    weights are on the default device.

    The data are read when `run.dataset.train`, `.validation` or `.test` is first used, and need not be on
    this machine. The model needs them only before the run has been evaluated: to estimate BatchNorm
    statistics of averaged weights, and to fit `config.inference`.

  Raises:
    errors.UserError: if the folder holds no run, or the checkpoint cannot be read; if data are needed and not
      available; or if `export` wrote the folder, which keeps the best checkpoint only, and `checkpoint` is
      another one.
    ValueError: for another `checkpoint`.

  Example:
    >>> run, model = load('runs/quickstart')  # doctest: +SKIP
    >>> model(datasets.to_unit(run.dataset.test.images[:2])).shape  # doctest: +SKIP
    (2, 10)
  """
  run = _open(environment.local_path('workdir', workdir))
  return run, deployed(run, workdir, checkpoint)


def deployed(run: setup.Run, workdir: str | os.PathLike, checkpoint: str | int) -> jax.tree_util.Partial:
  """Reads the deployed model of another checkpoint of a run that was loaded.

  Models of one `Run` share compiled programs; those of two calls of `load` do not.

  Args:
    run: result of `load`.
    workdir: as in `load`.
    checkpoint: as in `load`.

  Returns:
    The deployed logits, as `load`.

  Raises:
    errors.UserError: as `load`.
    ValueError: as `load`.
  """
  if checkpoint not in ('best', 'last') and not isinstance(checkpoint, int):
    raise ValueError(f"checkpoint = {checkpoint!r}: use 'best', 'last' or a step")
  workdir = environment.local_path('workdir', workdir)
  found = _evaluated(run, workdir, checkpoint)
  if found is None:
    raise _no_checkpoint(workdir)
  return jax.tree_util.Partial(run.network.deployed, jax.device_put(_adjusted(run, workdir, found)))


def _adjusted(run: setup.Run, workdir: pathlib.Path, found: checkpoints.Weights) -> dict[str, Any]:
  """The variables with the logit adjustment that was evaluated, or else a new fit."""
  results = records.read_json(workdir / 'results.json') or {}
  for each in (results, results.get('last', {})):
    if each.get('step') == found.step:  # the evaluation may have another `inference` than the training
      if 'inference' not in each:
        return found.variables
      by_class = {name: np.float32(each['inference'][name])
                  for name in logit_adjustment.identity(run.dataset.num_classes)}
      return found.variables | {logit_adjustment.COLLECTION: by_class}
  if run.config.inference.kind == 'none':
    return found.variables
  setup.check_devices(run.config)
  with _needing_data(run, 'the logit adjustment is fitted on them'):
    return model_selection.fit(run, found.variables)[0]


@contextlib.contextmanager
def _needing_data(run: setup.Run, reason: str) -> Iterator[None]:
  """Adds the reason why data are needed to the error that they cannot be read."""
  try:
    yield
  except errors.UserError as error:
    if not error.field.startswith('config.dataset'):
      raise
    raise errors.UserError(error.field, error.value, f'{error.remedy}. The data are needed: {reason}'
                           ) from error


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict | None:
  """Reads the configuration of a run; fields newer than the run have their defaults.

  Args:
    workdir: its work directory.

  Returns:
    The complete configuration; None if there is no config.json.
  """
  stored = records.read_json(environment.local_path('workdir', workdir) / 'config.json')
  if stored is None:
    return None
  if not isinstance(stored, dict) or not all(
      isinstance(stored.get(group), dict) for group in ('model', 'dataset')):
    raise errors.UserError('workdir', str(workdir), 'its config.json is not of a run of at_jax: name the '
                           'work directory of a run')
  config = fields.default()
  config.model = ml_collections.ConfigDict(stored['model'])
  config.update({name: value for name, value in fields.upgrade(stored).items() if name != 'model'})
  return config


def variables(run: setup.Run, workdir: str | os.PathLike, checkpoint: str | int) -> dict[str, Any] | None:
  """Reads the variables that a checkpoint of a run is evaluated with.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `export`.
    checkpoint: as in `load`.

  Returns:
    The network's variables on the host; None if no checkpoint can be read.

  Raises:
    errors.UserError: as `weights`, or if `export` wrote the folder and `checkpoint` is not 'best'.
  """
  found = _evaluated(run, environment.local_path('workdir', workdir), checkpoint)
  return found and found.variables


def _evaluated(run: setup.Run, workdir: pathlib.Path, checkpoint: str | int) -> checkpoints.Weights | None:
  found = weights(run, workdir, checkpoint)
  if _is_export(workdir) and checkpoint not in found:
    raise errors.UserError('checkpoint', checkpoint, f"{workdir} holds the best checkpoint only: use 'best'")
  return found.get(checkpoint)


def weights(run: setup.Run, workdir: str | os.PathLike, *names: str | int, keep: int | None = None
            ) -> dict[str | int, checkpoints.Weights]:
  """Reads the variables that checkpoints of a run are evaluated with, and what is stored with them.

  They are the averaged weights and re-estimated BatchNorm statistics where the configuration has them. A
  folder without checkpoints is read from its weights.npz. Damaged checkpoints are reported on stderr.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `export`.
    *names: 'best', 'last', or the step of a stored checkpoint. Without a readable scored checkpoint, 'best'
      is the last one.
    keep: as in `checkpoints.Checkpoints`; a number only under the lock of the work directory.

  Returns:
    `{name: Weights}`, empty if no checkpoint can be read. A checkpoint that has two names is one object. A
    folder written by `export` has 'best' only.

  Raises:
    errors.UserError: if a file does not match the configuration, or weights.npz or the checkpoint of a step
      is damaged or missing.
  """
  workdir = environment.local_path('workdir', workdir)
  if _is_export(workdir):
    if 'best' not in names:
      return {}
    state = jax.eval_shape(lambda: setup.init_state(run))
    template = {'params': state.params, 'batch_stats': state.batch_stats}
    return {'best': checkpoints.read_weights(workdir / checkpoints.WEIGHTS, template)}
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=keep)
  template = jax.device_get(setup.init_state(run))
  reestimate = batchnorm.reestimate_batchnorm(run)  # in several processes all do it, or none
  by_step: dict[int, checkpoints.Weights] = {}
  found = {}
  for name in names:
    saved = store.at(name, template) if isinstance(name, int) else None
    if name == 'best':
      saved = checkpoints.report_damage(store.best(template))
    saved = saved or checkpoints.report_damage(store.newest(template))
    if saved is None:
      return {}
    if saved.step not in by_step:
      stored = functools.partial(devices.from_first, _stored_statistics, workdir, saved)
      with _needing_data(run, 'they give the BatchNorm statistics of averaged weights, which --mode=evaluate '
                         'stores'):
        variables = reestimate(saved.state, stored)
      averaged = variables['batch_stats'] is not saved.state.batch_stats
      by_step[saved.step] = checkpoints.Weights(
          saved.step, variables, _info(run, saved) | {'statistics_of_average': averaged})
    found[name] = by_step[saved.step]
  return found


def store_statistics(workdir: pathlib.Path, weights: checkpoints.Weights) -> None:
  """Stores the BatchNorm statistics of averaged weights, so that `load` does not need the data.

  Args:
    workdir: the work directory.
    weights: result of `weights`; without averaged weights nothing is written.

  Raises:
    OSError: if the file cannot be written.
  """
  if not weights.info.get('statistics_of_average') or _is_export(workdir) or not devices.is_first():
    return
  path = _statistics_path(workdir, weights.step)
  path.parent.mkdir(exist_ok=True)
  checkpoints.write_weights(path, checkpoints.Weights(
      weights.step, {'batch_stats': weights.variables['batch_stats']},
      {'params': metrics.digests(weights.variables['params'])}))


def _stored_statistics(workdir: pathlib.Path, saved: checkpoints.Saved, params: Any) -> Any:
  """The statistics of `store_statistics`; None if there are none of these parameters."""
  path = _statistics_path(workdir, saved.step)
  # The digests differ if another run was trained in the folder.
  if checkpoints.read_info(path).get('params') != metrics.digests(params):
    return None
  try:
    return checkpoints.read_weights(path, {'batch_stats': saved.state.batch_stats}).variables['batch_stats']
  except errors.UserError:  # damaged: they are estimated again
    return None


def _statistics_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return workdir / 'statistics' / f'{step:08d}.npz'


def steps(workdir: str | os.PathLike) -> list[int]:
  """Lists the checkpoints that a run has kept.

  Args:
    workdir: its work directory.

  Returns:
    Their steps, oldest first; none for a folder written by `export`.

  Raises:
    errors.UserError: if the path is not local, or orbax cannot read checkpoints below it.
  """
  workdir = environment.local_path('workdir', workdir)
  return checkpoints.Checkpoints(workdir / 'checkpoints').steps()


def has_weights(workdir: pathlib.Path) -> bool:
  """Returns whether a folder holds a checkpoint or exported weights, readable or not.

  Args:
    workdir: the folder.

  Returns:
    True if it does.
  """
  return bool(steps(workdir)) or (workdir / checkpoints.WEIGHTS).exists()


def _is_export(workdir: pathlib.Path) -> bool:
  return not steps(workdir) and (workdir / checkpoints.WEIGHTS).exists()


def _info(run: setup.Run, saved: checkpoints.Saved) -> dict[str, Any]:
  """What an evaluation reads from a checkpoint besides the variables."""
  info = {'validation_robust': saved.info.get('validation_robust'), 'data': run_data.info(run.dataset)}
  tuning = saved.state.tuning
  if isinstance(tuning, finetune.Tuning):
    info |= {name: float(getattr(tuning, name)) for name in ('start_clean', 'start_robust')}
  return info


def export(workdir: str | os.PathLike, folder: str | os.PathLike) -> None:
  """Copies the records and the best checkpoint of a finished run; the checkpoint becomes weights.npz.

  `load` and `--mode=evaluate` read the copy as they read the work directory. Training cannot resume from it.

  Args:
    workdir: the work directory.
    folder: where to write, another folder; created if needed.

  Raises:
    errors.UserError: as `load`, or if the run is not finished, or `folder` is the work directory or is not
      writable.
  """
  workdir, folder = environment.local_path('workdir', workdir), environment.local_path('folder', folder)
  if folder.resolve() == workdir.resolve():
    raise errors.UserError('folder', str(folder), 'it is the work directory: name another folder')
  for name in _RECORDS:
    if not (workdir / name).exists():
      raise errors.UserError('workdir', str(workdir), f'there is no {name} in it: finish the run first')
  found = weights(_open(workdir), workdir, 'best')
  if not found:
    raise _no_checkpoint(workdir)
  if found['best'].step != (records.read_json(workdir / 'results.json') or {}).get('step'):
    raise errors.UserError('workdir', str(workdir), 'results.json is of another checkpoint: evaluate the run '
                           'again with --mode=evaluate')
  try:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_weights(folder / checkpoints.WEIGHTS, found['best'])
    for name in _RECORDS:
      shutil.copy(workdir / name, folder)
  except OSError as error:
    raise errors.unwritable(folder, error) from error


def _open(workdir: pathlib.Path) -> setup.Run:
  config = read_config(workdir)
  if config is None:
    raise errors.UserError('workdir', str(workdir), 'there is no config.json in it: name the work '
                           'directory of a run')
  if not has_weights(workdir):
    raise _no_checkpoint(workdir)
  # An older folder stores nothing of its data; some data sets have sizes that are known by name.
  info = stored_data_info(workdir) or run_data.known_sizes(config)
  if info is None:
    return setup.build(config)
  return setup.assemble(config, run_data.deferred(config, info))


def stored_data_info(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Reads what the weights in a folder store of their data.

  Args:
    workdir: a work directory, or a folder written by `export`.

  Returns:
    `run_data.info`, or None if there are no weights or they are of an older version. Older weights have no
    digest.
  """
  info = (checkpoints.read_info(workdir / checkpoints.WEIGHTS) if _is_export(workdir) else
          checkpoints.Checkpoints(workdir / 'checkpoints').newest_info())
  return info.get('data')


def check_data(run: setup.Run, workdir: pathlib.Path) -> None:
  """Checks that the data of a run are those that its work directory was made with, as far as it stores them.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `export`.

  Raises:
    errors.UserError: if they differ: a file was replaced since.
  """
  stored, found = stored_data_info(workdir) or {}, run_data.info(run.dataset)
  differing = [name for name, value in stored.items() if found.get(name) != value]
  if differing:
    text = 'images {image_shape} and {train_size} training examples'
    what = ('the file has another content' if differing == ['digest'] else
            f'they have {text.format(**found)}, and the run had {text.format(**stored)}')
    raise errors.UserError('config.dataset.name', run.dataset.name, 'these are not the data of the run in '
                           f'{workdir}: {what}: restore them, or name another folder')


def _no_checkpoint(workdir: pathlib.Path) -> errors.UserError:
  return errors.UserError('workdir', str(workdir), 'none of its checkpoints can be read: name the '
                          'folder of a trained run')

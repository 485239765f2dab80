"""Reads a run from its work directory: its configuration, its weights, its deployed model."""

import os
import pathlib
import shutil
from typing import Any

import jax
import ml_collections

from at_jax import errors
from at_jax.config import fields
from at_jax.training import batchnorm, checkpoints, model_selection, records, setup

# The records of a finished run; results.json is written last.
_RECORDS = ('config.json', 'metrics.jsonl', 'verdicts.npz', 'results.json')


def load(workdir: str | os.PathLike, *, checkpoint: str = 'best'
         ) -> tuple[setup.Run, jax.tree_util.Partial]:
  """Reads the deployed model of a run as the function that attacks take.

  Args:
    workdir: the run's work directory, or a folder written by `export`.
    checkpoint: 'best' (the checkpoint of results.json) or 'last'.

  Returns:
    The `Run` (configuration and data), and the deployed logits, f32[B, H, W, C] in [0, 1] ->
    f32[B, num_classes]. These use averaged weights where the configuration has them, fold dummy classes
    into their own, and apply the logit adjustment of `config.inference` (fitted again). The weights are on
    the default device.

  Raises:
    errors.UserError: if the folder holds no run, no checkpoint can be read, the data are not available, or
      `checkpoint` is 'last' and the folder was written by `export`, which keeps the best checkpoint only.
    ValueError: for another `checkpoint`.

  Example:
    >>> run, model = load('runs/quickstart')  # doctest: +SKIP
    >>> model(pipeline.to_unit(run.dataset.test.images[:2])).shape  # doctest: +SKIP
    (2, 10)
  """
  if checkpoint not in ('best', 'last'):
    raise ValueError(f"checkpoint = {checkpoint!r}: use 'best' or 'last'")
  workdir = pathlib.Path(workdir)
  run = _open(workdir)
  found = variables(run, workdir, checkpoint)
  if found is None:
    raise _no_checkpoint(workdir)
  deployed = jax.device_put(model_selection.fit(run, found)[0])
  return run, jax.tree_util.Partial(run.network.deployed, deployed)


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
  """Reads the configuration of a run; fields newer than the run have their defaults.

  Args:
    workdir: its work directory.

  Returns:
    The complete configuration; None if there is no config.json.
  """
  stored = records.read_json(workdir / 'config.json')
  if stored is None:
    return None
  config = fields.default()
  config.model = ml_collections.ConfigDict(stored['model'])
  config.update({name: value for name, value in fields.upgrade(stored).items() if name != 'model'})
  return config


def variables(run: setup.Run, workdir: pathlib.Path, checkpoint: str) -> dict[str, Any] | None:
  """Reads the variables that a checkpoint of a run is evaluated with.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `export`.
    checkpoint: 'best' or 'last'.

  Returns:
    The network's variables on the host; None if no checkpoint can be read.

  Raises:
    errors.UserError: as `weights`, or if `export` wrote the folder and `checkpoint` is 'last'.
  """
  found = weights(run, workdir, checkpoint)
  if _is_export(workdir) and checkpoint not in found:
    raise errors.UserError('checkpoint', checkpoint, f"{workdir} holds the best checkpoint only: use 'best'")
  return found[checkpoint].variables if found else None


def weights(run: setup.Run, workdir: pathlib.Path, *names: str) -> dict[str, checkpoints.Weights]:
  """Reads the variables that checkpoints of a run are evaluated with, and what is stored with them.

  They are the averaged weights and re-estimated BatchNorm statistics where the configuration has them. A
  folder without checkpoints is read from its weights.npz. Damaged checkpoints are reported on stderr.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `export`.
    *names: 'best' or 'last'. Without a readable scored checkpoint, 'best' is the last one.

  Returns:
    `{name: Weights}`, empty if no checkpoint can be read. A checkpoint that has both names is one object. A
    folder written by `export` has no 'last'.

  Raises:
    errors.UserError: if a file does not match the configuration, or weights.npz is damaged.
  """
  if _is_export(workdir):
    if 'best' not in names:
      return {}
    state = jax.eval_shape(lambda: setup.init_state(run))
    template = {'params': state.params, 'batch_stats': state.batch_stats}
    return {'best': checkpoints.read_weights(workdir / checkpoints.WEIGHTS, template)}
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1)
  template = jax.device_get(setup.init_state(run))
  reestimate = batchnorm.reestimate_batchnorm(run)
  by_step: dict[int, checkpoints.Weights] = {}
  found = {}
  for name in names:
    saved = checkpoints.report_damage(store.best(template)) if name == 'best' else None
    saved = saved or checkpoints.report_damage(store.newest(template))
    if saved is None:
      return {}
    if saved.step not in by_step:
      by_step[saved.step] = checkpoints.Weights(saved.step, reestimate(saved.state), _info(saved))
    found[name] = by_step[saved.step]
  return found


def _is_export(workdir: pathlib.Path) -> bool:
  steps = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1).steps()
  return not steps and (workdir / checkpoints.WEIGHTS).exists()


def _info(saved: checkpoints.Saved) -> dict[str, Any]:
  """What an evaluation reads from a checkpoint besides the variables."""
  info = {'validation_robust': saved.info.get('validation_robust')}
  tuning = saved.state.tuning
  if tuning:
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
  workdir, folder = pathlib.Path(workdir), pathlib.Path(folder)
  if folder.resolve() == workdir.resolve():
    raise errors.UserError('folder', str(folder), 'it is the work directory: name another folder')
  for name in _RECORDS:
    if not (workdir / name).exists():
      raise errors.UserError('workdir', str(workdir), f'there is no {name} in it: finish the run first')
  found = weights(_open(workdir), workdir, 'best')
  if not found:
    raise _no_checkpoint(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_weights(folder / checkpoints.WEIGHTS, found['best'])
    for name in _RECORDS:
      shutil.copy(workdir / name, folder)
  except OSError as error:
    raise records.unwritable(folder, error) from error


def _open(workdir: pathlib.Path) -> setup.Run:
  config = read_config(workdir)
  if config is None:
    raise errors.UserError('workdir', str(workdir), 'there is no config.json in it: name the work '
                           'directory of a run')
  return setup.build(config)


def _no_checkpoint(workdir: pathlib.Path) -> errors.UserError:
  return errors.UserError('workdir', str(workdir), 'none of its checkpoints can be read: name the '
                          'folder of a trained run')

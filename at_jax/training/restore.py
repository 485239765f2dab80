"""What a run has made, read from its work directory: for code of one's own, and for the next run."""

import os
import pathlib
import sys
from typing import Any

import jax
import ml_collections

from at_jax import errors
from at_jax.config import fields
from at_jax.training import batchnorm, checkpoints, model_selection, records, setup


def load(workdir: str | os.PathLike, *, checkpoint: str = 'best'
         ) -> tuple[setup.Run, jax.tree_util.Partial]:
  """The deployed model of a run, as the function that attacks take, and the run's parts.

  Args:
    workdir: its work directory.
    checkpoint: 'best', the one that results.json is about, or 'last'.

  Returns:
    The `Run`, with its configuration and data; and, of f32[B, H, W, C] in 0..1, the logits f32[B, C]
    of the model that it was trained to deploy, by its config.json: of averaged weights where there
    are some, folded from those of dummy classes, changed where `inference` says so (which is fitted
    anew). Its weights lie on the default device.

  Raises:
    errors.UserError: there is no run in it, or none of its checkpoints can be read; or its data are
      not to be had.
    ValueError: for another checkpoint.

  Example:
    >>> run, model = load('runs/quickstart')  # doctest: +SKIP
    >>> model(data.to_unit(run.dataset.test.images[:2])).shape  # doctest: +SKIP
    (2, 10)

  Source: ours.
  """
  if checkpoint not in ('best', 'last'):
    raise ValueError(f"checkpoint = {checkpoint!r}: use 'best' or 'last'")
  workdir = pathlib.Path(workdir)
  config = read_config(workdir)
  if config is None:
    raise errors.UserError('workdir', str(workdir), 'there is no config.json in it: name the work '
                           'directory of a run')
  run = setup.build(config)
  found = variables(run, workdir, checkpoint)
  if found is None:
    raise errors.UserError('workdir', str(workdir), 'none of its checkpoints can be read: name the '
                           'folder of a trained run')
  deployed = jax.device_put(model_selection.fit(run, found)[0])
  return run, jax.tree_util.Partial(run.network.deployed, deployed)


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
  """The configuration of a run; fields that are newer than the run have their defaults.

  Args:
    workdir: its work directory.

  Returns:
    The whole configuration, None if there is no config.json.

  Source: ours.
  """
  told = records.read_json(workdir / 'config.json')
  if told is None:
    return None
  config = fields.default()
  config.model = ml_collections.ConfigDict(told['model'])
  config.update({name: value for name, value in fields.upgrade(told).items() if name != 'model'})
  return config


def variables(run: setup.Run, workdir: pathlib.Path, checkpoint: str) -> dict[str, Any] | None:
  """The variables that a checkpoint of a run is evaluated with; what is damaged is said on stderr.

  Args:
    run: the run.
    workdir: its work directory.
    checkpoint: 'best', of which the newest takes the place if need be, or 'last'.

  Returns:
    The network's variables, on the host; None if no checkpoint can be read.

  Source: ours.
  """
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1)
  template = jax.device_get(setup.init_state(run))
  found, told = store.best(template) if checkpoint == 'best' else (None, [])
  if found is None:
    found, more = store.newest(template)
    told = told + more
  for line in told:
    print(f'{workdir}: {line}', file=sys.stderr)
  return None if found is None else batchnorm.reestimate_batchnorm(run)(found.state)

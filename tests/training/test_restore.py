"""The model of a run, read back, is the one that its results are about."""

import json
import pathlib

import jax
import numpy as np
import pytest

from at_jax import errors, main
from at_jax.datasets import pipeline
from at_jax.models import logit_adjustment
from at_jax.training import checkpoints, restore, setup

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A model with dummy classes, an average of weights and a fitted change of its logits."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  fields = {'inference.kind': 'bias', 'inference.rounds': 2, 'optimizer.ema_decay': .9, 'epochs': 4,
            'batch_size': 173, 'dataset.validation_size': 100, 'evaluate.num_examples': 397,
            'evaluate.batch_size': 397}
  assert main.main([f'--config={CONFIG}:smoke', f'--workdir={path}',
                    *(f'--config.{name}={value}' for name, value in fields.items())]) == 0
  return path


@pytest.mark.parametrize('checkpoint', ['best', 'last'])
def test_its_answers_are_those_of_the_evaluation(workdir, checkpoint):
  run, model = restore.load(workdir, checkpoint=checkpoint)
  verdicts = np.load(workdir / 'verdicts.npz')
  logits = np.asarray(model(pipeline.to_unit(run.dataset.test.images)))
  assert logits.shape == (397, run.dataset.num_classes)
  np.testing.assert_array_equal(logits.argmax(-1) == verdicts['labels'],
                                verdicts[f'{checkpoint}/clean'])
  assert verdicts[f'{checkpoint}/clean'].mean() > .12  # chance is .1
  results = json.loads((workdir / 'results.json').read_text())
  told = (results if checkpoint == 'best' else results['last'])['inference']
  np.testing.assert_allclose(model.args[0][logit_adjustment.COLLECTION]['bias'], told['bias'], rtol=1e-6)
  # Without the average that was kept beside the weights it would be another model.
  raw = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1).newest(
      jax.device_get(setup.init_state(run)))[0].state.params
  assert checkpoint == 'best' or any(
      np.abs(a - b).max() > 1e-3
      for a, b in zip(*map(jax.tree.leaves, (raw, model.args[0]['params'])), strict=True))


def test_a_folder_without_a_run_is_said_in_a_line(workdir, tmp_path):
  with pytest.raises(errors.UserError, match='no config.json'):
    restore.load(tmp_path)
  with pytest.raises(ValueError, match="checkpoint = 'newest': use 'best' or 'last'"):
    restore.load(workdir, checkpoint='newest')
  (tmp_path / 'config.json').write_text((workdir / 'config.json').read_text())
  with pytest.raises(errors.UserError, match='none of its checkpoints can be read'):
    restore.load(tmp_path)

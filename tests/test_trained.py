"""The model of a run, read back, is the one that its results are about."""

import json
import pathlib

import numpy as np
import pytest

from at_jax import data
from at_jax import errors
from at_jax import main
from at_jax import trained

CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'quickstart.py'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A model with dummy classes, an average of weights and a fitted change of its logits."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  assert main.main([f'--config={CONFIG}:smoke', f'--workdir={path}', '--config.inference.kind=bias',
                    '--config.inference.rounds=1', '--config.optimizer.ema_decay=.5']) == 0
  return path


@pytest.mark.parametrize('checkpoint', ['best', 'last'])
def test_its_answers_are_those_of_the_evaluation(workdir, checkpoint):
  run, model = trained.load(workdir, checkpoint=checkpoint)
  verdicts = np.load(workdir / 'verdicts.npz')
  n = len(verdicts['labels'])
  logits = np.asarray(model(data.to_unit(run.dataset.test.images[:n])))
  assert logits.shape == (n, run.dataset.num_classes)
  np.testing.assert_array_equal(logits.argmax(-1) == verdicts['labels'],
                                verdicts[f'{checkpoint}/clean'])


def test_a_folder_without_a_run_is_said_in_a_line(workdir, tmp_path):
  with pytest.raises(errors.UserError, match='no config.json'):
    trained.load(tmp_path)
  with pytest.raises(ValueError, match="checkpoint = 'newest': use 'best' or 'last'"):
    trained.load(workdir, checkpoint='newest')
  (tmp_path / 'config.json').write_text(json.dumps(json.loads((workdir / 'config.json').read_text())))
  with pytest.raises(errors.UserError, match='none of its checkpoints can be read'):
    trained.load(tmp_path)

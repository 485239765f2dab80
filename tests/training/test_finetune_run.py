"""Fine-tuning as a command: resume, start from another run, and report."""

import json
import pathlib
import shutil

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from at_jax import main
from at_jax.config import fields as fields_lib
from at_jax.models import dual_batchnorm
from at_jax.training import batchnorm, checkpoints, loop, setup
from at_jax.training import finetune as finetune_lib
from tests.fixtures import finetune_runs, tiny_data

SMOKE = f'--config={pathlib.Path(__file__).parents[2]}/configs/finetune_cifar10.py'


def digests(workdir, step):
  path = workdir / 'checkpoints' / f'{step:08d}'
  return ocp.checkpointables_metadata(path).custom_metadata['digests']


def command(workdir, form='', **fields):
  """A run on the tiny data: 4 epochs of two steps, the first of them clean."""
  c = {'dataset.name': tiny_data.path(24),
       'dataset.num_classes': 3, 'dataset.validation_size': 8,
       'batch_size': 8, 'validate.batch_size': 8, 'evaluate.batch_size': 8, 'epochs': 4,
       'evaluate.num_examples': 8, 'model.width': 2} | fields
  return main.main([f'{SMOKE}:{form}smoke', f'--workdir={workdir}',
                    *(f'--config.{name}={value}' for name, value in c.items())])


@pytest.mark.parametrize('form, stopped', [
    pytest.param('radius-', 2, marks=pytest.mark.long),  # where fine-tuning begins
    pytest.param('controller-dual-', 5, marks=pytest.mark.long),  # in the middle of its second epoch
])
def test_a_resumed_run_has_the_same_bits_and_curve(form, stopped, tmp_path,
                                                                     capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  every = {'checkpoint.every_steps': 1, 'checkpoint.keep': 9}
  assert command(whole, form, **every) == 0
  printed = capsys.readouterr().out
  shutil.copytree(whole, parts)  # as if the run had been killed there
  for step in range(stopped + 1, 9):
    shutil.rmtree(parts / 'checkpoints' / f'{step:08d}')
  (parts / 'results.json').unlink()
  assert command(parts, form, **every) == 0
  assert f'resuming after step {stopped}' in capsys.readouterr().err
  assert digests(whole, 8) == digests(parts, 8)
  assert any('teacher' in leaf for leaf in digests(whole, 8))
  assert any(('radius' if 'radius' in form else 'strength') in leaf for leaf in digests(whole, 8))
  results, again = (json.loads((d / 'results.json').read_text()) for d in (whole, parts))
  summary = results['finetune']
  assert summary == again['finetune']
  assert [point['epoch'] for point in summary['curve']] == [2, 3, 4]
  # The best checkpoint, which is evaluated, is the operating point of the curve.
  assert results['step'] == summary['chosen'] and 'operating point' in printed
  if 'controller' in form:
    lines = map(json.loads, (whole / 'metrics.jsonl').read_text().splitlines())
    strengths = [line['strength'] for line in lines if 'strength' in line]
    kept = [point['clean'] >= summary['start']['clean'] - .005 for point in summary['curve']]
    expected = [.25]
    for one in kept[:-1]:
      expected.append(min(max(expected[-1] + (.25 if one else -.25), 0), 1))
    assert strengths == expected


def source_run(workdir, **fields):
  c = {'loss': 'standard', 'epochs': 2} | fields
  assert command(workdir, **c) == 0


@pytest.fixture(scope='module')
def clean_run(tmp_path_factory):
  """The folder of a clean run."""
  workdir = tmp_path_factory.mktemp('clean') / 'run'
  source_run(workdir)
  return workdir


@pytest.fixture
def source(clean_run, tmp_path):
  """A copy of the folder of a clean run."""
  return shutil.copytree(clean_run, tmp_path / 'source')


@pytest.mark.parametrize('which, average', [
    ('best', 0.), pytest.param('last', .9, marks=pytest.mark.long)])
def test_it_starts_with_the_outputs_of_a_checkpoint(which, average, source, tmp_path):
  if average:
    source = tmp_path / 'averaged'
    source_run(source, **{'optimizer.ema_decay': average})
  # The source, opened as its own evaluation would open it.
  before = fields_lib.default()
  before.model = {}
  summary = json.loads((source / 'config.json').read_text())
  before.update(summary)
  other, store = loop._open(before, source)
  template = jax.device_get(setup.init_state(other))
  saved = (store.best if which == 'best' else store.newest)(template)[0]
  x = np.random.default_rng(0).random((5, 4, 4, 1), np.float32)
  expected = other.network.deployed(batchnorm.reestimate_batchnorm(other)(saved.state), x)
  for kind in ('shared', 'dual'):
    c = before.copy_and_resolve_references()
    c.loss, c.optimizer.ema_decay = 'finetune', 0.
    c.finetune.update(start_epoch=0, source=str(source), checkpoint=which, batch_norm=kind)
    run, eval_variables, validate = finetune_runs.pieces(c)
    state = finetune_lib.start_from(run, setup.init_state(run))
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    np.testing.assert_allclose(run.network.deployed(variables, x), expected, atol=1e-6)
    started = finetune_lib.begin(run, jax.device_get(state), eval_variables, validate)
    np.testing.assert_allclose(run.network.logits(started.tuning.teacher, x), expected, atol=1e-6)
    if kind == 'dual':
      finetune_runs.equal(*(dual_batchnorm.select(started.tuning.teacher, name)
                            for name in dual_batchnorm.BRANCHES))


def test_a_wrong_source_is_one_line(source, tmp_path, capsys):
  begin = {'finetune.start_epoch': 0, 'epochs': 2}

  def message(**fields):
    capsys.readouterr()
    assert command(tmp_path / 'run', **begin, **fields) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('at_jax: config.finetune.source = ')
    assert not (tmp_path / 'run').exists()
    return line

  assert 'no config.json' in message(**{'finetune.source': tmp_path / 'nowhere'})
  assert 'config.model.width is 2 and here it is 3' in message(
      **{'finetune.source': source, 'model.width': 3})
  assert 'config.dataset.validation_size is 8 and here it is 7' in message(
      **{'finetune.source': source, 'dataset.validation_size': 7})
  for checkpoint in (source / 'checkpoints').iterdir():
    checkpoint.rename(checkpoint.with_suffix('.gone'))
  assert 'none of its checkpoints' in message(**{'finetune.source': source})


@pytest.mark.long
def test_a_resumed_run_does_not_need_its_source(source, tmp_path):
  workdir = tmp_path / 'run'
  fields = {'finetune.start_epoch': 0, 'finetune.source': source}
  assert command(workdir, epochs=1, **fields) == 0
  source.rename(tmp_path / 'moved')
  assert command(workdir, epochs=2, **fields) == 0
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1)
  assert store.steps()[-1] == 4

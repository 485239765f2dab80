"""Fine-tuning as a command: resumed, from another run's checkpoint, and what it reports."""

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
    ('radius-', 2),  # where fine-tuning begins
    pytest.param('controller-dual-', 5, marks=pytest.mark.long),  # amid its second epoch
])
def test_a_resumed_run_ends_with_the_same_bits_and_reports_its_curve(form, stopped, tmp_path,
                                                                     capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  every = {'checkpoint.every_steps': 1, 'checkpoint.keep': 9}
  assert command(whole, form, **every) == 0
  printed = capsys.readouterr().out
  shutil.copytree(whole, parts)  # what a run that was killed there leaves
  for step in range(stopped + 1, 9):
    shutil.rmtree(parts / 'checkpoints' / f'{step:08d}')
  (parts / 'results.json').unlink()
  assert command(parts, form, **every) == 0
  assert f'resuming after step {stopped}' in capsys.readouterr().err
  assert digests(whole, 8) == digests(parts, 8)
  assert any('teacher' in leaf for leaf in digests(whole, 8))
  assert any(('radius' if 'radius' in form else 'strength') in leaf for leaf in digests(whole, 8))
  results, again = (json.loads((d / 'results.json').read_text()) for d in (whole, parts))
  told = results['finetune']
  assert told == again['finetune']
  assert [point['epoch'] for point in told['curve']] == [2, 3, 4]
  # The checkpoint that was kept as best, and tested, is the operating point of the curve.
  assert results['step'] == told['chosen'] and '* is the operating point' in printed
  if 'controller' in form:
    lines = map(json.loads, (whole / 'metrics.jsonl').read_text().splitlines())
    strengths = [line['strength'] for line in lines if 'strength' in line]
    kept = [point['clean'] >= told['start']['clean'] - .005 for point in told['curve']]
    expected = [.25]
    for one in kept[:-1]:
      expected.append(min(max(expected[-1] + (.25 if one else -.25), 0), 1))
    assert strengths == expected


def source_run(workdir, **fields):
  c = {'loss': 'standard', 'epochs': 2} | fields
  assert command(workdir, **c) == 0


@pytest.mark.parametrize('which, average', [
    ('best', 0.), pytest.param('last', .9, marks=pytest.mark.long)])
def test_it_begins_with_the_outputs_of_a_checkpoint(which, average, tmp_path):
  source = tmp_path / 'source'
  source_run(source, **{'optimizer.ema_decay': average})
  # The other run, opened as its own evaluation would.
  before = fields_lib.default()
  before.model = {}
  told = json.loads((source / 'config.json').read_text())
  before.update(told)
  other, store = loop._open(before, source)
  template = jax.device_get(setup.init_state(other))
  saved = (store.best if which == 'best' else store.newest)(template)[0]
  x = np.random.default_rng(0).random((5, 4, 4, 1), np.float32)
  expected = other.network.deployed(batchnorm.reestimate_batchnorm(other)(saved.state), x)
  for kind in ('shared', 'dual'):
    c = before.copy_and_resolve_references()
    c.loss, c.optimizer.ema_decay = 'finetune', 0.
    c.finetune.update(start_epoch=0, source=str(source), checkpoint=which, batch_norm=kind)
    run, settler, validate = finetune_runs.pieces(c)
    state = finetune_lib.initial_state(run)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    np.testing.assert_allclose(run.network.deployed(variables, x), expected, atol=1e-6)
    begun = finetune_lib.begin(run, jax.device_get(state), settler, validate)
    np.testing.assert_allclose(run.network.logits(begun.tuning.teacher, x), expected, atol=1e-6)
    if kind == 'dual':
      finetune_runs.equal(*(dual_batchnorm.single(begun.tuning.teacher, name)
                            for name in dual_batchnorm.NAMES))


def test_a_source_that_is_missing_or_does_not_fit_is_one_line(tmp_path, capsys):
  source = tmp_path / 'source'
  source_run(source)
  begin = {'finetune.start_epoch': 0, 'epochs': 2}

  def said(**fields):
    capsys.readouterr()
    assert command(tmp_path / 'run', **begin, **fields) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('at_jax: config.finetune.source = ')
    assert not (tmp_path / 'run').exists()
    return line

  assert 'no config.json' in said(**{'finetune.source': tmp_path / 'nowhere'})
  assert 'config.model.width is 2 and here it is 3' in said(
      **{'finetune.source': source, 'model.width': 3})
  assert 'config.dataset.validation_size is 8 and here it is 7' in said(
      **{'finetune.source': source, 'dataset.validation_size': 7})
  for checkpoint in (source / 'checkpoints').iterdir():
    checkpoint.rename(checkpoint.with_suffix('.gone'))
  assert 'none of its checkpoints' in said(**{'finetune.source': source})


def test_a_run_from_a_source_needs_it_only_to_begin(tmp_path):
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  source_run(source)
  fields = {'finetune.start_epoch': 0, 'finetune.source': source}
  assert command(workdir, epochs=1, **fields) == 0
  source.rename(tmp_path / 'moved')
  assert command(workdir, epochs=2, **fields) == 0
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1)
  assert store.steps()[-1] == 4

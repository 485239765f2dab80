"""Which fields may change when a run resumes, and config.json files of older versions."""

import json

import pytest

from at_jax.config import fields, resume
from at_jax.training import restore
from tests.fixtures.command_errors import ROOT

BEFORE = fields.flatten(fields.default().to_dict())


def test_evaluation_logging_and_more_epochs_may_change():
  assert not resume.conflicts(BEFORE, BEFORE | {
      'evaluate.batch_size': 7, 'validate.batch_size': 3, 'epochs': 200, 'log_every_steps': 1,
      'dataset.data_dir': 'elsewhere', 'checkpoint.keep': 9})
  assert not resume.conflicts(BEFORE, BEFORE | {'inference.kind': 'bias'})


@pytest.mark.parametrize('name, value', {
    'seed': 1, 'epochs': 100, 'attack.epsilon_255': 4., 'attack.kind': 'kl', 'dataset.pad': 2,
    'optimizer.learning_rate': .2, 'model.name': 'SmallCNN',
    'validate.num_steps': 3,  # the scores of checkpoints must stay comparable
    'model.normalize': ((.5,), (.3,))}.items())
def test_fields_that_change_parameters_conflict(name, value):
  assert list(resume.conflicts(BEFORE, BEFORE | {name: value})) == [name]


def test_fields_that_no_run_reads_may_change():
  assert not resume.conflicts(BEFORE, BEFORE | {
      'weights.lam': 0., 'optimizer.outer.momentum': .5, 'finetune.tau': 3})
  weighted = BEFORE | {'weights.kind': 'geometry'}
  assert list(resume.conflicts(weighted, weighted | {'weights.lam': 0.})) == ['weights.lam']
  assert list(resume.conflicts(BEFORE, weighted)) == ['weights.kind']


def test_a_field_newer_than_the_run_had_its_default():
  older = {name: value for name, value in BEFORE.items() if name != 'dataset.pad'}
  assert not resume.conflicts(older, BEFORE)
  assert list(resume.conflicts(older, BEFORE | {'dataset.pad': 2})) == ['dataset.pad']


def test_epochs_of_a_cosine_schedule_conflict():
  cosine = BEFORE | {'optimizer.schedule': 'cosine'}  # every step depends on the last epoch
  assert list(resume.conflicts(cosine, cosine | {'epochs': 200})) == ['epochs']
  # λ of the linear schedule is 1 − 2 · epoch / epochs.
  linear = BEFORE | {'weights.kind': 'geometry', 'weights.schedule': 'linear'}
  assert list(resume.conflicts(linear, linear | {'epochs': 200})) == ['epochs']


@pytest.mark.parametrize('start, kind', [('uniform', ''), ('beside', 'gaussian')])
def test_old_attack_start_becomes_attack_kind(start, kind, tmp_path):
  tree = fields.default().to_dict()
  del tree['attack']['kind']
  tree['attack']['start'] = start
  (tmp_path / 'config.json').write_text(json.dumps(tree))
  config = restore.read_config(tmp_path)
  assert config.attack.kind == kind and 'start' not in config.attack
  assert not resume.conflicts(fields.flatten(fields.upgrade(tree)), fields.flatten(config.to_dict()))


def test_every_config_json_in_results_is_read():
  paths = sorted(ROOT.glob('results/**/config.json'))
  assert paths
  known = fields.FIELDS.keys()
  for path in paths:
    flat = fields.flatten(restore.read_config(path.parent).to_dict())
    assert {name for name in flat if not name.startswith('model.')} <= known, path

"""The summary at the end of a run: at most eight lines, and the number to report."""

import pathlib
import types

import numpy as np

from at_jax import config
from at_jax.datasets import pipeline
from at_jax.training import final_evaluation

WORKDIR = pathlib.Path('runs/x')
RESULTS = {
    'dataset': 'digits', 'n': 400, 'seed': 3, 'step': 12, 'clean': .9, 'worst_case': .5,
    'robust': {'pgd20': .6, 'margin100x5': .52}, 'released': {}, 'warnings': {'pgd20': []},
    'config': {'evaluate': {'norm': 'linf', 'epsilon_255': 8.}}}


def summary(**fields):
  lines = final_evaluation.summary(RESULTS | fields, WORKDIR).splitlines()
  assert len(lines) <= 8
  return lines


def test_title_names_data_seed_checkpoint_and_file():
  assert summary()[0] == ('digits, 400 test examples, seed 3, best checkpoint (step 12); details: '
                          'runs/x/results.json')


def test_worst_case_names_the_strongest_attack():
  expected = 'deployed worst case 50.00 %; strongest attack: margin100x5, 52.00 % alone'
  assert summary()[2].split() == expected.split()
  lines = summary(released={'pgd20': .51, 'autoattack': .7}, robust={'pgd20': .6, 'autoattack': .55})
  assert lines[2].split() == 'released protocol pgd20 51.00 %, autoattack 70.00 %'.split()
  assert lines[3].endswith('strongest attack: pgd20, released protocol, 51.00 % alone')


def test_last_line_says_which_number_to_report():
  assert summary()[-1] == ('Report 50.00 %, the deployed worst case within L∞ 8/255; '
                           'AutoAttack was not run.')
  assert summary(robust={'autoattack': .5})[-1] == 'Report 50.00 %, the deployed worst case within L∞ 8/255.'
  line = summary(released={'autoattack': .7}, robust={'autoattack': .5})[-1]
  assert 'not the released protocol' in line and 'not run' not in line
  assert summary(robust={})[-1] == 'No attack was run: report 90.00 % as clean accuracy only.'


def test_last_line_has_the_audit_of_a_fast_version():
  fast = dict(robust={'autoattack_fast': .249}, worst_case=.249)
  assert summary(**fast)[-1].endswith('within L∞ 8/255; autoattack_fast was not audited.')
  audited = fast | {'audits': {'autoattack_fast': dict(
      total=1000, survivors=249, sampled=200, fallen=0, low=.247, high=.249)}}
  sentence = ('Robust accuracy under fast and AutoAttack is between 24.7 % and 24.9 % (95 %, 200 of 249 '
              'survivors audited, none fell); fast alone: 24.9 %')
  upper = 'All attacks leave at most 24.90 %, the deployed worst case within L∞ 8/255.'
  lines = summary(**audited, examples='all')
  assert lines[-1] == f'Report the interval. {sentence}. {upper}'
  assert any('strongest attack: autoattack_fast with its audit, 24.90 % alone' in line for line in lines)
  assert summary(**audited, examples='first')[-1].endswith(
      f'{sentence}; the sampling of the 400 test examples is not included. {upper}')
  # Where AutoAttack attacked all examples, its worst case is one number.
  both = audited | {'robust': {'autoattack_fast': .249, 'autoattack': .249}}
  assert summary(**both, examples='all')[-1] == (
      f'Report 24.90 %, the deployed worst case within L∞ 8/255. {sentence}.')


def _test_split(labels, size):
  c = config.default()
  c.evaluate.num_examples = size
  split = pipeline.Split(np.arange(len(labels)), np.asarray(labels, np.int32))
  return final_evaluation._split(types.SimpleNamespace(
      config=c, dataset=pipeline.Dataset('mine', split, split, split, 10, ())))


def test_sorted_test_set_is_evaluated_on_a_subset(capsys):
  found, which = _test_split(np.repeat(np.arange(10), 40), 60)
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('config.evaluate.num_examples = 60: ') and 'fixed stratified subset of 60' in line
  assert which == 'stratified' and np.bincount(found.labels).tolist() == [6] * 10
  found, which = _test_split(np.tile(np.arange(10), 40), 60)
  assert which == 'first' and found.images.tolist() == list(range(60)) and not capsys.readouterr().err


def test_classes_without_examples_are_counted(capsys):
  _test_split(np.tile(np.arange(8), 40), 0)
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('warning: 2 of 10 classes have no example among the 320 that are evaluated')


def test_everything_at_once_is_eight_lines():
  point = {'step': 12, 'epoch': 3., 'clean_change': -.01, 'robust_gain': .2}
  lines = summary(
      released={'pgd20': .7}, warnings={'autoattack': ['one', 'two'], 'pgd20': []},
      inference={'as_trained': {'clean': .91, 'worst_case': .48}},
      finetune={'curve': [point], 'chosen': 12, 'tolerance': .005, 'within_tolerance': True})
  assert len(lines) == 8
  assert lines[4].split() == 'as trained clean 91.00 %, worst_case 48.00 %'.split()
  assert 'epoch 3, clean -1.0, robust +20.0 points' in lines[5]
  assert lines[6].split() == 'warnings 2 on autoattack'.split()

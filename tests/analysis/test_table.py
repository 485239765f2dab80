"""Runs side by side: McNemar's test and the table."""

import json

import numpy as np
import pytest

from at_jax.analysis import mcnemar, table


def test_mcnemar_is_the_sign_test():
  # By hand: b = 1, c = 5; p = 2·(C(6,0) + C(6,1))/2⁶ = 14/64.
  first = np.array([1, 0, 0, 0, 0, 0, 1, 0], bool)
  second = np.array([0, 1, 1, 1, 1, 1, 1, 0], bool)
  assert mcnemar.mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
  assert mcnemar.mcnemar(first, first) == (0, 0, 1.)
  with pytest.raises(ValueError, match='same examples'):
    mcnemar.mcnemar(first, second[:3])


def write(directory, stands, norm='linf', **robust):
  directory.mkdir()
  results = {'clean': .5, 'robust': robust, 'authors': {}, 'worst_case': float(np.mean(stands)),
             'config': {'evaluate': {'norm': norm, 'epsilon_255': 8.}}}
  (directory / 'results.json').write_text(json.dumps(results))
  np.savez(directory / 'verdicts.npz', labels=np.array([0, 0, 1, 1]),
           **{'best/worst_case': np.array(stands, bool)})


def test_the_table_of_three_runs(tmp_path, capsys):
  write(tmp_path / 'plain-0', [1, 0, 0, 0], pgd20=.25)
  write(tmp_path / 'other-0', [1, 1, 1, 0], pgd20=.75)
  write(tmp_path / 'other-1', [0, 1, 0, 0], pgd20=.25)
  write(tmp_path / 'third-0', [1, 1, 0, 0])
  labels = np.array([0, 1, 1, 1])  # of other examples
  np.savez(tmp_path / 'third-0' / 'verdicts.npz', labels=labels,
           **{'best/worst_case': np.array([1, 1, 0, 0], bool)})
  write(tmp_path / 'other-small', [0, 0, 0, 0])  # of no seed
  (tmp_path / 'going-0').mkdir()  # a run that is not over
  assert table.main([str(tmp_path), '--against=plain']) == 0
  lines = [[cell.strip() for cell in line.split('|')[1:-1]]
           for line in capsys.readouterr().out.splitlines()[2:]]
  head, _, other, third, plain = lines
  # By hand: mean (.75 + .25)/2, deviation √(2·.25²) = 35.4 %; worst class (.5 + 0)/2; seed 0 gains
  # two examples and loses none, p = 2·2⁻² = .5; seed 1 has no partner.
  at = dict(zip(head, other))
  assert (at['method'], at['seeds'], at['PGD-20']) == ('`other`', '2', '50.0 ± 35.4')
  assert (at['worst class'], at['against plain']) == ('25.0 ± 35.4', '+2 −0, p ≤ 0.5')
  # An attack that one run did not meet is an empty cell; what none met is no column.
  assert dict(zip(head, third))['against plain'] == dict(zip(head, third))['PGD-20'] == ''
  assert dict(zip(head, plain))['PGD-20'] == '25.0' and 'AutoAttack' not in head


def test_another_ball_is_another_table_with_its_own_reference(tmp_path):
  write(tmp_path / 'plain-0', [1, 0, 0, 0])
  write(tmp_path / 'other-0', [1, 1, 0, 0])
  write(tmp_path / 'plain-l2-0', [0, 0, 0, 0], norm='l2')
  write(tmp_path / 'other-l2-0', [1, 1, 1, 0], norm='l2')
  write(tmp_path / 'other-l1-0', [1, 1, 1, 1], norm='l1')
  write(tmp_path / 'plain-1', [1, 1, 1, 1], norm='l1')  # evaluated again, in another ball
  found = table.tables(table.read(tmp_path), against='plain')
  assert set(found) == {'L∞, 8/255', 'L2, 8/255', 'L1, 8/255'}
  last = {ball: [line.split('|')[-2].strip() for line in text.splitlines()]
          for ball, text in found.items()}
  assert last['L∞, 8/255'] == ['against plain', '---', '+1 −0, p ≤ 1', '']
  # p of three gained and none lost is 2·2⁻³.
  assert last['L2, 8/255'] == ['against plain-l2', '---', '+3 −0, p ≤ 0.25', '']
  # Of the two in L1, neither has a partner: their seeds differ.
  assert last['L1, 8/255'] == ['against plain', '---', '', '']
  assert '| `plain` | 1 |' in found['L∞, 8/255'] and '| `plain` | 1 |' in found['L1, 8/255']


def test_an_empty_folder_is_said_in_a_line(tmp_path, capsys):
  assert table.main([str(tmp_path)]) == 2
  assert 'name the folder' in capsys.readouterr().err

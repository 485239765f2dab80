"""Tables of several runs: means, paired tests, threat models, and results/README.md."""

import json
import pathlib

import numpy as np
import pytest

from at_jax.analysis import evaluations, hard_examples, table

RESULTS = pathlib.Path(__file__).parents[2] / 'results'


def write(directory, robust_examples, norm='linf', released='released', audits=None, **robust):
  """Writes the files of a run with four test examples; `released` is the name of that key."""
  directory.mkdir()
  results = {'clean': .5, 'robust': robust, released: {}, 'worst_case': float(np.mean(robust_examples)),
             'audits': audits or {},
             'config': {'evaluate': {'norm': norm, 'epsilon_255': 8.}}}
  (directory / 'results.json').write_text(json.dumps(results))
  np.savez(directory / 'verdicts.npz', labels=np.array([0, 0, 1, 1]),
           **{'best/worst_case': np.array(robust_examples, bool)})


def test_rows_are_means_and_paired_tests(tmp_path, capsys):
  write(tmp_path / 'plain-0', [1, 0, 0, 0], pgd20=.25)
  write(tmp_path / 'other-0', [1, 1, 1, 0], pgd20=.75)
  write(tmp_path / 'other-1', [0, 1, 0, 0], pgd20=.25)
  write(tmp_path / 'third-0', [1, 1, 0, 0])
  labels = np.array([0, 1, 1, 1])  # of other examples
  np.savez(tmp_path / 'third-0' / 'verdicts.npz', labels=labels,
           **{'best/worst_case': np.array([1, 1, 0, 0], bool)})
  write(tmp_path / 'other-small', [0, 0, 0, 0])  # not a seed
  (tmp_path / 'unfinished-0').mkdir()
  assert table.main([str(tmp_path), '--against=plain']) == 0
  lines = [[cell.strip() for cell in line.split('|')[1:-1]]
           for line in capsys.readouterr().out.splitlines()[2:]]
  head, _, *rows = lines
  other, third, plain = (dict(zip(head, row, strict=True)) for row in rows)
  # By hand: mean (.75 + .25)/2, deviation √(2·.25²) = 35.4 %; worst class (.5 + 0)/2; seed 0 gains
  # two examples and loses none, p = 2·2⁻² = .5; the reference has no seed 1.
  assert (other['method'], other['seeds'], other['PGD-20']) == ('`other`', '2', '50.0 ± 35.4')
  assert (other['worst class'], other['against plain']) == ('25.0 ± 35.4', '+2 −0, p ≤ 0.5')
  # An attack that one run lacks is an empty cell; one that all runs lack is no column.
  assert third['against plain'] == third['PGD-20'] == ''
  assert plain['PGD-20'] == '25.0' and 'AutoAttack' not in head


def test_audits_state_how_many_examples_fell(tmp_path):
  audit = lambda k, m: {'autoattack_fast': dict(sampled=m, fallen=k)}
  write(tmp_path / 'plain-0', [1, 0, 0, 0], autoattack_fast=.25, audits=audit(0, 200))
  write(tmp_path / 'plain-1', [1, 0, 0, 0], autoattack_fast=.25, audits=audit(2, 180))
  write(tmp_path / 'other-0', [1, 1, 0, 0], autoattack_fast=.5)
  text, = table.tables(evaluations.read(tmp_path), against='plain').values()
  head, _, other, plain = ([cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines())
  place = head.index('audit')
  assert head[place - 2:place] == ['fast AutoAttack', 'worst case']
  assert other[place] == '' and plain[place] == '0 of 200, 2 of 180'
  assert plain[place - 2] == '25.0 ± 0.0'


def test_each_threat_model_has_its_table_and_reference(tmp_path):
  write(tmp_path / 'plain-0', [1, 0, 0, 0])
  write(tmp_path / 'other-0', [1, 1, 0, 0])
  write(tmp_path / 'plain-l2-0', [0, 0, 0, 0], norm='l2')
  write(tmp_path / 'other-l2-0', [1, 1, 1, 0], norm='l2')
  write(tmp_path / 'other-l1-0', [1, 1, 1, 1], norm='l1')
  write(tmp_path / 'plain-1', [1, 1, 1, 1], norm='l1')  # another threat model
  found = table.tables(evaluations.read(tmp_path), against='plain')
  assert set(found) == {'L∞, 8/255', 'L2, 8/255', 'L1, 8/255'}
  last = {ball: [line.split('|')[-2].strip() for line in text.splitlines()]
          for ball, text in found.items()}
  assert last['L∞, 8/255'] == ['against plain', '---', '+1 −0, p ≤ 1', '']
  # p of three gained and none lost is 2·2⁻³.
  assert last['L2, 8/255'] == ['against plain-l2', '---', '+3 −0, p ≤ 0.25', '']
  # The two rows in L1 have different seeds.
  assert last['L1, 8/255'] == ['against plain', '---', '', '']
  assert '| `plain` | 1 |' in found['L∞, 8/255'] and '| `plain` | 1 |' in found['L1, 8/255']


def change(directory, **fields):
  """Changes fields of results.json."""
  path = directory / 'results.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_other_test_sets_have_tables_of_their_own(tmp_path):
  for name, fields in (('plain-0', dict(dataset='cifar10', n=4)), ('plain-1', dict(dataset='cifar10', n=2)),
                       ('other-0', dict(dataset='svhn', n=4))):
    write(tmp_path / name, [1, 0, 0, 0])
    change(tmp_path / name, **fields)
  assert set(table.tables(evaluations.read(tmp_path), against='plain')) == {
      'L∞, 8/255, cifar10, 4 test examples', 'L∞, 8/255, cifar10, 2 test examples',
      'L∞, 8/255, svhn, 4 test examples'}


@pytest.mark.parametrize('what, fields', [
    ('attacks', dict(robust={'pgd20': .2, 'fgsm': .5})), ('attacks', dict(released={'pgd20': .2})),
    ('step size', dict(config={'evaluate': {'norm': 'linf', 'epsilon_255': 8., 'step_size_255': 1.}})),
    ('test examples', {})])
def test_a_row_of_runs_that_differ_is_refused(what, fields, tmp_path, capsys):
  for seed in range(2):
    write(tmp_path / f'plain-{seed}', [1, 0, 0, 0], pgd20=.25)
  change(tmp_path / 'plain-1', **fields)
  if what == 'test examples':
    np.savez(tmp_path / 'plain-1' / 'verdicts.npz', labels=np.array([1, 0, 1, 1]),
             **{'best/worst_case': np.array([1, 0, 0, 0], bool)})
  assert table.main([str(tmp_path), '--against=plain']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f"at_jax: directory = 'plain-1': its {what} are not those of plain-0")


def test_key_of_older_results_is_read(tmp_path):
  write(tmp_path / 'plain-0', [1, 0, 0, 0], released='authors')
  assert evaluations.read(tmp_path)['plain'][0].results['released'] == {}


def test_folder_without_runs_is_one_line(tmp_path, capsys):
  assert table.main([str(tmp_path)]) == 2
  assert 'name the folder' in capsys.readouterr().err


def test_a_run_without_verdicts_is_one_line(tmp_path, capsys):
  (tmp_path / 'm-0').mkdir()
  (tmp_path / 'm-0' / 'results.json').write_text('{"released": {}}')
  assert table.main([str(tmp_path)]) == 2
  assert f"RUN = '{tmp_path / 'm-0'}': there is no verdicts.npz in it: " in capsys.readouterr().err


def test_damaged_files_are_one_line(tmp_path, capsys):
  path = tmp_path / 'plain-0'
  write(path, [1, 0, 0, 0])
  whole = (path / 'verdicts.npz').read_bytes()
  for content in (whole[:100], b'', b'text'):
    (path / 'verdicts.npz').write_bytes(content)
    for command, argument in ((table, tmp_path), (hard_examples, path)):
      assert command.main([str(argument)]) == 2
      line, = capsys.readouterr().err.splitlines()
      assert line.startswith(f"at_jax: RUN = '{path}': its verdicts.npz is not that of a run")
  (path / 'verdicts.npz').write_bytes(whole)
  (path / 'results.json').write_text('{}')
  assert hard_examples.main([str(path)]) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f"at_jax: RUN = '{path}': its results.json is not that of a run (KeyError('config')")


def test_write_replaces_what_is_between_the_two_lines(tmp_path, capsys):
  write(tmp_path / 'plain-0', [1, 0, 0, 0])
  page = tmp_path / 'page.md'
  page.write_text(f'before\n\n{table.BEGIN}\nold\n{table.END}\nafter\n')
  for _ in range(2):  # writing again changes nothing
    assert table.main([str(tmp_path), '--against=plain', f'--write={page}']) == 0
    printed = capsys.readouterr().out
    assert page.read_text() == f'before\n\n{table.BEGIN}\n\n{printed}\n{table.END}\nafter\n'


def test_a_page_that_cannot_take_the_table_is_one_line(tmp_path, capsys):
  write(tmp_path / 'plain-0', [1, 0, 0, 0])
  page = tmp_path / 'page.md'
  page.write_text('no lines')
  for path, remedy in ((page, 'add the lines'), (tmp_path / 'none.md', 'it cannot be read (No such file'),
                       (tmp_path, 'it cannot be read (Is a directory)')):
    assert table.main([str(tmp_path), f'--write={path}']) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"at_jax: --write = '{path}': {remedy}")
  assert page.read_text() == 'no lines'


def test_reference_is_the_first_method_or_a_known_one(tmp_path, capsys):
  write(tmp_path / 'plain-0', [1, 0, 0, 0])
  assert table.main([str(tmp_path)]) == 0
  assert 'against plain' in capsys.readouterr().out
  assert table.main([str(tmp_path), '--against=plan']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("at_jax: --against = 'plan': no evaluated run is of this method; did you mean 'pl")


def test_results_page_has_what_the_command_prints(capsys):
  assert table.main([str(RESULTS / 'small_cifar10')]) == 0
  printed = capsys.readouterr().out
  assert printed.count('_cifar10') >= 37 - 2 * 5  # a row a method, five of them with three seeds
  assert f'{table.BEGIN}\n\n{printed}\n{table.END}' in (RESULTS / 'README.md').read_text(encoding='utf-8')

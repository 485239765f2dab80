"""Class-wise robustness of runs: tables, JSON, attacks that are run again, data sets, messages."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from at_jax.analysis import class_tables, classwise
from at_jax.datasets import pipeline
from at_jax.training import records, restore
from tests.fixtures import data_sets, evaluated_runs, tiny_data

RESULTS = pathlib.Path(__file__).parents[2] / 'results' / 'small_cifar10'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  attacks = 'pgd2', 'margin2', 'scale2_pgd2', 'scale5_pgd2'
  folder = tmp_path_factory.mktemp('runs')
  return evaluated_runs.evaluated(folder / 'tiny-0', *attacks, name=tiny_data.path(60), num_classes=3)


def analyse(*arguments):
  return classwise.main([str(argument) for argument in arguments])


def lines(capsys):
  return capsys.readouterr().err.splitlines()


def test_attack_again_gives_the_verdicts_of_the_evaluation(run, tmp_path, capsys):
  assert analyse(run, '--attack=pgd2', '--output', tmp_path / 'found.json') == 0
  found = json.loads((tmp_path / 'found.json').read_text())['groups'][f'{tiny_data.path(60)}, L∞, 40/255']
  found = found['runs']['tiny-0']
  verdicts = np.load(run / 'verdicts.npz')
  labels = verdicts['labels']
  robust = [verdicts['best/robust/pgd2'][labels == c].sum() for c in range(3)]
  confusion = np.array(found['confusion'])
  assert np.diag(confusion).tolist() == robust and 0 < sum(robust) < verdicts['best/clean'].sum()
  np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels))
  weights = restore.load(run)[1].args[0]['params']['fc1']['kernel']
  np.testing.assert_allclose(found['weight_norms']['norms'], np.linalg.norm(weights, axis=0), rtol=1e-6)
  assert '| class | clean | robust | n | 95 % interval of robust | most often' in capsys.readouterr().out


def test_numbers_are_counts_of_the_verdicts(run, tmp_path):
  assert analyse(run, '--attack=none', '--output', tmp_path / 'found.json') == 0
  (found,) = json.loads((tmp_path / 'found.json').read_text())['groups'].values()
  found = found['runs']['tiny-0']
  verdicts = np.load(run / 'verdicts.npz')
  clean, worst_case = verdicts['best/clean'], verdicts['best/worst_case']
  assert found['robust_by_class'] == [worst_case[verdicts['labels'] == c].mean() for c in range(3)]
  swept, plain = found['temperature'][0], verdicts['best/robust/pgd2']
  scaled = {'2': verdicts['best/robust/scale2_pgd2'], '5': verdicts['best/robust/scale5_pgd2']}
  rates = {name: pytest.approx(1 - robust[clean].mean()) for name, robust in scaled.items()}
  assert swept['all']['by_scale'] == rates and swept['all']['pgd'] == pytest.approx(1 - plain[clean].mean())
  both = scaled['2'] & scaled['5']
  assert swept['all']['all_scales'] == pytest.approx(1 - both[clean].mean())
  assert swept['all']['correct'] == clean.sum() and 'confusion' not in found


def test_committed_runs_are_compared(capsys):
  rows = 'pgd_at_cifar10-0', 'pgd_at_cifar10-1', 'trades_cifar10-0', 'pgd_at_cifar10-l2-0'
  assert analyse('--attack=none', *(RESULTS / row for row in rows)) == 0
  out = capsys.readouterr().out
  # One group for each threat model; the numbers of the worst class are those of results.json.
  assert out.count('\n## ') == 1 and out.startswith('## cifar10, L∞, 8/255') and '## cifar10, L2' in out
  for row in rows:
    results = json.loads((RESULTS / row / 'results.json').read_text())
    line = next(line for line in out.splitlines() if line.startswith(f'| `{row}` | 1000 |'))
    cells = [cell.strip() for cell in line.split('|')]
    assert cells[4] == f'{100 * results["worst_case"]:.1f}'
    assert cells[6] == str(results['by_class']['worst'])
    assert cells[7] == f'{100 * results["worst_class"]:.1f}'
  assert '2 methods whose classes differ' in out  # two runs are of one method


def test_comparisons_without_two_sides_are_left_out(capsys):
  # Two seeds are one method, which has no other to agree with.
  assert analyse('--attack=none', *(RESULTS / f'pgd_at_cifar10-{seed}' for seed in range(2))) == 0
  assert 'nan' not in (out := capsys.readouterr().out) and 'Order of the classes' not in out
  # The only attack is the worst case, which gains nothing on it.
  labels = np.arange(12) % 3
  robust = np.arange(12) > labels * 3
  run = classwise.Run('x', 'L2', tuple('abc'), labels, robust, robust, {'pgd2': robust}, {})
  runs = {'x': classwise.statistics(run)}
  assert '| `x` | pgd2 |  |  |' in class_tables.report(runs, 'L2', classwise.method_order(runs))


def test_methods_are_averaged_over_seeds():
  found = {name: {'robust_by_class': accuracy, 'class_names': list('abcd'), 'robust_spread': {'p': p}}
           for name, accuracy, p in (('x-0', [.1, .2, .3, .4], 0), ('x-1', [.3, .2, .3, .4], 0),
                                     ('y-0', [.1, .3, .2, .4], 0), ('z-0', [.4, .3, .2, .1], .5))}
  # x has the mean .2, .2, .3, .4 and the ranks 1.5, 1.5, 3, 4, of variance 4.5/4; y has the ranks 1, 3, 2, 4,
  # of variance 5/4. Their covariance is 3/4. z has no order.
  order = classwise.method_order(found)
  assert order['orders'] == 2 and order['mean_rho'] == pytest.approx(3 / np.sqrt(4.5 * 5))


@pytest.mark.parametrize('arguments, expected', [
    (['none'], "RUN = 'none': there are no results.json and verdicts.npz"),
    ([RESULTS / 'pgd_at_cifar10-0', '--attack=autoattack'], "--attack = 'autoattack': use PGD"),
    ([RESULTS / 'pgd_at_cifar10-0', '--attack=dummy0.5_pgd20'], "--attack = 'dummy0.5_pgd20': use PGD"),
    ([RESULTS / 'pgd_at_cifar10-0', '--output=no/such/file'], "--output = 'no/such/file': there is no such"),
])
def test_mistake_is_one_line(arguments, expected, capsys):
  assert analyse(*arguments) == 2
  line, = lines(capsys)
  assert line.startswith(f'at_jax: {expected}')


def test_other_data_than_those_of_the_verdicts_are_refused(run, tmp_path, capsys):
  other = shutil.copytree(run, tmp_path / 'other')
  with np.load(run / 'verdicts.npz') as stored:
    np.savez(other / 'verdicts.npz', **{key: stored[key][::-1] for key in stored.files})
  assert analyse(other, '--attack=pgd2') == 2
  assert 'the test examples are not those of its verdicts' in lines(capsys)[-1]


def test_absent_data_are_named_with_the_way_without_them(run, tmp_path, capsys):
  other = shutil.copytree(run, tmp_path / 'other')
  c = json.loads((run / 'config.json').read_text())
  c['dataset']['name'] = str(tmp_path / 'absent.npz')
  records.write_json(other / 'config.json', c)
  assert analyse(other, '--attack=pgd2') == 2
  assert 'absent.npz' in (line := lines(capsys)[-1]) and '--attack=none' in line


@pytest.mark.long
@pytest.mark.filterwarnings('ignore:.*have no training example')  # the archives are tiny
@pytest.mark.parametrize('name', ['svhn_cropped', 'stl10', 'tiny_imagenet', 'cifar100', 'mnist'])
def test_every_published_format_is_analysed(name, tmp_path, monkeypatch, capsys):
  with data_sets.serve(monkeypatch, data_sets.ARCHIVES[name]()[0]):
    data = pipeline.load(name, data_dir=tmp_path)
  run = evaluated_runs.evaluated(tmp_path / 'run', 'pgd2', name=name, num_classes=data.num_classes,
                                 data_dir=str(tmp_path))
  capsys.readouterr()
  assert analyse(run, '--attack=pgd2') == 0
  out = capsys.readouterr().out
  assert out.startswith(f'## {name}, L∞, 40/255') and all(f'\n| {each} |' in out for each in data.class_names)

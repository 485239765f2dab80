"""The analysis of smoothness: numbers of a run, comparisons over runs, tables, figures, messages."""

import json
import shutil

import numpy as np
import pytest

from at_jax import config
from at_jax.analysis import smoothness, smoothness_estimates, smoothness_figures
from at_jax.datasets import pipeline
from at_jax.training import records, restore
from tests.fixtures import evaluated_runs, tiny_data

N = 6


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of an untrained network."""
  c = config.default()
  c.dataset.update(name=tiny_data.path(60), num_classes=3, validation_size=0)
  c.model.update(name='SmallCNN', features=(), hidden=(4,))
  c.batch_size, c.evaluate.epsilon_255 = 2, 16.
  return evaluated_runs.untrained(tmp_path_factory.mktemp('runs') / 'tiny-0', c)


@pytest.fixture
def short(monkeypatch):
  """Short attacks, two lengths, and a surface of nine points."""
  monkeypatch.setattr(smoothness_estimates, 'STEPS', 2)
  monkeypatch.setattr(smoothness, 'GRID', (-.1, 0., .1))
  monkeypatch.setattr(smoothness, 'LENGTHS', (.001, .01))


def analyse(*arguments):
  return smoothness.main([str(argument) for argument in arguments])


@pytest.mark.long
def test_run_has_numbers_tables_and_figures(run, short, tmp_path, capsys):
  assert analyse(run, '--n', N, '--output', tmp_path / 'found.json', '--figures', tmp_path / 'figures') == 0
  title = f'{tiny_data.path(60)}, L∞, 16/255'
  found = json.loads((tmp_path / 'found.json').read_text())['groups'][title]['runs']['tiny-0']
  parts, model = restore.load(run)
  x, y = pipeline.to_unit(parts.dataset.test.images[:N]), parts.dataset.test.labels[:N]
  logits = np.asarray(model(x), np.float64)
  losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(N), y]
  assert found['n'] == N and found['clean_loss'] == pytest.approx(losses.mean(), rel=1e-5)
  # The radius in L2 is between ε and ε√D. Both losses are the same, and that of the surface's centre.
  assert 16 / 255 < found['l2']['epsilon'] < 4 * 16 / 255
  rise = {norm: found[norm]['loss'] - found['clean_loss'] for norm in ('linf', 'l2')}
  assert rise['linf'] > 0 and rise['l2'] == pytest.approx(rise['linf'], rel=.02)
  assert found['surface']['losses'][1][1] == pytest.approx(found['linf']['loss'], rel=1e-5)
  for norm in ('linf', 'l2'):
    for kind, directions in (('random', 3), ('gradient', 2)):
      each = found[norm][kind]['0.01']
      assert {len(values) for values in each.values()} == {directions} and min(each['lipschitz']) > 0
  out = capsys.readouterr().out
  assert out.startswith(f'## {title}') and '| `tiny` | 1 |' in out
  assert {path.name for path in (tmp_path / 'figures').iterdir()} == {'smoothness.png', 'surfaces.png'}


def test_radius_is_that_of_the_last_evaluation(run, tmp_path):
  folder = shutil.copytree(run, tmp_path / 'evaluated-0')
  records.write_json(folder / 'results.json', {'config': {'evaluate': {'epsilon_255': 4., 'norm': 'l2'}}})
  model = smoothness.load(folder, N, {})
  assert (model.epsilon, model.norm, model.threat) == (4 / 255, 'l2', f'{tiny_data.path(60)}, L2, 4/255')


def measured(gradient, linf, l2):
  """A result of `measure` with the same number for every estimate."""
  names = *smoothness_estimates.Estimate._fields, 'fixed_lipschitz', 'fixed_relative_lipschitz'
  around = lambda value: {'epsilon': .1, 'loss': 2., 'delta_l2': 1., **{kind: {
      f'{length:g}': dict.fromkeys(names, [value - .5, value + .5]) for length in smoothness.LENGTHS}
      for kind in ('random', 'gradient')}}
  return {'n': N, 'clean_loss': 1., 'input_gradient': gradient, 'input_curvature': -gradient,
          'linf': around(linf), 'l2': around(l2)}


RUNS = {'x-0': measured(1., 4., 2.), 'x-1': measured(2., 6., 2.), 'y-0': measured(3., 5., 7.),
        'y-1': measured(4., 8., 1.)}


def test_runs_are_compared_by_counts_and_ranks():
  found = smoothness.compare(RUNS)
  assert found['runs'] == 4
  for name in ('random_lipschitz', 'gradient_relative_displacement'):
    assert set(found[name]['linf_above_l2'].values()) == {3}  # all but y-0
    # Ranks 1, 2, 3, 4 and 1, 3, 2, 4: ρ = 1 − 6·2/60. The curvature has the reverse order.
    assert found[name]['rho_linf_input_gradient']['rho'] == pytest.approx(.8)
    assert found[name]['rho_linf_input_curvature']['rho'] == pytest.approx(-.8)


def test_seeds_of_a_method_are_averaged():
  text = smoothness.report(RUNS, smoothness.compare(RUNS), 'title')
  lines = [line for line in text.splitlines() if line.startswith('| `x` |')]
  assert len(lines) == 3 and lines[0].startswith('| `x` | 2 | 1 ± 0 | 2 ± 0 |')
  assert lines[1].startswith('| `x` | 5 ± 1.4 | 2 ± 0 | 5 ± 1.4 | 2 ± 0 | 1 ± 0 | 1 ± 0 | 5 ± 1.4 |')
  assert 'exceeds L2 in 3 of 4 runs' in text and 'ρ = +0.80' in text


def test_captions_and_alt_texts_state_the_numbers():
  surface = {'lengths': [-.1, 0., .1], 'losses': [[2., 2., 2.], [2.1, 2., 2.3], [5., 4., 5.]]}
  estimates, surfaces = smoothness_figures.draw(RUNS | {'x-0': RUNS['x-0'] | {'surface': surface}}, '-2')
  assert estimates.name == 'smoothness-2' and surfaces.name == 'surfaces-2'
  assert '2.5 times as fast' in estimates.caption and '(median of 4 runs, 0.71 to 8)' in estimates.caption
  assert 'x L∞ 5, L2 2, ' in estimates.alt
  assert 'rises by 2, in a random direction by 0.3 ' in surfaces.caption and 'x 2, 0.3.' in surfaces.alt


@pytest.mark.parametrize('change, arguments, expected', [
    ({}, ['--n=0'], '--n = 0: use a whole number above 0'),
    ({}, ['--output=no/such/file'], "--output = 'no/such/file': there is no such folder"),
    ({'model': {'dtype': 'bfloat16'}}, [], 'its network computes in bfloat16'),
    ({'evaluate': {'norm': 'l1'}}, [], 'its evaluation is in L1: name runs of L∞ or L2'),
    (None, [], 'there is no config.json in it'),
])
def test_mistake_is_one_line(run, change, arguments, expected, tmp_path, capsys):
  if change is not None:
    c = json.loads((run / 'config.json').read_text())
    for part, fields in change.items():
      c[part] |= fields
    records.write_json(tmp_path / 'config.json', c)
  assert analyse(tmp_path, *arguments) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('at_jax: ') and expected in line

"""AutoAttack in an evaluation: names, the deployed logits, resuming, and what the user is told."""

import functools
import json
import pathlib

import numpy as np
import pytest

from at_jax import attacks as attacks_lib
from at_jax import errors, main
from at_jax.attacks.autoattack import components
from at_jax.evaluation import attack_names, autoattack_run, robustness
from tests.fixtures.linear_model import KEY, SPLIT, linear

QUICK = f'--config={pathlib.Path(__file__).parents[2]}/configs/quickstart.py'


@pytest.fixture(autouse=True)
def short(monkeypatch):
  def brief(*arguments, version, attacks, **options):
    # Two of the four attacks, few steps: enough for what is around them.
    names = attacks_lib or {'standard': ('apgd-ce', 'square')}.get(version)
    return full(*arguments, version=version, attacks=names, num_steps=3, num_queries=10, **options)

  full = attacks_lib.autoattack
  monkeypatch.setattr(attacks_lib, 'autoattack', brief)


def report(has_dummies=False, **options):
  network, variables = linear(has_dummies)
  options = dict(names=('pgd2', 'autoattack'), norm='linf', epsilon=.1, step_size=.05,
                 batch_size=8, has_dummies=has_dummies) | options
  return robustness.evaluate(network, variables, SPLIT, KEY, **options)


def test_names():
  assert attack_names.parse('autoattack') == ('standard', None)
  assert attack_names.parse('autoattack_plus') == ('plus', None)
  assert attack_names.parse('autoattack_rand') == ('rand', None)
  assert attack_names.parse('fab-t') == ('standard', ('fab-t',))
  assert attack_names.parse('autoattak') is None


def test_components_are_reported_beside_the_verdict():
  found = report()
  told = found.accuracies()
  assert list(told['components']['autoattack']) == ['apgd-ce', 'square']
  assert told['components']['autoattack']['square'] == told['robust']['autoattack']
  assert 0 < told['robust']['autoattack'] < told['clean']
  together = found.robust['pgd2'] & found.robust['autoattack']
  np.testing.assert_array_equal(found.worst_case, together)
  json.dumps(told)


def test_a_model_with_dummies_is_attacked_as_deployed_and_as_its_authors_do():
  found = report(True, names=('autoattack',))
  assert set(found.authors) == {'autoattack'}
  # The raw attack is content with the own dummy on top, which is the deployed model's right answer.
  assert found.robust['autoattack'].mean() < found.authors['autoattack'].mean()
  assert set(found.components) == {'autoattack'}
  assert set(found.warnings) == {'autoattack', "autoattack, authors' protocol"}


def test_l1_runs_and_has_all_components():
  found = report(norm='l1', epsilon=1., names=('autoattack',))
  assert 0 < found.robust['autoattack'].sum() < found.clean.sum()
  # The fixture takes two of them; the authors' code has the same four in every norm.
  assert components.choose(None, 'standard', 'l1') == ('apgd-ce', 'apgd-t', 'fab-t', 'square')


@pytest.mark.long
def test_a_part_is_run_by_its_name():
  found = report(names=('apgd-ce', 'square', 'autoattack'))
  stands = found.components['autoattack']
  assert list(stands) == ['apgd-ce', 'square']  # in `short`
  # Its draws are the ensemble's, of which Square attacks what is left.
  assert found.robust['apgd-ce'].mean() < found.clean.mean()
  np.testing.assert_array_equal(found.robust['apgd-ce'], stands['apgd-ce'])
  np.testing.assert_array_equal(found.robust['apgd-ce'] & found.robust['square'],
                                found.robust['autoattack'])


@pytest.mark.parametrize('version', [
    'autoattack_rand', pytest.param('autoattack_plus', marks=pytest.mark.long)])
def test_the_other_versions(version):
  found = report(names=(version,))
  assert found.robust[version].mean() < found.clean.mean()


def test_every_part_of_the_progress_begins_at_zero_and_ends_once():
  calls = {}
  report(progress=lambda name, done, total, _: calls.setdefault(name, []).append((done, total)))
  assert [name for name in calls if 'autoattack' in name] == [
      f'autoattack, runs of {part}' for part in ('apgd-ce', 'square')]
  for steps in calls.values():
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
    assert [done == total for done, total in steps].count(True) == 1


def test_what_a_search_model_finds_counts_only_if_the_model_is_fooled_too():
  # This search model is wrong about every example that the other is right about, and within a
  # millionth there is nothing to be found.
  network, variables = linear()
  liar = network._replace(deployed=lambda variables, x: -network.deployed(variables, x))
  options = dict(names=('autoattack',), epsilon=1e-6)
  found = report(search=liar, **options)
  np.testing.assert_array_equal(found.robust['autoattack'], found.clean)
  assert found.clean.sum() > 12
  # Believed, it would take everything.
  alone = robustness.evaluate(liar, variables, SPLIT, KEY, norm='linf', step_size=.05, batch_size=8,
                            has_dummies=False, **options)
  assert not (alone.robust['autoattack'] & found.clean).any()


class Killed(Exception):
  """Ends an evaluation at a moment of the test's choosing."""


def test_a_killed_evaluation_goes_on_and_a_stale_state_is_not_used(tmp_path, monkeypatch):
  whole = report()
  monkeypatch.setattr(attacks_lib, 'autoattack', functools.partial(attacks_lib.autoattack, save_every=0.))

  def kill(name, done, total, accuracy):
    del total, accuracy
    if 'square' in name and done:
      raise Killed

  with pytest.raises(Killed):
    report(state_dir=tmp_path, progress=kill)
  [state] = tmp_path.iterdir()
  killed = state.read_bytes()

  seen = []
  resumed = report(state_dir=tmp_path, progress=lambda name, *_: seen.append(name))
  assert not any('apgd' in name for name in seen) and any('square' in name for name in seen)
  for name in ('pgd2', 'autoattack'):
    np.testing.assert_array_equal(resumed.robust[name], whole.robust[name])
  assert resumed.states == (state,)

  # Another radius or another model: another file.
  assert report(state_dir=tmp_path, epsilon=.11).states != (state,)
  network, variables = linear()
  settings = dict(choice=autoattack_run.Choice('standard'))
  name = lambda v: autoattack_run.identity(network.deployed, v, SPLIT, KEY, settings)
  assert name(variables) != name({'params': variables['params'].at[0, 0].add(1e-7)})

  # Longer than what stands between two arrays, which nobody reads.
  state.write_bytes(killed[:3000] + b'?' * 200 + killed[3200:])
  with pytest.raises(errors.UserError, match='remove this file'):
    report(state_dir=tmp_path)


def test_the_command_runs_it_on_a_checkpoint(tmp_path, capsys):
  arguments = [f'{QUICK}:smoke', f'--workdir={tmp_path}', '--config.attack.norm=l2',
               '--config.attack.epsilon_255=100.']
  assert main.main(arguments) == 0
  attacked = "--config.evaluate.attacks=('pgd1', 'autoattack')"
  assert main.main([*arguments, attacked, '--mode=evaluate']) == 0
  results = json.loads((tmp_path / 'results.json').read_text())
  for each in (results, results['last']):
    assert set(each['components']['autoattack']) == {'apgd-ce', 'square'}
    assert set(each['robust']) == set(each['authors']) == {'pgd1', 'autoattack'}
  out = capsys.readouterr().out
  assert 'autoattack, after apgd-ce' in out

  # The search in bfloat16: one field. Of 16 examples two at most may hang on its rounding.
  assert main.main([*arguments, attacked, '--mode=evaluate',
                    '--config.evaluate.search_dtype=bfloat16']) == 0
  lower = json.loads((tmp_path / 'results.json').read_text())
  assert lower['config']['evaluate']['search_dtype'] == 'bfloat16'
  assert lower['clean'] == results['clean']
  assert abs(lower['robust']['autoattack'] - results['robust']['autoattack']) <= 2 / 16
  assert not (tmp_path / 'evaluation').exists()

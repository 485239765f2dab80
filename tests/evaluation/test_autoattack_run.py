"""AutoAttack in an evaluation: deployed logits, components, progress, warnings and resuming."""

import json
import pathlib

import numpy as np
import pytest

from at_jax import attacks as attacks_lib
from at_jax import errors, main
from at_jax.attacks.autoattack import components
from at_jax.evaluation import autoattack_run, robustness
from at_jax.training import records
from tests.fixtures.linear_model import KEY, SPLIT, linear

QUICK = f'--config={pathlib.Path(__file__).parents[2]}/configs/quickstart.py'


@pytest.fixture(autouse=True)
def short(monkeypatch):
  """Replaces AutoAttack by two of its components with few steps."""
  def brief(*arguments, version, attacks, **options):
    # Two of the four components with few steps: what is tested here is around them.
    names = attacks or {'standard': ('apgd-ce', 'square'), 'fast': ('square',)}.get(version)
    return full(*arguments, version=version, attacks=names, num_steps=3, num_queries=10, **options)

  full = attacks_lib.autoattack
  monkeypatch.setattr(attacks_lib, 'autoattack', brief)


def report(has_dummies=False, **options):
  network, variables = linear(has_dummies)
  options = dict(names=('pgd2', 'autoattack'), norm='linf', epsilon=.1, step_size=.05,
                 batch_size=8, has_dummies=has_dummies) | options
  return robustness.evaluate(network, variables, SPLIT, KEY, **options)


def test_components_are_reported():
  found = report()
  accuracies = found.accuracies()
  assert list(accuracies['components']['autoattack']) == ['apgd-ce', 'square']
  assert accuracies['components']['autoattack']['square'] == accuracies['robust']['autoattack']
  assert 0 < accuracies['robust']['autoattack'] < accuracies['clean']
  counts = accuracies['passes']['autoattack']
  assert list(counts) == ['apgd-ce', 'square', 'checks'] and counts['square'].keys() == {
      'forward', 'backward', 'empty'}
  assert counts['apgd-ce']['backward'] > 0 == counts['square']['backward']
  together = found.robust['pgd2'] & found.robust['autoattack']
  np.testing.assert_array_equal(found.worst_case, together)
  json.dumps(accuracies)


def test_dummy_classes_are_attacked_deployed_and_as_released():
  found = report(True, names=('autoattack',))
  assert set(found.released) == {'autoattack'}
  # The raw attack stops at points where the dummy of the right class is on top; the deployed decision is
  # correct there.
  assert found.robust['autoattack'].mean() < found.released['autoattack'].mean()
  assert set(found.components) == {'autoattack'}
  assert set(found.warnings) == {'autoattack', 'autoattack, released protocol'}


@pytest.mark.long
def test_l1_has_the_same_components():
  found = report(norm='l1', epsilon=1., names=('autoattack',))
  assert 0 < found.robust['autoattack'].sum() < found.clean.sum()
  # The fixture selects two of them; the reference implementation has the same four in every norm.
  assert components.choose(None, 'standard', 'l1') == ('apgd-ce', 'apgd-t', 'fab-t', 'square')


@pytest.mark.long
def test_single_component_equals_that_of_the_ensemble():
  found = report(names=('apgd-ce', 'square', 'autoattack'))
  after = found.components['autoattack']
  assert list(after) == ['apgd-ce', 'square']  # from `short`
  # It draws what the ensemble draws; there Square attacks only what is still robust.
  assert found.robust['apgd-ce'].mean() < found.clean.mean()
  np.testing.assert_array_equal(found.robust['apgd-ce'], after['apgd-ce'])
  np.testing.assert_array_equal(found.robust['apgd-ce'] & found.robust['square'],
                                found.robust['autoattack'])


def test_audit_of_the_deployed_logits_is_reported(monkeypatch):
  monkeypatch.setitem(components.VERSIONS, 'standard', ('apgd-ce',))
  found = report(True, names=('autoattack_fast',), audit=5)
  assert found.audited['autoattack_fast'].sum() == 5 and list(found.audited) == list(found.audits)
  accuracies = json.loads(json.dumps(found.accuracies()))
  numbers = accuracies['audits'].pop('autoattack_fast')
  assert numbers['sampled'] == 5 < numbers['survivors'] and numbers['total'] == len(SPLIT.labels)
  robust = accuracies['robust']['autoattack_fast']
  assert robust == (numbers['survivors'] - numbers['fallen']) / numbers['total']
  assert numbers['low'] < numbers['high'] <= robust
  assert not accuracies['audits']  # the released protocol has no audit
  np.testing.assert_array_equal(found.verdicts()['audited/autoattack_fast'], found.audited['autoattack_fast'])
  # Other versions, and none, are not audited.
  assert not report(names=('square',), audit=5).audits
  assert not report(names=('autoattack_fast',)).audits


@pytest.mark.long
@pytest.mark.parametrize('version', ['autoattack_rand', 'autoattack_plus'])
def test_other_versions_find_something(version):
  found = report(names=(version,))
  assert found.robust[version].mean() < found.clean.mean()


def test_progress_of_each_component_starts_at_zero_and_ends_once():
  calls = {}
  report(progress=lambda name, done, total, _: calls.setdefault(name, []).append((done, total)))
  assert [name for name in calls if 'autoattack' in name] == [
      f'autoattack, runs of {part}' for part in ('apgd-ce', 'square')]
  for steps in calls.values():
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
    assert [done == total for done, total in steps].count(True) == 1


def test_search_model_counts_only_if_the_model_is_fooled():
  # The search model is wrong on every example that the model classifies correctly, and ε is too small to fool
  # the model.
  network, variables = linear()
  wrong = network._replace(deployed=lambda variables, x: -network.deployed(variables, x))
  options = dict(names=('autoattack',), epsilon=1e-6)
  found = report(search=wrong, **options)
  np.testing.assert_array_equal(found.robust['autoattack'], found.clean)
  assert found.clean.sum() > 12
  # Evaluated alone, the search model has no robust example among these.
  alone = robustness.evaluate(wrong, variables, SPLIT, KEY, norm='linf', step_size=.05, batch_size=8,
                              has_dummies=False, **options)
  assert not (alone.robust['autoattack'] & found.clean).any()


def test_warnings_are_shown_once_while_it_runs(monkeypatch, capsys, recwarn):
  full, events = attacks_lib.autoattack, []

  def brief(*arguments, progress, **options):
    noted = lambda now: (events.append('runs'), progress(now))
    options |= dict(attacks=('apgd-ce',))
    return full(*arguments, progress=noted, **options)

  monkeypatch.setattr(attacks_lib, 'autoattack', brief)
  network, variables = linear()
  logits = lambda variables, x: 1e4 * network.deployed(variables, x)
  logits.__name__ = 'deployed'

  def warn(name, line):
    events.append((name, line))
    records.warn(f'{name}: {line}')

  found = robustness.evaluate(
      network._replace(deployed=logits), variables, SPLIT, KEY, names=('autoattack',), norm='linf',
      epsilon=.1, step_size=.05, batch_size=8, has_dummies=False, warn=warn)
  warnings = [event for event in events if event != 'runs']
  assert warnings == [('autoattack', line) for line in found.warnings['autoattack']]
  assert 'logits lead by more than 88' in events[0][1] and 'runs' in events
  shown = capsys.readouterr()
  assert shown.err == ''.join(f'warning: {name}: {line}\n' for name, line in warnings)
  assert not shown.out
  assert not [w for w in recwarn if 'logits lead' in str(w.message)]


class Killed(Exception):
  """Raised to stop an evaluation."""


def test_killed_evaluation_resumes_and_ignores_other_states(tmp_path):
  whole = report()

  def kill(name, done, total, accuracy):
    del total, accuracy
    if 'square' in name and done:
      raise Killed

  with pytest.raises(Killed):
    report(state_dir=tmp_path, progress=kill)
  [state] = tmp_path.iterdir()
  killed = state.read_bytes()
  assert 'items' in np.load(state).files  # written because `progress` raised, in the middle of Square

  seen = []
  resumed = report(state_dir=tmp_path, progress=lambda name, *_: seen.append(name))
  assert not any('apgd' in name for name in seen) and any('square' in name for name in seen)
  for name in ('pgd2', 'autoattack'):
    np.testing.assert_array_equal(resumed.robust[name], whole.robust[name])
  assert resumed.states == (state,)

  # Another radius or another model has another file.
  assert report(state_dir=tmp_path, epsilon=.11).states != (state,)
  network, variables = linear()
  settings = dict(choice=autoattack_run.Choice('standard'))
  name = lambda v: autoattack_run.identity(network.deployed, v, SPLIT, KEY, settings)
  assert name(variables) != name({'params': variables['params'].at[0, 0].add(1e-7)})

  # 200 bytes, more than the unread bytes between two arrays.
  state.write_bytes(killed[:3000] + b'?' * 200 + killed[3200:])
  with pytest.raises(errors.UserError, match='remove this file'):
    report(state_dir=tmp_path)


@pytest.mark.long
def test_command_evaluates_a_checkpoint_with_autoattack(tmp_path, capsys):
  arguments = [f'{QUICK}:smoke', f'--workdir={tmp_path}', '--config.attack.norm=l2',
               '--config.attack.epsilon_255=100.']
  assert main.main(arguments) == 0
  attacked = "--config.evaluate.attacks=('pgd1', 'autoattack')"
  assert main.main([*arguments, attacked, '--mode=evaluate']) == 0
  results = json.loads((tmp_path / 'results.json').read_text())
  for each in (results, results['last']):
    assert set(each['components']['autoattack']) == {'apgd-ce', 'square'}
    assert set(each['robust']) == set(each['released']) == {'pgd1', 'autoattack'}
  reports = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Report')]
  assert ['AutoAttack was not run' in line for line in reports] == [True, False]

  # Searches in bfloat16. Rounding may change at most two of the 16 verdicts.
  assert main.main([*arguments, attacked, '--mode=evaluate',
                    '--config.evaluate.search_dtype=bfloat16']) == 0
  lower = json.loads((tmp_path / 'results.json').read_text())
  assert lower['config']['evaluate']['search_dtype'] == 'bfloat16'
  assert lower['clean'] == results['clean']
  assert abs(lower['robust']['autoattack'] - results['robust']['autoattack']) <= 2 / 16
  assert not (tmp_path / 'evaluation').exists()

"""Reasons to doubt an evaluation's numbers are shown while it runs, each once."""

from at_jax import attacks
from at_jax.evaluation import robustness
from at_jax.training import records
from tests.fixtures import linear_model


def test_each_is_said_once_under_the_name_of_what_runs(monkeypatch, capsys, recwarn):
  full, events = attacks.autoattack, []

  def brief(*arguments, progress, **options):
    told = lambda now: (events.append('runs'), progress(now))
    options |= dict(attacks=('apgd-ce',), num_steps=2)
    return full(*arguments, progress=told, **options)

  monkeypatch.setattr(attacks, 'autoattack', brief)
  network, variables = linear_model.linear()
  logits = lambda variables, x: 1e4 * network.deployed(variables, x)
  logits.__name__ = 'deployed'

  def warn(name, line):
    events.append((name, line))
    records.warn(f'{name}: {line}')

  report = robustness.evaluate(
      network._replace(deployed=logits), variables, linear_model.SPLIT,
      linear_model.KEY, names=('autoattack',), norm='linf', epsilon=.1, step_size=.05,
      batch_size=8, has_dummies=False, warn=warn)
  told = [event for event in events if event != 'runs']
  assert told == [('autoattack', line) for line in report.warnings['autoattack']]
  assert 'logits lead by more than 88' in events[0][1] and 'runs' in events
  shown = capsys.readouterr()
  assert shown.err == ''.join(f'warning: {name}: {line}\n' for name, line in told)
  assert not shown.out
  assert not [w for w in recwarn if 'logits lead' in str(w.message)]

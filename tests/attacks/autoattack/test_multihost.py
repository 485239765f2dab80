"""AutoAttack on several processes finds what one process finds."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks.autoattack import multihost
from tests.fixtures import processes
from tests.fixtures.two_processes import evaluate

_EVALUATION = '''
import json, sys
import jax
address, count, process, late, audit, path = json.loads(sys.argv[1])
jax.config.update('jax_enable_x64', True)
jax.distributed.initialize(address, count, process)
from at_jax.attacks.autoattack import multihost
from tests.fixtures import two_processes
assert jax.process_count() == count
print(json.dumps(two_processes.evaluate(multihost.autoattack, path, late=process * late, audit=audit)))
'''
_ONE_FAILS = '''
import json, sys
import jax, numpy as np
address, count, process, audit = json.loads(sys.argv[1])
jax.distributed.initialize(address, count, process)
from at_jax.attacks.autoattack import multihost

def progress(now):
  if process == 1 and now.attack.startswith('audit/' if audit else 'apgd'):
    raise OSError('the disk is full')

multihost.autoattack(lambda x: x, np.eye(4, dtype=np.float32), np.arange(4), jax.random.key(0), epsilon=.1,
                     version='fast', attacks=('apgd-ce',), num_steps=2, num_queries=2, audit=audit,
                     progress=progress)
'''


@functools.cache
def of_one_process(audit):
  with jax.enable_x64(True):
    return evaluate(attacks.autoattack, audit=audit)


def in_two_processes(script, *arguments):
  """(exit code, stdout, stderr) of each of two processes."""
  return processes.finish(processes.start_together(2, lambda address, process: [
      sys.executable, '-c', script, json.dumps([address, 2, process, *arguments])]))


# XLA's CPU backend gives processes 30 seconds to connect; `late` delays the second one by more.
@pytest.mark.parametrize('late, audit', [
    (0., 0), pytest.param(45., 0, marks=pytest.mark.long), pytest.param(0., 4, marks=pytest.mark.long)])
def test_two_processes_find_what_one_finds(late, audit, tmp_path):
  expected, results = of_one_process(audit), []
  for code, out, err in in_two_processes(_EVALUATION, late, audit, str(tmp_path / 'state.npz')):
    assert code == 0, err
    results.append(json.loads(out.splitlines()[-1]))
  assert results[0] == results[1]
  for name in ('robust', 'clean', 'components', 'audit', 'audited'):
    assert results[0][name] == expected[name]
  for name in expected['components']:  # 'checks' depend on the number of slots
    assert results[0]['passes'][name] == expected['passes'][name]
  np.testing.assert_allclose(results[0]['x'], expected['x'], rtol=0, atol=1e-12)
  assert any(expected['robust']) and not all(expected['robust']) and not all(expected['clean'])
  assert sum(expected['audited']) == audit and 'none fell' not in expected['audit']
  # Other warnings may differ, because each process sees only its share of the examples.
  assert sum('probabilities' in line for line in expected['warnings']) == 1
  assert sum('probabilities' in line for line in results[0]['warnings']) == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ['state.npz.0-of-2', 'state.npz.1-of-2']


@pytest.mark.parametrize('audit', [0, pytest.param(4, marks=pytest.mark.long)])
def test_failure_of_one_process_ends_the_other(audit):
  (first, _, message), (second, _, cause) = in_two_processes(_ONE_FAILS, audit)
  assert first != 0 and 'OtherProcessFailed: processes [1] of 2 failed' in message
  assert second != 0 and 'OSError: the disk is full' in cause


def test_one_process_gives_the_result_and_warnings_of_the_driver():
  expected = of_one_process(0)
  with jax.enable_x64(True):
    alone = evaluate(multihost.autoattack)
  assert alone['seconds'].keys() == expected['seconds'].keys()
  assert alone | {'seconds': None} == expected | {'seconds': None} and expected['warnings']


@pytest.mark.parametrize('wrong, message', [
    (dict(epsilon=np.full(2, .1)), r'epsilon has shape \(2,\)'),
    (dict(epsilon=.1, index=np.array([0, 0, 1, 1])), 'index has 0 more than once'),
    (dict(epsilon=.1, y=np.zeros(5, int)), r'y has shape \(5,\)'),
    (dict(epsilon=.1, state_path=3), 'state_path = 3: use the path of a file'),
    (dict(epsilon=.1, x=np.zeros((1, 2), np.float32)), '1 examples for 2 processes')])
def test_arguments_are_checked_before_they_are_divided(wrong, message, monkeypatch):
  # One share of each of the first two would be valid.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  arguments = dict(x=np.zeros((4, 2), np.float32), y=np.zeros(4, int)) | wrong
  x, y = arguments.pop('x'), arguments.pop('y')
  with pytest.raises(ValueError, match=message):
    multihost.autoattack(lambda x: x, x, y, jax.random.key(0), **arguments)

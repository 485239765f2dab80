"""AutoAttack over several processes gives what one process gives."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import processes
from tests.attacks import test_autoattack
from tests.attacks import test_devices

_ONE_OF_SEVERAL = '''
import json, sys
import jax
address, count, me, path = json.loads(sys.argv[1])
jax.config.update('jax_enable_x64', True)
jax.distributed.initialize(address, count, me)
from tests.attacks import test_processes
assert jax.process_count() == count
print(json.dumps(test_processes.found(test_processes.processes.autoattack, path)))
'''
N = 9  # which two do not divide


def found(attack, path=None):
  """What an attack of the small network finds, in float64."""
  logits_fn, x, y = test_devices.problem('float64', N)
  y = np.where(np.arange(N) == 4, 1 - y.clip(0, 1), y)  # one that is wrong from the start
  told = []
  result = attack(
      logits_fn, x, y, test_autoattack.KEY, epsilon=np.linspace(.02, .08, N), batch_size=4,
      attacks=('apgd-ce', 'square'), warn=told.append, state_path=path, **test_autoattack.QUICK)
  return {'x': np.asarray(result.x).tolist(), 'robust': result.robust.tolist(),
          'clean': result.clean.tolist(),
          'components': {name: stands.tolist() for name, stands in result.components.items()},
          'warnings': list(result.warnings), 'seconds': result.seconds}


def test_two_processes_find_what_one_finds(tmp_path):
  with jax.enable_x64(True):
    expected = found(attacks.autoattack)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)}
  both = [subprocess.Popen(
      [sys.executable, '-c', _ONE_OF_SEVERAL,
       json.dumps([address, 2, me, str(tmp_path / 'state.npz')])],
      text=True, stdout=subprocess.PIPE, env=environment) for me in range(2)]
  answers = [json.loads(one.communicate(timeout=300)[0].splitlines()[-1]) for one in both]
  assert answers[0] == answers[1]
  for name in ('robust', 'clean', 'components'):
    assert answers[0][name] == expected[name]
  np.testing.assert_allclose(answers[0]['x'], expected['x'], rtol=0, atol=1e-12)
  assert any(expected['robust']) and not all(expected['robust']) and not all(expected['clean'])
  assert sorted(p.name for p in tmp_path.iterdir()) == ['state.npz.0-of-2', 'state.npz.1-of-2']


def test_alone_it_is_the_driver_itself_with_its_warnings():
  expected = found(attacks.autoattack)
  alone = found(processes.autoattack)
  assert alone.pop('seconds').keys() == expected.pop('seconds').keys()
  assert alone == expected


def test_too_few_examples_are_refused(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  with pytest.raises(ValueError, match='2 examples for 3 processes'):
    processes.autoattack(lambda x: x, np.zeros((2, 2), np.float32), np.zeros(2, int),
                         jax.random.key(0), epsilon=.1)

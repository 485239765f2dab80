"""AutoAttack over several processes gives what one process gives."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks.autoattack import multihost
from tests.fixtures import processes
from tests.fixtures.two_processes import found

_ONE_OF_SEVERAL = '''
import json, sys
import jax
address, count, me, late, path = json.loads(sys.argv[1])
jax.config.update('jax_enable_x64', True)
jax.distributed.initialize(address, count, me)
from at_jax.attacks.autoattack import multihost
from tests.fixtures import two_processes
assert jax.process_count() == count
print(json.dumps(two_processes.found(multihost.autoattack, path, late=me * late)))
'''


def of_two(script, *arguments):
  """(exit code, output, errors) of each of two processes."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  both = [subprocess.Popen(
      [sys.executable, '-c', script, json.dumps([address, 2, me, *arguments])], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=processes.environment()) for me in range(2)]
  try:
    told = [one.communicate(timeout=300) for one in both]
  finally:
    for one in both:
      one.kill()
  return [(one.returncode, *lines) for one, lines in zip(both, told, strict=True)]


# XLA's CPU gives processes 30 seconds to find each other; late is by how much the second one is.
@pytest.mark.parametrize('late', [0., pytest.param(45., marks=pytest.mark.long)])
def test_two_processes_find_what_one_finds(late, tmp_path):
  with jax.enable_x64(True):
    expected = found(attacks.autoattack)
  answers = []
  for code, out, err in of_two(_ONE_OF_SEVERAL, late, str(tmp_path / 'state.npz')):
    assert code == 0, err
    answers.append(json.loads(out.splitlines()[-1]))
  assert answers[0] == answers[1]
  for name in ('robust', 'clean', 'components'):
    assert answers[0][name] == expected[name]
  np.testing.assert_allclose(answers[0]['x'], expected['x'], rtol=0, atol=1e-12)
  assert any(expected['robust']) and not all(expected['robust']) and not all(expected['clean'])
  # A share of its examples may give a process another reason to doubt, or one the less.
  assert sum('probabilities' in line for line in expected['warnings']) == 1
  assert sum('probabilities' in line for line in answers[0]['warnings']) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ['state.npz.0-of-2', 'state.npz.1-of-2']


_ONE_FAILS = '''
import json, sys
import jax, numpy as np
address, count, me = json.loads(sys.argv[1])
jax.distributed.initialize(address, count, me)
from at_jax.attacks.autoattack import multihost

def model(x):
  if me == 1:
    raise OSError('the disk is full')
  return x

multihost.autoattack(model, np.eye(4, dtype=np.float32), np.arange(4), jax.random.key(0), epsilon=.1,
                     attacks=('apgd-ce',), num_steps=2)
'''


def test_where_one_fails_the_other_does_not_wait_for_it():
  (first, _, said), (second, _, cause) = of_two(_ONE_FAILS)
  assert first != 0 and 'RuntimeError: of 2 processes, [1] failed' in said
  assert second != 0 and 'OSError: the disk is full' in cause


def test_alone_it_is_the_driver_itself_with_its_warnings():
  expected, alone = found(attacks.autoattack), found(multihost.autoattack)
  assert alone.pop('seconds').keys() == expected.pop('seconds').keys()
  assert alone == expected and expected['warnings']


@pytest.mark.parametrize('wrong, said', [
    (dict(epsilon=np.full(2, .1)), r'epsilon has shape \(2,\)'),
    (dict(epsilon=.1, index=np.array([0, 0, 1, 1])), 'index has 0 more than once'),
    (dict(epsilon=.1, y=np.zeros(5, int)), r'y has shape \(5,\)'),
    (dict(epsilon=.1, x=np.zeros((1, 2), np.float32)), '1 examples for 2 processes')])
def test_arguments_are_looked_at_as_a_whole(wrong, said, monkeypatch):
  # A share of each of the first two would be in order.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  given = dict(x=np.zeros((4, 2), np.float32), y=np.zeros(4, int)) | wrong
  x, y = given.pop('x'), given.pop('y')
  with pytest.raises(ValueError, match=said):
    multihost.autoattack(lambda x: x, x, y, jax.random.key(0), **given)

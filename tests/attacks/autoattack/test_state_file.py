"""The state file: killed evaluations resume to the same verdicts, and files that do not match are refused."""

import signal
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks.autoattack import batching, state_file
from tests.fixtures import processes, small_models
from tests.fixtures.killed_run import ATTACKS, evaluate
from tests.fixtures.small_models import KEY, QUICK

# The process has no chance to clean up when it is killed.
_EVALUATION = '''
import sys
from tests.fixtures import killed_run
killed_run.run(sys.argv[1])
'''
RECORD = state_file.new_record(np.ones(3, bool), np.zeros((3, 2)), np.zeros((3, 2)), 1, 1)


class Killed(Exception):
  """Ends an evaluation at a moment of the test's choosing."""


def kill(progress):
  raise Killed


def start(folder):
  return subprocess.Popen([sys.executable, '-c', _EVALUATION, folder], text=True,
                          stdout=subprocess.PIPE, env=processes.environment())


@pytest.mark.long  # six processes, each of which compiles
def test_process_killed_five_times_resumes_to_same_verdicts(tmp_path):
  seen, last = [], ''
  for _ in range(5):
    process = start(tmp_path)
    for _ in range(14):
      last = process.stdout.readline()
      assert last, 'the evaluation ended before it was killed five times'
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    seen.append(ATTACKS.index(last.split()[0]))
  # If it had not resumed, the later kills would all be in the first attack.
  assert seen == sorted(seen) and len(set(seen)) >= 2, seen
  final = start(tmp_path)
  final.communicate()
  assert final.returncode == 0
  whole = evaluate()
  with np.load(tmp_path / 'result.npz') as result:
    np.testing.assert_array_equal(result['x'], whole.x)
    for name, robust in whole.components.items():
      np.testing.assert_array_equal(result[name], robust)
  assert 0 < whole.robust.sum() < 20


def test_evaluation_killed_many_times_resumes_to_same_verdicts(tmp_path):
  logits_fn, x, y = small_models.network(n=20)
  run = lambda **options: attacks.autoattack(
      logits_fn, x, y, KEY, epsilon=.05, batch_size=5, attacks=('apgd-ce', 'fab-t', 'square'),
      **QUICK, **options)
  whole = run()
  kills = 0
  while True:
    calls = 0

    def kill_at_the_eleventh_call(progress):
      nonlocal calls
      del progress
      calls += 1
      if calls == 11:
        raise Killed

    try:
      # Every other time the state is written only because `progress` raises.
      result = run(state_path=tmp_path / 'state.npz', save_every=(0., 1e9)[kills % 2],
                   progress=kill_at_the_eleventh_call)
      break
    except Killed:
      kills += 1
  assert kills >= 5
  np.testing.assert_array_equal(result.robust, whole.robust)
  np.testing.assert_array_equal(result.x, whole.x)
  for name, robust in result.components.items():
    np.testing.assert_array_equal(robust, whole.components[name])
  assert result.passes == whole.passes
  same = dict(epsilon=.05, batch_size=5, attacks=('apgd-ce', 'fab-t', 'square'), **QUICK)
  for other, named in ((dict(epsilon=.06), 'epsilon'), (dict(search_fn=logits_fn), 'search_fn'),
                       (dict(batch_size=6, num_steps=9), 'batch_size, num_steps')):
    with pytest.raises(ValueError, match=rf'another evaluation \(different {named}\): remove it'):
      attacks.autoattack(logits_fn, x, y, KEY, state_path=tmp_path / 'state.npz', **same | other)


def test_state_of_a_model_with_other_logits_is_refused(tmp_path):
  # Both models classify the same examples correctly, and have two classes, so the same targets.
  x, y = jnp.array([[.6, .4], [.3, .7], [.8, .1]]), jnp.array([0, 1, 0])

  def run(scale, shift=0.):
    return attacks.autoattack(
        lambda x: x * scale + shift, x, y, KEY, epsilon=.15, attacks=('apgd-ce',),
        state_path=tmp_path / 'state.npz', **QUICK)

  robust = run(jnp.array([1., 1.])).robust
  np.testing.assert_array_equal(robust, [False, True, True])  # half the lead is .1, .2, .35
  with pytest.raises(state_file.StateMismatch, match='of another model: remove it'):
    run(jnp.array([1., 1.2]))
  # Rounding, and an offset that all logits share, are accepted.
  np.testing.assert_array_equal(run(jnp.array([1., 1.001]), 5.).robust, robust)


def test_state_of_other_weights_is_refused(tmp_path):
  x, y = jnp.array([[.6, .4], [.3, .7], [.8, .1]]), jnp.array([0, 1, 0])
  run = lambda scale: attacks.autoattack(
      jax.tree_util.Partial(lambda scale, x: x * scale, scale), x, y, KEY, epsilon=.15,
      attacks=('apgd-ce',), state_path=tmp_path / 'state.npz', **QUICK)
  robust = run(jnp.array([1., 1.])).robust
  np.testing.assert_array_equal(run(jnp.array([1., 1.])).robust, robust)
  with pytest.raises(state_file.StateMismatch, match=r'another evaluation \(different weights\): remove it'):
    run(jnp.array([1., 1.001]))


def test_state_of_another_masked_model_is_refused(tmp_path):
  x = jnp.array([[.6, .4, 0.], [.8, .1, .2]])
  run = lambda scale: attacks.autoattack(
      lambda x: (x * scale).at[:, 2].set(-jnp.inf), x, jnp.zeros(2, int), KEY, epsilon=.15,
      attacks=('apgd-ce',), state_path=tmp_path / 'state.npz', **QUICK)
  run(1.)
  with pytest.raises(state_file.StateMismatch, match='of another model: remove it'):
    run(.05)


def test_arrays_that_a_model_names_are_in_its_fingerprint():
  class Model:

    def __init__(self, weight):
      self.fingerprint_arrays = lambda: [np.float32([weight])]

  one = np.ones(1)
  work = batching.Work(one, one, one, one, KEY, one, (0., 1.))
  found = lambda *weights: state_file.fingerprint(work, one, [Model(w) for w in weights], {})['weights']
  assert found(1., 2.) == found(1., 2.)
  assert len({found(1., 2.), found(1., 3.), found(2., 1.)}) == 3


def test_state_of_an_older_format_is_refused(tmp_path):
  state_file.save(tmp_path / 'state.npz', {'mark': np.array('1f')})
  with pytest.raises(state_file.StateMismatch, match='another version of the attack'):
    state_file.read(tmp_path / 'state.npz', {}, RECORD, None, ())


@pytest.mark.parametrize('change', ['one leaf missing', 'one leaf of another shape', 'one row missing'])
def test_state_of_another_layout_is_refused_in_one_line(tmp_path, change):
  logits_fn, x, y = small_models.network()
  path = tmp_path / 'state.npz'
  run = lambda **options: attacks.autoattack(
      logits_fn, x, y, KEY, epsilon=.1, state_path=path, save_every=0., attacks=('square',),
      num_queries=25, **options)
  with pytest.raises(Killed):
    run(progress=kill)
  arrays = state_file.load(path)
  if change == 'one leaf missing':
    del arrays['leaf3']
  elif change == 'one row missing':
    arrays['diagnostics'] = arrays['diagnostics'][:, :2]
  else:
    arrays['leaf3'] = arrays['leaf3'][:, None]
  state_file.save(path, arrays)
  with pytest.raises(state_file.StateMismatch, match='another version.*remove it') as caught:
    run()
  assert '\n' not in str(caught.value)


def test_resumed_evaluation_keeps_its_first_targets(tmp_path, monkeypatch):
  # On another device, two equally likely classes may be rounded into the other order.
  x, seen = jnp.full((2, 3), .5), []
  run_batched = batching.run_batched
  monkeypatch.setattr(batching, 'run_batched', lambda search_fn, verify_fn, work, *rest, **options: (
      seen.append(np.asarray(work.targets)), run_batched(search_fn, verify_fn, work, *rest, **options))[1])

  def run(lead, progress):
    return attacks.autoattack(
        lambda x: x + jnp.array([.2, 0., lead]), x, jnp.zeros(2, int), KEY, epsilon=.05,
        attacks=('apgd-t', 'fab-t'), state_path=tmp_path / 'state.npz', save_every=0.,
        progress=progress, **QUICK)

  with pytest.raises(Killed):
    run(1e-6, kill)
  assert run(-1e-6, None).robust.all()
  assert len(seen) == 3
  for targets in seen:
    np.testing.assert_array_equal(targets, [[2, 1], [2, 1]])


def test_damaged_file_is_refused(tmp_path):
  path = tmp_path / 'state.npz'
  state_file.save(path, {'x': np.arange(1000)})
  content = bytearray(path.read_bytes())
  content[2000] ^= 1
  short = content[:200]
  path.write_bytes(content)
  with pytest.raises(zipfile.BadZipFile, match='state.npz is damaged: .*CRC'):
    state_file.load(path)
  for content in (b'garbage' * 9, b'', short):
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match='state.npz is damaged'):
      state_file.load(path)
  state_file.save(path, {'fooled': np.arange(3)})
  with pytest.raises(zipfile.BadZipFile, match="damaged: 'fingerprint' is missing"):
    state_file.read(path, {}, RECORD, None, ())
  assert state_file.load(tmp_path / 'other.npz') is None

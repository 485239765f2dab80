"""Several processes train as one: the same steps, kills, signals, evaluation, other numbers of devices."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from at_jax import devices
from at_jax.training import interrupts, lock
from tests.fixtures import processes, training_steps
from tests.fixtures.command_errors import QUICK
from tests.fixtures.run_progress import digests, logged_so_far, steps_logged, wait_for_step

_STEPS = '''
import json, sys
import jax, numpy as np
address, count, process, folder = json.loads(sys.argv[1])
jax.config.update('jax_enable_x64', True)
jax.distributed.initialize(address, count, process)
from tests.fixtures import training_steps
assert (jax.device_count(), jax.local_device_count()) == (4, 4 // count)
found = training_steps.run(jax.numpy.float64, 20, 'pmap')
np.savez(f'{folder}/{process}.npz', *jax.tree.leaves(found))
'''
# Process 1 is late for the first collective of all devices after the connection.
_LATE = '''
import json, sys, time
import jax, numpy as np
from at_jax import devices
address, process, late = json.loads(sys.argv[1])
devices.initialize(devices.Cluster(address, 2, process))
time.sleep(late * process)
total = jax.pmap(lambda n: jax.lax.psum(n, devices.AXIS), devices.AXIS)(np.arange(2.) + 2 * process)
assert np.asarray(total).tolist() == [6., 6.]
assert devices.from_first(lambda: process) == 0 and devices.largest(process) == 1
assert devices.gather(devices.share(np.arange(4))).tolist() == [0, 1, 2, 3]
'''
# Sends a signal to process 1 alone while AutoAttack runs.
_SIGNALLED = '''
import signal, sys
import jax
from at_jax import main
from at_jax.evaluation import autoattack_run
shown = autoattack_run._shown

def shown_and_signalled(title, progress):
  show, close = shown(title, progress)

  def show_and_signal(now):
    if jax.process_index() == 1:
      signal.raise_signal(signal.SIGTERM)
    show(now)

  return show_and_signal, close

autoattack_run._shown = shown_and_signalled
sys.exit(main.main(sys.argv[1:]))
'''
# A process whose last argument is not 'reads' cannot read a checkpoint.
_BLIND = '''
import sys
from orbax.checkpoint import v1 as ocp
from at_jax import main

def fail(*_, **__):
  raise OSError('stale file handle')

if sys.argv[-1] != 'reads':
  ocp.load_checkpointables = fail
sys.exit(main.main(sys.argv[1:-1]))
'''
# 28 steps in two phases of a small network, whose batch divides over 1, 2, 4 and 8 devices. Some of the test
# examples are robust at this radius.
COMMAND = (QUICK, '--config.batch_size=96', '--config.checkpoint.every_steps=3', '--config.log_every_steps=1',
           '--config.model.features=()', '--config.model.hidden=(64,)', '--config.model.batch_norm=False',
           '--config.attack.epsilon_255=16.', '--config.attack.step_size_255=16.',
           '--config.optimizer.learning_rate=.1', '--config.evaluate.num_examples=48',
           "--config.evaluate.attacks=('pgd1', 'apgd-ce')")
LAST = 28


def start(workdir, *arguments, program=('-m', 'at_jax.main')):
  """Starts the two processes of a run, of two devices each."""
  return start_with(workdir, arguments, arguments, program=program)


def start_with(workdir, *arguments, program=('-m', 'at_jax.main')):
  """Starts two processes, each with arguments of its own."""
  return processes.start_together(2, lambda address, index: [
      sys.executable, *program, *COMMAND, f'--workdir={workdir}', f'--distributed={address},2,{index}',
      *arguments[index]], num_devices=2)


def alone(workdir, *arguments, num_devices=1):
  """Runs the command in one process."""
  done = subprocess.run(
      [sys.executable, '-m', 'at_jax.main', *COMMAND, f'--workdir={workdir}', *arguments], text=True,
      env=processes.environment(num_devices), capture_output=True)
  assert done.returncode == 0, done.stderr


def test_shares_of_processes_are_in_the_order_of_devices(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  shares = []
  for process in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    shares.append(devices.share({'x': np.arange(12).reshape(6, 2)})['x'])
  assert np.concatenate(shares).tolist() == np.arange(12).reshape(6, 2).tolist()
  assert [len(share) for share in shares] == [2, 2, 2]


def test_one_process_agrees_with_itself():
  received = []
  assert interrupts.agree(received) == [] and interrupts.agree([signal.SIGTERM]) == [signal.SIGTERM]


def test_a_signal_during_the_agreement_waits_for_the_next(monkeypatch):
  received = []

  def largest(number):  # Python calls the handler of a signal once the collective has ended
    if not received:
      received.append(signal.SIGTERM)
    return number

  monkeypatch.setattr(devices, 'largest', largest)
  assert interrupts.agree(received) == []  # as in the other processes
  assert interrupts.agree(received) == [signal.SIGTERM]


@functools.cache
def steps_of_one_device():
  with jax.enable_x64(True):
    return jax.tree.leaves(training_steps.run(jax.numpy.float64, 20, 'one'))


@pytest.mark.long
@pytest.mark.parametrize('count', [2, 4])
def test_processes_take_the_steps_of_one_device(count, tmp_path):
  # Float64, because sign gradients amplify rounding from step to step.
  for code, _, err in processes.finish(processes.start_together(count, lambda address, process: [
      sys.executable, '-c', _STEPS, json.dumps([address, count, process, str(tmp_path)])], 4 // count)):
    assert code == 0, err
  found = [list(np.load(tmp_path / f'{process}.npz').values()) for process in range(count)]
  for leaf, *others in zip(steps_of_one_device(), *found, strict=True):
    np.testing.assert_allclose(others[0], leaf, rtol=0, atol=1e-10)
    for other in others[1:]:
      np.testing.assert_array_equal(other, others[0])


@pytest.mark.long
def test_a_process_may_be_late_for_the_first_step():
  # Compiling takes different times, and XLA's CPU backend gives 30 seconds to connect.
  for code, _, err in processes.finish(processes.start_together(2, lambda address, process: [
      sys.executable, '-c', _LATE, json.dumps([address, process, 40])], 2)):
    assert code == 0, err


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run of two processes that nothing stopped."""
  workdir = tmp_path_factory.mktemp('processes') / 'whole'
  (code, out, err), (other_code, other_out, other_err) = processes.finish(start(workdir))
  assert (code, other_code) == (0, 0), err + other_err
  printed, other_printed = ([line for line in each.splitlines() if not line.startswith('[Gloo]')]
                            for each in (out, other_out))
  assert printed[0].startswith('digits, 48 test examples') and other_printed == []
  assert 'training' not in other_err and 'warning' not in other_err
  return workdir


@pytest.mark.long
def test_process_0_writes_everything_once(whole):
  assert sorted(path.name for path in whole.iterdir()) == [
      'checkpoints', 'config.json', 'metrics.jsonl', 'results.json', 'tensorboard', 'verdicts.npz']
  assert len(list((whole / 'tensorboard').iterdir())) == 1
  assert steps_logged(whole) == list(range(1, LAST + 1))
  assert json.loads((whole / 'results.json').read_text())['device'].startswith('4 × cpu')


def unevaluated(whole, workdir):
  shutil.copytree(whole, workdir)
  (workdir / 'results.json').unlink()
  (workdir / 'verdicts.npz').unlink()


def assert_same_verdicts(*folders):
  before, after = (np.load(folder / 'verdicts.npz') for folder in folders)
  assert set(before) == set(after)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.long
def test_evaluation_of_two_processes_is_that_of_one(whole, tmp_path):
  workdir = tmp_path / 'run'
  unevaluated(whole, workdir)
  alone(workdir, '--mode=evaluate')
  assert_same_verdicts(whole, workdir)
  results = [json.loads((folder / 'results.json').read_text()) for folder in (whole, workdir)]
  assert results[0]['components'] == results[1]['components']
  assert 0 < results[0]['robust']['apgd-ce'] < results[0]['clean']


@pytest.mark.long
def test_signal_to_one_process_in_autoattack_stops_all(whole, tmp_path):
  workdir = tmp_path / 'run'
  unevaluated(whole, workdir)
  (code, _, err), (other_code, _, other_err) = processes.finish(
      start(workdir, '--mode=evaluate', program=('-c', _SIGNALLED)))
  assert (code, other_code) == (0, 0), err + other_err
  assert 'SIGTERM: stopped in the evaluation (last checkpoint, apgd-ce, runs of apgd-ce)' in err
  assert [path.name[-6:] for path in sorted((workdir / 'evaluation').iterdir())] == ['0-of-2', '1-of-2']
  for code, _, err in processes.finish(start(workdir, '--mode=evaluate')):
    assert code == 0, err
  assert not (workdir / 'evaluation').exists()
  assert_same_verdicts(whole, workdir)


@pytest.mark.long
def test_killed_process_ends_the_run_which_resumes_to_the_bit(whole, tmp_path):
  workdir = tmp_path / 'run'
  both = start(workdir)
  wait_for_step(workdir, 17, both[0])  # in the second epoch of 14 steps, between two checkpoints
  both[1].kill()
  (code, _, _), _ = processes.finish(both)
  assert code != 0 and len(logged_so_far(workdir)) < LAST
  for code, _, err in processes.finish(start(workdir)):
    assert code == 0, err
  assert digests(workdir, LAST) == digests(whole, LAST)
  assert steps_logged(workdir) == list(range(1, LAST + 1))


@pytest.mark.long
def test_a_checkpoint_that_one_process_cannot_read_is_not_set_aside(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  before = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
  begun = time.monotonic()
  for code, _, err in processes.finish(start_with(workdir, ['reads'], ['fails'], program=('-c', _BLIND))):
    assert code == 2 and f'a process cannot read checkpoint {LAST}, which others can' in err, err
  assert time.monotonic() - begun < 100  # orbax alone would wait five minutes at a barrier
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == before


@pytest.mark.long
@pytest.mark.parametrize('arguments, line', [
    (['--config.seed=1'], "--distributed = 'process .': the configurations of the processes differ \\(s"),
    (['--config.dataset.data_dir=/x', '--workdir=other'],
     'workdir = .*: a process does not see what process 0 writes there')])
def test_processes_of_different_runs_end_with_one_line(tmp_path, monkeypatch, arguments, line):
  monkeypatch.chdir(tmp_path)
  for code, _, err in processes.finish(start_with(tmp_path / 'run', [], arguments)):
    found, = [each for each in err.splitlines() if each.startswith('at_jax: ')]
    assert code == 2 and re.search(line, found) and 'Traceback' not in err


@pytest.mark.long
def test_signal_to_one_process_stops_all_and_others_go_on(tmp_path):
  workdir = tmp_path / 'run'
  both = start(workdir)
  wait_for_step(workdir, 5, both[0])
  both[1].send_signal(signal.SIGTERM)
  for code, _, err in processes.finish(both):
    assert code == 0, err
  stopped = steps_logged(workdir)[-1]
  assert stopped < LAST and (workdir / 'checkpoints' / f'{stopped:08d}').is_dir()
  assert not (workdir / 'results.json').exists() and not (workdir / lock.NAME).exists()
  for num_devices in (1, 2, 8):
    copy = tmp_path / str(num_devices)
    shutil.copytree(workdir, copy)
    alone(copy, num_devices=num_devices)
    assert steps_logged(copy) == list(range(1, LAST + 1))
    assert (copy / 'results.json').exists()


@pytest.mark.long
def test_folder_in_use_is_one_line_in_each_process(tmp_path):
  with lock.hold(tmp_path):
    for code, _, err in processes.finish(start(tmp_path)):
      line, = [line for line in err.splitlines() if line.startswith('at_jax: ')]
      assert code == 2 and 'workdir = ' in line and 'uses it' in line and 'Traceback' not in err

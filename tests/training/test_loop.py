"""The training loop: resume with the same bits, signals, kills, NaN, a full disk, and results."""

import asyncio
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest

from at_jax import main
from at_jax.evaluation import robustness
from at_jax.training import lock, records, restore, setup
from tests.fixtures import command_errors
from tests.fixtures.run_progress import digests, logged_so_far, steps_logged, wait_for_step

ROOT = pathlib.Path(__file__).parents[2]
QUICK = f'--config={ROOT}/configs/quickstart.py:smoke'
# 26 steps in two phases of a tiny network, with a checkpoint every third step.
LONGER = (QUICK, '--config.batch_size=100', '--config.checkpoint.every_steps=3',
          '--config.log_every_steps=1')


def start(workdir, *arguments):
  return subprocess.Popen([sys.executable, '-m', 'at_jax.main', *LONGER, f'--workdir={workdir}',
                           *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                          stdout=subprocess.DEVNULL)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a whole run, in a thread with a running event loop, as in a notebook, and in ASCII."""
  workdir, codes = tmp_path_factory.mktemp('finished') / 'run', []
  files = {name: io.TextIOWrapper(io.BytesIO(), encoding='ascii') for name in ('stdout', 'stderr')}

  async def cell():
    codes.append(main.main([QUICK, f'--workdir={workdir}', '--config.seed=3']))

  with pytest.MonkeyPatch.context() as patch:
    for name, file in files.items():
      patch.setattr(sys, name, file)
    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
  assert codes == [0]
  files['stdout'].seek(0)
  assert 'within L\\u221e 38.25/255' in files['stdout'].read()
  return workdir


def test_the_folder_of_another_run_is_refused(finished, capsys):
  assert main.main([QUICK, f'--workdir={finished}', '--config.seed=1']) == 2
  err = capsys.readouterr().err
  assert 'config.seed was 3 and is 1' in err and 'Traceback' not in err


@pytest.mark.long
def test_more_epochs_end_with_the_same_bits(finished, tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  fewer = ['--config.seed=3', '--config.dummy.start_epoch=0']
  for workdir, epochs in ((whole, 2), (parts, 1), (parts, 2)):
    assert main.main([QUICK, f'--workdir={workdir}', f'--config.epochs={epochs}', *fewer]) == 0
  assert 'resuming after step 1' in capsys.readouterr().err
  assert digests(parts, 2) == digests(whole, 2) != digests(finished, 2)
  assert steps_logged(parts) == [1, 2]
  # The results after one epoch are kept, and those after two have the usual name.
  epochs = [json.loads((parts / name).read_text())['config']['epochs']
            for name in ('results-1.json', 'results.json')]
  assert epochs == [1, 2]
  assert (parts / 'verdicts-1.npz').exists()


def test_finished_run_leaves_no_lock(finished):
  assert sorted(path.name for path in finished.iterdir()) == [
      'checkpoints', 'config.json', 'metrics.jsonl', 'results.json', 'tensorboard', 'verdicts.npz']


def test_signals_save_and_resume_to_the_same_bits(finished, tmp_path, monkeypatch, capsys):
  # SIGTERM in training and Ctrl-C in the evaluation, against the run that nothing stopped.
  workdir, write, evaluate = tmp_path / 'run', records.Metrics.write, robustness.evaluate
  command = [QUICK, f'--workdir={workdir}', '--config.seed=3']

  def signal_in_training(metrics, step, **numbers):
    write(metrics, step, **numbers)
    signal.raise_signal(signal.SIGTERM)

  def signal_in_evaluation(*arguments, **options):
    if 'state_dir' in options:  # not the validation
      signal.raise_signal(signal.SIGINT)
    return evaluate(*arguments, **options)

  monkeypatch.setattr(records.Metrics, 'write', signal_in_training)
  assert main.main(command) == 0
  last = capsys.readouterr().err.splitlines()[-1]
  assert last == 'SIGTERM: stopped after step 1 of 2: the same command resumes there'
  monkeypatch.setattr(records.Metrics, 'write', write)
  monkeypatch.setattr(robustness, 'evaluate', signal_in_evaluation)
  assert main.main(command) == 130
  last = capsys.readouterr().err.splitlines()[-1]
  assert last == 'SIGINT: stopped in the evaluation (last checkpoint, clean): the same command resumes there'
  assert not (workdir / 'results.json').exists() and not (workdir / lock.NAME).exists()
  monkeypatch.setattr(robustness, 'evaluate', evaluate)
  assert main.main(command) == 0
  assert digests(workdir, 2) == digests(finished, 2)
  assert steps_logged(workdir) == steps_logged(finished) == [1, 2]
  results = [json.loads((each / 'results.json').read_text()) for each in (workdir, finished)]
  same = ('clean', 'robust', 'released', 'worst_case', 'last')
  assert [results[0][name] for name in same] == [results[1][name] for name in same]


def test_folder_in_use_is_one_line(tmp_path, capsys):
  for mode in ('train', 'evaluate'):
    (tmp_path / 'checkpoints' / '00000001').mkdir(parents=True, exist_ok=True)
    with lock.hold(tmp_path):
      line = command_errors.message(capsys, QUICK, f'--workdir={tmp_path}', f'--mode={mode}')
    assert f'process {os.getpid()} on ' in line and 'free some space' not in line


def test_ctrl_c_before_training_is_one_line(tmp_path, monkeypatch, capsys):
  def interrupted(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(setup, 'build', interrupted)
  assert main.main([QUICK, f'--workdir={tmp_path}/run']) == 130
  assert capsys.readouterr().err.startswith('at_jax: SIGINT: stopped at once')
  assert not list(tmp_path.iterdir())


def test_incomplete_lines_of_metrics_are_dropped(tmp_path):
  # What a kill or a power cut leaves: half a line, one that ends with a brace, zeros, bytes that are no text.
  path = tmp_path / 'metrics.jsonl'
  whole = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
  for rest in (b'{"step": 3, "lo', b'{"step": 2, "x": {"y": 1}', b'\0' * 9, b'\xff{}', b'{}', b'[1]', b'3\n'):
    path.write_bytes(whole + rest)
    records.Metrics(tmp_path, step=2).close()
    assert path.read_bytes() == whole
  records.Metrics(tmp_path, step=1).close()
  assert path.read_bytes() == whole[:whole.index(b'\n') + 1]


def test_evaluate_mode_repeats_the_results(finished, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  before = json.loads((workdir / 'results.json').read_text())
  (workdir / 'results.json').unlink()
  assert main.main([QUICK, f'--workdir={workdir}', '--config.seed=3', '--mode=evaluate']) == 0
  after = json.loads((workdir / 'results.json').read_text())
  for field in ('clean', 'robust', 'released', 'worst_case', 'n', 'step', 'last'):
    assert before[field] == after[field]
  assert set(after['robust']) == {'pgd1'} == set(after['released'])


def test_results_hold_config_versions_and_command(finished):
  results = json.loads((finished / 'results.json').read_text())
  assert {'config', 'dataset', 'n', 'seed', 'clean', 'robust', 'released', 'worst_case', 'device',
          'versions', 'command', 'seconds', 'last'} <= results.keys()
  assert (results['dataset'], results['n'], results['seed']) == ('digits', 16, 3)
  assert results['command'].startswith('python -m at_jax.main --config=')
  assert '--config.seed=3' in results['command']
  assert results['config']['seed'] == 3 and 'jax' in results['versions']
  least = min(results['clean'], *results['robust'].values(), *results['released'].values())
  assert 0 <= results['worst_case'] <= least <= 1
  assert any((finished / 'tensorboard').iterdir())


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT],
                         ids=lambda number: number.name)
def test_signal_to_the_command_saves(tmp_path, number):
  process = start(tmp_path, '--config.epochs=400')
  wait_for_step(tmp_path, 2, process)
  process.send_signal(number)
  _, err = process.communicate(timeout=240)
  assert process.returncode == (130 if number == signal.SIGINT else 0), err
  last = err.splitlines()[-1]
  assert last.startswith(f'{number.name}: stopped after step') and 'the same command resumes there' in last
  assert 'Traceback' not in err
  stopped = steps_logged(tmp_path)[-1]
  assert (tmp_path / 'checkpoints' / f'{stopped:08d}').is_dir()  # the step at which it stopped
  assert not (tmp_path / 'results.json').exists()


def test_a_nan_loss_stops_the_run(tmp_path, capsys):
  # A learning rate this large makes the second step's logits infinite.
  code = main.main([*LONGER, f'--workdir={tmp_path}', '--config.optimizer.learning_rate=1e30',
                    '--config.checkpoint.every_steps=1'])
  err = capsys.readouterr().err.strip().splitlines()
  assert code == 2
  assert err[-1].startswith('at_jax: loss = nan: not a number at step')
  assert 'learning_rate' in err[-1] and not (tmp_path / 'results.json').exists()
  for folder in (tmp_path / 'checkpoints').iterdir():  # the checkpoints that remain are undamaged
    assert folder.name.isdecimal()


def test_a_full_disk_is_one_line(tmp_path):
  # A limit on the size of files makes writing fail, as on a full disk.
  limited = ('import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2); '
             'from at_jax import main; sys.exit(main.main(sys.argv[1:]))')
  found = subprocess.run(
      [sys.executable, '-c', limited, *LONGER, f'--workdir={tmp_path}',
       '--config.model.hidden=(800,)'], cwd=ROOT, stderr=subprocess.PIPE, text=True)
  assert found.returncode == 2
  assert 'Traceback' not in found.stderr
  last = found.stderr.strip().splitlines()[-1]
  assert last.startswith('at_jax: workdir = ') and 'a checkpoint could not be written' in last


@pytest.mark.long
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
  whole, killed, last = tmp_path / 'whole', tmp_path / 'killed', 260
  longer = '--config.epochs=20', '--config.validate.every_epochs=2'
  process = start(whole, *longer)
  _, err = process.communicate()
  assert process.returncode == 0, err
  chance = random.Random(0)
  for _ in range(10):
    process = start(killed, *longer)
    before = len(logged_so_far(killed))
    # Sometimes before the first step, mostly while it trains and saves.
    wanted, deadline = before + chance.randint(0, 9), time.monotonic() + 120
    while len(logged_so_far(killed)) < wanted and time.monotonic() < deadline:
      time.sleep(.01)
    time.sleep(chance.random() * .2)
    assert process.poll() is None, 'it ended before it could be killed'
    process.kill()
    process.communicate()
  process = start(killed, *longer)
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert digests(killed, last) == digests(whole, last)
  assert steps_logged(killed) == list(range(1, last + 1))
  same = ('clean', 'robust', 'released', 'worst_case', 'last')
  results = [json.loads((d / 'results.json').read_text()) for d in (whole, killed)]
  assert [results[0][k] for k in same] == [results[1][k] for k in same]


@pytest.mark.long
def test_an_npz_file_trains_and_may_be_moved(tmp_path, monkeypatch, capsys):
  rng, workdir = np.random.default_rng(0), tmp_path / 'run'
  path, moved, other = (tmp_path / f'{name}.npz' for name in ('mine', 'moved', 'other'))
  arrays = dict(train_images=rng.integers(0, 256, (1400, 12, 10, 3), dtype=np.uint8),
                train_label=rng.integers(0, 10, 1400), label_names=np.array(list('abcdefghij')),
                test_images=rng.integers(0, 256, (20, 12, 10, 3), dtype=np.uint8),
                test_label=rng.integers(0, 10, 20))
  np.savez(path, **arrays)
  run = lambda path, *more: main.main(
      [QUICK, f'--config.dataset.name={path}', f'--workdir={workdir}', '--config.dummy.start_epoch=0', *more])
  assert run(path) == 0, capsys.readouterr().err
  before = json.loads((workdir / 'results.json').read_text())
  np.savez_compressed(moved, **arrays)
  path.unlink()
  np.savez(other, **arrays | {'test_label': (arrays['test_label'] + 1) % 10})
  assert run(moved, '--mode=evaluate') == 0, capsys.readouterr().err
  after = json.loads((workdir / 'results.json').read_text())
  assert [before[name] for name in ('clean', 'robust')] == [after[name] for name in ('clean', 'robust')]
  capsys.readouterr()
  for mode in ('train', 'evaluate'):
    assert run(other, f'--mode={mode}') == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('at_jax: config.dataset.name = ')
    assert 'not the data of the run in' in line and 'the file has another content: restore them' in line
  # Checkpoints of earlier versions have no digest.
  info = restore.stored_data_info(workdir)
  monkeypatch.setattr(restore, 'stored_data_info', lambda workdir: dict(list(info.items())[:2]))
  assert run(moved, '--mode=evaluate') == 2
  assert f"config.dataset.name was '{path}' and is '{moved}'" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize('loss, reason', [
    ('vanished', 'No such file or directory'), ('read-only', 'Permission denied')])
def test_a_folder_lost_in_training_is_one_line(loss, reason, monkeypatch, capsys):
  folder, write, user = pathlib.Path(tempfile.mkdtemp()), records.Metrics.write, os.geteuid()
  folder.chmod(0o755)
  workdir = folder / 'run'

  def lose(metrics, step, **numbers):
    write(metrics, step, **numbers)
    if loss == 'vanished':
      shutil.rmtree(workdir)
    else:
      workdir.chmod(0o555)
      if user == 0:  # root may write anywhere
        os.seteuid(65534)

  monkeypatch.setattr(records.Metrics, 'write', lose)
  try:
    assert main.main([QUICK, f'--workdir={workdir}']) == 2
  finally:
    os.seteuid(user)
  err = capsys.readouterr().err
  last = err.splitlines()[-1]
  assert last.startswith(f"at_jax: workdir = '{workdir}': ")
  assert reason in last and 'Traceback' not in err
  assert not workdir.exists() or not (workdir / 'results.json').exists()
  shutil.rmtree(folder)


@pytest.mark.long
def test_a_clock_that_is_set_back_changes_nothing(finished, tmp_path, monkeypatch):
  # By up to four months at each reading. Set forward while it waits, orbax sees a timeout.
  now, chance, back = time.time, random.Random(0), [0.]

  def earlier():
    back[0] += 10 ** chance.uniform(0, 7)
    return now() - back[0]

  monkeypatch.setattr(time, 'time', earlier)
  assert main.main([QUICK, f'--workdir={tmp_path}/run', '--config.seed=3']) == 0
  monkeypatch.undo()
  assert digests(tmp_path / 'run', 2) == digests(finished, 2)
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert all(0 <= line['seconds'] < 3600 for line in lines if 'seconds' in line)

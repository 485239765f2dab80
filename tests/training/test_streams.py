"""Training on a stream: order, shares, waits, resume inside an epoch, and the bits of a run on the device."""

import functools
import json
import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

from at_jax import devices
from at_jax.config import default as default_config
from at_jax.datasets import pipeline, streaming
from at_jax.training import setup, streams
from tests.fixtures import data_sets, imagenet, processes
from tests.fixtures.command_errors import ROOT
from tests.fixtures.run_progress import digests, steps_logged

KEY = jax.random.key(3)


def run(replays=1):
  """A run of 3 epochs of 5 minibatches of 4; two of 22 examples are left over."""
  c = default_config()
  c.epochs, c.batch_size, c.replays = 3, 4, replays
  c.loss = 'free_at' if replays > 1 else 'pgd_at'
  return types.SimpleNamespace(config=c, dataset=types.SimpleNamespace(train_size=22),
                               steps_per_epoch=5 * replays, keys={'order': KEY})


def steps(run, step):
  """(number of the minibatch, its examples) of each step from `step` on."""
  replays, found = setup.replays(run.config), []
  for part in streams.remaining(run, step):
    for number, index in enumerate(part.order):
      found += [(part.first + number, index.tolist())] * (replays - part.replayed * (number == 0))
  return found


@pytest.mark.parametrize('replays', [1, 3])
def test_any_step_resumes_at_the_same_examples(replays):
  # The order of an epoch is the one of data on the device, a function of the key and the epoch.
  whole, per_epoch = steps(run(replays), 0), 5 * replays
  for epoch in range(3):
    order = np.asarray(pipeline.epoch_order(KEY, epoch, 22))[:20].reshape(5, 4)
    expected = [(5 * epoch + i, order[i].tolist()) for i in range(5) for _ in range(replays)]
    assert whole[epoch * per_epoch:(epoch + 1) * per_epoch] == expected
  for step in range(3 * per_epoch + 1):
    assert steps(run(replays), step) == whole[step:]


@pytest.mark.parametrize('count', [2, 4])
def test_shares_of_processes_are_those_of_pmap_s_devices(count, monkeypatch):
  batches = np.arange(24).reshape(3, 8)
  monkeypatch.setattr(devices, '_count', lambda: count)
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  shares = []
  for index in range(count):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    shares.append(streams.share(batches))
    # `sharding` divides a step's order over the devices, and takes those of this process.
    by_device = devices.share(batches.reshape(3, 4, -1).swapaxes(0, 1))
    np.testing.assert_array_equal(shares[-1], by_device.swapaxes(0, 1).reshape(3, -1))
  np.testing.assert_array_equal(np.concatenate(shares, axis=1), batches)


class Slow:
  """A training split whose examples wait for a permission."""

  def __init__(self):
    self.allowed = threading.Event()

  def example(self, index, key, step):
    assert self.allowed.wait(60)
    return np.full((2, 2, 1), index, np.uint8), np.int32(step)


def test_only_the_time_without_data_is_a_wait(monkeypatch):
  split, order = Slow(), np.arange(12).reshape(3, 4)
  now, finished = [0.], []
  monkeypatch.setattr(streams.time, 'monotonic', lambda: now[0])

  def wait(pending):
    assert finished  # the step before; until then the devices were busy
    now[0] += 7
    split.allowed.set()
    pending[0].result(60)

  monkeypatch.setattr(streams.futures, 'wait', wait)
  monkeypatch.setattr(streams.jax, 'block_until_ready', finished.append)
  feed = streams.Feed(split, [streams.Part(order[:2], 8), streams.Part(order[2:], 10)], KEY, replays=2)
  taken = []
  for _ in range(6):
    (images, labels), waited = feed.take()
    assert images.shape == (1, 1, 4, 2, 2, 1)
    taken.append((images[0, 0, :, 0, 0, 0].tolist(), labels[0, 0].tolist(), waited))
    feed._next and feed._next.result(60)
    assert feed.prepare() == 0  # it was read before it was asked for
  feed.close()
  expected = [(row.tolist(), [8 + number] * 4) for number, row in enumerate(order) for _ in range(2)]
  assert [each[:2] for each in taken] == expected
  assert [each[2] for each in taken] == [7, 0, 0, 0, 0, 0]
  assert not any(thread.name.startswith('at_jax_feed') for thread in threading.enumerate())


_CONFIG = '''
import runpy

def get_config(arg=''):
  c = runpy.run_path({whole!r})['get_config'](arg)
  c.dataset.update(data_dir={folder!r}, validation_size=8, image_size=32)
  c.model.update(dtype='float32', width=4, stage_sizes=(1, 1))
  c.epochs, c.batch_size, c.optimizer.decay_epochs = 2, 8, (1,)
  c.attack.num_steps, c.log_every_steps = 2, 1
  c.validate.update(batch_size=8, num_steps=2)
  c.evaluate.update(attacks=('pgd2',), num_examples=8, batch_size=8, step_size_255=4.)
  return c
'''

# Dies after step 6 of 8, the second of an epoch of 4, when its checkpoint is written.
_KILLED = '''
import os, signal, sys
from at_jax import main
from at_jax.training import checkpoints
save = checkpoints.Checkpoints.save

def save_and_die(store, step, *arguments):
  save(store, step, *arguments)
  if step == 6:
    store.wait()
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints.Checkpoints.save = save_and_die
sys.exit(main.main(sys.argv[1:]))
'''


def command(config, workdir, *arguments):
  return [sys.executable, '-m', 'at_jax.main', f'--config={config}', f'--workdir={workdir}', *arguments]


@pytest.mark.long
def test_imagenet_killed_in_an_epoch_ends_with_the_same_bits(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(_CONFIG.format(whole=str(ROOT / 'configs/trades_imagenet.py'),
                                   folder=imagenet.prepare(tmp_path / 'sets')))
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  start = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
  flags = command(config, killed, '--config.checkpoint.every_steps=1')[3:]
  done = start([sys.executable, '-c', _KILLED, *flags])
  assert done.returncode == -signal.SIGKILL, done.stderr
  for workdir in (whole, killed):
    done = start(command(config, workdir))
    assert done.returncode == 0, done.stderr
  assert 'resuming after step 6' in done.stderr
  assert digests(killed, 8) == digests(whole, 8)
  assert steps_logged(killed) == steps_logged(whole) == list(range(1, 9))
  lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  assert all(0 <= line['data_wait'] <= 1 for line in lines if 'loss' in line)
  results = json.loads((whole / 'results.json').read_text())
  assert (results['dataset'], results['n'], results['examples']) == ('imagenet2012', 8, 'first')


@pytest.fixture
def on_mnist(tmp_path, monkeypatch):
  """The command of a run on five images of MNIST, from its folder and more arguments."""
  with data_sets.serve(monkeypatch, data_sets.ARCHIVES['mnist']()[0]):
    pipeline.load('mnist', data_dir=tmp_path)
    assert streaming.load('mnist', data_dir=tmp_path).train_size == 5
  options = ['--config.dataset.name=mnist', f'--config.dataset.data_dir={tmp_path}', '--config.batch_size=2',
             '--config.dataset.validation_size=0', '--config.evaluate.num_examples=2', '--config.epochs=3',
             '--config.evaluate.batch_size=2', '--config.optimizer.ema_decay=.5']
  quick = ROOT / 'configs' / 'pgd_at_cifar10.py:smoke'
  return lambda workdir, *arguments: command(quick, workdir, *options, *arguments)


def assert_same_runs(*folders):
  assert digests(folders[0], 6) == digests(folders[1], 6)
  results = [json.loads((folder / 'results.json').read_text()) for folder in folders]
  assert results[0]['n'] == results[1]['n'] == 2 and results[0]['last'] == results[1]['last']


@pytest.mark.long
@pytest.mark.filterwarnings('ignore:.*have no training example')  # the archive is tiny
def test_stream_gives_the_bits_of_data_on_the_device(tmp_path, on_mnist):
  for source in ('device', 'stream'):
    done = subprocess.run(on_mnist(tmp_path / source, f'--config.dataset.source={source}'), cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  assert_same_runs(tmp_path / 'stream', tmp_path / 'device')


@pytest.mark.long
@pytest.mark.filterwarnings('ignore:.*have no training example')
def test_stream_of_two_processes_gives_the_bits_of_one(tmp_path, on_mnist):
  # Both have two devices, and a sum of two numbers does not depend on their order.
  streamed = lambda name, *arguments: on_mnist(tmp_path / name, '--config.dataset.source=stream', *arguments)
  done = subprocess.run(streamed('one'), env=processes.environment(2), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for code, _, err in processes.finish(processes.start_together(
      2, lambda address, index: streamed('two', f'--distributed={address},2,{index}'))):
    assert code == 0, err
  assert_same_runs(tmp_path / 'one', tmp_path / 'two')

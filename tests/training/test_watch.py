"""What one watches while a run trains: TensorBoard's curves and pictures, and the bar with accuracies."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import struct
import sys
import termios
import threading

import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from at_jax import datasets, main
from at_jax.evaluation import robustness
from at_jax.training import pictures, records
from tests.fixtures import tensorboard_events

# Two epochs of 13 steps on digits, each with a validation.
COMMAND = (
    f'--config={pathlib.Path(__file__).parents[2]}/configs/quickstart.py:pgd_at', '--config.epochs=2',
    '--config.validate.every_epochs=1', '--config.validate.num_steps=1', '--config.attack.num_steps=1',
    '--config.log_every_steps=13', '--config.evaluate.num_examples=16', '--config.evaluate.batch_size=16',
    "--config.evaluate.attacks=('pgd1',)")
NOTE = ('validation clean {validation_clean:.3f}, robust {validation_robust:.3f}, '
        'worst class {validation_worst_class:.3f}')


@contextlib.contextmanager
def terminal(columns):
  """A terminal as (the file that a program prints to, a list of the bytes that it shows)."""
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, columns, 0, 0))
  shown = []

  def read():
    with contextlib.suppress(OSError):  # when the file is closed
      while chunk := os.read(ours, 4096):
        shown.append(chunk)

  thread = threading.Thread(target=read)
  thread.start()
  with open(theirs, 'w', encoding='utf-8') as file:
    yield file, shown
  thread.join()
  os.close(ours)


def overwritten(shown):
  """The texts that a terminal shows one after the other, in lines."""
  lines = b''.join(shown).decode().split('\n')
  return [[text.rstrip() for text in line.split('\r') if text.strip()] for line in lines]


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
  """The folder of a run, and the lines of the terminal of 80 columns in which it ran."""
  workdir = tmp_path_factory.mktemp('watched') / 'run'
  with pytest.MonkeyPatch.context() as patch, terminal(80) as (file, shown):
    patch.setattr(sys, 'stderr', file)
    assert main.main([*COMMAND, f'--workdir={workdir}']) == 0
  return workdir, overwritten(shown)


def logged(workdir):
  """The lines of the two validations."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line for line in lines if 'validation_clean' in line]


@pytest.mark.long
def test_curves_of_each_class_are_those_of_the_log(watched):
  workdir, _ = watched
  found, lines = tensorboard_events.read(workdir), logged(workdir)
  assert [line['step'] for line in lines] == [13, 26]
  labels = datasets.load('digits', validation_size=100).validation.labels
  for line in lines:
    by_class, step = line['validation_robust_by_class'], line['step']
    assert list(by_class) == [str(digit) for digit in range(10)]
    for name, share in by_class.items():
      assert found[f'validation_robust_by_class/{name}'][step] == np.float32(share)
    for name in ('validation_clean', 'validation_robust', 'validation_worst_class'):
      assert found[name][step] == np.float32(line[name])
    assert line['validation_worst_class'] == min(by_class.values())
    # The accuracy is the mean of those of the classes, weighted by their examples.
    weights = np.bincount(labels) / len(labels)
    assert line['validation_robust'] == pytest.approx(weights @ list(by_class.values()))


@pytest.mark.long
def test_picture_has_the_attacked_batch_of_each_epoch(watched):
  found = tensorboard_events.read(watched[0])['validation_attacked']
  assert sorted(found) == [13, 26]
  images = datasets.load('digits', validation_size=100).validation.images
  for picture in found.values():
    assert picture.shape == (3 * 8, 8 * 8, 3)  # three rows of eight grey images, as TensorBoard stores them
    clean, adversarial, difference = (
        np.stack(np.split(row, 8, axis=1)).astype(int) for row in np.split(picture[..., :1], 3))
    for image in clean:
      assert (images == image).all((1, 2, 3)).any()
    change = adversarial - clean
    assert 0 < np.abs(change).max() <= .15 * 255 + .5  # the radius, and half a level of rounding
    # The docstring's formula; half a level in a change of about 38 is 1.7 levels here, twice.
    expected = 127.5 * (1 + change / np.abs(change).max())
    np.testing.assert_allclose(difference, expected, atol=5)


@pytest.mark.long
def test_watching_changes_no_bit(watched, tmp_path, monkeypatch, capsys):
  evaluate = robustness.evaluate
  monkeypatch.setattr(robustness, 'evaluate', lambda *args, observe=None, **rest: evaluate(*args, **rest))
  assert main.main([*COMMAND, f'--workdir={tmp_path}']) == 0
  assert 'validation_attacked' not in tensorboard_events.read(tmp_path)
  digests = [ocp.checkpointables_metadata(workdir / 'checkpoints' / '00000026').custom_metadata['digests']
             for workdir in (watched[0], tmp_path)]
  assert digests[0] == digests[1] and digests[0]
  assert logged(tmp_path) == logged(watched[0])
  assert 'training' not in capsys.readouterr().err  # not a terminal, and shorter than ten seconds


@pytest.mark.long
def test_bar_of_training_is_one_line_with_the_accuracies(watched):
  workdir, lines = watched
  line, = [texts for texts in lines if texts and texts[-1].startswith('training')]
  assert all(text.startswith('training') and len(text) <= 80 for text in line)
  above = lines[lines.index(line) - 1]
  assert above[-1] == 'compiling the step of pgd_at, or reading it from the cache'
  first, last = (NOTE.format(**numbers) for numbers in logged(workdir))
  assert line[-1].startswith(f'training 100%, {last} |')
  assert any(f'%, {first} |' in text for text in line)


@pytest.mark.parametrize('columns', [72, 80, 120])
def test_bar_fits_the_terminal(columns):
  note = NOTE.format(validation_clean=.512, validation_robust=.301, validation_worst_class=.1)
  with terminal(columns) as (file, shown):
    progress = records.Progress('training', 130 * 50_000, file=file)
    for done in range(0, 6_500_001, 650_000):
      progress.show(done, note)
    progress.close()
  lines = overwritten(shown)
  assert len(lines) == 2 and not lines[1]  # one line, and its end
  assert all(len(text) <= columns for text in lines[0])
  assert lines[0][-1].startswith(f'training 100%, {note}')
  assert (' left, ' in lines[0][-1]) == (columns == 120)


def test_pipe_gets_plain_lines():
  read, write = os.pipe()
  with open(write, 'w', encoding='utf-8') as file:
    progress = records.Progress('training', 400, done=100, every=0, file=file)
    for done in (200, 300, 400):
      progress.show(done, 'validation clean 0.512')
    progress.close()
  with open(read, encoding='utf-8', newline='') as file:
    lines = file.read().split('\n')
  assert lines.pop() == ''
  for line, done in zip(lines, (200, 300, 400), strict=True):
    assert re.fullmatch(rf'training: {done}/400 examples, \d+/s, \d+ s left, validation clean 0.512', line)


def test_picture_of_many_channels_is_grey():
  # One image of two pixels, whose means over the two channels are .2 and .4. The first becomes .4.
  x = np.array([[[[.1, .3]], [[.2, .6]]]])
  picture = pictures.attacked(x, np.array([[[[.5, .3]], [[.2, .6]]]]))
  # 255 · (.2, .4), 255 · (.4, .4), 255 · (1, .5), where 127.5 is rounded to the even 128.
  np.testing.assert_array_equal(picture[..., 0], [[51], [102], [102], [102], [255], [128]])


def test_picture_without_a_change_is_grey():
  x = np.full((2, 1, 1, 3), .4)
  np.testing.assert_array_equal(pictures.attacked(x, x)[2], np.full((2, 3), 128))

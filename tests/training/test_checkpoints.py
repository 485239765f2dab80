"""Checkpoints: what is kept, what is noticed, what is used instead."""

import pathlib

import numpy as np
import pytest

from at_jax import errors
from at_jax.training import checkpoints

pytestmark = pytest.mark.oldest


def state(value):
  return {'w': np.full((64, 64), value, np.float32), 'step': np.array(value, np.int32)}


def fill(directory, scores, keep=2):
  """One checkpoint a score, at steps 1, 2, …"""
  store = checkpoints.Checkpoints(directory, keep=keep)
  for step, score in enumerate(scores, 1):
    store.save(step, state(step), {'score': score, 'seconds': 1.})
  store.wait()
  return store


def test_a_state_comes_back_to_the_bit(tmp_path):
  store = checkpoints.Checkpoints(tmp_path, keep=1)
  rng = np.random.default_rng(0)
  saved = {'a': rng.normal(size=(3, 5)).astype(np.float32), 'b': (np.arange(4), np.array(7))}
  store.save(12, saved, {'score': .5, 'seconds': 3.})
  store.wait()
  found, complaints = store.newest({'a': np.zeros((3, 5), np.float32),
                                    'b': (np.zeros(4, int), np.array(0))})
  assert (found.step, found.info, complaints) == (12, {'score': .5, 'seconds': 3.}, [])
  np.testing.assert_array_equal(found.state['a'], saved['a'])
  np.testing.assert_array_equal(found.state['b'][0], saved['b'][0])
  assert found.state['b'][1] == 7


def test_the_newest_and_the_best_are_kept(tmp_path):
  store = fill(tmp_path, [.1, .9, .3, .9, .2, None])
  assert store.steps() == [2, 5, 6]  # the earlier of two best, and the newest two
  assert store.best(state(0))[0].step == 2
  assert store.newest(state(0))[0].step == 6


def test_without_a_score_none_is_best(tmp_path):
  store = fill(tmp_path, [None, None, None])
  assert store.steps() == [2, 3]
  assert store.best(state(0)) == (None, [])


def test_a_state_of_other_parts_is_not_called_damaged(tmp_path):
  store = fill(tmp_path, [.1])
  with pytest.raises(errors.UserError, match=r"checkpoint 1 has other parts.*\['average'\]"):
    store.newest(state(0) | {'average': np.zeros(3)})
  assert store.steps() == [1]


def flip_a_byte(folder):
  # The largest data file holds the array; a byte in its middle is a byte of the array.
  data = max((p for p in folder.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)


def truncate(folder):
  data = max((p for p in folder.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)
  data.write_bytes(data.read_bytes()[:40])


def remove_a_file(folder):
  max((p for p in folder.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size).unlink()


def empty(folder):
  for path in sorted(folder.rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()


def spoil_the_metadata(folder):
  (folder / '_CHECKPOINT_METADATA').write_text('{')


@pytest.mark.parametrize('damage', [flip_a_byte, truncate, remove_a_file, empty,
                                    spoil_the_metadata])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, damage):
  store = fill(tmp_path, [.1, .2])
  damage(tmp_path / '00000002')
  found, complaints = store.newest(state(0))
  assert found.step == 1
  np.testing.assert_array_equal(found.state['w'], state(1)['w'])
  assert len(complaints) == 1 and complaints[0].startswith('checkpoint 2 is damaged')
  assert (tmp_path / '00000002.corrupt').is_dir()  # nothing is lost
  store.save(2, state(5), {'score': None, 'seconds': 0.})  # and its step can be written again
  store.wait()
  assert store.newest(state(0))[0].state['step'] == 5


def test_any_flipped_byte_of_the_array_is_noticed(tmp_path):
  # Flips one byte at a time over the whole file; some lie in a header, where reading fails instead.
  store = fill(tmp_path, [.1])
  folder = tmp_path / '00000001'
  data = max((p for p in folder.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)
  whole = data.read_bytes()
  for place in range(0, len(whole), max(1, len(whole) // 12)):
    content = bytearray(whole)
    content[place] ^= 4
    data.write_bytes(content)
    found, complaints = store.newest(state(0))
    assert found is None and complaints, place
    (tmp_path / '00000001.corrupt').rename(folder)
  data.write_bytes(whole)
  assert store.newest(state(0))[0].step == 1


def test_what_a_killed_run_left_is_cleared(tmp_path):
  store = fill(tmp_path, [.1])
  left = pathlib.Path(tmp_path / '00000002.orbax-checkpoint-tmp-123')
  left.mkdir()
  assert store.steps() == [1]
  store.clear_unfinished()
  assert not left.exists()

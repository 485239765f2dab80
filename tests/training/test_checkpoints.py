"""Checkpoints and exported weights: exact, kept by the rule, and damage is detected."""

import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from at_jax import errors
from at_jax.training import checkpoints

pytestmark = pytest.mark.oldest


def state(value):
  return {'w': np.full((64, 64), value, np.float32), 'step': np.array(value, np.int32)}


def fill(directory, scores, keep=2):
  """Writes one checkpoint per score, at steps 1, 2, …"""
  store = checkpoints.Checkpoints(directory, keep=keep)
  for step, score in enumerate(scores, 1):
    store.save(step, state(step), {'score': score, 'seconds': 1.})
  store.wait()
  return store


def test_state_is_restored_bit_for_bit(tmp_path):
  store = checkpoints.Checkpoints(tmp_path, keep=1)
  rng = np.random.default_rng(0)
  saved = {'a': rng.normal(size=(3, 5)).astype(np.float32), 'b': (np.arange(4), np.array(7))}
  store.save(12, saved, {'score': .5, 'seconds': 3.})
  store.wait()
  found, messages = store.newest({'a': np.zeros((3, 5), np.float32),
                                    'b': (np.zeros(4, int), np.array(0))})
  assert (found.step, found.info, messages) == (12, {'score': .5, 'seconds': 3.}, [])
  np.testing.assert_array_equal(found.state['a'], saved['a'])
  np.testing.assert_array_equal(found.state['b'][0], saved['b'][0])
  assert found.state['b'][1] == 7


@pytest.mark.parametrize('name', ['a b #1 50%25 é?', 'lr=[0.1', 'lr=[0.1,0.2]'])
def test_odd_folder_names_work_or_are_refused(tmp_path, name):
  # Orbax lists a folder by a glob pattern with the whole path in it: what it saves in the last one is lost.
  workdir = tmp_path / name
  if ']' in name:
    with pytest.raises(errors.UserError, match=r'with \[ and \] in its name: name another folder'):
      checkpoints.check_path(workdir)
    # A folder that was renamed: its checkpoints are not taken for damaged ones.
    (workdir / 'checkpoints' / '00000001').mkdir(parents=True)
    with pytest.raises(errors.UserError, match=r'with \[ and \] in its name'):
      checkpoints.Checkpoints(workdir / 'checkpoints', keep=2).newest(state(0))
    assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['00000001']
    return
  checkpoints.check_path(workdir)
  workdir.mkdir()
  store = fill(workdir / 'checkpoints', [.1])
  assert store.newest(state(0))[0].step == 1


def test_newest_and_best_are_kept(tmp_path):
  store = fill(tmp_path, [.1, .9, .3, .9, .2, None])
  assert store.steps() == [2, 5, 6]  # the earlier of two best, and the newest two
  assert store.best(state(0))[0].step == 2
  assert store.newest(state(0))[0].step == 6


def test_without_scores_there_is_no_best(tmp_path):
  store = fill(tmp_path, [None, None, None])
  assert store.steps() == [2, 3]
  assert store.best(state(0)) == (None, [])


def test_other_structure_is_not_damage(tmp_path):
  store = fill(tmp_path, [.1])
  with pytest.raises(errors.UserError, match=r"checkpoint 1 does not match.*\['average'\]"):
    store.newest(state(0) | {'average': np.zeros(3)})
  assert store.steps() == [1]


def array_file(folder):
  """The file of the array, which is the largest one."""
  return max((p for p in folder.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)


def flip_byte(folder):
  data = array_file(folder)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)


def truncate(folder):
  data = array_file(folder)
  data.write_bytes(data.read_bytes()[:40])


def remove_file(folder):
  array_file(folder).unlink()


def empty(folder):
  for path in sorted(folder.rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()


def break_metadata(folder):
  (folder / '_CHECKPOINT_METADATA').write_text('{')


def test_each_step_can_be_read(tmp_path):
  store = fill(tmp_path, [.1, .9, .3], keep=3)
  assert [int(store.at(step, state(0)).state['step']) for step in (1, 2, 3)] == [1, 2, 3]
  with pytest.raises(errors.UserError, match='^checkpoint = 4: .* none of this step: use one of 1, 2, 3$'):
    store.at(4, state(0))
  flip_byte(tmp_path / '00000002')
  with pytest.raises(errors.UserError, match='^checkpoint = 2: the one in .* is damaged, .*: use another'):
    store.at(2, state(0))
  assert store.steps() == [1, 2, 3]  # it keeps its name


def test_a_reader_changes_nothing(tmp_path):
  fill(tmp_path, [.1, .2])
  flip_byte(tmp_path / '00000002')
  before = sorted(tmp_path.rglob('*'))
  reader = checkpoints.Checkpoints(tmp_path)
  for found, messages in (reader.newest(state(0)), reader.best(state(0))):
    assert found.step == 1 and len(messages) == 1 and 'checkpoint 2 is damaged' in messages[0]
    assert 'set aside' not in messages[0]
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('damage', [flip_byte, truncate, remove_file, empty, break_metadata])
def test_damage_is_reported_and_the_previous_one_used(tmp_path, damage):
  store = fill(tmp_path, [.1, .2])
  damage(tmp_path / '00000002')
  found, messages = store.newest(state(0))
  assert found.step == 1
  np.testing.assert_array_equal(found.state['w'], state(1)['w'])
  assert len(messages) == 1 and messages[0].startswith(f'{tmp_path.parent}: checkpoint 2 is damaged')
  assert (tmp_path / '00000002.corrupt').is_dir()  # it is not deleted
  store.save(2, state(5), {'score': None, 'seconds': 0.})  # its step can be written again
  store.wait()
  assert store.newest(state(0))[0].state['step'] == 5


def test_every_flipped_byte_is_detected(tmp_path):
  # One byte at a time over the whole file; in a header, reading fails instead.
  store = fill(tmp_path, [.1])
  folder = tmp_path / '00000001'
  data = array_file(folder)
  whole = data.read_bytes()
  for place in range(0, len(whole), max(1, len(whole) // 12)):
    content = bytearray(whole)
    content[place] ^= 4
    data.write_bytes(content)
    found, messages = store.newest(state(0))
    assert found is None and messages, place
    (tmp_path / '00000001.corrupt').rename(folder)
  data.write_bytes(whole)
  assert store.newest(state(0))[0].step == 1


def flipped(content):
  content, middle = content or b'0', len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


@pytest.mark.parametrize('damage', [
    flipped, lambda content: content[:len(content) // 2], lambda content: b'', None],
    ids=['flipped', 'halved', 'emptied', 'removed'])
def test_damage_in_any_file_is_detected_or_harmless(tmp_path, damage):
  store, info = fill(tmp_path / 'x', [.1, .25]), {'score': .25, 'seconds': 1.}
  folder = tmp_path / 'x' / '00000002'
  shutil.copytree(folder, tmp_path / 'whole')
  files = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
  assert len(files) > 3
  for name in files:
    if damage:
      (folder / name).write_bytes(damage((folder / name).read_bytes()))
    else:
      (folder / name).unlink()
    found, messages = store.newest(state(0))
    if found.step == 2:
      assert (found.info, messages) == (info, []), name
    assert [path.name for path in (tmp_path / 'x').iterdir() if path.suffix] == (
        [] if found.step == 2 else ['00000002.corrupt'])
    np.testing.assert_array_equal(found.state['w'], state(found.step)['w'])
    for path in (folder, folder.with_suffix('.corrupt')):
      shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(tmp_path / 'whole', folder)


def test_unfinished_checkpoints_are_removed(tmp_path):
  store = fill(tmp_path, [.1])
  left = tmp_path / '00000002.orbax-checkpoint-tmp-123'
  left.mkdir()
  assert store.steps() == [1]
  store.clear_unfinished()
  assert not left.exists()


def weights():
  """Variables of two layers, one without BatchNorm statistics."""
  rng = np.random.default_rng(0)
  params = {'a': {'w': rng.normal(size=(3, 5)).astype(np.float32)}, 'b': {'w': np.float32(-0.)}}
  return checkpoints.Weights(7, {'params': params, 'batch_stats': {}}, {'validation_robust': .5})


def test_weights_are_read_bit_for_bit(tmp_path):
  path, written = tmp_path / checkpoints.WEIGHTS, weights()
  checkpoints.write_weights(path, written)
  found = checkpoints.read_weights(path, written.variables)
  assert (found.step, found.info) == (7, {'validation_robust': .5})
  assert jax.tree.structure(found.variables) == jax.tree.structure(written.variables)
  for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(written.variables), strict=True):
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
  assert [file.name for file in tmp_path.iterdir()] == [checkpoints.WEIGHTS]


def test_damaged_weights_are_refused(tmp_path):
  path, written = tmp_path / checkpoints.WEIGHTS, weights()
  checkpoints.write_weights(path, written)
  whole = path.read_bytes()
  place = whole.index(written.variables['params']['a']['w'].tobytes())
  for content in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:], whole[:-40], b''):
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match='cannot be read'):
      checkpoints.read_weights(path, written.variables)


def test_changed_or_missing_leaf_of_weights_is_named(tmp_path):
  # An archive that is whole, but in which an array was replaced or left out.
  path, written = tmp_path / checkpoints.WEIGHTS, weights()
  checkpoints.write_weights(path, written)
  arrays = dict(np.load(path))
  for changed in (arrays | {'params/b/w': np.float32(0.)},  # equal to −0, with another bit
                  {name: array for name, array in arrays.items() if name != 'params/b/w'}):
    np.savez(path, **changed)
    with pytest.raises(errors.UserError, match='digest of .*params/b/w.* differs'):
      checkpoints.read_weights(path, written.variables)


def test_weights_of_another_model_are_refused(tmp_path):
  path, written = tmp_path / checkpoints.WEIGHTS, weights()
  checkpoints.write_weights(path, written)
  wider = {'params': {'a': {'w': np.zeros((3, 6), np.float32)}, 'b': {'w': np.float32(0.)}},
           'batch_stats': {}}
  with pytest.raises(errors.UserError, match='does not match the model .*params/a/w'):
    checkpoints.read_weights(path, wider)


class Before(NamedTuple):
  w: Any
  method: Any = ()


class After(NamedTuple):
  w: Any
  method: Any = ()
  more: Any = ()


@pytest.mark.parametrize('other', [
    After(np.ones(3, np.float32)),  # a field without leaves
    Before(np.ones(3, np.int32)),  # which orbax would convert
    Before(np.ones(4, np.float32))])  # of which it says nothing
def test_state_of_another_version_is_not_damage(tmp_path, other):
  store, state = checkpoints.Checkpoints(tmp_path, keep=2), Before(np.arange(3, dtype=np.float32))
  for step in (1, 2):
    store.save(step, state, {})
  store.wait()
  with pytest.raises(errors.UserError, match='checkpoint 2 does not match .*differ.: use the version that'):
    store.newest(other)
  assert store.steps() == [1, 2]
  truncate(tmp_path / '00000002')  # still damage
  assert store.newest(state)[0].step == 1

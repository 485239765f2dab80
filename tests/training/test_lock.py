"""The lock of a work directory: who holds it is named, and a dead process holds nothing."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import pytest

from at_jax import errors
from at_jax.training import lock

pytestmark = pytest.mark.oldest
_HOLD = '''
import pathlib, sys
from at_jax.training import lock
with lock.hold(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
'''


def refused(workdir):
  """The error of a second holder."""
  with pytest.raises(errors.UserError) as error, lock.hold(workdir):
    pass
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


def test_other_process_is_named_until_it_is_killed(tmp_path):
  process = subprocess.Popen([sys.executable, '-c', _HOLD, tmp_path], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[2])
  assert process.stdout.readline() == 'held\n'
  line = refused(tmp_path)
  assert f'process {process.pid} on {socket.gethostname()}, since 20' in line
  assert line.endswith('uses it: wait for its end, or name another folder')
  process.kill()  # SIGKILL: it cannot clean up
  process.communicate()
  assert (tmp_path / lock.NAME).exists()
  with lock.hold(tmp_path):
    assert json.loads((tmp_path / lock.NAME).read_text())['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_thread_of_this_process_is_refused(tmp_path):
  found = []
  with lock.hold(tmp_path):
    thread = threading.Thread(target=lambda: found.append(refused(tmp_path)))
    thread.start()
    thread.join()
    found.append(refused(tmp_path))
  assert all(f'process {os.getpid()} on' in line for line in found) and len(found) == 2
  with lock.hold(tmp_path):
    pass


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": 1}'])
def test_unreadable_holder_is_another_process(tmp_path, content):
  with lock.hold(tmp_path):
    (tmp_path / lock.NAME).write_text(content)
    assert 'another process uses it' in refused(tmp_path)


def test_folder_with_results_stays(tmp_path):
  with lock.hold(tmp_path / 'runs' / 'x'):
    (tmp_path / 'runs' / 'x' / 'results.json').write_text('{}')
  assert [path.name for path in (tmp_path / 'runs' / 'x').iterdir()] == ['results.json']


def test_empty_folders_that_it_made_are_removed(tmp_path):
  with pytest.raises(RuntimeError), lock.hold(tmp_path / 'runs' / 'x'):
    raise RuntimeError
  assert not list(tmp_path.iterdir())


def test_removed_lock_file_is_made_again(tmp_path, monkeypatch):
  # Between opening the file and locking it, its holder ends and removes it.
  full = lock.fcntl.flock
  path, calls = tmp_path / lock.NAME, []

  def late(file, operation):
    calls.append(operation)
    if len(calls) == 1:
      path.unlink()
    return full(file, operation)

  monkeypatch.setattr(lock.fcntl, 'flock', late)
  with lock.hold(tmp_path):
    assert len(calls) == 2 and re.search(rf'"pid": {os.getpid()}\b', path.read_text())
    assert 'uses it' in refused(tmp_path)


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
  def unsupported(file, operation):
    raise OSError(38, 'Function not implemented')  # as Lustre mounted without flock

  monkeypatch.setattr(lock.fcntl, 'flock', unsupported)
  with lock.hold(tmp_path):
    assert f'warning: the file system of {tmp_path} has no locks' in capsys.readouterr().err

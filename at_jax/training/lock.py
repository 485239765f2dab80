"""Lock of a work directory: one process, or one thread, uses it at a time."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import socket
import time
from typing import TextIO

from at_jax import environment, errors

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

NAME = '.lock'


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a work directory, which is created if needed.

  The operating system releases the lock of a process that ends, however it ends. Where the file system has
  no locks, a warning is logged instead. Folders that were created and are empty at the end are removed.

  Args:
    workdir: the work directory.

  Yields:
    None.

  Raises:
    errors.UserError: if the lock is held elsewhere, or the folder is not writable.
  """
  workdir = workdir.absolute()
  made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
  try:
    file = _locked(workdir)
  except OSError as error:
    raise errors.unwritable(workdir, error) from error
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # a folder that is gone, or is not empty
      (workdir / NAME).unlink()
      file.close()  # after unlink: nobody can lock the file in between
      for folder in made:
        folder.rmdir()
    file.close()


def is_visible(workdir: pathlib.Path) -> bool:
  """Returns whether this process sees the lock that process 0 holds.

  Args:
    workdir: the work directory.

  Returns:
    False if the folder is another one than that of process 0, such as on a disk of another host.
  """
  try:
    return NAME in os.listdir(workdir)  # a listing is up to date where NFS remembers that a file was missing
  except OSError:
    return False


def _locked(workdir: pathlib.Path) -> TextIO:
  """The open lock file, locked."""
  path = workdir / NAME
  while True:
    workdir.mkdir(parents=True, exist_ok=True)
    file = path.open('a+', encoding='utf-8')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = _holder(file)
      file.close()
      raise errors.UserError('workdir', str(workdir), f'{holder} uses it: wait for its end, or name another '
                             'folder') from None
    except (OSError, AttributeError):
      environment.log(f'warning: the file system of {workdir} has no locks: let no other process use it')
      return file
    with contextlib.suppress(OSError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break
    file.close()  # its holder removed it after `open`, so the lock is of no file: try again
  file.truncate(0)
  json.dump({'pid': os.getpid(), 'host': socket.gethostname(),
             'since': time.strftime('%Y-%m-%d %H:%M:%S')}, file)
  file.flush()
  return file


def _holder(file: TextIO) -> str:
  try:
    file.seek(0)
    holder = json.load(file)
    return f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]},'
  except (OSError, ValueError, KeyError, TypeError):  # its holder is writing it
    return 'another process'

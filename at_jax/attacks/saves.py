"""What a long evaluation writes as it goes, so that it can be killed at any moment."""

import os
import pathlib
import tempfile

import numpy as np


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays to a file that is at every moment either the old one or the new one, whole.

  Args:
    path: a file; its folder exists.
    arrays: what to write.

  Example:
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save(f'{folder}/state.npz', {'n': np.arange(3)})
    ...   print(load(f'{folder}/state.npz')['n'])
    [0 1 2]

  Source: ours.
  """
  path = pathlib.Path(path)
  part = path.with_name(path.name + '.part')
  with open(part, 'wb') as file:
    np.savez(file, **arrays)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


def load(path: str | os.PathLike) -> dict[str, np.ndarray] | None:
  """Reads what `save` wrote.

  Args:
    path: a file.

  Returns:
    The arrays, or None if there is no such file.

  Raises:
    zipfile.BadZipFile: if a byte of it has changed: the format carries checksums.

  Example:
    >>> print(load('/nowhere/state.npz'))
    None

  Source: ours.
  """
  if not pathlib.Path(path).exists():
    return None
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}

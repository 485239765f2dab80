"""What a long evaluation writes as it goes, so that it can be killed at any moment."""

from collections.abc import Sequence
import hashlib
import os
import pathlib
import time
from typing import NamedTuple
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _diagnostics
from at_jax.attacks.autoattack import batching


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays to a file that is at every moment either the old one or the new one, whole.

  Args:
    path: a file; its folder exists.
    arrays: what to write.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save(f'{folder}/state.npz', {'n': np.arange(3)})
    ...   print(load(f'{folder}/state.npz')['n'])
    [0 1 2]

  Source: ours.
  """
  path = pathlib.Path(path)
  part = _part(path)
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
    zipfile.BadZipFile: if a byte of it has changed, which the format's checksums tell, or it is not
      such a file at all.

  Example:
    >>> print(load('/nowhere/state.npz'))
    None

  Source: ours.
  """
  if not pathlib.Path(path).exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  # Cut off or changed; garbage, nothing, an .npy.
  except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, AttributeError, TypeError) as error:
    raise zipfile.BadZipFile(f'{path} is damaged: {error}') from error


def check_writable(path: str | os.PathLike | None) -> None:
  """Raises now what `save` would raise after a minute's or an hour's work; makes the folder.

  Args:
    path: a file, or None.

  Raises:
    OSError: if it cannot be written.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   prove(f'{folder}/new/state.npz')

  Source: ours.
  """
  if path is None:
    return
  path = pathlib.Path(path)
  if path.is_dir():
    raise IsADirectoryError(f'{path} is a folder: name a file in it')
  path.parent.mkdir(parents=True, exist_ok=True)
  part = _part(path)
  part.write_bytes(b'')
  part.unlink()


def _part(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.part')


class OtherEvaluation(ValueError):
  """The state file is that of other examples, options, another model or another version of this code."""


class Record(NamedTuple):
  """All results so far; its arrays are written to. Rows are attacks in the order they run."""
  passed: int              # passes that are complete
  fell: np.ndarray         # bool[N], not robust (with cascade=False: under this attack)
  x: np.ndarray
  verdicts: np.ndarray     # bool[A, N]
  signs: np.ndarray        # bool[A, 3, N], of `refill.SIGNS`
  seconds: np.ndarray      # f64[A]
  leads: np.ndarray        # f64[N], `_leads`, by which the model is known again
  targets: np.ndarray      # i64[N, R], of targeted attacks: rounding elsewhere may rank classes otherwise


def reopen(path, mark, clean, logits, x, targets, num_attacks):
  """The record, the seats and the items of a state file, or those to begin with.

  Args:
    path: a file, or None.
    mark: of `marks.of_evaluation`.
    clean: bool[N].
    logits: f32[N, C], of the clean inputs.
    x: f32[N, ...].
    targets: i64[N, R], of `ensemble.targets`.
    num_attacks: A.

  Returns:
    A `Record`, `Seats` (their state a list of arrays) or None, items or None.

  Raises:
    OtherEvaluation: if the file has another mark, or arrays of another layout, or its model's logits
      were others by more than rounding makes them.
    zipfile.BadZipFile: if it is damaged, or not all of its arrays are there.

  Source: ours.
  """
  a = num_attacks
  signs = np.zeros((a, len(batching.DIAGNOSTICS), len(x)), bool)
  record = Record(0, ~clean, x.copy(), np.tile(clean, (a, 1)), signs, np.zeros(a), _leads(logits),
                  targets)
  saved = None if path is None else load(path)
  if saved is None:
    return record, None, None
  try:
    if np.ndim(saved['mark']) != 2:
      raise _other_version(path, 'a mark of another form')
    before = dict(saved['mark'].tolist())
    if other := sorted(name for name in before.keys() | mark.keys()
                       if before.get(name) != mark.get(name)):
      raise OtherEvaluation(f'{path} is the state of another evaluation, of other {", ".join(other)}: '
                            'remove it or use another path')
    layout, leads = [np.shape(array) for array in record], record.leads
    record = Record(*(saved[name] for name in Record._fields))._replace(passed=int(saved['passed']))
    if [np.shape(array) for array in record] != layout:
      raise _other_version(path, 'a record of other shapes')
    # In bfloat16, on other devices, a logit may move by a hundredth; training moves most by far more.
    if np.median(np.abs(leads - record.leads)) > .02 * np.median(np.abs(leads)):
      raise OtherEvaluation(f'{path} is the state of an evaluation of another model: remove it or use '
                            'another path')
    if 'items' not in saved:
      return record, None, None
    leaves = [saved[f'leaf{i}'] for i in range(sum(name.startswith('leaf') for name in saved))]
    seats = batching.Slots(saved['example'], saved['run'], leaves, int(saved['taken']))
    return record, seats, saved['items']
  except KeyError as error:
    raise zipfile.BadZipFile(f'{path} is damaged: {error} is missing') from error


def _leads(logits: np.ndarray) -> np.ndarray:
  """f64[N], how far each one's first logit stands above the mean of all; 0 where that is no number."""
  logits = _diagnostics.finite_logits(logits)
  with np.errstate(invalid='ignore'):
    return np.nan_to_num(logits[:, 0] - logits.mean(axis=1), posinf=0., neginf=0.)


def restore(path, work, seats, *, stepper):
  """`refill.restore` of what `reopen` gave.

  Args:
    path: the file.
    work: the examples.
    seats: their state a list of arrays.
    stepper: the attack.

  Returns:
    The `Seats` to go on from.

  Raises:
    OtherEvaluation: if the arrays are not those of this stepper.

  Source: ours.
  """
  try:
    return batching.restore_slots(work, seats, stepper=stepper)
  except ValueError as error:
    raise _other_version(path, error) from error


def _other_version(path, reason) -> OtherEvaluation:
  return OtherEvaluation(f'{path} was written by another version of the attack ({reason}): remove it or '
                         'use another path')


def saver(path, mark, save_every):
  """A function (record, seats, items) that writes the state when it is time, and between passes.

  Args:
    path: a file, or None to write nothing.
    mark: of `marks.of_evaluation`.
    save_every: seconds between writes within a pass.

  Returns:
    The function.

  Source: ours.
  """
  last = time.monotonic()

  def write(record, seats, items):
    nonlocal last
    if path is None or (seats is not None and time.monotonic() - last < save_every):
      return
    arrays = {name: np.asarray(value) for name, value in record._asdict().items()}
    arrays |= {'mark': np.array(sorted(mark.items()))}
    if seats is not None:
      leaves = jax.device_get(jax.tree.leaves(seats.state))
      arrays |= {f'leaf{i}': leaf for i, leaf in enumerate(leaves)}
      arrays |= {'example': seats.example, 'run': seats.run, 'items': items,
                 'taken': np.array(seats.taken)}
    save(path, arrays)
    last = time.monotonic()

  return write


Array = jax.Array


def fingerprint(
    work: batching.Work, clean: np.ndarray, models: tuple[jax.tree_util.Partial, ...],
    options: dict[str, object],
) -> dict[str, str]:
  """Digests of everything that decides a result, by what they are of.

  Of the models these are their weights, where they are arguments of a `jax.tree_util.Partial`, and
  which clean inputs they are right about. What they say of them, to the bit, is no mark, nor is the
  order of the other classes: other devices round it otherwise (see `saves.reopen`). How a model is
  differentiated leaves no mark.

  Args:
    work: the examples.
    clean: bool[N].
    models: that are searched on and that decide.
    options: by name, anything with a stable repr.

  Returns:
    Hexadecimal digits by name.

  Source: ours.
  """
  key = work.key
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  # Keys and counters, single integers, may have gone on since.
  weights = [leaf for leaf in jax.tree.leaves(models)
             if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
             and (np.ndim(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))]
  arrays = {'weights': weights, 'x': [work.x], 'y': [work.y], 'index': [work.index], 'key': [key],
            'epsilon': [work.epsilon], 'bounds': work.bounds, 'clean verdicts': [clean]}
  return {name: _digest([], value) for name, value in options.items()} | {
      name: _digest(several) for name, several in arrays.items()}


def _digest(arrays: Sequence[Array], told: object = None) -> str:
  digest = hashlib.sha256(repr(told).encode())
  for array in map(np.asarray, arrays):
    digest.update(repr((array.shape, array.dtype)).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()[:32]

"""The state file of an evaluation: written during the run, so that a killed evaluation can be resumed."""

from collections.abc import Callable, Sequence
import hashlib
import os
import pathlib
import time
from typing import Any, NamedTuple
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _diagnostics, _stepper
from at_jax.attacks.autoattack import batching, components

Array = jax.Array
Path = str | os.PathLike


# The fields of a `Record` whose first axis is the attacks.
BY_ATTACK = ('robust', 'diagnostics', 'seconds', 'passes')


class StateMismatch(ValueError):
  """The state file belongs to other examples, options or weights, or to another version of this code."""


class Record(NamedTuple):
  """All results so far, updated in place. There are A attacks, P parts (`components.Part`), N examples.

  Attributes:
    done: bool[P], completed parts.
    fooled: bool[N], misclassified so far (with cascade=False: by the current attack).
    x: f32[N, ...], a misclassified point, or else the input.
    robust: bool[A, N], robust after each attack (with cascade=False: under that attack).
    diagnostics: bool[A, 3, N], `batching.DIAGNOSTICS` of each attack.
    seconds: f64[A], time spent on each attack.
    passes: i64[A, 3], the fields of `batching.Passes` for each attack.
    centred_logit: f64[N], first clean logit minus the mean of all; identifies the model.
    targets: i64[N, R], of targeted attacks. They are stored because rounding on another device may rank
      the classes differently.
  """
  done: np.ndarray
  fooled: np.ndarray
  x: np.ndarray
  robust: np.ndarray
  diagnostics: np.ndarray
  seconds: np.ndarray
  passes: np.ndarray
  centred_logit: np.ndarray
  targets: np.ndarray


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays atomically: at any moment the file is either the old one or the new one, complete.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(f'{folder}/state.npz', {'n': np.arange(3)})
  ...   print(load(f'{folder}/state.npz')['n'])
  [0 1 2]
  """
  with open(_part(path), 'wb') as file:
    np.savez(file, **arrays)
    file.flush()
    os.fsync(file.fileno())
  os.replace(file.name, path)


def load(path: Path) -> dict[str, np.ndarray] | None:
  """Reads the arrays that `save` wrote; None if there is no such file.

  Raises:
    zipfile.BadZipFile: if the file is truncated or its checksums do not match.
  """
  if not pathlib.Path(path).exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  # The errors of truncated, changed, empty and foreign files.
  except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, AttributeError, TypeError) as error:
    raise zipfile.BadZipFile(f'{path} is damaged: {error}') from error


def check_type(path: object) -> None:
  """Raises ValueError for what is no path."""
  if not isinstance(path, (str, os.PathLike, type(None))):
    raise ValueError(f'state_path = {path!r}: use the path of a file')


def check_writable(path: Path | None) -> None:
  """Creates the folder of the file, and checks before the attack that the file can be written.

  Raises:
    ValueError: for a URL.
    OSError: if the file cannot be written.
  """
  if path is None:
    return
  if '://' in os.fspath(path):
    raise ValueError(f'state_path = {os.fspath(path)!r}: name a local file, which can be renamed')
  if pathlib.Path(path).is_dir():
    raise IsADirectoryError(f'{path} is a folder: name a file in it')
  part = _part(path)
  part.parent.mkdir(parents=True, exist_ok=True)
  part.write_bytes(b'')
  part.unlink()


def fingerprint(work: batching.Work, clean: np.ndarray, models: Sequence[_stepper.LogitsFn],
                options: dict[str, object]) -> dict[str, str]:
  """Fingerprint of an evaluation, used to verify a state file on resume.

  A model is identified by its weights, where they are arguments of a `jax.tree_util.Partial` or what its
  method `fingerprint_arrays` returns, and by the clean inputs it classifies correctly. Its exact logits and
  its ranking of the other classes are left out, because another device rounds them differently; `read`
  compares the logits with a tolerance. The gradients of the model are not part of the fingerprint.

  Args:
    work: the examples.
    clean: bool[N], correctly classified clean inputs.
    models: the models to search on and to verify with.
    options: by name, values with a stable repr.

  Returns:
    A string for each name.
  """
  held = [getattr(model, 'fingerprint_arrays', lambda model=model: model)() for model in models]
  # Keys and single integers (counters) may have advanced since the file was written.
  weights = [leaf for leaf in jax.tree.leaves(held)
             if isinstance(leaf, (jax.Array, np.ndarray, float))
             and not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
             and (np.ndim(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))]
  arrays = {'weights': weights, 'x': [work.x], 'y': [work.y], 'index': [work.index],
            'key': [jax.random.key_data(work.key)], 'epsilon': [work.epsilon], 'bounds': work.bounds,
            'clean verdicts': [clean]}
  texts = {name: repr(value) for name, value in options.items()}
  return texts | {name: _digest(group) for name, group in arrays.items()}


def divide(record: Record, num_attacks: int, num_parts: int) -> tuple[Record, Record]:
  """The records of the first attacks and of the others; their arrays are views of the given ones."""
  rows = (slice(num_attacks), slice(num_parts)), (slice(num_attacks, None), slice(num_parts, None))
  return tuple(record._replace(done=record.done[parts], **{
      name: getattr(record, name)[attacks] for name in BY_ATTACK}) for attacks, parts in rows)


def new_record(clean: np.ndarray, logits: np.ndarray, x: np.ndarray, num_attacks: int,
               num_parts: int) -> Record:
  """The record at the beginning: clean bool[N], logits f32[N, C] of the clean inputs x f32[N, ...]."""
  finite = _diagnostics.finite_logits(logits)
  with np.errstate(invalid='ignore'):
    centred_logit = np.nan_to_num(finite[:, 0] - finite.mean(axis=1), posinf=0., neginf=0.)
  return Record(
      np.zeros(num_parts, bool), ~clean, x.copy(), np.tile(clean, (num_attacks, 1)),
      np.zeros((num_attacks, len(batching.DIAGNOSTICS), len(x)), bool), np.zeros(num_attacks),
      np.zeros((num_attacks, len(batching.Passes._fields)), int), centred_logit, components.targets(logits))


def read(
    path: Path | None, identity: dict[str, str], record: Record, work: batching.Work,
    steppers: Sequence[_stepper.Stepper],
) -> tuple[Record, batching.Slots | None]:
  """Reads the record and the slots of a state file.

  Args:
    path: a file, or None.
    identity: the `fingerprint` of this evaluation.
    record: the record at the beginning.
    work: the examples.
    steppers: the stepper of each part.

  Returns:
    The record, which is the given one if there is no file, and the slots of the first part that is not done,
    or None if it has not begun.

  Raises:
    StateMismatch: if the fingerprint differs, the arrays have another layout, or the logits differ by more
      than rounding.
    zipfile.BadZipFile: if the file is damaged or incomplete.
  """
  saved = None if path is None else load(path)
  if saved is None:
    return record, None
  # Older versions stored one hash under the name 'mark', or counted no passes.
  if 'mark' in saved or ('fingerprint' in saved and 'passes' not in saved):
    raise _other_version(path, 'an older format')
  try:
    before = dict(saved['fingerprint'].tolist())
    differing = sorted({name for name, _ in before.items() ^ identity.items()})
    if differing:
      raise StateMismatch(f'{path} is the state of another evaluation (different {", ".join(differing)}): '
                          'remove it or use another path')
    found = Record(*(saved[name] for name in Record._fields))
    if [np.shape(array) for array in found] != [np.shape(array) for array in record]:
      raise _other_version(path, 'the record has other shapes')
    # On another device, a bfloat16 logit may change by one percent. Training changes most by far more.
    change = np.abs(record.centred_logit - found.centred_logit)
    if np.median(change) > .02 * np.median(np.abs(record.centred_logit)):
      raise StateMismatch(f'{path} is the state of an evaluation of another model: remove it or use '
                          'another path')
    if 'items' not in saved:
      return found, None
    slots = batching.Slots(saved['items'], saved['example'], saved['run'], int(saved['num_loaded']))
    return found, slots._replace(
        state=_read_state(path, saved, work, slots, steppers[int(np.argmin(found.done))]))
  except KeyError as error:
    raise zipfile.BadZipFile(f'{path} is damaged: {error} is missing') from error


def _read_state(path, saved, work, slots: batching.Slots, stepper: _stepper.Stepper) -> Any:
  init = lambda work, *at: stepper.init(batching.problem_at(work, batching.run_keys(work, 1), *at))
  state = jax.eval_shape(init, work, slots.example, slots.run)
  leaves = [saved[f'leaf{i}'] for i in range(sum(name.startswith('leaf') for name in saved))]
  layout = lambda leaves: [(leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves]
  if layout(leaves) != layout(jax.tree.leaves(state)):
    raise _other_version(path, f'the arrays are not those of {type(state).__module__}')
  return jax.tree.unflatten(jax.tree.structure(state), map(jnp.asarray, leaves))


def writer(path: Path | None, identity: dict[str, str], save_every: float) -> Callable[..., None]:
  """A function (record, slots) that writes the state.

  With slots it writes only if `save_every` seconds have passed since the last time, unless `now`; with None
  it always does.
  """
  last = time.monotonic()

  def write(record, slots=None, now=False):
    nonlocal last
    if path is None or (slots is not None and not now and time.monotonic() - last < save_every):
      return
    arrays = record._asdict() | {'fingerprint': np.array(sorted(identity.items()))}
    if slots is not None:
      contents = slots._asdict()
      leaves = jax.device_get(jax.tree.leaves(contents.pop('state')))
      arrays |= contents | {f'leaf{i}': leaf for i, leaf in enumerate(leaves)}
    save(path, arrays)
    last = time.monotonic()

  return write


def _part(path: Path) -> pathlib.Path:
  return pathlib.Path(f'{os.fspath(path)}.part')


def _other_version(path: Path, reason: str) -> StateMismatch:
  return StateMismatch(f'{path} was written by another version of the attack ({reason}): remove it or '
                       'use another path')


def _digest(arrays: Sequence[Array]) -> str:
  digest = hashlib.sha256()
  for array in map(np.asarray, arrays):
    digest.update(repr((array.shape, array.dtype)).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()[:32]

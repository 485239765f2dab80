"""What a run leaves: config.json, metrics.jsonl, TensorBoard events, results.json, verdicts.npz."""

from importlib import metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any, TextIO

import jax
import numpy as np
import tensorboardX
import tqdm

from at_jax import errors

_PACKAGES = ('at_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_NORMS = {'linf': 'L∞', 'l2': 'L2', 'l1': 'L1'}


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all.

  Args:
    path: the file.
    value: what `json` can write.

  Raises:
    errors.UserError: the folder is full or not writable.

  Source: ours.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    raise unwritable(path.parent, error) from error


def write_verdicts(directory: pathlib.Path, labels: np.ndarray,
                   verdicts: dict[str, dict[str, np.ndarray]]) -> None:
  """Writes verdicts.npz: who stood under what, an example each, so that runs can be paired.

  Args:
    directory: the work directory.
    labels: i32[N], found as 'labels'.
    verdicts: `{checkpoint: {attack: bool[N]}}`; the array is found as 'checkpoint/attack'.

  Raises:
    errors.UserError: the folder is full or not writable.

  Source: ours.
  """
  arrays = {f'{checkpoint}/{name}': v for checkpoint, found in verdicts.items()
            for name, v in found.items()}
  temporary = directory / 'verdicts.tmp.npz'
  try:
    np.savez_compressed(temporary, labels=labels, **arrays)
    os.replace(temporary, directory / 'verdicts.npz')
  except OSError as error:
    raise unwritable(directory, error) from error


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file, None where there is none.

  Args:
    path: the file.

  Returns:
    What it holds.

  Raises:
    errors.UserError: it is no JSON.

  Source: ours.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise errors.UserError('workdir', str(path.parent),
                           f'{path.name} cannot be read ({error}): name another folder') from error


def unwritable(directory: pathlib.Path, error: OSError) -> errors.UserError:
  """The user's view of a disk that does not take a file.

  Args:
    directory: where it was to be written.
    error: what the system said.

  Returns:
    The error to raise.

  Source: ours.
  """
  return errors.UserError('workdir', str(directory),
                          f'cannot write there ({error.strerror}): free some space or name another '
                          'folder')


def versions() -> dict[str, str]:
  """The versions of Python and of what decides a number.

  Returns:
    `{name: version}` of what is installed.

  Source: ours.
  """
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue  # run from a checkout that was not installed
  return found


def device() -> str:
  """The hardware in words.

  Returns:
    '2 × NVIDIA H200' or 'cpu (8 cores)', for example.

  Source: ours.
  """
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'cpu ({os.cpu_count()} cores)'
  return kind if len(devices) == 1 else f'{len(devices)} × {kind}'


class Metrics:
  """metrics.jsonl and TensorBoard events, as one stream.

  Args:
    workdir: the work directory.
    step: the step the run goes on from. What an earlier run logged beyond it is dropped, since it
      will be logged again.

  Raises:
    errors.UserError: the folder is full or not writable.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int):
    self._path = workdir / 'metrics.jsonl'
    self._workdir = workdir
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      lines = self._path.read_text().splitlines() if self._path.exists() else []
      # The last line of a killed run may be torn.
      whole = [line for line in lines if line.endswith('}') and json.loads(line)['step'] <= step]
      self._path.write_text(''.join(f'{line}\n' for line in whole))
      self._events = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)
    except OSError as error:
      raise unwritable(workdir, error) from error

  def write(self, step: int, **numbers: Any) -> None:
    """Appends one line; the numbers also become TensorBoard scalars."""
    try:
      with self._path.open('a', encoding='utf-8') as file:
        file.write(json.dumps({'step': step} | numbers) + '\n')
      for name, value in numbers.items():
        if isinstance(value, float):
          self._events.add_scalar(name, value, step)
      self._events.flush()
    except OSError as error:
      raise unwritable(self._workdir, error) from error

  def close(self) -> None:
    """Closes the TensorBoard file."""
    self._events.close()


def warn(line: str) -> None:
  """Shows a warning on stderr at once, above the progress bar that may be there.

  Args:
    line: without a line's end.

  Source: ours.
  """
  tqdm.tqdm.write(f'warning: {line}', file=sys.stderr)


class Progress:
  """How far long work has come: a bar on a terminal, a line now and then elsewhere.

  Elsewhere work that is over within `every` seconds says nothing: an evaluation may consist of a
  hundred such parts, and its table tells what each came to.

  Args:
    title: what is being done.
    total: examples in all.
    done: examples done before.
    every: seconds between lines where there is no terminal.
    file: where it is shown; by default stderr.
  """

  def __init__(self, title: str, total: int, *, done: int = 0, every: float = 10,
               file: TextIO | None = None):
    file = file or sys.stderr
    self._title, self._total, self._done, self._every = title, total, done, every
    self._file, self._begin, self._before = file, time.monotonic(), done
    self._shown = self._begin
    self._bar = None
    if file.isatty():
      self._bar = tqdm.tqdm(total=total, initial=done, desc=title, unit=' examples',
                            unit_scale=True, dynamic_ncols=True, file=file)

  def show(self, done: int, note: str = '') -> None:
    """Says how many examples are done; the note is shown behind the rate and the time left."""
    if self._bar is not None:
      self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(done - self._done)
    self._done = done
    if self._bar is not None:
      return
    now = time.monotonic()
    over = self._done >= self._total and now - self._begin >= self._every
    if now - self._shown < self._every and not over:
      return
    self._shown = now
    rate = (self._done - self._before) / max(now - self._begin, 1e-9)
    left = (self._total - self._done) / max(rate, 1e-9)
    print(f'{self._title}: {self._done}/{self._total} examples, {rate:.0f}/s, {left:.0f} s left'
          f'{", " if note else ""}{note}', file=self._file, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()


def table(results: dict[str, Any]) -> str:
  """What results.json says, for a terminal: best beside last, deployed beside the paper's protocol.

  Args:
    results: as `train.train_and_evaluate` returns it.

  Returns:
    Lines of text.

  Source: ours.
  """
  best, last = results, results['last']
  rows = [('clean', best['clean'], last['clean'])]
  for name in best['robust']:
    after = [(part, best['components'][name][part], last['components'][name][part])
             for part in best['components'].get(name, ())]
    rows += [(f'  {name}, after {part}', *accuracies) for part, *accuracies in after]
    rows.append((name, best['robust'][name], last['robust'][name]))
  rows += [(f"{name}, authors' protocol", best['authors'][name], last['authors'][name])
           for name in best['authors']]
  rows.append(('worst case of all', best['worst_case'], last['worst_case']))
  rows.append(('worst case, worst class', best['worst_class'], last['worst_class']))
  if 'inference' in best:
    before = [told['inference']['as_trained'] for told in (best, last)]
    rows += [(f'as trained, {name}', *(found[field] for found in before))
             for name, field in (('clean', 'clean'), ('worst case of all', 'worst_case'),
                                 ('its worst class', 'worst_class'))]
  asked = results['config']['evaluate']
  title = (f"{results['dataset']}, {results['n']} test examples, seed {results['seed']}, "
           f"{_NORMS[asked['norm']]} {asked['epsilon_255']:g}/255")
  lines = [title, f"{'accuracy of the deployed model':32}  best (step {best['step']})"
           f"  last (step {last['step']})"]
  widths = [len(f"best (step {best['step']})"), len(f"last (step {last['step']})")]
  lines += [f'{name:32}  {a:>{widths[0]}.4f}  {b:>{widths[1]}.4f}' for name, a, b in rows]
  for checkpoint, told in (('best', best), ('last', last)):
    if checkpoint == 'best' or best['step'] != last['step']:
      lines += [f'warning: {checkpoint} checkpoint, {name}: {doubt}'
                for name, doubts in told['warnings'].items() for doubt in doubts]
  return '\n'.join(lines)

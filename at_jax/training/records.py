"""Files that a run writes, and its progress on the terminal."""

from collections.abc import Iterator, Mapping
import contextlib
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
from tqdm import auto

from at_jax import devices, environment, errors
from at_jax.training import tensorboard

_PACKAGES = ('at_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# The accuracies come first: a narrow terminal cuts the time and the rate off.
_BAR = '{desc} {percentage:3.0f}%{postfix} |{bar}| {remaining} left, {rate_noinv_fmt}'


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file atomically.

  Args:
    path: the file.
    value: a JSON value.

  Raises:
    errors.UserError: if the folder is full or not writable.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    raise errors.unwritable(path.parent, error) from error


def write_verdicts(directory: pathlib.Path, labels: np.ndarray,
                   verdicts: dict[str, dict[str, np.ndarray]]) -> None:
  """Writes verdicts.npz: the verdict of each example under each attack, for paired comparisons.

  Args:
    directory: the work directory.
    labels: i32[N], stored as 'labels'.
    verdicts: `{checkpoint: {attack: bool[N]}}`, stored as 'checkpoint/attack'.

  Raises:
    errors.UserError: if the folder is full or not writable.
  """
  arrays = {f'{checkpoint}/{name}': v for checkpoint, found in verdicts.items()
            for name, v in found.items()}
  temporary = directory / 'verdicts.tmp.npz'
  try:
    np.savez_compressed(temporary, labels=labels, **arrays)
    os.replace(temporary, directory / 'verdicts.npz')
  except OSError as error:
    raise errors.unwritable(directory, error) from error


def set_results_aside(directory: pathlib.Path, step: int) -> None:
  """Renames results.json and verdicts.npz, if they exist, to results-STEP.json and verdicts-STEP.npz.

  Args:
    directory: the work directory.
    step: STEP if results.json is missing, damaged or without a step.

  Raises:
    errors.UserError: if the folder is not writable.
  """
  with contextlib.suppress(errors.UserError, AttributeError, KeyError, TypeError):  # damaged, or none
    results = read_json(directory / 'results.json')
    step = results.get('last', results)['step']
  for name in ('results.json', 'verdicts.npz'):  # first the one that says that a run is finished
    path = directory / name
    if path.exists():
      aside = path.with_stem(f'{path.stem}-{step}')
      try:
        path.replace(aside)
      except OSError as error:
        raise errors.unwritable(directory, error) from error
      environment.log(f'{path} is of step {step}: set aside as {aside.name}')


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Args:
    path: the file.

  Returns:
    Its content; None if there is no file.

  Raises:
    errors.UserError: if the content is not JSON.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise errors.UserError('workdir', str(path.parent),
                           f'{path.name} cannot be read ({error}): name another folder') from error


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that decide a number.

  Returns:
    `{name: version}` of those that are installed.

  Example:
    >>> versions()['jax'] == jax.__version__
    True
  """
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue  # a checkout that is not installed
  return found


def device() -> str:
  """Names the hardware.

  Returns:
    For example '2 × NVIDIA H200' or 'cpu (8 cores)'.
  """
  every = jax.devices()
  kind = every[0].device_kind
  if every[0].platform == 'cpu':
    kind = f'cpu ({os.cpu_count()} cores)'
  return kind if len(every) == 1 else f'{len(every)} × {kind}'


class Metrics:
  """Writes metrics.jsonl and TensorBoard events.

  Args:
    workdir: the work directory.
    step: the step from which the run resumes. Later lines of an earlier run are removed, because they will be
      written again.

  Raises:
    errors.UserError: if the folder is full or not writable.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int):
    self._path = workdir / 'metrics.jsonl'
    self._workdir = workdir
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      kept = [line for line in read_metrics(workdir) if line['step'] <= step]
      temporary = self._path.with_suffix('.tmp')  # a kill while it is written must not lose the lines
      temporary.write_text(''.join(f'{json.dumps(line)}\n' for line in kept), encoding='utf-8')
      os.replace(temporary, self._path)
      self._events = tensorboard.Events(workdir / 'tensorboard', first_step=step + 1)
    except OSError as error:
      raise errors.unwritable(workdir, error) from error

  def write(self, step: int, **numbers: Any) -> None:
    """Appends one line; floats, also those of a dictionary, become TensorBoard scalars."""
    with self._writing():
      with self._path.open('a', encoding='utf-8') as file:
        file.write(json.dumps({'step': step} | numbers) + '\n')
      for name, value in _scalars(numbers):
        self._events.scalar(step, name, value)
      self._events.flush()

  def draw(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Adds images to TensorBoard: uint8[H, W, C] by name."""
    with self._writing():
      for name, image in images.items():
        self._events.image(step, name, image)
      self._events.flush()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise errors.unwritable(self._workdir, error) from error

  def close(self) -> None:
    """Closes the TensorBoard file."""
    self._events.close()


def _scalars(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """The floats of a line; one in a dictionary is named 'name/key'."""
  for name, value in numbers.items():
    each = value if isinstance(value, dict) else {None: value}
    for key, number in each.items():
      if isinstance(number, float):
        yield (name if key is None else f'{name}/{key}'), number


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the lines of metrics.jsonl, without one that a kill or a full disk left incomplete.

  Args:
    workdir: the folder of a run.

  Returns:
    Objects that have a 'step'; none without the file.
  """
  path, found = workdir / 'metrics.jsonl', []
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return [line for line in found if isinstance(line, dict) and isinstance(line.get('step'), int)]


class Silent:
  """Takes the place of `Metrics` and `Progress` in processes that do not write: every method does nothing."""

  def __getattr__(self, name: str) -> Any:
    return lambda *arguments, **options: None


def log(line: str) -> None:
  """Prints a line to stderr, above a progress bar if there is one; of several processes, process 0 does.

  Args:
    line: the message.
  """
  if not devices.is_first():
    return
  with auto.tqdm.external_write_mode(sys.stderr):
    environment.log(line)


def warn(line: str) -> None:
  """Prints a warning as `log` does.

  Args:
    line: the message.
  """
  log(f'warning: {line}')


class Progress:
  """Progress of long work: a bar on a terminal or in a notebook, otherwise one line every `every` seconds.

  Without a bar, work that takes less than `every` seconds prints nothing: an evaluation may have a
  hundred such parts.

  Args:
    title: what is being done.
    total: number of examples.
    done: number of examples done before.
    every: seconds between lines without a bar.
    file: where to print; default stderr.
  """

  def __init__(self, title: str, total: int, *, done: int = 0, every: float = 10,
               file: TextIO | None = None):
    file = file or sys.stderr
    self._title, self._total, self._done, self._every = title, total, done, every
    self._file, self._begin, self._before = file, time.monotonic(), done
    self._shown = self._begin
    self._bar = None
    if _overwrites(file):
      self._bar = auto.tqdm(total=total, initial=done, desc=title, unit='', unit_scale=True,
                            dynamic_ncols=True, bar_format=_BAR, file=file)

  def show(self, done: int, note: str = '') -> None:
    """Updates the number of examples done, and the note, such as accuracies."""
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
    environment.log(f'{self._title}: {self._done}/{self._total} examples, {rate:.0f}/s, {left:.0f} s left'
                    f'{", " if note else ""}{note}', self._file)

  def close(self) -> None:
    """Stops updating the bar."""
    if self._bar is not None:
      self._bar.close()


def _overwrites(file: TextIO | None) -> bool:
  """Whether a line of a stream can be written again: on a terminal, and below a cell of a notebook."""
  if file is None:  # in a process without a stderr
    return False
  return file.isatty() or type(file).__module__.startswith('ipykernel.')

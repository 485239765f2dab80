"""The command `python -m at_jax.main --config=configs/X.py [--workdir=DIR] [--mode=train|evaluate]`.

With `--distributed=…` it is one of the processes of a run; docs/training.md says how to start them.
"""

import importlib.util
import shlex
import signal
import sys
import traceback
import warnings

from at_jax import environment, errors

_NEEDED = ('absl', 'ml_collections', 'flax', 'optax', 'orbax.checkpoint', 'tensorboardX', 'PIL', 'tqdm')


def main(arguments: list[str] | None = None) -> int:
  """Runs the command.

  Args:
    arguments: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0, also if a scheduler's signal ended the run with its state saved; 130 after Ctrl-C; 2
    after a line on stderr with the error and the remedy.
  """
  try:
    return _run(sys.argv[1:] if arguments is None else arguments)
  except KeyboardInterrupt:  # before or after `interrupts.watch`, or a second Ctrl-C
    return _fail('SIGINT: stopped at once: the same command resumes after the last checkpoint, if there is '
                 'one', 130)


def _run(arguments: list[str]) -> int:
  missing = [name for name in _NEEDED if not _installed(name)]
  if missing:
    return _fail(f'at_jax.main needs {", ".join(missing)}, which are not installed: '
                 "pip install 'at_jax[train,data]'")
  from at_jax import xla_flags
  xla_flags.tune()  # before jax is imported
  from absl import logging

  from at_jax import devices
  from at_jax.config import command_line
  logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks of errors that are one line here
  if {'--help', '-h'} & set(arguments):
    print(f'{command_line.USAGE}\nevery field with its default, values and meaning: python -m at_jax.config')
    return 0
  warnings.formatwarning = errors.one_line
  try:
    parsed = command_line.parse(arguments)
    devices.initialize(parsed.cluster)
    # Orbax and the rest take seconds: after the command line is checked.
    from at_jax.training import interrupts, loop
    command = shlex.join(['python', '-m', 'at_jax.main', *arguments])
    run = {'train': loop.train_and_evaluate, 'evaluate': loop.evaluate_only}[parsed.mode]
    _hide_closed_loop_errors()
    try:
      run(parsed.config, parsed.workdir, command)
    except interrupts.Preempted as stopped:
      if devices.is_first():
        environment.log(str(stopped))
      return 130 if stopped.number == signal.SIGINT else 0
  except errors.UserError as error:
    return _fail(str(error))
  return 0


def _installed(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # the parent package is missing
    return False


def _hide_closed_loop_errors() -> None:
  # When a write fails, orbax closes its event loop, and its other writes print tracebacks from threads of
  # tensorstore, some after this command has printed its message. `checkpoints` reports the failure.
  report = sys.unraisablehook
  sys.unraisablehook = lambda raised: (
      None if str(raised.exc_value) == 'Event loop is closed' else report(raised))


def _fail(line: str, code: int = 2) -> int:
  environment.log(f'at_jax: {line}')
  return code


def _process() -> int:
  """`main` in a process of its own, for which no other process waits if it fails."""
  try:
    code = main()
  except Exception:
    traceback.print_exc()
    code = 1
  if code and 'at_jax.devices' in sys.modules:
    sys.modules['at_jax.devices'].leave(code)
  return code


if __name__ == '__main__':
  sys.exit(_process())

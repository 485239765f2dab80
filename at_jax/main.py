"""The command: `python -m at_jax.main --config=configs/X.py [--workdir=DIR] [--mode=…]`."""

import importlib.util
import shlex
import sys

_NEEDED = ('absl', 'ml_collections', 'flax', 'optax', 'orbax.checkpoint', 'tensorboardX', 'tqdm')


def main(arguments: list[str] | None = None) -> int:
  """Runs the command.

  Args:
    arguments: the command line without the program; by default this process's.

  Returns:
    The exit code: 0, also after --help, or 2 after one line that says what is wrong with what was
    asked for.
  """
  arguments = sys.argv[1:] if arguments is None else arguments
  missing = [name for name in _NEEDED if not _installed(name)]
  if missing:
    return _fail(f'at_jax.main needs {", ".join(missing)}, which are not installed: '
                 "pip install 'at_jax[train,data]'")
  from at_jax import xla_flags
  xla_flags.tune()  # before jax is imported
  from absl import logging

  from at_jax import errors
  from at_jax.config import command_line, fields
  logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks of what is said in one line here
  if {'--help', '-h'} & set(arguments):
    print(f'{command_line.USAGE}\nEvery field, its default and its meaning: {fields.__file__}')
    return 0
  try:
    asked = command_line.parse(arguments)
    from at_jax.training import loop
    command = shlex.join(['python', '-m', 'at_jax.main', *arguments])
    run = {'train': loop.train_and_evaluate, 'evaluate': loop.evaluate_only}[asked.mode]
    _leave_closed_loops_unsaid()
    try:
      run(asked.config, asked.workdir, command)
    except loop.Preempted as stopped:
      print(stopped, file=sys.stderr)
  except errors.UserError as mistake:
    return _fail(str(mistake))
  return 0


def _installed(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # of a parent package
    return False


def _leave_closed_loops_unsaid() -> None:
  # When a write fails, orbax closes the loop that its other writes answer to, and each says so by a
  # traceback from a thread of tensorstore's: some only after this command has said its one line, so
  # the hook stays to the end of the process. `checkpoints` reports the failure itself.
  report = sys.unraisablehook
  sys.unraisablehook = lambda raised: (
      None if str(raised.exc_value) == 'Event loop is closed' else report(raised))


def _fail(line: str) -> int:
  print(f'at_jax: {line}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main())

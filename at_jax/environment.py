"""Local paths as users write them, and output on streams of any encoding."""

import argparse
import contextlib
import os
import pathlib
import re
import sys
from typing import TextIO

from at_jax import errors

_REMOTE = re.compile('[a-z][a-z0-9+.-]+:/')  # gs://bucket; pathlib makes it gs:/bucket


def local_path(field: str, path: str | os.PathLike) -> pathlib.Path:
  """Reads a path as a user writes it: `~` is the home folder, and a bucket is refused.

  Runs append to files, rename and lock them, which buckets do not offer.

  Args:
    field: name of the argument or field, for the error message.
    path: the path.

  Returns:
    The path on this machine.

  Raises:
    errors.UserError: if it is no path, or a URL, such as gs://bucket/run.

  Example:
    >>> local_path('workdir', 'runs/x')
    PosixPath('runs/x')
    >>> local_path('workdir', '~/x') == pathlib.Path.home() / 'x'
    True
  """
  if not isinstance(path, (str, os.PathLike)):
    raise errors.UserError(field, path, "use a path, such as 'runs/quickstart'")
  text = os.fspath(path)
  if _REMOTE.match(text):
    raise errors.UserError(field, text, 'only local paths can be used: name a local one, and copy what is '
                           'written to the bucket afterwards')
  return pathlib.Path(os.path.expanduser(text))


def printable(text: str, file: TextIO | None = None) -> str:
  """Escapes the characters that a stream cannot encode, such as ε in ASCII.

  Args:
    text: what is to be printed.
    file: the stream; default stdout.

  Returns:
    The text, with escapes as those of Python literals.

  Example:
    >>> import io
    >>> printable('ε = 8', io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    '\\\\u03b5 = 8'
  """
  encoding = getattr(file or sys.stdout, 'encoding', None) or 'utf-8'
  return text.encode(encoding, 'backslashreplace').decode(encoding)


class _Parser(argparse.ArgumentParser):
  """Prints an error as one line, without the usage."""

  def error(self, message):
    log(f'at_jax: {message}: `{self.prog} --help` lists the arguments')
    self.exit(2)


def parser(program: str, text: str) -> argparse.ArgumentParser:
  """Makes the parser of a command, whose help is the docstring of its module and whose errors are one line.

  Args:
    program: how the command is typed, without its arguments.
    text: the docstring.

  Returns:
    The parser, without arguments. Its help keeps the lines of the text.

  Example:
    >>> parser('python -m mine', 'What it does.').format_usage()
    'usage: python -m mine [-h]\\n'
  """
  # Abbreviated options would have another meaning once a new option begins like them.
  return _Parser(prog=program, description=printable(text), allow_abbrev=False,
                 formatter_class=argparse.RawDescriptionHelpFormatter)


def log(text: str, file: TextIO | None = None) -> None:
  """Prints a message. A closed or missing stream is ignored, because it must not end a run.

  Args:
    text: the message.
    file: the stream; default stderr.
  """
  file = file or sys.stderr
  if file is not None:  # a process may have no stderr
    with contextlib.suppress(OSError, ValueError):
      print(printable(text, file), file=file, flush=True)

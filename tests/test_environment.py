"""Paths as users write them, output in ASCII, and the remedy of each failed write."""

import ast
import contextlib
import errno
import io
import os
import pathlib
import pickle
import runpy
import sys
import types

import jax
import numpy as np
import pytest

from at_jax import attacks, environment, errors, main
from at_jax.analysis import evaluations, table
from at_jax.config import command_line
from at_jax.config import default as default_config
from at_jax.training import finetune, interrupts, loop, records, restore
from tests.fixtures.command_errors import QUICK, ROOT, message

BUCKETS = ('gs://bucket/run', 's3://bucket/run', 'hdfs://host/x', pathlib.Path('gs://bucket/run'))


@pytest.mark.parametrize('path', BUCKETS, ids=str)
def test_buckets_are_refused(path):
  with pytest.raises(errors.UserError, match=r"^workdir = '.*:/.*': only local paths can be used"):
    environment.local_path('workdir', path)


@pytest.mark.parametrize('path', ['runs/x', '/tmp/a:b/c', 'a:b', 'C:/runs', 'run-12:30/x', './gs:/x'])
def test_local_paths_are_unchanged(path):
  assert environment.local_path('workdir', path) == pathlib.Path(path)


@pytest.mark.parametrize('path', [None, 3, b'runs/x'])
def test_what_is_no_path_is_one_line(path):
  from at_jax.training import loop
  for use in (loop.train_and_evaluate, loop.evaluate_only):
    with pytest.raises(errors.UserError, match=f"workdir = {path!r}: use a path, such as 'runs/quickstart'"):
      use(default_config(), path, 'command')


def test_home_is_expanded_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = tmp_path / 'mine.py'
  config.write_text((ROOT / 'configs' / 'pgd_at_cifar10.py').read_text(encoding='utf-8'), encoding='utf-8')
  asked = command_line.parse(['--config=~/mine.py:small', '--workdir=~/runs/x'])
  assert asked.workdir == tmp_path / 'runs' / 'x' and asked.config.epochs
  assert command_line.parse(['--config=~/mine.py']).workdir == pathlib.Path('runs/mine')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match="--config = ':/data': .*known: :"):  # a variant and no URL
    command_line.parse(['--config=mine.py:/data'])
  (tmp_path / 'config.json').write_text('{')
  for read in (restore.read_config, restore.load, lambda path: restore.export(path, 'x')):
    with pytest.raises(errors.UserError) as error:
      read('~')
    assert error.value.value == str(tmp_path)
  (tmp_path / 'page.md').write_text(f'{table.BEGIN}{table.END}')
  table.write('~/page.md', 'text')
  assert 'text' in (tmp_path / 'page.md').read_text()


def test_no_function_makes_a_folder_of_a_bucket(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = default_config()
  for call in (lambda path: loop.train_and_evaluate(config, path, ''), restore.load, restore.read_config,
               restore.steps, lambda path: loop.evaluate_only(config, path, ''),
               lambda path: restore.export('x', path), evaluations.read, lambda path: table.write(path, '')):
    with pytest.raises(errors.UserError, match='only local paths'):
      call('gs://bucket/run')
  config.finetune.source = 's3://bucket/run'
  with pytest.raises(errors.UserError, match='config.finetune.source = .*only local paths'):
    finetune._source_config(types.SimpleNamespace(config=config))
  assert "--workdir = 'gs://bucket/run': only local" in message(capsys, QUICK, '--workdir=gs://bucket/run')
  assert "--config = 's3://bucket/x.py': only local" in message(capsys, '--config=s3://bucket/x.py')
  assert table.main(['gs://bucket/runs']) == 2 and 'only local paths' in capsys.readouterr().err
  with pytest.raises(ValueError, match="^state_path = 'gs://bucket/x.npz': name a local file"):
    attacks.autoattack(lambda x: x, np.array([[.2, .8]]), np.array([1]), jax.random.key(0), epsilon=.1,
                       state_path='gs://bucket/x.npz')
  assert not list(tmp_path.iterdir())


def test_every_text_file_has_an_encoding():
  # The default depends on the locale: cp1252 on many Windows machines, ASCII in some containers.
  libraries = 'Image.open', 'epath.Path(path).open'  # Pillow reads bytes, epath UTF-8
  names, found, calls = {'open', 'read_text', 'write_text', 'fdopen', 'TextIOWrapper'}, [], 0
  for path in sorted((ROOT / 'at_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      name = isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', None))
      if name not in names or ast.unparse(node.func) in libraries:
        continue
      calls += 1
      mode = next((a.value for a in node.args if isinstance(a, ast.Constant) and a.value in ('rb', 'wb')), '')
      if not mode and 'encoding' not in {keyword.arg for keyword in node.keywords}:
        found.append(f'{path.name}:{node.lineno}: {ast.unparse(node)}')
  assert calls > 8 and not found


@pytest.mark.parametrize('encoding, expected', [
    ('ascii', '\\u03b5 \\xb1 \\u2016 \\udcff'), ('cp1252', '\\u03b5 ± \\u2016 \\udcff'),
    ('utf-8', 'ε ± ‖ \\udcff')])
def test_streams_of_any_encoding_take_any_text(encoding, expected):
  raw = io.BytesIO()
  file = io.TextIOWrapper(raw, encoding=encoding)
  environment.log('ε ± ‖ \udcff', file)  # the last: a byte of a file name that is not UTF-8
  assert raw.getvalue().decode(encoding) == f'{expected}\n'


def test_commands_print_in_ascii(monkeypatch):
  def printed(command):
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', stream)
    with contextlib.suppress(SystemExit):
      command()
    stream.seek(0)
    return ' '.join(stream.read().split())

  assert '\\u03b2 of TRADES' in printed(lambda: runpy.run_module('at_jax.config', run_name='__main__'))
  assert 'mean \\xb1 standard' in printed(lambda: table.main(['--help']))
  assert 'every field' in printed(lambda: main.main(['--help']))


class Closed(io.StringIO):
  """A terminal that is gone."""

  def write(self, text):
    raise BrokenPipeError


def test_closed_terminal_does_not_end_a_run(monkeypatch, capsys):
  environment.log('text', Closed())
  closed = io.StringIO()
  closed.close()
  environment.log('text', closed)
  monkeypatch.setattr(sys, 'stderr', None)  # a process that was started without one
  environment.log('text')
  records.Progress('training', 3).show(3)
  assert not capsys.readouterr().out


@pytest.mark.parametrize('reason, remedy', [
    (errno.ENOSPC, 'free some space'), (errno.EDQUOT, 'free some space'),
    (errno.EROFS, 'where you may write'), (errno.EACCES, 'where you may write'),
    (errno.ENOTDIR, 'something else has that name'),
    (errno.EMFILE, 'ulimit -n'), (errno.EIO, 'name another folder')])
def test_remedy_fits_the_reason_of_a_failed_write(reason, remedy):
  text = os.strerror(reason)
  repeated = RuntimeError(f'Write failed:\nlayer: [OS error {reason}: {text}]')  # as tensorstore does
  for error in (OSError(reason, text, '/x/y'), repeated):
    line = str(errors.unwritable(pathlib.Path('x'), error))
    assert f'({text}): ' in line and remedy in line and '\n' not in line
    assert ('free some space' in line) == (remedy == 'free some space')


def test_errors_of_a_run_reach_other_processes():
  # Process pools and Ray pickle the exception of a worker.
  for error in (errors.UserError('seed', -1, 'use 0'), interrupts.Preempted(15, 'after step 3 of 9')):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_reason_of_another_error_is_the_last_of_its_message():
  line = str(errors.unwritable(pathlib.Path('x'), ValueError('orbax: step 3: exists already')))
  assert line == "workdir = 'x': cannot write there (exists already): name another folder"
  assert '(KeyError)' in str(errors.unwritable(pathlib.Path('x'), KeyError()))

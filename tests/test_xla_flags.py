"""The option of XLA and the folder of compiled programs that commands set before they import jax."""

import os
import pathlib
import subprocess
import sys

import pytest

from at_jax import xla_flags


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
  """A process whose user has set nothing, with an empty cache folder and no accelerator."""
  for name in ('XLA_FLAGS', 'AT_JAX_CACHE', 'JAX_COMPILATION_CACHE_DIR',
               'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
    monkeypatch.setenv(name, '')  # so that the end of the test restores it
    monkeypatch.delenv(name)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')


def never(*arguments, **options):
  raise AssertionError('a process was started')


@pytest.mark.oldest
def test_the_option_is_set_if_jaxlib_knows_it(monkeypatch):
  xla_flags.tune()
  flags = os.environ.get('XLA_FLAGS', '')
  script = """
import jax
try:
  jax.jit(lambda: 0, compiler_options={'xla_cpu_experimental_ynn_fusion_type': ''})()
  print(True)
except Exception:
  print(False)
"""
  known = subprocess.run([sys.executable, '-c', script], check=True, text=True, stdout=subprocess.PIPE)
  assert known.stdout.strip() == str(flags == xla_flags._OPTION)  # jax.jit answers the same question
  monkeypatch.setattr(subprocess, 'run', never)  # the second start reads the answer
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  xla_flags.tune()
  assert os.environ.get('XLA_FLAGS', '') == flags


def test_an_unknown_option_is_not_set(monkeypatch):
  monkeypatch.setattr(xla_flags, '_OPTION', '--xla_no_such_option=')
  xla_flags.tune()
  assert 'XLA_FLAGS' not in os.environ
  monkeypatch.setattr(subprocess, 'run', never)
  xla_flags.tune()
  assert 'XLA_FLAGS' not in os.environ


def test_a_failure_to_ask_is_not_remembered(monkeypatch, tmp_path):
  failed = subprocess.CompletedProcess([], 1, stderr=b'out of memory')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: failed)
  xla_flags.tune()
  assert 'XLA_FLAGS' not in os.environ and not list((tmp_path / 'at_jax').iterdir())


def test_what_the_user_has_set_wins(monkeypatch):
  monkeypatch.setattr(subprocess, 'run', never)
  monkeypatch.setenv('XLA_FLAGS', f'--a=1 {xla_flags._OPTION}X')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'mine')
  xla_flags.tune()
  assert os.environ['XLA_FLAGS'] == f'--a=1 {xla_flags._OPTION}X'
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == 'mine'


def test_processes_wait_longer_if_jaxlib_knows_the_option(monkeypatch):
  xla_flags.wait_longer()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_collective_timeout_seconds=604800'
  subprocess.run([sys.executable, '-c', xla_flags._START_CPU], check=True)
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_collective_timeout_seconds=9')
  xla_flags.wait_longer()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_collective_timeout_seconds=9'


def test_programs_are_kept_in_the_users_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setattr(xla_flags, '_is_known', lambda *_: False)
  xla_flags.tune()
  folder = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  assert folder.parent == tmp_path / 'at_jax'
  script = 'import jax; print(jax.jit(lambda x: x @ x)(jax.numpy.ones((9, 9)))[0, 0])'
  environment = os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  subprocess.run([sys.executable, '-c', script], check=True, env=environment)
  assert list(folder.iterdir())


@pytest.mark.parametrize('setting', ['off', 'not a folder', 'read-only', 'no home'])
def test_no_cache_is_not_an_error(monkeypatch, tmp_path, setting):
  monkeypatch.setattr(xla_flags, '_is_known', lambda *_: False)
  if setting == 'off':
    monkeypatch.setenv('AT_JAX_CACHE', 'off')
  elif setting == 'not a folder':
    (tmp_path / 'at_jax').write_text('')
  elif setting == 'read-only':
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write to every folder
  else:
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  xla_flags.tune()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ

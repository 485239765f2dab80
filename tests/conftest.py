"""Marks of the test suite, its cache of compiled programs, and hypothesis' seed."""

import os
import pathlib
import shutil
import sys
import tempfile

import hypothesis
import pytest

# Commands, not tests.
collect_ignore = ['released_code/make_reference.py', 'released_code/checkouts.py']
# The same examples in every run.
hypothesis.settings.register_profile('default', deadline=None, derandomize=True)
hypothesis.settings.load_profile('default')
_MADE = []


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('markers', 'long: takes minutes; launch/test.sh --all runs it')
  config.addinivalue_line('markers', 'oldest: also runs with the oldest jax that is supported')
  # Most of the time goes into compiling, and many tests compile the same programs: workers and the
  # commands that tests start share what one has compiled. It is new for each run of the suite.
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _MADE.append(tempfile.mkdtemp(prefix='at_jax_tests_'))
    os.environ.update(JAX_COMPILATION_CACHE_DIR=_MADE[0],
                      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1',
                      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')
  # Nearly all of the time of a tiny program is compiling, so most optimizations are left out.
  os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')


@pytest.fixture(scope='module')
def fully_compiled():
  """Programs as users have them, in this process and in the commands it starts."""
  import jax  # not before its cache of programs has been named
  hastily = jax.config.read('jax_disable_most_optimizations')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '0')
    jax.config.update('jax_disable_most_optimizations', False)
    if hastily:
      jax.clear_caches()  # of programs that other modules share with these
    yield
    jax.config.update('jax_disable_most_optimizations', hastily)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Each compiled program maps memory some times; a process may do so 65,530 times, then it crashes."""
  if nextitem and nextitem.parent is item.parent and not item.get_closest_marker('long'):
    return  # to look takes longer than many a test
  maps = pathlib.Path('/proc/self/maps')
  if 'jax' in sys.modules and maps.exists() and len(maps.read_bytes().splitlines()) > 15_000:
    sys.modules['jax'].clear_caches()


def pytest_unconfigure() -> None:
  for folder in _MADE:
    shutil.rmtree(folder, ignore_errors=True)

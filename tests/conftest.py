"""Markers, the shared compilation cache, compiler settings and hypothesis' seed of the test suite."""

import os
import pathlib
import shutil
import signal
import sys
import tempfile

import hypothesis
import pytest

collect_ignore = ['released_code/make_reference.py', 'released_code/checkouts.py']  # commands
# Every run tests the same examples.
hypothesis.settings.register_profile('default', deadline=None, derandomize=True)
hypothesis.settings.load_profile('default')
# Tests of files, messages, pages, options, bookkeeping and composition, and of released code in float64,
# which rounding does not affect. They and the examples of docstrings compile without most optimizations, in a
# quarter to two thirds of the CPU time. Tests that compare attacks, losses or the training step in float32
# with a number compile programs as users do.
_TESTS = pathlib.Path(__file__).parent
_LIGHTLY_COMPILED = tuple(f'{_TESTS}/{name}' for name in (
    'analysis', 'attacks/autoattack/test_audit', 'attacks/autoattack/test_batching',
    'attacks/autoattack/test_driver', 'attacks/autoattack/test_multihost',
    'attacks/autoattack/test_state_file', 'attacks/autoattack/test_verdicts', 'attacks/test_any_model',
    'attacks/test_arguments', 'attacks/test_composition', 'attacks/test_diagnostics', 'attacks/test_draws',
    'attacks/test_masks', 'attacks/test_model', 'attacks/test_pgd_friendly', 'attacks/test_pgd_options',
    'attacks/test_random', 'attacks/test_reference', 'attacks/test_square_channels', 'config',
    'datasets/test_autoaugment', 'datasets/test_pipeline', 'evaluation', 'methods/test_carried',
    'methods/test_cfa', 'methods/test_entropy_sgd_composes', 'methods/test_finetune',
    'methods/test_inner_attacks', 'methods/test_objective', 'methods/test_single_step', 'models',
    'released_code', 'test_launch', 'test_readme', 'training/test_ahead_of_time', 'training/test_batchnorm',
    'training/test_checkpoints', 'training/test_compose', 'training/test_doubtful_settings',
    'training/test_entropy_run', 'training/test_epoch', 'training/test_fair_average',
    'training/test_final_evaluation', 'training/test_finetune', 'training/test_loop',
    'training/test_model_selection', 'training/test_processes', 'training/test_promotion',
    'training/test_reductions', 'training/test_restore', 'training/test_streams',
    'training/test_user_functions', 'training/test_watch'))
_CHOSEN_BY_USER = 'JAX_DISABLE_MOST_OPTIMIZATIONS' in os.environ
_TEMPORARY = []


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('markers', 'long: takes minutes; launch/test.sh --all runs it')
  config.addinivalue_line('markers', 'oldest: also runs with the oldest supported jax')
  # A background job ignores SIGINT and nohup SIGHUP; so would the commands that tests send these signals to.
  for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
      signal.signal(number, handler)
  # Most of the time goes into compiling, and many tests compile the same programs. The workers and the
  # commands that tests start share a cache, which is new for each run of the suite.
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _TEMPORARY.append(tempfile.mkdtemp(prefix='at_jax_tests_'))
    os.environ.update(JAX_COMPILATION_CACHE_DIR=_TEMPORARY[0],
                      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1',
                      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')


def _is_light(item: pytest.Item) -> bool:
  is_docstring = _TESTS not in item.path.parents
  return not _CHOSEN_BY_USER and (is_docstring or str(item.path).startswith(_LIGHTLY_COMPILED))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=lambda item: not _is_light(item))  # the settings change once, see `_compile_lightly`
  _compile_lightly(any(map(_is_light, items)))  # the fixture below does not reach the examples of docstrings


@pytest.fixture(scope='module', autouse=True)
def compiler_settings(request: pytest.FixtureRequest):
  """Compiles the programs of `_LIGHTLY_COMPILED`, here and in child processes, without optimizations."""
  _compile_lightly(_is_light(request.node))
  if not _is_light(request.node):
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    yield


def _compile_lightly(light: bool) -> None:
  import jax  # after the cache has been named
  if jax.config.read('jax_disable_most_optimizations') != light:
    jax.clear_caches()  # of programs with the other settings; hundreds of small ones compile again
    jax.config.update('jax_disable_most_optimizations', light)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Frees programs: a process may map memory only 65,530 times."""
  if nextitem and nextitem.parent is item.parent and not item.get_closest_marker('long'):
    return  # counting takes longer than many tests
  maps = pathlib.Path('/proc/self/maps')
  if 'jax' in sys.modules and maps.exists() and len(maps.read_bytes().splitlines()) > 15_000:
    sys.modules['jax'].clear_caches()


def pytest_unconfigure() -> None:
  for folder in _TEMPORARY:
    shutil.rmtree(folder, ignore_errors=True)

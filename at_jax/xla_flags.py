"""Settings that jax reads when it is imported: an option of XLA and the folder of compiled programs."""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import zlib

_OPTION = '--xla_cpu_experimental_ynn_fusion_type='
_WAIT = '--xla_cpu_collective_timeout_seconds='
_WEEK = '604800'
_START_CPU = 'from jaxlib import xla_client; xla_client.make_cpu_client()'


def tune() -> None:
  """Configures XLA and the persistent compilation cache by environment variables.

  Call it before jax is imported. After that import the cache folder has no effect; the XLA option still has
  one until the first array is made. Variables that the user has set win.

  - Without an accelerator, it switches off the fusion of operations into YNNPACK by XLA's CPU backend, if the
    installed jaxlib knows the option. Fused convolutions make the gradient of a small one 1.2 to 3 times
    slower, and fused sums can be wrong (`findings/jax_cpu_sum_of_products.sh`).
  - It keeps compiled programs in `$XDG_CACHE_HOME/at_jax` (by default `~/.cache/at_jax`), so that a
    command that runs again does not compile again. `AT_JAX_CACHE=off` turns this off.
    `JAX_COMPILATION_CACHE_DIR` names another folder. No cache is kept if the folder is not writable.
  """
  folder = cache_folder()
  if folder and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    # XLA:CPU compiles for the processor at hand, which is not part of JAX's cache key.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / f'programs-{_processor():08x}')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
  _add(_OPTION, '', folder)


def wait_longer() -> None:
  """Lets processes wait a week for each other on CPUs; XLA ends a collective after 30 minutes.

  A process that has attacked its share of the examples waits for the others. Call it before the first array.
  A value that the user has set wins.
  """
  _add(_WAIT, _WEEK, cache_folder())


def _add(option: str, value: str, folder: pathlib.Path | None) -> None:
  """Sets an option of the CPU backend, unless there is an accelerator, or jaxlib does not know the option."""
  accelerated = any(importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu'))
  flags = os.environ.get('XLA_FLAGS', '')
  if accelerated and os.environ.get('JAX_PLATFORMS') != 'cpu' or option in flags:
    return
  if _is_known(f'{option}{value}', folder):
    os.environ['XLA_FLAGS'] = f'{flags} {option}{value}'.strip()


def cache_folder() -> pathlib.Path | None:
  """Returns the user's cache folder for at_jax, created; None if it is switched off or not writable."""
  if os.environ.get('AT_JAX_CACHE') == 'off':
    return None
  try:
    folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'at_jax'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # a read-only home, or none
    return None
  return folder if os.access(folder, os.W_OK) else None


def _processor() -> int:
  """Checksum of the processor's features; 0 where the system does not list them."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError:
    return 0
  features = {line for line in lines if line.startswith(('flags', 'Features'))}
  return zlib.crc32('\n'.join(sorted(features)).encode())


def _is_known(option: str, folder: pathlib.Path | None) -> bool:
  """Whether the installed jaxlib knows an option of XLA_FLAGS; remembered in a file of `folder`."""
  # A child process tests it: an unknown option aborts the process, and an option that is set after the
  # backend has started is ignored.
  answer = folder and folder / f'jaxlib-{importlib.metadata.version("jaxlib")}{option.rstrip("=")}'
  try:
    return answer.read_text(encoding='utf-8') == 'known'
  except (AttributeError, OSError):  # no folder, or not asked before
    pass
  try:
    child = subprocess.run(
        [sys.executable, '-c', _START_CPU], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=60, check=False, env=os.environ | {'XLA_FLAGS': option, 'JAX_PLATFORMS': 'cpu'})
  except (OSError, subprocess.TimeoutExpired):
    return False
  known = child.returncode == 0
  if answer and (known or b'Unknown flag' in child.stderr):
    try:
      answer.write_text('known' if known else 'unknown', encoding='utf-8')
    except OSError:
      pass  # asked again next time
  return known

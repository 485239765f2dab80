#!/usr/bin/env bash
# JAX never replaces a file of its compilation cache that was cut off.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, NumPy 2.4.6, Python 3.11.
# Behaviour: with JAX_COMPILATION_CACHE_DIR, each compiled program is written straight to its final name, not to
# a temporary one that is renamed. If the disk is full at that moment, a part of the file stays; so it may when
# the process is killed, which is not shown here. Every later process finds it, warns that it cannot be read,
# compiles the program, and does not write it, since a file of that name exists. The program is compiled at each
# start from then on. That is so without a limit of the cache's size (jax_compilation_cache_max_size), the default.
# Expected: the warning once, and a whole file after it; or no file at all after a write that failed.
# Here the first process may write files of at most 1 KiB, as with a disk that is nearly full. The later ones
# have no limit.
# Output:
#   limited: 1 failed write, 0 failed reads, 1024 bytes in the cache
#   later: 0 failed writes, 1 failed read, 1024 bytes in the cache
#   later: 0 failed writes, 1 failed read, 1024 bytes in the cache
#   with an empty cache: 0 failed writes, 0 failed reads, over 1024 bytes in the cache
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
"$folder/venv/bin/python" - <<'END' | tee "$folder/output"
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

# One program, whose file has more than 1 KiB.
COMPILE = """
import jax, numpy as np
layers = jax.jit(lambda x: np.float32(2) * jax.numpy.tanh(x @ x.T) @ jax.numpy.sin(x))
layers(np.eye(8, dtype=np.float32)).block_until_ready()
"""


def limit():
  resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def compile_it(name, cache, before=None):
  warned = subprocess.run([sys.executable, '-W', 'always', '-c', COMPILE], preexec_fn=before, check=True, text=True,
                          stderr=subprocess.PIPE, env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache}).stderr
  writes, reads = (warned.count(f'Error {what} persistent compilation cache') for what in ('writing', 'reading'))
  size = sum(path.stat().st_size for path in pathlib.Path(cache).glob('*-cache'))
  print(f'{name}: {writes} failed write{"s" * (writes != 1)}, {reads} failed read{"s" * (reads != 1)}, '
        f'{"over 1024" if size > 1024 else size} bytes in the cache', flush=True)


with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as empty:
  compile_it('limited', kept, limit)
  compile_it('later', kept)
  compile_it('later', kept)
  compile_it('with an empty cache', empty)
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

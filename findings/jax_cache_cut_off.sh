#!/usr/bin/env bash
# JAX never replaces a file of its compilation cache that was cut off.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, NumPy 2.4.6, Python 3.11.
# Behaviour: with JAX_COMPILATION_CACHE_DIR, each compiled program is written straight to its final name, not to
# a temporary one that is renamed. If the disk is full at that moment, or the process is killed, a part of the
# file stays. Every later process finds it, warns that it cannot be read, compiles the program, and does not
# write it, since a file of that name exists. The program is compiled at each start from then on.
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

cat > "$folder/compile.py" <<'END'
import pathlib
import sys
import warnings

import jax
import numpy as np

# A program of its own only: no other is compiled, and its file has more than 1 KiB.
layers = jax.jit(lambda x: np.float32(2) * jax.numpy.tanh(x @ x.T) @ jax.numpy.sin(x))
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter('always')
  layers(np.eye(8, dtype=np.float32)).block_until_ready()
counts = [sum(f'Error {what} persistent' in str(each.message) for each in caught) for what in ('writing', 'reading')]
size = sum(path.stat().st_size for path in pathlib.Path(sys.argv[2]).glob('*-cache'))
write, read = ('' if count == 1 else 's' for count in counts)
print(f'{sys.argv[1]}: {counts[0]} failed write{write}, {counts[1]} failed read{read}, '
      f'{"over 1024" if size > 1024 else size} bytes in the cache')
END
export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
compile() {
  JAX_COMPILATION_CACHE_DIR="$folder/$2" "$folder/venv/bin/python" "$folder/compile.py" "$1" "$folder/$2"
}
{
  (ulimit -f 1; compile limited kept)
  compile later kept
  compile later kept
  compile 'with an empty cache' empty
} | tee "$folder/output"
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

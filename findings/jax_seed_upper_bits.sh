#!/usr/bin/env bash
# jax.random.key drops the upper half of a 64-bit seed, so that different seeds give one run.
#
# Versions: jax 0.10.2, Python 3.11.
# Behaviour: unless jax_enable_x64 is set, jax.random.key(seed) keeps the lower 32 bits of a Python integer.
# No warning, up to 2^63 - 1; from there on OverflowError.
# Expected: the documentation says "a 64- or 32-bit integer used as the value of the key", the key holds two
# words of 32 bits, and a seed does not look like an array whose dtype the flag would change. Seeds beyond 32
# bits are what hashes of a configuration and timestamps give. Seeds of the form k * 2^32 + 1, as a launcher
# makes them that packs a job and a number, repeat one experiment: the standard deviation over them is 0.
# Output:
#   seed 1: words [0, 1]
#   seed 4294967297: words [0, 1]
#   seed 1099511627776: words [0, 0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax

for seed in (1, 2 ** 32 + 1, 2 ** 40):
  print(f'seed {seed}: words {jax.random.key_data(jax.random.key(seed)).tolist()}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

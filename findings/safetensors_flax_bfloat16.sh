#!/usr/bin/env bash
# safetensors.flax.load cannot read what safetensors.flax.save wrote in bfloat16; load_file can.
#
# Versions: safetensors 0.8.0, jax 0.10.2, Python 3.11.
# Behaviour: save and save_file take bfloat16 and float8 arrays. load_file reads bfloat16 back. load, which
# takes the same bytes, raises KeyError: it decodes by a table of NumPy dtypes that lacks BF16. Neither
# reads float8.
# Expected: save and load are documented as a pair, and load_file as the same for a path. Weights of a JAX
# model are bfloat16 more often than not. A service that keeps checkpoints as bytes saves without an error
# and finds out when it restores.
# Output:
#   float32: load_file float32, load float32
#   bfloat16: load_file bfloat16, load KeyError
#   float8_e4m3fn: load_file AttributeError, load KeyError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 packaging==26.4

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import os
import tempfile

import jax.numpy as jnp
from safetensors import flax


def read(load, source):
  try:
    return load(source)['w'].dtype
  except Exception as error:
    return type(error).__name__


with tempfile.TemporaryDirectory() as folder:
  path = os.path.join(folder, 'weights.safetensors')
  for dtype in (jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn):
    weights = {'w': jnp.ones(2, dtype)}
    flax.save_file(weights, path)
    from_file, from_bytes = read(flax.load_file, path), read(flax.load, flax.save(weights))
    print(f'{jnp.dtype(dtype)}: load_file {from_file}, load {from_bytes}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

#!/usr/bin/env bash
# orbax checks the shape of a template of JAX arrays and ignores that of a template of NumPy arrays.
#
# Versions: orbax-checkpoint 0.12.8, jax 0.10.2, Python 3.11.
# Behaviour: StandardCheckpointer.restore(path, template) raises ValueError if a JAX array of the template
# has another shape than the stored one. If the leaf is a NumPy array, the stored shape is returned without
# a warning. A leaf of an integer dtype makes it truncate stored floats.
# Expected: the template states what the program needs, and the error for JAX arrays says that truncating
# and padding are disabled. State that is kept on the host, averaged weights or scores of each example, is
# NumPy. A network head of 10 classes restored from a checkpoint of 100 classes then fails far away or
# broadcasts.
# Output:
#   JAX template of shape (10,): ValueError
#   NumPy template of shape (10,): restored (100,)
#   NumPy template of int32, stored 0.9: restored 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import logging
import os
import tempfile

logging.disable(logging.CRITICAL)
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def restore(template):
  try:
    return checkpointer.restore(path, {'bias': template})['bias']
  except ValueError:
    return None


checkpointer = ocp.StandardCheckpointer()
with tempfile.TemporaryDirectory() as folder:
  path = os.path.join(folder, 'state')
  checkpointer.save(path, {'bias': np.full(100, .9, np.float32)})
  checkpointer.wait_until_finished()
  for name, template in (('JAX', jnp.zeros(10)), ('NumPy', np.zeros(10, np.float32))):
    restored = restore(template)
    shown = 'ValueError' if restored is None else f'restored {restored.shape}'
    print(f'{name} template of shape (10,): {shown}')
  print('NumPy template of int32, stored 0.9: restored', restore(np.zeros(100, np.int32))[0])
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

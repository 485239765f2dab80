#!/usr/bin/env bash
# A compiled loss of JAX is wrong on the CPU for the last of 32,769 examples, and right for 32,768.
#
# Versions: jax and jaxlib 0.10.2, Python 3.11, Linux on x86-64.
# Behaviour: the loss of each example is the squared norm of its three logits, which a vmap computes from a
# matrix and the example. Compiled for 32,769 float32 examples, the last loss is .8 % too small, without a
# warning (also issue 39103 of jax). XLA fuses the two sums into YNNPACK: with an empty option
# --xla_cpu_experimental_ynn_fusion_type they are right; with its matrix products alone they are not.
# Expected: an error of some roundings, 1e-7 each, for any number of examples.
# Output:
#   32768 examples: rounding
#   32769 examples: the last loss is 0.8 % too small
#   32769 examples, only matrix products fused: the last loss is 0.8 % too small
#   32769 examples, nothing fused: rounding
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

env -u XLA_FLAGS JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax
import jax.numpy as jnp
import numpy as np

weights = np.array([[1., 2, 0], [0, 1, 0], [1, 0, 3]])


def check(n, **options):
  examples = np.outer(np.arange(n), [1, 0, 0])
  loss = lambda example: jnp.sum((jnp.asarray(weights, jnp.float32) @ example) ** 2)
  found = jax.jit(jax.vmap(loss), compiler_options=options)(jnp.asarray(examples, jnp.float32))
  exact = ((examples @ weights.T) ** 2).sum(axis=1)
  error = np.asarray(found, float) / np.maximum(exact, 1) - exact / np.maximum(exact, 1)
  wrong = np.flatnonzero(abs(error) > 1e-5)
  if not len(wrong):
    return 'rounding'
  return f'the last loss is {-100 * error[-1]:.1f} % too small' if wrong.tolist() == [n - 1] else wrong


option = 'xla_cpu_experimental_ynn_fusion_type'
print(f'32768 examples: {check(32768)}')
print(f'32769 examples: {check(32769)}')
print(f'32769 examples, only matrix products fused: {check(32769, **{option: "LIBRARY_FUSION_TYPE_DOT"})}')
print(f'32769 examples, nothing fused: {check(32769, **{option: ""})}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

#!/usr/bin/env bash
# The cost analysis of JAX says that PGD with 20 steps in a scan costs as much as PGD with 1 step.
#
# Versions: jax 0.10.2 on the CPU, Python 3.11.
# Behaviour: compile().cost_analysis()["flops"] counts the body of a lax.scan once, whatever its length.
# Unrolled, the same 20 steps cost 20 times as much. The length is static and known to the compiler.
# Expected: the docstring speaks of an estimate whose form may change, not of one that leaves out a factor.
# Tables of the cost of adversarial training are made from this number, and attacks that loop in Python and
# attacks that scan are compared by it.
# Output:
#   scan of 20 steps: 1.0 times the flops of 1 step
#   the same, unrolled: 20.0 times the flops of 1 step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax
import jax.numpy as jnp

weights = jnp.ones((256, 256))
gradient = jax.grad(lambda x: jnp.tanh(x @ weights).sum())


def flops(steps, unroll):
  def pgd(x):
    step = lambda x, _: (x + .1 * jnp.sign(gradient(x)), None)
    return jax.lax.scan(step, x, length=steps, unroll=unroll)[0]
  return jax.jit(pgd).lower(jnp.ones((64, 256))).compile().cost_analysis()['flops']


one = flops(1, 1)
print(f'scan of 20 steps: {flops(20, 1) / one:.1f} times the flops of 1 step')
print(f'the same, unrolled: {flops(20, 20) / one:.1f} times the flops of 1 step')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

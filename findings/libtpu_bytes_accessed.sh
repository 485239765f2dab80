#!/usr/bin/env bash
# The bytes that a TPU program accesses, by its cost analysis, are mostly those of the chip's own fast memory.
#
# Versions: jax 0.12.0.1, jaxlib 0.12.0.1, libtpu 0.0.50.1, Python 3.13. jax needs Python 3.12 or newer: set PYTHON
# if python3 is older. It needs no TPU, because libtpu compiles for one that is described.
# Behaviour: layers of 1,024 units on 1,024 examples, bfloat16, all with the same weights, compiled for a v5e. The
# arguments and the output are 6 MiB, and every array between two layers is in VMEM, memory space 1 in the text of
# the program. The count has 6 MiB for each layer, its input, the weights and its output, and 8 MiB for the copies of
# both arguments to VMEM. So it grows with the layers, while only 6 MiB cross the interface of HBM.
# Expected: bytes of HBM, since the bandwidth that vendors publish, and by which one divides them, is that of HBM. At
# 819 GB/s, the 104 MiB of 16 layers take 133 µs, and 6 MiB take 8 µs; their FLOPs take 174 µs at 197 TFLOP/s.
# Output:
#   1 layer: 14 MiB accessed, 6 MiB of arguments and output, 0 MiB of temporaries in HBM, 0 of 0 arrays in VMEM
#   4 layers: 32 MiB accessed, 6 MiB of arguments and output, 0 MiB of temporaries in HBM, 3 of 3 arrays in VMEM
#   16 layers: 104 MiB accessed, 6 MiB of arguments and output, 0 MiB of temporaries in HBM, 15 of 15 arrays in VMEM
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.50.1

export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5litepod-8
"$folder/venv/bin/python" - <<'END' | tee "$folder/output"
import jax
import jax.numpy as jnp
from jax.experimental import topologies

chip, = topologies.get_topology_desc('v5e:1x1', 'tpu', chips_per_host_bounds=[1, 1, 1]).devices
place = jax.sharding.SingleDeviceSharding(chip)
square = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)  # 2 MiB
mib = lambda count: f'{count / 2**20:.0f} MiB'

for layers in (1, 4, 16):
  def network(x, w):
    for _ in range(layers):
      x = jnp.tanh(x @ w)
    return x

  compiled = jax.jit(network, in_shardings=(place, place), out_shardings=place).lower(square, square).compile()
  found = compiled.memory_analysis()
  # Each layer is one fusion; that of the last one is the output.
  entry = compiled.as_text().partition('\nENTRY')[2]
  between = [line for line in entry.splitlines() if ' fusion(' in line and 'ROOT' not in line]
  in_vmem = sum('S(1)} fusion(' in line for line in between)
  print(f'{layers} layer{"s" * (layers > 1)}: {mib(compiled.cost_analysis()["bytes accessed"])} accessed, '
        f'{mib(found.argument_size_in_bytes + found.output_size_in_bytes)} of arguments and output, '
        f'{mib(found.temp_size_in_bytes)} of temporaries in HBM, {in_vmem} of {len(between)} arrays in VMEM')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

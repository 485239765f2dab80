#!/usr/bin/env bash
# A TPU program that picks examples from a uint8[N, 32, 32, 3] array first copies all of it, padded four times.
#
# Versions: jax 0.12.0.1, jaxlib 0.12.0.1, libtpu 0.0.50.1, Python 3.13. jax needs Python 3.12 or newer: set PYTHON
# if python3 is older. It needs no TPU, because libtpu compiles for one that is described.
# Behaviour: a jitted scan over the steps of an epoch, in which each step picks 16 images of a training set that is
# an argument of the program, as the usual loops with the data on the device do. The compiled program holds a second
# copy of the whole set, in a layout in which rows of 32 pixels take the place of 128. With a reshape to [N, 3072]
# inside the program the copy is smaller, but still twice as large as the set. With an argument of the shape
# uint8[N, 3072] and a reshape of the 16 rows that were picked there is no copy.
# Expected: a gather of 16 rows along the leading axis reads 16 rows, and temporaries do not grow with N. The 50,000
# images of CIFAR-10 take 147 MiB and their copy 586; of a million images, the copy alone would take 11.4 GiB of the
# 15.75 GiB that a program can use of a v5e chip.
# Output:
#   N = 50000, [N, 32, 32, 3]: arguments 147 MiB, temporaries 586 MiB
#   N = 50000, [N, 32, 32, 3], reshaped inside: arguments 147 MiB, temporaries 342 MiB
#   N = 50000, [N, 3072]: arguments 146 MiB, temporaries 0 MiB
#   N = 200000, [N, 32, 32, 3]: arguments 586 MiB, temporaries 2344 MiB
#   N = 200000, [N, 32, 32, 3], reshaped inside: arguments 586 MiB, temporaries 1368 MiB
#   N = 200000, [N, 3072]: arguments 586 MiB, temporaries 0 MiB
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
order = jax.ShapeDtypeStruct((100, 16), jnp.int32)


def epoch(images, order):
  def step(total, index):
    batch = images[index].reshape(-1, 32, 32, 3).astype(jnp.float32) / 255
    return total + batch.mean(0), None
  return jax.lax.scan(step, jnp.zeros((32, 32, 3)), order)[0]


def reshaped(images, order):
  return epoch(images.reshape(len(images), -1), order)


def memory(function, shape):
  sharding = jax.sharding.SingleDeviceSharding(chip)
  compiled = jax.jit(function, in_shardings=(sharding, sharding), out_shardings=sharding).lower(
      jax.ShapeDtypeStruct(shape, jnp.uint8), order).compile()
  found = compiled.memory_analysis()
  return round(found.argument_size_in_bytes / 2**20), round(found.temp_size_in_bytes / 2**20)


for n in (50_000, 200_000):
  for name, function, shape in (('[N, 32, 32, 3]', epoch, (n, 32, 32, 3)),
                                ('[N, 32, 32, 3], reshaped inside', reshaped, (n, 32, 32, 3)),
                                ('[N, 3072]', epoch, (n, 3072))):
    argument, temporary = memory(function, shape)
    print(f'N = {n}, {name}: arguments {argument} MiB, temporaries {temporary} MiB')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

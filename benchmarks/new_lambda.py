"""Seconds of a second PGD call with a new lambda over new weights, and their ratio to an older checkout.

  python -m benchmarks.new_lambda [--old=PATH_OF_CHECKOUT] [--batch_size=8] [--num_steps=2]

Each checkout runs in a process of its own, on the same machine, without the persistent compilation cache.
An older checkout is given as the folder that holds its `at_jax`.
"""

import argparse
import json
import os
import subprocess
import sys

# Runs in either checkout, so it uses nothing but what both have.
_MEASURE = '''
import json, sys, time
import jax, jax.numpy as jnp
from at_jax import attacks, models

batch_size, num_steps = map(int, sys.argv[1:])
networks = {'PreActResNet-18': models.PreActResNet18(num_outputs=10, width=16),
            'SmallCNN': models.SmallCNN(num_outputs=10)}
x = jax.random.uniform(jax.random.key(0), (batch_size, 32, 32, 3))
y = jnp.zeros(batch_size, int)
seconds = {}
for name, network in networks.items():
  calls = []
  for seed in range(3):
    params = jax.block_until_ready(jax.jit(network.init)(jax.random.key(seed), x[:1]))
    began = time.monotonic()
    jax.block_until_ready(attacks.pgd(lambda x: network.apply(params, x), x, y, jax.random.key(1),
                                      epsilon=8 / 255, step_size=2 / 255, num_steps=num_steps))
    calls.append(time.monotonic() - began)
  seconds[name] = min(calls[1:])
print(json.dumps(seconds))
'''


def measure(checkout: str, *options: int) -> dict[str, float]:
  """Seconds of the second call by network, as the code in `checkout` takes them."""
  dropped = 'JAX_COMPILATION_CACHE', 'PYTHONPATH'
  environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
  answer = subprocess.run([sys.executable, '-c', _MEASURE, *map(str, options)], cwd=checkout,
                          env=environment, check=True, capture_output=True, text=True)
  return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--old', help='folder of an older checkout, to compare with')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--num_steps', type=int, default=2)
  flags = parser.parse_args()
  new = measure(os.getcwd(), flags.batch_size, flags.num_steps)
  old = measure(flags.old, flags.batch_size, flags.num_steps) if flags.old else {}
  for name, seconds in new.items():
    line = f'{name}: {seconds:.2f} s'
    print(line + (f', before {old[name]:.2f} s, ratio {seconds / old[name]:.3f}' if old else ''))


if __name__ == '__main__':
  main()

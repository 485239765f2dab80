"""Measures what Square gains on the CPU by calling its model outside of compiled loops, in both layouts.

  python benchmarks/square_layout.py

The network has two 4×4 convolutions of stride 2, with 16 and 32 filters, and two dense layers, with random
weights. It attacks 250 random images of 28×28, once with channels last (NHWC) and once with channels first
(NCHW), as PyTorch has them. *now* is `square`, which on the CPU calls a compiled program for each query;
*loop* is `jax.jit(square)`, whose queries are one compiled loop. The two results must be equal to the bit.
Runs alternate, and the best of --repeats counts; compilation is not included.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks, xla_flags

xla_flags.tune()  # before the first array starts XLA
_LAYOUTS = {'NHWC': ('NHWC', 'HWIO', 'NHWC'), 'NCHW': ('NCHW', 'HWIO', 'NCHW')}


def logits(layout, weights, x):
  """The network in one layout."""
  for kernel in weights[:2]:
    x = jax.nn.relu(jax.lax.conv_general_dilated(
        x, kernel, (2, 2), 'SAME', dimension_numbers=_LAYOUTS[layout]))
  x = x.reshape(len(x), -1)
  return jax.nn.relu(x @ weights[2]) @ weights[3]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--queries', type=int, default=200)
  parser.add_argument('--repeats', type=int, default=5)
  arguments = parser.parse_args()
  draw = np.random.default_rng(0)
  weights = [jnp.asarray(draw.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)
             for shape in ((4, 4, 1, 16), (4, 4, 16, 32), (1568, 100), (100, 10))]
  images, runs = draw.uniform(size=(250, 28, 28, 1)).astype(np.float32), {}
  for layout in _LAYOUTS:
    model = jax.tree_util.Partial(functools.partial(logits, layout), weights)
    x = jnp.asarray(images.transpose(0, 3, 1, 2) if layout == 'NCHW' else images)
    y = jnp.argmax(model(x), axis=1)
    attack = functools.partial(attacks.square, epsilon=.01, num_queries=arguments.queries,
                               channel_axis=1 if layout == 'NCHW' else -1)
    runs[layout, 'now'] = functools.partial(attack, model, x, y, jax.random.key(0))
    runs[layout, 'loop'] = functools.partial(jax.jit(attack), model, x, y, jax.random.key(0))
  results = {name: jax.block_until_ready(run()) for name, run in runs.items()}
  best = dict.fromkeys(runs, np.inf)
  for _ in range(arguments.repeats):
    for name, run in runs.items():
      begun = time.perf_counter()
      jax.block_until_ready(run())
      best[name] = min(best[name], time.perf_counter() - begun)
  print('ms per query   loop    now  loop / now')
  for layout in _LAYOUTS:
    for a, b in zip(results[layout, 'now'], results[layout, 'loop'], strict=True):
      np.testing.assert_array_equal(a, b)
    loop, now = (1e3 * best[layout, name] / (arguments.queries + 1) for name in ('loop', 'now'))
    print(f'{layout:12s} {loop:6.2f} {now:6.2f} {loop / now:11.2f}')
  print(f'NCHW / NHWC {best["NCHW", "loop"] / best["NHWC", "loop"]:7.2f} '
        f'{best["NCHW", "now"] / best["NHWC", "now"]:6.2f}')


if __name__ == '__main__':
  main()

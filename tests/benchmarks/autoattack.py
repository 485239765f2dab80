"""Times AutoAttack's standard version, here and in the authors' implementation, and compares verdicts.

  python tests/benchmarks/autoattack.py --reference=PATH --weights=trades_mnist.pt

PATH is a checkout of github.com/fra31/auto-attack, commit a392200; the weights are TRADES' MNIST
model, as in trades_mnist.py beside this file, which keeps verdicts. Needs the packages of
at_jax[peers].

Both attack the first --n images with the same weights, ε, batch size and number of threads, on the
same CPUs. Ours runs twice: the first time compiles, the second finds everything compiled. The
reference runs one component after another, each on what the ones before left standing, as it does by
itself; its checks of the model, some forward passes, are run before every component and counted.
Ours runs its checks once and is right or wrong about the clean images within the same call, so the
row of the whole is that of the whole call, and more than the sum of ours above it.
The draws differ, so that an example at the edge may fall to one and not to the other: each is listed.
The load average is printed first; only a quiet machine gives times worth keeping.
"""

import argparse
import json
import os
import pathlib
import time

import numpy as np

import trades_mnist  # tunes the platform, and so comes before jax
import jax
import jaxlib
import torch

from at_jax import attacks
from at_jax import data

COMPONENTS = trades_mnist.COMPONENTS


def ours(variables, x, y, arguments) -> tuple[attacks.AutoAttackResult, float]:
  """One evaluation and the seconds of the whole call.

  The function that is attacked is the same every time, so it compiles once.
  """
  begun = time.perf_counter()
  result = attacks.autoattack(
      jax.tree_util.Partial(trades_mnist.apply, variables), x, y, jax.random.key(arguments.seed),
      epsilon=arguments.epsilon, batch_size=arguments.batch_size)
  return result, time.perf_counter() - begun


def theirs(net, x, y, arguments) -> tuple[dict[str, np.ndarray], dict[str, float], float]:
  """For each component which examples stand after it, and its seconds; and those of the whole."""
  begun = time.perf_counter()
  clean = trades_mnist.is_right(net, x, y)
  run = trades_mnist.reference(
      arguments.reference, net, x, y, epsilon=arguments.epsilon, batch_size=arguments.batch_size,
      seed=arguments.seed, standing=clean, names=COMPONENTS)
  verdicts, seconds = {'clean': clean}, {}
  for name, standing, spent in run:
    verdicts[name], seconds[name] = standing, spent
  return verdicts, seconds, time.perf_counter() - begun


def show(compiling, warm, verdicts, seconds, wholes) -> None:
  """Prints a row a component, the whole, and the examples on which the two differ."""
  print(f'{"":10s} {"robust":>16s} {"differ":>7s} {"seconds":>29s} {"ours / theirs":>16s}')
  print(f'{"":10s} {"ours":>8s}{"theirs":>8s} {"":7s} '
        f'{"ours":>9s}{"compiled":>10s}{"theirs":>10s} {"ours":>6s}{"compiled":>10s}')
  mine = {'clean': compiling.clean, **compiling.components}
  for name in ('clean', *COMPONENTS):
    differ = int((mine[name] != verdicts[name]).sum())
    row = f'{name:10s} {mine[name].mean():8.2%}{verdicts[name].mean():8.2%} {differ:7d} '
    if name in COMPONENTS:
      row += _times(compiling.seconds[name], warm.seconds[name], seconds[name])
    print(row)
  print(f'{"whole":10s} {compiling.robust.mean():8.2%}{verdicts["square"].mean():8.2%} '
        f'{int((compiling.robust != verdicts["square"]).sum()):7d} {_times(*wholes)}')
  for i in np.flatnonzero(compiling.robust != verdicts['square']):
    told = ('ours', 'theirs') if verdicts['square'][i] else ('theirs', 'ours')
    print(f'image {i}: falls to {told[0]}, stands under {told[1]}')
  for line in compiling.warnings:
    print(f'warning: {line}')


def _times(compiling: float, warm: float, other: float) -> str:
  other = max(other, 1e-9)
  return (f'{compiling:9.1f}{warm:10.1f}{other:10.1f} {compiling / other:6.2f}'
          f'{warm / other:10.2f}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reference', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--images', default='mnist', help='a data set of at_jax.data, or an .npz')
  parser.add_argument('--n', type=int, default=1000)
  parser.add_argument('--epsilon', type=float, default=.3)
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--output', help='a JSON file for the verdicts and the seconds')
  arguments = parser.parse_args()
  # XLA takes as many threads as the process has CPUs, and is started by the first array.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
  torch.set_num_threads(arguments.threads)
  print(f'jax {jax.__version__}, jaxlib {jaxlib.__version__}, torch {torch.__version__}, '
        f'{arguments.threads} threads, n {arguments.n}, batch {arguments.batch_size}, '
        f'load {os.getloadavg()[0]:.1f}', flush=True)
  variables, net = trades_mnist.load_networks(arguments.weights)
  test = data.load(arguments.images).test
  x, y = np.asarray(data.to_unit(test.images[:arguments.n])), test.labels[:arguments.n]
  compiling, first = ours(variables, x, y, arguments)
  print(f'ours {first:.1f} s', flush=True)
  warm, second = ours(variables, x, y, arguments)
  print(f'ours, compiled {second:.1f} s', flush=True)
  verdicts, seconds, third = theirs(net, x, y, arguments)
  wholes = (first, second, third)
  show(compiling, warm, verdicts, seconds, wholes)
  if arguments.output:
    pathlib.Path(arguments.output).write_text(json.dumps({
        'n': arguments.n, 'seconds': {'ours': compiling.seconds, 'compiled': warm.seconds,
                                      'theirs': seconds,
                                      'whole': dict(zip(('ours', 'compiled', 'theirs'), wholes))},
        'robust': {'ours': {k: v.astype(int).tolist() for k, v in compiling.components.items()},
                   'theirs': {k: v.astype(int).tolist() for k, v in verdicts.items()}}}))


if __name__ == '__main__':
  main()

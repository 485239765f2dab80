"""Times AutoAttack's standard version, here and in the authors' implementation, and compares verdicts.

  python tests/benchmarks/autoattack.py --reference=PATH --weights=trades_mnist.pt --images=mnist.npz

PATH is a checkout of github.com/fra31/auto-attack, commit a392200; the weights are TRADES' MNIST
model; the .npz holds test_images uint8[N, 28, 28, 1] and test_label. Needs the packages of
at_jax[peers].

Both attack the first --n images with the same weights, ε, batch size and number of threads, on the
same CPUs. Ours runs twice: the first time compiles, the second finds everything compiled. The
reference runs one component after another, each on what the ones before left standing, as it does by
itself; its checks of the model, some forward passes, are run before every component and counted.
The draws differ, so that an example at the edge may fall to one and not to the other: each is listed.
The load average is printed first; only a quiet machine gives times worth keeping.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np

from pytorch_step import TorchSmallCNN  # tunes the platform, and so comes before jax
import jax
import jaxlib
import torch

from at_jax import attacks
from at_jax import models
from at_jax.models import importers

COMPONENTS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def load(weights: str, images: str, n: int):
  """(variables, a PyTorch network, x f32[n, 28, 28, 1], y i32[n]); both nets have equal logits."""
  state = torch.load(weights, map_location='cpu')
  net = TorchSmallCNN().eval()
  net.load_state_dict({name.split('.', 1)[1]: value for name, value in state.items()})
  variables = importers.from_torch(
      models.SmallCNN(num_outputs=10), {k: v.numpy() for k, v in state.items()}, (28, 28, 1))
  with np.load(images) as file:
    x = file['test_images'][:n].astype(np.float32).reshape(-1, 28, 28, 1) / 255
    y = file['test_label'][:n].astype(np.int32)
  return variables, net, x, y


def ours(variables, x, y, arguments) -> attacks.AutoAttackResult:
  """One evaluation; the function that is attacked is the same every time, so it compiles once."""
  return attacks.autoattack(
      jax.tree_util.Partial(_apply, variables), x, y, jax.random.key(arguments.seed),
      epsilon=arguments.epsilon, batch_size=arguments.batch_size)


def _apply(variables, x):
  return models.SmallCNN(num_outputs=10).apply(variables, x)


def theirs(net, x, y, arguments) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """For each component which examples stand after it, and its seconds."""
  sys.path.insert(0, arguments.reference)
  from autoattack import AutoAttack
  attack = AutoAttack(net, norm='Linf', eps=arguments.epsilon, seed=arguments.seed,
                      version='standard', verbose=False, device='cpu')
  x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long()
  standing, seconds = net(x).argmax(1) == y, {}
  verdicts = {'clean': standing.numpy().copy()}
  for name in COMPONENTS:
    attack.attacks_to_run = [name]
    begun = time.perf_counter()
    if standing.any():
      places = standing.nonzero().flatten()
      _, labels = attack.run_standard_evaluation(
          x[places], y[places], bs=arguments.batch_size, return_labels=True)
      standing[places] = labels == y[places]
    seconds[name] = time.perf_counter() - begun
    verdicts[name] = standing.numpy().copy()
  return verdicts, seconds


def show(compiling, warm, verdicts, seconds) -> None:
  """Prints a row a component, the whole, and the examples on which the two differ."""
  print(f'{"":10s} {"robust":>16s} {"differ":>7s} {"seconds":>29s} {"ratio":>6s}')
  print(f'{"":10s} {"ours":>8s}{"theirs":>8s} {"":7s} '
        f'{"ours":>9s}{"compiled":>10s}{"theirs":>10s}')
  mine = {'clean': compiling.clean, **compiling.components}
  for name in ('clean', *COMPONENTS):
    differ = int((mine[name] != verdicts[name]).sum())
    row = f'{name:10s} {mine[name].mean():8.2%}{verdicts[name].mean():8.2%} {differ:7d} '
    if name in COMPONENTS:
      row += _times(compiling.seconds[name], warm.seconds[name], seconds[name])
    print(row)
  totals = [sum(each.values()) for each in (compiling.seconds, warm.seconds, seconds)]
  print(f'{"whole":10s} {compiling.robust.mean():8.2%}{verdicts["square"].mean():8.2%} '
        f'{int((compiling.robust != verdicts["square"]).sum()):7d} {_times(*totals)}')
  for i in np.flatnonzero(compiling.robust != verdicts['square']):
    told = ('ours', 'theirs') if verdicts['square'][i] else ('theirs', 'ours')
    print(f'image {i}: falls to {told[0]}, stands under {told[1]}')
  for line in compiling.warnings:
    print(f'warning: {line}')


def _times(compiling: float, warm: float, other: float) -> str:
  return f'{compiling:9.1f}{warm:10.1f}{other:10.1f} {compiling / max(other, 1e-9):6.2f}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reference', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--images', required=True)
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
  variables, net, x, y = load(arguments.weights, arguments.images, arguments.n)
  compiling = ours(variables, x, y, arguments)
  print(f'ours {sum(compiling.seconds.values()):.1f} s', flush=True)
  warm = ours(variables, x, y, arguments)
  print(f'ours, compiled {sum(warm.seconds.values()):.1f} s', flush=True)
  verdicts, seconds = theirs(net, x, y, arguments)
  show(compiling, warm, verdicts, seconds)
  if arguments.output:
    pathlib.Path(arguments.output).write_text(json.dumps({
        'n': arguments.n, 'seconds': {'ours': compiling.seconds, 'compiled': warm.seconds,
                                      'theirs': seconds},
        'robust': {'ours': {k: v.astype(int).tolist() for k, v in compiling.components.items()},
                   'theirs': {k: v.astype(int).tolist() for k, v in verdicts.items()}}}))


if __name__ == '__main__':
  main()

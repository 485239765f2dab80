"""Runs AutoAttack on TRADES' MNIST model, ours and the reference, in slices of 1,000 test images.

  python benchmarks/trades_mnist.py --weights=trades_mnist.pt --slices=0-9
  python benchmarks/trades_mnist.py --weights=trades_mnist.pt --slices=0 --reference
  python benchmarks/trades_mnist.py --weights=trades_mnist.pt --slices=0-9 --run=runs/trades_mnist

The weights are those of TRADES' released model. The published accuracies on all 10,000 images at L∞
ε = 0.3 are 99.48 % (clean) and 92.81 % (AutoAttack). Needs the packages of at_jax[peers].

Each slice has a file of verdicts in --output: the images that each component fooled and its seconds,
for ours and, with --reference, for the reference. An interrupted command continues where it stopped;
a finished slice is not run again. The printed tables cover all files with the same weights, images and
options. --images is a data set name or an .npz file of at_jax.datasets. TFDS orders MNIST differently
from the original files; published indices refer to the latter.

--run writes the network and our verdicts on all finished slices as the folder of a run, which
`python -m at_jax.analysis` and `restore.load` read.

Both use the same ε, batch size and CPUs. The seconds of the reference include its checks of the model
before each component; the compilation time of ours is shown separately. The random numbers differ, so
an image near the decision boundary can be fooled by one implementation only. Times are shown for
slices that ours ran without interruption and that both ran with the same number of threads. Use a
quiet machine for timings; the load average at the start is stored with them.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from step import TorchSmallCNN
import torch
import verdicts

from at_jax import attacks, models
from at_jax.config import fields, variants
from at_jax.datasets import pipeline
from at_jax.models import importers
from at_jax.training import checkpoints, records

SLICE = 1000


def load_networks(weights: str) -> tuple[Any, TorchSmallCNN]:
  """Loads the weights into `models.SmallCNN` and PyTorch; exits unless the logits agree to 1e-5."""
  state = torch.load(weights, map_location='cpu')
  net = TorchSmallCNN().eval()
  net.load_state_dict({name.split('.', 1)[1]: value for name, value in state.items()})
  arrays = {name: value.numpy() for name, value in state.items()}
  variables = importers.from_torch(models.SmallCNN(num_outputs=10), arrays, (28, 28, 1))
  x = np.random.default_rng(0).uniform(size=(64, 28, 28, 1)).astype(np.float32)
  with torch.no_grad(), jax.default_matmul_precision('highest'):
    theirs = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    apart = np.abs(theirs - np.asarray(apply(variables, x))).max()
  if not apart <= 1e-5:  # also if it is NaN
    sys.exit(f'the logits differ by {apart}: use the weights of TRADES\' MNIST network')
  return variables, net


def apply(variables, x):
  """Logits of our network. It is defined at module level so that attacks compile once."""
  return models.SmallCNN(num_outputs=10).apply(variables, x)


def identity(arguments, variables, split: pipeline.Split) -> dict[str, Any]:
  """Fields that two runs must share for their verdicts to be comparable."""
  digest = hashlib.sha256()
  for leaf in (*jax.tree.leaves(variables), *split):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return {'epsilon': arguments.epsilon, 'seed': arguments.seed, 'batch_size': arguments.batch_size,
          'weights_and_test_set': digest.hexdigest()[:16]}


def run_slice(arguments, number: int, variables, net, split: pipeline.Split, same: dict[str, Any]
              ) -> dict[str, Any]:
  """Runs what is missing in a slice's file, saves after each component, and returns the content."""
  path = pathlib.Path(arguments.output) / f'{number:02d}.json'
  found = records.read_json(path) or {}
  if any(found.get(name, value) != value for name, value in same.items()):
    sys.exit(f'{path} belongs to other weights, images or options: use another --output')
  begin = number * SLICE
  rows = slice(begin, begin + SLICE)
  x, y = np.asarray(pipeline.to_unit(split.images[rows])), split.labels[rows]
  if 'ours' not in found:
    found |= {'first': begin, 'n': len(y), **same, 'versions': records.versions(),
              'ours': _ours(arguments, number, variables, x, y, begin)}
    records.write_json(path, found)
  if arguments.reference:
    theirs = found.setdefault('reference', {
        'torch': torch.__version__, 'threads': arguments.threads, 'load': round(os.getloadavg()[0], 1),
        'seconds': {}, 'fooled': {'clean': verdicts.indices(~verdicts.is_right(net, x, y), begin)}})
    fooled = verdicts.fooled_of(theirs)
    names = tuple(name for name in verdicts.COMPONENTS if name not in fooled)
    robust = verdicts.robust_after(fooled, begin, len(y))[verdicts.COMPONENTS[-1]]
    for name, after, seconds in verdicts.reference(
        net, x, y, epsilon=arguments.epsilon, batch_size=arguments.batch_size,
        seed=arguments.seed, robust=robust, names=names):
      fooled[name], theirs['seconds'][name] = verdicts.indices(robust & ~after, begin), round(seconds, 1)
      robust = after
      records.write_json(path, found)
  return found


def _ours(arguments, number: int, variables, x, y, begin: int) -> dict[str, Any]:
  folder = pathlib.Path(arguments.states)
  folder.mkdir(parents=True, exist_ok=True)
  state = folder / f'{number:02d}-{arguments.seed}.npz'
  resumed, load = state.exists(), round(os.getloadavg()[0], 1)
  shown, compiling = [0.], verdicts.Compiling()

  def progress(now: attacks.Progress) -> None:
    compiling.update(now)
    if time.monotonic() - shown[0] > 10:
      shown[0] = time.monotonic()
      print(f'slice {number}, {now.attack}: {now.done} of {now.total} runs, robust '
            f'{now.accuracy:.1%}, {now.seconds:.0f} s', file=sys.stderr, flush=True)

  begun = time.perf_counter()
  result = attacks.autoattack(
      jax.tree_util.Partial(apply, variables), x, y, jax.random.key(arguments.seed),
      epsilon=arguments.epsilon, batch_size=arguments.batch_size, state_path=state,
      index=begin + np.arange(len(y)), progress=progress)
  seconds = verdicts.seconds(result, None if resumed else time.perf_counter() - begun)
  state.unlink()
  found = {'fooled': verdicts.fooled_first({'clean': result.clean, **result.components}, begin),
           'seconds': seconds, 'warnings': list(result.warnings),
           'threads': arguments.threads, 'load': load}
  return found if resumed else found | {'compiling': compiling.by_attack()}


def write_run(arguments, variables, data: pipeline.Dataset, slices: list[dict[str, Any]]) -> None:
  """Writes the files of an evaluated run, whose attacks are APGD-CE and AutoAttack."""
  folder = pathlib.Path(arguments.run)
  folder.mkdir(parents=True, exist_ok=True)
  config = variants.variant(fields.default(), 'mnist')
  config.loss = 'trades'
  slices = sorted(slices, key=lambda s: s['first'])
  n = sum(s['n'] for s in slices)
  if [s['first'] for s in slices] != list(range(0, n, SLICE)):
    sys.exit(f'--run needs slices from 0 without a gap: run those that are missing in {arguments.output}')
  config.dataset.update(name=arguments.images, validation_size=0)
  config.evaluate.update(attacks=('apgd-ce', 'autoattack'), num_examples=n,
                         epsilon_255=255 * arguments.epsilon)
  after = [verdicts.robust_after(verdicts.fooled_of(s['ours']), s['first'], s['n']) for s in slices]
  clean, first, robust = (np.concatenate([each[name] for each in after])
                          for name in ('clean', 'apgd-ce', verdicts.COMPONENTS[-1]))
  records.write_json(folder / 'config.json', config.to_dict())
  checkpoints.write_weights(folder / checkpoints.WEIGHTS, checkpoints.Weights(
      0, {'params': variables['params'], 'batch_stats': {}},
      {'data': {'image_shape': list(data.image_shape), 'train_size': data.train_size}}))
  records.write_verdicts(folder, data.test.labels[:n], {'best': {
      'clean': clean, 'worst_case': robust, 'robust/apgd-ce': first, 'robust/autoattack': robust}})
  records.write_json(folder / 'results.json', {
      'config': config.to_dict(), 'dataset': arguments.images, 'n': n, 'clean': float(clean.mean()),
      'robust': {'apgd-ce': float(first.mean()), 'autoattack': float(robust.mean())}, 'released': {},
      'worst_case': float(robust.mean())})


def numbers(text: str) -> list[int]:
  """'0,3-5' as [0, 3, 4, 5]."""
  ends = [part.split('-') for part in text.split(',')]
  return [n for part in ends for n in range(int(part[0]), int(part[-1]) + 1)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True)
  parser.add_argument('--slices', type=numbers, default=[0], help='slices of 1,000 images, such as 0,3-5')
  parser.add_argument('--reference', action='store_true', help='run the reference AutoAttack too')
  parser.add_argument('--images', default='mnist', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--output', default='results/trades_mnist', help='folder of the verdicts')
  parser.add_argument('--states', default='runs/trades_mnist', help='folder of state files')
  parser.add_argument('--run', help='folder to write, for python -m at_jax.analysis')
  parser.add_argument('--epsilon', type=float, default=.3)
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  arguments = parser.parse_args()
  # XLA starts with the first array and takes one thread for each CPU of the process.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
  torch.set_num_threads(arguments.threads)
  variables, net = load_networks(arguments.weights)
  data = pipeline.load(arguments.images)
  split = data.test
  same = identity(arguments, variables, split)
  for number in arguments.slices:
    run_slice(arguments, number, variables, net, split, same)
  files = sorted(pathlib.Path(arguments.output).glob('[0-9]*.json'))
  slices = [records.read_json(path) for path in files]
  slices = [s for s in slices if all(s[name] == value for name, value in same.items())]
  verdicts.show(slices)
  verdicts.show_times(slices)
  if arguments.run:
    write_run(arguments, variables, data, slices)


if __name__ == '__main__':
  main()

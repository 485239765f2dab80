"""Attacks TRADES' MNIST network in PyTorch, through at_jax and by the reference, and its imported weights.

  python benchmarks/torch_model.py --weights=trades_mnist.pt --output=results/torch_model/trades_mnist.json

PGD with 40 steps attacks the first --pgd test images, AutoAttack the first --n, both at L∞ ε = 0.3: the
PyTorch module by `torch_model.TorchModel`, and the same weights imported into `models.SmallCNN`. Of images
on which the verdicts differ, the point that was found is judged again in float64. The reference AutoAttack
attacks the same module. The command prints seconds of wall and of CPU time, with compilation, and their
ratios. --output is written after each part, and parts that it has are not run again. Needs the packages of
at_jax[peers]. Use a quiet machine for timings.
"""

import argparse
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import torch
import trades_mnist
import verdicts

from at_jax import attacks, xla_flags
from at_jax.datasets import pipeline
from at_jax.models import torch_model
from at_jax.training import records

xla_flags.tune()  # before the first array starts XLA


def run(arguments, name: str, logits_fn, net, x, y) -> dict[str, Any]:
  """Robust images, their points and the seconds of one attack on one model."""
  begun, cpu = time.perf_counter(), time.process_time()
  if name == 'reference':
    clean = verdicts.is_right(net, x, y)
    *_, (_, robust, _) = verdicts.reference(
        net, x, y, epsilon=arguments.epsilon, batch_size=arguments.batch_size, seed=arguments.seed,
        robust=clean, names=verdicts.COMPONENTS)
    points = None
  elif name.startswith('pgd'):
    attack = lambda x, y, index: attacks.pgd(
        logits_fn, x, y, jax.random.key(arguments.seed), epsilon=arguments.epsilon, step_size=.01,
        num_steps=40, index=index)
    parts = [attack(x[i:i + 250], y[i:i + 250], np.arange(i, min(i + 250, len(x))))
             for i in range(0, len(x), 250)]
    robust, points = (np.concatenate([np.asarray(each) for each in parts])
                      for parts in ([~part.success for part in parts], [part.x for part in parts]))
  else:
    result = attacks.autoattack(logits_fn, x, y, jax.random.key(arguments.seed), epsilon=arguments.epsilon,
                                batch_size=arguments.batch_size)
    robust, points = result.robust, result.x
  seconds = {'wall': time.perf_counter() - begun, 'cpu': time.process_time() - cpu}
  return {'robust': robust, 'points': points, 'seconds': {k: round(v, 1) for k, v in seconds.items()}}


def differences(net, y, ours, other) -> list[dict[str, Any]]:
  """The images whose verdicts differ, with the float64 margin of the point that was found."""
  found = []
  for i in np.flatnonzero(ours['robust'] != other['robust']):
    points = ours['points'] if other['robust'][i] else other['points']
    x = torch.from_numpy(np.asarray(points[i:i + 1], np.float64).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
      logits = net.double()(x)[0].numpy()
    net.float()
    margin = np.delete(logits, y[i]).max() - logits[y[i]]
    found.append({'image': int(i), 'fooled by': 'torch' if other['robust'][i] else 'imported',
                  'margin in float64': float(margin), 'misclassified': bool(margin >= 0)})
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True)
  parser.add_argument('--images', default='mnist', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--pgd', type=int, default=1000, help='number of images for PGD')
  parser.add_argument('--n', type=int, default=200, help='number of images for AutoAttack')
  parser.add_argument('--epsilon', type=float, default=.3)
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--output', required=True, help='JSON file of the results')
  arguments = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
  torch.set_num_threads(arguments.threads)
  variables, net = trades_mnist.load_networks(arguments.weights)
  models = {'torch': torch_model.TorchModel(net, channels_last=True),
            'imported': jax.tree_util.Partial(trades_mnist.apply, variables)}
  test = pipeline.load(arguments.images).test
  most = max(arguments.pgd, arguments.n)
  x, y = np.asarray(pipeline.to_unit(test.images[:most])), test.labels[:most]
  path = pathlib.Path(arguments.output)
  same = {name: getattr(arguments, name) for name in ('batch_size', 'epsilon', 'seed', 'threads')} | {
      name: pathlib.Path(getattr(arguments, name)).name for name in ('weights', 'images')}
  found = records.read_json(path) or same | {
      'load': round(os.getloadavg()[0], 1), 'versions': records.versions(), 'torch': torch.__version__}
  counts = {'pgd': min(arguments.pgd, len(y)), 'autoattack': min(arguments.n, len(y))}
  if any(found.get(name, value) != value for name, value in same.items()) or any(
      attack in found and found[attack]['n'] != count for attack, count in counts.items()):
    sys.exit(f'{path} has numbers with other options: use another --output')
  for attack, count in counts.items():
    if attack not in found:
      each = {name: run(arguments, attack, model, net, x[:count], y[:count])
              for name, model in models.items()}
      found[attack] = {'n': count, 'differ': differences(net, y, each['torch'], each['imported'])} | {
          name: {'robust': int(one['robust'].sum()), 'seconds': one['seconds']} for name, one in each.items()}
      records.write_json(path, found)
    print(f'{attack}, {count} images: ' + ', '.join(
        f'{name} {found[attack][name]["robust"]} robust in {found[attack][name]["seconds"]}'
        for name in models) + f', differ: {found[attack]["differ"]}', flush=True)
  if 'reference' not in found:
    one = run(arguments, 'reference', None, net, x[:arguments.n], y[:arguments.n])
    found['reference'] = {'robust': int(one['robust'].sum()), 'seconds': one['seconds']}
    records.write_json(path, found)
  ours, theirs = found['autoattack']['torch']['seconds'], found['reference']['seconds']
  print(f'reference {found["reference"]["robust"]} robust in {theirs}; at_jax through PyTorch / reference: '
        f'wall {ours["wall"] / theirs["wall"]:.2f}, CPU {ours["cpu"] / theirs["cpu"]:.2f}')


if __name__ == '__main__':
  main()

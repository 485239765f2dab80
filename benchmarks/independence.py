"""Checks that AutoAttack's verdicts on a trained network depend on neither batch size nor devices.

  python benchmarks/independence.py --workdir=results/small_cifar10/pgd_at_cifar10-0 \
    --output=results/independence/float32.json
  the same with --float64 --n=100 --sizes=100,64,7,1 --output=results/independence/float64.json

AutoAttack 'standard' attacks the best checkpoint of the run on the first --n test images: for each of
--sizes once on one device and, if a batch has at least four examples, once on four virtual CPU
devices. The verdicts of every component are compared with those of the first evaluation. In float64
they must be equal; otherwise the exit code is 1. In float32 rounding can decide near the boundary, so
every difference is listed with its margin z_y − max_{j≠y} z_j at the clean image and at the
adversarial point. Batches of one take hours.
"""

import argparse
import os
import pathlib
import sys

import jax
import numpy as np

from at_jax import attacks, errors, xla_flags
from at_jax.datasets import pipeline
from at_jax.training import records, restore, setup

os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} '
                           '--xla_force_host_platform_device_count=4').strip()
xla_flags.tune()  # before the first array starts XLA


def model(workdir: str, float64: bool):
  """The logits function of a run's best checkpoint, in float32 or float64, and the test split."""
  run, logits_fn = restore.load(workdir)
  if float64:
    jax.config.update('jax_enable_x64', True)
    run.config.model.dtype = 'float64'
    variables, = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), logits_fn.args)
    run = setup.build(run.config)
    logits_fn = jax.tree_util.Partial(run.network.deployed, variables)
  return logits_fn, run.dataset.test


def evaluations(logits_fn, x, y, arguments):
  """Yields the batch size, the number of devices and the result of each evaluation."""
  for size in arguments.sizes:
    for number in (1, 4):
      if size >= number:
        yield size, number, attacks.autoattack(
            logits_fn, x, y, jax.random.key(arguments.seed), epsilon=arguments.epsilon_255 / 255,
            batch_size=size, devices=jax.local_devices()[:number], warn=lambda line: None)


def difference(first, other, margin, x, y) -> dict[str, list]:
  """Lists the images whose verdicts differ by component: index, clean margin, adversarial margin."""
  found = {}
  for name in first.components:
    places = np.flatnonzero(first.components[name] != other.components[name])
    # The result that was fooled holds the adversarial point; the other one holds the input.
    points = np.where((first.robust & ~other.robust)[places, None, None, None],
                      other.x[places], first.x[places])
    found[name] = [[int(i), float(before), float(after)] for i, before, after in zip(
        places, margin(x[places], y[places]), margin(points, y[places]), strict=True)]
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True, help='work directory of a run')
  parser.add_argument('--n', type=int, default=500)
  parser.add_argument('--sizes', type=lambda text: [int(n) for n in text.split(',')],
                      default=[500, 64, 7, 1], help='batch sizes; the first is the baseline')
  parser.add_argument('--epsilon_255', type=float, default=8.)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--float64', action='store_true')
  parser.add_argument('--output', help='JSON file, updated after each evaluation')
  arguments = parser.parse_args()
  try:
    logits_fn, test = model(arguments.workdir, arguments.float64)
  except errors.UserError as mistake:
    sys.exit(f'independence: {mistake}')
  x, y = np.asarray(pipeline.to_unit(test.images[:arguments.n])), test.labels[:arguments.n]
  x = x.astype(np.float64 if arguments.float64 else np.float32)
  margin = lambda x, y: np.asarray(-attacks.losses.margin(logits_fn(x), y)) if len(x) else []
  first, found = None, {'n': len(y), 'epsilon_255': arguments.epsilon_255, 'seed': arguments.seed,
                        'dtype': str(x.dtype), 'versions': records.versions(), 'differ': {}}
  for size, number, result in evaluations(logits_fn, x, y, arguments):
    if first is None:
      first = result
      found['robust'] = {name: int(robust.sum()) for name, robust in first.components.items()}
      print(f'{x.dtype}, {len(y)} images, robust after each component:', found['robust'])
      print(f'{"batch":>6s} {"devices":>8s}  images whose verdict differs, after each component')
    changed = difference(first, result, margin, x, y)
    found['differ'][f'{size} x {number}'] = changed
    print(f'{size:6d} {number:8d}  ' + ', '.join(f'{k} {len(v)}' for k, v in changed.items()), flush=True)
    for name, rows in changed.items():
      for i, before, after in rows:
        print(f'{"":16s}image {i}, {name}: margin {before:.4f} clean, {after:.2e} adversarial')
    if arguments.output:
      records.write_json(pathlib.Path(arguments.output), found)
  if arguments.float64 and any(rows for changed in found['differ'].values() for rows in changed.values()):
    sys.exit('independence: verdicts differ in float64')


if __name__ == '__main__':
  main()

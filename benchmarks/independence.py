"""Whether AutoAttack's verdicts on a real network depend on the batch size or number of devices.

  python benchmarks/independence.py --workdir=results/small_cifar10/pgd_at_cifar10-0 \
    --output=results/independence/float32.json
  the same with --float64 --n=100 --sizes=100,64,7,1 --output=results/independence/float64.json

The best checkpoint of the run is attacked by the whole of 'standard', on the first --n test images,
once for each of --sizes on one device and, where a batch has that many examples, on four (of the CPU,
which plays four). Verdicts of every component are compared with those of the first evaluation. In
float64 they must be the same, or the exit code is 1; in float32 rounding may decide at the edge, so
what differs is listed with the margin, z_y − max_{j≠y} z_j, at the clean image and at the point that
one of the two found. Needs nothing but at_jax, and hours where a batch is of one.
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
xla_flags.tune()  # It has to come before jax.


def model(workdir: str, float64: bool):
  """(logits function, test split) of a run's best checkpoint, computed in either precision."""
  run, logits_fn = restore.load(workdir)
  if float64:
    jax.config.update('jax_enable_x64', True)
    run.config.model.dtype = 'float64'
    variables, = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), logits_fn.args)
    run = setup.build(run.config)
    logits_fn = jax.tree_util.Partial(run.network.deployed, variables)
  return logits_fn, run.dataset.test


def evaluations(logits_fn, x, y, arguments):
  """Yields (B, devices, result) of each evaluation."""
  for size in arguments.sizes:
    for number in (1, 4):
      if size >= number:
        yield size, number, attacks.autoattack(
            logits_fn, x, y, jax.random.key(arguments.seed), epsilon=arguments.epsilon_255 / 255,
            batch_size=size, devices=jax.local_devices()[:number], warn=lambda line: None)


def difference(first, other, margin, x, y) -> dict[str, list]:
  """For each component the images whose verdicts differ: index, margin before, margin at the point."""
  told = {}
  for name in first.components:
    places = np.flatnonzero(first.components[name] != other.components[name])
    # Whichever of the two fell has the point; the other's is the input.
    points = np.where((first.robust & ~other.robust)[places, None, None, None],
                      other.x[places], first.x[places])
    told[name] = [[int(i), float(before), float(after)] for i, before, after in zip(
        places, margin(x[places], y[places]), margin(points, y[places]), strict=True)]
  return told


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True, help='of a run')
  parser.add_argument('--n', type=int, default=500)
  parser.add_argument('--sizes', type=lambda text: [int(n) for n in text.split(',')],
                      default=[500, 64, 7, 1], help='batch sizes; the first is compared with')
  parser.add_argument('--epsilon_255', type=float, default=8.)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--float64', action='store_true')
  parser.add_argument('--output', help='a JSON file, written anew after each evaluation')
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
      found['robust'] = {name: int(stands.sum()) for name, stands in first.components.items()}
      print(f'{x.dtype}, {len(y)} images, standing after each component:', found['robust'])
      print(f'{"batch":>6s} {"devices":>8s}  images whose verdict differs, after each component')
    told = difference(first, result, margin, x, y)
    found['differ'][f'{size} x {number}'] = told
    print(f'{size:6d} {number:8d}  ' + ', '.join(f'{k} {len(v)}' for k, v in told.items()), flush=True)
    for name, rows in told.items():
      for i, before, after in rows:
        print(f'{"":16s}image {i}, {name}: margin {before:.4f} clean, {after:.2e} at the point')
    if arguments.output:
      records.write_json(pathlib.Path(arguments.output), found)
  if arguments.float64 and any(rows for told in found['differ'].values() for rows in told.values()):
    sys.exit('in float64 no verdict may differ')


if __name__ == '__main__':
  main()

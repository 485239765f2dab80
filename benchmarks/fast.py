"""Measures AutoAttack's version 'fast'.

  python benchmarks/fast.py

'fast' attacks the first 1,000 test images of the rows of --results. Its verdicts are compared with those of
the version 'standard' that are recorded there. A row has a file in --output. A row that has one is not run
again, and an interrupted row continues from its state file. The printed tables cover all files, and those in
which `speed.py` timed the reference code, 'standard' and 'fast' in one sitting.

The losses, targets and steps of 'fast' were chosen on the images of even index of the rows of `CHOSEN_ON`.
The other methods are held out, with all their seeds and variants.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from sittings import head, line, show_sittings

from at_jax import attacks, xla_flags
from at_jax.attacks.autoattack import components
from at_jax.datasets import pipeline
from at_jax.training import records, restore

xla_flags.tune()  # before the first array starts XLA
CHOSEN_ON = ('awp', 'consistency', 'entropy_sgd', 'finetune', 'mail', 'pgd_at')  # prefixes of rows


def run_row(workdir: pathlib.Path, seed: int, batch_size: int, state: pathlib.Path) -> dict[str, Any]:
  """Runs 'fast' on a row. 'missed': images fooled by 'standard' and not by 'fast'; 'gained': the reverse."""
  run, model = restore.load(workdir)
  config = records.read_json(workdir / 'results.json')['config']
  norm, epsilon = config['attack']['norm'], config['evaluate']['epsilon_255']
  verdicts = np.load(workdir / 'verdicts.npz')
  of_best = {name.removeprefix('best/'): verdicts[name] for name in verdicts.files}
  split, _ = pipeline.subset(run.dataset.test, len(verdicts['labels']))
  if not np.array_equal(split.labels, verdicts['labels']):
    sys.exit(f'{workdir}: the verdicts are of other images than those of {run.dataset.name}')
  state.parent.mkdir(parents=True, exist_ok=True)
  found = attacks.autoattack(
      model, pipeline.to_unit(split.images), split.labels, jax.random.key(seed), epsilon=epsilon / 255,
      norm=norm, version='fast', batch_size=batch_size, state_path=state,
      warn=lambda line: print(f'{workdir.name}: {line}', file=sys.stderr, flush=True))
  standard = of_best['robust/autoattack']
  plan = components.plan(components.VERSIONS['fast'], norm, 'fast', run.dataset.num_classes, 100, 5000)
  state.unlink()
  return {
      'row': workdir.name, 'n': len(standard), 'norm': norm, 'epsilon_255': epsilon, 'seed': seed,
      'clean': int(found.clean.sum()), 'standard': int(standard.sum()),
      'fast': {name: int(robust.sum()) for name, robust in found.components.items()},
      'missed': np.flatnonzero(of_best['clean'] & ~standard & found.robust).tolist(),
      'gained': np.flatnonzero(standard & ~found.robust).tolist(),
      'gradients_of_a_survivor': sum(part.stepper.length * len(part.runs) for part in plan),
      'passes': {name: count._asdict() for name, count in found.passes.items()},
      'warnings': list(found.warnings), 'versions': records.versions()}


def is_held_out(row: dict[str, Any]) -> bool:
  return not row['row'].startswith(CHOSEN_ON)


def gradients(row: dict[str, Any]) -> int:
  return sum(count['backward'] for count in row['passes'].values())


def show(rows: list[dict[str, Any]]) -> None:
  """Prints a table of the rows, and one of the held-out and the other rows."""
  head('row', 'held out', 'standard', 'fast', 'missed', 'gained', 'gradients of a robust image',
       'of a fooled image', 'of all')
  for row in rows:
    robust, each = row['fast']['apgd-near'], row['gradients_of_a_survivor']
    of_fooled = (gradients(row) - robust * each) / max(row['clean'] - robust, 1)
    line(f'`{row["row"]}`', 'yes' if is_held_out(row) else '', f'{row["standard"] / row["n"]:.1%}',
         f'{robust / row["n"]:.1%}', len(row['missed']), len(row['gained']), each, f'{of_fooled:.1f}',
         f'{gradients(row):,}')
  print()
  head('rows', 'images', 'number', 'missed in a row: mean, most', 'gained: mean, most', 'largest gap')
  for held_out in (True, False):
    part = [row for row in rows if is_held_out(row) == held_out]
    for images, keep in (('all', (0, 1)), ('odd', (1,)), ('even', (0,))):
      missed, gained = (np.array([sum(i % 2 in keep for i in row[name]) for row in part])
                        for name in ('missed', 'gained'))
      sizes = np.array([row['n'] * len(keep) // 2 for row in part])
      if part:
        line('held out' if held_out else 'chosen on', images, f'{len(part)} rows, {sizes.sum():,} images',
             f'{missed.mean():.2f}, {missed.max()}', f'{gained.mean():.2f}, {gained.max()}',
             f'{(np.abs(missed - gained) / sizes).max():.1%}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--results', default='results/small_cifar10', help='folder of the rows')
  parser.add_argument('--rows', default='', help='names of rows to run, with commas; all by default')
  parser.add_argument('--output', default='results/fast', help='folder of the files')
  parser.add_argument('--sittings', default='results/speed', help='folder of the files of speed.py')
  parser.add_argument('--states', default='runs/fast', help='folder of state files')
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  output = pathlib.Path(arguments.output)
  workdirs = sorted(pathlib.Path(arguments.results).iterdir())
  for workdir in workdirs:
    path = output / f'{workdir.name}.json'
    if path.exists() or arguments.rows and workdir.name not in arguments.rows.split(','):
      continue
    row = run_row(workdir, arguments.seed, arguments.batch_size,
                  pathlib.Path(arguments.states) / f'{workdir.name}-{arguments.seed}.npz')
    output.mkdir(parents=True, exist_ok=True)
    records.write_json(path, row)
    print(f'{workdir.name}: {len(row["missed"])} missed', file=sys.stderr, flush=True)
  show([records.read_json(path) for path in sorted(output.glob('*.json'))])
  print()
  show_sittings(arguments.sittings)


if __name__ == '__main__':
  main()

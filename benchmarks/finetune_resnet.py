"""Fine-tunes the ResNet-18 that pyautoattack ships, and compares clean with robust accuracy.

  python benchmarks/finetune_resnet.py --hours=8
  python benchmarks/finetune_resnet.py --hours=8 constant controller      only these rows

The network was trained without attacks on CIFAR-10. `finetune_cifar10.py:pretrained` fine-tunes it with
N-FGSM at 8/255 on --n images. First every rate of --rates trains two epochs on 4,000 images; the one with the
highest robust accuracy on the validation split is used, among those that keep 80 % clean accuracy there. Then
each row trains --epochs epochs. Its operating point is attacked with PGD-20 and autoattack_fast, with an
audit, on 500 test images.

  constant    the loss at x' alone, two passes an image; at most 14 points of clean accuracy less
  clean       the loss at x too, three passes
  controller  the radius of all grows while clean accuracy is at most 4 points less
  radius      a radius for each example
  dual        the loss at x too, with a BatchNorm of its own

A step of 128 images took 12.8 CPU seconds (two steps, measured on a busy machine with two cores), so an epoch
of 20,000 images takes about 17 minutes where two cores are free. By that, tuning and the first row take some
four hours, and each further row three to four, of which the evaluation is one.

After --hours the run is stopped with its state saved, and the same command goes on. What is finished is not
run again. Records go to --output, checkpoints to --scratch. Needs the packages of at_jax[peers].
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from at_jax import attacks, xla_flags
from at_jax.datasets import pipeline
from at_jax.training import restore

xla_flags.tune()  # before the first array starts XLA

ROOT = pathlib.Path(__file__).parents[1]
ROWS = {'constant': ('', {}), 'controller': ('-controller', {'finetune.tolerance': .04}),
        'clean': ('', {'finetune.clean_weight': 1.}), 'radius': ('-radius', {}), 'dual': ('-dual', {})}
TUNING = dict(n=4_000, epochs=2)
VALIDATION, TESTED, KEPT = 500, 500, .8
RECORDS = ('config.json', 'metrics.jsonl', 'results.json', 'verdicts.npz')


class OutOfTime(Exception):
  """The hours are over; the run that was going on has saved its state."""


def source() -> pathlib.Path:
  package = importlib.util.find_spec('pyautoattack')
  return pathlib.Path(package.submodule_search_locations[0]) / 'examples' / 'model_test.pt'


def write_data(path: pathlib.Path, images: str, n: int) -> pathlib.Path:
  """Writes the first n training images, a validation split and the test set to a .npz file."""
  if not path.exists():
    data = pipeline.load(images, validation_size=VALIDATION)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp.npz')
    np.savez(temporary, train_images=data.train.images[:n], train_label=data.train.labels[:n],
             val_images=data.validation.images, val_label=data.validation.labels,
             test_images=data.test.images, test_label=data.test.labels)
    temporary.replace(path)
  return path


def command(form: str, workdir: pathlib.Path, fields: dict[str, Any], deadline: float, mode: str = 'train'
            ) -> None:
  """Runs at_jax.main until it ends or the deadline."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'at_jax.main', f'--config=configs/finetune_cifar10.py:pretrained{form}',
       f'--workdir={workdir}', f'--mode={mode}',
       *(f'--config.{name}={value}' for name, value in fields.items())], cwd=ROOT)
  try:
    code = process.wait(max(deadline - time.monotonic(), 0))
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
    process.wait()
    raise OutOfTime from None
  if code:
    sys.exit(f'{workdir}: exit code {code}')
  if not (workdir / 'results.json').exists():  # somebody sent it a signal
    raise OutOfTime


def read(workdir: pathlib.Path) -> dict[str, Any]:
  return json.loads((workdir / 'results.json').read_text(encoding='utf-8'))


def fields_of(data: pathlib.Path, rate: float, epochs: int) -> dict[str, Any]:
  return {'finetune.source': source(), 'dataset.name': data, 'dataset.validation_size': VALIDATION,
          'finetune.learning_rate': rate, 'epochs': epochs, 'checkpoint.every_steps': 50,
          'validate.batch_size': VALIDATION // 4}


def train(form: str, workdir: pathlib.Path, fields: dict[str, Any], deadline: float) -> None:
  if not (workdir / 'results.json').exists():  # evaluated later
    command(form, workdir, fields | {'evaluate.attacks': "('pgd1',)", 'evaluate.num_examples': 16,
                                     'evaluate.batch_size': 16}, deadline)


def best_rate(rates: list[float], scratch: pathlib.Path, data: pathlib.Path, deadline: float) -> float:
  """The rate with the highest robust accuracy of those that keep clean accuracy, by the validation split."""
  last = {}
  for rate in rates:
    workdir = scratch / f'rate-{rate:g}'
    train('', workdir, fields_of(data, rate, TUNING['epochs']), deadline)
    last[rate] = read(workdir)['finetune']['curve'][-1]
    print(f'rate {rate:g}: clean {last[rate]["clean"]:.1%}, robust {last[rate]["robust"]:.1%}', flush=True)
  return max(last, key=lambda rate: ((last[rate]['robust'], 0) if last[rate]['clean'] >= KEPT
                                     else (-1, last[rate]['clean'])))


def evaluate(form: str, workdir: pathlib.Path, kept: pathlib.Path, fields: dict[str, Any], audit: int,
             deadline: float) -> None:
  """Attacks the operating point of a trained row, in a copy without its optimizer."""
  if not (kept / 'results.json').exists():
    restore.export(workdir, kept)
  if 'autoattack_fast' not in read(kept)['robust']:
    command(form, kept, fields | {
        'evaluate.attacks': "('pgd20','autoattack_fast')", 'evaluate.num_examples': TESTED,
        'evaluate.audit': audit, 'evaluate.batch_size': 125}, deadline, mode='evaluate')
  if 'autoattack_fast' not in read(kept)['robust']:  # somebody sent it a signal
    raise OutOfTime


def show(output: pathlib.Path) -> None:
  """Prints the table of finished rows, and the curves on the validation split."""
  found = {name: read(output / name) for name in ROWS if (output / name / 'results.json').exists()}
  print('| row | epoch | clean | PGD-20 | AutoAttack, fast | clean, robust on the validation split |\n'
        '|---|---|---|---|---|---|')
  for name, results in found.items():
    curve = results['finetune']
    epoch = next(point['epoch'] for point in curve['curve'] if point['step'] == curve['chosen'])
    points = [curve['start'], *curve['curve']]
    pairs = '; '.join(f'{100 * each["clean"]:.1f}, {100 * each["robust"]:.1f}' for each in points)
    robust = results['robust']
    print(f'| {name} | {epoch:g} | {results["clean"]:.1%} | {robust["pgd20"]:.1%} | '
          f'{robust["autoattack_fast"]:.1%} | {pairs} |')
  for name, results in found.items():
    for audit in results.get('audits', {}).values():
      print(f'- {name}: {attacks.Audit(**audit)}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('rows', nargs='*', metavar='ROW', default=list(ROWS), help=', '.join(ROWS))
  parser.add_argument('--hours', type=float, default=8)
  parser.add_argument('--images', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, default=20_000, help='training images')
  parser.add_argument('--epochs', type=int, default=6)
  parser.add_argument('--rates', type=float, nargs='+', default=[.003, .01, .03])
  parser.add_argument('--audit', type=int, default=20, help='examples that all of AutoAttack attacks')
  parser.add_argument('--output', type=pathlib.Path, default=ROOT / 'results' / 'finetune_resnet')
  parser.add_argument('--scratch', type=pathlib.Path, default=ROOT / 'runs' / 'finetune_resnet')
  arguments = parser.parse_args()
  if unknown := set(arguments.rows) - set(ROWS):
    parser.error(f'no row {", ".join(sorted(unknown))}: use {", ".join(ROWS)}')
  if min(arguments.hours, arguments.n, arguments.epochs, *arguments.rates) <= 0:
    parser.error('--hours, --n, --epochs and --rates: use numbers above 0')
  if importlib.util.find_spec('pyautoattack') is None:
    parser.error("the ResNet-18 is a part of pyautoattack: pip install -e '.[peers]'")
  deadline, scratch = time.monotonic() + 3600 * arguments.hours, arguments.scratch.absolute()
  try:
    small = write_data(scratch / 'tuning.npz', arguments.images, TUNING['n'])
    data = write_data(scratch / f'data-{arguments.n}.npz', arguments.images, arguments.n)
    rate = best_rate(arguments.rates, scratch, small, deadline)
    for row in arguments.rows:
      form, fields = ROWS[row]
      fields = fields_of(data, rate, arguments.epochs) | fields
      train(form, scratch / row, fields, deadline)
      evaluate(form, scratch / row, scratch / 'exported' / row, fields, arguments.audit, deadline)
      (arguments.output / row).mkdir(parents=True, exist_ok=True)
      for name in RECORDS:
        shutil.copy(scratch / 'exported' / row / name, arguments.output / row)
  except OutOfTime:
    print('the hours are over: the same command goes on', file=sys.stderr)
  show(arguments.output)


if __name__ == '__main__':
  main()

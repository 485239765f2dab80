"""Fine-tunes the ResNet-18 that pyautoattack ships, and compares clean with robust accuracy.

  python benchmarks/finetune_resnet.py --hours=8
  python benchmarks/finetune_resnet.py --hours=8 constant controller      only these rows

The network was trained without attacks on CIFAR-10. `finetune_cifar10.py:pretrained` fine-tunes it with
N-FGSM at 8/255 on --n images. First every rate of --rates trains two epochs on 4,000 images; the one with the
highest robust accuracy on the validation split is used, among those that keep 80 % clean accuracy there. Then
each row trains --epochs epochs. Three checkpoints are attacked with PGD-20 and fast AutoAttack, with an
audit, on 500 test images: the operating point, the last one, and the last stored one that keeps 90 % clean
accuracy on the validation split, if there is one.

  constant    the loss at x' alone, two passes an image; at most 14 points of clean accuracy less
  ramp        the radius grows from 0 with each step, up to the last epoch; batches of 64, a shorter warm-up
  further     from the last checkpoint of `ramp`, at the whole radius; a rate of .02 that falls faster
  clean       the loss at x too, three passes
  controller  the radius of all grows while clean accuracy is at most 4 points less
  radius      a radius for each example
  dual        the loss at x too, with a BatchNorm of its own

The weights of the last checkpoint are also mixed with the original ones, by each of --shares. The most robust
share that keeps 80 % clean accuracy and the most robust one that keeps 90 % are attacked too. They are chosen
with PGD-10 on 500 other test images, because the original network was trained on the validation images.

On two cores training takes 17 images a second, so an epoch of 20,000 takes 20 minutes and its validation two.
The attacks of a checkpoint take 20 minutes, of which the audit of ten images is 12. A share is measured in
three.

After --hours the run is stopped with its state saved, and the same command goes on. What is finished is not
run again. Records go to --output, checkpoints to --scratch. Needs the packages of at_jax[peers].
"""

import argparse
from collections.abc import Iterator, Sequence
import importlib.util
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import optax
from sittings import head, line

from at_jax import training, xla_flags
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.methods import weight_averaging
from at_jax.training import batchnorm, checkpoints, finetune, records, restore, setup

xla_flags.tune()  # before the first array starts XLA

ROOT = pathlib.Path(__file__).parents[1]
ROWS = ('constant', 'ramp', 'further', 'controller', 'clean', 'radius', 'dual')
TUNING = dict(n=4_000, epochs=2)
VALIDATION, TESTED, BATCH, KEPT = 500, 500, 125, .8


class OutOfTime(Exception):
  """The hours are over; the run that was going on has saved its state."""


def original() -> pathlib.Path:
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


def command(variant: str, workdir: pathlib.Path, fields: dict[str, Any], deadline: float) -> None:
  """Runs at_jax.main until it ends or the deadline."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'at_jax.main', f'--config=configs/finetune_cifar10.py:pretrained{variant}',
       f'--workdir={workdir}',
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
  return records.read_json(workdir / 'results.json')


def fields_of(data: pathlib.Path, rate: float, epochs: int) -> dict[str, Any]:
  return {'finetune.source': original(), 'dataset.name': data, 'dataset.validation_size': VALIDATION,
          'finetune.learning_rate': rate, 'epochs': epochs, 'validate.batch_size': VALIDATION // 4,
          # Of 20,000 images and batches of 64, three in an epoch: points of the curve between its ends.
          'checkpoint.every_steps': 104, 'checkpoint.keep': 20}


def row_of(name: str, epochs: int, scratch: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """The variant of the configuration, and the fields of a row."""
  if name in ('controller', 'radius', 'dual'):
    return f'-{name}', {'finetune.tolerance': .04} if name == 'controller' else {}
  return '', {'constant': {}, 'clean': {'finetune.clean_weight': 1.},
              'ramp': {'attack.ramp_epochs': (0, epochs - 1), 'batch_size': 64,
                       'finetune.warmup_epochs': .5},
              'further': {'finetune.source': scratch / 'ramp', 'finetune.checkpoint': 'last',
                          'finetune.learning_rate': .02, 'finetune.decay_factor': .4,
                          'batch_size': 64, 'finetune.warmup_epochs': .5}}[name]


def train(variant: str, workdir: pathlib.Path, fields: dict[str, Any], deadline: float) -> None:
  if not (workdir / 'results.json').exists():  # evaluated later
    command(variant, workdir, fields | {'evaluate.attacks': "('pgd1',)", 'evaluate.num_examples': 16,
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


def evaluate(run: training.Run, variables: Any, split: pipeline.Split, names: Sequence[str] = (),
             **options: Any) -> robustness.Report:
  """Attacks a model within 8/255."""
  return robustness.evaluate(
      run.network, variables, split, jax.random.key(0), names=names, norm='linf', epsilon=8 / 255,
      step_size=2 / 255, batch_size=BATCH, has_dummies=False, **options)


def mix(run: training.Run, workdir: pathlib.Path, step: int, shares: Sequence[float]
        ) -> Iterator[tuple[float, Any]]:
  """Yields each share with the variables (1 − share)·original + share·checkpoint.

  Their BatchNorm statistics are re-estimated as for an average of weights.

  Reference: Wortsman et al., Robust Fine-tuning of Zero-shot Models, 2022.
  """
  if not shares:
    return
  config = run.config.copy_and_resolve_references()
  config.finetune.source = str(original())  # that of `further` is a work directory
  template = jax.device_get(setup.init_state(run))
  before = finetune.start_from(run._replace(config=config), template)
  after = checkpoints.Checkpoints(workdir / 'checkpoints').at(step, template).state
  reestimate = batchnorm.reestimate_batchnorm(run)
  for share in shares:
    params = optax.incremental_update(after.params, before.params, share)
    statistics = optax.incremental_update(after.batch_stats, before.batch_stats, share)
    average = weight_averaging.AverageState(np.int32(1), params)
    yield share, reestimate(after._replace(batch_stats=statistics, average=average))


def points(run: training.Run, workdir: pathlib.Path) -> dict[str, int]:
  """The steps of the checkpoints that are attacked, by name."""
  steps = sorted(restore.steps(workdir), reverse=True)
  accurate = (step for step in steps if evaluate(
      run, restore.variables(run, workdir, step), run.dataset.validation).clean.mean() >= .9)
  found = {}
  for name, step in (('operating point', read(workdir)['finetune']['chosen']), ('last', steps[0]),
                     ('90 % clean', next(accurate, None))):
    if step is not None and step not in found.values():
      found[name] = step
  return found


def best_shares(curve: Sequence[dict[str, float]]) -> list[float]:
  """The most robust shares of `mix` that keep 80 % and 90 % clean accuracy."""
  accurate = [[each for each in curve if each['clean'] >= least] for least in (KEPT, .9)]
  return sorted({max(each, key=lambda point: point['robust'])['share'] for each in accurate if each})


def measure_shares(run: training.Run, workdir: pathlib.Path, step: int, shares: Sequence[float],
                   split: pipeline.Split, progress: robustness.Progress) -> Iterator[dict[str, float]]:
  """Yields clean accuracy of each mixture, and that under PGD-10."""
  for share, variables in mix(run, workdir, step, shares):
    report = evaluate(run, variables, split, ('pgd10',), progress=progress)
    yield {'share': share, 'clean': float(report.clean.mean()),
           'robust': float(report.robust['pgd10'].mean())}


def record(workdir: pathlib.Path, audit: int, shares: Sequence[float], kept: pathlib.Path, deadline: float
           ) -> None:
  """Attacks the points of a row that have no record yet, on test images."""
  path = kept / 'points.json'
  curve = read(workdir)['finetune']
  found = records.read_json(path) or {
      'command': shlex.join(['python', *sys.argv]), 'versions': records.versions(),
      'finetune': curve, 'points': {}}
  if found['finetune'] != curve:
    sys.exit(f'{path} is of another training: use another --output')
  measured = found.setdefault('shares', [])
  kept.mkdir(parents=True, exist_ok=True)
  # Not results.json: it is of 16 images, like the fields `evaluate` of config.json.
  shutil.copy(workdir / 'metrics.jsonl', kept)
  config = records.read_json(workdir / 'config.json')
  for group, field in (('finetune', 'source'), ('dataset', 'name')):  # paths of this machine
    config[group][field] = pathlib.Path(config[group][field]).name
  records.write_json(kept / 'config.json', config)
  run, _ = restore.load(workdir)  # once: its checkpoints share compiled programs
  test, last = run.dataset.test, max(restore.steps(workdir))
  split, others = (pipeline.Split(*(part[first:first + TESTED] for part in test)) for first in (0, TESTED))

  def in_time(*_) -> None:
    if time.monotonic() > deadline:
      raise OutOfTime  # the state of AutoAttack is written first

  def attack(name: str, step: int, label: str, variables: Any) -> None:
    report = evaluate(run, variables, split, ('pgd20', 'autoattack_fast'), audit=audit,
                      state_dir=workdir / f'state-{label}', progress=in_time,
                      warn=lambda *line: print(*line, file=sys.stderr))
    verdicts = {'clean': report.clean} | report.robust
    found['points'][name] = {
        'step': step, 'epoch': step / run.steps_per_epoch, 'n': TESTED,
        'audit': str(report.audits['autoattack_fast'])} | {
            each: float(robust.mean()) for each, robust in verdicts.items()}
    np.savez_compressed(kept / f'verdicts-{label}.npz', **verdicts)
    records.write_json(path, found)

  missing = sorted(set(shares) - {each['share'] for each in measured})
  for each in measure_shares(run, workdir, last, missing, others, in_time):
    print(each, flush=True)
    measured.append(each)
    records.write_json(path, found)
  name = 'mixed, {:g} of the last'.format
  wanted = [share for share in best_shares(measured) if name(share) not in found['points']]
  for share, variables in mix(run, workdir, last, wanted):
    attack(name(share), last, f'{last}-{share:g}', variables)
  for name, step in points(run, workdir).items():
    if name not in found['points']:
      attack(name, step, str(step), restore.variables(run, workdir, step))


def show(output: pathlib.Path) -> None:
  """Prints the table of attacked points, and the curves on the validation split."""
  stored = {name: records.read_json(output / name / 'points.json') for name in ROWS}
  rows = {name: found for name, found in stored.items() if found}
  head('row', 'checkpoint', 'epoch', 'clean', 'PGD-20', 'AutoAttack, fast')
  for row, found in rows.items():
    for name, each in found['points'].items():
      line(row, name, f'{each["epoch"]:.2f}',
           *(f'{each[score]:.1%}' for score in ('clean', 'pgd20', 'autoattack_fast')))
  print()
  for row, found in rows.items():
    for name, each in found['points'].items():
      print(f'- {row}, {name}: {each["audit"]}')
  print('\nClean and robust accuracy (PGD-10) on the validation split, before training and after each epoch:')
  for row, found in rows.items():
    pairs = '; '.join(f'{100 * each["clean"]:.1f}, {100 * each["robust"]:.1f}'
                      for each in [found['finetune']['start'], *found['finetune']['curve']])
    print(f'- {row}: {pairs}')
  print('\nShare of the last checkpoint, clean and robust accuracy (PGD-10) on the other test images:')
  for row, found in rows.items():
    for each in sorted(found.get('shares', ()), key=lambda each: each['share']):
      print(f'- {row}: {each["share"]:g}: {100 * each["clean"]:.1f}, {100 * each["robust"]:.1f}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('rows', nargs='*', metavar='ROW', default=ROWS, help=', '.join(ROWS))
  parser.add_argument('--hours', type=float, default=8)
  parser.add_argument('--images', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, default=20_000, help='training images')
  parser.add_argument('--epochs', type=int, default=6)
  parser.add_argument('--rates', type=float, nargs='+', default=[.003, .01, .03])
  parser.add_argument('--shares', type=float, nargs='*', default=[.4, .6, .8],
                      help='of the weights of the last checkpoint in a mixture with the original ones')
  parser.add_argument('--audit', type=int, default=20, help='examples that all of AutoAttack attacks')
  parser.add_argument('--output', type=pathlib.Path, default=ROOT / 'runs' / 'finetune_resnet' / 'records')
  parser.add_argument('--scratch', type=pathlib.Path, default=ROOT / 'runs' / 'finetune_resnet')
  arguments = parser.parse_args()
  if unknown := set(arguments.rows) - set(ROWS):
    parser.error(f'no row {", ".join(sorted(unknown))}: use {", ".join(ROWS)}')
  if min(arguments.hours, arguments.n, arguments.epochs, *arguments.rates) <= 0:
    parser.error('--hours, --n, --epochs and --rates: use numbers above 0')
  if not all(0 < share <= 1 for share in arguments.shares):
    parser.error('--shares: use numbers above 0, at most 1')
  if 'ramp' in arguments.rows and arguments.epochs < 2:
    parser.error('--epochs: the row ramp needs at least 2')
  if importlib.util.find_spec('pyautoattack') is None:
    parser.error("the ResNet-18 is a part of pyautoattack: pip install -e '.[peers]'")
  deadline, scratch = time.monotonic() + 3600 * arguments.hours, arguments.scratch.absolute()
  before = arguments.rows[:arguments.rows.index('further')] if 'further' in arguments.rows else ('ramp',)
  if 'ramp' not in before and not (scratch / 'ramp' / 'results.json').exists():
    parser.error('the row further goes on from a finished ramp: put ramp before it')
  try:
    small = write_data(scratch / 'tuning.npz', arguments.images, TUNING['n'])
    data = write_data(scratch / f'data-{arguments.n}.npz', arguments.images, arguments.n)
    rate = best_rate(arguments.rates, scratch, small, deadline)
    for row in arguments.rows:
      variant, fields = row_of(row, arguments.epochs, scratch)
      fields = fields_of(data, rate, arguments.epochs) | fields
      train(variant, scratch / row, fields, deadline)
      record(scratch / row, arguments.audit, arguments.shares, arguments.output / row, deadline)
  except OutOfTime:
    print('the hours are over: the same command goes on', file=sys.stderr)
  show(arguments.output)


if __name__ == '__main__':
  main()

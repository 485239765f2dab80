"""Kills a run at random moments, and checks that it ends with the bits of a run that nothing stopped.

  python benchmarks/kills.py --method=trades --kills=50
  python benchmarks/kills.py --summary

A tiny network trains with a method on scikit-learn's digits: 26 steps, a checkpoint after every third one, a
validation after each epoch, then PGD-5 and APGD-CE of its best and its last checkpoint. The first run is not
stopped. Then the same command is started again and again in one folder and killed, with SIGKILL or SIGTERM:
while it starts, in training, while a checkpoint is written, or in the evaluation. A run that ends before the
next kill is compared with the first one: digests of all arrays of the last checkpoint, metrics.jsonl without
times, verdicts and accuracies. Then another folder begins, until there were --kills kills.

Signal and moment follow from --seed and the number of the kill. OUTPUT/METHOD.jsonl has a line for each kill
and for each comparison. The command resumes: it counts the kills in that file. The exit code is 1 if a run
ended with other bits, failed or printed a traceback.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from orbax.checkpoint import v1 as ocp

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ('pgd_at', 'trades', 'ducat', 'entropy_sgd', 'gairat')
LAST = 26
FIELDS = {'batch_size': 100, 'checkpoint.every_steps': 3, 'log_every_steps': 1, 'model.dtype': 'float32',
          'evaluate.attacks': "('pgd5','apgd-ce')", 'evaluate.num_examples': 32, 'evaluate.batch_size': 16}
_LONGEST = {'start': 20., 'training': .2, 'checkpoint': .02, 'evaluation': 10.}  # seconds of a delay
_CODES = {'SIGKILL': (-9,), 'SIGTERM': (0, -15)}  # 0 if the state was saved
_TIMES = ('seconds', 'examples_per_second')


class Plan(NamedTuple):
  """When a kill happens.

  Attributes:
    number: of the kill, from 1.
    name: 'SIGKILL' or 'SIGTERM'.
    where: 'start', 'training', 'checkpoint' or 'evaluation'.
    after: steps or checkpoints of this process before it.
    delay: seconds after that.
  """
  number: int
  name: str
  where: str
  after: int
  delay: float


def plan(seed: int, number: int) -> Plan:
  """The kill of a number."""
  chance = random.Random(f'{seed}-{number}')
  where = chance.choice(tuple(_LONGEST))
  after = {'training': chance.randint(1, 9), 'checkpoint': chance.randint(1, 3)}.get(where, 0)
  return Plan(number, chance.choice(('SIGKILL', 'SIGTERM')), where, after, chance.random() * _LONGEST[where])


def start(method: str, workdir: pathlib.Path) -> subprocess.Popen:
  fields = [f'--config.{name}={value}' for name, value in FIELDS.items()]
  return subprocess.Popen(
      [sys.executable, '-m', 'at_jax.main', f'--config=configs/{method}_cifar10.py:smoke', *fields,
       f'--workdir={workdir}'], cwd=ROOT, stdout=subprocess.DEVNULL, text=True,
      stderr=(workdir.parent / f'{workdir.name}.err').open('w'))


class Progress:
  """What a process that runs in a work directory is doing, as its files show it."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._steps, self._left, self._begun = self._logged(), set(self._unfinished()), set()

  def _logged(self) -> int:
    path = self._workdir / 'metrics.jsonl'
    return path.read_text(errors='replace').count('"loss"') if path.exists() else 0

  def _unfinished(self) -> list[str]:
    return [path.name for path in self._workdir.glob('checkpoints/*.orbax-checkpoint-tmp*')]

  def now(self) -> tuple[str, int, int]:
    """What it does, the steps that it has logged, and the checkpoints that it has begun to write."""
    steps, names = self._logged(), set(self._unfinished())
    self._left &= names  # those of the process before, which this one removes and writes again
    unfinished = names - self._left
    self._begun |= unfinished
    self._steps = min(self._steps, steps)  # a resumed run drops the lines after its checkpoint
    taken, written = steps - self._steps, len(self._begun)
    if steps == LAST and (self._workdir / 'checkpoints' / f'{LAST:08d}').exists():
      return 'evaluation', taken, written
    if unfinished:
      return 'checkpoint', taken, written
    return 'training' if taken else 'start', taken, written


def wait_and_kill(process: subprocess.Popen, workdir: pathlib.Path, wanted: Plan) -> dict[str, Any] | None:
  """Kills a process at its moment; None if it ended before."""
  progress, begun, due = Progress(workdir), time.monotonic(), None
  while process.poll() is None:
    during, steps, written = progress.now()
    reached = {'start': True, 'training': during != 'evaluation' and steps >= wanted.after,
               'checkpoint': during == 'checkpoint' and written >= wanted.after,
               'evaluation': during == 'evaluation'}[wanted.where]
    if due is None and reached:
      due = time.monotonic() + wanted.delay
    if due is not None and time.monotonic() >= due:
      process.send_signal(getattr(signal, wanted.name))
      during = progress.now()[0]
      code = process.wait()
      return {'kill': wanted.number, 'signal': wanted.name, 'planned': wanted.where, 'during': during,
              'steps': steps, 'seconds': round(time.monotonic() - begun, 1), 'code': code}
    time.sleep(.002)
  return None


def result(workdir: pathlib.Path) -> dict[str, Any]:
  """What must be the same to the bit in every run, as JSON."""
  stored = ocp.checkpointables_metadata(workdir / 'checkpoints' / f'{LAST:08d}').custom_metadata
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  results = json.loads((workdir / 'results.json').read_text())
  with np.load(workdir / 'verdicts.npz') as verdicts:
    verdicts = {name: verdicts[name].tolist() for name in sorted(verdicts.files)}
  same = ('step', 'clean', 'robust', 'released', 'worst_case', 'last', 'config', 'n')
  found = {'digests': stored['digests'], 'verdicts': verdicts,
           'metrics': [{name: line[name] for name in line if name not in _TIMES} for line in lines],
           'results': _without_times({name: results[name] for name in same if name in results})}
  return json.loads(json.dumps(found))


def _without_times(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  return {name: _without_times(value) for name, value in tree.items() if name not in _TIMES}


def last_line(workdir: pathlib.Path) -> tuple[str, bool]:
  """The last line of what a process printed on stderr, and whether it printed a traceback."""
  text = (workdir.parent / f'{workdir.name}.err').read_text(errors='replace')
  lines = [line for line in text.replace('\r', '\n').splitlines() if line.strip()]
  return (lines[-1] if lines else ''), 'Traceback' in text


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  code = process.wait()
  if code or last_line(workdir)[1]:
    sys.exit(f'the run failed with code {code}: {last_line(workdir)[0]}')


def run(method: str, kills: int, seed: int, output: pathlib.Path, scratch: pathlib.Path) -> None:
  """Makes the kills that OUTPUT/METHOD.jsonl does not have yet."""
  output.mkdir(parents=True, exist_ok=True)
  scratch.mkdir(parents=True, exist_ok=True)
  path, whole, killed = output / f'{method}.jsonl', scratch / 'whole', scratch / 'killed'
  done = read(path)

  def write(line: dict[str, Any]) -> None:
    done.append(line)
    with path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    print(json.dumps(line), flush=True)

  if not (whole / 'results.json').exists():
    finish(start(method, whole), whole)
  expected = result(whole)
  while True:
    number = 1 + sum('kill' in line for line in done)
    if number > kills and not killed.exists():
      return
    process = start(method, killed)
    try:
      wanted = plan(seed, number)
      missed = [line.get('compared_after') for line in done].count(number - 1)
      wanted = wanted._replace(delay=wanted.delay / 2 ** missed)  # if the run ended before that moment
      made = wait_and_kill(process, killed, wanted) if number <= kills else None
      if made is None:
        finish(process, killed)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
    if made is None:
      found = result(killed)
      differing = [name for name in expected if found[name] != expected[name]]
      write({'compared_after': number - 1, 'same': not differing, 'differing': differing})
      shutil.move(killed, scratch / f'differs-{number - 1}') if differing else shutil.rmtree(killed)
      continue
    line, has_traceback = last_line(killed)
    steps = sorted(int(each.name) for each in (killed / 'checkpoints').glob('*') if each.name.isdecimal())
    write(made | {'newest_checkpoint': steps[-1] if steps else 0, 'last_line': line,
                  'traceback': has_traceback})


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []


def summarise(output: pathlib.Path) -> bool:
  """Prints a table of all files; returns whether runs ended with the same bits, and kills as they should."""
  print('| method | kills | SIGKILL | SIGTERM | before a step | between steps | writing a checkpoint | '
        'evaluating | runs compared | same bits |\n|---|---|---|---|---|---|---|---|---|---|')
  fine = True
  for path in sorted(output.glob('*.jsonl')):
    lines = read(path)
    kills, ends = ([line for line in lines if name in line] for name in ('kill', 'same'))
    of = lambda name, value, kills=kills: sum(line[name] == value for line in kills)
    counts = [len(kills), of('signal', 'SIGKILL'), of('signal', 'SIGTERM'),
              *(of('during', each) for each in ('start', 'training', 'checkpoint', 'evaluation')),
              len(ends), sum(line['same'] for line in ends)]
    print(f'| {path.stem} | {" | ".join(map(str, counts))} |')
    fine &= all(line['same'] for line in ends) and not any(
        line['traceback'] or line['code'] not in _CODES[line['signal']] for line in kills)
  return fine


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--method', choices=METHODS, default='pgd_at')
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/kills'))
  parser.add_argument('--scratch', type=pathlib.Path, default=pathlib.Path('runs/kills'),
                      help='folder of the runs, one for each method')
  parser.add_argument('--summary', action='store_true', help='only print the table of all methods')
  arguments = parser.parse_args()
  if not arguments.summary:
    run(arguments.method, arguments.kills, arguments.seed, arguments.output,
        (arguments.scratch / arguments.method).absolute())
  sys.exit(0 if summarise(arguments.output) else 1)


if __name__ == '__main__':
  main()

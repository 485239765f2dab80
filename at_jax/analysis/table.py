"""The table of several runs: `python -m at_jax.analysis.table DIR [--against=METHOD]`.

DIR holds a folder METHOD-SEED for each run, with its results.json and verdicts.npz. A row is a method:
mean ± standard deviation over its seeds, in percent, of the best checkpoint's deployed model; and
McNemar's test of its worst-case verdicts against those of the reference method, seed by seed. Runs
that were evaluated in other balls are another table.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from at_jax.analysis import mcnemar
from at_jax.evaluation import metrics

# What a column is called, and how it is found in results.json.
_COLUMNS = (
    ('clean', lambda r: r['clean']),
    ('PGD-20', lambda r: r['robust'].get('pgd20')),
    ('margin PGD-100×5', lambda r: r['robust'].get('margin100x5')),
    ('logit-scaled', lambda r: r['robust'].get('scales_pgd20')),
    ('dummy-aware', lambda r: r['robust'].get('dummies_pgd100')),
    ('AutoAttack', lambda r: r['robust'].get('autoattack')),
    ('worst case', lambda r: r['worst_case']),
    ("authors' PGD-20", lambda r: r['authors'].get('pgd20')),
    ("authors' AutoAttack", lambda r: r['authors'].get('autoattack')),
)


class Run(NamedTuple):
  """One run, as its folder tells it.

  Attributes:
    results: results.json.
    worst_case: bool[N], of the best checkpoint.
    labels: int[N].
  """
  results: dict[str, Any]
  worst_case: np.ndarray
  labels: np.ndarray


def read(directory: pathlib.Path) -> dict[str, dict[int, Run]]:
  """The runs of a folder, by method and seed.

  Args:
    directory: of folders METHOD-SEED; those without results.json are left out.

  Returns:
    `{method: {seed: Run}}`.

  Source: ours.
  """
  runs: dict[str, dict[int, Run]] = {}
  for path in sorted(directory.glob('*-*/results.json')):
    method, _, seed = path.parent.name.rpartition('-')
    if not seed.isdecimal():  # as in X-small, which main makes
      continue
    verdicts = np.load(path.parent / 'verdicts.npz')
    run = Run(json.loads(path.read_text(encoding='utf-8')), verdicts['best/worst_case'],
              verdicts['labels'])
    runs.setdefault(method, {})[int(seed)] = run
  return runs


def threat(results: dict[str, Any]) -> str:
  """The ball in which a run was evaluated.

  Args:
    results: results.json.

  Returns:
    Norm and radius, in 255ths.

  Example:
    >>> threat({'config': {'evaluate': {'norm': 'l2', 'epsilon_255': 128.}}})
    'L2, 128/255'

  Source: ours.
  """
  c = results['config']
  # Runs from before an evaluation could have a norm of its own had the attack's.
  norm = c['evaluate'].get('norm') or c['attack']['norm']
  return f'{norm.upper().replace("INF", "∞")}, {c["evaluate"]["epsilon_255"]:g}/255'


def tables(runs: dict[str, dict[int, Run]], *, against: str) -> dict[str, str]:
  """The runs as Markdown tables, one for each ball.

  Args:
    runs: of `read`.
    against: the method that the others are paired with; where it is not among those of a ball,
      another form of it, AGAINST-FORM, is.

  Returns:
    `{threat: lines of text}`, the ball with most methods first. An attack that none of a ball's runs
    met has no column. The last column counts, over all seeds that both have, the test examples on
    which only the method stands and those on which only the reference does, and gives the largest p.

  Source: ours.
  """
  balls: dict[str, dict[str, dict[int, Run]]] = {}
  for method, seeds in runs.items():
    for seed, run in seeds.items():
      balls.setdefault(threat(run.results), {}).setdefault(method, {})[seed] = run
  found = {}
  for ball, methods in sorted(balls.items(), key=lambda item: -len(item[1])):
    forms = [method for method in sorted(methods) if method.partition('-')[0] == against]
    found[ball] = _table(methods, (forms or [against])[0])
  return found


def _table(runs: dict[str, dict[int, Run]], against: str) -> str:
  columns = [(name, pick) for name, pick in _COLUMNS if any(
      pick(run.results) is not None for seeds in runs.values() for run in seeds.values())]
  head = ['method', 'seeds', *(name for name, _ in columns), 'worst class', f'against {against}']
  lines = [head, ['---'] * len(head)]
  order = lambda item: -np.mean([run.results['worst_case'] for run in item[1].values()])
  for method, seeds in sorted(runs.items(), key=order):
    cells = [_percent([pick(run.results) for run in seeds.values()]) for _, pick in columns]
    worst = [np.nanmin(metrics.accuracy_by_class(run.worst_case, run.labels, run.labels.max() + 1))
             for run in seeds.values()]
    partners = {} if method == against else runs.get(against, {})
    pairs = [mcnemar.mcnemar(run.worst_case, partners[seed].worst_case)
             for seed, run in seeds.items() if seed in partners
             and np.array_equal(run.labels, partners[seed].labels)]  # the same test examples
    told = ''
    if pairs:
      told = (f'+{sum(p.gained for p in pairs)} −{sum(p.lost for p in pairs)}, '
              f'p ≤ {max(p.p for p in pairs):.2g}')
    lines.append([f'`{method}`', str(len(seeds)), *cells, _percent(worst), told])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _percent(values: Sequence[float | None]) -> str:
  if None in values:
    return ''
  spread = f' ± {100 * np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
  return f'{100 * np.mean(values):.1f}{spread}'


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; the exit code is 2 where there is nothing to print."""
  parser = argparse.ArgumentParser(prog='python -m at_jax.analysis.table', description=__doc__)
  parser.add_argument('directory', type=pathlib.Path)
  parser.add_argument('--against', default='pgd_at_cifar10')
  asked = parser.parse_args(arguments)
  runs = read(asked.directory)
  if not runs:
    print(f'at_jax: DIR = {asked.directory}: no METHOD-SEED/results.json in it; name the folder of '
          'several runs', file=sys.stderr)
    return 2
  print('\n\n'.join(f'{ball}:\n\n{text}'
                    for ball, text in tables(runs, against=asked.against).items()))
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Tables of several runs: `python -m at_jax.analysis table DIR [--against=METHOD] [--write=PAGE]`.

DIR holds one folder METHOD-SEED per run, with its results.json and verdicts.npz. There is one table per
threat model (norm and radius), data set and number of examples, and one row per method: accuracies of the
best checkpoint's deployed model in percent, mean ± standard deviation over the seeds, and McNemar's test of
its worst-case verdicts against those of the reference method, seed by seed.

--write replaces the text of PAGE between the lines `BEGIN` and `END`.
"""

import argparse
from collections.abc import Sequence
import json
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from at_jax import environment, errors
from at_jax.analysis import mcnemar
from at_jax.evaluation import metrics

BEGIN = '<!-- begin of the output of python -m at_jax.analysis table -->'
END = '<!-- end of the output -->'
# Header of each column, and its value in results.json.
_COLUMNS = (
    ('clean', lambda r: r['clean']),
    ('PGD-20', lambda r: r['robust'].get('pgd20')),
    ('margin PGD-100×5', lambda r: r['robust'].get('margin100x5')),
    ('logit-scaled', lambda r: r['robust'].get('scales_pgd20')),
    ('dummy-aware', lambda r: r['robust'].get('dummies_pgd100')),
    ('fast AutoAttack', lambda r: r['robust'].get('autoattack_fast')),
    ('AutoAttack', lambda r: r['robust'].get('autoattack')),
    ('worst case', lambda r: r['worst_case']),
    ('released PGD-20', lambda r: r['released'].get('pgd20')),
    ('released AutoAttack', lambda r: r['released'].get('autoattack')),
)


class Run(NamedTuple):
  """One run.

  Attributes:
    results: content of results.json.
    worst_case: bool[N], worst-case verdicts of the best checkpoint.
    labels: int[N].
  """
  results: dict[str, Any]
  worst_case: np.ndarray
  labels: np.ndarray


def read(directory: str | os.PathLike) -> dict[str, dict[int, Run]]:
  """Reads the runs of a folder.

  Args:
    directory: a folder of folders METHOD-SEED; those without results.json are skipped.

  Returns:
    `{method: {seed: Run}}`.

  Raises:
    errors.UserError: if runs of a method in one table attack other examples, or in another way.
  """
  runs: dict[str, dict[int, Run]] = {}
  for path in sorted(environment.local_path('directory', directory).glob('*-*/results.json')):
    method, _, seed = path.parent.name.rpartition('-')
    if not seed.isdecimal():  # such as X-small, the default work directory of a variant
      continue
    results = json.loads(path.read_text(encoding='utf-8'))
    if 'released' not in results:  # older runs have another name for it
      results['released'] = results.pop('authors')
    if not (path.parent / 'verdicts.npz').exists():
      raise errors.UserError('RUN', str(path.parent), 'there is no verdicts.npz in it: evaluate the run '
                             'again, or move it away')
    verdicts = np.load(path.parent / 'verdicts.npz')
    run = Run(results, verdicts['best/worst_case'], verdicts['labels'])
    runs.setdefault(method, {})[int(seed)] = run
  for method, seeds in runs.items():
    _check_row(method, seeds)
  return runs


def _check_row(method: str, seeds: dict[int, Run]) -> None:
  """Raises UserError for runs of one row whose mean would have no meaning."""
  first: dict[tuple, int] = {}
  for seed, run in seeds.items():
    begun = first.setdefault(_place(run.results), seed)
    for what, of in (('attacks', _attacks), ('step size', _step_size), ('test examples', _examples)):
      values = [of(each) for each in (seeds[begun], run)]
      if values[0] != values[1]:
        shown = '' if what == 'test examples' else f' ({values[0]}; {values[1]})'
        raise errors.UserError('directory', f'{method}-{seed}', f'its {what} are not those of '
                               f'{method}-{begun}{shown}: evaluate both alike, or rename one')


def _attacks(run: Run) -> str:
  return ', '.join([*run.results['robust'], *(f'{name} released' for name in run.results['released'])])


def _step_size(run: Run) -> float | None:
  return run.results['config']['evaluate'].get('step_size_255')


def _examples(run: Run) -> bytes:
  return np.asarray(run.labels, np.int64).tobytes()


def _place(results: dict[str, Any]) -> tuple:
  """Which table a run belongs to: threat model, data set and number of examples."""
  return threat(results), results.get('dataset'), results.get('n')


def threat(results: dict[str, Any]) -> str:
  """Names the threat model of an evaluation.

  Args:
    results: content of results.json.

  Returns:
    Norm, and radius in 255ths.

  Example:
    >>> threat({'config': {'evaluate': {'norm': 'l2', 'epsilon_255': 128.}}})
    'L2, 128/255'
  """
  c = results['config']
  # Older runs have no norm of the evaluation: it was that of the training attack.
  norm = c['evaluate'].get('norm') or c['attack']['norm']
  return f'{metrics.norm_name(norm)}, {c["evaluate"]["epsilon_255"]:g}/255'


def tables(runs: dict[str, dict[int, Run]], *, against: str) -> dict[str, str]:
  """Formats runs as Markdown tables, one for each threat model.

  A column that no run of a table has is left out. `audit` has k of m for each seed: of the m examples robust
  under fast AutoAttack that AutoAttack attacked too, k were fooled. The last column counts the test examples
  that only the method or only the reference classifies correctly in the worst case, over all seeds that both
  have, and gives the largest p-value of the seeds.

  Args:
    runs: result of `read`.
    against: the reference method. If a threat model does not have it, its variant AGAINST-VARIANT is used.

  Returns:
    `{title: table}`, the table with most methods first. The title is the threat model, with data set and
    number of examples if these differ between the tables.

  Example:
    >>> results = {'clean': .5, 'robust': {}, 'released': {}, 'worst_case': .5,
    ...            'config': {'evaluate': {'norm': 'linf', 'epsilon_255': 8.}}}
    >>> run = Run(results, np.array([True, False]), np.array([0, 0]))
    >>> print(tables({'plain': {0: run}}, against='plain')['L∞, 8/255'])
    | method | seeds | clean | worst case | worst class | against plain |
    | --- | --- | --- | --- | --- | --- |
    | `plain` | 1 | 50.0 | 50.0 | 50.0 |  |
  """
  places: dict[tuple, dict[str, dict[int, Run]]] = {}
  for method, seeds in runs.items():
    for seed, run in seeds.items():
      places.setdefault(_place(run.results), {}).setdefault(method, {})[seed] = run
  one_test_set = len({place[1:] for place in places}) == 1
  found = {}
  for (ball, dataset, n), methods in sorted(places.items(), key=lambda item: -len(item[1])):
    variants = [method for method in sorted(methods) if method.partition('-')[0] == against]
    title = ball if one_test_set else f'{ball}, {dataset}, {n} test examples'
    found[title] = _table(methods, (variants or [against])[0])
  return found


def write(page: str | os.PathLike, text: str) -> None:
  """Replaces the text between the lines `BEGIN` and `END` of a page.

  Args:
    page: Markdown file with both lines.
    text: the new text between them.

  Raises:
    ValueError: if the page does not have both lines.
  """
  page = environment.local_path('page', page)
  before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
  _, end, after = rest.partition(END)
  if not end:
    raise ValueError(f'page = {str(page)!r}: it needs the lines {BEGIN!r} and {END!r}')
  page.write_text(f'{before}{begin}\n\n{text}\n\n{end}{after}', encoding='utf-8')


def _table(runs: dict[str, dict[int, Run]], against: str) -> str:
  columns = [(name, pick) for name, pick in _COLUMNS if any(
      pick(run.results) is not None for seeds in runs.values() for run in seeds.values())]
  audits = {method: _audits(seeds) for method, seeds in runs.items()}
  audit = ['audit'] if any(audits.values()) else []
  head = ['method', 'seeds', *(name for name, _ in columns), *audit, 'worst class', f'against {against}']
  lines = [head, ['---'] * len(head)]
  order = lambda item: -np.mean([run.results['worst_case'] for run in item[1].values()])
  for method, seeds in sorted(runs.items(), key=order):
    cells = [_percent([pick(run.results) for run in seeds.values()]) for _, pick in columns]
    worst = [np.nanmin(metrics.accuracy_by_class(run.worst_case, run.labels, run.labels.max() + 1))
             for run in seeds.values()]
    references = {} if method == against else runs.get(against, {})
    pairs = [mcnemar.mcnemar(run.worst_case, references[seed].worst_case)
             for seed, run in seeds.items() if seed in references
             and np.array_equal(run.labels, references[seed].labels)]  # the same test examples
    comparison = ''
    if pairs:
      comparison = (f'+{sum(p.gained for p in pairs)} −{sum(p.lost for p in pairs)}, '
                    f'p ≤ {max(p.p for p in pairs):.2g}')
    lines.append([f'`{method}`', str(len(seeds)), *cells, *(audits[method] for _ in audit),
                  _percent(worst), comparison])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _audits(seeds: dict[int, Run]) -> str:
  found = [run.results.get('audits', {}).get('autoattack_fast') for run in seeds.values()]
  return ', '.join(f'{audit["fallen"]} of {audit["sampled"]}' for audit in found if audit)


def _percent(values: Sequence[float | None]) -> str:
  if None in values:
    return ''
  spread = f' ± {100 * np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
  return f'{100 * np.mean(values):.1f}{spread}'


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes them into a page if there is one.

  Args:
    arguments: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0, or 2 if there is no run.
  """
  parser = argparse.ArgumentParser(prog='python -m at_jax.analysis table',
                                   description=environment.printable(__doc__))
  parser.add_argument('directory')
  parser.add_argument('--against', default='pgd_at_cifar10', help='the reference method')
  parser.add_argument('--write', metavar='PAGE', help='a Markdown file with BEGIN and END')
  asked = parser.parse_args(arguments)
  try:
    runs = read(asked.directory)
    page = asked.write and environment.local_path('--write', asked.write)
  except errors.UserError as error:
    print(f'at_jax: {error}', file=sys.stderr)
    return 2
  if not runs:
    print(f'at_jax: DIR = {asked.directory}: it has no METHOD-SEED/results.json; name the folder of '
          'several runs', file=sys.stderr)
    return 2
  text = '\n\n'.join(f'{ball}:\n\n{table}'
                     for ball, table in tables(runs, against=asked.against).items())
  if page:
    write(page, text)
  print(environment.printable(text))
  return 0

"""Tables of several runs: `python -m at_jax.analysis table DIR [--against=METHOD] [--write=PAGE]`.

DIR holds one folder METHOD-SEED per run, with its results.json and verdicts.npz. There is one table per
threat model (norm and radius), data set and number of examples, and one row per method: accuracies of the
best checkpoint's deployed model in percent, mean ± standard deviation over the seeds, and McNemar's test of
its worst-case verdicts against those of the reference method, seed by seed.

--write replaces the text of PAGE between the lines `BEGIN` and `END`.
"""

from collections.abc import Callable, Iterable, Sequence
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from at_jax import environment, errors
from at_jax.analysis import class_statistics, evaluations, markdown, mcnemar
from at_jax.evaluation import metrics

BEGIN = '<!-- begin of the output of python -m at_jax.analysis table -->'
END = '<!-- end of the output -->'
REFERENCE = 'pgd_at_cifar10'  # unless another is asked for
# Headers of attacks; another attack has its own name as header.
_ROBUST = {'pgd20': 'PGD-20', 'margin100x5': 'margin PGD-100×5', 'scales_pgd20': 'logit-scaled',
           'dummies_pgd100': 'dummy-aware', 'autoattack_fast': 'fast AutoAttack', 'autoattack': 'AutoAttack'}
_RELEASED = {'pgd20': 'released PGD-20', 'autoattack': 'released AutoAttack'}


class Row(NamedTuple):
  """One method of a table.

  Attributes:
    method: its name.
    runs: its runs by seed.
    values: `{column: one share for each run}`, None where the run has no such attack.
    worst_class: f64[number of runs], worst-case accuracy of each run's worst class.
    tests: McNemar's test of the worst case against the reference, by the seeds that both have.
  """
  method: str
  runs: dict[int, evaluations.Run]
  values: dict[str, list[float | None]]
  worst_class: list[float]
  tests: dict[int, mcnemar.McNemar]


class Table(NamedTuple):
  """Runs of one threat model, data set and number of examples.

  Attributes:
    against: the reference method.
    columns: names of the accuracies that at least one run has.
    rows: one for each method, the most robust first.
  """
  against: str
  columns: tuple[str, ...]
  rows: list[Row]


def tables(runs: dict[str, dict[int, evaluations.Run]], *, against: str) -> dict[str, str]:
  """Formats runs as Markdown tables, one for each threat model.

  A column that no run of a table has is left out. `audit` has k of m for each seed: of the m examples robust
  under fast AutoAttack that AutoAttack attacked too, k were fooled. The last column counts the test examples
  that only the method or only the reference classifies correctly in the worst case, over all seeds that both
  have, and gives the largest p-value of the seeds.

  Args:
    runs: result of `evaluations.read`.
    against: the reference method, as for `compare`.

  Returns:
    `{title: table}`, as `compare`.

  Example:
    >>> results = {'clean': .5, 'robust': {}, 'released': {}, 'worst_case': .5,
    ...            'config': {'evaluate': {'norm': 'linf', 'epsilon_255': 8.}}}
    >>> run = evaluations.Run(results, np.array([True, False]), np.array([0, 0]))
    >>> print(tables({'plain': {0: run}}, against='plain')['L∞, 8/255'])
    | method | seeds | clean | worst case | worst class | against plain |
    | --- | --- | --- | --- | --- | --- |
    | `plain` | 1 | 50.0 | 50.0 | 50.0 |  |
  """
  return {title: _markdown(table) for title, table in compare(runs, against=against).items()}


def compare(runs: dict[str, dict[int, evaluations.Run]], *, against: str) -> dict[str, Table]:
  """Compares runs of the same threat model, data set and number of examples.

  Args:
    runs: result of `evaluations.read`.
    against: the reference method. If a threat model does not have it, its variant AGAINST-VARIANT is used.

  Returns:
    `{title: Table}`, the table with most methods first. The title is the threat model, with data set and
    number of examples if these differ between the tables.

  Example:
    >>> results = {'clean': .5, 'robust': {}, 'released': {}, 'worst_case': .5,
    ...            'config': {'evaluate': {'norm': 'linf', 'epsilon_255': 8.}}}
    >>> seeds = {0: evaluations.Run(results, np.array([True, False]), np.array([0, 0]))}
    >>> found = compare({'plain': seeds, 'other': seeds}, against='plain')['L∞, 8/255']
    >>> found.rows[1].method, found.rows[1].tests
    ('other', {0: McNemar(gained=0, lost=0, p=1.0)})
  """
  places: dict[tuple, dict[str, dict[int, evaluations.Run]]] = {}
  for method, seeds in runs.items():
    for seed, run in seeds.items():
      places.setdefault(evaluations.place(run.results), {}).setdefault(method, {})[seed] = run
  one_test_set = len({place[1:] for place in places}) == 1
  found = {}
  for (ball, dataset, n), methods in sorted(places.items(), key=lambda item: -len(item[1])):
    variants = [method for method in sorted(methods) if method.partition('-')[0] == against]
    title = ball if one_test_set else f'{ball}, {dataset}, {n} test examples'
    found[title] = _table(methods, (variants or [against])[0])
  return found


def interval(share: float, n: int) -> tuple[float, float]:
  """Computes the exact 95 % interval of an accuracy on n test examples.

  The runs of one method share their test examples, so n does not grow with the number of runs. For the mean
  of several runs the interval is conservative.

  Args:
    share: accuracy in 0..1.
    n: number of test examples, at least 1.

  Returns:
    Its two ends.

  Example:
    >>> '{:.3f} {:.3f}'.format(*interval(.258, 1000))
    '0.231 0.286'
  """
  return class_statistics.interval(round(share * n), n)


def bars(shares: Sequence[float], n: int) -> np.ndarray:
  """Computes the bars of the 95 % intervals of several accuracies, for a figure.

  Args:
    shares: K accuracies in 0..1.
    n: number of test examples.

  Returns:
    f64[2, K], distances of both ends, in points of percent.
  """
  shares = np.asarray(shares)
  low, high = np.array([interval(share, n) for share in shares]).T
  return 100 * np.maximum(np.stack([shares - low, high - shares]), 0)


def examples(row: Row) -> int:
  """Returns the number of test examples of a row.

  Args:
    row: the row.

  Returns:
    n.
  """
  return len(next(iter(row.runs.values())).labels)


def reference(methods: Iterable[str], asked: str | None) -> str:
  """Chooses the reference method of the paired tests.

  Args:
    methods: the methods of the evaluated runs.
    asked: the method, or the first part METHOD of METHOD-VARIANT, that the user named; None for none.

  Returns:
    The one asked for, or `REFERENCE`, or the first method; '' if there is no method.

  Raises:
    errors.UserError: if no run is of the method asked for.

  Example:
    >>> reference(['trades_cifar10', 'mart_cifar10'], None)
    'trades_cifar10'
  """
  methods = list(methods)
  known = {*methods, *(method.partition('-')[0] for method in methods)}
  if asked and asked not in known:
    raise errors.UserError('--against', asked, f'no evaluated run is of this method; '
                           f'{errors.nearest(asked, methods)}')
  return asked or (REFERENCE if REFERENCE in known else next(iter(methods), ''))


def write(page: str | os.PathLike, text: str) -> None:
  """Replaces the text between the lines `BEGIN` and `END` of a page.

  Args:
    page: Markdown file with both lines.
    text: the new text between them.

  Raises:
    errors.UserError: if the page cannot be read or written, or does not have both lines.
  """
  page = environment.local_path('--write', page)
  try:
    before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError('--write', str(page), 'it cannot be read '
                           f'({getattr(error, "strerror", "not UTF-8")}): name a Markdown file') from error
  _, end, after = rest.partition(END)
  if not end:
    raise errors.UserError('--write', str(page), f'add the lines {BEGIN} and {END}, between which the '
                           'tables go')
  try:
    page.write_text(f'{before}{begin}\n\n{text}\n\n{end}{after}', encoding='utf-8')
  except OSError as error:
    raise errors.unwritable(page, error, 'cannot write it', '--write') from error


def _table(runs: dict[str, dict[int, evaluations.Run]], against: str) -> Table:
  columns = _columns([run.results for seeds in runs.values() for run in seeds.values()])
  rows = []
  order = lambda item: -np.mean([run.results['worst_case'] for run in item[1].values()])
  for method, seeds in sorted(runs.items(), key=order):
    values = {name: [pick(run.results) for run in seeds.values()] for name, pick in columns.items()}
    worst = [np.nanmin(metrics.accuracy_by_class(run.worst_case, run.labels, run.labels.max() + 1))
             for run in seeds.values()]
    references = {} if method == against else runs.get(against, {})
    tests = {seed: mcnemar.mcnemar(run.worst_case, references[seed].worst_case)
             for seed, run in seeds.items() if seed in references
             and np.array_equal(run.labels, references[seed].labels)}  # the same test examples
    rows.append(Row(method, seeds, values, worst, tests))
  return Table(against, tuple(columns), rows)


def _columns(results: list[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], float | None]]:
  """Header of each column that some results have, and its value in results.json."""
  named = [name for each in results for name in each['config']['evaluate'].get('attacks', ())]
  columns = {'clean': lambda r: r['clean']}
  for name, header in (_ROBUST | {name: name for name in named if name not in _ROBUST}).items():
    columns[header] = lambda r, name=name: r['robust'].get(name)
  columns['worst case'] = lambda r: r['worst_case']
  for name, header in (_RELEASED | {name: f'released {name}' for each in results for name in each['released']
                                    if name not in _RELEASED}).items():
    columns[header] = lambda r, name=name: r['released'].get(name)
  return {header: pick for header, pick in columns.items() if any(pick(r) is not None for r in results)}


def _markdown(table: Table) -> str:
  audit = ['audit'] if any(audits(row) for row in table.rows) else []
  head = ['method', 'seeds', *table.columns, *audit, 'worst class', f'against {table.against}']
  return markdown.table(head, (
      [f'`{row.method}`', str(len(row.runs)), *(markdown.percent(*shares) for shares in row.values.values()),
       *(audits(row) for _ in audit), markdown.percent(*row.worst_class), comparison(row.tests)]
      for row in table.rows))


def audits(row: Row) -> str:
  """Formats the audits of a row's runs.

  Args:
    row: the row.

  Returns:
    k of m for each run that has an audit; '' if none has.
  """
  found = [run.results.get('audits', {}).get('autoattack_fast') for run in row.runs.values()]
  return ', '.join(f'{audit["fallen"]} of {audit["sampled"]}' for audit in found if audit)


def comparison(tests: dict[int, mcnemar.McNemar]) -> str:
  """Formats the tests of several seeds.

  Args:
    tests: the tests by seed.

  Returns:
    The sums of both counts and the largest p-value; '' without a test.

  Example:
    >>> comparison({0: mcnemar.McNemar(3, 0, .25), 1: mcnemar.McNemar(2, 1, 1.)})
    '+5 −1, p ≤ 1'
  """
  if not tests:
    return ''
  gained, lost, p = zip(*tests.values(), strict=True)
  return f'+{sum(gained)} −{sum(lost)}, p ≤ {max(p):.2g}'


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes them into a page if there is one.

  Args:
    arguments: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis table', __doc__)
  parser.add_argument('directory', metavar='DIR', help='the folder of several runs')
  parser.add_argument('--against', metavar='METHOD',
                      help=f'the reference method; default {REFERENCE}, or else the first method')
  parser.add_argument('--write', metavar='PAGE', help='a Markdown file with BEGIN and END')
  asked = parser.parse_args(arguments)
  try:
    runs = evaluations.read(asked.directory)
    if not runs:
      raise errors.UserError('DIR', asked.directory, 'it has no METHOD-SEED/results.json: name the folder of '
                             'several runs')
    against = reference(runs, asked.against)
    text = '\n\n'.join(f'{ball}:\n\n{each}' for ball, each in tables(runs, against=against).items())
    if asked.write:
      write(asked.write, text)
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  print(environment.printable(text))
  return 0

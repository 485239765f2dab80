"""A report of runs: `python -m at_jax.analysis report RUN... [--output=report.html] [--against=METHOD]`.

RUN is the work directory of a run, evaluated or still going, or a folder of several runs. Folders METHOD-SEED
are the seeds of METHOD. --radii=FOLDER draws radii that `radii` has measured, and --pictures=FOLDER shows PNG
files that other analyses have written. The suffix of --output chooses the format:

  .html  one page that opens without a network, with tables and figures
  .md    the same in Markdown; the figures are in the folder NAME-figures next to it
  .csv   one line for each run, with fractions that are not rounded

Accuracies are those of the best checkpoint's deployed model, by the same functions as `table`. Nothing is
attacked, and no folder is changed.
"""

from collections.abc import Iterable, Sequence
import csv
import io
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

from at_jax import environment, errors
from at_jax.analysis import (
  curves,
  evaluations,
  figures,
  folders,
  markdown,
  mcnemar,
  method_figures,
  page,
  statements,
  table,
)
from at_jax.analysis import radii as radii_lib
from at_jax.config import fields, resume
from at_jax.evaluation import metrics


def build(found: Sequence[folders.Folder], against: str, radii: dict[str, np.ndarray],
          pictures: Sequence[figures.Captioned]) -> page.Page:
  """Makes the report of runs.

  Args:
    found: the runs.
    against: the reference method of the paired tests.
    radii: result of `radii.read`; empty for none.
    pictures: figures of other analyses.

  Returns:
    The document.

  Raises:
    errors.UserError: if seeds of one method were evaluated in different ways, or matplotlib is missing.
  """
  compared = tables(found, against)
  methods = list(folders.by_method(found))
  data = dict.fromkeys(str(folder.config.get('dataset', {}).get('name', '')) for folder in found)
  subject = f'{len(methods)} methods' if len(methods) > 1 else f'`{methods[0]}`'
  sections = [
      page.Section('What was run', [statements.what(found, compared)]),
      page.Section('Verdict', statements.verdict(found, compared)),
      page.Section('Not evaluated yet', _going(found)),
      page.Section('Accuracies', [*(_accuracies(title, each) for title, each in compared.items()),
                                  statements.terms(compared)] if compared else []),
      page.Section('Audits of fast AutoAttack', _audits(found)),
      page.Section('Warnings', [statements.warnings(found, compared)] if compared else []),
      page.Section('Figures', [*_figures(found, compared, radii), *pictures]),
      page.Section('How the models were trained', [_training(found), *_differences(found, against)]),
      page.Section('Commands and versions', [_commands(found)], folded=True)]
  return page.Page(f'Robustness of {subject} on {", ".join(data)}',
                   [section for section in sections if section.parts])


def tables(found: Iterable[folders.Folder], against: str) -> dict[str, table.Table]:
  """Compares the evaluated runs by threat model, data set and number of examples.

  Args:
    found: runs.
    against: the reference method.

  Returns:
    `{title: Table}`, as `table.compare`.

  Raises:
    errors.UserError: if seeds of one method were evaluated in different ways.
  """
  runs: dict[str, dict[int, evaluations.Run]] = {}
  for folder in found:
    if folder.run:
      runs.setdefault(folder.method, {})[folder.seed] = folder.run
  for method, seeds in runs.items():
    evaluations.check_row(method, seeds)
  return table.compare(runs, against=against)


def _accuracies(title: str, compared: table.Table) -> page.Cells:
  """The table of a threat model, the worst case first."""
  columns = [column for column in compared.columns if column not in ('clean', 'worst case')]
  tested = any(row.tests for row in compared.rows)
  audited = any(map(table.audits, compared.rows))
  several = any(len(row.runs) > 1 for row in compared.rows)
  head = ['method', 'worst case', '95 % interval',
          *(['paired test', f'against `{compared.against}`'] if tested else []), 'clean', 'worst class',
          *columns, *(['audit'] if audited else []), *(['seeds'] if several else [])]
  rows = [[f'`{row.method}`', markdown.percent(*row.values['worst case']), statements.interval(row),
           *([_side(row, compared.against), table.comparison(row.tests)] if tested else []),
           markdown.percent(*row.values['clean']), markdown.percent(*row.worst_class),
           *(markdown.percent(*row.values[column]) for column in columns),
           *([_audited(row)] if audited else []), *([str(len(row.runs))] if several else [])]
          for row in compared.rows]
  return page.Cells(f'{title}: accuracies in percent, the most robust method first', head, rows)


def _side(row: table.Row, against: str) -> str:
  return 'reference' if row.method == against else statements.decide(row.tests.values())


def _audited(row: table.Row) -> str:
  audits = [statements.audit(run) for run in row.runs.values()]
  return '; '.join([table.audits(row), *(f'{100 * each.low:.1f} to {100 * each.high:.1f}'
                                         for each in audits if each)]) if any(audits) else ''


def _audits(found: Sequence[folders.Folder]) -> list[list[str]]:
  audits = {folder.name: statements.audit(folder.run) for folder in statements.evaluated(found)}
  lines = [f'`{name}`: {audit}.' for name, audit in audits.items() if audit]
  return [lines] if lines else []


def _going(found: Sequence[folders.Folder]) -> list[page.Cells]:
  """What is known of runs without an evaluation."""
  rows = []
  for folder in found:
    if folder.run:
      continue
    done, validated = folders.progress(folder), folders.validations(folder)
    losses = [line['loss'] for line in folder.log if 'loss' in line]
    last = validated[-1] if validated else {}
    written = time.strftime('%Y-%m-%d %H:%M', time.localtime(folders.last_written(folder)))
    rows.append([f'`{folder.name}`', statements.state(folder), written, _duration(done.seconds_left),
                 f'{losses[-1]:.3f}' if losses else '',
                 *(markdown.percent(last.get(f'validation_{kind}'))
                   for kind in ('clean', 'robust', 'worst_class'))])
  head = ['run', 'state', 'last written', 'training left', 'last loss', 'validation clean',
          'validation robust', 'validation worst class']
  return [page.Cells('Runs that are going or were stopped; accuracies of the last validation in percent',
                     head, rows)] if rows else []


def _duration(seconds: float | None) -> str:
  if not seconds:
    return ''
  return f'{seconds / 3600:.1f} h' if seconds >= 3600 else (
      f'{seconds / 60:.0f} min' if seconds >= 60 else f'{seconds:.0f} s')


def _figures(found: Sequence[folders.Folder], compared: dict[str, table.Table],
             radii: dict[str, np.ndarray]) -> list[Any]:
  """The figures that the runs have numbers for."""
  minutes = {method: each / 60 for method, each in training_seconds(found).items()}
  drawn = []
  for i, (title, each) in enumerate(compared.items(), 1):
    drawn += [method_figures.accuracies(f'accuracies-{i}', title, each),
              method_figures.classes(f'classes-{i}', title, each),
              curves.over_steps(f'steps-{i}', title, each),
              curves.minimum_norm(f'radii-{i}', title, each, radii),
              method_figures.cost(f'cost-{i}', title, each, minutes)]
  drawn += [curves.over_radii('radii', found), curves.finetuning('finetuning', found),
            curves.learning('learning', found)]
  return [figure for figure in drawn if figure]


def training_seconds(found: Sequence[folders.Folder]) -> dict[str, float]:
  """Returns how long training took, as `folders.training_seconds` of the evaluated runs.

  Args:
    found: the runs.

  Returns:
    `{method: mean seconds of its runs}`; methods without a speed in their logs are left out.
  """
  times = {method: [seconds for each in seeds if (seconds := folders.training_seconds(each))]
           for method, seeds in folders.by_method(statements.evaluated(found)).items()}
  return {method: float(np.mean(each)) for method, each in times.items() if each}


def _training(found: Sequence[folders.Folder]) -> page.Cells:
  """Settings, cost and robust overfitting of each method, from its first run."""
  seconds, rows = training_seconds(found), []
  for method, seeds in folders.by_method(found).items():
    c = seeds[0].config
    changes = [curves.overfitting(each)[1] for each in seeds if len(folders.validations(each)) > 1]
    rows.append([
        f'`{method}`', str(c.get('loss', '')), str(c.get('model', {}).get('name', '')),
        str(c.get('epochs', '')), _attack(c), _chosen(seeds[0]),
        _duration(seconds.get(method)), ', '.join(f'{change:+.1f}' for change in changes).replace('-', '−')])
  head = ['method', 'loss', 'network', 'epochs', 'attack in training', 'epoch of the checkpoint',
          'training time', 'robust, last − best']
  return page.Cells('Settings of each method (first seed); training time at the best speed of its logs '
                    '(mean); change of robust validation accuracy from the best to the last epoch, in points '
                    'for each seed. It can be positive if the best epoch was not chosen by robust accuracy '
                    'alone',
                    head, rows)


def _differences(found: Sequence[folders.Folder], against: str) -> list[page.Cells]:
  """In what the training of each method differs from that of the reference, first seeds compared."""
  first = {method: _settings(seeds[0].config) for method, seeds in folders.by_method(found).items()}
  if against not in first or len(first) == 1:
    return []
  rows = []
  for method, settings in first.items():
    changed = {name: now for name, (_, now) in resume.conflicts(first[against], settings).items()
               if name != 'seed' and now is not None}
    text = 'reference' if method == against else ', '.join(
        f'`{name}={value}`' for name, value in changed.items()) or 'nothing'
    rows.append([f'`{method}`', text])
  return [page.Cells(f'Fields of the configuration in which each method differs from `{against}`; '
                     '`docs/configs.md` explains them', ['method', 'differs in'], rows, prose=True)]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
  """A flat configuration; a field that is newer than the run had its default."""
  return fields.flatten(fields.default().to_dict()) | fields.flatten(fields.upgrade(config))


def _attack(config: dict[str, Any]) -> str:
  if not statements.attacked(config):
    return 'none'
  attack = config['attack']
  return (f'{metrics.norm_name(attack["norm"])} {attack["epsilon_255"]:g}/255, '
          f'{statements.plural(attack["num_steps"], "step")}')


def _chosen(folder: folders.Folder) -> str:
  per_epoch = folders.steps_per_epoch(folder)
  if not folder.run or not per_epoch or 'step' not in folder.run.results:
    return ''
  return f'{folder.run.results["step"] / per_epoch:.4g}'


def _commands(found: Sequence[folders.Folder]) -> page.Cells:
  rows = []
  for folder in found:
    results = folder.run.results if folder.run else {}
    versions = ', '.join(f'{name} {version}' for name, version in results.get('versions', {}).items())
    rows.append([f'`{folder.name}`', str(results.get('command', '')), versions])
  return page.Cells('The command that wrote results.json of each run', ['run', 'command', 'versions'], rows,
                    prose=True)


def to_csv(found: Sequence[folders.Folder], compared: dict[str, table.Table]) -> str:
  """Writes one line for each run: fractions, paired tests and audits, not rounded.

  Args:
    found: the runs.
    compared: result of `tables`.

  Returns:
    The text. Cells of what a run does not have are empty.
  """
  tests = {(row.method, seed): (each.against, test) for each in compared.values() for row in each.rows
           for seed, test in row.tests.items()}
  lines = [_csv_line(folder, *tests.get((folder.method, folder.seed), ('', None))) for folder in found]
  file = io.StringIO()
  writer = csv.DictWriter(file, dict.fromkeys(key for line in lines for key in line), lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  return file.getvalue()


def _csv_line(folder: folders.Folder, against: str, test: mcnemar.McNemar | None) -> dict[str, Any]:
  line = {'method': folder.method, 'seed': folder.seed,
          'dataset': folder.config.get('dataset', {}).get('name', ''),
          'state': 'evaluated' if folder.run else statements.state(folder)}
  if folder.run:
    results, n = folder.run.results, len(folder.run.labels)
    low, high = table.interval(results['worst_case'], n)
    classes = metrics.accuracy_by_class(folder.run.worst_case, folder.run.labels, folder.run.labels.max() + 1)
    line |= {'threat model': evaluations.threat(results), 'n': n, 'worst case': results['worst_case'],
             'worst case low': low, 'worst case high': high, 'clean': results['clean'],
             'worst class': float(np.nanmin(classes)), **results['robust'],
             **{f'released {name}': share for name, share in results['released'].items()}}
    if test:
      line |= {'against': against, 'gained': test.gained, 'lost': test.lost, 'p': test.p}
    if audit := statements.audit(folder.run):
      line |= {f'audit {key}': value for key, value in audit._asdict().items()}
  return line | {'training seconds': folders.training_seconds(folder)}


def write(path: pathlib.Path, found: Sequence[folders.Folder], against: str,
          radii: dict[str, np.ndarray], pictures: Sequence[figures.Captioned]) -> None:
  """Writes the report of runs in the format of the file's suffix.

  Args:
    path: a file that ends in .html, .md or .csv.
    found: the runs.
    against: the reference method.
    radii: result of `radii.read`; empty for none.
    pictures: figures of other analyses.

  Raises:
    errors.UserError: as `build`, or if the file cannot be written.
  """
  if path.suffix == '.csv':
    text = to_csv(found, tables(found, against))
  elif path.suffix == '.md':
    folder = f'{path.stem}-figures'
    text = page.to_markdown(build(found, against, radii, pictures), folder, path.with_name(folder))
  else:
    text = page.to_html(build(found, against, radii, pictures))
  try:
    path.write_bytes(text.encode('utf-8', 'backslashreplace'))
  except OSError as error:
    raise errors.unwritable(path.parent, error, field='--output') from error


def _output(text: str) -> pathlib.Path:
  path = environment.local_path('--output', text)
  if path.suffix not in ('.html', '.md', '.csv'):
    raise errors.UserError('--output', text, 'use a name that ends in .html, .md or .csv')
  if not path.parent.is_dir():
    raise errors.UserError('--output', text, 'there is no such folder: make it first')
  return path


def main(arguments: list[str] | None = None) -> int:
  """Writes a report, and prints its verdict.

  Args:
    arguments: the command line without `python -m at_jax.analysis report`; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis report', __doc__)
  parser.add_argument('runs', nargs='*', metavar='RUN')
  parser.add_argument('--output', default='report.html', metavar='FILE', help='.html, .md or .csv')
  parser.add_argument('--against', metavar='METHOD',
                      help=f'the reference method; default {table.REFERENCE}, or else the first method')
  parser.add_argument('--radii', metavar='FOLDER', help='the --output of `python -m at_jax.analysis radii`')
  parser.add_argument('--pictures', metavar='FOLDER',
                      help='a folder of PNG files that other analyses have written, to be shown too')
  asked = parser.parse_args(arguments)
  try:
    if not asked.runs:
      raise errors.UserError('RUN', '', 'name the work directory of a run, or a folder of several')
    output = _output(asked.output)
    found = folders.read(asked.runs)
    against = table.reference(folders.by_method(statements.evaluated(found)), asked.against)
    pictures = figures.read('--pictures', asked.pictures) if asked.pictures else []
    write(output, found, against, radii_lib.read(asked.radii, found) if asked.radii else {},
          [each._replace(name=f'picture-{each.name}') for each in pictures])
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  lines = statements.verdict(found, tables(found, against))
  print(environment.printable('\n'.join([*lines, os.fspath(output)])).replace('`', ''))
  return 0

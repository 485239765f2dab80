"""Sentences of a report: what was run, what the runs show, and what to know before a number is reported."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from at_jax import attacks as attacks_lib
from at_jax.analysis import class_statistics, evaluations, folders, markdown, mcnemar, table
from at_jax.evaluation import attack_names
from at_jax.training import final_evaluation

_FEW = 200  # test images of a class, below which a warning says how few they are
# What the columns of the tables are, without those of `_pgd`.
_COLUMNS = {
    'PGD-20': 'PGD of 20 steps on the cross-entropy.',
    'margin PGD-100×5': 'PGD of 100 steps on the margin (largest wrong logit − true logit), 5 restarts.',
    'logit-scaled': 'worst case over PGD-20 with the logits times eight factors, .2 to 50. It is far below '
                    'PGD-20 if the cross-entropy hides its gradient.',
    'dummy-aware': 'worst case over PGD of 100 steps on margins that include the dummy classes of DUCAT.',
    'AutoAttack': 'its standard version.',
    'fast AutoAttack': 'its version `fast`, with about a twelfth of the gradients; the audit measures what '
                       'it misses.'}
_RELEASED = ('the evaluation of DUCAT’s released code, for comparison with its paper. It attacks the outputs '
             'of classes and dummy classes apart, and is no robust accuracy of the deployed model.')


def plural(number: int, noun: str) -> str:
  """Writes a number of things.

  Args:
    number: the number.
    noun: what is counted, in the singular.

  Returns:
    Both, with the noun's ending.

  Example:
    >>> plural(1, 'run'), plural(1000, 'run')
    ('1 run', '1,000 runs')
  """
  return f'{number:,} {noun}' + ('' if number == 1 else 's')


def evaluated(found: Iterable[folders.Folder]) -> list[folders.Folder]:
  """Selects the runs that were evaluated.

  Args:
    found: runs.

  Returns:
    Those with an evaluation.
  """
  return [folder for folder in found if folder.run]


def audit(run: evaluations.Run) -> attacks_lib.Audit | None:
  """Returns the audit of fast AutoAttack.

  Args:
    run: an evaluated run.

  Returns:
    The audit; None if there was none.
  """
  numbers = run.results.get('audits', {}).get('autoattack_fast')
  return attacks_lib.Audit(**numbers) if numbers else None


def terms(compared: dict[str, table.Table]) -> list[str]:
  """Explains the columns of the tables.

  Args:
    compared: result of `report.tables`.

  Returns:
    Lines of text.
  """
  rows = [row for each in compared.values() for row in each.rows]
  lines = ['Worst case: share of the test images that are classified correctly clean and under every attack. '
           'This is the number to report.',
           '95 % interval: exact (Clopper and Pearson), for the sampling of the test images.']
  if any(len(row.runs) > 1 for row in rows):
    lines[-1] += ' For a mean of seeds it is conservative. ± is the standard deviation over seeds.'
  if any(row.tests for row in rows):
    lines.append('Paired test: McNemar’s exact test on the same images, seed by seed. + counts images that '
                 'only this method classifies correctly in the worst case, − those that only the reference '
                 'does, over all seeds. p is the largest of the seeds. More or less robust: all seeds agree '
                 f'with p < {class_statistics.LEVEL}.')
  lines.append('Worst class: worst-case accuracy of the weakest class.')
  columns = dict.fromkeys(column for each in compared.values() for column in each.columns)
  lines += [f'{column}: {text}' for column in columns if (text := _COLUMNS.get(column) or _pgd(column))]
  if any(column.startswith('released') for column in columns):
    lines.append(f'Released: {_RELEASED}')
  if any(audit(run) for row in rows for run in row.runs.values()):
    lines.append('Audit: of m images that are robust under fast AutoAttack, the whole of AutoAttack fooled '
                 'k. The 95 % interval is for the robust accuracy under both.')
  return lines


def _pgd(column: str) -> str:
  """What a column with the name of a PGD attack is; '' for others."""
  spec = attack_names.parse(column)
  losses = {'cross_entropy': 'cross-entropy', 'margin': 'margin (largest wrong logit − true logit)'}
  if not isinstance(spec, attack_names.Spec) or spec.loss not in losses:
    return ''
  restarts = f', {spec.restarts} restarts' if spec.restarts > 1 else ''
  return f'PGD of {plural(spec.num_steps, "step")} on the {losses[spec.loss]}{restarts}.'


def what(found: Sequence[folders.Folder], compared: dict[str, table.Table]) -> list[str]:
  """Describes what was run: data, attacks, models and hardware.

  Args:
    found: the runs.
    compared: result of `report.tables`.

  Returns:
    Lines of text.
  """
  results = [folder.run.results for folder in evaluated(found)]
  lines = [f'{plural(len(found), "run")} of {plural(len(folders.by_method(found)), "method")}'
           + (f'; evaluated: {len(results) or "none"}' if len(results) < len(found) else '')]
  data = dict.fromkeys(folder.config.get('dataset', {}).get('name') for folder in found)
  lines.append(f'Data: {", ".join(map(str, data))}')
  if not results:
    return lines
  which = {'all': 'all', 'first': 'the first of the test set', 'stratified': 'a stratified subset'}
  tested = {len(folder.run.labels): which.get(folder.run.results.get('examples'))  # older runs lack it
            for folder in sorted(evaluated(found), key=lambda each: 'examples' in each.run.results)}
  lines[-1] += '; judged on ' + ', '.join(
      f'{n:,} test images' + (f' ({text})' if text else '') for n, text in tested.items())
  lines.append('Threat model: ' + '; '.join(f'{title} ({plural(len(each.rows), "method")})'
                                            for title, each in compared.items()))
  attacks = dict.fromkeys(column for each in compared.values() for column in each.columns)
  lines.append('Attacks: '
               + ', '.join(column for column in attacks if column not in ('clean', 'worst case')))
  lines.append(f'Training: {_training([folder.config for folder in evaluated(found)])}')
  lines.append('Every accuracy is of the best checkpoint, chosen on the validation split. An attack '
               'succeeds if the deployed model then decides wrongly')
  hardware = dict.fromkeys(str(each.get('device', 'unknown')) for each in results)
  lines.append(f'Hardware: {", ".join(hardware)}')
  return lines


def _training(configs: Sequence[dict[str, Any]]) -> str:
  """Networks, numbers of epochs and of steps of the attack, each once."""
  listed = lambda values: ' or '.join(dict.fromkeys(map(str, values)))
  networks = listed(f'`{each.get("model", {}).get("name", "unknown")}`' for each in configs)
  epochs = listed(sorted(each['epochs'] for each in configs))
  steps = sorted(each['attack']['num_steps'] for each in configs if attacked(each))
  attack = f', attacks of {listed(steps)} steps' if steps else ', no attack'
  return f'{networks}, {epochs} epochs{attack}; more under “How the models were trained”'


def attacked(config: dict[str, Any]) -> bool:
  """Returns whether training attacks its examples.

  Args:
    config: the configuration of a run.

  Returns:
    False for standard training, which does not use the fields of its attack.
  """
  return config.get('loss') != 'standard' and bool(config.get('attack', {}).get('norm'))


def verdict(found: Sequence[folders.Folder], compared: dict[str, table.Table]) -> list[str]:
  """Summarises what the runs show.

  Args:
    found: the runs.
    compared: result of `report.tables`.

  Returns:
    A paragraph for each threat model.
  """
  if not compared:
    return [_unfinished(folder) for folder in found]
  if len(evaluated(found)) == 1:
    return [final_evaluation.recommendation(evaluated(found)[0].run.results)]
  return [_sentence(title, each) for title, each in compared.items()]


def _unfinished(folder: folders.Folder) -> str:
  text, validated = f'`{folder.name}` is not evaluated yet: {state(folder)}', folders.validations(folder)
  if not validated:
    return f'{text}.'
  clean, robust = (markdown.percent(validated[-1].get(f'validation_{kind}')) for kind in ('clean', 'robust'))
  return (f'{text}. Its last validation, on held-out training examples, has {clean} percent clean and '
          f'{robust} percent robust accuracy.')


def state(folder: folders.Folder) -> str:
  """Describes how far a run has come.

  Args:
    folder: a run that is not evaluated.

  Returns:
    A clause.
  """
  done = folders.progress(folder)
  if done.steps is None:
    return 'before its first logged step'
  if done.step >= done.steps:
    return f'trained, {done.steps:,} steps; the evaluation has not ended'
  return f'step {done.step:,} of {done.steps:,}, epoch {done.epochs:.1f}'


def _sentence(title: str, compared: table.Table) -> str:
  rows = compared.rows
  n, best = table.examples(rows[0]), rows[0]
  if not any('autoattack' in column.lower() and not column.startswith('released')
             for column in compared.columns):
    title += ', without AutoAttack'
  worst_case = markdown.percent(*best.values['worst case'])
  text = (f'{title}: `{best.method}` classifies {worst_case} percent of {n:,} '
          f'test images correctly in the worst case over all attacks (95 % interval {interval(best)})')
  if len(rows) == 1:
    return f'{text}, and {markdown.percent(*best.values["clean"])} percent without an attack.'
  text += f', the most of {plural(len(rows), "method")}.'
  sides = [decide(row.tests.values()) for row in rows if row.tests]
  if not sides:
    return f'{text} No paired test: `{compared.against}` is not among them with the same seeds and images.'
  counts = [f'{sides.count(side) or "none"} {"are" if sides.count(side) > 1 else "is"} {side}'
            for side in ('more robust', 'less robust')]
  rest = sides.count('inconclusive')
  return (f'{text} Against `{compared.against}`, {counts[0]} and {counts[1]} (p < {class_statistics.LEVEL} '
          'for every seed)' + (f'; for the other {rest} the test is inconclusive.' if rest else '.'))


def interval(row: table.Row) -> str:
  """Formats the 95 % interval of a row's worst case.

  Args:
    row: the row.

  Returns:
    Its two ends in percent.
  """
  low, high = table.interval(float(np.mean(row.values['worst case'])), table.examples(row))
  return f'{100 * low:.1f} to {100 * high:.1f}'


def decide(tests: Iterable[mcnemar.McNemar]) -> str:
  """Decides what paired tests of several seeds show.

  Args:
    tests: one for each seed.

  Returns:
    'more robust' or 'less robust' if all seeds agree with p below the level; otherwise 'inconclusive'; ''
    without a test.

  Example:
    >>> decide([mcnemar.McNemar(40, 10, .001), mcnemar.McNemar(30, 9, .01)])
    'more robust'
    >>> decide([mcnemar.McNemar(40, 10, .001), mcnemar.McNemar(10, 9, 1.)])
    'inconclusive'
  """
  tests = list(tests)
  sides = {np.sign(test.gained - test.lost) if test.p < class_statistics.LEVEL else 0 for test in tests}
  if not tests:
    return ''
  return {(1,): 'more robust', (-1,): 'less robust'}.get(tuple(sides), 'inconclusive')


def warnings(found: Sequence[folders.Folder], compared: dict[str, table.Table]) -> list[str]:
  """Lists what to know before a number is reported.

  Args:
    found: the runs.
    compared: result of `report.tables`.

  Returns:
    The warnings of the evaluations with the runs that have them, then those of the comparison.
  """
  runs, lines = evaluated(found), []
  robust = lambda folder: folder.run.results['robust']
  for text, holds in (
      ('A model is right on all test images of one class and on no other, so its accuracy is the share of '
       'that class',
       lambda folder: _is_constant(folder.run.results)),
      ('AutoAttack was not run, so the worst case may be far too high',
       lambda folder: not any(name.startswith('autoattack') for name in robust(folder))),
      ('Fast AutoAttack was not audited, and it misses some of what AutoAttack finds',
       lambda folder: 'autoattack_fast' in robust(folder) and 'autoattack' not in robust(folder)
       and not audit(folder.run))):
    names = [f'`{folder.name}`' for folder in runs if holds(folder)]
    lines += [f'{text}: {", ".join(names)}.'] if names else []
  return lines + _warnings_of_tables(compared) + _warnings_of_evaluations(runs)


def _is_constant(results: dict[str, Any]) -> bool:
  """Whether a model is right on all images of one class and on no other, as if it predicted one class."""
  clean = [share for share in results.get('by_class', {}).get('clean', []) if share is not None]
  return len(clean) > 1 and sorted(clean) == [0.] * (len(clean) - 1) + [1.]


def _warnings_of_evaluations(runs: Sequence[folders.Folder]) -> list[str]:
  """The warnings that evaluations gave, each once with its attacks and the runs that have it."""
  messages: dict[str, list[str]] = {}
  for folder in runs:
    attacks: dict[str, list[str]] = {}
    for attack, texts in folder.run.results.get('warnings', {}).items():
      if texts:
        attacks.setdefault('; '.join(texts), []).append(attack)
    for text, names in attacks.items():
      messages.setdefault(f'{" and ".join(names)}: {text}', []).append(f'`{folder.name}`')
  return [f'{", ".join(names)}, warning of {text}' for text, names in messages.items()] or [
      'The evaluations gave no warning.']


def _warnings_of_tables(compared: dict[str, table.Table]) -> list[str]:
  lines, rows = [], [row for each in compared.values() for row in each.rows]
  above = {row.method: max(100 * (share - run.results['worst_case']) for run in row.runs.values()
                           for share in run.results['released'].values())
           for row in rows if all(run.results['released'] for run in row.runs.values())}
  if above:
    most = max(above, key=above.get)
    lines.append('The released protocol attacks logits that do not decide. It is not robust accuracy: it is '
                 f'up to {above[most]:.1f} points above the worst case (`{most}`).')
  fewest = min(int(counts[counts > 0].min()) for row in rows for run in row.runs.values()
               for counts in [np.bincount(run.labels)])
  if fewest < _FEW:
    low, high = table.interval(.1, fewest)
    lines.append(f'The smallest class has {plural(fewest, "test image")}, so the accuracy of a class is '
                 f'uncertain: the 95 % interval of 10 percent is {100 * low:.0f} to {100 * high:.0f}.')
  for title, each in compared.items():
    attacks = {tuple(run.results['config']['evaluate'].get('attacks', ()))
               for row in each.rows for run in row.runs.values()}
    if len(attacks) > 1:
      lines.append(f'{title}: the methods were not evaluated with the same attacks. A worst case over fewer '
                   'attacks is higher.')
  tests = sum(bool(row.tests) for row in rows)
  if tests > 1:
    lines.append(f'p-values are not corrected for {tests} comparisons.')
  single = sum(len(row.runs) == 1 for row in rows)
  if single and len(rows) > 1:
    lines.append(f'{single} of {plural(len(rows), "method")} {"has" if single == 1 else "have"} one seed: '
                 'such a test compares two models, not two methods.')
  return lines

"""Examples that always fail: `python -m at_jax.analysis hard_examples RUN... [--output=FILE]`.

RUN is the folder of an evaluated run. An example fails if the deployed model misclassifies it, clean or under
attack. Without --attack files only are read: the verdicts of the best checkpoint on the test examples of its
evaluation, in the worst case over all attacks. With --attack that attack is run again with the keys of the
evaluation; --split=train attacks training examples, for which there are no verdicts.

Tables show how many examples fail in all runs, and how far runs fail on the same ones, with the numbers
of independent runs. --checkpoints=all attacks every checkpoint that a run has kept, and follows its examples
over epochs; --curves draws that. Shares are in percent. --output writes all numbers as JSON, shares as
fractions, with the indices of the examples that always fail. --gallery draws some of them under --attack on
the first RUN.
"""

import argparse
from collections.abc import Sequence
import itertools
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from at_jax import environment, errors
from at_jax.analysis import class_statistics, figures, gallery, markdown, over_epochs, overlap, runs
from at_jax.training import restore

WORST_CASE = 'worst case'
_TRAINING_EXAMPLES = 1000
_PUBLISHED = ('Published for CIFAR-10: up to 40 % of the examples always fail, over epochs and methods (Wang '
              'et al., arXiv 2410.12671).')


class Member(NamedTuple):
  """One checkpoint of a run, by the examples on which it fails.

  Attributes:
    name: its name in tables.
    run: name of its run.
    threat: data set, norm and radius.
    class_names: C names.
    labels: i32[N].
    wrong: `{'clean' or attack: bool[N]}`, misclassified. The last one decides whether an example fails.
    epoch: epochs of training before the checkpoint; None unless --checkpoints=all.
  """
  name: str
  run: str
  threat: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  wrong: dict[str, np.ndarray]
  epoch: float | None = None


def members(found: runs.Evaluation, name: str, attack: str, *, checkpoints: Sequence[str | int], train: int,
            data: dict[str, Any]) -> list[Member]:
  """Finds the examples on which checkpoints of a run fail, from its files or by an attack.

  Args:
    found: the run.
    name: its name in tables.
    attack: name of the attack; 'none' to read files only.
    checkpoints: as in `restore.load`; steps need an attack.
    train: as in `runs.load`.
    data: as in `runs.load`.

  Returns:
    One for each checkpoint.

  Raises:
    errors.UserError: as `runs.load`, or if a checkpoint is damaged.
  """
  spec = runs.pgd(attack)
  model = runs.load(found, data, train=train) if spec else None
  names = model.class_names if model else map(str, range(found.results['config']['dataset']['num_classes']))
  class_names, labels = tuple(names), model.split.labels if model else found.labels
  made = []
  for checkpoint in checkpoints:
    epoch, suffix = None, '' if checkpoint == 'best' else f' ({checkpoint})'
    if isinstance(checkpoint, int):
      epoch = checkpoint / model.parts.steps_per_epoch
      suffix = f' (epoch {epoch:.4g})'
      environment.log(f'{name}{suffix}')
    if model is None:
      verdicts = found.verdicts[checkpoint]
      wrong = {'clean': ~verdicts['clean'],
               **{key: ~robust for key, robust in found.robust(checkpoint).items()},
               WORST_CASE: ~verdicts['worst_case']}
    else:
      model = model if checkpoint == 'best' else runs.at_checkpoint(model, found.path, checkpoint)
      correct = runs.clean(model) == labels
      wrong = {'clean': ~correct, attack: runs.attack(model, spec, correct).predictions != labels}
    made.append(Member(name + suffix, name, found.threat, class_names, labels, wrong, epoch))
  return made


def _checkpoints(found: runs.Evaluation, name: str, which: str) -> list[str | int]:
  """The checkpoints of a run that --checkpoints asks for."""
  if which == 'all':
    steps, epochs = restore.steps(found.path), found.results['config']['epochs']
    if not steps:
      raise errors.UserError('--checkpoints', 'all', f'there are no checkpoints in {found.path}: name the '
                             f'work directory of a run with --config.checkpoint.keep={epochs}')
    if len(steps) < epochs:
      environment.log(f'{name}: of {epochs} epochs, {len(steps)} checkpoints are stored; training with '
                      f'--config.checkpoint.keep={epochs} keeps all')
    return steps
  steps = [results.get('step') for results in (found.results, found.results.get('last', found.results))]
  if which == 'last' and steps[0] == steps[1]:
    environment.log(f'{name}: its last checkpoint is its best one, or is not stored')
  return ['best', 'last'] if which == 'last' and steps[0] != steps[1] else ['best']


def statistics(group: Sequence[Member]) -> dict[str, Any]:
  """Computes which examples fail in several members, and how far these fail on the same ones.

  Args:
    group: members with the same threat and examples.

  Returns:
    A JSON object; numbers that are not defined are NaN.
  """
  first = group[0]
  labels, n = first.labels, len(first.labels)
  kinds = [kind for kind in first.wrong if all(kind in member.wrong for member in group)]
  wrong = {kind: np.stack([member.wrong[kind] for member in group]) for kind in kinds}
  failed = wrong[kinds[-1]]
  always = failed.all(axis=0)
  observed, by_chance = overlap.among(failed)
  methods: dict[str, list[int]] = {}
  epochs: dict[str, list[int]] = {}
  for i, member in enumerate(group):
    methods.setdefault(runs.method(member.run), []).append(i)
    if member.epoch is not None:
      epochs.setdefault(member.run, []).append(i)
  pairs = [_pair(group, failed, i, j) for i, j in itertools.combinations(range(len(group)), 2)]
  by_relation = {}
  for each in pairs:
    by_relation.setdefault(each['relation'], []).append(each)
  return {
      'n': n, 'fails': kinds[-1], 'methods': len(methods), 'class_names': list(first.class_names),
      'models': {member.name: float(failed[i].mean()) for i, member in enumerate(group)},
      'common': {kind: overlap.common(wrong[kind], labels)._asdict() for kind in kinds},
      'interval': class_statistics.interval(int(always.sum()), n),
      'among': {'observed': observed.tolist(), 'by_chance': by_chance.tolist()},
      'within_methods': {name: {'models': len(places)} | overlap.common(failed[places], labels)._asdict()
                         for name, places in methods.items() if len(places) > 1},
      'over_epochs': {run: {'epochs': [group[i].epoch for i in places]} | {
          key: each.tolist() for key, each in over_epochs.shares(failed[places])._asdict().items()}
                      for run, places in epochs.items()},
      'overlap': {relation: _summary(each) for relation, each in by_relation.items()},
      'always_by_class': [_mean(always[labels == c]) for c in range(len(first.class_names))],
      'examples': np.flatnonzero(always).tolist(), 'pairs': pairs}


def _pair(group: Sequence[Member], failed: np.ndarray, i: int, j: int) -> dict[str, Any]:
  first, second = group[i], group[j]
  relation = 'methods'
  if first.run == second.run:
    relation = 'checkpoints of a run'
  elif runs.method(first.run) == runs.method(second.run):
    relation = 'seeds of a method'
  return {'first': first.name, 'second': second.name, 'relation': relation,
          **overlap.overlap(failed[i], failed[j])._asdict()}


def _summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Mean, lowest and highest of each number over pairs in which it is defined."""
  found: dict[str, Any] = {'pairs': len(pairs)}
  for key in overlap.Overlap._fields:
    values = [pair[key] for pair in pairs if not math.isnan(pair[key])] or [math.nan]
    found[key] = {'mean': float(np.mean(values)), 'lowest': min(values), 'highest': max(values)}
  return found


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else math.nan


def report(found: dict[str, Any], title: str) -> str:
  """Formats the statistics of a group.

  Args:
    found: result of `statistics`.
    title: data set, norm, radius and examples.

  Returns:
    Tables in Markdown.
  """
  models, methods = (f'{number} {name}{"s" * (number != 1)}' for number, name in (
      (len(found['models']), 'model'), (found['methods'], 'method')))
  parts = [f'## {title}, {models} of {methods}', _common_table(found)]
  low, high = found['interval']
  parts.append(f'Fails: misclassified, {found["fails"]}. In all models: {len(found["examples"])} of '
               f'{found["n"]} examples, 95 % interval {100 * low:.1f} to {100 * high:.1f} %. {_PUBLISHED}')
  if found['over_epochs']:
    parts.append(over_epochs.report(found['over_epochs'], found['n']))
  if len(found['models']) > 1:
    parts += [_among_table(found['among']), _overlap_table(found['overlap'])]
  if found['within_methods']:
    parts.append(_methods_table(found['within_methods']))
  parts.append(markdown.table(['class', 'always fails'], (
      [name, markdown.percent(share)]
      for name, share in zip(found['class_names'], found['always_by_class'], strict=True))))
  return '\n\n'.join(parts)


_ALWAYS = ['mean', 'lowest', 'highest', 'always', 'always_by_chance', 'always_by_class', 'never',
           'never_by_chance']
_ALWAYS_HEAD = ['mean', 'lowest', 'highest', 'in all', 'if independent', 'if independent within classes',
                'in none', 'if independent']


def _common_table(found: dict[str, Any]) -> str:
  return markdown.table(['misclassified', *_ALWAYS_HEAD], (
      [kind, *(markdown.percent(each[key]) for key in _ALWAYS)] for kind, each in found['common'].items()))


def _methods_table(found: dict[str, Any]) -> str:
  return markdown.table(['method', 'models', *_ALWAYS_HEAD], (
      [f'`{name}`', str(each['models']), *(markdown.percent(each[key]) for key in _ALWAYS)]
      for name, each in found.items()))


def _among_table(found: dict[str, Any]) -> str:
  total = len(found['observed'])
  numbers = sorted({k for k in (1, 2, 3, 5, 10, 20, 50, 100) if k < total} | {total})
  return markdown.table(['models', *map(str, numbers)], (
      [text, *(markdown.percent(found[key][k - 1]) for k in numbers)]
      for text, key in (('fail in all, mean over choices', 'observed'), ('if independent', 'by_chance'))))


def _overlap_table(found: dict[str, Any]) -> str:
  span = lambda each: '' if math.isnan(each['mean']) else (
      f'{each["mean"]:.2f} ({each["lowest"]:.2f} to {each["highest"]:.2f})')
  return markdown.table(
      ['pairs of', 'number', 'Jaccard', 'Jaccard if independent', 'observed / expected', "Loevinger's H",
       'largest p'],
      ([relation, str(each['pairs']), *(span(each[key]) for key in (
          'jaccard', 'jaccard_by_chance', 'ratio', 'h')), markdown.p_value(each['p']['highest'])]
       for relation, each in found.items()))


def _groups(paths: Sequence[pathlib.Path], attack: str, which: str, train: int, data: dict[str, Any]
            ) -> dict[str, list[Member]]:
  """`{title: members}`, the group of the first run first; the files of all runs are read before an attack."""
  spec, groups = runs.pgd(attack), {}
  found, names = [runs.read(path) for path in paths], runs.names(paths)
  chosen = [_checkpoints(each, name, which) for each, name in zip(found, names, strict=True)]
  for i, (name, each, checkpoints) in enumerate(zip(names, found, chosen, strict=True)):
    if spec:
      environment.log(f'{i + 1} of {len(found)}: {each.path}')
    for member in members(each, name, attack, checkpoints=checkpoints, train=train, data=data):
      group = groups.setdefault(member.threat, [])
      group.append(member)
      _check(member, group[0])
  examples = 'training' if train else 'test'
  return {f'{threat}, {len(group[0].labels)} {examples} examples': group for threat, group in groups.items()}


def _check(member: Member, first: Member) -> None:
  """Raises UserError for other examples than those of the first member; warns of one class for all."""
  if not np.array_equal(member.labels, first.labels):
    raise errors.UserError('RUN', member.name, f'its examples are not those of {first.name}: compare runs '
                           'that were evaluated on the same examples')
  correct = np.unique(member.labels[~member.wrong['clean']])
  if len(correct) == 1:
    environment.log(f'warning: {member.name} is correct on class {correct[0]} only, of which therefore few '
                    'examples fail in all models: leave it out')


def _training_examples(asked: argparse.Namespace) -> int:
  """The number of training examples to attack, 0 for test examples."""
  if asked.split == 'test':
    if asked.n is not None:
      raise errors.UserError('--n', asked.n, 'the test examples are those of the evaluation: use it with '
                             '--split=train')
    return 0
  if asked.attack == 'none':
    raise errors.UserError('--split', 'train', 'there are no verdicts of training examples: add an attack, '
                           'such as --attack=pgd20')
  if asked.n is not None and asked.n < 1:
    raise errors.UserError('--n', asked.n, 'use a number of training examples above 0')
  return asked.n or _TRAINING_EXAMPLES


def _png_path(field: str, path: str | None, lacks: str) -> pathlib.Path | None:
  """The file of a figure; `lacks` says what the figure needs, '' if it is there."""
  if path and lacks:
    raise errors.UserError(field, path, lacks)
  if path and not path.endswith('.png'):
    raise errors.UserError(field, path, 'name a .png file')
  if path:
    figures.new()  # raises if matplotlib is missing
  return runs.output_path(field, path)


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes the files that are asked for.

  Args:
    arguments: the command line without `python -m at_jax.analysis hard_examples`; None for that of this
      process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis hard_examples', __doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--attack', default='none', help='attack to run again; none reads files only')
  parser.add_argument('--split', default='test', choices=('test', 'train'), help='which examples')
  parser.add_argument('--n', type=int, help=f'number of training examples, default {_TRAINING_EXAMPLES}')
  parser.add_argument('--checkpoints', default='best', choices=('best', 'last', 'all'),
                      help='of each run: the best, the best and the last, or all that it has kept')
  parser.add_argument('--output', metavar='FILE', help='a JSON file for all numbers')
  parser.add_argument('--gallery', metavar='FILE.png', help='a figure of examples that always fail')
  parser.add_argument('--curves', metavar='FILE.png', help='a figure of shares over epochs')
  asked = parser.parse_args(arguments)
  try:
    runs.pgd(asked.attack)
    train, data = _training_examples(asked), {}
    output = runs.output_path('--output', asked.output)
    attacked, every = asked.attack != 'none', asked.checkpoints == 'all'
    if every and not attacked:
      raise errors.UserError('--checkpoints', 'all', 'there are verdicts of the best and the last checkpoint '
                             'only: add an attack, such as --attack=pgd20')
    path = _png_path('--gallery', asked.gallery, '' if attacked else
                     'it shows attacked images: add an attack, such as --attack=pgd20')
    curves = _png_path('--curves', asked.curves, '' if every else 'it shows epochs: add --checkpoints=all')
    paths = [environment.local_path('RUN', each) for each in asked.runs]
    groups = _groups(paths, asked.attack, asked.checkpoints, train, data)
    found = {title: statistics(group) for title, group in groups.items()}
    if output:
      runs.write(output, {'attack': asked.attack, 'split': asked.split, 'groups': found})
    tables = '\n\n'.join(report(each, title) for title, each in found.items())
    print(environment.printable(tables), flush=True)
    title, group = next(iter(groups.items()))
    if curves:
      drawn = over_epochs.figure(curves.stem, title, found[title]['over_epochs'])
      figures.write(drawn, curves.parent)
      environment.log(f'{curves}: {drawn.caption}')
    if path:
      model = runs.load(runs.read(paths[0]), data, train=train)
      drawn = gallery.gallery(model, asked.attack, np.isin(np.arange(len(group[0].labels)),
                                                           found[title]['examples']),
                              name=path.stem, run=group[0].run, models=len(group))
      figures.write(drawn, path.parent)
      environment.log(f'{path}: {drawn.caption}')
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  return 0

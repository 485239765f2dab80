"""Figures of a report that compare methods: accuracies, classes, cost of training.

Each function returns a `figures.Captioned`, or None if the runs have nothing to show. Accuracies are in
percent. Bars are exact 95 % intervals for the sampling of the test examples.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from at_jax.analysis import evaluations, figures, table
from at_jax.evaluation import metrics

_CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
_MAX_NUMBERS = 20   # of classes of a heat map whose cells have numbers


class Unit(NamedTuple):
  """What the cost of training is counted in.

  Attributes:
    name: its name.
    axis: label of the axis.
    less: adjective of a method that has less of it.
    most: adjective of the method that has most of it.
    short: its name in lists.
  """
  name: str
  axis: str
  less: str
  most: str
  short: str


MINUTES = Unit('minutes', 'minutes of training', 'faster', 'slowest', 'min')
PASSES = Unit('forward passes', 'forward passes of a training image', 'cheaper', 'most expensive', 'passes')


def accuracies(name: str, where: str, compared: table.Table) -> figures.Captioned:
  """Draws clean accuracy, accuracy under the weakest attack, and the worst case of each method.

  Args:
    name: name of the figure.
    where: threat model, for its title.
    compared: the methods. For a single one, each attack has a row.

  Returns:
    The figure.
  """
  if len(compared.rows) == 1:
    return _of_one(name, where, compared.rows[0])
  rows, places = compared.rows, np.arange(len(compared.rows))
  released = [column for column in compared.columns if column.startswith('released')]
  attacks = [column for column in compared.columns if column not in ('clean', 'worst case', *released)]
  weakest = np.array([_largest(row, attacks) for row in rows])
  clean, worst = (np.array([_mean(row.values[column]) for row in rows]) for column in ('clean', 'worst case'))
  figure = figures.new(4.6, 1.3 + .24 * len(rows))
  axes = figure.subplots()
  axes.hlines(places, 100 * worst, 100 * clean, color='0.8', zorder=1)
  for place, label, values in ((0, 'clean', clean), (4, 'weakest attack', weakest),
                               (3, 'released protocol', np.array([_largest(row, released) for row in rows]))):
    if not np.isnan(values).all():
      axes.plot(100 * values, places, figures.MARKERS[place], color=figures.COLORS[place], label=label,
                fillstyle='none' if label == 'clean' else 'full', zorder=2)
  axes.errorbar(100 * worst, places, xerr=table.bars(worst, table.examples(rows[0])), fmt=figures.MARKERS[1],
                color=figures.COLORS[1], capsize=2, label='worst case', zorder=3)
  _name_rows(axes, [row.method for row in rows])
  axes.set_xlabel('accuracy in percent')
  axes.set_xlim(left=0)
  axes.grid(axis='x', color='0.9')
  figure.legend(loc='outside upper center', ncols=2, fontsize=figures.SMALL)
  caption = 'The square, the worst case over all attacks, is the robust accuracy.'
  if attacks:
    gap = weakest - worst
    most = int(np.nanargmax(gap))
    caption = (f'{caption[:-1]}; the weakest attack (triangle) overstates it by up to '
               f'{100 * gap[most]:.1f} points (`{rows[most].method}`).')
  return figures.Captioned(
      name, f'Clean and robust accuracy, {where}', figure, caption,
      'Dots of each method on a scale from 0 percent. Worst case: '
      f'{figures.listed([row.method for row in rows], 100 * worst)}. Clean: '
      f'{figures.listed([row.method for row in rows], 100 * clean)}.')


def _mean(values: Sequence[float | None]) -> float:
  return math.nan if None in values else float(np.mean(values))


def _largest(row: table.Row, columns: Sequence[str]) -> float:
  """The largest mean of some columns; NaN if the row has none of them."""
  found = [_mean(row.values[column]) for column in columns]
  return max((each for each in found if not math.isnan(each)), default=math.nan)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
  """Writes names at the places 0, 1, … of the vertical axis, the first at the top."""
  axes.set_yticks(range(len(names)), [figures.label(name) for name in names], fontsize=figures.SMALL)
  axes.set_ylim(len(names) - .5, -.5)


def _of_one(name: str, where: str, row: table.Row) -> figures.Captioned:
  """The accuracies of one method, clean and under each attack."""
  shares = sorted(((_mean(values), column) for column, values in row.values.items()), reverse=True)
  values, columns = np.array([share for share, _ in shares]), [column for _, column in shares]
  figure = figures.new(4.6, 1. + .24 * len(columns))
  axes = figure.subplots()
  worst = columns.index('worst case')
  for places, color in (([i for i in range(len(columns)) if i != worst], 0), ([worst], 1)):
    axes.errorbar(100 * values[places], places, xerr=table.bars(values[places], table.examples(row)),
                  capsize=2, fmt=figures.MARKERS[color], color=figures.COLORS[color])
  _name_rows(axes, columns)
  axes.set_xlabel('accuracy in percent')
  axes.set_xlim(left=0)
  axes.grid(axis='x', color='0.9')
  return figures.Captioned(
      name, f'Accuracy of {row.method} under each attack, {where}', figure,
      'The square, the worst case over all attacks, is the robust accuracy: a dot far to its right is an '
      'attack that is too weak, or one on logits that do not decide.',
      f'Dots with intervals. Accuracy in percent: {figures.listed(columns, 100 * values, len(columns))}.')


def classes(name: str, where: str, compared: table.Table) -> figures.Captioned:
  """Draws the worst-case accuracy of each class of each method as a heat map.

  Args:
    name: name of the figure.
    where: threat model, for its title.
    compared: the methods.

  Returns:
    The figure.
  """
  rows = compared.rows
  names = _class_names(next(iter(rows[0].runs.values())))
  shares = 100 * np.array([np.mean([metrics.accuracy_by_class(run.worst_case, run.labels, len(names))
                                    for run in row.runs.values()], axis=0) for row in rows])
  figure = figures.new(4.6, 1.8 + .22 * len(rows))
  axes = figure.subplots()
  most = float(np.nanmax(shares))
  top = max(float(np.nanpercentile(shares, 98)), 1.)
  top = top if most > 1.5 * top else max(most, 1.)  # one degenerate model must not darken all others
  image = axes.imshow(shares, cmap=figures.SEQUENTIAL, vmin=0, vmax=top, aspect='auto')
  _name_rows(axes, [row.method for row in rows])
  if len(names) <= _MAX_NUMBERS:
    axes.set_xticks(range(len(names)), [figures.label(each) for each in names],
                    rotation=90 if max(map(len, names)) > 2 else 0, fontsize=figures.SMALL)
    for (i, j), share in np.ndenumerate(shares):
      if not np.isnan(share):
        axes.text(j, i, f'{share:.0f}', ha='center', va='center', fontsize=figures.SMALL - 1,
                  color='black' if share > .55 * top else 'white')
  else:
    axes.set_xlabel('class')
  figure.colorbar(image, location='top', label='worst-case accuracy in percent', shrink=.8, aspect=30,
                  extend='max' if most > top else 'neither')
  weakest = np.array([int(np.nanargmin(row)) for row in shares])
  worst = int(np.bincount(weakest).argmax())
  what = (f'class {names[worst]} is the weakest, with {shares[0, worst]:.1f} percent' if len(rows) == 1 else
          f'class {names[worst]} is the weakest in {int((weakest == worst).sum())} of {len(rows)} methods')
  return figures.Captioned(
      name, f'Robust accuracy of each class, {where}', figure,
      f'Dark cells are classes that the attacks break most (worst case, mean over seeds): {what}.',
      f'Heat map of {len(rows)} methods and {len(names)} classes. Weakest class of each method: ' + ', '.join(
          f'{row.method} {names[c]} {share[c]:.1f}'
          for row, c, share in zip(rows, weakest, shares, strict=True)) + ' percent.')


def _class_names(run: evaluations.Run) -> Sequence[str]:
  """Names of the classes: those of CIFAR-10, otherwise labels, as results have no names."""
  data = run.results['config'].get('dataset', {})
  number = max(data.get('num_classes', 0), int(run.labels.max()) + 1)
  left_out = data.get('drop_class', -1)  # older runs have no such field
  names = [each for i, each in enumerate(_CIFAR10) if i != left_out]
  return names if data.get('name') == 'cifar10' and len(names) == number else list(map(str, range(number)))


def cost(name: str, where: str, compared: table.Table, amounts: dict[str, float], unit: Unit = MINUTES,
         named: str = '') -> figures.Captioned | None:
  """Draws robust accuracy against the cost of training.

  Args:
    name: name of the figure.
    where: threat model, for its title.
    compared: the methods.
    amounts: `{method: cost of training}`; methods without are left out.
    unit: the unit of the cost.
    named: a method that has a name even if another is both cheaper and more robust; '' for none.

  Returns:
    The figure; None unless three methods have a cost.
  """
  rows = [row for row in compared.rows if row.method in amounts]
  if len(rows) < 3:
    return None
  costs = np.array([amounts[row.method] for row in rows])
  worst = 100 * np.array([_mean(row.values['worst case']) for row in rows])
  figure = figures.new(4.6, 3.6)
  axes = figure.subplots()
  axes.errorbar(costs, worst, yerr=table.bars(worst / 100, table.examples(rows[0])), fmt='o', color='0.6',
                markersize=4, elinewidth=.8, label='other methods')
  front = _front(costs, worst)
  axes.plot(costs[front], worst[front], color='black', linewidth=.8)
  for i, color, marker in zip(front, figures.COLORS, figures.MARKERS, strict=False):
    axes.plot(costs[i], worst[i], marker, color=color, zorder=3, label=figures.label(rows[i].method))
  for i, row in enumerate(rows):
    if row.method == named and i not in front:
      axes.plot(costs[i], worst[i], '*', color='black', markersize=9, zorder=3, label=figures.label(named))
  axes.set_xlabel(unit.axis)
  axes.set_ylabel('worst-case accuracy in percent')
  axes.set_ylim(bottom=0)
  axes.set_xlim(left=0)
  axes.grid(color='0.9')
  figure.legend(loc='outside upper center', ncols=2, fontsize=figures.SMALL)
  top = int(costs.argmax())
  return figures.Captioned(
      name, f'Robust accuracy and cost of training, {where}', figure,
      f'Higher and further left is better: no method is both {unit.less} and more robust than one '
      f'{"on the line" if named else "that has a name"}; the {unit.most}, `{rows[top].method}`, takes '
      f'{costs[top]:.3g} {unit.name}.',
      f'Dots. {unit.name.capitalize()} of training and worst-case accuracy: ' + ', '.join(
          f'{row.method} {x:.1f} {unit.short} {y:.1f} percent' for row, x, y in
          zip(rows, costs, worst, strict=True)) + '.')


def _front(cost: np.ndarray, value: np.ndarray) -> list[int]:
  """Places of the points that no other beats in both, the cheapest first."""
  found: list[int] = []
  for i in np.lexsort((-value, cost)):
    if not found or value[i] > value[found[-1]]:
      found.append(int(i))
  return found

"""Curves of a report: over steps of an attack, over the radius, over epochs of training and of fine-tuning.

Each function returns a `figures.Captioned`, or None if the runs have nothing to show. Accuracies are in
percent. Bars and bands are exact 95 % intervals for the sampling of the test examples.
"""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from at_jax.analysis import evaluations, figures, folders, table
from at_jax.evaluation import attack_names, metrics

_MAX_LINES = 6      # of one figure: a reader cannot follow more
_MAX_PANELS = 12    # of learning curves


def over_steps(name: str, where: str, compared: table.Table) -> figures.Captioned | None:
  """Draws robust accuracy over the number of PGD steps, of evaluations with several pgdN.

  Args:
    name: name of the figure.
    where: threat model, for its title.
    compared: the methods.

  Returns:
    The figure; None unless a method has two numbers of steps.
  """
  lines = {row.method: points for row in compared.rows if len(points := _by_steps(row)) > 1}
  shown = dict(list(lines.items())[:_MAX_LINES])
  if not lines:
    return None
  n = table.examples(compared.rows[0])
  figure = _lines(shown, n, 'PGD steps')
  axes = figure.axes[0]
  axes.set_xscale('symlog', linthresh=1)
  steps = sorted({step for points in shown.values() for step in (0, *points)})
  axes.set_xticks(steps, [str(step) for step in steps])
  axes.minorticks_off()
  fall = {method: 100 * (points[a] - points[b]) for method, points in shown.items()
          for a, b in [sorted(points)[-2:]]}
  most = max(fall, key=fall.get)
  return figures.Captioned(
      name, f'Robust accuracy over attack steps, {where}', figure,
      'A line that still falls at its right end needs more steps: the last ones take '
      f'{fall[most]:.1f} points from `{most}`, the most{_first(shown, lines)}.', _points_alt(shown, 'steps'))


def _by_steps(row: table.Row) -> dict[float, float]:
  """`{number of PGD steps: accuracy}`, of the attacks that differ in nothing else."""
  found = {}
  for attack in next(iter(row.runs.values())).results['robust']:
    spec = attack_names.parse(attack)
    if isinstance(spec, attack_names.Spec) and spec == attack_names.Spec(spec.num_steps):
      found[spec.num_steps] = float(np.mean([run.results['robust'][attack] for run in row.runs.values()]))
  return found


def over_radii(name: str, found: Sequence[folders.Folder]) -> figures.Captioned | None:
  """Draws the worst case over the radius, of models that were evaluated at several radii of one norm.

  Args:
    name: name of the figure.
    found: the runs. Those that differ in their evaluation only are one model.

  Returns:
    The figure; None unless a model has two radii.
  """
  models: dict[str, dict[str, Any]] = {}
  for folder in found:
    if folder.run:
      results = folder.run.results
      model = models.setdefault(_model(folder), {'name': folder.name, 'points': {}})
      model['points'] |= {0.: results['clean'],
                          float(results['config']['evaluate']['epsilon_255']): results['worst_case']}
  several = {model['name']: model['points'] for model in models.values() if len(model['points']) > 2}
  if not several:
    return None
  shown = dict(list(several.items())[:_MAX_LINES])
  figure = _lines(shown, min(len(each.run.labels) for each in found if each.run), 'radius ε in 255ths')
  ends = {model: points[max(points)] for model, points in shown.items()}
  best = max(ends, key=ends.get)
  return figures.Captioned(
      name, 'Robust accuracy over the radius', figure,
      'Each line falls from the clean accuracy at ε = 0, and is worth most where it is high at large radii: '
      f'`{best}` has {100 * ends[best]:.1f} percent at its largest{_first(shown, several)}.',
      _points_alt(shown, 'radius'))


def minimum_norm(name: str, where: str, compared: table.Table, radii: dict[str, np.ndarray]
                 ) -> figures.Captioned | None:
  """Draws robust accuracy over the radius, from the radius of each example, and marks the worst case at ε.

  Args:
    name: name of the figure.
    where: threat model, for its title.
    compared: the methods.
    radii: result of `radii.read`.

  Returns:
    The figure; None if no method has radii.
  """
  measured = {row.method: {f'{row.method}-{seed}': run for seed, run in row.runs.items()
                           if f'{row.method}-{seed}' in radii} for row in compared.rows}
  measured = {method: runs for method, runs in measured.items() if runs}
  if not measured:
    return None
  shown = list(measured)[:_MAX_LINES]
  epsilon = next(iter(measured[shown[0]].values())).results['config']['evaluate']['epsilon_255']
  figure = figures.new(4.6, 3.2 + .2 * len(shown))
  axes = figure.subplots()
  drawn = [_radius_line(axes, i, method, measured[method], radii, epsilon) for i, method in enumerate(shown)]
  axes.axvline(epsilon, color='0.5', linestyle=':')
  axes.set_xlabel('radius ε in 255ths')
  axes.set_ylabel('accuracy in percent')
  axes.set_ylim(bottom=0)
  axes.grid(color='0.9')
  figure.legend(loc='outside upper center', ncols=1, fontsize=figures.SMALL)
  gaps = [gap for gap, _ in drawn]
  most = int(np.argmax(gaps))
  return figures.Captioned(
      name, f'Robust accuracy over the radius, {where}', figure,
      'Each curve, with its 95 % interval, is of the minimum-norm attack FMN alone, an upper bound; the '
      'marker on the dotted line is the worst case over all attacks, up to '
      f'{100 * gaps[most]:.1f} points lower (`{shown[most]}`){_first(shown, measured)}.',
      'Falling curves with bands of 95 percent. ' + '. '.join(text for _, text in drawn) + '.')


def _radius_line(axes: Any, place: int, method: str, runs: dict[str, evaluations.Run],
                 radii: dict[str, np.ndarray], epsilon: float) -> tuple[float, str]:
  """Draws the curve of a method; returns how far the worst case is below it, and its numbers."""
  grid = np.linspace(0, 2 * epsilon, 65)
  radius = np.concatenate([radii[name] for name in runs])
  curve = (radius > grid[:, None] / 255).mean(axis=1)
  low, high = np.array([table.interval(share, len(radius) // len(runs)) for share in curve]).T
  color = figures.COLORS[place]
  axes.fill_between(grid, 100 * low, 100 * high, color=color, alpha=.15, linewidth=0)
  label = next(iter(runs)) if len(runs) == 1 else method  # with its seed
  axes.plot(grid, 100 * curve, color=color, label=figures.label(label))
  worst = np.mean([run.results['worst_case'] for run in runs.values()])
  axes.plot(epsilon, 100 * worst, figures.MARKERS[place], color=color, markeredgecolor='black')
  at = curve[len(grid) // 2]
  expected = metrics.expected_robustness_of_radii(radius, epsilon / 255) if epsilon else curve[0]
  numbers = (f'{100 * curve[0]:.1f} at 0, {100 * at:.1f} at ε (worst case {100 * worst:.1f}), '
             f'{100 * curve[-1]:.1f} at 2ε, mean over 0 to ε {100 * expected:.1f}')
  return float(at - worst), f'{label}: {numbers}'


def _model(folder: folders.Folder) -> str:
  """What is equal for two evaluations of one model on the same examples in one norm."""
  results = folder.run.results
  c = {key: value for key, value in results['config'].items() if key != 'evaluate'}
  evaluate = results['config']['evaluate']
  return json.dumps([c, results.get('step'), evaluate['norm'], list(results['robust']),
                     folder.run.labels.tolist()], sort_keys=True)


def _lines(lines: dict[str, dict[float, float]], n: int, xlabel: str) -> Any:
  """A figure of one line for each method or model, with intervals."""
  figure = figures.new(4.6, 3.2 + .2 * len(lines))
  axes = figure.subplots()
  for i, (label, points) in enumerate(lines.items()):
    x = sorted(points)
    y = [points[each] for each in x]
    axes.errorbar(x, 100 * np.array(y), yerr=table.bars(y, n), label=figures.label(label), capsize=2,
                  color=figures.COLORS[i], marker=figures.MARKERS[i], markersize=4)
  axes.set_xlabel(xlabel)
  axes.set_ylabel('accuracy in percent')
  axes.set_ylim(bottom=0)
  axes.grid(color='0.9')
  figure.legend(loc='outside upper center', ncols=1, fontsize=figures.SMALL)
  return figure


def _first(shown: Sequence[Any], every: Sequence[Any]) -> str:
  return f'; the first {len(shown)} of {len(every)} are drawn' if len(shown) < len(every) else ''


def _points_alt(lines: dict[str, dict[float, float]], unit: str) -> str:
  return 'Lines of accuracy in percent. ' + ' '.join(
      f'{label}: ' + ', '.join(f'{100 * points[x]:.1f} at {unit} {x:g}' for x in sorted(points)) + '.'
      for label, points in lines.items())


def learning(name: str, found: Sequence[folders.Folder]) -> figures.Captioned | None:
  """Draws validation accuracies over epochs, with the best and the last checkpoint.

  Args:
    name: name of the figure.
    found: the runs.

  Returns:
    The figure; None unless a run has two validations.
  """
  methods = folders.by_method(folder for folder in found if len(folders.validations(folder)) > 1)
  if not methods:
    return None
  losses = {folder.name: overfitting(folder)[1] for seeds in methods.values() for folder in seeds}
  fall = {method: min(losses[folder.name] for folder in seeds) for method, seeds in methods.items()}
  shown = sorted(methods, key=fall.get)[:_MAX_PANELS]
  columns = min(2, len(shown))
  rows = -(-len(shown) // columns)
  figure = figures.new(4.6, .9 + (2.4 if rows == 1 else 1.3 * rows))
  panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
  for axes, method in zip(panels, shown, strict=False):
    for folder in methods[method]:
      _learning_curve(axes, folder)
    axes.set_title(f'{figures.label(method)} ({_signed(fall[method])})', fontsize=figures.SMALL)
    axes.tick_params(labelsize=figures.SMALL - 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
  panels[0].set_ylim(bottom=0)
  for axes in panels[len(shown):]:
    axes.set_visible(False)
  figure.supxlabel('epoch', fontsize=figures.SMALL + 1)
  figure.supylabel('validation accuracy in percent', fontsize=figures.SMALL + 1)
  figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=2,
                fontsize=figures.SMALL)
  most = min(losses, key=losses.get)
  folder = next(each for seeds in methods.values() for each in seeds if each.name == most)
  seen = (f'`{most}` loses most, {-losses[most]:.1f} points (in brackets){_against_interval(folder)}.'
          if losses[most] < 0 else 'none falls.')
  if len(shown) < len(methods):
    seen += f' The {len(shown)} of {len(methods)} methods that fall most are drawn.'
  seen += ' A checkpoint can be the best one from the epoch on in which all parts of its method are active.'
  return figures.Captioned(
      name, 'Learning curves and robust overfitting', figure,
      f'A robust curve that falls from its best checkpoint (ring) to its last epoch (cross) overfits: {seen}',
      f'Validation accuracy over epochs, a panel for each of {len(shown)} methods. Last minus best robust '
      f'accuracy in points: {figures.listed(list(losses), list(losses.values()), len(losses))}.')


def _against_interval(folder: folders.Folder) -> str:
  """Whether the fall of a run stays within the 95 % interval of its best checkpoint."""
  n, lines = folder.config.get('dataset', {}).get('validation_size'), folders.validations(folder)
  if not n:
    return ''
  best, fall = overfitting(folder)
  share = lines[best]['validation_robust']
  low, high = table.interval(share, n)
  where = 'within' if low <= share + fall / 100 else 'below'
  return (f', {where} the 95 % interval of its best checkpoint, {100 * low:.1f} to {100 * high:.1f} on '
          f'{n:,} validation images')


def overfitting(folder: folders.Folder) -> tuple[int, float]:
  """Measures robust overfitting on the validation split.

  Args:
    folder: a run with validations.

  Returns:
    Index of the validation of the best checkpoint: that of the evaluation, or else the one with the highest
    robust accuracy. And robust accuracy after the last epoch minus that of the best checkpoint, in points.
  """
  lines = folders.validations(folder)
  robust = [line['validation_robust'] for line in lines]
  steps = [line['step'] for line in lines]
  evaluated = folder.run and folder.run.results.get('step')
  best = steps.index(evaluated) if evaluated in steps else int(np.argmax(robust))
  return best, 100 * (robust[-1] - robust[best])


def _signed(points: float) -> str:
  return f'{points:+.1f}'.replace('-', '−')


def _learning_curve(axes: Any, folder: folders.Folder) -> None:
  lines = folders.validations(folder)
  per_epoch = folders.steps_per_epoch(folder) or 1
  epochs = [line['step'] / per_epoch for line in lines]
  clean, robust = (100 * np.array([line[f'validation_{kind}'] for line in lines])
                   for kind in ('clean', 'robust'))
  labelled = not axes.lines  # once for all seeds
  name = lambda text: text if labelled else None
  axes.plot(epochs, clean, '--', color=figures.COLORS[0], linewidth=1, label=name('clean'))
  axes.plot(epochs, robust, color=figures.COLORS[1], linewidth=1.2, label=name('robust'))
  best, _ = overfitting(folder)
  axes.plot(epochs[best], robust[best], 'o', color=figures.COLORS[1], fillstyle='none', markersize=7,
            label=name('best checkpoint'))
  axes.plot(epochs[-1], robust[-1], 'X', color='black', markersize=5, label=name('last epoch'))


def finetuning(name: str, found: Sequence[folders.Folder]) -> figures.Captioned | None:
  """Draws the clean accuracy that fine-tuning keeps against the robust accuracy that it gains.

  Args:
    name: name of the figure.
    found: the runs.

  Returns:
    The figure; None unless a run was fine-tuned.
  """
  runs = {folder.name: folder.run.results['finetune'] for folder in found
          if folder.run and folder.run.results.get('finetune')}
  if not runs:
    return None
  figure = figures.new(4.6, 3.6 + .2 * len(runs))
  axes = figure.subplots()
  chosen = {}
  for i, (label, report) in enumerate(runs.items()):
    x, y = (100 * np.array([0, *(point[key] for point in report['curve'])])
            for key in ('clean_change', 'robust_gain'))
    color = figures.COLORS[i % len(figures.COLORS)]
    axes.plot(x, y, color=color, marker=figures.MARKERS[i % len(figures.MARKERS)], markersize=4,
              label=figures.label(label))
    place = 1 + [point['step'] for point in report['curve']].index(report['chosen'])
    chosen[label] = x[place], y[place]
    axes.plot(*chosen[label], 'o', color=color, fillstyle='none', markersize=11)
  tolerance = 100 * next(iter(runs.values()))['tolerance']
  axes.axvline(-tolerance, color='0.5', linestyle=':', label=f'tolerance, −{tolerance:g} points')
  axes.plot(0, 0, '*', color='black', markersize=10, label='before fine-tuning')
  axes.set_xlabel('change of clean accuracy in points')
  axes.set_ylabel('gain of robust accuracy in points')
  axes.grid(color='0.9')
  figure.legend(loc='outside upper center', ncols=1, fontsize=figures.SMALL)
  best = max(chosen, key=lambda label: chosen[label][1])
  return figures.Captioned(
      name, 'Clean accuracy kept and robust accuracy gained by fine-tuning', figure,
      'A marker for each epoch. Fine-tuning is good if its chosen epoch (ring) is high and not left of the '
      'dotted line: the highest, '
      f'`{best}`, gains {chosen[best][1]:.1f} points for a clean change of {_signed(chosen[best][0])} '
      '(validation split).',
      'Paths over the epochs of fine-tuning. Chosen epochs, clean change and robust gain in points: '
      + ', '.join(f'{label} {x:+.1f} {y:+.1f}' for label, (x, y) in chosen.items()) + '.')

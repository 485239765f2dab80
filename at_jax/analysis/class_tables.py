"""Markdown tables of class-wise robustness: `report` formats what `classwise` computes."""

import math
from typing import Any

import numpy as np

from at_jax.analysis import class_statistics, markdown

_MAX_COLUMNS = 20  # of a confusion matrix that is printed


def report(runs: dict[str, dict[str, Any]], title: str, order: dict[str, Any]) -> str:
  """Formats the statistics of runs of one threat model and the same classes.

  Args:
    runs: `{name: result of classwise.statistics}`.
    title: their data set and threat model.
    order: result of `classwise.method_order`.

  Returns:
    Tables in Markdown.
  """
  parts = [f'## {title}', _runs_table(runs)]
  if not math.isnan(order['w']):  # at least two methods
    parts.append(f'Order of the classes by robust accuracy, {order["orders"]} methods whose classes differ '
                 f'(p < {class_statistics.LEVEL}; seeds of one method are averaged): mean ρ '
                 f'{order["mean_rho"]:.2f}, lowest {order["lowest_rho"]:.2f}, Kendall W {order["w"]:.2f}, '
                 f'p = {order["p"]:.1g}.')
  parts += [_classes_table(runs), _confusion_table(runs), _superclass_table(runs), _gain_table(runs),
            _temperature_table(runs)]
  return '\n\n'.join(part for part in parts if part)


def _runs_table(runs: dict[str, dict[str, Any]]) -> str:
  head = ['run', 'n', 'clean', 'robust', 'worst class clean', 'worst class', 'its accuracy', 'max − min',
          'variance (points²)', 'p of equal classes', 'order over attacks: mean ρ, lowest']
  rows = []
  for name, found in runs.items():
    spread, order = found['robust_spread'], found['order_over_attacks']
    clean, robust, lowest, gap = (markdown.percent(share) for share in (
        found['clean'], found['robust'], spread['lowest'], spread['gap']))
    rows.append([f'`{name}`', str(found['n']), clean, robust, _worst(found, 'clean'), _worst(found, 'robust'),
                 lowest, gap, f'{1e4 * spread["variance"]:.0f}', markdown.p_value(spread['p']),
                 '' if math.isnan(order['mean_rho']) else
                 f'{order["mean_rho"]:.2f}, {order["lowest_rho"]:.2f}'])
  return markdown.table(head, rows)


def _worst(found: dict[str, Any], kind: str) -> str:
  """The class of lowest accuracy, and how many others have the same."""
  accuracy, spread = np.array(found[f'{kind}_by_class']), found[f'{kind}_spread']
  others = int((accuracy == spread['lowest']).sum()) - 1
  return found['class_names'][spread['worst']] + (f' and {others} more' if others else '')


def _classes_table(runs: dict[str, dict[str, Any]]) -> str:
  first = next(iter(runs.values()))
  names, several = first['class_names'], len(runs) > 1
  clean, robust = (np.array([found[f'{kind}_by_class'] for found in runs.values()])
                   for kind in ('clean', 'robust'))
  lowest = robust == np.nanmin(robust, axis=1, keepdims=True)
  head = ['class', 'clean', 'robust', *(
      ['runs whose worst class it is'] if several else ['n', '95 % interval of robust'])]
  rows = [[name, markdown.percent(*clean[:, c]), markdown.percent(*robust[:, c]), *(
      [str(lowest[:, c].sum())] if several else
      [str(first['class_sizes'][c]), _interval(robust[0, c], first['class_sizes'][c])])]
          for c, name in enumerate(names)]
  confusion = _confusion(runs)
  if confusion is not None:
    head += ['most often taken for', 'share of its mistakes']
    for row, c, share in zip(rows, *class_statistics.top_confounders(confusion), strict=True):
      row += [names[c] if c >= 0 else '', markdown.percent(share)]
  norms = [found['weight_norms']['norms'] for found in runs.values() if 'weight_norms' in found]
  if len(norms) == len(runs):
    head.append('weight norm')
    for row, norm in zip(rows, np.mean(norms, axis=0), strict=True):
      row.append(f'{norm:.3g}')
  return markdown.table(head, rows)


def _interval(share: float, n: int) -> str:
  if not n:
    return ''
  return '{:.1f} to {:.1f}'.format(*(100 * end for end in class_statistics.interval(round(share * n), n)))


def _confusion(runs: dict[str, dict[str, Any]]) -> np.ndarray | None:
  """The sum of the confusion matrices; None unless all runs have one."""
  if all('confusion' in found for found in runs.values()):
    return np.sum([found['confusion'] for found in runs.values()], axis=0)
  return None


def _confusion_table(runs: dict[str, dict[str, Any]]) -> str:
  names, confusion = next(iter(runs.values()))['class_names'], _confusion(runs)
  if confusion is None or len(names) > _MAX_COLUMNS:
    return ''
  rows = [[name, *('0' if not count else f'{100 * count / row.sum():.1f}' for count in row)]
          for name, row in zip(names, confusion, strict=True)]
  return 'Predictions under attack, rows are classes:\n\n' + markdown.table(['', *names], rows)


def _superclass_table(runs: dict[str, dict[str, Any]]) -> str:
  every = [found['superclasses'] for found in runs.values()]
  if not every[0]:
    return ''
  rows = [[name, str(every[0][name]['n']), *(markdown.percent(*(each[name][kind] for each in every))
                                             for kind in ('clean', 'robust'))] for name in every[0]]
  head = ['superclass', 'n', 'clean', 'robust']
  if all('within' in each[name] for each in every for name in each):
    head += ['mistakes within it', 'by chance']
    for row in rows:
      row += [markdown.percent(*(each[row[0]][kind] for each in every))
              for kind in ('within', 'within_by_chance')]
      row[-1] = row[-1].partition(' ')[0]  # the same in all runs
  return markdown.table(head, rows)


def _gain_table(runs: dict[str, dict[str, Any]]) -> str:
  rows = []
  for name, found in runs.items():
    stronger, norms = found.get('stronger_attack'), found.get('weight_norms')
    if stronger:
      points = np.nan_to_num(stronger['points'])
      most = found['class_names'][int(points.argmax())] if points.any() else ''
      rows.append([f'`{name}`', stronger['from'], most, _correlation(stronger['of_points']),
                   _correlation(stronger['of_share']), _correlation(norms) if norms else ''])
  head = ['run', 'weakest attack', 'the worst case gains most points on', 'ρ(robustness, points gained)',
          'ρ(robustness, share gained)', 'ρ(robustness, weight norm)']
  return markdown.table(head, rows) if rows else ''


def _temperature_table(runs: dict[str, dict[str, Any]]) -> str:
  head = ['run', 'attack rate of', 'PGD', 'Temperature-PGD, best 1/T', '1/T', 'gain, loss, p',
          'all 1/T', 'worst class', 'PGD ', 'best 1/T', 'gain, loss, p ', 'ρ(robustness, share gained)']
  rows = []
  for name, found in runs.items():
    for each in found['temperature']:
      overall, worst = each['all'], each['worst_class']
      of_all, of_worst = ([markdown.percent(rates[kind]) for kind in ('pgd', 'best', 'all_scales')]
                          for rates in (overall, worst))
      rows.append([f'`{name}`', f'PGD-{each["steps"]}', *of_all[:2], f'{each["best_scale"]:g}',
                   _test(overall), of_all[2], f'{found["class_names"][worst["class"]]} ({worst["correct"]})',
                   *of_worst[:2], _test(worst), _correlation(each['gain']['of_share'])])
  text = ('Attack rate: share of the correctly classified examples that is fooled. PGD and Temperature-PGD '
          'at one 1/T have equal passes. p is times the number of 1/T.\n\n')
  return text + markdown.table(head, rows) if rows else ''


def _test(found: dict[str, Any]) -> str:
  return f'+{found["only_best_fools"]} −{found["only_pgd_fools"]}, {found["p"]:.1g}'


def _correlation(found: dict[str, float]) -> str:
  if math.isnan(found['rho']):
    return ''
  return f'{found["rho"]:+.2f}'.replace('-', '−') + f', p = {found["p"]:.1g}'

"""Figures of `smoothness`: estimates of all runs, and the loss around the weights of each method."""

import math
from typing import Any

import numpy as np

from at_jax.analysis import figures, runs

_SERIES = (('L∞', 'linf', 'lipschitz'), ('L2', 'l2', 'lipschitz'),
           ('L∞, attack fixed', 'linf', 'fixed_lipschitz'))
_KINDS = {'random': 'random directions', 'gradient': 'along the gradient'}
_LEVELS = 9  # of a surface


def draw(found: dict[str, dict[str, Any]], suffix: str = '') -> list[figures.Captioned]:
  """Draws the figures of the runs of one threat model.

  Args:
    found: `{name: result of smoothness.measure}`, with a 'surface' where one is to be drawn.
    suffix: end of the names of the files.

  Returns:
    The estimates, and the surfaces if there are any.
  """
  drawn = [_estimates(found, suffix)]
  surfaces = {name: each['surface'] for name, each in found.items() if 'surface' in each}
  return drawn + ([_surfaces(surfaces, suffix)] if surfaces else [])


def _estimates(found: dict[str, dict[str, Any]], suffix: str) -> figures.Captioned:
  import matplotlib.ticker
  methods = list(dict.fromkeys(map(runs.method, found)))
  length = min(next(iter(found.values()))['linf']['random'], key=float)
  figure = figures.new(height=1.4 + .4 * len(methods))
  for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), _KINDS.items(), strict=True):
    for i, (label, norm, name) in enumerate(_SERIES):
      axes.plot([_mean(each, norm, kind, name, length) for each in found.values()],
                [methods.index(runs.method(run)) + .22 * (i - 1) for run in found], figures.MARKERS[i],
                color=figures.COLORS[i], label=label, markersize=5, markerfacecolor='none')
    axes.set(xscale='log', title=title)
    axes.title.set_size(10)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.minorticks_off()
    axes.grid(axis='x', alpha=.4)
  first = figure.axes[0]
  first.set(yticks=range(len(methods)), yticklabels=[name.replace('_cifar10', '') for name in methods],
            ylim=(len(methods) - .5, -.5))
  figure.supxlabel('change of the gradient per length of the move', size=10)
  figure.legend(*first.get_legend_handles_labels(), loc='outside upper center', ncols=3, fontsize=8)
  linf, l2 = (np.array([_mean(each, norm, 'random', 'lipschitz', length) for each in found.values()])
              for norm in ('linf', 'l2'))
  ratios = linf / l2
  caption = (f'In random directions the gradient changes {np.median(ratios):.2g} times as fast under L∞ '
             f'attacks as under L2 attacks of equal loss (median of {len(found)} runs, {ratios.min():.2g} to '
             f'{ratios.max():.2g}).')
  numbers = '; '.join(
      f'{name} ' + ', '.join(f'{label} {np.mean(_of(found, name, norm, "random", estimate, length)):.3g}'
                             for label, norm, estimate in _SERIES) for name in methods)
  alt = (f'Dot plot of gradient-Lipschitz estimates at a relative length of {float(length):g}, one dot for '
         f'each run. Means in random directions: {numbers}.')
  return figures.Captioned(f'smoothness{suffix}', 'Gradient-Lipschitz estimates', figure, caption, alt)


def _mean(each: dict[str, Any], norm: str, kind: str, name: str, length: str) -> float:
  return float(np.mean(each[norm][kind][length][name]))


def _of(found: dict[str, dict[str, Any]], method: str, norm: str, kind: str, name: str, length: str
        ) -> list[float]:
  return [_mean(each, norm, kind, name, length) for run, each in found.items() if runs.method(run) == method]


def _surfaces(surfaces: dict[str, dict[str, Any]], suffix: str) -> figures.Captioned:
  """How far the loss rises from that at w, on one scale of colours for all runs."""
  import matplotlib.colors
  rises = {name: np.array(each['losses']) - np.array(each['losses'])[_middle(each), _middle(each)]
           for name, each in surfaces.items()}
  levels = np.unique(np.quantile(np.stack(list(rises.values())), np.linspace(0, 1, _LEVELS)))
  levels = levels if len(levels) > 1 else np.array([levels[0], levels[0] + 1])  # a constant loss
  columns = min(len(rises), 3)
  rows = math.ceil(len(rises) / columns)
  figure = figures.new(height=.9 + 1.5 * rows)
  grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
  for i, (axes, (name, rise)) in enumerate(zip(grid.flat, rises.items(), strict=False)):
    percent = 100 * np.array(surfaces[name]['lengths'])
    drawn = axes.contourf(percent, percent, rise.T, levels=levels, cmap=figures.SEQUENTIAL,
                          norm=matplotlib.colors.BoundaryNorm(levels, 256))
    axes.contour(percent, percent, rise.T, levels=levels, colors='black', linewidths=.4)
    axes.plot(0, 0, 'w*', markeredgecolor='black', markersize=8)
    axes.set_title(runs.method(name).replace('_cifar10', ''), size=9)
    axes.tick_params(labelbottom=i + columns >= len(rises))  # nothing is below
  for axes in grid.flat[len(rises):]:
    axes.set_axis_off()
  figure.supxlabel('along the gradient, % of ‖w‖', size=9)
  figure.supylabel('random direction, %', size=9)
  figure.colorbar(drawn, ax=grid, format='%.3g', label='rise of the adversarial loss')
  ends = {name: (rise[-1, _middle(surfaces[name])], max(rise[_middle(surfaces[name]), [0, -1]]))
          for name, rise in rises.items()}
  along, across = np.median(list(ends.values()), axis=0)
  flattest = min(ends, key=lambda name: ends[name][0])
  reach = 100 * max(next(iter(surfaces.values()))['lengths'])
  caption = (f'{reach:g} % along the gradient the adversarial loss rises by {along:.2g}, in a random '
             f'direction by {across:.2g} (medians); along the gradient it rises least for '
             f'{runs.method(flattest)}.')
  alt = (f'Contours of the adversarial loss around the weights, from −{reach:g} to {reach:g} %. Rise at the '
         'end along the gradient, and in the random direction: '
         + '; '.join(f'{runs.method(name)} {rise:.2g}, {other:.2g}' for name, (rise, other) in ends.items())
         + '.')
  return figures.Captioned(f'surfaces{suffix}', 'Adversarial loss around the weights', figure, caption, alt)


def _middle(surface: dict[str, Any]) -> int:
  return len(surface['lengths']) // 2

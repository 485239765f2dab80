"""Examples on which a run fails after each epoch: which stay, are learnt and are forgotten."""

from typing import Any, NamedTuple

import numpy as np

from at_jax.analysis import class_statistics, figures, markdown

_MAX_RUNS = 6  # of one figure


class Shares(NamedTuple):
  """Result of `shares`: shares of the examples after each of K epochs.

  Attributes:
    fails: f64[K], the model fails on them.
    always: f64[K], it failed on them after every epoch so far.
    learnt: f64[K], it is robust on them for the first time: the fall of `always`.
    forgotten: f64[K], it fails on them, and was robust on them after an earlier epoch: `fails` − `always`.
  """
  fails: np.ndarray
  always: np.ndarray
  learnt: np.ndarray
  forgotten: np.ndarray


def shares(wrong: np.ndarray) -> Shares:
  """Follows the examples on which the checkpoints of a run fail.

  Args:
    wrong: bool[K, n], whether the checkpoint of an epoch fails on an example, the earliest epoch first.

  Returns:
    A `Shares`.

  Example:
    >>> found = shares(np.array([[1, 1, 1, 0], [1, 1, 0, 1]], bool))
    >>> found.always.tolist(), found.learnt.tolist(), found.forgotten.tolist()
    ([0.75, 0.5], [0.25, 0.25], [0.0, 0.25])
  """
  fails = wrong.mean(axis=1)
  always = np.logical_and.accumulate(wrong).mean(axis=1)
  return Shares(fails, always, np.append(1, always[:-1]) - always, fails - always)


def report(found: dict[str, Any], n: int) -> str:
  """Formats what becomes of the examples over the epochs of runs.

  Args:
    found: `{run: fields of Shares as lists, and 'epochs'}`.
    n: number of examples.

  Returns:
    A table in Markdown and a sentence for each run.
  """
  head = ['epoch', 'fails', 'failed after every epoch so far', 'learnt for the first time', 'forgotten']
  parts = []
  for run, each in found.items():
    parts.append(f'`{run}` over epochs:\n\n' + markdown.table(head, (
        [f'{epoch:.4g}', *(markdown.percent(each[key][i]) for key in Shares._fields)]
        for i, epoch in enumerate(each['epochs']))))
    always = round(n * each['always'][-1])
    low, high = class_statistics.interval(always, n)
    parts.append(f'Never robust at {len(each["epochs"])} checkpoints: {always} of {n} examples, 95 % '
                 f'interval {100 * low:.1f} to {100 * high:.1f} % (published: up to 40 %).')
  return '\n\n'.join(parts)


def figure(name: str, title: str, found: dict[str, Any]) -> figures.Captioned:
  """Draws how many examples runs fail on, now and after every epoch so far.

  Args:
    name: name of the figure's file, without a suffix.
    title: data set, threat model and examples.
    found: as for `report`.

  Returns:
    The figure.

  Raises:
    errors.UserError: if matplotlib is not installed.
  """
  shown = dict(list(found.items())[:_MAX_RUNS])
  drawn = figures.new(4.6, 3.2 + .2 * len(shown))
  axes = drawn.subplots()
  for (run, each), color, marker in zip(shown.items(), figures.COLORS, figures.MARKERS, strict=False):
    for key, style in (('fails', '-'), ('always', '--')):
      axes.plot(each['epochs'], 100 * np.array(each[key]), color=color, marker=marker, linestyle=style,
                markersize=4, label=figures.label(run) if key == 'fails' else None)
  axes.set_xlabel('epoch')
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_ylabel('examples in percent')
  axes.set_ylim(0, 100)
  axes.grid(color='0.9')
  drawn.legend(loc='outside upper center', fontsize=figures.SMALL)
  last = lambda key: [100 * each[key][-1] for each in shown.values()]
  rest = f' (the first {len(shown)} of {len(found)} runs)' if len(found) > len(shown) else ''
  caption = ('Solid: examples on which a run fails after an epoch. Dashed: those on which it failed after '
             f'every epoch so far. Between both are the examples that it has forgotten{rest}.')
  alt = (f'In percent after the last epoch: fails {figures.listed(list(shown), last("fails"))}; failed after '
         f'every epoch {figures.listed(list(shown), last("always"))}.')
  return figures.Captioned(name, f'Examples that fail over epochs: {title}', drawn, caption, alt)

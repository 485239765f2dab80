"""Smoothness of the adversarial loss: `python -m at_jax.analysis smoothness RUN... [--n=N] [--output=FILE]
[--figures=FOLDER]`.

RUN is the folder of a trained run. Its best checkpoint's deployed model is analysed, with BatchNorm in
inference mode, on the first N test images. The radius is that of its evaluation. In the other norm, L2 or L∞,
the radius is the one at which the adversarial loss is the same.

Both attacks are run at the weights w, and again at w + d. The length of d is .1, .3 and 1 % of the norm of
each weight tensor, in three random directions and along the gradient, forwards and backwards. Tables have the
estimates at .1 %. Growth is the estimate at .1 % over that at 1 %: 1 if it is smooth, 10 for a single jump,
√10 for many that are independent. If the attack is fixed, the attack at w is used at w + d too.

--output writes all numbers as JSON. --figures draws the estimates, and the loss on a plane around w.
"""

from collections.abc import Iterator, Sequence
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import environment, errors
from at_jax.analysis import (
  class_statistics,
  figures,
  markdown,
  runs,
  smoothness_estimates,
  smoothness_figures,
)
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics
from at_jax.training import restore

LENGTHS = (.001, .003, .01)  # relative lengths of d; tables have the first, nearest to the limit
DIRECTIONS = 3  # random ones
GRID = tuple(np.linspace(-.1, .1, 9).tolist())  # of a surface, relative lengths
SURFACE_EXAMPLES = 100


class Model(NamedTuple):
  """A run's deployed model, and the examples that it is analysed on.

  Attributes:
    logits_fn: `(params, x) -> f32[N, C]`.
    params: its parameters.
    x: f32[N, ...], images in [0, 1].
    y: i32[N], their classes.
    key: PRNG key of the random directions.
    norm: norm of the run's evaluation, 'linf' or 'l2'.
    epsilon: radius of the evaluation, in units of x.
    threat: data set, norm and radius.
  """
  logits_fn: jax.tree_util.Partial
  params: Any
  x: jax.Array
  y: jax.Array
  key: jax.Array
  norm: str
  epsilon: float
  threat: str


def load(path: pathlib.Path, n: int, data: dict[str, Any]) -> Model:
  """Reads the deployed model of a run.

  Args:
    path: its folder.
    n: the number of test images.
    data: the test images that other runs have read, to which those of this run are added.

  Returns:
    A `Model`.

  Raises:
    errors.UserError: if model or data cannot be read.
  """
  found = runs.trained(path, data, test=n)
  others = {name: each for name, each in found.variables.items() if name != 'params'}
  deployed, c = found.parts.network.deployed, found.settings
  logits_fn = jax.tree_util.Partial(
      lambda others, params, x: deployed({**others, 'params': params}, x), others)
  threat = (f'{runs.data_name(found.parts.config.dataset)}, {metrics.norm_name(c["norm"])}, '
            f'{c["epsilon_255"]:g}/255')
  return Model(logits_fn, found.variables['params'], jnp.asarray(pipeline.in_unit(found.split.images)),
               jnp.asarray(found.split.labels), found.parts.keys['evaluate'], c['norm'],
               c['epsilon_255'] / 255, threat)


def check(path: pathlib.Path) -> None:
  """Checks that a run can be analysed, without reading its weights.

  Args:
    path: its folder.

  Raises:
    errors.UserError: if not.
  """
  config = restore.read_config(path)
  if config is None:
    raise errors.UserError('RUN', str(path), 'there is no config.json in it: name the folder of a trained '
                           'run')
  settings = runs.evaluation_settings(path, config)
  norm = settings['norm']
  if norm not in ('linf', 'l2'):
    raise errors.UserError('RUN', str(path), f'its evaluation is in {metrics.norm_name(norm)}: name runs of '
                           'L∞ or L2')
  if not settings['epsilon_255']:
    raise errors.UserError('RUN', str(path), 'its evaluation has the radius 0: name runs of a radius above 0')
  dtype = config.model.get('dtype', 'float32')
  if dtype not in ('float32', 'float64'):
    raise errors.UserError('RUN', str(path), f'its network computes in {dtype}, whose rounding exceeds the '
                           "changes to measure: set model.dtype to 'float32' in the config.json of a copy")


def measure(model: Model) -> dict[str, Any]:
  """Estimates the smoothness of the loss around the weights of a model, in L∞ and in L2.

  Args:
    model: result of `load`.

  Returns:
    A JSON object. For each norm and kind of direction it has the estimates by the relative length of d, a
    number for each direction.
  """
  task = model.logits_fn, model.params, model.x, model.y
  base = smoothness_estimates.adversarial(*task, model.epsilon, norm=model.norm)
  other, = {'linf', 'l2'} - {model.norm}
  matched = smoothness_estimates.matched_radius(*task, base.loss, norm=other, epsilon=model.epsilon)
  flat = smoothness_estimates.input_flatness(*task)
  clean = smoothness_estimates.fixed(*task, jnp.zeros_like(model.x))
  directions = [smoothness_estimates.random_direction(model.params, jax.random.fold_in(model.key, i))
                for i in range(DIRECTIONS)]
  around = {model.norm: _around(model, directions, base, model.norm, model.epsilon)}
  base = smoothness_estimates.adversarial(*task, matched, norm=other)
  around[other] = _around(model, directions, base, other, matched)
  return {'n': len(model.y), 'clean_loss': float(clean.loss), 'input_gradient': float(flat.gradient.mean()),
          'input_curvature': float(flat.curvature.mean()), 'linf': around['linf'], 'l2': around['l2']}


def _around(model: Model, directions: Sequence[Any], base: smoothness_estimates.Point, norm: str,
            epsilon: float) -> dict[str, Any]:
  """The estimates in one norm: `{kind: {length: {estimate: a number for each direction}}}`."""
  kinds = {'random': [(v, 1) for v in directions], 'gradient': [(base.gradient, 1), (base.gradient, -1)]}
  delta = np.asarray(base.delta).reshape(len(model.y), -1)
  found = {'epsilon': epsilon, 'loss': float(base.loss),
           'delta_l2': float(np.linalg.norm(delta, axis=1).mean())}
  for kind, signed in kinds.items():
    found[kind] = {}
    for length in LENGTHS:
      each = [_compare(model, base, norm, epsilon, v, sign * length) for v, sign in signed]
      found[kind][f'{length:g}'] = {name: [one[name] for one in each] for name in each[0]}
  return found


def _compare(model: Model, base: smoothness_estimates.Point, norm: str, epsilon: float, direction: Any,
             length: float) -> dict[str, float]:
  moved = smoothness_estimates.move(model.params, [direction], [length])
  point = smoothness_estimates.adversarial(model.logits_fn, moved, model.x, model.y, epsilon, norm=norm)
  fixed = smoothness_estimates.fixed(model.logits_fn, moved, model.x, model.y, base.delta)
  found = smoothness_estimates.estimate(model.params, base, moved, point)._asdict()
  smooth = smoothness_estimates.estimate(model.params, base, moved, fixed)
  found |= {'fixed_lipschitz': smooth.lipschitz, 'fixed_relative_lipschitz': smooth.relative_lipschitz}
  return {name: float(value) for name, value in found.items()}


def surface(model: Model) -> dict[str, Any]:
  """Computes the adversarial loss on the plane of the gradient and the first random direction.

  Args:
    model: result of `load`.

  Returns:
    A JSON object: 'lengths', and 'losses' with a row for each length along the gradient.
  """
  task = model.logits_fn, model.params, model.x[:SURFACE_EXAMPLES], model.y[:SURFACE_EXAMPLES]
  gradient = smoothness_estimates.adversarial(*task, model.epsilon, norm=model.norm).gradient
  other = smoothness_estimates.random_direction(model.params, jax.random.fold_in(model.key, 0))
  losses = smoothness_estimates.surface(*task, gradient, other, model.epsilon, norm=model.norm, lengths=GRID)
  return {'n': len(task[-1]), 'lengths': list(GRID), 'losses': losses.tolist()}


def value(found: dict[str, Any], norm: str, kind: str, name: str, length: float = LENGTHS[0]) -> float:
  """Reads an estimate, the mean over directions.

  Args:
    found: result of `measure`.
    norm: 'linf' or 'l2'.
    kind: 'random' or 'gradient'.
    name: a field of `smoothness_estimates.Estimate`, or 'fixed_lipschitz' or 'fixed_relative_lipschitz'.
    length: one of `LENGTHS`.

  Returns:
    The estimate.
  """
  return float(np.mean(found[norm][kind][f'{length:g}'][name]))


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Compares L∞ with L2, and flatness in the input with smoothness in the weights, over runs.

  Args:
    found: `{name: result of measure}`, of one threat model.

  Returns:
    A JSON object. For each kind of direction and each estimate it has the number of runs in which L∞ exceeds
    L2 at each length, and the rank correlations over runs with the gradient and the curvature in the input.
  """
  result: dict[str, Any] = {'runs': len(found)}
  for kind in ('random', 'gradient'):
    for name in smoothness_estimates.Estimate._fields:
      of = lambda norm, length=LENGTHS[0], kind=kind, name=name: np.array(
          [value(each, norm, kind, name, length) for each in found.values()])
      result[f'{kind}_{name}'] = {
          'linf_above_l2': {f'{length:g}': int((of('linf', length) > of('l2', length)).sum())
                            for length in LENGTHS},
          **{f'rho_{norm}_{flat}': class_statistics.rank_correlation(
              np.array([each[flat] for each in found.values()]), of(norm))._asdict()
             for norm in ('linf', 'l2') for flat in ('input_gradient', 'input_curvature')}}
  return result


def report(found: dict[str, dict[str, Any]], compared: dict[str, Any], title: str) -> str:
  """Formats the estimates of runs of one threat model; seeds of a method are averaged.

  Args:
    found: `{name: result of measure}`.
    compared: result of `compare`.
    title: data set and threat model.

  Returns:
    Tables in Markdown.
  """
  methods: dict[str, list[dict[str, Any]]] = {}
  for name, each in found.items():
    methods.setdefault(runs.method(name), []).append(each)
  parts = [f'## {title}', _losses_table(methods)]
  for kind, text in (('random', 'Random directions'), ('gradient', 'Along the gradient')):
    parts += [f'{text}, d of {100 * LENGTHS[0]:g} %:', _estimates_table(methods, kind),
              *_sentences(compared, kind)]
  return '\n\n'.join(parts)


def _losses_table(methods: dict[str, list[dict[str, Any]]]) -> str:
  columns = {'clean loss': lambda one: one['clean_loss'], 'adversarial loss': lambda one: one['linf']['loss'],
             'radius L∞ (255ths)': lambda one: 255 * one['linf']['epsilon'],
             'radius L2 (255ths)': lambda one: 255 * one['l2']['epsilon'],
             '‖∇x loss‖₁': lambda one: one['input_gradient'],
             'curvature in x': lambda one: one['input_curvature']}
  rows = [[f'`{name}`', str(len(each)), *(_number(list(map(pick, each))) for pick in columns.values())]
          for name, each in methods.items()]
  return markdown.table(['run', 'seeds', *columns], rows)


def _estimates_table(methods: dict[str, list[dict[str, Any]]], kind: str) -> str:
  names = {'lipschitz': 'Lipschitz', 'fixed_lipschitz': 'attack fixed', 'lipschitz growth': 'growth',
           'displacement': 'displacement', 'displacement growth': 'growth of it',
           'relative_lipschitz': 'relative Lipschitz', 'relative_displacement': 'relative displacement'}
  head = ['run', *(f'{text} {metrics.norm_name(norm)}' for text in names.values() for norm in ('linf', 'l2'))]

  def cell(each: list[dict[str, Any]], name: str, norm: str) -> str:
    name, _, growth = name.partition(' ')
    at = lambda one, length: value(one, norm, kind, name, length)
    return _number([at(one, LENGTHS[0]) / at(one, LENGTHS[-1]) if growth else at(one, LENGTHS[0])
                    for one in each])

  return markdown.table(head, [[f'`{method}`', *(cell(each, name, norm) for name in names
                                                 for norm in ('linf', 'l2'))]
                               for method, each in methods.items()])


def _sentences(compared: dict[str, Any], kind: str) -> Iterator[str]:
  lipschitz, length = compared[f'{kind}_lipschitz'], f'{LENGTHS[0]:g}'
  yield (f'L∞ exceeds L2 in {lipschitz["linf_above_l2"][length]} of {compared["runs"]} runs by the Lipschitz '
         f'estimate, and in {compared[f"{kind}_relative_displacement"]["linf_above_l2"][length]} by the '
         'relative displacement.')
  rho = lipschitz['rho_linf_input_gradient']
  if not np.isnan(rho['rho']):
    relative = compared[f'{kind}_relative_lipschitz']['rho_linf_input_gradient']
    yield ('Rank correlation of ‖∇x loss‖₁ with the Lipschitz estimate of L∞ over runs: '
           f'ρ = {rho["rho"]:+.2f}, p = {rho["p"]:.2g}; with the relative one ρ = {relative["rho"]:+.2f}, '
           f'p = {relative["p"]:.2g}.')


def _number(values: Sequence[float]) -> str:
  """The mean in three digits, ± the standard deviation of several."""
  digits = lambda x, count: f'{x:.0f}' if abs(x) >= 100 else f'{x:.{count}g}'
  spread = f' ± {digits(np.std(values, ddof=1), 2)}' if len(values) > 1 else ''
  return digits(np.mean(values), 3) + spread


def _groups(paths: Sequence[pathlib.Path], n: int, surfaces: bool) -> dict[str, dict[str, dict[str, Any]]]:
  """`{threat: {name: result of measure}}`; the first run of each method has its surface too."""
  groups: dict[str, dict[str, dict[str, Any]]] = {}
  data: dict[str, Any] = {}
  for path in paths:
    check(path)
  for i, (path, name) in enumerate(zip(paths, runs.names(paths), strict=True)):
    environment.log(f'{i + 1} of {len(paths)}: {path}')
    model = load(path, n, data)
    group = groups.setdefault(model.threat, {})
    first = runs.method(name) not in map(runs.method, group)
    group[name] = measure(model) | ({'surface': surface(model)} if surfaces and first else {})
  return groups


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes numbers and figures where they are asked for.

  Args:
    arguments: the command line without `python -m at_jax.analysis smoothness`; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis smoothness', __doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--n', type=int, default=256, help='number of test images, one batch (256)')
  parser.add_argument('--output', metavar='FILE', help='a JSON file for all numbers')
  parser.add_argument('--figures', metavar='FOLDER', help='a folder for PNG files')
  asked = parser.parse_args(arguments)
  try:
    if asked.n < 1:
      raise errors.UserError('--n', asked.n, 'use a whole number above 0')
    output = runs.output_path('--output', asked.output)
    folder = asked.figures and environment.local_path('--figures', asked.figures)
    if folder:
      figures.new()  # matplotlib is there
    groups = _groups([environment.local_path('RUN', path) for path in asked.runs], asked.n, bool(folder))
    compared = {title: compare(found) for title, found in groups.items()}
    if output:
      runs.write(output, {'lengths': LENGTHS, 'groups': {
          title: {'runs': found, 'compared': compared[title]} for title, found in groups.items()}})
    for i, found in enumerate(groups.values() if folder else ()):
      for captioned in smoothness_figures.draw(found, f'-{i + 1}' if len(groups) > 1 else ''):
        environment.log(f'{figures.write(captioned, folder)}: {captioned.caption}')
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  print(environment.printable('\n\n'.join(
      report(found, compared[title], title) for title, found in groups.items())))
  return 0

"""Class-wise robustness of runs: `python -m at_jax.analysis classwise RUN... [--output=FILE]`.

RUN is the folder of an evaluated run. Its verdicts come from verdicts.npz, of the best checkpoint's deployed
model. Predictions are not stored: --attack is run again with the keys of the evaluation, for the confusion
matrices, and the data of the run are read. --attack=none reads files only.

Robust means the worst case over all attacks of the evaluation. An example that is misclassified clean is not
attacked; in a confusion matrix it counts by its clean prediction. Tables are in Markdown, shares in percent.
--output writes all numbers as JSON, shares as fractions.
"""

from collections.abc import Sequence
import math
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from at_jax import environment, errors
from at_jax.analysis import class_statistics, class_tables, mcnemar, runs, superclasses
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, metrics
from at_jax.models import deployed as deployed_lib

_SCALED = re.compile(r'scale([\d.]+)_pgd(\d+)')


class Run(NamedTuple):
  """What is known of a run.

  Attributes:
    name: its name in tables.
    threat: data set, norm and radius.
    class_names: C names.
    labels: i32[N].
    clean: bool[N], classified correctly without an attack.
    worst_case: bool[N], and under every attack.
    robust: `{attack: bool[N]}`, by the attacks that the evaluation names.
    scales: `{steps: {1/T: bool[N]}}`, robust to Temperature-PGD.
    confusion: i64[C, C], of predictions under attack; None if no attack was run again.
    norms: f64[C], norms of the classes' weights in the last layer; None if they are not known.
  """
  name: str
  threat: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  clean: np.ndarray
  worst_case: np.ndarray
  robust: dict[str, np.ndarray]
  scales: dict[int, dict[float, np.ndarray]]
  confusion: np.ndarray | None = None
  norms: np.ndarray | None = None

  def by_class(self, verdicts: np.ndarray) -> np.ndarray:
    """Accuracy of each class: f64[C], NaN for a class without examples."""
    return metrics.accuracy_by_class(verdicts, self.labels, len(self.class_names))


def of_files(found: runs.Evaluation) -> Run:
  """Makes a run of its files. Its classes are named by their labels.

  Args:
    found: result of `runs.read`.

  Returns:
    The run, without confusion matrix and norms.
  """
  verdicts, scales = found.verdicts['best'], {}
  for key, robust in verdicts.items():
    if match := _SCALED.fullmatch(key.removeprefix('robust/')):
      scales.setdefault(int(match[2]), {})[float(match[1])] = robust
  class_names = tuple(map(str, range(found.results['config']['dataset']['num_classes'])))
  return Run(found.path.name, found.threat, class_names, found.labels, verdicts['clean'],
             verdicts['worst_case'], found.robust(), scales)


def attacked(run: Run, model: runs.Model, spec: attack_names.Spec) -> Run:
  """Attacks the model of a run again, on the examples and with the keys of its evaluation.

  Args:
    run: result of `of_files`.
    model: its model.
    spec: the attack.

  Returns:
    The run with its confusion matrix, its norms and the names of its classes.
  """
  split, class_names = model.split, model.class_names
  predicted = runs.clean(model)
  correct = predicted == split.labels
  predicted = np.where(correct, runs.attack(model, spec, correct).predictions, predicted)
  norms = class_weight_norms(model.parts.network, model.variables, pipeline.in_unit(split.images[:8]),
                             len(class_names))
  confusion = class_statistics.confusion_matrix(split.labels, predicted, len(class_names))
  return run._replace(class_names=class_names, confusion=confusion, norms=norms)


def class_weight_norms(network: deployed_lib.Network, variables: Any, x: jax.Array, num_classes: int
                       ) -> np.ndarray | None:
  """Computes the norm ‖w_c‖ of each class's weights in the last layer.

  The last layer is the kernel of which a column changes one logit only. Dummy classes are left out.

  Args:
    network: the network.
    variables: its variables.
    x: f32[B, ...], some inputs.
    num_classes: C.

  Returns:
    f64[C]; None if there is no such kernel.
  """
  logits = network.logits(variables, x)
  leaves, tree = jax.tree.flatten(variables['params'])
  for i, leaf in enumerate(leaves):
    if leaf.ndim == 2 and leaf.shape[1] == logits.shape[1]:
      moved = jax.tree.unflatten(tree, [*leaves[:i], leaf.at[:, 0].add(1), *leaves[i + 1:]])
      changed = np.asarray(network.logits({**variables, 'params': moved}, x) != logits).any(axis=0)
      if changed[0] and not changed[1:].any():
        return np.linalg.norm(np.asarray(leaf, np.float64)[:, :num_classes], axis=0)
  return None


def statistics(run: Run) -> dict[str, Any]:
  """Computes the class-wise statistics of a run.

  Args:
    run: the run.

  Returns:
    A JSON object; numbers that are not defined are NaN.
  """
  clean, robust = run.by_class(run.clean), run.by_class(run.worst_case)
  spread = class_statistics.spread(robust)
  found = {
      'n': len(run.labels), 'clean': float(run.clean.mean()), 'robust': float(run.worst_case.mean()),
      'class_names': list(run.class_names), 'class_sizes': _counts(run), 'clean_by_class': clean.tolist(),
      'robust_by_class': robust.tolist(),
      'attacks_by_class': {name: run.by_class(v).tolist() for name, v in run.robust.items()},
      'clean_spread': class_statistics.spread(clean)._asdict(),
      'robust_spread': spread._asdict() | {'p': class_statistics.equality_p(run.worst_case, run.labels)},
      'order_over_attacks': class_statistics.concordance(
          np.array([run.by_class(v) for v in run.robust.values()] or [robust]))._asdict(),
      'temperature': [_temperature(run, steps, spread.worst) for steps in sorted(run.scales)
                      if f'pgd{steps}' in run.robust]}
  if run.robust:
    weak = max(run.robust, key=lambda name: run.robust[name].mean())
    found['stronger_attack'] = {'from': weak} | _gain(run, run.robust[weak], run.worst_case)
  if run.norms is not None:
    found['weight_norms'] = {'norms': run.norms.tolist()} | class_statistics.rank_correlation(
        run.norms, robust)._asdict()
  if run.confusion is not None:
    found['confusion'] = run.confusion.tolist()
  found['superclasses'] = {name: _superclass(run, labels)
                           for name, labels in superclasses.members(run.class_names).items()}
  return found


def _counts(run: Run) -> list[int]:
  return np.bincount(run.labels, minlength=len(run.class_names)).tolist()


def _gain(run: Run, weak: np.ndarray, strong: np.ndarray) -> dict[str, Any]:
  gain = class_statistics.gain(weak, strong, run.labels, len(run.class_names))
  return {'points': gain.points.tolist(), 'share': gain.share.tolist(),
          'of_points': gain.of_points._asdict(), 'of_share': gain.of_share._asdict()}


def _superclass(run: Run, labels: Sequence[int]) -> dict[str, Any]:
  among = np.isin(run.labels, labels)
  found = {'n': int(among.sum()), 'clean': _mean(run.clean[among]), 'robust': _mean(run.worst_case[among])}
  if run.confusion is not None:
    found['within'], found['within_by_chance'] = class_statistics.within(run.confusion, labels)
  return found


def _temperature(run: Run, steps: int, worst: int) -> dict[str, Any]:
  """Attack rates, of correctly classified examples, of PGD and of Temperature-PGD at each 1/T."""
  plain, scales = run.robust[f'pgd{steps}'], run.scales[steps]
  of_worst = run.labels == worst
  rate = lambda robust, among: 1 - _mean(robust[among & run.clean])
  everything = np.ones(len(run.labels), bool)
  best = min(scales, key=lambda scale: scales[scale].mean())
  worst_of_all = np.logical_and.reduce(list(scales.values()))

  def compared(among: np.ndarray) -> dict[str, Any]:
    test = mcnemar.mcnemar(plain[among], scales[best][among])
    return {'correct': int((among & run.clean).sum()), 'pgd': rate(plain, among),
            'by_scale': {f'{scale:g}': rate(scales[scale], among) for scale in sorted(scales)},
            'best': rate(scales[best], among), 'all_scales': rate(worst_of_all, among),
            'only_best_fools': test.gained, 'only_pgd_fools': test.lost,
            'p': min(1., test.p * len(scales))}  # Bonferroni: the best of several is chosen

  return {'steps': steps, 'best_scale': best, 'all': compared(everything),
          'worst_class': {'class': worst} | compared(of_worst), 'gain': _gain(run, plain, scales[best])}


def _mean(verdicts: np.ndarray) -> float:
  return float(verdicts.mean()) if len(verdicts) else math.nan


def method_order(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Measures how far methods agree on the order of the classes by robust accuracy.

  Args:
    found: `{name: result of statistics}`, of the same classes. Runs METHOD-SEED of one method are averaged. A
      run whose classes do not differ (p ≥ .05) has no order and is left out.

  Returns:
    A `class_statistics.Concordance` as a dictionary.
  """
  methods: dict[str, list] = {}
  for name, each in found.items():
    if each['robust_spread']['p'] < class_statistics.LEVEL:
      methods.setdefault(runs.method(name), []).append(each['robust_by_class'])
  means = [np.mean(each, axis=0) for each in methods.values()]
  classes = len(next(iter(found.values()))['class_names'])
  return class_statistics.concordance(np.reshape(means, (-1, classes)))._asdict()


def _groups(paths: Sequence[pathlib.Path], attack: str) -> dict[str, dict[str, dict[str, Any]]]:
  """`{title: {name: statistics}}`; the files of all runs are read before the first attack."""
  spec = runs.pgd(attack)
  found = [runs.read(path) for path in paths]
  groups, data = {}, {}
  for i, (name, each) in enumerate(zip(runs.names(paths), found, strict=True)):
    run = of_files(each)
    if spec:
      environment.log(f'{i + 1} of {len(found)}: {each.path}')
      run = attacked(run, runs.load(each, data), spec)
    groups.setdefault(run.threat, {}).setdefault(run.class_names, {})[name] = statistics(run)
  return {threat if len(by_classes) == 1 else f'{threat}, classes {", ".join(class_names)}': each
          for threat, by_classes in groups.items() for class_names, each in by_classes.items()}


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes all numbers to a file if there is one.

  Args:
    arguments: the command line without `python -m at_jax.analysis classwise`; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis classwise', __doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--attack', default='pgd20',
                      help='attack of the confusion matrices; none for no attack')
  parser.add_argument('--output', metavar='FILE', help='a JSON file for all numbers')
  asked = parser.parse_args(arguments)
  try:
    output = runs.output_path('--output', asked.output)
    groups = _groups([environment.local_path('RUN', path) for path in asked.runs], asked.attack)
    orders = {title: method_order(each) for title, each in groups.items()}
    if output:
      runs.write(output, {'attack': asked.attack, 'groups': {
          title: {'runs': each, 'order_over_methods': orders[title]} for title, each in groups.items()}})
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  print(environment.printable('\n\n'.join(
      class_tables.report(each, title, orders[title]) for title, each in groups.items())))
  return 0

"""What changes without a class: `python -m at_jax.analysis without_class RUN WITHOUT [--output=FILE]`.

RUN is the folder of a trained run of all classes, WITHOUT that of a run with dataset.drop_class. Three models
are attacked on the same test images, those of the other classes:

  all classes   the deployed model of RUN
  masked        the same with the logit of the class at −∞, also for the attack
  retrained     the deployed model of WITHOUT

An example that is misclassified clean is not attacked, and counts by its clean prediction. Tables are in
Markdown, shares in percent. --output writes all numbers as JSON, shares as fractions.
"""

import math
import pathlib
import sys
from typing import Any

import numpy as np
from scipy import stats

from at_jax import devices, environment, errors
from at_jax.analysis import class_statistics, markdown, mcnemar, runs
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, metrics
from at_jax.models import logit_adjustment

MODELS = 'all classes', 'masked', 'retrained'


def masked(model: runs.Model, label: int) -> runs.Model:
  """Takes a class from what a model can predict.

  Args:
    model: a model without a logit adjustment.
    label: the class.

  Returns:
    The model with the deployed logit of the class at −∞.
  """
  adjustment = logit_adjustment.identity(len(model.class_names))
  adjustment['bias'][label] = -np.inf
  return model._replace(variables=model.variables | {logit_adjustment.COLLECTION: adjustment})


def predictions(model: runs.Model, spec: attack_names.Spec) -> dict[str, np.ndarray]:
  """Finds the classes that a model predicts clean and under an attack.

  Args:
    model: the model, with its examples.
    spec: the attack.

  Returns:
    `{'clean': i32[N], 'attacked': i32[N]}`, −1 where logits decide nothing.
  """
  clean = runs.clean(model)
  correct = clean == model.split.labels
  return {'clean': clean, 'attacked': np.where(correct, runs.attack(model, spec, correct).predictions, clean)}


def compare(labels: np.ndarray, found: dict[str, dict[str, np.ndarray]], class_names: tuple[str, ...],
            label: int) -> dict[str, Any]:
  """Compares the models class by class.

  Args:
    labels: i32[N], of the classes that remain, in the numbering of all classes.
    found: `{model of MODELS: result of predictions}`, in the same numbering.
    class_names: C names.
    label: the class that is left out.

  Returns:
    A JSON object:
      'left_out': name of the class that is left out.
      'classes': for each other class, and for 'all', the number 'n' of examples; by model the accuracies
        'clean' and 'robust'; 'against' each other model McNemar's test of the retrained model's robust
        accuracy; and 'to_it', the share of the class left out in the mistakes of the model of all classes.
      'fooled': of the examples that the attack takes from their class to 'it', the class left out, or to
        'another' class in the model of all classes, the number and the share that is robust in the other
        models; with p of Fisher's exact test that both shares are equal.
      'correlation': rank correlation over classes of 'to_it' with the gain of robust accuracy, by model.
  """
  robust = {name: each['attacked'] == labels for name, each in found.items()}
  clean = {name: each['clean'] == labels for name, each in found.items()}
  attacked = found[MODELS[0]]['attacked']

  def row(among: np.ndarray) -> dict[str, Any]:
    wrong = among & ~robust[MODELS[0]]
    return {'n': int(among.sum()),
            'clean': {name: float(each[among].mean()) for name, each in clean.items()},
            'robust': {name: float(each[among].mean()) for name, each in robust.items()},
            'against': {name: mcnemar.mcnemar(robust[MODELS[2]][among], robust[name][among])._asdict()
                        for name in MODELS[:2]},
            'to_it': float((attacked[wrong] == label).mean()) if wrong.any() else math.nan}

  present = [c for c in range(len(class_names)) if (labels == c).any()]
  classes = {class_names[c]: row(labels == c) for c in present}
  to_it = np.array([each['to_it'] for each in classes.values()])
  gain = lambda name: np.array([each['robust'][name] - each['robust'][MODELS[0]]
                                for each in classes.values()])
  fooled = clean[MODELS[0]] & ~robust[MODELS[0]]
  return {'left_out': class_names[label], 'classes': classes | {'all': row(np.ones(len(labels), bool))},
          'fooled': {name: _fooled(robust[name], fooled & (attacked == label), fooled & (attacked != label))
                     for name in MODELS[1:]},
          'correlation': {name: class_statistics.rank_correlation(to_it, gain(name))._asdict()
                          for name in MODELS[1:]}}


def _fooled(robust: np.ndarray, to_it: np.ndarray, to_another: np.ndarray) -> dict[str, Any]:
  counts = [[int((among & verdict).sum()) for verdict in (robust, ~robust)] for among in (to_it, to_another)]
  shares = {name: {'n': sum(count), 'robust': count[0] / sum(count) if sum(count) else math.nan}
            for name, count in zip(('it', 'another'), counts, strict=True)}
  return shares | {'p': float(stats.fisher_exact(counts).pvalue)}


def report(found: dict[str, Any], title: str) -> str:
  """Formats the comparison.

  Args:
    found: result of `compare`.
    title: data set, threat model and attack.

  Returns:
    Tables in Markdown.
  """
  it, percent = found['left_out'], markdown.percent
  head = ['class', 'n', *(f'clean, {name}' for name in MODELS), *(f'robust, {name}' for name in MODELS),
          *(f'retrained against {name}' for name in MODELS[:2]), f'mistakes that are {it}']
  rows = [[name, str(each['n']), *(percent(each['clean'][model]) for model in MODELS),
           *(percent(each['robust'][model]) for model in MODELS),
           *('+{gained} −{lost}, p = {p:.1g}'.format(**each['against'][model]) for model in MODELS[:2]),
           percent(each['to_it'])] for name, each in found['classes'].items()]
  fooled = [[name, *(cell for to in ('it', 'another') for cell in (
      str(each[to]['n']), percent(each[to]['robust']))), markdown.p_value(each['p'])]
      for name, each in found['fooled'].items()]
  fooled_head = ['model', f'fooled to {it}', 'robust here', 'fooled to another class', 'robust here ', 'p']
  correlation = ', '.join(f'{name} ρ = {each["rho"]:+.2f}, p = {each["p"]:.1g}'
                          for name, each in found['correlation'].items())
  return '\n\n'.join([
      f'## {title}, without {it}', markdown.table(head, rows),
      'Examples that the attack fools in the model of all classes:', markdown.table(fooled_head, fooled),
      f'Rank correlation over classes of the share of mistakes that are {it} with the gain of robust '
      f'accuracy: {correlation}.'])


def _models(run: pathlib.Path, without: pathlib.Path, n: int) -> tuple[dict[str, runs.Model], int]:
  """The three models on the same examples, that of WITHOUT with its own labels, and the class left out."""
  data: dict[str, Any] = {}
  every = runs.trained(run, data, test=n or sys.maxsize)  # 0 would take those of the evaluation
  devices.check_batch_size('config.evaluate.batch_size', every.settings['batch_size'])
  rest = runs.trained(without, data, test=1)
  dataset, label = every.parts.config.dataset, rest.parts.config.dataset.drop_class
  if dataset.drop_class >= 0:
    raise errors.UserError('RUN', str(run), 'name a run of all classes, without dataset.drop_class')
  if label < 0 or rest.parts.config.dataset.name != dataset.name:
    raise errors.UserError('WITHOUT', str(without), 'name a run with dataset.drop_class on the data of RUN')
  if logit_adjustment.COLLECTION in every.variables:
    raise errors.UserError('RUN', str(run), "its logits are adjusted: use a run with inference.kind = 'none'")
  images, labels = every.split
  kept = labels != label
  every = every._replace(split=pipeline.Split(images[kept], labels[kept]))
  shifted = labels[kept] - (labels[kept] > label).astype(labels.dtype)
  rest = rest._replace(split=pipeline.Split(images[kept], shifted), settings=every.settings)
  return dict(zip(MODELS, (every, masked(every, label), rest), strict=True)), label


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and writes all numbers to a file if there is one.

  Args:
    arguments: the command line without `python -m at_jax.analysis without_class`; None for that of this
      process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis without_class', __doc__)
  parser.add_argument('run', metavar='RUN')
  parser.add_argument('without', metavar='WITHOUT')
  parser.add_argument('--n', type=int, default=0, help='number of test images of all classes (0, all)')
  parser.add_argument('--attack', default='pgd20', help='PGD on the deployed logits (pgd20)')
  parser.add_argument('--output', metavar='FILE', help='a JSON file for all numbers')
  asked = parser.parse_args(arguments)
  try:
    output, spec = runs.output_path('--output', asked.output), runs.pgd(asked.attack)
    if spec is None:
      raise errors.UserError('--attack', asked.attack, 'name an attack')
    if asked.n < 0:
      raise errors.UserError('--n', asked.n, 'use a whole number of at least 0')
    models, label = _models(environment.local_path('RUN', asked.run),
                            environment.local_path('WITHOUT', asked.without), asked.n)
    found = {}
    for name, model in models.items():
      environment.log(f'{name}: {len(model.split.labels)} examples')
      found[name] = predictions(model, spec)
    for kind, each in found['retrained'].items():
      found['retrained'][kind] = each + (each >= label)
    every = models['all classes']
    compared = compare(every.split.labels, found, every.class_names, label)
    c = every.settings
    title = (f'{every.parts.config.dataset.name}, {metrics.norm_name(c["norm"])}, {c["epsilon_255"]:g}/255, '
             f'{asked.attack}')
    if output:
      runs.write(output, {'title': title, **compared})
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  print(environment.printable(report(compared, title)))
  return 0

"""Evaluated runs as analyses read them: files, models, attacks that are run again, and what is written."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from at_jax import devices, environment, errors
from at_jax.analysis import evaluations
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, robustness
from at_jax.methods import inner_attacks
from at_jax.training import records, restore, setup


class Evaluation(NamedTuple):
  """The files of an evaluated run.

  Attributes:
    path: its folder.
    results: content of results.json.
    threat: data set, norm and radius.
    labels: i32[N].
    verdicts: `{checkpoint: {name: bool[N]}}`, with the names of `robustness.Report.verdicts`.
  """
  path: pathlib.Path
  results: dict[str, Any]
  threat: str
  labels: np.ndarray
  verdicts: dict[str, dict[str, np.ndarray]]

  def robust(self, checkpoint: str = 'best') -> dict[str, np.ndarray]:
    """Verdicts on the deployed logits, by the attacks and sweeps that the evaluation names: bool[N]."""
    found = self.verdicts[checkpoint]
    return {name: found[f'robust/{name}'] for name in self.results['config']['evaluate']['attacks']
            if f'robust/{name}' in found}


def read(path: pathlib.Path) -> Evaluation:
  """Reads the files of an evaluated run.

  Args:
    path: its folder.

  Returns:
    An `Evaluation`.

  Raises:
    errors.UserError: if the folder has no results, or they are damaged.
  """
  if not all((path / name).exists() for name in ('results.json', 'verdicts.npz')):
    raise errors.UserError('RUN', str(path), 'there are no results.json and verdicts.npz in it: name the '
                           'folder of a run that was evaluated')
  results, stored = evaluations.read_results(path), evaluations.read_verdicts(path)
  verdicts: dict[str, dict[str, np.ndarray]] = {}
  for key, each in stored.items():
    checkpoint, _, name = key.partition('/')
    if name:  # not the labels
      verdicts.setdefault(checkpoint, {})[name] = each
  try:
    threat = f'{data_name(results["config"]["dataset"])}, {evaluations.threat(results)}'
  except (KeyError, TypeError) as error:
    raise evaluations.unreadable(path, 'results.json', error) from error
  return Evaluation(path, results, threat, stored['labels'], verdicts)


def data_name(dataset: Mapping[str, Any]) -> str:
  """Names a data set, and the class that is left out of it.

  Args:
    dataset: the group 'dataset' of a configuration; older runs have no 'drop_class'.

  Returns:
    The name.

  Example:
    >>> data_name({'name': 'cifar10', 'drop_class': 3})
    'cifar10 without class 3'
  """
  left_out = dataset.get('drop_class', -1)
  return dataset['name'] + (f' without class {left_out}' if left_out >= 0 else '')


def names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Names runs in tables by their folders, and by the whole path where two folders have one name.

  Args:
    paths: the folders.

  Returns:
    A name for each.

  Example:
    >>> names([pathlib.Path('a/x-0'), pathlib.Path('b/x-0'), pathlib.Path('b/y-0')])
    ['a/x-0', 'b/x-0', 'y-0']
  """
  short = [path.name for path in paths]
  return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def method(name: str) -> str:
  """The name of a run without its seed.

  Args:
    name: METHOD-SEED, or another name, which is returned as it is.

  Returns:
    METHOD.

  Example:
    >>> method('pgd_at_cifar10-l2-0')
    'pgd_at_cifar10-l2'
  """
  return evaluations.split_name(name)[0]


def pgd(attack: str) -> attack_names.Spec | None:
  """Reads the argument --attack.

  Args:
    attack: name of a PGD attack on the deployed logits, or 'none'.

  Returns:
    The attack; None for 'none'.

  Raises:
    errors.UserError: for another name.

  Example:
    >>> pgd('pgd20').num_steps, pgd('none')
    (20, None)
  """
  spec = None if attack == 'none' else attack_names.parse(attack)
  if attack != 'none' and (not isinstance(spec, attack_names.Spec) or spec.knows_dummies):
    raise errors.UserError('--attack', attack, 'use PGD on the deployed logits, such as pgd20, margin100x5 '
                           'or scale5_pgd20, or none')
  return spec


class Model(NamedTuple):
  """A run's deployed model and the examples on which it is attacked.

  Attributes:
    parts: the run.
    variables: the variables of its network.
    split: N examples.
    class_names: C names.
    settings: settings of the evaluation, as `config.evaluate`.
  """
  parts: setup.Run
  variables: Any
  split: pipeline.Split
  class_names: tuple[str, ...]
  settings: dict[str, Any]


def load(found: Evaluation, data: dict[str, Any], *, train: int = 0,
         hint: str = '. An attack needs the data; --attack=none does not') -> Model:
  """Reads the best checkpoint of a run, and the examples of its evaluation or training examples.

  Args:
    found: result of `read`.
    data: the data that other runs have read, to which those of this run are added.
    train: 0 for the examples of the evaluation, otherwise the number of training examples.
    hint: how the analysis can do without test examples, for the error message.

  Returns:
    A `Model`.

  Raises:
    errors.UserError: if model or data cannot be read, or the data are not those of the evaluation.
  """
  model = trained(found.path, data, train=train, hint='' if train else hint)
  devices.check_batch_size('config.evaluate.batch_size', model.settings['batch_size'])
  if not train and not np.array_equal(model.split.labels, found.labels):
    raise errors.UserError('RUN', str(found.path), 'the test examples are not those of its verdicts: use the '
                           'data set that it was evaluated on, or evaluate it again with --mode=evaluate')
  return model


def trained(path: pathlib.Path, data: dict[str, Any], *, train: int = 0, test: int = 0,
            hint: str = '') -> Model:
  """Reads the best checkpoint of a run that need not be evaluated, and test or training examples.

  Args:
    path: the folder of the run.
    data: as in `load`.
    train: as in `load`.
    test: the number of test examples; 0 for those of the evaluation.
    hint: as in `load`.

  Returns:
    A `Model`.

  Raises:
    errors.UserError: if model or data cannot be read.
  """
  parts, model = restore.load(path)
  settings = evaluation_settings(path, parts.config)
  split, class_names = _examples(parts, test or settings['num_examples'], train, data, hint)
  variables, = model.args
  return Model(parts, variables, split, class_names, settings)


def at_checkpoint(model: Model, path: pathlib.Path, checkpoint: str | int) -> Model:
  """Reads another checkpoint of a model's run, which shares the compiled programs of the model.

  Args:
    model: result of `load`.
    path: the folder of the run.
    checkpoint: as in `restore.load`.

  Returns:
    The `Model` with the variables of this checkpoint.

  Raises:
    errors.UserError: if the checkpoint is missing or damaged.
  """
  variables, = restore.deployed(model.parts, path, checkpoint).args
  return model._replace(variables=variables)


def evaluation_settings(path: pathlib.Path, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the settings of a run's last evaluation, which may differ from those in its config.json.

  Args:
    path: the folder of the run.
    config: its complete configuration, from which come fields that results.json lacks.

  Returns:
    The group 'evaluate'.
  """
  results = records.read_json(path / 'results.json') or {'config': {'evaluate': {}}}
  return config.evaluate.to_dict() | results['config']['evaluate']


def _examples(parts: setup.Run, num_examples: int, train: int, data: dict[str, Any], hint: str
              ) -> tuple[pipeline.Split, tuple[str, ...]]:
  """The examples that are attacked and the names of the classes; runs with the same data read them once."""
  key = json.dumps([parts.config.dataset.to_dict(), num_examples, train], sort_keys=True)
  if key not in data:
    try:
      whole = parts.dataset.train if train else parts.dataset.test
      data[key] = pipeline.subset(whole, train or num_examples)[0], parts.dataset.class_names
    except errors.UserError as error:
      raise errors.UserError(error.field, error.value, f'{error.remedy}{hint}') from error
  return data[key]


class Attacked(NamedTuple):
  """Result of `attack`.

  Attributes:
    predictions: i32[N]; that of a fooled example is of the first restart that fools it. −1 for logits of NaN
      or +∞, and for the examples that are not attacked.
    x: f32[M, ...], the attacked points of the M examples that are attacked, at which they have these
      predictions; None unless asked for.
  """
  predictions: np.ndarray
  x: np.ndarray | None = None


def attack(model: Model, spec: attack_names.Spec, among: np.ndarray, *, points: bool = False) -> Attacked:
  """Attacks examples of a model as its evaluation does, with the same keys.

  Args:
    model: result of `load`.
    spec: the attack.
    among: bool[N], the examples to attack.
    points: return the attacked points too.

  Returns:
    An `Attacked`.
  """
  c, labels = model.settings, model.split.labels
  run = attack_names.attack(spec, norm=c['norm'], epsilon=c['epsilon_255'] / 255,
                            step_size=c['step_size_255'] / 255)
  attacked = np.flatnonzero(among)
  kept = np.empty((len(attacked), *model.split.images.shape[1:]), np.float32) if points else None

  def keep(index: np.ndarray, x: jax.Array, logits: np.ndarray) -> None:
    if kept is not None:
      kept[np.searchsorted(attacked, index)] = np.asarray(x)[:len(index)]

  found, robust = np.full(len(labels), -1, np.int32), among
  for restart in range(spec.restarts):
    key = jax.random.fold_in(model.parts.keys['evaluate'], restart)
    found = np.where(robust, _predictions(model, key, robust, run, keep), found)
    robust = robust & (found == labels)
  return Attacked(found, kept)


def clean(model: Model) -> np.ndarray:
  """Finds the class that a model predicts for each example without an attack.

  Args:
    model: result of `load`.

  Returns:
    i32[N], −1 for logits of NaN or +∞.
  """
  everything = np.ones(len(model.split.labels), bool)
  return _predictions(model, model.parts.keys['evaluate'], everything, None)


def clean_logits(model: Model, among: np.ndarray) -> np.ndarray:
  """Computes the deployed logits of examples without an attack.

  Args:
    model: result of `load`.
    among: bool[N], the M examples.

  Returns:
    f32[M, C].
  """
  logits = []
  _predictions(model, model.parts.keys['evaluate'], among, None,
               lambda index, x, z: logits.append(z))
  return np.concatenate(logits)


def _predictions(model: Model, key: jax.Array, among: np.ndarray, attack: inner_attacks.Attack | None,
                 observe: robustness.Observer = lambda index, x, logits: None) -> np.ndarray:
  network = model.parts.network
  return robustness.predictions(
      network, model.variables, model.split, key, attack=attack, attacked_logits=network.deployed,
      among=among, batch_size=model.settings['batch_size'], observe=observe)


def output_path(field: str, path: str | None) -> pathlib.Path | None:
  """Checks where an analysis is to write a file, before it computes.

  Args:
    field: name of the argument.
    path: the file, or None.

  Returns:
    Its path; None for None.

  Raises:
    errors.UserError: if its folder does not exist.
  """
  found = environment.local_path(field, path) if path else None
  if found and not found.parent.is_dir():
    raise errors.UserError(field, path, 'there is no such folder: make it first')
  return found


def write(path: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes the numbers of an analysis as JSON, with the versions of the packages; NaN becomes null.

  Args:
    path: the file.
    found: the numbers.

  Raises:
    errors.UserError: if the folder is full or not writable.
  """
  records.write_json(path, _without_nan({'versions': records.versions(), **found}))


def _without_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _without_nan(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_without_nan(each) for each in value]
  return None if isinstance(value, float) and math.isnan(value) else value

"""Fine-tuning around the step: its first state, the end of an epoch, and the report on its curve."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections

from at_jax import environment, errors
from at_jax.config import fields
from at_jax.methods import cfa, finetune
from at_jax.models import dual_batchnorm, importers
from at_jax.training import epoch_plan, model_selection, networks, records, restore, setup
from at_jax.training import step as step_lib

# Fields that a run must share with its source, besides those of the model other than dtype.
_SHARED = ('dataset.name', 'dataset.num_classes', 'dataset.drop_class', 'dataset.validation_size',
           'dummy.enabled')


class Point(NamedTuple):
  """Validation accuracies of the model after a step.

  Attributes:
    step: number of steps taken.
    clean: clean accuracy.
    robust: accuracy under the validation attack, at the full radius.
  """
  step: int
  clean: float
  robust: float


def start_from(run: setup.Run, state: step_lib.TrainState) -> step_lib.TrainState:
  """Makes the state of a new run that starts from `config.finetune.source`.

  The source is the evaluated model of a work directory, or a file with a PyTorch state dict. A run needs it
  until its first checkpoint, which holds the teacher.

  Args:
    run: the run.
    state: the state of `setup.init_state`.

  Returns:
    The state with the parameters and BatchNorm statistics of the source, at step 0.

  Raises:
    errors.UserError: if the source cannot be read or does not fit.
  """
  c = run.config
  variables = _double(c, _imported(run) if fields.is_state_dict(c.finetune.source) else _of_run(run))
  return state._replace(**variables, opt_state=run.optimizer.init(variables['params']))


def _imported(run: setup.Run) -> dict[str, Any]:
  """The variables of a file with a PyTorch state dict, on the host."""
  c, field = run.config, 'config.finetune.source'
  path = environment.local_path(field, c.finetune.source)
  try:
    found = importers.from_torch(networks.module(c), path, run.dataset.image_shape)
  except errors.UserError as error:
    if error.field.startswith('model.'):  # an argument of the network, which the configuration can change
      raise errors.UserError(f'config.{error.field}', error.value, error.remedy) from error
    reason = f'it does not fit config.model: {error}' if error.field == 'model' else error.remedy
    raise errors.UserError(field, c.finetune.source, reason) from error
  return {'batch_stats': {}} | jax.device_get(found)


def _of_run(run: setup.Run) -> dict[str, Any]:
  """The evaluated variables of another run, with one BatchNorm."""
  f = run.config.finetune
  before = _source_config(run)
  other = setup.assemble(before, run.dataset)
  found = restore.variables(other, f.source, f.checkpoint)
  if found is None:
    raise errors.UserError('config.finetune.source', f.source,
                           'none of its checkpoints can be read: name the work directory of a trained run')
  return _single(before, found)


def _source_config(run: setup.Run) -> ml_collections.ConfigDict:
  """The configuration of the source, after checking that it fits."""
  c = run.config
  source = c.finetune.source
  path = environment.local_path('config.finetune.source', source)
  before = restore.read_config(path)
  if before is None:
    raise errors.UserError('config.finetune.source', source, 'there is no config.json in it: name '
                           'the work directory of a run')
  digest = (restore.stored_data_info(path) or {}).get('digest')
  if digest and digest == run.dataset.digest:  # of a .npz file, which may have been moved since
    before.dataset.name = c.dataset.name
  old, now = (fields.flatten(each.to_dict()) for each in (before, c))
  names = {name for name in old.keys() | now.keys() if name.startswith('model.')}
  for name in (*_SHARED, *sorted(names - {'model.dtype'})):
    if old.get(name) != now.get(name):
      raise errors.UserError('config.finetune.source', source, f'its config.{name} is '
                             f'{old.get(name)!r} and here it is {now.get(name)!r}: use that of the source')
  return before


def _is_dual(c: ml_collections.ConfigDict) -> bool:
  return c.loss == 'finetune' and c.finetune.batch_norm == 'dual'


def _single(c: ml_collections.ConfigDict, variables: dict[str, Any]) -> dict[str, Any]:
  """The deployed variables of a run, with one BatchNorm."""
  return dual_batchnorm.select(variables, c.finetune.deployed) if _is_dual(c) else variables


def _double(c: ml_collections.ConfigDict, single: dict[str, Any]) -> dict[str, Any]:
  """The variables of a run, with two BatchNorms if it has dual BatchNorm."""
  return dual_batchnorm.duplicate(single) if _is_dual(c) else single


def begin(run: setup.Run, state: step_lib.TrainState,
          eval_variables: Callable[[step_lib.TrainState], dict[str, Any]],
          validate: Callable[[dict[str, Any]], tuple[float, float]]) -> step_lib.TrainState:
  """Makes the first state of fine-tuning: the model so far, with itself as teacher.

  The state of the optimizer is new, because its schedule starts here and the momentum of clean training
  belongs to another loss. If weights are averaged, the model is the average. With dual BatchNorm both
  start as copies of the trained one.

  Args:
    run: the run.
    state: the state after the clean epochs, on the host.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.
    validate: from variables to clean and robust accuracy on the validation split.

  Returns:
    The state, on the host.

  Reference: after Hou et al., Adversarial Fine-tune with Dynamically Regulated Adversary, 2022; details
  are ours.
  """
  c = run.config
  at_start = {'params': state.params, 'batch_stats': state.batch_stats}
  variables = _double(c, _single(c, eval_variables(state) if state.step else at_start))
  tuning = setup.init_tuning(run, variables, validate(variables))
  # The counts so far are of clean examples.
  counts = state.class_counts and cfa.zero_counts(len(state.class_counts.seen))
  return jax.device_get(state._replace(
      **variables, opt_state=run.tuner.init(variables['params']), tuning=tuning,
      class_counts=counts))


def after_epoch(c: ml_collections.ConfigDict, tuning: finetune.Tuning, clean: float,
                robust: float) -> tuple[finetune.Tuning, float, dict[str, float]]:
  """Scores the model at the end of an epoch and moves the controller.

  Args:
    c: the configuration.
    tuning: the state of fine-tuning, on the host.
    clean: clean accuracy on the validation split.
    robust: accuracy there under the validation attack.

  Returns:
    The state for the next epoch, the `score` of the model, and numbers to log.
  """
  f, start = c.finetune, float(tuning.start_clean)
  point = score(clean, robust, start, f.tolerance)
  if f.regulator == 'controller':
    strength = finetune.control(tuning.strength, clean, start, tolerance=f.tolerance,
                                 delta=f.delta)
    return tuning._replace(strength=strength), point, {'strength': float(tuning.strength)}
  numbers = {'mean_radius': float(tuning.radius.mean())} if f.regulator == 'radius' else {}
  return tuning, point, numbers


def score(clean: float, robust: float, start_clean: float, tolerance: float) -> float:
  """Scores a model; the operating point has the highest.

  1 + robust if the clean accuracy is within the tolerance, else clean − start_clean, which is below 0.
  The maximum is the most robust model within the tolerance, or else the one with the smallest drop.

  Args:
    clean: clean accuracy, a fraction.
    robust: robust accuracy, a fraction.
    start_clean: clean accuracy of the teacher.
    tolerance: clean accuracy that may be lost, a fraction.

  Returns:
    The score.

  Example:
    >>> f'{score(.90, .30, .905, .005):.3f} {score(.88, .40, .905, .005):.3f}'
    '1.300 -0.025'
  """
  if finetune.keeps(clean, start_clean, tolerance):
    return 1 + robust
  return clean - start_clean


def operating_point(curve: Sequence[Point], start_clean: float, tolerance: float) -> Point:
  """Finds the point with the highest `score`, the earliest of equals.

  Args:
    curve: one point per epoch.
    start_clean: clean accuracy of the teacher.
    tolerance: clean accuracy that may be lost, a fraction.

  Returns:
    The point.

  Example:
    >>> curve = [Point(1, .90, .10), Point(2, .896, .20), Point(3, .85, .40)]
    >>> operating_point(curve, .90, .005).step
    2
  """
  return max(curve, key=lambda p: (score(p.clean, p.robust, start_clean, tolerance), -p.step))


def report(run: setup.Run, workdir: pathlib.Path, clean: float, robust: float) -> dict[str, Any]:
  """Makes the summary of fine-tuning for results.json.

  Args:
    run: the run.
    workdir: the work directory, with metrics.jsonl.
    clean: the teacher's clean accuracy on the validation split.
    robust: its accuracy there under the validation attack.

  Returns:
    'start' (the teacher), 'curve' (accuracies per epoch and their changes, in fractions), 'chosen' (the
    step of the operating point), 'within_tolerance' and 'tolerance'; empty without a curve.
  """
  f, per_epoch = run.config.finetune, run.steps_per_epoch
  validations = {line['step']: line for line in records.read_metrics(workdir)
                 if 'validation_clean' in line and line['step'] > f.start_epoch * per_epoch}
  if not validations:
    return {}
  curve = {step: Point(step, line['validation_clean'], line['validation_robust'])
           for step, line in sorted(validations.items())}
  # Only checkpoints that may become the best, as in training.
  scored = [point for step, point in curve.items()
            if epoch_plan.method_started(run.config, step // per_epoch - 1)
            and not model_selection.has_overfitted(
                validations[step].get('validation_single_step', 0.), point.robust)]
  chosen = operating_point(scored, clean, f.tolerance) if scored else [*curve.values()][-1]
  return {
      'start': {'step': f.start_epoch * per_epoch, 'clean': clean, 'robust': robust},
      'curve': [point._asdict() | {'epoch': point.step / per_epoch,
                                   'clean_change': point.clean - clean,
                                   'robust_gain': point.robust - robust} for point in curve.values()],
      'chosen': chosen.step, 'tolerance': f.tolerance,
      'within_tolerance': finetune.keeps(chosen.clean, clean, f.tolerance),
  }


def summary(report: dict[str, Any]) -> str:
  """Writes one line about the operating point, for the end of a run.

  Args:
    report: result of `report`.

  Returns:
    The line.

  Example:
    >>> point = {'step': 2, 'epoch': 1., 'clean_change': -.004, 'robust_gain': .1}
    >>> summary({'curve': [point], 'chosen': 2, 'tolerance': .005, 'within_tolerance': True})[:34]
    'epoch 1, clean -0.4, robust +10.0 '
  """
  chosen, = (point for point in report['curve'] if point['step'] == report['chosen'])
  tolerance = f"{100 * report['tolerance']:.2g} points of clean accuracy"
  rule = (f'most robust epoch within {tolerance}' if report['within_tolerance'] else
          f'smallest drop, no epoch is within {tolerance}')
  return (f"epoch {chosen['epoch']:.4g}, clean {100 * chosen['clean_change']:+.1f}, robust "
          f"{100 * chosen['robust_gain']:+.1f} points on the validation split ({rule})")

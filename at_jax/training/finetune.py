"""Fine-tuning around the step: where it begins, what follows an epoch, and the curve at the end."""

from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections

from at_jax import errors
from at_jax.config import fields
from at_jax.methods import cfa, finetune
from at_jax.models import dual_batchnorm
from at_jax.training import epoch_plan, restore, setup
from at_jax.training import step as step_lib

# What a run and the one it begins from must have in common; of the model all but its dtype.
_SHARED = ('dataset.name', 'dataset.num_classes', 'dataset.validation_size', 'dummy.enabled')


class Point(NamedTuple):
  """A model on the way, measured on the validation split.

  Attributes:
    step: after which step.
    clean: its clean accuracy.
    robust: its accuracy under the validation attack, at the full radius.
  """
  step: int
  clean: float
  robust: float


def initial_state(run: setup.Run) -> step_lib.TrainState:
  """The state of a new run: `run.init_state`, or the model of the run that it begins from.

  Args:
    run: the run.

  Returns:
    A `step.TrainState` at step 0. Its model gives the outputs of the other run's evaluated one.

  Raises:
    errors.UserError: that run cannot be read, or does not fit.

  Source: ours.
  """
  state, c = setup.init_state(run), run.config
  if c.loss != 'finetune' or not c.finetune.source:
    return state
  before = _source_config(c)
  other = setup.build(before, dataset=run.dataset)
  found = restore.variables(other, pathlib.Path(c.finetune.source), c.finetune.checkpoint)
  if found is None:
    raise errors.UserError('config.finetune.source', c.finetune.source,
                           'none of its checkpoints can be read: name the folder of a trained run')
  variables = _as(c, _plain(before, found))
  return state._replace(**variables, opt_state=run.optimizer.init(variables['params']))


def _source_config(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The configuration of the run to begin from, if it fits."""
  source = c.finetune.source
  before = restore.read_config(pathlib.Path(source))
  if before is None:
    raise errors.UserError('config.finetune.source', source, 'there is no config.json in it: name '
                           'the work directory of a run')
  old, now = (fields.flatten(each.to_dict()) for each in (before, c))
  names = {name for name in old.keys() | now.keys() if name.startswith('model.')}
  for name in (*_SHARED, *sorted(names - {'model.dtype'})):
    if old.get(name) != now.get(name):
      raise errors.UserError('config.finetune.source', source, f'its config.{name} is '
                             f'{old.get(name)!r} and here it is {now.get(name)!r}: set it to that')
  return before


def _is_dual(c: ml_collections.ConfigDict) -> bool:
  return c.loss == 'finetune' and c.finetune.batch_norm == 'dual'


def _plain(c: ml_collections.ConfigDict, variables: dict[str, Any]) -> dict[str, Any]:
  """The deployed model of a run as one with one BatchNorm."""
  return dual_batchnorm.single(variables, c.finetune.deployed) if _is_dual(c) else variables


def _as(c: ml_collections.ConfigDict, plain: dict[str, Any]) -> dict[str, Any]:
  return dual_batchnorm.double(plain) if _is_dual(c) else plain


def begins(run: setup.Run, step: int) -> bool:
  """Whether fine-tuning begins after this many steps.

  Args:
    run: the run.
    step: steps taken.

  Returns:
    False also for a run that does not fine-tune.

  Source: ours.
  """
  c = run.config
  return c.loss == 'finetune' and step == c.finetune.start_epoch * run.steps_per_epoch


def begin(run: setup.Run, state: step_lib.TrainState,
          settle: Callable[[step_lib.TrainState], dict[str, Any]],
          validate: Callable[[dict[str, Any]], tuple[float, float]]) -> step_lib.TrainState:
  """The state with which fine-tuning begins: the model so far, as its own teacher.

  The optimizer's state is new: its schedule counts from here, and the momentum of clean training at
  its last learning rate has nothing to say about another loss at another one. Where an average is
  kept, the model is the average; with two BatchNorms both begin as the one that was trained.

  Args:
    run: the run.
    state: after the clean epochs, on the host.
    settle: of `settle.settler`.
    validate: from variables to the clean and the robust accuracy on the validation split.

  Returns:
    The state, on the host.

  Source: ours, in the spirit of Hou et al., Adversarial Fine-tune with Dynamically Regulated
  Adversary, 2022.
  """
  c = run.config
  at_start = {'params': state.params, 'batch_stats': state.batch_stats}
  variables = _as(c, _plain(c, settle(state) if state.step else at_start))
  tuning = setup.init_tuning(run, variables, validate(variables))
  # What was counted are right answers to clean examples.
  counts = state.class_counts and cfa.no_counts(len(state.class_counts.seen))
  return jax.device_get(state._replace(
      **variables, opt_state=run.tuner.init(variables['params']), tuning=tuning,
      class_counts=counts))


def after_epoch(c: ml_collections.ConfigDict, tuning: finetune.Tuning, clean: float,
                robust: float) -> tuple[finetune.Tuning, float, dict[str, float]]:
  """What an epoch's end decides.

  Args:
    c: the configuration.
    tuning: the state, on the host.
    clean: accuracy on the validation split.
    robust: the same under the validation attack.

  Returns:
    The state for the next epoch, the `score` of this one's model, and numbers to log.

  Source: ours.
  """
  f, start = c.finetune, float(tuning.start_clean)
  point = score(clean, robust, start, f.tolerance)
  if f.regulator == 'controller':
    strength = finetune.control(tuning.strength, clean, start, tolerance=f.tolerance,
                                 delta=f.delta)
    return tuning._replace(strength=strength), point, {'strength': float(tuning.strength)}
  told = {'mean_radius': float(tuning.radius.mean())} if f.regulator == 'radius' else {}
  return tuning, point, told


def score(clean: float, robust: float, start_clean: float, tolerance: float) -> float:
  """A number whose maximum is the operating point.

  1 + robust where the clean accuracy is kept to within the tolerance, else clean − start_clean,
  which is below 0: the most robust of those that keep it, and if none does the smallest drop.

  Args:
    clean: accuracy, a fraction.
    robust: accuracy, a fraction.
    start_clean: that of the teacher.
    tolerance: the drop that is allowed, a fraction.

  Returns:
    The number.

  Example:
    >>> f'{score(.90, .30, .905, .005):.3f} {score(.88, .40, .905, .005):.3f}'
    '1.300 -0.025'

  Source: ours.
  """
  if finetune.keeps(clean, start_clean, tolerance):
    return 1 + robust
  return clean - start_clean


def operating_point(curve: Sequence[Point], start_clean: float, tolerance: float) -> Point:
  """The point of highest `score`, the earliest of several.

  Args:
    curve: one point an epoch.
    start_clean: the teacher's clean accuracy.
    tolerance: the drop that is allowed.

  Returns:
    The point.

  Example:
    >>> curve = [Point(1, .90, .10), Point(2, .896, .20), Point(3, .85, .40)]
    >>> operating_point(curve, .90, .005).step
    2

  Source: ours.
  """
  return max(curve, key=lambda p: (score(p.clean, p.robust, start_clean, tolerance), -p.step))


def report(run: setup.Run, workdir: pathlib.Path, tuning: finetune.Tuning) -> dict[str, Any]:
  """What results.json says of fine-tuning.

  Args:
    run: the run.
    workdir: where its metrics.jsonl is.
    tuning: of its last state.

  Returns:
    'start' (the teacher), 'curve' (each epoch's accuracies, what was kept and what was gained, in
    fractions), 'chosen' (the step), 'within_tolerance' and 'tolerance'; empty if there is no curve.

  Source: ours.
  """
  f, per_epoch = run.config.finetune, run.steps_per_epoch
  clean, robust = float(tuning.start_clean), float(tuning.start_robust)
  curve = _curve(workdir, f.start_epoch * per_epoch)
  if not curve:
    return {}
  # Only what may be the best checkpoint, as training scores it.
  scored = [p for p in curve if epoch_plan.begun(run.config, p.step // per_epoch - 1)]
  chosen = operating_point(scored or curve, clean, f.tolerance)
  return {
      'start': {'step': f.start_epoch * per_epoch, 'clean': clean, 'robust': robust},
      'curve': [point._asdict() | {'epoch': point.step / per_epoch,
                                   'clean_change': point.clean - clean,
                                   'robust_gain': point.robust - robust} for point in curve],
      'chosen': chosen.step, 'tolerance': f.tolerance,
      'within_tolerance': finetune.keeps(chosen.clean, clean, f.tolerance),
  }


def _curve(workdir: pathlib.Path, start: int) -> list[Point]:
  path = workdir / 'metrics.jsonl'
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
  points = {line['step']: Point(line['step'], line['validation_clean'], line['validation_robust'])
            for line in lines if 'validation_clean' in line and line['step'] > start}
  return [points[step] for step in sorted(points)]


def table(told: dict[str, Any]) -> str:
  """The curve for a terminal: clean accuracy kept against robustness gained, in points.

  Args:
    told: as `report` returns it.

  Returns:
    Lines of text.

  Source: ours.
  """
  start = told['start']
  lines = ['fine-tuning on the validation split, in points; * is the operating point',
           '   epoch  clean (change)  robust  (gain)',
           f"   start  {100 * start['clean']:5.1f}           {100 * start['robust']:6.1f}"]
  for point in told['curve']:
    mark = '*' if point['step'] == told['chosen'] else ' '
    lines.append(f"{mark} {point['epoch']:6.4g}  {100 * point['clean']:5.1f} "
                 f"({100 * point['clean_change']:+5.1f})  {100 * point['robust']:6.1f}  "
                 f"({100 * point['robust_gain']:+.1f})")
  allowed = 100 * told['tolerance']
  lines.append(f'the most robust of those within {allowed:.2g} points of clean accuracy'
               if told['within_tolerance'] else
               f'none is within {allowed:.2g} points of clean accuracy: the smallest drop')
  return '\n'.join(lines)

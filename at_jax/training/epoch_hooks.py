"""What acts between epochs, as lists of functions that the training loop walks.

A hook at an epoch's start is `(run, state, epoch) -> state`. A hook at an epoch's end is
`(run, end, epoch) -> end`, where `end` also collects numbers to log and the score of the checkpoint.
Hooks get the state on the host. A new feature that acts between epochs is one more function here.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from at_jax.config import fields, validation
from at_jax.datasets import pipeline
from at_jax.training import epoch_plan, finetune, model_selection, pictures, records, setup
from at_jax.training import step as step_lib

EvalVariables = Callable[[step_lib.TrainState], dict[str, Any]]
_DRAWN = 8  # examples of a picture


class EpochEnd(NamedTuple):
  """State and results at the end of an epoch, passed from hook to hook.

  Attributes:
    state: the training state, on the host.
    numbers: logged as one line of metrics.jsonl.
    save: whether to save a checkpoint.
    score: the checkpoint with the highest score is the best; None for one that cannot be the best.
    info: JSON object stored with the checkpoint.
    note: shown with the progress.
    images: uint8[H, W, C] by name, for TensorBoard.
    variables: those that `validate` evaluated, else None.
  """
  state: step_lib.TrainState
  numbers: dict[str, Any] = {}
  save: bool = False
  score: float | None = None
  info: dict[str, Any] = {}
  note: str = ''
  images: dict[str, np.ndarray] = {}
  variables: Any = None


StartHook = Callable[[setup.Run, step_lib.TrainState, int], step_lib.TrainState]
EndHook = Callable[[setup.Run, EpochEnd, int], EpochEnd]


def start_from(run: setup.Run, state: step_lib.TrainState) -> step_lib.TrainState:
  """Returns the state of a new run at step 0: the initial one, or that of the run it starts from.

  Args:
    run: the run.
    state: the state of `setup.init_state`.

  Returns:
    The state, on the host or on the default device.

  Raises:
    errors.UserError: if the run to start from cannot be read or does not fit.
  """
  from_source = run.config.loss == 'finetune' and run.config.finetune.source
  return finetune.start_from(run, state) if from_source else state


def at_start(run: setup.Run, epoch: int, eval_variables: EvalVariables) -> list[StartHook]:
  """Lists the functions that act before the first step of an epoch.

  Args:
    run: the run.
    epoch: counted from 0.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.

  Returns:
    The functions, in order.
  """
  c = run.config
  begins = c.loss == 'finetune' and epoch == c.finetune.start_epoch
  return [functools.partial(begin_finetuning, eval_variables=eval_variables)] if begins else []


def at_end(run: setup.Run, epoch: int, eval_variables: EvalVariables) -> list[EndHook]:
  """Lists the functions that act after the last step of an epoch.

  Args:
    run: the run.
    epoch: counted from 0.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.

  Returns:
    The functions, in order.
  """
  c, hooks = run.config, []
  tunes = epoch_plan.name(c, epoch) == 'finetune'
  if c.optimizer.fair_decay and epoch >= c.optimizer.fair_start_epoch:
    hooks.append(functools.partial(average_if_fair, eval_variables=eval_variables))
  # Fine-tuning is validated every epoch: its report needs the curve, and its regulator the accuracy.
  due = (epoch + 1) % c.validate.every_epochs == 0 or epoch + 1 == c.epochs or tunes
  if due and len(run.dataset.validation.labels):
    hooks.append(functools.partial(validate, eval_variables=eval_variables))
    # While the radius grows a model is not robust yet, and one step of the whole radius is weaker than PGD.
    grown = not c.attack.ramp_epochs or epoch + 1 >= c.attack.ramp_epochs[1]
    if grown and validation.single_step(fields.flatten(c.to_dict())) and epoch_plan.method_started(c, epoch):
      hooks.append(watch_overfitting)
    if tunes:
      hooks.append(regulate)
  return hooks


def begin_finetuning(run: setup.Run, state: step_lib.TrainState, epoch: int, *,
                     eval_variables: EvalVariables) -> step_lib.TrainState:
  """Start hook: the model so far becomes the teacher of fine-tuning.

  Args:
    run: the run.
    state: the state after the clean epochs, on the host.
    epoch: counted from 0.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.

  Returns:
    The first state of fine-tuning, on the host.
  """
  del epoch
  return finetune.begin(run, state, eval_variables, functools.partial(model_selection.accuracies, run))


def average_if_fair(run: setup.Run, end: EpochEnd, epoch: int, *, eval_variables: EvalVariables) -> EpochEnd:
  """End hook of CFA: averages the epoch's parameters if their own worst class is robust enough.

  Args:
    run: the run.
    end: the end of the epoch so far.
    epoch: counted from 0.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.

  Returns:
    The end with the new average, and 'own_worst_class' and 'averaged' among its numbers.
  """
  del epoch
  average, worst = model_selection.average_if_fair(run, eval_variables, end.state)
  numbers = {'own_worst_class': worst, 'averaged': int(average.count)}
  return end._replace(state=end.state._replace(average=average), numbers=end.numbers | numbers)


def validate(run: setup.Run, end: EpochEnd, epoch: int, *, eval_variables: EvalVariables) -> EpochEnd:
  """End hook: attacks the validation split, scores the checkpoint and has it saved.

  Args:
    run: the run.
    end: the end of the epoch so far.
    epoch: counted from 0.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.

  Returns:
    The end with validation accuracies, a score, the robust accuracy as info of the checkpoint, and a picture
    of the first examples that were attacked.
  """
  images, variables = {}, eval_variables(end.state)

  def draw(index: np.ndarray, x_adv: Any, logits: np.ndarray) -> None:
    if not images:  # the first batch
      x_adv = np.asarray(x_adv)[:min(_DRAWN, len(index))]
      x = pipeline.in_unit(run.dataset.validation.images[index[:len(x_adv)]])
      images['validation_attacked'] = pictures.attacked(x, x_adv)

  found = model_selection.report(run, variables, observe=draw).accuracies()
  clean, robust, worst = (found[name] for name in ('clean', 'worst_case', 'worst_class'))
  numbers = {'validation_clean': clean, 'validation_robust': robust, 'validation_worst_class': worst,
             'validation_robust_by_class': dict(zip(_class_labels(run.dataset.class_names),
                                                    found['by_class']['worst_case'], strict=True))}
  # A model from before the method began, such as plain PGD-AT before DUCAT, must not become the best.
  score = model_selection.score(found, run.config.validate.choose_by)
  return end._replace(
      numbers=end.numbers | numbers, save=True, info=end.info | {'validation_robust': robust},
      variables=variables,
      score=score if epoch_plan.method_started(run.config, epoch) else None,
      note=f'validation clean {clean:.3f}, robust {robust:.3f}, worst class {worst:.3f}',
      images=end.images | images)


def _class_labels(names: Sequence[str]) -> list[str]:
  """Labels of the classes, such as '3_cat': in order, and different also for classes of equal names."""
  return [name if name == str(i) else f'{i}_{name}' for i, name in enumerate(names)]


def watch_overfitting(run: setup.Run, end: EpochEnd, epoch: int) -> EpochEnd:
  """End hook of single-step attacks, after `validate`: warns of catastrophic overfitting.

  The model then withstands one long step and not PGD. Both attack the same held-out examples, because the
  accuracy on training batches also rises with the usual overfitting.

  Args:
    run: the run.
    end: the end of the epoch, with the numbers and variables of `validate`.
    epoch: counted from 0.

  Returns:
    The end with 'validation_single_step' among its numbers; without a score if the model has overfitted, so
    that the best checkpoint is one from before.

  Reference: Wong et al., Fast Is Better Than Free: Revisiting Adversarial Training, 2020, for the phenomenon.
  """
  single, robust = model_selection.single_step_accuracy(run, end.variables), end.numbers['validation_robust']
  end = end._replace(numbers=end.numbers | {'validation_single_step': single})
  if not model_selection.has_overfitted(single, robust):
    return end
  records.warn(f'epoch {epoch}: catastrophic overfitting: {100 * single:.1f} % of the validation examples '
               f'are robust to one step, {100 * robust:.1f} % to PGD-{run.config.validate.num_steps}; '
               'this checkpoint cannot be the best. Use a smaller learning rate or fewer epochs, more noise '
               "(attack.kind = 'n_fgsm') or more steps")
  return end._replace(score=None)


def regulate(run: setup.Run, end: EpochEnd, epoch: int) -> EpochEnd:
  """End hook of fine-tuning, after `validate`: scores by the operating point and moves the attack.

  Args:
    run: the run.
    end: the end of the epoch, with the numbers of `validate`.
    epoch: counted from 0.

  Returns:
    The end with the state of the regulator for the next epoch, and the score of the operating point.
  """
  del epoch
  tuning, score, numbers = finetune.after_epoch(
      run.config, end.state.tuning, end.numbers['validation_clean'], end.numbers['validation_robust'])
  return end._replace(state=end.state._replace(tuning=tuning), numbers=end.numbers | numbers,
                      score=None if end.score is None else score)

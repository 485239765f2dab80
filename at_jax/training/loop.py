"""The loop: from a configuration and a work directory to a trained and evaluated model."""

from collections.abc import Iterator
import functools
import pathlib
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from at_jax import errors
from at_jax.config import fields, resume
from at_jax.datasets import pipeline
from at_jax.training import (
  batchnorm,
  checkpoints,
  epoch_plan,
  final_evaluation,
  model_selection,
  records,
  setup,
  sharding,
)
from at_jax.training import finetune as finetune_lib
from at_jax.training import step as step_lib


class Preempted(Exception):
  """The run was asked to stop, and has saved where it was."""


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path,
                       command: str) -> dict[str, Any]:
  """Trains, going on from the work directory's newest checkpoint, then evaluates best and last.

  On resume, in this order: the configuration is compared, then the newest sound checkpoint is read,
  then what was logged beyond it is dropped, and the order of examples goes on inside its epoch.

  Args:
    config: the configuration.
    workdir: the work directory.
    command: the command line, for results.json.

  Returns:
    What results.json holds.

  Raises:
    errors.UserError: the configuration, the data or the work directory do not allow it.
    Preempted: SIGTERM arrived; the state is saved.

  Source: ours.
  """
  run, store = _open(config, workdir)
  state, seconds = _begin(run, store)
  records.write_json(workdir / 'config.json', config.to_dict())
  seconds = _train(run, workdir, store, state, seconds)
  return final_evaluation.evaluate(run, workdir, store, command, seconds)


def evaluate_only(config: ml_collections.ConfigDict, workdir: pathlib.Path,
                  command: str) -> dict[str, Any]:
  """Evaluates the best and the last checkpoint of a work directory.

  Args:
    config: the configuration; it may differ from the run's in how to evaluate.
    workdir: the work directory of a run.
    command: the command line, for results.json.

  Returns:
    What results.json holds.

  Raises:
    errors.UserError: as `train_and_evaluate`, or there is no checkpoint.

  Source: ours.
  """
  run, store = _open(config, workdir)
  if not store.steps():
    raise errors.UserError('workdir', str(workdir), 'there is no checkpoint in it: train first, '
                           'with --mode=train, or name the folder of a run')
  return final_evaluation.evaluate(run, workdir, store, command, 0.)


def _open(config: ml_collections.ConfigDict,
          workdir: pathlib.Path) -> tuple[setup.Run, checkpoints.Checkpoints]:
  """The parts of a run, after making sure that the work directory is not another run's."""
  run = setup.build(config)
  before = records.read_json(workdir / 'config.json')
  if before is not None:
    changed = resume.conflicts(fields.flatten(before),
                                   fields.flatten(config.to_dict()))
    if changed:
      told = ', '.join(f'config.{name} was {old!r} and is {new!r}'
                       for name, (old, new) in changed.items())
      raise errors.UserError('workdir', str(workdir), 'it holds a run with another configuration '
                             f'({told}): name another folder, or set these fields back')
  return run, checkpoints.Checkpoints(workdir / 'checkpoints', keep=config.checkpoint.keep)


def _begin(run: setup.Run, store: checkpoints.Checkpoints) -> tuple[step_lib.TrainState, float]:
  """The state to go on from, and the seconds it took to get there."""
  state = setup.init_state(run)
  store.clear_unfinished()
  saved = checkpoints.report_damage(store.newest(jax.device_get(state)))
  if saved is None:
    return finetune_lib.initial_state(run), 0.
  print(f'resuming after step {saved.step}', file=sys.stderr)
  return saved.state, saved.info['seconds']


class _Call(NamedTuple):
  """One compiled call: the steps it takes, all in one epoch."""
  epoch: int
  order: np.ndarray  # i32[S, B]
  ends_epoch: bool


def _calls(run: setup.Run, step: int) -> Iterator[_Call]:
  """The calls that are still to be made after `step` steps."""
  per_call, per_epoch = sharding.steps_per_call(run.steps_per_epoch), run.steps_per_epoch
  batch_size, examples = run.config.batch_size, len(run.dataset.train.labels)
  for epoch in range(step // per_epoch, run.config.epochs):
    order = np.asarray(pipeline.epoch_order(run.keys['order'], epoch, examples))
    order = order[:per_epoch * batch_size].reshape(per_epoch, batch_size)
    for first in range(max(step - epoch * per_epoch, 0), per_epoch, per_call):
      taken = order[first:first + per_call]
      yield _Call(epoch, taken, first + len(taken) == per_epoch)


def _train(run: setup.Run, workdir: pathlib.Path, store: checkpoints.Checkpoints,
           state: step_lib.TrainState, seconds: float) -> float:
  """Trains to the last epoch; returns the seconds spent, those before a resume counted in."""
  c, train, step = run.config, run.dataset.train, int(state.step)
  total = c.epochs * run.steps_per_epoch
  begun = time.monotonic() - seconds
  stop: list[int] = []
  handler = signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
  metrics = records.Metrics(workdir, step=step)
  progress = records.Progress('training', total * c.batch_size, done=step * c.batch_size)
  state = sharding.replicate(state)
  images, labels = sharding.replicate((train.images, train.labels))
  settle = batchnorm.reestimate_batchnorm(run)
  functions, note, logged_step, logged_at = {}, '', step, time.monotonic()
  try:
    for call in _calls(run, step):
      name, before = epoch_plan.name(c, call.epoch), step
      if finetune_lib.begins(run, step):
        state = sharding.replicate(finetune_lib.begin(run, sharding.unreplicate(state), settle,
                                                  functools.partial(model_selection.accuracies, run)))
      if name not in functions:
        functions[name] = sharding.train_steps(epoch_plan.recipe(run, name))
      state, numbers = functions[name](state, images, labels, call.order, run.keys['train'],
                                       epoch_plan.epoch_values(c, call.epoch))
      numbers = jax.device_get(numbers)
      _check_finite(numbers.finite, before, workdir)
      step += len(call.order)
      progress.show(step * c.batch_size, note)
      passed = lambda every: step // every > before // every
      if passed(c.log_every_steps):
        now = time.monotonic()
        metrics.write(
            step, epoch=step / run.steps_per_epoch, phase=name, loss=float(numbers.loss[-1]),
            train_accuracy=float(numbers.accuracy[-1]),
            learning_rate=float(run.schedule(step - 1)),
            examples_per_second=(step - logged_step) * c.batch_size / (now - logged_at),
            seconds=now - begun)
        logged_step, logged_at = step, now
      if c.optimizer.fair_decay and call.ends_epoch and call.epoch >= c.optimizer.fair_start_epoch:
        average, worst = model_selection.take_in(run, settle, sharding.unreplicate(state))
        state = state._replace(average=sharding.replicate(average))
        metrics.write(step, own_worst_class=worst, averaged=int(average.count))
      score = robust = None
      # The curve of fine-tuning has a point an epoch, and its adversary may follow it.
      validates = ((call.epoch + 1) % c.validate.every_epochs == 0 or step == total
                   or name == 'finetune')
      validates &= call.ends_epoch and len(run.dataset.validation.labels) > 0
      if validates:
        found = model_selection.report(run, settle(sharding.unreplicate(state))).accuracies()
        clean, robust, worst = (found[name] for name in ('clean', 'worst_case', 'worst_class'))
        note = f'validation clean {clean:.3f}, robust {robust:.3f}, worst class {worst:.3f}'
        point, told = model_selection.score(found, c.validate.choose_by), {}
        if name == 'finetune':
          tuning, point, told = finetune_lib.after_epoch(
              c, sharding.unreplicate(state.tuning), clean, robust)
          state = state._replace(tuning=sharding.replicate(tuning))
        if epoch_plan.begun(c, call.epoch):  # DUCAT's best would else be the plain model before it
          score = point
        metrics.write(step, validation_clean=clean, validation_robust=robust,
                      validation_worst_class=worst, **told)
      if validates or stop or step == total or passed(c.checkpoint.every_steps
                                                      or run.steps_per_epoch):
        store.save(step, sharding.unreplicate(state),
                   {'score': score, 'validation_robust': robust,
                    'seconds': time.monotonic() - begun})
      if stop and step < total:
        raise Preempted(f'stopped after step {step} of {total}: the same command goes on from there')
  finally:
    store.wait()
    progress.close()
    metrics.close()
    signal.signal(signal.SIGTERM, handler)
  return time.monotonic() - begun


def _check_finite(finite: np.ndarray, before: int, workdir: pathlib.Path) -> None:
  if not finite.all():
    step = before + int(np.argmin(finite)) + 1
    raise errors.UserError('loss', float('nan'), f'not a number at step {step}; the checkpoints in '
                           f'{workdir} are from before. Try a smaller config.optimizer.learning_rate'
                           ', model.dtype float32, or another seed, in a new workdir')

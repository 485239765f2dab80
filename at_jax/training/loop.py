"""The training loop: from a configuration and a work directory to a trained and evaluated model."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from at_jax import devices, environment, errors
from at_jax.config import fields, resume
from at_jax.training import (
  batchnorm,
  checkpoints,
  epoch_hooks,
  epoch_plan,
  final_evaluation,
  interrupts,
  lock,
  records,
  restore,
  run_data,
  setup,
  sharding,
  streams,
  user_functions,
)
from at_jax.training import step as step_lib


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
                       command: str) -> dict[str, Any]:
  """Trains a model, then evaluates its best and its last checkpoint.

  If the work directory has checkpoints, training resumes from the newest undamaged checkpoint. What was
  logged after it is dropped, and the order of examples continues inside its epoch. In the main thread, the
  signals of `interrupts.watch` end it with its state saved; their handlers are restored afterwards. Several
  processes of `jax.distributed` call it together, with a folder that they share; process 0 writes.

  Args:
    config: the configuration.
    workdir: the work directory.
    command: the command line, for results.json.

  Returns:
    The content of results.json.

  Raises:
    errors.UserError: if the configuration, the data or the work directory is wrong, or another process or
      thread uses the work directory.
    interrupts.Preempted: if a signal ended it; the state is saved.
  """
  workdir = environment.local_path('workdir', workdir)
  checkpoints.check_path(workdir)
  with _lock(workdir):
    run, store = _open(config, workdir)
    if (workdir / checkpoints.WEIGHTS).exists():
      raise errors.UserError('workdir', str(workdir), f'it holds {checkpoints.WEIGHTS}, from which training '
                             'cannot resume: use --mode=evaluate or name another folder')
    with interrupts.watch() as received:
      state, seconds = _first_state(run, store)
      if devices.is_first():
        if int(state.step) < config.epochs * run.steps_per_epoch:  # the results are of fewer epochs
          records.set_results_aside(workdir, int(state.step))
        records.write_json(workdir / 'config.json', config.to_dict())
      seconds = _train(run, workdir, store, state, seconds, received)
      return final_evaluation.evaluate(run, workdir, command, seconds, received)


def evaluate_only(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
                  command: str) -> dict[str, Any]:
  """Evaluates the best and the last checkpoint of a work directory.

  Args:
    config: the configuration; fields that may change on resume may differ from those of the run.
    workdir: the work directory of a run.
    command: the command line, for results.json.

  Returns:
    The content of results.json.

  Raises:
    errors.UserError: as `train_and_evaluate`, or if there is no checkpoint.
    interrupts.Preempted: if a signal ended it; the state of AutoAttack is saved.
  """
  workdir = environment.local_path('workdir', workdir)
  if not devices.from_first(restore.has_weights, workdir):
    raise errors.UserError('workdir', str(workdir), 'there is no checkpoint in it: train first, '
                           'with --mode=train, or name the work directory of a run')
  with _lock(workdir):
    run, _ = _open(config, workdir)
    with interrupts.watch() as received:
      return final_evaluation.evaluate(run, workdir, command, 0., received)


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the lock of the work directory, in process 0; all processes must see it."""
  with contextlib.ExitStack() as stack:
    devices.from_first(stack.enter_context, lock.hold(workdir))
    if devices.largest(not lock.is_visible(workdir)):
      raise errors.UserError('workdir', str(workdir), 'a process does not see what process 0 writes there: '
                             'name a folder that all processes share')
    yield


def _open(config: ml_collections.ConfigDict,
          workdir: pathlib.Path) -> tuple[setup.Run, checkpoints.Checkpoints]:
  """The parts of a run and its checkpoints, after checking that the work directory is not of another run."""
  flat = fields.flatten(config.to_dict())
  _check_same('configurations', flat | {'dataset.data_dir': None})  # each host may have the data elsewhere
  run = devices.first_then_others(lambda: setup.build(config, warn=records.warn))
  _check_same('data', run_data.identity(run.dataset))
  user_functions.check(run, records.warn)
  before = devices.from_first(records.read_json, workdir / 'config.json')
  if before is not None:
    changed = resume.conflicts(fields.flatten(fields.upgrade(before)), flat)
    is_file = all(name.endswith('.npz') for name in changed.get('dataset.name', ('',)))
    if is_file and (restore.stored_data_info(workdir) or {}).get('digest'):
      del changed['dataset.name']  # a file may move, and `check_data` compares its content
    if changed:
      summary = ', '.join(f'config.{name} was {old!r} and is {new!r}'
                          for name, (old, new) in changed.items())
      raise errors.UserError('workdir', str(workdir), 'it holds a run with another configuration '
                             f'({summary}): name another folder, or set these fields back')
  restore.check_data(run, workdir)
  return run, checkpoints.Checkpoints(workdir / 'checkpoints', keep=config.checkpoint.keep)


def _check_same(what: str, here: dict[str, Any]) -> None:
  """Checks that all processes have the same values; those of different runs would wait for ever."""
  first = devices.from_first(lambda: here)
  if devices.largest(here != first):
    names = ', '.join(name for name in here if here[name] != first.get(name)) or 'see the other lines'
    raise errors.UserError('--distributed', f'process {jax.process_index()}', f'the {what} of the processes '
                           f'differ ({names}): start all with the same command and the same data')


def _first_state(run: setup.Run, store: checkpoints.Checkpoints) -> tuple[step_lib.TrainState, float]:
  """The state to train from, and the seconds of training behind it."""
  state = setup.init_state(run)
  store.clear_unfinished()
  saved = checkpoints.report_damage(store.newest(jax.device_get(state)))
  if saved is None:  # equal in all processes even if their machines round differently
    return devices.arrays_of_first(epoch_hooks.start_from(run, state)), 0.
  records.log(f'resuming after step {saved.step}')
  return saved.state, saved.info['seconds']


class _Call(NamedTuple):
  """The steps of one compiled call, all in one epoch."""
  epoch: int
  order: np.ndarray  # i32[S, B]
  starts_epoch: bool
  ends_epoch: bool


def _calls(run: setup.Run, step: int) -> Iterator[_Call]:
  """The calls that remain after `step` steps."""
  per_epoch = run.steps_per_epoch
  per_call = 1 if run.config.dataset.source == 'stream' else sharding.steps_per_call(per_epoch)
  for epoch in range(step // per_epoch, run.config.epochs):
    order = streams.order(run, epoch).repeat(setup.replays(run.config), axis=0)
    for first in range(max(step - epoch * per_epoch, 0), per_epoch, per_call):
      taken = order[first:first + per_call]
      yield _Call(epoch, taken, first == 0, first + len(taken) == per_epoch)


def _train(run: setup.Run, workdir: pathlib.Path, store: checkpoints.Checkpoints,
           state: step_lib.TrainState, seconds: float, received: list[int]) -> float:
  """Trains to the last epoch; returns the seconds of training, with those before a resume."""
  c, step = run.config, int(state.step)
  total, started = c.epochs * run.steps_per_epoch, time.monotonic() - seconds
  state, spent = sharding.replicate(state), np.zeros(2)  # seconds without data, and of all calls
  eval_variables = batchnorm.reestimate_batchnorm(run)
  note, waits, logged = '', '', (step, time.monotonic())
  with contextlib.ExitStack() as stack:
    metrics = progress = records.Silent()
    if devices.is_first():
      metrics = stack.enter_context(contextlib.closing(records.Metrics(workdir, step=step)))
      progress = stack.enter_context(contextlib.closing(
          records.Progress('training', total * c.batch_size, done=step * c.batch_size)))
    stack.callback(store.wait)
    take_steps = stack.enter_context(_step_function(run, step))
    for call in _calls(run, step):
      if call.starts_epoch:
        for hook in epoch_hooks.at_start(run, call.epoch, eval_variables):
          state = sharding.replicate(hook(run, sharding.unreplicate(state), call.epoch))
      before, begun = step, time.monotonic()
      state, numbers, waited = take_steps(state, call)
      spent += waited, time.monotonic() - begun
      _check_finite(numbers.finite, before, workdir)
      step += len(call.order)
      if _passed(c.log_every_steps, before, step):
        now = time.monotonic()
        speed = (step - logged[0]) * c.batch_size / (now - logged[1])
        idle = {'data_wait': spent[0] / spent[1]} if c.dataset.source == 'stream' else {}
        metrics.write(step, **_step_numbers(run, call.epoch, step, numbers), examples_per_second=speed,
                      seconds=now - started, **idle)
        waits = f'waits for data {100 * idle["data_wait"]:.1f} %' if idle else ''
        logged, spent = (step, now), np.zeros(2)
      hooks = epoch_hooks.at_end(run, call.epoch, eval_variables) if call.ends_epoch else []
      end, state = _walk(hooks, run, state, call.epoch)
      if end.numbers:
        metrics.write(step, **end.numbers)
      if end.images:
        metrics.draw(step, end.images)
      note = end.note or note
      progress.show(step * c.batch_size, ', '.join(filter(None, (note, waits))))
      due = _passed(c.checkpoint.every_steps or run.steps_per_epoch, before, step)
      agreed = interrupts.agree(received)
      stop = agreed and step < total
      if end.save or due or stop or step == total:
        store.save(step, sharding.unreplicate(state),
                   {'score': end.score, **end.info, 'data': run_data.info(run.dataset),
                    'seconds': time.monotonic() - started})
      if stop:
        interrupts.check(agreed, f'after step {step} of {total}')
  return time.monotonic() - started


def _passed(every: int, before: int, step: int) -> bool:
  """Whether a multiple of `every` lies in the steps of a call."""
  return step // every > before // every


@contextlib.contextmanager
def _step_function(run: setup.Run, step: int) -> Iterator[Callable[..., tuple[Any, step_lib.Metrics, float]]]:
  """`(replicated state, call) -> (state, metrics on the host, seconds without data)`.

  It compiles once per phase. The calls are those of `_calls`, from this step on.
  """
  c, programs = run.config, {}
  streamed = c.dataset.source == 'stream'
  with contextlib.ExitStack() as stack:
    if streamed:
      feed = stack.enter_context(contextlib.closing(streams.Feed(
          run.dataset.train, streams.remaining(run, step), run.keys['train'], setup.replays(c))))
    else:
      train = run.dataset.train
      data = sharding.replicate((step_lib.rows(train.images), train.labels))

    def take_steps(state, call):
      name = epoch_plan.name(c, call.epoch)
      if name not in programs:
        records.log(f'compiling the step of {name}, or reading it from the cache')
        programs[name] = sharding.train_steps(epoch_plan.recipe(run, name), streamed=streamed)
      (images, labels), waited = feed.take() if streamed else (data, 0.)
      state, numbers = programs[name](state, images, labels, call.order, run.keys['train'],
                                      epoch_plan.epoch_values(c, call.epoch))
      if streamed:
        waited += feed.prepare(numbers)
      return state, jax.device_get(numbers), waited

    yield take_steps


def _step_numbers(run: setup.Run, epoch: int, step: int, numbers: step_lib.Metrics) -> dict[str, Any]:
  return dict(epoch=step / run.steps_per_epoch, phase=epoch_plan.name(run.config, epoch),
              loss=float(numbers.loss[-1]), train_accuracy=float(numbers.accuracy[-1]),
              learning_rate=float(run.schedule(step - 1)))


def _walk(hooks: list[epoch_hooks.EndHook], run: setup.Run, state: step_lib.TrainState,
          epoch: int) -> tuple[epoch_hooks.EpochEnd, step_lib.TrainState]:
  """Applies the hooks of an epoch's end; returns their results and the replicated state."""
  if not hooks:  # without a copy to the host
    return epoch_hooks.EpochEnd(state), state
  before = sharding.unreplicate(state)
  end = epoch_hooks.EpochEnd(before)
  for hook in hooks:
    end = hook(run, end, epoch)
  return end, state if end.state is before else sharding.replicate(end.state)


def _check_finite(finite: np.ndarray, before: int, workdir: pathlib.Path) -> None:
  if not finite.all():
    step = before + int(np.argmin(finite)) + 1
    raise errors.UserError('loss', float('nan'), f'not a number at step {step}; the checkpoints in '
                           f'{workdir} are from before. Try a smaller config.optimizer.learning_rate'
                           ', model.dtype float32, or another seed, in a new workdir')

"""The variables that are evaluated: averaged weights, with BatchNorm statistics of their own."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import jax
import numpy as np

from at_jax import devices
from at_jax.datasets import pipeline
from at_jax.methods import finetune, weight_averaging
from at_jax.training import epoch_plan, setup, sharding, streams
from at_jax.training import step as step_lib

# Running statistics keep .9 of their value per batch (`layers.BatchNorm`), so 0.5 % of the old statistics
# remain.
BATCHES = 50


def reestimate_batchnorm(run: setup.Run) -> Callable[[step_lib.TrainState], dict[str, Any]]:
  """Makes the function from a training state to the variables that are evaluated.

  If the state has an average of weights or an anchor of EntropySGD, those are evaluated. Their BatchNorm
  statistics are re-estimated over `BATCHES` training batches, which are attacked as in training; the
  released code of EntropySGD and SWA uses clean images. Otherwise the variables are those of the state.

  Args:
    run: the run.

  Returns:
    `eval_variables(state on the host, stored) -> variables on the host`. It compiles once per phase.
    `stored(params) -> statistics` gives the statistics if they were re-estimated before, or None.
  """
  c = run.config
  count = min(BATCHES, run.steps_per_epoch // setup.replays(c))
  functions = {}

  def eval_variables(state: step_lib.TrainState, stored: Callable[[Any], Any] = lambda params: None
                     ) -> dict[str, Any]:
    kept = weight_averaging.eval_params(state.opt_state, state.params)
    params = weight_averaging.eval_params(state.average, kept)
    # An optimizer that the configuration imports may keep an average as well.
    averaged = kept is not state.params or (state.average and state.average.count > 0)
    if not averaged or not jax.tree.leaves(state.batch_stats):
      return {'params': params, 'batch_stats': state.batch_stats}
    statistics = stored(params)
    if statistics is not None:
      return {'params': params, 'batch_stats': statistics}
    epoch = max(int(state.step) - 1, 0) // run.steps_per_epoch
    name = epoch_plan.name(c, epoch)
    streamed = c.dataset.source == 'stream'
    if name not in functions:
      functions[name] = sharding.batchnorm_steps(epoch_plan.recipe(run, name), streamed=streamed)
    devices.check_batch_size('config.batch_size', c.batch_size)  # a restored run may be on another machine
    # The key differs from that of the training order: every evaluation uses the same batches.
    taken = np.asarray(pipeline.epoch_order(run.keys['evaluate'], 0, run.dataset.train_size))
    taken = taken[:count * c.batch_size].reshape(count, -1)
    tuning = state.tuning
    # The steps index into `taken`.
    if isinstance(tuning, finetune.Tuning) and not isinstance(tuning.radius, tuple):
      tuning = tuning._replace(radius=tuning.radius[taken.ravel()])
    elif c.loss == 'fgsm_pgi':
      tuning = tuning[taken.ravel()]
    moving = sharding.replicate(state._replace(
        step=np.zeros((), np.int32), params=params, opt_state=(), average=(), tuning=tuning))
    for images, labels, order in _calls(run, taken):
      moving, _ = functions[name](moving, images, labels, order, run.keys['evaluate'],
                                  epoch_plan.epoch_values(c, epoch))
    return {'params': params, 'batch_stats': sharding.unreplicate(moving).batch_stats}

  return eval_variables


def _calls(run: setup.Run, taken: np.ndarray) -> Iterator[tuple[Any, Any, np.ndarray]]:
  """Images, labels and order of each call."""
  train, order = run.dataset.train, np.arange(taken.size, dtype=np.int32).reshape(taken.shape)
  if run.config.dataset.source == 'stream':
    feed = streams.Feed(train, [streams.Part(taken, 0)], run.keys['evaluate'])
    with contextlib.closing(feed):
      for index in order:
        yield *feed.take()[0], index[None]
    return
  split = pipeline.Split(train.images[taken.ravel()], train.labels[taken.ravel()])
  images, labels = sharding.replicate((step_lib.rows(split.images), split.labels))
  per_call = sharding.steps_per_call(len(order))
  for first in range(0, len(order), per_call):
    yield images, labels, order[first:first + per_call]

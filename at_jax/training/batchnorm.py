"""The variables that are evaluated: averaged weights, with BatchNorm statistics of their own."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from at_jax import devices
from at_jax.datasets import pipeline
from at_jax.methods import finetune, weight_averaging
from at_jax.training import epoch_plan, setup, sharding
from at_jax.training import step as step_lib

# Running statistics keep .9 of their value per batch (linen's default), so 0.5 % of the old statistics
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
    if name not in functions:
      functions[name] = sharding.batchnorm_steps(epoch_plan.recipe(run, name))
    devices.check_batch_size('config.batch_size', c.batch_size)  # a restored run may be on another machine
    train = run.dataset.train
    # The key differs from that of the training order: every evaluation uses the same batches.
    order = np.asarray(pipeline.epoch_order(run.keys['evaluate'], 0, len(train.labels)))
    taken = order[:count * c.batch_size]
    images, labels = sharding.replicate((step_lib.rows(train.images[taken]), train.labels[taken]))
    order = np.arange(len(taken), dtype=np.int32).reshape(count, -1)
    tuning = state.tuning
    # The steps index into `taken`.
    if isinstance(tuning, finetune.Tuning) and not isinstance(tuning.radius, tuple):
      tuning = tuning._replace(radius=tuning.radius[taken])
    elif c.loss == 'fgsm_pgi':
      tuning = tuning[taken]
    moving = sharding.replicate(state._replace(
        step=np.zeros((), np.int32), params=params, opt_state=(), average=(), tuning=tuning))
    per_call = sharding.steps_per_call(count)
    for first in range(0, count, per_call):
      moving, _ = functions[name](moving, images, labels, order[first:first + per_call],
                                  run.keys['evaluate'], epoch_plan.epoch_values(c, epoch))
    return {'params': params, 'batch_stats': sharding.unreplicate(moving).batch_stats}

  return eval_variables

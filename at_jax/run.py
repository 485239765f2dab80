"""From a configuration to the parts of a run: its data, network, optimizer, attack and objective."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from at_jax import config_checks
from at_jax import data
from at_jax import errors
from at_jax import inner
from at_jax import models
from at_jax import network as network_lib
from at_jax import objectives
from at_jax import sharding
from at_jax import step as step_lib
from at_jax import transforms
from at_jax import weighting
from at_jax import weights

# What each loss is attacked with while it trains.
_INNER = {'pgd_at': inner.uniform, 'consistency': inner.uniform, 'mart': inner.beside,
          'trades': inner.kl, 'gair_trades': inner.kl_and_margin}


class Run(NamedTuple):
  """What a configuration comes down to.

  Attributes:
    config: the configuration.
    dataset: its data.
    network: its network.
    optimizer: its optimizer.
    schedule: the learning rate as a function of the step.
    steps_per_epoch: whole batches in the training set; the rest of an epoch's order is left out.
    keys: one PRNG key for each use: 'init', 'order', 'train', 'evaluate', 'optimizer'.
  """
  config: ml_collections.ConfigDict
  dataset: data.Dataset
  network: network_lib.Network
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  steps_per_epoch: int
  keys: dict[str, jax.Array]


def build(config: ml_collections.ConfigDict) -> Run:
  """Checks a configuration, reads its data and makes its parts.

  Args:
    config: the configuration.

  Returns:
    A `Run`.

  Raises:
    errors.UserError: a field makes no sense, or contradicts the data or the devices.

  Source: ours.
  """
  config_checks.check(config)
  for field in ('batch_size', 'evaluate.batch_size', 'validate.batch_size'):
    sharding.check_batch_size(f'config.{field}', functools.reduce(getattr, field.split('.'), config))
  try:
    dataset = data.load(config.dataset.name, validation_size=config.dataset.validation_size,
                        data_dir=config.dataset.data_dir or None)
  except errors.UserError as mistake:
    field = {'dataset': 'dataset.name', 'validation_size': 'dataset.validation_size'}
    raise errors.UserError(f'config.{field[mistake.field]}', mistake.value, mistake.remedy
                           ) from mistake
  if dataset.num_classes != config.dataset.num_classes:
    raise errors.UserError('config.dataset.num_classes', config.dataset.num_classes,
                           f'{dataset.name} has {dataset.num_classes} classes: use that')
  steps_per_epoch = len(dataset.train.labels) // config.batch_size
  if not steps_per_epoch:
    raise errors.UserError('config.batch_size', config.batch_size,
                           f'use at most the {len(dataset.train.labels)} training examples')
  # EntropySGD's schedules count outer steps, one of which takes `inner` steps.
  inner_steps = _inner_steps(config)
  schedule = _schedule(config, steps_per_epoch / inner_steps)
  names = ('init', 'order', 'train', 'evaluate', 'optimizer')
  keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), len(names)), strict=True))
  network = network_lib.wrap(_model(config), has_dummies=config.dummy.enabled)
  optimizer = _optimizer(config, schedule, steps_per_epoch / inner_steps, keys['optimizer'])
  return Run(config, dataset, network, optimizer, lambda step: schedule(step // inner_steps),
             steps_per_epoch, keys)


def search_network(run: Run) -> network_lib.Network | None:
  """The network that AutoAttack searches on, where its precision is not that of the run's own.

  Args:
    run: the run.

  Returns:
    A `Network` of the same variables, None where the run's own serves.

  Source: ours.
  """
  dtype = run.config.evaluate.search_dtype
  if dtype in ('', run.config.model.dtype):
    return None
  return network_lib.wrap(_model(run.config, dtype), has_dummies=run.config.dummy.enabled)


def _model(config: ml_collections.ConfigDict, dtype: str | None = None) -> Any:
  options = {name: value for name, value in config.model.items() if name != 'name'}
  options['dtype'] = jnp.dtype(dtype or options['dtype'])
  num_outputs = config.dataset.num_classes * (2 if config.dummy.enabled else 1)
  try:
    return getattr(models, config.model.name)(num_outputs=num_outputs, axis_name=sharding.AXIS,
                                              **options)
  except TypeError as error:
    raise errors.UserError('config.model', dict(config.model), f'{config.model.name}: {error}'
                           ) from error


def _inner_steps(config: ml_collections.ConfigDict) -> int:
  """How many steps move the optimizer's schedule by one."""
  o = config.optimizer
  return max(o.entropy.inner_steps, 1) if o.name == 'entropy_sgd' else 1


def _schedule(config: ml_collections.ConfigDict, steps_per_epoch: float) -> optax.Schedule:
  o = config.optimizer
  if o.schedule == 'cosine':
    return optax.cosine_decay_schedule(o.learning_rate, round(config.epochs * steps_per_epoch))
  return optax.piecewise_constant_schedule(
      o.learning_rate, {round(epoch * steps_per_epoch): o.decay_factor for epoch in o.decay_epochs})


def _optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule, steps_per_epoch: float,
               key: jax.Array) -> optax.GradientTransformation:
  o = config.optimizer
  # Decay is added to the gradient before any momentum, on every parameter, as PyTorch's SGD does;
  # under EntropySGD to the inner gradients, as in its released code.
  decay = optax.add_decayed_weights(o.weight_decay)
  parts = [optax.sgd(schedule, momentum=o.momentum)]
  if o.ema_decay:
    parts.append(transforms.ema(o.ema_decay))
  if o.swa_start_epoch:
    # The first average is taken at the end of the start epoch, not at its first step.
    parts.append(transforms.swa(round((o.swa_start_epoch + 1) * steps_per_epoch) - 1,
                                every=max(round(steps_per_epoch), 1)))
  if o.name == 'entropy_sgd':
    return optax.chain(decay, transforms.entropy_sgd(optax.chain(*parts), key=key, **o.entropy))
  return optax.chain(decay, *parts)


def phase(config: ml_collections.ConfigDict, epoch: int) -> str:
  """The name of the program that an epoch runs: DUCAT begins after a plain phase.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    The name of the loss; with DUCAT begun 'ducat' on PGD-AT, else 'ducat_trades' and so on.

  Source: ours.
  """
  if config.dummy.enabled and epoch >= config.dummy.start_epoch:
    return 'ducat' if config.loss == 'pgd_at' else f'ducat_{config.loss}'
  return config.loss


def begun(config: ml_collections.ConfigDict, epoch: int) -> bool:
  """Whether everything that begins late has begun, so that the epoch's model is the method's.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    False during the plain epochs before DUCAT and before importance weights.

  Source: ours.
  """
  starts = [config.dummy.start_epoch] * config.dummy.enabled
  starts += [config.weights.start_epoch] * (config.weights.kind != 'none')
  return epoch >= max(starts, default=0)


def epoch_values(config: ml_collections.ConfigDict, epoch: int) -> step_lib.EpochValues:
  """What an epoch decides without another program.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    A `step.EpochValues`.

  Source: ours.
  """
  tau = None
  if config.attack.friendly_taus:
    first, *later = config.attack.friendly_taus
    changes = dict(zip(config.attack.friendly_epochs, later, strict=True))
    tau = weights.by_epoch(epoch, first, changes)
  return step_lib.EpochValues(jnp.asarray(epoch >= config.weights.start_epoch), tau)


def recipe(run: Run, name: str) -> step_lib.Recipe:
  """What a training step of a phase does.

  Args:
    run: the run.
    name: of the phase, as `phase` gives it.

  Returns:
    A `step.Recipe`.

  Source: ours.
  """
  c = run.config
  attack = None
  if c.loss != 'standard':
    attack = _INNER[c.loss](norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255,
                            step_size=c.attack.step_size_255 / 255, num_steps=c.attack.num_steps)
  return step_lib.Recipe(
      run.network, run.optimizer, _objective(c, ducat_begun=name != c.loss), attack,
      attack_folded=c.dummy.attack_logits == 'folded', pad=c.dataset.pad, flip=c.dataset.flip,
      weigh=_weigh(c), weights_on=c.weights.on, beta=c.beta, awp_gamma=c.awp_gamma,
      views=2 if c.loss == 'consistency' else 1, steps_per_epoch=run.steps_per_epoch)


def _objective(config: ml_collections.ConfigDict, *, ducat_begun: bool) -> objectives.Objective:
  objective = getattr(objectives, config.loss)
  if config.loss == 'consistency':
    objective = functools.partial(objective, temperature=config.consistency_temperature)
  if not ducat_begun:
    return objective
  d = config.dummy
  ducat = functools.partial(objectives.ducat, benign_weight=d.benign_weight,
                            adversarial_weight=d.adversarial_weight, alpha=d.alpha)
  return ducat if config.loss == 'pgd_at' else functools.partial(objective, ducat=ducat)


def _weigh(config: ml_collections.ConfigDict) -> Any:
  w = config.weights
  if w.kind == 'none':
    return None
  options = {
      'geometry': dict(num_steps=config.attack.num_steps, lam=w.lam, form=w.form,
                       normalized=w.normalized),
      'margin': dict(bias=w.bias, slope=w.slope),
      'class_wise': dict(base=w.base),
  }
  return functools.partial(getattr(weighting, w.kind), **options[w.kind])


def init_state(run: Run) -> step_lib.TrainState:
  """The state at step 0.

  Args:
    run: the run.

  Returns:
    A `step.TrainState`.

  Source: ours.
  """
  x = data.to_unit(run.dataset.train.images[:1])
  counted = run.dataset.num_classes if run.config.weights.kind == 'class_wise' else 0
  init = jax.jit(lambda key: step_lib.init(run.network, run.optimizer, key, x,
                                           classes_counted=counted))
  return init(run.keys['init'])

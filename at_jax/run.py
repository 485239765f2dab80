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
from at_jax import evaluate
from at_jax import models
from at_jax import network as network_lib
from at_jax import objectives
from at_jax import sharding
from at_jax import step as step_lib
from at_jax import transforms


class Run(NamedTuple):
  """What a configuration comes down to.

  Attributes:
    config: the configuration.
    dataset: its data.
    network: its network.
    optimizer: its optimizer.
    schedule: the learning rate as a function of the step.
    steps_per_epoch: whole batches in the training set; the rest of an epoch's order is left out.
    keys: one PRNG key for each use: 'init', 'order', 'train', 'evaluate'.
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
  schedule = _schedule(config, steps_per_epoch)
  names = ('init', 'order', 'train', 'evaluate')
  keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), len(names)), strict=True))
  network = network_lib.wrap(_model(config), has_dummies=config.dummy.enabled)
  return Run(config, dataset, network, _optimizer(config, schedule), schedule, steps_per_epoch, keys)


def _model(config: ml_collections.ConfigDict) -> Any:
  options = {name: value for name, value in config.model.items() if name != 'name'}
  options['dtype'] = jnp.dtype(options['dtype'])
  num_outputs = config.dataset.num_classes * (2 if config.dummy.enabled else 1)
  try:
    return getattr(models, config.model.name)(num_outputs=num_outputs, axis_name=sharding.AXIS,
                                              **options)
  except TypeError as error:
    raise errors.UserError('config.model', dict(config.model), f'{config.model.name}: {error}'
                           ) from error


def _schedule(config: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  o = config.optimizer
  if o.schedule == 'cosine':
    return optax.cosine_decay_schedule(o.learning_rate, config.epochs * steps_per_epoch)
  return optax.piecewise_constant_schedule(
      o.learning_rate, {epoch * steps_per_epoch: o.decay_factor for epoch in o.decay_epochs})


def _optimizer(config: ml_collections.ConfigDict,
               schedule: optax.Schedule) -> optax.GradientTransformation:
  o = config.optimizer
  # Decay is added to the gradient before the momentum, on every parameter, as PyTorch's SGD does.
  parts = [optax.add_decayed_weights(o.weight_decay), optax.sgd(schedule, momentum=o.momentum)]
  if o.ema_decay:
    parts.append(transforms.ema(o.ema_decay))
  return optax.chain(*parts)


def phase(config: ml_collections.ConfigDict, epoch: int) -> str:
  """The name of the objective of an epoch: DUCAT begins after a plain phase.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    A name in `objectives`.

  Source: ours.
  """
  if config.dummy.enabled and epoch >= config.dummy.start_epoch:
    return 'ducat'
  return config.loss


def recipe(run: Run, name: str) -> step_lib.Recipe:
  """What a training step of a phase does.

  Args:
    run: the run.
    name: of the objective, as `phase` gives it.

  Returns:
    A `step.Recipe`.

  Source: ours.
  """
  c = run.config
  objective = getattr(objectives, name)
  if name == 'ducat':
    objective = functools.partial(objective, benign_weight=c.dummy.benign_weight,
                                  adversarial_weight=c.dummy.adversarial_weight, alpha=c.dummy.alpha)
  attack = None
  if name != 'standard':
    attack = evaluate.pgd(norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255,
                          step_size=c.attack.step_size_255 / 255, num_steps=c.attack.num_steps)
  return step_lib.Recipe(run.network, run.optimizer, objective, attack,
                         attack_folded=c.dummy.attack_logits == 'folded', pad=c.dataset.pad,
                         flip=c.dataset.flip)


def init_state(run: Run) -> step_lib.TrainState:
  """The state at step 0.

  Args:
    run: the run.

  Returns:
    A `step.TrainState`.

  Source: ours.
  """
  x = data.to_unit(run.dataset.train.images[:1])
  init = jax.jit(lambda key: step_lib.init(run.network, run.optimizer, key, x))
  return init(run.keys['init'])

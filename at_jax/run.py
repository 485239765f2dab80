"""From a configuration to the parts of a run: its data, network, optimizer, attack and objective."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from at_jax import anchored
from at_jax import branches
from at_jax import calibration as calibration_lib
from at_jax import config_checks
from at_jax import data
from at_jax import errors
from at_jax import inner
from at_jax import models
from at_jax import network as network_lib
from at_jax import objectives
from at_jax import optimizers
from at_jax import regulated
from at_jax import sharding
from at_jax import step as step_lib
from at_jax import weighting
from at_jax import weights

# What each loss is attacked with while it trains; one from elsewhere as PGD-AT is.
_INNER = {'pgd_at': inner.uniform, 'consistency': inner.uniform, 'mart': inner.beside,
          'trades': inner.kl, 'gair_trades': inner.kl_and_margin,
          'finetune_cross_entropy': inner.uniform, 'finetune_kl': inner.kl}


class Run(NamedTuple):
  """What a configuration comes down to.

  Attributes:
    config: the configuration.
    dataset: its data.
    network: its network.
    optimizer: its optimizer.
    tuner: the optimizer of fine-tuning, whose schedule counts from its start, or None.
    schedule: the learning rate as a function of the step.
    steps_per_epoch: whole batches in the training set; the rest of an epoch's order is left out.
    keys: one PRNG key for each use: 'init', 'order', 'train', 'evaluate', 'optimizer'.
  """
  config: ml_collections.ConfigDict
  dataset: data.Dataset
  network: network_lib.Network
  optimizer: optax.GradientTransformation
  tuner: optax.GradientTransformation | None
  schedule: optax.Schedule
  steps_per_epoch: int
  keys: dict[str, jax.Array]


def build(config: ml_collections.ConfigDict, *, dataset: data.Dataset | None = None) -> Run:
  """Checks a configuration, reads its data and makes its parts.

  Args:
    config: the configuration.
    dataset: its data, where they have been read before.

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
    dataset = dataset or data.load(
        config.dataset.name, validation_size=config.dataset.validation_size,
        data_dir=config.dataset.data_dir or None)
  except errors.UserError as mistake:
    field = {'dataset': 'dataset.name', 'validation_size': 'dataset.validation_size'}
    raise errors.UserError(f'config.{field[mistake.field]}', mistake.value, mistake.remedy
                           ) from mistake
  if dataset.num_classes != config.dataset.num_classes:
    raise errors.UserError('config.dataset.num_classes', config.dataset.num_classes,
                           f'{dataset.name} has {dataset.num_classes} classes: use that')
  channels = dataset.train.images.shape[-1]
  if config.dataset.augment == 'autoaugment' and channels not in (1, 3):
    raise errors.UserError('config.dataset.augment', 'autoaugment',
                           f"takes 1 or 3 channels, not {channels}: use 'crop'")
  steps_per_epoch = len(dataset.train.labels) // config.batch_size
  if not steps_per_epoch:
    raise errors.UserError('config.batch_size', config.batch_size,
                           f'use at most the {len(dataset.train.labels)} training examples')
  names = ('init', 'order', 'train', 'evaluate', 'optimizer')
  keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), len(names)), strict=True))
  return Run(config, dataset, _network(config),
             *optimizers.make(config, steps_per_epoch=steps_per_epoch, key=keys['optimizer']),
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
  return _network(run.config, dtype)


def _network(config: ml_collections.ConfigDict, dtype: str | None = None) -> network_lib.Network:
  network = network_lib.wrap(_model(config, dtype), has_dummies=config.dummy.enabled)
  if config.loss == 'finetune' and config.finetune.batch_norm == 'dual':
    network = branches.dual(network, deployed=config.finetune.deployed)
  return network


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


def phase(config: ml_collections.ConfigDict, epoch: int) -> str:
  """The name of the program that an epoch runs: DUCAT and fine-tuning begin after a plain phase.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    The name of the loss, 'standard' before fine-tuning; with DUCAT begun 'ducat' on PGD-AT, else
    'ducat_trades' and so on.

  Source: ours.
  """
  if config.dummy.enabled and epoch >= config.dummy.start_epoch:
    return 'ducat' if config.loss == 'pgd_at' else f'ducat_{config.loss}'
  if config.loss == 'finetune' and epoch < config.finetune.start_epoch:
    return 'standard'
  return config.loss


def begun(config: ml_collections.ConfigDict, epoch: int) -> bool:
  """Whether everything that begins late has begun, so that the epoch's model is the method's.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    False during the plain epochs before DUCAT, fine-tuning, importance weights, calibration by
    class, an average of weights or AutoAugment.

  Source: ours.
  """
  starts = [config.dummy.start_epoch] * config.dummy.enabled
  starts += [config.weights.start_epoch] * (config.weights.kind != 'none')
  starts += [_calibrated_from(config)] * calibrated(config)
  starts += [config.optimizer.fair_start_epoch] * (config.optimizer.fair_decay > 0)
  starts += [config.optimizer.swa_start_epoch]  # 0 where there is none
  starts += [config.finetune.start_epoch] * (config.loss == 'finetune')
  starts += [config.dataset.autoaugment_start_epoch] * (config.dataset.augment == 'autoaugment')
  return epoch >= max(starts, default=0)


def calibrated(config: ml_collections.ConfigDict) -> bool:
  """Whether anything follows each class's robust accuracy.

  Args:
    config: the configuration.

  Returns:
    True if a radius, β or temperature does.

  Source: ours.
  """
  c = config.calibration
  return c.radius or c.beta or c.temperature


def _calibrated_from(config: ml_collections.ConfigDict) -> int:
  # Fine-tuning's first epoch has no robust accuracy to follow yet.
  tuned = config.finetune.start_epoch + 1 if config.loss == 'finetune' else 0
  return max(config.calibration.start_epoch, tuned)


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
  if config.loss == 'finetune' and config.finetune.regulator == 'boundary':
    tau = jnp.asarray(config.finetune.tau, jnp.int32)
  return step_lib.EpochValues(jnp.asarray(epoch >= config.weights.start_epoch), tau,
                              jnp.asarray(epoch >= _calibrated_from(config)),
                              jnp.asarray(epoch >= config.dataset.autoaugment_start_epoch))


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
  if name == 'standard':  # the whole run's loss, or what is before fine-tuning
    return step_lib.Recipe(
        run.network, run.optimizer, objectives.standard, None, attack_folded=False,
        pad=c.dataset.pad, flip=c.dataset.flip, steps_per_epoch=run.steps_per_epoch,
        awp_gamma=c.awp_gamma if c.loss == 'standard' else 0.,
        autoaugment=c.dataset.augment == 'autoaugment')
  tunes = c.loss == 'finetune'
  kind = f'{c.loss}_{c.finetune.distance}' if tunes else c.loss
  attack = _INNER.get(kind, inner.uniform)(
      norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255,
      step_size=c.attack.step_size_255 / 255, num_steps=c.attack.num_steps)
  recipe = step_lib.Recipe(
      run.network, run.tuner if tunes else run.optimizer,
      _objective(c, ducat_begun=name != c.loss), attack,
      attack_folded=c.dummy.attack_logits == 'folded', pad=c.dataset.pad, flip=c.dataset.flip,
      weigh=_weigh(c), weights_on=c.weights.on, beta=c.beta, awp_gamma=c.awp_gamma,
      views=2 if c.loss == 'consistency' else 1, steps_per_epoch=run.steps_per_epoch,
      calibration=_calibration(c), autoaugment=c.dataset.augment == 'autoaugment')
  if not tunes:
    return recipe
  regulate = None
  if c.finetune.regulator == 'radius':
    regulate = functools.partial(regulated.update_radius, delta=c.finetune.delta)
  return recipe._replace(anchored=c.finetune.anchor_weight > 0, regulate=regulate)


def _calibration(config: ml_collections.ConfigDict) -> calibration_lib.Calibration:
  c = config.calibration
  return calibration_lib.Calibration(
      config.attack.epsilon_255 / 255, config.beta,
      c.radius_base if c.radius else None, c.beta_base if c.beta else None,
      c.temperature_base if c.temperature else None)


def _objective(config: ml_collections.ConfigDict, *, ducat_begun: bool) -> objectives.Objective:
  if config.loss == 'finetune':
    f = config.finetune
    return functools.partial(anchored.finetune, distance=f.distance, anchor=f.anchor,
                             anchor_weight=f.anchor_weight)
  objective = objectives.named(config.loss)
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
  c = run.config
  counts = c.weights.kind == 'class_wise' or calibrated(c)
  init = jax.jit(lambda key: step_lib.init(
      run.network, run.optimizer, key, x, averaged=c.optimizer.fair_decay > 0,
      classes_counted=run.dataset.num_classes if counts else 0))
  state = init(run.keys['init'])
  if c.loss != 'finetune':
    return state
  nothing = {'params': state.params, 'batch_stats': state.batch_stats}
  return state._replace(tuning=init_tuning(run, jax.tree.map(jnp.zeros_like, nothing), (0., 0.)))


def init_tuning(run: Run, teacher: Any, accuracies: tuple[float, float]) -> regulated.Tuning:
  """The state of fine-tuning where it begins.

  Args:
    run: the run.
    teacher: the variables that it begins from.
    accuracies: theirs on the validation split, clean and robust.

  Returns:
    A `regulated.Tuning`.

  Source: ours.
  """
  f = run.config.finetune
  return regulated.begin(teacher, rule=f.regulator, initial=f.initial,
                         num_examples=len(run.dataset.train.labels), accuracies=accuracies)

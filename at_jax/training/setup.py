"""Builds the parts of a run from its configuration: data, network, optimizers, keys and first state."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from at_jax import devices, errors, models
from at_jax.config import import_path, validation
from at_jax.datasets import pipeline
from at_jax.methods import finetune
from at_jax.models import deployed as deployed_lib
from at_jax.models import dual_batchnorm
from at_jax.training import optimizers
from at_jax.training import step as step_lib

_IMPORT_PATH = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)+')


class Run(NamedTuple):
  """The parts of a run.

  Attributes:
    config: the configuration.
    dataset: the data; of a run that `restore` reads, they are read when they are first used.
    network: the network.
    optimizer: the optimizer.
    tuner: the optimizer of fine-tuning, whose schedule starts with it, or None.
    schedule: `step -> learning rate`.
    steps_per_epoch: whole batches in the training set; the remainder of an epoch's order is dropped.
    keys: PRNG keys by use: 'init', 'order', 'train', 'evaluate', 'optimizer'.
  """
  config: ml_collections.ConfigDict
  dataset: pipeline.Dataset | pipeline.DeferredDataset
  network: deployed_lib.Network
  optimizer: optax.GradientTransformation
  tuner: optax.GradientTransformation | None
  schedule: optax.Schedule
  steps_per_epoch: int
  keys: dict[str, jax.Array]


def build(config: ml_collections.ConfigDict, *, dataset: pipeline.Dataset | None = None) -> Run:
  """Checks a configuration, loads its data and builds its parts.

  Args:
    config: the configuration.
    dataset: the data, if they are already loaded.

  Returns:
    A `Run`.

  Raises:
    errors.UserError: if a field has a wrong value or does not fit the data or the devices.
  """
  validation.check(config)
  check_devices(config)
  return assemble(config, dataset or read_data(config))


def check_devices(config: ml_collections.ConfigDict) -> None:
  """Checks that batches divide over the devices of this machine.

  Args:
    config: the configuration.

  Raises:
    errors.UserError: if a batch size does not.
  """
  for field in ('batch_size', 'evaluate.batch_size', 'validate.batch_size'):
    devices.check_batch_size(f'config.{field}', functools.reduce(getattr, field.split('.'), config))


def read_data(config: ml_collections.ConfigDict) -> pipeline.Dataset:
  """Reads the data set of a configuration, by name, from a .npz file or from a loader.

  Args:
    config: the configuration. The name `module.function` is that of a loader, a function of `config.dataset`.

  Returns:
    The data set.

  Raises:
    errors.UserError: if it cannot be read.
  """
  name, size = config.dataset.name, config.dataset.validation_size
  is_loader = _IMPORT_PATH.fullmatch(name) and not name.endswith('.npz')
  loader = import_path.load('dataset.name', name) if is_loader else None
  try:
    if loader:
      return pipeline.from_arrays(name, loader(config.dataset), validation_size=size)
    return pipeline.load(name, validation_size=size, data_dir=config.dataset.data_dir or None)
  except errors.UserError as error:
    field = {'dataset': 'dataset.name', 'validation_size': 'dataset.validation_size'}.get(error.field)
    raise errors.UserError(f'config.{field}', error.value, error.remedy) if field else error from error


def sizes(dataset: pipeline.Dataset | pipeline.DeferredDataset) -> dict[str, Any]:
  """Returns what a checkpoint stores about its data, from which `restore` builds the run without them.

  Args:
    dataset: the data set.

  Returns:
    A JSON object.

  Example:
    >>> sizes(pipeline.load('digits'))
    {'image_shape': [8, 8, 1], 'train_size': 1400}
  """
  return {'image_shape': list(dataset.image_shape), 'train_size': dataset.train_size}


def assemble(config: ml_collections.ConfigDict, dataset: pipeline.Dataset | pipeline.DeferredDataset) -> Run:
  """Builds the parts of a run from a configuration that was checked.

  Args:
    config: the configuration.
    dataset: its data.

  Returns:
    A `Run`.

  Raises:
    errors.UserError: if a field does not fit the data.
  """
  if dataset.num_classes != config.dataset.num_classes:
    raise errors.UserError('config.dataset.num_classes', config.dataset.num_classes,
                           f'{dataset.name} has {dataset.num_classes} classes: use that')
  channels = dataset.image_shape[-1]
  if config.dataset.augment == 'autoaugment' and channels not in (1, 3):
    raise errors.UserError('config.dataset.augment', 'autoaugment',
                           f"takes 1 or 3 channels, not {channels}: use 'crop'")
  steps_per_epoch = dataset.train_size // config.batch_size
  if not steps_per_epoch:
    raise errors.UserError('config.batch_size', config.batch_size,
                           f'use at most the {dataset.train_size} training examples')
  names = ('init', 'order', 'train', 'evaluate', 'optimizer')
  keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), len(names)), strict=True))
  return Run(config, dataset, _network(config),
             *optimizers.make(config, steps_per_epoch=steps_per_epoch, key=keys['optimizer']),
             steps_per_epoch, keys)


def search_network(run: Run) -> deployed_lib.Network | None:
  """Makes the network in which AutoAttack searches, if `config.evaluate.search_dtype` asks for another dtype.

  Args:
    run: the run.

  Returns:
    A `Network` that takes the same variables, or None for the network of the run.
  """
  dtype = run.config.evaluate.search_dtype
  if dtype in ('', run.config.model.dtype):
    return None
  return _network(run.config, dtype)


def _network(config: ml_collections.ConfigDict, dtype: str | None = None) -> deployed_lib.Network:
  network = deployed_lib.deploy(_model(config, dtype), has_dummies=config.dummy.enabled)
  if config.loss == 'finetune' and config.finetune.batch_norm == 'dual':
    network = dual_batchnorm.dual_batchnorm(network, deployed=config.finetune.deployed)
  return network


def _model(config: ml_collections.ConfigDict, dtype: str | None = None) -> Any:
  options = {name: value for name, value in config.model.items() if name != 'name'}
  options['dtype'] = jnp.dtype(dtype or options['dtype'])
  num_outputs = config.dataset.num_classes * (2 if config.dummy.enabled else 1)
  try:
    return getattr(models, config.model.name)(num_outputs=num_outputs, axis_name=devices.AXIS,
                                              **options)
  except TypeError as error:
    raise errors.UserError('config.model', dict(config.model), f'{config.model.name}: {error}'
                           ) from error


def calibrated(config: ml_collections.ConfigDict) -> bool:
  """Returns whether a radius, β or temperature is calibrated by class.

  Args:
    config: the configuration.

  Returns:
    True if at least one is.

  Example:
    >>> from at_jax import config
    >>> calibrated(config.default())
    False
  """
  c = config.calibration
  return c.radius or c.beta or c.temperature


def init_state(run: Run) -> step_lib.TrainState:
  """Makes the state at step 0.

  Args:
    run: the run.

  Returns:
    A `step.TrainState`.
  """
  x = jnp.zeros((1, *run.dataset.image_shape), jnp.float32)  # only its shape matters
  c = run.config
  counts_classes = c.weights.kind == 'class_wise' or calibrated(c)
  init = jax.jit(lambda key: step_lib.init(
      run.network, run.optimizer, key, x, averaged=c.optimizer.fair_decay > 0,
      classes_counted=run.dataset.num_classes if counts_classes else 0))
  state = init(run.keys['init'])
  if c.loss != 'finetune':
    return state
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  return state._replace(tuning=init_tuning(run, jax.tree.map(jnp.zeros_like, variables), (0., 0.)))


def init_tuning(run: Run, teacher: Any, accuracies: tuple[float, float]) -> finetune.Tuning:
  """Makes the state of fine-tuning at its start.

  Args:
    run: the run.
    teacher: the variables of the teacher.
    accuracies: clean and robust accuracy of the teacher on the validation split.

  Returns:
    A `methods.finetune.Tuning`.
  """
  f = run.config.finetune
  return finetune.begin_tuning(teacher, rule=f.regulator, initial=f.initial,
                               num_examples=run.dataset.train_size, accuracies=accuracies)

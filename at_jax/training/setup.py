"""Builds the parts of a run from its configuration: data, network, optimizers, keys and first state."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from at_jax import devices, errors
from at_jax.config import validation
from at_jax.datasets import pipeline
from at_jax.methods import finetune
from at_jax.models import deployed as deployed_lib
from at_jax.training import networks, optimizers, run_data
from at_jax.training import step as step_lib

_CHARACTERS = ('emnist', 'kmnist', 'mnist', 'svhn_cropped')


class Run(NamedTuple):
  """The parts of a run.

  Attributes:
    config: the configuration.
    dataset: the data; of a run that `restore` reads, they are read when they are first used.
    network: the network.
    optimizer: the optimizer.
    tuner: the optimizer of fine-tuning, whose schedule starts with it, or None.
    schedule: `step -> learning rate`.
    steps_per_epoch: whole batches in the training set, each counted as often as it is replayed; the
      remainder of an epoch's order is dropped.
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


def build(config: ml_collections.ConfigDict, *, dataset: pipeline.Dataset | None = None,
          warn: Callable[[str], None] = lambda line: None) -> Run:
  """Checks a configuration, loads its data and builds its parts.

  Args:
    config: the configuration.
    dataset: the data, if they are already loaded.
    warn: as for `validation.check`; also called if a ball contains a grey image, random crops are empty or
      characters are mirrored.

  Returns:
    A `Run`.

  Raises:
    errors.UserError: if a field has a wrong value or does not fit the data or the devices.
  """
  validation.check(config, warn)
  check_devices(config)
  networks.build(config)  # only for its errors, before the data are read
  run = assemble(config, dataset or run_data.read(config))
  _warn_of_data(config, run.dataset, warn)
  return run


def check_devices(config: ml_collections.ConfigDict, count: int | None = None) -> None:
  """Checks that batches divide over the devices.

  Args:
    config: the configuration.
    count: number of devices; None for those of JAX's default backend.

  Raises:
    errors.UserError: if a batch size does not.
  """
  for field in ('batch_size', 'evaluate.batch_size', 'validate.batch_size'):
    devices.check_batch_size(f'config.{field}', functools.reduce(getattr, field.split('.'), config), count)


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
  networks.check_normalize(config, channels)
  if config.dataset.augment == 'autoaugment' and channels not in (1, 3):
    raise errors.UserError('config.dataset.augment', 'autoaugment',
                           f"takes 1 or 3 channels, not {channels}: use 'crop'")
  steps_per_epoch = dataset.train_size // config.batch_size * replays(config)
  if not steps_per_epoch:
    raise errors.UserError('config.batch_size', config.batch_size,
                           f'use at most the {dataset.train_size} training examples')
  names = ('init', 'order', 'train', 'evaluate', 'optimizer')
  keys = dict(zip(names, jax.random.split(_key(config.seed), len(names)), strict=True))
  return Run(config, dataset, networks.build(config),
             *optimizers.make(config, steps_per_epoch=steps_per_epoch, key=keys['optimizer']),
             steps_per_epoch, keys)


def replays(config: ml_collections.ConfigDict) -> int:
  """Returns how many steps in a row use the same minibatch: m of Free-AT, else 1.

  Args:
    config: the configuration.

  Returns:
    m.

  Example:
    >>> from at_jax import config
    >>> replays(config.default())
    1
  """
  return config.replays if config.loss == 'free_at' else 1


def _warn_of_data(config: ml_collections.ConfigDict, dataset: pipeline.Dataset,
                  warn: Callable[[str], None]) -> None:
  """Warns of values that make no sense with these data."""
  for part in ('attack', 'evaluate'):
    norm, epsilon = config[part].norm, config[part].epsilon_255
    # The distance from a black image to the one that is 1/2 everywhere, the longest for any image.
    grey = 127.5 * math.prod(dataset.image_shape) ** {'linf': 0, 'l2': 1 / 2, 'l1': 1}[norm]
    if epsilon >= grey:
      warn(f'config.{part}.epsilon_255 = {epsilon:g}: every ball holds the image that is 1/2 everywhere, so '
           f'no model can be robust: use less than {grey:g}')
  pad, sides = padding(config), dataset.image_shape[:2]
  # Of the 2·pad + 1 offsets along a side, 2·(pad − side + 1) leave nothing of the image.
  kept = math.prod(1 - 2 * max(pad - side + 1, 0) / (2 * pad + 1) for side in sides)
  if kept < 1:
    warn(f'config.dataset.pad = {pad}: {100 * (1 - kept):.0f} % of the random crops of images of '
         f'{sides[0]}x{sides[1]} are empty: use less than {min(sides)}')
  if config.dataset.flip and config.dataset.name.partition('/')[0] in _CHARACTERS:
    warn(f'config.dataset.flip = True: {config.dataset.name} has digits or letters, and half of them would '
         'be mirrored: use False')


def padding(config: ml_collections.ConfigDict) -> int:
  """Returns the pixels of padding before the random crop of the step.

  Args:
    config: the configuration.

  Returns:
    `config.dataset.pad`; 0 for images that were cropped when they were read.
  """
  return 0 if config.dataset.augment == 'resized_crop' else config.dataset.pad


def _key(seed: int) -> jax.Array:
  """The key of a seed below 2⁶⁴. `jax.random.key` drops the upper 32 bits unless x64 is enabled."""
  words = np.array([seed >> 32, seed & 0xffffffff], np.uint32)
  return jax.random.wrap_key_data(words, impl='threefry2x32')


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
  rows = {'free_at': c.batch_size, 'fgsm_pgi': run.dataset.train_size}.get(c.loss)
  if rows:
    state = state._replace(tuning=jnp.zeros((rows, x.size), jnp.int8))
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

"""Builds the parts of a run from its configuration: data, network, optimizers, keys and first state."""

from collections.abc import Callable
import functools
import math
import os
import re
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from at_jax import devices, errors, models
from at_jax.config import fields, import_path, validation
from at_jax.datasets import pipeline
from at_jax.methods import finetune
from at_jax.models import deployed as deployed_lib
from at_jax.models import dual_batchnorm, layers
from at_jax.training import optimizers
from at_jax.training import step as step_lib

_CHARACTERS = ('emnist', 'kmnist', 'mnist', 'svhn_cropped')
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
  _network(config)  # only for its errors, before the data are read
  run = assemble(config, dataset or read_data(config))
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


def read_data(config: ml_collections.ConfigDict) -> pipeline.Dataset:
  """Reads the data set of a configuration, by name, from a .npz file or from a loader.

  Args:
    config: the configuration. The name `module.function` is that of a loader, a function of `config.dataset`.

  Returns:
    The data set.

  Raises:
    errors.UserError: if it cannot be read.
  """
  name, drop = config.dataset.name, config.dataset.drop_class
  options = dict(validation_size=config.dataset.validation_size, drop_class=None if drop < 0 else drop)
  is_loader = _IMPORT_PATH.fullmatch(name) and not name.endswith('.npz')
  if not name.endswith('.npz') and os.path.isfile(os.path.expanduser(name)):
    raise errors.UserError('config.dataset.name', name, 'files cannot be read, except .npz files: store '
                           'the arrays with numpy.savez, or name a loader module.function')
  loader = import_path.load('dataset.name', name, takes=('options',)) if is_loader else None
  try:
    if config.dataset.source == 'stream':
      return _open_stream(config.dataset)
    if loader:
      try:
        arrays = loader(config.dataset)
      except errors.UserError:
        raise
      except Exception as error:  # a function of the user's own may raise anything
        raise errors.UserError('dataset', name, f'{import_path.reason(error)}: it is called with '
                               'config.dataset, and returns the arrays') from error
      return pipeline.from_arrays(name, arrays, **options)
    return pipeline.load(name, data_dir=config.dataset.data_dir or None, **options)
  except errors.UserError as error:
    field = {'dataset': 'dataset.name', 'validation_size': 'dataset.validation_size',
             'dataset.source': 'dataset.source', 'drop_class': 'dataset.drop_class'}.get(error.field)
    raise errors.UserError(f'config.{field}', error.value, error.remedy) if field else error from error


def _open_stream(options: ml_collections.ConfigDict) -> pipeline.Dataset:
  try:
    from at_jax.datasets import streaming, tfds  # need packages that other data sets do not
  except ImportError as error:
    raise errors.UserError('dataset.source', 'stream', f'needs a package that is missing ({error}): '
                           "pip install 'at_jax[stream]'") from error
  try:
    return streaming.load(options.name, validation_size=options.validation_size,
                          data_dir=options.data_dir or None,
                          image_size=options.image_size if options.augment == 'resized_crop' else 0)
  except tfds.UnknownName as error:
    raise errors.UserError('dataset', options.name, "a stream needs a data set of TFDS: use its name, or "
                           "dataset.source = 'device'") from error


def data_info(dataset: pipeline.Dataset | pipeline.DeferredDataset) -> dict[str, Any]:
  """Returns what a checkpoint stores of its data.

  With the sizes, `restore` builds the run without its data. By the digest, a .npz file that was moved is
  identified.

  Args:
    dataset: the data set.

  Returns:
    A JSON object.

  Example:
    >>> data_info(pipeline.load('digits'))
    {'image_shape': [8, 8, 1], 'train_size': 1400}
  """
  info = {'image_shape': list(dataset.image_shape), 'train_size': dataset.train_size}
  return info | ({'digest': dataset.digest} if dataset.digest else {})


def known_sizes(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
  """Returns the sizes of a data set that are known by its name, without reading it.

  Args:
    config: the configuration.

  Returns:
    As `data_info`; None if the sizes are not known by name, or if a class is left out.

  Example:
    >>> from at_jax import config
    >>> known_sizes(config.default())
    {'image_shape': (32, 32, 3), 'train_size': 49000}
  """
  c, name, held_out = config.dataset, config.dataset.name, config.dataset.validation_size
  sizes = pipeline.SIZES
  if c.augment == 'resized_crop':
    sizes = {'imagenet2012': ((c.image_size, c.image_size, 3), pipeline.IMAGENET_SIZE)}
  if name not in sizes or c.drop_class >= 0:
    return None
  shape, whole = sizes[name]
  return {'image_shape': shape, 'train_size': whole - held_out}


def deferred_data(config: ml_collections.ConfigDict, known: dict[str, Any]) -> pipeline.DeferredDataset:
  """Makes a data set of known sizes, which is read when its examples are first used.

  Args:
    config: the configuration.
    known: what `data_info` returns of it.

  Returns:
    The data set.
  """
  return pipeline.DeferredDataset(
      config.dataset.name, config.dataset.num_classes, known['image_shape'], known['train_size'],
      functools.partial(read_data, config), known.get('digest', ''))


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
  _check_normalize(config, channels)
  if config.dataset.augment == 'autoaugment' and channels not in (1, 3):
    raise errors.UserError('config.dataset.augment', 'autoaugment',
                           f"takes 1 or 3 channels, not {channels}: use 'crop'")
  steps_per_epoch = dataset.train_size // config.batch_size * replays(config)
  if not steps_per_epoch:
    raise errors.UserError('config.batch_size', config.batch_size,
                           f'use at most the {dataset.train_size} training examples')
  names = ('init', 'order', 'train', 'evaluate', 'optimizer')
  keys = dict(zip(names, jax.random.split(_key(config.seed), len(names)), strict=True))
  return Run(config, dataset, _network(config),
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


def _check_normalize(config: ml_collections.ConfigDict, channels: int) -> None:
  """Checks the mean and std of a network of this package; images are in 0..1."""
  given = None if '.' in config.model.name else config.model.get('normalize')
  if given is None:
    return
  wrong = functools.partial(errors.UserError, 'config.model.normalize', _tuples(given))
  try:
    mean, std = layers.mean_and_std(given, channels)
  except ValueError as error:
    raise wrong(str(error)) from error
  if not ((0 <= mean) & (mean <= 1) & (std <= 1)).all():
    raise wrong('images are in 0..1, so mean and std are too: divide those of pixels in 0..255 by 255')


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


def search_network(run: Run) -> deployed_lib.Network | None:
  """Makes the network in which AutoAttack searches, if `config.evaluate.search_dtype` asks for another dtype.

  Args:
    run: the run.

  Returns:
    A `Network` that takes the same variables, or None for the network of the run.
  """
  dtype = run.config.evaluate.search_dtype
  if dtype in ('', run.config.model.get('dtype', 'float32')):
    return None
  return _network(run.config, dtype)


def _network(config: ml_collections.ConfigDict, dtype: str | None = None) -> deployed_lib.Network:
  network = deployed_lib.deploy(model(config, dtype), has_dummies=config.dummy.enabled)
  if config.loss == 'finetune' and config.finetune.batch_norm == 'dual':
    network = dual_batchnorm.dual_batchnorm(network, deployed=config.finetune.deployed)
  return network


def network_function(config: ml_collections.ConfigDict) -> Callable[..., nn.Module]:
  """Loads the class of `at_jax.models`, or the class or function of an import path, of `config.model.name`.

  Args:
    config: the configuration.

  Returns:
    A function that makes a linen module.

  Raises:
    errors.UserError: if it cannot be imported.
  """
  known = {name: getattr(models, name) for name in models.NETWORKS}
  return import_path.load('model.name', config.model.name, known)


def model(config: ml_collections.ConfigDict, dtype: str | None = None) -> nn.Module:
  """Makes the linen module of a configuration. It gets `axis_name` and `dtype` if it has these arguments.

  Args:
    config: the configuration.
    dtype: type of the computation; None for `config.model.dtype`.

  Returns:
    The module.

  Raises:
    errors.UserError: if a field of `config.model` is wrong.
  """
  name, options = config.model.name, config.model.to_dict()
  make = network_function(config)
  own = {each: _tuples(value) for each, value in options.items() if each not in ('name', 'dtype')}
  import_path.check_options('model', make, own)
  num_outputs = config.dataset.num_classes * (2 if config.dummy.enabled else 1)
  given = {'num_outputs': num_outputs, 'axis_name': devices.AXIS,
           'dtype': jnp.dtype(dtype or options.get('dtype', 'float32'))}
  taken = {each: value for each, value in given.items() if import_path.accepts(make, each)}
  if 'num_outputs' not in taken:
    raise errors.UserError('config.model.name', name, 'it has no argument num_outputs, the number of logits')
  if 'dtype' not in taken:
    for field in ('model.dtype', 'evaluate.search_dtype'):
      value = fields.flatten(config.to_dict()).get(field)
      if value not in (None, '', 'float32'):
        raise errors.UserError(f'config.{field}', value, f'{name} has no argument dtype: add it')
  try:
    found = make(**taken, **own)
  except TypeError as error:
    raise errors.UserError('config.model', options, f'{name}: {error}') from error
  if not isinstance(found, nn.Module):
    raise errors.UserError('config.model.name', name, f'it makes a {type(found).__name__}: use a flax linen '
                           'module, or a function that returns one')
  return found


def _tuples(value: Any) -> Any:
  """A value of config.model as a new and as a resumed run give it: JSON has no tuples."""
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


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

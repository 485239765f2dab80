"""The network of a configuration: the linen module, and its deployed form."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from at_jax import devices, errors, models
from at_jax.config import fields, import_path
from at_jax.models import deployed as deployed_lib
from at_jax.models import dual_batchnorm, layers


def build(config: ml_collections.ConfigDict, dtype: str | None = None) -> deployed_lib.Network:
  """Makes the deployed network of a configuration, with dual BatchNorm if fine-tuning asks for it.

  Args:
    config: the configuration.
    dtype: type of the computation; None for `config.model.dtype`.

  Returns:
    The network.

  Raises:
    errors.UserError: if a field of `config.model` is wrong.
  """
  network = deployed_lib.deploy(module(config, dtype), has_dummies=config.dummy.enabled)
  if config.loss == 'finetune' and config.finetune.batch_norm == 'dual':
    network = dual_batchnorm.dual_batchnorm(network, deployed=config.finetune.deployed)
  return network


def for_search(config: ml_collections.ConfigDict) -> deployed_lib.Network | None:
  """Makes the network in which AutoAttack searches, if `config.evaluate.search_dtype` asks for another dtype.

  Args:
    config: the configuration.

  Returns:
    A `Network` that takes the same variables, or None for that of `build`.

  Raises:
    errors.UserError: as `build`.
  """
  dtype = config.evaluate.search_dtype
  if dtype in ('', config.model.get('dtype', 'float32')):
    return None
  return build(config, dtype)


def maker(config: ml_collections.ConfigDict) -> Callable[..., nn.Module]:
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


def module(config: ml_collections.ConfigDict, dtype: str | None = None) -> nn.Module:
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
  make = maker(config)
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


def check_normalize(config: ml_collections.ConfigDict, channels: int) -> None:
  """Checks the mean and std of a network of this package; images are in 0..1.

  Args:
    config: the configuration.
    channels: number of channels of the images.

  Raises:
    errors.UserError: if they do not fit the channels or the range.
  """
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


def _tuples(value: Any) -> Any:
  """A value of config.model as a new and as a resumed run give it: JSON has no tuples."""
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value

"""The optimizers and learning rates of a run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from at_jax import errors
from at_jax.config import import_path
from at_jax.methods import entropy_sgd, precision, weight_averaging


class Optimizers(NamedTuple):
  """The optimizers of a run.

  Attributes:
    optimizer: the optimizer from the first step on.
    tuner: the optimizer of fine-tuning, whose schedule starts with it, or None. Both states have the
      same structure.
    learning_rate: `step of the run -> learning rate`, for logging.
  """
  optimizer: optax.GradientTransformation
  tuner: optax.GradientTransformation | None
  learning_rate: optax.Schedule


def make(config: ml_collections.ConfigDict, *, steps_per_epoch: int, key: jax.Array) -> Optimizers:
  """Makes the optimizers of a run.

  Args:
    config: the configuration.
    steps_per_epoch: number of steps of an epoch.
    key: PRNG key for the noise of EntropySGD.

  Returns:
    `Optimizers`.
  """
  o = config.optimizer
  # The schedules of EntropySGD count outer steps; one takes `inner` steps of training.
  inner = max(o.entropy.inner_steps, 1) if o.name == 'entropy_sgd' else 1
  per_epoch = steps_per_epoch / inner
  before = schedule(config, per_epoch)
  if config.loss != 'finetune':
    first = optimizer(config, before, steps_per_epoch=per_epoch, key=key)
    return Optimizers(first, None, lambda step: before(step // inner))
  tuned, since = tuning_schedule(config, per_epoch), config.finetune.start_epoch
  start, keys = since * steps_per_epoch, jax.random.split(key)
  return Optimizers(
      optimizer(config, before, steps_per_epoch=per_epoch, key=keys[0]),
      optimizer(config, tuned, steps_per_epoch=per_epoch, key=keys[1], since=since),
      lambda step: before(step // inner) if step < start else tuned((step - start) // inner))


def schedule(config: ml_collections.ConfigDict, steps_per_epoch: float) -> optax.Schedule:
  """Makes the learning rate of training; with fine-tuning, that of the clean epochs before it.

  Args:
    config: the configuration.
    steps_per_epoch: steps of the schedule per epoch.

  Returns:
    `step i32[] -> f32[]`.

  Example:
    >>> from at_jax import config
    >>> rate = schedule(config.default(), steps_per_epoch=10)  # times .1 at epochs 100 and 105
    >>> print(*(f'{rate(10 * epoch):.3f}' for epoch in (0, 99, 100, 105)))
    0.100 0.100 0.010 0.001
  """
  o, sgd = config.optimizer, _sgd(config)
  steps = steps_per_epoch * (config.finetune.start_epoch if config.loss == 'finetune' else config.epochs)
  if o.schedule == 'cosine':
    rate = optax.cosine_decay_schedule(sgd.learning_rate, max(round(steps), 1))
  elif o.schedule == 'cyclic':
    half = max(steps / 2, 1)
    rate = lambda step: sgd.learning_rate * jnp.maximum(1 - jnp.abs(step / half - 1), 0)
  else:
    falls = {round(epoch * steps_per_epoch): sgd.decay_factor for epoch in o.decay_epochs}
    rate = optax.piecewise_constant_schedule(sgd.learning_rate, falls)
  return _under_strict_promotion(rate)


def _under_strict_promotion(rate: optax.Schedule) -> optax.Schedule:
  """A schedule that also works with jax_numpy_dtype_promotion='strict': those of optax mix dtypes."""
  def call(step):
    with jax.numpy_dtype_promotion('standard'):
      return rate(step)
  return call


def _sgd(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The fields of the SGD that moves the evaluated parameters."""
  return config.optimizer.outer if config.optimizer.name == 'entropy_sgd' else config.optimizer


def tuning_schedule(config: ml_collections.ConfigDict, steps_per_epoch: float) -> optax.Schedule:
  """Makes the learning rate of fine-tuning: a linear warm-up, then exponential decay.

  Args:
    config: the configuration.
    steps_per_epoch: steps of the schedule per epoch.

  Returns:
    `step i32[] -> f32[]`; step 0 is the first of fine-tuning, and its rate is above 0.

  Example:
    >>> from at_jax import config
    >>> rate = tuning_schedule(config.default(), steps_per_epoch=4)  # one epoch of warm-up
    >>> print(*(f'{rate(step):.3f}' for step in (0, 1, 3, 4, 8)))
    0.002 0.004 0.008 0.010 0.005
  """
  f = config.finetune
  rise = round(f.warmup_epochs * steps_per_epoch)
  return _under_strict_promotion(optax.join_schedules([
      lambda count: f.learning_rate * (count + 1) / (rise + 1),
      optax.exponential_decay(f.learning_rate, steps_per_epoch, f.decay_factor)], [rise]))


def optimizer(config: ml_collections.ConfigDict, learning_rate: optax.Schedule, *,
              steps_per_epoch: float, key: jax.Array, since: int = 0
              ) -> optax.GradientTransformation:
  """Makes an optimizer, with weight decay and the averages of weights that are kept in its state.

  An optimizer that `config.optimizer.name` imports has no weight decay but its own.

  Args:
    config: the configuration.
    learning_rate: learning rate of the steps of this optimizer.
    steps_per_epoch: steps of the schedule per epoch.
    key: PRNG key for the noise of EntropySGD.
    since: epoch in which the optimizer starts.

  Returns:
    An optax transformation.

  Raises:
    errors.UserError: if an imported optimizer cannot be made.
  """
  o = config.optimizer
  parts = [_moves(config, learning_rate)]
  if o.ema_decay:
    parts.append(weight_averaging.ema(o.ema_decay))
  if o.swa_start_epoch:
    # The average starts at the end of the start epoch, not at its first step.
    first = max(o.swa_start_epoch - since, 0)
    parts.append(weight_averaging.swa(round((first + 1) * steps_per_epoch) - 1,
                                      every=max(round(steps_per_epoch), 1)))
  if '.' in o.name:
    return optax.chain(*parts)
  # Decay of every parameter is added to the gradient before momentum, as in PyTorch's SGD. With
  # EntropySGD it is added to the inner gradients, as in its released code.
  decay = precision.in_float32(optax.add_decayed_weights(o.weight_decay))
  if o.name == 'entropy_sgd':
    return optax.chain(decay, entropy_sgd.entropy_sgd(optax.chain(*parts), key=key, **o.entropy))
  return optax.chain(decay, *parts)


def _moves(config: ml_collections.ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """SGD, or the optimizer that `config.optimizer.name` imports."""
  name = config.optimizer.name
  if '.' not in name:
    return precision.in_float32(optax.sgd(learning_rate, momentum=_sgd(config).momentum))
  make, options = import_path.load('optimizer.name', name), config.optimizer.options.to_dict()
  import_path.check_options('optimizer.options', make, options)
  try:
    found = make(learning_rate=learning_rate, **options)
  except Exception as error:  # a function of the user's own may raise anything
    raise errors.UserError('config.optimizer.name', name, f'{import_path.reason(error)}: it must take '
                           'learning_rate, a function of the step, and config.optimizer.options') from error
  if not isinstance(found, optax.GradientTransformation):
    raise errors.UserError('config.optimizer.name', name, f'it returned {type(found).__name__}: return an '
                           'optax.GradientTransformation')
  return found

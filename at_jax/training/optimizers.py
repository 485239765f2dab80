"""From a configuration to an optimizer and its learning rates."""

from typing import NamedTuple

import jax
import ml_collections
import optax

from at_jax.methods import entropy_sgd, weight_averaging


class Optimizers(NamedTuple):
  """What moves the parameters.

  Attributes:
    optimizer: from the first step.
    tuner: of fine-tuning, whose schedule counts from its start, or None. Their states have the same
      structure.
    learning_rate: as a function of the run's step, a number.
  """
  optimizer: optax.GradientTransformation
  tuner: optax.GradientTransformation | None
  learning_rate: optax.Schedule


def make(config: ml_collections.ConfigDict, *, steps_per_epoch: int, key: jax.Array) -> Optimizers:
  """The optimizers of a run.

  Args:
    config: the configuration.
    steps_per_epoch: of the run.
    key: a PRNG key, for EntropySGD's noise.

  Returns:
    `Optimizers`.

  Source: ours.
  """
  o = config.optimizer
  # EntropySGD's schedules count outer steps, one of which takes `inner` steps.
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
  """The learning rate from the first epoch on; before fine-tuning, where there is such a phase.

  Args:
    config: the configuration.
    steps_per_epoch: how far an epoch moves the schedule.

  Returns:
    `i32[] -> f32[]`.

  Source: the usual definitions.
  """
  o, sgd = config.optimizer, _sgd(config)
  if o.schedule == 'cosine':
    epochs = config.finetune.start_epoch if config.loss == 'finetune' else config.epochs
    return optax.cosine_decay_schedule(sgd.learning_rate, max(round(epochs * steps_per_epoch), 1))
  falls = {round(epoch * steps_per_epoch): sgd.decay_factor for epoch in o.decay_epochs}
  return optax.piecewise_constant_schedule(sgd.learning_rate, falls)


def _sgd(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The rates of the SGD that moves what is evaluated."""
  return config.optimizer.outer if config.optimizer.name == 'entropy_sgd' else config.optimizer


def tuning_schedule(config: ml_collections.ConfigDict, steps_per_epoch: float) -> optax.Schedule:
  """The learning rate of fine-tuning: a linear rise to its largest, then a factor an epoch.

  Args:
    config: the configuration.
    steps_per_epoch: how far an epoch moves the schedule.

  Returns:
    `i32[] -> f32[]`, of the steps since fine-tuning began; the first is above 0.

  Source: ours.
  """
  f = config.finetune
  rise = round(f.warmup_epochs * steps_per_epoch)
  return optax.join_schedules([
      lambda count: f.learning_rate * (count + 1) / (rise + 1),
      optax.exponential_decay(f.learning_rate, steps_per_epoch, f.decay_factor)], [rise])


def optimizer(config: ml_collections.ConfigDict, learning_rate: optax.Schedule, *,
              steps_per_epoch: float, key: jax.Array, since: int = 0
              ) -> optax.GradientTransformation:
  """The optimizer, with the averages that are kept of its parameters.

  Args:
    config: the configuration.
    learning_rate: of the steps that this optimizer takes.
    steps_per_epoch: how far an epoch moves the schedule.
    key: a PRNG key, for EntropySGD's noise.
    since: the epoch with which it begins.

  Returns:
    An optax transformation.

  Source: `transforms`.
  """
  o = config.optimizer
  # Decay is added to the gradient before any momentum, on every parameter, as PyTorch's SGD does;
  # under EntropySGD to the inner gradients, as in its released code.
  decay = optax.add_decayed_weights(o.weight_decay)
  parts = [optax.sgd(learning_rate, momentum=_sgd(config).momentum)]
  if o.ema_decay:
    parts.append(weight_averaging.ema(o.ema_decay))
  if o.swa_start_epoch:
    # The first average is taken at the end of the start epoch, not at its first step.
    first = max(o.swa_start_epoch - since, 0)
    parts.append(weight_averaging.swa(round((first + 1) * steps_per_epoch) - 1,
                                every=max(round(steps_per_epoch), 1)))
  if o.name == 'entropy_sgd':
    return optax.chain(decay, entropy_sgd.entropy_sgd(optax.chain(*parts), key=key, **o.entropy))
  return optax.chain(decay, *parts)

"""What each epoch of a run does: its phase, the recipe of its steps, and the values that change."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import ml_collections

from at_jax import devices, methods
from at_jax.config import fields, import_path, validation
from at_jax.methods import cfa, fat, finetune, gairat, inner_attacks, mail, nuat, pgd_at, schedules
from at_jax.methods import ducat as ducat_lib
from at_jax.methods import objective as objective_lib
from at_jax.training import setup
from at_jax.training import step as step_lib


def name(config: ml_collections.ConfigDict, epoch: int) -> str:
  """Names the phase of an epoch. DUCAT and fine-tuning start after a phase without them.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    The loss, or 'standard' before fine-tuning; with DUCAT 'ducat' for PGD-AT and 'ducat_trades' and so
    on for other losses.
  """
  if config.dummy.enabled and epoch >= config.dummy.start_epoch:
    return 'ducat' if config.loss == 'pgd_at' else f'ducat_{config.loss}'
  if config.loss == 'finetune' and epoch < config.finetune.start_epoch:
    return 'standard'
  return config.loss


def method_started(config: ml_collections.ConfigDict, epoch: int) -> bool:
  """Returns whether all parts of the method are active; only then a model may become the best one.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    False in the epochs before DUCAT, fine-tuning, importance weights, calibration by class, an average
    of weights or AutoAugment starts, and while a schedule keeps the radius at 0.
  """
  starts = [config.dummy.start_epoch] * config.dummy.enabled
  starts += [config.weights.start_epoch] * (config.weights.kind != 'none')
  starts += [_calibrated_from(config)] * setup.calibrated(config)
  starts += [config.optimizer.fair_start_epoch] * (config.optimizer.fair_decay > 0)
  starts += [config.optimizer.swa_start_epoch]  # 0 without SWA
  starts += [config.finetune.start_epoch] * (config.loss == 'finetune')
  starts += [config.dataset.autoaugment_start_epoch] * (config.dataset.augment == 'autoaugment')
  starts += config.attack.ramp_epochs[:1]
  return epoch >= max(starts, default=0)


def _calibrated_from(config: ml_collections.ConfigDict) -> int:
  # In the first epoch of fine-tuning no robust training accuracy has been measured.
  tuned = config.finetune.start_epoch + 1 if config.loss == 'finetune' else 0
  return max(config.calibration.start_epoch, tuned)


def epoch_values(config: ml_collections.ConfigDict, epoch: int) -> step_lib.EpochValues:
  """Computes the values of an epoch that do not need another program.

  Args:
    config: the configuration.
    epoch: counted from 0.

  Returns:
    A `step.EpochValues`.
  """
  tau = None
  if config.attack.friendly_taus:
    tau = fat.tau_schedule(epoch, taus=config.attack.friendly_taus, epochs=config.attack.friendly_epochs)
  if config.loss == 'finetune' and config.finetune.regulator == 'boundary':
    tau = jnp.asarray(config.finetune.tau, jnp.int32)
  lam = _lam(config.weights, epoch, config.epochs) if config.weights.kind == 'geometry' else None
  beta = config.beta * schedules.ramp(epoch, *config.beta_ramp_epochs) if config.beta_ramp_epochs else None
  scheduled = jnp.asarray(epoch) if config.attack.ramp_epochs else None
  fresh = jnp.asarray(epoch % config.attack.reset_epochs == 0) if config.loss == 'fgsm_pgi' else None
  return step_lib.EpochValues(jnp.asarray(epoch >= config.weights.start_epoch), tau,
                              jnp.asarray(epoch >= _calibrated_from(config)),
                              jnp.asarray(epoch >= config.dataset.autoaugment_start_epoch), lam, scheduled,
                              beta, fresh)


def _lam(w: ml_collections.ConfigDict, epoch: int, epochs: int) -> jax.Array:
  if w.schedule == 'linear':
    return schedules.linear(epoch + 1, first=w.lam_first, last=w.lam, epochs=epochs)
  changes = dict(zip(w.lam_epochs, w.later_lams, strict=True))
  return jnp.asarray(schedules.by_epoch(epoch, w.lam, changes), jnp.float32)


def recipe(run: setup.Run, phase: str) -> step_lib.Recipe:
  """Makes the recipe of a phase: what its training steps do.

  Args:
    run: the run.
    phase: the phase, as `name` gives it.

  Returns:
    A `step.Recipe`.
  """
  c = run.config
  common = dict(pad=setup.padding(c), flip=c.dataset.flip, steps_per_epoch=run.steps_per_epoch,
                ramp_epochs=tuple(c.attack.ramp_epochs),
                autoaugment=c.dataset.augment == 'autoaugment', image_shape=run.dataset.image_shape)
  if phase == 'standard':  # the loss of the whole run, or the phase before fine-tuning
    return step_lib.Recipe(run.network, run.optimizer, pgd_at.standard, None, attack_folded=False,
                           awp_gamma=c.awp_gamma if c.loss == 'standard' else 0., **common)
  tunes = c.loss == 'finetune'
  regulate = None
  if tunes and c.finetune.regulator == 'radius':
    regulate = functools.partial(finetune.update_radius, delta=c.finetune.delta)
  replayed = c.loss == 'free_at'
  attack, takes_beta = (None, False) if replayed else _attack(run)
  return step_lib.Recipe(
      run.network, run.tuner if tunes else run.optimizer, _objective(c, with_ducat=phase != c.loss),
      attack, attack_beta=takes_beta, attack_folded=c.dummy.attack_logits == 'folded', weigh=_weigh(c),
      weights_on=c.weights.on, beta=c.beta, awp_gamma=c.awp_gamma,
      views=2 if c.loss == 'consistency' else 1, calibration=_calibration(c),
      uses_teacher=tunes and c.finetune.anchor_weight > 0, regulate=regulate,
      radius=c.attack.epsilon_255 / 255, replays=setup.replays(c) if replayed else 0, **common)


def _attack(run: setup.Run) -> tuple[inner_attacks.Attack, bool]:
  """The inner attack, and whether it takes β."""
  c = run.config
  make = validation.attack_factory(fields.flatten(c.to_dict()))
  own = dict(axis_name=devices.AXIS) if make is nuat.nuclear else {}
  attack = make(
      norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255,
      step_size=c.attack.step_size_255 / 255, num_steps=c.attack.num_steps,
      # κ counts whether the deployed decision is correct, for any attacked logits.
      decide=None if c.dummy.attack_logits == 'folded' else run.network.fold, **own)
  return attack, make is nuat.nuclear


def _calibration(config: ml_collections.ConfigDict) -> cfa.Calibration:
  c = config.calibration
  return cfa.Calibration(
      config.attack.epsilon_255 / 255, config.beta,
      c.radius_base if c.radius else None, c.beta_base if c.beta else None,
      c.temperature_base if c.temperature else None)


def _objective(config: ml_collections.ConfigDict, *, with_ducat: bool) -> objective_lib.Objective:
  if config.loss == 'finetune':
    f = config.finetune
    return functools.partial(finetune.finetune, distance=f.distance, anchor=f.anchor,
                             anchor_weight=f.anchor_weight, clean_weight=f.clean_weight)
  objective = import_path.load('loss', config.loss, methods.OBJECTIVES)
  if config.loss == 'consistency':
    objective = functools.partial(objective, temperature=config.consistency_temperature)
  if config.loss == 'nuat':
    objective = functools.partial(objective, axis_name=devices.AXIS)
  if not with_ducat:
    return objective
  d = config.dummy
  ducat = functools.partial(ducat_lib.ducat, benign_weight=d.benign_weight,
                            adversarial_weight=d.adversarial_weight, alpha=d.alpha)
  return ducat if config.loss == 'pgd_at' else functools.partial(objective, ducat=ducat)


def _weigh(config: ml_collections.ConfigDict) -> Callable[..., jax.Array] | None:
  w = config.weights
  if w.kind == 'geometry':
    # λ is replaced by that of the epoch, `EpochValues.lam`.
    return functools.partial(gairat.weigh, num_steps=config.attack.num_steps, lam=w.lam, form=w.form,
                             normalized=w.normalized)
  if w.kind == 'margin':
    return functools.partial(mail.weigh, bias=w.bias, slope=w.slope)
  return functools.partial(cfa.weigh, base=w.base) if w.kind == 'class_wise' else None

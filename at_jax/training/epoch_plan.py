"""What each epoch of a run does: its program, and what it decides without another program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from at_jax import methods
from at_jax.methods import cfa, finetune, gairat, inner_attacks, pgd_at
from at_jax.methods import ducat as ducat_lib
from at_jax.methods import objective as objective_lib
from at_jax.training import setup
from at_jax.training import step as step_lib

# What each loss is attacked with while it trains; one from elsewhere as PGD-AT is.
_INNER = {'pgd_at': inner_attacks.uniform, 'consistency': inner_attacks.uniform, 'mart': inner_attacks.gaussian,
          'trades': inner_attacks.kl, 'gair_trades': inner_attacks.kl_and_margin,
          'finetune_cross_entropy': inner_attacks.uniform, 'finetune_kl': inner_attacks.kl}


def name(config: ml_collections.ConfigDict, epoch: int) -> str:
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
  starts += [_calibrated_from(config)] * setup.calibrated(config)
  starts += [config.optimizer.fair_start_epoch] * (config.optimizer.fair_decay > 0)
  starts += [config.optimizer.swa_start_epoch]  # 0 where there is none
  starts += [config.finetune.start_epoch] * (config.loss == 'finetune')
  starts += [config.dataset.autoaugment_start_epoch] * (config.dataset.augment == 'autoaugment')
  return epoch >= max(starts, default=0)


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
    tau = gairat.by_epoch(epoch, first, changes)
  if config.loss == 'finetune' and config.finetune.regulator == 'boundary':
    tau = jnp.asarray(config.finetune.tau, jnp.int32)
  lam = _lam(config.weights, epoch, config.epochs) if config.weights.kind == 'geometry' else None
  return step_lib.EpochValues(jnp.asarray(epoch >= config.weights.start_epoch), tau,
                              jnp.asarray(epoch >= _calibrated_from(config)),
                              jnp.asarray(epoch >= config.dataset.autoaugment_start_epoch), lam)


def _lam(w: ml_collections.ConfigDict, epoch: int, epochs: int) -> jax.Array:
  if w.schedule == 'linear':
    return gairat.linear(epoch + 1, first=w.lam_first, last=w.lam, epochs=epochs)
  changes = dict(zip(w.lam_epochs, w.later_lams, strict=True))
  return jnp.asarray(gairat.by_epoch(epoch, w.lam, changes), jnp.float32)


def recipe(run: setup.Run, phase: str) -> step_lib.Recipe:
  """What a training step of a phase does.

  Args:
    run: the run.
    phase: as `name` gives it.

  Returns:
    A `step.Recipe`.

  Source: ours.
  """
  c = run.config
  if phase == 'standard':  # the whole run's loss, or what is before fine-tuning
    return step_lib.Recipe(
        run.network, run.optimizer, pgd_at.standard, None, attack_folded=False,
        pad=c.dataset.pad, flip=c.dataset.flip, steps_per_epoch=run.steps_per_epoch,
        awp_gamma=c.awp_gamma if c.loss == 'standard' else 0.,
        autoaugment=c.dataset.augment == 'autoaugment')
  tunes = c.loss == 'finetune'
  kind = f'{c.loss}_{c.finetune.distance}' if tunes else c.loss
  kind_of_attack = _INNER.get(kind, inner_attacks.uniform)
  if c.attack.start == 'beside':  # allowed where it would else be uniform
    kind_of_attack = inner_attacks.gaussian
  folded = c.dummy.attack_logits == 'folded'
  attack = kind_of_attack(
      norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255,
      step_size=c.attack.step_size_255 / 255, num_steps=c.attack.num_steps,
      # What κ counts is whether the deployed model stands, whatever is attacked.
      decide=None if folded else run.network.fold)
  recipe = step_lib.Recipe(
      run.network, run.tuner if tunes else run.optimizer,
      _objective(c, ducat_begun=phase != c.loss), attack,
      attack_folded=folded, pad=c.dataset.pad, flip=c.dataset.flip,
      weigh=_weigh(c), weights_on=c.weights.on, beta=c.beta, awp_gamma=c.awp_gamma,
      views=2 if c.loss == 'consistency' else 1, steps_per_epoch=run.steps_per_epoch,
      calibration=_calibration(c), autoaugment=c.dataset.augment == 'autoaugment')
  if not tunes:
    return recipe
  regulate = None
  if c.finetune.regulator == 'radius':
    regulate = functools.partial(finetune.update_radius, delta=c.finetune.delta)
  return recipe._replace(anchored=c.finetune.anchor_weight > 0, regulate=regulate)


def _calibration(config: ml_collections.ConfigDict) -> cfa.Calibration:
  c = config.calibration
  return cfa.Calibration(
      config.attack.epsilon_255 / 255, config.beta,
      c.radius_base if c.radius else None, c.beta_base if c.beta else None,
      c.temperature_base if c.temperature else None)


def _objective(config: ml_collections.ConfigDict, *, ducat_begun: bool) -> objective_lib.Objective:
  if config.loss == 'finetune':
    f = config.finetune
    return functools.partial(finetune.finetune, distance=f.distance, anchor=f.anchor,
                             anchor_weight=f.anchor_weight)
  objective = methods.named(config.loss)
  if config.loss == 'consistency':
    objective = functools.partial(objective, temperature=config.consistency_temperature)
  if not ducat_begun:
    return objective
  d = config.dummy
  ducat = functools.partial(ducat_lib.ducat, benign_weight=d.benign_weight,
                            adversarial_weight=d.adversarial_weight, alpha=d.alpha)
  return ducat if config.loss == 'pgd_at' else functools.partial(objective, ducat=ducat)


def _weigh(config: ml_collections.ConfigDict) -> Any:
  w = config.weights
  if w.kind == 'none':
    return None
  options = {
      # λ here is that of a step which is told of no epoch.
      'geometry': dict(num_steps=config.attack.num_steps, lam=w.lam, form=w.form,
                       normalized=w.normalized),
      'margin': dict(bias=w.bias, slope=w.slope),
      'class_wise': dict(base=w.base),
  }
  return functools.partial(getattr(gairat, w.kind), **options[w.kind])

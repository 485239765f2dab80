"""What is wrong with a configuration, said in one line before anything is read or written."""

import math

import ml_collections

from at_jax import config as config_lib
from at_jax import errors
from at_jax import models
from at_jax import protocols

_CHOICES = {
    'attack.norm': ('linf', 'l2'),
    'dummy.attack_logits': ('raw', 'folded'),
    'evaluate.search_dtype': ('', 'bfloat16'),
    'loss': ('standard', 'pgd_at', 'trades', 'gair_trades', 'mart', 'consistency'),
    'model.dtype': ('float32', 'bfloat16', 'float64'),
    'model.name': tuple(models.__all__),
    'optimizer.name': ('sgd', 'entropy_sgd'),
    'optimizer.schedule': ('piecewise', 'cosine'),
    'weights.form': ('tanh', 'sigmoid', 'discrete'),
    'weights.kind': ('none', 'geometry', 'margin', 'class_wise'),
    'weights.on': ('fit', 'regulariser', 'both'),
}
_WHOLE = {  # field: smallest value
    'attack.num_steps': 1, 'batch_size': 1, 'checkpoint.every_steps': 0, 'checkpoint.keep': 1,
    'dataset.num_classes': 2, 'dataset.pad': 0, 'dataset.validation_size': 0,
    'dummy.start_epoch': 0, 'epochs': 1, 'evaluate.batch_size': 1, 'evaluate.num_examples': 0,
    'log_every_steps': 1, 'seed': 0, 'validate.batch_size': 1, 'validate.every_epochs': 1,
    'optimizer.entropy.inner_steps': 0, 'optimizer.swa_start_epoch': 0, 'validate.num_steps': 1,
    'weights.start_epoch': 0,
}
_POSITIVE = ('attack.step_size_255', 'consistency_temperature', 'dummy.alpha',
             'evaluate.step_size_255', 'optimizer.decay_factor',
             'optimizer.entropy.inner_learning_rate', 'optimizer.learning_rate', 'weights.base',
             'weights.slope')
_NOT_NEGATIVE = ('awp_gamma', 'beta', 'optimizer.entropy.gamma', 'optimizer.entropy.noise',
                 'optimizer.entropy.scoping', 'optimizer.weight_decay')
_RADII = ('attack.epsilon_255', 'evaluate.epsilon_255')
_SHARES = ('dummy.adversarial_weight', 'dummy.benign_weight')
_SHARES_BELOW_ONE = ('optimizer.ema_decay', 'optimizer.entropy.momentum', 'optimizer.momentum')
_HAVE_REGULARISER = ('trades', 'gair_trades', 'mart', 'consistency')


def check(config: ml_collections.ConfigDict) -> None:
  """Raises for the first field whose value makes no sense.

  Args:
    config: the configuration of a run.

  Raises:
    errors.UserError: with the field, its value and the remedy.

  Example:
    >>> c = config_lib.default()
    >>> c.epochs = 0
    >>> check(c)
    Traceback (most recent call last):
    at_jax.errors.UserError: config.epochs = 0: use a whole number of at least 1

  Source: ours.
  """
  flat = config_lib.flatten(config.to_dict())
  for name, known in _CHOICES.items():
    _require(flat, name, flat[name] in known, errors.nearest(flat[name], known))
  for name, least in _WHOLE.items():
    _require(flat, name, flat[name] >= least, f'use a whole number of at least {least}')
  for name in _POSITIVE:
    _require(flat, name, 0 < flat[name] < math.inf, 'use a number above 0')
  # The L2 ball of a 3072-dimensional image reaches further than 255, so only L∞ has a largest radius.
  largest = 255 if flat['attack.norm'] == 'linf' else math.inf
  for name in _RADII:
    _require(flat, name, 0 < flat[name] <= largest,
             'use a radius above 0' + (', of at most 255' if largest == 255 else '')
             + ' (8.0 means 8/255)')
  for name in _SHARES:
    _require(flat, name, 0 <= flat[name] <= 1, 'use a share between 0 and 1')
  for name in _SHARES_BELOW_ONE:
    _require(flat, name, 0 <= flat[name] < 1, 'use a number of at least 0 and below 1')
  for name in _NOT_NEGATIVE:
    _require(flat, name, 0 <= flat[name] < math.inf, 'use a number of at least 0')
  decays = flat['optimizer.decay_epochs']
  _require(flat, 'optimizer.decay_epochs', decays == sorted(decays) and min(decays, default=1) > 0,
           'use epochs above 0 in rising order')
  for name in flat['evaluate.attacks']:
    if not protocols.known(name):
      raise errors.UserError('config.evaluate.attacks', name,
                             'use fgsm, pgd20 (20 steps), pgd20x5 (5 restarts of 20 steps), '
                             'margin100x5, scale10_pgd20, scales_pgd20, dummies_pgd100, autoattack '
                             'or another name of at_jax/protocols.py')
  _check_method(flat)
  if flat['dummy.enabled']:
    _require(flat, 'dummy.start_epoch', flat['dummy.start_epoch'] < flat['epochs'],
             f'the dummy classes would never be trained: use one below epochs = {flat["epochs"]}')
    _require(flat, 'loss', flat['loss'] != 'standard',
             "dummy classes need adversarial examples: use loss = 'pgd_at'")


def _check_method(flat: dict) -> None:
  """Which weights go with which loss, and what friendly PGD and averages need."""
  taus, epochs = flat['attack.friendly_taus'], flat['attack.friendly_epochs']
  _require(flat, 'attack.friendly_epochs', len(epochs) == max(len(taus) - 1, 0)
           and epochs == sorted(epochs) and min(epochs, default=1) > 0,
           'use epochs above 0 in rising order, one fewer than attack.friendly_taus')
  _require(flat, 'attack.friendly_taus', all(isinstance(tau, int) and tau >= 0 for tau in taus),
           'use whole numbers of at least 0')
  both = flat['optimizer.swa_start_epoch'] and flat['optimizer.ema_decay']
  _require(flat, 'optimizer.swa_start_epoch', not both,
           'one average is kept: set optimizer.ema_decay or this to 0')
  _require(flat, 'optimizer.swa_start_epoch', flat['optimizer.swa_start_epoch'] < flat['epochs'],
           f'nothing would be averaged: use one below epochs = {flat["epochs"]}')
  loss, kind = flat['loss'], flat['weights.kind']
  _require(flat, 'weights.lam', flat['weights.lam'] > -math.inf, 'use a number; inf is no weights')
  _require(flat, 'weights.bias', math.isfinite(flat['weights.bias']), 'use a number')
  if loss == 'gair_trades':
    _require(flat, 'weights.kind', kind == 'geometry',
             "it says how gair_trades shares its two attacks: use 'geometry'")
    _require(flat, 'weights.on', flat['weights.on'] == 'regulariser',
             "gair_trades shares its regulariser: use 'regulariser'")
    _require(flat, 'weights.normalized', not flat['weights.normalized'],
             'a share must not be above 1: use False')
  if kind == 'none':
    return
  _require(flat, 'weights.kind', loss != 'standard',
           "there is no attack to weigh by: use 'none', or another loss than 'standard'")
  _require(flat, 'weights.on', flat['weights.on'] == 'fit' or loss in _HAVE_REGULARISER,
           f"{loss} has no regulariser: use 'fit'")
  _require(flat, 'weights.start_epoch', flat['weights.start_epoch'] < flat['epochs'],
           f'the weights would never count: use one below epochs = {flat["epochs"]}')


def _require(flat: dict, name: str, fine: bool, remedy: str) -> None:
  if not fine:
    raise errors.UserError(f'config.{name}', flat[name], remedy)

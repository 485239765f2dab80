"""What is wrong with a configuration, said in one line before anything is read or written."""

import math

import ml_collections

from at_jax import autoattack
from at_jax import config as config_lib
from at_jax import errors
from at_jax import evaluate
from at_jax import models

_CHOICES = {
    'attack.norm': ('linf', 'l2'),
    'dummy.attack_logits': ('raw', 'folded'),
    'loss': ('standard', 'pgd_at'),
    'model.dtype': ('float32', 'bfloat16', 'float64'),
    'model.name': tuple(models.__all__),
    'optimizer.schedule': ('piecewise', 'cosine'),
}
_WHOLE = {  # field: smallest value
    'attack.num_steps': 1, 'batch_size': 1, 'checkpoint.every_steps': 0, 'checkpoint.keep': 1,
    'dataset.num_classes': 2, 'dataset.pad': 0, 'dataset.validation_size': 0,
    'dummy.start_epoch': 0, 'epochs': 1, 'evaluate.batch_size': 1, 'evaluate.num_examples': 0,
    'log_every_steps': 1, 'seed': 0, 'validate.batch_size': 1, 'validate.every_epochs': 1,
    'validate.num_steps': 1,
}
_POSITIVE = ('attack.step_size_255', 'dummy.alpha', 'evaluate.step_size_255',
             'optimizer.decay_factor', 'optimizer.learning_rate')
_RADII = ('attack.epsilon_255', 'evaluate.epsilon_255')
_SHARES = ('dummy.adversarial_weight', 'dummy.benign_weight')
_SHARES_BELOW_ONE = ('optimizer.ema_decay', 'optimizer.momentum')


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
  _require(flat, 'optimizer.weight_decay', 0 <= flat['optimizer.weight_decay'] < math.inf,
           'use a number of at least 0')
  decays = flat['optimizer.decay_epochs']
  _require(flat, 'optimizer.decay_epochs', decays == sorted(decays) and min(decays, default=1) > 0,
           'use epochs above 0 in rising order')
  for name in flat['evaluate.attacks']:
    if evaluate.parse(name) is None:
      raise errors.UserError('config.evaluate.attacks', name,
                             'use fgsm, pgd20 (20 steps), pgd20x5 (5 restarts of 20 steps), '
                             + ', '.join(autoattack.VERSIONS))
  if flat['dummy.enabled']:
    _require(flat, 'dummy.start_epoch', flat['dummy.start_epoch'] < flat['epochs'],
             f'the dummy classes would never be trained: use one below epochs = {flat["epochs"]}')
    _require(flat, 'loss', flat['loss'] != 'standard',
             "dummy classes need adversarial examples: use loss = 'pgd_at'")


def _require(flat: dict, name: str, fine: bool, remedy: str) -> None:
  if not fine:
    raise errors.UserError(f'config.{name}', flat[name], remedy)

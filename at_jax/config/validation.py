"""What is wrong with a configuration, said in one line before anything is read or written."""

import inspect
import math

import ml_collections

from at_jax import errors, methods, models
from at_jax.config import fields
from at_jax.evaluation import attack_names
from at_jax.methods import finetune
from at_jax.models import dual_batchnorm

_CHOICES = {
    'attack.norm': ('linf', 'l2'),
    'attack.start': ('uniform', 'beside'),
    'dataset.augment': ('crop', 'autoaugment'),
    'dummy.attack_logits': ('raw', 'folded'),
    'evaluate.norm': ('linf', 'l2', 'l1'),
    'evaluate.search_dtype': ('', 'bfloat16'),
    'finetune.anchor': finetune.ANCHORS,
    'finetune.batch_norm': ('shared', 'dual'),
    'finetune.checkpoint': ('best', 'last'),
    'finetune.deployed': dual_batchnorm.NAMES,
    'finetune.distance': finetune.DISTANCES,
    'finetune.regulator': ('none', 'boundary', 'radius', 'controller'),
    'inference.kind': ('none', 'bias', 'temperature'),
    'loss': ('standard', 'pgd_at', 'trades', 'gair_trades', 'mart', 'consistency', 'finetune'),
    'model.dtype': ('float32', 'bfloat16', 'float64'),
    'model.name': tuple(models.__all__),
    'optimizer.name': ('sgd', 'entropy_sgd'),
    'optimizer.schedule': ('piecewise', 'cosine'),
    'validate.choose_by': ('average', 'average_and_worst'),
    'weights.form': ('tanh', 'sigmoid', 'discrete'),
    'weights.kind': ('none', 'geometry', 'margin', 'class_wise'),
    'weights.on': ('fit', 'regulariser', 'both'),
    'weights.schedule': ('stages', 'linear'),
}
_WHOLE = {  # field: smallest value
    'attack.num_steps': 1, 'batch_size': 1, 'calibration.start_epoch': 1,
    'checkpoint.every_steps': 0, 'checkpoint.keep': 1, 'dataset.autoaugment_start_epoch': 0,
    'dataset.num_classes': 2, 'dataset.pad': 0, 'dataset.validation_size': 0,
    'dummy.start_epoch': 0, 'epochs': 1, 'evaluate.batch_size': 1, 'evaluate.num_examples': 0,
    'finetune.start_epoch': 0, 'finetune.tau': 0, 'inference.rounds': 1, 'log_every_steps': 1,
    'optimizer.fair_start_epoch': 0, 'seed': 0, 'validate.batch_size': 1,
    'validate.every_epochs': 1, 'optimizer.entropy.inner_steps': 0,
    'optimizer.swa_start_epoch': 0, 'validate.num_steps': 1, 'weights.start_epoch': 0,
}
_POSITIVE = ('attack.step_size_255', 'calibration.beta_base', 'calibration.radius_base',
             'calibration.temperature_base', 'consistency_temperature', 'dummy.alpha',
             'evaluate.step_size_255', 'finetune.decay_factor', 'finetune.learning_rate',
             'inference.rate', 'optimizer.decay_factor', 'optimizer.entropy.inner_learning_rate',
             'optimizer.learning_rate', 'optimizer.outer.decay_factor',
             'optimizer.outer.learning_rate', 'weights.base', 'weights.slope')
_NOT_NEGATIVE = ('awp_gamma', 'beta', 'finetune.anchor_weight', 'finetune.warmup_epochs',
                 'optimizer.entropy.gamma', 'optimizer.entropy.noise',
                 'optimizer.entropy.scoping', 'optimizer.weight_decay')
_SHARES = ('dummy.adversarial_weight', 'dummy.benign_weight', 'finetune.delta', 'finetune.initial',
           'finetune.tolerance', 'optimizer.fair_threshold')
_SHARES_BELOW_ONE = ('optimizer.ema_decay', 'optimizer.entropy.momentum', 'optimizer.fair_decay',
                     'optimizer.momentum', 'optimizer.outer.momentum')
_HAVE_REGULARISER = ('trades', 'gair_trades', 'mart', 'consistency', 'finetune')


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
  flat = fields.flatten(config.to_dict())
  for name, known in _CHOICES.items():
    _require(flat, name, flat[name] in known or name == 'loss' and '.' in flat[name],
             errors.nearest(flat[name], known))
  if '.' in flat['loss']:
    methods.named(flat['loss'])
  for name, least in _WHOLE.items():
    _require(flat, name, flat[name] >= least, f'use a whole number of at least {least}')
  for name in _POSITIVE:
    _require(flat, name, 0 < flat[name] < math.inf, 'use a number above 0')
  for part in ('attack', 'evaluate'):
    # The L2 ball of a 3072-dimensional image reaches further than 255: only L∞ has a largest radius.
    bounded = flat[f'{part}.norm'] == 'linf'
    name = f'{part}.epsilon_255'
    _require(flat, name, 0 < flat[name] <= (255 if bounded else math.inf),
             f'use a radius above 0{", of at most 255" * bounded} (8.0 means 8/255)')
  for name in ('epsilon_255', 'step_size_255'):
    _require(flat, f'evaluate.{name}', flat['evaluate.norm'] == flat['attack.norm']
             or flat[f'evaluate.{name}'] != flat[f'attack.{name}'],
             f'it is that of training, whose norm is {flat["attack.norm"]}: set it for '
             f'evaluate.norm = {flat["evaluate.norm"]}')
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
    if not attack_names.known(name):
      raise errors.UserError('config.evaluate.attacks', name,
                             'use pgd20 (20 steps), pgd20x5 (5 restarts of 20 steps), '
                             'margin100x5, scales_pgd20, dummies_pgd100, autoattack, apgd-t '
                             'or another name of at_jax/protocols.py')
  usable = [name for name in flat['evaluate.attacks'] if flat['dummy.enabled']
            or not all(map(attack_names.knows_dummies, attack_names.expand(name)))]
  _require(flat, 'evaluate.attacks', bool(usable),
           'nothing of it attacks this model, whose clean accuracy would stand as robust: add pgd20')
  _require(flat, 'dataset.autoaugment_start_epoch', flat['dataset.augment'] == 'crop'
           or flat['dataset.autoaugment_start_epoch'] < flat['epochs'],
           f'AutoAugment would never begin: use one below epochs = {flat["epochs"]}')
  _check_method(flat)
  _check_classes(flat)
  _check_finetune(flat)
  if flat['dummy.enabled']:
    _require(flat, 'dummy.start_epoch', flat['dummy.start_epoch'] < flat['epochs'],
             f'the dummy classes would never be trained: use one below epochs = {flat["epochs"]}')
    _require(flat, 'loss', flat['loss'] != 'standard',
             "dummy classes need adversarial examples: use loss = 'pgd_at'")
    _require(flat, 'loss', '.' not in flat['loss']
             or 'ducat' in inspect.signature(methods.named(flat['loss'])).parameters,
             'with dummy classes it needs an argument `ducat`, as objectives.trades has it')


def _check_method(flat: dict) -> None:
  """Which weights go with which loss, and what friendly PGD and averages need."""
  taus, epochs = flat['attack.friendly_taus'], flat['attack.friendly_epochs']
  _require(flat, 'attack.friendly_epochs', len(epochs) == max(len(taus) - 1, 0)
           and epochs == sorted(epochs) and min(epochs, default=1) > 0,
           'use epochs above 0 in rising order, one fewer than attack.friendly_taus')
  _require(flat, 'attack.friendly_taus', not taus or flat['loss'] != 'standard',
           "there is no attack to stop: use (), or another loss than 'standard'")
  _require(flat, 'attack.friendly_taus', all(isinstance(tau, int) and tau >= 0 for tau in taus),
           'use whole numbers of at least 0')
  _require(flat, 'attack.start', flat['attack.start'] == 'uniform' or '.' in flat['loss']
           or flat['loss'] in ('pgd_at', 'consistency'),
           f"the attack of {flat['loss']} has a start of its own: use 'uniform'")
  both = flat['optimizer.swa_start_epoch'] and flat['optimizer.ema_decay']
  _require(flat, 'optimizer.swa_start_epoch', not both,
           'one average is kept: set optimizer.ema_decay or this to 0')
  _require(flat, 'optimizer.swa_start_epoch', flat['optimizer.swa_start_epoch'] < flat['epochs'],
           f'nothing would be averaged: use one below epochs = {flat["epochs"]}')
  loss, kind = flat['loss'], flat['weights.kind']
  _require(flat, 'weights.lam', flat['weights.lam'] > -math.inf, 'use a number; inf is no weights')
  lams, changes = flat['weights.later_lams'], flat['weights.lam_epochs']
  _require(flat, 'weights.lam_epochs', len(changes) == len(lams) and changes == sorted(changes),
           'use epochs in rising order, as many as weights.later_lams')
  _require(flat, 'weights.later_lams', not lams or flat['weights.schedule'] == 'stages',
           "λ is on a line: use (), or weights.schedule = 'stages'")
  _require(flat, 'weights.later_lams', all(lam > -math.inf for lam in lams), 'use numbers')
  _require(flat, 'weights.lam_first', math.isfinite(flat['weights.lam_first']), 'use a number')
  _require(flat, 'weights.lam', flat['weights.schedule'] == 'stages'
           or math.isfinite(flat['weights.lam']), 'a line ends at a number')
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
  _require(flat, 'weights.on', flat['weights.on'] == 'fit' or may_regularise(loss),
           f"{loss} has no regulariser: use 'fit'")
  _require(flat, 'weights.start_epoch', flat['weights.start_epoch'] < flat['epochs'],
           f'the weights would never count: use one below epochs = {flat["epochs"]}')


def _check_classes(flat: dict) -> None:
  """What CFA and a modified inference need."""
  _require(flat, 'calibration.beta', not flat['calibration.beta']
           or flat['loss'] == 'standard' or may_regularise(flat['loss']),
           f'{flat["loss"]} has no regulariser whose β could follow: use False')
  for name in ('radius', 'beta', 'temperature'):
    if not flat[f'calibration.{name}']:
      continue
    _require(flat, f'calibration.{name}', flat['loss'] != 'standard',
             "there is no robust accuracy to follow: use False, or another loss than 'standard'")
    _require(flat, 'calibration.start_epoch', flat['calibration.start_epoch'] < flat['epochs'],
             f'no factor would ever count: use one below epochs = {flat["epochs"]}')
  if flat['optimizer.fair_decay']:
    others = flat['optimizer.ema_decay'] or flat['optimizer.swa_start_epoch']
    _require(flat, 'optimizer.fair_decay', not others,
             'one average is kept: set optimizer.ema_decay and swa_start_epoch, or this, to 0')
    late = flat['optimizer.fair_start_epoch'] >= flat['epochs']
    _require(flat, 'optimizer.fair_start_epoch', not late,
             f'nothing would be averaged: use one below epochs = {flat["epochs"]}')
  needs = (flat['optimizer.fair_decay'] and 'optimizer.fair_decay looks at the worst class of it'
           or flat['inference.kind'] != 'none' and 'inference.kind is fitted on it')
  _require(flat, 'dataset.validation_size', flat['dataset.validation_size'] or not needs,
           f'{needs}: use more than 0')


def _check_finetune(flat: dict) -> None:
  """What fine-tuning needs, and what does not go with it."""
  if flat['loss'] != 'finetune':
    return
  f = {name.removeprefix('finetune.'): value for name, value in flat.items()
       if name.startswith('finetune.')}
  start, epochs = f['start_epoch'], flat['epochs']
  _require(flat, 'finetune.start_epoch', start < epochs,
           f'the model would never be fine-tuned: use one below epochs = {epochs}')
  _require(flat, 'finetune.source', not (start and f['source']),
           f"it begins from clean training of its own: set finetune.start_epoch = {start} to 0, or "
           "this to ''")
  _require(flat, 'finetune.anchor_weight', start or f['source'] or not f['anchor_weight'],
           'the teacher would be an untrained network: name a finetune.source, set '
           'finetune.start_epoch, or set this to 0')
  _require(flat, 'dataset.validation_size', flat['dataset.validation_size'] > 0,
           'fine-tuning measures the clean accuracy that it keeps on them: use one above 0')
  _require(flat, 'dummy.enabled', not flat['dummy.enabled'],
           "the cross-entropies and the teacher's head of fine-tuning have no dummy classes: use "
           'False')
  _require(flat, 'attack.friendly_taus', not flat['attack.friendly_taus'],
           "fine-tuning has a rule for it: use () and finetune.regulator = 'boundary'")
  _require(flat, 'validate.choose_by', flat['validate.choose_by'] == 'average',
           "fine-tuning chooses by its operating point: use 'average'")
  _require(flat, 'calibration.temperature', not flat['calibration.temperature'],
           "the teacher's logits have no temperature by class: use False")
  _require(flat, 'optimizer.fair_decay', not flat['optimizer.fair_decay'],
           'the operating point is one of its epochs, not an average of them: use 0')
  normalises = flat.get('model.batch_norm', flat['model.name'] != 'SmallCNN')
  _require(flat, 'finetune.batch_norm', normalises or f['batch_norm'] == 'shared',
           "the network has no BatchNorm: use 'shared', or model.batch_norm = True")


def may_regularise(loss: str) -> bool:
  """Whether a loss has a regulariser; what one from elsewhere has is not known before it is run.

  Args:
    loss: the field of the configuration.

  Returns:
    False if `config.beta` weighs nothing.

  Example:
    >>> may_regularise('trades'), may_regularise('pgd_at'), may_regularise('mine.smoothed')
    (True, False, True)

  Source: ours.
  """
  return loss in _HAVE_REGULARISER or '.' in loss


def _require(flat: dict, name: str, fine: bool, remedy: str) -> None:
  if not fine:
    raise errors.UserError(f'config.{name}', flat[name], remedy)

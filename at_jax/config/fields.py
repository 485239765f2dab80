"""The fields of a configuration: default, meaning, check, and when each is read.

`FIELDS` is the single place for all four. `default()` builds the configuration from it,
`validation.check` applies its checks, `resume.conflicts` reads `when` and `free`, and
`python -m at_jax.config` prints it as a table.

Radii and step sizes are given in units of 1/255 (`epsilon_255`), because the command line takes 8.0
but not 8/255.
"""

from collections.abc import Callable, Collection, Sequence
import math
import os
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from at_jax import errors, methods, models
from at_jax.config import import_path
from at_jax.evaluation import attack_names, autoattack_run
from at_jax.methods import finetune
from at_jax.models import dual_batchnorm, importers

_HAVE_REGULARISER = ('trades', 'gair_trades', 'mart', 'consistency', 'nuat', 'fgsm_pgi', 'finetune')


class Check(NamedTuple):
  """The values that a field takes.

  Attributes:
    values: the values, in words for the table of fields.
    remedy: `(field, value) -> str`, what to do about a wrong value; '' if the value is right.
  """
  values: str
  remedy: Callable[[str, Any], str]


class When(NamedTuple):
  """The condition under which a run reads a field.

  Attributes:
    text: the condition in words for the table of fields.
    holds: `flat configuration -> bool`.
  """
  text: str
  holds: Callable[[dict], bool]


ALWAYS = When('always', lambda flat: True)


class SameAs(NamedTuple):
  """A default that copies the value of another field.

  Attributes:
    group: the group of the other field.
    name: its name in the group.
  """
  group: str
  name: str


class Field(NamedTuple):
  """A field of a configuration.

  Attributes:
    default: its default.
    meaning: what it is, in one sentence with its unit.
    check: the values that it takes; None for all values of its type.
    when: the condition under which it is read; None for that of its group, or always.
    free: it does not affect the parameters after a step, so it may change when a run resumes.
  """
  default: Any
  meaning: str
  check: Check | None = None
  when: When | None = None
  free: bool = False


def may_regularise(loss: str) -> bool:
  """Returns whether a loss has, or may have, a regulariser that `config.beta` weighs.

  Args:
    loss: the field `loss`.

  Returns:
    True for an imported loss: only a run shows what it has.

  Example:
    >>> may_regularise('trades'), may_regularise('pgd_at'), may_regularise('mine.smoothed')
    (True, False, True)
  """
  return loss in _HAVE_REGULARISER or '.' in loss


def is_state_dict(source: str) -> bool:
  """Returns whether `finetune.source` is a file with a PyTorch state dict, and not a work directory.

  Args:
    source: the field `finetune.source`.

  Returns:
    True for a file, and for a name that ends as such files do, unless it is that of a folder.

  Example:
    >>> is_state_dict('resnet18.pt'), is_state_dict('runs/clean')
    (True, False)
  """
  path = os.path.expanduser(source)
  return os.path.isfile(path) or path.endswith(importers.SUFFIXES) and not os.path.isdir(path)


def _number(values: str, remedy: str, accepts: Callable[[Any], bool]) -> Check:
  return Check(values, lambda field, value: '' if accepts(value) else remedy)


def _numbers(values: str, remedy: str, accepts: Callable[[Any], bool]) -> Check:
  # ml_collections parses none as ('none',).
  are_numbers = lambda value: all(isinstance(each, (int, float)) for each in value)
  return _number(values, remedy, lambda value: are_numbers(value) and accepts(value))


def _whole(least: int) -> Check:
  return _number(f'whole number ≥ {least}', f'use a whole number of at least {least}', lambda v: v >= least)


def _choice(*names: str) -> Check:
  return Check(_listed(names), lambda field, value: '' if value in names else errors.nearest(value, names))


def _function(*names: str, takes: Sequence[str] = (), keywords: Sequence[str] = ()) -> Check:
  """A name of this package or an import path; '' among the names is a default that messages leave out."""
  def remedy(field: str, value: str) -> str:
    if value not in names:
      import_path.load(field, value, dict.fromkeys(filter(None, names)), takes=takes, keywords=keywords)
    return ''
  return Check(f'{_listed(names)} or an import path `module.function`', remedy)


def _unknown_attack(field: str, names: list[str]) -> str:
  for name in names:
    if not attack_names.known(name):  # the message names this attack, not all of the field
      raise errors.UserError(
          f'config.{field}', name, 'use pgd20 (20 steps), pgd20x5 (5 restarts of 20 steps), margin100x5, '
          'scales_pgd20, dummies_pgd100, autoattack, apgd-t or another name of '
          'at_jax/evaluation/attack_names.py')
  return ''


def _listed(names, between: str = ', ') -> str:
  return between.join(f"`'{name}'`" for name in names)


_POSITIVE = _number('number > 0', 'use a number above 0', lambda v: 0 < v < math.inf)
_NOT_NEGATIVE = _number('number ≥ 0', 'use a number of at least 0', lambda v: 0 <= v < math.inf)
_SEED = _number('whole number from 0 to 2⁶⁴ − 1', 'use a whole number from 0 to 2**64 - 1',
                lambda v: 0 <= v < 2**64)
_SHARE = _number('0 ≤ number ≤ 1', 'use a share between 0 and 1', lambda v: 0 <= v <= 1)
# In float32, .99999999 is 1.
_BELOW_ONE = _number('0 ≤ number < 1', 'use a number of at least 0 and below 1, at most .999999',
                     lambda v: 0 <= v and np.float32(v) < 1)
_FINITE = _number('number', 'use a number', math.isfinite)
_RADIUS = _number('number ≥ 0', 'use a radius of at least 0 (8.0 means 8/255)', lambda v: 0 <= v < math.inf)
_LAMBDA = _number('number or inf', 'use a number; inf switches the weights off', lambda v: v > -math.inf)
_LAMBDAS = _numbers('tuple of numbers', 'use numbers', lambda v: all(each > -math.inf for each in v))
_STEPS = _number('tuple of whole numbers ≥ 0', 'use whole numbers of at least 0',
                 lambda v: all(isinstance(each, int) and each >= 0 for each in v))
_EPOCHS = _numbers('tuple of rising epochs > 0', 'use epochs above 0 in rising order, or () for none',
                   lambda v: v == sorted(v) and min(v, default=1) > 0)
_RAMP = _number('() or two whole numbers T₁ ≤ T₂',
                'use () or two whole epochs ≥ 0, the second not below the first',
                lambda v: v == [] or _STEPS.remedy('', v) == '' and len(v) == 2 and v[0] <= v[1])
_RISING = _numbers('tuple of rising epochs', 'use epochs in rising order', lambda v: v == sorted(v))
_ATTACK_NAMES = Check('tuple of names of `at_jax/evaluation/attack_names.py`', _unknown_attack)


def _equals(name: str, value: Any) -> When:
  return When(f'`{name} = {value!r}`', lambda flat: flat[name] == value)


def _differs(name: str, value: Any) -> When:
  return When(f'`{name} != {value!r}`', lambda flat: flat[name] != value)


def _is_one_of(name: str, *values: Any) -> When:
  return When(f'`{name}` is {_listed(values, " or ")}', lambda flat: flat[name] in values)


def _above_zero(name: str) -> When:
  return When(f'`{name} > 0`', lambda flat: flat[name] > 0)


def _both(one: When, other: When) -> When:
  return When(f'{one.text} and {other.text}', lambda flat: one.holds(flat) and other.holds(flat))


_SGD, _ENTROPY_SGD = _equals('optimizer.name', 'sgd'), _equals('optimizer.name', 'entropy_sgd')
_NOT_ENTROPY_SGD = _differs('optimizer.name', 'entropy_sgd')
_OWN_OPTIMIZER = When('`optimizer.name` is an import path', lambda flat: '.' in flat['optimizer.name'])
_SCHEDULED = When("`loss` is not `'finetune'` or `finetune.start_epoch > 0`", lambda flat: (
    flat['loss'] != 'finetune' or flat['finetune.start_epoch'] > 0))
_PIECEWISE = _both(_equals('optimizer.schedule', 'piecewise'), _SCHEDULED)
_CALIBRATED = When('any of `calibration.radius`, `.beta` and `.temperature`', lambda flat: any(
    flat[f'calibration.{name}'] for name in ('radius', 'beta', 'temperature')))
_FAIR, _VALIDATED = _above_zero('optimizer.fair_decay'), _above_zero('dataset.validation_size')
_REGULARISED = When('the loss or `attack.kind` has a regulariser', lambda flat: (
    may_regularise(flat['loss']) or flat['attack.kind'] == 'nuclear'))
_ATTACKED, _WEIGHTED = _differs('loss', 'standard'), _differs('weights.kind', 'none')
_GEOMETRY, _MARGIN = _equals('weights.kind', 'geometry'), _equals('weights.kind', 'margin')
_INFERENCE = _differs('inference.kind', 'none')
_FINETUNE, _DUMMIES = _equals('loss', 'finetune'), _equals('dummy.enabled', True)
_SCALED = _both(_FINETUNE, _is_one_of('finetune.regulator', 'radius', 'controller'))
_AUTOATTACK = When('AutoAttack, or a part of it, is one of `evaluate.attacks`', lambda flat: any(
    isinstance(attack_names.parse(name), autoattack_run.Choice) for name in flat['evaluate.attacks']))

_FAST = When('`autoattack_fast` is one of `evaluate.attacks`',
             lambda flat: 'autoattack_fast' in flat['evaluate.attacks'])


def _group(name: str, fields: dict[str, Field], when: When | None = None, free: bool = False
           ) -> dict[str, Field]:
  """The fields of a group, which share a condition."""
  return {f'{name}.{field}': f._replace(when=f.when or when, free=f.free or free)
          for field, f in fields.items()}


FIELDS = {
    'seed': Field(0, 'Seed of all random numbers of a run.', _SEED),
    'epochs': Field(130, 'Number of training epochs; it may grow on resume, except with the learning-rate '
                    'schedules cosine and cyclic, and the linear schedule of λ.', _whole(1)),
    'batch_size': Field(128, 'Examples per step, over all devices.', _whole(1)),
    'loss': Field('pgd_at', 'Objective of the training step; it also has an inner attack of its own.',
                  _function(*methods.OBJECTIVES, 'finetune',
                            takes=('forward', 'batch_stats', 'x', 'x_adv', 'y'))),
    'beta': Field(6.0, 'Weight of the regulariser: β of TRADES, MART and NuAT, λ of Consistency, '
                  'FGSM-PGI and fine-tuning.', _NOT_NEGATIVE, _REGULARISED),
    'beta_ramp_epochs': Field((), 'β is 0 until the first of these epochs and grows linearly to its whole at '
                              'the second; `()` for a constant β.', _RAMP, _REGULARISED),
    'replays': Field(8, 'Free-AT: m, the steps in a row that use the same minibatch.', _whole(1),
                     _equals('loss', 'free_at')),
    'consistency_temperature': Field(0.5, "Temperature of Consistency's softmax.", _POSITIVE,
                                     _equals('loss', 'consistency')),
    'awp_gamma': Field(0.0, 'γ, the relative size of the adversarial weight perturbation; 0 switches it off.',
                       _NOT_NEGATIVE),
    'log_every_steps': Field(50, 'Steps between two lines of metrics.jsonl.', _whole(1), free=True),
}
FIELDS |= _group('dataset', {
    'name': Field('cifar10', 'A name of `at_jax.datasets`, the path of an .npz file, or the import path '
                  '`module.function` of a loader.'),
    'num_classes': Field(10, 'Number of classes, without `dataset.drop_class`.', _whole(2)),
    'drop_class': Field(-1, 'Class whose examples are left out of all splits; higher labels move down by '
                            'one. −1 for none.', _whole(-1)),
    'data_dir': Field('', "Folder of the prepared TFDS data; '' for the default folder of TFDS.", free=True),
    'validation_size': Field(1000, 'Examples held out to select the best checkpoint.', _whole(0)),
    'source': Field('device', "'device' keeps the training set on each device; 'stream' reads the examples "
                    'of a step from the files of TFDS while the step before is computed.',
                    _choice('device', 'stream')),
    'pad': Field(4, 'Pixels of zero padding before the random crop.', _whole(0),
                 _is_one_of('dataset.augment', 'crop', 'autoaugment')),
    'flip': Field(True, 'Random horizontal flips.'),
    'augment': Field('crop', "Augmentation; 'autoaugment' adds AutoAugment's CIFAR-10 policy and Cutout, "
                     "'resized_crop' crops 8 to 100 % of an image of any size and resizes it.",
                     _choice('crop', 'autoaugment', 'resized_crop')),
    'image_size': Field(224, 'Side of the images that resized crops give; in evaluation the crop is central.',
                        _whole(8), _equals('dataset.augment', 'resized_crop')),
    'autoaugment_start_epoch': Field(0, 'Epoch from which AutoAugment and Cutout are used.', _whole(0),
                                     _equals('dataset.augment', 'autoaugment')),
})
FIELDS |= _group('model', {
    'name': Field('PreActResNet18', 'The network; other fields of `model` are its arguments.',
                  _function(*models.NETWORKS)),
    'dtype': Field('float32', 'Type of the computation; parameters are float32.',
                   _choice('float32', 'bfloat16', 'float64')),
})
FIELDS |= _group('attack', {
    'norm': Field('linf', 'Norm of the inner attack.', _choice('linf', 'l2')),
    'epsilon_255': Field(8.0, 'Radius ε of the inner attack, in 1/255; at most 255 in L∞.', _RADIUS),
    'step_size_255': Field(2.0, 'Step size of PGD in training and validation, in 1/255; `fgsm_rs`, `n_fgsm`, '
                           '`nuclear`, Free-AT and FGSM-PGI have a step of their own.', _POSITIVE),
    'num_steps': Field(10, 'Steps of the inner attack.', _whole(1), _ATTACKED),
    'ramp_epochs': Field((), 'ε schedule: radius and step size are 0 until the first of these epochs and '
                         'grow linearly, a little with each step, to their whole at the second; `()` for a '
                         'constant radius.',
                         _RAMP, _ATTACKED),
    'reset_epochs': Field(40, 'FGSM-PGI: epochs after which the attack starts at random again.', _whole(1),
                          _equals('loss', 'fgsm_pgi')),
    'kind': Field('', "Inner attack of training; '' for the one of the loss.",
                  _function('', *methods.ATTACKS,
                            keywords=('norm', 'epsilon', 'step_size', 'num_steps', 'decide'))),
    'friendly_taus': Field((), 'Friendly PGD: an example stops τ steps past the decision boundary; `()` '
                           'never stops one.', _STEPS),
    'friendly_epochs': Field((), 'Epochs from which the second, third, … τ is used; one fewer than '
                             '`attack.friendly_taus`.', _EPOCHS),
})
FIELDS |= _group('weights', {
    'kind': Field('none', 'Importance weights of examples: GAIRAT (geometry), MAIL (margin) or by class.',
                  _choice('none', 'geometry', 'margin', 'class_wise'), ALWAYS),
    'on': Field('fit', 'Term of the loss that the weights multiply.', _choice('fit', 'regulariser', 'both')),
    'start_epoch': Field(60, 'Epoch from which the weights are used; before it all are 1.', _whole(0)),
    'lam': Field(-1.0, 'Geometry: λ, or the last λ of the linear schedule.', _LAMBDA, _GEOMETRY),
    'schedule': Field('stages', 'Geometry: λ changes in stages, or linearly over training.',
                      _choice('stages', 'linear'), _GEOMETRY),
    'later_lams': Field((), 'Geometry, stages: the λ from each of `weights.lam_epochs` on.', _LAMBDAS,
                        _GEOMETRY),
    'lam_epochs': Field((), 'Geometry, stages: rising epochs, as many as `weights.later_lams`.', _RISING,
                        _GEOMETRY),
    'lam_first': Field(1.0, 'Geometry, linear: λ at the start of training.', _FINITE,
                       _both(_GEOMETRY, _equals('weights.schedule', 'linear'))),
    'form': Field('tanh', 'Geometry: function from κ to the weight.', _choice('tanh', 'sigmoid', 'discrete'),
                  _GEOMETRY),
    'normalized': Field(True, 'Geometry: scale the weights to mean 1 over the batch.', None, _GEOMETRY),
    'bias': Field(-0.5, 'Margin: b of MAIL, the margin at which a weight is half of the largest.', _FINITE,
                  _MARGIN),
    'slope': Field(10.0, 'Margin: s of MAIL, the slope.', _POSITIVE, _MARGIN),
    'base': Field(0.5, 'By class: the larger, the more equal the weights.', _POSITIVE,
                  _equals('weights.kind', 'class_wise')),
}, _WEIGHTED)
FIELDS |= _group('calibration', {
    'radius': Field(False, 'CFA: the radius of class k is (radius_base + t_k) · ε, with t_k its robust '
                    'training accuracy in the epoch before.', None, ALWAYS),
    'beta': Field(False, 'CFA: β of class k is (beta_base + t_k) · β, in '
                  '(fit + β_k · regulariser)/(1 + β_k).', None, ALWAYS),
    'temperature': Field(False, 'The training loss divides logits by temperature_base + t_k (ours).', None,
                         ALWAYS),
    'radius_base': Field(0.5, 'radius_base of CFA; larger radii for all classes.', _POSITIVE,
                         _equals('calibration.radius', True)),
    'beta_base': Field(0.5, 'beta_base of CFA; a larger β for all classes.', _POSITIVE,
                       _equals('calibration.beta', True)),
    'temperature_base': Field(0.5, 'temperature_base; a higher temperature for all classes.', _POSITIVE,
                              _equals('calibration.temperature', True)),
    'start_epoch': Field(10, 'Epoch from which classes are calibrated; before it all factors are 1.',
                         _whole(1)),
}, _CALIBRATED)
FIELDS |= _group('dummy', {
    'enabled': Field(False, 'DUCAT: one dummy class per class.', None, ALWAYS),
    'start_epoch': Field(104, "Epoch from which dummy classes are trained; 104 is the released code's 105th.",
                         _whole(0)),
    'benign_weight': Field(0.25, 'Share of the target at x that the dummy class takes.', _SHARE),
    'adversarial_weight': Field(1.0, "Share of the target at x' that the dummy class takes.", _SHARE),
    'alpha': Field(1.0, "α, the weight of the cross-entropy at x'.", _POSITIVE),
    'attack_logits': Field('raw', 'What the inner attack sees: all 2C logits (raw), or the C deployed ones '
                           '(folded).', _choice('raw', 'folded')),
}, _DUMMIES)
FIELDS |= _group('finetune', {
    'start_epoch': Field(100, 'Epochs of clean training before; 0 starts from `finetune.source`.', _whole(0)),
    'source': Field('', 'What to start from: the work directory of a run, or a file with a PyTorch state '
                    "dict (.pt, .pth, .safetensors, .npz); '' for none."),
    'checkpoint': Field('best', 'Checkpoint of the source that fine-tuning starts from.',
                        _choice('best', 'last'),
                        _both(_FINETUNE, When('`finetune.source` is a work directory', lambda flat: (
                            flat['finetune.source'] != '' and not is_state_dict(flat['finetune.source']))))),
    'clean_weight': Field(1.0, 'Weight of the cross-entropy at x; x takes no pass with 0, no anchor and the '
                          'distance `cross_entropy`.', _NOT_NEGATIVE),
    'distance': Field('kl', "Regulariser: distance of f(x') to the clean prediction (kl) or to the label.",
                      _choice(*finetune.DISTANCES)),
    'anchor': Field('kl', "Distance of f(x) to the teacher's logits.", _choice(*finetune.ANCHORS),
                    _both(_FINETUNE, _above_zero('finetune.anchor_weight'))),
    'anchor_weight': Field(1.0, 'μ, the weight of the distance to the teacher.', _NOT_NEGATIVE),
    'learning_rate': Field(0.01, 'Largest learning rate of fine-tuning.', _POSITIVE),
    'warmup_epochs': Field(1.0, 'Epochs of the linear warm-up to `finetune.learning_rate`.', _NOT_NEGATIVE),
    'decay_factor': Field(0.5, 'Factor of the learning rate per epoch after the warm-up, applied smoothly.',
                          _POSITIVE),
    'tolerance': Field(0.005, 'Clean accuracy on the validation split that may be lost, a fraction.', _SHARE),
    'batch_norm': Field('shared', "One BatchNorm for x and x', or one each.", _choice('shared', 'dual')),
    'deployed': Field('clean', 'Dual BatchNorm: the one that is attacked and evaluated.',
                      _choice(*dual_batchnorm.BRANCHES),
                      _both(_FINETUNE, _equals('finetune.batch_norm', 'dual'))),
    'regulator': Field('none', 'Rule that weakens the attack: stop τ steps past the boundary, a radius per '
                       'example, or a radius for all by the clean validation accuracy (controller).',
                       _choice('none', 'boundary', 'radius', 'controller')),
    'tau': Field(1, 'Boundary: τ, in steps.', _whole(0),
                 _both(_FINETUNE, _equals('finetune.regulator', 'boundary'))),
    'initial': Field(0.25, 'Radius, controller: share of the radius at the start.', _SHARE, _SCALED),
    'delta': Field(0.25, 'Change of the share, each time an example is seen (radius) or each epoch '
                   '(controller).', _SHARE, _SCALED),
}, _FINETUNE)
FIELDS |= _group('optimizer', {
    'name': Field('sgd', 'Optimizer: SGD, or EntropySGD around an outer SGD.',
                  _function('sgd', 'entropy_sgd', keywords=('learning_rate',))),
    'options': Field({}, 'Keyword arguments of an optimizer of your own, besides `learning_rate`.', None,
                     _OWN_OPTIMIZER),
    'learning_rate': Field(0.1, 'Initial learning rate, except of EntropySGD.', _POSITIVE,
                           _both(_NOT_ENTROPY_SGD, _SCHEDULED)),
    'momentum': Field(0.9, 'Momentum of SGD.', _BELOW_ONE, _SGD),
    'weight_decay': Field(5e-4, 'Weight decay of SGD and EntropySGD, added to the gradient.', _NOT_NEGATIVE,
                          _is_one_of('optimizer.name', 'sgd', 'entropy_sgd')),
    'schedule': Field('piecewise', 'Piecewise constant, cosine to zero at the last epoch, or cyclic: linear '
                      'from zero to the middle of training and back.',
                      _choice('piecewise', 'cosine', 'cyclic'), _SCHEDULED),
    'decay_epochs': Field((100, 105), 'Piecewise: epochs at which the learning rate is multiplied.', _EPOCHS,
                          _PIECEWISE),
    'decay_factor': Field(0.1, 'Factor of the learning rate at `optimizer.decay_epochs`.', _POSITIVE,
                          _both(_NOT_ENTROPY_SGD, _PIECEWISE)),
    'ema_decay': Field(0.0, 'Decay of an average of weights, which is then evaluated; 0 switches it off.',
                       _BELOW_ONE),
    'swa_start_epoch': Field(0, 'Epoch from which weights at the end of epochs are averaged (SWA) and '
                             'evaluated; 0 switches it off.', _whole(0)),
    'fair_decay': Field(0.0, "Decay of CFA's average of weights at the end of epochs; 0 switches it off.",
                        _BELOW_ONE),
    'fair_threshold': Field(0.2, 'Robust validation accuracy that the worst class needs for an epoch to be '
                            'averaged.', _SHARE, _FAIR),
    'fair_start_epoch': Field(50, "First epoch that CFA's average may contain.", _whole(0), _FAIR),
})
FIELDS |= _group('optimizer.outer', {
    'learning_rate': Field(1.0, "Learning rate of the SGD that moves EntropySGD's anchor.", _POSITIVE,
                           _both(_ENTROPY_SGD, _SCHEDULED)),
    'momentum': Field(0.0, "Momentum of the SGD that moves EntropySGD's anchor.", _BELOW_ONE),
    'decay_factor': Field(0.2, 'Factor of its learning rate at `optimizer.decay_epochs`.', _POSITIVE,
                          _both(_ENTROPY_SGD, _PIECEWISE)),
}, _ENTROPY_SGD)
FIELDS |= _group('optimizer.entropy', {
    'inner_steps': Field(20, 'L, the inner steps per outer step; 0 uses the outer SGD only.', _whole(0)),
    'inner_learning_rate': Field(0.1, 'Learning rate of the inner steps.', _POSITIVE),
    'gamma': Field(0.03, 'γ, the pull towards the anchor.', _NOT_NEGATIVE),
    'scoping': Field(1e-3, 'Growth of γ per outer step.', _NOT_NEGATIVE),
    'noise': Field(1e-4, 'n of the noise of the inner steps, whose standard deviation is '
                   'n · √(2 · inner_learning_rate).', _NOT_NEGATIVE),
    'momentum': Field(0.9, 'Momentum of the inner steps.', _BELOW_ONE),
}, _ENTROPY_SGD)
FIELDS |= _group('validate', {
    'choose_by': Field('average', 'Score of a checkpoint: robust accuracy, or the sum of it and that of the '
                       'worst class.', _choice('average', 'average_and_worst')),
    'every_epochs': Field(1, 'Epochs between two validations.', _whole(1), free=True),
    'num_steps': Field(10, 'Steps of PGD on the validation split.', _whole(1)),
    'batch_size': Field(512, 'Examples per batch of validation.', _whole(1), free=True),
}, _VALIDATED)
FIELDS |= _group('checkpoint', {
    'every_steps': Field(0, 'Steps between two checkpoints; 0 for one per epoch.', _whole(0)),
    'keep': Field(2, 'How many of the newest checkpoints are kept, besides the best.', _whole(1)),
}, free=True)
FIELDS |= _group('inference', {
    'kind': Field('none', 'Change of the deployed logits by class, fitted on the validation split to raise '
                  'the worst class (ours).', _choice('none', 'bias', 'temperature'), ALWAYS),
    'rounds': Field(10, 'Rounds of attacking the changed model and changing it again.', _whole(1)),
    'rate': Field(1.0, 'Change per round, in logits or in log temperature, for a robust accuracy that '
                  'differs by 1.', _POSITIVE),
}, _INFERENCE, free=True)
FIELDS |= _group('evaluate', {
    'attacks': Field(('pgd20', 'margin100x5', 'scales_pgd20', 'dummies_pgd100'),
                     'Attacks of the final evaluation.', _ATTACK_NAMES),
    'audit': Field(200, 'The largest number of examples robust under `autoattack_fast` that AutoAttack '
                   'attacks too, for an interval of the robust accuracy under both; 0 for none, as in '
                   '`:small` and `:smoke`.', _whole(0), _FAST),
    'search_dtype': Field('', 'Type in which AutoAttack searches; only what the model itself confirms '
                          "counts. '' for the type of the model.", _choice('', 'bfloat16'), _AUTOATTACK),
    'norm': Field(SameAs('attack', 'norm'), 'Norm of the evaluation.', _choice('linf', 'l2', 'l1')),
    'epsilon_255': Field(SameAs('attack', 'epsilon_255'), 'Radius of the evaluation, in 1/255.', _RADIUS),
    'step_size_255': Field(SameAs('attack', 'step_size_255'), 'Step size of PGD, in 1/255.', _POSITIVE),
    'num_examples': Field(0, 'Test examples that are attacked: the first, or a fixed stratified subset of a '
                          'test set that is sorted by class; 0 for all.', _whole(0)),
    'batch_size': Field(256, 'Examples per batch of evaluation.', _whole(1)),
}, free=True)


def default() -> ml_collections.ConfigDict:
  """Makes the configuration that every file in `configs/` starts from: PGD-AT on CIFAR-10.

  Returns:
    A `ConfigDict` with the defaults of `FIELDS`.

  Example:
    >>> default().attack.epsilon_255
    8.0
  """
  config = ml_collections.ConfigDict()
  for path, field in FIELDS.items():
    *groups, name = path.split('.')
    group = config
    for each in groups:
      if each not in group:
        group[each] = ml_collections.ConfigDict()
      group = group[each]
    value = field.default
    group[name] = config[value.group].get_oneway_ref(value.name) if isinstance(value, SameAs) else value
  return config


def upgrade(tree: dict) -> dict:
  """Renames the fields of an old config.json.

  Args:
    tree: nested dictionaries, as a config.json of any version of at_jax gives them.

  Returns:
    The same tree with the present names and values.

  Example:
    >>> upgrade({'attack': {'start': 'beside'}})
    {'attack': {'kind': 'gaussian'}}
  """
  attack = dict(tree.get('attack', {}))
  if 'start' in attack:
    attack['kind'] = {'uniform': '', 'beside': 'gaussian'}[attack.pop('start')]
  return tree | {'attack': attack}


def flatten(tree: dict, prefix: str = '') -> dict:
  """Converts a nested configuration to one dictionary from 'attack.epsilon_255' to its value.

  Args:
    tree: nested dictionaries, as `ConfigDict.to_dict()` or a config.json gives them.
    prefix: prepended to every name.

  Returns:
    The flat dictionary. Tuples become lists, as in a JSON file.

  Example:
    >>> flatten({'attack': {'norm': 'l2'}, 'mean': ((1,), 2)})
    {'attack.norm': 'l2', 'mean': [[1], 2]}
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = _as_json(value)
  return flat


def nearest(name: str, known: Collection[str]) -> str:
  """Suggests the fields of any group with the name of an unknown one, or else the closest field.

  Args:
    name: the unknown field.
    known: the known fields.

  Returns:
    A clause for the remedy of a `UserError`, with the fields of the same group, or else those without a
    group and the groups: all fields would fill the screen.

  Example:
    >>> nearest('attack.epsilon', ['epochs', 'attack.norm', 'attack.epsilon_255'])
    "did you mean 'attack.epsilon_255'? known: attack.epsilon_255, attack.norm"
    >>> nearest('learning_rate', ['epochs', 'finetune.learning_rate', 'optimizer.learning_rate'])
    "did you mean 'finetune.learning_rate' or 'optimizer.learning_rate'? known: epochs, finetune, optimizer"
  """
  group = name.rpartition('.')[0]
  siblings = [each for each in known if each.rpartition('.')[0] == group]
  namesakes = [repr(each) for each in known if not group and each.endswith(f'.{name}')]
  hint = (f'did you mean {" or ".join(namesakes)}? ' if namesakes
          else errors.nearest(name, known).partition('known:')[0])
  if not group or len(siblings) < 2:
    siblings = {each.partition('.')[0] for each in known}
  return f'{hint}known: {", ".join(sorted(siblings))}'


def _as_json(value):
  return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value


_TYPES = {bool: '`True`, `False`', str: 'text', tuple: 'tuple', dict: 'fields of your own'}


def table() -> str:
  """Formats the table of all fields, in Markdown.

  Returns:
    One row per field: name, default, values, meaning, when it is read, and whether it may change when
    a run resumes.

  Example:
    >>> print(table().splitlines()[2])
    | `seed` | `0` | whole number from 0 to 2⁶⁴ − 1 | Seed of all random numbers of a run. | always | no |
  """
  lines = ['| field | default | values | meaning | read if | may change on resume |',
           '|---|---|---|---|---|---|']
  for name, field in FIELDS.items():
    value = field.default
    value = f'that of `{value.group}.{value.name}`' if isinstance(value, SameAs) else f'`{value!r}`'
    values = field.check.values if field.check else _TYPES[type(field.default)]
    when = field.when.text if field.when else 'always'
    cells = (f'`{name}`', value, values, field.meaning, when, 'yes' if field.free else 'no')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)

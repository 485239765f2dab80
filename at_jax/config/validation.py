"""Checks a configuration before anything is read or written; the first mistake becomes one line."""

from collections.abc import Callable, Iterator
import functools
import math
import warnings

import ml_collections

from at_jax import errors, methods
from at_jax.config import fields, import_path, variants
from at_jax.evaluation import attack_names, metrics
from at_jax.methods import finetune


def check(config: ml_collections.ConfigDict, warn: Callable[[str], None] = warnings.warn) -> None:
  """Checks each field by itself, then those that depend on each other.

  Args:
    config: the configuration of a run.
    warn: called with one line for each setting that is possible but probably a mistake: a radius or a step
      size of another scale, epochs beyond the last one, or a field that was changed and that nothing reads.

  Raises:
    errors.UserError: with the first wrong field, its value and the remedy.

  Example:
    >>> c = fields.default()
    >>> c.epochs = 0
    >>> check(c)
    Traceback (most recent call last):
    at_jax.errors.UserError: config.epochs = 0: use a whole number of at least 1
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError('config', config if isinstance(config, str) else type(config).__name__,
                           'use what get_config of a file in configs/ returns')
  flat = {'model.dtype': fields.FIELDS['model.dtype'].default} | fields.flatten(config.to_dict())
  _check_names(flat)
  for name, field in fields.FIELDS.items():
    if field.check is not None:
      remedy = field.check.remedy(name, flat[name])
      _require(flat, name, not remedy, remedy)
  _check_data(flat)
  _check_attacks(flat)
  _check_method(flat)
  _check_weights(flat)
  _check_classes(flat)
  _check_finetune(flat)
  _check_dummies(flat)
  _check_carried(flat)
  for line in (*_unread(flat), *_wrong_scale(flat), *_never_reached(flat), *_rate_of_sgd(flat),
               *_untrained(flat)):
    warn(line)


def single_step(flat: dict) -> bool:
  """Returns whether the inner attack takes one step, whose size is its own.

  Args:
    flat: `fields.flatten` of a configuration.

  Returns:
    True for an attack of `methods.SINGLE_STEP`, and for Free-AT.

  Example:
    >>> [single_step({'loss': 'nuat', 'attack.kind': kind}) for kind in ('', 'kl')]
    [True, False]
  """
  return flat['loss'] == 'free_at' or attack_factory(flat) in methods.SINGLE_STEP


def attack_factory(flat: dict) -> Callable[..., methods.inner_attacks.Attack]:
  """Returns the factory of the inner attack: that of `config.attack.kind`, or else the one of the loss.

  Args:
    flat: `fields.flatten` of a configuration.

  Returns:
    The factory, as `methods.inner_attacks` describes it.

  Raises:
    errors.UserError: if a function of an import path cannot be loaded.

  Example:
    >>> attack_factory({'loss': 'trades', 'attack.kind': 'n_fgsm'}) is methods.n_fgsm.n_fgsm
    True
  """
  if flat['attack.kind']:
    return import_path.load('attack.kind', flat['attack.kind'], methods.ATTACKS)
  if flat['loss'] == 'finetune':
    return finetune.inner_attack(flat['finetune.distance'])
  loss = import_path.load('loss', flat['loss'], methods.OBJECTIVES)
  return getattr(loss, 'inner_attack', methods.inner_attacks.uniform)


def _check_names(flat: dict) -> None:
  """Raises UserError for an unknown or a missing field."""
  # `flatten` leaves out an empty group, and lists the keys of others.
  known = [name for name, field in fields.FIELDS.items() if field.default != {}]
  for name in flat:
    if name not in known and not name.startswith(('model.', 'optimizer.options.')):
      raise errors.UserError(f'config.{name}', flat[name], f'no such field; {fields.nearest(name, known)}')
  for name in known:
    if name not in flat:
      raise errors.UserError(f'config.{name}', None, 'it is missing: begin with at_jax.config.default()')


@functools.cache
def _values_of_variants() -> dict[str, list]:
  """The values that each field has by default and in the variants, which set fields for all methods."""
  trees = [variants.variant(fields.default(), arg)
           for arg in ('', 'mnist', 'small', 'smoke', 'mnist-small', 'small-smoke', 'mnist-small-smoke')]
  flats = [fields.flatten(tree.to_dict()) for tree in trees]
  return {name: [flat[name] for flat in flats] for name in flats[0]}


def _unread(flat: dict) -> Iterator[str]:
  """A line for each field that was changed and that nothing reads."""
  usual = _values_of_variants()
  for name, value in flat.items():
    field = fields.FIELDS.get('optimizer.options' if name.startswith('optimizer.options.') else name)
    when = field and field.when  # no field is an argument of the network
    if when and not when.holds(flat) and value not in usual.get(name, ()):
      yield f'config.{name} = {value!r}: nothing reads it here; it is read if {when.text.replace("`", "")}'


def _never_reached(flat: dict) -> Iterator[str]:
  """A line for each list of epochs that goes beyond the last one, as after `--config.epochs=30` alone."""
  for name in ('optimizer.decay_epochs', 'weights.lam_epochs', 'attack.friendly_epochs'):
    when, late = fields.FIELDS[name].when, [each for each in flat[name] if each >= flat['epochs']]
    if late and flat['epochs'] >= 10 and (when is None or when.holds(flat)):  # fewer are a trial
      yield (f'config.{name} = {tuple(flat[name])!r}: a run of {flat["epochs"]} epochs does not reach '
             f'{", ".join(map(str, late))}: use smaller ones, or more epochs')


def _untrained(flat: dict) -> Iterator[str]:
  """A line if fine-tuning would begin from a network that nothing has trained."""
  if flat['loss'] == 'finetune' and not flat['finetune.start_epoch'] and not flat['finetune.source']:
    yield ("config.finetune.source = '': an untrained network is fine-tuned; name the work directory of a "
           'run or a file with a state dict, or set finetune.start_epoch')


def _rate_of_sgd(flat: dict) -> Iterator[str]:
  """A line if an optimizer of the user's own runs with the learning rate that is meant for SGD."""
  name, rate = flat['optimizer.name'], flat['optimizer.learning_rate']
  field = fields.FIELDS['optimizer.learning_rate']
  if '.' in name and 'sgd' not in name.lower() and rate == field.default and field.when.holds(flat):
    yield (f'config.optimizer.learning_rate = {rate:g}: it is the default, for SGD: set that of {name} '
           '(1e-3 is usual for Adam)')


# Smaller radii are unusual, and probably in units of the input: .031 instead of .031 · 255.
_SMALLEST = {'linf': .5, 'l2': 10., 'l1': 100.}
_USUAL = {'linf': '8.0 (8/255)', 'l2': '128.0 (0.5)', 'l1': '3060.0 (12)'}


def _wrong_scale(flat: dict) -> Iterator[str]:
  """A line for each radius or step size of an unusual scale. A radius of 0 is deliberate."""
  specs = {part: attack_names.parse(part) for name in flat['evaluate.attacks']
           for part in attack_names.expand(name)}
  steps = {'attack': {}, 'evaluate': {name: spec.num_steps for name, spec in specs.items()
                                      if isinstance(spec, attack_names.Spec) and spec.random_start}}
  if flat['loss'] != 'standard' and not single_step(flat):
    steps['attack']['attack.num_steps'] = flat['attack.num_steps']
  if flat['dataset.validation_size']:
    steps['attack']['validate.num_steps'] = flat['validate.num_steps']
  found = []
  for part, counts in steps.items():
    scale = [flat[f'{part}.{name}'] for name in ('norm', 'epsilon_255', 'step_size_255')]
    field, text = _scale(*scale, counts)
    if text and [field, scale] not in found:  # by default the evaluation has the values of training
      found.append([field, scale])
      yield f'config.{part}.{field} = {flat[f"{part}.{field}"]:g}: {text}'


def _scale(norm: str, epsilon: float, step_size: float, steps: dict[str, int]) -> tuple[str, str]:
  """The field of an unusual scale, and what is unusual about it; empty if nothing is."""
  if 0 < epsilon < _SMALLEST[norm]:
    meant = f'; if you mean {epsilon:g}, use {255 * epsilon:g}' if epsilon < 1 else ''
    return 'epsilon_255', (f'it is in 1/255, so the radius is {epsilon / 255:.2g} in '
                           f'{metrics.norm_name(norm)}, where {_USUAL[norm]} is usual{meant}')
  if epsilon and steps and step_size > 2 * epsilon:
    return 'step_size_255', f'one step crosses the whole ball of radius {epsilon:g}: use a smaller step'
  for name, count in steps.items():
    if count * step_size < (1 - 1e-6) * epsilon:
      return 'step_size_255', (f'{name} = {count} steps move at most {count * step_size:g}, less than the '
                               f'radius {epsilon:g}: use a larger step or more of them')
  return '', ''


def _check_data(flat: dict) -> None:
  """Streamed data."""
  streams = flat['dataset.source'] == 'stream'
  _require(flat, 'dataset.augment', streams or flat['dataset.augment'] != 'resized_crop',
           "it crops images when they are read: use dataset.source = 'stream', or 'crop'")
  if not streams:
    return
  _require(flat, 'dataset.source', flat['dataset.name'] != 'digits' and
           '.' not in flat['dataset.name'].partition(':')[0],  # of name:version in TFDS
           f"{flat['dataset.name']} is no data set of TFDS: use 'device'")
  _require(flat, 'dataset.drop_class', flat['dataset.drop_class'] < 0,
           "a stream does not know the labels of all examples: use -1, or dataset.source = 'device'")
  _require(flat, 'loss', flat['loss'] != 'fgsm_pgi', 'it keeps a perturbation of every training example on '
           "the device: use another loss, or dataset.source = 'device'")


def _check_attacks(flat: dict) -> None:
  """The inner attack, and the attacks of the evaluation."""
  for part in ('attack', 'evaluate'):
    # The diameter of the L2 ball may be larger than 255: only L∞ has a largest radius.
    name = f'{part}.epsilon_255'
    _require(flat, name, flat[f'{part}.norm'] != 'linf' or flat[name] <= 255,
             'use a radius above 0, of at most 255 (8.0 means 8/255)')
  for name in ('epsilon_255', 'step_size_255'):
    _require(flat, f'evaluate.{name}', flat['evaluate.norm'] == flat['attack.norm']
             or flat[f'evaluate.{name}'] != flat[f'attack.{name}'],
             f'it is the value of training, where the norm is {flat["attack.norm"]}: set it for '
             f'evaluate.norm = {flat["evaluate.norm"]}')
  usable = [name for name in flat['evaluate.attacks'] if flat['dummy.enabled']
            or not all(map(attack_names.knows_dummies, attack_names.expand(name)))]
  _require(flat, 'evaluate.attacks', bool(usable),
           'none of them attacks a model without dummy classes, so its clean accuracy would be reported '
           'as robust: add pgd20')
  kind, loss = flat['attack.kind'], flat['loss']
  _require(flat, 'attack.kind', not kind or loss != 'standard',
           "clean training has no attack: use '', or another loss than 'standard'")
  if kind in methods.ATTACKS and '.' not in loss:
    _require(flat, 'attack.kind', (kind == 'kl_and_margin') == (loss == 'gair_trades'),
             "the loss gair_trades, and no other, learns from two attacks (kl_and_margin): use ''")
  _require(flat, 'attack.num_steps', not single_step(flat) or flat['attack.num_steps'] == 1,
           f"the inner attack {kind or f'of {loss}'} takes one step: use 1")
  taus, epochs = flat['attack.friendly_taus'], flat['attack.friendly_epochs']
  _require(flat, 'attack.friendly_epochs', len(epochs) == max(len(taus) - 1, 0),
           'use epochs above 0 in rising order, one fewer than attack.friendly_taus')
  _require(flat, 'attack.friendly_taus', not taus or loss != 'standard',
           "there is no attack to stop: use (), or another loss than 'standard'")


def _check_method(flat: dict) -> None:
  """Schedules of ε and β, averages of weights and AutoAugment."""
  for name in ('attack.ramp_epochs', 'beta_ramp_epochs'):
    _require(flat, name, not flat[name] or flat[name][1] < flat['epochs'],
             f'the whole value would never be reached: use epochs below epochs = {flat["epochs"]}, or ()')
  _require(flat, 'attack.ramp_epochs', not flat['attack.ramp_epochs'] or flat['loss'] != 'standard',
           "there is no attack to schedule: use (), or another loss than 'standard'")
  _require(flat, 'beta_ramp_epochs', not flat['beta_ramp_epochs'] or not flat['calibration.beta'],
           'β is calibrated by class: use (), or calibration.beta = False')
  _require(flat, 'dataset.autoaugment_start_epoch', flat['dataset.augment'] == 'crop'
           or flat['dataset.autoaugment_start_epoch'] < flat['epochs'],
           f'AutoAugment would never begin: use one below epochs = {flat["epochs"]}')
  both = flat['optimizer.swa_start_epoch'] and flat['optimizer.ema_decay']
  _require(flat, 'optimizer.swa_start_epoch', not both,
           'only one average is kept: set optimizer.ema_decay or this to 0')
  _require(flat, 'optimizer.swa_start_epoch', flat['optimizer.swa_start_epoch'] < flat['epochs'],
           f'nothing would be averaged: use one below epochs = {flat["epochs"]}')


def _check_carried(flat: dict) -> None:
  """Free-AT and FGSM-PGI, which carry perturbations from step to step and have an attack of their own."""
  loss = flat['loss']
  if loss not in ('free_at', 'fgsm_pgi'):
    return
  for name, plain in (('attack.kind', ''), ('attack.norm', 'linf'), ('dummy.enabled', False),
                      ('calibration.radius', False)):
    _require(flat, name, flat[name] == plain, f'{loss} carries its perturbations over: use {plain!r}')
  if loss == 'free_at':
    for name, plain in (('attack.friendly_taus', []), ('awp_gamma', 0.)):
      _require(flat, name, flat[name] == plain, f'{loss} has no attack before its step: use '
               f'{tuple(plain) if plain == [] else plain}')
    _require(flat, 'weights.kind', flat['weights.kind'] != 'geometry',
             'free_at counts no attack steps to weigh by: use another one')


def _check_weights(flat: dict) -> None:
  """Importance weights: schedules, and which loss they go with."""
  loss, kind = flat['loss'], flat['weights.kind']
  lams, changes = flat['weights.later_lams'], flat['weights.lam_epochs']
  _require(flat, 'weights.lam_epochs', len(changes) == len(lams),
           'use as many epochs as weights.later_lams')
  _require(flat, 'weights.later_lams', not lams or flat['weights.schedule'] == 'stages',
           "the schedule of λ is linear: use (), or weights.schedule = 'stages'")
  _require(flat, 'weights.lam', flat['weights.schedule'] == 'stages' or math.isfinite(flat['weights.lam']),
           'a linear schedule ends at a number: use one')
  if loss == 'gair_trades':
    _require(flat, 'weights.kind', kind == 'geometry',
             "gair_trades divides its regulariser between two attacks by these weights: use 'geometry'")
    _require(flat, 'weights.on', flat['weights.on'] == 'regulariser',
             "gair_trades weights its regulariser: use 'regulariser'")
    _require(flat, 'weights.normalized', not flat['weights.normalized'],
             'a share must not be above 1: use False')
  if kind == 'none':
    return
  _require(flat, 'weights.kind', loss != 'standard',
           "there is no attack to weigh by: use 'none', or another loss than 'standard'")
  _require(flat, 'weights.on', flat['weights.on'] == 'fit' or fields.may_regularise(loss),
           f"{loss} has no regulariser: use 'fit'")
  _require(flat, 'weights.start_epoch', flat['weights.start_epoch'] < flat['epochs'],
           f'no epoch would be weighted: use one below epochs = {flat["epochs"]}')


def _check_dummies(flat: dict) -> None:
  """DUCAT."""
  if not flat['dummy.enabled']:
    return
  _require(flat, 'dummy.start_epoch', flat['dummy.start_epoch'] < flat['epochs'],
           f'the dummy classes would never be trained: use one below epochs = {flat["epochs"]}')
  _require(flat, 'loss', flat['loss'] != 'standard',
           "dummy classes need adversarial examples: use loss = 'pgd_at'")
  _require(flat, 'loss', '.' not in flat['loss']
           or import_path.accepts(import_path.load('loss', flat['loss']), 'ducat'),
           'with dummy classes it needs an argument `ducat`, as at_jax.methods.trades.trades has')


def _check_classes(flat: dict) -> None:
  """CFA, and a change of the logits at inference."""
  _require(flat, 'calibration.beta', not flat['calibration.beta']
           or flat['loss'] == 'standard' or fields.may_regularise(flat['loss']),
           f'{flat["loss"]} has no regulariser whose β could be calibrated: use False')
  for name in ('radius', 'beta', 'temperature'):
    if not flat[f'calibration.{name}']:
      continue
    _require(flat, f'calibration.{name}', flat['loss'] != 'standard',
             "no robust training accuracy is measured: use False, or another loss than 'standard'")
    _require(flat, 'calibration.start_epoch', flat['calibration.start_epoch'] < flat['epochs'],
             f'no epoch would be calibrated: use one below epochs = {flat["epochs"]}')
  if flat['optimizer.fair_decay']:
    others = flat['optimizer.ema_decay'] or flat['optimizer.swa_start_epoch']
    _require(flat, 'optimizer.fair_decay', not others,
             'only one average is kept: set optimizer.ema_decay and swa_start_epoch, or this, to 0')
    late = flat['optimizer.fair_start_epoch'] >= flat['epochs']
    _require(flat, 'optimizer.fair_start_epoch', not late,
             f'nothing would be averaged: use one below epochs = {flat["epochs"]}')
  needs = (flat['optimizer.fair_decay'] and 'optimizer.fair_decay measures the worst class on it'
           or flat['inference.kind'] != 'none' and 'inference.kind is fitted on it')
  _require(flat, 'dataset.validation_size', flat['dataset.validation_size'] or not needs,
           f'{needs}: use more than 0')


def _check_finetune(flat: dict) -> None:
  """Fine-tuning: what it needs, and what it cannot be combined with."""
  if flat['loss'] != 'finetune':
    return
  f = {name.removeprefix('finetune.'): value for name, value in flat.items()
       if name.startswith('finetune.')}
  start, epochs = f['start_epoch'], flat['epochs']
  _require(flat, 'finetune.start_epoch', start < epochs,
           f'the model would never be fine-tuned: use one below epochs = {epochs}')
  _require(flat, 'finetune.source', not (start and f['source']),
           f'this run trains its own clean model: set finetune.start_epoch = {start} to 0, or '
           "this to ''")
  _require(flat, 'finetune.anchor_weight', start or f['source'] or not f['anchor_weight'],
           'the teacher would be an untrained network: name a finetune.source, set '
           'finetune.start_epoch, or set this to 0')
  _require(flat, 'dataset.validation_size', flat['dataset.validation_size'] > 0,
           'fine-tuning measures clean accuracy on the validation split: use a number above 0')
  _require(flat, 'dummy.enabled', not flat['dummy.enabled'],
           'the losses and the teacher of fine-tuning have no dummy classes: use False')
  _require(flat, 'attack.friendly_taus', not flat['attack.friendly_taus'],
           "fine-tuning stops its attack by a rule of its own: use () and finetune.regulator = 'boundary'")
  _require(flat, 'validate.choose_by', flat['validate.choose_by'] == 'average',
           "fine-tuning selects its operating point: use 'average'")
  _require(flat, 'calibration.temperature', not flat['calibration.temperature'],
           "the teacher's logits have no temperature per class: use False")
  _require(flat, 'optimizer.fair_decay', not flat['optimizer.fair_decay'],
           'the operating point is one epoch, not an average of epochs: use 0')
  normalises = flat.get('model.batch_norm', flat['model.name'] != 'SmallCNN')
  _require(flat, 'finetune.batch_norm', normalises or f['batch_norm'] == 'shared',
           "the network has no BatchNorm: use 'shared', or model.batch_norm = True")
  reads_clean = finetune.uses_clean(f['distance'], f['clean_weight'], has_anchor=f['anchor_weight'] > 0)
  _require(flat, 'finetune.clean_weight', reads_clean or f['batch_norm'] == 'shared',
           'the BatchNorm of clean examples would have no examples: use a number above 0')
  has_fit = f['clean_weight'] > 0 or f['anchor_weight'] > 0
  _require(flat, 'beta', has_fit or flat['beta'] > 0,
           'no term of the loss is left: use a number above 0, or finetune.clean_weight above 0')
  _require(flat, 'weights.on', has_fit or flat['weights.kind'] == 'none' or flat['weights.on'] != 'fit',
           "without the cross-entropy at x the fit is 0: use 'regulariser', or finetune.clean_weight above 0")


def _require(flat: dict, name: str, fine: bool, remedy: str) -> None:
  if not fine:
    raise errors.UserError(f'config.{name}', flat[name], remedy)

"""Variants of a configuration: the part of `--config` behind the colon, as in `X.py:cifar100-small`."""

import ml_collections

from at_jax import errors


def variant(config: ml_collections.ConfigDict, arg: str, *own: str) -> ml_collections.ConfigDict:
  """Applies the part of `--config` behind the colon to a CIFAR-10 configuration.

  cifar100 and mnist change the data. mnist also sets the network, the radius .3 with 40 steps of .01
  and a tenth of the learning rate, as TRADES' MNIST script does; in L2 the radius is 1.5 and the step
  .1. small and smoke change the size. Names combine: cifar100-small.

  Args:
    config: the whole configuration.
    arg: '', or names joined by '-'.
    *own: further names that the file itself handles.

  Returns:
    The configuration.

  Raises:
    errors.UserError: if a name is unknown, empty or repeated, or both data sets are named.

  Example:
    >>> from at_jax import config
    >>> variant(config.default(), 'cifar100-small').dataset.num_classes
    100
  """
  c = config
  names = arg.split('-') if arg else []
  for name in names:
    only(name, 'cifar100', 'mnist', 'small', 'smoke', *own)
  if '' in names or len(set(names)) < len(names):
    raise errors.UserError('--config', f':{arg}', "name each variant once, and join them by one '-'")
  if {'cifar100', 'mnist'} <= set(names):
    raise errors.UserError('--config', f':{arg}', 'a run has one data set: use cifar100 or mnist')
  if 'cifar100' in names:
    c.dataset.name, c.dataset.num_classes = 'cifar100', 100
  if 'mnist' in names:
    c.dataset.update(name='mnist', pad=0, flip=False)
    if not _is_own(c.model):
      c.model = ml_collections.ConfigDict(dict(name='SmallCNN', dtype='float32'))
    radius, step = {'linf': (.3, .01), 'l2': (1.5, .1)}[c.attack.norm]
    c.attack.update(epsilon_255=radius * 255, step_size_255=step * 255,
                    num_steps=40 if c.attack.num_steps > 1 else 1)
    # PGD of 10 or 20 such steps would not reach the edge of the ball.
    c.validate.num_steps, c.evaluate.step_size_255 = 40, radius * 255 / 4
    if '.' not in c.optimizer.name:  # the rate of an optimizer of the user's own stays
      c.optimizer.learning_rate /= 10
      c.optimizer.entropy.inner_learning_rate /= 10
  if 'small' in names:
    c = small(c)
  return smoke(c) if 'smoke' in names else c


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets a small network for eight epochs of the whole data: minutes on two cores.

  The method stays; its attack takes five steps, or one. Network, epochs, radius and learning rates are the
  same for every method, so that the results can be compared; files in configs/ say where they differ.
  Methods that begin late begin at epoch 5, where the learning rate first decays: DUCAT loses accuracy if
  training continues for long at a high rate.

  Args:
    config: a whole configuration.

  Returns:
    The same object.

  Example:
    >>> from at_jax import config
    >>> small(config.default()).optimizer.decay_epochs
    (5, 7)
  """
  c = config
  if not _is_own(c.model):
    c.model = ml_collections.ConfigDict(dict(
        name='SmallCNN', dtype='float32', padding='SAME', features=(16, 32, 32, 64), stem_stride=2,
        hidden=(), batch_norm=True))
  c.epochs = 8
  c.dummy.start_epoch = c.weights.start_epoch = 5
  c.finetune.start_epoch = min(c.finetune.start_epoch, 5)
  c.dataset.autoaugment_start_epoch = min(c.dataset.autoaugment_start_epoch, 5)
  if c.attack.norm == 'linf' and c.dataset.name != 'mnist':
    c.attack.epsilon_255 = 8.0
  c.attack.num_steps, c.attack.step_size_255 = min(c.attack.num_steps, 5), c.attack.epsilon_255 * 2.5 / 8
  c.attack.ramp_epochs = c.attack.ramp_epochs and (2, 6)
  c.beta_ramp_epochs = c.beta_ramp_epochs and (0, 7)
  c.replays, c.attack.reset_epochs = min(c.replays, 4), 3
  if c.attack.friendly_taus:
    c.attack.friendly_taus, c.attack.friendly_epochs = (0, 2), (4,)
  c.calibration.start_epoch = 1
  # The worst class of this network rarely reaches .05: with a threshold of 0 three epochs are averaged.
  c.optimizer.update(fair_start_epoch=5, fair_threshold=0.0)
  c.optimizer.fair_decay = min(c.optimizer.fair_decay, 0.5)
  c.optimizer.update(weight_decay=5e-4, schedule='piecewise', decay_epochs=(5, 7))
  # At .1, the rate of larger networks, this one stays at chance.
  if '.' not in c.optimizer.name:
    c.optimizer.learning_rate = 0.01 if c.dataset.name == 'mnist' else 0.03
    c.optimizer.entropy.inner_learning_rate = c.optimizer.learning_rate
  if c.optimizer.swa_start_epoch:
    c.optimizer.swa_start_epoch = 6
  c.evaluate.num_examples, c.evaluate.audit = 1000, 0
  c.evaluate.step_size_255 = c.attack.epsilon_255 / 4
  return c


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets two batches of scikit-learn's digits: seconds.

  The method, its phases, the kind of network and the optimizer stay.

  Args:
    config: a whole configuration.

  Returns:
    The same object, with two epochs of one batch, which Free-AT takes twice. The second is in the last phase.

  Example:
    >>> from at_jax import config
    >>> smoke(config.default()).epochs
    2
  """
  c = config
  # One batch per epoch, and one batch shape for all attacks of an evaluation, which compile once.
  c.epochs, c.batch_size = 2, 1384
  c.dataset.update(name='digits', num_classes=10, validation_size=16, pad=1, source='device')
  if c.dataset.augment == 'resized_crop':  # of streams only
    c.dataset.augment = 'crop'
  sizes = {'SmallCNN': dict(features=(4, 4), hidden=(8,), padding='SAME'),
           'WideResNet': dict(depth=10, widen_factor=1),
           'PreActResNet18': dict(width=4, stage_sizes=(1, 1)),
           'DucatResNet18': dict(width=4, stage_sizes=(1, 1)),
           'ResNet18': dict(width=4, stage_sizes=(1, 1)),
           'ResNet50': dict(width=4, stage_sizes=(1, 1))}
  c.model.update(sizes.get(c.model.name, {}))
  if 'normalize' in c.model and not _is_own(c.model):
    del c.model.normalize
  c.attack.num_steps = c.validate.num_steps = c.inference.rounds = 1
  c.attack.step_size_255 = c.evaluate.step_size_255 = c.attack.epsilon_255  # one step to the edge of the ball
  c.dummy.start_epoch = c.weights.start_epoch = c.calibration.start_epoch = 1
  c.optimizer.update(fair_start_epoch=1, fair_threshold=0.0)
  c.finetune.start_epoch = min(c.finetune.start_epoch, 1)
  c.attack.ramp_epochs = c.attack.ramp_epochs and (0, 1)
  c.beta_ramp_epochs = c.beta_ramp_epochs and (0, 1)
  c.replays = 2
  c.attack.friendly_taus = c.attack.friendly_taus[:2]
  c.attack.friendly_epochs = c.attack.friendly_epochs[:1] and (1,)
  c.optimizer.decay_epochs = (1,)
  c.optimizer.swa_start_epoch = min(c.optimizer.swa_start_epoch, 1)
  c.dataset.autoaugment_start_epoch = min(c.dataset.autoaugment_start_epoch, 1)
  c.optimizer.entropy.inner_steps = min(c.optimizer.entropy.inner_steps, 2)
  c.log_every_steps = 1
  c.validate.update(batch_size=16, every_epochs=1)
  c.evaluate.update(attacks=('pgd1',), num_examples=16, batch_size=16, audit=0)
  return c


def _is_own(model: ml_collections.ConfigDict) -> bool:
  """Whether a network is not of this package. Variants leave it as it is."""
  return '.' in model.name


def only(arg: str, *known: str) -> None:
  """Checks that the part of `--config` behind the colon is one that the file handles.

  Args:
    arg: the argument of `get_config`; '' is always accepted.
    *known: the other accepted values.

  Raises:
    errors.UserError: if it is not, with the known ones.

  Example:
    >>> only('smal', 'small', 'smoke')
    Traceback (most recent call last):
    at_jax.errors.UserError: --config = ':smal': no such variant; did you mean ':small'? known: :small, :smoke
  """
  if arg and arg not in known:
    raise errors.UserError('--config', f':{arg}', 'no such variant; '
                           + errors.nearest(f':{arg}', [f':{name}' for name in known]))

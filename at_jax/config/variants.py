"""The forms that a configuration has: what stands behind the colon of --config."""

import ml_collections

from at_jax import errors


def variant(config: ml_collections.ConfigDict, arg: str,
         *own: str) -> ml_collections.ConfigDict:
  """The form of a CIFAR-10 configuration that the part of --config behind the colon asks for.

  cifar100 and mnist change the data (mnist also the network, the radius to .3, the step to .01, the
  steps to 40, and SGD's learning rate to a tenth, as TRADES' MNIST script has them; in L2 the
  radius to 1.5 and the step to .1, ours); small and smoke the size. They combine: cifar100-small.

  Args:
    config: the whole configuration.
    arg: '', or names with '-' between them.
    *own: names that the file itself has acted upon.

  Returns:
    The configuration.

  Raises:
    errors.UserError: for a name that is not known.

  Example:
    >>> from at_jax import config
    >>> form(config.default(), 'cifar100-small').dataset.num_classes
    100

  Source: ours.
  """
  c = config
  asked = arg.split('-') if arg else []
  for name in asked:
    only(name, 'cifar100', 'mnist', 'small', 'smoke', *own)
  if 'cifar100' in asked:
    c.dataset.name, c.dataset.num_classes = 'cifar100', 100
  if 'mnist' in asked:
    c.dataset.update(name='mnist', pad=0, flip=False)
    c.model = ml_collections.ConfigDict(dict(name='SmallCNN', dtype='float32'))
    radius, step = {'linf': (.3, .01), 'l2': (1.5, .1)}[c.attack.norm]
    c.attack.update(epsilon_255=radius * 255, step_size_255=step * 255, num_steps=40)
    c.optimizer.learning_rate /= 10
  if 'small' in asked:
    c = small(c)
  return smoke(c) if 'smoke' in asked else c


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Any configuration cut down to a small network for eight epochs of the *whole* data: minutes.

  The method stays, with five attack steps. Network, epochs, radius and SGD, which falls after five
  epochs and after seven, are the same for all, so that their numbers can be set side by side. What
  begins late begins at the first fall: before it, dummy classes undo what was learnt.

  Args:
    config: a whole configuration.

  Returns:
    The same object.

  Example:
    >>> from at_jax import config
    >>> small(config.default()).optimizer.decay_epochs
    (5, 7)

  Source: ours.
  """
  c = config
  c.model = ml_collections.ConfigDict(dict(
      name='SmallCNN', dtype='float32', padding='SAME', features=(16, 32, 32, 64), stem_stride=2,
      hidden=(), batch_norm=True))
  c.epochs = 8
  c.dummy.start_epoch = c.weights.start_epoch = 5
  c.finetune.start_epoch = min(c.finetune.start_epoch, 5)
  c.dataset.autoaugment_start_epoch = min(c.dataset.autoaugment_start_epoch, 5)
  if c.attack.norm == 'linf' and c.dataset.name != 'mnist':
    c.attack.epsilon_255 = 8.0
  c.attack.num_steps, c.attack.step_size_255 = 5, c.attack.epsilon_255 * 2.5 / 8
  if c.attack.friendly_taus:
    c.attack.friendly_taus, c.attack.friendly_epochs = (0, 2), (4,)
  c.calibration.start_epoch = 1
  # The worst class of so small a network is seldom at .05, let alone .2: three epochs are averaged.
  c.optimizer.update(fair_start_epoch=5, fair_threshold=0.0)
  c.optimizer.fair_decay = min(c.optimizer.fair_decay, 0.5)
  c.optimizer.weight_decay, c.optimizer.decay_epochs = 5e-4, (5, 7)
  # A tenth, which larger networks take, leaves this one at chance from the first steps on.
  c.optimizer.learning_rate = 0.01 if c.dataset.name == 'mnist' else 0.03
  c.optimizer.entropy.inner_learning_rate = c.optimizer.learning_rate
  if c.optimizer.swa_start_epoch:
    c.optimizer.swa_start_epoch = 6
  c.evaluate.num_examples = 1000
  c.evaluate.step_size_255 = c.attack.epsilon_255 / 4
  return c


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Any configuration cut down to two steps on scikit-learn's digits: seconds, no network.

  The method, its phases, the kind of network and the optimizer stay; sizes do not.

  Args:
    config: a whole configuration.

  Returns:
    The same object; two epochs of one step, the second in the last phase.

  Example:
    >>> from at_jax import config
    >>> smoke(config.default()).epochs
    2

  Source: ours.
  """
  c = config
  # One batch an epoch; and one batch shape for all attacks of an evaluation, which compiles once.
  c.epochs, c.batch_size = 2, 1384
  c.dataset.update(name='digits', num_classes=10, validation_size=16, pad=1)
  if c.model.name == 'WideResNet':
    c.model.update(depth=10, widen_factor=1)
  elif c.model.name != 'SmallCNN':
    c.model.update(width=4, stage_sizes=(1, 1))
  else:
    c.model.update(features=(4, 4), hidden=(8,), padding='SAME')
  if 'normalize' in c.model:
    del c.model.normalize
  c.attack.num_steps = c.validate.num_steps = c.inference.rounds = 1
  c.dummy.start_epoch = c.weights.start_epoch = c.calibration.start_epoch = 1
  c.optimizer.update(fair_start_epoch=1, fair_threshold=0.0)
  c.finetune.start_epoch = min(c.finetune.start_epoch, 1)
  c.attack.friendly_taus = c.attack.friendly_taus[:2]
  c.attack.friendly_epochs = c.attack.friendly_epochs[:1] and (1,)
  c.optimizer.decay_epochs = (1,)
  c.optimizer.swa_start_epoch = min(c.optimizer.swa_start_epoch, 1)
  c.dataset.autoaugment_start_epoch = min(c.dataset.autoaugment_start_epoch, 1)
  c.optimizer.entropy.inner_steps = min(c.optimizer.entropy.inner_steps, 2)
  c.log_every_steps = 1
  c.validate.update(batch_size=16, every_epochs=1)
  c.evaluate.update(attacks=('pgd1',), num_examples=16, batch_size=16)
  return c


def only(arg: str, *known: str) -> None:
  """Raises unless the part of --config behind the colon is one that the file knows.

  Args:
    arg: what `get_config` was called with; '' is always known.
    *known: the others.

  Raises:
    errors.UserError: with the known ones.

  Example:
    >>> only('smal', 'small', 'smoke')
    Traceback (most recent call last):
    at_jax.errors.UserError: --config = ':smal': did you mean ':small'? known: :small, :smoke

  Source: ours.
  """
  if arg and arg not in known:
    raise errors.UserError('--config', f':{arg}',
                           errors.nearest(f':{arg}', [f':{name}' for name in known]))

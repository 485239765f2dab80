"""Settings, networks, loaders and files with which a run would train or evaluate something else."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import config, errors, models
from at_jax.config import validation, variants
from at_jax.datasets import pipeline
from at_jax.training import run_data, setup, user_functions


class _Normed(nn.Module):
  num_outputs: int
  axis_name: str | None = None

  def scores(self, x, train):
    x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x.reshape(len(x), -1))
    return nn.Dense(self.num_outputs)(x)


class Training(_Normed):
  @nn.compact
  def __call__(self, x, training=False):
    return self.scores(x, training)


class Keywords(_Normed):
  @nn.compact
  def __call__(self, x, **keywords):
    return self.scores(x, keywords.get('train', False))


class Train(_Normed):
  @nn.compact
  def __call__(self, x, train=False):
    return self.scores(x, train)


def _empty(options):
  del options
  raise KeyError('images')


def _without_arguments():
  return {}


def _smoke():
  return variants.smoke(config.default())


def _warnings(c, images=None):
  lines = []
  if images is None:
    validation.check(c, lines.append)
  else:
    y = np.arange(len(images)) % 2
    data = pipeline.from_arrays('mine', dict(train_images=images, train_label=y, test_images=images,
                                             test_label=y))
    setup.build(c, dataset=data, warn=lines.append)
  return lines


@pytest.mark.parametrize('network', ['Training', 'Keywords'])
def test_batchnorm_that_never_trains_is_refused(network):
  c = _smoke()
  c.model = dict(name=f'{__name__}.{network}')
  with pytest.raises(errors.UserError, match='its BatchNorm statistics do not change in train mode'):
    user_functions.check(setup.build(c))
  c.model = dict(name=f'{__name__}.Train')
  user_functions.check(setup.build(c))


@pytest.mark.parametrize('normalize, message', [
    (((125.3,), (63.,)), 'divide those of pixels in 0..255 by 255'),
    (((.5, .5, .5), (.2, .2, .2)), 'mean has 3 numbers for 1 channels'),  # digits have one
    (((.5,), (0.,)), 'std reaches down to 0'),
    ((.5,), r'1 parts: use two, \(mean, std\)'),
])
def test_a_normalisation_in_other_units_is_refused(normalize, message):
  c = _smoke()
  c.model.normalize = normalize
  with pytest.raises(errors.UserError, match=message):
    setup.build(c)


def test_a_network_refuses_images_of_more_channels_from_its_normalisation():
  # Three means for one channel would broadcast to three channels.
  model = models.SmallCNN(num_outputs=2, features=(), hidden=(4,), normalize=((.5,) * 3, (.2,) * 3))
  with pytest.raises(ValueError, match='mean has 3 numbers for 1 channels'):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_a_deployed_network_refuses_pixels():
  network = models.deploy(models.SmallCNN(num_outputs=2, features=(), hidden=(4,)), has_dummies=False)
  variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  with pytest.raises(ValueError, match=r'x has dtype uint8: use images in 0..1, datasets.to_unit\(x\)'):
    network.deployed(variables, np.zeros((1, 4, 4, 1), np.uint8))


def test_epochs_beyond_the_last_one_warn():
  c = config.default()
  assert _warnings(c) == []
  c.epochs = 103
  assert _warnings(c) == ['config.optimizer.decay_epochs = (100, 105): a run of 103 epochs does not reach '
                          '105: use smaller ones, or more epochs']


def test_learning_rate_of_sgd_warns_for_another_optimizer():
  c = config.default()
  c.optimizer.name = 'optax.adam'
  assert _warnings(c) == ['config.optimizer.learning_rate = 0.1: it is the default, for SGD: set that of '
                          'optax.adam (1e-3 is usual for Adam)']
  for variant in ('small', 'mnist', 'mnist-small-smoke'):  # they change the rate of SGD only
    assert variants.variant(c, variant).optimizer.learning_rate == .1
  for name, rate in (('optax.adam', 1e-3), ('optax.sgd', .1), ('sgd', .1)):
    c.optimizer.update(name=name, learning_rate=rate)
    assert _warnings(c) == []


@pytest.mark.parametrize('height, pad, share', [
    (1, 4, 89),  # of the offsets 0..8, only 4 leaves the row in place
    (3, 4, 44),  # 0, 1, 7 and 8 are beyond three rows
    (8, 4, 0),
])
def test_crops_without_pixels_warn(height, pad, share):
  c = _smoke()
  c.dataset.update(num_classes=2, pad=pad, validation_size=0)
  c.batch_size = 2
  found = [line for line in _warnings(c, np.full((4, height, 16, 1), 255, np.uint8)) if 'pad' in line]
  assert found == [f'config.dataset.pad = {pad}: {share} % of the random crops of images of {height}x16 are '
                   f'empty: use less than {height}'] * (share > 0)


@pytest.mark.parametrize('loader, message', [
    ('_empty', "KeyError: 'images' .test_doubtful_settings.py:.*it is called with config.dataset"),
    ('_without_arguments', 'it is called as _without_arguments.options.'),
])
def test_a_loader_that_fails_is_one_line(loader, message):
  c = _smoke()
  c.dataset.name = f'{__name__}.{loader}'
  with pytest.raises(errors.UserError, match=f'config.dataset.name = .*{message}'):
    run_data.read(c)


def test_a_file_of_another_format_is_named(tmp_path):
  c = _smoke()
  np.save(tmp_path / 'mine.npy', np.zeros(3))
  c.dataset.name = str(tmp_path / 'mine.npy')
  with pytest.raises(errors.UserError, match='cannot be read, except .npz files: store the arrays with'):
    run_data.read(c)


@pytest.mark.parametrize('given', [{'epochs': 1}, 'configs/pgd_at_cifar10.py'])
def test_a_configuration_of_another_type_is_refused(given):
  with pytest.raises(errors.UserError, match='config = .*: use what get_config of a file in configs'):
    validation.check(given)

"""Averages of weights are evaluated with BatchNorm statistics of their own."""

import jax
import numpy as np
import optax
import pytest

from at_jax import attacks
from at_jax.config import fields
from at_jax.methods import weight_averaging
from at_jax.training import batchnorm, setup


def averaged_sgd(learning_rate):
  """An optimizer of one's own that keeps an average."""
  return optax.chain(optax.sgd(learning_rate), weight_averaging.ema(.9))


def darken(*, norm, epsilon, step_size, num_steps, decide):
  """An inner attack that multiplies images by what its radius is multiplied by."""
  return lambda logits_fn, x, y, key, index, scale=1.: attacks.AttackResult(x * scale, y < 0, y, 0. * y)


def start(**optimizer):
  """A run on digits, its state with an average of other parameters, and those parameters."""
  c = fields.default()
  c.dataset.update(name='digits', num_classes=10, validation_size=16, pad=0, flip=False)
  c.model.update(name='SmallCNN', features=(4,), hidden=(), padding='SAME', batch_norm=True)
  c.loss, c.batch_size = 'standard', 20
  c.evaluate.batch_size = c.validate.batch_size = 20
  c.optimizer.update(optimizer)
  run = setup.build(c)
  state = jax.device_get(setup.init_state(run))
  other = jax.device_get(jax.tree.map(lambda p: 2 * p + .1, state.params))
  is_average = lambda node: isinstance(node, weight_averaging.AverageState)
  replace = lambda node: node._replace(average=other) if is_average(node) else node
  opt_state = jax.tree.map(replace, state.opt_state, is_leaf=is_average)
  return run, state._replace(opt_state=opt_state), other


@pytest.mark.parametrize('optimizer', [
    dict(ema_decay=.9), dict(swa_start_epoch=1), dict(name='tests.training.test_batchnorm.averaged_sgd')],
                         ids=['ema', 'swa', 'own'])
def test_averages_get_statistics_of_the_training_data(optimizer):
  run, state, other = start(**optimizer)
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], other)
  # Expected: mean and variance of the first layer over the whole training set, in NumPy.
  x = np.pad(run.dataset.train.images / 255., ((0, 0), (1, 1), (1, 1), (0, 0)))[..., 0]
  w, b = other['conv1']['kernel'][:, :, 0], other['conv1']['bias']
  out = b + sum(x[:, i:i + 8, j:j + 8, None] * w[i, j] for i in range(3) for j in range(3))
  statistics = found['batch_stats']['bn1']
  # The running statistics are weighted means over some tens of batches of 20.
  np.testing.assert_allclose(statistics['mean'], out.mean((0, 1, 2)), rtol=.05)
  np.testing.assert_allclose(statistics['var'], out.var((0, 1, 2)), rtol=.1)
  again = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found, again)


def test_statistics_are_those_of_the_radius_of_the_epoch():
  run, state, _ = start(ema_decay=.9)
  state = state._replace(step=np.asarray(3 * run.steps_per_epoch, np.int32))  # after the radius has grown

  def statistics(*ramp_epochs):
    c = run.config.copy_and_resolve_references()
    c.loss, c.attack.kind = 'pgd_at', 'tests.training.test_batchnorm.darken'
    c.attack.ramp_epochs = ramp_epochs
    return batchnorm.reestimate_batchnorm(run._replace(config=c))(state)['batch_stats']

  jax.tree.map(np.testing.assert_array_equal, statistics(1, 2), statistics())


def test_fair_average_gets_statistics_once_it_is_not_empty():
  run, state, other = start(fair_decay=.5)
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], state.params)
  assert found['batch_stats'] is state.batch_stats
  state = state._replace(average=weight_averaging.add_if_fair(state.average, other, 1., decay=.5,
                                                    threshold=.2))
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], other)
  expected = batchnorm.reestimate_batchnorm(start(ema_decay=.9)[0])(start(ema_decay=.9)[1])
  jax.tree.map(np.testing.assert_array_equal, found['batch_stats'], expected['batch_stats'])


def test_without_an_average_the_state_is_evaluated():
  run, state, _ = start()
  found = batchnorm.reestimate_batchnorm(run)(state)
  assert found['params'] is state.params and found['batch_stats'] is state.batch_stats

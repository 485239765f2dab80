"""Averaged parameters are evaluated with statistics of their own."""

import jax
import numpy as np
import pytest

from at_jax.config import fields
from at_jax.methods import weight_averaging
from at_jax.training import batchnorm, setup


def started(**optimizer):
  """A run on digits, and its state with an average that is another network's parameters."""
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


@pytest.mark.parametrize('optimizer', [dict(ema_decay=.9), dict(swa_start_epoch=1)],
                         ids=['ema', 'swa'])
def test_statistics_are_those_of_the_training_data_at_the_average(optimizer):
  run, state, other = started(**optimizer)
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], other)
  # By hand: the first layer's outputs over the whole training set, in NumPy.
  x = np.pad(run.dataset.train.images / 255., ((0, 0), (1, 1), (1, 1), (0, 0)))[..., 0]
  w, b = other['conv1']['kernel'][:, :, 0], other['conv1']['bias']
  out = b + sum(x[:, i:i + 8, j:j + 8, None] * w[i, j] for i in range(3) for j in range(3))
  statistics = found['batch_stats']['bn1']
  # Each is a weighted mean over some tens of batches of 20.
  np.testing.assert_allclose(statistics['mean'], out.mean((0, 1, 2)), rtol=.05)
  np.testing.assert_allclose(statistics['var'], out.var((0, 1, 2)), rtol=.1)
  again = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found, again)


def test_a_fair_average_is_settled_once_anything_is_taken_in():
  run, state, other = started(fair_decay=.5)
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], state.params)
  assert found['batch_stats'] is state.batch_stats
  state = state._replace(average=weight_averaging.take_in(state.average, other, 1., decay=.5,
                                                    threshold=.2))
  found = batchnorm.reestimate_batchnorm(run)(state)
  jax.tree.map(np.testing.assert_array_equal, found['params'], other)
  expected = batchnorm.reestimate_batchnorm(started(ema_decay=.9)[0])(started(ema_decay=.9)[1])
  jax.tree.map(np.testing.assert_array_equal, found['batch_stats'], expected['batch_stats'])


def test_without_an_average_the_state_is_evaluated_as_it_is():
  run, state, _ = started()
  found = batchnorm.reestimate_batchnorm(run)(state)
  assert found['params'] is state.params and found['batch_stats'] is state.batch_stats

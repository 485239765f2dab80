"""Dual BatchNorm: separate statistics in training, and every attack uses the deployed branch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, models
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.methods import finetune
from at_jax.models import deployed as deployed_lib
from at_jax.models import dual_batchnorm
from at_jax.training import step as step_lib
from tests.fixtures import training_steps

X = np.random.default_rng(0).random((32, 4, 4, 1), np.float32)


@pytest.fixture(scope='module')
def plain():
  """A network with one BatchNorm branch, with statistics unlike the initial ones."""
  model = models.SmallCNN(num_outputs=3, features=(8, 8), hidden=(), padding='SAME', batch_norm=True)
  network = deployed_lib.deploy(model, has_dummies=False)
  variables = network.init(jax.random.key(0), X[:1])
  for _ in range(20):
    _, stats = network.train(variables, X)
    variables = variables | {'batch_stats': stats}
  return network, variables


def test_identical_branches_equal_one_batchnorm(plain):
  network, variables = plain
  dual_variables = dual_batchnorm.duplicate(variables)
  for branch in dual_batchnorm.BRANCHES:
    jax.tree.map(np.testing.assert_array_equal, dual_batchnorm.select(dual_variables, branch), variables)
    dual = dual_batchnorm.dual_batchnorm(network, deployed=branch)
    np.testing.assert_array_equal(dual.logits(dual_variables, X), network.logits(variables, X))
    np.testing.assert_array_equal(dual.deployed(dual_variables, X), network.deployed(variables, X))
    np.testing.assert_array_equal(dual.train(dual_variables, X)[0], network.train(variables, X)[0])
  assert 'bn1' not in dual_variables['params']['shared']
  assert list(dual_variables['params']['clean']) == ['bn1', 'bn2']


@pytest.mark.parametrize('used', dual_batchnorm.BRANCHES)
def test_train_changes_its_own_branch_only(plain, used):
  network, variables = plain
  dual_variables = dual_batchnorm.duplicate(variables)
  other, = set(dual_batchnorm.BRANCHES) - {used}
  dual = dual_batchnorm.dual_batchnorm(network, deployed=other)
  _, stats = dual.train(dual_variables, 1 - X, branch=used)
  jax.tree.map(np.testing.assert_array_equal, stats[other], dual_variables['batch_stats'][other])
  # The used branch gets the statistics of the network with one branch.
  _, alone = network.train(variables, 1 - X)
  jax.tree.map(np.testing.assert_array_equal, stats[used], alone)
  assert np.max(np.abs(stats[used]['bn1']['mean'] - stats[other]['bn1']['mean'])) > 1e-4
  loss = lambda p: jnp.sum(dual.train(dual_variables | {'params': p}, X, branch=used)[0] ** 2)
  gradient = jax.grad(loss)(dual_variables['params'])
  largest = {name: max(np.max(np.abs(g)) for g in jax.tree.leaves(part))
             for name, part in gradient.items()}
  assert largest[other] == 0 and largest[used] > 0 and largest['shared'] > 0


def test_objective_uses_the_branch_of_each_input():
  seen = []

  def forward(x, batch_stats, branch):
    seen.append((branch, float(x[0, 0])))
    return x, batch_stats

  x, x_adv = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
  finetune.finetune(forward, {}, x, x_adv, jnp.array([0]), distance='kl', anchor='kl',
                    anchor_weight=0.)
  assert seen == [('clean', 1.), ('adversarial', 2.)]


def with_constant_branch(variables):
  """The clean branch classifies; the adversarial branch is constant, so its input gradient is zero."""
  dual_variables = dual_batchnorm.duplicate(variables)
  constant = lambda layer: {'scale': jnp.zeros_like(layer['scale']), 'bias': layer['bias']}
  dual_variables['params']['adversarial'] = {
      name: constant(layer) for name, layer in dual_variables['params']['adversarial'].items()}
  return dual_variables


def test_evaluation_attacks_the_deployed_branch(plain):
  network, variables = plain
  dual_variables = with_constant_branch(variables)
  images = np.round(255 * X).astype(np.uint8)
  labels = np.asarray(jnp.argmax(network.logits(variables, pipeline.to_unit(images)), axis=-1))
  split, key = pipeline.Split(images, labels.astype(np.int32)), jax.random.key(0)
  protocol = dict(names=['fgsm', 'pgd5'], norm='linf', epsilon=.1, step_size=.03, batch_size=32,
                  has_dummies=False)
  dual = dual_batchnorm.dual_batchnorm(network, deployed='clean')
  found = robustness.evaluate(dual, dual_variables, split, key, **protocol)
  alone = robustness.evaluate(network, variables, split, key, **protocol)
  for name in protocol['names']:
    np.testing.assert_array_equal(found.robust[name], alone.robust[name])
  # An attack on the other branch overestimates the robust accuracy.
  other = dual_batchnorm.dual_batchnorm(network, deployed='adversarial')
  fooled = attacks.fgsm(functools.partial(other.logits, dual_variables), pipeline.to_unit(images),
                        split.labels, epsilon=.1)
  overestimate = np.mean(jnp.argmax(dual.deployed(dual_variables, fooled.x), axis=-1) == labels)
  assert found.robust['fgsm'].mean() < overestimate - .1


@pytest.mark.parametrize('deployed', dual_batchnorm.BRANCHES)
def test_training_attacks_the_deployed_branch(plain, deployed):
  network, variables = plain
  dual_variables = with_constant_branch(variables)

  def reveal(logits_fn, x, y, key, index):  # returns the logits that an attack sees
    del y, key, index
    ones = jnp.ones(len(x), bool)
    return attacks.AttackResult(logits_fn(x), ones, ones, ones)

  dual = dual_batchnorm.dual_batchnorm(network, deployed=deployed)
  recipe = training_steps.make()._replace(network=dual, attack=reveal, pad=0, flip=False)
  state = step_lib.TrainState(
      jnp.zeros((), jnp.int32), dual_variables['params'], dual_variables['batch_stats'], ())
  images = np.round(255 * X).astype(np.uint8)
  found = step_lib.attacked(state, images, np.zeros(32, np.int32), np.arange(32),
                            jax.random.key(0), recipe=recipe)
  expected = network.logits(dual_batchnorm.select(dual_variables, deployed), found.x)
  np.testing.assert_array_equal(found.x_adv, expected)

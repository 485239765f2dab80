"""Two BatchNorms: apart in training, and every attack through the one that is deployed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, models
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.methods import cfa, finetune
from at_jax.models import deployed as deployed_lib
from at_jax.models import dual_batchnorm
from at_jax.training import step as step_lib
from tests.fixtures import training_steps

X = np.random.default_rng(0).random((32, 4, 4, 1), np.float32)


@pytest.fixture(scope='module')
def plain():
  """A network with one BatchNorm and variables that are unlike those at the start."""
  model = models.SmallCNN(num_outputs=3, features=(8, 8), hidden=(), padding='SAME', batch_norm=True)
  network = deployed_lib.deploy(model, has_dummies=False)
  variables = network.init(jax.random.key(0), X[:1])
  for _ in range(20):
    _, stats = network.train(variables, X)
    variables = variables | {'batch_stats': stats}
  return network, variables


def test_two_equal_branches_are_the_one(plain):
  network, variables = plain
  twice = dual_batchnorm.duplicate(variables)
  for name in dual_batchnorm.BRANCHES:
    jax.tree.map(np.testing.assert_array_equal, dual_batchnorm.select(twice, name), variables)
    dual = dual_batchnorm.dual_batchnorm(network, deployed=name)
    np.testing.assert_array_equal(dual.logits(twice, X), network.logits(variables, X))
    np.testing.assert_array_equal(dual.deployed(twice, X), network.deployed(variables, X))
    np.testing.assert_array_equal(dual.train(twice, X)[0], network.train(variables, X)[0])
  assert 'bn1' not in twice['params']['shared'] and list(twice['params']['clean']) == ['bn1', 'bn2']


@pytest.mark.parametrize('moved', dual_batchnorm.BRANCHES)
def test_a_pass_moves_its_own_branch_alone(plain, moved):
  network, variables = plain
  twice = dual_batchnorm.duplicate(variables)
  still, = set(dual_batchnorm.BRANCHES) - {moved}
  dual = dual_batchnorm.dual_batchnorm(network, deployed=still)
  _, stats = dual.train(twice, 1 - X, branch=moved)
  jax.tree.map(np.testing.assert_array_equal, stats[still], twice['batch_stats'][still])
  # By hand: linen keeps .9 of what was and takes .1 of what one network sees.
  _, alone = network.train(variables, 1 - X)
  jax.tree.map(np.testing.assert_array_equal, stats[moved], alone)
  assert np.max(np.abs(stats[moved]['bn1']['mean'] - stats[still]['bn1']['mean'])) > 1e-4
  loss = lambda p: jnp.sum(dual.train(twice | {'params': p}, X, branch=moved)[0] ** 2)
  gradient = jax.grad(loss)(twice['params'])
  largest = {name: max(np.max(np.abs(g)) for g in jax.tree.leaves(part))
             for name, part in gradient.items()}
  assert largest[still] == 0 and largest[moved] > 0 and largest['shared'] > 0


def test_the_objective_sends_each_input_through_its_branch():
  seen = []

  def forward(x, batch_stats, branch):
    seen.append((branch, float(x[0, 0])))
    return x, batch_stats

  x, x_adv = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
  finetune.finetune(forward, {}, x, x_adv, jnp.array([0]), distance='kl', anchor='kl',
                    anchor_weight=0.)
  assert seen == [('clean', 1.), ('adversarial', 2.)]


def unlike(variables):
  """Branches of which the clean one classifies, and the adversarial one hides its gradients."""
  twice = dual_batchnorm.duplicate(variables)
  flat = lambda layer: {'scale': jnp.zeros_like(layer['scale']), 'bias': layer['bias']}
  twice['params']['adversarial'] = {n: flat(v) for n, v in twice['params']['adversarial'].items()}
  return twice


def test_what_is_reported_is_attacked_through_the_deployed_branch(plain):
  network, variables = plain
  twice = unlike(variables)
  images = np.round(255 * X).astype(np.uint8)
  labels = np.asarray(jnp.argmax(network.logits(variables, pipeline.to_unit(images)), axis=-1))
  split, key = pipeline.Split(images, labels.astype(np.int32)), jax.random.key(0)
  protocol = dict(names=['fgsm', 'pgd5'], norm='linf', epsilon=.1, step_size=.03, batch_size=32,
                  has_dummies=False)
  dual = dual_batchnorm.dual_batchnorm(network, deployed='clean')
  found = robustness.evaluate(dual, twice, split, key, **protocol)
  alone = robustness.evaluate(network, variables, split, key, **protocol)
  for name in protocol['names']:
    np.testing.assert_array_equal(found.robust[name], alone.robust[name])
  # What an attack through the other branch would have had us believe.
  other = dual_batchnorm.dual_batchnorm(network, deployed='adversarial')
  fooled = attacks.fgsm(functools.partial(other.logits, twice), pipeline.to_unit(images),
                        split.labels, epsilon=.1)
  stands = np.mean(jnp.argmax(dual.deployed(twice, fooled.x), axis=-1) == labels)
  assert found.robust['fgsm'].mean() < stands - .1


@pytest.mark.parametrize('deployed', dual_batchnorm.BRANCHES)
def test_training_attacks_the_deployed_branch(plain, deployed):
  network, variables = plain
  twice = unlike(variables)

  def reveal(logits_fn, x, y, key, index):  # what an attack sees at x
    del y, key, index
    ones = jnp.ones(len(x), bool)
    return attacks.AttackResult(logits_fn(x), ones, ones, ones)

  recipe = training_steps.make()._replace(network=dual_batchnorm.dual_batchnorm(network, deployed=deployed),
                                     attack=reveal, pad=0, flip=False)
  state = step_lib.TrainState(jnp.zeros((), jnp.int32), twice['params'], twice['batch_stats'], ())
  images = np.round(255 * X).astype(np.uint8)
  found = step_lib._examples(state, images, np.zeros(32, np.int32), np.arange(32),
                             jax.random.key(0), step_lib.EpochValues(), recipe,
                             cfa.ByClass())
  expected = network.logits(dual_batchnorm.select(twice, deployed), found.x)
  np.testing.assert_array_equal(found.x_adv, expected)

"""A change of the deployed logits by class: its numbers, its fit, and attacks through it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import models
from at_jax.config import fields as fields_lib
from at_jax.datasets import pipeline
from at_jax.evaluation import autoattack_run, robustness
from at_jax.methods import ducat, inner_attacks
from at_jax.models import deployed as deployed_lib
from at_jax.models import logit_adjustment
from at_jax.training import model_selection

RNG = np.random.default_rng(0)


def test_the_change_is_that_of_a_loop_up_to_what_all_classes_share():
  z = RNG.normal(size=(5, 3)).astype(np.float32)
  b, s = RNG.normal(size=3).astype(np.float32), RNG.uniform(.5, 2, 3).astype(np.float32)
  found = logit_adjustment.adjust(z, {'bias': b, 'scale': s})
  for i in range(5):
    mean = np.mean(np.float64(z[i]))
    expected = [s[k] * (z[i, k] - mean) + b[k] for k in range(3)]
    np.testing.assert_allclose(found[i] - mean, expected, atol=1e-5)
  # A constant that is added to all logits decides nothing before the change, nor after.
  shifted = logit_adjustment.adjust(z + 7, {'bias': b, 'scale': s})
  np.testing.assert_allclose(shifted - 7, found, atol=1e-5)


def test_a_bias_of_zero_and_a_scale_of_one_are_nothing_to_the_bit():
  z = RNG.normal(size=(50, 10)).astype(np.float32)
  np.testing.assert_array_equal(logit_adjustment.adjust(z, logit_adjustment.identity(10)), z)


def test_a_round_by_hand():
  # The mean is .5: rate 2 gives +.8, −.6 and −.2 logits, or factors of e to these.
  accuracy = np.array([.1, .8, .6])
  biased = logit_adjustment.update(logit_adjustment.identity(3), accuracy, kind='bias', rate=2.)
  np.testing.assert_allclose(biased['bias'], [.8, -.6, -.2], rtol=1e-6)
  np.testing.assert_array_equal(biased['scale'], 1)
  scaled = logit_adjustment.update(logit_adjustment.identity(3), accuracy, kind='temperature', rate=2.)
  np.testing.assert_allclose(scaled['scale'], np.exp([.8, -.6, -.2]), rtol=1e-6)
  np.testing.assert_array_equal(scaled['bias'], 0)
  unknown = logit_adjustment.update(logit_adjustment.identity(3), np.array([.1, np.nan, .3]), kind='bias',
                             rate=1.)
  np.testing.assert_allclose(unknown['bias'], [.1, 0, -.1], rtol=1e-6)


def two_classes(kind, **fields):
  """Class 0 below a pixel of .4, class 1 above, where .5 would be fair; ε is .1.

  z₁ − z₀ = 4(x − .4), so a bias b₀ − b₁ moves the boundary to .4 + (b₀ − b₁)/4.
  """
  def logits(variables, x):
    x = x.reshape(len(x), -1)
    return variables['params'] * jnp.concatenate([.4 - x, x - .4], axis=1)

  def deployed(variables, x):
    z = logits(variables, x)
    return logit_adjustment.adjust(z, variables['inference']) if 'inference' in variables else z

  c = fields_lib.default()
  c.attack.update(epsilon_255=25.5, step_size_255=10.)
  c.validate.update(num_steps=5, batch_size=40)
  c.inference.update(kind=kind, **fields)
  x = np.concatenate([np.linspace(.15, .35, 20), np.linspace(.65, .85, 20)])
  split = pipeline.Split(np.round(x * 255).astype(np.uint8).reshape(-1, 1, 1, 1),
                     np.repeat(np.arange(2, dtype=np.int32), 20))
  network = deployed_lib.Network(None, logits, deployed, None, lambda z: z)
  dataset = types.SimpleNamespace(validation=split, num_classes=2)
  run = types.SimpleNamespace(config=c, network=network, dataset=dataset,
                              keys={'evaluate': jax.random.key(0)})
  return run, {'params': jnp.float32(2.)}


def test_a_fitted_bias_raises_the_worst_class():
  run, variables = two_classes('bias', rate=.5)
  changed, told = model_selection.fit(run, variables)
  before, after = told['validation']['before'], told['validation']['after']
  # x + .1 < .4 holds up to .3: 15 of the 20 of class 0 stand, and all of class 1.
  assert before['by_class'] == {'clean': [1., 1.], 'worst_case': [.75, 1.], 'worst': 0}
  # Boundaries from .35 + .1 to .65 − .1 are fair to everyone.
  assert after['worst_class'] == 1 and told['round'] > 0
  b = changed['inference']['bias']
  assert .45 < .4 + (b[0] - b[1]) / 4 < .55
  np.testing.assert_array_equal(told['bias'], b)
  again, _ = model_selection.fit(run, variables)
  jax.tree.map(np.testing.assert_array_equal, again, changed)


def test_nothing_better_is_no_change():
  run, variables = two_classes('bias', rate=1e-6, rounds=2)
  changed, told = model_selection.fit(run, variables)
  assert told['round'] == 0
  jax.tree.map(np.testing.assert_array_equal, changed['inference'], logit_adjustment.identity(2))
  run, variables = two_classes('none')
  assert model_selection.fit(run, variables) == (variables, None)


def wrapped(has_dummies=False):
  model = models.SmallCNN(num_outputs=20 if has_dummies else 10, features=(4,), hidden=(),
                          padding='SAME')
  network = deployed_lib.deploy(model, has_dummies=has_dummies)
  test = pipeline.load('digits').test
  split = pipeline.Split(test.images[:40], test.labels[:40])
  return network, network.init(jax.random.key(0), pipeline.to_unit(split.images)), split


@pytest.mark.parametrize('field', ['bias', 'scale'])
def test_attacks_go_through_the_change(field):
  network, variables, split = wrapped()
  by_class = logit_adjustment.identity(10)
  by_class[field] = by_class[field] + np.linspace(0, 1, 10, dtype=np.float32)
  changed = variables | {'inference': by_class}
  attack = inner_attacks.uniform(norm='linf', epsilon=.1, step_size=.05, num_steps=2)
  x, y = pipeline.to_unit(split.images), split.labels

  def by_hand(x):
    z = network.logits(variables, x)
    return z + by_class['bias'] + (by_class['scale'] - 1) * (z - z.mean(-1, keepdims=True))

  def attacked(logits):
    return attack(logits, x, y, jax.random.key(1), None).x

  found = attacked(jax.tree_util.Partial(network.deployed, changed))
  np.testing.assert_allclose(found, attacked(by_hand), atol=1e-6)
  plain = attacked(jax.tree_util.Partial(network.deployed, variables))
  assert np.max(np.abs(found - plain)) > .01
  # And an evaluation counts what stands after that attack, of the changed model.
  report = robustness.evaluate(network, changed, split, jax.random.key(1), names=['pgd2'],
                             norm='linf', epsilon=.1, step_size=.05, batch_size=40,
                             has_dummies=False)
  right = lambda x: np.argmax(by_hand(x), axis=-1) == y
  stands = right(x) & right(attacked(by_hand))
  np.testing.assert_array_equal(report.worst_case, stands)
  # The state of a long attack on one is none of the other's.
  key, settings = jax.random.key(0), {}
  assert (autoattack_run.identity(network.deployed, changed, split, key, settings)
          != autoattack_run.identity(network.deployed, variables, split, key, settings))


def test_what_an_attack_that_knows_of_dummies_sees_is_what_is_deployed():
  network, variables, split = wrapped(has_dummies=True)
  by_class = {'bias': np.linspace(0, 1, 10, dtype=np.float32),
              'scale': np.linspace(.5, 2, 10, dtype=np.float32)}
  changed, x = variables | {'inference': by_class}, pipeline.to_unit(split.images)
  seen = robustness._both_halves(network)(changed, x)
  z = np.asarray(network.logits(variables, x), np.float64)
  centre = np.maximum(z[:, :10], z[:, 10:]).mean(axis=1, keepdims=True)
  by_hand = [z[:, c] + (by_class['scale'][c % 10] - 1) * (z[:, c] - centre[:, 0])
             + by_class['bias'][c % 10] for c in range(20)]
  np.testing.assert_allclose(seen, np.stack(by_hand, axis=1), atol=1e-4)
  np.testing.assert_allclose(ducat.fold(seen), network.deployed(changed, x), atol=1e-4)


def test_no_change_is_the_deployed_model_to_the_bit():
  network, variables, split = wrapped()
  x = pipeline.to_unit(split.images)
  changed = variables | {'inference': logit_adjustment.identity(10)}
  np.testing.assert_array_equal(network.deployed(changed, x), network.deployed(variables, x))

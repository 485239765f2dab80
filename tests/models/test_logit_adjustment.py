"""The logit adjustment: its formula, its update by hand, and attacks on the adjusted model."""

import jax
import numpy as np
import pytest

from at_jax import models
from at_jax.datasets import pipeline
from at_jax.evaluation import autoattack_run, robustness
from at_jax.methods import ducat, inner_attacks
from at_jax.models import deployed as deployed_lib
from at_jax.models import logit_adjustment

RNG = np.random.default_rng(0)


def test_adjust_equals_a_loop_up_to_a_constant():
  z = RNG.normal(size=(5, 3)).astype(np.float32)
  b, s = RNG.normal(size=3).astype(np.float32), RNG.uniform(.5, 2, 3).astype(np.float32)
  found = logit_adjustment.adjust(z, {'bias': b, 'scale': s})
  for i in range(5):
    mean = np.mean(np.float64(z[i]))
    expected = [s[k] * (z[i, k] - mean) + b[k] for k in range(3)]
    np.testing.assert_allclose(found[i] - mean, expected, atol=1e-5)
  # A constant added to all logits does not change the decision.
  shifted = logit_adjustment.adjust(z + 7, {'bias': b, 'scale': s})
  np.testing.assert_allclose(shifted - 7, found, atol=1e-5)


def test_identity_leaves_every_bit_unchanged():
  z = RNG.normal(size=(50, 10)).astype(np.float32)
  np.testing.assert_array_equal(logit_adjustment.adjust(z, logit_adjustment.identity(10)), z)


def test_update_by_hand():
  # The mean is .5, so rate 2 gives +.8, −.6 and −.2 logits, or scales of e to these powers.
  accuracy = np.array([.1, .8, .6])
  biased = logit_adjustment.update(logit_adjustment.identity(3), accuracy, kind='bias', rate=2.)
  np.testing.assert_allclose(biased['bias'], [.8, -.6, -.2], rtol=1e-6)
  np.testing.assert_array_equal(biased['scale'], 1)
  scaled = logit_adjustment.update(
      logit_adjustment.identity(3), accuracy, kind='temperature', rate=2.)
  np.testing.assert_allclose(scaled['scale'], np.exp([.8, -.6, -.2]), rtol=1e-6)
  np.testing.assert_array_equal(scaled['bias'], 0)
  without_examples = logit_adjustment.update(
      logit_adjustment.identity(3), np.array([.1, np.nan, .3]), kind='bias', rate=1.)
  np.testing.assert_allclose(without_examples['bias'], [.1, 0, -.1], rtol=1e-6)


def untrained(has_dummies=False):
  model = models.SmallCNN(num_outputs=20 if has_dummies else 10, features=(4,), hidden=(),
                          padding='SAME')
  network = deployed_lib.deploy(model, has_dummies=has_dummies)
  test = pipeline.load('digits').test
  split = pipeline.Split(test.images[:40], test.labels[:40])
  return network, network.init(jax.random.key(0), pipeline.to_unit(split.images)), split


@pytest.mark.parametrize('field', ['bias', 'scale'])
def test_attacks_use_the_adjusted_model(field):
  network, variables, split = untrained()
  adjustment = logit_adjustment.identity(10)
  adjustment[field] = adjustment[field] + np.linspace(0, 1, 10, dtype=np.float32)
  adjusted = variables | {'inference': adjustment}
  attack = inner_attacks.uniform(norm='linf', epsilon=.1, step_size=.05, num_steps=2)
  x, y = pipeline.to_unit(split.images), split.labels

  def by_hand(x):
    z = network.logits(variables, x)
    return z + adjustment['bias'] + (adjustment['scale'] - 1) * (z - z.mean(-1, keepdims=True))

  def attacked(logits):
    return attack(logits, x, y, jax.random.key(1), None).x

  found = attacked(jax.tree_util.Partial(network.deployed, adjusted))
  np.testing.assert_allclose(found, attacked(by_hand), atol=1e-6)
  plain = attacked(jax.tree_util.Partial(network.deployed, variables))
  assert np.max(np.abs(found - plain)) > .01
  # An evaluation reports the accuracy of the adjusted model after that attack.
  report = robustness.evaluate(network, adjusted, split, jax.random.key(1), names=['pgd2'],
                               norm='linf', epsilon=.1, step_size=.05, batch_size=40, has_dummies=False)
  is_correct = lambda x: np.argmax(by_hand(x), axis=-1) == y
  np.testing.assert_array_equal(report.worst_case, is_correct(x) & is_correct(attacked(by_hand)))
  # A saved evaluation of one of the two models is not resumed for the other.
  key, settings = jax.random.key(0), {}
  assert (autoattack_run.identity(network.deployed, adjusted, split, key, settings)
          != autoattack_run.identity(network.deployed, variables, split, key, settings))


def test_unfolded_logits_are_adjusted_like_the_folded():
  network, variables, split = untrained(has_dummies=True)
  adjustment = {'bias': np.linspace(0, 1, 10, dtype=np.float32),
                'scale': np.linspace(.5, 2, 10, dtype=np.float32)}
  adjusted, x = variables | {'inference': adjustment}, pipeline.to_unit(split.images)
  unfolded = robustness._both_halves(network)(adjusted, x)
  z = np.asarray(network.logits(variables, x), np.float64)
  centre = np.maximum(z[:, :10], z[:, 10:]).mean(axis=1, keepdims=True)
  by_hand = [z[:, c] + (adjustment['scale'][c % 10] - 1) * (z[:, c] - centre[:, 0])
             + adjustment['bias'][c % 10] for c in range(20)]
  np.testing.assert_allclose(unfolded, np.stack(by_hand, axis=1), atol=1e-4)
  np.testing.assert_allclose(ducat.fold(unfolded), network.deployed(adjusted, x), atol=1e-4)


def test_identity_leaves_the_deployed_model_unchanged():
  network, variables, split = untrained()
  x = pipeline.to_unit(split.images)
  adjusted = variables | {'inference': logit_adjustment.identity(10)}
  np.testing.assert_array_equal(network.deployed(adjusted, x), network.deployed(variables, x))

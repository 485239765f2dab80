"""Objectives against slow loops on random logits: which argument goes where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import methods
from at_jax.config import fields
from at_jax.methods import ducat as ducat_lib
from at_jax.methods import gairat, mart, trades
from at_jax.methods import objective as objective_lib
from at_jax.training import epoch_plan
from tests.fixtures import slow_losses

RNG = np.random.default_rng(1)
C = 3  # so that the doubled head has 6 logits; with labels below 3 it does for a plain one too
CLEAN, ADV, OTHER = RNG.normal(size=(3, 8, 2 * C)).astype(np.float32) * 2
Y = np.arange(8) % C
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def forward(x, batch_stats):
  """A network whose logits are its inputs, and whose statistics are the batches that it saw."""
  return x, (*batch_stats, x)


def slow_ce(z, targets):
  return -sum(t * np.log(p) for t, p in zip(targets, slow_losses.probabilities(z)))


def slow_ducat(z, z_adv, y, benign_weight, adversarial_weight, alpha):
  """½[CE(f(x), t_benign) + CE(f(x'), t_adv)], the targets written out class by class."""
  benign, adversarial = np.zeros(2 * C), np.zeros(2 * C)
  benign[y], benign[y + C] = 1 - benign_weight, benign_weight
  adversarial[y], adversarial[y + C] = alpha * (1 - adversarial_weight), alpha * adversarial_weight
  return (slow_ce(z, benign) + slow_ce(z_adv, adversarial)) / 2


def test_trades_learns_the_clean_example_and_diverges_from_it():
  found = trades.trades(forward, (), CLEAN, ADV, Y)
  close(found.fit, [slow_ce(z, np.eye(2 * C)[y]) for z, y in zip(CLEAN, Y)])
  expected = [slow_losses.slow_kl(*z) for z in zip(CLEAN, ADV)]
  close(found.regulariser, expected)
  # The other direction is another number for every example, so the above is not blind to it.
  assert np.min(np.abs(expected - np.array([slow_losses.slow_kl(*z) for z in zip(ADV, CLEAN)]))) > .01
  np.testing.assert_array_equal(found.logits, ADV)


def test_gair_trades_has_the_kl_of_each_attack():
  found = gairat.gair_trades(forward, (), CLEAN, np.concatenate([ADV, OTHER]), Y)
  close(found.fit, [slow_ce(z, np.eye(2 * C)[y]) for z, y in zip(CLEAN, Y)])
  close(found.regulariser, [slow_losses.slow_kl(*z) for z in zip(CLEAN, ADV)])
  expected = [slow_losses.slow_kl(*z) for z in zip(CLEAN, OTHER)]
  close(found.complement, expected)
  assert np.min(np.abs(expected - np.array([slow_losses.slow_kl(*z) for z in zip(OTHER, CLEAN)]))) > .01
  np.testing.assert_array_equal(found.logits, ADV)


def test_mart_learns_the_adversarial_example_and_weighs_by_the_clean_one():
  found = mart.mart(forward, (), CLEAN, ADV, Y)
  close(found.fit, [slow_ce(z, np.eye(2 * C)[y]) + slow_losses.slow_boost(z, y) for z, y in zip(ADV, Y)])
  close(found.regulariser, [slow_losses.slow_kl(a, b) * (1 - slow_losses.probabilities(a)[y])
                            for a, b, y in zip(CLEAN, ADV, Y)])
  np.testing.assert_array_equal(found.logits, ADV)


def test_gair_trades_at_infinite_lambda_is_trades():
  w = gairat.unnormalized_weights(np.arange(3), num_steps=2, lam=np.inf)
  np.testing.assert_array_equal(w, 1)
  shared = gairat.gair_trades(forward, (), CLEAN, np.concatenate([ADV, OTHER]), Y)
  alone = trades.trades(forward, (), CLEAN, ADV, Y)
  mean = functools.partial(objective_lib.mean_loss, weights_on='regulariser', beta=6.)
  np.testing.assert_allclose(mean(shared, jnp.ones(8)), mean(alone, None), rtol=1e-6)
  np.testing.assert_allclose(mean(shared, jnp.zeros(8)), np.mean(shared.fit)
                             + 6 * np.mean(shared.complement), rtol=1e-6)


# w_b, w_a and α: the paper's weights, and a pair whose targets both have two parts.
DUCAT = [(.25, 1., 2.), (.6, .3, 2.)]


@pytest.mark.parametrize('numbers', DUCAT, ids=str)
def test_ducat_is_its_formula(numbers):
  found = ducat_lib.ducat(
      forward, (), CLEAN, ADV, Y,
      **dict(zip(('benign_weight', 'adversarial_weight', 'alpha'), numbers)))
  close(found.fit, [slow_ducat(*z, *numbers) for z in zip(CLEAN, ADV, Y)])
  np.testing.assert_array_equal(found.logits, ADV)
  passes = found.batch_stats  # one, of [x; x']
  assert len(passes) == 1 and found.regulariser is None
  np.testing.assert_array_equal(passes[0], np.concatenate([CLEAN, ADV]))


@pytest.mark.parametrize('loss', ['pgd_at', 'trades', 'mart', 'consistency'])
@pytest.mark.parametrize('numbers', DUCAT, ids=str)
def test_a_config_gives_ducat_its_numbers(loss, numbers):
  c = fields.default()
  c.loss, c.dummy.enabled = loss, True
  c.dummy.benign_weight, c.dummy.adversarial_weight, c.dummy.alpha = numbers
  found = epoch_plan._objective(c, ducat_begun=True)(forward, (), CLEAN, ADV, Y)
  boost = np.array([slow_losses.slow_boost(*z) for z in zip(ADV, Y)]) if loss == 'mart' else 0
  close(found.fit, np.array([slow_ducat(*z, *numbers) for z in zip(CLEAN, ADV, Y)]) + boost)


@pytest.mark.parametrize('temperature', [.5, 2.])
def test_a_config_gives_consistency_its_temperature(temperature):
  c = fields.default()
  c.loss, c.consistency_temperature = 'consistency', temperature
  found = epoch_plan._objective(c, ducat_begun=False)(forward, (), CLEAN, ADV, Y)
  # The views of example i are the i-th and the (4 + i)-th.
  close(found.regulariser, [slow_losses.slow_js(*z, temperature) for z in zip(ADV[:4], ADV[4:])])


@pytest.mark.parametrize('loss', ['trades', 'mart', 'consistency', 'gair_trades'])
def test_no_dummy_weight_is_hard_labels_on_the_doubled_head(loss):
  objective = methods.named(loss)
  if loss == 'consistency':
    objective = functools.partial(objective, temperature=.5)
  x_adv = np.concatenate([ADV, OTHER]) if loss == 'gair_trades' else ADV
  ducat = functools.partial(ducat_lib.ducat, benign_weight=0., adversarial_weight=0., alpha=1.)
  plain = objective(forward, (), CLEAN, x_adv, Y)
  with_ducat = objective(forward, (), CLEAN, x_adv, Y, ducat=ducat)
  ce = lambda z: -jax.nn.log_softmax(z)[np.arange(8), Y]
  boost = np.array([slow_losses.slow_boost(*z) for z in zip(ADV, Y)]) if loss == 'mart' else 0
  close(with_ducat.fit, .5 * (ce(CLEAN) + ce(ADV)) + boost)
  np.testing.assert_array_equal(with_ducat.regulariser, plain.regulariser)

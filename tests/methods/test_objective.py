"""Objectives and their mean loss against slow loops on random logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors, methods
from at_jax.config import fields
from at_jax.datasets import pipeline
from at_jax.methods import ducat as ducat_lib
from at_jax.methods import fgsm_pgi, gairat, inner_attacks, mart, nuat, trades
from at_jax.methods import objective as objective_lib
from at_jax.training import epoch_plan, setup
from tests.fixtures import slow_losses

RNG = np.random.default_rng(1)
C = 3  # the doubled head has 6 logits; with labels below 3 they are logits of a plain head too
CLEAN, ADV, OTHER = RNG.normal(size=(3, 8, 2 * C)).astype(np.float32) * 2
Y = np.arange(8) % C
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def forward(x, batch_stats):
  """A network whose logits are its inputs; its statistics are the batches that it has seen."""
  return x, (*batch_stats, x)


def slow_ce(z, targets):
  return -sum(t * np.log(p) for t, p in zip(targets, slow_losses.probabilities(z), strict=True))


def slow_ducat(z, z_adv, y, benign_weight, adversarial_weight, alpha):
  """½[CE(f(x), t_benign) + CE(f(x'), t_adv)], the targets written out class by class."""
  benign, adversarial = np.zeros(2 * C), np.zeros(2 * C)
  benign[y], benign[y + C] = 1 - benign_weight, benign_weight
  adversarial[y], adversarial[y + C] = alpha * (1 - adversarial_weight), alpha * adversarial_weight
  return (slow_ce(z, benign) + slow_ce(z_adv, adversarial)) / 2


def test_inner_attack_of_each_named_objective():
  # The released code of each: TRADES' KL, GAIR-RST's two attacks, MART's CE from a Gaussian start.
  found = {name: getattr(objective, 'inner_attack', None) for name, objective in methods.OBJECTIVES.items()}
  assert found == {'standard': None, 'pgd_at': None, 'consistency': None, 'trades': inner_attacks.kl,
                   'gair_trades': inner_attacks.kl_and_margin, 'mart': inner_attacks.gaussian,
                   'nuat': nuat.nuclear, 'free_at': None, 'fgsm_pgi': fgsm_pgi.prior}


def test_trades_is_its_formula():
  outcome = trades.trades(forward, (), CLEAN, ADV, Y)
  close(outcome.fit, [slow_ce(z, np.eye(2 * C)[y]) for z, y in zip(CLEAN, Y, strict=True)])
  expected = [slow_losses.slow_kl(*z) for z in zip(CLEAN, ADV, strict=True)]
  close(outcome.regulariser, expected)
  # KL in the other direction differs for every example, so a swap would be seen.
  swapped = [slow_losses.slow_kl(*z) for z in zip(ADV, CLEAN, strict=True)]
  assert np.min(np.abs(np.subtract(expected, swapped))) > .01
  np.testing.assert_array_equal(outcome.logits, ADV)


def test_gair_trades_has_the_kl_of_each_attack():
  outcome = gairat.gair_trades(forward, (), CLEAN, np.concatenate([ADV, OTHER]), Y)
  close(outcome.fit, [slow_ce(z, np.eye(2 * C)[y]) for z, y in zip(CLEAN, Y, strict=True)])
  close(outcome.regulariser, [slow_losses.slow_kl(*z) for z in zip(CLEAN, ADV, strict=True)])
  expected = [slow_losses.slow_kl(*z) for z in zip(CLEAN, OTHER, strict=True)]
  close(outcome.complement, expected)
  swapped = [slow_losses.slow_kl(*z) for z in zip(OTHER, CLEAN, strict=True)]
  assert np.min(np.abs(np.subtract(expected, swapped))) > .01
  np.testing.assert_array_equal(outcome.logits, ADV)


def test_mart_is_its_formula():
  outcome = mart.mart(forward, (), CLEAN, ADV, Y)
  close(outcome.fit, [slow_ce(z, np.eye(2 * C)[y]) + slow_losses.slow_boost(z, y)
                      for z, y in zip(ADV, Y, strict=True)])
  close(outcome.regulariser, [slow_losses.slow_kl(a, b) * (1 - slow_losses.probabilities(a)[y])
                              for a, b, y in zip(CLEAN, ADV, Y, strict=True)])
  np.testing.assert_array_equal(outcome.logits, ADV)


def test_nuat_is_its_formula():
  outcome = nuat.nuat(forward, (), CLEAN, ADV, Y)
  close(outcome.fit, [slow_ce(z, np.eye(2 * C)[y]) for z, y in zip(CLEAN, Y, strict=True)])
  # ‖f(x) − f(x')‖_* / B in NumPy.
  close(np.mean(outcome.regulariser), np.linalg.norm(CLEAN - ADV, 'nuc') / 8)
  np.testing.assert_array_equal(outcome.logits, ADV)


def test_fgsm_pgi_is_its_formula():
  outcome = fgsm_pgi.fgsm_pgi(forward, (), CLEAN, ADV, Y)
  # The released code's smoothing of 0.6: .6 for the class and .4 over the five other outputs.
  targets = [np.where(np.arange(2 * C) == y, .6, .08) for y in Y]
  close(outcome.fit, [slow_ce(*each) for each in zip(ADV, targets, strict=True)])
  close(outcome.regulariser, np.mean((CLEAN - ADV) ** 2, axis=1))
  np.testing.assert_array_equal(outcome.logits, ADV)


def test_gair_trades_at_infinite_lambda_is_trades():
  w = gairat.unnormalized_weights(np.arange(3), num_steps=2, lam=np.inf)
  np.testing.assert_array_equal(w, 1)
  shared = gairat.gair_trades(forward, (), CLEAN, np.concatenate([ADV, OTHER]), Y)
  alone = trades.trades(forward, (), CLEAN, ADV, Y)
  mean = functools.partial(objective_lib.mean_loss, weights_on='regulariser', beta=6.)
  np.testing.assert_allclose(mean(shared, jnp.ones(8)), mean(alone, None), rtol=1e-6)
  np.testing.assert_allclose(mean(shared, jnp.zeros(8)), np.mean(shared.fit)
                             + 6 * np.mean(shared.complement), rtol=1e-6)


@pytest.mark.parametrize('outcome, message', [
    (np.ones(4), 'it returned ndarray'),
    (objective_lib.Outcome(np.ones(4), None, np.ones((2, 3)), {}), 'its logits have shape (2, 3)'),
    (objective_lib.Outcome(np.ones(4), np.ones(4), np.ones((4, 3)), {}), 'its regulariser has shape (4,)'),
])
def test_invalid_outcome_raises(outcome, message):
  with pytest.raises(errors.UserError, match=re.escape(message)):
    objective_lib.check(outcome, forward, num_examples=4, views=2)


def test_valid_outcome_of_two_views_passes_the_check():
  outcome = objective_lib.Outcome(np.ones(4), np.ones(2), np.ones((4, 3)), {})
  assert objective_lib.check(outcome, forward, num_examples=4, views=2) is outcome


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('weights_on', ['fit', 'regulariser', 'both'])
def test_mean_loss_with_betas_equals_a_loop(views, weights_on):
  rng = np.random.default_rng(0)
  fit, w = rng.random((2, 8 * views)).astype(np.float32)
  regulariser, other = rng.random((2, 8)).astype(np.float32)
  beta = np.array([1., 4., 9.], np.float32)[Y]
  outcome = objective_lib.Outcome(fit, regulariser, None, None, complement=other)
  found = objective_lib.mean_loss(outcome, w, weights_on=weights_on, beta=np.nan, betas=np.tile(beta, views))
  total = 0.
  for i in range(8):
    copies = [i + 8 * v for v in range(views)]
    own = np.mean([(w[j] if weights_on != 'regulariser' else 1) * fit[j] for j in copies])
    share = np.mean(w[copies]) if weights_on != 'fit' else None
    apart = regulariser[i] if share is None else share * regulariser[i] + (1 - share) * other[i]
    total += (own + beta[i] * apart) / (1 + beta[i]) / 8
  np.testing.assert_allclose(found, total, rtol=1e-5)


def test_equal_betas_are_the_plain_loss_over_one_plus_beta():
  outcome = objective_lib.Outcome(*np.random.default_rng(0).random((2, 8)).astype(np.float32), None, None)
  mean = functools.partial(objective_lib.mean_loss, outcome, None, weights_on='fit', beta=6.)
  np.testing.assert_allclose(mean(betas=jnp.full(8, 6.)), mean() / 7, rtol=1e-6)


# w_b, w_a and α: the paper's weights, and a pair whose targets both have two parts.
DUCAT = [(.25, 1., 2.), (.6, .3, 2.)]


@pytest.mark.parametrize('numbers', DUCAT, ids=str)
def test_ducat_is_its_formula(numbers):
  outcome = ducat_lib.ducat(
      forward, (), CLEAN, ADV, Y,
      **dict(zip(('benign_weight', 'adversarial_weight', 'alpha'), numbers, strict=True)))
  close(outcome.fit, [slow_ducat(*z, *numbers) for z in zip(CLEAN, ADV, Y, strict=True)])
  np.testing.assert_array_equal(outcome.logits, ADV)
  passes = outcome.batch_stats  # one, of [x; x']
  assert len(passes) == 1 and outcome.regulariser is None
  np.testing.assert_array_equal(passes[0], np.concatenate([CLEAN, ADV]))


def configured(change):
  """The objective of the first epoch of a run whose configuration `change` has changed."""
  c = fields.default()
  c.dataset.update(num_classes=C, validation_size=0)
  c.model.update(name='SmallCNN', features=(2,), hidden=(), padding='SAME')
  c.batch_size = c.evaluate.batch_size = c.validate.batch_size = 8
  change(c)
  split = pipeline.Split(np.zeros((8, 4, 4, 1), np.uint8), Y)
  run = setup.build(c, dataset=pipeline.Dataset('eight', split, split, split, C, ()))
  return epoch_plan.recipe(run, epoch_plan.name(c, 0)).objective


@pytest.mark.parametrize('loss', ['pgd_at', 'trades', 'mart', 'consistency'])
@pytest.mark.parametrize('numbers', DUCAT, ids=str)
def test_ducat_has_the_numbers_of_the_config(loss, numbers):
  def change(c):
    c.loss, c.dummy.enabled, c.dummy.start_epoch = loss, True, 0
    c.dummy.benign_weight, c.dummy.adversarial_weight, c.dummy.alpha = numbers

  outcome = configured(change)(forward, (), CLEAN, ADV, Y)
  boost = np.array([slow_losses.slow_boost(*z) for z in zip(ADV, Y, strict=True)]) if loss == 'mart' else 0
  close(outcome.fit, np.array([slow_ducat(*z, *numbers) for z in zip(CLEAN, ADV, Y, strict=True)]) + boost)


@pytest.mark.parametrize('temperature', [.5, 2.])
def test_consistency_has_the_temperature_of_the_config(temperature):
  def change(c):
    c.loss, c.consistency_temperature = 'consistency', temperature

  outcome = configured(change)(forward, (), CLEAN, ADV, Y)
  # The views of example i are the i-th and the (4 + i)-th.
  close(outcome.regulariser, [slow_losses.slow_js(*z, temperature)
                              for z in zip(ADV[:4], ADV[4:], strict=True)])


@pytest.mark.parametrize('loss', ['trades', 'mart', 'consistency', 'gair_trades'])
def test_ducat_without_dummy_weight_has_hard_labels(loss):
  objective = methods.OBJECTIVES[loss]
  if loss == 'consistency':
    objective = functools.partial(objective, temperature=.5)
  x_adv = np.concatenate([ADV, OTHER]) if loss == 'gair_trades' else ADV
  ducat = functools.partial(ducat_lib.ducat, benign_weight=0., adversarial_weight=0., alpha=1.)
  plain = objective(forward, (), CLEAN, x_adv, Y)
  with_ducat = objective(forward, (), CLEAN, x_adv, Y, ducat=ducat)
  ce = lambda z: -jax.nn.log_softmax(z)[np.arange(8), Y]
  boost = np.array([slow_losses.slow_boost(*z) for z in zip(ADV, Y, strict=True)]) if loss == 'mart' else 0
  close(with_ducat.fit, .5 * (ce(CLEAN) + ce(ADV)) + boost)
  np.testing.assert_array_equal(with_ducat.regulariser, plain.regulariser)

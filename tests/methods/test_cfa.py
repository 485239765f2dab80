"""Radii, β and temperatures by class: their numbers, and that a step uses them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax import models
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics as metrics_lib
from at_jax.methods import cfa, inner_attacks
from at_jax.methods import objective as objective_lib
from at_jax.methods import pgd_at as pgd_at_lib
from at_jax.methods import trades as trades_lib
from at_jax.models import deployed as deployed_lib
from at_jax.training import step as step_lib

RNG = np.random.default_rng(0)
Y = np.array([0, 1, 2, 2, 1, 0, 0, 2], np.int32)
ALL = cfa.Calibration(.1, 6., radius_base=.3, beta_base=.5, temperature_base=.4)


def counts_of(*accuracy):
  return cfa.no_counts(len(accuracy))._replace(accuracy=jnp.array(accuracy))


def test_by_hand():
  # t = (.2, .8): ε_k = (.5, 1.1) · .1; β_k = (.7, 1.3) · 6; T_k = (.6, 1.2).
  found = cfa.by_class(ALL, counts_of(.2, .8), True)
  np.testing.assert_allclose(found.epsilon, [.05, .11], rtol=1e-6)
  np.testing.assert_allclose(found.beta, [4.2, 7.8], rtol=1e-6)
  np.testing.assert_allclose(found.temperature, [.6, 1.2], rtol=1e-6)


def test_before_the_start_every_class_has_the_plain_value_to_the_bit():
  found = cfa.by_class(ALL, counts_of(.2, .8), False)
  np.testing.assert_array_equal(found.epsilon, np.float32([.1, .1]))
  np.testing.assert_array_equal(found.beta, [6, 6])
  np.testing.assert_array_equal(found.temperature, [1, 1])


def test_nothing_calibrated_is_nothing():
  assert cfa.by_class(cfa.Calibration(.1, 6.), (), True) == (None, None, None)


def test_accuracies_by_class_are_those_of_a_loop():
  verdicts, labels = RNG.random(50) < .5, RNG.integers(0, 4, 50)
  expected = [np.mean([v for v, k in zip(verdicts, labels, strict=True) if k == c] or [np.nan])
              for c in range(4)]
  found = metrics_lib.accuracy_by_class(verdicts, labels, 5)
  np.testing.assert_allclose(found[:4], expected)
  assert np.isnan(found[4])


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('weights_on', ['fit', 'regulariser', 'both'])
def test_the_loss_with_a_beta_of_its_own_for_each_example_is_that_of_a_loop(views, weights_on):
  fit, w = RNG.random((2, 8 * views)).astype(np.float32)
  regulariser, other = RNG.random((2, 8)).astype(np.float32)
  beta = np.array([1., 4., 9.], np.float32)[Y]
  outcome = objective_lib.Outcome(fit, regulariser, None, None, complement=other)
  found = objective_lib.mean_loss(outcome, w, weights_on=weights_on, beta=np.nan,
                               betas=np.tile(beta, views))
  total = 0.
  for i in range(8):
    copies = [i + 8 * v for v in range(views)]
    own = np.mean([(w[j] if weights_on != 'regulariser' else 1) * fit[j] for j in copies])
    share = np.mean(w[copies]) if weights_on != 'fit' else None
    apart = regulariser[i] if share is None else share * regulariser[i] + (1 - share) * other[i]
    total += (own + beta[i] * apart) / (1 + beta[i]) / 8
  np.testing.assert_allclose(found, total, rtol=1e-5)


def test_one_beta_for_all_is_the_plain_loss_over_one_plus_beta():
  outcome = objective_lib.Outcome(*RNG.random((2, 8)).astype(np.float32), None, None)
  mean = functools.partial(objective_lib.mean_loss, outcome, None, weights_on='fit', beta=6.)
  np.testing.assert_allclose(mean(betas=jnp.full(8, 6.)), mean() / 7, rtol=1e-6)


def test_tempered_cross_entropy_is_that_of_a_loop():
  z = RNG.normal(size=(16, 3)).astype(np.float32)  # two passes, one after the other
  temperature = np.array([.5, 1., 2.], np.float32)
  found = -jax.nn.log_softmax(cfa.temper(z, Y, temperature))[np.arange(16), np.tile(Y, 2)]
  expected = []
  for i in range(16):
    e = np.exp(np.float64(z[i]) / temperature[Y[i % 8]])
    expected.append(-np.log(e[Y[i % 8]] / e.sum()))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('make', [inner_attacks.uniform, inner_attacks.gaussian, inner_attacks.kl, inner_attacks.kl_and_margin],
                         ids=lambda make: make.__name__)
def test_attacked_points_reach_the_radius_of_their_class_and_no_further(make):
  # Of a linear model the sign of a gradient does not change, so six steps of .02 reach .11 from
  # anywhere; inputs between .3 and .7 are never clipped.
  x = RNG.uniform(.3, .7, (8, 12)).astype(np.float32)
  w = RNG.normal(size=(12, 2)).astype(np.float32)
  w = np.concatenate([w, -w[:, :1]], axis=1)
  radii = np.array([.02, .05, .11], np.float32)[Y]
  attack = make(norm='linf', epsilon=.3, step_size=.04, num_steps=12)
  found = attack(lambda x: x @ w, x, Y, jax.random.key(0), None, epsilon=radii).x
  far = np.max(np.abs(np.reshape(found, (-1, 8, 12)) - x), axis=-1)
  np.testing.assert_allclose(far, np.broadcast_to(radii, far.shape), atol=1e-6)


def make(objective=pgd_at_lib.pgd_at, change_attack=lambda attack: attack, **bases):
  """How to take one step of PGD-AT, of a narrow network, in which t is given."""
  model = models.SmallCNN(num_outputs=10, features=(2,), hidden=(), padding='SAME')
  network = deployed_lib.deploy(model, has_dummies=False)
  attack = inner_attacks.uniform(norm='linf', epsilon=.15, step_size=.1, num_steps=2)
  recipe = step_lib.Recipe(
      network, optax.sgd(.1), objective, change_attack(attack), attack_folded=False, pad=0,
      flip=False, steps_per_epoch=9, calibration=cfa.Calibration(epsilon=.15, **bases))
  train = pipeline.load('digits').train
  state = step_lib.init(network, recipe.optimizer, jax.random.key(0),
                        pipeline.to_unit(train.images[:1]), classes_counted=10)
  step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))

  def after(accuracy, calibrated=True):
    begun = state._replace(step=jnp.ones((), jnp.int32), class_counts=counts_of(*accuracy))
    found, metrics = step(begun, train.images[:16], train.labels[:16], np.arange(16),
                          jax.random.key(1),
                          step_lib.EpochValues(calibrated=jnp.asarray(calibrated)))
    assert metrics.finite
    return jax.device_get(found.params['conv1']['kernel'])

  return after


SOME = tuple(np.linspace(.1, .9, 10))
FACTORS = jnp.float32(.5) + jnp.float32(SOME)


def test_a_step_weighs_the_regulariser_by_the_betas_of_the_classes():
  def trades(forward, batch_stats, x, x_adv, y):
    found, beta = trades_lib.trades(forward, batch_stats, x, x_adv, y), 6 * FACTORS[y]
    return found._replace(fit=(found.fit + beta * found.regulariser) / (1 + beta), regulariser=None)

  # The recipe's own β is that of the calibration here.
  found = make(trades_lib.trades, beta=6., beta_base=.5)(SOME)
  np.testing.assert_allclose(found, make(trades)(SOME), atol=1e-6)


without = functools.cache(lambda accuracy: make()(accuracy))


def check_against(by_hand, calibrated):
  """Calibrated is what it is by hand; with factors of 1, or before the start, it is not there."""
  plain = without(SOME)
  np.testing.assert_allclose(calibrated(SOME), by_hand(SOME), atol=1e-6)
  assert np.max(np.abs(calibrated(SOME) - plain)) > 1e-4
  np.testing.assert_array_equal(calibrated((.5,) * 10), plain)
  np.testing.assert_array_equal(calibrated(SOME, calibrated=False), plain)


def test_a_step_attacks_with_the_radii_of_the_classes():
  def by_class(attack):
    return lambda f, x, y, key, index: attack(f, x, y, key, index, epsilon=.15 * FACTORS[y])

  check_against(make(change_attack=by_class), make(radius_base=.5))


def test_a_step_divides_by_the_temperatures_in_the_loss_alone():
  def pgd_at(forward, batch_stats, x, x_adv, y):
    found = pgd_at_lib.pgd_at(forward, batch_stats, x, x_adv, y)
    z = found.logits / FACTORS[y][:, None]
    return found._replace(fit=-jax.nn.log_softmax(z)[jnp.arange(len(y)), y])

  check_against(make(pgd_at), make(temperature_base=.5))

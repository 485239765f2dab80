"""CFA's radii, β, temperatures and weights by class: their numbers, and their use in a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from at_jax import models
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics as metrics_lib
from at_jax.methods import cfa, inner_attacks
from at_jax.methods import pgd_at as pgd_at_lib
from at_jax.methods import trades as trades_lib
from at_jax.models import deployed as deployed_lib
from at_jax.training import step as step_lib

RNG = np.random.default_rng(0)
Y = np.array([0, 1, 2, 2, 1, 0, 0, 2], np.int32)
ALL = cfa.Calibration(.1, 6., radius_base=.3, beta_base=.5, temperature_base=.4)


def counts_of(*accuracy):
  return cfa.zero_counts(len(accuracy))._replace(accuracy=jnp.array(accuracy))


def test_calibrated_values_by_hand():
  # t = (.2, .8): ε_k = (.5, 1.1) · .1; β_k = (.7, 1.3) · 6; T_k = (.6, 1.2).
  found = cfa.by_class(ALL, counts_of(.2, .8), True)
  np.testing.assert_allclose(found.epsilon, [.05, .11], rtol=1e-6)
  np.testing.assert_allclose(found.beta, [4.2, 7.8], rtol=1e-6)
  np.testing.assert_allclose(found.temperature, [.6, 1.2], rtol=1e-6)


def test_values_before_the_start_are_exactly_uncalibrated():
  found = cfa.by_class(ALL, counts_of(.2, .8), False)
  np.testing.assert_array_equal(found.epsilon, np.float32([.1, .1]))
  np.testing.assert_array_equal(found.beta, [6, 6])
  np.testing.assert_array_equal(found.temperature, [1, 1])


def test_without_bases_nothing_is_calibrated():
  assert cfa.by_class(cfa.Calibration(.1, 6.), (), True) == (None, None, None)


def test_class_weights_by_hand():
  # λ + 1 − t = (1.3, .7): over y = (0, 0, 1) their mean is 1.1.
  w = cfa.class_weights(jnp.array([.2, .8]), jnp.array([0, 0, 1]), base=.5)
  np.testing.assert_allclose(w, np.array([1.3, 1.3, .7]) / 1.1, rtol=1e-6)
  equal = cfa.class_weights(jnp.full(10, .37), np.arange(30) % 10, base=.5)
  np.testing.assert_allclose(equal, np.ones(30), rtol=1e-6)


def test_no_gradient_flows_through_class_weights():
  weigh = lambda t: cfa.class_weights(t, jnp.array([0, 1]), base=.5)
  np.testing.assert_array_equal(jax.grad(lambda t: jnp.sum(weigh(t) ** 2))(jnp.array([1., 2.])), 0.)


def test_accuracy_by_class_equals_a_loop():
  verdicts, labels = RNG.random(50) < .5, RNG.integers(0, 4, 50)
  expected = [np.mean([v for v, k in zip(verdicts, labels, strict=True) if k == c] or [np.nan])
              for c in range(4)]
  found = metrics_lib.accuracy_by_class(verdicts, labels, 5)
  np.testing.assert_allclose(found[:4], expected)
  assert np.isnan(found[4])


def test_cross_entropy_with_temperatures_equals_a_loop():
  z = RNG.normal(size=(16, 3)).astype(np.float32)  # two passes, one after the other
  temperature = np.array([.5, 1., 2.], np.float32)
  found = -jax.nn.log_softmax(cfa.temper(z, Y, temperature))[np.arange(16), np.tile(Y, 2)]
  expected = []
  for i in range(16):
    e = np.exp(np.float64(z[i]) / temperature[Y[i % 8]])
    expected.append(-np.log(e[Y[i % 8]] / e.sum()))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@functools.cache
def start():
  """A narrow network, its optimizer, images with their labels, and the state before the first step."""
  model = models.SmallCNN(num_outputs=10, features=(2,), hidden=(), padding='SAME')
  network, optimizer = deployed_lib.deploy(model, has_dummies=False), optax.sgd(.1)
  images, labels = (part[:16] for part in pipeline.load('digits').train)
  init = jax.jit(functools.partial(step_lib.init, network, optimizer, classes_counted=10))
  return network, optimizer, (images, labels), init(jax.random.key(0), pipeline.to_unit(images[:1]))


def make(objective=pgd_at_lib.pgd_at, change_attack=lambda attack: attack, **bases):
  """A function from t to the first kernel after one step of PGD-AT."""
  network, optimizer, data, state = start()
  attack = inner_attacks.uniform(norm='linf', epsilon=.15, step_size=.1, num_steps=2)
  recipe = step_lib.Recipe(
      network, optimizer, objective, change_attack(attack), attack_folded=False, pad=0,
      flip=False, steps_per_epoch=9, calibration=cfa.Calibration(epsilon=.15, **bases))
  step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))

  def after(accuracy, calibrated=True):
    started = state._replace(step=jnp.ones((), jnp.int32), class_counts=counts_of(*accuracy))
    found, metrics = step(started, *data, np.arange(16), jax.random.key(1),
                          step_lib.EpochValues(calibrated=jnp.asarray(calibrated)))
    assert metrics.finite
    return jax.device_get(found.params['conv1']['kernel'])

  return after


SOME = tuple(np.linspace(.1, .9, 10))
FACTORS = jnp.float32(.5) + jnp.float32(SOME)


def test_step_uses_the_beta_of_each_class():
  def trades(forward, batch_stats, x, x_adv, y):
    outcome, beta = trades_lib.trades(forward, batch_stats, x, x_adv, y), 6 * FACTORS[y]
    return outcome._replace(fit=(outcome.fit + beta * outcome.regulariser) / (1 + beta), regulariser=None)

  # The recipe's own β is not used; β comes from the calibration.
  found = make(trades_lib.trades, beta=6., beta_base=.5)(SOME)
  np.testing.assert_allclose(found, make(trades)(SOME), atol=1e-6)


uncalibrated = functools.cache(lambda accuracy: make()(accuracy))


def check_against(by_hand, calibrated):
  """Calibrated equals by hand; factors of 1, and the time before the start, change nothing."""
  plain = uncalibrated(SOME)
  np.testing.assert_allclose(calibrated(SOME), by_hand(SOME), atol=1e-6)
  assert np.max(np.abs(calibrated(SOME) - plain)) > 1e-4
  np.testing.assert_array_equal(calibrated((.5,) * 10), plain)
  np.testing.assert_array_equal(calibrated(SOME, calibrated=False), plain)


def test_step_attacks_with_the_radius_of_each_class():
  def by_class(attack):
    return lambda f, x, y, key, index: attack(f, x, y, key, index, epsilon=.15 * FACTORS[y])

  check_against(make(change_attack=by_class), make(radius_base=.5))


def test_step_uses_temperatures_in_the_loss_only():
  def pgd_at(forward, batch_stats, x, x_adv, y):
    outcome = pgd_at_lib.pgd_at(forward, batch_stats, x, x_adv, y)
    z = outcome.logits / FACTORS[y][:, None]
    return outcome._replace(fit=-jax.nn.log_softmax(z)[jnp.arange(len(y)), y])

  check_against(make(pgd_at), make(temperature_base=.5))

"""GAIRAT's weights and schedules: published values, slow loops, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import gairat, objective, schedules
from tests.fixtures import processes

K = 10
KAPPA = np.random.default_rng(0).integers(0, K + 1, 24)
FORMS = ('tanh', 'sigmoid', 'discrete')


def slow(kappa, lam, form):
  """One weight before normalisation, in float64."""
  a = lam + 5 * (1 - 2 * kappa / K)
  return {'tanh': (1 + np.tanh(a)) / 2, 'sigmoid': 1 / (1 + np.exp(-a)),
          'discrete': (K + 1 - kappa) / (K + 1)}[form]


def test_weights_equal_published_values():
  # Zhang et al. 2021, tanh with λ = −1 and K = 10, for κ = 0..6 and 10.
  w = gairat.unnormalized_weights(jnp.array([0, 1, 2, 3, 4, 5, 6, 10]), num_steps=10, lam=-1.)
  np.testing.assert_allclose(
      w, [.99966, .99753, .98201, .88080, .50000, .11920, .01799, .00001], atol=6e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('lam', [-2., -1., 0., 3.])
def test_weights_equal_a_loop(form, lam):
  expected = np.array([slow(float(kappa), lam, form) for kappa in KAPPA])
  np.testing.assert_allclose(gairat.unnormalized_weights(KAPPA, num_steps=K, lam=lam, form=form), expected,
                             rtol=3e-6)
  w = gairat.geometry_weights(KAPPA, num_steps=K, lam=lam, form=form)
  np.testing.assert_allclose(w, expected * len(KAPPA) / expected.sum(), rtol=3e-6)
  np.testing.assert_allclose(np.mean(w), 1, rtol=1e-6)


def test_small_weights_keep_their_digits():
  # κ = K, λ = −1: (1 + tanh −6)/2 = 6.144175e-6, of which 1 + tanh in float32 keeps two digits.
  w = gairat.unnormalized_weights(jnp.array([10]), num_steps=10, lam=-1.)
  np.testing.assert_allclose(w, [6.144175e-6], rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [1, 7, 128])
def test_infinite_lambda_gives_exactly_ones(form, size):
  kappa = np.arange(size) % (K + 1)
  weights = jax.jit(lambda lam: gairat.geometry_weights(kappa, num_steps=K, lam=lam, form=form))
  np.testing.assert_array_equal(weights(jnp.inf), np.ones(size))


def test_weights_that_all_underflow_become_ones():
  # λ = −200 underflows every weight to zero.
  w = gairat.geometry_weights(np.full(4, K), num_steps=K, lam=-200.)
  np.testing.assert_array_equal(w, np.ones(4))


def test_unknown_form_raises():
  with pytest.raises(ValueError, match="form = 'tan': use one of"):
    gairat.geometry_weights(KAPPA, num_steps=K, lam=0., form='tan')


@pytest.mark.parametrize('weigh', [
    lambda z: gairat.unnormalized_weights(z[:, 0], num_steps=K, lam=0.),
    lambda z: objective.normalize_weights(jax.nn.softmax(z)[:, 0]),
], ids=['unnormalized_weights', 'normalize_weights'])
def test_no_gradient_flows_through_weights(weigh):
  gradient = jax.grad(lambda z: jnp.sum(weigh(z) ** 2))(jnp.array([[1., 2.], [.5, .3]]))
  np.testing.assert_array_equal(gradient, 0.)


def test_weights_are_normalised_globally_under_vmap():
  whole = gairat.geometry_weights(KAPPA, num_steps=K, lam=-1.)
  parts = jax.vmap(lambda k: gairat.geometry_weights(k, num_steps=K, lam=-1., axis_name='batch'),
                   axis_name='batch')(KAPPA.reshape(4, 6))
  np.testing.assert_allclose(parts.reshape(-1), whole, rtol=1e-6)
  # Normalised for each part alone they differ.
  alone = jax.vmap(lambda k: gairat.geometry_weights(k, num_steps=K, lam=-1.))(KAPPA.reshape(4, 6))
  assert np.abs(alone - parts).max() > .1


# One process for the weights of GAIRAT and of CFA.
_FOUR_DEVICES = '''
import jax
import numpy as np
from at_jax.methods import cfa, gairat
kappa = np.arange(24) % 11
accuracy, y = np.linspace(.1, .9, 10, dtype=np.float32), kappa % 10
for lam in (-1., np.inf):
  both = jax.pmap(lambda k, y: (
      gairat.geometry_weights(k, num_steps=10, lam=lam, axis_name='batch'),
      cfa.class_weights(accuracy, y, base=.5, axis_name='batch')), axis_name='batch')
  found = [np.reshape(w, -1) for w in both(kappa.reshape(4, 6), y.reshape(4, 6))]
  np.testing.assert_allclose(found[0], gairat.geometry_weights(kappa, num_steps=10, lam=lam),
                             rtol=3e-6)
  np.testing.assert_allclose(found[1], cfa.class_weights(accuracy, y, base=.5), rtol=3e-6)
np.testing.assert_array_equal(found[0], 1)
print('equal')
'''


def test_weights_are_normalised_globally_under_pmap():
  assert processes.in_four_devices(_FOUR_DEVICES).strip() == 'equal'


def test_burn_in_gives_no_nan():
  def loss(z, epoch):
    w = gairat.geometry_weights(KAPPA, num_steps=K, lam=schedules.by_epoch(epoch, jnp.inf, {3: -1.}))
    return jnp.mean(w * z)
  for epoch in (1, 2, 3, 4):
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.arange(24.), epoch)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (np.ptp(gradient) > 0) == (epoch >= 3)

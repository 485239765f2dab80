"""Importance weights against published values, slow loops, and several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import cfa, gairat, mail, objective
from tests.fixtures import processes

K = 10
KAPPA = np.random.default_rng(0).integers(0, K + 1, 24)
FORMS = ('tanh', 'sigmoid', 'discrete')


def slow(kappa, lam, form):
  a = lam + 5 * (1 - 2 * kappa / K)
  return {'tanh': (1 + np.tanh(a)) / 2, 'sigmoid': 1 / (1 + np.exp(-a)),
          'discrete': (K + 1 - kappa) / (K + 1)}[form]


def test_published_values():
  # Zhang et al. 2021, tanh with λ = −1 and K = 10, for κ = 0..6 and 10.
  ours = gairat.unnormalized_weights(jnp.array([0, 1, 2, 3, 4, 5, 6, 10]), num_steps=10, lam=-1.)
  np.testing.assert_allclose(
      ours, [.99966, .99753, .98201, .88080, .50000, .11920, .01799, .00001], atol=6e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('lam', [-2., -1., 0., 3.])
def test_agrees_with_a_loop(form, lam):
  expected = np.array([slow(float(kappa), lam, form) for kappa in KAPPA])
  np.testing.assert_allclose(gairat.unnormalized_weights(KAPPA, num_steps=K, lam=lam, form=form), expected,
                             rtol=3e-6)
  ours = gairat.geometry_weights(KAPPA, num_steps=K, lam=lam, form=form)
  np.testing.assert_allclose(ours, expected * len(KAPPA) / expected.sum(), rtol=3e-6)
  np.testing.assert_allclose(np.mean(ours), 1, rtol=1e-6)


def test_small_weights_keep_their_digits():
  # κ = K, λ = −1: (1 + tanh −6)/2 = 6.144175e-6, of which 1 + tanh in float32 keeps two digits.
  ours = gairat.unnormalized_weights(jnp.array([10]), num_steps=10, lam=-1.)
  np.testing.assert_allclose(ours, [6.144175e-6], rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [1, 7, 128])
def test_infinite_lambda_gives_exactly_ones(form, size):
  kappa = np.arange(size) % (K + 1)
  ours = jax.jit(lambda lam: gairat.geometry_weights(kappa, num_steps=K, lam=lam, form=form))
  np.testing.assert_array_equal(ours(jnp.inf), np.ones(size))


def test_all_guarded_to_nothing_is_no_nan():
  # λ = −200 underflows every weight to zero.
  ours = gairat.geometry_weights(np.full(4, K), num_steps=K, lam=-200.)
  np.testing.assert_array_equal(ours, np.ones(4))


def test_unknown_form():
  with pytest.raises(ValueError, match="form = 'tan': use one of"):
    gairat.geometry_weights(KAPPA, num_steps=K, lam=0., form='tan')


def test_margin_weights_agree_with_a_loop():
  rng = np.random.default_rng(2)
  logits, y = rng.normal(size=(20, 5)) * 3, rng.integers(0, 5, 20)
  for bias, slope in ((-.5, 10.), (0., 2.)):
    expected = []
    for z, label in zip(logits, y):
      p = np.exp(z) / np.exp(z).sum()
      m = p[label] - max(p[j] for j in range(5) if j != label)
      expected.append(3 / (1 + np.exp(slope * (m - bias))))
    ours = mail.margin_weights(logits.astype(np.float32), y, bias=bias, slope=slope)
    np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_margin_weights_of_certain_examples():
  # m = ±1: 3·σ(∓10·(1 ± .5)) = 3·σ(−15) and 3·σ(5); at the boundary 3·σ(−5).
  logits = jnp.array([[99., 0.], [0., 99.], [0., 0.]])
  ours = mail.margin_weights(logits, jnp.zeros(3, int), bias=-.5, slope=10.)
  np.testing.assert_allclose(ours, [9.1771e-7, 2.979921, .0200786], rtol=1e-4)


def test_class_weights():
  # λ + 1 − t = (1.3, .7): over y = (0, 0, 1) their mean is 1.1.
  ours = cfa.class_weights(jnp.array([.2, .8]), jnp.array([0, 0, 1]), base=.5)
  np.testing.assert_allclose(ours, np.array([1.3, 1.3, .7]) / 1.1, rtol=1e-6)
  equal = cfa.class_weights(jnp.full(10, .37), np.arange(30) % 10, base=.5)
  np.testing.assert_allclose(equal, np.ones(30), rtol=1e-6)


@pytest.mark.parametrize('weigh', [
    lambda z: mail.margin_weights(z, jnp.array([0, 1]), bias=0., slope=2.),
    lambda z: cfa.class_weights(z[0], jnp.array([0, 1]), base=.5),
    lambda z: objective.normalize_weights(jax.nn.softmax(z)[:, 0]),
    lambda z: gairat.unnormalized_weights(z[:, 0], num_steps=K, lam=0.),
])
def test_no_gradient_flows_through(weigh):
  gradient = jax.grad(lambda z: jnp.sum(weigh(z) ** 2))(jnp.array([[1., 2.], [.5, .3]]))
  np.testing.assert_array_equal(gradient, 0.)


def test_global_normalisation_under_vmap():
  whole = gairat.geometry_weights(KAPPA, num_steps=K, lam=-1.)
  parts = jax.vmap(lambda k: gairat.geometry_weights(k, num_steps=K, lam=-1., axis_name='batch'),
                   axis_name='batch')(KAPPA.reshape(4, 6))
  np.testing.assert_allclose(parts.reshape(-1), whole, rtol=1e-6)
  # Not what each part alone would give.
  alone = jax.vmap(lambda k: gairat.geometry_weights(k, num_steps=K, lam=-1.))(KAPPA.reshape(4, 6))
  assert np.abs(alone - parts).max() > .1


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
  ours = [np.reshape(w, -1) for w in both(kappa.reshape(4, 6), y.reshape(4, 6))]
  np.testing.assert_allclose(ours[0], gairat.geometry_weights(kappa, num_steps=10, lam=lam),
                             rtol=3e-6)
  np.testing.assert_allclose(ours[1], cfa.class_weights(accuracy, y, base=.5), rtol=3e-6)
np.testing.assert_array_equal(ours[0], 1)
'''


def test_global_normalisation_under_pmap():
  processes.in_four_devices(_FOUR_DEVICES)


def test_schedules():
  # GAIR-FAT: 0 up to epoch 40, 3 up to 70, then 6, counted from 1.
  tau = [int(gairat.by_epoch(epoch, 0, {41: 3, 71: 6})) for epoch in range(1, 121)]
  assert tau == [0] * 40 + [3] * 30 + [6] * 50
  # Every stage of a piecewise λ is reached, in whatever order they are written.
  stages = {110: -2.5, 60: -1., 90: -2.}
  lam = jax.vmap(lambda epoch: gairat.by_epoch(epoch, jnp.inf, stages))(jnp.arange(1, 121))
  np.testing.assert_array_equal(lam, [np.inf] * 59 + [-1.] * 30 + [-2.] * 20 + [-2.5] * 11)
  assert gairat.by_epoch(7, -1., {}) == -1


def test_burn_in_end_to_end_has_no_nan():
  def loss(z, epoch):
    w = gairat.geometry_weights(KAPPA, num_steps=K, lam=gairat.by_epoch(epoch, jnp.inf, {3: -1.}))
    return jnp.mean(w * z)
  for epoch in (1, 2, 3, 4):
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.arange(24.), epoch)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (np.ptp(gradient) > 0) == (epoch >= 3)

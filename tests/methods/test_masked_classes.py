"""Logits of −∞: terms and gradients are those of the classes that are left."""

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.methods import (
  cfa,
  consistency,
  ducat,
  fgsm_pgi,
  finetune,
  gairat,
  losses,
  mail,
  mart,
  nuat,
  objective,
  pgd_at,
  trades,
)
from at_jax.models import logit_adjustment
from tests.fixtures.slow_losses import probabilities, slow_boost, slow_js, slow_kl

RNG = np.random.default_rng(0)
# Without class 2, and with it masked. Labels are numbered among the classes that are left.
LEFT = RNG.normal(size=(3, 6, 5)).astype(np.float32) * 3
MASKED = np.insert(LEFT, 2, -np.inf, axis=-1)
Y = np.arange(6) % 5
Y_MASKED = Y + (Y >= 2)
forward = lambda x, batch_stats, branch=None: (x, batch_stats)
terms = lambda method, **options: lambda z, y: method(forward, {}, z[0], z[1], y, **options)
both_halves = lambda z: jnp.concatenate([z, z[..., ::-1, :]], axis=-1)

FITS = {
    'cross_entropy': lambda z, y: losses.cross_entropy(z[0], y),
    'mart': lambda z, y: terms(mart.mart)(z, y).fit,
    'ducat': lambda z, y: ducat.loss(both_halves(z[0]), both_halves(z[1]), y),
    'finetune': lambda z, y: terms(finetune.finetune, distance='kl', anchor='squared', anchor_weight=.5,
                                   reference=z[2])(z, y).fit,
    'fgsm_pgi': lambda z, y: terms(fgsm_pgi.fgsm_pgi)(z, y).fit,
    'soft targets': lambda z, y: losses.cross_entropy(z[0], .9 * jax.nn.one_hot(y, z.shape[-1])),
    'temper': lambda z, y: losses.cross_entropy(
        cfa.temper(z[0], y, by_class(z, .5, .7, .9, 1.2, 1.5)), y),
    'adjust': lambda z, y: losses.cross_entropy(adjusted(z[0]), y),
    'fold': lambda z, y: losses.cross_entropy(ducat.fold(both_halves(z[0])), y),
}
REGULARISERS = {
    'kl': lambda z, y: losses.kl(z[0], z[1]),
    'trades': lambda z, y: terms(trades.trades)(z, y).regulariser,
    'gair_trades': lambda z, y: gairat.gair_trades(forward, {}, z[0], jnp.concatenate([z[1], z[2]]),
                                                   y).complement,
    'mart': lambda z, y: terms(mart.mart)(z, y).regulariser,
    'js': lambda z, y: consistency.js_divergence(z[0], z[1]),
    'finetune': lambda z, y: terms(finetune.finetune, distance='kl', anchor='kl', anchor_weight=.5)(
        z, y).regulariser,
    'fgsm_pgi': lambda z, y: terms(fgsm_pgi.fgsm_pgi)(z, y).regulariser,
    'nuat': lambda z, y: terms(nuat.nuat)(z, y).regulariser,
    'mail': lambda z, y: mail.margin_weights(z[1], y, bias=0., slope=2.) * losses.cross_entropy(z[1], y),
}
EVERY = FITS | {f'{name}, regulariser': term for name, term in REGULARISERS.items()}


def by_class(z, *values):
  return jnp.float32(values if z.shape[-1] == 5 else np.insert(values, 2, 1.5))


def adjusted(z):
  return logit_adjustment.adjust(z, {'bias': by_class(z, .1, .2, .3, .4, .5),
                                     'scale': by_class(z, 1, 2, .5, 3, 1)})


@jax.jit
def values_and_gradients(z, y):
  return {name: (term(z, y), jax.grad(lambda z, term=term: jnp.sum(term(z, y)))(z))
          for name, term in EVERY.items()}


def test_terms_and_gradients_are_those_of_the_classes_left():
  left, masked = values_and_gradients(LEFT, Y), values_and_gradients(MASKED, Y_MASKED)
  for name in EVERY:
    (value, gradient), (found, slope) = left[name], masked[name]
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(slope[..., 2], 0, err_msg=name)
    np.testing.assert_allclose(np.delete(slope, 2, axis=-1), gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_terms_with_a_masked_class_equal_slow_loops():
  # Loops in float64 over the classes that are left.
  pairs = list(zip(LEFT[0], LEFT[1], Y, strict=True))
  expected = {
      'cross_entropy': [-np.log(probabilities(a)[y]) for a, _, y in pairs],
      'kl, regulariser': [slow_kl(a, b) for a, b, _ in pairs],
      'js, regulariser': [slow_js(a, b, .5) for a, b, _ in pairs],
      'mart': [-np.log(probabilities(b)[y]) + slow_boost(b, y) for _, b, y in pairs],
      'mart, regulariser': [slow_kl(a, b) * (1 - probabilities(a)[y]) for a, b, y in pairs]}
  found = values_and_gradients(MASKED, Y_MASKED)
  for name, values in expected.items():
    np.testing.assert_allclose(found[name][0], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_class_masked_in_one_view_only():
  # p = (½, ½, 0), q = (⅓, ⅓, ⅓): KL(p ‖ q) = log 3/2, and KL(q ‖ p) is infinite.
  p, q = jnp.array([[0., 0., -jnp.inf]]), jnp.zeros((1, 3))
  np.testing.assert_allclose(losses.kl(p, q), [np.log(1.5)], rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda q: losses.kl(p, q)[0])(q), [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-5)
  assert losses.kl(q, p) == np.inf
  # m = (5/12, 5/12, 1/6): ½ log 6/5 + ½ (⅔ log 4/5 + ⅓ log 2).
  js = np.log(1.2) / 2 + (2 / 3 * np.log(.8) + np.log(2) / 3) / 2
  divergence = lambda p: consistency.js_divergence(p, q, temperature=1.)[0]
  np.testing.assert_allclose(divergence(p), js, rtol=1e-6)
  assert np.isfinite(jax.grad(divergence)(p)).all()


def test_a_label_whose_class_is_masked_has_an_infinite_loss():
  z, y = jnp.array([[0., -jnp.inf]]), jnp.array([1])
  assert losses.cross_entropy(z, y) == np.inf
  assert losses.cross_entropy(z, jnp.array([[.9, .1]])) == np.inf
  assert objective.mean_loss(terms(pgd_at.pgd_at)([z, z], y), None, weights_on='fit', beta=0.) == np.inf


def test_boost_with_every_wrong_class_masked():
  # No wrong class is left: −log(1.0001 − 0).
  z = jnp.array([[1., -jnp.inf, -jnp.inf]])
  np.testing.assert_allclose(mart.boost(z, jnp.array([0])), [-np.log(1.0001)], atol=1e-6)


def test_terms_of_bfloat16_logits_are_float32():
  z = jnp.asarray(MASKED, jnp.bfloat16)
  for name in ('mart', 'mail, regulariser'):
    found, exact = (EVERY[name](logits, Y_MASKED) for logits in (z, z.astype(jnp.float32)))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6, err_msg=name)

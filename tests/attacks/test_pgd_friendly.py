"""Friendly PGD, losses with arguments, and Gaussian starts."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.methods import losses

WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 2
X = np.random.default_rng(1).uniform(.2, .8, (32, 6)).astype(np.float32)
Y = np.argmax(np.tanh(X) @ WEIGHTS, -1)
Y[::8] = (Y[::8] + 1) % 3  # some are misclassified from the start
KEY = jax.random.key(0)
OPTIONS = dict(epsilon=.2, step_size=.03, num_steps=8, random_start=False)


def model(x):
  return jnp.tanh(x) @ WEIGHTS


def attack(tau, **options):
  return attacks.pgd(model, X, Y, KEY, tau=tau, **OPTIONS | options)


def by_hand(tau):
  """A loop over examples, with the gradient of cross-entropy by hand."""
  points, kappas = [], []
  for x, y in zip(X, Y):
    point, left, kappa = x.copy(), tau, 0
    for _ in range(OPTIONS['num_steps']):
      logits = np.tanh(point) @ WEIGHTS
      if np.argmax(logits) == y:
        kappa += 1
      elif left == 0:
        break
      else:
        left -= 1
      p = np.exp(logits - logits.max())
      p /= p.sum()
      p[y] -= 1
      gradient = (WEIGHTS @ p) * (1 - np.tanh(point) ** 2)
      point = np.clip(np.clip(point + .03 * np.sign(gradient), x - .2, x + .2), 0, 1)
    points.append(point)
    kappas.append(kappa)
  return np.array(points), np.array(kappas)


@pytest.mark.parametrize('tau', [0, 1, 3, 8])
def test_agrees_with_a_loop_over_examples(tau):
  points, kappas = by_hand(tau)
  result = attack(tau)
  np.testing.assert_array_equal(result.kappa, kappas)
  np.testing.assert_allclose(result.x, points, atol=1e-6)


def test_the_cases_differ():
  # Else the test above would not tell the values of τ apart.
  kinds = [by_hand(tau)[0] for tau in (0, 1, 3, 8)]
  assert all(np.abs(a - b).max() > .01 for a, b in zip(kinds, kinds[1:]))


def test_tau_of_all_steps_is_plain_pgd_bitwise():
  plain, friendly = attack(None), attack(OPTIONS['num_steps'])
  for a, b in zip(plain, friendly):
    np.testing.assert_array_equal(a, b)


def test_tau_differs_by_example_and_compiles_once():
  advance = sys.modules['at_jax.attacks.pgd']._advance
  mixed = np.where(np.arange(32) < 16, 0, 3)
  results = [attacks.pgd(model, X, Y, KEY, tau=tau, **OPTIONS) for tau in (0, 3, mixed)]
  first = advance._cache_size()
  attacks.pgd(model, X, Y, KEY, tau=5, **OPTIONS)
  assert advance._cache_size() == first > 0
  np.testing.assert_array_equal(results[2].x[:16], results[0].x[:16])
  np.testing.assert_array_equal(results[2].x[16:], results[1].x[16:])


def test_stopped_examples_are_misclassified_and_stay_so():
  result = attack(0)
  crossed = np.asarray(result.kappa) < OPTIONS['num_steps']
  assert crossed.any() and np.asarray(result.success)[crossed].all()


def test_targeted_stops_at_the_target():
  goal = (np.argmax(np.tanh(X) @ WEIGHTS, -1) + 1) % 3
  result = attacks.pgd(model, X, goal, KEY, tau=0, targeted=True, **OPTIONS | {'epsilon': .5})
  further = attacks.pgd(model, X, goal, KEY, targeted=True, **OPTIONS | {'epsilon': .5})
  assert result.success.sum() > 5
  assert (result.loss >= further.loss - 1e-5).all() and (result.loss > further.loss + .1).any()


def test_kl_attack_agrees_with_a_loop():
  start = attacks.gaussian_start(X, jax.random.key(3))
  clean = np.tanh(X) @ WEIGHTS
  result = attacks.pgd(model, X, Y, KEY, loss=losses.kl_to_reference, loss_args=(clean,),
                       start=start, epsilon=.2, step_size=.03, num_steps=5)
  softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  point = np.clip(np.asarray(start, np.float64), 0, 1)
  for _ in range(5):
    # d KL(p ‖ softmax(z')) / dz' = p' − p.
    gradient = (softmax(np.tanh(point) @ WEIGHTS) - softmax(clean)) @ WEIGHTS.T
    moved = point + .03 * np.sign(gradient * (1 - np.tanh(point) ** 2))
    point = np.clip(np.clip(moved, X - .2, X + .2), 0, 1)
  np.testing.assert_allclose(result.x, point, atol=1e-5)
  assert (result.loss > 0).all()


def test_loss_args_are_traced():
  traces = []

  def loss(logits, y, reference):
    traces.append(1)
    return losses.kl_to_reference(logits, y, reference)

  partial = jax.tree_util.Partial(model)
  counts = []
  for scale in (1., 2., 3.):
    attacks.pgd(partial, X, Y, KEY, loss=loss, loss_args=(scale * model(X),), **OPTIONS)
    counts.append(len(traces))
  assert counts[0] == counts[-1]


def test_loss_args_with_restarts():
  args = dict(loss=losses.kl_to_reference, loss_args=(model(X),), epsilon=.2, step_size=.03,
              num_steps=3)
  one = attacks.pgd(model, X, Y, KEY, **args)
  many = attacks.pgd(model, X, Y, KEY, restarts=3, tau=2, **args)
  assert many.x.shape == one.x.shape and bool(jnp.isfinite(many.loss).all())


def test_gaussian_start_does_not_depend_on_the_batch():
  key = jax.random.key(5)
  whole = attacks.gaussian_start(X, key)
  part = attacks.gaussian_start(X[8:16], key, index=np.arange(8, 16))
  np.testing.assert_array_equal(whole[8:16], part)
  # 192 draws of N(0, .001²): the standard deviation is known to ±5 %, so ±15 % is three of those.
  np.testing.assert_allclose(np.std(np.asarray(whole) - X), .001, rtol=.15)

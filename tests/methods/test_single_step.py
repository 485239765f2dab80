"""FGSM-RS, N-FGSM and NuAT: closed forms on a linear model, and the nuclear norm in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import fgsm_rs, n_fgsm, nuat

RNG = np.random.default_rng(0)
EPSILON = .1
W = RNG.normal(size=(3000, 2)).astype(np.float32) / 50
X, Y = RNG.uniform(.3, .7, (2, 3000)).astype(np.float32), np.array([0, 1])
# The direction in which the cross-entropy of a linear model with two classes rises, everywhere.
RISES = np.sign(W[:, 1] - W[:, 0]) * np.array([[1], [-1]])
ATTACKS = {'fgsm_rs': fgsm_rs.fgsm_rs, 'n_fgsm': n_fgsm.n_fgsm, 'nuclear': nuat.nuclear}
logits = lambda x: x @ W


def run(name, x=X, y=Y, epsilon=EPSILON, **options):
  attack = ATTACKS[name](norm=options.pop('norm', 'linf'), epsilon=epsilon, step_size=9., num_steps=1)
  return np.asarray(attack(logits, x, y, jax.random.key(0), options.pop('index', None), **options).x)


def moved(name):
  """The perturbation along the gradient's sign, in units of ε."""
  return (run(name) - X) * RISES / EPSILON


def test_fgsm_rs_is_a_clipped_step_from_a_uniform_point():
  # η + 1.25 with η uniform in [−1, 1], clipped at 1: from .25 on, and 1 with probability 5/8.
  found = moved('fgsm_rs')
  assert found.min() == pytest.approx(.25, abs=.01) and found.max() < 1 + 1e-5
  assert np.mean(found > 1 - 1e-5) == pytest.approx(5 / 8, abs=.03)
  inside = found[found < 1 - 1e-5]
  assert inside.mean() == pytest.approx(5 / 8, abs=.02)  # uniform between ¼ and 1


def test_n_fgsm_leaves_the_ball():
  # 2η + 1 with η uniform in [−1, 1]: uniform between −1 and 3, half of it outside of the ball.
  found = moved('n_fgsm')
  assert found.min() == pytest.approx(-1, abs=.01) and found.max() == pytest.approx(3, abs=.01)
  assert found.mean() == pytest.approx(1, abs=.05) and found.std() == pytest.approx(4 / 12 ** .5, abs=.03)
  assert np.mean(np.abs(found) > 1) == pytest.approx(1 / 2, abs=.03)


def test_nuat_s_attack_is_a_step_from_a_corner_of_half_the_ball():
  # ±½ + 1, clipped at 1.
  found = moved('nuclear')
  np.testing.assert_allclose(np.minimum(np.abs(found - .5), np.abs(found - 1)), 0, atol=1e-5)
  assert np.mean(found > .75) == pytest.approx(1 / 2, abs=.03)


@pytest.mark.parametrize('name', ATTACKS)
def test_examples_stay_within_the_bounds(name):
  x = RNG.choice([0., 1.], X.shape).astype(np.float32)
  found = run(name, x=x)
  assert found.min() >= 0 and found.max() <= 1
  if name != 'n_fgsm':
    assert np.abs(found - x).max() <= EPSILON + 1e-6


@pytest.mark.parametrize('name, norm', [
    *((name, 'linf') for name in ATTACKS), ('n_fgsm', 'l2'),
    *(pytest.param(name, 'l2', marks=pytest.mark.long) for name in ('fgsm_rs', 'nuclear'))])
def test_step_and_noise_follow_the_radius(name, norm):
  half = run(name, epsilon=EPSILON / 2, norm=norm)
  np.testing.assert_allclose(run(name, norm=norm, scale=.5), half, atol=1e-6)
  share = np.float32([EPSILON, EPSILON]) / 18
  np.testing.assert_allclose(run(name, norm=norm, epsilon=9., scale=share), half, atol=1e-6)
  if norm == 'l2':
    furthest = {'fgsm_rs': 1, 'n_fgsm': 3, 'nuclear': 1}[name]
    assert .4 < np.max(np.linalg.norm(half - X, axis=1)) / (EPSILON / 2) <= furthest + 1e-4


def test_draws_depend_on_the_index_alone():
  both = run('n_fgsm', index=np.array([7, 4]))
  other = run('n_fgsm', X[[1, 1]], Y[[1, 1]], index=np.array([4, 7]))
  np.testing.assert_allclose(other[0], both[1], atol=1e-7)
  assert np.abs(other[1] - both[1]).max() > EPSILON


def test_the_nuclear_norm_is_that_of_numpy():
  for shape in ((8, 3), (3, 8)):
    d = RNG.normal(size=shape).astype(np.float32)
    u, _, vt = np.linalg.svd(d, full_matrices=False)
    shares = nuat.nuclear_shares(d)
    np.testing.assert_allclose(np.sum(shares), np.linalg.norm(d, 'nuc'), rtol=1e-5)
    # The diagonal of (D Dᵀ)^½, by its eigenvalues in float64.
    values, vectors = np.linalg.eigh(d.astype(float) @ d.T.astype(float))
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(shares, np.diag(root), atol=1e-5)
    gradient = jax.grad(lambda d: jnp.sum(nuat.nuclear_shares(d)))(d)
    np.testing.assert_allclose(gradient, u @ vt, atol=1e-5)


def test_the_nuclear_norm_of_few_directions_is_finite():
  value = jax.value_and_grad(lambda d: jnp.sum(nuat.nuclear_shares(d)))
  zero, slope = value(jnp.zeros((3, 2)))
  assert zero == 0 and not slope.any()
  # A matrix of rank one, a bᵀ: ‖a‖ ‖b‖, with the gradient a bᵀ / (‖a‖ ‖b‖).
  a, b = np.float32([1, 2, 2]), np.float32([3, 4])
  one, slope = value(np.outer(a, b))
  assert one == pytest.approx(15, rel=1e-5)
  np.testing.assert_allclose(slope, np.outer(a, b) / 15, atol=1e-5)
  assert nuat.nuclear_shares(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.float32


def test_two_devices_have_the_nuclear_norm_of_one():
  d = RNG.normal(size=(8, 3)).astype(np.float32)
  halves = jax.vmap(functools.partial(nuat.nuclear_shares, axis_name='batch'), axis_name='batch')
  np.testing.assert_allclose(halves(d.reshape(2, 4, 3)).reshape(8), nuat.nuclear_shares(d), atol=1e-5)


@pytest.mark.long
def test_nuat_s_attack_on_two_devices_is_that_of_one():
  # Its gradient depends on all examples of the batch.
  w = RNG.normal(size=(12, 3)).astype(np.float32)
  x, y = RNG.uniform(.3, .7, (4, 12)).astype(np.float32), np.array([0, 1, 2, 0])

  def attack(x, y, index, axis_name):
    made = nuat.nuclear(norm='linf', epsilon=EPSILON, axis_name=axis_name)
    return made(lambda x: x @ w, x, y, jax.random.key(0), index, beta=4.5).x

  one = attack(x, y, np.arange(4), None)
  two = jax.vmap(functools.partial(attack, axis_name='batch'), axis_name='batch')(
      x.reshape(2, 2, 12), y.reshape(2, 2), np.arange(4).reshape(2, 2))
  np.testing.assert_allclose(two.reshape(4, 12), one, atol=1e-6)

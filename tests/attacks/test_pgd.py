"""PGD and FGSM against closed forms, slow loops and properties; number of compilations."""

import functools
import sys
import warnings

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _loops, norms
from at_jax.methods import ducat
from tests.fixtures import rounding
from tests.fixtures.analytic_models import gradient_by_hand, linear, quadratic

if hasattr(jax, 'enable_x64'):
  enable_x64 = jax.enable_x64
else:  # Before jax 0.8.
  from jax.experimental import enable_x64
pytestmark = pytest.mark.oldest


@pytest.fixture(autouse=True)
def loops(monkeypatch):
  """Steps are a loop, which compiles sooner; a test below compares it with unrolled steps."""
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)


@pytest.fixture
def weights():
  return jax.random.normal(jax.random.key(1), (4, 3, 2))


def test_linf_on_a_linear_model_is_the_closed_form(weights):
  # The maximum of a linear loss over the L∞ ball is x + ε·sign(gradient).
  x = jax.random.uniform(jax.random.key(2), (5, 4, 3, 2), minval=.3, maxval=.7)
  result = attacks.pgd(functools.partial(linear, weights), x, jnp.ones(5, int), jax.random.key(0),
                       epsilon=.1, step_size=.03, num_steps=20)
  np.testing.assert_allclose(result.x, x - .1 * jnp.sign(weights), atol=1e-6)


def test_l2_on_a_linear_model_is_the_closed_form(weights):
  # The maximum over the L2 ball is x + ε·gradient/‖gradient‖.
  x = jax.random.uniform(jax.random.key(2), (5, 4, 3, 2), minval=.4, maxval=.6)
  result = attacks.pgd(functools.partial(linear, weights), x, jnp.ones(5, int), jax.random.key(0),
                       epsilon=.2, step_size=.1, num_steps=60, norm='l2')
  np.testing.assert_allclose(result.x, x - .2 * weights / jnp.linalg.norm(weights), atol=1e-5)


def test_l1_on_a_linear_model_comes_close_to_the_closed_form():
  # Within the ball and the bounds the maximum fills the entries of largest |w| one after the other.
  w = np.random.default_rng(1).normal(size=20).astype(np.float32)
  x = np.random.default_rng(2).uniform(size=(3, 20)).astype(np.float32)
  order = np.argsort(-np.abs(w))
  room = np.where(w > 0, x, 1 - x)[:, order]
  moved = np.clip(3 - np.cumsum(room, axis=1) + room, 0, room)
  expected, model = moved @ np.abs(w[order]), functools.partial(linear, w)
  for random_start, share in ((False, .99), (True, .6)):
    result = attacks.pgd(model, x, jnp.ones(3, int), jax.random.key(0), epsilon=3., step_size=.25,
                         num_steps=100, norm='l1', random_start=random_start)
    delta = np.asarray(result.x) - x
    np.testing.assert_allclose(np.abs(delta).sum(axis=1), 3, rtol=1e-5)
    assert (-delta @ w > share * expected).all() and (-delta @ w <= expected * (1 + 1e-5)).all()
    assert result.x.min() >= 0 and result.x.max() <= 1
  # One step of FGSM fills the first of them.
  result = attacks.fgsm(model, x, jnp.ones(3, int), epsilon=3., norm='l1')
  np.testing.assert_allclose((x - result.x) @ w, room[:, 0] * np.abs(w[order[0]]), rtol=1e-5)


def test_fgsm_is_one_step_of_epsilon_from_the_input(weights):
  x = jax.random.uniform(jax.random.key(2), (5, 4, 3, 2), minval=.3, maxval=.7)
  result = attacks.fgsm(functools.partial(linear, weights), x, jnp.ones(5, int), epsilon=.1)
  np.testing.assert_allclose(result.x, x - .1 * jnp.sign(weights), atol=1e-6)


@pytest.mark.parametrize('mu, norm', [
    (.5, 'linf'), *(pytest.param(*pair, marks=pytest.mark.long) for pair in (
        (1., 'l2'), (1., 'linf'), (.5, 'l2')))])
def test_momentum_agrees_with_a_loop_over_examples(mu, norm):
  # Algorithm 1 of Dong et al. in NumPy.
  with enable_x64(True):
    x, y = np.random.default_rng(3).uniform(size=(6, 5)), np.array([0, 1, 2, 0, 1, 2])
    options = dict(epsilon=.2, step_size=.05, num_steps=9, norm=norm, random_start=False)
    attack = functools.partial(attacks.pgd, quadratic, x, y, jax.random.key(0), **options)
    result, plain = attack(momentum=mu), attack()
  expected = []
  for clean, label in zip(x, y):
    point, velocity = clean, 0
    for _ in range(9):
      gradient = gradient_by_hand(point, label)
      velocity = mu * velocity + gradient / np.abs(gradient).sum()
      unit = np.sign(velocity) if norm == 'linf' else velocity / np.linalg.norm(velocity)
      delta = point + .05 * unit - clean
      if norm == 'linf':
        delta = np.clip(delta, -.2, .2)
      else:
        delta *= min(1, .2 / np.linalg.norm(delta))
      point = np.clip(clean + delta, 0, 1)
    expected.append(point)
  np.testing.assert_allclose(result.x, expected, atol=1e-9)
  assert np.abs(result.x - plain.x).max() > 1e-3


def test_momentum_zero_is_plain_pgd_bitwise():
  x, y = jax.random.uniform(jax.random.key(2), (6, 5)), jnp.array([0, 1, 2, 0, 1, 2])
  attack = functools.partial(attacks.pgd, quadratic, x, y, jax.random.key(0), epsilon=.2,
                             step_size=.05, num_steps=5)
  jax.tree.map(np.testing.assert_array_equal, attack(), attack(momentum=0))


def test_targeted_moves_towards_the_target(weights):
  x = jax.random.uniform(jax.random.key(2), (5, 4, 3, 2), minval=.3, maxval=.7)
  result = attacks.pgd(functools.partial(linear, weights), x, jnp.ones(5, int), jax.random.key(0),
                       epsilon=.1, step_size=.03, num_steps=20, targeted=True)
  np.testing.assert_allclose(result.x, x + .1 * jnp.sign(weights), atol=1e-6)
  np.testing.assert_array_equal(result.success, jnp.sum(result.x * weights, axis=(1, 2, 3)) > 0)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('dtype', [np.float32, pytest.param(np.float64, marks=pytest.mark.long)])
@hypothesis.given(x=hnp.arrays(np.float32, (2, 3, 4, 1), elements=st.floats(
    0, 1, width=32, allow_subnormal=False)),  # XLA flushes those to zero
                  epsilon=st.floats(0, 2), share=st.floats(0, 3), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=25)
def test_result_leaves_ball_and_bounds_by_rounding_only(dtype, norm, x, epsilon, share, seed):
  x = x.astype(dtype)
  with enable_x64(dtype == np.float64), warnings.catch_warnings():
    warnings.simplefilter('ignore')  # radii that cover all
    result = attacks.pgd(quadratic, x, np.zeros(len(x), int), jax.random.key(seed), epsilon=epsilon,
                         step_size=share * epsilon, num_steps=3, norm=norm)
  rounding.check_ball(result.x, x, epsilon, norm)
  assert (result.x >= 0).all() and (result.x <= 1).all()


@hypothesis.given(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(
    -9, 9, width=32, allow_subnormal=False)),
                  st.floats(0, 3, width=32, allow_subnormal=False))  # XLA flushes those to zero
def test_projections_are_the_nearest_points(delta, epsilon):
  # A projection is idempotent, leaves the inside alone and, for L2, keeps the direction.
  for ball in (norms.linf, norms.l2):
    once = ball.project(delta, epsilon)
    np.testing.assert_allclose(ball.project(once, epsilon), once, atol=1e-5)
  np.testing.assert_array_equal(norms.linf.project(delta, epsilon),
                                np.clip(delta, -epsilon, epsilon))
  norm = np.linalg.norm(delta.astype(np.float64))
  expected = delta * min(1, epsilon / norm) if norm else delta
  np.testing.assert_allclose(norms.l2.project(delta, epsilon), expected, atol=1e-5)


@pytest.mark.parametrize('scale', [0., 1e-30, 1e-20, 1., 1e20])
def test_l2_ascent_is_a_unit_vector_or_zero(scale):
  direction = norms.l2.ascend(scale * jnp.array([[3., 4.], [0., 0.]]))
  expected = np.array([[.6, .8], [0., 0.]]) * (scale > 0)
  np.testing.assert_allclose(direction, expected, atol=1e-6)


def test_samples_fill_the_balls_uniformly():
  # In d dimensions the share of samples within r·ε is r^d (both balls); d = 4, r = 0.8: 0.4096.
  keys = jax.random.split(jax.random.key(0), 20_000)
  for ball, order in ((norms.linf, np.inf), (norms.l2, 2)):
    points = jax.vmap(lambda k: ball.sample(k, (2, 2), .5))(keys).reshape(len(keys), 4)
    share = np.mean(np.linalg.norm(points, ord=order, axis=1) <= .8 * .5)
    assert abs(share - .8**4) < 4 * np.sqrt(.41 * .59 / len(keys))  # four standard errors


def test_kappa_agrees_with_a_slow_loop():
  x = np.asarray(jax.random.uniform(jax.random.key(3), (40, 2, 2, 1)))
  y = np.asarray(jnp.argmax(quadratic(x), axis=-1))
  epsilon, alpha, steps = .3, .04, 12
  result = attacks.pgd(quadratic, x, y, jax.random.key(0), epsilon=epsilon, step_size=alpha,
                       num_steps=steps, random_start=False)
  gradient = jax.jit(jax.grad(
      lambda p, t: attacks.losses.cross_entropy(quadratic(p[None]), t[None])[0]))
  predict = jax.jit(lambda p: jnp.argmax(quadratic(p[None])[0]))
  kappa = []
  for original, label in zip(x, y, strict=True):
    point, count = original, 0
    for _ in range(steps):  # correct before the step counts, as in the released GAIRAT code
      count += int(predict(point) == label)
      point = point + alpha * np.sign(gradient(point, label))
      point = np.clip(np.clip(point, original - epsilon, original + epsilon), 0, 1)
    kappa.append(count)
  np.testing.assert_array_equal(result.kappa, kappa)
  assert len(set(kappa)) > 3  # else the comparison would say little


def test_looped_and_unrolled_pgd_steps_agree(monkeypatch):
  x = jax.random.uniform(jax.random.key(3), (6, 2, 2, 1))
  run = lambda: attacks.pgd(lambda x: quadratic(x), x, jnp.zeros(6, int), jax.random.key(0),
                            epsilon=.3, step_size=.05, num_steps=20)  # unrolled in one program, called twice
  results = []
  for written_out in (True, False):
    monkeypatch.setattr(_loops, 'unrolls', lambda form=written_out: form)
    results.append(run())
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert _loops.calls(25) == [25]


def test_one_program_for_many_radii_and_parameters(weights):
  x, y = jnp.full((2, 4, 3, 2), .5), jnp.ones(2, int)
  advance = sys.modules['at_jax.attacks.pgd']._advance
  attack = lambda w, epsilon: attacks.pgd(
      jax.tree_util.Partial(linear, w), x, y, jax.random.key(0), epsilon=epsilon, step_size=.1, num_steps=3)
  attack(weights, .1)
  first = advance._cache_size()
  for epsilon in (.1, .2, .3):
    attack(weights, epsilon)
  for scale in range(100):
    attack(weights * scale, .1)
  assert advance._cache_size() == first > 0


def test_composes_with_closures_and_vmap_over_radii(weights):
  x, y = jnp.full((2, 4, 3, 2), .5), jnp.ones(2, int)

  @jax.jit
  def curve(w, epsilons):
    attack = lambda e: attacks.pgd(lambda x: linear(w, x), x, y, jax.random.key(0), epsilon=e,
                                   step_size=e, num_steps=2, random_start=False).x
    return jax.vmap(attack)(epsilons)

  for w in (weights, -weights):
    for epsilon, found in zip((.1, .2), curve(w, jnp.array([.1, .2])), strict=True):
      np.testing.assert_allclose(found, x - epsilon * jnp.sign(w), atol=1e-6)


def test_epsilon_may_differ_between_examples(weights):
  x, radii = jnp.full((3, 4, 3, 2), .5), jnp.array([0., .1, .2])
  found = attacks.pgd(functools.partial(linear, weights), x, jnp.ones(3, int), jax.random.key(0),
                      epsilon=radii, step_size=radii, num_steps=3).x
  np.testing.assert_allclose(found, x - radii[:, None, None, None] * jnp.sign(weights), atol=1e-6)


def test_decide_defines_success_and_kappa():
  # Two classes and their dummies. x goes 0, .1, .2, .3, .4: from .2 on the dummy of class 0 leads, and
  # from .3 on the other class does.
  model = lambda x: jnp.concatenate([.15 - x, 3 * x - .71, x - .15, 0 * x - 9], axis=1)
  attack = functools.partial(
      attacks.pgd, model, jnp.zeros((1, 1)), jnp.array([0]), jax.random.key(0), epsilon=.4,
      step_size=.1, random_start=False)
  for num_steps, options, kappa, success in (
      (3, {}, 2, True), (3, {'decide': ducat.fold}, 3, True), (2, {}, 2, True),
      (2, {'decide': ducat.fold}, 2, False)):
    found = attack(num_steps=num_steps, **options)
    assert (found.kappa[0], found.success[0]) == (kappa, success), (num_steps, options)
  # One step more from points where the decision is wrong, and it stays where it is.
  np.testing.assert_allclose(attack(num_steps=6, tau=0).x, .2, atol=1e-6)
  np.testing.assert_allclose(attack(num_steps=6, tau=0, decide=ducat.fold).x, .3, atol=1e-6)


def test_draws_depend_on_the_index_alone():
  x, y = jax.random.uniform(jax.random.key(4), (7, 2, 2, 1)), jnp.zeros(7, int)
  run = lambda places: attacks.pgd(quadratic, x[places], y[places], jax.random.key(0), epsilon=.2,
                                   step_size=0., num_steps=1, index=places).x  # the start itself
  whole = run(jnp.arange(7))
  order = jnp.array([3, 0, 6, 2, 5, 1, 4])
  np.testing.assert_array_equal(run(order), whole[order])
  np.testing.assert_array_equal(run(jnp.array([5])), whole[5:6])


def test_restarts_keep_a_success_then_the_highest_loss():
  x, y = jax.random.uniform(jax.random.key(5), (64, 2, 2, 1)), jnp.zeros(64, int)
  attack = functools.partial(attacks.pgd, quadratic, x, y, epsilon=.15, step_size=.05, num_steps=2)
  kept = attack(jax.random.key(0), restarts=4)
  single = [attack(jax.random.fold_in(jax.random.key(0), r)) for r in range(4)]
  successes = np.stack([run.success for run in single])
  np.testing.assert_array_equal(kept.success, successes.any(0))
  losses = np.where(successes | ~successes.any(0), np.stack([run.loss for run in single]), -np.inf)
  np.testing.assert_allclose(kept.loss, losses.max(0), atol=1e-6)


@pytest.mark.parametrize('wrong, message', [
    (dict(norm='l7'), 'norm'), (dict(num_steps=0), 'num_steps'), (dict(restarts=0), 'restarts'),
    (dict(x=jnp.zeros((2, 3), int)), 'dtype'), (dict(y=jnp.zeros(3, int)), 'shape')])
def test_invalid_pgd_arguments_are_named(wrong, message):
  arguments = dict(x=jnp.zeros((2, 3)), y=jnp.zeros(2, int), key=jax.random.key(0), epsilon=.1,
                   step_size=.1, num_steps=1) | wrong
  with pytest.raises(ValueError, match=message):
    attacks.pgd(quadratic, **arguments)

"""Smoothness of the adversarial loss: closed forms of the linear model and of a quadratic loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.analysis import smoothness_estimates as smoothness

EPSILON = .05
W = np.array([.001, -1., 2., .5])  # the sign of the first weight changes under small moves
X = np.random.default_rng(0).uniform(.3, .7, (6, 4))  # so that no attack reaches a bound
Y = np.array([0, 1, 1, 0, 1, 0])
# Two classes with the margin w·x: the loss of class y is log(1 + exp(−s w·x)), with s = 2y − 1.
LINEAR = jax.tree_util.Partial(lambda params, x: jnp.concatenate([0 * x @ params['w'], x @ params['w']], 1))
SIGN = 2. * Y - 1


@pytest.fixture(scope='module', autouse=True)
def short():
  """Four steps of a quarter of the radius reach the strongest attack on a linear model."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(smoothness, 'STEPS', 4)
    yield


def params(w):
  return {'w': jnp.asarray(w, jnp.float32)[:, None]}


def attacked(w, norm):
  return smoothness.adversarial(LINEAR, params(w), jnp.float32(X), jnp.int32(Y), EPSILON, norm=norm)


def attack(w, norm):
  """The strongest perturbation in closed form: −ε s sign(w) in L∞, −ε s w/‖w‖ in L2."""
  return -EPSILON * SIGN[:, None] * (np.sign(w) if norm == 'linf' else w / np.linalg.norm(w))


def gradient(w, norm):
  """∇L(w) = mean_i −σ(−m_i) s_i (x_i + δ_i), where m_i = s_i w·(x_i + δ_i)."""
  points = X + attack(w, norm)
  slope = -SIGN / (1 + np.exp(SIGN * (points @ w)))
  return (slope[:, None] * points).mean(0)


def moved_estimate(d, norm):
  return smoothness.estimate(params(W), attacked(W, norm), params(W + d), attacked(W + d, norm))


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_loss_gradient_and_attack_of_the_linear_model(norm):
  found = attacked(W, norm)
  np.testing.assert_allclose(found.delta, attack(W, norm), atol=1e-6)
  dual = np.abs(W).sum() if norm == 'linf' else np.linalg.norm(W)
  margins = SIGN * (X @ W) - EPSILON * dual
  assert found.loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
  np.testing.assert_allclose(found.gradient['w'][:, 0], gradient(W, norm), rtol=1e-4)


def test_l2_attack_moves_with_its_jacobian():
  # δ = −ε s w/‖w‖ has the Jacobian −ε s (I − wwᵀ/‖w‖²)/‖w‖.
  size = np.linalg.norm(W)
  jacobian = EPSILON * (np.eye(4) - np.outer(W, W) / size**2) / size
  for d in (np.array([.01, .02, 0, -.01]), .01 * W):  # along w the attack does not move
    expected = np.linalg.norm(jacobian @ d) / np.linalg.norm(d)
    found = moved_estimate(d, 'l2')
    assert found.displacement == pytest.approx(expected, rel=.02, abs=1e-4)
    # |δ| = ε, and there is one weight tensor.
    assert found.relative_displacement == pytest.approx(expected * size / EPSILON, rel=.02, abs=.01)


def test_linf_attack_jumps_at_a_change_of_sign():
  for step in (.002, .02):
    d = np.array([-step, 0, 0, 0])  # moves one entry of δ from −ε to ε, however small the step
    assert moved_estimate(d, 'linf').displacement == pytest.approx(2 * EPSILON / step, rel=1e-3)
    assert moved_estimate(-d, 'linf').displacement < 1e-3  # rounding


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_lipschitz_estimate_is_that_of_the_closed_form(norm):
  for d in (np.array([-.02, 0, 0, 0]), np.array([.1, .2, 0, -.1])):
    change = gradient(W + d, norm) - gradient(W, norm)
    expected = np.linalg.norm(change) / np.linalg.norm(d)
    assert moved_estimate(d, norm).lipschitz == pytest.approx(expected, rel=1e-3)


def test_estimates_of_a_jump_grow_as_the_step_shrinks():
  # The gradient jumps by 2ε in one entry times the mean of σ(−m): ten times the estimate for a tenth of the
  # step, less the smooth part. In L2 both estimates are the same.
  ratio = {norm: moved_estimate(np.array([-.002, 0, 0, 0]), norm).lipschitz
           / moved_estimate(np.array([-.02, 0, 0, 0]), norm).lipschitz for norm in ('linf', 'l2')}
  assert 5 < ratio['linf'] < 10 and ratio['l2'] == pytest.approx(1, abs=.1)


def test_attack_that_is_fixed_leaves_the_smooth_part():
  d = np.array([-.002, 0, 0, 0])
  base = attacked(W, 'linf')
  point = smoothness.fixed(LINEAR, params(W + d), jnp.float32(X), jnp.int32(Y), base.delta)
  found = smoothness.estimate(params(W), base, params(W + d), point)
  # Logistic regression: the Hessian is mean_i σ(m)σ(−m) x'x'ᵀ.
  points = X + attack(W, 'linf')
  p = 1 / (1 + np.exp(points @ W))
  hessian = np.einsum('n,ni,nj->ij', p * (1 - p), points, points) / len(X)
  assert found.lipschitz == pytest.approx(np.linalg.norm(hessian[:, 0]), rel=.01)
  assert found.displacement == 0


def test_quadratic_loss_has_the_eigenvalues_of_its_hessian():
  random = np.random.default_rng(1)
  basis = np.linalg.qr(random.standard_normal((6, 6)))[0]
  values = np.array([.5, 1, 2, 4, 8, 16])
  hessian = basis @ np.diag(values) @ basis.T
  w = random.standard_normal(6)

  def point(w):  # a matrix, a kernel, and a bias that does not count
    g = hessian @ w
    tree = lambda v: {'a': jnp.float32(v[:4]).reshape(2, 2), 'b': jnp.float32(v[4:, None]), 'c': jnp.ones(3)}
    return tree(w), smoothness.Point(jnp.float32(w @ g / 2), tree(g), jnp.ones((1, 2)))

  for i, value in enumerate(values):
    found = smoothness.estimate(*point(w), *point(w + .5 * basis[:, i]))
    assert found.lipschitz == pytest.approx(value, rel=1e-4)
  # In the coordinates u = w_l/‖w_l‖ the Hessian is S H S and the move S⁻¹ d, with S = diag(‖w_l‖).
  scale = np.repeat([np.linalg.norm(w[:4]), np.linalg.norm(w[4:])], [4, 2])
  d = random.standard_normal(6)
  expected = np.linalg.norm(scale * (hessian @ d)) / np.linalg.norm(d / scale)
  found = smoothness.estimate(*point(w), *point(w + d))
  assert found.relative_lipschitz == pytest.approx(expected, rel=1e-4)


def test_move_has_the_relative_length_in_each_tensor():
  tree = {'a': jnp.array([[3., 4.]]), 'b': jnp.ones(3), 'c': jnp.full((2, 2), 2.)}
  direction, other = (smoothness.random_direction(tree, jax.random.key(i)) for i in range(2))
  assert (direction['a'] != other['a']).all() and (direction['a'] != direction['c'][0]).all()
  moved = smoothness.move(tree, [direction, other], [.1, 0.])
  change = jax.tree.map(lambda a, b: a - b, moved, tree)
  assert np.linalg.norm(change['a']) == pytest.approx(.5, rel=1e-4)
  assert np.linalg.norm(change['c']) == pytest.approx(.4, rel=1e-4)
  assert not change['b'].any()
  back = smoothness.move(tree, [direction, other], [-.1, 0.])
  np.testing.assert_allclose(back['a'] + moved['a'], 2 * tree['a'], rtol=1e-5)


def test_matched_radius_is_the_ratio_of_the_dual_norms():
  # The losses are those of the margins less ε‖w‖₁ and ε‖w‖₂.
  x, y = jnp.float32(X), jnp.int32(Y)
  ratio = np.abs(W).sum() / np.linalg.norm(W)
  for norm, other, expected in (('linf', 'l2', EPSILON * ratio), ('l2', 'linf', EPSILON / ratio)):
    found = smoothness.matched_radius(LINEAR, params(W), x, y, attacked(W, norm).loss, norm=other,
                                      epsilon=EPSILON)
    assert found == pytest.approx(expected, rel=.006)


def test_input_flatness_of_the_linear_model():
  # ∇_x ℓ = −s σ(−m) w, and the curvature along it is σ(m) σ(−m) ‖w‖².
  found = smoothness.input_flatness(LINEAR, params(W), jnp.float32(X), jnp.int32(Y))
  p = 1 / (1 + np.exp(SIGN * (X @ W)))
  np.testing.assert_allclose(found.gradient, p * np.abs(W).sum(), rtol=1e-5)
  np.testing.assert_allclose(found.curvature, p * (1 - p) * (W @ W), rtol=1e-4)


def test_surface_has_the_losses_of_the_moved_weights():
  first, second = params([0, 1., 0, 0]), params([0, 0, 0, -2.])
  lengths = -.1, 0., .1
  found = smoothness.surface(LINEAR, params(W), jnp.float32(X), jnp.int32(Y), first, second, EPSILON,
                             norm='l2', lengths=lengths)
  size = np.linalg.norm(W)
  for a, row in zip(lengths, found, strict=True):
    for b, loss in zip(lengths, row, strict=True):
      w = W + size * np.array([0, a, 0, -b])
      margins = SIGN * (X @ w) - EPSILON * np.linalg.norm(w)
      assert loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)

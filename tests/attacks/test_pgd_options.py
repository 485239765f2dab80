"""Combinations of losses, norms, restarts and radii, and the caller's scan and pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _loops, losses
from tests.fixtures import analytic_models, bisection, composition

KEY = jax.random.key(0)


def plane():
  """A linear model of two classes, the weights of class 1, and points of class 1 within the bounds."""
  w = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
  x = np.random.default_rng(4).uniform(.3, .7, (5, 4, 3)).astype(np.float32)
  return functools.partial(analytic_models.linear, w), w, x, jnp.ones(5, int)


def test_apgd_climbs_the_margin():
  # The margin is −2 w·x; its maximum over the L∞ ball is at x − ε·sign(w), where the first step ends.
  model, w, x, y = plane()
  result = attacks.apgd(model, x, y, KEY, epsilon=.1, num_steps=4, loss=losses.margin)
  np.testing.assert_allclose(result.x, x - .1 * np.sign(w), atol=1e-6)
  np.testing.assert_allclose(result.loss, -2 * (result.x * w).sum((1, 2)), atol=1e-5)


def test_fgsm_in_l2_is_one_step_along_the_gradient():
  # The maximum of a linear loss over the L2 ball is x + ε·gradient/‖gradient‖.
  model, w, x, y = plane()
  result = attacks.fgsm(model, x, y, epsilon=.2, norm='l2')
  np.testing.assert_allclose(result.x, x - .2 * w / np.linalg.norm(w), atol=1e-6)


def into_l1_ball_and_box(move, x, epsilon):
  """The nearest point of the L1 ball in a box, by bisection."""
  room = np.where(move > 0, 1 - x, x)
  rest = lambda shrink: np.clip(np.abs(move) - shrink, 0, room)
  fits = rest(0).sum() <= epsilon
  shrink = 0 if fits else bisection.bisect(lambda t: epsilon - rest(t).sum(), 0, 5)
  return x + np.sign(move) * rest(shrink)


def test_momentum_in_l1_agrees_with_a_loop_over_examples(monkeypatch):
  # As in test_pgd.py, algorithm 1 of Dong et al. in NumPy; a step moves the entry where the sum of
  # gradients is largest among those that the bounds let move. With these numbers six examples would end
  # elsewhere if gradients were not made of one length, and six without momentum.
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)  # compiles sooner
  mu = .9
  with jax.enable_x64(True):
    x, y = np.random.default_rng(3).uniform(size=(12, 5)), np.arange(12) % 3
    attack = functools.partial(
        attacks.pgd, analytic_models.quadratic, x, y, KEY, epsilon=1.5, step_size=.3, num_steps=9, norm='l1',
        random_start=False)
    result, plain = attack(momentum=mu), attack()
  expected = []
  for clean, label in zip(x, y):
    point, velocity = clean, 0
    for _ in range(9):
      gradient = analytic_models.gradient_by_hand(point, label)
      velocity = mu * velocity + gradient / np.abs(gradient).sum()
      room = np.where(velocity > 0, 1 - point, point)
      entry = np.argmax(np.where(room > 1e-12, np.abs(velocity), 0))
      moved = point + .3 * np.sign(velocity[entry]) * (np.arange(5) == entry)
      point = into_l1_ball_and_box(moved - clean, clean, 1.5)
    expected.append(point)
  np.testing.assert_allclose(result.x, expected, atol=1e-9)
  assert (np.abs(result.x - plain.x).max(axis=1) > 1e-3).sum() == 6


def test_targeted_restarts_keep_a_success_then_the_lowest_loss():
  x = jax.random.uniform(jax.random.key(5), (64, 2, 2, 1))
  goal = jnp.arange(64) % 3
  attack = functools.partial(attacks.pgd, analytic_models.quadratic, x, goal, targeted=True, epsilon=.15,
                             step_size=.05, num_steps=2)
  kept = attack(KEY, restarts=4)
  single = [attack(jax.random.fold_in(KEY, r)) for r in range(4)]
  reached = np.stack([run.success for run in single])
  assert (reached.any(0) > reached.all(0)).any() and not reached.any(0).all()  # all three cases
  np.testing.assert_array_equal(kept.success, reached.any(0))
  assert (np.argmax(analytic_models.quadratic(kept.x), -1) == goal)[kept.success].all()
  eligible = np.where(reached | ~reached.any(0), np.stack([run.loss for run in single]), np.inf)
  np.testing.assert_allclose(kept.loss, eligible.min(0), atol=1e-6)


SHORT = {
    'pgd': lambda *arguments, index: attacks.pgd(
        *arguments, epsilon=.1, step_size=.03, num_steps=3, index=index),
    'apgd': functools.partial(attacks.apgd, epsilon=.1, num_steps=3),
    'fab': functools.partial(attacks.fab, epsilon=.1, num_steps=3, random_start=True),
    'square': functools.partial(attacks.square, epsilon=.1, num_queries=20),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name in ('fab', 'square'))) for name in SHORT])
def test_scan_and_pmap_do_not_change_the_result(name):
  logits_fn, x, y = composition.network()
  attack = lambda x, y, index: SHORT[name](logits_fn, x, y, KEY, index=index)
  with jax.enable_x64(True):
    batch = x[:4].astype(float), y[:4], jnp.arange(4)
    whole = attack(*batch)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), batch)
    _, scanned = jax.jit(lambda halves: jax.lax.scan(
        lambda count, half: (count + 1, attack(*half)), 0, halves))(halves)
    mapped = jax.pmap(attack, devices=jax.local_devices()[:1])(*(leaf[None] for leaf in batch))
    assert np.abs(whole.x - batch[0]).max() > .01
    for other in (scanned, mapped):
      for one, expected in zip(other, whole, strict=True):
        np.testing.assert_allclose(one.reshape(expected.shape), expected, atol=1e-9)


@pytest.mark.parametrize('norm, dual, written_out', [
    ('linf', 1, True), ('linf', 1, False), ('l2', 2, True), ('l1', np.inf, True),
    *(pytest.param(norm, dual, False, marks=pytest.mark.long) for norm, dual in (('l2', 2), ('l1', np.inf)))])
def test_fab_finds_the_nearest_of_many_classes(norm, dual, written_out, monkeypatch):
  # The region of a class of a linear model is bounded by planes, the nearest |gap| over the dual norm of
  # its normal away. Without bounds the first step goes to it, 5 % further, and the others back.
  random = np.random.default_rng(5)
  w, x = random.normal(size=(12, 23)).astype(np.float32), random.uniform(size=(40, 12))
  x = x.astype(np.float32)
  logits = x.astype(np.float64) @ w
  y = logits.argmax(1)
  gaps = logits.max(1, keepdims=True) - logits
  normals = np.linalg.norm(w.T[None, :, :] - w.T[y][:, None, :], dual, axis=2)
  away = gaps / np.where(normals > 0, normals, 1)
  away[np.arange(40), y] = np.inf
  assert len(set(away.argmin(1) // 10)) == 3  # in all three tens of classes
  monkeypatch.setattr(_loops, 'unrolls', lambda: written_out)
  result = attacks.fab(lambda x: x @ w, x, y, epsilon=np.inf, norm=norm, num_steps=30,
                       bounds=(-np.inf, np.inf))
  assert result.success.all()
  distance = -np.asarray(result.loss)
  assert np.all(distance > (1 - 1e-4) * away.min(1)) and np.all(distance < 1.05 * away.min(1))


def test_fab_accepts_logits_of_lower_precision(monkeypatch):
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)
  with jax.enable_x64(True):
    random = np.random.default_rng(5)
    w, x = random.normal(size=(6, 23)), random.uniform(size=(8, 6))
    model = lambda x: (x @ w).astype(jnp.float32)
    result = attacks.fab(model, x, model(x).argmax(1), epsilon=np.inf, num_steps=10)
    assert result.x.dtype == np.float64
    wrong = model(result.x).argmax(1) != model(x).argmax(1)
    np.testing.assert_array_equal(result.success, wrong)
    assert wrong.any()


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('epsilon', [.1, np.inf])
def test_fab_finds_nothing_where_no_point_is_misclassified(norm, epsilon):
  # One logit is above the other everywhere, and its lead has a gradient to follow.
  model = lambda x: jnp.stack([1 + x.sum(1), -x.sum(1)], axis=1)
  x = np.random.default_rng(8).uniform(size=(4, 5)).astype(np.float32)
  result = attacks.fab(model, x, np.zeros(4, int), epsilon=epsilon, norm=norm, num_steps=5)
  assert not result.success.any() and np.all(np.asarray(result.loss) == -np.inf)
  np.testing.assert_array_equal(result.x, x)


@pytest.mark.parametrize('arguments, loss', [
    ((jax.random.split(KEY, 5),), lambda logits, y, keys: logits.max(1)),
    (({'t': np.ones(5)}, 2.), lambda logits, y, each, t: logits.max(1) * each['t'] * t)])
def test_loss_args_may_be_keys_numbers_and_pytrees(arguments, loss):
  x = np.full((5, 2), .5, np.float32)
  result = attacks.pgd(lambda x: x, x, np.zeros(5, int), KEY, epsilon=.1, step_size=.1, num_steps=1,
                       loss=loss, loss_args=arguments)
  assert np.isfinite(result.loss).all()


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'fab', 'square'])
def test_a_misclassified_input_is_a_success(name):
  random = np.random.default_rng(9)
  w, x = random.normal(size=(6, 4)), random.uniform(size=(20, 6)).astype(np.float32)
  model = lambda x: x @ w.astype(np.float32)
  y = np.argmin(model(x), axis=1)  # so wrong that no step of this radius makes it right
  sizes = {'pgd': dict(step_size=.01, num_steps=3), 'square': dict(num_queries=3)}
  options = sizes.get(name, dict(num_steps=3))
  arguments = (model, x, y) if name == 'fab' else (model, x, y, KEY)
  result = getattr(attacks, name)(*arguments, epsilon=.01, **options)
  assert result.success.all()
  assert np.all(np.argmax(model(result.x), axis=1) != y)
  if name == 'fab':
    np.testing.assert_array_equal(result.x, x)
    assert np.all(np.asarray(result.loss) == 0)


@pytest.mark.parametrize('name', ['apgd', 'fab', 'square'])
def test_bounds_may_have_a_batch_axis_of_one(name):
  x = np.random.default_rng(6).normal(size=(3, 4, 4, 2)).astype(np.float32)
  w = np.random.default_rng(7).normal(size=(32, 3)).astype(np.float32)
  model = lambda x: x.reshape(len(x), -1) @ w
  low, high = x.min((0, 1, 2)), x.max((0, 1, 2))
  attack = lambda bounds: getattr(attacks, name)(
      model, x, model(x).argmax(1), KEY, epsilon=.5, bounds=bounds,
      **{'num_queries' if name == 'square' else 'num_steps': 5})
  found = attack((low, high)).x
  np.testing.assert_array_equal(found, attack((low[None, None, None], high[None, None, None])).x)
  assert np.all(found <= high) and np.any(found == high)

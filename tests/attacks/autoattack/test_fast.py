"""The version 'fast': its parts, its target class, and verdicts that closed forms know."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _nearest, _stepper, losses
from at_jax.attacks.autoattack import components
from at_jax.datasets import pipeline
from at_jax.training import restore
from tests.fixtures import small_models

KEY = jax.random.key(0)
RESULTS = pathlib.Path(__file__).parents[3] / 'results' / 'small_cifar10'
DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}  # by Hölder's inequality


def plan(norm='linf', num_classes=10, num_steps=100):
  names = components.choose(None, 'fast', norm)
  return components.plan(names, norm, 'fast', num_classes, num_steps, 5000)


@pytest.mark.parametrize('norm, num_classes, num_steps, lengths', [
    # n steps take n + 1 gradients, three runs in L1 n + 3, and each of at most 9 other classes one.
    ('linf', 10, 100, [51, 110]), ('l2', 200, 100, [51, 110]), ('linf', 3, 10, [6, 13]),
    ('linf', 2, 1, [2, 3]), ('l1', 10, 100, [53, 112]), ('l1', 10, 2, [5, 14])])
def test_lengths_are_one_gradient_a_step_and_target(norm, num_classes, num_steps, lengths):
  parts = plan(norm, num_classes, num_steps)
  assert [(part.name, part.runs) for part in parts] == [('apgd-soft', (0,)), ('apgd-near', (0,))]
  assert [part.stepper.length for part in parts] == lengths
  assert all(part.stepper.differentiates and not part.targeted for part in parts)


def linear(norm, n=24):
  """A linear model, inputs far from the bounds, and the distance of each class, inf for the own."""
  random = np.random.RandomState(0)
  w, x = random.randn(6, 5) * np.array([1, 2, 4, 1, 2]), random.uniform(.45, .55, (n, 6))
  logits = (x - .5) @ w
  y = logits.argmax(1)
  length = np.linalg.norm(w.T[y][:, None] - w.T[None], ord=DUAL[norm], axis=2)
  gap = logits[np.arange(n), y][:, None] - logits
  distance = np.where(np.arange(5) == y[:, None], np.inf, gap / np.maximum(length, 1e-12))
  w = jnp.asarray(w, jnp.float32)
  return lambda x: (x - .5) @ w, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), distance


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.long)])
def test_exactly_the_flips_of_a_linear_model_are_found(norm):
  logits_fn, x, y, distance = linear(norm)
  nearest = distance.min(axis=1)
  epsilon = float(np.median(nearest))
  assert np.abs(nearest / epsilon - 1).min() > .001
  result = attacks.autoattack(logits_fn, x, y, KEY, epsilon=epsilon, norm=norm, version='fast',
                              batch_size=8, num_steps=20)
  np.testing.assert_array_equal(result.robust, nearest > epsilon)


@pytest.mark.parametrize('norm, num_targets', [
    ('linf', 4), *(pytest.param(*each, marks=pytest.mark.long) for each in (('l2', 5), ('l1', 4)))])
def test_target_is_the_nearest_class_and_not_the_likeliest(norm, num_targets):
  logits_fn, x, y, distance = linear(norm)
  # A class of logit -inf is none; the fifth target for 5 other classes is such a class.
  none = jnp.full((len(x), num_targets - 4), -jnp.inf)
  model = lambda x: jnp.concatenate([logits_fn(x), none], axis=1)
  stepper = _nearest.stepper(norm=norm, num_steps=4, num_targets=num_targets)
  problem = _stepper.make_problem(x, y, KEY, epsilon=.01)
  model, state = _stepper.prepare(model, problem), stepper.init(problem)
  advance = lambda state: _stepper.advance(model, problem, state, stepper=stepper, num_steps=1)
  for _ in range(num_targets):
    state = advance(state)
  np.testing.assert_array_equal(state.target, distance.argmin(axis=1))
  np.testing.assert_allclose(state.nearest, distance.min(axis=1), rtol=1e-4)
  assert not state.found.any()
  # The next gradient is the first of APGD, of z_t - z_y.
  logits = model(state.search.x)
  gap = losses.logit_of(logits, state.target) - losses.logit_of(logits, y)
  np.testing.assert_allclose(advance(state).search.loss_best, gap, rtol=1e-5)
  likeliest = np.argsort(-np.asarray(logits_fn(x)), axis=1)[:, 1]
  assert (likeliest != distance.argmin(axis=1)).any()


def test_fast_resumes_and_does_not_depend_on_batch_or_order(tmp_path):
  logits_fn, x, y = small_models.network(n=20)
  run = lambda rows, **options: attacks.autoattack(
      logits_fn, x[rows], y[rows], KEY, epsilon=.04, version='fast', batch_size=5, num_steps=10, index=rows,
      **options)
  calls, order = [], np.random.RandomState(0).permutation(20)[:14]

  def kill(progress):
    calls.append(progress.attack)
    if calls.count('apgd-near') == 7:  # while classes are ranked or the search has begun
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(order, state_path=tmp_path / 'state.npz', progress=kill)
  resumed, whole = run(order, state_path=tmp_path / 'state.npz'), run(np.arange(20))
  assert 0 < whole.robust.sum() < 20
  for name in whole.components:
    np.testing.assert_array_equal(resumed.components[name], whole.components[name][order])
  np.testing.assert_array_equal(resumed.x, whole.x[order])


def test_soft_dlr_is_a_cross_entropy_at_its_own_temperature():
  # ∇ -log softmax(z/T)_y = (1 - p_y)/T · ∇ soft margin; in units of d = z_π1 - z_π3, T = d/3.
  random = np.random.RandomState(0)
  logits, y = jnp.asarray(random.randn(20, 6) * 5 + 3, jnp.float32), jnp.arange(20) % 6
  slope = lambda loss, z: jax.grad(lambda z: loss(z, y).sum())(z)
  top = np.sort(logits, axis=1)[:, ::-1]
  d = (top[:, 0] - top[:, 2])[:, None]
  wrong = 1 - jax.nn.softmax(3 * logits / d)[jnp.arange(20), y]
  expected = slope(lambda z, y: losses.cross_entropy(z * (3 / d), y), logits) / (3 * wrong[:, None])
  np.testing.assert_allclose(slope(losses.soft_dlr, logits), expected, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(losses.soft_dlr(7 * logits - 2, y), losses.soft_dlr(logits, y), rtol=1e-4)
  # Two finite logits leave one rival, and T · log exp(z/T) is z.
  for few in (logits[:, :2], logits.at[:, 2:].set(-jnp.inf)):
    np.testing.assert_allclose(losses.soft_dlr(few, y % 2), losses.margin(few, y % 2), rtol=1e-5)
  assert jnp.isfinite(slope(losses.soft_dlr, jnp.zeros((20, 6)))).all()


def test_version_rand_refuses_the_nearest_class():
  with pytest.raises(ValueError, match='apgd-near need a deterministic model'):
    components.choose(('apgd-near',), 'rand', 'linf')
  with pytest.raises(ValueError, match='num_steps = 0: use a whole number above 0'):
    plan(num_steps=0)


@pytest.mark.long
@pytest.mark.skipif(
    not list(pathlib.Path(os.environ.get('TFDS_DATA_DIR', '/nowhere')).glob('cifar10/*/dataset_info.json')),
    reason='needs CIFAR-10 prepared under TFDS_DATA_DIR')
@pytest.mark.parametrize('row', ['gairat_cifar10-0', 'ducat_cifar10-0'])
def test_fast_misses_one_image_of_200_at_most(row):
  # Methods that no setting of 'fast' was chosen on. The verdicts of 'standard' are those of results/.
  run, model = restore.load(RESULTS / row)
  images, labels = (part[:200] for part in run.dataset.test)
  standard = np.load(RESULTS / row / 'verdicts.npz')['best/robust/autoattack'][:200]
  found = attacks.autoattack(model, pipeline.to_unit(images), labels, KEY, epsilon=8 / 255, version='fast')
  assert 20 < standard.sum() < 60
  assert (found.robust & ~standard).sum() <= 1 and (standard & ~found.robust).sum() <= 1

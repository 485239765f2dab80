"""Square on images whose channels come first."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from tests.fixtures import small_models

KEY = jax.random.key(2)
LAST = np.random.RandomState(0).uniform(size=(4, 8, 6, 3)).astype(np.float32)
FIRST = np.moveaxis(LAST, -1, 1)
W = jnp.asarray(np.random.RandomState(1).normal(size=(8 * 6 * 3, 4)), jnp.float32)
model = lambda x: jnp.tanh(x.reshape(len(x), -1) @ W)
first = lambda x: model(jnp.moveaxis(x, 1, -1))
Y = np.asarray(jnp.argmax(model(LAST), -1))


NORMS = [('linf', .05), *(pytest.param(*each, marks=pytest.mark.long) for each in (('l2', .3), ('l1', 3.)))]


@pytest.mark.parametrize('norm, epsilon', NORMS)
def test_channels_first_are_attacked_as_channels_last(norm, epsilon):
  run = lambda f, x, **options: attacks.square(
      f, jnp.asarray(x, float), Y, KEY, epsilon=epsilon, norm=norm, num_queries=30, **options)
  low, high = LAST.min((0, 1, 2)), LAST.max((0, 1, 2))  # of each channel
  with jax.enable_x64(True):  # in float32, the order of sums decides which of two points is better
    expected = run(model, LAST, bounds=(low, high))
    found = run(first, FIRST, channel_axis=1, bounds=[bound.reshape(3, 1, 1) for bound in (low, high)])
    expected, found = jax.device_get((expected, found))
  assert np.abs(expected.x - LAST).max() > 0 and (expected.x >= low).all() and (expected.x <= high).all()
  np.testing.assert_allclose(np.moveaxis(found.x, 1, -1), expected.x, atol=1e-6)
  np.testing.assert_array_equal(found.success, expected.success)


def test_autoattack_state_depends_on_the_channel_axis(tmp_path):
  run = lambda f, x, **options: attacks.autoattack(
      f, x, Y, KEY, epsilon=.05, attacks=('square',), num_queries=30, **options)
  expected, found = run(model, LAST), run(first, FIRST, channel_axis=1)
  np.testing.assert_array_equal(found.robust, expected.robust)
  np.testing.assert_allclose(np.moveaxis(found.x, 1, -1), expected.x, atol=1e-6)
  assert not found.warnings and not expected.warnings
  run(model, LAST, state_path=tmp_path / 'state.npz')
  with pytest.raises(ValueError, match='another evaluation'):
    run(model, LAST, state_path=tmp_path / 'state.npz', channel_axis=1)


def test_a_channels_first_shape_warns():
  message = 'look like channels first: give square channel_axis=1'
  run = lambda **options: attacks.square(first, FIRST, Y, KEY, epsilon=.05, num_queries=1, **options)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    with pytest.raises(UserWarning, match=message):  # which ends it before it compiles
      run()
    run(channel_axis=1)
  # All inputs are misclassified, so the checks run, and no attack.
  whole = lambda names: ' '.join(attacks.autoattack(
      first, FIRST, (Y + 1) % 4, KEY, epsilon=.05, attacks=names).warnings)
  assert message in whole(('square',)) and message not in whole(('apgd-ce',))
  check = attacks._diagnostics.check_channels
  for shape in ((9, 8, 6, 3), (9, 4, 3, 1), (9, 16, 8, 8), (9, 3, 32), (9, 7)):
    assert check(shape, -1) == ()
  assert 'channels last' in check((9, 8, 6, 3), 1)[0]


def test_invalid_channel_axes_are_refused():
  volumes = np.zeros((4, 5, 5, 5, 1), np.float32)
  for options, x, message in ((dict(channel_axis=0), FIRST, r'channel_axis = 0: use -1'),
                           (dict(), volumes, r'shape \(5, 5, 5, 1\): Square needs .*merge axes of x'),
                           (dict(channel_axis=1), FIRST[:, 0], r'not \[C, H, W\]')):
    with pytest.raises(ValueError, match=message):
      attacks.square(lambda x: jnp.zeros((len(x), 4)), x, Y, KEY, epsilon=.1, **options)
    with pytest.raises(ValueError, match=message):
      attacks.autoattack(lambda x: jnp.zeros((len(x), 4)), x, Y, KEY, epsilon=.1, **options)


@pytest.mark.long
@pytest.mark.parametrize('norm, epsilon', [('linf', .05), ('l2', .3), ('l1', 3.)])
def test_a_series_is_attacked_alike_with_a_channel_axis(norm, epsilon):
  # A series [B, T, 1] for a 1-D convolution is [B, T] with another shape, so the same windows fit both.
  x = LAST.reshape(4, -1)
  run = lambda x, **options: attacks.square(
      model, x, Y, KEY, epsilon=epsilon, norm=norm, num_queries=30, **options)
  flat = run(x)
  assert np.abs(flat.x - x).max() > 0
  np.testing.assert_array_equal(run(x[:, :, None]).x[:, :, 0], flat.x)
  if norm != 'l1':
    np.testing.assert_array_equal(run(x[:, None, :, None], channel_axis=1).x[:, 0, :, 0], flat.x)


@pytest.mark.long
@pytest.mark.parametrize('norm, epsilon', [('l2', .35), ('l1', 2.)])
def test_tall_images_are_fooled_as_often_as_wide_ones(norm, epsilon):
  # The draws are uniform over windows, so transposed images fall equally often. Ten keys each: the means
  # agree within 3 standard errors of their difference.
  random = np.random.RandomState(3)
  w, x = random.normal(size=(120, 3)), random.uniform(size=(200, 40, 3)).astype(np.float32)
  tall = lambda x: x.reshape(len(x), -1) @ jnp.asarray(w, jnp.float32)
  wide = lambda x: tall(jnp.swapaxes(x, 1, 2))
  y = np.argmax(tall(x), axis=1)
  falls = np.array([[attacks.square(f, inputs, y, jax.random.key(n), epsilon=epsilon, norm=norm,
                                    num_queries=300).success.mean() for n in range(10)]
                    for f, inputs in ((tall, x), (wide, x.swapaxes(1, 2)))])
  error = np.sqrt((falls.var(axis=1, ddof=1) / 10).sum())
  assert .05 < falls.mean() < .95 and abs(np.diff(falls.mean(axis=1))) < 3 * error + 1e-9, falls


@pytest.mark.parametrize('shape', [
    (12,), *(pytest.param(shape, marks=pytest.mark.long) for shape in ((7, 5), (3, 8, 2)))])
def test_square_in_l2_stays_on_the_sphere_and_improves(shape):
  logits_fn, x, y = small_models.network(shape=shape)
  x = .25 + x / 2  # so that clipping to the bounds changes nothing
  y = jnp.argmax(logits_fn(x), axis=-1)
  run = lambda n: attacks.square(
      logits_fn, x, y, small_models.KEY, epsilon=.2, norm='l2', num_queries=n, bounds=(-9., 9.))
  many = run(60)
  size = jnp.linalg.norm((many.x - x).reshape(len(x), -1), axis=1)
  np.testing.assert_allclose(size, .2, rtol=1e-4)
  if len(shape) == 3:  # independent of the shape; another number of queries compiles again
    few = run(1)
    assert many.loss.mean() > few.loss.mean() and (many.loss >= few.loss - 1e-6).all()

"""Verdicts of AutoAttack: in the ball and the bounds, and independent of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _stepper
from at_jax.attacks.apgd import stepper as apgd_stepper
from tests.fixtures.small_models import KEY, network
from tests.fixtures.small_models import quick_autoattack as run


@pytest.mark.parametrize('norm, epsilon', [
    ('linf', .06), pytest.param('l2', .15, marks=pytest.mark.long), ('l1', .4)])
def test_found_points_are_misclassified_in_ball_and_bounds(norm, epsilon):
  logits_fn, x, y = network()
  result = run(logits_fn, x, y, epsilon=epsilon, norm=norm, batch_size=5,
               names=('apgd-ce', 'fab-t', 'square'))
  assert 0 < result.robust.sum() < len(x)
  correct = np.asarray(jnp.argmax(logits_fn(result.x), axis=-1) == y)
  np.testing.assert_array_equal(correct, result.robust)
  delta = np.abs(result.x - x).reshape(len(x), -1).astype(np.float64)
  size = {'linf': delta.max(1), 'l2': np.sqrt((delta ** 2).sum(1)), 'l1': delta.sum(1)}[norm]
  assert size.max() <= epsilon * (1 + 1e-5)
  assert result.x.min() >= 0 and result.x.max() <= 1
  np.testing.assert_array_equal(result.x[result.robust], x[result.robust])


@pytest.mark.parametrize('names', [
    ('square',), pytest.param(None, marks=pytest.mark.long)])
def test_verdicts_do_not_depend_on_batch_order_or_share(names):
  with jax.enable_x64(True):
    logits_fn, x, y = network(n=20)
    x = x.astype(jnp.float64)
    at = lambda order, size: run(
        logits_fn, x[order], y[order], epsilon=.05, batch_size=size, index=order, names=names)
    # The quick case compiles for one size, because test_devices.py compares two.
    whole = at(np.arange(20), 20 if names is None else 7)
    assert 0 < whole.robust.sum() < 20
    for size in (1, 7) if names is None else (7,):
      # In another order and without some examples, as in the share of one process of several.
      order = np.random.RandomState(size).permutation(20)[:14]
      part = at(order, size)
      np.testing.assert_array_equal(part.robust, whole.robust[order])
      for name, robust in part.components.items():
        np.testing.assert_array_equal(robust, whole.components[name][order])


@pytest.mark.parametrize('attack', [apgd_stepper(norm='linf'), apgd_stepper(norm='l1')])
def test_random_starts_do_not_depend_on_the_batch(attack):
  _, x, y = network()
  begin = lambda rows: _stepper.begin(_stepper.make_problem(
      x[rows], y[rows], KEY, epsilon=.1, index=rows), stepper=attack).x
  together, order = begin(jnp.arange(12)), jnp.array([5, 2, 11])
  np.testing.assert_array_equal(begin(order), together[order])


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.long), 'l1'])
def test_epsilon_zero_changes_nothing(norm):
  logits_fn, x, y = network()
  result = run(logits_fn, x, y, epsilon=0., norm=norm, names=('apgd-ce', 'fab-t', 'square'),
               batch_size=5)  # compiled already by the first test
  assert result.robust.all() and not any('rose' in line for line in result.warnings)
  np.testing.assert_array_equal(result.x, x)

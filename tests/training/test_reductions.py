"""Limits of the methods: no weights, hard labels, no perturbation, no inner steps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.methods import objective
from at_jax.training import epoch_plan
from at_jax.training import step as step_lib
from tests.fixtures.composed_runs import AXES, after, config_of, take_steps

# Each loss with each head; the other axes take their values in turn.
REDUCED = [
    pytest.param(AXES['weights'][(i + i // 4) % 4], loss, head, AXES['optimizer'][(i + i // 2) % 2],
                 AXES['awp'][i // 2 % 2], marks=pytest.mark.long)
    for i, (loss, head) in enumerate(itertools.product(AXES['loss'], AXES['head']))]


def in_cells(*quick):
  """Parametrizes a test by one combination, and by those of `REDUCED` in the long tests."""
  return pytest.mark.parametrize('weights, loss, head, optimizer, awp', [quick, *REDUCED])


@pytest.mark.long
@pytest.mark.parametrize('weights, loss', [('geometry', 'pgd_at'), ('margin', 'trades')])
def test_burn_in_has_no_weights_and_one_program(weights, loss):
  traces = []

  def counted(recipe):
    weigh = recipe.weigh
    def traced(*args, **options):
      traces.append(1)
      return weigh(*args, **options)
    return recipe._replace(weigh=traced)

  c = config_of(weights, loss)
  c.weights.start_epoch = 1
  assert not epoch_plan.method_started(c, 0) and epoch_plan.method_started(c, 1)
  weighed, _ = take_steps(c, counted)
  assert len(traces) == 1
  off = step_lib.EpochValues(jnp.asarray(False))
  np.testing.assert_allclose(take_steps(c, values=off)[0], after('none', loss, 'C', 'sgd', 0.),
                             atol=1e-7)
  assert np.max(np.abs(weighed - after('none', loss, 'C', 'sgd', 0.))) > 1e-6


def test_weights_before_their_start_are_ones():
  c = config_of('geometry', 'trades')
  c.weights.start_epoch = 1
  before = take_steps(c, values=epoch_plan.epoch_values(c, 0))[0]
  np.testing.assert_allclose(before, after('none', 'trades', 'C', 'sgd', 0.), atol=1e-7)


@in_cells('geometry', 'pgd_at', 'C', 'sgd', 0.)
def test_infinite_lambda_is_no_weights(weights, loss, head, optimizer, awp):
  del weights
  c = config_of('geometry', loss, head, optimizer, awp)
  c.weights.lam = np.inf
  np.testing.assert_allclose(take_steps(c)[0], after('none', loss, head, optimizer, awp), atol=1e-7)


def hard_labels(forward, batch_stats, x, x_adv, y):
  """The mean of two ordinary cross-entropies over all outputs of the head, in one pass."""
  logits, batch_stats = forward(jnp.concatenate([x, x_adv]), batch_stats)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.concatenate([y, y]))
  return objective.Outcome(each.reshape(2, -1).mean(axis=0), None, logits[len(y):], batch_stats)


@pytest.mark.parametrize('loss', [
    'pgd_at', *(pytest.param(loss, marks=pytest.mark.long) for loss in AXES['loss'][1:])])
def test_zero_dummy_weights_are_hard_labels(loss):
  def after_one(change, **weights):
    c = config_of('none', loss, '2C')
    c.dummy.update(weights)
    state = take_steps(c, change, epochs=1)[1]
    return state.params, state.batch_stats

  def by_hand(recipe):
    if loss == 'pgd_at':
      return recipe._replace(objective=hard_labels)
    # The options of the objective stay, except that of DUCAT.
    return recipe._replace(objective=functools.partial(recipe.objective, ducat=hard_labels))

  found = after_one(lambda recipe: recipe, benign_weight=0., adversarial_weight=0.)
  # `hard_labels` does not read the dummy weights, which have their defaults here.
  expected = after_one(by_hand)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@in_cells('none', 'pgd_at', 'C', 'sgd', 0.)
def test_awp_with_gamma_zero_is_no_perturbation(weights, loss, head, optimizer, awp):
  del awp
  c = config_of(weights, loss, head, optimizer)
  found, _ = take_steps(c, lambda recipe: recipe._replace(awp_gamma=jnp.array(0.)))
  np.testing.assert_allclose(found, after(weights, loss, head, optimizer, 0.), atol=1e-7)


@in_cells('none', 'pgd_at', 'C', 'sgd', 0.)
def test_zero_inner_steps_are_sgd_to_the_bit(weights, loss, head, optimizer, awp):
  del optimizer
  c = config_of(weights, loss, head, 'entropy_sgd', awp)
  c.optimizer.entropy.inner_steps = 0
  np.testing.assert_array_equal(take_steps(c)[0], after(weights, loss, head, 'sgd', awp))

"""Two views of each example: each has its own augmentation, attack and weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.config import fields
from at_jax.datasets import pipeline
from at_jax.methods import inner_attacks
from at_jax.methods import objective as objective_lib
from at_jax.training import epoch_plan, setup
from at_jax.training import step as step_lib
from tests.fixtures import slow_losses

EPSILON = 8 / 255  # the default
Y = np.arange(8) % 3


def make(images, kind='none'):
  """A run of Consistency on 8 images in 3 classes, the recipe of its step, and its initial state."""
  c = fields.default()
  c.dataset.update(num_classes=3, validation_size=0, pad=1)
  c.model.update(name='SmallCNN', features=(2,), hidden=(), padding='SAME')
  c.batch_size = c.evaluate.batch_size = c.validate.batch_size = 8
  c.loss, c.beta, c.attack.num_steps = 'consistency', 3., 4
  c.weights.update(kind=kind, on='both', start_epoch=0)
  split = pipeline.Split(images, Y)
  run = setup.build(c, dataset=pipeline.Dataset('eight', split, split, split, 3, ()))
  return run, epoch_plan.recipe(run, 'consistency'), setup.init_state(run)


def step(state, images, recipe):
  take = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))
  return take(state, images, Y, np.arange(8), jax.random.key(1))


def examples(images, **changes):
  """x and x' of a step, [first views, second views], for an attack that keeps its random start."""
  def objective(forward, batch_stats, x, x_adv, y):
    logits, _ = forward(x_adv, batch_stats)
    return objective_lib.Outcome(0. * x[:, 0, 0, 0], None, logits, (x, x_adv))

  _, recipe, state = make(images)
  start = inner_attacks.uniform(norm='linf', epsilon=EPSILON, step_size=0., num_steps=1)
  state, _ = step(state, images, recipe._replace(objective=objective, attack=start, **changes))
  return [np.asarray(part).reshape(2, 8, -1) for part in state.batch_stats]


def test_every_view_has_its_own_random_start():
  # Far from 0 and 1 nothing is clipped, so x' − x is the start, uniform in ±ε.
  images = np.broadcast_to(np.uint8(100 + 7 * np.arange(8))[:, None, None, None], (8, 4, 4, 1))
  x, x_adv = examples(images, pad=0)
  for view in x:  # the first views of all examples, then the second
    np.testing.assert_allclose(view, images.reshape(8, 16) / 255, rtol=1e-6)
  starts = (x_adv - x).reshape(16, 16)
  gaps = np.abs(starts[:, None] - starts).mean(axis=-1)[np.triu_indices(16, 1)]
  # Two independent uniform numbers differ by 2ε/3 in the mean; over 16 pixels, ± .47ε/√16.
  assert gaps.min() > .2 * EPSILON  # no two starts are equal, of one example or of two
  np.testing.assert_allclose(gaps.mean(), 2 / 3 * EPSILON, rtol=.1)


def test_every_view_has_its_own_augmentation():
  images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
  first, second = examples(images)[0]
  # With 3 × 3 crops and 2 flips, two views are equal with probability 1/18.
  assert (first != second).any(axis=-1).sum() >= 5


def slow_weight(kind, kappa, z, y):
  """GAIRAT's (1 + tanh(λ + 5(1 − 2κ/K)))/2, λ −1, K 4; or MAIL's 3σ(−s(m − b)), s 10, b −.5."""
  if kind == 'geometry':
    return (1 + np.tanh(-1 + 5 * (1 - 2 * kappa / 4))) / 2
  p = slow_losses.probabilities(z)
  m = p[y] - max(p[:y] + p[y + 1:])
  return 3 / (1 + np.exp(10 * (m + .5)))


@pytest.mark.parametrize('kind', ['geometry', 'margin'])
def test_every_view_has_its_own_weight(kind):
  # A stand-in attack: x' is x for the first views and 1 − x for the second; κ is 0, 1, 2, … for the
  # first views and 4, 3, 2, … for the second.
  kappa = np.concatenate([np.arange(8) % 5, 4 - np.arange(8) % 5])

  def stand_in(logits_fn, x, y, key, index):
    x = jnp.concatenate([x[:8], 1 - x[8:]])
    return attacks.AttackResult(x, y < 0, jnp.asarray(kappa, jnp.int32), 0. * y)

  images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
  run, recipe, state = make(images, kind)
  state = state._replace(params=jax.tree.map(lambda w: 3 * w, state.params))  # confident predictions
  recipe = recipe._replace(attack=stand_in, pad=0, flip=False)
  x = pipeline.to_unit(images)
  z = np.asarray(run.network.logits({'params': state.params}, jnp.concatenate([x, 1 - x])))
  _, metrics = step(state, images, recipe)
  labels = np.concatenate([Y, Y])
  w = np.array([slow_weight(kind, *each) for each in zip(kappa, z, labels, strict=True)])
  if kind == 'geometry':
    w /= w.mean()  # over the views of all examples
  fit = np.array([-np.log(slow_losses.probabilities(row)[y]) for row, y in zip(z, labels, strict=True)])
  divergence = np.array([slow_losses.slow_js(*pair, .5) for pair in zip(z[:8], z[8:], strict=True)])
  expected = np.mean(w * fit) + 3 * np.mean((w[:8] + w[8:]) / 2 * divergence)
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
  # With the weights of the first views for both, the loss differs.
  copied = np.mean(np.tile(w[:8], 2) * fit) + 3 * np.mean(w[:8] * divergence)
  assert abs(copied - expected) > .1 * expected

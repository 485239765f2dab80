"""Attacks run under a user's strict promotion of dtypes and ranks, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import losses, norms

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (60, 3))
X, Y = jnp.full((4, 5, 4, 3), .5), jnp.arange(4) % 3
BOUNDS = jnp.zeros(3), jnp.ones(3)  # of each channel
model = lambda x: x.reshape(len(x), -1) @ W
with_dummies = lambda x: jnp.concatenate([model(x)] * 2, axis=1)
PGD = dict(epsilon=.1, step_size=.1, num_steps=2)
TRACED = {
    'pgd': lambda x, y, norm: attacks.pgd(with_dummies, x, y, KEY, norm=norm, restarts=2, momentum=1., tau=1,
                                          loss=losses.soft_dummy_margin, bounds=BOUNDS, **PGD),
    'apgd': lambda x, y, norm: attacks.apgd(model, x, y, KEY, norm=norm, epsilon=.1, num_steps=5,
                                            large_start=norm == 'l1', bounds=BOUNDS),
    'targeted apgd': lambda x, y, norm: attacks.apgd(
        model, x, y, KEY, norm=norm, epsilon=.1, num_steps=1, target=(y + 1) % 3, loss=losses.targeted_dlr,
        start=x),
    'random apgd': lambda x, y, norm: attacks.apgd(lambda x, key: model(x), x, y, KEY, norm=norm, epsilon=.1,
                                                   num_steps=1, eot=2),
    'fab': lambda x, y, norm: attacks.fab(model, x, y, KEY, norm=norm, epsilon=.1, num_steps=2,
                                          random_start=True, bounds=BOUNDS),
    'targeted fab': lambda x, y, norm: attacks.fab(model, x, y, norm=norm, epsilon=.1, num_steps=2,
                                                   target=(y + 1) % 3),
    'fmn': lambda x, y, norm: attacks.fmn(model, x, y, norm=norm, num_steps=2, step_size=jnp.ones(4),
                                          bounds=BOUNDS),
    'square': lambda x, y, norm: attacks.square(model, x, y, KEY, norm=norm, epsilon=.1, num_queries=3,
                                                bounds=BOUNDS),
    'gaussian_start': lambda x, y, norm: attacks.gaussian_start(x, KEY),
}
LOSSES = (losses.cross_entropy, losses.margin, losses.dlr, losses.scaled(10.), losses.masking_scaled(10.),
          losses.dummy_margin(.3), lambda z, y: losses.soft_margin(z, y, jnp.ones(4)),
          lambda z, y: losses.weighted_dummy_margin(z, y, jnp.ones(4)))


def strictly(run):
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    return run()


@pytest.mark.parametrize('norm', norms.NORMS)
@pytest.mark.parametrize('name', TRACED)
def test_attacks_are_traced_under_strict_promotion(name, norm):
  strictly(lambda: jax.eval_shape(lambda x, y: TRACED[name](x, y, norm), X, Y))


@pytest.mark.parametrize('loss', LOSSES)
def test_losses_are_traced_under_strict_promotion(loss):
  strictly(lambda: jax.eval_shape(lambda x, y: loss(with_dummies(x), y), X, Y))


@pytest.mark.long
def test_results_are_the_same_under_strict_promotion():
  half = lambda x: model(x).astype(jnp.bfloat16)
  runs = {
      'pgd': lambda: attacks.pgd(half, X, Y, KEY, **PGD),
      'autoattack': lambda: attacks.autoattack(
          model, X, jnp.argmax(model(X), 1), KEY, epsilon=.1, num_steps=2, num_queries=2,
          attacks=('apgd-ce', 'square'))[:3],
      'check_model': lambda: attacks.check_model(half, X, Y)}
  for run in runs.values():
    jax.tree.map(np.testing.assert_array_equal, strictly(run), run())

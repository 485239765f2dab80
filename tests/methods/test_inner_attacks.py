"""Inner attacks: their radii, and how `scale` changes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _loops
from at_jax.methods import inner_attacks

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('make', [inner_attacks.uniform, inner_attacks.gaussian, inner_attacks.kl,
                                  inner_attacks.kl_and_margin], ids=lambda make: make.__name__)
def test_attack_reaches_the_radius_of_each_example(make, monkeypatch):
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)  # compiles sooner
  # The gradient of a linear model keeps its sign, so six steps of .02 reach .11 from anywhere; inputs
  # between .3 and .7 are never clipped.
  y = np.array([0, 1, 2, 2, 1, 0, 0, 2], np.int32)
  x = RNG.uniform(.3, .7, (8, 12)).astype(np.float32)
  w = RNG.normal(size=(12, 2)).astype(np.float32)
  w = np.concatenate([w, -w[:, :1]], axis=1)
  radii = np.array([.02, .05, .11], np.float32)[y]
  attack = make(norm='linf', epsilon=.3, step_size=.04, num_steps=12)
  found = attack(lambda x: x @ w, x, y, jax.random.key(0), None, epsilon=radii).x
  distance = np.max(np.abs(np.reshape(found, (-1, 8, 12)) - x), axis=-1)
  np.testing.assert_allclose(distance, np.broadcast_to(radii, distance.shape), atol=1e-6)


@pytest.mark.parametrize('make, norm', [
    (inner_attacks.uniform, 'linf'), (inner_attacks.gaussian, 'l2'), (inner_attacks.kl, 'linf'),
    *(pytest.param(*each, marks=pytest.mark.long) for each in (
        (inner_attacks.uniform, 'l2'), (inner_attacks.gaussian, 'linf'), (inner_attacks.kl, 'l2')))])
def test_scale_multiplies_radius_and_step(make, norm):
  w = jax.random.normal(jax.random.key(0), (6, 3))
  f = lambda x: x @ w
  x, y = jax.random.uniform(jax.random.key(1), (4, 6)), jnp.array([0, 1, 2, 0])
  attack = functools.partial(make, norm=norm, num_steps=3)
  share = jnp.array([0., .25, .5, 1.])
  key, index = jax.random.key(2), jnp.arange(4)
  found = attack(epsilon=.2, step_size=.1)(f, x, y, key, index, scale=share).x
  np.testing.assert_array_equal(found[0], x[0])
  for i in range(1, 4):
    alone = attack(epsilon=.2 * share[i], step_size=.1 * share[i])(f, x, y, key, index).x
    np.testing.assert_allclose(found[i], alone[i], atol=1e-6)
    length = jnp.abs(found[i] - x[i]).max() if norm == 'linf' else jnp.linalg.norm(found[i] - x[i])
    assert 0 < length <= .2 * share[i] + 1e-6

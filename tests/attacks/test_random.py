"""With every PRNG implementation an example draws by its index, independent of its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _random, _stepper
from at_jax.attacks.fab import stepper as fab_stepper

X = np.random.RandomState(1).uniform(.3, .7, (7, 3, 2, 1)).astype(np.float32)
Y, SOME = np.zeros(7, int), np.array([5, 2, 6])
OTHERS = pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])


def model(x):
  total = jnp.sum(x, axis=(1, 2, 3))
  return jnp.stack([total, 9 - total], axis=1)


DRAWS = {
    'pgd': lambda key, rows: attacks.pgd(model, X[rows], Y[rows], key, epsilon=.1, step_size=0.,
                                         num_steps=1, index=rows, restarts=2).x,
    'beside': lambda key, rows: attacks.gaussian_start(X[rows], key, index=rows),
    'fab': lambda key, rows: _stepper.begin(
        _stepper.make_problem(X[rows], Y[rows], key, epsilon=.1, index=rows),
        stepper=fab_stepper(norm='linf', random_start=True)).x,
    'autoattack': lambda key, rows: attacks.autoattack(
        lambda x: jnp.stack([0 * x.sum((1, 2, 3)), x[:, 0, 0, 0] - x[:, 1, 1, 0]], 1), X[rows],
        jnp.argmax(jnp.stack([0 * X[rows, 0, 0, 0], X[rows, 0, 0, 0] - X[rows, 1, 1, 0]], 1), 1),
        key, epsilon=.2, batch_size=3, index=rows, attacks=('square',), num_queries=15).x,
}


@OTHERS
@pytest.mark.parametrize('name', DRAWS)
def test_draws_do_not_depend_on_the_batch(name, impl):
  key = jax.random.key(0, impl=impl)
  whole = DRAWS[name](key, np.arange(7))
  assert len(np.unique(np.round(whole - X, 6), axis=0)) > 2
  np.testing.assert_array_equal(DRAWS[name](key, SOME), whole[SOME])


@OTHERS
def test_raw_and_typed_keys_agree_and_use_every_word(impl):
  key = jax.random.key(0, impl=impl)
  words = jax.random.key_data(key)
  data = lambda key: jax.random.key_data(_random.threefry(key))
  np.testing.assert_array_equal(data(words), data(key))
  found = {tuple(np.asarray(data(words.at[place].add(1)))) for place in range(4)}
  assert len(found | {tuple(np.asarray(data(key)))}) == 5


def test_threefry_keys_are_unchanged():
  for key in (jax.random.key(3), jax.random.PRNGKey(3)):
    assert _random.threefry(key) is key
  np.testing.assert_array_equal(
      jax.random.key_data(_random.fold(jax.random.key(3), jnp.arange(4))),
      [jax.random.key_data(jax.random.fold_in(jax.random.key(3), i)) for i in range(4)])

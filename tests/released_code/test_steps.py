"""Friendly PGD, AWP and EntropySGD equal the released code of GAIR-FAT, AWP and Entropy-SGD.

They agree to 1e-10; reference.json keeps twelve digits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.methods import awp, entropy_sgd, inner_attacks, losses, pgd_at, trades
from tests.released_code import problem
from tests.released_code.harness import NUMBERS, attack, close, close_params, compare, total
from tests.released_code.problem import MOVED, labels_with_some_wrong, weights_of


@pytest.mark.parametrize('tau', problem.TAUS)
def test_friendly_pgd_equals_the_released_code(tau):
  params, released = weights_of(10), NUMBERS[f'friendly {tau}']
  y = labels_with_some_wrong(params)
  found = attack(inner_attacks.uniform, params, y, random_start=False, call=dict(tau=tau))
  close(problem.perturbation(found.x), released['perturbation'], 1e-10)
  np.testing.assert_array_equal(found.kappa, released['kappa'])
  # Some examples did stop: their perturbations differ from those of GA-PGD.
  gaps = np.abs(np.subtract(released['perturbation'], NUMBERS['gairat']['perturbation']))
  assert (gaps.max(1) > 1e-3).sum() >= 3


@pytest.mark.parametrize('kind, objective', [('AT', pgd_at.pgd_at),
                                             ('trades', trades.trades)])
def test_awp_equals_the_released_code(kind, objective):
  params = weights_of(10)
  moved = functools.partial(awp.awp_value_and_grad, gamma=problem.AWP_GAMMA)
  gradient, _ = compare(f'awp {kind}', total(objective, MOVED), params, 1e-10, moved)
  after = optax.apply_updates(params, jax.tree.map(lambda g: -.1 * g, gradient))
  close_params(after, NUMBERS[f'awp {kind}']['after'], 1e-10)


@jax.jit
@jax.grad
def grad(params, x, y):
  return jnp.mean(losses.cross_entropy(problem.network(params, x, train=True), y))


@pytest.mark.parametrize('decay', problem.DECAYS)
def test_entropy_sgd_equals_the_released_code(decay):
  params = weights_of(10)
  # The released PyTorch port also does the following, imitated only here: t is never incremented, so
  # there is no scoping; each cycle draws one batch too many; the outer momentum starts as the first
  # gradient; weight decay and Nesterov momentum are applied again in the outer step.
  outer = optax.chain(optax.add_decayed_weights(decay), optax.trace(.9, nesterov=True),
                      optax.scale(-1.))
  ours = entropy_sgd.entropy_sgd(
      outer, inner_steps=problem.INNER, key=jax.random.key(0), gamma=problem.GAMMA, scoping=0.,
      noise=0., weight_decay=decay)
  batches, p, state = problem.batches(), params, ours.init(params)
  decayed, trace, scale = state.outer_state
  trace = trace._replace(trace=grad(params, *batches[0]))
  state = state._replace(outer_state=(decayed, trace, scale))
  update = jax.jit(ours.update)
  for i, batch in enumerate(batches):
    if i % (problem.INNER + 1):
      updates, state = update(grad(p, *batch), state, p)
      p = optax.apply_updates(p, updates)
  assert int(state.outer_step) == problem.CYCLES
  for name, w in problem.digest(p).items():
    assert np.abs(w - problem.digest(params)[name]).max() > 1e-4
  close_params(p, NUMBERS[f'entropy {decay}'], 1e-10)

"""EntropySGD against its algorithm as a nested loop, and against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.methods import entropy_sgd, weight_averaging
from tests.fixtures.optimizer_runs import KEY, PARAMS, gradients, run


def nested_loop(w, grads, outer_step, *, L, eta, gamma, scoping, mom, nesterov, beta, wd):
  """The algorithm as published, with an inner loop; noise off. One leaf, float64."""
  grads, t, state = iter(grads), 0, {}
  while True:
    a, mu, m = w.copy(), w.copy(), np.zeros_like(w)
    for _ in range(L):
      g = next(grads, None)
      if g is None:
        return w
      d = g + wd * w
      m = mom * m + d
      d = d + mom * m if nesterov else m.copy()
      d = d + gamma * (1 + scoping) ** t * (w - a)
      w = w - eta * d
      mu = beta * mu + (1 - beta) * w
    w, t = outer_step(a, a - mu, state), t + 1


def momentum_step(lr, decay):
  def step(w, g, state):
    state['m'] = decay * state.get('m', 0) + g
    return w - lr * state['m']
  return step


@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize('steps', [12, 10])  # three cycles, and the middle of the third
def test_updates_equal_the_nested_loop(nesterov, steps):
  options = dict(gamma=.3, scoping=.5, nesterov=nesterov)
  optimizer = entropy_sgd.entropy_sgd(
      optax.sgd(.7, momentum=.9), inner_steps=4, key=KEY, inner_learning_rate=.1, noise=0.,
      momentum=.9, averaging=.75, weight_decay=.05, **options)
  grads = gradients(steps)
  found = run(optimizer, PARAMS, grads)[-1][0]
  for name in PARAMS:
    expected = nested_loop(np.float64(PARAMS[name]), [g[name] for g in grads], momentum_step(.7, .9),
                           L=4, eta=.1, mom=.9, beta=.75, wd=.05, **options)
    np.testing.assert_allclose(found[name], expected, atol=2e-6)


def test_scoping_counts_cycles():
  # Only the first gradient of each cycle is nonzero, so w − a is −η'd and the second step shows γ_t.
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=2, key=KEY, noise=0., momentum=0.,
                                     inner_learning_rate=.1, gamma=1., scoping=1.)
  trail = run(optimizer, jnp.array(0.), [jnp.array(g) for g in (1., 0.) * 3])
  anchors = [0., float(trail[1][0]), float(trail[3][0])]
  assert [int(state.outer_step) for _, state in trail] == [0, 1, 1, 2, 2, 3]
  # w₁ = a − .1, w₂ = w₁ + .1·γ·.1; μ = .75(.75a + .25w₁) + .25w₂, so
  # a − μ = .1(.25·.75 + .25) − .0025γ.
  for t, (anchor, (landed, _)) in enumerate(zip(anchors, trail[1::2], strict=True)):
    np.testing.assert_allclose(anchor - landed, .04375 - .0025 * 2 ** t, rtol=1e-4)


@pytest.mark.parametrize('curvature', [.5, 2.])
def test_cycle_on_a_quadratic_has_its_closed_form(curvature):
  # f = h/2 (w − c)². Without momentum w_k = w* + r^k(a − w*) with w* = (hc + γa)/(h + γ) and
  # r = 1 − η(h + γ), so μ_L = β^L a + (1 − β^L) w* + (1 − β)(a − w*) Σ_{k=1..L} β^(L−k) r^k, and
  # that sum is r(β^L − r^L)/(β − r).
  h, c, a, eta, gamma, beta, steps = curvature, .3, 1.7, .05, .8, .75, 12
  fixed, r = (h * c + gamma * a) / (h + gamma), 1 - eta * (h + gamma)
  mu = (beta ** steps * a + (1 - beta ** steps) * fixed
        + (1 - beta) * (a - fixed) * r * (beta ** steps - r ** steps) / (beta - r))
  optimizer = entropy_sgd.entropy_sgd(
      optax.sgd(1.), inner_steps=steps, key=KEY, inner_learning_rate=eta, gamma=gamma, scoping=0.,
      noise=0., momentum=0., averaging=beta)
  w = jnp.array(a)
  state = optimizer.init(w)
  for _ in range(steps):
    updates, state = optimizer.update(h * (w - c), state, w)
    w = optax.apply_updates(w, updates)
  np.testing.assert_allclose(a - w, a - mu, rtol=2e-5)


def test_long_cycles_give_the_smoothed_gradient():
  # For L → ∞ and no noise, μ → argmin f + γ/2 (w − a)², so γ(a − μ) is the Moreau envelope's
  # gradient: for |w| Huber's clip(γa, −1, 1); for h/2 w², γh/(γ + h)·a.
  gamma = 2.
  optimizer = entropy_sgd.entropy_sgd(
      optax.sgd(1.), inner_steps=1500, key=KEY, inner_learning_rate=.002, gamma=gamma, scoping=0.,
      noise=0., momentum=0., averaging=.99)
  anchors = jnp.array([-2., -.4, -.1, .05, .3, 1.])

  def smoothed_gradient(gradient):
    def step(carry, _):
      w, state = carry
      updates, state = optimizer.update(gradient(w), state, w)
      return (optax.apply_updates(w, updates), state), None
    w, _ = jax.lax.scan(step, (anchors, optimizer.init(anchors)), length=1500)[0]
    return gamma * (anchors - w)

  # sign is discontinuous, so the iterates end within η' of the kink: γη' = .004.
  np.testing.assert_allclose(smoothed_gradient(jnp.sign), np.clip(gamma * anchors, -1, 1), atol=.01)
  np.testing.assert_allclose(smoothed_gradient(lambda w: 3 * w), gamma * 3 / 5 * anchors, rtol=5e-3)


def test_no_inner_steps_is_exactly_the_outer_optimizer():
  outer = optax.chain(optax.add_decayed_weights(.01), optax.sgd(.1, .9, True), weight_averaging.ema(.9))
  smoothed = entropy_sgd.entropy_sgd(outer, inner_steps=0, key=KEY)
  grads = gradients(5)
  for (p, s), (q, r) in zip(run(outer, PARAMS, grads), run(smoothed, PARAMS, grads), strict=True):
    chex.assert_trees_all_equal(p, q)
    chex.assert_trees_all_equal(weight_averaging.eval_params(s, p), weight_averaging.eval_params(r, q))


def test_noise_has_its_standard_deviation():
  # Zero gradient, γ = 0: a step moves by −η'·noise·√(2/η')·N, of standard deviation noise·√(2η').
  size, eta, noise = 40_000, .2, .5
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=3, key=KEY, gamma=0., noise=noise,
                                     inner_learning_rate=eta, momentum=.9)
  zero = {'a': jnp.zeros(size), 'b': jnp.zeros(size)}
  trail = run(optimizer, zero, [zero] * 5)
  steps = [trail[0][0], jax.tree.map(jnp.subtract, trail[1][0], trail[0][0]),
           jax.tree.map(jnp.subtract, trail[3][0], trail[2][0])]
  drawn = [step[name] for step in steps for name in 'ab']
  for draw in drawn:
    # The relative standard error for 40,000 draws is 1/√80,000 = .35 %.
    np.testing.assert_allclose(np.std(draw), noise * np.sqrt(2 * eta), rtol=.015)
  correlation = np.corrcoef(drawn) - np.eye(6)
  assert np.abs(correlation).max() < .025  # 5/√40,000: steps, cycles and leaves are independent
  again = run(optimizer, zero, [zero] * 5)
  chex.assert_trees_all_equal(trail[-1][0], again[-1][0])


def test_outer_schedule_counts_cycles():
  seen = []
  schedule = lambda count: jax.debug.callback(lambda c: seen.append(int(c)), count) or 1.
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(schedule), inner_steps=3, key=KEY)
  run(optimizer, PARAMS, gradients(10))
  jax.effects_barrier()
  assert seen == [0, 1, 2]


def test_invalid_calls_raise():
  with pytest.raises(ValueError, match='inner_steps = -1'):
    entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=-1, key=KEY)
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=2, key=KEY)
  with pytest.raises(ValueError, match='anchor'):
    optimizer.update(PARAMS, optimizer.init(PARAMS))

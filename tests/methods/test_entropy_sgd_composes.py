"""EntropySGD in chains and wrappers, after a resume, inside scan and vmap, and on several devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from at_jax.methods import entropy_sgd, weight_averaging
from tests.fixtures import processes
from tests.fixtures.optimizer_runs import KEY, PARAMS, gradients, run


def test_extra_arguments_reach_the_outer_optimizer():
  class Seen(optax.GradientTransformationExtraArgs):
    pass
  outer = Seen(lambda p: (), lambda u, s, p=None, *, value: (optax.tree.scale(value, u), s))
  optimizer = entropy_sgd.entropy_sgd(outer, inner_steps=1, key=KEY, noise=0.)
  state = optimizer.init(PARAMS)
  still, _ = optimizer.update(gradients(1)[0], state, PARAMS, value=jnp.array(0.))
  chex.assert_trees_all_close(still, jax.tree.map(jnp.zeros_like, PARAMS), atol=1e-7)


def test_resume_inside_a_cycle_is_exact():
  optimizer = entropy_sgd.entropy_sgd(optax.adam(.1), inner_steps=4, key=KEY, noise=.1)
  grads = gradients(11)
  whole = run(optimizer, PARAMS, grads)
  params, state = whole[5]
  # A checkpoint: leaves as NumPy arrays, and the structure of a fresh state.
  leaves = [np.array(leaf) for leaf in jax.tree.leaves((params, state))]
  template = (PARAMS, optimizer.init(PARAMS))
  params, state = jax.tree.unflatten(jax.tree.structure(template), leaves)
  for g in grads[6:]:
    updates, state = jax.jit(optimizer.update)(g, state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_trees_all_equal((params, state), whole[-1])


def test_earlier_transformations_act_on_inner_gradients():
  grads = gradients(8)
  clipped = [optax.clip_by_global_norm(.5).update(g, optax.EmptyState())[0] for g in grads]
  smoothed = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=4, key=KEY)
  chained = optax.chain(optax.clip_by_global_norm(.5), smoothed)
  chex.assert_trees_all_close(run(chained, PARAMS, grads)[-1][0],
                              run(smoothed, PARAMS, clipped)[-1][0], atol=1e-6)
  decayed = entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=4, key=KEY, weight_decay=.1)
  chained = optax.chain(optax.add_decayed_weights(.1), smoothed)
  chex.assert_trees_all_close(run(chained, PARAMS, grads)[-1][0],
                              run(decayed, PARAMS, grads)[-1][0], atol=1e-6)


def test_masked_parameters_are_left_out():
  mask = {'w': True, 'b': False}
  optimizer = optax.chain(
      optax.masked(entropy_sgd.entropy_sgd(optax.sgd(1.), inner_steps=3, key=KEY), mask),
      optax.masked(optax.sgd(.1), {'w': False, 'b': True}))
  trail = run(optimizer, PARAMS, gradients(4))
  params, state = trail[-1]
  plain = run(optax.sgd(.1), PARAMS, gradients(4))
  chex.assert_trees_all_close(params['b'], plain[-1][0]['b'])
  evaluated = weight_averaging.eval_params(state, params)
  np.testing.assert_array_equal(evaluated['b'], params['b'])
  np.testing.assert_allclose(evaluated['w'], trail[2][0]['w'], atol=1e-7)  # the anchor
  assert np.abs(evaluated['w'] - params['w']).max() > 1e-3


def test_inject_hyperparams_changes_nothing():
  make = optax.inject_hyperparams(entropy_sgd.entropy_sgd,
                                  static_args=('inner_steps', 'nesterov', 'key'))
  options = dict(inner_steps=3, key=KEY, gamma=.5, noise=.01)
  injected = make(optax.sgd(1.), **options)
  plain = entropy_sgd.entropy_sgd(optax.sgd(1.), **options)
  grads = gradients(7)
  ours, state = run(injected, PARAMS, grads)[-1]
  chex.assert_trees_all_close(ours, run(plain, PARAMS, grads)[-1][0], atol=1e-6)
  assert state.hyperparams['gamma'] == .5
  chex.assert_trees_all_equal(weight_averaging.eval_params(state, ours), state.inner_state.anchor)


def test_compiles_once_and_runs_in_scan_and_vmap():
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1., .9), inner_steps=3, key=KEY)
  update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
  params, state = PARAMS, optimizer.init(PARAMS)
  grads = gradients(7)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)

  def step(carry, g):
    updates, state = optimizer.update(g, carry[1], carry[0])
    return (optax.apply_updates(carry[0], updates), state), None

  stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
  scanned = lambda scale: jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)),
                                       jax.tree.map(lambda g: scale * g, stacked))[0][0]
  chex.assert_trees_all_close(scanned(1.), params, atol=1e-6)
  many = jax.vmap(scanned)(jnp.array([.5, 1.]))
  chex.assert_trees_all_close(jax.tree.map(lambda p: p[1], many), params, atol=1e-6)


def test_bfloat16_is_kept_and_state_can_be_donated():
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
  optimizer = entropy_sgd.entropy_sgd(optax.sgd(1., .9), inner_steps=2, key=KEY)

  @jax.jit
  def step(params, state, g):
    updates, state = optimizer.update(g, state, params)
    return optax.apply_updates(params, updates), state

  donating = jax.jit(step, donate_argnums=(0, 1))
  state = optimizer.init(params)
  kinds = jax.tree.map(lambda leaf: leaf.dtype, (params, state))
  for g in gradients(3):
    params, state = donating(params, state, g)
  assert jax.tree.map(lambda leaf: leaf.dtype, (params, state)) == kinds


_FOUR_DEVICES = '''
import jax
jax.config.update('jax_enable_x64', True)
import jax.numpy as jnp, numpy as np, optax
from at_jax.methods import awp, entropy_sgd, weight_averaging
outer = optax.chain(optax.sgd(1., .9, True), weight_averaging.ema(.9))
optimizer = entropy_sgd.entropy_sgd(outer, inner_steps=3, key=jax.random.key(1), noise=.1, gamma=.3)
x = np.random.default_rng(0).normal(size=(7, 4, 8, 5))
w0 = jnp.ones(5)

def loss(w, x):
  return jnp.mean(jnp.abs(x @ w - 1.))

grad = awp.awp_value_and_grad(loss, gamma=.01, axis_name='batch')

def step(w, state, x):
  g = jax.lax.pmean(grad(w, x)[1], 'batch')
  updates, state = optimizer.update(g, state, w)
  return optax.apply_updates(w, updates), state

many = jax.pmap(step, axis_name='batch', in_axes=(None, None, 0), out_axes=0)
one = jax.vmap(step, axis_name='batch', in_axes=(None, None, 0), out_axes=0)
first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
a, b = (w0, optimizer.init(w0)), (w0, optimizer.init(w0))
for batch in x:
  spread = many(*a, batch)
  for leaf in jax.tree.leaves(spread):
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
  a, b = jax.tree.map(np.asarray, first(spread)), first(one(*b, batch[:, None].reshape(4, 8, 5)))
for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
  np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-12)
print('equal')
'''


def test_four_devices_draw_the_same_noise_and_equal_one():
  assert processes.in_four_devices(_FOUR_DEVICES).strip() == 'equal'

"""The training step: devices, collectives, targets and updates."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, errors, models
from at_jax import devices as devices_lib
from at_jax.attacks import _loops
from at_jax.datasets import pipeline
from at_jax.methods import cfa, pgd_at
from at_jax.methods import ducat as ducat_lib
from at_jax.models import deployed as deployed_lib
from at_jax.training import step as step_lib
from tests.fixtures import processes
from tests.fixtures.training_steps import init, make

# Runs in a process of its own: the number of devices and float64 are set before jax starts. Training uses
# pmap; vmap is one program more.
_FOUR_DEVICES = '''
import json, sys
import jax, jax.numpy as jnp, numpy as np
from tests.fixtures import training_steps
wide = sys.argv[1] == 'float64'
jax.config.update('jax_enable_x64', wide)
if wide:  # rounding decides nothing
  jax.config.update('jax_disable_most_optimizations', True)
dtype = jnp.float64 if wide else jnp.float32
steps = 20 if wide else 1
assert jax.device_count() == 4
one, found = training_steps.run(dtype, steps, 'one'), {}
for form in ('pmap',) if wide else ('vmap', 'pmap'):
  other = training_steps.run(dtype, steps, form)
  gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one, other)
  found[form] = max(jax.tree.leaves(gaps))
if wide:
  found['collectives'] = [training_steps.collectives(n) for n in (0, 1, 3)]
print(json.dumps(found))
'''


@functools.cache
def on_four_devices(dtype):
  return json.loads(processes.in_four_devices(_FOUR_DEVICES, dtype))


@pytest.mark.parametrize('dtype, tolerance', [
    ('float64', 1e-10),  # 20 steps
    # One step: sign gradients amplify rounding in later steps.
    pytest.param('float32', 1e-6, marks=pytest.mark.long),
])
def test_four_devices_take_the_step_of_one(dtype, tolerance):
  found = on_four_devices(dtype)
  assert max(found[form] for form in ('vmap', 'pmap') if form in found) <= tolerance, found


def test_the_attack_has_no_collective():
  # On the CPU the attack is unrolled, so a collective in it would be counted once per step.
  clean, one, three = on_four_devices('float64')['collectives']
  assert clean == one == three > 0


SMALL = models.SmallCNN(num_outputs=10, features=(4,), hidden=(), padding='SAME', batch_norm=True)


def test_ducat_step_equals_numpy_in_both_halves():
  # The attack is a stand-in, so that x' is known; the weights are unequal, and so are the terms.
  ducat = functools.partial(ducat_lib.ducat, benign_weight=.25, adversarial_weight=1., alpha=2.)
  stand_in = lambda logits_fn, x, y, key, index: attacks.AttackResult(1 - x, y < 0, y, 0. * y)
  network = deployed_lib.deploy(SMALL.clone(num_outputs=20), has_dummies=True)
  recipe = make(objective=ducat)._replace(network=network,
                                          attack=stand_in, pad=0, flip=False)
  images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), dtype=np.uint8)
  x, rows = pipeline.to_unit(images), np.arange(16)
  state = init(recipe, x)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  z, _ = jax.jit(recipe.network.train)(variables, jnp.concatenate([x, 1 - x]))  # in one pass
  # Every other label is the deployed decision at x'; for some of them the dummy class decides.
  on_top = np.argmax(z[16:], axis=1)
  y = (on_top + rows % 2) % 10
  assert (on_top[::2] >= 10).any() and (on_top[::2] < 10).any()
  step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))
  found, metrics = step(state, images, y, rows, jax.random.key(1))
  assert metrics.accuracy == .5
  # ½[CE(f(x), t_b) + α·CE(f(x'), t_a)] in NumPy: the clean target gives a quarter to the dummy class,
  # which is output y + 10; the adversarial target gives it everything.
  p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
  own, dummy, adversarial_dummy = p[rows, y], p[rows, y + 10], p[16 + rows, y + 10]
  loss = -(.75 * np.log(own) + .25 * np.log(dummy) + 2 * np.log(adversarial_dummy)) / 2
  np.testing.assert_allclose(metrics.loss, loss.mean(), rtol=1e-5)
  # The gradient of a cross-entropy in the logits is p − t, and its mean is that of the head's bias.
  targets = np.zeros((32, 20))
  targets[rows, y], targets[rows, y + 10], targets[16 + rows, y + 10] = .75, .25, 1.
  slope = (p[:16] - targets[:16] + 2 * (p[16:] - targets[16:])).mean(axis=0) / 2
  before, after = state.params['fc1']['bias'], found.params['fc1']['bias']
  np.testing.assert_allclose(after, before - .1 * (slope + 5e-4 * before), atol=1e-6)
  moved = np.abs(after - before)
  assert moved[:10].max() > 1e-3 and moved[10:].max() > 1e-3  # both halves move


def test_attack_logits_are_raw_or_folded():
  def seen(folded):
    widths = []

    def stand_in(logits_fn, x, y, key, index):
      widths.append(logits_fn(x).shape[-1])
      return attacks.AttackResult(x, y < 0, y, 0. * y)
    recipe = make(folded=folded, outputs=20)._replace(attack=stand_in)
    x = jnp.zeros((2, 8, 8, 1), jnp.uint8)
    state = jax.eval_shape(functools.partial(step_lib.init, recipe.network, recipe.optimizer),
                           jax.random.key(0), x / 255)
    jax.eval_shape(functools.partial(step_lib.train_step, recipe=recipe), state, x, jnp.arange(2),
                   jnp.arange(2), jax.random.key(0))
    return widths

  # Ten classes and ten dummy classes, or the ten deployed logits.
  assert seen(False) == [20] and seen(True) == [10]


def test_each_step_of_a_schedule_has_its_own_radius():
  def by_radius(logits_fn, x, y, key, index, scale):  # moves every pixel, 0 before, to its scale
    return attacks.AttackResult(x + scale, y < 0, y, 0. * y)

  recipe = make()._replace(attack=by_radius, ramp_epochs=(1, 3), steps_per_epoch=2)
  images, y = jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.arange(2)
  state = init(recipe, images / 255)

  @jax.jit
  def scale(step, epoch):
    values = step_lib.EpochValues(epoch=epoch)
    return step_lib.attacked(state._replace(step=step), images, y, y, jax.random.key(0), values,
                             recipe=recipe).x_adv.max()

  found = [scale(jnp.int32(step), jnp.int32(step // 2)) for step in range(8)]
  np.testing.assert_allclose(found, np.interp(np.arange(8) / 2, [1, 3], [0, 1]))


def test_the_update_equals_sgd():
  # One step without an attack: w ← w − lr·(∇ mean CE + wd·w); the momentum begins at the gradient.
  recipe = make()._replace(network=deployed_lib.deploy(SMALL, has_dummies=False), attack=None,
                           objective=pgd_at.standard, pad=0, flip=False)
  train = pipeline.load('digits').train
  x, y = pipeline.to_unit(train.images[:8]), train.labels[:8]
  state = init(recipe, x)

  def loss(params):
    logits, _ = recipe.network.train({'params': params, 'batch_stats': state.batch_stats}, x)
    return jnp.mean(-jax.nn.log_softmax(logits)[jnp.arange(8), y])

  value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
  expected = jax.tree.map(lambda w, g: w - .1 * (g + 5e-4 * w), state.params, gradient)
  step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))
  found, metrics = step(state, train.images[:8], y, np.arange(8), jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params, expected)
  np.testing.assert_allclose(metrics.loss, value, rtol=1e-5)


def test_several_steps_in_a_call_equal_single_steps(monkeypatch):
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)  # as on accelerators, which compiles one step
  recipe = make(num_steps=1)._replace(network=deployed_lib.deploy(SMALL, has_dummies=False))
  train = pipeline.load('digits').train
  start = init(recipe, pipeline.to_unit(train.images[:1]))
  order, key = np.arange(48).reshape(3, 16), jax.random.key(1)
  of_rows = recipe._replace(image_shape=train.images.shape[1:])
  together, _ = jax.jit(functools.partial(step_lib.train_steps, recipe=of_rows))(
      start, step_lib.rows(train.images), train.labels, order, key)
  single = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))
  state = start
  for taken in order:
    state, _ = single(state, train.images[taken], train.labels[taken], taken, key)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), state.params,
               together.params)
  assert int(together.step) == 3


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 3)
  with pytest.raises(errors.UserError, match='batch_size = 128: use a multiple .* 3, such as 129'):
    devices_lib.check_batch_size('config.batch_size', 128)


def pixel_step(logits):
  """The state and the metrics of a clean step on pixels 1 (class 0) and 0 (class 1)."""
  train = lambda variables, x, branch=None: (logits(variables['params'], x.reshape(-1, 1)), {})
  network = deployed_lib.Network(None, None, None, train, lambda z: z)
  recipe = make()._replace(network=network, attack=None, objective=pgd_at.standard, pad=0, flip=False)
  params = jnp.ones(3)
  state = step_lib.TrainState(jnp.zeros((), jnp.int32), params, {}, recipe.optimizer.init(params),
                              cfa.zero_counts(3))
  images, rows = np.uint8([255, 0]).reshape(2, 1, 1, 1), np.arange(2)
  return step_lib.train_step(state, images, rows, rows, jax.random.key(0), recipe=recipe)


def test_nan_logits_are_not_correct_on_class_0():
  # argmax of NaN is 0, which is the label of the first example.
  state, metrics = pixel_step(lambda w, x: jnp.where(x > .5, jnp.nan, w * jnp.arange(3.)[::-1] - x))
  assert metrics.accuracy == 0 and not metrics.finite
  np.testing.assert_array_equal(state.class_counts.correct, 0)


def test_step_with_a_masked_class_leaves_its_parameters():
  # Two equal logits are left, so the loss is log 2.
  masked = lambda w, x: jnp.where(jnp.arange(3) == 2, -jnp.inf, w * (1 + x))
  state, metrics = pixel_step(masked)
  np.testing.assert_allclose(metrics.loss, np.log(2), rtol=1e-6)
  assert metrics.finite
  # p − t is −½ for (x = 1, class 0) and ½ for (x = 0, class 0), times 1 + x: mean −¼; class 1 the negative.
  expected = 1 - .1 * (np.array([-.25, .25, 0]) + 5e-4)
  np.testing.assert_allclose(state.params, expected, rtol=1e-6)

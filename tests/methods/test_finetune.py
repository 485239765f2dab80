"""The regulated adversary of fine-tuning: its rules by hand, in a step, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, models
from at_jax.methods import finetune, inner_attacks
from at_jax.models import deployed
from at_jax.training import step as step_lib
from tests.fixtures import processes, training_steps
from tests.fixtures.regulated_steps import DELTA, N


def test_inner_attack_maximises_the_distance():
  assert finetune.inner_attack('kl') is inner_attacks.kl
  assert finetune.inner_attack('cross_entropy') is inner_attacks.uniform


def radii(rule='radius', initial=.5):
  return finetune.begin_tuning({}, rule=rule, initial=initial, num_examples=N)


def radii_by_loop(batches, robust_in):
  """The rule example by example, in NumPy."""
  r = np.full(N, .5)
  for batch, robust in zip(batches, robust_in, strict=True):
    for i, ok in zip(batch, robust, strict=True):
      r[i] = min(max(r[i] + (DELTA if ok else -DELTA), 0), 1)
  return r


@pytest.mark.parametrize('devices', [1, 2])
def test_radii_equal_a_loop(devices):
  rng = np.random.default_rng(0)
  batches = [rng.permutation(N)[:6] for _ in range(4)]
  robust_in = rng.random((4, 6)) < .6
  tuning = radii()
  step = functools.partial(finetune.update_radius, delta=DELTA,
                           axis_name='batch' if devices > 1 else None)
  for batch, robust in zip(batches, robust_in, strict=True):
    if devices == 1:
      tuning = step(tuning, batch, robust)
      continue
    both = jax.vmap(step, in_axes=(None, 0, 0), axis_name='batch')(
        tuning, batch.reshape(2, 3), robust.reshape(2, 3))
    np.testing.assert_array_equal(both.radius[0], both.radius[1])
    tuning = tuning._replace(radius=both.radius[0])
  expected = radii_by_loop(batches, robust_in)
  np.testing.assert_array_equal(tuning.radius, expected)
  assert {0, .25, .75, 1} <= set(expected)


def succeeds_above(limit):
  """An attack that succeeds above a share of the radius."""
  def attack(logits_fn, x, y, key, index, scale):
    del logits_fn, key, index
    return attacks.AttackResult(x, scale > limit, jnp.zeros(len(y), jnp.int32), jnp.zeros(len(y)))
  return attack


_FOUR_DEVICES = '''
import jax, numpy as np
from at_jax import devices
from tests.fixtures import regulated_steps
one, four = regulated_steps.three_steps(), regulated_steps.three_steps(devices.AXIS)
gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), one[1], four[1])
print(np.max(np.abs(one[0] - four[0])), max(jax.tree.leaves(gaps)), sorted(set(one[0].tolist())))
'''


@pytest.mark.long
def test_four_devices_have_the_radii_of_one():
  gap, parameter_gap, values = processes.in_four_devices(_FOUR_DEVICES).split(' ', 2)
  assert float(gap) == 0 and float(parameter_gap) < 1e-3
  assert len(values.split(',')) > 2  # some were robust and some were not


def test_step_attacks_at_the_radius_and_updates_it():
  # Up by .25 while at most .6: .5 → .75 → .5 → .75 for those in three batches; the others are in one.
  model = models.SmallCNN(num_outputs=10, features=(2,), hidden=(), padding='SAME')
  recipe = training_steps.make()._replace(
      network=deployed.deploy(model, has_dummies=False), attack=succeeds_above(.6),
      regulate=functools.partial(finetune.update_radius, delta=DELTA))
  images = np.zeros((N, 8, 8, 1), np.uint8)
  state = training_steps.init(recipe, jnp.zeros((1, 8, 8, 1)))._replace(tuning=radii())
  step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe))
  for batch in ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]):
    batch = np.array(batch)
    state, _ = step(state, images[batch], batch % 3, batch, jax.random.key(0))
  np.testing.assert_array_equal(state.tuning.radius, [.75, .75, .75, .75, .75, .75, .5, .5])


def test_controller_by_hand():
  # Start accuracy .90, tolerance .005: .895 is kept, .894 is not; clipped at both ends.
  strength, found = np.float32(.25), []
  for clean in (.90, .894, .895, .92, .90, .90, .80, .80, .80, .80, .80):
    strength = finetune.control(strength, clean, .90, tolerance=.005, delta=.25)
    found.append(float(strength))
  assert found == [.5, .25, .5, .75, 1, 1, .75, .5, .25, 0, 0]


def test_a_drop_of_exactly_the_tolerance_is_kept():
  # 895 of 1,000 against 900 of 1,000 at .005, fractions that floats cannot represent exactly.
  for correct in range(5, 1001):
    assert finetune.keeps((correct - 5) / 1000, float(np.float32(correct / 1000)), .005)
    if correct > 5:
      assert not finetune.keeps((correct - 6) / 1000, float(np.float32(correct / 1000)), .005)


@pytest.mark.parametrize('rule, expected', [('none', None), ('boundary', None), ('controller', .5),
                                            ('radius', [.5, .5])])
def test_attack_scale_of_each_rule(rule, expected):
  found = finetune.attack_scale(radii(rule), jnp.array([3, 0]))
  assert found is None if expected is None else np.array_equal(found, expected)

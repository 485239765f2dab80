"""Several devices attack side by side, and none waits for another."""

import json

import jax
import numpy as np
import pytest

from at_jax.attacks import devices as devices_lib
from at_jax.attacks import refill
from at_jax.attacks import steppers
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.attacks.square import stepper as square_stepper
from tests import scripts
from tests.attacks import test_autoattack

# Run in a process of its own, because the number of devices is set before jax starts.
_FOUR_DEVICES = '''
import json, sys
import jax
from tests.attacks import test_apart
assert jax.local_device_count() == 4
print(json.dumps(test_apart.talks(sys.argv[1])))
'''
# Of each a step that projects exactly, which is a loop with an end that differs by example.
STEPPERS = {
    'fab': lambda: fab_stepper(norm='l2', num_steps=3),
    'apgd l1': lambda: apgd_stepper(norm='l1', num_steps=3),
    'square l1': lambda: square_stepper(norm='l1', num_queries=3),
}


def talks(name):
  """Which operations between devices the compiled steps consist of, and the steps' result."""
  stepper, devices = STEPPERS[name](), tuple(jax.local_devices())
  logits_fn, x, y = test_autoattack.network(n=8)
  problem = steppers.make_problem(x, y, test_autoattack.KEY, epsilon=.3, target=(y + 1) % 5)
  state = steppers.begin(problem, stepper=stepper)
  model = steppers.as_partial(logits_fn)
  alone = refill._advance(stepper.differentiates, devices[:1])(
      model, problem, state, stepper=stepper, num_steps=2)
  given = devices_lib.copy(model, devices), *devices_lib.spread((problem, state), devices)
  advance = refill._advance(stepper.differentiates, devices)
  text = advance.lower(*given, stepper=stepper, num_steps=2).compile().as_text()
  together = advance(*given, stepper=stepper, num_steps=2)
  np.testing.assert_allclose(together.x_adv, alone.x_adv, atol=1e-4)
  np.testing.assert_array_equal(together.count, alone.count)
  assert 'while' in text
  between = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
  return [operation for operation in between if operation in text]


@pytest.mark.parametrize('name', STEPPERS)
def test_no_step_needs_another_device(name):
  assert json.loads(scripts.in_four_devices(_FOUR_DEVICES, name)) == []

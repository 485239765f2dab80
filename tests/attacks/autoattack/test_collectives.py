"""Several devices attack side by side, and none waits for another."""

import json

import pytest

from tests.fixtures import processes
from tests.fixtures.collectives import STEPPERS

# Run in a process of its own, because the number of devices is set before jax starts.
_FOUR_DEVICES = '''
import json, sys
import jax
from tests.fixtures import collectives
assert jax.local_device_count() == 4
print(json.dumps(collectives.talks(sys.argv[1])))
'''


@pytest.mark.parametrize('name', STEPPERS)
def test_no_step_needs_another_device(name):
  assert json.loads(processes.in_four_devices(_FOUR_DEVICES, name)) == []

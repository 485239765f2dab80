"""The TensorBoard file of a run."""

import random
import time

import numpy as np

from at_jax.training import tensorboard
from tests.fixtures import tensorboard_events


def test_events_are_written_while_the_clock_jumps(tmp_path, monkeypatch):
  now, chance = time.time, random.Random(0)
  monkeypatch.setattr(time, 'time', lambda: now() + chance.choice((-1, 1)) * 10 ** chance.uniform(0, 9))
  image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
  events = tensorboard.Events(tmp_path / 'tensorboard', first_step=1)
  for step in range(1, 31):
    events.scalar(step, 'loss', step / 2)
  events.image(30, 'attacked', image)
  events.flush()
  found = tensorboard_events.read(tmp_path)
  assert found['loss'] == {step: step / 2 for step in range(1, 31)}
  np.testing.assert_array_equal(found['attacked'][30], image)
  events.close()

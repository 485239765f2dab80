"""Programs for devices that need not be there: their parts, and what a compiler says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import config, errors
from at_jax.attacks import _loops
from at_jax.config import command_line
from at_jax.training import ahead_of_time, run_data

STEPS = 3


@pytest.fixture(scope='module')
def compiled():
  """A phase of PGD-AT with `STEPS` attack steps on digits, and the reports of its programs, on the CPU."""
  c = command_line.parse(['--config=configs/pgd_at_cifar10.py:mnist-smoke', '--config.batch_size=32',
                          f'--config.attack.num_steps={STEPS}', '--config.model.features=()',
                          '--config.model.hidden=(256,)']).config
  devices = jax.devices()[:1]
  phase, = ahead_of_time.phases(ahead_of_time.build(c, devices), devices)
  return phase, {name: ahead_of_time.report(lower()) for name, lower in phase.programs.items()}


@pytest.mark.long
def test_parts_add_up_to_the_program_of_the_run(compiled):
  # On the CPU the program of the run has no loop either, so its own analysis counts every attack step.
  phase, reports = compiled
  assert phase.attack_steps == STEPS
  np.testing.assert_allclose(ahead_of_time.per_step(reports, STEPS, 'flops'), reports['run']['flops'],
                             rtol=.01)
  one_step = reports['attack of 2']['flops'] - reports['attack of 1']['flops']
  assert one_step > .2 * reports['run']['flops']  # so that a missing step would show


def test_memory_counts_donated_arguments_once():
  # 4 KiB come in and the same 4 KiB go out.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  memory = ahead_of_time.report(add.lower(jnp.zeros(1024)))['memory']
  assert memory['argument'] == memory['output'] == memory['alias'] == 4096
  assert memory['total'] == 4096 + memory['temp'] + memory['generated_code']


def test_a_program_that_needs_too_much_is_reported():
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(self.message)

  lowered = Lowered()
  # The message of libtpu 0.0.50.1 for v5e.
  lowered.message = ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total '
                     'memory required for HLO temporaries (180.00G) exceeds available HBM (15.75G). HLO')
  assert ahead_of_time.report(lowered) == {'memory': {'total': 180 * 2**30, 'limit': 15.75 * 2**30}}
  lowered.message = 'INTERNAL: it exceeds available patience'
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    ahead_of_time.report(lowered)


def test_steps_have_the_form_of_the_platform_that_is_named():
  # A program that was traced before in the other form must not be taken.
  three = jax.jit(lambda x: _loops.repeat(jnp.sin, x, 3))
  has_loop = lambda: 'while' in three.lower(1.).as_text()
  assert not has_loop() and _loops.calls(25) == [10, 10, 5]
  with _loops.tracing_for('tpu'):
    assert has_loop() and _loops.calls(25) == [25]
  assert not has_loop()


def test_a_stream_is_planned_without_its_data():
  c = command_line.parse(['--config=configs/trades_imagenet.py']).config
  c.dataset.image_size = 32
  with c.unlocked():
    c.model.update(width=4, stage_sizes=(1, 1))
  devices = jax.devices()[:1]
  phase, = ahead_of_time.phases(ahead_of_time.build(c, devices), devices)
  assert phase.num_steps == 90 * ((1281167 - 10000) // 512)
  # A step has its own images, and the training set is on no device.
  text = phase.programs['run']().as_text()
  assert '1x1x512x32x32x3xui8' in text and '1271167x' not in text


def test_phases_of_ducat_and_their_programs():
  c = command_line.parse(['--config=configs/ducat_cifar10.py']).config
  devices = jax.devices()[:1]
  found = ahead_of_time.phases(ahead_of_time.build(c, devices), devices)
  # 49,000 training examples are 382 batches of 128; DUCAT starts at epoch 104 of 130.
  assert [(p.name, p.num_steps, p.attack_steps) for p in found] == [
      ('pgd_at', 104 * 382, 10), ('ducat', 26 * 382, 10)]
  assert all(list(p.programs) == ['run', 'update', 'attack of 1', 'attack of 2'] for p in found)
  c.loss, c.dummy.enabled = 'standard', False
  phase, = ahead_of_time.phases(ahead_of_time.build(c, devices), devices)
  assert phase.attack_steps == 0 and list(phase.programs) == ['run', 'update']


def test_batches_must_divide_over_the_named_devices():
  c = config.default()
  with pytest.raises(errors.UserError, match=r'config.batch_size = 128: .* devices, 3, such as 129'):
    ahead_of_time.build(c, [None] * 3)


def test_data_of_known_sizes_are_not_read(monkeypatch):
  read = []
  monkeypatch.setattr(run_data, 'read', lambda c: read.append(c.dataset.name) or run_data.deferred(
      c, {'image_shape': (8, 8, 1), 'train_size': 1000}))
  c = config.default()
  assert ahead_of_time.build(c, jax.devices()[:1]).dataset.train_size == 49_000 and not read
  c.dataset.name = 'kmnist'
  assert ahead_of_time.build(c, jax.devices()[:1]).dataset.train_size == 1000 and read == ['kmnist']
  c.dataset.update(name='cifar10', validation_size=50_000)
  with pytest.raises(errors.UserError, match='dataset.validation_size = 50000: use .* from 0 to 49999;'):
    ahead_of_time.build(c, jax.devices()[:1])

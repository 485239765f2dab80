"""Runs where the user forbids implicit promotion: jax_numpy_dtype_promotion and jax_numpy_rank_promotion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import devices
from at_jax.config import validation
from at_jax.training import epoch_plan, loop, restore, setup
from at_jax.training import step as step_lib
from tests.fixtures import composed_runs

OUTER_STEPS = {'optimizer.name': 'entropy_sgd', 'attack.norm': 'l2'}
BY_CLASS = {'loss': 'consistency', 'dummy.enabled': True, 'calibration.start_epoch': 1} | {
    f'calibration.{name}': True for name in ('radius', 'beta', 'temperature')}
TUNED = {'loss': 'finetune', 'finetune.start_epoch': 1, 'dataset.validation_size': 4, 'batch_size': 12}
CHANGES = {
    'geometry': {'weights.kind': 'geometry', 'weights.schedule': 'linear', 'weights.form': 'discrete'},
    'margin': {'weights.kind': 'margin', 'loss': 'mart', 'optimizer.ema_decay': .9},
    'class_wise': {'weights.kind': 'class_wise', 'loss': 'trades', 'optimizer.swa_start_epoch': 1},
    'two_attacks': {'weights.kind': 'geometry', 'loss': 'gair_trades', 'weights.on': 'regulariser',
                    'weights.normalized': False, 'optimizer.schedule': 'cosine'},
    'friendly': {'attack.friendly_taus': (0, 1), 'attack.friendly_epochs': (1,), 'awp_gamma': .05},
    'standard': {'loss': 'standard', 'model.dtype': 'bfloat16'},
    'nuat': {'loss': 'nuat', 'beta_ramp_epochs': (0, 1), 'attack.ramp_epochs': (0, 1),
             'optimizer.schedule': 'cyclic'},
    'free_at': {'loss': 'free_at', 'attack.ramp_epochs': (0, 1)}, 'fgsm_pgi': {'loss': 'fgsm_pgi'},
    'n_fgsm': {'attack.kind': 'n_fgsm', 'attack.norm': 'l2'}, 'fgsm_rs': {'attack.kind': 'fgsm_rs'},
    'entropy_sgd': OUTER_STEPS, 'by_class': BY_CLASS, 'autoaugment': {'dataset.augment': 'autoaugment'},
    'radius': TUNED | {'finetune.regulator': 'radius', 'finetune.batch_norm': 'dual'},
    'controller': TUNED | {'finetune.regulator': 'controller', 'finetune.distance': 'cross_entropy'},
}


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield


@pytest.mark.parametrize('name', CHANGES)
def test_a_step_of_each_method_needs_no_promotion(name):
  c = composed_runs.config_of()
  c.update_from_flattened_dict(CHANGES[name])
  validation.check(c, lambda line: None)
  run = setup.build(c)
  state = jax.eval_shape(lambda: setup.init_state(run))
  one = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)
  state = jax.tree.map(lambda leaf: one(leaf.shape, leaf.dtype), state)
  images, labels = one((c.batch_size, 4, 4, 1), jnp.uint8), one((c.batch_size,), jnp.int32)
  step = functools.partial(step_lib.train_step, axis_name=devices.AXIS,
                           recipe=epoch_plan.recipe(run, epoch_plan.name(c, 1)))
  _, metrics = jax.eval_shape(
      jax.vmap(step, in_axes=(0, 0, 0, 0, None, None), axis_name=devices.AXIS),
      state, images, labels, labels, run.keys['train'], epoch_plan.epoch_values(c, 1))
  assert metrics.loss.dtype == jnp.float32


@pytest.mark.long
def test_a_run_and_its_restored_model_need_no_promotion(tmp_path):
  c = composed_runs.config_of(head='2C')
  c.update_from_flattened_dict({
      'dataset.validation_size': 4, 'batch_size': 12, 'validate.batch_size': 12, 'validate.num_steps': 1,
      'inference.kind': 'bias', 'inference.rounds': 1, 'evaluate.batch_size': 12,
      'evaluate.attacks': ('pgd1', 'margin1', 'scale2_pgd1', 'dummy0.25_pgd1')})
  results = loop.train_and_evaluate(c, tmp_path, 'test')
  assert 0 <= results['worst_case'] <= results['clean'] <= 1
  run, model = restore.load(tmp_path)
  x = np.asarray(run.dataset.test.images[:4] / 255, np.float32)
  assert model(x).shape == (4, 3)

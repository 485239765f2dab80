"""Every combination of weights, loss, head, optimizer and perturbation, set in the configuration."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from at_jax import devices, errors, main
from at_jax.config import validation
from at_jax.training import epoch_plan, setup, sharding
from at_jax.training import step as step_lib
from tests.fixtures.composed_runs import AXES, after, config_of, take_steps

ROOT = pathlib.Path(__file__).parents[2]
ALL = list(itertools.product(*AXES.values()))
# Each combination changes one axis of the one before. All values of all axes occur. Those that compile
# slowly come last.
QUICK = [
    ('none', 'pgd_at', 'C', 'sgd', 0.),
    ('geometry', 'pgd_at', 'C', 'sgd', 0.),
    ('class_wise', 'pgd_at', 'C', 'sgd', 0.),
    ('class_wise', 'consistency', 'C', 'sgd', 0.),
    ('class_wise', 'trades', 'C', 'sgd', 0.),
    ('margin', 'trades', 'C', 'sgd', 0.),
    ('margin', 'mart', 'C', 'sgd', 0.),
    ('margin', 'mart', '2C', 'sgd', 0.),
    ('margin', 'mart', '2C', 'entropy_sgd', 0.),
    ('margin', 'mart', '2C', 'entropy_sgd', .05),
]


def calibrate(config, *names):
  """Calibrates by class from the second epoch on, which is the second step."""
  config.calibration.update({name: True for name in names}, start_epoch=1)
  return config


def neighbours(combination):
  for place, values in enumerate(AXES.values()):
    for value in values:
      if value != combination[place]:
        yield (*combination[:place], value, *combination[place + 1:])


def differ(a, b):
  return np.max(np.abs(after(*a) - after(*b))) > 1e-6


@pytest.mark.long
def test_each_change_in_a_chain_changes_the_parameters():
  for one, other in itertools.pairwise(QUICK):
    assert np.isfinite(after(*other)).all()
    assert other in neighbours(one) and differ(one, other), (one, other)


@pytest.mark.long
@pytest.mark.parametrize('combination', ALL, ids=lambda c: '-'.join(map(str, c)))
def test_each_axis_of_all_128_combinations_matters(combination):
  assert np.isfinite(after(*combination)).all()
  same = [other for other in neighbours(combination) if not differ(combination, other)]
  assert not same


def test_all_128_combinations_are_valid():
  assert len(ALL) == 128
  for combination in ALL:
    validation.check(config_of(*combination))


@pytest.mark.parametrize('fields, reason', [
    (dict(loss='standard', kind='geometry'), 'no attack to weigh by'),
    (dict(loss='standard', kind='margin'), 'no attack to weigh by'),
    (dict(loss='standard', kind='class_wise'), 'no attack to weigh by'),
    (dict(kind='geometry', on='regulariser'), 'pgd_at has no regulariser'),
    (dict(kind='margin', on='both'), 'pgd_at has no regulariser'),
    (dict(kind='geometry', start_epoch=2), 'no epoch would be weighted'),
    (dict(loss='gair_trades', kind='none', on='regulariser', normalized=False), 'two attacks'),
    (dict(loss='gair_trades', kind='margin', on='regulariser', normalized=False), 'two attacks'),
    (dict(loss='gair_trades', kind='geometry', on='both', normalized=False), 'its regulariser'),
    (dict(loss='gair_trades', kind='geometry', on='regulariser'), 'must not be above 1'),
], ids=lambda value: '-'.join(map(str, value.values())) if isinstance(value, dict) else '')
def test_wrong_weights_are_refused(fields, reason):
  c = config_of()
  c.loss = fields.pop('loss', c.loss)
  c.weights.update(fields)
  with pytest.raises(errors.UserError, match=reason):
    validation.check(c)


# What is calibrated; then loss, head, optimizer and perturbation.
CALIBRATED = [
    (('radius',), 'pgd_at', 'C', 'sgd', 0.),
    (('radius', 'beta', 'temperature'), 'consistency', '2C', 'entropy_sgd', .05),
]


def differs_where_calibrated(names, loss, *rest):
  c = config_of('geometry' if loss == 'gair_trades' else 'none', loss, *rest)
  if loss == 'gair_trades':
    c.weights.update(on='regulariser', normalized=False)
  plain = take_steps(c)[0]
  found, state = take_steps(calibrate(c, *names))
  assert np.isfinite(found).all() and np.max(np.abs(found - plain)) > 1e-6
  # The accuracies of the previous epoch differ between classes, so the factors do too.
  assert np.ptp(state.class_counts.accuracy) > 0


@pytest.mark.parametrize('combination', [
    pytest.param(each, marks=[pytest.mark.long] * (each != CALIBRATED[0])) for each in CALIBRATED], ids=str)
def test_calibration_composes(combination):
  differs_where_calibrated(*combination)


@pytest.mark.long
@pytest.mark.parametrize('name, loss', [
    (name, loss) for name in ('radius', 'beta', 'temperature') for loss in (*AXES['loss'], 'gair_trades')
    if (name, loss) != ('beta', 'pgd_at')])  # pgd_at has no regulariser
@pytest.mark.parametrize('head, optimizer, awp', [('C', 'sgd', 0.), ('2C', 'entropy_sgd', .05)])
def test_each_calibration_with_each_loss(name, loss, head, optimizer, awp):
  differs_where_calibrated((name,), loss, head, optimizer, awp)


@pytest.mark.parametrize('fields, reason', [
    ({'loss': 'standard', 'calibration.radius': True}, 'no robust training accuracy'),
    ({'loss': 'standard', 'calibration.temperature': True}, 'no robust training accuracy'),
    ({'calibration.beta': True}, 'pgd_at has no regulariser'),
    ({'calibration.radius': True, 'calibration.start_epoch': 2}, 'no epoch would be calibrated'),
    ({'calibration.radius': True, 'calibration.start_epoch': 0}, 'at least 1'),
    ({'calibration.radius_base': 0.}, 'above 0'),
    ({'optimizer.fair_decay': .85, 'optimizer.ema_decay': .9}, 'only one average is kept'),
    ({'optimizer.fair_decay': .85}, 'nothing would be averaged'),
    ({'optimizer.fair_decay': .85, 'optimizer.fair_start_epoch': 0}, 'measures the worst class'),
    ({'optimizer.fair_decay': 1.}, 'below 1'),
    ({'inference.kind': 'bias'}, 'is fitted on it'),
    ({'inference.kind': 'biases'}, "did you mean 'bias'"),
    ({'validate.choose_by': 'worst'}, 'average_and_worst'),
], ids=lambda value: '-'.join(value) if isinstance(value, dict) else '')
def test_wrong_calibration_is_refused(fields, reason):
  c = config_of()
  c.update_from_flattened_dict(fields)
  with pytest.raises(errors.UserError, match=reason):
    validation.check(c)


@pytest.mark.parametrize('weights, loss', [
    pytest.param('geometry', 'trades', marks=pytest.mark.long),
    pytest.param('class_wise', 'consistency', marks=pytest.mark.long)])
def test_four_devices_take_the_step_of_one(weights, loss):
  c = config_of(weights, loss, '2C', 'sgd', .05)
  if weights == 'class_wise':
    calibrate(c, 'radius', 'beta', 'temperature')
  run = setup.build(c)
  recipe = epoch_plan.recipe(run, epoch_plan.name(c, 0))
  state, order = setup.init_state(run), np.arange(16)
  if weights == 'class_wise':  # the counts of a finished epoch
    state = state._replace(class_counts=state.class_counts._replace(
        correct=jnp.array([1., 2., 3.]), seen=jnp.array([6., 5., 5.])))
  copy = lambda tree: jax.tree.map(jnp.copy, tree)  # a step donates its state
  images, labels = run.dataset.train
  one, _ = sharding.train_steps(recipe)(
      sharding.replicate(copy(state)), *sharding.replicate((images, labels)), order[None],
      run.keys['train'])
  one = sharding.unreplicate(one)
  step = functools.partial(step_lib.train_step, recipe=recipe, axis_name=devices.AXIS)
  share = lambda a: a.reshape(4, 4, *a.shape[1:])
  four, _ = jax.jit(jax.vmap(step, in_axes=(None, 0, 0, 0, None), axis_name=devices.AXIS))(
      state, share(images), share(labels), share(order), run.keys['train'])
  for part in ('params', 'batch_stats', 'class_counts'):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, atol=2e-6),
                 getattr(four, part), getattr(one, part))


def test_class_accuracies_are_of_the_previous_epoch():
  counts = take_steps(config_of('class_wise'))[1].class_counts
  np.testing.assert_array_equal(counts.seen, [6, 5, 5])  # this epoch's, of 16 labels 0, 1, 2, 0, …
  before = counts.accuracy * counts.seen  # the previous epoch saw as many
  np.testing.assert_allclose(before, np.round(before), atol=1e-5)
  assert np.ptp(counts.accuracy) > 0


def test_friendly_attacks_follow_their_schedule_of_tau():
  c = config_of()
  c.attack.num_steps = 2
  c.attack.friendly_taus, c.attack.friendly_epochs = (0, 2), (1,)
  validation.check(c)
  assert [int(epoch_plan.epoch_values(c, epoch).tau) for epoch in range(3)] == [0, 2, 2]
  free = c.copy_and_resolve_references()
  free.attack.friendly_taus, free.attack.friendly_epochs = (), ()
  never = take_steps(free)[0]
  # At τ = K no example ever stops; at τ = 0 examples do.
  always = step_lib.EpochValues(jnp.asarray(True), jnp.asarray(2))
  np.testing.assert_allclose(take_steps(c, values=always)[0], never, atol=1e-7)
  assert np.max(np.abs(take_steps(c)[0] - never)) > 1e-6


@pytest.mark.long
@pytest.mark.parametrize('fields', [
    ['--config.weights.kind=class_wise'], ['--config.optimizer.name=entropy_sgd'],
    ['--config.loss=consistency', '--config.optimizer.ema_decay=.9'],
], ids=['class-wise', 'entropy', 'ema'])
def test_a_resumed_run_ends_with_the_same_digests(fields, tmp_path):
  fields += [f'--config={ROOT}/configs/quickstart.py:smoke', '--config.dummy.start_epoch=0',
             '--config.weights.start_epoch=0']
  for name, epochs in (('whole', 2), ('parts', 1), ('parts', 2)):
    assert main.main([*fields, f'--workdir={tmp_path}/{name}', f'--config.epochs={epochs}']) == 0
  whole, parts = (ocp.checkpointables_metadata(tmp_path / name / 'checkpoints' / '00000002')
                  .custom_metadata['digests'] for name in ('whole', 'parts'))
  assert whole == parts
  assert ('class_wise' in fields[0]) == any('class_counts' in leaf for leaf in whole)

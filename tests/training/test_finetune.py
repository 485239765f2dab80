"""Fine-tuning: objective, start, teacher, regulators, schedule, and operating point."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, errors
from at_jax.config import validation
from at_jax.methods import finetune, losses
from at_jax.training import epoch_hooks, epoch_plan, setup, sharding
from at_jax.training import finetune as finetune_lib
from at_jax.training import step as step_lib
from tests.fixtures.finetune_runs import config_of, equal, pieces


def take(run, state, epoch, steps=2):
  """The state after some steps of an epoch."""
  order = np.arange(8 * steps).reshape(steps, 8) % 16
  step = sharding.train_steps(epoch_plan.recipe(run, epoch_plan.name(run.config, epoch)))
  state, data = sharding.replicate(state), sharding.replicate(tuple(run.dataset.train))
  for taken in order:
    state, metrics = step(state, *data, taken[None], run.keys['train'],
                          epoch_plan.epoch_values(run.config, epoch))
    assert metrics.finite.all()
  return sharding.unreplicate(state)


def tuned(steps=2, **fields):
  """A run that fine-tunes from the start, and its state after some steps."""
  c = config_of(start_epoch=0, anchor_weight=0., warmup_epochs=0., **fields)
  run, eval_variables, validate = pieces(c)
  state = finetune_lib.begin(run, jax.device_get(setup.init_state(run)), eval_variables, validate)
  return run, take(run, state, 0, steps)


def test_objective_equals_numpy():
  rng = np.random.default_rng(0)
  z, z_adv, z_teacher = rng.normal(size=(3, 5, 4))
  y = np.array([0, 1, 2, 3, 0])
  p = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
  ce = lambda z: -np.log(p(z)[np.arange(5), y])
  kl = lambda a, b: (p(a) * (np.log(p(a)) - np.log(p(b)))).sum(1)
  anchors = {'kl': kl(z_teacher, z), 'squared': ((z_teacher - z) ** 2).mean(1)}
  distances = {'kl': kl(z, z_adv), 'cross_entropy': ce(z_adv)}
  forward = lambda x, batch_stats, branch: (jnp.asarray(x), batch_stats + 1)
  for anchor, away in anchors.items():
    for distance, apart in distances.items():
      found = finetune.finetune(forward, 0, z, z_adv, y, distance=distance, anchor=anchor,
                                anchor_weight=.7, reference=z_teacher)
      np.testing.assert_allclose(found.fit, ce(z) + .7 * away, rtol=1e-4)
      np.testing.assert_allclose(found.regulariser, apart, rtol=1e-4)
      assert found.batch_stats == 2


def test_the_kl_has_no_gradient_in_the_clean_prediction():
  forward = lambda x, batch_stats, branch: (x, batch_stats)
  x_adv, y = jnp.array([[0., 2.]]), jnp.array([0])
  apart = lambda x: finetune.finetune(forward, {}, x, x_adv, y, distance='kl', anchor='kl',
                                      anchor_weight=0.).regulariser[0]
  x = jnp.array([[2., 0.]])
  assert np.all(jax.grad(apart)(x) == 0)
  assert np.any(jax.grad(lambda x: losses.kl(x, x_adv)[0])(x) != 0)  # TRADES has this gradient


def test_the_teacher_is_the_end_of_clean_training():
  c = config_of(regulator='radius', initial=.5)
  run, eval_variables, validate = pieces(c)
  assert [epoch_plan.name(c, epoch) for epoch in (0, 1)] == ['standard', 'finetune']
  assert [epoch_plan.method_started(c, epoch) for epoch in (0, 1)] == [False, True]
  assert [len(epoch_hooks.at_start(run, epoch, eval_variables)) for epoch in range(3)] == [0, 1, 0]
  clean = take(run, jax.device_get(setup.init_state(run)), 0)
  started = finetune_lib.begin(run, clean, eval_variables, validate)
  equal(started.tuning.teacher, {'params': clean.params, 'batch_stats': clean.batch_stats})
  assert (started.tuning.start_clean, started.tuning.start_robust) == (.5, .25)
  # The optimizer's state is new: no momentum and no step count of the clean phase.
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(started.opt_state))
  assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(clean.opt_state))
  after = take(run, started, 1)
  equal(after.tuning.teacher, started.tuning.teacher)
  gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), after.params, clean.params)
  assert min(jax.tree.leaves(gaps)) > 0  # all layers


def test_the_clean_phase_is_standard_training():
  c = config_of()
  run, _, _ = pieces(c)
  found = take(run, jax.device_get(setup.init_state(run)), 0)
  c = c.copy_and_resolve_references()
  c.loss = 'standard'
  plain = setup.build(c)
  expected = take(plain, jax.device_get(setup.init_state(plain)), 0)
  equal((found.params, found.batch_stats), (expected.params, expected.batch_stats))


def test_without_its_parts_it_is_standard_to_the_bit():
  run, found = tuned(beta=0., learning_rate=.1, decay_factor=1.)
  c = run.config.copy_and_resolve_references()
  c.loss = 'standard'
  plain = setup.build(c)
  expected = take(plain, jax.device_get(setup.init_state(plain)), 0)
  equal(found.params, expected.params)
  _, other = tuned(beta=1., learning_rate=.1, decay_factor=1.)
  assert np.max(np.abs(other.params['conv1']['kernel'] - expected.params['conv1']['kernel'])) > 1e-6


@pytest.mark.parametrize('rule, distance', [
    ('radius', 'kl'), pytest.param('controller', 'cross_entropy', marks=pytest.mark.long)])
def test_a_constant_full_radius_is_no_regulator(rule, distance):
  _, found = tuned(regulator=rule, initial=1., delta=0., distance=distance)
  _, expected = tuned(distance=distance)
  equal((found.params, found.batch_stats), (expected.params, expected.batch_stats))
  _, weaker = tuned(regulator=rule, initial=.5, delta=0., distance=distance)
  assert np.max(np.abs(weaker.params['conv1']['kernel'] - found.params['conv1']['kernel'])) > 1e-7


def test_boundary_is_friendly_pgd():
  c = config_of(start_epoch=0, anchor_weight=0., regulator='boundary', tau=1,
                distance='cross_entropy')
  c.attack.num_steps, c.attack.epsilon_255 = 4, 40.
  run = setup.build(c)
  state, train = setup.init_state(run), run.dataset.train
  key, index = jax.random.key(3), np.arange(16)
  recipe = epoch_plan.recipe(run, 'finetune')
  found = step_lib.attacked(state, train.images, train.labels, index, key,
                            epoch_plan.epoch_values(c, 0), recipe=recipe)
  logits = lambda x: run.network.logits(
      {'params': state.params, 'batch_stats': state.batch_stats}, x)
  attack_key = jax.random.split(jax.random.fold_in(key, 0))[1]
  friendly = {tau: attacks.pgd(logits, found.x, train.labels, attack_key, epsilon=40 / 255,
                               step_size=8 / 255, num_steps=4, tau=tau, index=index).x
              for tau in (0, 1, 4)}
  np.testing.assert_allclose(found.x_adv, friendly[1], atol=1e-6)
  for tau in (0, 4):
    assert np.max(np.abs(found.x_adv - friendly[tau])) > 1e-3


def test_learning_rates_of_warmup_and_decay():
  c = config_of(epochs=4, warmup_epochs=1., learning_rate=.03, decay_factor=.25)
  c.optimizer.learning_rate, c.optimizer.decay_epochs = .4, ()
  run = setup.build(c)
  # Two clean steps; a warm-up of two steps to .03 in thirds; then a factor .25 per two steps.
  expected = [.4, .4, .01, .02, .03, .015, .0075]
  np.testing.assert_allclose([run.schedule(s) for s in range(7)], expected, rtol=1e-5)


@pytest.mark.parametrize('curve, expected', [
    # Clean accuracy .900 at the start and a tolerance of .005: at least .895.
    ([(1, .905, .10), (2, .896, .20), (3, .895, .30), (4, .894, .40), (5, .70, .50)], 3),
    ([(1, .90, .10), (2, .91, .20), (3, .91, .20)], 2),  # the earliest of equals
    ([(1, .85, .50), (2, .89, .30), (3, .80, .60)], 2),  # no point is within: the smallest drop
    ([(1, .894, .90), (2, .95, .0)], 2),  # within, with robustness 0
])
def test_operating_point_within_tolerance(curve, expected):
  points = [finetune_lib.Point(*point) for point in curve]
  assert finetune_lib.operating_point(points, .9, .005).step == expected


def test_summary_gives_the_operating_point_and_why():
  report = {'start': {'clean': .9, 'robust': .01}, 'tolerance': .005, 'chosen': 20,
            'within_tolerance': False,
            'curve': [{'step': 10, 'epoch': 5., 'clean': .8, 'robust': .3, 'clean_change': -.1,
                       'robust_gain': .29},
                      {'step': 20, 'epoch': 6., 'clean': .88, 'robust': .2, 'clean_change': -.02,
                       'robust_gain': .19}]}
  line = finetune_lib.summary(report)
  assert line.startswith('epoch 6, clean -2.0, robust +19.0 points') and 'smallest drop' in line


@functools.cache
def composed(fields):
  """The parameters after an epoch of clean training and two of fine-tuning, and those evaluated."""
  fields = dict(fields)
  c = config_of(regulator='radius', batch_norm='dual')
  c.weights.update({name: fields[name] for name in ('kind', 'on') if name in fields})
  c.awp_gamma, c.optimizer.entropy.inner_steps = fields.get('awp', 0.), 2
  c.optimizer.name = fields.get('optimizer', 'sgd')
  c.optimizer.ema_decay, c.optimizer.swa_start_epoch = fields.get('ema', 0.), fields.get('swa', 0)
  validation.check(c)
  run, eval_variables, validate = pieces(c)
  clean = take(run, jax.device_get(setup.init_state(run)), 0)
  # Class-wise weights need the accuracies of an epoch, so there are two epochs of fine-tuning.
  state = take(run, finetune_lib.begin(run, clean, eval_variables, validate), 1, steps=4)
  assert int(state.step) == 6
  return tuple(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
               for tree in (state.params, eval_variables(state)['params']))


@pytest.mark.parametrize('fields', [
    pytest.param(dict(kind='margin', awp=.05), marks=pytest.mark.long),
    pytest.param(dict(kind='geometry', on='both', swa=1), marks=pytest.mark.long),
    pytest.param(dict(optimizer='entropy_sgd'), marks=pytest.mark.long),
    pytest.param(dict(kind='class_wise', ema=.9), marks=pytest.mark.long),
], ids=lambda fields: '-'.join(map(str, fields.values())))
def test_finetuning_composes(fields):
  params, evaluated = composed(tuple(fields.items()))
  assert np.isfinite(params).all() and np.isfinite(evaluated).all()
  assert np.max(np.abs(params - composed(())[0])) > 1e-6
  # Of EntropySGD the anchor is evaluated, which after a whole cycle equals the parameters.
  averages = {'swa', 'ema'} & fields.keys()
  assert (np.max(np.abs(evaluated - params)) > 1e-6) == bool(averages)


def test_statistics_use_the_radius_of_each_example(monkeypatch):
  c = config_of(regulator='radius')
  c.optimizer.ema_decay = .9
  run, eval_variables, _ = pieces(c)
  seen = []
  monkeypatch.setattr(sharding, 'batchnorm_steps', lambda recipe, streamed: lambda state, images, labels,
                      order, key, values: seen.append((state.tuning.radius, images)) or (state, None))
  state = jax.device_get(setup.init_state(run))
  own = np.linspace(0, 1, 16, dtype=np.float32)
  state = state._replace(step=np.int32(4), tuning=state.tuning._replace(radius=own))
  eval_variables(state)
  for radius, image in zip(*sharding.unreplicate(seen[0]), strict=True):
    which, = np.flatnonzero((run.dataset.train.images.reshape(-1, image.size) == image).all(axis=1))
    assert radius == own[which]


@pytest.mark.parametrize('change, reason', [
    (dict(start_epoch=2), 'never be fine-tuned'),
    (dict(source='somewhere'), 'its own clean model'),
    (dict(start_epoch=0), 'untrained network'),
    (dict(regulator='radious'), "did you mean 'radius'"),
    (dict(distance='l2'), 'cross_entropy'),
    (dict(tolerance=1.5), 'share between 0 and 1'),
    (dict(initial=-.1), 'share between 0 and 1'),
], ids=lambda value: '-'.join(value) if isinstance(value, dict) else '')
def test_wrong_finetune_fields_are_refused(change, reason):
  with pytest.raises(errors.UserError, match=reason):
    config_of(**change)


@pytest.mark.parametrize('field, value, reason', [
    ('dummy.enabled', True, 'no dummy classes'),
    ('attack.friendly_taus', (0,), "regulator = 'boundary'"),
    ('dataset.validation_size', 0, 'clean accuracy'),
    ('model.batch_norm', False, 'has no BatchNorm'),
])
def test_incompatible_fields_are_refused(field, value, reason):
  c = config_of(batch_norm='dual')
  group, name = field.split('.')
  c[group][name] = value
  with pytest.raises(errors.UserError, match=reason):
    validation.check(c)


def test_without_terms_at_x_only_x_adv_takes_a_pass():
  passed = []
  forward = lambda x, batch_stats, branch: passed.append(x) or (x, batch_stats + 1)
  x, x_adv, y = jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0])
  options = dict(distance='cross_entropy', anchor='kl', anchor_weight=0.)
  found = finetune.finetune(forward, 0, x, x_adv, y, clean_weight=0., **options)
  assert passed == [x_adv] and found.batch_stats == 1
  np.testing.assert_allclose(found.fit + found.regulariser, np.log(1 + np.e), rtol=1e-6)
  halved, whole = (finetune.finetune(forward, 0, x, x_adv, y, clean_weight=w, **options) for w in (.5, 1.))
  np.testing.assert_allclose(halved.fit, np.log(1 + np.exp(-2)) / 2, rtol=1e-6)
  np.testing.assert_array_equal(halved.regulariser, whole.regulariser)


@pytest.mark.long
def test_on_x_adv_alone_it_is_pgd_at_to_the_bit():
  run, found = tuned(clean_weight=0., distance='cross_entropy', learning_rate=.1, decay_factor=1.)
  c = run.config.copy_and_resolve_references()
  c.loss = 'pgd_at'
  plain = setup.build(c)
  expected = take(plain, jax.device_get(setup.init_state(plain)), 0)
  equal((found.params, found.batch_stats), (expected.params, expected.batch_stats))


@pytest.mark.parametrize('fields, reason', [
    (dict(batch_norm='dual'), 'finetune.clean_weight = 0.0: .*no examples'),
    (dict(beta=0.), 'beta = 0.0: no term of the loss is left')])
def test_a_loss_without_terms_at_x_is_checked(fields, reason):
  with pytest.raises(errors.UserError, match=reason):
    config_of(start_epoch=0, anchor_weight=0., clean_weight=0., distance='cross_entropy', **fields)


def test_an_overfitted_epoch_is_not_chosen(tmp_path):
  # The second one withstands one step far better than PGD, so its checkpoint cannot be the best.
  lines = [json.dumps({'step': step, 'validation_clean': .8, 'validation_robust': robust,
                       'validation_single_step': single})
           for step, robust, single in ((4, .2, .3), (6, .4, .9), (8, .3, .4))]
  cut = '{"step": 10, "validation_cl'  # by a full disk
  (tmp_path / 'metrics.jsonl').write_text('\n'.join([*lines, cut]))
  found = finetune_lib.report(setup.build(config_of(epochs=5)), tmp_path, .8, .1)
  assert found['chosen'] == 8 and [point['step'] for point in found['curve']] == [4, 6, 8]

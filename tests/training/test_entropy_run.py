"""EntropySGD in a run: what its schedules count, what is evaluated and logged in mid-cycle."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.config import fields
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.methods import entropy_sgd, weight_averaging
from at_jax.training import checkpoints, epoch_plan, loop, optimizers, setup

# With a gradient of 1 and η' = .1 the inner steps reach a − .1, a − .2, a − .3, and μ ← .75μ + .25w
# a − .025, a − .06875, a − .1265625: the anchor moves by this per cycle, times the outer rate.
MOVE = {2: .06875, 3: .1265625}


def config_of(inner_steps, **optimizer):
  """An outer SGD without momentum, and inner steps without momentum, noise, pull or decay."""
  c = fields.default()
  sgd = dict(learning_rate=1., momentum=0., decay_factor=.1)
  sgd |= {name: optimizer.pop(name) for name in list(optimizer) if name in sgd}
  c.optimizer.update(name='entropy_sgd', weight_decay=0., decay_epochs=(), **sgd)
  c.optimizer.outer.update(sgd)  # with and without EntropySGD the same SGD
  c.optimizer.entropy.update(inner_steps=inner_steps, momentum=0., noise=0., gamma=0.)
  c.optimizer.update(optimizer)
  return c


def evaluated(config, steps, steps_per_epoch):
  """The evaluated parameter after each step from 0, with a gradient that is always 1."""
  made = optimizers.make(config, steps_per_epoch=steps_per_epoch, key=jax.random.key(0))
  update, w, found = jax.jit(made.optimizer.update), jnp.zeros(()), []
  state = made.optimizer.init(w)
  for _ in range(steps):
    updates, state = update(jnp.ones(()), state, w)
    w = optax.apply_updates(w, updates)
    found.append(float(weight_averaging.eval_params(state, w)))
  return np.array(found), made.learning_rate


@pytest.mark.parametrize('schedule, rates', [
    # An epoch is two outer steps: × .2 after the first and the second epoch.
    (dict(decay_epochs=(1, 2), decay_factor=.2), [1, 1, .2, .2, .04, .04]),
    # ½(1 + cos(πk/6)), k the outer steps of six.
    (dict(schedule='cosine'), [1, .933013, .75, .5, .25, .066987]),
], ids=['piecewise', 'cosine'])
def test_schedules_count_outer_steps(schedule, rates):
  c = config_of(3, **schedule)
  c.epochs = 3
  anchors, learning_rate = evaluated(c, 18, steps_per_epoch=6)
  np.testing.assert_allclose(anchors[2::3], -MOVE[3] * np.cumsum(rates), rtol=1e-5)
  np.testing.assert_allclose([learning_rate(step) for step in range(18)], np.repeat(rates, 3),
                             rtol=1e-5)


@pytest.mark.parametrize('name, inner_steps', [('sgd', 3), ('entropy_sgd', 0)])
def test_without_inner_steps_schedules_count_steps(name, inner_steps):
  c = config_of(inner_steps, name=name, decay_epochs=(1,), decay_factor=.5)
  found, learning_rate = evaluated(c, 4, steps_per_epoch=2)
  np.testing.assert_allclose(found, [-1, -2, -2.5, -3])
  np.testing.assert_allclose([learning_rate(step) for step in range(4)], [1, 1, .5, .5])


def test_finetune_schedule_counts_outer_steps():
  c = config_of(3)
  c.loss = 'finetune'
  c.finetune.update(start_epoch=1, learning_rate=.01, warmup_epochs=1., decay_factor=.5)
  made = optimizers.make(c, steps_per_epoch=6, key=jax.random.key(0))
  # One epoch at 1, then in outer steps: a rise of two to .01, and a half every two.
  rates = [1, 1, .01 / 3, .02 / 3, .01, .01 * .5 ** .5, .005]
  np.testing.assert_allclose([made.learning_rate(step) for step in range(21)], np.repeat(rates, 3),
                             rtol=1e-5)


@pytest.mark.parametrize('name, inner_steps, move', [('sgd', 0, 1.), ('entropy_sgd', 2, MOVE[2])])
def test_swa_starts_at_the_end_of_its_epoch(name, inner_steps, move):
  # Four steps an epoch, and the ends of all epochs but the first are averaged.
  c = config_of(inner_steps, name=name, swa_start_epoch=1)
  c.epochs = 4
  found, _ = evaluated(c, 16, steps_per_epoch=4)
  inner = max(inner_steps, 1)
  own = -move * (np.arange(1, 17) // inner)  # w, or the anchor
  np.testing.assert_allclose(found[:8], own[:8], rtol=1e-5)  # nothing is averaged yet
  np.testing.assert_allclose(found[8:11], own[7], rtol=1e-5)
  np.testing.assert_allclose(found[11:15], (own[7] + own[11]) / 2, rtol=1e-5)
  np.testing.assert_allclose(found[15], (own[7] + own[11] + own[15]) / 3, rtol=1e-5)
  assert [epoch_plan.method_started(c, epoch) for epoch in range(3)] == [False, True, True]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Two epochs of four steps with cycles of three steps: both epochs end in mid-cycle."""
  rng, path = np.random.default_rng(0), tmp_path_factory.mktemp('run')
  images, labels = rng.integers(0, 256, (24, 4, 4, 1), dtype=np.uint8), np.arange(24) % 3
  np.savez(path / 'tiny.npz', train_images=images, train_label=labels, test_images=images,
           test_label=labels)
  c = config_of(3, learning_rate=.5, decay_epochs=(1,), decay_factor=.2)
  c.optimizer.entropy.update(noise=1e-4, gamma=.03, momentum=.9)
  c.dataset.update(name=str(path / 'tiny.npz'), num_classes=3, validation_size=8, pad=0, flip=False)
  c.model.update(name='SmallCNN', features=(2,), hidden=(), padding='SAME', batch_norm=True)
  c.loss, c.epochs, c.validate.num_steps, c.evaluate.attacks = 'standard', 2, 1, ('pgd1',)
  c.batch_size, c.evaluate.batch_size, c.validate.batch_size = 4, 8, 8  # one program attacks
  c.log_every_steps = c.checkpoint.every_steps = 1
  states, variables = {}, []
  save, run_attacks = checkpoints.Checkpoints.save, robustness.evaluate

  def saving(store, step, state, info):
    states[step] = state
    save(store, step, state, info)

  def evaluating(network, given, *args, **options):
    variables.append(given)
    return run_attacks(network, given, *args, **options)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, 'save', saving)
    patch.setattr(robustness, 'evaluate', evaluating)
    results = loop.train_and_evaluate(c, path / 'work', 'a test')
  run = setup.build(c)
  states[0] = jax.device_get(setup.init_state(run))
  lines = map(json.loads, (path / 'work' / 'metrics.jsonl').read_text().splitlines())
  logged = [line['learning_rate'] for line in lines if 'learning_rate' in line]
  return types.SimpleNamespace(run=run, states=states, variables=variables, logged=logged,
                               results=results)


def entropy_state(state):
  return next(part for part in state.opt_state if isinstance(part, entropy_sgd.EntropySGDState))


def test_the_rate_changes_with_the_outer_step(whole):
  # An epoch is 4/3 of an outer step, so × .2 comes after the first: at the fourth of eight steps.
  np.testing.assert_allclose(whole.logged, 3 * [.5] + 5 * [.1], rtol=1e-6)
  for step in range(1, 9):
    found = entropy_state(whole.states[step])
    assert (found.outer_step, found.inner_step) == divmod(step, 3)
  # The rate in use: a ← a − rate·(a − μ).
  for end, rate in ((3, .5), (6, .1)):
    landed = jax.tree.map(lambda a, mean, rate=rate: a - rate * (a - mean), whole.states[end - 3].params,
                          entropy_state(whole.states[end]).average)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 whole.states[end].params, landed)


def test_in_mid_cycle_the_anchor_is_evaluated(whole):
  # Validation after four and eight steps, in cycles that began after three and six; then the final
  # evaluation of last, and of best if it is another checkpoint.
  best = [whole.results['step']] * (whole.results['step'] != whole.results['last']['step'])
  ends = [4, 8, 8, *best]
  assert len(whole.variables) == len(ends)
  for end, found in zip(ends, whole.variables, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found['params'],
                 whole.states[end // 3 * 3].params)
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), found['params'],
                        whole.states[end].params)
    assert max(jax.tree.leaves(gaps)) > 1e-3  # not the point of the chain


def test_statistics_of_the_anchor_are_reestimated(whole):
  # Expected in NumPy: from the statistics of the last step, with linen's .9 per batch, at the anchor.
  images = whole.run.dataset.train.images
  order = np.asarray(pipeline.epoch_order(whole.run.keys['evaluate'], 0, 16)).reshape(4, 4)
  for end, found in zip((4, 8), whole.variables[:2], strict=True):
    layer = whole.states[end // 3 * 3].params['conv1']
    statistics = whole.states[end].batch_stats['bn1']
    mean, var = statistics['mean'], statistics['var']
    for taken in order:
      x = np.pad(images[taken, ..., 0] / 255., ((0, 0), (1, 1), (1, 1)))
      out = layer['bias'] + sum(x[:, i:i + 4, j:j + 4, None] * layer['kernel'][i, j, 0]
                                for i in range(3) for j in range(3))
      mean = .9 * mean + .1 * out.mean((0, 1, 2))
      var = .9 * var + .1 * out.var((0, 1, 2))
    np.testing.assert_allclose(found['batch_stats']['bn1']['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found['batch_stats']['bn1']['var'], var, rtol=1e-4)
    assert np.max(np.abs(mean - statistics['mean'])) > 1e-3

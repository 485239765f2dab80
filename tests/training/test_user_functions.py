"""Functions that a configuration imports: one line for a wrong one, before training; right ones train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors, main
from at_jax.config import command_line
from at_jax.training import setup, user_functions
from tests.fixtures import composed_runs, tiny_data

MINE = '''
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
from at_jax import attacks
from at_jax.methods import inner_attacks, losses, objective

number = 3

class Net(nn.Module):
  num_outputs: int
  width: int = 4
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
    return nn.Dense(self.num_outputs)(x)

class Statistics(nn.Module):
  num_outputs: int
  axis_name: str | None = None
  dtype: type = jnp.float32
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
    return nn.Dense(self.num_outputs, dtype=self.dtype)(x.reshape(len(x), -1))

class Pair(Net):
  def __call__(self, x):
    return super().__call__(x), x

class Features(Net):
  @nn.compact
  def __call__(self, x):
    return x.reshape(len(x), -1) * self.param('w', nn.initializers.ones, ())

class Classes(Net):
  def __call__(self, x):
    return super().__call__(x).argmax(-1)

class Wide(Net):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_outputs + 1)(x.reshape(len(x), -1))

class Dropped(Net):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(self.num_outputs)(nn.Dropout(.5, deterministic=not train)(x.reshape(len(x), -1)))

class Host(Net):
  def __call__(self, x):
    return super().__call__(jnp.asarray(np.log(np.asarray(x))))

class Branches(Net):
  def __call__(self, x):
    return super().__call__(x if x.sum() > 0 else -x)

class NoOutputs(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x

def torch_network(num_outputs):
  import torch
  return torch.nn.Linear(16, num_outputs)

def loss(forward, batch_stats, x, x_adv, y):
  logits, batch_stats = forward(x_adv, batch_stats)
  return objective.Outcome(losses.cross_entropy(logits, y), None, logits, batch_stats)

def mean(*args):
  outcome = loss(*args)
  return outcome._replace(fit=outcome.fit.mean())

def by_class(*args):
  outcome = loss(*args)
  return outcome._replace(fit=-jax.nn.log_softmax(outcome.logits) * jax.nn.one_hot(args[-1], 3))

def over_classes(*args):
  outcome = loss(*args)
  return outcome._replace(fit=outcome.fit.mean() * jnp.ones(outcome.logits.shape[1]))

def only_fit(*args):
  return loss(*args).fit

def counts(*args):
  return loss(*args)._replace(fit=args[-1])

def probabilities(forward, batch_stats, x, x_adv, y):
  outcome = loss(forward, batch_stats, x, x_adv, y)
  return outcome._replace(logits=outcome.logits[:, :2])

def in_numpy(forward, batch_stats, x, x_adv, y):
  outcome = loss(forward, batch_stats, x, x_adv, y)
  return outcome._replace(fit=jnp.asarray(np.log(outcome.fit)))

def in_torch(forward, batch_stats, x, x_adv, y):
  import torch
  return torch.log(forward(x_adv, batch_stats)[0])

def endless(forward, batch_stats, x, x_adv, y):
  outcome = loss(forward, batch_stats, x, x_adv, y)
  return outcome._replace(fit=jax.lax.while_loop(lambda v: v.sum() < 0, lambda v: v + 1, outcome.fit))

def misspelt(forward, batch_stats, x, x_adv, y):
  return losses.crossentropy(x, y)

def forgetful(forward, batch_stats, x, x_adv, y):
  return loss(forward, batch_stats, x, x_adv, y)._replace(batch_stats=batch_stats)

def attack(**options):
  return inner_attacks.uniform(**options)

def gives_x(**options):
  found = inner_attacks.uniform(**options)
  return lambda *args, **kwargs: found(*args, **kwargs).x

def flat_x(**options):
  found = inner_attacks.uniform(**options)
  def run(*args, **kwargs):
    result = found(*args, **kwargs)
    return result._replace(x=result.x.reshape(len(result.x), -1))
  return run

def one_verdict(**options):
  found = inner_attacks.uniform(**options)
  def run(*args, **kwargs):
    result = found(*args, **kwargs)
    return result._replace(success=result.success.all())
  return run

def without_tau(**options):
  found = inner_attacks.uniform(**options)
  return lambda logits_fn, x, y, key, index: found(logits_fn, x, y, key, index)

def adam(learning_rate, b1=.9):
  return optax.adam(learning_rate, b1)

def free_with_average(learning_rate):
  from at_jax.methods import weight_averaging
  return optax.chain(optax.contrib.schedule_free_sgd(learning_rate), weight_averaging.ema(.9))

def no_optimizer(learning_rate):
  return .1

def of_a_number(learning_rate):
  return optax.sgd(2 * learning_rate)

def scalar_updates(learning_rate):
  return optax.GradientTransformation(
      lambda params: (), lambda g, state, params=None: (jax.tree.map(jnp.mean, g), state))

def growing(learning_rate):
  return optax.GradientTransformation(
      lambda params: jnp.zeros(1), lambda g, state, params=None: (g, jnp.append(state, 0.)))
'''


@pytest.fixture(autouse=True)
def mine(monkeypatch, tmp_path):
  (tmp_path / 'mine.py').write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(__import__('sys').modules, 'mine', raising=False)


def traced(**changes):
  """The warnings of a configuration on 4×4 images in 3 classes; the keys have __ for dots."""
  c = composed_runs.config_of()
  c.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
  lines = []
  user_functions.check(setup.build(c), lines.append)
  return lines


def network(name, **options):
  c = composed_runs.config_of()
  c.model = dict(name=f'mine.{name}', **options)
  run = setup.build(c)
  user_functions.check(run)
  return run


@pytest.mark.parametrize('changes', [
    dict(loss='mine.loss'), dict(attack__kind='mine.attack'), dict(optimizer__name='mine.adam'),
    dict(optimizer__name='optax.adam', optimizer__ema_decay=.9),
    dict(attack__kind='mine.without_tau', weights__kind='geometry', calibration__temperature=True,
         calibration__start_epoch=1),
    dict(loss='mine.loss', attack__kind='mine.attack', optimizer__name='mine.adam', awp_gamma=.05),
    dict(loss='mine.loss', batch_size=3),  # as many examples as classes
], ids=lambda changes: '-'.join(map(str, changes.values())))
def test_right_functions_pass_in_silence(changes):
  assert traced(**changes) == []


@pytest.mark.parametrize('name, options', [
    ('Net', {}), ('Net', dict(width=8, dtype='float32')), ('Statistics', dict(dtype='bfloat16'))])
def test_networks_get_the_arguments_that_they_have(name, options):
  run = network(name, **options)
  variables = jax.eval_shape(lambda: setup.init_state(run))
  logits = jax.eval_shape(run.network.deployed, {'params': variables.params,
                                                 'batch_stats': variables.batch_stats},
                          jnp.zeros((5, 4, 4, 1)))
  assert (logits.shape, logits.dtype) == ((5, 3), np.float32)
  if name == 'Net':
    assert variables.params['Dense_0']['kernel'].shape == (16, options.get('width', 4))


@pytest.mark.parametrize('name, options, parts', [
    ('Pair', {}, ['a tuple', 'return logits float32[16, 3]']),
    ('Features', {}, ['float32[16, 4, 4, 1] gives float32[16, 16]', 'float32[16, 3]']),
    ('Classes', {}, ['int32[16]', 'one row per example']),
    ('Wide', {}, ['float32[16, 4]']),
    ('Dropped', {}, ['InvalidRngError', 'dropout']),
    ('Host', {}, ['TracerArrayConversionError', 'mine.py:', 'use jax.numpy, not NumPy']),
    ('Branches', {}, ['TracerBoolConversionError', 'jnp.where']),
    ('NoOutputs', {}, ['num_outputs']),
    ('torch_network', {}, ['Linear', 'flax linen module']),
    ('number', {}, ['is of type int, not a function']),
    ('Net', dict(widht=3), ["config.model.widht = 3", "did you mean 'width'?"]),
    ('Net', dict(dtype='bfloat16'), ["config.model.dtype = 'bfloat16'", 'no argument dtype']),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_network_is_one_line(name, options, parts):
  if name == 'torch_network':
    pytest.importorskip('torch')
  with pytest.raises(errors.UserError) as caught:
    network(name, **options)
  assert_line(str(caught.value), 'config.model', parts)


def assert_line(line, field, parts):
  assert line.startswith(field) and len(line.splitlines()) == 1, line
  for part in parts:
    assert part in line, line


@pytest.mark.parametrize('name, parts', [
    ('mean', ['fit has shape ()', 'use (16,), one number per example']),
    ('by_class', ['fit has shape (16, 3)']),
    ('only_fit', ['of shape (16,)', 'return methods.objective.Outcome']),
    ('counts', ['fit is int32', 'float32']),
    ('probabilities', ['logits are float32[16, 2]', '3 for each example']),
    ('in_numpy', ['TracerArrayConversionError', 'mine.py:', 'use jax.numpy']),
    ('in_torch', ['Tensor', 'not NumPy or PyTorch']),
    ('endless', ['Reverse-mode differentiation does not work for lax.while_loop']),
    ('misspelt', ["no attribute 'crossentropy'", 'mine.py:']),
    ('adam', ['it is called as adam(forward, batch_stats, x, x_adv, y)']),
    ('absent', ["no attribute 'absent'"]),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_loss_is_one_line(name, parts):
  if name == 'in_torch':
    pytest.importorskip('torch')
  with pytest.raises(errors.UserError) as caught:
    traced(loss=f'mine.{name}')
  assert_line(str(caught.value), f"config.loss = 'mine.{name}': ", parts)


def test_a_length_that_happens_to_fit_is_no_batch():
  # Three examples and three classes: one number per class is not one per example.
  with pytest.raises(errors.UserError, match=r'fit has shape \(3,\): use \(9,\)'):
    traced(loss='mine.over_classes', batch_size=3)


def test_a_loss_that_keeps_old_statistics_gets_one_warning():
  lines = traced(loss='mine.forgetful', awp_gamma=.05)
  assert len(lines) == 1 and 'BatchNorm statistics that it was given' in lines[0]


@pytest.mark.parametrize('name, changes, parts', [
    ('gives_x', {}, ['returned float32[16, 4, 4, 1]', 'attacks.AttackResult']),
    ('flat_x', {}, ['x is float32[16, 16]: use float32[16, 4, 4, 1]']),
    ('one_verdict', {}, ['success is bool[]: use bool[16]']),
    ('without_tau', dict(attack__friendly_taus=(0,)), ["unexpected keyword argument 'tau'", 'extending.md']),
    ('adam', {}, ["missing a required argument: 'learning_rate'"]),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_inner_attack_is_one_line(name, changes, parts):
  with pytest.raises(errors.UserError) as caught:
    traced(attack__kind=f'mine.{name}', **changes)
  assert_line(str(caught.value), f"config.attack.kind = 'mine.{name}': ", parts)


@pytest.mark.parametrize('name, options, parts', [
    ('mine.no_optimizer', {}, ['returned float', 'optax.GradientTransformation']),
    ('mine.of_a_number', {}, ['TypeError: unsupported operand', 'a function of the step']),
    ('mine.scalar_updates', {}, ['updates have other shapes']),
    ('mine.growing', {}, ['a step changes the structure, a shape or a dtype of opt_state']),
    ('mine.attack', {}, []),
    ('mine.loss', {}, ['it is called as loss(learning_rate=…)']),
    ('mine.adam', dict(b11=.5), ['config.optimizer.options.b11', "did you mean 'b1'?"]),
    ('optax.adamm', {}, ["no attribute 'adamm'"]),
    ('mine.free_with_average', {}, ['ScheduleFreeState and AverageState both keep a value of params']),
    ('adam', {}, ['known: entropy_sgd, sgd; or use an import path']),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_optimizer_is_one_line(name, options, parts):
  with pytest.raises(errors.UserError) as caught:
    traced(optimizer__name=name, **{f'optimizer__options__{key}': value for key, value in options.items()})
  assert_line(str(caught.value), 'config.optimizer', parts)


def test_an_imported_optimizer_follows_the_schedule():
  # sgd of optax without momentum or decay: the update is −rate · gradient, and the rate falls at epoch 1.
  c = composed_runs.config_of()
  c.optimizer.update(name='optax.sgd', learning_rate=.5, decay_epochs=(1,), decay_factor=.1)
  c.optimizer.options.nesterov = False
  run = setup.build(c)
  state, updates = run.optimizer.init(jnp.ones(2)), []
  for _ in range(2):
    update, state = run.optimizer.update(jnp.ones(2), state, jnp.ones(2))
    updates.append(float(update[0]))
  assert updates == pytest.approx([-.5, -.05])


def test_variants_keep_a_network_of_ones_own(tmp_path):
  (tmp_path / 'own.py').write_text(
      "from at_jax import config\n\ndef get_config(arg=''):\n  c = config.default()\n"
      "  c.model = dict(name='mine.Net', width=5)\n  return config.variant(c, arg)\n")
  for variant in ('small', 'smoke', 'mnist', 'mnist-small-smoke'):
    c = command_line.parse([f'--config={tmp_path}/own.py:{variant}']).config
    assert c.model.to_dict() == dict(name='mine.Net', width=5), variant


@pytest.mark.long
def test_own_functions_train_and_are_evaluated(tmp_path, capsys):
  (tmp_path / 'own.py').write_text(
      "from at_jax import config\n\ndef get_config():\n  c = config.default()\n"
      "  c.model = dict(name='mine.Statistics')\n"
      "  c.loss, c.attack.kind, c.optimizer.name = 'mine.loss', 'mine.attack', 'mine.adam'\n"
      "  c.optimizer.options.b1 = .8\n"
      f"  c.dataset.update(name={tiny_data.path(16)!r}, num_classes=3, validation_size=0, pad=0)\n"
      "  c.attack.update(num_steps=1, step_size_255=8.)\n  c.optimizer.learning_rate = .01\n"
      "  c.epochs, c.batch_size, c.evaluate.batch_size = 1, 16, 16\n  c.evaluate.attacks = ('pgd1',)\n"
      "  return c\n")
  code = main.main([f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run'])
  assert code == 0 and 'warning' not in capsys.readouterr().err

"""Checks of a configuration: wrong names, wrong numbers, and fields that contradict each other."""

import re
import sys
import types
import warnings

import jax
import numpy as np
import pytest

from at_jax import config as config_lib
from at_jax import errors
from at_jax.config import command_line, validation
from at_jax.methods import n_fgsm, objective
from at_jax.training import setup
from tests.fixtures import tiny_data
from tests.fixtures.command_errors import QUICK, ROOT, assert_message

STREAM = f'--config={ROOT}/configs/trades_imagenet.py'
IDS = lambda value: value[-1].split('/')[-1] if isinstance(value, list) else ''


@pytest.mark.parametrize('arguments, expected', [
    ([QUICK, '--config.dataset.name=cifar_10'], ['cifar_10', "did you mean 'cifar10'"]),
    ([QUICK, '--config.model.name=SmalCNN'], ['SmalCNN', "did you mean 'SmallCNN'"]),
    ([QUICK, '--config.loss=pgd'], ["did you mean 'pgd_at'"]),
    ([QUICK, '--config.attack.norm=linff'], ["did you mean 'linf'"]),
    ([QUICK, '--config.dataset.augment=autoagument'], ["did you mean 'autoaugment'"]),
    ([QUICK, "--config.evaluate.attacks=('pgd20', 'pdg20')"],
     ["config.evaluate.attacks = 'pdg20': use pgd20", 'at_jax/evaluation/attack_names.py']),
    ([QUICK, '--config.dummy.enabled=False', "--config.evaluate.attacks=('dummies_pgd2',)"],
     ['dummies_pgd2', 'add pgd20']),
    ([QUICK, '--config.loss=math.pi'], ['math.pi', 'not a function']),
    ([QUICK, '--config.loss='], ["config.loss = ''", 'pgd_at']),
    ([QUICK, '--config.loss=.pgd_at'], ['.pgd_at', 'module.function']),
    ([QUICK, '--config.attack.kind=gausian'],
     ["did you mean 'gaussian'? known: fgsm_rs, gaussian, kl, kl_and_margin, n_fgsm, nuclear, uniform; or",
      'module.function']),
    ([QUICK, '--config.attack.kind=nowhere.attack'], ['nowhere.attack', "No module named 'nowhere'"]),
    ([QUICK, '--config.attack.kind=math.pi'], ['attack.kind', 'not a function']),
    ([QUICK, '--config.attack.kind=textwrap.dedent'],
     ["missing a required argument: 'text'", 'called as dedent(norm=…, epsilon=…']),
    ([QUICK, '--config.model.name=nowhere.Net'], ["model.name = 'nowhere.Net'", "No module named 'nowhere'"]),
    ([QUICK, '--config.optimizer.name=sdg'], ["did you mean 'sgd'? known: entropy_sgd, sgd"]),
    ([QUICK, '--config.attack.kind=math.tau2'], ['math.tau2', "no attribute 'tau2'"]),
    ([QUICK, '--config.dataset.name=nowhere.npz'], ['nowhere.npz']),
], ids=IDS)
def test_wrong_name_is_one_line(arguments, expected, capsys, tmp_path):
  assert_message(capsys, tmp_path, arguments, expected)


@pytest.mark.parametrize('arguments, expected', [
    ([QUICK, '--config.attack.epsilon_255=-1.'], ['attack.epsilon_255', '-1.0']),
    ([QUICK, '--config.attack.epsilon_255=nan'], ['attack.epsilon_255', 'nan']),
    ([QUICK, '--config.attack.step_size_255=0.'], ['attack.step_size_255']),
    ([QUICK, '--config.attack.num_steps=0'], ['attack.num_steps']),
    ([QUICK, '--config.batch_size=0'], ['batch_size']),
    ([QUICK, '--config.batch_size=100000'], ['batch_size', 'training examples']),
    ([QUICK, '--config.epochs=0'], ['epochs']),
    ([QUICK, '--config.seed=-1'], ['config.seed = -1: use a whole number from 0']),
    ([QUICK, f'--config.seed={2**64}'], ['config.seed = 18446744073709551616: use a whole number from 0']),
    ([QUICK, '--config.dummy.start_epoch=2'], ['dummy.start_epoch', 'epochs = 2']),
    ([QUICK, '--config.dataset.augment=autoaugment', '--config.dataset.autoaugment_start_epoch=2'],
     ['dataset.autoaugment_start_epoch', 'epochs = 2']),
    ([QUICK, '--config.dataset.source=disk'], ["dataset.source = 'disk'", 'known: device, stream']),
    ([QUICK, '--config.dataset.source=stream'], ["dataset.source = 'stream': digits is no data set of TFDS"]),
    ([QUICK, '--config.dataset.augment=resized_crop'],
     ["dataset.augment = 'resized_crop'", "dataset.source = 'stream'"]),
    ([STREAM, '--config.dataset.drop_class=3'], ['dataset.drop_class = 3', 'does not know the labels']),
    ([STREAM, '--config.loss=fgsm_pgi', '--config.attack.num_steps=1'],
     ["loss = 'fgsm_pgi'", 'perturbation of every training example']),
    ([STREAM, '--config.dataset.image_size=0'], ['dataset.image_size = 0']),
    ([QUICK, '--config.dummy.benign_weight=1.5'], ['dummy.benign_weight']),
    ([QUICK, '--config.loss=standard'], ['loss', 'dummy classes']),
    ([QUICK, '--config.dataset.num_classes=12'], ['num_classes', '10 classes']),
    ([QUICK, '--config.dataset.validation_size=5000'], ['validation_size']),
    ([QUICK, '--config.optimizer.learning_rate=-.1'], ['learning_rate']),
    ([QUICK, '--config.optimizer.decay_epochs=(5, 3)'], ['decay_epochs']),
    ([QUICK, '--config.optimizer.decay_epochs=none'], ['decay_epochs', 'rising order']),
    ([QUICK, '--config.weights.later_lams=inf,'], ['weights.later_lams', 'use numbers']),
    ([QUICK, '--config.weights.lam_epochs=(5, 3)'], ['weights.lam_epochs', 'rising order']),
    ([QUICK, '--config.weights.later_lams=(-2.,)'], ['weights.lam_epochs', 'as many']),
    ([QUICK, '--config.weights.later_lams=(-2.,)', '--config.weights.lam_epochs=(3,)',
      '--config.weights.schedule=linear'], ['weights.later_lams', "schedule = 'stages'"]),
    ([QUICK, '--config.weights.schedule=linear', '--config.weights.lam=inf'], ['weights.lam']),
    ([QUICK, '--config.evaluate.norm=l2'], ['evaluate.epsilon_255', 'norm is linf']),
    ([QUICK, '--config.evaluate.norm=l2', '--config.evaluate.epsilon_255=128.'],
     ['evaluate.step_size_255']),
    ([QUICK, '--config.dummy.enabled=False', '--config.loss=standard', '--config.attack.kind=uniform'],
     ['attack.kind', 'clean training has no attack']),
    ([QUICK, '--config.attack.kind=kl_and_margin'], ['attack.kind', 'gair_trades']),
    ([QUICK, '--config.attack.kind=n_fgsm', '--config.attack.num_steps=2'],
     ['attack.num_steps = 2: the inner attack n_fgsm takes one step: use 1']),
    ([QUICK, '--config.loss=nuat', '--config.attack.num_steps=2'], ['num_steps', 'nuat takes one step']),
    ([QUICK, '--config.attack.ramp_epochs=(1,)'], ['attack.ramp_epochs', 'use () or two whole epochs']),
    ([QUICK, '--config.attack.ramp_epochs=(1, 0)'], ['attack.ramp_epochs', 'not below the first']),
    ([QUICK, '--config.attack.ramp_epochs=(0, 2)'], ['attack.ramp_epochs', 'below epochs = 2']),
    ([QUICK, '--config.loss=trades', '--config.beta_ramp_epochs=(0, 1)', '--config.calibration.beta=True'],
     ['beta_ramp_epochs', 'calibrated by class']),
    ([QUICK, '--config.loss=free_at'], ['dummy.enabled', 'carries its perturbations']),
    ([QUICK, '--config.loss=fgsm_pgi', '--config.attack.kind=kl'],
     ['attack.kind', 'carries its perturbations']),
    ([QUICK, '--config.loss=free_at', '--config.dummy.enabled=False', '--config.awp_gamma=.1'],
     ['awp_gamma = 0.1', 'use 0.0']),
    ([QUICK, '--config.loss=free_at', '--config.dummy.enabled=False', '--config.weights.kind=geometry'],
     ['weights.kind', 'counts no attack steps']),
], ids=IDS)
def test_wrong_value_is_one_line(arguments, expected, capsys, tmp_path):
  assert_message(capsys, tmp_path, arguments, expected)


def lines_of(norm='linf', **changes):
  """The warnings of the default configuration with changes; the keys have __ for dots."""
  c = config_lib.default()
  c.attack.norm = norm
  c.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
  found = []
  validation.check(c, found.append)
  return found


@pytest.mark.parametrize('changes, parts', [
    # The numbers of TRADES' script are in units of the pixel range: .031 is 7.905/255.
    (dict(attack__epsilon_255=.031, attack__step_size_255=.007),
     ['config.attack.epsilon_255 = 0.031: it is in 1/255', 'L∞', 'use 7.905']),
    (dict(attack__epsilon_255=.3, attack__step_size_255=.01), ['epsilon_255 = 0.3', 'use 76.5']),
    (dict(norm='l2', attack__epsilon_255=.5, attack__step_size_255=.1), ['in L2', '128.0', 'use 127.5']),
    (dict(norm='l2', attack__epsilon_255=8.), ['epsilon_255 = 8: it is', 'in L2, where 128.0 (0.5) is']),
    (dict(evaluate__epsilon_255=.031), ['config.evaluate.epsilon_255 = 0.031']),
    (dict(attack__step_size_255=.007), ['config.attack.step_size_255 = 0.007: attack.num_steps = 10 steps',
                                        'less than the radius 8']),
    (dict(attack__step_size_255=.8, attack__num_steps=5, validate__num_steps=20),
     ['attack.num_steps = 5 steps move at most 4']),
    (dict(validate__num_steps=2), ['validate.num_steps = 2 steps move at most 4']),
    (dict(evaluate__attacks=('pgd20', 'pgd3x5')), ['config.evaluate.step_size_255 = 2: pgd3x5 = 3 steps']),
    (dict(attack__step_size_255=16.5), ['step_size_255 = 16.5: one step crosses the whole ball of radius 8']),
    (dict(attack__step_size_255=255.), ['step_size_255 = 255']),
], ids=lambda value: '-'.join(map(str, value.values())) if isinstance(value, dict) else '')
def test_an_unusual_scale_is_one_line(changes, parts):
  line, = lines_of(**changes)
  assert len(line.splitlines()) == 1
  for part in parts:
    assert part in line


def test_fine_tuning_of_an_untrained_network_is_one_line():
  lines = lambda **changes: [line for line in lines_of(
      loss='finetune', finetune__anchor_weight=0., **changes) if 'untrained' in line]
  line, = lines(finetune__start_epoch=0)
  assert line.startswith("config.finetune.source = '': an untrained network is fine-tuned; name the work")
  assert not lines(finetune__start_epoch=1)
  assert not lines(finetune__start_epoch=0, finetune__source='clean.npz')


@pytest.mark.parametrize('changes', [
    {}, dict(attack__epsilon_255=0.), dict(evaluate__epsilon_255=0.), dict(attack__epsilon_255=1.),
    dict(attack__step_size_255=.8),
    dict(attack__num_steps=1, attack__step_size_255=8., validate__num_steps=1),
    dict(attack__step_size_255=16.), dict(norm='l2', attack__epsilon_255=128., attack__step_size_255=15.),
    dict(norm='l2', attack__epsilon_255=36., attack__step_size_255=5.), dict(evaluate__attacks=('fgsm',)),
    dict(evaluate__norm='l1', evaluate__epsilon_255=12 * 255., evaluate__step_size_255=255.),
    dict(loss='standard', attack__num_steps=1, dataset__validation_size=0),
], ids=lambda value: '-'.join(map(str, value.values())) or 'default')
def test_a_usual_scale_is_quiet(changes):
  assert lines_of(**changes) == []


def test_warnings_are_python_warnings_by_default():
  c = config_lib.default()
  c.attack.epsilon_255 = .031
  with pytest.warns(UserWarning, match='epsilon_255 = 0.031'):
    validation.check(c)


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*.py')), ids=lambda path: path.stem)
def test_every_variant_of_every_config_is_quiet(path):
  called = re.search(r"variants\.variant\(c, arg(.*)\)", path.read_text())
  own = re.findall(r"'(\w+)'", called[1]) if called else []
  sizes, data = ('', 'small', 'smoke', 'small-smoke'), ('', 'mnist')  # cifar100 changes the classes only
  arguments = {'-'.join(filter(None, parts)) for parts in
               ((o, d, s) for o in ('', *own) for d in data for s in sizes)} if called else {''}
  for argument in sorted(arguments):
    c = command_line.parse([f'--config={path}:{argument}'.rstrip(':')]).config
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      validation.check(c)


@pytest.mark.parametrize('changes, condition', [
    (dict(weights__lam=3.), "weights.kind = 'geometry'"),
    (dict(weights__kind='margin', weights__lam=3.), "weights.kind = 'geometry'"),
    (dict(beta=3.), 'the loss or attack.kind has a regulariser'),
    (dict(finetune__source='run'), "loss = 'finetune'"),
    (dict(optimizer__name='optax.adam', optimizer__learning_rate=.001, optimizer__momentum=.5),
     "optimizer.name = 'sgd'"),
    (dict(optimizer__schedule='cosine', optimizer__decay_epochs=(3,)), "optimizer.schedule = 'piecewise'"),
    (dict(optimizer__options__b1=.5), 'optimizer.name is an import path'),
    (dict(inference__rounds=3), "inference.kind != 'none'"),
    (dict(evaluate__search_dtype='bfloat16'), 'AutoAttack'),
    (dict(dataset__validation_size=0, validate__num_steps=7), 'dataset.validation_size > 0'),
], ids=lambda value: '-'.join(value) if isinstance(value, dict) else '')
def test_a_field_that_nothing_reads_is_one_line(changes, condition):
  line, = lines_of(**changes)
  assert f'nothing reads it here; it is read if {condition}' in line
  name = list(changes)[-1].replace('__', '.')
  assert line.startswith(f'config.{name} = ') and len(line.splitlines()) == 1


@pytest.mark.parametrize('changes', [
    dict(loss='trades', beta=3.), dict(weights__kind='geometry', weights__lam=3.),
    dict(loss='tests.config.test_validation.lines_of', beta=3.),
    dict(weights__lam=-1.0),  # the default
    dict(weights__start_epoch=5)])  # the value that :small sets for every method
def test_a_field_that_is_read_is_quiet(changes, monkeypatch):
  monkeypatch.setattr(config_lib.fields.import_path, 'load', lambda *args, **kwargs: max)
  assert lines_of(**changes) == []


def test_unknown_and_missing_fields_are_one_line():
  c = config_lib.default()
  c.epoch = 3
  with pytest.raises(errors.UserError, match="config.epoch = 3: no such field; did you mean 'epochs'"):
    validation.check(c)
  c = config_lib.default()
  c.validate = dict(num_steps=3)
  with pytest.raises(errors.UserError, match='config.validate.choose_by = None: it is missing'):
    validation.check(c)


def seeded(seed):
  c = command_line.parse([QUICK, f'--config.seed={seed}']).config
  c.dataset.update(name=tiny_data.path(16), num_classes=3, validation_size=0)
  c.batch_size = 16
  return [np.asarray(jax.random.key_data(key)).tolist() for key in setup.build(c).keys.values()]


def test_seeds_differ_in_all_64_bits():
  # Up to 32 bits a seed gives the key that jax.random.key gives; beyond, the one that it gives with x64.
  names = jax.random.split(jax.random.key(3), 5)
  assert seeded(3) == np.asarray(jax.random.key_data(names)).tolist()
  seeds = (0, 1, 2**32, 2**32 + 1, 2**40, 20261128123456, 2**63, 2**64 - 1)
  assert len({str(seeded(seed)) for seed in seeds}) == len(seeds)
  with jax.enable_x64(True):
    wide = jax.random.key_data(jax.random.split(jax.random.key(2**40), 5))
  assert seeded(2**40) == np.asarray(wide).tolist()


def test_scale_is_checked_with_the_data():
  c = command_line.parse([QUICK]).config
  c.dataset.update(name=tiny_data.path(16), num_classes=3, validation_size=4)
  c.batch_size, c.evaluate.norm, c.evaluate.step_size_255 = 4, 'l2', 600.
  c.evaluate.epsilon_255 = 127.5 * 4 + 1  # from black to grey in 4×4 images: ‖1/2‖₂ = 4 · 1/2
  found = []
  setup.build(c, warn=found.append)
  line, = found
  assert line.startswith('config.evaluate.epsilon_255 = 511: ') and 'use less than 510' in line


def test_a_loss_of_ones_own_may_have_a_single_step_attack(monkeypatch):
  # A module of the user's own, whose loss names the attack of N-FGSM.
  mine = types.ModuleType('mine')
  mine.loss = objective.attacked_by(n_fgsm.n_fgsm)(lambda *arguments: None)
  monkeypatch.setitem(sys.modules, 'mine', mine)
  assert validation.single_step({'loss': 'mine.loss', 'attack.kind': ''})
  assert not validation.single_step({'loss': 'mine.loss', 'attack.kind': 'kl'})
  kind = 'at_jax.methods.n_fgsm.n_fgsm'
  assert validation.single_step({'loss': 'pgd_at', 'attack.kind': kind})

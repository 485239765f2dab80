"""Checks of a configuration: wrong names, wrong numbers, and fields that contradict each other."""

import pytest

from tests.fixtures.command_errors import QUICK, assert_message

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
     ["did you mean 'gaussian'? known: gaussian, kl, kl_and_margin, uniform; or", 'module.function']),
    ([QUICK, '--config.attack.kind=nowhere.attack'], ['nowhere.attack', "No module named 'nowhere'"]),
    ([QUICK, '--config.attack.kind=math.pi'], ['attack.kind', 'not a function']),
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
    ([QUICK, '--config.dummy.start_epoch=2'], ['dummy.start_epoch', 'epochs = 2']),
    ([QUICK, '--config.dataset.augment=autoaugment', '--config.dataset.autoaugment_start_epoch=2'],
     ['dataset.autoaugment_start_epoch', 'epochs = 2']),
    ([QUICK, '--config.dummy.benign_weight=1.5'], ['dummy.benign_weight']),
    ([QUICK, '--config.loss=standard'], ['loss', 'dummy classes']),
    ([QUICK, '--config.dataset.num_classes=12'], ['num_classes', '10 classes']),
    ([QUICK, '--config.dataset.validation_size=5000'], ['validation_size']),
    ([QUICK, '--config.optimizer.learning_rate=-.1'], ['learning_rate']),
    ([QUICK, '--config.optimizer.decay_epochs=(5, 3)'], ['decay_epochs']),
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
], ids=IDS)
def test_wrong_value_is_one_line(arguments, expected, capsys, tmp_path):
  assert_message(capsys, tmp_path, arguments, expected)

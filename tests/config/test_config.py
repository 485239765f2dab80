"""Configurations: every file runs, and every mistake is one line."""

import pathlib

import numpy as np
import pytest

from at_jax import main
from at_jax.config import command_line, fields, resume

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob('configs/*.py'))


@pytest.mark.oldest
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_two_steps(path, tmp_path, capsys):
  code = main.main([f'--config={path}:smoke', f'--workdir={tmp_path}'])
  assert code == 0, capsys.readouterr().err
  steps = [line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
           if '"loss"' in line]
  assert len(steps) == 2


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_how_to_run_it_and_what_to_expect(path):
  text = path.read_text()
  assert f'--config=configs/{path.name}' in text
  assert 'Source:' in text and 'Measured' in text


def said(capsys, *arguments):
  """The one line that a mistake ends in."""
  code = main.main(list(arguments))
  err = capsys.readouterr().err.strip()
  assert code == 2, err
  assert len(err.splitlines()) == 1 and err.startswith('at_jax: '), err
  return err


QUICK = f'--config={ROOT}/configs/quickstart.py:smoke'


@pytest.mark.parametrize('arguments, expected', [
    # the command line
    ([], ['--config', 'use python -m at_jax.main']),
    (['--config=configs/quickstrat.py'], ['configs/quickstrat.py', 'no such file']),
    ([f'--config={ROOT}/configs/quickstrat.py'], ['quickstrat.py', 'did you mean', 'quickstart.py']),
    ([f'--config={ROOT}/configs/quickstart.py:smal'], [':smal', ':smoke']),
    ([QUICK, '--config.epoch=3'], ['--config.epoch', "did you mean 'epochs'"]),
    ([QUICK, '--config.attack.epsilon=8'], ['did you mean', 'attack.epsilon_255']),
    ([QUICK, '--config.epochs=many'], ["--config.epochs = 'many': use a whole number, such as 2"]),
    ([QUICK, '--config.attack.epsilon_255=8/255'],
     ["--config.attack.epsilon_255 = '8/255': use a float, such as"]),
    ([QUICK, '--config.dummy.enabled=maybe'], ["'maybe'", 'truth value, such as True']),
    ([QUICK, '--config.weights.later_lams=(1,'], ["later_lams = '(1,'", 'use a tuple, such as ()']),
    ([QUICK, '--mode=tran'], ['tran', 'train']),
    ([QUICK, '--wrokdir=x'], ['wrokdir']),
    ([QUICK, 'configs/quickstart.py'], ['configs/quickstart.py', 'not a flag']),
    # names
    ([QUICK, '--config.dataset.name=cifar_10'], ['cifar_10', "did you mean 'cifar10'"]),
    ([QUICK, '--config.model.name=SmalCNN'], ['SmalCNN', "did you mean 'SmallCNN'"]),
    ([QUICK, '--config.loss=pgd'], ["did you mean 'pgd_at'"]),
    ([QUICK, '--config.attack.norm=linff'], ["did you mean 'linf'"]),
    ([QUICK, '--config.dataset.augment=autoagument'], ["did you mean 'autoaugment'"]),
    ([QUICK, "--config.evaluate.attacks=('pdg20',)"], ['pdg20', 'pgd20']),
    ([QUICK, '--config.dummy.enabled=False', "--config.evaluate.attacks=('dummies_pgd2',)"],
     ['dummies_pgd2', 'add pgd20']),
    ([QUICK, '--config.loss=math.pi'], ['math.pi', 'no function']),
    ([QUICK, '--config.loss=.pgd_at'], ['.pgd_at', 'module.function']),
    # numbers that make no sense
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
    ([QUICK, '--config.weights.later_lams=(-2.,)'], ['weights.lam_epochs', 'as many']),
    ([QUICK, '--config.weights.later_lams=(-2.,)', '--config.weights.lam_epochs=(3,)',
      '--config.weights.schedule=linear'], ['weights.later_lams', "schedule = 'stages'"]),
    ([QUICK, '--config.weights.schedule=linear', '--config.weights.lam=inf'], ['weights.lam']),
    ([QUICK, '--config.evaluate.norm=l2'], ['evaluate.epsilon_255', 'norm is linf']),
    ([QUICK, '--config.evaluate.norm=l2', '--config.evaluate.epsilon_255=128.'],
     ['evaluate.step_size_255']),
    # the data
    ([QUICK, '--config.dataset.name=nowhere.npz'], ['nowhere.npz']),
    # evaluation of nothing
    ([QUICK, '--mode=evaluate'], ['no checkpoint', '--mode=train']),
], ids=lambda value: value[-1].split('/')[-1] if isinstance(value, list) and value else 'none')
def test_a_mistake_is_one_line(arguments, expected, capsys, tmp_path):
  workdir = tmp_path / 'run'
  if not any('workdir' in a or 'wrokdir' in a for a in arguments):
    arguments = [*arguments, f'--workdir={workdir}']
  line = said(capsys, *arguments)
  for part in expected:
    assert part in line
  assert not workdir.exists()  # nothing was written


def test_a_workdir_that_cannot_be_written(capsys, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  line = said(capsys, QUICK, f'--workdir={tmp_path}/file/run')
  assert 'workdir' in line and 'name another folder' in line
  assert (tmp_path / 'file').read_text() == 'in the way'


@pytest.mark.parametrize('missing', ['flax', 'optax', 'orbax.checkpoint'])
def test_missing_extras_are_named(missing, capsys, monkeypatch):
  installed = main._installed
  monkeypatch.setattr(main, '_installed', lambda name: name != missing and installed(name))
  line = said(capsys, QUICK)
  assert missing in line and "pip install 'at_jax[train,data]'" in line


def test_help_names_the_file_of_all_fields(capsys):
  assert main.main(['--help']) == 0
  told = capsys.readouterr().out
  assert told.startswith('use python -m at_jax.main --config=')
  assert 'c.attack.epsilon_255 = 8.0' in pathlib.Path(told.split()[-1]).read_text()


def test_defaults_of_the_command_line():
  asked = command_line.parse([f'--config={ROOT}/configs/ducat_cifar100.py:small'])
  assert (str(asked.workdir), asked.mode) == ('runs/ducat_cifar100-small', 'train')
  asked = command_line.parse(['--mode=evaluate', '--config.attack.epsilon_255=4.',
                              f'--config={ROOT}/configs/ducat_cifar100.py'])
  assert (str(asked.workdir), asked.mode) == ('runs/ducat_cifar100', 'evaluate')
  assert asked.config.evaluate.epsilon_255 == 4  # follows the attack's, on the command line too


@pytest.mark.parametrize('form', ['l2', 'l2-small', 'l2-mnist'])
def test_in_l2_entropy_sgd_has_the_attack_of_its_reference(form):
  attack, evaluate = zip(*((asked.attack.to_dict(), asked.evaluate.to_dict()) for asked in (
      command_line.parse([f'--config={ROOT}/configs/{name}_cifar10.py:{form}']).config
      for name in ('pgd_at', 'entropy_sgd'))))
  assert attack[0] == attack[1] and evaluate[0] == evaluate[1]
  assert attack[0]['norm'] == evaluate[0]['norm'] == 'l2'


def test_what_may_change_between_runs_of_a_workdir():
  before = fields.flatten(fields.default().to_dict())
  free = before | {'evaluate.batch_size': 7, 'validate.batch_size': 3, 'epochs': 200,
                   'log_every_steps': 1, 'dataset.data_dir': 'elsewhere', 'checkpoint.keep': 9}
  assert not resume.conflicts(before, free)
  for name, value in {'seed': 1, 'epochs': 100, 'attack.epsilon_255': 4., 'dataset.pad': 2,
                      'optimizer.learning_rate': .2, 'model.name': 'SmallCNN',
                      'validate.num_steps': 3,  # the best of scores of two kinds is no best
                      'model.normalize': ((.5,), (.3,))}.items():
    assert list(resume.conflicts(before, before | {name: value})) == [name]
  assert not resume.conflicts(before, before | {'inference.kind': 'bias'})
  # What neither reads: λ counts with the weights it belongs to, and so does turning them on.
  assert not resume.conflicts(before, before | {
      'weights.lam': 0., 'optimizer.outer.momentum': .5, 'finetune.tau': 3})
  weighted = before | {'weights.kind': 'geometry'}
  assert list(resume.conflicts(weighted, weighted | {'weights.lam': 0.})) == ['weights.lam']
  assert list(resume.conflicts(before, weighted)) == ['weights.kind']
  older = {name: value for name, value in before.items() if name != 'dataset.pad'}
  assert not resume.conflicts(older, before)  # made when there was no such field
  assert list(resume.conflicts(older, before | {'dataset.pad': 2})) == ['dataset.pad']
  cosine = before | {'optimizer.schedule': 'cosine'}  # whose every step depends on the last epoch
  assert list(resume.conflicts(cosine, cosine | {'epochs': 200})) == ['epochs']


def test_a_users_own_arrays_train(tmp_path, capsys):
  rng = np.random.default_rng(0)
  path = tmp_path / 'mine.npz'
  np.savez(path, train_images=rng.integers(0, 256, (1400, 12, 10, 3), dtype=np.uint8),
           train_label=rng.integers(0, 10, 1400), label_names=np.array(list('abcdefghij')),
           test_images=rng.integers(0, 256, (20, 12, 10, 3), dtype=np.uint8),
           test_label=rng.integers(0, 10, 20))
  code = main.main([QUICK, f'--config.dataset.name={path}', f'--workdir={tmp_path}/run'])
  assert code == 0, capsys.readouterr().err

"""The command line: what it reads, its defaults, and one line for each mistake."""

import pathlib

import pytest

from at_jax import main
from at_jax.config import command_line
from tests.fixtures.command_errors import QUICK, ROOT, assert_message, message


@pytest.mark.parametrize('arguments, expected', [
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
    ([QUICK, '--mode=evaluate'], ['no checkpoint', '--mode=train']),
], ids=lambda value: value[-1].split('/')[-1] if isinstance(value, list) and value else 'none')
def test_wrong_command_line_is_one_line(arguments, expected, capsys, tmp_path):
  assert_message(capsys, tmp_path, arguments, expected)


def test_unwritable_workdir_is_one_line(capsys, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  line = message(capsys, QUICK, f'--workdir={tmp_path}/file/run')
  assert 'workdir' in line and 'name another folder' in line
  assert (tmp_path / 'file').read_text() == 'in the way'


@pytest.mark.parametrize('missing', ['flax', 'optax', 'orbax.checkpoint'])
def test_missing_packages_are_named(missing, capsys, monkeypatch):
  installed = main._installed
  monkeypatch.setattr(main, '_installed', lambda name: name != missing and installed(name))
  line = message(capsys, QUICK)
  assert missing in line and "pip install 'at_jax[train,data]'" in line


def test_help_names_the_table_of_fields(capsys):
  assert main.main(['--help']) == 0
  summary = capsys.readouterr().out
  assert summary.startswith('use python -m at_jax.main --config=')
  assert summary.strip().endswith('python -m at_jax.config')


def test_default_workdir_and_mode():
  asked = command_line.parse([f'--config={ROOT}/configs/ducat_cifar100.py:small'])
  assert (asked.workdir, asked.mode) == (pathlib.Path('runs/ducat_cifar100-small'), 'train')


def test_flags_may_come_before_the_config():
  asked = command_line.parse(['--mode=evaluate', '--config.attack.epsilon_255=4.',
                              f'--config={ROOT}/configs/ducat_cifar100.py'])
  assert (asked.workdir, asked.mode) == (pathlib.Path('runs/ducat_cifar100'), 'evaluate')
  assert asked.config.evaluate.epsilon_255 == 4  # follows the radius of the attack

"""The command line: what it reads, its defaults, and one line for each mistake."""

import os
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
    ([QUICK, '--config.attack=8'], ['it is a group of fields', 'such as --config.attack.']),
    ([QUICK, '--config.attack.epsilon=8'], ['did you mean', 'attack.epsilon_255']),
    ([QUICK, '--config.epochs=many'], ["--config.epochs = 'many': use a whole number, such as 2"]),
    ([QUICK, '--config.attack.epsilon_255=8/255'],
     ["--config.attack.epsilon_255 = '8/255': use a float, such as"]),
    ([QUICK, '--config.dummy.enabled=maybe'], ["'maybe'", 'truth value, such as True']),
    ([QUICK, '--config.weights.later_lams=(1,'], ["later_lams = '(1,'", 'use a tuple, such as (1, 2)']),
    ([QUICK, '--mode=tran'], ['tran', 'train']),
    ([QUICK, '--wrokdir=x'], ['wrokdir']),
    ([QUICK, 'configs/quickstart.py'], ['configs/quickstart.py', 'not a flag']),
    ([QUICK, '--mode=evaluate'], ['no checkpoint', '--mode=train']),
    ([QUICK, '--distributed=4'], ["--distributed = '4': use auto, slurm or ADDRESS,N,I", '0.1:1234,4,0']),
    ([QUICK, '--distributed=10.0.0.1,4,0'], ['use auto, slurm or ADDRESS,N,I: the address', 'with a port']),
    ([QUICK, '--distributed=10.0.0.1:1,4,4'], ['no process 4 of 4: use a number below 4']),
    ([QUICK, '--distributed=slurm'], ['SLURM_JOB_ID is not set: start the command with srun']),
    ([QUICK, '--distributed=auto'], ["--distributed = 'auto'", 'found', 'use ADDRESS,N,I']),
], ids=lambda value: value[-1].split('/')[-1] if isinstance(value, list) and value else 'none')
def test_wrong_command_line_is_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
  for name in [name for name in os.environ if name.startswith(('SLURM', 'KUBERNETES', 'TPU', 'OMPI'))]:
    monkeypatch.delenv(name)
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


def step_of(nodes, *, nodelist, tasks, index, local, **more):
  """What srun sets, after its manual page (output environment variables)."""
  return {'SLURM_JOB_ID': '1000', 'SLURM_STEP_ID': '2', 'SLURM_STEP_NODELIST': nodelist,
          'SLURM_STEP_NUM_NODES': str(nodes), 'SLURM_STEP_NUM_TASKS': str(tasks), 'SLURM_PROCID': str(index),
          'SLURM_LOCALID': str(local)} | more


@pytest.mark.parametrize('value', ['slurm', 'auto'])
def test_slurm_gives_count_index_and_first_host(value):
  hosts = {'node7': 'node7', 'node7,node9': 'node7', 'n[07-15,18],other': 'n07', 'n[3,5]': 'n3',
           'a-[1-2]-ib,b': 'a-1-ib'}
  for nodelist, host in hosts.items():
    found = command_line.cluster(value, step_of(2, nodelist=nodelist, tasks=16, index=9, local=1))
    name, port = found.address.split(':')
    assert (name, found.count, found.index) == (host, 16, 9)
    assert 1024 < int(port) < 65536


def test_slurm_gives_each_task_its_gpu():
  gpus = lambda tasks, **seen: command_line.cluster('slurm', step_of(
      2, nodelist='n[1-2]', tasks=tasks, index=1, local=1, **seen)).gpus
  assert gpus(16) == gpus(16, CUDA_VISIBLE_DEVICES='0,1,2') == (1,)
  assert gpus(16, CUDA_VISIBLE_DEVICES='3') is None  # Slurm has bound the task to its GPU
  assert gpus(2, CUDA_VISIBLE_DEVICES='0,1,2') is None  # one task for each node takes all


def test_address_count_and_index_are_read():
  found = command_line.parse([QUICK, '--distributed=host-0.jobs:8476,4,3']).cluster
  assert found == ('host-0.jobs:8476', 4, 3, None)
  assert command_line.parse([QUICK]).cluster is None

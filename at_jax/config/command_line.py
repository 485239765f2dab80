"""Reads the command line of `at_jax.main`. Errors are one line."""

from collections.abc import Mapping, Sequence
import contextlib
import io
import os
import pathlib
import re
from typing import NamedTuple

from absl import flags
import ml_collections
from ml_collections import config_flags

from at_jax import devices, environment, errors
from at_jax.config import fields

MODES = ('train', 'evaluate')
USAGE = ('use python -m at_jax.main --config=configs/X.py [--workdir=DIR] [--mode=train|evaluate] '
         '[--distributed=auto|slurm|ADDRESS,N,I] [--config.field=value]')
# What srun sets in each task.
_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_NODES',
          'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID')


class Parsed(NamedTuple):
  """A command line.

  Attributes:
    config: the configuration, with the values of the command line.
    workdir: the work directory; by default runs/X, or runs/X-small for X.py:small.
    mode: 'train' or 'evaluate'.
    cluster: the processes of the run; None for one process.
  """
  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  mode: str
  cluster: devices.Cluster | None = None


def parse(arguments: Sequence[str]) -> Parsed:
  """Reads a command line.

  Args:
    arguments: the command line without the program.

  Returns:
    Its configuration, work directory, mode and processes.

  Raises:
    errors.UserError: if a flag, file, field or mode is unknown, or a value has the wrong type or form.

  Example:
    >>> parsed = parse(['--config=configs/pgd_at_cifar10.py:small', '--config.seed=3'])
    >>> parsed.config.seed, str(parsed.workdir), parsed.mode
    (3, 'runs/pgd_at_cifar10-small', 'train')
  """
  files = [argument for argument in arguments if argument.lstrip('-').startswith('config=')]
  paths = [argument.split('=', 1)[1] for argument in files]
  if not paths:
    raise errors.UserError('--config', '', USAGE)
  config_path, colon, argument = paths[-1].partition(':')
  is_url = argument.startswith('//')
  config_path = environment.local_path('--config', paths[-1] if is_url else config_path)
  file = f'{config_path}{colon}{argument}'
  default = _load(config_path, file)
  known = fields.flatten(default.to_dict())
  _check_names(arguments, known)
  # ml_collections needs --config before its fields; users may write them in any order.
  values = _read(['at_jax.main', f'--config={file}', *(a for a in arguments if a not in files)], known)
  name = config_path.stem + (f'-{argument}' if argument else '')
  workdir = environment.local_path('--workdir', values['workdir'].value or f'runs/{name}')
  return Parsed(values['config'].value, workdir, values['mode'].value, cluster(values['distributed'].value))


def cluster(value: str, environ: Mapping[str, str] = os.environ) -> devices.Cluster | None:
  """Reads the value of --distributed.

  Args:
    value: 'slurm' for the tasks of an `srun`; 'auto' for these or what JAX finds (a TPU pod, Kubernetes);
      'ADDRESS,N,I' for the address of process 0 with a port, the number of processes, and the number of this
      one; '' for one process.
    environ: environment variables.

  Returns:
    The processes; None for one process.

  Raises:
    errors.UserError: if the value has another form, or a variable of Slurm is missing.

  Example:
    >>> cluster('10.0.0.1:1234,4,0')
    Cluster(address='10.0.0.1:1234', count=4, index=0, gpus=None)
  """
  if not value:
    return None
  if value == 'slurm' or value == 'auto' and 'SLURM_PROCID' in environ:
    return _slurm(value, environ)
  if value == 'auto':
    return devices.Cluster()
  found = re.fullmatch(r'([^\s,]+:\d+),(\d+),(\d+)', value)
  if not found:
    raise errors.UserError('--distributed', value, 'use auto, slurm or ADDRESS,N,I: the address of process 0 '
                           'with a port, the number of processes, and the number of this one from 0, such as '
                           '10.0.0.1:1234,4,0')
  address, count, index = found[1], int(found[2]), int(found[3])
  if index >= count:
    raise errors.UserError('--distributed', value, f'there is no process {index} of {count}: use a number '
                           f'below {count}')
  return devices.Cluster(address, count, index)


def _slurm(value: str, environ: Mapping[str, str]) -> devices.Cluster:
  missing = [name for name in _SLURM if name not in environ]
  if missing:
    raise errors.UserError('--distributed', value, f'{missing[0]} is not set: start the command with srun')
  job, step, hosts, nodes, count, index, local = (environ[name] for name in _SLURM)
  # The first host of 'node7', 'node7,node9', 'node[07-15,18],other' or 'node[07-15]-ib'.
  first = re.match(r'([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?', hosts)
  host = ''.join(part or '' for part in first.groups())
  port = 61440 + (31 * int(job) + int(step)) % 4096  # another one for each step that may share the host
  # Slurm may show all GPUs of a node to each of its tasks.
  shared = int(count) > int(nodes) and ',' in environ.get('CUDA_VISIBLE_DEVICES', ',')
  return devices.Cluster(f'{host}:{port}', int(count), int(index), (int(local),) if shared else None)


def _load(path: pathlib.Path, argument: str) -> ml_collections.ConfigDict:
  if not path.is_file():
    found = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
    remedy = errors.nearest(str(path), found) if found else 'there is no such folder'
    raise errors.UserError('--config', str(path), f'no such file; {remedy}')
  values = _read(['at_jax.main', f'--config={argument}'])
  return values['config'].value


def _check_names(arguments: Sequence[str], known: dict) -> None:
  for argument in arguments:
    name = argument.lstrip('-').split('=', 1)[0]
    if not name.startswith('config.'):
      continue
    field = name.removeprefix('config.')
    if field not in known:
      member = next((each for each in known if each.startswith(f'{field}.')), None)
      raise errors.UserError(f'--{name}', argument.partition('=')[2],
                             f'it is a group of fields: use one of them, such as --config.{member}' if member
                             else f'no such field; {fields.nearest(field, known)}')


def _read(argv: list[str], known: dict | None = None) -> flags.FlagValues:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  flags.DEFINE_string('workdir', '', 'Work directory of the run.', flag_values=values)
  flags.DEFINE_enum('mode', 'train', MODES, 'train or evaluate.', flag_values=values)
  flags.DEFINE_string('distributed', '', 'Processes of the run.', flag_values=values)
  try:
    with contextlib.redirect_stderr(io.StringIO()):  # absl prints its help text for some mistakes
      rest = values(argv)[1:]
  except errors.UserError:
    raise
  except Exception as error:  # absl and ml_collections raise many types for mistakes of the user
    for argument in argv:
      name, _, value = argument.partition('=')
      default = (known or {}).get(name.lstrip('-').removeprefix('config.'))
      if default is not None and str(error).startswith(f'flag {argument}: '):
        default = (tuple(default) or (1, 2)) if isinstance(default, list | tuple) else default
        kind = {int: 'whole number', bool: 'truth value'}.get(type(default), type(default).__name__)
        raise errors.UserError(name, value, f'use a {kind}, such as {default!r}') from error
    lines = [line for line in str(error).splitlines() if line.strip()]
    raise errors.UserError('command line', ' '.join(argv[1:]),
                           f'{lines[-1] if lines else type(error).__name__}; {USAGE}') from error
  if rest:
    raise errors.UserError('command line', ' '.join(rest), f'not a flag; {USAGE}')
  return values

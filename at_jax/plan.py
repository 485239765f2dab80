"""The command `python -m at_jax.plan --config=configs/X.py --topology=v5e:2x4`: what a run needs on a TPU.

It compiles the training step of the run with libtpu, the compiler of TPUs, which needs no TPU.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from typing import Any, NamedTuple
import warnings

from at_jax import environment, errors, xla_flags

USAGE = 'use python -m at_jax.plan --config=configs/X.py --topology=v5e:2x4 [--config.field=value]'
_NEEDED = ('absl', 'ml_collections', 'flax', 'optax', 'libtpu')
# libtpu would ask the metadata server of a TPU machine for these.
_NO_TPU = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
           'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}
_REPORT_VERSION = 2  # of the reports in the cache; another one compiles all programs again
_GIB = 2**30


class Chip(NamedTuple):
  """A kind of TPU.

  Attributes:
    flops: published peak, FLOPs per second in bfloat16; products of float32 matrices use it by default.
    bandwidth: published peak, bytes per second from and to its memory.
    memory: bytes that a program can use, as libtpu 0.0.50.1 says of a program that needs more.
    layouts: published layouts of the chips of one host.
  """
  flops: float
  bandwidth: float
  memory: float
  layouts: tuple[str, ...]


# Peaks and layouts: Google Cloud, pages "TPU v5e", "TPU v5p" and "TPU v6e", read in November 2026.
CHIPS = {'v5e': Chip(197e12, 819e9, 15.75 * _GIB, ('1x1', '2x2', '2x4')),
         'v5p': Chip(459e12, 2765e9, 95.73 * _GIB, ('2x2x1',)),
         'v6e': Chip(918e12, 1640e9, 31.24 * _GIB, ('1x1', '2x2', '2x4'))}
TOPOLOGIES = {f'{name}:{layout}': chip for name, chip in CHIPS.items() for layout in chip.layouts}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    arguments: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0 if the run fits, 1 if it does not, 2 after a line on stderr with the error and the
    remedy.
  """
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if {'--help', '-h'} & set(arguments):
    print(f'{USAGE}\ntopologies: {", ".join(TOPOLOGIES)}')
    return 0
  warnings.formatwarning = errors.one_line
  try:
    return _plan(arguments)
  except errors.UserError as error:
    environment.log(f'at_jax: {error}')
    return 2


def _plan(arguments: list[str]) -> int:
  topology, flags = _read(arguments)
  missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
  if missing:
    raise errors.UserError('missing packages', ', '.join(missing), "pip install 'at_jax[plan]' in an "
                           'environment of its own, with Python 3.12 or newer')
  os.environ['JAX_PLATFORMS'] = 'cpu'  # before jax is imported: the TPU is only compiled for
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  from at_jax.config import command_line
  config = command_line.parse(flags).config
  from at_jax.training import ahead_of_time
  devices, chip = _devices(topology), TOPOLOGIES[topology]
  run = ahead_of_time.build(config, devices, lambda line: environment.log(f'warning: {line}'))
  print(f'{topology}: {len(devices)} chip{"s" * (len(devices) > 1)}, batch {config.batch_size} '
        f'({config.batch_size // len(devices)} a chip), {config.model.get("dtype", "float32")}, '
        f'{config.dataset.name}', flush=True)
  needed, estimates = 0, []
  for phase in ahead_of_time.phases(run, devices):
    reports = {}
    for name, lower in phase.programs.items():
      reports[name] = _report(lower, f'phase {phase.name}, program {name!r}', topology)
      memory = reports[ahead_of_time.RUN]['memory']  # that of the others decides nothing
      limit = memory.get('limit', chip.memory)
      if 'limit' in memory or memory['total'] > limit:
        print(f'does not fit: phase {phase.name} {_needs(memory["total"], limit)}')
        return 1
    needed = max(needed, memory['total'])
    of_step = functools.partial(ahead_of_time.per_step, reports, phase.attack_steps)
    step = None if _unknown(reports) else roofline(of_step('flops'), of_step('hbm_bytes'), chip)
    estimates.append(step and step.seconds * phase.num_steps)
    print('\n'.join(summary(phase, reports, step)), flush=True)
  print('estimate of the run: not known' if None in estimates else
        f'estimate of the run: {duration(sum(estimates))} of training at the published peaks, without '
        'communication, validation and evaluation')
  print(f'fits: {_gib(needed)} of the {_gib(chip.memory)} of a chip')
  return 0


def _needs(total: float, limit: float) -> str:
  return f'needs {_gib(total)} of the {_gib(limit)} of a chip'


def _unknown(reports: Mapping[str, Mapping[str, Any]]) -> str:
  """The programs that the compiler does not count, because they need more memory than a chip has."""
  return '; '.join(f'program {name!r} {_needs(found["memory"]["total"], found["memory"]["limit"])}'
                   for name, found in reports.items() if 'flops' not in found)


def _read(arguments: list[str]) -> tuple[str, list[str]]:
  """The topology, and the flags of the configuration."""
  topology, flags = '', []
  for argument in arguments:
    name, _, value = argument.lstrip('-').partition('=')
    if name == 'topology':
      topology = value
    elif name == 'config' or name.startswith('config.'):
      flags.append(argument)
    else:
      raise errors.UserError('command line', argument, f'not a flag of this command; {USAGE}')
  if not any(flag.lstrip('-').startswith('config=') for flag in flags):
    raise errors.UserError('--config', '', USAGE)
  if topology not in TOPOLOGIES:
    raise errors.UserError('--topology', topology, 'use a chip and the layout of the chips of one host; '
                           + errors.nearest(topology, TOPOLOGIES))
  return topology, flags


def _devices(topology: str) -> list[Any]:
  """The chips of a topology, for which programs can be compiled."""
  from jax.experimental import topologies
  sizes = [int(size) for size in topology.partition(':')[2].split('x')]
  try:  # by default libtpu gives a host four chips
    return topologies.get_topology_desc(
        topology, 'tpu', chips_per_host_bounds=[*sizes, 1, 1][:3]).devices
  except Exception as error:  # libtpu and jax raise several types
    reason = ' '.join(str(error).split())
    raise errors.UserError('--topology', topology, f'libtpu cannot be used ({reason}): let one process at '
                           "a time use it, with the versions of 'at_jax[plan]'") from error


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'libtpu')}


def _report(lower: Callable[[], Any], what: str, topology: str) -> dict[str, Any]:
  """`ahead_of_time.report` of a program, from the cache if the same program was compiled before."""
  import jax

  from at_jax.training import ahead_of_time
  lowered = lower()
  versions = _versions()
  # The text of the program has all that the configuration and the source decide.
  made_of = [_REPORT_VERSION, topology, versions, os.environ.get('LIBTPU_INIT_ARGS', ''), lowered.as_text()]
  name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
  folder = xla_flags.cache_folder()
  path = folder / 'plans' / f'{name}.json' if folder else None
  with contextlib.suppress(OSError, ValueError):  # not compiled before, or damaged
    if path:
      found = json.loads(path.read_text(encoding='utf-8'))
      environment.log(f'{what}: compiled before, {path}')
      return found
  environment.log(f'{what}: compiling for {topology}, which can take many minutes')
  started = time.monotonic()
  try:
    found = ahead_of_time.report(lowered)
  except jax.errors.JaxRuntimeError as error:
    reason = ' '.join(str(error).split())[:300]
    raise errors.UserError('--topology', topology, f'libtpu cannot compile {what} ({reason})') from error
  environment.log(f'{what}: compiled in {duration(time.monotonic() - started)}')
  described = found | {'program': what, 'topology': topology, 'versions': versions}
  with contextlib.suppress(OSError):  # then it is compiled again next time
    if path:
      path.parent.mkdir(exist_ok=True)
      path.write_text(json.dumps(described, indent=1), encoding='utf-8')
  return found


class Estimate(NamedTuple):
  """Estimate of the time of a training step by the roofline model.

  Attributes:
    flops: FLOPs of one device.
    hbm_bytes: bytes that its operations read from and write to high-bandwidth memory (HBM).
    compute: seconds for the FLOPs.
    memory: seconds for the bytes of HBM.
  """
  flops: float
  hbm_bytes: float
  compute: float
  memory: float

  @property
  def seconds(self) -> float:
    """The larger of both."""
    return max(self.compute, self.memory)

  @property
  def bound(self) -> str:
    """What takes longer: 'FLOPs' or 'HBM'."""
    return 'FLOPs' if self.compute >= self.memory else 'HBM'


def roofline(flops: float, hbm_bytes: float, chip: Chip) -> Estimate:
  """Estimates the time of a program, max(FLOPs / peak FLOPs per second, bytes of HBM / its bandwidth).

  Args:
    flops: FLOPs of one device.
    hbm_bytes: bytes that its operations read from and write to HBM.
    chip: peaks of the device.

  Returns:
    An `Estimate`.

  Example:
    >>> found = roofline(197e12, 3 * 819e9, CHIPS['v5e'])
    >>> found.compute, found.memory, found.seconds, found.bound
    (1.0, 3.0, 3.0, 'HBM')

  Reference: Williams et al., Roofline: An Insightful Visual Performance Model for Multicore Architectures,
  2009.
  """
  return Estimate(flops, hbm_bytes, flops / chip.flops, hbm_bytes / chip.bandwidth)


def summary(phase: Any, reports: Mapping[str, Mapping[str, Any]], step: Estimate | None) -> list[str]:
  """Formats the compiler's report of a phase.

  Args:
    phase: an `ahead_of_time.Phase`.
    reports: `ahead_of_time.report` of each of its programs, by name.
    step: estimate of a step; None if FLOPs and bytes of a program are not reported.

  Returns:
    The lines.
  """
  from at_jax.training import ahead_of_time
  attack = reports.get(f'attack of {min(phase.attack_steps, 2)}', {'collectives': {}}).get('collectives')
  run = reports[ahead_of_time.RUN]
  kinds = ', '.join(f'{kind.replace("_", " ")} {size / 2**20:.1f}'
                    for kind, size in run['memory'].items() if kind != 'total')
  counted = f'not known: {_unknown(reports)}; compiled for counting only, not executed by the run'
  estimate = 'not known'
  if step:
    total = ahead_of_time.per_step(reports, phase.attack_steps, 'bytes')
    counted = (f'{step.flops / 1e9:,.1f} GFLOP, {total / 1e9:,.2f} GB read and written, '
               f'{step.hbm_bytes / 1e9:,.2f} GB of them in HBM')
    estimate = (f'{1e3 * step.seconds:.2f} ms, bound by {step.bound} '
                f'(FLOPs {1e3 * step.compute:.2f} ms, HBM {1e3 * step.memory:.2f} ms)')
  return [
      f'phase {phase.name}: {phase.num_steps:,} steps, each with an attack of {phase.attack_steps} steps',
      f'  memory of a chip     {run["memory"]["total"] / 2**20:,.1f} MiB (MiB: {kinds})',
      f'  a step on a chip     {counted}',
      f'  collectives a step   {_kinds(run["collectives"])}; in the attack: {_kinds(attack)}',
      f'  estimate of a step   {estimate}']


def _kinds(found: Mapping[str, int] | None) -> str:
  if found is None:
    return 'not known'
  return ', '.join(f'{number} {kind}' for kind, number in found.items()) or 'none'


def _gib(size: float) -> str:
  return f'{size / _GIB:.2f} GiB'


def duration(seconds: float) -> str:
  """Formats a time in the unit that reads well.

  Args:
    seconds: the time.

  Returns:
    For example '48 s', '12.5 min' or '3.2 h'.

  Example:
    >>> duration(8.513), duration(750), duration(36000)
    ('8.51 s', '12.5 min', '10 h')
  """
  unit, size = ('s', 1) if seconds < 120 else ('min', 60) if seconds < 7200 else ('h', 3600)
  return f'{seconds / size:.3g} {unit}'


if __name__ == '__main__':
  sys.exit(main())

"""Compiles the training step of a run for devices that need not be there, and reports what it needs.

The program of the run takes many steps in a loop, and each attack is a loop in it. Its memory is the one
that counts. But XLA's cost analysis counts the body of a loop once. So the FLOPs and the bytes of a step come
from three programs without loops, for an attack of K steps:

  update + attack of 1 step + (K − 1) · (attack of 2 steps − attack of 1 step)          `per_step`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import re
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import ml_collections

from at_jax import devices as devices_lib
from at_jax.attacks import _loops
from at_jax.config import validation
from at_jax.training import compiled_text, epoch_plan, run_data, setup, sharding, user_functions
from at_jax.training import step as step_lib

RUN = 'run'  # the program that a run executes; the others have no loop
_OUT_OF_MEMORY = re.compile(r'\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)')
_MEMORY = ('argument', 'output', 'temp', 'alias', 'generated_code')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Phase(NamedTuple):
  """A phase of a run, and the programs that show what one of its steps needs.

  Attributes:
    name: as `epoch_plan.name` gives it.
    num_steps: training steps of the whole phase.
    attack_steps: K, the steps of each attack; 0 without an attack.
    programs: `{name: function that lowers the program}`: 'run', 'update', and for an attack 'attack of 1' and
      'attack of 2', if K is at least 2.
  """
  name: str
  num_steps: int
  attack_steps: int
  programs: dict[str, Callable[[], jax.stages.Lowered]]


def build(config: ml_collections.ConfigDict, devices: Sequence[jax.Device],
          warn: Callable[[str], None] = lambda line: None) -> setup.Run:
  """Checks a configuration for some devices, and builds its run without reading data of known sizes.

  Args:
    config: the configuration.
    devices: the devices that the run would use.
    warn: as for `validation.check` and `user_functions.check`.

  Returns:
    A `setup.Run`.

  Raises:
    errors.UserError: as `validation.check`, `setup.assemble` and `user_functions.check`.
  """
  validation.check(config, warn)
  setup.check_devices(config, len(devices))
  sizes = run_data.known_sizes(config)
  run = setup.assemble(config, run_data.deferred(config, sizes) if sizes else run_data.read(config))
  user_functions.check(run, warn)
  return run


def phases(run: setup.Run, devices: Sequence[jax.Device]) -> list[Phase]:
  """Lists the phases of a run in their order. Nothing is traced yet.

  Args:
    run: the run.
    devices: the devices to compile for, which need not be of this machine.

  Returns:
    One `Phase` for each program of the run.
  """
  names = [epoch_plan.name(run.config, epoch) for epoch in range(run.config.epochs)]
  found = []
  for name in dict.fromkeys(names):
    arguments = run, name, epoch_plan.epoch_values(run.config, names.index(name)), tuple(devices)
    programs = {RUN: functools.partial(_lower_run, *arguments),
                'update': functools.partial(_lower_update, *arguments)}
    attack_steps = run.config.attack.num_steps if epoch_plan.recipe(run, name).attack else 0
    for steps in range(1, min(attack_steps, 2) + 1):
      programs[f'attack of {steps}'] = functools.partial(_lower_attack, *arguments, steps)
    found.append(Phase(name, names.count(name) * run.steps_per_epoch, attack_steps, programs))
  return found


def _inputs(run: setup.Run, values: step_lib.EpochValues, examples: tuple[int, ...], index: tuple[int, ...]
            ) -> tuple:
  """Shapes of the arguments of `step.train_steps` or `step.train_step`, on one device."""
  shape = jax.ShapeDtypeStruct
  return (jax.eval_shape(lambda: setup.init_state(run)),
          shape((*examples, *run.dataset.image_shape), jnp.uint8), shape(examples, jnp.int32),
          shape(index, jnp.int32), shape((), run.keys['train'].dtype),
          jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), values))


def _on_each(devices: Sequence[jax.Device], tree: Any) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype), tree)


def _lower_run(run, phase, values, devices) -> jax.stages.Lowered:
  """The program that `sharding.train_steps` runs."""
  streamed, share = run.config.dataset.source == 'stream', run.config.batch_size // len(devices)
  with _loops.tracing_for(devices[0].platform):
    if streamed:  # one step a call, with its own images
      *mapped, key, values = _inputs(run, values, (1, share), (1, share))
    else:
      order = sharding.steps_per_call(run.steps_per_epoch), share
      *mapped, key, values = _inputs(run, values, (run.dataset.train_size,), order)
      mapped[1] = jax.eval_shape(step_lib.rows, mapped[1])
    steps = sharding.mapped(step_lib.train_steps, epoch_plan.recipe(run, phase), devices, streamed=streamed)
    return steps.lower(*_on_each(devices, mapped), key, values)


def _with_attack_of(run: setup.Run, phase: str, num_steps: int) -> step_lib.Recipe:
  config = run.config.copy_and_resolve_references()
  config.attack.num_steps = num_steps
  return epoch_plan.recipe(run._replace(config=config), phase)


def _attacked(*arguments, recipe: step_lib.Recipe) -> step_lib.Examples:
  """What an update reads of `step.attacked`. Only a regulator reads `robust`, which costs a forward pass."""
  examples = step_lib.attacked(*arguments, recipe=recipe)
  return examples if recipe.regulate else examples._replace(robust=None)


@contextlib.contextmanager
def _unrolled() -> Iterator[None]:
  """Traces without loops, as for the CPU, and without the warnings of an attack of few steps."""
  with _loops.tracing_for('cpu'), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _lower_attack(run, phase, values, devices, num_steps) -> jax.stages.Lowered:
  """The attack of a step."""
  with _unrolled():
    share = run.config.batch_size // len(devices)
    *mapped, key, values = _inputs(run, values, (share,), (share,))
    attack = jax.pmap(functools.partial(_attacked, recipe=_with_attack_of(run, phase, num_steps)),
                      devices_lib.AXIS, in_axes=(0, 0, 0, 0, None, None), devices=devices)
    return attack.lower(*_on_each(devices, mapped), key, values)


def _lower_update(run, phase, values, devices) -> jax.stages.Lowered:
  """The update of a step, with attacked examples as arguments."""
  with _unrolled():
    share = run.config.batch_size // len(devices)
    *mapped, key, values = _inputs(run, values, (share,), (share,))
    state, *_, index = mapped = _on_each(devices, mapped)
    attack = jax.vmap(functools.partial(_attacked, recipe=_with_attack_of(run, phase, 1)),
                      in_axes=(0, 0, 0, 0, None, None), axis_name=devices_lib.AXIS)
    examples = jax.eval_shape(attack, *mapped, key, values)
    update = functools.partial(step_lib.update, recipe=epoch_plan.recipe(run, phase),
                               axis_name=devices_lib.AXIS)
    update = jax.pmap(update, devices_lib.AXIS, in_axes=(0, 0, 0, None), devices=devices, donate_argnums=0)
    return update.lower(state, examples, index, values)


def report(lowered: jax.stages.Lowered) -> dict[str, Any]:
  """Compiles a program and returns what it needs.

  Args:
    lowered: the program.

  Returns:
    A JSON object of numbers per device: 'flops' and 'bytes' of one execution, in which the body of a loop
    counts once, and bytes that stay on the chip count too; 'hbm_bytes', those of `compiled_text.hbm_bytes`,
    at most 'bytes'; 'collectives', the number of each kind; 'memory', bytes by kind, and their total. If the
    program needs more memory than the device has, only 'memory': its total and 'limit', as the compiler
    gives them.

  Raises:
    jax.errors.JaxRuntimeError: if the compiler fails for another reason.
  """
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    exceeded = _OUT_OF_MEMORY.search(str(error))
    if exceeded is None:
      raise
    total, limit = map(_as_bytes, exceeded.groups())
    return {'memory': {'total': total, 'limit': limit}}
  cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
  by_kind = {kind: getattr(memory, f'{kind}_size_in_bytes') for kind in _MEMORY}
  # A donated argument and the output that takes its place are counted twice.
  total = sum(by_kind.values()) - 2 * by_kind['alias']
  return {'flops': cost['flops'], 'bytes': cost['bytes accessed'],
          'hbm_bytes': min(compiled_text.hbm_bytes(text), cost['bytes accessed']),
          'collectives': compiled_text.collectives(text), 'memory': by_kind | {'total': total}}


def _as_bytes(text: str) -> int:
  unit = text.lstrip('0123456789.')
  return round(float(text.removesuffix(unit)) * _UNITS[unit])


def per_step(reports: Mapping[str, Mapping[str, Any]], attack_steps: int, quantity: str) -> float:
  """Adds the programs of a phase: update + attack of 1 + (K − 1) · (attack of 2 − attack of 1).

  Args:
    reports: `report` of each program of a `Phase`, by name.
    attack_steps: K.
    quantity: 'flops', 'bytes' or 'hbm_bytes'.

  Returns:
    The quantity of one training step on one device.

  Example:
    >>> reports = {'update': {'flops': 30.}, 'attack of 1': {'flops': 25.}, 'attack of 2': {'flops': 45.}}
    >>> per_step(reports, 10, 'flops')  # 5 before the first step, and 20 in each
    235.0
  """
  total = reports['update'][quantity]
  if attack_steps:
    total += reports['attack of 1'][quantity]
  if attack_steps > 1:
    total += (attack_steps - 1) * (reports['attack of 2'][quantity] - reports['attack of 1'][quantity])
  return total

"""Attacks any number of examples in one compiled batch of slots.

An example leaves its slot as soon as it is misclassified, and the next example takes the slot. So no step is
spent on an example whose verdict is known, and one program serves all examples.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _loops, _random, _stepper
from at_jax.attacks.autoattack import devices as devices_lib

Array = jax.Array
# Recorded for each example:
# attacked: a run ended.
# zero_gradient: in some run, a gradient was zero in every entry or not finite in some entry.
# rose: the example was fooled, or the loss of some run rose above its first value, or there is no loss.
DIAGNOSTICS = ('attacked', 'zero_gradient', 'rose')


class Passes(NamedTuple):
  """Passes of examples through the networks.

  Attributes:
    forward: forward passes of examples. A gradient takes one forward and one backward pass.
    backward: backward passes of examples.
    empty: forward passes of slots that had no example, or one whose run had ended.
  """
  forward: int
  backward: int
  empty: int


class Work(NamedTuple):
  """All examples of an evaluation.

  Attributes:
    x: f32[N, ...], clean inputs.
    y: i32[N], true classes.
    targets: i32[N, R], the target class of each run of a targeted attack.
    index: i32[N], folded into `key` for each example.
    key: a threefry PRNG key (`_random.threefry`).
    epsilon: f32[N], radii.
    bounds: the smallest and the largest input value, each a number or f32[N, ...].
  """
  x: Array
  y: Array
  targets: Array
  index: Array
  key: Array
  epsilon: Array
  bounds: tuple[Array, Array]


class Slots(NamedTuple):
  """The contents of the batch and what is to be loaded. Together with `Work` they are enough to resume.

  Attributes:
    items: i64[M, 2], pairs (example, run) in the order in which they are loaded. Several runs of one
      example may be in the batch; all leave when the example is fooled.
    example: i64[B], the example in each slot, -1 in an empty slot.
    run: i64[B], the run (restart or target) of that example.
    num_loaded: the number of items loaded so far.
    state: the state of the stepper, leaves [B, ...]; None before the first step.
  """
  items: np.ndarray
  example: np.ndarray
  run: np.ndarray
  num_loaded: int = 0
  state: Any = None


def empty_slots(items: np.ndarray, batch_size: int, devices: Sequence[jax.Device]) -> Slots:
  """Empty slots for the items; `batch_size` is the largest number of slots, as in `devices.num_slots`."""
  example = np.full(devices_lib.num_slots(len(items), batch_size, devices), -1)
  return Slots(items, example, np.zeros_like(example))


def run_batched(
    search_fn: _stepper.LogitsFn, verify_fn: _stepper.LogitsFn, work: Work, slots: Slots,
    fooled: np.ndarray, x_adv: np.ndarray, diagnostics: np.ndarray, passes: np.ndarray, *,
    stepper: _stepper.Stepper, devices: Sequence[jax.Device], random: bool = False,
) -> Iterator[Slots]:
  """Attacks every item. An example is fooled if `verify_fn` misclassifies the point that was found.

  A random model misclassifies any point now and then, so a single misclassified pass is not a success.
  For a random model every run is completed, and one more pass, with a key that no step has used, decides.

  Args:
    search_fn: the model to search on.
    verify_fn: the model that decides.
    work: the examples.
    slots: `empty_slots` to begin, or slots yielded earlier to resume.
    fooled: bool[N], updated in place. Examples that are already fooled are not attacked.
    x_adv: f32[N, ...], updated in place where an example is fooled.
    diagnostics: bool[3, N], rows as in `DIAGNOSTICS`, updated in place when a run ends.
    passes: i64[3], the fields of `Passes`, updated in place.
    stepper: the attack.
    devices: the slots are divided among these.
    random: whether the models take one example and a key. The last pass is made at the latest
      misclassified iterate, or at the input if there is none.

  Yields:
    The `Slots` before each refill, when the arrays above are up to date.

  Reference: the verification of random models follows the released code of AutoAttack.
  """
  # With a separate search model, points are verified after each step: a later point could replace one.
  verify_each_step = search_fn is not verify_fn and stepper.differentiates
  num_steps = 1 if verify_each_step else steps_per_refill(stepper)
  advance = _advance(stepper.differentiates, tuple(devices))
  load = _loader(_loops.compiler_options(None))
  slots, problem = _pad(slots, devices), None
  size, key = len(slots.example), work.key if random else None
  search_fn, num_classes = _stepper.capture(search_fn, work.x, size // len(devices), key)
  verify_fn, _ = _stepper.capture(verify_fn, work.x, size, key)
  work, search_fn, verify_fn = devices_lib.replicate((work, search_fn, verify_fn), devices)
  keys = run_keys(work, int(slots.items[:, 1].max(initial=0)) + 1)
  each_step = stepper.forward, num_classes if stepper.backward is None else stepper.backward
  count = np.zeros(size, int) if slots.state is None else np.asarray(slots.state.count)
  while True:
    was_empty, slots = slots.example < 0, _fill(slots, fooled)
    example, occupied, state = slots.example, slots.example >= 0, slots.state
    is_new = occupied & was_empty
    if not occupied.any():
      return
    if problem is None or is_new.any():
      problem = devices_lib.shard(problem_at(work, keys, np.maximum(example, 0), slots.run), devices)
      loads = is_new | (state is None)
      state = _any_state(problem, stepper, devices) if state is None else state
      state = devices_lib.shard(load(problem, loads, ~occupied, state, stepper=stepper), devices)
    for n in _loops.calls(num_steps, at_once=1):
      state = advance(search_fn, problem, state, stepper=stepper, num_steps=n)
    before = np.where(is_new, 0, count)
    found, count = jax.device_get((state.found, state.count))
    count_passes(passes, each_step, int((count - before)[occupied].sum()), size * num_steps)
    claimed = occupied & (count >= stepper.length if random else found)
    if claimed.any():
      count_passes(passes, (1, 0), int(claimed.sum()), size)
      draw = stepper.length if random else None  # steps fold in their count, 0..length - 1
      confirmed = claimed & np.asarray(_stepper.is_wrong(verify_fn, state.x_adv, problem, draw=draw))
      if confirmed.any():
        x_adv[example[confirmed]] = np.asarray(state.x_adv)[confirmed]
        fooled[example[confirmed]] = True
      if (claimed & ~confirmed).any():
        state = _reject(state, claimed & ~confirmed)
    ended = occupied & (fooled[example] | (count >= stepper.length))
    if ended.any():
      _record_diagnostics(diagnostics, state, example, ended, fooled)
    slots = slots._replace(example=np.where(ended, -1, example), state=state)
    yield slots


def _advance(differentiates: bool, devices: tuple[jax.Device, ...]):
  return _advancer(devices, _loops.compiler_options(differentiates))


@functools.cache
def _advancer(devices: tuple[jax.Device, ...], options: tuple[tuple[str, str], ...]):
  def advance(logits_fn, problem, state, *, stepper, num_steps):
    steps = functools.partial(_stepper.take_steps, stepper=stepper, num_steps=num_steps)
    return devices_lib.per_device(steps, devices)(logits_fn, problem, state)

  # The driver is never traced, so compiler options are allowed here.
  return jax.jit(advance, static_argnames=('stepper', 'num_steps'), compiler_options=dict(options))


def count_passes(passes: np.ndarray, each: tuple[int, int], num_taken: int, num_computed: int) -> None:
  """Adds to `passes`, i64[3]: `each` (forward, backward), times `num_taken`; the other steps were empty."""
  forward, backward = each
  passes += (num_taken * forward, num_taken * backward, (num_computed - num_taken) * forward)


def steps_per_refill(stepper: _stepper.Stepper) -> int:
  """The number of steps between two refills of the slots.

  Reading what was found costs time, which matters where a step is short.

  >>> steps_per_refill(_stepper.Stepper(None, None, 100, backward=0))
  20
  """
  if not stepper.differentiates:
    return min(20, stepper.length)
  return 1 if _loops.unrolls() else min(5, stepper.length)


_fold = jax.jit(jax.vmap(jax.random.fold_in))


def run_keys(work: Work, num_runs: int) -> tuple[Array, ...]:
  """For each run, N keys, one per example. Made for all examples, so that all attacks share the program."""
  keys = _random.fold(work.key, work.index)
  return tuple(_fold(keys, np.full(len(work.x), run)) for run in range(num_runs))


@jax.jit  # apart from `_load`, because attacks with as many slots share this program
def problem_at(work: Work, keys: tuple[Array, ...], example: Array, run: Array) -> _stepper.Problem:
  """The problem of some examples and their runs, both i64[B]; `keys` are `run_keys`."""
  column = jnp.minimum(run, work.targets.shape[1] - 1)
  return _stepper.Problem(
      work.x[example], work.y[example], work.targets[example, column], jnp.stack(keys)[run, example],
      work.epsilon[example], tuple(bound[example] if np.ndim(bound) else bound for bound in work.bounds))


def _pad(slots: Slots, devices: Sequence[jax.Device]) -> Slots:
  """Adds empty slots if the slots were made for another number of devices."""
  more = devices_lib.round_up(len(slots.example), devices) - len(slots.example)
  if not more:
    return slots
  pad = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], more, axis=0)])
  return slots._replace(example=np.append(slots.example, np.full(more, -1)),
                        run=np.append(slots.run, np.zeros(more, slots.run.dtype)),
                        state=jax.tree.map(pad, slots.state))


def _fill(slots: Slots, fooled: np.ndarray) -> Slots:
  """Puts the next items whose examples are still robust into empty slots."""
  items, example, run, begin, _ = slots
  free = np.flatnonzero(example < 0)
  if not len(free):
    return slots
  chosen = begin + np.flatnonzero(~fooled[items[begin:, 0]])[:len(free)]
  num_loaded = int(chosen[-1]) + 1 if len(chosen) == len(free) else len(items)
  example, run, new = example.copy(), run.copy(), free[:len(chosen)]
  example[new], run[new] = items[chosen].T
  return slots._replace(example=example, run=run, num_loaded=num_loaded)


def _any_state(problem, stepper, devices) -> Any:
  """A state of the right shapes, so that one program loads the first examples and later ones."""
  shapes = jax.eval_shape(stepper.init, problem)
  return devices_lib.shard(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), devices)


@functools.cache
def _loader(options: tuple[tuple[str, str], ...]):
  return jax.jit(_load, static_argnames='stepper', compiler_options=dict(options))


def _load(problem: _stepper.Problem, is_new, is_empty, state, *, stepper):
  state = _stepper.where(is_new, stepper.init(problem), state)
  # An empty slot counts as finished, so its steps change nothing.
  return state._replace(count=jnp.where(is_empty, stepper.length, state.count))


def _reject(state: Any, rejected: np.ndarray) -> Any:
  """Continues the search where the point that was found is not confirmed."""
  changes = {'found': jnp.where(rejected, False, state.found)}
  if hasattr(state, 'distance'):  # otherwise a rejected point would hide points further away
    changes['distance'] = jnp.where(rejected, jnp.inf, state.distance)
  return state._replace(**changes)


def _record_diagnostics(diagnostics, state: Any, example, ended, fooled) -> None:
  attacked, zero_gradient, rose = diagnostics
  attacked[example[ended]] = True
  zero_gradient[example[ended & (np.asarray(getattr(state, 'zero_gradient', 0)) > 0)]] = True
  rose[example[ended & (fooled[example] | np.asarray(getattr(state, 'rose', True)))]] = True

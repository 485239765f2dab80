"""Runs a stepper over any number of examples in one batch, refilled as seats come free.

An example that has fallen leaves at once, also in the middle of its attack, and the next one takes its
seat: no step is spent on an example whose fate is known, and nothing is compiled again.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _loops, _stepper
from at_jax.attacks.autoattack import devices as devices_lib

Array = jax.Array
# What is noted of every example: it was attacked; in one of its runs a gradient was zero everywhere,
# or not finite somewhere; it fell, or in one of its runs the loss rose above the start's, if it has a
# loss at all.
DIAGNOSTICS = ('attacked', 'blind', 'rose')


class Work(NamedTuple):
  """All there is to attack.

  Attributes:
    x: f32[N, ...], clean inputs.
    y: i32[N].
    targets: i32[N, R], for targeted attacks the class of each run.
    index: i32[N], what each example folds into `key`.
    key: a PRNG key of threefry (`keys.threefry`).
    epsilon: f32[N].
    bounds: the smallest and the largest value of an input.
  """
  x: Array
  y: Array
  targets: Array
  index: Array
  key: Array
  epsilon: Array
  bounds: tuple[Array, Array]


class Slots(NamedTuple):
  """Who sits in the batch. With `Work` and the list of items, all that is needed to go on.

  Attributes:
    example: i64[B], the example in each seat, -1 in an empty one.
    run: i64[B], which of its runs this is.
    state: the stepper's state, [B, ...].
    taken: how many items have been taken from the list.
  """
  example: np.ndarray
  run: np.ndarray
  state: Any
  taken: int


def run_batched(
    search_fn: _stepper.LogitsFn,
    verify_fn: _stepper.LogitsFn,
    work: Work,
    items: np.ndarray,
    fell: np.ndarray,
    x_adv: np.ndarray,
    signs: np.ndarray,
    *,
    stepper: _stepper.Stepper,
    batch_size: int,
    devices: Sequence[jax.Device],
    seats: Slots | None = None,
    random: bool = False,
) -> Iterator[Slots]:
  """Attacks every item; an example falls when `verify_fn` too misclassifies what was found.

  A random model errs now and then on any point, so one unlucky pass among a hundred is no success:
  there every run goes to its end, and one pass more, with a key that no step had, decides.

  Args:
    search_fn: the model that is searched on.
    verify_fn: the model that decides.
    work: the examples.
    items: i64[M, 2], pairs of example and run, in this order. Runs of one example may sit side by
      side; all leave when it falls.
    fell: bool[N], examples that need no attack any more. Written to.
    x_adv: f32[N, ...]. Written to where an example falls.
    signs: bool[3, N], of `SIGNS`. Written to when a run ends.
    stepper: the attack.
    batch_size: the most seats, a multiple of the number of devices; `devices.num_seats` says how many
      are set up.
    devices: that the seats are divided among.
    seats: where to go on, as yielded before; None to begin.
    random: whether the model is, and takes an example and a key; asked at the end of a run, it is
      asked about the latest misclassified iterate, or about the input if there was none.

  Yields:
    The `Seats` after every call of the compiled program, when `fell` and `x_adv` are up to date.

  Source: ours, the batching being that of serving engines; random models: the code of AutoAttack's
  authors.
  """
  # What is found is confirmed after each step, or what a later one finds could hide it.
  confirms = search_fn is not verify_fn and stepper.differentiates
  num_steps = 1 if confirms else steps_at_once(stepper)
  advance = _advance(stepper.differentiates, tuple(devices))
  if seats is None:
    nobody = np.full(devices_lib.num_slots(len(items), batch_size, devices), -1)
    seats = Slots(nobody, np.zeros_like(nobody), None, 0)
  seats, problem = _divisible(seats, devices), None
  size = len(seats.example)
  key = work.key if random else None
  search_fn, _ = _stepper.capture(search_fn, work.x, size // len(devices), key)
  verify_fn, _ = _stepper.capture(verify_fn, work.x, size, key)
  work, search_fn, verify_fn = devices_lib.replicate((work, search_fn, verify_fn), devices)
  while True:
    example, run, taken, fresh = _fill(seats, items, fell)
    if not np.any(example >= 0):
      return
    if problem is None or fresh.any():
      problem, state = _load(work, np.maximum(example, 0), run, fresh, example < 0, seats.state,
                              stepper=stepper)
      problem, state = devices_lib.shard((problem, state), devices)
    else:
      state = seats.state
    state = advance(search_fn, problem, state, stepper=stepper, num_steps=num_steps)
    found, count = jax.device_get((state.found, state.count))
    occupied = example >= 0
    claimed = occupied & (count >= stepper.length if random else found)
    if claimed.any():
      draw = stepper.length if random else None  # the steps fold in their count, 0..length - 1
      confirmed = claimed & np.asarray(_is_wrong(verify_fn, state.x_adv, problem, draw=draw))
      if confirmed.any():
        x_adv[example[confirmed]] = np.asarray(state.x_adv)[confirmed]
        fell[example[confirmed]] = True
      if (claimed & ~confirmed).any():
        state = _reject(state, claimed & ~confirmed)
    leaves = occupied & (fell[np.maximum(example, 0)] | (count >= stepper.length))
    _note(signs, state, example, leaves, fell)
    seats = Slots(np.where(leaves, -1, example), run, state, taken)
    yield seats


@functools.cache
def _advance(differentiates: bool, devices: tuple[jax.Device, ...]):
  def advance(logits_fn, problem, state, *, stepper, num_steps):
    steps = functools.partial(_stepper.take_steps, stepper=stepper, num_steps=num_steps)
    return devices_lib.per_device(steps, devices)(logits_fn, problem, state)

  # This runs on the host, at the top level, where options for the compiler may be given.
  return jax.jit(advance, static_argnames=('stepper', 'num_steps'),
                 compiler_options=_loops.compiler_options(differentiates))


def restore_slots(work: Work, seats: Slots, *, stepper: _stepper.Stepper) -> Slots:
  """Seats whose state is a flat list of arrays, as read from a file, with the state as it was.

  Args:
    work: the examples.
    seats: `seats.state` is a list, the leaves of a state in order.
    stepper: the attack.

  Returns:
    The `Seats` that `drain` goes on from.

  Raises:
    ValueError: if these are not the arrays of such a state.

  Source: ours.
  """
  admit = functools.partial(_load, stepper=stepper)
  nobody = np.zeros(len(seats.example), bool)
  _, state = jax.eval_shape(admit, work, seats.example, seats.run, nobody, nobody, None)
  looks = lambda leaves: [(leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves]
  wanted, found = looks(jax.tree.leaves(state)), looks(seats.state)
  if found != wanted:
    raise ValueError(
        f'{len(found)} arrays, which are not the {len(wanted)} of {type(state).__module__}')
  leaves = [jnp.asarray(leaf) for leaf in seats.state]
  return seats._replace(state=jax.tree.unflatten(jax.tree.structure(state), leaves))


def steps_at_once(stepper: _stepper.Stepper) -> int:
  """How many steps one call makes before seats are looked at again.

  Args:
    stepper: the attack.

  Returns:
    1 where steps are written out, which keeps the program small; more where they are looped over.

  Example:
    >>> steps_at_once(steppers.Stepper(None, None, 100, differentiates=False))
    20

  Source: ours.
  """
  if not stepper.differentiates:
    return min(20, stepper.length)
  return 1 if _loops.writes_out() else min(5, stepper.length)


def _divisible(seats: Slots, devices: Sequence[jax.Device]) -> Slots:
  """The same with empty seats added, where they were set up for another number of devices."""
  more = devices_lib.round_up(len(seats.example), devices) - len(seats.example)
  if not more:
    return seats
  longer = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], more, axis=0)])
  return seats._replace(example=np.append(seats.example, np.full(more, -1)),
                        run=np.append(seats.run, np.zeros(more, seats.run.dtype)),
                        state=jax.tree.map(longer, seats.state))


def _fill(seats: Slots, items: np.ndarray, fell: np.ndarray):
  """Seats the next items of the list whose examples still stand."""
  example, run = seats.example.copy(), seats.run.copy()
  fresh, taken = np.zeros(len(example), bool), seats.taken
  for seat in np.flatnonzero(example < 0):
    while taken < len(items) and fell[items[taken, 0]]:
      taken += 1
    if taken == len(items):
      break
    example[seat], run[seat] = items[taken]
    fresh[seat] = True
    taken += 1
  return example, run, taken, fresh


@functools.partial(jax.jit, static_argnames='stepper')
def _load(work: Work, example, run, fresh, empty, state, *, stepper):
  fold = jax.vmap(lambda index, run: jax.random.fold_in(jax.random.fold_in(work.key, index), run))
  column = jnp.minimum(run, work.targets.shape[1] - 1)
  problem = _stepper.Problem(
      work.x[example], work.y[example], work.targets[example, column],
      fold(work.index[example], run), work.epsilon[example], work.bounds)
  new = stepper.init(problem)
  state = new if state is None else _stepper.where(fresh, new, state)
  # An empty seat counts as finished, so that its steps change nothing.
  return problem, state._replace(count=jnp.where(empty, stepper.length, state.count))


@functools.partial(jax.jit, static_argnames='draw')
def _is_wrong(logits_fn, x, problem, *, draw):
  if draw is None:
    return ~_stepper.is_correct(logits_fn(x), problem.y)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(problem.key)
  return ~_stepper.is_correct(_stepper.one_by_one(logits_fn, x, keys), problem.y)


def _reject(state: Any, rejected: np.ndarray) -> Any:
  """The state that goes on looking where what was found is not confirmed."""
  changes = {'found': jnp.where(rejected, False, state.found)}
  if hasattr(state, 'distance'):  # or a point that is no success would hide those further away
    changes['distance'] = jnp.where(rejected, jnp.inf, state.distance)
  return state._replace(**changes)


def _note(signs: np.ndarray, state: Any, example: np.ndarray, leaves: np.ndarray,
          fell: np.ndarray) -> None:
  """Writes down what the runs that end now say about the model."""
  if not leaves.any():
    return
  signs[0, example[leaves]] = True
  if hasattr(state, 'zero_gradient'):
    signs[1, example[leaves & (np.asarray(state.zero_gradient) > 0)]] = True
  rose = fell[example] | np.asarray(getattr(state, 'rose', True))
  signs[2, example[leaves & rose]] = True

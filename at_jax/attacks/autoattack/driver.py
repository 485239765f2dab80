"""AutoAttack: four attacks without parameters to tune, and their worst case for each example.

This is a driver on the host, not a pure function: it deals examples to compiled batches, reports and
saves. The attacks it drives (`apgd`, `fab`, `square`) compose like any other function.
"""

from collections.abc import Callable, Sequence
import functools
import os
import time
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _diagnostics, _random, _stepper
from at_jax.attacks.autoattack import batching, state_file
from at_jax.attacks.autoattack import components as components_lib
from at_jax.attacks.autoattack import devices as devices_lib
from at_jax.attacks.square import image_shape

Array = jax.Array
# Folded into an example's key where a random model sees its clean input; runs fold in their number.
_CLEAN = 2**31 - 1


class AutoAttackResult(NamedTuple):
  """What AutoAttack found.

  Attributes:
    x: f32[N, ...], a misclassified point within ε where there is one, else the input itself.
    robust: bool[N], classified correctly as it is and under every attack; its mean is the robust
      accuracy.
    clean: bool[N], classified correctly as it is.
    components: for each attack, in the order they ran, bool[N]: robust after it (with
      `cascade=False`: under it alone).
    warnings: reasons to doubt the numbers.
    seconds: for each attack, its time, compilation included.
  """
  x: np.ndarray
  robust: np.ndarray
  clean: np.ndarray
  components: dict[str, np.ndarray]
  warnings: tuple[str, ...]
  seconds: dict[str, float]


class Progress(NamedTuple):
  """Where an evaluation is.

  Attributes:
    attack: the attack that runs.
    done: how many of its runs are over, those of fallen examples among them, of
    total: this many.
    accuracy: robust accuracy so far, in 0..1.
    seconds: since this attack began.
  """
  attack: str
  done: int
  total: int
  accuracy: float
  seconds: float


def autoattack(
    logits_fn: _stepper.LogitsFn,
    x: Array,
    y: Array,
    key: Array,
    *,
    epsilon: float | Array,
    norm: str = 'linf',
    version: str = 'standard',
    attacks: tuple[str, ...] | None = None,
    batch_size: int = 250,
    bounds: tuple[float, float] = (0., 1.),
    index: Array | None = None,
    num_steps: int = 100,
    num_queries: int = 5000,
    cascade: bool = True,
    search_fn: _stepper.LogitsFn | None = None,
    devices: Sequence[jax.Device] | None = None,
    state_path: str | os.PathLike | None = None,
    save_every: float = 60.,
    progress: Callable[[Progress], None] | None = None,
    channel_axis: int = -1,
    warn: Callable[[str], None] | None = None,
) -> AutoAttackResult:
  """Robust accuracy by an ensemble: an example is robust if no attack of the version changes its class.

  'standard' is APGD on cross-entropy, APGD on targeted DLR and FAB-T against the 9 likeliest other
  classes, and Square with 5,000 queries; in L1 its APGDs begin in the ball of 3ε, with 5 restarts
  or against 5 classes. 'plus' adds APGD on DLR and FAB, with 5 restarts. 'rand' is for random
  models: APGD on cross-entropy and on DLR, 20 passes a gradient; one pass at the end decides.

  Each attack starts from the clean input of what is still robust. Examples are attacked in one batch
  at a time; one that falls leaves at once and the next takes its seat. What an example draws
  depends on `key`, the attack and its index alone.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]; with version='rand' it is called for each example
      by itself, x f32[1, ...], as `logits_fn(x, key)`.
    x: f32[N, ...], inputs within `bounds`; for Square [N, H, W, C], [N, H, W], [N, D] or, with
      `channel_axis`, [N, C, H, W].
    y: i32[N], true classes.
    key: a PRNG key.
    epsilon: radius, a number or f32[N].
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus' or 'rand'.
    attacks: names of attacks to run instead of the version's, with its restarts and targets: apgd-ce,
      apgd-dlr, apgd-t, fab, fab-t, square; each once, with 'rand' those of APGD. (A list of one's
      own has five restarts in the authors' code, as it has here with version='plus'.)
    batch_size: how many examples are attacked side by side, at most.
    bounds: the smallest and the largest value an input may take.
    index: i32[N], what each example folds into `key`, each once; by default its place in x. Of a part
      of a larger set, with the places there, the draws are those of the whole; `processes.autoattack`
      deals out such parts.
    num_steps: of APGD and FAB. Published numbers are with 100.
    num_queries: of Square. Published numbers are with 5,000.
    cascade: attack only what the attacks before left robust; else every attack gets all examples
      that are classified correctly.
    search_fn: search on this function instead, for example one that computes in bfloat16; only what
      logits_fn confirms is counted.
    devices: over which the examples of a batch are spread, its size rounded up to a multiple of
      their number; by default all of this process. With one, arrays stay where they are.
    state_path: a file to write the state to; its folder is made. If it exists the evaluation goes on
      from it, with the same batch size as rounded up: a multiple of both numbers of devices lets
      their number change. It is known again by the inputs, the options, the model's weights where they
      are arguments of a `jax.tree_util.Partial`, and its answers to clean inputs, not by its gradients:
      use another path for a model that is differentiated otherwise.
    save_every: seconds between writes.
    progress: called with a `Progress` after every compiled call.
    channel_axis: where Square finds the channels: -1 if last, or if there are none; 1 for
      [N, C, H, W].
    warn: called with each of the warnings as soon as it is known, those about the model before any
      attack begins; by default `warnings.warn`.

  Returns:
    An `AutoAttackResult` of numpy arrays.

  Raises:
    ValueError: for an unknown norm or version, an attack that is unknown or named twice, a batch
      size, steps or queries below 1 (of APGD in L1: 2 steps), no devices, no examples, inputs that
      are integers, of less precision than float32, NaN, beyond the bounds or of a shape that Square
      cannot take, bounds that are none, a key, classes, radii or an index that are none or not one an
      example, outputs that are not [B, C], a `search_fn` of fewer classes, `search_fn`, other attacks
      than APGD's or a model that takes no key with version='rand', a state file of another evaluation,
      and under jit, vmap and the like.
    OSError: if the state cannot be written, before anything is attacked.
    zipfile.BadZipFile: for a damaged state file.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .4], [.2, .9]]), jnp.array([0, 1])
    >>> result = autoattack(lambda x: x @ w, x, y, jax.random.key(0), epsilon=.1, batch_size=2,
    ...                     num_steps=10, num_queries=10)
    >>> print(result.robust, list(result.components))
    [False  True] ['apgd-ce', 'apgd-t', 'fab-t', 'square']

  Source: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
  Parameter-free Attacks, 2020, section 5; refilling, resuming and independence: ours.
  """
  names = components_lib.choose(attacks, version, norm)
  _arguments.check_outside_jit(x=x, y=y, key=key, epsilon=epsilon)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds)
  _check(problem, names, batch_size, channel_axis)
  planned = functools.partial(components_lib.plan, names, norm, version, num_steps=num_steps,
                              num_queries=num_queries, channel_axis=channel_axis)
  planned(num_classes=2)  # for what it refuses, before the model is asked anything
  state_file.check_writable(state_path)
  devices = devices_lib.choose(devices)
  batch_size = devices_lib.round_up(min(batch_size, len(problem.x)), devices)
  index = np.asarray(_arguments.indices(index, len(problem.x), once=True))
  key = _random.threefry(key)
  verify_fn, random = logits_fn, version == 'rand'
  if random:
    if search_fn is not None:
      raise ValueError("search_fn needs a model whose answers are final: leave it out with "
                       "version='rand'")
  search_fn = verify_fn if search_fn is None else search_fn
  capture = functools.partial(_stepper.capture, x=problem.x, num_examples=batch_size,
                              key=key if random else None)
  model, num_classes = capture(verify_fn)
  ask = functools.partial(_in_batches, model, index, key, batch_size=batch_size,
                          devices=devices, random=random)
  logits, notes = ask(problem.x), []
  _arguments.check_classes('y', problem.y, logits.shape[1])
  clean = np.asarray(_stepper.is_correct(jnp.asarray(logits), problem.y))
  if search_fn is not verify_fn:
    given = capture(search_fn)[1]
    if given < num_classes:
      raise ValueError(f'search_fn gives {given} logits, logits_fn {num_classes}: use the same classes')

  def tell(lines: Sequence[str]) -> None:
    notes.extend(lines)
    for line in lines:
      warnings.warn(line, stacklevel=3) if warn is None else warn(line)

  tell(_diagnostics.check_reach(np.asarray(problem.epsilon), problem.x.shape[1:], problem.bounds, norm))
  tell(_diagnostics.check_classes(int((~np.isneginf(logits)).sum(axis=1).min()), names))
  tell(_diagnostics.check_logits(logits, y, names))
  if 'square' in names:
    tell(_diagnostics.check_channels(problem.x.shape, channel_axis))
  if not random:
    some = max(batch_size, 2)  # for one alone has no company
    tell(_diagnostics.check_determinism(logits_fn, problem.x[:some], problem.y[:some], logits[:some]))
  passes = planned(num_classes=logits.shape[1])
  targets = components_lib.targets(logits)
  work = batching.Work(problem.x, problem.y, jnp.asarray(targets), jnp.asarray(index), key,
                     problem.epsilon, problem.bounds)
  models = (model,) if search_fn is verify_fn else (capture(search_fn)[0], model)
  mark = {} if state_path is None else state_file.fingerprint(work, clean, models, {
      'attacks': names, 'norm': norm, 'version': version, 'batch_size': batch_size,
      'num_steps': num_steps, 'num_queries': num_queries, 'cascade': cascade,
      'search_fn': search_fn is not verify_fn, 'channel_axis': channel_axis})
  record, seats, items = state_file.reopen(state_path, mark, clean, logits, np.asarray(problem.x), targets,
                                      len(names))
  work = work._replace(targets=jnp.asarray(record.targets))
  reachable = np.take_along_axis(logits, record.targets, axis=1) > -np.inf  # else it is no class
  save = state_file.saver(state_path, mark, save_every)
  last = {one.name: number for number, one in enumerate(passes)}
  for number, one in enumerate(passes):
    row, fell = names.index(one.name), record.fell
    # Two attacks that draw alike would be one attack more than once: a random model, for example, is
    # asked anew after each.
    mine = work._replace(key=jax.random.fold_in(key, components_lib.NAMES.index(one.name)))
    if number >= record.passed:
      if not cascade and seats is None and one.name not in [p.name for p in passes[:number]]:
        fell[:] = ~clean
      if items is None:
        items = np.array([(i, run) for run in one.runs for i in np.flatnonzero(~fell)
                          if not one.aims or reachable[i, run]])
      if seats is not None:
        seats = state_file.restore(state_path, mine, seats, stepper=one.stepper)
      began, spent = time.monotonic(), record.seconds[row]
      for seats in batching.run_batched(search_fn, verify_fn, mine, items, fell, record.x,
                                record.signs[row], stepper=one.stepper, batch_size=batch_size,
                                devices=devices, seats=seats, random=random):
        record.seconds[row] = spent + time.monotonic() - began
        save(record, seats, items)
        if progress is not None:
          over = seats.taken - int((seats.example >= 0).sum())
          progress(Progress(one.name, over, len(items), float(np.mean(~fell)),
                            float(record.seconds[row])))
      record.verdicts[row] = ~fell
      record, seats, items = record._replace(passed=number + 1), None, None
      save(record, seats, items)
    if number == last[one.name]:  # said while the others run, and again if it is resumed
      # An example with ε = 0 has nowhere to go.
      attacked, blind, rose = record.signs[row] & (np.asarray(problem.epsilon) > 0)
      tell(_diagnostics.check_gradients(one.name, int(attacked.sum()), int(blind.sum()),
                                  int((attacked & ~rose).sum()), names, random))
  again, robust = ask(record.x), clean & record.verdicts.all(axis=0)
  fell = clean & ~robust
  tell(_diagnostics.check_end(again, fell))
  if not random:
    tell(_diagnostics.check_found(again, y, fell))
  tell(_diagnostics.check_square(_standing(record, clean, names, cascade)))
  return AutoAttackResult(
      record.x, robust, clean,
      dict(zip(names, record.verdicts, strict=True)), tuple(notes),
      dict(zip(names, record.seconds.tolist(), strict=True)))


def _check(problem, names, batch_size, channel_axis) -> None:
  """Raises for what would go wrong without a word, or only after hours."""
  _arguments.check_count('batch_size', batch_size)
  if 'square' in names:
    image_shape(problem.x.shape[1:], channel_axis)


@functools.partial(jax.jit, static_argnames='random')
def _call(logits_fn, x, index, key, *, random):
  if not random:
    return logits_fn(x)
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), _CLEAN))(index)
  return _stepper.one_by_one(logits_fn, x, keys)


def _in_batches(logits_fn, index, key, x, *, batch_size: int, devices, random: bool) -> np.ndarray:
  """Logits of all examples, the last batch filled up so that one program serves."""
  (logits_fn, key), x = devices_lib.replicate((logits_fn, key), devices), np.asarray(x)
  starts = range(0, len(x), batch_size)
  rows = [np.minimum(np.arange(start, start + batch_size), len(x) - 1) for start in starts]
  batches = [devices_lib.shard((x[row], index[row]), devices) for row in rows]
  logits = []
  for batch in batches:
    logits.append(np.asarray(_call(logits_fn, *batch, key, random=random)))
  return np.concatenate(logits)[:len(x)]


def _standing(record, clean, names, cascade) -> dict[str, float]:
  """Robust accuracy after each attack; where every one had all examples, Square counts as the last."""
  told, standing = {}, clean
  for name in names if cascade else sorted(names, key=lambda name: name == 'square'):
    standing = standing & record.verdicts[names.index(name)]
    told[name] = standing.mean()
  return told

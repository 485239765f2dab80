"""AutoAttack: an ensemble of parameter-free attacks, and the worst case over them for each example.

`autoattack` is a driver on the host and not a pure function: it runs compiled batches, reports progress and
writes a state file. The attacks that it runs (`apgd`, `fab`, `square`) compose like any other function.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import os
import time
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _diagnostics, _functions, _random, _stepper, norms
from at_jax.attacks.autoattack import audit as audit_lib
from at_jax.attacks.autoattack import batching, state_file
from at_jax.attacks.autoattack import components as components_lib
from at_jax.attacks.autoattack import devices as devices_lib
from at_jax.attacks.square import image_shape

Array = jax.Array
# Folded into the key of an example for the clean pass of a random model; runs fold in their number.
_CLEAN = 2**31 - 1


class AutoAttackResult(NamedTuple):
  """Result of `autoattack`.

  Attributes:
    x: f32[N, ...], a misclassified point within ε if one was found, else the input.
    robust: bool[N], classified correctly on the clean input and under every attack, those of an audit
      included. Its mean is the robust accuracy; with an audit it is an upper bound, see `audit`.
    clean: bool[N], classified correctly on the clean input.
    components: for each attack, in the order they ran, bool[N]: robust after it (with `cascade=False`: under
      it alone). The attacks of an audit are named 'audit/apgd-ce' and so on; they attack the sample only.
    warnings: reasons to doubt the numbers.
    seconds: for each attack, its time in seconds, including compilation.
    passes: for each attack, its `Passes`, including those that confirm a point; 'checks' counts those of the
      clean inputs, of the checks of the model, and of the points that were found, evaluated again.
    audit: the numbers of the audit and its interval; None without one. `print` shows it
      as a sentence.
    audited: bool[N], the sample of the audit.
  """
  x: np.ndarray
  robust: np.ndarray
  clean: np.ndarray
  components: dict[str, np.ndarray]
  warnings: tuple[str, ...]
  seconds: dict[str, float]
  passes: dict[str, batching.Passes]
  audit: audit_lib.Audit | None
  audited: np.ndarray


class Progress(NamedTuple):
  """Progress of an evaluation.

  Attributes:
    attack: the current attack; in an audit 'audit/apgd-ce' and so on.
    done: the number of its runs that are complete, including runs of fooled examples.
    total: the number of its runs.
    accuracy: robust accuracy so far, in 0..1.
    seconds: time since the attack began.
  """
  attack: str
  done: int
  total: int
  accuracy: float
  seconds: float


class _Evaluation(NamedTuple):
  """What every phase of an evaluation reads; `checks` counts passes outside the attacks."""
  attacks: tuple[str, ...]
  work: batching.Work
  search_fn: _stepper.LogitsFn
  verify_fn: _stepper.LogitsFn
  random: bool
  cascade: bool
  batch_size: int
  devices: tuple[jax.Device, ...]
  checks: np.ndarray                # i64[3], the fields of `Passes`
  logits: np.ndarray | None = None  # f32[N, C], of the clean inputs
  clean: np.ndarray | None = None   # bool[N], classified correctly


def autoattack(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *,
    epsilon: float | Array, norm: str = 'linf', version: str = 'standard',
    attacks: tuple[str, ...] | None = None, batch_size: int = 250, bounds: tuple[float, float] = (0., 1.),
    mask: Array | None = None, index: Array | None = None, num_steps: int = 100, num_queries: int = 5000,
    cascade: bool = True, audit: int = 0, search_fn: _stepper.LogitsFn | None = None,
    devices: Sequence[jax.Device] | None = None, state_path: str | os.PathLike | None = None,
    save_every: float = 60., progress: Callable[[Progress], None] | None = None, channel_axis: int = -1,
    warn: Callable[[str], None] | None = None,
    choose_sample: Callable[[np.ndarray], np.ndarray] | None = None,
) -> AutoAttackResult:
  """Robust accuracy under an ensemble: an example is robust if no attack of the version changes its class.

  'standard' is APGD on cross-entropy, APGD on targeted DLR and FAB-T, both against the 9 most likely other
  classes, and Square with 5,000 queries. In L1, its APGD starts in the ball of 3ε, with 5 restarts or 5
  target classes. 'plus' adds APGD on DLR and FAB, and makes 5 restarts. 'rand' is for random models: APGD on
  cross-entropy and on DLR, with 20 passes per gradient; one pass at the end decides.

  'fast' takes 161 gradients of a robust example where 'standard' takes 1,910, and no Square: 50 steps of APGD
  on the soft DLR loss ('apgd-soft'), then APGD on z_t − z_y for the nearest t of the 9 most likely other
  classes ('apgd-near'). The distance of a class is that of its boundary linearised at the input. In L1 both
  start in the ball of 3ε. It can miss examples of a model that hides its gradient, which Square would find.

  Each attack starts from the clean inputs of the examples that are still robust. Examples are attacked in
  one batch; a fooled example leaves at once and the next one takes its slot. The random draws of an example
  depend only on `key`, the attack and its index.

  Args:
    logits_fn: maps f32[B, ...] to logits f32[B, C]. With version='rand' it is called for one example at a
      time, as `logits_fn(x, key)` with x f32[1, ...].
    x: f32[N, ...], inputs within `bounds`; for Square [N, H, W, C], [N, H, W], [N, D] or, with
      `channel_axis`, [N, C, H, W].
    y: i32[N], true classes.
    key: a PRNG key.
    epsilon: radius, a number or f32[N], in units of x.
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus', 'rand' or 'fast'.
    attacks: attacks to run instead of those of the version, with the restarts and targets of the version:
      apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, apgd-soft, apgd-near, each at most once; with 'rand' only
      apgd-ce, apgd-dlr, apgd-t, apgd-soft.
      (The released code makes 5 restarts for a custom list, as version='plus' does here.)
    batch_size: the largest number of examples attacked at the same time.
    bounds: the smallest and the largest input value, numbers or arrays that broadcast with x.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change. None lets all change.
    index: i32[N], distinct integers folded into `key`; by default the positions in x. For a part of a
      larger set, pass the positions there: the draws are then those of the whole set. `multihost.autoattack`
      does this.
    num_steps: steps of APGD and FAB; with 'fast', apgd-soft takes half. Published numbers use 100.
    num_queries: queries of Square. Published numbers use 5,000.
    cascade: whether an attack gets only the examples that are robust so far; otherwise it gets all examples
      that are classified correctly.
    audit: with version='fast', the largest number of examples robust under it that are attacked with the
      whole of 'standard' too. They are a random sample, and `audit` of the result is an interval for the
      robust accuracy under both. Their verdicts are those of 'standard' run on all examples.
    search_fn: a model to search on instead, for example one that computes in bfloat16. An example counts
      as fooled only if `logits_fn` confirms it.
    devices: the examples of a batch are divided among these; the batch size is rounded up to a multiple of
      their number. By default all devices of this process. With one device nothing is placed: x and the
      arrays of the model stay where they are.
    state_path: local file for the state; its folder is created. If the file exists, the evaluation resumes
      from it. The rounded batch size must be the same; the number of devices may change. The file is verified
      against the inputs, the options, the clean logits, and the weights where they are arguments of a
      `jax.tree_util.Partial` or those of a `models.torch_model.TorchModel`. It is not verified against
      gradients: use another path for a model with another derivative.
    save_every: seconds between writes.
    progress: called with a `Progress` after every compiled call. If it raises, the state is written first.
    channel_axis: the axis on which Square finds the channels: -1 if last or if there are none, 1 for
      [N, C, H, W].
    warn: called with each warning as soon as it is known, warnings about the model before any attack begins;
      by default `warnings.warn`.
    choose_sample: for `multihost.autoattack`: from bool[N], the examples robust under 'fast', to bool[N], the
      sample of the audit. By default it is drawn with the key.

  Returns:
    An `AutoAttackResult` of NumPy arrays.

  Raises:
    ValueError: if an argument or an output of the model has an invalid shape, dtype or value, if the state
      file belongs to another evaluation, or under a transformation such as jit or vmap.
    OSError: if the state file cannot be written; raised before any attack.
    zipfile.BadZipFile: if the state file is damaged.

  Example:
    >>> w = jnp.array([[1., -1.], [-1., 1.]])
    >>> x, y = jnp.array([[.5, .4], [.2, .9]]), jnp.array([0, 1])
    >>> result = autoattack(lambda x: x @ w, x, y, jax.random.key(0), epsilon=.1, batch_size=2,
    ...                     num_steps=10, num_queries=10)
    >>> print(result.robust, list(result.components))
    [False  True] ['apgd-ce', 'apgd-t', 'fab-t', 'square']

  Reference: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks, 2020, section 5. Refilling, resuming and batch-independent draws are additions of
    this implementation.
  """
  attacks = components_lib.choose(attacks, version, norm)
  audited = _audited(audit, version)
  settings = dict(num_steps=num_steps, num_queries=num_queries, channel_axis=channel_axis)
  plan = lambda num_classes: [components_lib.plan(names, norm, which, num_classes, **settings)
                              for names, which in ((attacks, version), (audited, 'standard'))]
  work = _check_examples(x, y, key, epsilon, bounds, mask, index)
  _check_options(batch_size, cascade, state_path, save_every, progress, warn)
  if 'square' in (*attacks, *audited):
    image_shape(work.x.shape[1:], channel_axis)
  plan(2)  # invalid settings raise before the model is called
  state_path = None if state_path is None else os.path.expanduser(state_path)
  state_file.check_writable(state_path)
  run = _prepare(logits_fn, search_fn, work, attacks=attacks, random=version == 'rand', cascade=cascade,
                 batch_size=batch_size, devices=devices)
  all_warnings = []

  def report(lines: Iterable[str]) -> None:
    for line in lines:
      all_warnings.append(line)
      warnings.warn(line, stacklevel=3) if warn is None else warn(line)

  report(_check_model(run._replace(attacks=tuple(dict.fromkeys(attacks + audited))), norm, channel_axis))
  parts, audit_parts = plan(run.logits.shape[1])
  options = settings | dict(attacks=attacks, norm=norm, version=version, batch_size=run.batch_size,
                            cascade=cascade, audit=audit, search_fn=search_fn is not None)
  identity = {} if state_path is None else state_file.fingerprint(
      work, run.clean, (run.search_fn, logits_fn), options)
  record = state_file.new_record(run.clean, run.logits, np.asarray(work.x), len(attacks + audited),
                                 len(parts + audit_parts))
  record, slots = state_file.read(state_path, identity, record, work,
                                  [part.stepper for part in parts + audit_parts])
  run = run._replace(work=work._replace(targets=jnp.asarray(record.targets)))
  write = functools.partial(state_file.writer(state_path, identity, save_every), record)
  own, others = state_file.divide(record, len(attacks), len(parts))
  in_audit = own.done.all()
  for lines in _run_attacks(run, parts, own, None if in_audit else slots, write, progress):
    report(lines)
  survivors = run.clean & own.robust.all(axis=0)
  sample = np.zeros_like(survivors)
  if audit:
    draw = choose_sample or functools.partial(audit_lib.choose, work.key, work.index, sampled=audit)
    sample = draw(survivors)
    for lines in _run_audit(run._replace(attacks=audited, clean=sample), audit_parts, others,
                            slots if in_audit else None, write, progress, survivors & ~sample):
      report(lines)
  robust = survivors & others.robust.all(axis=0)
  report(_check_result(run, own, robust))
  names = attacks + tuple(f'audit/{name}' for name in audited)
  counts = (int(each.sum()) for each in (survivors, sample, survivors & ~robust))
  shown = version if attacks == components_lib.VERSIONS[version] else ', '.join(attacks)
  return AutoAttackResult(
      record.x, robust, run.clean, dict(zip(names, record.robust, strict=True)), tuple(all_warnings),
      dict(zip(names, record.seconds.tolist(), strict=True)),
      {name: batching.Passes(*row.tolist()) for name, row in
       zip((*names, 'checks'), (*record.passes, run.checks), strict=True)},
      audit_lib.summarise(len(robust), *counts, shown) if audit else None, sample)


def _audited(audit: int, version: str) -> tuple[str, ...]:
  """The attacks of the audit; ValueError if it cannot be made."""
  _arguments.check_count('audit', audit, or_none=True)
  if audit and version != 'fast':
    raise ValueError(f"audit = {audit}: leave it out with version = {version!r}; it is for version='fast'")
  return components_lib.VERSIONS['standard'] if audit else ()


def _check_examples(x, y, key, epsilon, bounds, mask, index) -> batching.Work:
  _arguments.check_outside_jit(x=x, y=y, key=key, epsilon=epsilon, bounds=bounds, mask=mask, index=index)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds, mask=mask)
  index = _arguments.indices(index, len(problem.x), once=True)
  return batching.Work(problem.x, problem.y, problem.y[:, None], index, _random.threefry(key),
                       problem.epsilon, problem.bounds)


def _check_options(batch_size, cascade, state_path, save_every, progress, warn) -> None:
  """Raises ValueError for options that would be used only after an attack."""
  _arguments.check_count('batch_size', batch_size)
  _arguments.check_flag('cascade', cascade)
  _arguments.check_number('save_every', save_every)
  state_file.check_type(state_path)
  if progress is not None:
    _functions.check_function('progress', progress, 'progress', like='print')
  if warn is not None:
    _functions.check_function('warn', warn, 'line', like='print')


def _prepare(logits_fn, search_fn, work, *, attacks, random, cascade, batch_size, devices) -> _Evaluation:
  """Checks the models and evaluates the clean inputs."""
  devices = devices_lib.choose(devices)
  batch_size = devices_lib.round_up(min(batch_size, len(work.x)), devices)
  if random and search_fn is not None:
    raise ValueError("search_fn needs a deterministic model: leave it out with version='rand'")
  run = _Evaluation(attacks, work, logits_fn if search_fn is None else search_fn, logits_fn, random, cascade,
                    batch_size, devices, np.zeros(3, int))
  logits = _in_batches(run, work.x)
  num_classes = logits.shape[1]
  _arguments.check_values(classes={'y': work.y}, num_classes=num_classes)
  if search_fn is not None:
    search, num_searched = _stepper.capture(search_fn, work.x, batch_size, name='search_fn')
    _arguments.check_outside_jit(search_fn=search)
    if num_searched < num_classes:
      raise ValueError(f'search_fn gives {num_searched} logits, logits_fn {num_classes}: use the same '
                       'classes')
  return run._replace(logits=logits, clean=np.asarray(_stepper.is_correct(jnp.asarray(logits), work.y)))


def _check_model(run: _Evaluation, norm: str, channel_axis: int) -> Iterator[str]:
  """Yields the warnings about the problem and the model, before any attack."""
  work, logits = run.work, run.logits
  yield from _diagnostics.check_reach(np.asarray(work.epsilon), work.x, work.bounds, norm)
  yield from _diagnostics.check_classes(int((~np.isneginf(logits)).sum(axis=1).min()), run.attacks)
  yield from _diagnostics.check_logits(logits, work.y, run.attacks, work.x.dtype)
  if 'square' in run.attacks:
    yield from _diagnostics.check_channels(work.x.shape, channel_axis)
  if not run.random:
    n = max(run.batch_size, 2)  # one example alone cannot show a dependence on the batch

    def counted(x):  # called uncompiled
      batching.count_passes(run.checks, (1, 0), len(x), len(x))
      return run.verify_fn(x)

    yield from _diagnostics.check_determinism(counted, work.x[:n], work.y[:n], logits[:n])


def _run_attacks(run: _Evaluation, parts, record: state_file.Record, slots, write,
                 progress) -> Iterator[tuple[str, ...]]:
  """Runs the parts that are not done, and yields the warnings of each attack."""
  for row, name in enumerate(run.attacks):
    own = [number for number, part in enumerate(parts) if part.name == name]
    if not run.cascade and slots is None and not record.done[own[0]]:
      record.fooled[:] = ~run.clean
    for number in own:
      if not record.done[number]:
        _run_part(run, parts[number], record, row, slots, write, progress)
        record.done[number], slots = True, None
        write()
    # With ε = 0, or where no entry may change, the loss cannot rise, so these examples are left out.
    attacked, zero_gradient, rose = record.diagnostics[row] & _can_change(run.work)
    yield _diagnostics.check_gradients(name, int(attacked.sum()), int(zero_gradient.sum()),
                                       int((attacked & ~rose).sum()), run.attacks, run.random)


def _run_audit(run: _Evaluation, parts, record: state_file.Record, slots, write, progress,
               others: np.ndarray) -> Iterator[list[str]]:
  """Runs the attacks of the audit on `run.clean`, the sample; `others` are the survivors outside it."""
  if slots is None and not record.done.any():  # it begins
    record.fooled[:] = ~run.clean
  show = progress and (lambda now: progress(now._replace(
      attack=f'audit/{now.attack}', accuracy=now.accuracy + float(others.mean()))))
  for lines in _run_attacks(run, parts, record, slots, write, show):
    yield [f'audit, {line}' for line in lines]
  record.robust[:] |= others


def _can_change(work: batching.Work) -> np.ndarray:
  """bool[N], whether radius and bounds allow an example to change."""
  free = np.broadcast_to(norms.free(work.bounds), work.x.shape).reshape(len(work.x), -1)
  return (np.asarray(work.epsilon) > 0) & free.any(axis=1)


def _run_part(run: _Evaluation, part: components_lib.Part, record: state_file.Record, row: int, slots,
              write, progress) -> None:
  # Each attack has its own key, so that no two attacks draw the same numbers.
  key = jax.random.fold_in(run.work.key, components_lib.NAMES.index(part.name))
  work, fooled = run.work._replace(key=key), record.fooled
  if slots is None:
    exists = np.take_along_axis(run.logits, record.targets, axis=1) > -np.inf  # -inf marks no class
    items = np.array([(i, r) for r in part.runs for i in np.flatnonzero(~fooled)
                      if not part.targeted or exists[i, r]], int).reshape(-1, 2)
    slots = batching.empty_slots(items, run.batch_size, run.devices)
  began = time.monotonic() - float(record.seconds[row])
  calls = batching.run_batched(
      run.search_fn, run.verify_fn, work, slots, fooled, record.x, record.diagnostics[row],
      record.passes[row], stepper=part.stepper, devices=run.devices, random=run.random)
  for slots in calls:
    record.seconds[row] = seconds = time.monotonic() - began
    write(slots)
    if progress is not None:
      done = slots.num_loaded - int((slots.example >= 0).sum())
      try:
        progress(Progress(part.name, done, len(slots.items), float(np.mean(~fooled)), seconds))
      except BaseException:  # KeyboardInterrupt too: the evaluation ends, and resumes from this state
        write(slots, now=True)
        raise
  record.robust[row] = ~fooled


def _check_result(run: _Evaluation, record: state_file.Record, robust: np.ndarray) -> Iterator[str]:
  """Yields the warnings about the adversarial points, which are evaluated again, and about Square."""
  logits = _in_batches(run, record.x)
  yield from _diagnostics.check_adversarial(logits, run.work.y, run.clean & ~robust, run.random)
  # Without a cascade every attack gets all examples, and Square counts as the last one.
  names = run.attacks if run.cascade else sorted(run.attacks, key=lambda name: name == 'square')
  after = np.logical_and.accumulate([run.clean & record.robust[run.attacks.index(name)] for name in names])
  yield from _diagnostics.check_square(dict(zip(names, after.mean(axis=1), strict=True)))


def _in_batches(run: _Evaluation, x: Array) -> np.ndarray:
  """Logits of all examples; the last batch is padded, so that one program serves."""
  work = run.work
  model, _ = _stepper.capture(run.verify_fn, work.x, run.batch_size, work.key if run.random else None)
  _arguments.check_outside_jit(logits_fn=model)
  model, key = devices_lib.replicate((model, work.key), run.devices)
  x, index, logits = np.asarray(x), np.asarray(work.index), []
  for start in range(0, len(x), run.batch_size):
    row = np.minimum(np.arange(start, start + run.batch_size), len(x) - 1)
    batch = devices_lib.shard((x[row], index[row]), run.devices)
    logits.append(np.asarray(_call(model, *batch, key, random=run.random)))
    batching.count_passes(run.checks, (1, 0), min(run.batch_size, len(x) - start), run.batch_size)
  return np.concatenate(logits)[:len(x)]


@functools.partial(jax.jit, static_argnames='random')
def _call(logits_fn, x, index, key, *, random):
  if not random:
    return logits_fn(x)
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), _CLEAN))(index)
  return _stepper.logits_of(logits_fn, x, keys)

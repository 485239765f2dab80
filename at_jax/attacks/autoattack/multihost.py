"""AutoAttack on several processes of `jax.distributed`, such as the hosts of a TPU slice."""

from collections.abc import Callable
import os
from typing import Any
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np

from at_jax.attacks import _arguments, _stepper
from at_jax.attacks.autoattack import audit as audit_lib
from at_jax.attacks.autoattack import batching, driver, state_file
from at_jax.attacks.autoattack import components as components_lib

Array = jax.Array
_NO_PASSES = batching.Passes(0, 0, 0)


class OtherProcessFailed(RuntimeError):
  """Another process raised an exception, whose message it reports."""


def autoattack(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *, epsilon: float | Array,
    index: Array | None = None, audit: int = 0, state_path: str | os.PathLike | None = None,
    progress: Callable[[driver.Progress], None] | None = None, warn: Callable[[str], None] | None = None,
    **options,
) -> driver.AutoAttackResult:
  """Runs `attacks.autoattack` on several processes, each of which attacks a part of the examples.

  Every process calls it with the same arguments. Process p of P takes the examples p, p + P, p + 2P, … on its
  own devices. The random draws of an example depend only on its index, so the verdicts equal those of one
  process. So does the sample of an audit, which is drawn from the survivors of all processes. Without
  `jax.distributed` it equals `attacks.autoattack`.

  Args:
    logits_fn: as in `attacks.autoattack`, with its arrays on the devices of this process.
    x: f32[N, ...], all examples.
    y: i32[N], true classes.
    key: a PRNG key, the same in every process.
    epsilon: radius, a number or f32[N], in units of x.
    index: i32[N], by default the positions in x.
    audit: as in `attacks.autoattack`, for all N examples together.
    state_path: the states are written to this path with the suffix '.p-of-P', those of an audit with
      '.audit.p-of-P'; to resume, use the same number of processes.
    progress: called in each process with the progress on its part.
    warn: called in each process with each warning about its part.
    **options: other options of `attacks.autoattack`.

  Returns:
    The `AutoAttackResult` of all N examples, in every process. `seconds` are those of the slowest process,
    `passes` the sums over processes, `warnings` those of all processes, each about its part.

  Raises:
    ValueError: as in `attacks.autoattack`, and if there are fewer examples than processes.
    OtherProcessFailed: if another process failed; that process reports the cause.

  Example:
    >>> w = jax.numpy.array([[1., -1.], [-1., 1.]])
    >>> x, y = np.array([[.5, .4], [.2, .9]], np.float32), np.array([0, 1])
    >>> result = autoattack(lambda x: x @ w, x, y, jax.random.key(0), epsilon=.1,
    ...                     attacks=('apgd-ce',), num_steps=10)
    >>> print(result.robust)
    [False  True]
  """
  count, process, n = jax.process_count(), jax.process_index(), len(x)
  if count == 1:
    return driver.autoattack(logits_fn, x, y, key, epsilon=epsilon, index=index, audit=audit,
                             state_path=state_path, progress=progress, warn=warn, **options)
  if n < count:
    raise ValueError(f'x has {n} examples for {count} processes: use at most {n} processes')
  state_file.check_type(state_path)
  auditors = tuple(f'audit/{name}' for name in driver.auditors(audit, options.get('version', 'standard')))
  # These are checked as a whole, because a part can be valid where the whole is not: a repeated index, or
  # as many radii as the part has examples.
  bounds, mask = options.pop('bounds', (0., 1.)), options.pop('mask', None)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds, mask=mask)
  index = np.asarray(_arguments.indices(index, n, once=True))

  def attack(rows: np.ndarray, suffix: str, **changes) -> driver.AutoAttackResult:
    return driver.autoattack(
        logits_fn, np.asarray(problem.x)[rows], np.asarray(problem.y)[rows], key, index=index[rows],
        epsilon=np.asarray(problem.epsilon)[rows],
        bounds=tuple(np.asarray(bound)[rows] if bound.ndim else bound for bound in problem.bounds),
        state_path=None if state_path is None else f'{os.fspath(state_path)}{suffix}.{process}-of-{count}',
        **options | changes)

  # The first collective must come early: processes have seconds to connect, and may end minutes apart.
  _gather(np.zeros(()))
  rows = np.arange(process, n, count)
  result = _in_every_process(lambda: attack(rows, '', progress=progress, warn=warn))
  attacks, summary = tuple(result.components), None
  if audit:
    survivors = _merge(result.robust, n)
    sample = audit_lib.choose(key, index, survivors, audit)
    chosen = sample[rows]
    again = lambda **changes: attack(rows[chosen], '.audit', version='standard', attacks=None, **changes)
    result = _in_every_process(lambda: _audit(result, chosen, again, progress, warn))
    counts = (survivors, sample, survivors & ~_merge(result.robust, n))
    summary = audit_lib.summarise(n, *(int(each.sum()) for each in counts),
                                  components_lib.describe(attacks, 'fast'))
  names = attacks + auditors
  return driver.AutoAttackResult(
      *(_merge(share, n) for share in (result.x, result.robust, result.clean)),
      {name: _merge(result.components.get(name, result.robust), n) for name in names},
      _gather_lines(result.warnings),
      {name: float(_gather(np.float32(result.seconds.get(name, 0))).max()) for name in names},
      {name: batching.Passes(*_gather_counts(result.passes.get(name, _NO_PASSES)).sum(axis=0).tolist())
       for name in (*names, 'checks')},
      summary, _merge(result.audited, n))


def _in_every_process(attack: Callable[[], driver.AutoAttackResult]) -> driver.AutoAttackResult:
  """What an attack finds in this process; if it raises in one process, every process raises."""
  result, failure = None, None
  try:
    result = attack()
  except Exception as error:  # of any kind: the other processes must not wait for this one
    failure = error
  failed = np.flatnonzero(_gather(np.array(failure is not None)))
  if failure is not None:
    raise failure
  if len(failed):
    raise OtherProcessFailed(f'processes {failed.tolist()} of {jax.process_count()} failed: see their '
                             'messages')
  return result


def _audit(result: driver.AutoAttackResult, chosen: np.ndarray, attack: Callable[..., Any],
           progress: Callable[[driver.Progress], None] | None, warn: Callable[[str], None] | None
           ) -> driver.AutoAttackResult:
  """The result of a part after AutoAttack on those of its survivors that are in the sample."""
  if not chosen.any():
    return result
  others = (result.robust & ~chosen).sum()
  report = warn or warnings.warn
  is_new = lambda line: line not in result.warnings

  def show(now: driver.Progress) -> None:
    accuracy = (now.accuracy * chosen.sum() + others) / len(chosen)
    progress(now._replace(attack=f'audit/{now.attack}', accuracy=float(accuracy)))

  found = attack(progress=progress and show,
                 warn=lambda line: report(f'audit, {line}') if is_new(line) else None)

  def put(values: np.ndarray, into: np.ndarray) -> np.ndarray:
    whole = into.copy()
    whole[chosen] = values
    return whole

  in_audit = lambda values: {f'audit/{name}': value for name, value in values.items() if name != 'checks'}
  checks = batching.Passes(*map(sum, zip(result.passes['checks'], found.passes['checks'], strict=True)))
  return result._replace(
      x=put(found.x, result.x), robust=put(found.robust, result.robust), audited=chosen,
      components=result.components | in_audit({name: put(robust, result.robust)
                                               for name, robust in found.components.items()}),
      warnings=result.warnings + tuple(f'audit, {line}' for line in filter(is_new, found.warnings)),
      seconds=result.seconds | in_audit(found.seconds),
      passes=result.passes | in_audit(found.passes) | {'checks': checks})


def _gather(array: np.ndarray) -> np.ndarray:
  """[P, ...], the arrays of all processes, which have the same shape."""
  return np.asarray(multihost_utils.process_allgather(array))


def _gather_counts(counts: tuple[int, ...]) -> np.ndarray:
  """i64[P, ...], in halves, because jax may cut integers to 32 bits."""
  return _gather(np.array(counts, np.int64).view(np.int32)).view(np.int64)


def _merge(share: np.ndarray, n: int) -> np.ndarray:
  """[N, ...] in the order of the examples, from the shares, whose sizes differ by at most one."""
  count = jax.process_count()
  padded = np.zeros((-(-n // count), *share.shape[1:]), share.dtype)
  padded[:len(share)] = share
  return np.swapaxes(_gather(padded), 0, 1).reshape(-1, *share.shape[1:])[:n]


def _gather_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
  """The distinct lines of all processes."""
  text = np.frombuffer('\n'.join(lines).encode(), np.uint8)
  padded = np.zeros(int(_gather(np.int32(len(text))).max()), np.uint8)
  padded[:len(text)] = text
  texts = [bytes(row).rstrip(b'\0').decode() for row in _gather(padded)]
  return tuple(dict.fromkeys(line for text in texts for line in text.split('\n') if line))

"""AutoAttack on several processes of `jax.distributed`, such as the hosts of a TPU slice."""

import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from at_jax.attacks import _arguments, _stepper
from at_jax.attacks.autoattack import audit as audit_lib
from at_jax.attacks.autoattack import batching, driver, state_file

Array = jax.Array


class OtherProcessFailed(RuntimeError):
  """Another process raised an exception, whose message it reports."""


def autoattack(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *, epsilon: float | Array,
    index: Array | None = None, audit: int = 0, state_path: str | os.PathLike | None = None, **options,
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
    state_path: the states are written to this path with the suffix '.p-of-P'; to resume, use the same number
      of processes.
    **options: of `attacks.autoattack`; `progress` and `warn` are called in each process with the findings on
      its part.

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
  if n < count:
    raise ValueError(f'x has {n} examples for {count} processes: use at most {n} processes')
  state_file.check_type(state_path)
  _arguments.check_outside_jit(x=x, y=y, key=key, epsilon=epsilon, index=index)
  # These are checked as a whole, because a part can be valid where the whole is not: a repeated index, or
  # as many radii as the part has examples.
  bounds, mask = options.pop('bounds', (0., 1.)), options.pop('mask', None)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds, mask=mask)
  index, part = np.asarray(_arguments.indices(index, n, once=True)), slice(process, None, count)

  def sample(survivors: np.ndarray) -> np.ndarray:
    """The part of the sample that is in this process, from its survivors."""
    _agree()
    return audit_lib.choose(key, index, _merge(survivors, n), audit)[part]

  # The first collective must come early: processes have seconds to connect, and may end minutes apart.
  _gather(np.zeros(()))
  try:
    result = driver.autoattack(
        logits_fn, np.asarray(problem.x)[part], np.asarray(problem.y)[part], key, index=index[part],
        epsilon=np.asarray(problem.epsilon)[part],
        bounds=tuple(np.asarray(bound)[part] if bound.ndim else bound for bound in problem.bounds),
        audit=audit, choose_sample=sample,
        state_path=None if state_path is None else f'{os.fspath(state_path)}.{process}-of-{count}',
        **options)
  except OtherProcessFailed:
    raise
  except Exception:  # of any kind: the other processes must not wait for this one
    _agree(failed=True)
    raise
  _agree()
  found = result.audit
  if found:
    counts = _gather_counts((found.survivors, found.sampled, found.fallen)).sum(axis=0).tolist()
    found = audit_lib.summarise(n, *counts, found.name)
  return driver.AutoAttackResult(
      *(_merge(share, n) for share in (result.x, result.robust, result.clean)),
      {name: _merge(robust, n) for name, robust in result.components.items()},
      _gather_lines(result.warnings),
      {name: float(_gather(np.float32(seconds)).max()) for name, seconds in result.seconds.items()},
      {name: batching.Passes(*_gather_counts(passes).sum(axis=0).tolist())
       for name, passes in result.passes.items()},
      found, _merge(result.audited, n))


def _agree(failed: bool = False) -> None:
  """Raises if another process failed. All call it at the same points; one that fails goes to its next one."""
  others = np.flatnonzero(_gather(np.array(failed)))
  if len(others) and not failed:
    raise OtherProcessFailed(f'processes {others.tolist()} of {jax.process_count()} failed: see their '
                             'messages')


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

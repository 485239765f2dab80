"""An evaluation that the processes of `jax.distributed` share, as the hosts of a TPU slice do."""

import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from at_jax.attacks import _arguments, _stepper
from at_jax.attacks.autoattack.driver import AutoAttackResult
from at_jax.attacks.autoattack.driver import autoattack as of_one_process

Array = jax.Array


def autoattack(
    logits_fn: _stepper.LogitsFn,
    x: Array,
    y: Array,
    key: Array,
    *,
    epsilon: float | Array,
    index: Array | None = None,
    state_path: str | os.PathLike | None = None,
    **options,
) -> AutoAttackResult:
  """`attacks.autoattack`, called by every process with the same arguments, each attacking a share.

  Process p of P takes the examples p, p + P, p + 2P, …, on its own devices. What an example draws
  depends on its index alone, so the verdicts are those of one process. Without `jax.distributed` it
  is `attacks.autoattack`.

  Args:
    logits_fn: as `attacks.autoattack` has it, with its arrays on this process's devices.
    x: f32[N, ...], all examples.
    y: i32[N].
    key: a PRNG key, the same everywhere.
    epsilon: radius, a number or f32[N].
    index: i32[N], by default the places in x.
    state_path: where the states are written, with '.p-of-P' behind it: a killed evaluation goes on
      with as many processes as it had.
    **options: of `attacks.autoattack`; `progress` and `warn` are called with what each process finds
      in its share.

  Returns:
    The `AutoAttackResult` of all N examples, in every process: `seconds` are those of the slowest,
    `warnings` those of any, about its share.

  Raises:
    ValueError: as `attacks.autoattack`, and for fewer examples than processes.
    RuntimeError: another process has failed, which says why.

  Example:
    >>> w = jax.numpy.array([[1., -1.], [-1., 1.]])
    >>> x, y = np.array([[.5, .4], [.2, .9]], np.float32), np.array([0, 1])
    >>> result = autoattack(lambda x: x @ w, x, y, jax.random.key(0), epsilon=.1,
    ...                     attacks=('apgd-ce',), num_steps=10)
    >>> print(result.robust)
    [False  True]

  Source: ours.
  """
  count, me, n = jax.process_count(), jax.process_index(), len(x)
  if n < count:
    raise ValueError(f'x has {n} examples for {count} processes: use as many processes at most')
  # A share can be in order where the whole is not: two of one index, radii for as many as it has.
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=options.get('bounds', (0., 1.)))
  index = np.asarray(_arguments.indices(index, n, once=True))
  own, result, mistake = slice(me, None, count), None, None
  # The processes meet once before they part: to find each other they have seconds, and the shares
  # may end minutes apart.
  _all(np.zeros(()))
  try:
    result = of_one_process(
        logits_fn, np.asarray(problem.x)[own], np.asarray(problem.y)[own], key, index=index[own],
        epsilon=np.asarray(problem.epsilon)[own],
        state_path=None if state_path is None else f'{os.fspath(state_path)}.{me}-of-{count}',
        **options)
  except Exception as error:  # whatever it is, the others must not wait for this process
    mistake = error
  failed = np.flatnonzero(_all(np.array(mistake is not None)))
  if mistake is not None:
    raise mistake
  if len(failed):
    raise RuntimeError(f'of {count} processes, {failed.tolist()} failed: see what they say')
  return AutoAttackResult(
      _dealt_back(result.x, n), *(_dealt_back(v, n) for v in (result.robust, result.clean)),
      {name: _dealt_back(stands, n) for name, stands in result.components.items()},
      _said(result.warnings),
      {name: float(_all(np.float32(spent)).max()) for name, spent in result.seconds.items()})


def _all(array: np.ndarray) -> np.ndarray:
  """[P, ...], an array of one shape from each process."""
  return np.asarray(multihost_utils.process_allgather(array))


def _dealt_back(share: np.ndarray, n: int) -> np.ndarray:
  """[N, ...] from the shares of all processes, which may be one example apart in size."""
  count = jax.process_count()
  padded = np.zeros((-(-n // count), *share.shape[1:]), share.dtype)
  padded[:len(share)] = share
  whole = np.swapaxes(_all(padded), 0, 1)  # [N / P, P, ...], the examples in their order
  return whole.reshape(-1, *share.shape[1:])[:n]


def _said(lines: tuple[str, ...]) -> tuple[str, ...]:
  """The lines of all processes, each once."""
  text = np.frombuffer('\n'.join(lines).encode(), np.uint8)
  padded = np.zeros(int(_all(np.int32(len(text))).max()), np.uint8)
  padded[:len(text)] = text
  texts = [bytes(row).rstrip(b'\0').decode() for row in _all(padded)]
  return tuple(dict.fromkeys(line for one in texts for line in one.split('\n') if line))

"""AutoAttack in an evaluation of a network: with progress, warnings, and resuming after a kill."""

from collections.abc import Callable
import functools
import hashlib
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import jax

from at_jax import attacks as attacks_lib
from at_jax import environment, errors
from at_jax.attacks.autoattack import components, multihost, state_file
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics

Array = jax.Array
# In the names of what runs, before that of the component.
RUNS = ', runs of '


class Choice(NamedTuple):
  """Which version and which components of AutoAttack to run.

  Attributes:
    version: as in `attacks.autoattack`.
    attacks: names of components; None for all of the version.
  """
  version: str
  attacks: tuple[str, ...] | None = None


# By the attack's name in an evaluation. Single components are those of the version 'standard'.
CHOICES = {
    'autoattack': Choice('standard'), 'autoattack_plus': Choice('plus'),
    'autoattack_rand': Choice('rand'), 'autoattack_fast': Choice('fast'),
    **{name: Choice('standard', (name,)) for name in components.NAMES}}


def run(
    logits: Callable[[Any, Array], Array],
    variables: Any,
    split: pipeline.Split,
    key: Array,
    *,
    choice: Choice,
    norm: str,
    epsilon: float,
    batch_size: int,
    title: str,
    audit: int = 0,
    search: Callable[[Any, Array], Array] | None = None,
    state_dir: str | os.PathLike | None = None,
    progress: Callable[[str, int, int, float], None] = lambda *_: None,
    warn: Callable[[str], None] | None = None,
) -> tuple[attacks_lib.AutoAttackResult, pathlib.Path | None]:
  """Runs AutoAttack on a network. After a kill, the same call resumes where it stopped.

  A finished run leaves its state file too, so that an evaluation killed in a later attack does not repeat
  this one. The caller removes the file when all results are written.

  Several processes call it together. Each attacks its share of the examples at its own pace, writes its own
  state, whose name goes on with '.p-of-P', and reports its own progress and warnings.

  Args:
    logits: `(variables, x) -> f32[B, K]`: `network.deployed` or `network.logits`.
    variables: the network's variables.
    split: the examples.
    key: PRNG key; the draws of an example depend on its index in `split`.
    choice: what to run. 'rand' ignores `search`, because a single output does not decide a random model.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: radius, in units of x.
    batch_size: number of examples attacked at a time, over the devices of all processes.
    title: name for `progress`, which adds the component's.
    audit: as in `attacks.autoattack`, for the version 'fast'; the others ignore it.
    search: logits to search on instead; a point counts only if `logits` is fooled too.
    state_dir: folder of the state file; None for none.
    progress: called with the name of what runs, runs done, their number, and the accuracy so far, after
      every compiled call. If it raises, the state is written first.
    warn: as in `attacks.autoattack`.

  Returns:
    The result, and the path of the state file.

  Raises:
    errors.UserError: if the state file is damaged, or was written by another version of JAX, on another
      device or for another number of devices, so that it cannot be continued; if another process failed.
  """
  if choice.version == 'rand':
    search = None
  if choice.version != 'fast':
    audit = 0
  settings = dict(choice=choice, norm=norm, epsilon=epsilon, batch_size=batch_size, audit=audit,
                  searched_apart=search is not None)
  path = None
  if state_dir is not None:
    name = identity(logits, variables, split, key, settings)
    path = environment.local_path('state_dir', state_dir) / f'{name}.npz'
  apply = _with_key(logits) if choice.version == 'rand' else logits
  show, close = _shown(title, progress)
  count = jax.process_count()
  attack = attacks_lib.autoattack if count == 1 else multihost.autoattack
  try:
    result = attack(
        jax.tree_util.Partial(apply, variables), pipeline.in_unit(split.images), split.labels, key,
        epsilon=epsilon, norm=norm, **choice._asdict(), audit=audit, batch_size=batch_size // count,
        search_fn=None if search is None else jax.tree_util.Partial(search, variables),
        state_path=path, progress=show, warn=warn)
  except (state_file.StateMismatch, zipfile.BadZipFile) as error:
    raise errors.UserError('workdir', str(path), f'{error}; remove this file to start that attack '
                           'again') from error
  except multihost.OtherProcessFailed as error:
    raise errors.UserError('--distributed', f'{count} processes', str(error)) from error
  if count == 1:  # `progress` must not raise in one process alone
    close()
  return result, path


def identity(logits: Callable, variables: Any, split: pipeline.Split, key: Array,
             settings: dict[str, Any]) -> str:
  """Fingerprint of an evaluation: the name of its state file.

  It depends on every leaf of the variables, so each checkpoint has its own file.

  Args:
    logits: what is attacked; its `__name__` counts ('deployed' or 'logits').
    variables: the network's variables.
    split: the examples.
    key: PRNG key.
    settings: everything else that decides a verdict.

  Returns:
    32 hexadecimal digits.
  """
  arrays = {'variables': jax.device_get(variables), 'split': tuple(split),
            'key': jax.random.key_data(key)}
  text = repr((metrics.digests(arrays), logits.__name__, sorted(settings.items())))
  return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _with_key(logits: Callable) -> Callable:
  # One function per network: a new function would compile everything again.
  return lambda variables, x, key: logits(variables, x)


def _shown(title: str, progress: Callable) -> tuple[Callable, Callable]:
  """Converts the driver's progress to that of an evaluation, which starts at 0 and ends at the total."""
  before: attacks_lib.Progress | None = None

  def close() -> None:
    if before is not None and before.done < before.total:  # no robust examples are left
      progress(f'{title}{RUNS}{before.attack}', before.total, before.total, before.accuracy)

  def show(now: attacks_lib.Progress) -> None:
    nonlocal before
    name = f'{title}{RUNS}{now.attack}'
    if before is None or now.attack != before.attack or now.done < before.done:
      close()
      if now.done:
        progress(name, 0, now.total, now.accuracy)
    progress(name, now.done, now.total, now.accuracy)
    before = now

  return show, close

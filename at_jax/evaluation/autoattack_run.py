"""AutoAttack as a part of an evaluation: on a network, shown as it goes, resumed when killed.

The attack itself is `attacks.autoattack`, which knows of no network, checkpoint or work directory.
"""

from collections.abc import Callable
import functools
import hashlib
import pathlib
from typing import Any, NamedTuple
import zipfile

import jax

from at_jax import attacks as attacks_lib
from at_jax import errors
from at_jax.attacks.autoattack import components, state_file
from at_jax.datasets import pipeline
from at_jax.evaluation import metrics

Array = jax.Array


class Choice(NamedTuple):
  """What of AutoAttack is run.

  Attributes:
    version: of `attacks.autoattack`.
    attacks: of it, by name; None for all of the version.
  """
  version: str
  attacks_lib: tuple[str, ...] | None = None


# The names of an evaluation's attacks: those of versions, and those of parts, as 'standard' has them.
CHOICES = {
    'autoattack': Choice('standard'), 'autoattack_plus': Choice('plus'),
    'autoattack_rand': Choice('rand'),
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
    search: Callable[[Any, Array], Array] | None = None,
    state_dir: pathlib.Path | None = None,
    progress: Callable[[str, int, int, float], None] = lambda *_: None,
    warn: Callable[[str], None] | None = None,
) -> tuple[attacks_lib.AutoAttackResult, pathlib.Path | None]:
  """Runs AutoAttack on logits of a network; killed, the same call goes on where it was.

  A finished run leaves its state too, so that an evaluation of several parts which is killed in a
  later one does not begin again with the first; the caller removes the file when all is written.

  Args:
    logits: `(variables, x) -> f32[B, K]`, `network.deployed` or `network.logits`.
    variables: of the network.
    split: the examples.
    key: a PRNG key; an example draws by its place in `split`.
    choice: what is run; 'rand' takes no `search`, for no answer is final.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: the radius, in units of x.
    batch_size: how many examples are attacked side by side.
    title: what `progress` calls it, the name of the component added.
    search: what is searched on instead of `logits`, which then only confirms.
    state_dir: where the state is written, as it goes; None for nowhere.
    progress: called with what is running, its runs over, their number, and the accuracy so far.
    warn: as that of `attacks.autoattack`.

  Returns:
    The result, and the file its state was written to.

  Raises:
    errors.UserError: the state on disk is damaged, or was written under another version of JAX or
      on another device, where not even the same clean examples are right, or for a number of devices
      that takes the batch size up to another multiple.

  Source: `attacks.autoattack`; the rest ours.
  """
  if choice.version == 'rand':
    search = None
  settings = dict(choice=choice, norm=norm, epsilon=epsilon, batch_size=batch_size,
                  searched_apart=search is not None)
  path = None
  if state_dir is not None:
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / f'{identity(logits, variables, split, key, settings)}.npz'
  apply = _with_key(logits) if choice.version == 'rand' else logits
  show, close = _shown(title, progress)
  try:
    result = attacks_lib.autoattack(
        jax.tree_util.Partial(apply, variables), pipeline.to_unit(split.images), split.labels, key,
        epsilon=epsilon, norm=norm, **choice._asdict(), batch_size=batch_size, state_path=path,
        search_fn=None if search is None else jax.tree_util.Partial(search, variables),
        progress=show, warn=warn)
  except (state_file.StateMismatch, zipfile.BadZipFile) as error:
    raise errors.UserError('workdir', str(path), f'{error}; remove this file, to begin that attack '
                           'again') from error
  close()
  return result, path


def identity(logits: Callable, variables: Any, split: pipeline.Split, key: Array,
             settings: dict[str, Any]) -> str:
  """A name for a state file that no other evaluation can have.

  It holds every leaf of the variables, so that each checkpoint has a file of its own: in one file
  `attacks.autoattack` would refuse another's state.

  Args:
    logits: what is attacked; its name counts, 'deployed' or 'logits'.
    variables: of the network.
    split: the examples.
    key: a PRNG key.
    settings: anything else that decides a verdict.

  Returns:
    32 hexadecimal digits.

  Source: ours.
  """
  arrays = {'variables': jax.device_get(variables), 'split': tuple(split),
            'key': jax.random.key_data(key)}
  told = repr((metrics.digests(arrays), logits.__name__, sorted(settings.items())))
  return hashlib.sha256(told.encode()).hexdigest()[:32]


@functools.cache
def _with_key(logits: Callable) -> Callable:
  # One function a network: a new one would compile everything again.
  return lambda variables, x, key: logits(variables, x)


def _shown(title: str, progress: Callable) -> tuple[Callable, Callable]:
  """The driver's progress as that of an evaluation, which begins at 0 and ends at the total."""
  before: attacks_lib.Progress | None = None

  def close() -> None:
    if before is not None and before.done < before.total:  # the rest had fallen already
      progress(f'{title}, runs of {before.attack}', before.total, before.total, before.accuracy)

  def show(now: attacks_lib.Progress) -> None:
    nonlocal before
    name = f'{title}, runs of {now.attack}'
    if before is None or now.attack != before.attack or now.done < before.done:
      close()
      progress(name, 0, now.total, now.accuracy)
    if now.done:
      progress(name, now.done, now.total, now.accuracy)
    before = now

  return show, close

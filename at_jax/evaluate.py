"""Robust accuracy of the deployed model, and beside it the paper's own protocol.

Whatever an attack looked at, an example stands only if `argmax` of the *deployed* logits at the
attacked point is its class. The worst case counts an example as robust if it stands clean and under
every attack that was run.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks
from at_jax import autoattack
from at_jax import data
from at_jax import network as network_lib
from at_jax import sharding

Array = jax.Array
# (logits_fn, x, y, key, index, tau=None, scale=1.) -> AttackResult
Attack = Callable[..., attacks.AttackResult]
# (what is running, examples done, examples in all, accuracy so far) -> None
Progress = Callable[[str, int, int, float], None]


class Spec(NamedTuple):
  """An attack of an evaluation.

  Attributes:
    num_steps: steps; one without a random start is FGSM.
    restarts: independent runs, of which the worst counts.
    random_start: begin at a random point of the ball.
    loss: what is maximised, a name of `attacks.losses`.
  """
  num_steps: int
  restarts: int
  random_start: bool
  loss: str = 'cross_entropy'


def parse(name: str) -> Spec | str | None:
  """Reads an attack's name: 'fgsm', 'pgd20', 'pgd20x5' for 5 restarts, 'margin100x5', 'autoattack'.

  margin100x5 is PGD on the margin, which does not fade where a method keeps the cross-entropy's
  gradient small, as importance weights do.

  Args:
    name: as in `config.evaluate.attacks`.

  Returns:
    A `Spec`; for AutoAttack its version ('standard', 'plus', 'rand'); None for no such name.

  Example:
    >>> parse('pgd20x5')
    Spec(num_steps=20, restarts=5, random_start=True, loss='cross_entropy')
    >>> parse('margin100').loss
    'margin'

  Source: ours.
  """
  if name == 'fgsm':
    return Spec(1, 1, False)
  if name in autoattack.VERSIONS:
    return autoattack.VERSIONS[name]
  match = re.fullmatch(r'(pgd|margin)([1-9]\d*)(?:x([1-9]\d*))?', str(name))
  loss = {'pgd': 'cross_entropy', 'margin': 'margin'}
  return match and Spec(int(match[2]), int(match[3] or 1), True, loss[match[1]])


def pgd(*, norm: str, epsilon: float, step_size: float, num_steps: int,
        random_start: bool = True, loss: str = 'cross_entropy') -> Attack:
  """PGD with everything but the model and the examples filled in.

  Args:
    norm: of `attacks.pgd`.
    epsilon: of `attacks.pgd`.
    step_size: of `attacks.pgd`.
    num_steps: of `attacks.pgd`.
    random_start: of `attacks.pgd`.
    loss: the name of that of `attacks.pgd` in `attacks.losses`.

  Returns:
    `(logits_fn, x, y, key, index, tau=None, scale=1.) -> AttackResult`; tau is that of friendly
    PGD, scale (a number or f32[B]) multiplies the radius and the step size.

  Example:
    >>> attack = pgd(norm='linf', epsilon=.1, step_size=.1, num_steps=1)
    >>> attack(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (1, 2)

  Source: `attacks.pgd`.
  """
  def attack(logits_fn, x, y, key, index, tau=None, scale=1.):
    return attacks.pgd(logits_fn, x, y, key, epsilon=scale * epsilon, step_size=scale * step_size,
                       norm=norm, num_steps=num_steps, random_start=random_start, tau=tau,
                       index=index, loss=getattr(attacks.losses, loss))
  return attack


def standing(
    network: network_lib.Network,
    variables: Any,
    split: data.Split,
    key: Array,
    *,
    attack: Attack | None,
    attacked_logits: Callable[[Any, Array], Array],
    among: np.ndarray,
    batch_size: int,
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> np.ndarray:
  """Which examples the deployed model classifies correctly, after an attack.

  The batches have one size, the last one filled up with repeats that are not counted, so nothing
  compiles twice; they are spread over the local devices.

  Args:
    network: the network.
    variables: its variables.
    split: the examples.
    key: a PRNG key; an example draws by its place in `split`.
    attack: `(logits_fn, x, y, key, index) -> AttackResult`, or None for clean examples.
    attacked_logits: `(variables, x) -> logits`, what the attack looks at: `network.deployed` or
      `network.logits`.
    among: bool[N], the examples to look at; the others count as fallen.
    batch_size: how many at a time.
    progress: called with the examples done, their number, and the accuracy so far: that over all
      N if the rest fare as those done.

  Returns:
    bool[N].

  Source: ours.
  """
  result = np.zeros(len(split.labels), bool)
  chosen = np.flatnonzero(among)
  variables = sharding.spread(variables, replicated=True)
  progress(0, len(chosen), 0.)
  for begin in range(0, len(chosen), batch_size):
    places = chosen[begin:begin + batch_size]
    filled = np.resize(places, batch_size)
    x, y, index = sharding.spread(
        (data.to_unit(split.images[filled]), split.labels[filled], filled.astype(np.int32)))
    if attack is not None:
      x = attack(jax.tree_util.Partial(attacked_logits, variables), x, y, key, index).x
    result[places] = np.asarray(_correct(network.deployed, variables, x, y))[:len(places)]
    done = begin + len(places)
    progress(done, len(chosen), float(among.mean() * result.sum() / done))
  return result


@functools.partial(jax.jit, static_argnums=0)
def _correct(deployed, variables, x, y):
  return jnp.argmax(deployed(variables, x), axis=-1) == y


class Report(NamedTuple):
  """The verdicts of an evaluation, one for each example.

  Attributes:
    clean: bool[N], classified correctly by the deployed model.
    robust: `{attack: bool[N]}`, still so under the attack on the deployed logits.
    authors: `{attack: bool[N]}`, under the paper's own protocol, where it differs.
    worst_case: bool[N], correct clean and under everything above.
    components: of AutoAttack on the deployed logits, `{attack: {component: bool[N]}}`, robust after
      the component and those before it.
    warnings: `{what ran: reasons to doubt its number}`.
    states: files of AutoAttack's state, to be removed once the report is written.
  """
  clean: np.ndarray
  robust: dict[str, np.ndarray]
  authors: dict[str, np.ndarray]
  worst_case: np.ndarray
  components: dict[str, dict[str, np.ndarray]]
  warnings: dict[str, tuple[str, ...]]
  states: tuple[pathlib.Path, ...]

  def accuracies(self) -> dict[str, Any]:
    """The report as fractions, under the names that results.json uses."""
    fractions = lambda verdicts: {name: float(v.mean()) for name, v in verdicts.items()}
    return {'n': len(self.clean), 'clean': float(self.clean.mean()),
            'robust': fractions(self.robust), 'authors': fractions(self.authors),
            'worst_case': float(self.worst_case.mean()),
            'components': {name: fractions(each) for name, each in self.components.items()},
            'warnings': {name: list(lines) for name, lines in self.warnings.items()}}


def evaluate(
    network: network_lib.Network,
    variables: Any,
    split: data.Split,
    key: Array,
    *,
    names: Sequence[str],
    norm: str,
    epsilon: float,
    step_size: float,
    batch_size: int,
    has_dummies: bool,
    state_dir: pathlib.Path | None = None,
    progress: Progress = lambda *_: None,
) -> Report:
  """Runs attacks on the deployed model and, for one with dummy classes, the authors' protocol.

  An example that is wrong without an attack counts as not robust and is not attacked. DUCAT's
  protocol is followed as released: it attacks every example through the raw 2C logits with its hard
  label, and recovers the class only afterwards. So does AutoAttack, as it was released, on such a
  model: it is content with an example whose dummy is on top.

  Args:
    network: the network.
    variables: its variables, those that are to be deployed.
    split: the examples.
    key: a PRNG key.
    names: attacks, as `parse` reads them.
    norm: 'linf' or 'l2'.
    epsilon: the radius, in units of x.
    step_size: of PGD; FGSM's is epsilon.
    batch_size: how many examples at a time, over all devices.
    has_dummies: whether the head has dummy classes.
    state_dir: where AutoAttack keeps its state, for a killed evaluation to go on; None for nowhere.
    progress: called with what is running, the examples done, their number, and the accuracy so far.

  Returns:
    A `Report`.

  Source: ours; DUCAT's protocol: Wang et al., arXiv 2410.12671 (2024), the released code.
  """
  everything = np.ones(len(split.labels), bool)
  run = functools.partial(standing, network, variables, split, batch_size=batch_size)
  clean = run(key, attack=None, attacked_logits=network.deployed, among=everything,
              progress=functools.partial(progress, 'clean'))

  components, warnings, states = {}, {}, []

  def under_autoattack(version: str, attacked_logits: Callable, among: np.ndarray,
                       title: str) -> np.ndarray:
    found, state = autoattack.run(
        attacked_logits, variables, split, key, version=version, norm=norm, epsilon=epsilon,
        batch_size=batch_size, title=title, state_dir=state_dir, progress=progress)
    warnings[title] = found.warnings
    states.extend([] if state is None else [state])
    if attacked_logits is network.deployed:
      components[title] = found.components
      return among & found.robust
    return among & autoattack.stands(network.deployed, variables, found.x, split.labels, batch_size)

  def under(name: str, attacked_logits: Callable, among: np.ndarray, title: str) -> np.ndarray:
    spec = parse(name)
    if isinstance(spec, str):
      return under_autoattack(spec, attacked_logits, among, title)
    attack = pgd(norm=norm, epsilon=epsilon, num_steps=spec.num_steps,
                 step_size=step_size if spec.random_start else epsilon,
                 random_start=spec.random_start, loss=spec.loss)
    for restart in range(spec.restarts):
      running = title if spec.restarts == 1 else f'{title} ({restart + 1} of {spec.restarts})'
      among = run(jax.random.fold_in(key, restart), attack=attack, among=among,
                  attacked_logits=attacked_logits, progress=functools.partial(progress, running))
    return among

  robust = {name: under(name, network.deployed, clean, name) for name in names}
  authors = {}
  if has_dummies:
    authors = {name: under(name, network.logits, everything, f"{name}, authors' protocol")
               for name in names}
  worst_case = functools.reduce(np.logical_and, [*robust.values(), *authors.values()], clean)
  return Report(clean, robust, authors, worst_case, components, warnings, tuple(states))

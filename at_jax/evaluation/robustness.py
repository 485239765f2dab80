"""Robust accuracy of the deployed model, and beside it the paper's own protocol.

Whatever an attack looked at, an example stands only if `argmax` of the *deployed* logits at the
attacked point is its class. The worst case counts an example as robust if it stands clean and under
every attack that was run.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from at_jax import devices
from at_jax.attacks import _stepper
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, autoattack_run, metrics
from at_jax.methods import inner_attacks
from at_jax.models import deployed as deployed_lib
from at_jax.models import logit_adjustment

Array = jax.Array
# (what is running, examples done, examples in all, accuracy so far) -> None
Progress = Callable[[str, int, int, float], None]


def robust_examples(
    network: deployed_lib.Network,
    variables: Any,
    split: pipeline.Split,
    key: Array,
    *,
    attack: inner_attacks.Attack | None,
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
    split: the examples; images as uint8, or points that were found elsewhere as f32 in [0, 1].
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
  variables = devices.spread(variables, replicated=True)
  progress(0, len(chosen), 0.)
  for begin in range(0, len(chosen), batch_size):
    places = chosen[begin:begin + batch_size]
    filled = np.resize(places, batch_size)
    x = split.images[filled]
    x = pipeline.to_unit(x) if x.dtype == np.uint8 else x
    x, y, index = devices.spread((x, split.labels[filled], filled.astype(np.int32)))
    if attack is not None:
      x = attack(jax.tree_util.Partial(attacked_logits, variables), x, y, key, index).x
    result[places] = np.asarray(_correct(network.deployed, variables, x, y))[:len(places)]
    done = begin + len(places)
    progress(done, len(chosen), float(among.mean() * result.sum() / done))
  return result


@functools.partial(jax.jit, static_argnums=0)
def _correct(deployed, variables, x, y):
  return _stepper.is_correct(deployed(variables, x), y)


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
    labels: i32[N].
    num_classes: C.
  """
  clean: np.ndarray
  robust: dict[str, np.ndarray]
  authors: dict[str, np.ndarray]
  worst_case: np.ndarray
  components: dict[str, dict[str, np.ndarray]]
  warnings: dict[str, tuple[str, ...]]
  states: tuple[pathlib.Path, ...]
  labels: np.ndarray
  num_classes: int

  def by_class(self, verdicts: np.ndarray) -> np.ndarray:
    """f64[C], the accuracy on each class's examples; NaN for a class without one."""
    return metrics.accuracy_by_class(verdicts, self.labels, self.num_classes)

  def accuracies(self) -> dict[str, Any]:
    """The report as fractions, under the names that results.json uses."""
    fractions = lambda verdicts: {name: float(v.mean()) for name, v in verdicts.items()}
    # JSON has no NaN: null stands for a class that has no example here.
    known = lambda shares: [None if np.isnan(share) else float(share) for share in shares]
    worst_case = self.by_class(self.worst_case)
    return {'n': len(self.clean), 'clean': float(self.clean.mean()),
            'robust': fractions(self.robust), 'authors': fractions(self.authors),
            'worst_case': float(self.worst_case.mean()),
            'worst_class': float(np.nanmin(worst_case)),
            'by_class': {'clean': known(self.by_class(self.clean)), 'worst_case': known(worst_case),
                         'worst': int(np.nanargmin(worst_case))},
            'components': {name: fractions(each) for name, each in self.components.items()},
            'warnings': {name: list(lines) for name, lines in self.warnings.items()}}

  def verdicts(self) -> dict[str, np.ndarray]:
    """Every verdict by example, under the names that verdicts.npz uses: bool[N] each."""
    found = {'clean': self.clean, 'worst_case': self.worst_case}
    found |= {f'robust/{name}': v for name, v in self.robust.items()}
    found |= {f'authors/{name}': v for name, v in self.authors.items()}
    return found


def evaluate(
    network: deployed_lib.Network,
    variables: Any,
    split: pipeline.Split,
    key: Array,
    *,
    names: Sequence[str],
    norm: str,
    epsilon: float,
    step_size: float,
    batch_size: int,
    has_dummies: bool,
    search: deployed_lib.Network | None = None,
    state_dir: pathlib.Path | None = None,
    progress: Progress = lambda *_: None,
    warn: Callable[[str, str], None] | None = None,
) -> Report:
  """Runs attacks on the deployed model and, for one with dummy classes, the authors' protocol.

  An example that is wrong without an attack counts as not robust and is not attacked. DUCAT's
  protocol is followed as released: it attacks every example through the raw 2C logits with its hard
  label, and recovers the class only afterwards. So does AutoAttack, as it was released, on such a
  model: it is content with an example whose dummy is on top. FGSM, PGD on the cross-entropy and
  AutoAttack are run in that way beside their deployed forms.

  Args:
    network: the network.
    variables: its variables, those that are to be deployed.
    split: the examples.
    key: a PRNG key. But for AutoAttack's, attacks draw alike: the first restarts of any two begin at the
      same points.
    names: attacks and sweeps, as `protocols` has them. Those that know dummy classes are left out
      where there are none; a sweep is reported part by part and, by its own name, in its worst case
      an example.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: the radius, in units of x.
    step_size: of PGD; FGSM's is epsilon.
    batch_size: how many examples at a time, over all devices.
    has_dummies: whether the head has dummy classes.
    search: what AutoAttack searches on instead, the same network in a lower precision; what it
      finds counts only where `network` is fooled too.
    state_dir: where AutoAttack keeps its state, for a killed evaluation to go on; None for nowhere.
    progress: called with what is running, the examples done, their number, and the accuracy so far.
    warn: called with what is running and each reason to doubt its number as soon as it is known; by
      default `warnings.warn`.

  Returns:
    A `Report`.

  Source: ours; DUCAT's protocol: Wang et al., arXiv 2410.12671 (2024), the released code.
  """
  everything = np.ones(len(split.labels), bool)
  run = functools.partial(robust_examples, network, variables, split, batch_size=batch_size)
  clean = run(key, attack=None, attacked_logits=network.deployed, among=everything,
              progress=functools.partial(progress, 'clean'))

  components, warnings, states = {}, {}, []

  def under_autoattack(choice: autoattack_run.Choice, attacked_logits: Callable, among: np.ndarray,
                       title: str) -> np.ndarray:
    lower = search and (
        search.deployed if attacked_logits is network.deployed else search.logits)
    found, state = autoattack_run.run(
        attacked_logits, variables, split, key, choice=choice, norm=norm, epsilon=epsilon,
        batch_size=batch_size, title=title, search=lower, state_dir=state_dir, progress=progress,
        warn=warn and functools.partial(warn, title))
    warnings[title] = found.warnings
    states.extend([] if state is None else [state])
    if attacked_logits is network.deployed:
      components[title] = found.components
      return among & found.robust
    return robust_examples(network, variables, pipeline.Split(found.x, split.labels), key, attack=None,
                    attacked_logits=network.deployed, among=among, batch_size=batch_size)

  def under(name: str, attacked_logits: Callable, among: np.ndarray, title: str) -> np.ndarray:
    spec = attack_names.parse(name)
    if isinstance(spec, autoattack_run.Choice):
      return under_autoattack(spec, attacked_logits, among, title)
    attack = attack_names.attack(spec, norm=norm, epsilon=epsilon, step_size=step_size)
    logits = _both_halves(network) if spec.knows_dummies else attacked_logits
    for restart in range(spec.restarts):
      running = title if spec.restarts == 1 else f'{title} ({restart + 1} of {spec.restarts})'
      among = run(jax.random.fold_in(key, restart), attack=attack, among=among,
                  attacked_logits=logits, progress=functools.partial(progress, running))
    return among

  robust = {}
  for name in names:
    parts = [part for part in attack_names.expand(name)
             if has_dummies or not attack_names.knows_dummies(part)]
    found = {part: under(part, network.deployed, clean, part) for part in parts}
    robust |= found
    if len(parts) > 1:
      robust[name] = np.logical_and.reduce(list(found.values()))
  authors = {}
  if has_dummies:
    authors = {name: under(name, network.logits, everything, f"{name}, authors' protocol")
               for name in names if _is_authors(name)}
  worst_case = functools.reduce(np.logical_and, [*robust.values(), *authors.values()], clean)
  one = pipeline.to_unit(split.images[:1])
  num_classes = jax.eval_shape(network.deployed, variables, one).shape[-1]
  return Report(clean, robust, authors, worst_case, components, warnings, tuple(states),
                split.labels, num_classes)


@functools.cache
def _both_halves(network: deployed_lib.Network) -> Callable[[Any, Array], Array]:
  """All logits of a head with dummies, as what is deployed has them: folded they are its logits."""
  def changed(variables: Any, x: Array) -> Array:
    out = network.logits(variables, x)
    if logit_adjustment.COLLECTION not in variables:
      return out
    return logit_adjustment.adjust(out, variables[logit_adjustment.COLLECTION], network.fold)

  return changed


def _is_authors(name: str) -> bool:
  """DUCAT's authors report attacks on the cross-entropy, and AutoAttack."""
  spec = attack_names.parse(name)
  return isinstance(spec, autoattack_run.Choice) or spec is not None and spec.loss == 'cross_entropy'

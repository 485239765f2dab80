"""Robust accuracy of the deployed model, and of a paper's released protocol.

An example is robust to an attack if `argmax` of the *deployed* logits at the attacked point is its class, for
any attacked logits. In the worst case an example is robust if it is classified correctly clean and under
every attack that was run.
"""

from collections.abc import Callable, Sequence
import functools
import os
import pathlib
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks, devices
from at_jax.attacks import _arguments, _diagnostics, _stepper
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, autoattack_run, metrics
from at_jax.methods import inner_attacks
from at_jax.models import deployed as deployed_lib
from at_jax.models import logit_adjustment

Array = jax.Array
# (name of what runs, examples done, number of examples, accuracy so far) -> None
Progress = Callable[[str, int, int, float], None]
# (i32[n] indices in the split, f32[batch size, ...] points whose first n are theirs, still on the devices,
# f32[n, C] deployed logits) -> None. Of several processes, the first one has the first of the points.
Observer = Callable[[np.ndarray, Array, np.ndarray], None]


def predictions(
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
    observe: Observer = lambda index, x, logits: None,
) -> np.ndarray:
  """Finds the class that the deployed model predicts for each example, clean or under an attack.

  All batches have the same size, so each program compiles once: the last one is filled with repeated
  examples, which are not counted. Batches are spread over the devices of all processes, which call it
  together and all get the whole result.

  Args:
    network: the network.
    variables: its variables.
    split: the examples; images are uint8, or f32 in [0, 1].
    key: PRNG key; the draws of an example depend on its index in `split`.
    attack: `(logits_fn, x, y, key, index) -> AttackResult`, or None for clean examples.
    attacked_logits: `(variables, x) -> logits` that the attack uses: `network.deployed` or `network.logits`.
    among: bool[N], the examples to evaluate.
    batch_size: number of examples in a batch.
    progress: called with the examples done, their number, and an estimate of the accuracy over all N.
    observe: an `Observer`, called after each batch.

  Returns:
    i32[N]; −1 for the examples that are not evaluated, and for logits of NaN or +∞, which decide nothing.
  """
  result = np.full(len(split.labels), -1, np.int32)
  chosen = np.flatnonzero(among)
  variables = devices.spread(variables, replicated=True)
  progress(0, len(chosen), 0.)
  for begin in range(0, len(chosen), batch_size):
    places = chosen[begin:begin + batch_size]
    filled = devices.share(np.resize(places, batch_size))
    x, y, index = devices.spread(
        (pipeline.in_unit(split.images[filled]), split.labels[filled], filled.astype(np.int32)))
    if attack is not None:
      x = attack(jax.tree_util.Partial(attacked_logits, variables), x, y, key, index).x
    predicted, logits = devices.gather(_predicted(network.deployed, variables, x))
    result[places] = predicted[:len(places)]
    observe(places, x, logits[:len(places)])
    done = begin + len(places)
    progress(done, len(chosen), float(among.mean() * (result == split.labels).sum() / done))
  return result


@functools.partial(jax.jit, static_argnums=0)
def _predicted(deployed, variables, x):
  """The class of each example, -1 where NaN or +inf decide nothing, and its logits."""
  logits = deployed(variables, x)
  largest = jnp.argmax(logits, axis=-1)
  return jnp.where(_stepper.is_correct(logits, largest), largest, -1), logits


def robust_examples(network: deployed_lib.Network, variables: Any, split: pipeline.Split, key: Array,
                    **options: Any) -> np.ndarray:
  """Finds the examples that the deployed model classifies correctly, clean or under an attack.

  Args:
    network: the network.
    variables: its variables.
    split: the examples; images are uint8, or f32 in [0, 1].
    key: PRNG key; the draws of an example depend on its index in `split`.
    **options: as for `predictions`.

  Returns:
    bool[N]; False for the examples that are not among those to evaluate.
  """
  return predictions(network, variables, split, key, **options) == split.labels


class Report(NamedTuple):
  """Verdicts of an evaluation, one per example.

  Attributes:
    clean: bool[N], classified correctly without an attack.
    robust: `{attack: bool[N]}`, classified correctly clean and under the attack on the deployed logits.
    released: `{attack: bool[N]}`, classified correctly under the released protocol, where it differs.
    worst_case: bool[N], classified correctly clean and under every attack above.
    components: `{attack: {component: bool[N]}}`, robust after this component of AutoAttack and the earlier
      ones.
    warnings: `{attack: messages}`, possible problems of the evaluation; 'clean' for those of the clean
      logits, if AutoAttack does not check them.
    passes: `{attack: {component: Passes}}` of AutoAttack, as in `attacks.AutoAttackResult`.
    audits: `{attack: Audit}`, intervals for the robust accuracy under a fast version and AutoAttack.
    audited: `{attack: bool[N]}`, the samples of these audits.
    states: AutoAttack's state files, to be removed when the report is written.
    labels: i32[N].
    num_classes: C.
  """
  clean: np.ndarray
  robust: dict[str, np.ndarray]
  released: dict[str, np.ndarray]
  worst_case: np.ndarray
  components: dict[str, dict[str, np.ndarray]]
  warnings: dict[str, tuple[str, ...]]
  passes: dict[str, dict[str, attacks.Passes]]
  audits: dict[str, attacks.Audit]
  audited: dict[str, np.ndarray]
  states: tuple[pathlib.Path, ...]
  labels: np.ndarray
  num_classes: int

  def by_class(self, verdicts: np.ndarray) -> np.ndarray:
    """Accuracy of each class: f64[C], NaN for a class without examples."""
    return metrics.accuracy_by_class(verdicts, self.labels, self.num_classes)

  def accuracies(self) -> dict[str, Any]:
    """The report as fractions, with the keys of results.json."""
    fractions = lambda verdicts: {name: float(v.mean()) for name, v in verdicts.items()}
    # JSON has no NaN: a class without examples is null.
    by_class = lambda shares: [None if np.isnan(share) else float(share) for share in shares]
    worst_case = self.by_class(self.worst_case)
    return {'n': len(self.clean), 'clean': float(self.clean.mean()),
            'robust': fractions(self.robust), 'released': fractions(self.released),
            'worst_case': float(self.worst_case.mean()),
            'worst_class': float(np.nanmin(worst_case)),
            'by_class': {'clean': by_class(self.by_class(self.clean)), 'worst_case': by_class(worst_case),
                         'worst': int(np.nanargmin(worst_case))},
            'components': {name: fractions(each) for name, each in self.components.items()},
            'warnings': {name: list(lines) for name, lines in self.warnings.items()},
            'passes': {name: {part: count._asdict() for part, count in each.items()}
                       for name, each in self.passes.items()},
            'audits': {name: audit._asdict() for name, audit in self.audits.items()}}

  def verdicts(self) -> dict[str, np.ndarray]:
    """Verdicts with the keys of verdicts.npz: bool[N] each."""
    found = {'clean': self.clean, 'worst_case': self.worst_case}
    found |= {f'robust/{name}': v for name, v in self.robust.items()}
    found |= {f'released/{name}': v for name, v in self.released.items()}
    found |= {f'audited/{name}': v for name, v in self.audited.items()}
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
    audit: int = 0,
    search: deployed_lib.Network | None = None,
    state_dir: str | os.PathLike | None = None,
    progress: Progress = lambda *_: None,
    observe: Observer = lambda index, x, logits: None,
    warn: Callable[[str, str], None] | None = None,
) -> Report:
  """Attacks the deployed model and, if it has dummy classes, follows the released protocol too.

  An example that is misclassified clean counts as not robust and is not attacked.

  DUCAT's released protocol attacks the raw 2C logits with the hard label, on every example, and maps the
  prediction to a class only afterwards. The reference AutoAttack does the same on such a model: it stops at
  points where the dummy of the right class is on top. So FGSM, PGD on the cross-entropy and AutoAttack are
  run on the raw logits as well as on the deployed ones.

  Args:
    network: the network.
    variables: the variables to deploy.
    split: the examples.
    key: PRNG key. All attacks but AutoAttack draw from the same keys: the first restarts of any two of them
      start from the same points.
    names: attacks and sweeps, as in `attack_names`. Dummy-aware attacks are skipped on a model without
      dummy classes. A sweep is reported part by part, and by its own name as the worst case of its parts.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: radius, in units of x.
    step_size: of PGD; FGSM's is epsilon.
    batch_size: number of examples in a batch, over all devices.
    has_dummies: whether the head has dummy classes.
    audit: the largest number of examples robust under `autoattack_fast`, on the deployed logits, that
      AutoAttack attacks too; 0 for no audit.
    search: the same network in a lower precision, on which AutoAttack searches. A point counts only if
      `network` misclassifies it too.
    state_dir: where AutoAttack saves its state to resume from; None for nowhere.
    progress: called with the name of what runs, the examples done, their number, and the accuracy so far.
    observe: an `Observer` of the attacked batches of PGD and FGSM.
    warn: called with the name of what runs and each possible problem of the evaluation, as soon as it is
      found; default `warnings.warn`.

  Returns:
    A `Report`.

  Raises:
    ValueError: if a name is unknown, or a label is no class of the network.

  Reference: Wang et al., arXiv 2410.12671 (2024), released code (DUCAT's protocol).
  """
  unknown = [name for name in names if not attack_names.known(name)]
  if unknown:
    raise ValueError(f'names = {unknown}: use attacks and sweeps of at_jax.evaluation.attack_names')
  everything, logits = np.ones(len(split.labels), bool), []
  clean = robust_examples(
      network, variables, split, key, attack=None, attacked_logits=network.deployed, among=everything,
      batch_size=batch_size, progress=functools.partial(progress, 'clean'),
      observe=lambda index, x, z: logits.append(z))
  options = dict(norm=norm, epsilon=epsilon, batch_size=batch_size, progress=progress)
  components, passes, states = {}, {}, []
  audits, audited = {}, {}
  num_classes = logits[0].shape[-1]
  _arguments.check_values(classes={'split.labels': split.labels}, num_classes=num_classes)
  messages = _check_clean(np.concatenate(logits), split.labels, names, warn)

  def under(name: str, attacked_logits: Callable, among: np.ndarray, title: str) -> np.ndarray:
    spec = attack_names.parse(name)
    if isinstance(spec, attack_names.Spec):
      return _under_pgd(network, variables, split, key, spec, attacked_logits, among, title,
                        step_size=step_size, observe=observe, **options)
    found, state, robust = _under_autoattack(
        network, variables, split, key, spec, attacked_logits, among, title, search=search, audit=audit,
        state_dir=state_dir, warn=warn and functools.partial(warn, title), **options)
    messages[title], passes[title] = found.warnings, found.passes
    states.extend([] if state is None else [state])
    if attacked_logits is network.deployed:
      components[title] = found.components
      if found.audit is not None:
        audits[title], audited[title] = found.audit, found.audited
    return robust

  robust = {}
  for name in names:
    parts = [part for part in attack_names.expand(name)
             if has_dummies or not attack_names.knows_dummies(part)]
    found = {part: under(part, network.deployed, clean, part) for part in parts}
    robust |= found
    if len(parts) > 1:
      robust[name] = np.logical_and.reduce(list(found.values()))
  released = {}
  if has_dummies:
    released = {name: under(name, network.logits, everything, f'{name}, released protocol')
                for name in names if _is_released(name)}
  worst_case = functools.reduce(np.logical_and, [*robust.values(), *released.values()], clean)
  return Report(clean, robust, released, worst_case, components, messages, passes, audits, audited,
                tuple(states), split.labels, num_classes)


def _check_clean(logits: np.ndarray, labels: np.ndarray, names: Sequence[str],
                 warn: Callable[[str, str], None] | None) -> dict[str, tuple[str, ...]]:
  """Warns of clean logits on which PGD is not to be trusted; AutoAttack checks them itself."""
  attacks_run = [attack_names.parse(part) for name in names for part in attack_names.expand(name)]
  if not attacks_run or any(isinstance(each, autoattack_run.Choice) for each in attacks_run):
    return {}
  lines = _diagnostics.check_logits(logits, labels)
  for line in lines:
    warnings.warn(f'clean: {line}', stacklevel=3) if warn is None else warn('clean', line)
  return {'clean': lines} if lines else {}


def _under_pgd(network: deployed_lib.Network, variables: Any, split: pipeline.Split, key: Array,
               spec: attack_names.Spec, attacked_logits: Callable, among: np.ndarray, title: str, *,
               norm: str, epsilon: float, step_size: float, batch_size: int, progress: Progress,
               observe: Observer) -> np.ndarray:
  """The examples that every restart leaves classified correctly: bool[N]."""
  attack = attack_names.attack(spec, norm=norm, epsilon=epsilon, step_size=step_size)
  logits = _both_halves(network) if spec.knows_dummies else attacked_logits
  for restart in range(spec.restarts):
    running = title if spec.restarts == 1 else f'{title} ({restart + 1} of {spec.restarts})'
    among = robust_examples(
        network, variables, split, jax.random.fold_in(key, restart), attack=attack, among=among,
        attacked_logits=logits, batch_size=batch_size, progress=functools.partial(progress, running),
        observe=observe)
  return among


def _under_autoattack(
    network: deployed_lib.Network, variables: Any, split: pipeline.Split, key: Array,
    choice: autoattack_run.Choice, attacked_logits: Callable, among: np.ndarray, title: str, *,
    search: deployed_lib.Network | None, audit: int, batch_size: int, **options: Any,
) -> tuple[attacks.AutoAttackResult, pathlib.Path | None, np.ndarray]:
  """AutoAttack's result, its state file, and the examples that it leaves classified correctly: bool[N]."""
  deployed = attacked_logits is network.deployed
  lower = search and (search.deployed if deployed else search.logits)
  found, state = autoattack_run.run(attacked_logits, variables, split, key, choice=choice, title=title,
                                    search=lower, batch_size=batch_size,
                                    audit=audit if deployed else 0, **options)
  if deployed:
    return found, state, among & found.robust
  return found, state, robust_examples(
      network, variables, pipeline.Split(found.x, split.labels), key, attack=None,
      attacked_logits=network.deployed, among=among, batch_size=batch_size)


@functools.cache
def _both_halves(network: deployed_lib.Network) -> Callable[[Any, Array], Array]:
  """The 2C logits of a head with dummy classes, whose fold is the deployed logits."""
  def changed(variables: Any, x: Array) -> Array:
    out = network.logits(variables, x)
    if logit_adjustment.COLLECTION not in variables:
      return out
    return logit_adjustment.adjust(out, variables[logit_adjustment.COLLECTION], network.fold)

  return changed


def _is_released(name: str) -> bool:
  """The released protocol of DUCAT has attacks on the cross-entropy and AutoAttack."""
  spec = attack_names.parse(name)
  return isinstance(spec, autoattack_run.Choice) or spec is not None and spec.loss == 'cross_entropy'

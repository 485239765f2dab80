"""Names of an evaluation's attacks, as `config.evaluate.attacks` lists them.

| name | attack |
|---|---|
| `fgsm` | one step of size ε from the input |
| `pgd20`, `pgd20x5` | PGD on the cross-entropy, 20 steps; with 5 restarts |
| `margin100x5` | PGD on the margin; its gradient does not vanish where that of the cross-entropy does |
| `scale10_pgd20` | PGD on the cross-entropy of 10 times the logits, without underflow |
| `masking10_pgd20` | the same in the usual form, which can underflow: a diagnostic of masked gradients |
| `dummy0.25_pgd100` | PGD on the margin between classes with their dummies, weighted by λ = .25 |
| `dummysoft_pgd100` | PGD on the margin of logsumexp over a class and its dummy |
| `scales_pgd20` | sweep: `scaleS_pgd20` for all S in `SCALES` |
| `dummies_pgd100` | sweep: `dummyλ_pgd100` for all λ in `WEIGHTS`, and `dummysoft_pgd100` |
| `autoattack`, `autoattack_plus`, `autoattack_rand` | AutoAttack: versions standard, plus, rand |
| `autoattack_fast` | version fast: a twelfth of the gradient passes, and no Square |
| `apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square` | one component, on all clean-correct examples |
| `apgd-soft`, `apgd-near` | one component of version fast, with 100 steps, on the same examples |

Attacks that begin with `dummy` or `dummies` are for models with dummy classes only.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp

from at_jax import attacks
from at_jax.attacks import losses
from at_jax.evaluation import autoattack_run
from at_jax.methods import inner_attacks

# 1/T of the sweep of Temperature-PGD, and λ of the sweep of weighted dummy margins.
SCALES = (.2, .5, 1., 2., 5., 10., 20., 50.)
WEIGHTS = (0., .25, .5, .75, 1.)
_NUMBER = r'\d+(?:\.\d+)?'
_PGD = re.compile(rf'(?:(margin)|(?:(scale|masking|dummy)({_NUMBER})_|(dummysoft)_)?pgd)'
                  r'([1-9]\d*)(?:x([1-9]\d*))?')
_LOSSES = {'margin': losses.margin, 'scale': losses.soft_margin, 'dummysoft':
           losses.soft_dummy_margin, 'dummy': losses.weighted_dummy_margin}


class Spec(NamedTuple):
  """A PGD attack of an evaluation.

  Attributes:
    num_steps: number of steps.
    restarts: number of independent runs; the worst counts.
    random_start: start at a random point of the ball. Without one, a single step is FGSM.
    loss: 'cross_entropy', 'margin', 'scale', 'masking', 'dummy' or 'dummysoft'.
    parameter: 1/T or λ of the loss, if it has one.
  """
  num_steps: int
  restarts: int = 1
  random_start: bool = True
  loss: str = 'cross_entropy'
  parameter: float | None = None

  @property
  def knows_dummies(self) -> bool:
    """Whether the attack uses all 2C logits, so that it needs a head with dummy classes."""
    return self.loss.startswith('dummy')


def parse(name: str) -> Spec | autoattack_run.Choice | None:
  """Reads the name of one attack.

  Args:
    name: a name of this module's table, but not a sweep.

  Returns:
    A `Spec`, or an `autoattack_run.Choice` for AutoAttack; None if the name is unknown.

  Example:
    >>> parse('pgd20x5').restarts
    5
    >>> parse('scale10_pgd20')
    Spec(num_steps=20, restarts=1, random_start=True, loss='scale', parameter=10.0)
  """
  if name == 'fgsm':
    return Spec(1, random_start=False)
  if name in autoattack_run.CHOICES:
    return autoattack_run.CHOICES[name]
  match = _PGD.fullmatch(str(name))
  if match is None:
    return None
  margin, family, parameter, soft, steps, restarts = match.groups()
  number = None if parameter is None else float(parameter)
  if family in ('scale', 'masking') and number == 0 or family == 'dummy' and number > 1:
    return None
  loss = margin or family or soft or 'cross_entropy'
  return Spec(int(steps), int(restarts or 1), True, loss, number)


def expand(name: str) -> tuple[str, ...]:
  """Lists the attacks of a sweep.

  Args:
    name: name of an attack or a sweep.

  Returns:
    Names for `parse`; a name that is no sweep is returned alone.

  Example:
    >>> expand('dummies_pgd100')[1:3]
    ('dummy0.25_pgd100', 'dummy0.5_pgd100')
    >>> expand('fgsm')
    ('fgsm',)

  Reference: Tian et al., 2021, for the scales (see `attacks.losses.soft_margin`).
  """
  sweep, _, attack = str(name).partition('_')
  if sweep == 'scales':
    return tuple(f'scale{scale:g}_{attack}' for scale in SCALES)
  if sweep == 'dummies':
    return (*(f'dummy{weight:g}_{attack}' for weight in WEIGHTS), f'dummysoft_{attack}')
  return (name,)


def known(name: str) -> bool:
  """Whether a name is that of an attack or a sweep.

  Args:
    name: the name.

  Returns:
    True if `parse` reads it, or every part of the sweep.

  Example:
    >>> known('scales_pgd20'), known('scales_pgd')
    (True, False)
  """
  return all(parse(part) is not None for part in expand(name))


def knows_dummies(name: str) -> bool:
  """Whether an attack needs a model with dummy classes.

  Args:
    name: name of one attack.

  Returns:
    True for the parts of the sweep of dummy margins.

  Example:
    >>> knows_dummies('dummy0.25_pgd100'), knows_dummies('margin100')
    (True, False)
  """
  spec = parse(name)
  return isinstance(spec, Spec) and spec.knows_dummies


def attack(spec: Spec, *, norm: str, epsilon: float, step_size: float) -> inner_attacks.Attack:
  """Makes the PGD attack of a `Spec`, for one restart.

  Success is judged by the attacked logits; the caller decides which logits count.

  Args:
    spec: result of `parse`.
    norm: as in `attacks.pgd`.
    epsilon: as in `attacks.pgd`.
    step_size: as in `attacks.pgd`; FGSM's is epsilon.

  Returns:
    `(logits_fn, x, y, key, index) -> AttackResult`.

  Example:
    >>> import jax
    >>> run = attack(parse('scale10_pgd2'), norm='linf', epsilon=.1, step_size=.1)
    >>> result = run(lambda x: x, jnp.array([[.5, .4]]), jnp.array([0]), jax.random.key(0), None)
    >>> bool(result.success[0])
    True
  """
  options = dict(norm=norm, epsilon=epsilon, num_steps=spec.num_steps,
                 step_size=step_size if spec.random_start else epsilon,
                 random_start=spec.random_start)
  if spec.loss == 'cross_entropy':
    return inner_attacks.uniform(**options)
  if spec.loss == 'masking':
    return inner_attacks.uniform(loss=losses.masking_scaled(spec.parameter), **options)
  if spec.parameter is None:
    return inner_attacks.uniform(loss=_LOSSES[spec.loss], **options)

  def run(logits_fn, x, y, key, index, tau=None):
    # The parameter is a traced argument, so that a sweep compiles once.
    parameter = jnp.full(y.shape, spec.parameter, x.dtype)
    return attacks.pgd(logits_fn, x, y, key, index=index, tau=tau, loss=_LOSSES[spec.loss],
                       loss_args=(parameter,), **options)
  return run

"""The attacks of an evaluation, by the names that a configuration uses.

| name | what it is |
|---|---|
| `fgsm` | one step of size ε from the input itself |
| `pgd20`, `pgd20x5` | PGD on the cross-entropy, 20 steps; 5 restarts |
| `margin100x5` | on the margin, which stays where a method keeps cross-entropy's gradient small |
| `scale10_pgd20` | on the cross-entropy of logits times 10, in the form that does not underflow |
| `masking10_pgd20` | the same as it is usually written: a diagnostic of masked gradients |
| `dummy0.25_pgd100` | on the margin over a class and its dummy, λ = .25; only with dummy classes |
| `dummysoft_pgd100` | on the margin of logsumexp over a class and its dummy; likewise |
| `scales_pgd20`, `dummies_pgd100` | all `SCALES`; all `WEIGHTS` and `dummysoft` |
| `autoattack`, `autoattack_plus`, `autoattack_rand` | AutoAttack |
| `apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square` | a part of it, on all examples |
"""

import re
from typing import NamedTuple

import jax.numpy as jnp

from at_jax import attacks
from at_jax.attacks import losses
from at_jax.evaluation import autoattack_run
from at_jax.methods import inner_attacks

# 1/T of Temperature-PGD's sweep, and λ of the weighted dummy margin's.
SCALES = (.2, .5, 1., 2., 5., 10., 20., 50.)
WEIGHTS = (0., .25, .5, .75, 1.)
_NUMBER = r'\d+(?:\.\d+)?'
_PGD = re.compile(rf'(?:(margin)|(?:(scale|masking|dummy)({_NUMBER})_|(dummysoft)_)?pgd)'
                  r'([1-9]\d*)(?:x([1-9]\d*))?')
_LOSSES = {'margin': losses.margin, 'scale': losses.soft_margin, 'dummysoft':
           losses.soft_dummy_margin, 'dummy': losses.weighted_dummy_margin}


class Spec(NamedTuple):
  """An attack of an evaluation.

  Attributes:
    num_steps: steps; one without a random start is FGSM.
    restarts: independent runs, of which the worst counts.
    random_start: begin at a random point of the ball.
    loss: 'cross_entropy', 'margin', 'scale', 'masking', 'dummy' or 'dummysoft'.
    parameter: the loss's 1/T or λ, where it has one.
  """
  num_steps: int
  restarts: int = 1
  random_start: bool = True
  loss: str = 'cross_entropy'
  parameter: float | None = None

  @property
  def knows_dummies(self) -> bool:
    """It looks at all 2C logits, and makes no sense on a head without dummies."""
    return self.loss.startswith('dummy')


def parse(name: str) -> Spec | autoattack_run.Choice | None:
  """Reads the name of one attack.

  Args:
    name: a row of this module's table, but for the sweeps.

  Returns:
    A `Spec`; for AutoAttack an `autoattack.Choice`; None for no such name.

  Example:
    >>> parse('pgd20x5').restarts
    5
    >>> parse('scale10_pgd20')
    Spec(num_steps=20, restarts=1, random_start=True, loss='scale', parameter=10.0)

  Source: ours.
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
  """The attacks that a name stands for: those of a sweep, else itself.

  Args:
    name: of a configuration.

  Returns:
    Names for `parse`.

  Example:
    >>> expand('dummies_pgd100')[1:3]
    ('dummy0.25_pgd100', 'dummy0.5_pgd100')
    >>> expand('fgsm')
    ('fgsm',)

  Source: the scales: Tian et al., 2021, by `attacks.losses.soft_margin`; ours.
  """
  sweep, _, attack = str(name).partition('_')
  if sweep == 'scales':
    return tuple(f'scale{scale:g}_{attack}' for scale in SCALES)
  if sweep == 'dummies':
    return (*(f'dummy{weight:g}_{attack}' for weight in WEIGHTS), f'dummysoft_{attack}')
  return (name,)


def known(name: str) -> bool:
  """Whether a name is that of an attack or of a sweep.

  Args:
    name: of a configuration.

  Returns:
    Whether `parse` knows it, or every part it stands for.

  Example:
    >>> known('scales_pgd20'), known('scales_pgd')
    (True, False)

  Source: ours.
  """
  return all(parse(part) is not None for part in expand(name))


def knows_dummies(name: str) -> bool:
  """Whether an attack makes sense for a model with dummy classes alone.

  Args:
    name: of one attack.

  Returns:
    True for those of the sweep of dummy margins.

  Example:
    >>> knows_dummies('dummy0.25_pgd100'), knows_dummies('margin100')
    (True, False)

  Source: ours.
  """
  spec = parse(name)
  return isinstance(spec, Spec) and spec.knows_dummies


def attack(spec: Spec, *, norm: str, epsilon: float, step_size: float) -> inner_attacks.Attack:
  """PGD as a name asks for it, with everything but the model and the examples filled in.

  Args:
    spec: what `parse` gave.
    norm: of `attacks.pgd`.
    epsilon: of `attacks.pgd`.
    step_size: of `attacks.pgd`; FGSM's is epsilon.

  Returns:
    `(logits_fn, x, y, key, index) -> AttackResult`, of one restart. It judges success by the logits
    it looks at; which decision counts is for its caller to say.

  Example:
    >>> import jax
    >>> run = attack(parse('scale10_pgd1'), norm='linf', epsilon=.1, step_size=.1)
    >>> run(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]), jax.random.key(0), None).x.shape
    (1, 2)

  Source: `attacks.pgd`.
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
    # As a traced argument the parameter costs a sweep one compilation.
    parameter = jnp.full(y.shape, spec.parameter, x.dtype)
    return attacks.pgd(logits_fn, x, y, key, index=index, tau=tau, loss=_LOSSES[spec.loss],
                       loss_args=(parameter,), **options)
  return run

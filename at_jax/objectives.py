"""How a loss meets the network: which examples go through it, and in how many passes.

An objective is `(forward, batch_stats, x, x_adv, y) -> Outcome`, where `forward(x, batch_stats)` is
the network in train mode and returns its logits and the statistics that this pass has updated, so
that several passes follow each other as they do in the released code. A config names an objective,
so a new method is a function, here or in a module of your own, and a config.

Each comes apart as in `losses`, a fit and a regulariser, one number an example; `mean_loss` joins
them with importance weights. An objective that takes `ducat` replaces its cross-entropy by it.
"""

from collections.abc import Callable
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from at_jax import dummy
from at_jax import errors
from at_jax import losses

Array = jax.Array
Forward = Callable[[Array, Any], tuple[Array, Any]]
Objective = Callable[..., 'Outcome']


class Outcome(NamedTuple):
  """What an objective returns.

  Attributes:
    fit: f32[V·B], how badly the labels are learnt, in nats; V is 2 where there are two views.
    regulariser: f32[B], how far apart predictions are that should agree, or None.
    logits: f32[V·B, K], in train mode, of the examples that the method learns from: x', or x where
      there is no x'.
    batch_stats: the updated BatchNorm statistics.
    complement: f32[B], what takes the share of the regulariser that a weight leaves, or None.
  """
  fit: Array
  regulariser: Array | None
  logits: Array
  batch_stats: Any
  complement: Array | None = None


def named(name: str) -> Objective:
  """The objective that a config's `loss` names.

  Args:
    name: of one of this module, or the import path of one of your own, 'mine.smoothed'.

  Returns:
    The function.

  Raises:
    errors.UserError: there is nothing of that name to import.

  Example:
    >>> named('at_jax.objectives.trades') is named('trades')
    True

  Source: ours.
  """
  if '.' not in name:
    return globals()[name]
  module, _, function = name.rpartition('.')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError('config.loss', name, f'{error}: name a function as module.function, and '
                           'run the command where the module can be imported') from error
  if not callable(found):
    raise errors.UserError('config.loss', name, 'is no function: name one as module.function')
  return found


def standard(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Training on clean examples: the fit is CE(f(x), y).

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: not read.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(standard(f, {}, jnp.zeros((1, 2)), None, jnp.array([0])).fit)
    [0.6931472]

  Source: the usual definition.
  """
  del x_adv
  logits, batch_stats = forward(x, batch_stats)
  return Outcome(losses.cross_entropy(logits, y), None, logits, batch_stats)


def pgd_at(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array) -> Outcome:
  """Adversarial training: the fit is CE(f(x'), y), with no clean term.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: not read.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(pgd_at(f, {}, None, jnp.zeros((1, 2)), jnp.array([0])).fit)
    [0.6931472]

  Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
  section 2.
  """
  return standard(forward, batch_stats, x_adv, x, y)


def ducat(
    forward: Forward,
    batch_stats: Any,
    x: Array,
    x_adv: Array,
    y: Array,
    *,
    benign_weight: float,
    adversarial_weight: float,
    alpha: float,
) -> Outcome:
  """PGD-AT with dummy classes: the fit is `dummy.loss` of one pass over the concatenation [x; x'].

  One pass, so that clean and adversarial examples share their BatchNorm statistics.

  Args:
    forward: the network in train mode, with 2C outputs.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    benign_weight: of `dummy.loss`.
    adversarial_weight: of `dummy.loss`.
    alpha: of `dummy.loss`.

  Returns:
    An `Outcome`; its logits are those of x'.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> zeros = jnp.zeros((1, 4))
    >>> print(ducat(f, {}, zeros, zeros, jnp.array([0]), benign_weight=.25, adversarial_weight=1.,
    ...             alpha=1.).fit)
    [1.3862944]

  Source: Wang et al., DUCAT, arXiv 2410.12671 (2024), and its released code.
  """
  logits, batch_stats = forward(jnp.concatenate([x, x_adv]), batch_stats)
  clean, adversarial = jnp.split(logits, 2)
  fit = dummy.loss(clean, adversarial, y, benign_weight=benign_weight,
                   adversarial_weight=adversarial_weight, alpha=alpha)
  return Outcome(fit, None, adversarial, batch_stats)


def trades(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
           ducat: Objective | None = None) -> Outcome:
  """TRADES: the fit is CE(f(x), y), the regulariser KL(f(x) ‖ f(x')).

  x and x' go through apart, each normalised by its own statistics. The released code passes x
  twice, which only weighs the running statistics towards it. With DUCAT its concatenation goes
  first.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples, found for the KL.
    y: i32[B].
    ducat: the objective that gives the fit instead, once DUCAT has begun.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> found = trades(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 2.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.4f} {found.regulariser[0]:.4f}')
    0.1269 1.5232

  Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
  algorithm 1; with DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  clean, adversarial, fit, batch_stats = _apart(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats)


def gair_trades(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                ducat: Objective | None = None) -> Outcome:
  """TRADES whose KL is shared between two attacks, w · KL(p ‖ p'_KL) + (1 − w) · KL(p ‖ p'_margin).

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[2·B, ...], first those found for the KL, then those found for the margin.
    y: i32[B].
    ducat: as for `trades`.

  Returns:
    An `Outcome`; the second KL is its complement.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> x, x_adv = jnp.array([[2., 0.]]), jnp.array([[0., 2.], [2., 0.]])
    >>> found = gair_trades(f, {}, x, x_adv, jnp.array([0]))
    >>> print(f'{found.regulariser[0]:.4f} {found.complement[0]:.4f}')
    1.5232 0.0000

  Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, its released
  code for robust self-training (GAIR-RST), here without unlabelled data.
  """
  by_kl, by_margin = jnp.split(x_adv, 2)
  clean, adversarial, fit, batch_stats = _apart(forward, batch_stats, x, by_kl, y, ducat)
  other, batch_stats = forward(by_margin, batch_stats)
  fit = losses.cross_entropy(clean, y) if fit is None else fit
  return Outcome(fit, losses.kl(clean, adversarial), adversarial, batch_stats,
                 complement=losses.kl(clean, other))


def mart(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
         ducat: Objective | None = None) -> Outcome:
  """MART: the fit is CE(f(x'), y) + `mart_boost`, the regulariser KL(p ‖ p') · (1 − p_y).

  Passes as in `trades`. DUCAT replaces the cross-entropy and not the boost, whose likeliest wrong
  class may then be the dummy of y.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[B, ...], clean examples.
    x_adv: f32[B, ...], adversarial examples.
    y: i32[B].
    ducat: as for `trades`.

  Returns:
    An `Outcome`.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> found = mart(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 2.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.3f} {found.regulariser[0]:.4f}')
    4.253 0.1816

  Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
  2020, section 3; with DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  clean, adversarial, fit, batch_stats = _apart(forward, batch_stats, x, x_adv, y, ducat)
  fit = losses.cross_entropy(adversarial, y) if fit is None else fit
  return Outcome(fit + losses.mart_boost(adversarial, y), losses.mart_kl(clean, adversarial, y),
                 adversarial, batch_stats)


def consistency(forward: Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array, *,
                temperature: float, ducat: Objective | None = None) -> Outcome:
  """Consistency on PGD-AT: the fit is CE(f(x'), y) of two views, the regulariser their divergence.

  That is `losses.js_consistency`. Both views go through in one pass.

  Args:
    forward: the network in train mode.
    batch_stats: its statistics.
    x: f32[2·B, ...], the first views of all examples, then the second; read by DUCAT only.
    x_adv: f32[2·B, ...], each view attacked.
    y: i32[2·B].
    temperature: of `losses.js_consistency`.
    ducat: as for `trades`.

  Returns:
    An `Outcome` of two views.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> views = jnp.array([[1., 0.], [0., 1.]])
    >>> found = consistency(f, {}, views, views, jnp.array([0, 0]), temperature=.5)
    >>> print(f'{found.regulariser[0]:.4f}')
    0.3278

  Source: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, section 3; with
  DUCAT: Wang et al., arXiv 2410.12671 (2024), its released code.
  """
  found = (ducat or pgd_at)(forward, batch_stats, x, x_adv, y)
  apart = losses.js_consistency(*jnp.split(found.logits, 2), temperature=temperature)
  return found._replace(regulariser=apart)


def mean_loss(outcome: Outcome, weights: Array | None, *, weights_on: str, beta: float,
              betas: Array | None = None) -> Array:
  """mean(w · fit) + β · mean(w · regulariser), with w on one of the two terms or on both.

  With a β of its own for each example, mean((w · fit + β_y · w · regulariser) / (1 + β_y)).

  With two views each view's fit has that view's weight, and the pair's regulariser the mean of the
  two. A complement has the weight 1 − w, and none without weights.

  Args:
    outcome: what the objective returned.
    weights: f32[V·B], importance weights, or None.
    weights_on: 'fit', 'regulariser' or 'both'.
    beta: β; not read where there are `betas`.
    betas: f32[V·B], β_y, the same for both views of an example; or None.

  Returns:
    f32[], in nats.

  Raises:
    errors.UserError: weights or betas are for a regulariser that the objective does not have.

  Example:
    >>> apart = Outcome(jnp.array([1., 2.]), jnp.array([3., 4.]), None, None)
    >>> print(mean_loss(apart, jnp.array([2., 0.]), weights_on='fit', beta=10.))
    36.0

  Source: ours; the form with β_y: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training,
  2023, section 4, there for TRADES.
  """
  fit, regulariser = outcome.fit, outcome.regulariser
  if weights is not None and weights_on in ('fit', 'both'):
    fit = weights * fit
  if regulariser is None:
    if betas is not None:
      raise errors.UserError('config.calibration.beta', True, 'the loss has no regulariser: use False')
    if weights is not None and weights_on == 'regulariser':
      raise errors.UserError('config.weights.on', weights_on, "the loss has no regulariser: use 'fit'")
    return jnp.mean(fit)
  if weights is not None and weights_on in ('regulariser', 'both'):
    share = jnp.mean(weights.reshape(-1, len(regulariser)), axis=0)
    regulariser = share * regulariser
    if outcome.complement is not None:
      regulariser += (1 - share) * outcome.complement
  if betas is not None:
    one_view = betas[:len(regulariser)]
    return jnp.mean(fit / (1 + betas)) + jnp.mean(one_view / (1 + one_view) * regulariser)
  return jnp.mean(fit) + beta * jnp.mean(regulariser)


def _apart(forward, batch_stats, x, x_adv, y, ducat):
  """Logits at x and at x' from a pass each, and DUCAT's fit from a pass before, or None."""
  fit = None
  if ducat is not None:
    begun = ducat(forward, batch_stats, x, x_adv, y)
    fit, batch_stats = begun.fit, begun.batch_stats
  clean, batch_stats = forward(x, batch_stats)
  adversarial, batch_stats = forward(x_adv, batch_stats)
  return clean, adversarial, fit, batch_stats

"""Objectives that ask two predictions to agree: TRADES and its kin, MART, and Consistency."""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax import losses
from at_jax.objectives.outcome import Forward
from at_jax.objectives.outcome import Objective
from at_jax.objectives.outcome import Outcome
from at_jax.objectives.plain import pgd_at

Array = jax.Array


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
    >>> found = trades(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.4f} {found.regulariser[0]:.4f}')
    0.1269 0.8287

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
    >>> x, x_adv = jnp.array([[2., 0.]]), jnp.array([[0., 1.], [1., 1.]])
    >>> found = gair_trades(f, {}, x, x_adv, jnp.array([0]))
    >>> print(f'{found.regulariser[0]:.4f} {found.complement[0]:.4f}')
    0.8287 0.3278

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
    >>> found = mart(f, {}, jnp.array([[2., 0.]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> print(f'{found.fit[0]:.3f} {found.regulariser[0]:.4f}')
    2.626 0.0988

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


def _apart(forward, batch_stats, x, x_adv, y, ducat):
  """Logits at x and at x' from a pass each, and DUCAT's fit from a pass before, or None."""
  fit = None
  if ducat is not None:
    begun = ducat(forward, batch_stats, x, x_adv, y)
    fit, batch_stats = begun.fit, begun.batch_stats
  clean, batch_stats = forward(x, batch_stats)
  adversarial, batch_stats = forward(x_adv, batch_stats)
  return clean, adversarial, fit, batch_stats

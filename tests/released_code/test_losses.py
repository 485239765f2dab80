"""Losses, gradients and weights of the methods equal those of the released code.

`harness.total` computes them as a training step does. They agree to 1e-10; reference.json keeps twelve
digits. MART agrees to 1e-6: its released code has small constants that at_jax does not have.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.methods import (
  cfa,
  consistency,
  gairat,
  inner_attacks,
  mail,
  mart,
  pgd_at,
  trades,
  weight_averaging,
)
from at_jax.methods import ducat as ducat_lib
from at_jax.methods import objective as objective_lib
from tests.released_code import problem
from tests.released_code.harness import NUMBERS, attack, close, close_params, compare, total
from tests.released_code.problem import (
  BETA,
  MART_BETA,
  MOVED,
  MOVED2,
  STEPS,
  TEMPERATURE,
  X2,
  X,
  Y,
  labels_with_some_wrong,
  weights_of,
)

MART_TOLERANCE = 1e-6  # the released code adds 1e-12 inside logarithms and 1e-7 to 1 − p_y


def test_pgd_at_equals_the_released_code():
  compare('pgd_at', total(pgd_at.pgd_at, MOVED), weights_of(20), 1e-10)


def test_trades_equals_the_released_code():
  params = weights_of(10)
  x_adv = attack(inner_attacks.kl, params, Y).x
  compare('trades', total(trades.trades, x_adv), params, 1e-10)


def test_mart_equals_the_released_code():
  params = weights_of(10)
  x_adv = attack(inner_attacks.gaussian, params, Y).x
  compare('mart', total(mart.mart, x_adv, beta=MART_BETA), params, MART_TOLERANCE)


@pytest.mark.parametrize('method, objective, weights_on, tolerance', [
    ('at', pgd_at.pgd_at, 'fit', 1e-10),
    ('trades', trades.trades, 'regulariser', 1e-10),
    ('mart', mart.mart, 'fit', MART_TOLERANCE)])
def test_mail_equals_the_released_code(method, objective, weights_on, tolerance):
  params, (bias, slope) = weights_of(10), problem.MAIL[method]
  y = labels_with_some_wrong(params)
  x_adv = attack(inner_attacks.kl if method == 'trades' else inner_attacks.gaussian, params, y).x
  weigh = functools.partial(mail.weigh, bias=bias, slope=slope)
  _, weights = compare(
      f'mail {method}', total(objective, x_adv, y, weigh=weigh, weights_on=weights_on,
                               beta=MART_BETA),
      params, tolerance)
  close(weights, NUMBERS[f'mail {method}']['weights'], 1e-10)
  assert np.ptp(weights) > .2


def test_gair_rst_equals_the_released_code():
  params, steps = weights_of(10), problem.GAIR_RST_STEPS
  y = labels_with_some_wrong(params)
  found = attack(inner_attacks.kl_and_margin, params, y, num_steps=steps)
  weigh = functools.partial(gairat.weigh, num_steps=steps, lam=0., form='tanh',
                            normalized=False)
  _, weights = compare('gair_rst', total(gairat.gair_trades, found.x, y, kappa=found.kappa,
                                         weigh=weigh, weights_on='regulariser'), params, 1e-10)
  assert np.ptp(weights) > .5


def test_gairat_equals_the_released_code():
  params, released = weights_of(10), NUMBERS['gairat']
  y = labels_with_some_wrong(params)
  found = attack(inner_attacks.uniform, params, y, random_start=False)
  close(problem.perturbation(found.x), released['perturbation'], 1e-10)
  np.testing.assert_array_equal(found.kappa, released['kappa'])
  assert len(set(released['kappa'])) > 2
  for form in problem.FORMS:
    for lam in problem.LAMBDAS:
      weigh = functools.partial(gairat.weigh, num_steps=STEPS, lam=lam, form=form,
                                normalized=True)
      weights = weigh(objective_lib.Evidence(found.kappa, None, y, None), axis_name=None)
      close(weights, released['weights'][f'{form} {lam}'], 1e-10)
  weigh = functools.partial(gairat.weigh, num_steps=STEPS, lam=-1., form='tanh',
                            normalized=True)
  compare('gairat', total(pgd_at.pgd_at, found.x, y, kappa=found.kappa, weigh=weigh), params,
          1e-10)


def test_cfa_equals_the_released_code():
  params = weights_of(10)
  counts = cfa.zero_counts(10)._replace(accuracy=jnp.asarray(problem.ACCURACY))
  by_class = cfa.by_class(
      cfa.Calibration(problem.EPSILON, BETA, radius_base=problem.RADIUS_BASE,
                              beta_base=problem.BETA_BASE), counts, True)
  x_adv = attack(inner_attacks.kl, params, Y, call=dict(epsilon=by_class.epsilon[Y])).x
  compare('cfa', total(trades.trades, x_adv, betas=by_class.beta[Y]), params, 1e-10)


def test_cfa_average_equals_the_released_code():
  state = weight_averaging.init_fair_average(weights_of(10))
  for worst, params in zip(problem.WORST_CLASS, problem.epochs(), strict=True):
    state = weight_averaging.add_if_fair(state, params, worst, decay=problem.DECAY,
                               threshold=problem.THRESHOLD)
  close_params(state.average, NUMBERS['cfa average'], 1e-10)


def test_consistency_equals_the_released_code():
  objective = functools.partial(consistency.consistency, temperature=TEMPERATURE)
  compare('consistency', two_views(objective), weights_of(10), 1e-10)


def two_views(objective):
  return total(objective, np.concatenate([MOVED, MOVED2]), np.tile(Y, 2),
               x=np.concatenate([X, X2]), beta=1.)


def ducat(name=''):
  benign, adversarial, alpha = problem.DUCAT[name]
  return functools.partial(ducat_lib.ducat, benign_weight=benign, adversarial_weight=adversarial,
                           alpha=alpha)


@pytest.mark.parametrize('name', problem.DUCAT)
def test_ducat_on_pgd_at_equals_the_released_code(name):
  compare(f'ducat train{name}', total(ducat(name), MOVED), weights_of(20), 1e-10)


@pytest.mark.parametrize('base, objective, kind, tolerance', [
    ('trades', trades.trades, inner_attacks.kl, 1e-10),
    ('mart', mart.mart, inner_attacks.gaussian, MART_TOLERANCE)])
def test_ducat_on_other_methods_equals_the_released_code(base, objective, kind, tolerance):
  params = weights_of(20)
  objective = functools.partial(objective, ducat=ducat())
  x_adv = attack(kind, params, Y).x
  compare(f'ducat {base}', total(objective, x_adv), params, tolerance)


def test_ducat_on_consistency_equals_the_released_code():
  objective = functools.partial(consistency.consistency, temperature=TEMPERATURE, ducat=ducat())
  compare('ducat consistency', two_views(objective), weights_of(20), 1e-10)

"""Losses and gradients beside the released code of TRADES, MART, MAIL, GAIR-RST, CFA and DUCAT."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import calibration
from at_jax import losses
from at_jax import objectives
from at_jax import transforms
from at_jax import weights
from at_jax.attacks import losses as attack_losses

from harness import environment  # noqa: F401  a fixture
from harness import (
    MARKS, EPSILON, GAIRAT, NOISE, STEPS, STEP_SIZE, X, X2, Y, attack, compare, gradient_of,
    kl_attack, labels_with_some_wrong, load, ours, read, run_loss, theirs, weights_of,
)

torch = pytest.importorskip('torch')
pytestmark = MARKS


def test_trades(monkeypatch):
  params = weights_of(10)
  module = load('TRADES', 'trades.py', monkeypatch)
  loss, gradient = run_loss(module.trades_loss, params, Y, beta=6.)
  x_adv = kl_attack(params, Y)
  total = lambda p: jnp.mean(losses.cross_entropy(ours(p, X), Y)
                             + 6 * losses.kl(ours(p, X), ours(p, x_adv)))
  compare(total, params, loss, gradient)


def mart(p, x_adv, y, weight=1., beta=5.):
  clean, adv = ours(p, X), ours(p, x_adv)
  fit = losses.cross_entropy(adv, y) + losses.mart_boost(adv, y)
  return jnp.mean(weight * fit + beta * losses.mart_kl(clean, adv, y))


def test_mart(monkeypatch):
  params = weights_of(10)
  module = load('MART', 'mart.py', monkeypatch)
  loss, gradient = run_loss(module.mart_loss, params, Y, beta=5.)
  x_adv = attack(params, Y, start=X + .001 * NOISE).x
  # They add 1e-12 inside logarithms and 1e-7 to 1 − p_y.
  compare(lambda p: mart(p, x_adv, Y), params, loss, gradient, tolerance=1e-5)


@pytest.mark.parametrize('method, bias, slope', [('at', -.5, 10.), ('trades', 0., 2.),
                                                 ('mart', -.5, 10.)])
def test_mail(monkeypatch, method, bias, slope):
  params = weights_of(10)
  y = labels_with_some_wrong(params)
  module = load('MAIL', 'mail_loss.py', monkeypatch)
  loss, gradient = run_loss(module.mail_loss, params, y, bias=bias, slope=slope, beta=5.,
                            method=method)
  plain = lambda: attack(params, y, start=X + .001 * NOISE).x
  x_adv = kl_attack(params, y) if method == 'trades' else plain()

  def total(p):
    clean, adv = ours(p, X), ours(p, x_adv)
    w = weights.margin_weights(adv, y, bias=bias, slope=slope)
    return {'at': lambda: jnp.mean(w * losses.cross_entropy(adv, y)),
            'trades': lambda: jnp.mean(losses.cross_entropy(clean, y)
                                       + 5 * w * losses.kl(clean, adv)),
            'mart': lambda: mart(p, x_adv, y, weight=w)}[method]()

  compare(total, params, loss, gradient, tolerance=1e-5)
  adv = np.array(ours(params, x_adv))
  w = module.weight_assign(torch.tensor(adv), torch.tensor(y), bias, slope)
  np.testing.assert_allclose(weights.margin_weights(adv, y, bias=bias, slope=slope), w, atol=1e-12)
  assert np.ptp(w.numpy()) > .2


def test_gair_rst(monkeypatch):
  params, steps = weights_of(10), 10  # at which their K/2 − κ is 5(1 − 2κ/K)
  y = labels_with_some_wrong(params)
  module = load(GAIRAT, 'GAIR_RST/losses.py', monkeypatch)
  network = theirs(params)
  loss, *_ = module.GAIR_trades_loss(
      network, torch.tensor(X), torch.tensor(y), torch.optim.SGD(network.parameters(), lr=.1),
      step_size=.002, epsilon=EPSILON, perturb_steps=steps, beta=6., distance='l_inf',
      Lambda=0.)
  network.zero_grad()
  loss.backward()
  options = dict(num_steps=steps, step_size=.002, start=X + .001 * NOISE)
  by_kl = attack(params, y, loss=losses.kl_to_reference, loss_args=(ours(params, X),), **options)
  by_margin = attack(params, y, loss=attack_losses.margin, **options)
  w = weights.geometry(by_kl.kappa, num_steps=steps, lam=0.)
  assert np.ptp(w) > .5

  def total(p):
    clean = ours(p, X)
    apart = [losses.kl(clean, ours(p, result.x)) for result in (by_kl, by_margin)]
    return jnp.mean(losses.cross_entropy(clean, y) + 6 * (w * apart[0] + (1 - w) * apart[1]))

  compare(total, params, float(loss.detach()), gradient_of(network))


def test_cfa(monkeypatch):
  params = weights_of(10)
  module = load('CFA', 'attack.py', monkeypatch, utils=dict(normalize_cifar=lambda x: x))
  accuracy = np.linspace(.1, .8, 10)
  # As its train.py has them: radii, and shares β/(1 + β) of the KL.
  radius, beta = (.3 + accuracy) * EPSILON, (.5 + accuracy) * 6.
  network = theirs(params)
  loss, _ = module.cw_trades_loss(network, torch.tensor(X), torch.tensor(Y), torch.tensor(radius),
                                  torch.tensor(beta / (1 + beta)), STEP_SIZE, STEPS)
  network.zero_grad()
  loss.backward()
  counts = calibration.no_counts(10)._replace(accuracy=jnp.asarray(accuracy))
  by_class = calibration.by_class(
      calibration.Calibration(EPSILON, 6., radius_base=.3, beta_base=.5), counts, True)
  x_adv = attack(params, Y, loss=losses.kl_to_reference, loss_args=(ours(params, X),),
                 start=X + .001 * NOISE, epsilon=by_class.epsilon[Y]).x

  def total(p):
    outcome = objectives.trades(lambda x, stats: (ours(p, x), stats), {}, X, x_adv, Y)
    return objectives.mean_loss(outcome, None, weights_on='fit', beta=6., betas=by_class.beta[Y])

  compare(total, params, float(loss.detach()), gradient_of(network))


def test_cfa_averages(monkeypatch):
  module = load('CFA', 'utils.py', monkeypatch, torchvision=dict(datasets=None, transforms=None))
  rng, average = np.random.default_rng(0), theirs(weights_of(10))
  state, begun = transforms.no_average(read(average)), False
  for worst in (.1, .3, .19, .2, .5):  # as in its train.py
    params = {name: w + rng.normal(size=w.shape) for name, w in weights_of(10).items()}
    if worst >= .2:
      module.weight_average(average, theirs(params), .85, not begun)
      begun = True
    state = transforms.take_in(state, params, worst, decay=.85, threshold=.2)
  for name, w in read(average).items():
    np.testing.assert_allclose(state.average[name], w, rtol=1e-12)


OPTIONS = types.SimpleNamespace(
    n_gpus=1, dummy_start=1, dummy_end=9, distance='Linf', alpha=STEP_SIZE, epsilon=EPSILON,
    n_iters=STEPS, beta=6., optimizer='adam', dataset='cifar10', w_benign=.25, w_adv=1., lam=1.,
    T=.5)


def train_with_ducat(monkeypatch, path, params, images, adversary):
  """The gradient of one of DUCAT's training loops: what SGD at 1 moves the parameters by."""
  module = load('DUCAT', path, monkeypatch, tensorboardX=dict(SummaryWriter=None))
  network = theirs(params)
  optimizer = torch.optim.SGD(network.parameters(), lr=1.)
  module.train(OPTIONS, 1, network, torch.nn.CrossEntropyLoss(), optimizer, None,
               [(images, torch.tensor(Y))], adversary)
  return {name: params[name] - after for name, after in read(network).items()}


def ducat_fit(clean, adv, y):
  one_hot = lambda shift: jax.nn.one_hot(y + shift, 20)
  return .5 * (losses.cross_entropy(clean, .75 * one_hot(0) + .25 * one_hot(10))
               + losses.cross_entropy(adv, one_hot(10)))


def compare_gradient(total, params, gradient, tolerance):
  slope = jax.grad(total)(params)
  for name in params:
    np.testing.assert_allclose(slope[name], gradient[name], rtol=tolerance, atol=tolerance / 10)


def test_ducat_on_trades(monkeypatch):
  params = weights_of(20)
  gradient = train_with_ducat(monkeypatch, 'training/adv_train/adv_trades_dummy.py', params,
                              torch.tensor(X), None)
  x_adv = kl_attack(params, Y)
  total = lambda p: jnp.mean(ducat_fit(ours(p, X), ours(p, x_adv), Y)
                             + 6 * losses.kl(ours(p, X), ours(p, x_adv)))
  compare_gradient(total, params, gradient, 1e-6)


def test_ducat_on_mart(monkeypatch):
  params = weights_of(20)
  gradient = train_with_ducat(monkeypatch, 'training/adv_train/adv_mart_dummy.py', params,
                              torch.tensor(X), None)
  x_adv = attack(params, Y, start=X + .001 * NOISE).x

  def total(p):
    clean, adv = ours(p, X), ours(p, x_adv)
    fit = ducat_fit(clean, adv, Y) + losses.mart_boost(adv, Y)
    return jnp.mean(fit + 6 * losses.mart_kl(clean, adv, Y))

  compare_gradient(total, params, gradient, 1e-5)


def test_ducat_on_consistency(monkeypatch):
  params = weights_of(20)
  both = np.concatenate([X, X2])
  moved = .02 * np.sign(np.concatenate([NOISE, -NOISE]))
  gradient = train_with_ducat(
      monkeypatch, 'training/adv_train/adv_consistency_dummy.py', params,
      [torch.tensor(X), torch.tensor(X2)], lambda pair, labels: pair + torch.tensor(moved))

  def total(p):
    adv = ours(p, both + moved)
    apart = losses.js_consistency(*jnp.split(adv, 2), temperature=.5)
    return jnp.mean(ducat_fit(ours(p, both), adv, np.tile(Y, 2))) + jnp.mean(apart)

  compare_gradient(total, params, gradient, 1e-5)

"""Writes reference.json: the numbers that the released code of the papers computes.

  python -m tests.released_code.make_reference --checkouts=FOLDER [--output=FILE]

FOLDER holds clones, named like their repositories, of these repositories of github.com:
zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training, QizhouWang/MAIL, YisenWang/MART,
yaodongyu/TRADES, csdongxian/AWP, FlaAI/DUCAT, alinlab/consistency-adversarial, PKU-ML/CFA,
ucla-vision/entropy-sgd, pdejorge/N-FGSM and val-iisc/NuAT. reference.json names their commits. PyTorch is
needed too. Their inputs are drawn in problem.py, so reference.json holds only numbers.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
import torch

from tests.released_code import problem
from tests.released_code.checkouts import (
  Checkouts,
  found,
  from_loop,
  from_loss,
  network_of,
  prepare,
  read,
  uniform_starts,
)
from tests.released_code.problem import (
  AWP_GAMMA,
  BATCH,
  BETA,
  EPSILON,
  MART_BETA,
  MOVED,
  MOVED2,
  STEP_SIZE,
  STEPS,
  X2,
  X,
  Y,
  labels_with_some_wrong,
  perturbation,
  weights_of,
)

GAIRAT = 'Geometry-aware-Instance-reweighted-Adversarial-Training'
NAMES = dict(nn=torch.nn, F=torch.nn.functional, torch=torch)  # the names that GAIRAT's `models` exports
ADV_TRAIN = 'training/adv_train/'


def trades(load):
  return from_loss(load('TRADES', 'trades.py').trades_loss, weights_of(10), Y, beta=BETA)


def mart(load):
  return from_loss(load('MART', 'mart.py').mart_loss, weights_of(10), Y, beta=MART_BETA)


def mail(load, method):
  module, params, weights = load('MAIL', 'mail_loss.py'), weights_of(10), []
  assign = module.weight_assign

  def recorded(*args):
    weights.append(assign(*args))
    return weights[-1]

  module.weight_assign = recorded
  bias, slope = problem.MAIL[method]
  numbers = from_loss(module.mail_loss, params, labels_with_some_wrong(params), bias=bias,
                      slope=slope, beta=MART_BETA, method=method)
  return numbers | {'weights': weights[-1]}


def gair_rst(load):
  params = weights_of(10)
  return from_loss(load(GAIRAT, 'GAIR_RST/losses.py').GAIR_trades_loss, params,
                   labels_with_some_wrong(params), perturb_steps=problem.GAIR_RST_STEPS,
                   beta=BETA, distance='l_inf', Lambda=0.)


def gairat(load):
  """GAIRAT's training script cannot be imported; the last three lines are copied from it."""
  params = weights_of(10)
  attacks = load(GAIRAT, 'attack_generator.py', models=NAMES)
  weigh = load(GAIRAT, 'GAIR.py', models=NAMES).GAIR
  y, network = torch.tensor(labels_with_some_wrong(params)), network_of(params)
  x_adv, kappa = attacks.GA_PGD(network, torch.tensor(X), y, EPSILON, STEP_SIZE, STEPS, 'cent',
                                'Madry', False)
  weights = {f'{form} {lam}': weigh(STEPS, kappa, lam, form.title())
             for form in problem.FORMS for lam in problem.LAMBDAS}
  network.train().zero_grad()
  loss = torch.nn.CrossEntropyLoss(reduction='none')(network(x_adv), y)
  (loss * weights['tanh -1.0']).mean().backward()
  return found(network) | {
      'perturbation': perturbation(x_adv), 'kappa': kappa, 'weights': weights}


def friendly(load, tau):
  module, params = load(GAIRAT, 'earlystop.py', models=NAMES), weights_of(10)
  x, y = torch.tensor(X), torch.tensor(labels_with_some_wrong(params))
  network = network_of(params)
  # One example at a time: in a batch the released code drops examples that have stopped, and then compares
  # the predictions of the others with the first labels of the whole batch.
  ends = [module.GA_earlystop(network, x[i:i + 1], y[i:i + 1], STEP_SIZE, EPSILON, STEPS, tau,
                              'fat', False, 0.) for i in range(BATCH)]
  x_adv, kappa = (torch.cat([end[i].reshape(1, *shape) for end in ends])
                  for i, shape in ((0, X.shape[1:]), (4, ())))
  return {'perturbation': perturbation(x_adv.detach()), 'kappa': kappa}


def cfa(load):
  module = load('CFA', 'attack.py', utils=dict(normalize_cifar=lambda x: x))
  network = network_of(weights_of(10))
  # As its train.py has them: radii, and shares β/(1 + β) of the KL.
  radius = (problem.RADIUS_BASE + problem.ACCURACY) * EPSILON
  beta = (problem.BETA_BASE + problem.ACCURACY) * BETA
  loss, _ = module.cw_trades_loss(network, torch.tensor(X), torch.tensor(Y), torch.tensor(radius),
                                  torch.tensor(beta / (1 + beta)), STEP_SIZE, STEPS)
  network.zero_grad()
  loss.backward()
  return found(network)


def cfa_average(load):
  module = load('CFA', 'utils.py', torchvision=dict(datasets=None, transforms=None))
  average, started = network_of(weights_of(10)), False
  for worst, params in zip(problem.WORST_CLASS, problem.epochs(), strict=True):
    if worst >= problem.THRESHOLD:  # as in its train.py
      module.weight_average(average, network_of(params), problem.DECAY, not started)
      started = True
  return read(average)


def awp(load, kind):
  module = load('AWP', f'{kind}/utils_awp.py')
  network, proxy = network_of(weights_of(10)), network_of(weights_of(10))
  proxy_optimizer = torch.optim.SGD(proxy.parameters(), lr=.01)
  x, adv, y = torch.tensor(X), torch.tensor(MOVED), torch.tensor(Y)
  # The two losses are copied from the training scripts, which cannot be imported.
  if kind == 'AT_AWP':
    made = module.AdvWeightPerturb(network, proxy, proxy_optimizer, AWP_GAMMA)
    moved = made.calc_awp(inputs_adv=adv, targets=y)
    loss = lambda: torch.nn.functional.cross_entropy(network(adv), y)
  else:
    made = module.TradesAWP(network, proxy, proxy_optimizer, AWP_GAMMA)
    moved = made.calc_awp(inputs_adv=adv, inputs_clean=x, targets=y, beta=BETA)
    loss = lambda: torch.nn.functional.cross_entropy(network(x), y) + BETA * (
        torch.nn.functional.kl_div(network(adv).log_softmax(1), network(x).softmax(1),
                                   reduction='batchmean'))
  optimizer = torch.optim.SGD(network.parameters(), lr=.1)
  made.perturb(moved)
  network.zero_grad()
  loss().backward()
  numbers = found(network)
  optimizer.step()
  made.restore(moved)
  return numbers | {'after': read(network)}


def ducat(load, loop, shares, epoch=1):
  module = load('DUCAT', f'{ADV_TRAIN}adv_{loop}_dummy.py', tensorboardX=dict(SummaryWriter=None))
  benign, adversarial, alpha = shares
  options = dict(w_benign=benign, w_adv=adversarial, w_alpha=alpha)
  return from_loop(module, weights_of(20), *_views(loop == 'consistency'), epoch=epoch, **options)


def consistency(load):
  module = load('consistency-adversarial', f'{ADV_TRAIN}adv_train_consistency.py',
                tensorboardX=dict(SummaryWriter=None))
  return from_loop(module, weights_of(10), *_views(True))


def _views(two):
  images = [torch.tensor(X), torch.tensor(X2)] if two else torch.tensor(X)
  moved = torch.tensor(np.concatenate([MOVED, MOVED2]) if two else MOVED)
  return images, Y, lambda images, labels: moved


def entropy_sgd(load, decay):
  module, network = load('entropy-sgd', 'python/optim.py'), network_of(weights_of(10))
  stream = iter(problem.batches())

  def closure():
    x, y = next(stream)
    network.zero_grad()
    loss = torch.nn.functional.cross_entropy(network(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    return loss, 0.

  optimizer = module.EntropySGD(list(network.parameters()), dict(
      lr=1., momentum=.9, nesterov=True, weight_decay=decay, L=problem.INNER, eps=0.,
      g0=problem.GAMMA, g1=1e-3))
  for _ in range(problem.CYCLES):
    optimizer.step(closure, network, torch.nn.CrossEntropyLoss())
  return read(network)


def single_step(load, uniform):
  """FGSM-RS and N-FGSM, both in the code of N-FGSM, on the network in inference mode."""
  module = load('N-FGSM', 'utils/attack_utils.py', torchvision=dict(datasets=None, transforms=None))
  ones = torch.ones(3, 1, 1)
  attacks = module.AttackUtils(0 * ones, ones, ones)
  model, x, y = network_of(weights_of(10)).eval(), torch.tensor(X), torch.tensor(Y)
  with uniform():
    rs = attacks.attack_fgsm(model, x, y, EPSILON * ones, 1.25 * EPSILON * ones)
  with uniform():
    noisy = attacks.attack_nfgsm(model, x, y, 255 * EPSILON, 255 * EPSILON, unif=2, clip=0)
  return {name: {'perturbation': perturbation(X + delta.detach().numpy())}
          for name, delta in (('fgsm_rs', rs), ('n_fgsm', noisy))}


def nuat(function):
  """NuAT's attack on the network in inference mode; its script is no module, so its loss is written here."""
  attack = function('NuAT', 'CIFAR10/NuAT_cifar10.py', 'NucAttack', torch=torch, TRAIN_BATCH_SIZE=BATCH,
                    Variable=torch.autograd.Variable, zero_gradients=lambda x: None)
  network, x, y = network_of(weights_of(10)).eval(), torch.tensor(X), torch.tensor(Y)
  entropy = torch.nn.CrossEntropyLoss()
  adv = attack(network, entropy, x + EPSILON / 2 * torch.tensor(np.sign(problem.UNIFORM)), y, eps=EPSILON,
               out=network(x).detach(), Nuc_reg=problem.NUAT_BETA)
  adv = x + torch.clamp(adv - x, -EPSILON, EPSILON).detach()
  network.train().zero_grad()
  clean = network(x)
  norm = torch.linalg.matrix_norm(clean - network(adv), 'nuc')
  (entropy(clean, y) + problem.NUAT_BETA * norm / BATCH).backward()
  return found(network) | {'perturbation': perturbation(adv)}


def everything(load, function):
  numbers = {'trades': trades(load), 'mart': mart(load), 'gair_rst': gair_rst(load),
             'gairat': gairat(load), 'cfa': cfa(load), 'cfa average': cfa_average(load),
             'consistency': consistency(load),
             'pgd_at': ducat(load, 'train', problem.DUCAT[''], epoch=0)}  # DUCAT's warm-up
  numbers |= {f'mail {method}': mail(load, method) for method in problem.MAIL}
  numbers |= {f'friendly {tau}': friendly(load, tau) for tau in problem.TAUS}
  numbers |= {f'awp {kind}': awp(load, f'{kind}_AWP') for kind in ('AT', 'trades')}
  numbers |= {f'ducat train{name}': ducat(load, 'train', shares)
              for name, shares in problem.DUCAT.items()}
  numbers |= {f'ducat {loop}': ducat(load, loop, problem.DUCAT[''])
              for loop in ('trades', 'mart', 'consistency')}
  numbers |= {f'entropy {decay}': entropy_sgd(load, decay) for decay in problem.DECAYS}
  numbers |= single_step(load, uniform_starts) | {'nuat': nuat(function)}
  return numbers


def _short(value):
  if isinstance(value, dict):
    return {name: _short(v) for name, v in value.items()}
  if isinstance(value, float):
    return float(f'{value:.12g}')
  return [_short(v) for v in value] if isinstance(value, list) else _short(
      np.asarray(value).tolist())


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--checkouts', required=True)
  parser.add_argument('--output', type=pathlib.Path,
                      default=pathlib.Path(__file__).with_name('reference.json'))
  arguments = parser.parse_args()
  jax.config.update('jax_enable_x64', True)  # the JAX network decides which labels are wrong
  prepare()
  checkouts = Checkouts(arguments.checkouts)
  numbers = _short(everything(checkouts.load, checkouts.function))
  arguments.output.write_text(json.dumps({'commits': checkouts.commits(), 'numbers': numbers}))


if __name__ == '__main__':
  main()

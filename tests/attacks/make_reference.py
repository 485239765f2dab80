"""Writes reference.json: numbers that the released code of AutoAttack computes.

  python tests/attacks/make_reference.py

It runs the package pyautoattack of the authors; at_jax[peers] has it and torch. The model of most is a
two-layer network with weights that `small_network` in test_reference.py draws again. Nothing but numbers
is kept, and the options with which the reference calls its attacks.
"""

import itertools
import json
import pathlib

import numpy as np


def main() -> None:
  from pyautoattack import autopgd_base, fab_projections, fab_pt
  import torch

  torch.manual_seed(0)
  random = np.random.RandomState(0)
  w1, w2 = random.randn(12, 16), random.randn(16, 5)
  x = random.uniform(size=(6, 1, 3, 4))
  torch.set_default_dtype(torch.float64)
  # The reference makes float32 of its inputs; this lets it compute in float64.
  torch.Tensor.float = torch.Tensor.double
  w1, w2, x = torch.tensor(w1), torch.tensor(w2), torch.tensor(x)
  calls = []

  def model(x):
    logits = torch.tanh(x.reshape(len(x), -1) @ w1) @ w2
    calls.append(logits.detach().numpy().tolist())
    return logits

  y = model(x).argmax(1)
  target = model(x).sort(dim=1)[1][:, -2]
  numbers = {'y': y.tolist(), 'target': target.tolist()}
  for norm, epsilon in (('Linf', .1), ('L2', .25), ('L1', .6)):
    for loss in ('ce', 'dlr', 'dlr-targeted'):
      kind = (autopgd_base.APGDAttack_targeted if loss == 'dlr-targeted'
              else autopgd_base.APGDAttack)
      options = {} if loss == 'dlr-targeted' else {'loss': loss}
      attack = kind(model, norm=norm, eps=epsilon, device='cpu', **options)
      attack.init_hyperparam(x)
      attack.y_target = target
      # In L1 a given start would also change the sparsity; the draw is taken away instead.
      torch.randn = lambda shape: torch.full(tuple(shape), .01)
      start = None if norm == 'L1' else (x + .05 * torch.sin(torch.arange(72.)).reshape(x.shape))
      calls.clear()
      _, correct, best, _ = attack.attack_single_run(x, y, x_init=start)
      value = {'ce': lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction='none'),
               'dlr': attack.dlr_loss}.get(loss) or attack.dlr_loss_targeted
      values = [value(torch.tensor(logits), y).tolist() for logits in calls]
      numbers[f'apgd {norm} {loss}'] = {
          'losses': values, 'correct': correct.tolist(), 'best': best.tolist()}
      if norm == 'L1' and loss == 'ce':  # the standard version's; so far out DLR has poles only
        torch.randn_like = lambda x: torch.full_like(x, .01)
        calls.clear()
        _, correct, best, _ = attack.decr_eps_pgd(
            x, y, [3 * epsilon, 2 * epsilon, epsilon], [30, 30, 40])
        values = [value(torch.tensor(logits), y).tolist() for logits in calls]
        numbers[f'apgd L1 {loss} large start'] = {
            'losses': values, 'correct': correct.tolist(), 'best': best.tolist()}
    attack = fab_pt.FABAttack_PT(model, norm=norm, eps=epsilon, n_iter=20, device='cpu')
    for targeted in (True, False):
      attack.target_class = 2
      found = attack.attack_single_run(x, y, is_targeted=targeted)
      numbers[f'fab {norm} {targeted}'] = found.numpy().tolist()

  random = np.random.RandomState(1)
  points, normals = random.uniform(size=(40, 12)), random.randn(40, 12)
  points = torch.tensor(np.clip(1.6 * points - .3, 0, 1))
  normals = torch.tensor(normals * (random.uniform(size=normals.shape) < .8))
  values = (points * normals).sum(1) + torch.tensor(random.randn(40))
  for norm in ('linf', 'l2', 'l1'):
    project = getattr(fab_projections, 'projection_' + norm)
    numbers[f'projection {norm}'] = project(points, normals, values).tolist()
  moves = torch.tensor(random.randn(40, 12))
  numbers['projection l1 box'] = (moves + autopgd_base.L1_projection(points, moves, 1.)).tolist()
  numbers['square keeps'] = {norm.lower(): _keeps(torch, norm) for norm in ('Linf', 'L2', 'L1')}
  # From here on torch.rand is not torch's.
  for norm, epsilon in (('Linf', .1), ('L2', .5), ('L1', 6.)):
    numbers[f'square {norm.lower()}'] = _square(torch, norm, epsilon)
    for size in (28, 32):
      numbers[f'sides {norm.lower()} {size}'] = _sides(torch, norm, size)
  numbers |= _starts(torch)
  numbers['targets'] = _targets(torch)
  numbers['dlr'] = _dlr(torch)
  for version in ('standard', 'plus', 'rand'):
    for norm in ('Linf', 'L2', 'L1'):
      numbers[f'version {version} {norm}'] = _runs(torch, version, norm)
  pathlib.Path(__file__).with_name('reference.json').write_text(json.dumps(_short(numbers)))


def _square(torch, norm, epsilon, size=11, channels=2, queries=30):
  """What is drawn in some queries of Square, each of which is accepted, and where they end."""
  from pyautoattack import square
  random, places, draws = np.random.RandomState(2), [], []
  x = random.uniform(size=(size, size, channels))
  attack = square.SquareAttack(
      None, norm=norm, eps=epsilon, device='cpu', n_queries=queries, resc_schedule=False)
  points, signs = [], [-1., 1.]

  def random_int(low, high):
    places.append(int(random.randint(low, high + 1)))
    return torch.tensor([places[-1]])

  def random_choice(shape):
    if norm == 'Linf':  # first a sign a column and channel, then one a channel
      draws.append(random.choice(signs, size=shape).ravel().tolist())
      return torch.tensor(draws[-1]).reshape(shape)
    draws[-1][:0] = random.uniform(size=channels).tolist()
    drawn = [signs[draw >= .5] for draw in draws[-1][:channels]]
    return torch.tensor(drawn).reshape(shape)

  def rand(shape):
    draws.append([random.uniform()])
    return torch.tensor([draws[-1][-1]])

  def margin_and_loss(point, _):
    points.append(point[0].permute(1, 2, 0).tolist())
    return torch.ones(1), -len(points) * torch.ones(1)

  attack.random_int, attack.random_choice = random_int, random_choice
  attack.margin_and_loss, torch.rand = margin_and_loss, rand
  image = torch.tensor(np.ascontiguousarray(x.transpose(2, 0, 1)[None]))
  attack.init_hyperparam(image)
  attack.attack_single_run(image, torch.tensor([0]))
  return {'x': x.tolist(), 'places': places, 'draws': draws, 'start': points[0], 'end': points[-1]}


def _keeps(torch, norm):
  """Which of its points Square holds for the best after each query, and the margins it is told."""
  from pyautoattack import square
  margins = [3., 3., 2.5, 2.7, 2.5, 1., 1.5, .25, .5, -.5, -1.]
  image, best = torch.full((1, 3, 28, 28), .5), []
  for queries in range(len(margins)):
    attack, points = square.SquareAttack(
        None, norm=norm, eps=.1, device='cpu', n_queries=queries, resc_schedule=False), []

    def margin_and_loss(point, _):
      points.append(point.clone())
      margin = torch.tensor([margins[len(points) - 1]])
      return margin, margin.clone()

    attack.margin_and_loss = margin_and_loss
    torch.manual_seed(0)
    attack.init_hyperparam(image)
    _, found = attack.attack_single_run(image, torch.tensor([0]))
    which, = [n for n, point in enumerate(points) if torch.equal(point, found)]
    best.append(which)
  return {'margins': margins, 'best': best}


def _sides(torch, norm, size):
  """The sides of the squares in 5,000 queries, as [query, side] wherever they change."""
  from pyautoattack import AutoAttack
  attack, highest = AutoAttack(None, norm=norm, eps=1., device='cpu').square, []
  attack.random_int = lambda low, high: highest.append(high) or torch.tensor([0])
  attack.margin_and_loss = lambda *_: (torch.ones(1), torch.ones(1))
  torch.rand = torch.zeros
  image = torch.zeros(1, 1, size, size)
  attack.init_hyperparam(image)
  attack.attack_single_run(image, torch.tensor([0]))
  # A square begins at a place drawn from 0 to what is left of a row; in L2 and L1 there are two.
  sides = [size - high for high in highest[::2 if norm == 'Linf' else 4]]
  assert len(sides) == 5000
  return [[n, side] for n, side in enumerate(sides) if n == 0 or side != sides[n - 1]]


def _starts(torch):
  """What is drawn for the random starts of APGD and FAB, and where these begin."""
  from pyautoattack import autopgd_base, fab_pt
  random = np.random.RandomState(4)
  x, uniform = (random.uniform(size=(4, 1, 3, 4)) for _ in range(2))
  normal = random.randn(*x.shape)
  torch.rand = lambda shape: torch.tensor(uniform).reshape(shape)
  torch.randn = torch.randn_like = lambda _: torch.tensor(normal)
  weights, points = torch.tensor(random.randn(12, 3)), []

  def model(point):
    points.append(point.tolist())
    return point.reshape(len(point), -1) @ weights

  image, found = torch.tensor(x), {'x': x.tolist(), 'uniform': uniform.tolist(),
                                   'normal': normal.tolist()}
  y = model(image).argmax(1)
  for norm, epsilon in (('Linf', .3), ('L2', .9), ('L1', 2.)):
    options = dict(norm=norm, eps=epsilon, n_iter=1, device='cpu')
    attack = autopgd_base.APGDAttack(model, **options)
    attack.init_hyperparam(image)
    points.clear()
    attack.attack_single_run(image, y)
    found[f'apgd {norm}'] = points[0]
    if norm == 'L1':
      points.clear()
      attack.decr_eps_pgd(image, y, [3 * epsilon, 2 * epsilon, epsilon], [1, 1, 1])
      found[f'apgd {norm} large'] = points[0]
    points.clear()
    fab_pt.FABAttack_PT(model, **options).attack_single_run(image, y, use_rand_start=True)
    found[f'fab {norm}'] = points[1]  # after the image itself
  return {'starts': found}


def _targets(torch):
  """Logits of 12 classes, and the classes that the targeted attacks go to one after the other."""
  from pyautoattack import AutoAttack
  logits, targets = torch.tensor(np.random.RandomState(3).randn(20, 12)), []
  # The images are the logits; nothing is moved, so that all are attacked every time.
  attack = AutoAttack(lambda x: x, norm='Linf', eps=1., device='cpu', seed=0)
  attack = attack.apgd_targeted
  attack.attack_single_run = lambda x, y: targets.append(attack.y_target.tolist()) or (
      x, torch.ones(len(x)), None, x)
  attack.perturb(logits, logits.argmax(1))
  return {'logits': logits.tolist(), 'targets': np.transpose(targets).tolist()}


def _dlr(torch):
  """Both DLR losses where the prediction is right and wrong, close and far, and with ties."""
  from pyautoattack import autopgd_base
  random = np.random.RandomState(5)
  logits = random.randn(30, 12) * 10. ** random.uniform(-3, 3, size=(30, 1))
  logits[:3, 1] = logits[:3, 0]  # two alike, mostly amid the others
  logits[3, :2] = logits[3].max()  # both on top
  logits[4] = 1.  # all alike
  y = np.where(np.arange(30) % 2, logits.argmax(1), random.randint(12, size=30))
  target = (y + random.randint(1, 12, size=30)) % 12
  attack = autopgd_base.APGDAttack_targeted(None, norm='Linf', eps=1., device='cpu')
  attack.y_target = torch.tensor(target)
  given = torch.tensor(logits), torch.tensor(y)
  return {'logits': logits.tolist(), 'y': y.tolist(), 'target': target.tolist(),
          'dlr': attack.dlr_loss(*given).tolist(),
          'targeted': attack.dlr_loss_targeted(*given).tolist()}


def _runs(torch, version, norm):
  """The runs that a version makes: [attack, how, how often in a row]."""
  from pyautoattack import AutoAttack
  whole = AutoAttack(lambda x: x.reshape(len(x), -1), norm=norm, eps=1., device='cpu', seed=0,
                     version=version)
  runs, x = [], torch.tensor(np.random.RandomState(3).randn(2, 1, 3, 4))
  stays = lambda x: (x, torch.ones(len(x)), None, x)

  def climb(attack):
    how = lambda steps: {'loss': attack.loss, 'steps': steps, 'passes': attack.eot_iter}

    def run(x, y):
      runs.append(['apgd', how(attack.n_iter)])
      return stays(x)

    def run_larger(x, y, radii, steps):
      runs.append(['apgd', how(sum(steps)) | {'radii': radii, 'lengths': steps}])
      return stays(x)

    attack.attack_single_run, attack.decr_eps_pgd = run, run_larger

  def walk(x, y, use_rand_start, is_targeted):
    runs.append(['fab', {'steps': whole.fab.n_iter, 'targeted': is_targeted,
                         'random start': use_rand_start}])
    return x

  def search(x, y):
    runs.append(['square', {'queries': whole.square.n_queries, 'p': whole.square.p_init}])
    return None, x

  climb(whole.apgd)
  climb(whole.apgd_targeted)
  whole.fab.attack_single_run, whole.square.attack_single_run = walk, search
  whole.run_standard_evaluation(x, whole.model(x).argmax(1))
  return [[*run, len(list(same))] for run, same in itertools.groupby(runs)]


def _short(value):
  if isinstance(value, float):
    return float(f'{value:.9g}')
  if isinstance(value, list):
    return [_short(v) for v in value]
  return {k: _short(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == '__main__':
  main()

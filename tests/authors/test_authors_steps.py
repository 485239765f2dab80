"""Attacks, weights and updates beside the code of GAIRAT, GAIR-FAT, AWP and Entropy-SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax import losses
from at_jax import transforms
from at_jax import weights

from harness import environment  # noqa: F401  a fixture
from harness import (
    MARKS, BATCH, EPSILON, GAIRAT, NOISE, STEPS, STEP_SIZE, X, Y, attack, compare, gradient_of,
    labels_with_some_wrong, load, ours, read, theirs, weights_of,
)

torch = pytest.importorskip('torch')
pytestmark = MARKS


NAMES = dict(nn=torch.nn, F=torch.nn.functional, torch=torch)


def test_gairat(monkeypatch):
  params = weights_of(10)
  y = labels_with_some_wrong(params)
  attack_module = load(GAIRAT, 'attack_generator.py', monkeypatch, models=NAMES)
  gair = load(GAIRAT, 'GAIR.py', monkeypatch, models=NAMES)
  network = theirs(params)
  x_adv, kappa = attack_module.GA_PGD(network, torch.tensor(X), torch.tensor(y), EPSILON, STEP_SIZE,
                                      STEPS, 'cent', 'Madry', False)
  result = attack(params, y, random_start=False)
  np.testing.assert_allclose(result.x, x_adv, atol=1e-12)
  np.testing.assert_array_equal(result.kappa, kappa)
  assert len(set(kappa.tolist())) > 2
  for lam in (-1., 0., 3.):
    for form in ('Tanh', 'Sigmoid', 'Discrete'):
      w = gair.GAIR(STEPS, kappa, lam, form)
      np.testing.assert_allclose(
          weights.geometry_weights(result.kappa, num_steps=STEPS, lam=lam, form=form.lower()),
          w, atol=1e-6)
  w = gair.GAIR(STEPS, kappa, -1., 'Tanh')
  network.zero_grad()
  loss = (torch.nn.CrossEntropyLoss(reduction='none')(network(x_adv), torch.tensor(y)) * w).mean()
  loss.backward()
  ours_w = weights.geometry_weights(result.kappa, num_steps=STEPS, lam=-1.)
  compare(lambda p: jnp.mean(ours_w * losses.cross_entropy(ours(p, result.x), y)), params,
          float(loss.detach()), gradient_of(network))


@pytest.mark.parametrize('tau', [0, 1, 3])
def test_friendly_pgd(monkeypatch, tau):
  params = weights_of(10)
  y = labels_with_some_wrong(params)
  module = load(GAIRAT, 'earlystop.py', monkeypatch, models=NAMES)
  result = attack(params, y, random_start=False, tau=tau)
  network = theirs(params)
  # One example at a time: in a batch, theirs drops those that stopped and goes on to compare the
  # predictions of the rest with the first labels of the whole batch.
  for i in range(BATCH):
    x_adv, _, _, _, kappa = module.GA_earlystop(
        network, torch.tensor(X[i:i + 1]), torch.tensor(y[i:i + 1]), STEP_SIZE, EPSILON, STEPS, tau,
        'fat', False, 0.)
    np.testing.assert_allclose(result.x[i:i + 1], x_adv.detach(), atol=1e-12)
    assert int(result.kappa[i]) == int(kappa)
  plain = attack(params, y, random_start=False)
  assert (np.abs(result.x - plain.x).max((1, 2, 3)) > 1e-3).sum() >= 3  # some did stop


@pytest.mark.parametrize('kind', ['AT_AWP', 'trades_AWP'])
def test_awp(monkeypatch, kind):
  params = weights_of(10)
  module = load('AWP', f'{kind}/utils_awp.py', monkeypatch)
  network, proxy = theirs(params), theirs(params)
  proxy_optimizer = torch.optim.SGD(proxy.parameters(), lr=.01)
  x_adv, gamma = np.clip(X + .02 * np.sign(NOISE), 0, 1), .01
  x, adv, y = torch.tensor(X), torch.tensor(x_adv), torch.tensor(Y)
  kl = lambda: torch.nn.functional.kl_div(network(adv).log_softmax(1), network(x).softmax(1),
                                          reduction='batchmean')
  if kind == 'AT_AWP':
    awp = module.AdvWeightPerturb(network, proxy, proxy_optimizer, gamma)
    moved = awp.calc_awp(inputs_adv=adv, targets=y)
    their_loss = lambda: torch.nn.functional.cross_entropy(network(adv), y)
    loss_fn = lambda p: jnp.mean(losses.cross_entropy(ours(p, x_adv), Y))
  else:
    awp = module.TradesAWP(network, proxy, proxy_optimizer, gamma)
    moved = awp.calc_awp(inputs_adv=adv, inputs_clean=x, targets=y, beta=6.)
    their_loss = lambda: torch.nn.functional.cross_entropy(network(x), y) + 6 * kl()
    loss_fn = lambda p: jnp.mean(losses.cross_entropy(ours(p, X), Y)
                                 + 6 * losses.kl(ours(p, X), ours(p, x_adv)))
  optimizer = torch.optim.SGD(network.parameters(), lr=.1)
  awp.perturb(moved)
  loss = their_loss()
  optimizer.zero_grad()
  loss.backward()
  gradient = gradient_of(network)
  optimizer.step()
  awp.restore(moved)
  value_and_grad = transforms.awp_value_and_grad(loss_fn, gamma=gamma)
  value, slope = value_and_grad(params)
  np.testing.assert_allclose(value, float(loss.detach()), rtol=1e-6)
  after = optax.apply_updates(params, jax.tree.map(lambda g: -.1 * g, slope))
  for name, p in read(network).items():
    np.testing.assert_allclose(slope[name], gradient[name], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(after[name], p, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('decay', [0., 5e-4])
@pytest.mark.filterwarnings('ignore:This overload')
def test_entropy_sgd(monkeypatch, decay):
  params, inner, cycles = weights_of(10), 5, 2
  module = load('entropy-sgd', 'python/optim.py', monkeypatch)
  rng = np.random.default_rng(5)
  batches = [(rng.uniform(size=X.shape), rng.integers(0, 10, BATCH))
             for _ in range(cycles * (inner + 1))]
  network = theirs(params)
  stream = iter(batches)

  def closure():
    x, y = next(stream)
    network.zero_grad()
    loss = torch.nn.functional.cross_entropy(network(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    return loss, 0.

  optimizer = module.EntropySGD(list(network.parameters()), dict(
      lr=1., momentum=.9, nesterov=True, weight_decay=decay, L=inner, eps=0., g0=.03, g1=1e-3))
  for _ in range(cycles):
    optimizer.step(closure, network, torch.nn.CrossEntropyLoss())

  # What their port does besides, imitated here alone: scoping stands still for t is never counted;
  # each cycle burns a batch; the outer momentum begins as the first gradient, and the weight decay
  # and Nesterov's momentum are applied again outside.
  grad = jax.grad(lambda p, x, y: jnp.mean(losses.cross_entropy(ours(p, x), y)))
  outer = optax.chain(optax.add_decayed_weights(decay), optax.trace(.9, nesterov=True),
                      optax.scale(-1.))
  ours_sgd = transforms.entropy_sgd(
      outer, inner_steps=inner, key=jax.random.key(0), gamma=.03, scoping=0., noise=0.,
      weight_decay=decay)
  p, state = params, ours_sgd.init(params)
  decayed, trace, scale = state.outer_state
  trace = trace._replace(trace=grad(params, *batches[0]))
  state = state._replace(outer_state=(decayed, trace, scale))
  for i, batch in enumerate(batches):
    if i % (inner + 1):
      updates, state = ours_sgd.update(grad(p, *batch), state, p)
      p = optax.apply_updates(p, updates)
  assert int(state.outer_step) == cycles
  for name, theirs_after in read(network).items():
    assert np.abs(theirs_after - params[name]).max() > 1e-4
    np.testing.assert_allclose(p[name], theirs_after, rtol=1e-8, atol=1e-10)

"""One small network in PyTorch and in JAX, and how to load the authors' modules beside it.

The tests in this folder need PyTorch and a folder of checkouts, named in AT_JAX_AUTHORS, under the
names of the repositories on GitHub:
zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training, QizhouWang/MAIL, YisenWang/MART,
yaodongyu/TRADES, csdongxian/AWP, FlaAI/DUCAT, PKU-ML/CFA, ucla-vision/entropy-sgd.

  AT_JAX_AUTHORS=~/authors python -m pytest -m long tests/authors
"""

import importlib.util
import os
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax import losses

torch = pytest.importorskip('torch')
AUTHORS = os.environ.get('AT_JAX_AUTHORS')
MARKS = [pytest.mark.long,
         pytest.mark.skipif(not AUTHORS, reason='AT_JAX_AUTHORS names no folder of checkouts')]
GAIRAT = 'Geometry-aware-Instance-reweighted-Adversarial-Training'
BATCH, HIDDEN = 16, 12
EPSILON, STEP_SIZE, STEPS = .031, .007, 6  # an even number: GAIRAT's code has K//2 for K/2
RNG = np.random.default_rng(0)
X = RNG.uniform(.1, .9, (BATCH, 3, 32, 32))  # far enough from 0 and 1 that no start is clipped
X2 = RNG.uniform(.1, .9, X.shape)
NOISE = RNG.normal(size=X.shape)
Y = RNG.integers(0, 10, BATCH)


def weights_of(outputs):
  rng = np.random.default_rng(1)
  return {'w1': rng.normal(size=(3072, HIDDEN)) / 20, 'b1': rng.normal(size=HIDDEN) / 10,
          'w2': rng.normal(size=(HIDDEN, outputs)), 'b2': rng.normal(size=outputs) / 10}


def ours(params, x):
  hidden = jnp.tanh(x.reshape(len(x), -1) @ params['w1'] + params['b1'])
  return hidden @ params['w2'] + params['b2']


def theirs(params):
  network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, HIDDEN), torch.nn.Tanh(),
                                torch.nn.Linear(HIDDEN, params['w2'].shape[1]))
  with torch.no_grad():
    for layer, w, b in ((network[1], 'w1', 'b1'), (network[3], 'w2', 'b2')):
      layer.weight.copy_(torch.tensor(params[w].T))
      layer.bias.copy_(torch.tensor(params[b]))
  return network


def read(network, what=lambda p: p):
  values = [what(p).detach().numpy().copy() for p in network.parameters()]
  return dict(w1=values[0].T, b1=values[1], w2=values[2].T, b2=values[3])


def gradient_of(network):
  return read(network, lambda p: p.grad)


def labels_with_some_wrong(params):
  """Labels of which about half are predicted, so that κ and the weights take many values."""
  return np.where(np.arange(BATCH) % 2, Y, np.argmax(ours(params, X), -1))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """float64 on both sides, PyTorch without a GPU, and random starts that both sides can have."""
  monkeypatch.setattr(torch.Tensor, 'cuda', lambda self, *a, **k: self)
  monkeypatch.setattr(torch.nn.Module, 'cuda', lambda self, *a, **k: self)
  draw = lambda shape: torch.tensor(NOISE if shape == NOISE.shape else 0 * NOISE[:shape[0]])
  monkeypatch.setattr(torch, 'randn', draw)
  monkeypatch.setattr(torch, 'randn_like', lambda x: draw(x.shape))
  torch.set_default_dtype(torch.float64)
  with jax.enable_x64(True):
    yield
  torch.set_default_dtype(torch.float32)


def load(repository, path, monkeypatch, **stubs):
  """A module of theirs; `stubs` stand for modules that it imports but does not need here."""
  folder = pathlib.Path(AUTHORS) / repository
  for name, members in stubs.items():
    stub = types.ModuleType(name)
    vars(stub).update(members)
    monkeypatch.setitem(sys.modules, name, stub)
  monkeypatch.syspath_prepend(str(folder))
  spec = importlib.util.spec_from_file_location('theirs_' + pathlib.Path(path).stem, folder / path)
  module = importlib.util.module_from_spec(spec)
  before = set(sys.modules)
  spec.loader.exec_module(module)
  for name in set(sys.modules) - before:
    # Several repositories have a package `utils` or `training`; none may see another's.
    if (getattr(sys.modules[name], '__file__', None) or '').startswith(str(folder)):
      monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
  return module


def attack(params, y, **options):
  defaults = dict(epsilon=EPSILON, step_size=STEP_SIZE, num_steps=STEPS)
  logits = jax.tree_util.Partial(ours, params)
  return attacks.pgd(logits, X, y, jax.random.key(0), **defaults | options)


def kl_attack(params, y):
  return attack(params, y, loss=losses.kl_to_reference, loss_args=(ours(params, X),),
                start=X + .001 * NOISE).x


def compare(loss_fn, params, loss, gradient, tolerance=1e-6):
  value, slope = jax.value_and_grad(loss_fn)(params)
  np.testing.assert_allclose(value, loss, rtol=tolerance)
  for name in params:
    np.testing.assert_allclose(slope[name], gradient[name], rtol=tolerance, atol=tolerance / 10)


STEP = dict(step_size=STEP_SIZE, epsilon=EPSILON, perturb_steps=STEPS)


def run_loss(function, params, y, **options):
  """Loss and gradient of one of their `…_loss(model, x, y, optimizer, …)`."""
  network = theirs(params)
  optimizer = torch.optim.SGD(network.parameters(), lr=.1)
  loss = function(network, torch.tensor(X), torch.tensor(y), optimizer, **STEP | options)
  network.zero_grad()
  loss.backward()
  return float(loss.detach()), gradient_of(network)

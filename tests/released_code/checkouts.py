"""For make_reference.py: loads modules of released code and runs them on the network in PyTorch."""

import ast
import contextlib
import importlib.util
import pathlib
import subprocess
import sys
import types
from unittest import mock

import torch

from tests.released_code.problem import (
  BETA,
  EPSILON,
  HIDDEN,
  MEAN,
  NOISE,
  STEP_SIZE,
  STEPS,
  TEMPERATURE,
  UNIFORM,
  VARIANCE,
  X,
  digest,
)

NAMES = ('w1', 'b1', 'scale', 'shift', 'w2', 'b2')
LOSSES = []  # every loss on which `backward` was called


def prepare():
  """Sets float64, the CPU and the random starts of both sides. Changes torch for the whole process."""
  draw = lambda shape: torch.tensor(NOISE if shape == NOISE.shape else 0 * NOISE[:shape[0]])
  backward = torch.Tensor.backward

  def recorded(self, *args, **kwargs):
    LOSSES.append(float(self))
    backward(self, *args, **kwargs)

  torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
  torch.Tensor.backward = recorded
  torch.randn, torch.randn_like = draw, lambda x: draw(x.shape)
  torch.set_default_dtype(torch.float64)


@contextlib.contextmanager
def uniform_starts():
  """Makes starts that are drawn as `x[:, channel].uniform_(-radius, radius)` those of the problem."""
  channels = iter(range(UNIFORM.shape[1]))
  draw = lambda self, low, high: self.copy_(high * torch.tensor(UNIFORM[:, next(channels)]))
  with mock.patch.object(torch.Tensor, 'uniform_', draw):
    yield


class Checkouts:
  """A folder of clones, named like their repositories."""

  def __init__(self, folder):
    self.folder, self.loaded = pathlib.Path(folder), set()

  def load(self, repository, path, **stubs):
    """Loads a module; `stubs` replace modules that it imports but does not need here."""
    folder = self.folder / repository
    self.loaded.add(repository)
    known = dict(sys.modules)
    for name, members in stubs.items():
      sys.modules[name] = types.ModuleType(name)
      vars(sys.modules[name]).update(members)
    sys.path.insert(0, str(folder))
    name = 'released_' + pathlib.Path(path).stem
    spec = importlib.util.spec_from_file_location(name, folder / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(folder))
    for name in set(sys.modules) - set(known):
      # Several repositories have a package `utils` or `training`: each must import its own.
      file = getattr(sys.modules[name], '__file__', None) or ''
      if name in stubs or file.startswith(str(folder)):
        del sys.modules[name]
    return module

  def function(self, repository, path, name, **names):
    """Loads one function of a script that cannot be imported; `names` are the globals that it uses."""
    self.loaded.add(repository)
    file = self.folder / repository / path
    node, = (n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name)
    exec(compile(ast.Module([node], []), str(file), 'exec'), names)
    return names[name]

  def commits(self):
    """The commit of each repository that was loaded from."""
    run = lambda name: subprocess.run(
        ['git', f'--git-dir={self.folder / name / ".git"}', 'rev-parse', 'HEAD'], check=True,
        stdout=subprocess.PIPE, text=True)
    return {name: run(name).stdout.strip() for name in sorted(self.loaded)}


def network_of(params):
  layers = torch.nn.Sequential(
      torch.nn.Flatten(), torch.nn.Linear(X[0].size, HIDDEN), torch.nn.Tanh(),
      torch.nn.BatchNorm1d(HIDDEN), torch.nn.Linear(HIDDEN, params['w2'].shape[1]))
  with torch.no_grad():
    for name, parameter in zip(NAMES, layers.parameters(), strict=True):
      parameter.copy_(torch.tensor(params[name].T))
    layers[3].running_mean.copy_(torch.tensor(MEAN))
    layers[3].running_var.copy_(torch.tensor(VARIANCE))
  return layers.train()


def read(network, what=lambda parameter: parameter):
  values = [what(parameter).detach().numpy().T for parameter in network.parameters()]
  return digest(dict(zip(NAMES, values, strict=True)))


def found(network):
  """The last loss on which `backward` was called, and the gradient."""
  return {'loss': LOSSES[-1], 'gradient': read(network, lambda parameter: parameter.grad)}


def from_loss(function, params, y, **options):
  """Loss and gradient of a released `…_loss(model, x, y, optimizer, …)`; some return a tuple."""
  network = network_of(params)
  optimizer = torch.optim.SGD(network.parameters(), lr=.1)
  defaults = dict(step_size=STEP_SIZE, epsilon=EPSILON, perturb_steps=STEPS)
  loss = function(network, torch.tensor(X), torch.tensor(y), optimizer, **defaults | options)
  loss = loss[0] if isinstance(loss, tuple) else loss
  network.zero_grad()
  loss.backward()
  return found(network)


def from_loop(module, params, images, y, adversary=None, epoch=1, **options):
  """Loss and gradient of one step of the training loop of DUCAT or of Consistency."""
  network = network_of(params)
  settings = types.SimpleNamespace(
      n_gpus=1, dummy_start=1, dummy_end=9, distance='Linf', alpha=STEP_SIZE, epsilon=EPSILON,
      n_iters=STEPS, beta=BETA, optimizer='adam', dataset='cifar10', lam=1., T=TEMPERATURE,
      **options)
  module.train(settings, epoch, network, torch.nn.CrossEntropyLoss(),
               torch.optim.SGD(network.parameters(), lr=.1), None, [(images, torch.tensor(y))],
               adversary)
  return found(network)

"""Times AutoAttack's reference code, 'standard' and 'fast' with its audit on one network, in one sitting.

  python benchmarks/speed.py mnist --weights=trades_mnist.pt --n=1000
  python benchmarks/speed.py cifar10 --workdir=results/small_cifar10/pgd_at_cifar10-0 --n=1000
  python benchmarks/speed.py cheap --n=250
  python benchmarks/speed.py resnet18 --n=64

mnist: TRADES' MNIST network (--weights), L∞ ε = 0.3.
cifar10: the best checkpoint of a run of a `:small` configuration (--workdir), L∞ 8/255.
cheap: 16 and 32 filters of 4×4 with stride 2 and two dense layers, L∞ ε = 0.1. It is so cheap that overheads
  show. It is trained here first, for a minute, with PGD on 20,000 images of MNIST.
resnet18: the ResNet-18 that pyautoattack ships, trained without attacks on CIFAR-10, at a radius where about
  half of the images are robust.

All attack the first --n images of the test set with the same batch size and threads: 'standard', 'fast', and
the reference. Each begins without compiled programs. A network has a file in --output; one that has a file
is not run again. `benchmarks/fast.py` prints the table of all files. Needs the packages of at_jax[peers]. Use
a quiet machine: the load average before each is stored.
"""

import argparse
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

os.environ['AT_JAX_CACHE'] = 'off'  # compilation is a part of the seconds

import jax
import jax.numpy as jnp
import numpy as np
import shipped_resnet  # also calls xla_flags.tune()
import sittings
import torch
import trades_mnist
import trained_here
import verdicts

from at_jax import attacks
from at_jax.datasets import pipeline
from at_jax.training import records, restore

functional = torch.nn.functional
RESNET_EPSILON = .8 / 255  # PGD-20 leaves about half of the images


class Case(NamedTuple):
  logits_fn: Any
  net: torch.nn.Module
  test: pipeline.Split
  epsilon: float


def mnist(arguments) -> Case:
  variables, net = trades_mnist.load_networks(arguments.weights)
  test = pipeline.load(arguments.mnist).test
  return Case(jax.tree_util.Partial(trades_mnist.apply, variables), net, test, .3)


def cifar10(arguments) -> Case:
  run, logits_fn = restore.load(arguments.workdir)
  net = trained_here.TorchSmallCNN(logits_fn.args[0], stem_stride=run.config.model.stem_stride).eval()
  return Case(logits_fn, net, pipeline.load(arguments.cifar10).test, 8 / 255)


def resnet18(arguments) -> Case:
  variables, net = shipped_resnet.load()
  logits_fn = jax.tree_util.Partial(shipped_resnet.apply, variables)
  return Case(logits_fn, net, pipeline.load(arguments.cifar10).test, RESNET_EPSILON)


def cheap(arguments) -> Case:
  data = pipeline.load(arguments.mnist)
  net = _train(np.asarray(pipeline.to_unit(data.train.images[:20_000])), data.train.labels[:20_000])
  weights = [value.numpy() for value in net.state_dict().values()]
  for i in (0, 2):
    weights[i] = weights[i].transpose(2, 3, 1, 0)
  # PyTorch flattens (C, H, W), and the images here are (H, W, C).
  weights[4] = weights[4].reshape(-1, 32, 7, 7).transpose(0, 2, 3, 1).reshape(len(weights[4]), -1)
  return Case(jax.tree_util.Partial(_logits, list(map(jnp.asarray, weights))), net, data.test, .1)


def _logits(weights, x):
  """The cheap network; weights and biases in the order of PyTorch's state dict."""
  for kernel, bias in (weights[:2], weights[2:4]):
    x = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)),
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    x = jax.nn.relu(x + bias)
  x = jax.nn.relu(x.reshape(len(x), -1) @ weights[4].T + weights[5])
  return x @ weights[6].T + weights[7]


def _train(images: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
  """The cheap network in PyTorch after three epochs of adversarial training."""
  torch.manual_seed(0)
  layers = torch.nn
  net = layers.Sequential(
      layers.Conv2d(1, 16, 4, 2, 1), layers.ReLU(), layers.Conv2d(16, 32, 4, 2, 1), layers.ReLU(),
      layers.Flatten(), layers.Linear(32 * 7 * 7, 100), layers.ReLU(), layers.Linear(100, 10))
  images, labels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
  optimizer = torch.optim.Adam(net.parameters(), 2e-3)
  for batch in torch.cat([torch.randperm(len(images)) for _ in range(3)]).split(200):
    x, y = images[batch], labels[batch]
    near = (x + .2 * torch.rand_like(x) - .1).clamp(0, 1)
    for _ in range(5):
      near.requires_grad_()
      gradient, = torch.autograd.grad(functional.cross_entropy(net(near), y), near)
      near = (x + (near.detach() + .03 * gradient.sign() - x).clamp(-.1, .1)).clamp(0, 1)
    optimizer.zero_grad()
    functional.cross_entropy(net(near), y).backward()
    optimizer.step()
  return net.eval()


class Counted(torch.nn.Module):
  """A network that counts the examples that pass through it, and those of them with a gradient."""

  def __init__(self, net: torch.nn.Module):
    super().__init__()
    self.net, self.passed, self.differentiated = net, 0, 0

  def forward(self, x):
    self.passed += len(x)
    self.differentiated += len(x) * (x.requires_grad and torch.is_grad_enabled())
    return self.net(x)


def run_ours(case: Case, x, y, version: str, audit: int, batch_size: int
             ) -> tuple[attacks.AutoAttackResult, dict[str, Any]]:
  """The result of a version of at_jax, and its part of the file."""
  jax.clear_caches()
  compiling, begun = verdicts.Compiling(), time.perf_counter()
  result = attacks.autoattack(
      case.logits_fn, x, y, jax.random.key(0), epsilon=case.epsilon, version=version, audit=audit,
      batch_size=batch_size, progress=compiling.update)
  return result, {
      'seconds': time.perf_counter() - begun, 'compiling': sum(compiling.by_attack().values()),
      'components': result.seconds, 'robust': np.flatnonzero(result.robust).tolist(),
      'forward': sum(each.forward for each in result.passes.values()),
      'backward': sum(each.backward for each in result.passes.values())}


def run_reference(case: Case, x, y, batch_size: int) -> dict[str, Any]:
  """The part of the file of the reference code."""
  net, begun = Counted(case.net), time.perf_counter()
  clean, seconds = verdicts.is_right(net, x, y), {}
  for name, after, spent in verdicts.reference(net, x, y, epsilon=case.epsilon, batch_size=batch_size, seed=0,
                                               robust=clean, names=verdicts.COMPONENTS):
    robust, seconds[name] = after, spent
  return {'seconds': time.perf_counter() - begun, 'compiling': 0., 'components': seconds,
          'robust': np.flatnonzero(robust).tolist(), 'forward': net.passed, 'backward': net.differentiated}


def run(case: Case, arguments) -> dict[str, Any]:
  """All versions on one network, as `sittings.show_sittings` prints them."""
  x, y = np.asarray(pipeline.to_unit(case.test.images[:arguments.n])), case.test.labels[:arguments.n]
  with torch.no_grad():
    apart = np.abs(case.net(torch.from_numpy(x[:16].transpose(0, 3, 1, 2).copy())).numpy()
                   - case.logits_fn(x[:16])).max()
  if not apart <= 1e-4:
    sys.exit(f'the logits of the two networks differ by {apart}')
  found, load, audit = {}, [], None
  for name, version, m in (('standard', 'standard', 0), ('fast', 'fast', 0),
                           ('fast and audit', 'fast', arguments.audit)):
    load.append(os.getloadavg()[0])
    result, found[name] = run_ours(case, x, y, version, m, arguments.batch_size)
    print(f'{name}: {found[name]["seconds"]:.0f} s', file=sys.stderr, flush=True)
    audit = str(result.audit)
  load.append(os.getloadavg()[0])
  found['reference'] = run_reference(case, x, y, arguments.batch_size)
  print(f'reference: {found["reference"]["seconds"]:.0f} s', file=sys.stderr, flush=True)
  return {'n': len(y), 'epsilon': case.epsilon, 'batch_size': arguments.batch_size, 'seed': 0, 'load': load,
          'threads': arguments.threads, 'audit': audit, 'versions': found, 'torch': torch.__version__,
          'packages': records.versions()}


def main() -> None:
  makers = {make.__name__: make for make in (mnist, cifar10, cheap, resnet18)}
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('network', choices=makers)
  parser.add_argument('--weights', help="PyTorch weights of TRADES' MNIST network")
  parser.add_argument('--workdir', help='work directory of a run')
  parser.add_argument('--mnist', default='mnist', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--cifar10', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, default=1000, help='number of images')
  parser.add_argument('--audit', type=int, default=200, help='images that are audited')
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--output', default='results/speed', help='folder of the files')
  arguments = parser.parse_args()
  for network, field in (('mnist', 'weights'), ('cifar10', 'workdir')):
    if arguments.network == network and not getattr(arguments, field):
      parser.error(f'{network} needs --{field}')
  name = pathlib.Path(arguments.workdir).name if arguments.network == 'cifar10' else arguments.network
  path = pathlib.Path(arguments.output) / f'{name}.json'
  if not path.exists():
    # XLA starts with the first array and takes one thread for each CPU of the process.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
    torch.set_num_threads(arguments.threads)
    found = run(makers[arguments.network](arguments), arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(path, {'network': name} | found)
  sittings.show_sittings(arguments.output)


if __name__ == '__main__':
  main()

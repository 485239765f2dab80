"""Times the standard version of AutoAttack against the reference code, on three networks in one sitting.

  python benchmarks/speed.py --weights=trades_mnist.pt \
    --workdir=results/small_cifar10/pgd_at_cifar10-0

1. mnist: TRADES' MNIST network (--weights), L∞ ε = 0.3.
2. cifar10: the best checkpoint of a run of a `:small` configuration (--workdir), L∞ 8/255.
3. cheap: 16 and 32 filters of 4×4 with stride 2 and two dense layers, L∞ ε = 0.1. It is so cheap that
   overheads show. It is trained here first, for a minute, with PGD on 20,000 images of MNIST.

Each network attacks the first images of its test set, as many as --n says for it, with the same images, batch
size and threads: at_jax first, then the reference. For each component the command prints both verdicts, the
seconds and their ratio; compilation is a part of the seconds, and is subtracted in the last column. Needs
the packages of at_jax[peers]. Use a quiet machine: the load average is printed.
"""

import argparse
import os
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import trades_mnist
import trained_here
import verdicts

from at_jax import attacks
from at_jax.datasets import pipeline
from at_jax.training import restore

functional = torch.nn.functional


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


def measure(case: Case, n: int, arguments, compiling: verdicts.Compiling) -> dict[str, Any]:
  """The verdicts and the seconds of both, as `verdicts` stores them."""
  x, y = np.asarray(pipeline.to_unit(case.test.images[:n])), case.test.labels[:n]
  with torch.no_grad():
    apart = np.abs(case.net(torch.from_numpy(x[:64].transpose(0, 3, 1, 2).copy())).numpy()
                   - case.logits_fn(x[:64])).max()
  if not apart <= 1e-4:
    sys.exit(f'the logits of the two networks differ by {apart}')
  options = dict(epsilon=case.epsilon, batch_size=arguments.batch_size)
  load, begun = round(os.getloadavg()[0], 1), time.perf_counter()
  result = attacks.autoattack(case.logits_fn, x, y, jax.random.key(0), progress=compiling.update, **options)
  ours = {'fooled': verdicts.fooled_first({'clean': result.clean, **result.components}, 0),
          'seconds': verdicts.seconds(result, time.perf_counter() - begun),
          'compiling': compiling.by_attack(), 'threads': arguments.threads, 'load': load}
  load = round(os.getloadavg()[0], 1)
  robust, seconds = {'clean': verdicts.is_right(case.net, x, y)}, {}
  for name, after, spent in verdicts.reference(
      case.net, x, y, seed=0, robust=robust['clean'], names=verdicts.COMPONENTS, **options):
    robust[name], seconds[name] = after, round(spent, 1)
  theirs = {'fooled': verdicts.fooled_first(robust, 0), 'seconds': seconds,
            'threads': arguments.threads, 'load': load}
  return {'first': 0, 'n': n, 'ours': ours, 'reference': theirs}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True, help="PyTorch weights of TRADES' MNIST network")
  parser.add_argument('--workdir', required=True, help='work directory of a run')
  parser.add_argument('--mnist', default='mnist', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--cifar10', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, nargs=3, default=(1000, 500, 250), help='images of each network')
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  arguments = parser.parse_args()
  # XLA starts with the first array and takes one thread for each CPU of the process.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
  torch.set_num_threads(arguments.threads)
  for make, n in zip((mnist, cifar10, cheap), arguments.n, strict=True):
    print(f'\n{make.__name__}', flush=True)
    found = measure(make(arguments), n, arguments, verdicts.Compiling())
    verdicts.show([found])
    verdicts.show_times([found])


if __name__ == '__main__':
  main()

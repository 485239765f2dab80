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
the reference. Each begins without compiled programs. With --part=250 they attack 250 images at a time, so
that a large --n can be timed over several sittings. 'fast' with its audit attacks all images at the end,
because it draws its sample among all survivors. Each part, and the audit, has a file in --output; what has
one is not run again, and --most limits what is run now. Parts add up, because an image's draws here depend
on its place in the test set only; the reference draws the same numbers in every batch. Each part compiles
again. `benchmarks/fast.py` prints the table of all files. Needs the packages of at_jax[peers]. Use a quiet
machine: the load average before each is stored.
"""

import argparse
import hashlib
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


def run_ours(case: Case, part: slice, version: str, audit: int, batch_size: int
             ) -> tuple[attacks.AutoAttackResult, dict[str, Any]]:
  """The result of a version of at_jax on a part of the test set, and its entry in the file."""
  x, y = images(case, part)
  jax.clear_caches()
  compiling, begun = verdicts.Compiling(), time.perf_counter()
  result = attacks.autoattack(
      case.logits_fn, x, y, jax.random.key(0), epsilon=case.epsilon, version=version, audit=audit,
      batch_size=batch_size, index=part.start + np.arange(len(y)), progress=compiling.update)
  return result, {
      'seconds': time.perf_counter() - begun, 'compiling': sum(compiling.by_attack().values()),
      'components': result.seconds, 'robust': verdicts.indices(result.robust, part.start),
      'forward': sum(each.forward for each in result.passes.values()),
      'backward': sum(each.backward for each in result.passes.values())}


def run_reference(case: Case, part: slice, batch_size: int) -> dict[str, Any]:
  """The entry of the reference code."""
  x, y = images(case, part)
  net, begun = Counted(case.net), time.perf_counter()
  clean, seconds = verdicts.is_right(net, x, y), {}
  for name, after, spent in verdicts.reference(net, x, y, epsilon=case.epsilon, batch_size=batch_size, seed=0,
                                               robust=clean, names=verdicts.COMPONENTS):
    robust, seconds[name] = after, spent
  return {'seconds': time.perf_counter() - begun, 'compiling': 0., 'components': seconds,
          'robust': verdicts.indices(robust, part.start), 'forward': net.passed,
          'backward': net.differentiated}


def images(case: Case, part: slice) -> tuple[np.ndarray, np.ndarray]:
  """Images in [0, 1] and labels."""
  return np.asarray(pipeline.to_unit(case.test.images[part])), case.test.labels[part]


def run(case: Case, part: slice, arguments, audit: int) -> dict[str, Any]:
  """'standard', 'fast' and the reference on a part, or with `audit` > 0 'fast' and its audit."""
  found, load, sentence = {}, [], None
  for name in ('fast and audit',) if audit else ('standard', 'fast', 'reference'):
    load.append(os.getloadavg()[0])
    if name == 'reference':
      found[name] = run_reference(case, part, arguments.batch_size)
    else:
      result, found[name] = run_ours(case, part, name.split()[0], audit, arguments.batch_size)
      sentence = str(result.audit) if audit else None
    print(f'{name}, {part.start} to {part.stop}: {found[name]["seconds"]:.0f} s', file=sys.stderr, flush=True)
  return {'first': part.start, 'n': part.stop - part.start, 'load': load, 'audit': sentence,
          'versions': found, 'torch': torch.__version__, 'packages': records.versions()}


def identity(case: Case, arguments) -> dict[str, Any]:
  """Fields that all files of a network must share: parts of two versions of the code are no sum."""
  weights, code = hashlib.sha256(), hashlib.sha256()
  for value in case.net.state_dict().values():
    weights.update(value.numpy().tobytes())
  for path in sorted(pathlib.Path(attacks.__file__).parent.rglob('*.py')):
    code.update(path.read_bytes())
  return {'epsilon': case.epsilon, 'batch_size': arguments.batch_size, 'seed': 0,
          'threads': arguments.threads, 'weights': weights.hexdigest()[:16], 'code': code.hexdigest()[:16]}


def check(case: Case) -> None:
  """Exits unless the two networks agree."""
  x, _ = images(case, slice(16))
  with torch.no_grad():
    apart = np.abs(case.net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
                   - case.logits_fn(x)).max()
  if not apart <= 1e-4:
    sys.exit(f'the logits of the two networks differ by {apart}')


def missing(files: list[dict[str, Any]], arguments) -> list[tuple[slice, int]]:
  """The parts that have no file, each with 0, and then all images with the number to audit."""
  n = arguments.n
  parts = [(slice(first, min(first + arguments.part, n)), 0)
           for first in range(sittings.num_images(files, 'reference'), n, arguments.part)]
  if arguments.audit and sittings.num_images(files, 'fast and audit') < n:
    parts.append((slice(0, n), arguments.audit))
  return parts[:arguments.most]


def main() -> None:
  makers = {make.__name__: make for make in (mnist, cifar10, cheap, resnet18)}
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('network', choices=makers)
  parser.add_argument('--weights', help="PyTorch weights of TRADES' MNIST network")
  parser.add_argument('--workdir', help='work directory of a run')
  parser.add_argument('--mnist', default='mnist', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--cifar10', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, default=1000, help='number of images')
  parser.add_argument('--part', type=int, help='number of images to time at once; all by default')
  parser.add_argument('--most', type=int, help='number of parts, audit included, to run now; all by default')
  parser.add_argument('--audit', type=int, default=200, help='images that are audited; 0 for no audit')
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--output', default='results/speed', help='folder of the files')
  arguments = parser.parse_args()
  arguments.part = arguments.part or arguments.n
  for network, field in (('mnist', 'weights'), ('cifar10', 'workdir')):
    if arguments.network == network and not getattr(arguments, field):
      parser.error(f'{network} needs --{field}')
  name = pathlib.Path(arguments.workdir).name if arguments.network == 'cifar10' else arguments.network
  folder = pathlib.Path(arguments.output)
  files = [found for found in sittings.read(folder) if found['network'] == name]
  parts = missing(files, arguments)
  if parts:
    # XLA starts with the first array and takes one thread for each CPU of the process.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:arguments.threads])
    torch.set_num_threads(arguments.threads)
    case = makers[arguments.network](arguments)
    check(case)
    same = {'network': name} | identity(case, arguments)
    if any(found.get(field) != value for found in files for field, value in same.items()):
      sys.exit(f'{folder} has files of {name} with other weights, code or options: use another --output')
    folder.mkdir(parents=True, exist_ok=True)
  for part, audit in parts:
    path = folder / f'{name}-{"audit" if audit else part.start}.json'
    records.write_json(path, same | run(case, part, arguments, audit))
  sittings.show_sittings(arguments.output)


if __name__ == '__main__':
  main()

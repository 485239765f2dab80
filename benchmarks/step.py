"""Measures an attack step and a training step of at_jax and PyTorch on the same weights and batch.

  python benchmarks/step.py              # all four rows, four minutes on two cores
  python benchmarks/step.py --models SmallCNN --repeats 9

Prints the seconds of both and their ratio. Of at_jax's program it prints what XLA counts: operations on
floats, bytes that are read and written, and temporary arrays. And it prints by how much a step of each raises
the memory of a process of its own (on Linux).

Needs the packages of at_jax[peers]. The logits of the two must agree to 1e-4 first. An attack step is
the input gradient and a sign step, with BatchNorm in evaluation mode. Its numbers are a fifth of those of
five steps, by `attacks.pgd` (which includes a last forward pass) and by a Python loop in PyTorch; temporaries
and memory are those of all five. A training step is one weight gradient of the cross-entropy on a fixed
batch, with BatchNorm in training mode, and an SGD update. The repeats of the two alternate, and the medians
are compared.

Use a quiet machine: PyTorch's threads spin while they wait, so other load slows it more than XLA. The
load average is printed first.
"""

import argparse
from collections.abc import Callable
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from at_jax import attacks, models, xla_flags

xla_flags.tune()  # before the first array starts XLA
try:
  import torch
except ImportError:
  sys.exit('step.py needs PyTorch: pip install "at_jax[peers]"')
functional = torch.nn.functional
STEPS, STEP_SIZE, EPSILON, LEARNING_RATE = 5, 0.01, 0.03, 0.01
CASES = {  # name: batch, image
    'SmallCNN': (256, (28, 28, 1)),
    'PreActResNet18': (64, (32, 32, 3)),
}


class TorchSmallCNN(torch.nn.Module):
  """`models.SmallCNN` in PyTorch, with the same layer names."""

  def __init__(self):
    super().__init__()
    for i, (c, f) in enumerate(((1, 32), (32, 32), (32, 64), (64, 64)), 1):
      self.add_module(f'conv{i}', torch.nn.Conv2d(c, f, 3))
    for i, (c, f) in enumerate(((1024, 200), (200, 200), (200, 10)), 1):
      self.add_module(f'fc{i}', torch.nn.Linear(c, f))

  def forward(self, x):
    x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
    x = functional.max_pool2d(x, 2)
    x = functional.relu(self.conv4(functional.relu(self.conv3(x))))
    x = functional.max_pool2d(x, 2)
    x = functional.relu(self.fc1(x.flatten(1)))
    return self.fc3(functional.relu(self.fc2(x)))


class TorchPreActResNet18(torch.nn.Module):
  """`models.PreActResNet18` in PyTorch, with the same layer names."""

  def __init__(self):
    super().__init__()
    self.blocks = []
    self.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    c = 64
    for stage, f in enumerate((64, 128, 256, 512)):
      for block in range(2):
        name, stride = f'layer{stage + 1}_{block}', 2 if stage and not block else 1
        self.add_module(f'{name}_bn1', torch.nn.BatchNorm2d(c))
        self.add_module(f'{name}_conv1', torch.nn.Conv2d(c, f, 3, stride, 1, bias=False))
        self.add_module(f'{name}_bn2', torch.nn.BatchNorm2d(f))
        self.add_module(f'{name}_conv2', torch.nn.Conv2d(f, f, 3, 1, 1, bias=False))
        if c != f:
          self.add_module(f'{name}_shortcut', torch.nn.Conv2d(c, f, 1, stride, bias=False))
        self.blocks.append(name)
        c = f
    self.bn, self.linear = torch.nn.BatchNorm2d(512), torch.nn.Linear(512, 10)

  def forward(self, x):
    x = self.conv1(x)
    for name in self.blocks:
      part = lambda suffix: getattr(self, f'{name}_{suffix}')
      out = functional.relu(part('bn1')(x))
      x = part('shortcut')(out) if hasattr(self, f'{name}_shortcut') else x
      x = x + part('conv2')(functional.relu(part('bn2')(part('conv1')(out))))
    return self.linear(functional.relu(self.bn(x)).mean((2, 3)))


def copy_weights(variables: dict, net: torch.nn.Module) -> None:
  """Copies linen variables into the PyTorch module with the same layer names."""
  state = net.state_dict()
  for collection, names in (('params', {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}),
                            ('batch_stats', {'mean': 'running_mean', 'var': 'running_var'})):
    for layer, leaves in variables.get(collection, {}).items():
      for name, value in leaves.items():
        value = np.array(value)
        if value.ndim == 4:
          value = value.transpose(3, 2, 0, 1)
        elif layer == 'fc1' and value.ndim == 2:
          # Linen flattens (H, W, C), PyTorch (C, H, W).
          value = value.reshape(4, 4, 64, -1).transpose(2, 0, 1, 3).reshape(value.shape).T
        elif value.ndim == 2:
          value = value.T
        state[f'{layer}.{names[name]}'].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def ours(model, y) -> dict[str, Callable]:
  """The steps of at_jax, functions of the variables and the images."""

  def cross_entropy(logits):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

  def attack(variables, x):
    logits_fn = jax.tree_util.Partial(model.apply, variables)
    return attacks.pgd(logits_fn, x, y, jax.random.key(0), epsilon=EPSILON, step_size=STEP_SIZE,
                       num_steps=STEPS, random_start=False).x

  def train(variables, x):
    def loss(params):
      logits, stats = model.apply(
          {**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
      return cross_entropy(logits), stats

    gradient, stats = jax.grad(loss, has_aux=True)(variables['params'])
    params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, variables['params'], gradient)
    return {'params': params, **stats}

  return {'attack step': attack, 'training step': train}


def theirs(net, x, y) -> dict[str, Callable]:
  """The steps of PyTorch, in its fastest layout on the CPU, channels last."""
  optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)

  def attack():
    net.eval()
    at = x
    for _ in range(STEPS):
      at = at.detach().requires_grad_()
      gradient, = torch.autograd.grad(functional.cross_entropy(net(at), y), at)
      with torch.no_grad():
        at = at + STEP_SIZE * gradient.sign()
        at = torch.clamp(torch.minimum(torch.maximum(at, x - EPSILON), x + EPSILON), 0, 1)
    return at

  def train():
    net.train()
    functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()  # frees the gradients

  return {'attack step': attack, 'training step': train}


class Row(NamedTuple):
  """A step on the same batch: that of at_jax, not compiled yet, and that of PyTorch, without arguments."""
  lowered: jax.stages.Lowered
  inputs: tuple
  theirs: Callable[[], Any]

  def ours(self, program: jax.stages.Compiled) -> Callable[[], Any]:
    """A function without arguments that runs the compiled step and waits for it."""
    return lambda: jax.block_until_ready(program(*self.inputs))


def build(name: str) -> dict[str, Row]:
  """The rows of a network, after checking that both have the same logits."""
  batch, image = CASES[name]
  random = np.random.default_rng(0)
  x = random.uniform(size=(batch, *image)).astype(np.float32)
  y = random.integers(0, 10, batch)
  model = getattr(models, name)(num_outputs=10)
  variables = jax.jit(model.init)(jax.random.key(0), x[:1])
  net = {'SmallCNN': TorchSmallCNN, 'PreActResNet18': TorchPreActResNet18}[name]()
  copy_weights(variables, net)
  net = net.to(memory_format=torch.channels_last).eval()
  torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
  torch_y = torch.from_numpy(y)
  with torch.no_grad():
    expected = net(torch_x).numpy()
  difference = np.abs(np.asarray(jax.jit(model.apply)(variables, x)) - expected).max()
  if difference > 1e-4:
    sys.exit(f'{name}: the logits differ by {difference:.1e}: the networks are not the same')
  inputs, others = (variables, jnp.asarray(x)), theirs(net, torch_x, torch_y)
  return {what: Row(jax.jit(step).lower(*inputs), inputs, others[what])
          for what, step in ours(model, jnp.asarray(y)).items()}


def alternate(first, second, repeats: int) -> tuple[list[float], list[float]]:
  """Seconds of alternating calls of the two, without the first call of each."""
  seconds = ([], [])
  for repeat in range(repeats + 1):
    for call, kept in zip((first, second), seconds, strict=True):
      start = time.perf_counter()
      call()
      if repeat:
        kept.append(time.perf_counter() - start)
  return seconds


def peak(name: str, what: str, library: str, threads: int) -> float | None:
  """MiB by which a step, after two others, raises the memory of this process; None without Linux' /proc."""
  torch.set_num_threads(threads)
  row = build(name)[what]
  call = row.theirs if library == 'PyTorch' else row.ours(row.lowered.compile())
  call(), call()
  time.sleep(1)  # XLA may free temporary arrays a moment after its result is ready
  status = lambda field: next(int(line.split()[1]) for line in pathlib.Path(
      '/proc/self/status').read_text().splitlines() if line.startswith(field))
  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
    before = status('VmRSS')
    call()
    return (status('VmHWM') - before) / 1024
  except OSError:
    return None


def peaks(name: str, what: str, threads: int) -> list[float | None]:
  """`peak` of both libraries, each in a new process that returns what it frees to the system."""
  os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2 ** 17)
  context, found = multiprocessing.get_context('spawn'), []
  for library in ('at_jax', 'PyTorch'):
    with context.Pool(1) as pool:
      found.append(pool.apply(peak, (name, what, library, threads)))
  return found


def compare(name: str, repeats: int, threads: int) -> None:
  """Prints the rows of one network."""
  for what, row in build(name).items():
    count, program = STEPS if what == 'attack step' else 1, row.lowered.compile()
    here, there = (statistics.median(seconds) / count
                   for seconds in alternate(row.ours(program), row.theirs, repeats))
    cost, memory = program.cost_analysis(), program.memory_analysis()
    grown = ['' if each is None else f'{each:.0f}' for each in peaks(name, what, threads)]
    print(f'| {name}, batch {CASES[name][0]} | {what} | {here:.4f} | {there:.4f} | {here / there:.2f} '
          f'| {cost["flops"] / count / 1e9:.1f} | {cost["bytes accessed"] / count / 1e9:.2f} '
          f'| {memory.temp_size_in_bytes / 2 ** 20:.0f} | {grown[0]} | {grown[1]} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--models', nargs='+', choices=CASES, default=list(CASES))
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  print(f'jax {jax.__version__}, torch {torch.__version__}, {arguments.threads} threads, '
        f'XLA_FLAGS={os.environ.get("XLA_FLAGS", "")!r}, load {os.getloadavg()[0]:.1f}')
  head = ('network', 'step', 'seconds here', 'seconds, PyTorch', 'ratio', 'GFLOP here', 'GB here',
          'MiB of temporaries here', 'MiB of memory here', 'MiB of memory, PyTorch')
  print(f'\n| {" | ".join(head)} |\n|{"---|" * len(head)}')
  for name in arguments.models:
    compare(name, arguments.repeats, arguments.threads)


if __name__ == '__main__':
  main()

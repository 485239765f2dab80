"""Times FAB-T's projections: alone, as a share of a step, and against the reference projections.

  python benchmarks/fab_projection.py --workdir=results/small_cifar10/pgd_at_cifar10-0 \
    --output=results/fab_projection/pgd_at_cifar10-0.json

A step of FAB-T projects the iterate and the clean input onto the linearised decision boundary. Three
things are timed on one batch of test images and the best checkpoint of the run: a step; its two
projections alone, on the planes of the first step; and the same projections of the reference, in PyTorch.
The repeats alternate, and the medians are compared. Needs the packages of at_jax[peers].
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from pyautoattack import fab_projections
import torch

from at_jax import errors, xla_flags
from at_jax.attacks import _hyperplane, _stepper
from at_jax.attacks.fab import _towards_target
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.datasets import pipeline
from at_jax.training import records, restore

xla_flags.tune()  # before the first array starts XLA


def seconds(call) -> float:
  """Wall time of a call, until its result is computed."""
  begun = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - begun


def calls(logits_fn, x, y, norm: str) -> dict[str, object]:
  """The functions to time, by name."""
  stepper = fab_stepper(norm=norm)
  target = jnp.argsort(-jnp.where(jax.nn.one_hot(y, 10, dtype=bool), -jnp.inf, logits_fn(x)))[:, 0]
  problem = _stepper.make_problem(x, y, jax.random.key(0), epsilon=8 / 255, bounds=(0., 1.),
                                  target=target)
  state = stepper.init(problem)
  step = jax.jit(stepper.step)
  gap, normal = jax.jit(_towards_target)(logits_fn, problem, x)

  def both(x, clean, normal, gap):
    plane = lambda at, excess: _hyperplane.project(at, normal, excess, (0., 1.), norm=norm)
    return plane(x, gap), plane(clean, gap + jnp.sum(normal * (clean - x)))

  ours = jax.jit(jax.vmap(both))
  project = getattr(fab_projections, f'projection_{norm}')
  flat = lambda a: torch.from_numpy(np.array(a).reshape(len(y), -1))
  points, planes = flat(x).repeat(2, 1), flat(normal).repeat(2, 1)
  offset = (points * planes).sum(1) - flat(gap)[:, 0].repeat(2)
  return {'step': lambda: step(logits_fn, problem, state),
          'projections': lambda: ours(x, x, normal, gap),
          'reference': lambda: project(points, planes, offset)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True, help='work directory of a run')
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--output', help='JSON file of the results')
  arguments = parser.parse_args()
  try:
    run, logits_fn = restore.load(arguments.workdir)
  except errors.UserError as mistake:
    sys.exit(f'fab_projection: {mistake}')
  test = run.dataset.test
  x = jnp.asarray(pipeline.to_unit(test.images[:arguments.batch_size]))
  y = jnp.asarray(test.labels[:arguments.batch_size])
  found = {'batch_size': arguments.batch_size, 'repeats': arguments.repeats,
           'cores': len(os.sched_getaffinity(0)), 'versions': records.versions(),
           'torch': torch.__version__, 'milliseconds': {}}
  print(f'batch {arguments.batch_size}, load {os.getloadavg()[0]:.1f}, milliseconds')
  print(f'{"":6s}{"step":>8s}{"projections":>13s}{"share":>8s}{"reference":>11s}{"at_jax / reference":>20s}')
  for norm in ('linf', 'l2', 'l1'):
    timed = calls(logits_fn, x, y, norm)
    for call in timed.values():
      seconds(call)
    each = [{name: seconds(call) for name, call in timed.items()} for _ in range(arguments.repeats)]
    step, ours, reference = (1e3 * statistics.median(one[name] for one in each)
                          for name in ('step', 'projections', 'reference'))
    found['milliseconds'][norm] = {'step': step, 'projections': ours, 'reference': reference}
    print(f'{norm:6s}{step:8.1f}{ours:13.1f}{ours / step:8.0%}{reference:11.1f}{ours / reference:20.2f}')
  if arguments.output:
    records.write_json(pathlib.Path(arguments.output), found)


if __name__ == '__main__':
  main()

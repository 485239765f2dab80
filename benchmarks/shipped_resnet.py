"""Measures the robust accuracy of the ResNet-18 that pyautoattack ships, by radius.

  python benchmarks/shipped_resnet.py --n=100 --radii_255 0.125 0.25 0.5

The network was trained without attacks on CIFAR-10, so it is robust at small radii only. The command prints
the clean accuracy of the first --n test images and their robust accuracy under PGD-20 with steps of ε/4 at
each L∞ radius. The network is read from the installed package. Needs the packages of at_jax[peers].
"""

import argparse
import pathlib
import runpy
import sys
from typing import Any

import jax
import numpy as np
import pyautoattack
import torch

from at_jax import attacks, models, xla_flags
from at_jax.datasets import pipeline
from at_jax.models import importers

xla_flags.tune()  # before the first array starts XLA


def apply(variables, x):
  """Logits of our network. It is defined at module level so that attacks compile once."""
  return models.ResNet18(num_outputs=10).apply(variables, x)


def load() -> tuple[Any, torch.nn.Module]:
  """The variables of `models.ResNet18` and the PyTorch module; exits unless the logits agree to 1e-4."""
  folder = pathlib.Path(pyautoattack.__file__).parent / 'examples'
  state = torch.load(folder / 'model_test.pt', map_location='cpu')
  net = runpy.run_path(str(folder / 'resnet.py'))['ResNet18']().eval()
  net.load_state_dict(state)
  variables = importers.from_torch(models.ResNet18(num_outputs=10), state, (32, 32, 3))
  x = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
  apart = np.abs(theirs - np.asarray(jax.jit(apply)(variables, x))).max()
  if not apart <= 1e-4:  # also if it is NaN
    sys.exit(f'the logits differ by {apart}')
  return variables, net


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', default='cifar10', help='data set of at_jax.datasets, or .npz file')
  parser.add_argument('--n', type=int, default=100)
  parser.add_argument('--radii_255', type=float, nargs='+', default=[.125, .25, .5])
  arguments = parser.parse_args()
  variables, _ = load()
  test = pipeline.load(arguments.images).test
  x, y = np.asarray(pipeline.to_unit(test.images[:arguments.n])), test.labels[:arguments.n]
  logits_fn = jax.tree_util.Partial(apply, variables)
  clean = np.asarray(jax.jit(apply)(variables, x)).argmax(axis=1) == y
  print(f'clean {clean.mean():.1%} of {len(y)}', flush=True)
  for radius in arguments.radii_255:
    result = attacks.pgd(logits_fn, x, y, jax.random.key(0), epsilon=radius / 255,
                         step_size=radius / 4 / 255, num_steps=20)
    print(f'ε {radius:g}/255: {1 - result.success.mean():.1%}', flush=True)


if __name__ == '__main__':
  main()

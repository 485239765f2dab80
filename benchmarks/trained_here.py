"""Compares AutoAttack with the reference implementation on a small network trained with at_jax.

  python benchmarks/trained_here.py --workdir=results/small_cifar10/pgd_at_cifar10-0
  the same with --norm=l2 --epsilon_255=128, and with --alone

Both attack the best checkpoint of the run on the first --n test images, the reference in PyTorch. The
logits of the two networks must agree to 1e-4. Needs the packages of at_jax[peers]. The command prints, and
writes to --output, robust accuracy after each component and the seconds, as trades_mnist.py does. With
--alone, every component attacks all correctly classified images.
"""

import argparse
import os
import pathlib
import sys
import time

import jax
import numpy as np
import torch
import verdicts

from at_jax import attacks, errors, xla_flags
from at_jax.datasets import pipeline
from at_jax.training import records, restore

xla_flags.tune()  # before the first array starts XLA
functional = torch.nn.functional
_NORMS = {'linf': 'Linf', 'l2': 'L2'}


class TorchSmallCNN(torch.nn.Module):
  """`models.SmallCNN` with BatchNorm in inference mode, one dense layer and 'SAME' padding."""

  def __init__(self, variables, *, stem_stride: int):
    super().__init__()
    self.stem_stride = stem_stride
    for layers in variables.values():
      for layer, leaves in layers.items():
        for name, value in leaves.items():
          value = np.asarray(value)
          if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
          self.register_buffer(f'{layer}_{name}', torch.from_numpy(np.array(value)))

  def forward(self, x):
    i = 1
    while hasattr(self, f'conv{i}_kernel'):
      part = lambda name: getattr(self, name.format(i))
      stride = self.stem_stride if i == 1 else 1
      # For even sizes and stride 2, 'SAME' pads only at the bottom and the right.
      x = functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
      x = functional.conv2d(x, part('conv{}_kernel'), part('conv{}_bias'), stride=stride)
      x = functional.batch_norm(x, part('bn{}_mean'), part('bn{}_var'), part('bn{}_scale'),
                                part('bn{}_bias'), eps=1e-5)
      x = functional.relu(x)
      if i % 2 == 0:
        x = functional.max_pool2d(x, 2)
      i += 1
    return x.permute(0, 2, 3, 1).flatten(1) @ self.fc1_kernel + self.fc1_bias


def _fooled_alone(robust: dict[str, np.ndarray], begin: int) -> dict[str, list[int]]:
  """Indices of the correctly classified images that each component fooled by itself."""
  fooled = {name: robust['clean'] & ~after for name, after in robust.items()}
  fooled['clean'] = ~robust['clean']
  return {name: verdicts.indices(mask, begin) for name, mask in fooled.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True, help='work directory of a run')
  parser.add_argument('--norm', choices=tuple(_NORMS), default='linf')
  parser.add_argument('--epsilon_255', type=float, default=8.)
  parser.add_argument('--n', type=int, default=500)
  parser.add_argument('--batch_size', type=int, default=250)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--alone', action='store_true', help='each component attacks all images')
  parser.add_argument('--output', help='JSON file of the verdicts and the seconds')
  arguments = parser.parse_args()
  try:
    run, logits_fn = restore.load(arguments.workdir)
  except errors.UserError as mistake:
    sys.exit(f'trained_here: {mistake}')
  test = run.dataset.test
  x, y = np.asarray(pipeline.to_unit(test.images[:arguments.n])), test.labels[:arguments.n]
  net = TorchSmallCNN(logits_fn.args[0], stem_stride=run.config.model.stem_stride).eval()
  with torch.no_grad():
    apart = np.abs(net(torch.from_numpy(x[:64].transpose(0, 3, 1, 2).copy())).numpy()
                   - logits_fn(x[:64])).max()
  if apart > 1e-4:
    sys.exit(f'the logits differ by {apart}: use a run of a :small configuration')
  epsilon = arguments.epsilon_255 / 255
  threads, compiling = len(os.sched_getaffinity(0)), verdicts.Compiling()
  load, begun = round(os.getloadavg()[0], 1), time.perf_counter()
  result = attacks.autoattack(
      logits_fn, x, y, jax.random.key(arguments.seed),
      epsilon=epsilon, norm=arguments.norm, batch_size=arguments.batch_size,
      cascade=not arguments.alone, progress=compiling.update)
  spent_here = verdicts.seconds(result, time.perf_counter() - begun)
  torch.set_num_threads(threads)  # as many as XLA has
  later = round(os.getloadavg()[0], 1)
  theirs, seconds = {'clean': verdicts.is_right(net, x, y)}, {}
  calls = [(name,) for name in verdicts.COMPONENTS]
  for names in calls if arguments.alone else [verdicts.COMPONENTS]:
    for name, robust, spent in verdicts.reference(
        net, x, y, epsilon=epsilon, batch_size=arguments.batch_size,
        seed=arguments.seed, robust=theirs['clean'], names=names, norm=_NORMS[arguments.norm]):
      theirs[name], seconds[name] = robust, round(spent, 1)
  ours = {'clean': result.clean, **result.components}
  fooled = _fooled_alone if arguments.alone else verdicts.fooled_first
  found = {'first': 0, 'n': len(y), 'norm': arguments.norm, 'epsilon': epsilon,
           'seed': arguments.seed, 'batch_size': arguments.batch_size, 'alone': arguments.alone,
           'versions': records.versions(),
           'ours': {'fooled': fooled(ours, 0), 'seconds': spent_here, 'compiling': compiling.by_attack(),
                    'warnings': list(result.warnings), 'threads': threads, 'load': load},
           'reference': {'torch': torch.__version__, 'fooled': fooled(theirs, 0), 'seconds': seconds,
                         'threads': threads, 'load': later}}
  if arguments.alone:
    verdicts.compare(f'each component alone, {len(y)} images', ours, theirs, np.arange(len(y)))
  else:
    verdicts.show([found])
  verdicts.show_times([found])
  if arguments.output:
    records.write_json(pathlib.Path(arguments.output), found)


if __name__ == '__main__':
  main()

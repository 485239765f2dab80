"""What the authors' AutoAttack finds, and how its verdicts are kept and shown beside ours.

For the commands beside this file. A slice of a test set is a dict, as they write it: 'first', the index
of its first image, and 'n', how many; and of 'ours' and the 'reference' which images 'fell' to each
component, by their indices in the test set, and the 'seconds' of each.
"""

from collections.abc import Iterator
import os
import sys
import time
from typing import Any

import jax
import numpy as np
import torch

from at_jax import attacks

COMPONENTS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def reference(path: str, net, x, y, *, epsilon: float, batch_size: int, seed: int,
              standing: np.ndarray, names: tuple[str, ...], norm: str = 'Linf'
              ) -> Iterator[tuple[str, np.ndarray, float]]:
  """Runs the authors' implementation one component after another, as it does by itself.

  Args:
    path: a checkout of it.
    net: the PyTorch network.
    x: f32[N, H, W, C].
    y: i32[N].
    epsilon: the radius.
    batch_size: of its batches.
    seed: of its draws, which are the same in every batch.
    standing: bool[N], what to attack.
    names: the components to run, in their order.
    norm: 'Linf' or 'L2', as it calls them.

  Yields:
    The component, bool[N] what stands after it, and its seconds, in which its checks of the model,
    some forward passes, are counted.
  """
  sys.path.insert(0, path)
  from autoattack import AutoAttack
  attack = AutoAttack(net, norm=norm, eps=epsilon, seed=seed, version='standard', verbose=False,
                      device='cpu')
  x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long()
  standing = torch.from_numpy(standing.copy())
  for name in names:
    begun = time.perf_counter()
    attack.attacks_to_run = [name]
    if standing.any():
      places = standing.nonzero().flatten()
      _, labels = attack.run_standard_evaluation(x[places], y[places], bs=batch_size,
                                                 return_labels=True)
      standing[places] = labels == y[places]
    yield name, standing.numpy().copy(), time.perf_counter() - begun


def seconds(result, whole: float | None) -> dict[str, float]:
  """Those of our components, and the 'rest' of the whole: clean pass, checks and last pass.

  The reference's seconds of each component have these passes in them. A component's are summed over
  the sittings it took; where there were several the whole is not known, None, and no rest is told.
  """
  spent = dict(result.seconds)
  if whole is not None:
    spent['rest'] = whole - sum(spent.values())
  return {name: round(each, 1) for name, each in spent.items()}


class Compiling:
  """The seconds that XLA has spent on compiling, by the attack that it was for.

  Tracing is not among them: jax reports the parts of a function besides the whole.
  """

  def __init__(self):
    self._seconds, self._heard = dict.fromkeys(COMPONENTS, 0.), []
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, seconds: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      self._heard.append((time.monotonic(), seconds))

  def told(self, now: attacks.Progress) -> None:
    """What was heard since this attack began was for it."""
    began = time.monotonic() - now.seconds
    self._seconds[now.attack] = sum(seconds for at, seconds in self._heard if at > began)

  def by_attack(self) -> dict[str, float]:
    """The seconds of each, and 'rest', those that were for none."""
    all_of_it = sum(seconds for _, seconds in self._heard)
    spent = self._seconds | {'rest': all_of_it - sum(self._seconds.values())}
    return {name: round(seconds, 1) for name, seconds in spent.items()}


def is_right(net, x, y) -> np.ndarray:
  """bool[N], which images the PyTorch network classifies correctly."""
  with torch.no_grad():
    return net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).argmax(1).numpy() == y


def fallen(stands: dict[str, np.ndarray], begin: int) -> dict[str, list[int]]:
  """Which images of the test set fell to each, from bool[N], what stands after each in turn."""
  fell, standing = {}, True
  for name, after in stands.items():
    fell[name], standing = indices(standing & ~after, begin), after
  return fell


def indices(mask: np.ndarray, begin: int) -> list[int]:
  return (begin + np.flatnonzero(mask)).tolist()


def standing_after(fell: dict[str, list[int]], begin: int, n: int) -> dict[str, np.ndarray]:
  """bool[n] after each component, from the indices that fell to it."""
  standing, after = np.ones(n, bool), {}
  for name in ('clean', *COMPONENTS):
    standing[np.asarray(fell.get(name, []), int) - begin] = False
    after[name] = standing.copy()
  return after


def show(slices: list[dict[str, Any]]) -> None:
  """Prints what stands after each component, over all slices and over those with a reference."""
  ours = _after(slices, 'ours')
  print(f'{len(slices)} slices, {len(ours["clean"])} images')
  for name, standing in ours.items():
    print(f'{name:8s} {standing.mean():8.2%}')
  beside = [s for s in slices if set(COMPONENTS) <= set(s.get('reference', {}).get('fell', {}))]
  if not beside:
    return
  ours, theirs = _after(beside, 'ours'), _after(beside, 'reference')
  places = np.concatenate([s['first'] + np.arange(s['n']) for s in beside])
  show_beside(f'beside the reference, {len(places)} images', ours, theirs, places)


def show_beside(title: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray],
                places: np.ndarray) -> None:
  """Prints what stands here and there, from bool[N] by component, and the images that differ."""
  print(title)
  print(f'{"":8s} {"ours":>8s} {"theirs":>8s} differ')
  for name, standing in ours.items():
    print(f'{name:8s} {standing.mean():8.2%} {theirs[name].mean():8.2%} '
          f'{(standing != theirs[name]).sum():6d}')
    for which, only in (('ours', theirs[name] & ~standing), ('theirs', standing & ~theirs[name])):
      if only.any():
        print(f'{"":8s} fallen to {which} only: {places[only].tolist()}')


def show_times(slices: list[dict[str, Any]]) -> None:
  """Prints the seconds of each component and their ratios, of slices that both ran in one go."""
  threads = os.sched_getaffinity(0)
  timed = [s for s in slices if 'compiling' in s['ours']
           and set(COMPONENTS) <= set(s.get('reference', {}).get('seconds', {}))
           and s['ours']['threads'] == s['reference']['threads'] == len(threads)]
  if not timed:
    return
  load = lambda which: ', '.join(str(s[which]['load']) for s in timed)
  print(f'seconds, {sum(s["n"] for s in timed)} images, {len(threads)} threads, load '
        f'{load("ours")} at the start of ours and {load("reference")} of theirs')
  print(f'{"":8s} {"ours":>8s} {"compiled":>8s} {"theirs":>8s} {"ours / theirs":>15s} {"compiled":>8s}')
  spent = {name: np.sum([(s['ours']['seconds'][name],
                          s['ours']['seconds'][name] - s['ours']['compiling'][name],
                          s['reference']['seconds'].get(name, 0.)) for s in timed], axis=0)
           for name in (*COMPONENTS, 'rest')}
  for name, (ours, compiled, theirs) in (spent | {'whole': sum(spent.values())}).items():
    print(f'{name:8s} {ours:8.1f} {compiled:8.1f} {theirs:8.1f} {ours / max(theirs, .1):15.2f} '
          f'{compiled / max(theirs, .1):8.2f}')


def _after(slices: list[dict[str, Any]], which: str) -> dict[str, np.ndarray]:
  each = [standing_after(s[which]['fell'], s['first'], s['n']) for s in slices]
  return {name: np.concatenate([e[name] for e in each]) for name in ('clean', *COMPONENTS)}

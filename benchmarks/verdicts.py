"""Runs the reference AutoAttack, and stores and prints its verdicts next to those of at_jax.

Used by trades_mnist.py, trained_here.py and torch_model.py. The reference is pyautoattack, the package of
AutoAttack's authors; its attacks are those of commit a392200 of github.com/fra31/auto-attack. The first two
store a slice of a test set as a dict: 'first' is the index of its first image and 'n' its size. Its entries
'ours' and 'reference' hold 'fooled', the test set indices of the images that each component fooled first
('fell' in older files), and 'seconds' per component.
"""

from collections.abc import Iterator
import os
import time
from typing import Any

import jax
import numpy as np
import pyautoattack
import torch

from at_jax import attacks

COMPONENTS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def reference(net, x, y, *, epsilon: float, batch_size: int, seed: int,
              robust: np.ndarray, names: tuple[str, ...], norm: str = 'Linf'
              ) -> Iterator[tuple[str, np.ndarray, float]]:
  """Runs the components of the reference implementation one after another, as it does itself.

  Args:
    net: the PyTorch network.
    x: f32[N, H, W, C] images in [0, 1].
    y: i32[N] labels.
    epsilon: radius of the ball.
    batch_size: number of images in a batch.
    seed: seed of the random numbers. The reference draws the same ones in every batch.
    robust: bool[N] images to attack.
    names: components to run, in this order.
    norm: 'Linf' or 'L2'.

  Yields:
    The component's name, bool[N] images that are robust after it, and its seconds. The seconds include
    the reference's checks of the model, which are a few forward passes.
  """
  attack = pyautoattack.AutoAttack(net, norm=norm, eps=epsilon, seed=seed, version='standard')
  x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long()
  robust = torch.from_numpy(robust.copy())
  for name in names:
    begun = time.perf_counter()
    attack.attacks_to_run = [name]
    if robust.any():
      places = robust.nonzero().flatten()
      _, labels = attack.run_standard_evaluation(x[places], y[places], batch_size=batch_size)
      robust[places] = labels == y[places]
    yield name, robust.numpy().copy(), time.perf_counter() - begun


def seconds(result, whole: float | None) -> dict[str, float]:
  """Seconds of each component of at_jax, and 'rest': the clean pass, the checks and the last pass.

  The reference counts these passes in its components. A resumed evaluation does not know its total
  time: `whole` is None, and there is no 'rest'.
  """
  spent = dict(result.seconds)
  if whole is not None:
    spent['rest'] = whole - sum(spent.values())
  return {name: round(each, 1) for name, each in spent.items()}


class Compiling:
  """Measures the seconds that XLA spends on compiling for each attack.

  Tracing time is left out, because jax reports nested functions twice.
  """

  def __init__(self):
    self._seconds, self._heard = dict.fromkeys(COMPONENTS, 0.), []
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, seconds: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      self._heard.append((time.monotonic(), seconds))

  def update(self, now: attacks.Progress) -> None:
    """Assigns the compilations since the start of the current attack to it."""
    began = time.monotonic() - now.seconds
    self._seconds[now.attack] = sum(seconds for at, seconds in self._heard if at > began)

  def by_attack(self) -> dict[str, float]:
    """Ends the measurement: seconds of each attack, and 'rest', compilations outside of the attacks."""
    jax.monitoring.unregister_event_duration_listener(self._hear)
    total = sum(seconds for _, seconds in self._heard)
    spent = self._seconds | {'rest': total - sum(self._seconds.values())}
    return {name: round(seconds, 1) for name, seconds in spent.items()}


def is_right(net, x, y) -> np.ndarray:
  """Images that the PyTorch network classifies correctly, bool[N]."""
  with torch.no_grad():
    return net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).argmax(1).numpy() == y


def fooled_first(robust: dict[str, np.ndarray], begin: int) -> dict[str, list[int]]:
  """Indices of the images that each component fooled first, from bool[N] robust after each."""
  fooled, before = {}, True
  for name, after in robust.items():
    fooled[name], before = indices(before & ~after, begin), after
  return fooled


def indices(mask: np.ndarray, begin: int) -> list[int]:
  """Test set indices of the true entries."""
  return (begin + np.flatnonzero(mask)).tolist()


def robust_after(fooled: dict[str, list[int]], begin: int, n: int) -> dict[str, np.ndarray]:
  """Images that are robust after each component, bool[n]; the inverse of `fooled_first`."""
  robust, after = np.ones(n, bool), {}
  for name in ('clean', *COMPONENTS):
    robust[np.asarray(fooled.get(name, []), int) - begin] = False
    after[name] = robust.copy()
  return after


def fooled_of(verdict: dict[str, Any]) -> dict[str, list[int]]:
  """The entry 'fooled' of a stored verdict, which older files call 'fell'."""
  return verdict.get('fooled', verdict.get('fell', {}))


def show(slices: list[dict[str, Any]]) -> None:
  """Prints robust accuracy after each component, over all slices and over those with a reference."""
  ours = _after(slices, 'ours')
  print(f'{len(slices)} slices, {len(ours["clean"])} images')
  for name, robust in ours.items():
    print(f'{name:8s} {robust.mean():8.2%}')
  both = [s for s in slices if set(COMPONENTS) <= set(fooled_of(s.get('reference', {})))]
  if not both:
    return
  ours, theirs = _after(both, 'ours'), _after(both, 'reference')
  places = np.concatenate([s['first'] + np.arange(s['n']) for s in both])
  compare(f'at_jax and the reference, {len(places)} images', ours, theirs, places)


def compare(title: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray],
            places: np.ndarray) -> None:
  """Prints both robust accuracies by component, from bool[N], and the images that differ."""
  print(title)
  print(f'{"":8s} {"at_jax":>8s} {"reference":>10s} differ')
  for name, robust in ours.items():
    print(f'{name:8s} {robust.mean():8.2%} {theirs[name].mean():10.2%} '
          f'{(robust != theirs[name]).sum():6d}')
    for which, only in (('at_jax', theirs[name] & ~robust), ('the reference', robust & ~theirs[name])):
      if only.any():
        print(f'{"":8s} fooled by {which} only: {places[only].tolist()}')


def show_times(slices: list[dict[str, Any]]) -> None:
  """Prints seconds and ratios per component, over slices that both ran without interruption."""
  threads = os.sched_getaffinity(0)
  timed = [s for s in slices if 'compiling' in s['ours']
           and set(COMPONENTS) <= set(s.get('reference', {}).get('seconds', {}))
           and s['ours']['threads'] == s['reference']['threads'] == len(threads)]
  if not timed:
    return
  load = lambda which: ', '.join(str(s[which]['load']) for s in timed)
  print(f'seconds, {sum(s["n"] for s in timed)} images, {len(threads)} threads, load '
        f'{load("ours")} at the start of at_jax and {load("reference")} of the reference')
  print(f'{"":8s} {"at_jax":>8s} {"compiled":>8s} {"reference":>10s} '
        f'{"at_jax / reference":>20s} {"compiled":>8s}')
  spent = {name: np.sum([(s['ours']['seconds'][name],
                          s['ours']['seconds'][name] - s['ours']['compiling'][name],
                          s['reference']['seconds'].get(name, 0.)) for s in timed], axis=0)
           for name in (*COMPONENTS, 'rest')}
  for name, (ours, compiled, theirs) in (spent | {'whole': sum(spent.values())}).items():
    print(f'{name:8s} {ours:8.1f} {compiled:8.1f} {theirs:10.1f} {ours / max(theirs, .1):20.2f} '
          f'{compiled / max(theirs, .1):8.2f}')


def _after(slices: list[dict[str, Any]], which: str) -> dict[str, np.ndarray]:
  each = [robust_after(fooled_of(s[which]), s['first'], s['n']) for s in slices]
  return {name: np.concatenate([e[name] for e in each]) for name in ('clean', *COMPONENTS)}

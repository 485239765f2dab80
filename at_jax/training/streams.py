"""Feeds the steps of a run with minibatches that are read ahead, while the devices compute."""

from collections.abc import Iterable, Iterator
from concurrent import futures
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from at_jax import devices
from at_jax.datasets import pipeline
from at_jax.training import setup, sharding


class Part(NamedTuple):
  """Minibatches of one epoch.

  Attributes:
    order: i32[M, B], the examples of each.
    first: number of the first, from the start of the run.
    replayed: steps that have used the first.
  """
  order: np.ndarray
  first: int
  replayed: int = 0


def order(run: setup.Run, epoch: int) -> np.ndarray:
  """Draws the minibatches of an epoch, from the key of the run and the epoch only.

  Args:
    run: the run.
    epoch: counted from 0.

  Returns:
    i32[M, B], the examples of each minibatch; the rest of an epoch's order is dropped.
  """
  examples = np.asarray(pipeline.epoch_order(run.keys['order'], epoch, run.dataset.train_size))
  count, size = run.steps_per_epoch // setup.replays(run.config), run.config.batch_size
  return examples[:count * size].reshape(count, size)


def remaining(run: setup.Run, step: int) -> Iterator[Part]:
  """Lists the minibatches that remain in training, epoch by epoch.

  Args:
    run: the run.
    step: number of steps taken.

  Yields:
    A `Part` for each epoch.
  """
  replays = setup.replays(run.config)
  per_epoch = run.steps_per_epoch // replays
  begun, replayed = divmod(step, replays)
  for epoch in range(begun // per_epoch, run.config.epochs):
    first = max(begun, epoch * per_epoch)
    yield Part(order(run, epoch)[first - epoch * per_epoch:], first, replayed if first == begun else 0)


def share(batches: np.ndarray) -> np.ndarray:
  """Takes the examples of this process: those that `pmap` gives to its devices.

  Args:
    batches: i32[M, B].

  Returns:
    i32[M, B / number of processes].

  Example:
    >>> share(np.arange(4).reshape(2, 2)).tolist()  # of one process
    [[0, 1], [2, 3]]
  """
  return devices.share(batches.T).T


class Feed:
  """Reads minibatches in the background and places the next one while a step is computed.

  Args:
    split: the `datasets.streaming.TrainSplit`.
    parts: the minibatches, in order; asked for in the thread of the caller, when an epoch begins.
    key: PRNG key, which decides the random crops.
    replays: how often each minibatch is taken.
  """

  def __init__(self, split: Any, parts: Iterable[Part], key: jax.Array, replays: int = 1):
    self._reader = futures.ThreadPoolExecutor(1, thread_name_prefix='at_jax_feed')
    self._opened: Any = None
    high, low = np.asarray(jax.random.key_data(key)).tolist()
    self._pending = self._read(split, parts, high << 32 | low, replays)
    self._next = next(self._pending, None)
    self._placed: Any = None

  def _read(self, split, parts, key, replays) -> Iterator[futures.Future]:
    from at_jax.datasets import streaming  # needs grain, which other data sets do not
    for part in parts:
      self._opened = streaming.batches(split, share(part.order), part.first, key)
      for number in range(len(part.order)):
        found = self._reader.submit(next, self._opened)
        for _ in range(replays - (part.replayed if number == 0 else 0)):
          yield found

  def take(self) -> tuple[tuple[jax.Array, jax.Array], float]:
    """Returns images and labels of the next step, on the devices, and the seconds that it waited for them."""
    waited = self.prepare()
    batch, self._placed = self._placed, None
    return batch, waited

  def prepare(self, busy: Any = ()) -> float:
    """Places the next minibatch; returns the seconds that the devices had nothing to do meanwhile.

    Args:
      busy: arrays that the devices are computing.

    Returns:
      The seconds from when these are ready until the minibatch is read; 0 if it was read before.
    """
    if self._placed is not None or self._next is None:
      return 0.
    if self._next.done():
      waited = 0.
    else:
      jax.block_until_ready(busy)
      begun = time.monotonic()
      futures.wait([self._next])
      waited = time.monotonic() - begun
    # Every process does this between the same two steps: on several hosts, programs start in one order.
    self._placed = sharding.place(self._next.result())
    self._next = next(self._pending, None)
    return waited

  def close(self) -> None:
    """Ends the threads."""
    self._reader.shutdown(wait=True, cancel_futures=True)
    if self._opened is not None:
      self._opened.close()

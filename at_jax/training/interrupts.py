"""Signals that end a run after its state is saved, so that the same command resumes it."""

from collections.abc import Iterator, Sequence
import contextlib
import signal
import threading

from at_jax import devices
from at_jax.training import records

# What schedulers, terminals and users send; Windows has only some of them.
_NAMES = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU')


class Preempted(Exception):
  """A signal ended the run; its state is saved.

  Args:
    number: the signal.
    where: where the run ended, as a clause ('after step 3 of 9').
  """

  def __init__(self, number: int, where: str):
    super().__init__(number, where)
    self.number, self.where = number, where

  def __str__(self) -> str:
    return f'{signal.Signals(self.number).name}: stopped {self.where}: the same command resumes there'


@contextlib.contextmanager
def watch() -> Iterator[list[int]]:
  """Collects the signals that ask a run to end, instead of their usual effect.

  A signal that the parent process ignores (as nohup ignores SIGHUP) stays ignored. Python calls the handlers
  once a compilation or a call of a compiled program ends. The first signal is answered with a line, because a
  validation or an evaluation can go on for a while; after it Ctrl-C has its usual effect again. Outside the
  main thread, where Python allows no handlers, signals keep their usual effect.

  Yields:
    The signals so far; empty at first.
  """
  received: list[int] = []
  before = {}

  def handle(number, frame):
    del frame
    first = not received
    received.append(number)
    again = ''
    if signal.SIGINT in before:
      signal.signal(signal.SIGINT, before[signal.SIGINT])
      again = '; Ctrl-C now stops at once, without saving'
    if first:
      with contextlib.suppress(Exception):  # such as a signal that came while another line was printed
        records.log(f'{signal.Signals(number).name}: stopping soon, with the state saved{again}')

  if threading.current_thread() is threading.main_thread():
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
      if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by C, not restorable
        before[number] = signal.signal(number, handle)
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def agree(received: list[int]) -> list[int]:
  """The signal that ends all processes; all of them call it together, with a small collective.

  A signal that comes during the collective counts at the next one: the others do not know of it yet, and
  would wait for a process that ends.

  Args:
    received: the list of `watch`; a signal that another process received is added.

  Returns:
    The signal in a list, or an empty list: the same in all processes.
  """
  number = devices.largest(received[0] if received else 0)
  if number and not received:
    received.append(number)
  return [number] if number else []


def check(received: Sequence[int], where: str) -> None:
  """Ends the run if a signal was received.

  Args:
    received: the list of `watch` or of `agree`.
    where: as in `Preempted`.

  Raises:
    Preempted: if the list is not empty.
  """
  if received:
    raise Preempted(received[0], where)

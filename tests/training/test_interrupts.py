"""Signals: each is collected, what the parent ignores stays ignored, and handlers are restored."""

import signal
import threading

import pytest

from at_jax.training import interrupts, records

pytestmark = pytest.mark.oldest
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture(autouse=True)
def handlers():
  """The handlers before a test, which are those after it; no signal is ignored, also under nohup."""
  inherited = {number: signal.getsignal(number) for number in SIGNALS}
  for number, handler in inherited.items():
    if handler is signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)
  before = {number: signal.getsignal(number) for number in SIGNALS}
  yield before
  assert {number: signal.getsignal(number) for number in SIGNALS} == before
  for number, handler in inherited.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS, ids=lambda number: number.name)
def test_signal_is_collected_and_named(number):
  with interrupts.watch() as received:
    interrupts.check(received, 'too early')
    signal.raise_signal(number)
    assert received == [number]
    with pytest.raises(interrupts.Preempted) as stopped:
      interrupts.check(received, 'after step 3 of 9')
  assert str(stopped.value) == f'{number.name}: stopped after step 3 of 9: the same command resumes there'
  assert stopped.value.number == number


def test_the_first_signal_is_answered(capsys):
  with interrupts.watch():
    signal.raise_signal(signal.SIGTERM)
    line, = capsys.readouterr().err.splitlines()
    assert line == 'SIGTERM: stopping soon, with the state saved; Ctrl-C now stops at once, without saving'
    signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err == ''


def test_a_signal_counts_whatever_its_line_does(monkeypatch):
  def fails(line):
    raise OSError(line)

  def interrupted(line):
    signal.raise_signal(signal.SIGINT)

  with interrupts.watch() as received:
    monkeypatch.setattr(records, 'log', fails)
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
  monkeypatch.setattr(records, 'log', interrupted)
  with pytest.raises(KeyboardInterrupt), interrupts.watch() as received:
    signal.raise_signal(signal.SIGTERM)
  assert received == [signal.SIGTERM]


def test_second_ctrl_c_ends_at_once():
  with pytest.raises(KeyboardInterrupt), interrupts.watch() as received:
    signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT]
    signal.raise_signal(signal.SIGINT)


def test_second_sigterm_does_not_interrupt_saving():
  # Slurm, for one, sends SIGTERM again at the end of the time that it gives.
  with interrupts.watch() as received:
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGUSR1, signal.SIGTERM]


def test_ignored_signal_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with interrupts.watch() as received:
      signal.raise_signal(signal.SIGHUP)
      assert received == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored_after_an_error(handlers):
  with pytest.raises(OSError), interrupts.watch():
    assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    raise OSError


def test_thread_watches_without_handlers(handlers):
  found = []

  def run():
    with interrupts.watch() as received:
      found.append((received, {number: signal.getsignal(number) for number in SIGNALS}))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [([], handlers)]

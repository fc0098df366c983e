import os
import signal
import threading

import pytest

from rome_jax.devices import interrupt


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_sets_the_flag(number):
  before = signal.getsignal(number)
  with interrupt.Interrupt() as stop:
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested and stop.signal == number
  assert signal.getsignal(number) is before


def test_second_ctrl_c_is_not_held_back():
  # A shell starts background jobs with SIGINT ignored; not so here.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    _interrupt_twice()
  finally:
    signal.signal(signal.SIGINT, before)


def _interrupt_twice():
  with pytest.raises(KeyboardInterrupt):
    with interrupt.Interrupt():
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_come_back_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(ValueError):
    with interrupt.Interrupt():
      raise ValueError
  assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_can_use_it():
  seen = []

  def work():
    with interrupt.Interrupt() as stop:
      seen.append(stop.requested)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]


def test_a_run_whose_parent_is_gone_stops(monkeypatch):
  """As `compare` and `sweep` start it; nobody else would ask it to."""
  monkeypatch.setenv(interrupt.PARENT, str(os.getppid()))
  with interrupt.Interrupt() as stop:
    assert interrupt.parent() == os.getppid() and not stop.requested
    monkeypatch.setattr(interrupt.os, 'getppid', lambda: 1)
    assert stop.requested and stop.signal == signal.SIGHUP


@pytest.mark.parametrize('text', ['', 'x', '1'])
def test_without_such_a_parent_nothing_is_watched(text, monkeypatch):
  """Another process in between, such as a launcher, ends when it likes."""
  monkeypatch.setenv(interrupt.PARENT, text)
  with interrupt.Interrupt() as stop:
    monkeypatch.setattr(interrupt.os, 'getppid', lambda: 12345)
    assert not interrupt.parent() and not stop.requested

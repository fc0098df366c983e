"""Turns the first SIGTERM or SIGINT into a flag that a loop can check."""

import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
  """Context manager that records a request to stop instead of dying.

      with Interrupt() as interrupt:
        while not interrupt.requested:
          ...  # one step

  A second signal has its usual effect, so a second Ctrl-C still ends a step
  that hangs. Previous handlers are restored on exit. Only the main thread may
  set handlers; in other threads `requested` stays False.

  Attributes:
    requested: whether a signal arrived.
    signal: the `signal.Signals` that arrived first, or None.
  """

  def __init__(self):
    self.signal = None
    self._previous = {}

  @property
  def requested(self) -> bool:
    return self.signal is not None

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._previous = {
          number: signal.signal(number, self._handle) for number in _SIGNALS}
    return self

  def __exit__(self, *exception):
    self._put_back()

  def _handle(self, number, frame):
    if self.requested:
      self._put_back()
      signal.raise_signal(number)
    else:
      self.signal = signal.Signals(number)

  def _put_back(self):
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python.
      signal.signal(number, handler or signal.SIG_DFL)
    self._previous = {}

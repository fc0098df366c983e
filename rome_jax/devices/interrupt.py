"""Turns the first SIGTERM or SIGINT into a flag that a loop can check."""

import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The process of a comparison or sweep names itself to its runs.
PARENT = 'ROME_JAX_PARENT'
# Where a launcher is between the two, nothing is known of the parent.
_STARTED_BY = os.getppid()


def parent() -> int:
  """The process that started this one as one of several runs; 0: none."""
  text = os.environ.get(PARENT, '')
  return int(text) if text.isdecimal() and int(text) == _STARTED_BY else 0


class Interrupt:
  """Context manager that records a request to stop instead of dying.

      with Interrupt() as interrupt:
        while not interrupt.requested:
          ...  # one step

  A run whose comparison or sweep was killed is asked to stop, too: nobody else
  would. A second signal has its usual effect, so a second Ctrl-C still ends a
  step that hangs. Previous handlers are restored on exit. Only the main thread
  may set handlers; in other threads signals are not seen.

  Attributes:
    requested: whether a signal arrived.
    signal: the `signal.Signals` that arrived first, or None; SIGHUP once the
      parent is gone.
  """

  def __init__(self):
    self.signal = None
    self._parent = parent()
    self._previous = {}

  @property
  def requested(self) -> bool:
    if self.signal is None and self._parent and os.getppid() != self._parent:
      self.signal = getattr(signal, 'SIGHUP', signal.SIGTERM)
    return self.signal is not None

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._previous = {
          number: signal.signal(number, self._handle) for number in _SIGNALS}
    return self

  def __exit__(self, *exception):
    self._put_back()

  def _handle(self, number, frame):
    if self.signal is not None:
      self._put_back()
      signal.raise_signal(number)
    else:
      self.signal = signal.Signals(number)

  def _put_back(self):
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python.
      signal.signal(number, handler or signal.SIG_DFL)
    self._previous = {}

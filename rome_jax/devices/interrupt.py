"""What SIGTERM and Ctrl-C do: a flag that a loop can check, or a quiet end."""

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
    if _may_handle():
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
      _restore(number, handler)
    self._previous = {}


def end_at_once() -> None:
  """Lets a Ctrl-C end the process as it ends other programs: without words.

  Python's own handler raises KeyboardInterrupt, and a library that is being
  loaded may turn that into an ImportError. A handler of anybody else stays, as
  does that of a process that a shell started to ignore Ctrl-C.
  """
  if _may_handle() and (
      signal.getsignal(signal.SIGINT) is signal.default_int_handler):
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class CtrlC:
  """Context manager of a command, which a Ctrl-C ends without a traceback.

      with CtrlC() as ctrl_c:
        ...  # loads libraries; the process ends at once
        ctrl_c.raises()
        return ...  # what is under way is cleaned up
      return 130

  The handler before is restored on exit.
  """

  def __init__(self):
    self._previous = None
    self._pressed = False

  def raises(self) -> None:
    """From here on, a Ctrl-C raises KeyboardInterrupt."""
    if _may_handle() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
      signal.signal(signal.SIGINT, self._handle)

  def __enter__(self):
    self._previous = signal.getsignal(signal.SIGINT)
    end_at_once()
    return self

  def __exit__(self, kind, error, traceback):
    if _may_handle():
      _restore(signal.SIGINT, self._previous)
    # Libraries turn it into errors of their own.
    return self._pressed or isinstance(error, KeyboardInterrupt)

  def _handle(self, number, frame):
    self._pressed = True
    raise KeyboardInterrupt


def _may_handle():
  return threading.current_thread() is threading.main_thread()


def _restore(number, handler):
  # None stands for a handler that was not installed from Python.
  signal.signal(number, handler or signal.SIG_DFL)

"""Several processes of one run: how they start, agree, stop and end.

Every process runs the same program over all devices of the run (JAX's
multi-controller model). Processes communicate through the key-value store of
JAX's coordination service, which lives in process 0. With one process, every
function here does nothing special.

A thread in each process watches the others, so no process waits forever on a
dead peer: if one process is lost or ends with an error, all of them end.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

# JAX has no public name for the client; orbax reaches for it as well.
from jax._src import distributed as _distributed

from rome_jax import errors
from rome_jax.devices import interrupt

_POLL = 1.  # seconds between two checks of the other processes
_LINGER = 5.  # seconds that process 0, which holds the store, outlives them
_GRACE = 20  # seconds that `Watch` may take beyond the heartbeat
# Waiting for all processes to start may take this many heartbeats.
_START = 3
_ROOT = 'rome_jax'
# Messages of failed collectives; their type varies (even ValueError).
_BROKEN = re.compile(
    'gloo|nccl|collective|connection|socket|coordination|heartbeat'
    '|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED', re.IGNORECASE)

_watch: Any = None  # the `Watch` of this process; None if there is only one


@contextlib.contextmanager
def joined(options: Any) -> Iterator[None]:
  """Joins this process to the others for the body, if the options say so.

  All processes but the first are silent. On an error in the body, this process
  tells the others and exits at once with the error's exit code, because JAX's
  own shutdown would wait for the others.

  Args:
    options: `config.Options`.

  Raises:
    UserError: the others cannot be found.
  """
  global _watch
  if not options.distributed:
    yield
    return
  _initialize(options)
  if jax.process_count() == 1:
    with _ordered_collectives():
      yield
    return
  _watch = Watch(jax.process_index(), jax.process_count(),
                 _distributed.global_state.client, options.heartbeat)
  try:
    with _silent(not is_first()), _ordered_collectives():
      yield
      _meet('end')
  except BaseException as error:
    _watch.leave(error)
  _watch.close()
  _watch = None
  jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this process writes files and prints."""
  return _watch is None or _watch.process == 0


def several() -> bool:
  """Whether the run has more than one process."""
  return _watch is not None


def from_first(function: Callable[[], Any]) -> Any:
  """Runs `function` on process 0 and returns its result on every process.

  Args:
    function: () -> a value that JSON can hold.
  """
  if _watch is None:
    return function()
  return json.loads(_meet(
      'from_first', decide=lambda texts: json.dumps(function())))


def wait_for_all(what: str) -> None:
  """Returns once every process has called it.

  Call it before the first call of a program: collectives (gloo, on CPUs) wait
  only half a minute, and compile times differ between hosts.

  Args:
    what: what the processes wait for, the same on each.
  """
  if _watch is not None:
    _meet(what)


def compare(what: str, text: str,
            kind: type[Exception] = errors.LostError) -> None:
  """Checks that every process has the same value.

  Args:
    what: name of the value, for the error.
    text: the value, or its digest.
    kind: type of the error.

  Raises:
    kind: a process has a different value than process 0.
  """
  if _watch is None:
    return

  def decide(texts):
    return ', '.join(str(i) for i, t in enumerate(texts) if t != texts[0])

  others = _meet(what, text, decide)
  if others:
    raise kind(f'process {others} has a different {what} than process 0')


def check_shared(path: pathlib.Path) -> None:
  """Checks that every process reads the same file as process 0.

  Raises:
    UserError: a process does not, so the folder is not shared.
  """
  if _watch is None:
    return
  text = from_first(path.read_text)
  deadline = time.monotonic() + 15  # Network file systems may lag.
  while _text(path) != text:
    if time.monotonic() > deadline:
      raise errors.UserError(
          f'this process does not find {path}, which process 0 wrote; '
          '--workdir must lie on storage that all processes share')
    time.sleep(.2)


def _text(path):
  try:
    return path.read_text()
  except OSError:
    return None


def agreed(stop: interrupt.Interrupt) -> 'interrupt.Interrupt | AgreedStop':
  """Returns a request to stop that all processes see after the same step.

  Args:
    stop: the request of this process.

  Returns:
    `stop` itself for one process. For several, an object with the same
    attributes `requested`, which all must read equally often, and `signal`.
  """
  if _watch is None:
    return stop
  _watch.local = stop
  return AgreedStop(_watch)


class AgreedStop:
  """A request to stop that several processes share; made by `agreed`."""

  def __init__(self, watch):
    self._watch = watch

  @property
  def requested(self) -> bool:
    return self._watch.count_and_ask()

  @property
  def signal(self) -> signal.Signals | None:
    return self._watch.signal


def _initialize(options):
  """Initialises JAX's distributed runtime, with readable errors.

  JAX aborts the process from C++ if the coordinator does not answer or a
  process is missing; the timer here fires first.
  """
  limit = _START * options.heartbeat
  explicit = {}
  if options.coordinator:
    explicit = {
        'coordinator_address': options.coordinator,
        'num_processes': options.processes, 'process_id': options.process}
    if options.process == 0:
      _check_port(options.coordinator)
  # SIGTERM is handled here; see `agreed`.
  jax.config.update('jax_enable_preemption_service', False)
  timer = threading.Timer(limit, _give_up, (options, limit))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
        **explicit, initialization_timeout=limit + 60,
        # `Watch` notices earlier; this limit is for a Python that hangs. JAX
        # sends two signs of life in it and ends the process without a sentence.
        heartbeat_timeout_seconds=2 * (options.heartbeat + _GRACE))
    jax.devices()  # waits for every process
  except Exception as error:
    raise errors.UserError(_start_error(options, error)) from error
  finally:
    timer.cancel()


def _check_port(address):
  """Raises UserError if the coordinator's port is taken; JAX would crash."""
  port = int(address.rpartition(':')[2])
  try:
    with socket.socket(socket.AF_INET6) as probe:
      probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(('::', port))
  except OSError as error:
    raise errors.UserError(
        f'--coordinator={address}: process 0 cannot listen on port {port} '
        f'({error.strerror})') from error


def _give_up(options, limit):
  where = options.coordinator or 'the coordinator'
  _exit(2, f'after {limit} s not all processes had met at {where}; every '
        'process must be able to reach it, and all of them must start')


def _start_error(options, error):
  if not options.coordinator and 'should be defined' in str(error):
    return ('--distributed finds no job of SLURM, Open MPI, Kubernetes or '
            'Cloud TPU here; use --coordinator=HOST:PORT --processes=N '
            '--process=I')
  return f'the processes cannot be joined: {_first_line(error)}'


def _meet(name, text='', decide=lambda texts: ''):
  return _watch.meet(name, text, decide)


@contextlib.contextmanager
def _ordered_collectives():
  """Without JAX's compilation cache, where the devices are CPUs.

  A program that XLA's CPU backend reads from the cache no longer runs the
  collectives of its loops in one order with the others (seen with jaxlib
  0.10.2). Process 0 alone would do so, since the key of a CPU program differs
  between processes and only process 0 writes; Gloo then ends them, or adds up
  what does not belong together. One process uses Gloo between its devices too.
  """
  before = jax.config.jax_enable_compilation_cache
  if jax.default_backend() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


@contextlib.contextmanager
def _silent(silent):
  if not silent:
    yield
    return
  with open(os.devnull, 'w') as nowhere:
    with contextlib.redirect_stdout(nowhere), (
        contextlib.redirect_stderr(nowhere)):
      yield


class Watch:
  """What a process knows about the others, and the thread that finds out.

  Keys in the store, where P is a process:
    beat/P     a count that grows while P lives; only process 0 reads it
    end/P      [exit code, sentence], once P ends early
    stop/P     [count of steps, signal], once a process wants to stop
    meet/N/P   the text of P in meeting N; meet/N/reply is the decision
  """

  def __init__(self, process, count, client, heartbeat):
    """Starts the thread.

    Args:
      process: index of this process.
      count: number of processes.
      client: client of JAX's coordination service.
      heartbeat: seconds of silence after which a process counts as lost.
    """
    self.process, self.count = process, count
    self.local = self.signal = None
    self._client, self._heartbeat = client, heartbeat
    self._asked, self._stop_at = 0, None
    self._meetings = 0
    self._steps, self._leaving = threading.Lock(), threading.Lock()
    self._beats = {}  # process: (its last beat, time of that beat)
    self._closed = threading.Event()
    self._thread = threading.Thread(
        target=self._run, name='hosts', daemon=True)
    self._thread.start()

  def meet(self, name: str, text: str,
           decide: Callable[[list[str]], str]) -> str:
    """Collects a text from every process and returns process 0's decision.

    Args:
      name: of the meeting; every process must come to the same one next.
      text: the text of this process.
      decide: [text of each process] -> text.

    Raises:
      LostError: another process is at a different meeting.
    """
    number = self._meetings
    self._meetings += 1
    self._set(f'meet/{number}/{self.process}', f'{name}\n{text}')
    if self.process == 0:
      given = [self._wait(f'meet/{number}/{p}').split('\n', 1)
               for p in range(self.count)]
      if any(found != name for found, _ in given):
        raise errors.LostError(
            f'the processes do different things: {[n for n, _ in given]}')
      self._set(f'meet/{number}/reply', decide([t for _, t in given]))
      # All are here, so all have read the reply of the previous meeting.
      self._client.key_value_delete(f'{_ROOT}/meet/{number - 1}/')
    return self._wait(f'meet/{number}/reply')

  def count_and_ask(self) -> bool:
    """Counts a step; returns whether all processes must stop after it."""
    with self._steps:
      self._asked += 1
      return self._stop_at is not None and self._asked >= self._stop_at

  def leave(self, error: BaseException) -> None:
    """Ends this process after an exception in its main thread."""
    if isinstance(error, errors.UserError | errors.DivergedError):
      self._leave(error.exit_code, f'process {self.process}: {error}')
    deadline = time.monotonic() + 2 * _POLL
    while time.monotonic() < deadline:  # Has another process said why?
      self._follow()
      time.sleep(.1)
    if isinstance(error, errors.LostError):
      self._leave(error.exit_code, str(error))
    if _BROKEN.search(str(error)):
      self._leave(errors.LostError.exit_code, (
          f'process {self.process} lost another process '
          f'({_first_line(error)}); the same command continues from the last '
          'checkpoint'))
    if isinstance(error, KeyboardInterrupt):
      self._leave(130, f'process {self.process} was interrupted')
    traceback.print_exception(error, file=sys.__stderr__)
    self._leave(1, f'process {self.process}: {type(error).__name__}: '
                f'{_first_line(error)}')

  def close(self) -> None:
    """Stops the thread."""
    self._closed.set()
    self._thread.join()

  def _run(self):
    """Runs in the thread: sends heartbeats and checks the others."""
    number, beat_at = 0, 0.
    while not self._closed.wait(_POLL):
      try:
        now = time.monotonic()
        if now >= beat_at:
          self._set(f'beat/{self.process}', str(number))
          number, beat_at = number + 1, now + self._heartbeat / 10
        self._follow()
        if self.process == 0:
          self._check_beats(now)
        wanted = self.local is not None and self.local.requested
        if self._stop_at is None and (wanted or self._all('stop')):
          self._settle()
      except Exception as error:  # The store is gone, and process 0 with it.
        if not self._closed.is_set():
          self._leave(errors.LostError.exit_code, (
              f'process {self.process} lost process 0 '
              f'({_first_line(error)}); the same command continues from the '
              'last checkpoint'))

  def _follow(self):
    """Ends this process if another has ended early."""
    ends = self._all('end')
    for process, (code, sentence) in ends.items():
      if process != self.process:
        self._leave(code, sentence)

  def _check_beats(self, now):
    for process, beat in self._all('beat').items():
      if beat != self._beats.get(process, (None,))[0]:
        self._beats[process] = beat, now
    for process in range(self.count):
      since = now - self._beats.setdefault(process, (None, now))[1]
      if since > self._heartbeat:
        self._leave(errors.LostError.exit_code, (
            f'process {process} is lost: no sign of it for '
            f'{since:.0f} s; the same command continues from the last '
            'checkpoint'))

  def _settle(self):
    """Finds the step after which all stop: the first that none has passed.

    No process starts another step meanwhile, so none can pass it. The others
    still finish their step, so a process that waits for them in the middle of
    one gets there too.
    """
    with self._steps:
      number = self.local.signal if self.local is not None else None
      self._set(f'stop/{self.process}', json.dumps(
          [self._asked, int(number) if number else 0]))
      while len(found := self._all('stop')) < self.count:
        self._follow()
        if self._closed.wait(.05):
          return
      self._stop_at = max(asked for asked, _ in found.values()) + 1
      numbers = [number for _, (_, number) in sorted(found.items()) if number]
      self.signal = signal.Signals(numbers[0])

  def _leave(self, code, sentence):
    """Tells the others and ends this process."""
    if not self._leaving.acquire(blocking=False):
      time.sleep(2 * _LINGER)  # The other thread is about to exit.
      _exit(code, sentence)
    self._closed.set()
    with contextlib.suppress(Exception):
      self._set(f'end/{self.process}', json.dumps([code, sentence]))
      deadline = time.monotonic() + _LINGER
      while self.process == 0 and time.monotonic() < deadline and (
          len(self._all('end')) < self.count):
        time.sleep(.1)
    _exit(code, sentence)

  def _set(self, key, text):
    self._client.key_value_set(f'{_ROOT}/{key}', text, allow_overwrite=True)

  def _all(self, folder):
    """Returns {process: value} for the keys of a folder."""
    found = self._client.key_value_dir_get(f'{_ROOT}/{folder}/')
    return {int(key.rpartition('/')[2]): json.loads(text)
            for key, text in found}

  def _wait(self, key):
    """Waits for a value that another process sets.

    Waits in short turns, because signal handlers only run between them. The
    thread ends this process if the other one dies.
    """
    while True:
      try:
        return self._client.blocking_key_value_get(f'{_ROOT}/{key}', 1000)
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise


def _first_line(error):
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _exit(code, sentence):
  """Exits without any cleanup that would wait for other processes."""
  print(f'rome_jax: {sentence}', file=sys.__stderr__, flush=True)
  with contextlib.suppress(Exception):
    sys.__stdout__.flush()
  os._exit(code)

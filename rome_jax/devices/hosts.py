"""Several processes of one run: how they start, agree, stop and end.

Every process runs the same program over all devices of the run (JAX's
multi-controller model). They speak through the key-value store of JAX's
coordination service, which lives in process 0. With one process every
function here does the plain thing.

A thread in each process watches the others. It is what keeps a process from
waiting for ever for one that is gone: a lost process, or one that ends with
an error, ends all of them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback

import jax

# JAX has no public name for the client; orbax reaches for it as well.
from jax._src import distributed as _distributed

from rome_jax import errors

_POLL = 1.  # seconds between two looks at what the others say
_LINGER = 5.  # seconds that process 0, which carries the store, outlives
# Waiting for all processes to start may take as many times the heartbeat.
_START = 3
_ROOT = 'rome_jax'
# What a failed collective's exception says; its type varies (ValueError too).
_BROKEN = re.compile(
    'gloo|nccl|collective|connection|socket|coordination|heartbeat'
    '|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED', re.IGNORECASE)

_watch = None  # the `Watch` of this process, where there are several


@contextlib.contextmanager
def joined(options):
  """Makes this process one of several for the body, where options say so.

  Processes but the first are silent. An error in the body is told to the
  others, and this process ends there and then with its exit code, as JAX's
  own way out would wait for the others.

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
    yield
    return
  _watch = Watch(jax.process_index(), jax.process_count(),
                 _distributed.global_state.client, options.heartbeat)
  try:
    with _silent(not is_first()):
      yield
      _meet('end')
  except BaseException as error:
    _watch.leave(error)
  _watch.close()
  _watch = None
  jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return _watch is None or _watch.process == 0


def several() -> bool:
  """Whether the run has more than one process."""
  return _watch is not None


def from_first(function):
  """What `function` returns on process 0, on every process; run only there.

  Args:
    function: () -> a value that JSON can hold.
  """
  if _watch is None:
    return function()
  return json.loads(_meet(
      'from_first', decide=lambda texts: json.dumps(function())))


def wait_for_all(what: str) -> None:
  """Returns once every process has come here.

  Before the first call of a program: collectives (gloo's of the CPU) wait for
  half a minute only, and compiling may take longer on one host than another.
  """
  if _watch is not None:
    _meet(what)


def compare(what: str, text: str, kind=errors.LostError) -> None:
  """Sees that every process has the same.

  Args:
    what: what it is, for the error.
    text: a value, or the digest of one.
    kind: of error.

  Raises:
    kind: a process has another than process 0.
  """
  if _watch is None:
    return

  def decide(texts):
    return ', '.join(str(i) for i, t in enumerate(texts) if t != texts[0])

  others = _meet(what, text, decide)
  if others:
    raise kind(f'process {others} has another {what} than process 0')


def check_shared(path) -> None:
  """Sees that every process reads in `path` what process 0 does.

  Raises:
    UserError: a process does not, so the folder is not shared.
  """
  if _watch is None:
    return
  text = from_first(path.read_text)
  deadline = time.monotonic() + 15  # A network's file system may lag.
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


def agreed(stop):
  """A request to stop that all processes see after the same step.

  Args:
    stop: an `interrupt.Interrupt`.

  Returns:
    `stop` itself, or with several processes an object with its attributes
    `requested`, which all must read equally often, and `signal`.
  """
  if _watch is None:
    return stop
  _watch.local = stop
  return AgreedStop(_watch)


class AgreedStop:
  """What `agreed` returns for one `Watch` of several."""

  def __init__(self, watch):
    self._watch = watch

  @property
  def requested(self) -> bool:
    return self._watch.count_and_ask()

  @property
  def signal(self) -> signal.Signals | None:
    return self._watch.signal


def _initialize(options):
  """JAX's own initialisation, with sentences for what it answers by abort.

  JAX ends the process from C++ where the coordinator does not answer or a
  process is missing; a timer of ours comes first.
  """
  limit = _START * options.heartbeat
  explicit = {}
  if options.coordinator:
    explicit = {
        'coordinator_address': options.coordinator,
        'num_processes': options.processes, 'process_id': options.process}
    if options.process == 0:
      _check_port(options.coordinator)
  # We stop on SIGTERM in our own way; see `agreed`.
  jax.config.update('jax_enable_preemption_service', False)
  timer = threading.Timer(limit, _give_up, (options, limit))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
        **explicit, initialization_timeout=limit + 60,
        # Ours is first; this is for when Python itself hangs.
        heartbeat_timeout_seconds=2 * options.heartbeat)
    jax.devices()  # waits for every process
  except Exception as error:
    raise errors.UserError(_start_error(options, error)) from error
  finally:
    timer.cancel()


def _check_port(address):
  """JAX crashes where the coordinator's port is taken."""
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
  _exit(2, f'after {limit} s not all processes had met at {where}; it must be '
        'reachable from each, and as many as were announced must start')


def _start_error(options, error):
  if not options.coordinator and 'should be defined' in str(error):
    return ('--distributed finds no job of SLURM, Open MPI, Kubernetes or '
            'Cloud TPU here; use --coordinator=HOST:PORT --processes=N '
            '--process=I')
  return f'the processes cannot be joined: {_first_line(error)}'


def _meet(name, text='', decide=lambda texts: ''):
  return _watch.meet(name, text, decide)


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
  """What a process knows of the others, and the thread that finds it out.

  Keys in the store, P being a process:
    beat/P     a count that grows while P lives; only process 0 looks at it
    end/P      [exit code, sentence], once P ends early
    stop/P     [count of steps, signal], once somebody wants to stop
    meet/N/P   what P gives to meeting N; meet/N/reply what was decided
  """

  def __init__(self, process, count, client, heartbeat):
    """Starts the thread.

    Args:
      process: which one this is.
      count: how many there are.
      client: of JAX's coordination service.
      heartbeat: seconds of silence after which a process is lost.
    """
    self.process, self.count = process, count
    self.local = self.signal = None
    self._client, self._heartbeat = client, heartbeat
    self._asked, self._stop_at = 0, None
    self._meetings = 0
    self._steps, self._leaving = threading.Lock(), threading.Lock()
    self._beats = {}  # process: (its last beat, when that came)
    self._closed = threading.Event()
    self._thread = threading.Thread(
        target=self._run, name='hosts', daemon=True)
    self._thread.start()

  def meet(self, name, text, decide):
    """Every process gives a text, process 0 decides, all get its decision.

    Args:
      name: of the meeting, which must be every process's next.
      text: what this one gives.
      decide: texts, by process -> text.

    Raises:
      LostError: another process is at another meeting.
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
      # All have read the reply of the meeting before, or were not here.
      self._client.key_value_delete(f'{_ROOT}/meet/{number - 1}/')
    return self._wait(f'meet/{number}/reply')

  def count_and_ask(self):
    """Counts a step; whether all processes are to stop after it."""
    with self._steps:
      self._asked += 1
      return self._stop_at is not None and self._asked >= self._stop_at

  def leave(self, error):
    """Ends this process for an exception of its main thread."""
    if isinstance(error, errors.UserError | errors.DivergedError):
      self._leave(error.exit_code, f'process {self.process}: {error}')
    deadline = time.monotonic() + 2 * _POLL
    while time.monotonic() < deadline:  # Did another say why?
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

  def close(self):
    """Ends the thread."""
    self._closed.set()
    self._thread.join()

  def _run(self):
    """The thread: says that we live, and looks at the others."""
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
            f'process {process} is lost: nothing heard of it for '
            f'{since:.0f} s; the same command continues from the last '
            'checkpoint'))

  def _settle(self):
    """Finds the step after which all stop: the first that none has passed.

    No process goes on meanwhile, so none can pass it; one that waits in the
    middle of a step for the others gets there as they still end theirs.
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
      time.sleep(2 * _LINGER)  # The other thread is about to end us.
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
    """{process: value} of the keys of a folder."""
    found = self._client.key_value_dir_get(f'{_ROOT}/{folder}/')
    return {int(key.rpartition('/')[2]): json.loads(text)
            for key, text in found}

  def _wait(self, key):
    """A value that another process will set; the thread sees if it does not.

    In short turns: a signal's handler runs between them only.
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
  """Ends the process without the ways out that wait for other processes."""
  print(f'rome_jax: {sentence}', file=sys.__stderr__, flush=True)
  with contextlib.suppress(Exception):
    sys.__stdout__.flush()
  os._exit(code)

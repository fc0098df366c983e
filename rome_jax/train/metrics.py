"""What a run reports while it runs: metrics.jsonl and a progress line.

`metrics.jsonl` is the record; TensorBoard events repeat it. A run that was
killed and resumed leaves the same record as an uninterrupted one, apart from
times: `MetricsWriter.rewind` removes what the resumed run will write again.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from rome_jax import errors, files

FILENAME = 'metrics.jsonl'
EVENTS = 'events'
_LONGEST = 2**30  # bytes: a line for each of millions of steps
_RESERVED = ('phase', 'step', 'time')


def _plain(name, value):
  """Converts any scalar to a JSON number; NaN and infinity to None.

  A float32 becomes the shortest decimal that reads back as the same float32.
  """
  if value is None:
    return None
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(f'metric {name!r} has shape {array.shape}, not one number')
  scalar = array.reshape(())[()]
  if array.dtype.kind in 'biu':
    return int(scalar)
  number = float(str(scalar))
  return number if math.isfinite(number) else None


def _parse(path):
  """Returns [(line, row)] of a metrics file, without a broken last line.

  Raises:
    UserError: unreadable, or broken before its last line.
  """
  data = files.read_bytes(path, _LONGEST, missing=b'')
  lines = data.removesuffix(b'\n').split(b'\n') if data else []
  pairs = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or type(row.get('step', 0)) is not int:
        raise ValueError('it has no whole number of steps')
    except (ValueError, RecursionError) as error:
      if number == len(lines):
        break
      raise errors.UserError(
          f'{path}, line {number}, is not a line of metrics: '
          f'{error}') from error
    pairs.append((line, row))
  return pairs


def read(workdir: str | os.PathLike[str]) -> list[dict]:
  """Returns the rows of a run's metrics.jsonl, or [] if there is none.

  Skips a half-written last line, which a running or killed run may leave.

  Raises:
    UserError: the file is unreadable, or broken before its last line.
  """
  return [row for _, row in _parse(pathlib.Path(workdir) / FILENAME)]


class Writer(Protocol):
  """Receives lines of metrics, to send them to a dashboard, for example."""

  def write(self, phase: str, step: int,
            scalars: Mapping[str, float]) -> None:
    """Receives the scalars of one line; see `MetricsWriter.write`."""


class MetricsWriter:
  """Appends scalars to workdir/metrics.jsonl and to TensorBoard events.

  Args:
    workdir: the run directory.
    resume_step: {phase: step}; each phase is first rewound to its step.
    tensorboard: whether to write workdir/events/<phase> too.
    writers: receive each line too. After a resume they receive the lines since
      the checkpoint a second time.
    clock: returns seconds since 1970; replaced in tests.

  Raises:
    UserError: the folder cannot be written, or the file is damaged.
  """

  def __init__(self, workdir, resume_step=None, *, tensorboard=True,
               writers: Iterable[Writer] = (), clock=time.time):
    self._workdir = pathlib.Path(workdir)
    self._path = self._workdir / FILENAME
    self._tensorboard = tensorboard
    self._writers = tuple(writers)
    self._clock = clock
    self._file = None
    self._events = {}
    self._purge_steps = {}
    self._keep(lambda row: True)
    for phase, step in (resume_step or {}).items():
      self.rewind(phase, step)

  def write(self, phase: str, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends one line, visible to readers at once.

    Args:
      phase: 'search' or 'retrain/<name>'.
      step: number of steps done in this phase.
      scalars: {name: Python, NumPy or JAX scalar}; waits for JAX scalars.
        Writes NaN and infinity as null, to keep the file strict JSON.

    Raises:
      UserError: the disk is full or read-only.
      ValueError: a value is not a scalar, or a name is phase, step or time.
    """
    taken = [name for name in _RESERVED if name in scalars]
    if taken:
      raise ValueError(f'metric name {taken[0]!r} is reserved')
    scalars = {name: _plain(name, value) for name, value in scalars.items()}
    now = self._clock()
    row = {'phase': phase, 'step': int(step), 'time': round(now, 3), **scalars}
    try:
      if self._file is None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = files.open_own(self._path, 'ab')
      self._file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
      self._file.flush()
      if self._tensorboard:
        self._write_events(phase, int(step), scalars, now)
    except OSError as error:
      raise self._user_error(error) from error
    for writer in self._writers:
      writer.write(phase, int(step), scalars)

  def rewind(self, phase: str, step: int) -> None:
    """Removes the lines of `phase` after `step`; keeps other phases.

    Call it with the step of the checkpoint that a phase resumes from, or -1 if
    the phase starts over. TensorBoard hides the same steps.

    Raises:
      UserError: the file cannot be rewritten.
    """
    self._keep(
        lambda row: row.get('phase') != phase or row.get('step', 0) <= step)
    if phase in self._events:
      with contextlib.suppress(OSError):  # A copy of the lines.
        self._events.pop(phase).close()
    self._purge_steps[phase] = step + 1

  def sync(self) -> None:
    """Flushes all lines to disk; call it before saving a checkpoint.

    Raises:
      UserError: the disk is full, or the file is no longer the one at its path:
        somebody deleted the folder, and another run may write there now.
    """
    try:
      if self._file is not None:
        os.fsync(self._file.fileno())
        if not files.is_at(self._file, self._path):
          raise errors.UserError(
              f'{self._path} was deleted or replaced while this run wrote it; '
              'nothing more is written, since another run may use the folder')
    except OSError as error:
      raise self._user_error(error) from error
    for writer in self._events.values():
      with contextlib.suppress(OSError):  # A copy of the lines above.
        writer.flush()

  def close(self) -> None:
    """Closes the files; a later `write` opens them again."""
    self._close_file()
    while self._events:
      with contextlib.suppress(OSError):
        self._events.popitem()[1].close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _close_file(self):
    if self._file is not None:
      file, self._file = self._file, None
      try:
        file.close()
      except OSError as error:
        raise self._user_error(error) from error

  def _user_error(self, error):
    return errors.UserError(
        f'cannot write {error.filename or self._path}: '
        f'{error.strerror or error}')

  def _keep(self, wanted):
    """Atomically rewrites the file with only the lines that are wanted."""
    self._close_file()
    kept = b''.join(
        line + b'\n' for line, row in _parse(self._path) if wanted(row))
    if files.read_bytes(self._path, _LONGEST, missing=kept) != kept:
      files.write_bytes(self._path, kept)

  def _write_events(self, phase, step, scalars, now):
    if phase not in self._events:
      self._events[phase] = _Events(
          self._workdir / EVENTS / phase, self._purge_steps.get(phase), now)
    self._events[phase].write(step, scalars, now)


class _Events:
  """A file of TensorBoard events.

  tensorboardX' own writer hands events to a thread; once that has met a full
  disk, the next ones wait for it forever.
  """

  def __init__(self, folder, purge_step, now):
    # Imported late, as it takes a second that readers need not wait for.
    from tensorboardX import event_file_writer

    folder.mkdir(parents=True, exist_ok=True)
    # File names hold the time in seconds. The count of files keeps two
    # writers in the same second from sharing a file.
    count = len(list(folder.glob('events.*')))
    self._writer = event_file_writer.EventsWriter(
        str(folder / 'events'), f'.{count}')
    if purge_step is not None:  # TensorBoard hides what is later.
      from tensorboardX.proto import event_pb2

      self._writer.write_event(event_pb2.Event(
          wall_time=now, step=purge_step, session_log=event_pb2.SessionLog(
              status=event_pb2.SessionLog.START)))

  def write(self, step, scalars, now):
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    for name, value in scalars.items():
      if value is not None:
        self._writer.write_event(event_pb2.Event(
            wall_time=now, step=step, summary=summary.scalar(name, value)))

  def flush(self):
    self._writer.flush()

  def close(self):
    self._writer.close()


class SharedWriter:
  """A writer for phases that run at the same time."""

  def __init__(self, writer: Any):
    """Takes a `MetricsWriter` or `NoWriter`, which nobody else uses now."""
    self._writer, self._lock = writer, threading.Lock()

  def write(self, phase: str, step: int, scalars: Mapping[str, Any]) -> None:
    """See `MetricsWriter.write`."""
    with self._lock:
      self._writer.write(phase, step, scalars)

  def rewind(self, phase: str, step: int) -> None:
    """See `MetricsWriter.rewind`."""
    with self._lock:
      self._writer.rewind(phase, step)

  def sync(self) -> None:
    """See `MetricsWriter.sync`."""
    with self._lock:
      self._writer.sync()


class NoWriter:
  """A `MetricsWriter` that writes nothing, for all processes but the first."""

  def write(self, phase: str, step: int, scalars: Mapping[str, Any]) -> None:
    """Ignores the arguments of `MetricsWriter.write`."""

  def rewind(self, phase: str, step: int) -> None:
    """Does nothing."""

  def sync(self) -> None:
    """Does nothing, as there is nothing to flush."""

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    pass


def clock_text(seconds: float) -> str:
  """Formats a duration.

  >>> clock_text(75), clock_text(3675)
  ('01:15', '1:01:15')
  """
  minutes, seconds = divmod(int(max(seconds, 0)), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:' * bool(hours) + f'{minutes:02d}:{seconds:02d}'


def _in_notebook():
  """Whether this process is the kernel of a notebook."""
  module = sys.modules.get('IPython')
  shell = module and module.get_ipython()
  return shell is not None and 'IPKernelApp' in shell.config


class Progress:
  """tqdm's bar on a terminal and in a notebook; else a line every 10 s.

  Rates and the time left are averages since the first update, so they exclude
  the compilation before it.

  Args:
    total: units of the whole job.
    unit: what is counted.
    label: first word of the line.
    images_per_unit: images in one unit, for images/s; 0 shows units/s.
    initial: units that an earlier start did.
    stream: where to write; None means sys.stderr.
    interval: seconds between plain lines.
    clock: returns seconds; replaced in tests.
  """

  def __init__(self, total, *, unit='step', label='', images_per_unit=0,
               initial=0, stream=None, interval=10.0, clock=time.monotonic):
    self._total = max(int(total), 1)
    self._unit, self._label = unit, label
    self._images_per_unit = images_per_unit
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._has_bar = self._stream.isatty() or (
        stream is None and _in_notebook())
    self._bar = None  # of tqdm, from the first update on
    self._interval = 0.1 if self._has_bar else interval
    self._first = None  # (units, time) of the first update
    self._last = (int(initial), {})
    self._drawn = None  # (units, time) of the last line drawn

  def update(self, done: int, **scalars: Any) -> None:
    """Reports that `done` units are done; reads scalars only to show them."""
    now = self._clock()
    self._first = self._first or (done, now)
    self._last = (int(done), scalars)
    if (self._drawn is None or done >= self._total
        or now - self._drawn[1] >= self._interval):
      self._draw(now)

  def retarget(self, total: int) -> None:
    """Sets how many units the whole job has."""
    self._total = max(int(total), 1)

  def note(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._bar is None:
      print(text, file=self._stream, flush=True)
    else:
      self._bar.write(text, file=self._stream)

  def close(self) -> None:
    """Shows the last state if it was not shown yet, and ends the line."""
    if self._drawn is not None and self._drawn[0] != self._last[0]:
      self._draw(self._clock())
    self._drawn = None
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _draw(self, now):
    repeated = self._drawn is not None and self._drawn[0] == self._last[0]
    if self._has_bar:
      self._draw_bar(now)
    elif not repeated:  # A log does not need the same line twice.
      print(self._line(now), file=self._stream, flush=True)
    self._drawn = (self._last[0], now)

  def _draw_bar(self, now):
    done, scalars = self._last
    if self._bar is None:
      with warnings.catch_warnings():  # It asks notebooks for ipywidgets.
        warnings.simplefilter('ignore')
        from tqdm.auto import tqdm
      self._bar = tqdm(initial=done, total=self._total, desc=self._label,
                       unit=self._unit, file=self._stream,
                       dynamic_ncols=True)
    self._bar.n = done
    if self._bar.total != self._total:
      self._bar.total = self._total
      if (box := getattr(self._bar, 'container', None)) is not None:
        box.children[1].max = self._total  # tqdm sets it in `reset` only.
    rate = self._rate(now) if self._images_per_unit else 0
    self._bar.set_postfix_str(', '.join((
        *([f'{rate * self._images_per_unit:,.0f} images/s'] if rate else []),
        *_texts(scalars))), refresh=True)

  def _rate(self, now):
    """Units per second, 0 at the first update."""
    units, seconds = self._last[0] - self._first[0], now - self._first[1]
    return units / seconds if units > 0 and seconds > 0 else 0

  def _line(self, now):
    done, scalars = self._last
    parts = [self._label] if self._label else []
    parts.append(f'{min(done / self._total, 1.0):4.0%}')
    parts.append(f'{self._unit} {done}/{self._total}')
    if rate := self._rate(now):
      if self._images_per_unit:
        parts.append(f'{rate * self._images_per_unit:,.0f} images/s')
      else:
        parts.append(f'{rate:.3g} {self._unit}/s')
      parts.append(f'{clock_text((self._total - done) / rate)} left')
    return '  '.join([*parts, *_texts(scalars)])


def _texts(scalars):
  return [f'{name} {float(value):.4g}' for name, value in scalars.items()]

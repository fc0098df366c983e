"""What a run tells its user while it runs: metrics.jsonl and a progress line.

`metrics.jsonl` is the record; TensorBoard events repeat it for those who look
there. A run that is killed and resumed leaves the same record as one that was
not, times apart: `MetricsWriter.rewind` takes back what the resumed run is
about to write again.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from rome_jax import errors, files

FILENAME = 'metrics.jsonl'
EVENTS = 'events'
_RESERVED = ('phase', 'step', 'time')


def _plain(name, value):
  """A scalar of any kind as a JSON number; NaN and infinity as None.

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
  """Returns [(line, row)] of a metrics file; a broken last line is left out.

  Raises:
    UserError: unreadable, or broken before its last line.
  """
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise errors.UserError(f'cannot read {path}: {error.strerror}') from error
  lines = data.removesuffix(b'\n').split(b'\n') if data else []
  pairs = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict):
        raise ValueError('no JSON object')
    except ValueError as error:
      if number == len(lines):
        break
      raise errors.UserError(
          f'{path}, line {number}, is not a JSON object: {error}') from error
    pairs.append((line, row))
  return pairs


def read(workdir):
  """Returns the rows of a run's metrics.jsonl, [] where there is none.

  A half-written last line (a run in progress, or killed) is left out.

  Raises:
    UserError: unreadable, or broken before its last line.
  """
  return [row for _, row in _parse(pathlib.Path(workdir) / FILENAME)]


class Writer(Protocol):
  """What takes lines of metrics: a dashboard's adapter, say."""

  def write(self, phase: str, step: int,
            scalars: Mapping[str, float]) -> None:
    """Takes the scalars of one line; see `MetricsWriter.write`."""


class MetricsWriter:
  """Appends scalars to workdir/metrics.jsonl and to TensorBoard events.

  Args:
    workdir: the run directory.
    resume_step: {phase: step}: `rewind` each of them first.
    tensorboard: whether to write workdir/events/<phase> too.
    writers: get each line too; after a resumed run the lines since its
      checkpoint come again.
    clock: seconds since 1970, for tests.

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

  def write(self, phase, step, scalars):
    """Appends one line, which a reader sees at once.

    Args:
      phase: 'search' or 'retrain/<name>'.
      step: steps done in this phase.
      scalars: {name: Python, NumPy or JAX scalar}; reading a JAX scalar waits
        for it. NaN and infinity are written as null, so that the file is
        strict JSON.

    Raises:
      UserError: the disk is full or read-only.
      ValueError: a value is no scalar, or a name is phase, step or time.
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
        self._file = open(self._path, 'ab')
      self._file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
      self._file.flush()
      if self._tensorboard:
        self._write_events(phase, int(step), scalars, now)
    except OSError as error:
      raise self._user_error(error) from error
    for writer in self._writers:
      writer.write(phase, int(step), scalars)

  def rewind(self, phase, step):
    """Forgets the lines of `phase` after `step`; the other phases stay.

    Call it with the step of the checkpoint that a phase resumes from, -1 if it
    starts over. TensorBoard is told to hide the same steps.

    Raises:
      UserError: the file cannot be rewritten.
    """
    self._keep(
        lambda row: row.get('phase') != phase or row.get('step', 0) <= step)
    if phase in self._events:
      self._events.pop(phase).close()
    self._purge_steps[phase] = step + 1

  def sync(self):
    """Puts all lines on the disk itself; for before a checkpoint is saved."""
    try:
      if self._file is not None:
        os.fsync(self._file.fileno())
    except OSError as error:
      raise self._user_error(error) from error
    for writer in self._events.values():
      with contextlib.suppress(OSError):  # A copy of the lines above.
        writer.flush()

  def close(self):
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
    """Rewrites the file, atomically, to the whole lines that are wanted."""
    self._close_file()
    kept = b''.join(
        line + b'\n' for line, row in _parse(self._path) if wanted(row))
    if self._path.exists() and self._path.read_bytes() != kept:
      files.write_bytes(self._path, kept)

  def _write_events(self, phase, step, scalars, now):
    if phase not in self._events:
      # Imported late: it takes a second that a reader of metrics need not wait.
      import tensorboardX

      # A file's name holds the time in seconds, so two writers in one second
      # would write the same file; the count of files tells them apart.
      folder = self._workdir / EVENTS / phase
      count = len(list(folder.glob('events.*'))) if folder.exists() else 0
      self._events[phase] = tensorboardX.SummaryWriter(
          str(folder), purge_step=self._purge_steps.get(phase), flush_secs=10,
          filename_suffix=f'.{count}')
    for name, value in scalars.items():
      if value is not None:
        self._events[phase].add_scalar(name, value, step, walltime=now)


class NoWriter:
  """A `MetricsWriter` that writes nothing, for all processes but one."""

  def write(self, phase, step, scalars):
    """Takes what `MetricsWriter.write` takes."""

  def rewind(self, phase, step):
    """Forgets nothing, as nothing is there."""

  def sync(self):
    """Has nothing to put on a disk."""

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    pass


def clock_text(seconds):
  """75 -> '01:15', 3675 -> '1:01:15'."""
  minutes, seconds = divmod(int(max(seconds, 0)), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:' * bool(hours) + f'{minutes:02d}:{seconds:02d}'


class Progress:
  """A one-line bar on a terminal; elsewhere a plain line now and then.

  Rates and the time left are averages since the first update, which leaves the
  compilation in front of it out.

  Args:
    total: units of the whole job.
    unit: what is counted.
    label: the first word of the line.
    images_per_unit: images in one unit, for images/s; 0 shows units/s.
    initial: units that an earlier run did.
    stream: default sys.stderr.
    interval: seconds between plain lines.
    clock: seconds, for tests.
  """

  def __init__(self, total, *, unit='step', label='', images_per_unit=0,
               initial=0, stream=None, interval=10.0, clock=time.monotonic):
    self._total = max(int(total), 1)
    self._unit, self._label = unit, label
    self._images_per_unit = images_per_unit
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._terminal = self._stream.isatty()
    self._interval = 0.1 if self._terminal else interval
    self._first = None  # (units, time) of the first update
    self._last = (int(initial), {})
    self._drawn = None  # (units, time) of the last line drawn

  def update(self, done, **scalars):
    """Says that `done` units are done; scalars are read only when shown."""
    now = self._clock()
    self._first = self._first or (done, now)
    self._last = (int(done), scalars)
    if (self._drawn is None or done >= self._total
        or now - self._drawn[1] >= self._interval):
      self._draw(now)

  def note(self, text):
    """Prints a line above the bar."""
    self._stream.write('\r\x1b[K' * self._terminal + text + '\n')
    if self._terminal and self._drawn is not None:
      self._draw(self._clock())
    self._stream.flush()

  def close(self):
    """Shows the last state if it was not shown, and ends the bar's line."""
    if self._drawn is not None:
      if self._drawn[0] != self._last[0]:
        self._draw(self._clock())
      self._stream.write('\n' * self._terminal)
      self._stream.flush()
      self._drawn = None

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _draw(self, now):
    repeated = self._drawn is not None and self._drawn[0] == self._last[0]
    if repeated and not self._terminal:
      return  # the same line twice tells a log nothing
    line = self._line(now)
    if self._terminal:
      columns = shutil.get_terminal_size().columns
      self._stream.write('\r' + line[:columns - 1] + '\x1b[K')
    else:
      self._stream.write(line + '\n')
    self._stream.flush()
    self._drawn = (self._last[0], now)

  def _line(self, now):
    done, scalars = self._last
    fraction = min(done / self._total, 1.0)
    parts = [self._label] if self._label else []
    parts.append(f'{fraction:4.0%}')
    if self._terminal:
      filled = int(20 * fraction)
      parts.append('[' + '#' * filled + '.' * (20 - filled) + ']')
    parts.append(f'{self._unit} {done}/{self._total}')
    units, seconds = done - self._first[0], now - self._first[1]
    if units > 0 and seconds > 0:
      rate = units / seconds
      if self._images_per_unit:
        parts.append(f'{rate * self._images_per_unit:,.0f} images/s')
      else:
        parts.append(f'{rate:.3g} {self._unit}/s')
      parts.append(f'{clock_text((self._total - done) / rate)} left')
    for name, value in scalars.items():
      parts.append(f'{name} {float(value):.4g}')
    return '  '.join(parts)

"""Atomic writes, and reads that end whatever a folder holds.

Readers see the old file or the new one, never part of it.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from rome_jax import errors

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None  # type: ignore[assignment]

_UMASK = threading.Lock()  # It can only be read by changing it.
_TEMPORARY = '.tmp'
_LONGEST = 2**28  # bytes of a file that is read whole
_UNENDING = 'it is a pipe or a device, no file'


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Replaces the file at `path` with `data` in one step.

  Removes what killed writers of the same file left behind.

  Raises:
    UserError: the folder cannot be created or written to (read-only, disk
      full).
  """
  path = pathlib.Path(path)
  temporary = None
  with contextlib.ExitStack() as held:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      _remove_leftovers(path)
      handle, temporary = _temporary(path, held)
      with os.fdopen(handle, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      # mkstemp creates private files; use the mode that open() would.
      with _UMASK:
        umask = os.umask(0)
        os.umask(umask)
      os.chmod(temporary, 0o666 & ~umask)
      os.replace(temporary, path)
      sync_folder(path.parent)
    except OSError as error:
      if temporary is not None and os.path.exists(temporary):
        os.unlink(temporary)
      raise errors.UserError(
          f'cannot write {path}: {error.strerror or error}') from error


def _temporary(path, held):
  """Creates a file next to `path`; returns its handle and name.

  Its lock ends with `held` or the process. It tells other writers that this
  one is alive.
  """
  while True:
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f'.{path.name}.', suffix=_TEMPORARY)
    if fcntl is None:
      return handle, name
    lock = os.dup(handle)  # As `handle` is closed before the file has its name.
    held.callback(os.close, lock)
    with contextlib.suppress(OSError):  # Some file systems have no locks.
      fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(name):
      return handle, name
    os.close(handle)  # Another writer took it, not yet locked, for a leftover.


def _remove_leftovers(path):
  """Removes the temporary files of `path` whose writers were killed."""
  if fcntl is None:
    return
  name = re.compile(
      re.escape(f'.{path.name}.') + '[a-z0-9_]{8}' + re.escape(_TEMPORARY))
  with contextlib.suppress(OSError):  # It may be forbidden to list the folder.
    for found in filter(name.fullmatch, os.listdir(path.parent)):
      with contextlib.suppress(OSError, errors.UserError):
        with open_own(path.parent / found, 'r+b') as file:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
          os.unlink(path.parent / found)


def sync_folder(folder: str | os.PathLike[str]) -> None:
  """Flushes the names in a folder to disk, where the system can do that."""
  with contextlib.suppress(OSError):
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Like `write_bytes`, for text, encoded as UTF-8.

  Bytes of a command line or file name that Python could not decode, as in an
  ASCII locale, are written as they were.

  Raises:
    UserError: as `write_bytes`, or the text has half of a letter.
  """
  try:
    data = text.encode(errors='surrogateescape')
  except UnicodeEncodeError as error:
    raise errors.UserError(
        f'cannot write {path}: {text[error.start:error.end]!r} is half of a '
        'letter') from error
  write_bytes(path, data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Like `write_bytes`, for a JSON value.

  Raises:
    ValueError: the value holds NaN or infinity.
  """
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def open_to_read(path: str | os.PathLike[str]) -> IO[bytes]:
  """Opens a file, or a link to one, but nothing whose reading may never end.

  Raises:
    OSError: it cannot be opened, or is a pipe or a device.
  """
  return _open_file(path, 'rb', 0)


def read_bytes(path: str | os.PathLike[str], most: int = _LONGEST,
               missing: bytes | None = None) -> bytes:
  """Returns the content of a file.

  Args:
    path: of the file.
    most: bytes that it may have.
    missing: what to return if there is no such file; None: an error.

  Raises:
    UserError: the file is missing, unreadable, too long, a pipe or a device.
  """
  try:
    with open_to_read(path) as file:
      if os.fstat(file.fileno()).st_size <= most:
        data = file.read(most + 1)
        if len(data) <= most:
          return data
  except OSError as error:
    if isinstance(error, FileNotFoundError) and missing is not None:
      return missing
    raise errors.UserError(
        f'cannot read {path}: {error.strerror or error}') from error
  except ValueError as error:  # A zero byte, half of a letter.
    raise errors.UserError(f'{path} is no path: {error}') from error
  raise errors.UserError(
      f'cannot read {path}: it has more than {most:,} bytes')


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns the JSON value in a file.

  Raises:
    UserError: as `read_bytes`, or the file is not JSON.
  """
  data = read_bytes(path)
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
        f'{path} is not valid JSON: {_fault(error)}') from error


def open_own(path: str | os.PathLike[str], mode: str) -> IO[Any]:
  """Opens a file of a run to write to it, but never one that a link names.

  A folder that comes from somebody else must not lead to files elsewhere, nor
  to a pipe that nobody reads.

  Raises:
    UserError: it cannot be opened, or is a link, a pipe or a device.
  """
  try:
    return _open_file(path, mode, getattr(os, 'O_NOFOLLOW', 0))
  except OSError as error:
    why = ('it is a link' if error.errno == errno.ELOOP else
           _UNENDING if error.errno == errno.ENXIO else
           error.strerror or error)
    raise errors.UserError(f'cannot write {path}: {why}') from error


def _open_file(path, mode, more_flags):

  def opener(name, flags):
    # To open a pipe waits for its other end.
    return os.open(
        name, flags | more_flags | getattr(os, 'O_NONBLOCK', 0), 0o666)

  file = open(path, mode, opener=opener)
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise OSError(errno.EINVAL, _UNENDING)
  return file


@contextlib.contextmanager
def only_one(folder: str | os.PathLike[str],
             patience: float = 0.) -> Iterator[None]:
  """Holds a folder's lock for the body, so that no second process writes there.

  The lock ends with the process, however that ends.

  Args:
    folder: made if it does not exist.
    patience: seconds to wait for a process that has it.

  Raises:
    UserError: another process has it, or the folder cannot be written.
  """
  if fcntl is None:
    yield
    return
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
        f'cannot use {folder}: {error.strerror or error}') from error
  while True:
    with open_own(folder / '.lock', 'w') as lock:
      _lock(lock, folder, patience)
      # The folder may have been deleted, and made anew, while this waited.
      if is_at(lock, folder / '.lock'):
        yield
        return


def is_at(file: IO[Any], path: str | os.PathLike[str]) -> bool:
  """Whether an open file is still the one at its path."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
  except FileNotFoundError:
    return False


def _lock(lock, folder, patience):
  deadline, told = time.monotonic() + patience, False
  while True:
    try:
      return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if not isinstance(error, BlockingIOError):
        raise errors.UserError(
            f'cannot lock {folder}: {error.strerror or error}') from error
      if time.monotonic() >= deadline:
        raise errors.UserError(
            f'another process is running in {folder}; wait for it or use '
            'another --workdir') from None
    if not told:
      print(f'waiting for another process in {folder}', file=sys.stderr)
      told = True
    time.sleep(.2)


@contextlib.contextmanager
def as_written(what: Any) -> Iterator[None]:
  """For a body that takes a run's files to hold what runs write there.

  Args:
    what: the file or folder, for the message.

  Raises:
    UserError: the body stumbled over a value that no run writes.

  >>> with as_written('result.json'):
  ...   {}['seed']
  Traceback (most recent call last):
  rome_jax.errors.UserError: result.json is not as rome_jax wrote it \
(KeyError: 'seed'); restore it
  """
  try:
    yield
  except errors.UserError:
    raise
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
          StopIteration) as error:
    raise errors.UserError(
        f'{what} is not as rome_jax wrote it ({type(error).__name__}: '
        f'{error}); restore it') from error


def _fault(error):
  """What is wrong with a JSON text, in words that need no parser."""
  if isinstance(error, RecursionError):
    return 'it is nested too deeply'
  if isinstance(error, UnicodeDecodeError):
    return f'byte {error.start + 1} is not UTF-8 text'
  if not isinstance(error, json.JSONDecodeError):
    return 'it holds a number that is too long'
  rest = error.doc[error.pos:]
  if not error.doc.strip():
    return 'the file is empty'
  place = f'line {error.lineno}, column {error.colno}'
  if error.msg.startswith('Unterminated'):
    return f'the text that begins at {place}, has no end'
  if not rest.strip():
    return 'it ends too early; was it cut?'
  if error.msg == 'Extra data':
    return f'more text follows the value, from {place}'
  return f'{rest.splitlines()[0][:20]!r} is out of place at {place}'

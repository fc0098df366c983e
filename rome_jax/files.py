"""Atomic writes: readers see the old file or the new one, never part of it."""

import json
import os
import pathlib
import tempfile
import threading
from typing import Any

from rome_jax import errors

_UMASK = threading.Lock()  # It can only be read by changing it.


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Replaces the file at `path` with `data` in one step.

  Raises:
    UserError: the folder cannot be created or written to (read-only, disk
      full).
  """
  path = pathlib.Path(path)
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f'.{path.name}.')
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
  except OSError as error:
    if temporary is not None and os.path.exists(temporary):
      os.unlink(temporary)
    raise errors.UserError(
        f'cannot write {path}: {error.strerror or error}') from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Like `write_bytes`, for text, encoded as UTF-8.

  Bytes of a command line or file name that Python could not decode, as in an
  ASCII locale, are written as they were.
  """
  write_bytes(path, text.encode(errors='surrogateescape'))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Like `write_bytes`, for a JSON value.

  Raises:
    ValueError: the value holds NaN or infinity.
  """
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns the JSON value in a file.

  Raises:
    UserError: the file is missing, unreadable or not JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise errors.UserError(
        f'cannot read {path}: {error.strerror or error}') from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
        f'{path} is not valid JSON: {_fault(error)}') from error


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

"""Atomic file writing: a reader sees the old file or the new one, no half."""

import json
import os
import pathlib
import tempfile

from rome_jax import errors


def write_bytes(path, data):
  """Replaces the file at `path` by `data` (bytes) in one step.

  Raises:
    UserError: the folder cannot be made or written (read-only, disk full).
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
    # mkstemp makes files private; give them the mode that open() would.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except OSError as error:
    if temporary is not None and os.path.exists(temporary):
      os.unlink(temporary)
    raise errors.UserError(
        f'cannot write {path}: {error.strerror or error}') from error


def write_text(path, text):
  """Like `write_bytes`, for a str (UTF-8)."""
  write_bytes(path, text.encode())


def write_json(path, value):
  """Like `write_bytes`, for a JSON value; NaN and infinity are refused."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path):
  """Returns the JSON value of a file.

  Raises:
    UserError: the file is missing, unreadable or no JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise errors.UserError(
        f'cannot read {path}: {error.strerror or error}') from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is not valid JSON: {error}') from error

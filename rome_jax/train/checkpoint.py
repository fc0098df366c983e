"""Checkpoints that survive a kill at any moment and say when one is damaged.

A checkpoint is a folder `<directory>/<step, 8 digits>`. It holds the arrays (an
Orbax checkpoint in `state`) and `manifest.json`, with the SHA-256 of every
file and the name, shape and dtype of every leaf. It is written as
`<step>.partial` and renamed when complete, so a folder without that suffix was
complete once. The manifest reveals any later damage, down to a flipped bit.
While a checkpoint is replaced, the former one is `<step>.old`.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rome_jax import errors, files
from rome_jax.devices import mesh as mesh_lib

_MANIFEST = 'manifest.json'
_STATE = 'state'
_PARTIAL = '.partial'
_OLD = '.old'
_DIMENSIONS = 32  # Of an array. NumPy has no more, before version 2.
# Bytes of an array per byte on disk, at most: zstd writes zeros in 1 / 2**15.
_DENSEST = 2**16
_logger = logging.getLogger(__name__)


class _DamagedError(Exception):
  """A checkpoint that cannot be used; the message says why."""


class Checkpoints:
  """The newest `keep` checkpoints of one run, in one folder.

  A thread saves one checkpoint at a time; the next `save`, `wait` or `close`
  raises its errors. Also a context manager that closes.

  Attributes:
    damaged: (step, reason) of each checkpoint that `restore` skipped.
  """

  def __init__(self, directory, keep=2):
    """Reads and writes nothing yet.

    Args:
      directory: the folder of the checkpoints; the first save creates it.
      keep: how many checkpoints to keep, at least 1. With 1 there is no other
        to fall back to.
    """
    if keep < 1:
      raise errors.UserError(f'keep_checkpoints={keep} must be at least 1')
    self.directory = pathlib.Path(directory).absolute()
    self.keep = keep
    self.damaged = ()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._saving = None

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, oldest first.

    Damaged ones are included.
    """
    try:
      names = os.listdir(self.directory)
    except FileNotFoundError:
      return []
    except OSError as error:
      raise errors.UserError(
          f'cannot read {self.directory}: {error.strerror}') from error
    found = (re.fullmatch(rf'([0-9]{{8,}})({re.escape(_OLD)})?', name)
             for name in names)
    return sorted({int(match[1]) for match in found if match})

  def save(self, step: int, state: Any) -> None:
    """Starts a save; returns once `state` is copied to the host.

    The caller may then donate or change the arrays. Waits for the previous
    save, so at most one copy of a state is held. Replaces a checkpoint of the
    same step.

    Args:
      step: nonnegative.
      state: pytree of arrays and Python or NumPy numbers.

    Raises:
      UserError: the previous save could not be written.
      TypeError: a leaf is a typed PRNG key (save its key data instead).
    """
    self.wait()
    arrays = _to_host(state)
    self._saving = self._thread.submit(self._write, step, arrays)

  def wait(self) -> None:
    """Waits until the current save is done.

    Raises:
      UserError: the save failed (disk full, folder read-only).
    """
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def close(self) -> None:
    """Waits for the current save, then stops the thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()

  def restore(self, target: Any) -> tuple[int, Any] | None:
    """Reads the newest usable checkpoint.

    Skips damaged ones with a warning in the log and lists them in `damaged`;
    the next successful save deletes them.

    Args:
      target: a pytree with the saved structure; its values are not used. A
        `jax.Array` or `jax.ShapeDtypeStruct` leaf is restored with its
        sharding (default device if it has none), a NumPy array as a NumPy
        array and a number as a number.

    Returns:
      (step, state), or None if nothing was ever saved.

    Raises:
      UserError: every checkpoint is damaged, or the newest usable one holds
        a different structure, shape or dtype.
    """
    self.wait()
    self.damaged = ()
    for step in reversed(self.steps()):
      try:
        return step, _read(self._path(step), target)
      except _DamagedError as error:
        self.damaged += ((step, str(error)),)
        _logger.warning(
            'checkpoint %s is damaged (%s); trying the one before it',
            self._path(step), error)
    if self.damaged:
      raise errors.UserError(
          f'every checkpoint in {self.directory} is damaged '
          f'({self.damaged[0][1]}); put a backup there or delete that folder '
          'to start from the beginning')
    return None

  def read(self, step: int, target: Any) -> Any:
    """Reads one checkpoint, in the form of `restore`'s target.

    Raises:
      UserError: it is missing, damaged, or of a different structure.
    """
    try:
      return _read(self._path(step), target)
    except _DamagedError as error:
      raise errors.UserError(
          f'cannot use checkpoint {self._path(step)}: {error}') from error

  def _paths(self, step):
    """Where a checkpoint is, and was before another replaced it."""
    path = self.directory / f'{step:08d}'
    return path, path.with_name(path.name + _OLD)

  def _path(self, step):
    path, old = self._paths(step)
    return old if old.exists() and not path.exists() else path

  def _write(self, step, arrays):
    path, old = self._paths(step)
    partial = path.with_name(path.name + _PARTIAL)
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      for left_over in self.directory.glob('*' + _PARTIAL):
        shutil.rmtree(left_over)
      _write_folder(partial, step, arrays)
      _replace_folder(partial, path, old)
      self._prune()
    # Orbax and TensorStore report a full disk as ValueError, OSError or others.
    # In any case the run can no longer be saved.
    except Exception as error:
      shutil.rmtree(partial, ignore_errors=True)
      raise errors.UserError(
          f'cannot write checkpoint {path}: {_reason(error)}') from error

  def _prune(self):
    refused = {step for step, _ in self.damaged}
    kept = [step for step in self.steps() if step not in refused][-self.keep:]
    for step in self.steps():
      path, old = self._paths(step)
      if path.exists() and step not in kept:
        shutil.rmtree(path)
      # Without `path`, it is the checkpoint.
      if old.exists() and (path.exists() or step not in kept):
        shutil.rmtree(old)


def _named_leaves(tree):
  """Returns [(name, leaf)] in pytree order; 'params.conv.kernel' is a name."""
  leaves = [
      (jax.tree_util.keystr(path, simple=True, separator='.'), leaf)
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
  names = [name for name, _ in leaves]
  if len(set(names)) < len(names):
    raise ValueError(f'two leaves of the state share a name: {names}')
  return leaves


def digest(state: Any) -> str:
  """Returns the SHA-256 of the names and values of a state's leaves.

  >>> digest({'a': 1}) == digest({'a': np.int64(1)})
  True
  """
  found = hashlib.sha256()
  for name, array in _to_host(state).items():
    found.update(f'{name} {array.dtype} {array.shape}'.encode())
    found.update(array.tobytes())
  return found.hexdigest()


def _to_host(state):
  """Returns {name: NumPy array that shares no memory with `state`}."""
  leaves = _named_leaves(state)
  for name, leaf in leaves:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key):
      raise TypeError(f'{name} is a PRNG key; save jax.random.key_data of it')
  # device_get starts all transfers before it waits for any. On CPU it may
  # return a view of the device's buffer, hence the copy.
  return {name: np.array(leaf) for name, leaf in jax.device_get(leaves)}


@contextlib.contextmanager
def _checkpointer():
  """Orbax without its log, which prints a traceback per failed thread."""
  def not_orbax(record):
    return 'orbax' not in pathlib.Path(record.pathname).parts
  absl_logger = logging.getLogger('absl')
  absl_logger.addFilter(not_orbax)
  # With several processes, each reads on its own and only one writes.
  here = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
      primary_host=here, active_processes={here},
      barrier_sync_key_prefix=f'rome_jax_{here}')
  try:
    with ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        multiprocessing_options=alone) as checkpointer:
      yield checkpointer
  finally:
    absl_logger.removeFilter(not_orbax)


def _write_folder(folder, step, arrays):
  # Orbax refuses empty arrays; only the manifest describes them.
  with _checkpointer() as checkpointer:
    checkpointer.save(folder / _STATE, args=ocp.args.StandardSave(
        {name: array for name, array in arrays.items() if array.size}))
  body = {
      'step': step,
      'leaves': [[name, list(array.shape), array.dtype.name]
                 for name, array in arrays.items()],
      'files': {str(path.relative_to(folder)): _digest(path, sync=True)
                for path in sorted(folder.rglob('*')) if path.is_file()}}
  files.write_json(
      folder / _MANIFEST, {'sha256': _body_digest(body), 'body': body})


def _replace_folder(source, target, old):
  """Renames `source` to `target`, which may exist.

  A kill at any moment leaves `target` or `old` whole; `steps` finds both.
  """
  if target.exists():
    if old.exists():
      shutil.rmtree(old)  # Of a process that was killed.
    os.rename(target, old)
  os.rename(source, target)
  files.sync_folder(target.parent)
  if old.exists():
    shutil.rmtree(old)


def _read(folder, target):
  """Reads the state in a checkpoint folder, in the form of `target`.

  Raises:
    _DamagedError: a file is missing or changed.
    UserError: the stored state has another structure, shape or dtype.
  """
  leaves = _named_leaves(target)
  _check_leaves(folder, _verified_manifest(folder)['leaves'], leaves)
  # Ask Orbax for host arrays; devices are handled here.
  arrays = {name: np.empty(np.shape(leaf), _dtype(leaf))
            for name, leaf in leaves}
  wanted = {name: array for name, array in arrays.items() if array.size}
  try:
    with _checkpointer() as checkpointer:
      _check_arrays(checkpointer.metadata(folder / _STATE), wanted)
      arrays |= checkpointer.restore(
          folder / _STATE, args=ocp.args.StandardRestore(wanted))
  except (_DamagedError, MemoryError):
    raise
  except Exception as error:  # See `_write`.
    raise _DamagedError(_reason(error)) from error
  restored = [_like(leaf, arrays[name]) for name, leaf in leaves]
  return jax.tree.unflatten(jax.tree.structure(target), restored)


def _check_arrays(metadata, wanted):
  """Checks what Orbax has, as it returns arrays of any shape and dtype."""
  found = {name: (tuple(array.shape), np.dtype(array.dtype))
           for name, array in metadata.item_metadata.tree.items()}
  for name, array in wanted.items():
    if found.get(name) != (array.shape, array.dtype):
      raise _DamagedError(f'{_STATE} holds another {name} than {_MANIFEST}')


def _verified_manifest(folder):
  """Returns the body of a manifest, after a check of its form and the files.

  Its digest proves only that it is whole, not that a run wrote it: the folder
  may come from somebody else.

  Raises:
    _DamagedError: a file is missing or changed, or the form is another.
  """
  try:
    manifest = files.read_json(folder / _MANIFEST)
    body = manifest['body']
    if manifest['sha256'] != _body_digest(body):
      raise _DamagedError(f'{_MANIFEST} was changed')
    step, leaves, listed = body['step'], body['leaves'], body['files']
  except (errors.UserError, LookupError, TypeError, RecursionError) as error:
    raise _DamagedError(f'{_MANIFEST} is missing or unreadable') from error
  if step != int(folder.name.removesuffix(_OLD)):
    raise _DamagedError(f'it is that of step {step}')
  if not (isinstance(leaves, list) and all(map(_is_leaf, leaves))):
    raise _DamagedError(f'the leaves in {_MANIFEST} are not [name, shape, '
                        'dtype]')
  if len({name for name, _, _ in leaves}) < len(leaves):
    raise _DamagedError(f'two leaves in {_MANIFEST} share a name')
  if not (isinstance(listed, dict) and all(map(_is_inside, listed))):
    raise _DamagedError(f'the files in {_MANIFEST} are not inside its folder')
  _check_files(folder, listed)
  _check_size(folder, leaves, listed)
  return body


def _is_leaf(value):
  if not (isinstance(value, list) and len(value) == 3):
    return False
  name, shape, dtype = value
  return (
      isinstance(name, str) and isinstance(shape, list)
      and len(shape) <= _DIMENSIONS
      and all(type(length) is int and length >= 0 for length in shape)
      and isinstance(dtype, str) and _is_number(dtype))


def _is_number(dtype):
  """Whether a text is the name of a type of numbers.

  >>> [_is_number(name) for name in ('bool', 'float8_e4m3fn', 'object', 'no')]
  [True, True, False, False]
  """
  if not re.fullmatch('[a-z0-9_]+', dtype):  # NumPy would read '(9,)f4,i8'.
    return False
  try:
    found = np.dtype(dtype)
  except TypeError:
    return False
  return found.name == dtype and (
      dtype == 'bool' or jax.dtypes.issubdtype(found, np.number))


def _is_inside(name):
  path = pathlib.PurePath(name)
  return not path.anchor and '..' not in path.parts and '\0' not in name


def _check_files(folder, listed):
  for path in folder.rglob('*'):  # Orbax may open a file that is not listed.
    if not path.is_dir() and not path.is_file():
      raise _DamagedError(f'{path.relative_to(folder)} is no file')
  for name, digest in listed.items():
    try:
      found = _digest(folder / name)
    except (OSError, UnicodeEncodeError) as error:
      raise _DamagedError(
          f'{errors.printable(name)}: {_reason(error)}') from error
    if found != digest:
      raise _DamagedError(
          f'{errors.printable(name)} was changed or cut short')


def _check_size(folder, leaves, listed):
  """Checks that arrays as large as a manifest says fit into its files."""
  stored = sum((folder / name).stat().st_size for name in listed)
  # An empty array must not be huge in another direction either.
  size = sum(np.dtype(dtype).itemsize * math.prod(max(n, 1) for n in shape)
             for _, shape, dtype in leaves)
  if size > _DENSEST * stored:
    raise _DamagedError(
        f'its arrays of {size:,} bytes cannot be in {stored:,} bytes of files')


def _check_leaves(folder, stored, leaves):
  stored = {name: (tuple(shape), dtype) for name, shape, dtype in stored}
  wanted = {name: (np.shape(leaf), _dtype(leaf).name) for name, leaf in leaves}
  # In the order of the state, so that the error names the first difference.
  for name in {**wanted, **stored}:
    if stored.get(name) != wanted.get(name):
      raise errors.UserError(
          f'checkpoint {folder} holds another state: {name} is '
          f'{_described(stored.get(name))} there and '
          f'{_described(wanted.get(name))} here; use another workdir or '
          'delete that folder')


def _described(shape_and_dtype):
  if shape_and_dtype is None:
    return 'absent'
  shape, dtype = shape_and_dtype
  return f'{dtype}[{",".join(map(str, shape))}]'


def _dtype(leaf):
  return leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype


def _like(leaf, value):
  """Converts a NumPy array to the type of `leaf`."""
  if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
    return mesh_lib.place(value, leaf.sharding or (
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0])))
  if isinstance(leaf, (bool, int, float, complex)):
    return type(leaf)(value)
  return value


def _digest(path, sync=False):
  """Returns the SHA-256 of a file; `sync` also flushes it to disk."""
  digest = hashlib.sha256()
  with files.open_to_read(path) as file:
    while chunk := file.read(1 << 20):
      digest.update(chunk)
    if sync:
      os.fsync(file.fileno())
  return digest.hexdigest()


def _body_digest(body):
  return hashlib.sha256(
      json.dumps(body, sort_keys=True).encode()).hexdigest()


def _reason(error):
  """Returns the first line of an error, shortened to fit a sentence."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's.
    return os.strerror(int(code[1]))
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_tree(directory: str | os.PathLike, branch: str) -> dict:
  """A branch of the newest checkpoint as nested dicts, without a target.

  Args:
    directory: of `Checkpoints`.
    branch: the first word of the leaves' names, 'state' say.

  Returns:
    {name: ... NumPy array}; names are those of the saved pytree.

  Raises:
    UserError: there is no checkpoint, or the newest is damaged.
  """
  with Checkpoints(directory) as store:  # Orbax wants absolute paths.
    steps = store.steps()
    if not steps:
      raise errors.UserError(f'{directory} holds no checkpoint')
    folder = store._path(steps[-1])
  try:
    leaves = {
        name: np.empty(shape, dtype)
        for name, shape, dtype in _verified_manifest(folder)['leaves']}
    found = _read(folder, leaves)
  except _DamagedError as error:
    raise errors.UserError(f'cannot use checkpoint {folder}: {error}') from (
        error)
  except MemoryError as error:
    raise errors.UserError(
        f'the arrays of checkpoint {folder} do not fit into memory') from error
  tree: dict = {}
  for name, array in found.items():
    first, _, rest = name.partition('.')
    if first == branch:
      *path, last = rest.split('.')
      inner = tree
      for part in path:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
          raise errors.UserError(
              f'cannot use checkpoint {folder}: a part of {name} is an array')
      inner[last] = array
  return tree

"""Readers for the file formats in which image sets are published.

Every reader returns NumPy arrays. If a file does not have the format, the
reader raises a `UserError` that names the file.
"""

import gzip
import io
import itertools
import lzma
import math
import pathlib
import pickle
import zipfile
import zlib
from typing import Any

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

Path = str | pathlib.Path

_DAMAGE = (OSError, EOFError, ValueError, KeyError, zlib.error, lzma.LZMAError,
           zipfile.BadZipFile, NotImplementedError, MemoryError)
_UNPACKED = 2**30  # bytes of a .gz; EMNIST has half of that
_VALUES = 10**6  # of a pickle; CIFAR-100 has 150,000


def reason(error: BaseException) -> str:
  """Returns the first line of an exception's text, or its type.

  >>> reason(KeyError())
  'KeyError'
  """
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_bytes(path: Path) -> bytes:
  """Returns the content of a file, unpacked if its name ends in `.gz`.

  Raises:
    UserError: missing, unreadable, damaged compression, or unpacks to more
      than a gigabyte.
  """
  path = pathlib.Path(path)
  try:
    return _unpack(path) if path.suffix == '.gz' else path.read_bytes()
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} does not exist') from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UserError(
        f'{path} cannot be read: {reason(error)}') from error


def _unpack(path):
  data = bytearray()
  with gzip.open(path) as file:
    while part := file.read(2**20):
      data += part
      if len(data) > _UNPACKED:
        raise errors.UserError(
            f'{path} unpacks to more than {_UNPACKED:,} bytes; unpack it '
            'yourself if you trust it')
  return bytes(data)


def read_cifar_binary(path: Path,
                      label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads a file of CIFAR's binary version.

  A record holds `label_bytes` labels (CIFAR-10: 1; CIFAR-100: coarse, fine)
  and the 3072 bytes of a 32x32 image, channel by channel.

  Returns:
    (images [n, 32, 32, 3] uint8, labels [n] int); the label is the last of
    the label bytes.
  """
  data = read_bytes(path)
  size = label_bytes + 3072
  if not data or len(data) % size:
    raise errors.UserError(
        f'{path} has {len(data)} bytes; expected a multiple of {size}, the '
        'size of one record')
  records = np.frombuffer(data, np.uint8).reshape(-1, size)
  return _planar(records[:, label_bytes:]), records[:, label_bytes - 1]


def read_cifar_python(path: Path,
                      key: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads a file of CIFAR's Python version with `read_arrays`.

  Args:
    path: the file, such as data_batch_1.
    key: 'labels' or 'fine_labels'.

  Returns:
    (images [n, 32, 32, 3] uint8, labels [n] int).
  """
  content = read_arrays(path)
  found = isinstance(content, dict) and {
      _text(k): v for k, v in content.items()}
  if not found or 'data' not in found or key not in found:
    raise errors.UserError(
        f'{path} is not a CIFAR batch; expected a dictionary with data and '
        f'{key}')
  images = found['data']
  if (not isinstance(images, np.ndarray) or images.ndim != 2
      or images.shape[1] != 3072):
    raise errors.UserError(
        f'{path}: data has shape {np.shape(images)}; expected [n, 3072] uint8')
  try:
    labels = np.asarray(found[key])
  except ValueError as error:
    raise errors.UserError(
        f'{path}: {key} is not a list of integers') from error
  return _planar(images), labels


def _planar(pixels):
  """[n, 3072] channel-first bytes -> [n, 32, 32, 3]."""
  return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _text(key):
  return key.decode('latin1') if isinstance(key, bytes) else key


class _Array:
  """Collects the plain parts of a NumPy array while a file is read."""

  def __init__(self):
    self.state = None

  def __setstate__(self, state):
    self.state = state

  def to_numpy(self):
    """Returns the uint8 array that the parts describe, else ValueError."""
    _, shape, dtype, fortran, data = self.state
    if not (isinstance(dtype, _Dtype) and dtype.is_bytes):
      raise ValueError('an array is not of type uint8')
    if isinstance(data, str):  # protocol 0 of Python 2
      data = data.encode('latin1')
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape):
      raise ValueError('an array and its shape differ in size')
    order = 'F' if fortran else 'C'
    return np.frombuffer(data, np.uint8).reshape(shape, order=order)


class _Dtype:
  """Stands for a NumPy dtype; records whether it is uint8."""

  def __init__(self, code):
    self.is_bytes = code in ('u1', b'u1', '|u1', b'|u1')

  def __setstate__(self, state):
    del state  # byte order and alignment mean nothing for single bytes


class _ArrayReader(pickle._Unpickler):
  """Unpickles arrays and plain data, and can build nothing else.

  It never imports a name in the file. The few names that NumPy writes for an
  array map to functions here that record the array's parts; any other name
  raises an error. What remains is dictionaries, lists, text, bytes and
  numbers, so a file cannot run code while it is loaded. It is the reader in
  Python: that in C sets memory aside for whatever index a file names.
  """

  def find_class(self, module, name):
    if module == 'numpy' and name == 'ndarray':
      return 'ndarray'  # only ever an argument of _reconstruct
    if module == 'numpy' and name == 'dtype':
      # A new function each time, so that a file cannot change it for others.
      return lambda code, *_: _Dtype(code)
    if name == '_reconstruct' and module in (
        'numpy.core.multiarray', 'numpy._core.multiarray'):
      return lambda *_: _Array()
    if name == '_frombuffer' and module in (
        'numpy.core.numeric', 'numpy._core.numeric'):
      return lambda *parts: _array_from_buffer(*parts)
    if (module, name) == ('_codecs', 'encode'):
      return lambda text, *_: text.encode('latin1')
    raise pickle.UnpicklingError(f'{module}.{name} is not allowed')

  def persistent_load(self, pid):
    raise pickle.UnpicklingError('references to other files are not allowed')


def _array_from_buffer(data, dtype, shape, order):
  array = _Array()
  array.state = (1, shape, dtype, order == 'F', bytes(data))
  return array


def read_arrays(path: Path) -> Any:
  """Reads a file of CIFAR's Python version without running code from it.

  The Python version consists of pickles, which can carry code. This reader
  accepts uint8 arrays, dictionaries, lists, tuples, bytes, text and numbers,
  and refuses everything else (see `_ArrayReader`).

  Returns:
    The stored value, with NumPy arrays.

  Raises:
    UserError: the file is missing, damaged, or holds anything else.
  """
  data = read_bytes(path)
  try:
    return _to_numpy(_ArrayReader(io.BytesIO(data), encoding='bytes').load(),
                     itertools.count())
  # A damaged stream of opcodes can fail in any way.
  except Exception as error:
    raise errors.UserError(
        f'{path} is damaged or not a plain file of arrays '
        f'({reason(error)})') from error


def _to_numpy(value, count):
  # A list may be in many lists that are in many lists.
  if next(count) > _VALUES:
    raise ValueError(f'it holds more than {_VALUES:,} values')
  if isinstance(value, _Array):
    return value.to_numpy()
  if isinstance(value, dict):
    return {k: _to_numpy(v, count) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_to_numpy(v, count) for v in value]
  if value is None or isinstance(value, bytes | bytearray | str | int | float):
    return value
  raise ValueError(f'a {type(value).__name__} is not allowed')


def read_idx(path: Path, dimensions: int) -> np.ndarray:
  """Reads an idx file of unsigned bytes (MNIST's format), gzipped or not.

  Args:
    path: the file.
    dimensions: 3 for images, 1 for labels.

  Returns:
    A uint8 array with that many dimensions.
  """
  data = read_bytes(path)
  header = 4 + 4 * dimensions
  magic = bytes([0, 0, 8, dimensions])
  if data[:4] != magic or len(data) < header:
    raise errors.UserError(
        f'{path} begins with {data[:4].hex() or "nothing"}; expected '
        f'{magic.hex()}, an idx file of {dimensions} dimension'
        f'{"s" if dimensions > 1 else ""}')
  shape = tuple(map(int, np.frombuffer(data, '>u4', dimensions, 4)))
  expected = header + math.prod(shape)
  if len(data) != expected:
    raise errors.UserError(
        f'{path} has {len(data)} bytes; expected {expected} from its header')
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads a cropped-digits file of SVHN (MATLAB v5).

  Returns:
    (images [n, 32, 32, 3] uint8, labels [n] int); the file's label 10 is the
    digit 0.
  """
  matlab = splits.require('scipy.io', 'svhn')
  _check_file(path)
  try:
    content = matlab.loadmat(path)
    images, labels = content['X'], content['y']
  # SciPy raises a different error for each kind of damage.
  except Exception as error:
    raise errors.UserError(
        f'{path} is damaged or not a MATLAB v5 file with X and y '
        f'({reason(error)})') from error
  if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
    raise errors.UserError(
        f'{path}: X has shape {images.shape}; expected [32, 32, 3, n]')
  labels = labels.reshape(-1)
  if labels.size and labels.min() < 1:
    raise errors.UserError(
        f'{path}: label {labels.min()} is out of range; expected 1 to 10')
  return (images.transpose(3, 0, 1, 2),
          np.where(labels == 10, 0, labels))


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Reads every array of an .npz file.

  Objects are pickles, which can carry code, so they are not loaded: an array
  of objects comes back with its shape and nothing in it. Whoever needs
  numbers there finds the wrong type.

  Returns:
    The arrays by name.

  Raises:
    UserError: the file is missing or damaged.
  """
  _check_file(path)
  try:
    # If NumPy opens a damaged file itself, it never closes it.
    with open(path, 'rb') as stream:
      with np.load(stream, allow_pickle=False) as file:
        return {key: _plain_array(file, key) for key in file.files}
  # An .npy file loads as an array, which has no `files`.
  except (*_DAMAGE, AttributeError, TypeError) as error:
    raise errors.UserError(
        f'{path} is damaged or not an .npz file of plain arrays '
        f'({reason(error)})') from error


def _plain_array(file, key):
  """An array of an open .npz; one of objects without its objects."""
  try:
    return file[key]
  except ValueError:
    with file.zip.open(f'{key}.npy') as stream:
      version = np.lib.format.read_magic(stream)
      if version != (1, 0):  # NumPy writes all object arrays so.
        raise
      shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if not dtype.hasobject:
      raise
    return np.broadcast_to(np.array(None, object), shape)


def _check_file(path):
  """Refuses what is no file; a device may have no end."""
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.UserError(f'{path} does not exist')
  if not path.is_file():
    raise errors.UserError(f'{path} is no file')


def npz_bytes(path: Path) -> int:
  """Returns the bytes of all arrays of an .npz file, without reading them.

  0 for what is no such file: `read_npz` says what is wrong with it.
  """
  if not pathlib.Path(path).is_file():
    return 0
  try:
    with zipfile.ZipFile(path) as file:
      return sum(member.file_size for member in file.infolist())
  except _DAMAGE:
    return 0

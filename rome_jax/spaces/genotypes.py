"""Genotypes: discrete cells as values, with their text and JSON forms.

State indices count the cell's inputs first (in DARTS' cells, Liu et al. 2019,
0 is the output of the cell before the previous one, 1 that of the previous
cell), then the nodes. Where all cells are equal (NAS-Bench-201,
NAS-Bench-1Shot1, chains of blocks) there is no reduction cell, and one input.
"""

import itertools
import json
import os
import pathlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax import errors, files, spaces
from rome_jax.spaces import genotype_text, notations, published

# Operations without weights (though a strided skip has some). Their share of
# a normal cell measures how far a search has collapsed (RobustDARTS).
PARAMETERLESS = (
    'none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'noise', 'zero')

# Operations whose output does not depend on their input.
_BLIND = ('none', 'noise')


class Genotype(NamedTuple):
  """A normal and, in most spaces, a reduction cell.

  Attributes:
    normal: a tuple of nodes; a node is a tuple of (operation, predecessor)
      pairs, which are summed. It may have any number of pairs, and an edge
      may occur twice (GDAS).
    normal_concat: the states that form the output, in DARTS' cells nodes
      whose outputs are concatenated on channels.
    reduce: like `normal`; pairs that leave an input have stride 2. () where
      all cells are equal.
    reduce_concat: like `normal_concat`.

  >>> Genotype(((('skip_connect', 0),),), (1,)).num_inputs
  1
  """

  normal: tuple
  normal_concat: tuple
  reduce: tuple = ()
  reduce_concat: tuple = ()

  @property
  def num_inputs(self) -> int:
    """Input states of a cell."""
    return 2 if self.reduce else 1


class Published(NamedTuple):
  """A published genotype and its source."""

  genotype: Genotype
  source: str


class Record(NamedTuple):
  """A genotype and what is known about it.

  Attributes:
    genotype: the value.
    info: `space`, `seed`, `step` and more from a run's file; `source` of a
      published one; {} if the file has the genotype only.
  """

  genotype: Genotype
  info: dict


# --- The value


def validate(genotype: Genotype, ops: Sequence[str] | None = None, *,
             where: str = 'genotype') -> Genotype:
  """Checks that the cells are DAGs over known states; returns the genotype.

  Args:
    genotype: the value to check.
    ops: allowed names; None allows every name.
    where: what the message calls the genotype.

  Raises:
    UserError: naming the cell, the node and the entry that is wrong.
  """
  if not isinstance(genotype, Genotype):
    raise errors.UserError(
        f'{where}={_short(genotype)} must be a Genotype; genotypes.load reads '
        'names and files')
  num_inputs = genotype.num_inputs
  # Only a cell with one input may pass it on to the output.
  first = num_inputs if num_inputs > 1 else 0
  for cell in spaces.CELL_TYPES:
    nodes, concat = cell_of(genotype, cell)
    if cell == 'reduce' and nodes == concat == ():
      continue
    if not isinstance(nodes, (list, tuple)) or not nodes:
      raise errors.UserError(
          f'{where}: {cell}={_short(nodes)} must be a list of nodes')
    for i, node in enumerate(nodes, start=num_inputs):
      _check_node(node, f'{where}: {cell} node {i}', i - 1, ops)
    _check_concat(concat, f'{where}: {cell}_concat', first,
                  num_inputs + len(nodes) - 1)
  return genotype


def cell_of(genotype: Genotype, cell_type: str) -> tuple:
  """(nodes, concat) of a cell type."""
  if cell_type == 'reduce':
    return genotype.reduce, genotype.reduce_concat
  return genotype.normal, genotype.normal_concat


def cell_types(genotype: Genotype) -> tuple[str, ...]:
  """The cell types that it has.

  >>> cell_types(load('DARTS_V2'))
  ('normal', 'reduce')
  """
  return tuple(t for t in spaces.CELL_TYPES if cell_of(genotype, t)[0])


def _check_node(node, name, last, ops):
  """Checks the pairs of one node, which may read states up to `last`."""
  if not isinstance(node, (list, tuple)) or not node:
    raise errors.UserError(
        f'{name}={_short(node)} must be a list of (operation, predecessor) '
        'pairs')
  for pair in node:
    if not notations.is_pair(pair):
      raise errors.UserError(
          f'{name} has {_short(pair)} in place of an (operation, predecessor) '
          'pair of a string and an integer')
    op, pred = pair
    if ops is not None and op not in ops:
      raise errors.UserError(
          f'{name} has the operation {op!r}; allowed: {", ".join(ops)}'
          f'{errors.near_miss(op, ops)}')
    if not 0 <= pred <= last:
      raise errors.UserError(
          f'{name} reads state {pred}; allowed: 0 to {last}')


def _check_concat(concat, name, low, high):
  if not isinstance(concat, (list, tuple)) or not concat or any(
      type(state) is not int for state in concat):
    raise errors.UserError(
        f'{name}={_short(concat)} must be a list of integers')
  for state in concat:
    if not low <= state <= high:
      raise errors.UserError(
          f'{name} has state {state}; allowed: {low} to {high}')
  if len(set(concat)) < len(concat):
    raise errors.UserError(f'{name}={_short(concat)} has a node twice')


def _short(value):
  return reprlib.repr(value)


def used_ops(genotype: Genotype) -> set[str]:
  """Names of the operations of both cells.

  >>> sorted(used_ops(load('DARTS_V2')))
  ['dil_conv_3x3', 'max_pool_3x3', 'sep_conv_3x3', 'skip_connect']
  """
  return {op for cell in (genotype.normal, genotype.reduce)
          for node in cell for op, _ in node}


def operations(genotype: Genotype, space: spaces.Space | None = None
               ) -> dict[str, list[str]]:
  """The operations of each cell that a search has chosen.

  Args:
    genotype: the value.
    space: its space, if known: then an operation on a node counts once, and
      an edge that was left out does not count.
  """
  found = {}
  for cell in cell_types(genotype):
    nodes = getattr(genotype, cell)
    if space is not None and space.sites == 'nodes':
      nodes = [node[:1] for node in nodes]
    left_out = '' if space is None or space.absent in space.ops else (
        space.absent)
    found[cell] = [
        op for node in nodes for op, _ in node if not left_out or (
            op != left_out)]
  return found


def free(op: str, space: spaces.Space | None = None, site: int = 0) -> bool:
  """Whether an operation has no weights.

  The identity of NAS-Bench-Macro has some in the first block of each stage,
  which changes size and width.

  Args:
    op: its name.
    space, site: where it stands.

  >>> free('skip_connect'), [
  ...     free('identity', spaces.NASBENCH_MACRO, i) for i in (0, 1, 2, 3)]
  (True, [False, True, False, True])
  """
  if op != 'identity' or space is None:
    return op in PARAMETERLESS
  firsts = itertools.accumulate(
      (number for _, number, _ in space.layout), initial=0)
  return site not in firsts


def parameterless(genotype: Genotype, space: spaces.Space | None = None
                  ) -> dict[str, int]:
  """Counts the operations without weights; arguments as `operations`.

  >>> parameterless(load('DARTS_V2'))
  {'normal': 2, 'reduce': 8}
  """
  return {cell: sum(free(op, space, i) for i, op in enumerate(names))
          for cell, names in operations(genotype, space).items()}


def complaint(genotype: Genotype, where: str = 'genotype') -> str:
  """A sentence about a cell whose output does not depend on its input, or ''.

  Such a network sees no image. It is a valid value, and tables have rows for
  it, but nobody wants to train it unawares.

  >>> complaint(Genotype(((('none', 0),),), (1,)))
  'genotype: the output of the normal cell does not depend on its input (all \
ways lead through none or noise), so the network cannot learn from its images'
  >>> complaint(load('DARTS_V2'))
  ''
  """
  blind = [t for t in cell_types(genotype) if not _sees(genotype, t)]
  if not blind:
    return ''
  return (f'{where}: the output of the {blind[0]} cell does not depend on its '
          'input (all ways lead through none or noise), so the network cannot '
          'learn from its images')


def _sees(genotype, cell_type):
  """Whether the output of a cell depends on one of its inputs."""
  nodes, concat = cell_of(genotype, cell_type)
  seeing = set(range(genotype.num_inputs))
  for state, node in enumerate(nodes, start=genotype.num_inputs):
    if any(op not in _BLIND and pred in seeing for op, pred in node):
      seeing.add(state)
  return not seeing.isdisjoint(concat)


def random(space: spaces.Space, rng: np.random.Generator) -> Genotype:
  """Draws an architecture of `space` uniformly.

  Each node gets as many distinct predecessors as `space.in_degrees` says,
  and each of these edges (or each node) one of its own operations; all
  choices are equally likely.
  """
  drawn = {t: (_random_edges(space, rng), _random_ops(space, t, rng))
           for t in space.cell_types}
  return make(space, drawn)


def _random_edges(space, rng):
  return [
      a + int(i) for (a, b), degree in zip(space.node_edges, space.in_degrees)
      for i in sorted(rng.choice(b - a, degree, replace=False))]


def _random_ops(space, cell_type, rng):
  drawn = []
  for names in space.site_ops(cell_type):
    names = [name for name in names if name not in space.not_derived]
    drawn.append(names[rng.integers(len(names))])
  return drawn


def make(space: spaces.Space, chosen: Mapping[str, tuple]) -> Genotype:
  """The genotype of chosen edges and operations.

  Args:
    space: the space.
    chosen: {cell type: (edges kept, in rising order; a name for each site)}.
  """
  cells = {t: _make_cell(space, *chosen[t]) for t in space.cell_types}
  normal, reduce = cells['normal'], cells.get('reduce', ((), ()))
  return Genotype(*normal, *reduce)


def _make_cell(space, edges, ops):
  """(nodes, concat) of one cell."""
  nodes = [[] for _ in range(space.num_nodes)]
  by_node = space.sites == 'nodes'
  for e in range(space.num_edges):
    node, pred = int(space.edge_nodes[e]), int(space.edge_preds[e])
    if by_node and node == space.num_nodes - 1:
      op = ''  # The output has no operation.
    else:
      op = ops[node if by_node else e]
    if e in edges:
      nodes[node].append((op, pred))
    elif space.absent:
      nodes[node].append((space.absent, pred))
  if by_node:
    concat = tuple(pred for _, pred in nodes.pop())
  elif space.cell_types == spaces.CELL_TYPES:
    concat = tuple(range(space.num_inputs, space.num_inputs + space.num_nodes))
  else:
    concat = (space.num_inputs + space.num_nodes - 1,)
  return tuple(map(tuple, nodes)), concat


# --- Text and JSON forms


def to_text(genotype: Genotype) -> str:
  """Writes the notation of the DARTS family.

  The pairs form one flat list if every node has two of them, as in DARTS,
  and the list cannot be read in another way; otherwise each node has its
  list.

  >>> to_text(Genotype(((('zero', 0),),), (1,)))
  "Genotype(normal=[[('zero', 0)]], normal_concat=[1])"
  """

  def cell(nodes, concat):
    flat = [pair for node in nodes for pair in node]
    if all(len(node) == 2 for node in nodes) and not notations.doubt(
        flat, concat, genotype.num_inputs):
      return flat
    return [list(node) for node in nodes]

  fields = []
  for t in cell_types(genotype):
    nodes, concat = cell_of(genotype, t)
    fields += [f'{t}={cell(nodes, concat)}', f'{t}_concat={list(concat)}']
  return f'Genotype({", ".join(fields)})'


def from_text(text: str, where: str = 'genotype text',
              name: str = '') -> Genotype:
  """Reads `Genotype(normal=[...], ...)`, also in the midst of a log.

  The text is parsed, never evaluated; see `genotype_text`. A flat list has
  two pairs per node; a list of lists has a list per node. FairDARTS' triples
  (operation, node, predecessor) are read too, and the weights of GDAS' logs,
  (operation, predecessor, weight), are dropped.

  Args:
    text: the text.
    where: what messages call it.
    name: which genotype, if the text assigns several to names; '' takes the
      only one, or the last of a log.

  Raises:
    UserError: the text is something else, or no valid genotype.

  >>> from_text("Genotype(normal=[[('zero', 0)]], normal_concat=[1])")
  Genotype(normal=((('zero', 0),),), normal_concat=(1,), reduce=(), \
reduce_concat=())
  """
  found = genotype_text.find(text, name, where)
  return _from_fields(genotype_text.parse(found.text, where), where)


def to_json(genotype: Genotype) -> dict[str, Any]:
  """Makes a JSON object; cells are lists of nodes, nodes lists of pairs.

  >>> to_json(Genotype(((('zero', 0),),), (1,)))
  {'normal': [[['zero', 0]]], 'normal_concat': [1]}
  """
  return {
      field: [[list(pair) for pair in node] for node in value]
      if field in spaces.CELL_TYPES else list(value)
      for field, value in genotype._asdict().items() if value}


def from_json(value: Any, where: str = 'genotype') -> Genotype:
  """Reads what `to_json` makes; cells may also be flat lists of pairs.

  Raises:
    UserError: the object has other fields or is no valid genotype.
  """
  if not isinstance(value, dict):
    raise errors.UserError(
        f'{where} must be a JSON object with the fields '
        f'{", ".join(Genotype._fields)}')
  return _from_fields(value, where)


def _from_fields(fields, where):
  """A checked `Genotype` from nested lists or tuples."""
  for field in fields:
    if field not in Genotype._fields:
      raise errors.UserError(
          f'{where}: unknown field {field!r}; known: '
          f'{", ".join(Genotype._fields)}'
          f'{errors.near_miss(field, Genotype._fields)}')
  if 'reduce' not in fields:
    fields = {**fields, 'reduce': (), 'reduce_concat': ()}
  missing = [field for field in Genotype._fields if field not in fields]
  if missing:
    raise errors.UserError(f'{where}: {", ".join(missing)} is missing')
  cells = {
      t: notations.nodes(
          fields[t], fields[f'{t}_concat'], 2 if fields['reduce'] else 1,
          f'{where}: {t}') for t in spaces.CELL_TYPES}
  concats = {name: notations.as_tuple(value) for name, value in fields.items()
             if name not in cells}
  return validate(Genotype(**cells, **concats), where=where)


PUBLISHED = {
    name: Published(from_text(text, name), source)
    for name, (text, source) in published.TEXTS.items()}


# --- Files


def save(path: str | os.PathLike, genotype: Genotype, *,
         space: spaces.Space | str | None, seed: int, step: int,
         **extra: Any) -> None:
  """Writes a run's genotype file: JSON with the value and its origin.

  Args:
    path: the file; replaced in one step.
    genotype: the value.
    space: a `Space` or its name; None if no known space has the genotype.
    seed: seed of the search.
    step: step of the search after which the genotype was derived.
    **extra: more JSON values to keep.

  Raises:
    UserError: the file cannot be written.
  """
  files.write_json(path, {
      'genotype': to_json(genotype), 'space': getattr(space, 'name', space),
      'seed': seed, 'step': step, **extra})


def read(path_or_name: str | os.PathLike) -> Record:
  """Finds a genotype: a published name, a file, or the text form itself.

  A file holds the JSON of `save`, the JSON of `to_json`, or the text form,
  also as a log has it: then the last genotype counts. `FILE:NAME` is the one
  that FILE, such as a genotypes.py, assigns to NAME.

  Raises:
    UserError: unknown name, missing, unreadable or damaged file.

  >>> read('DARTS_V2').info['source']
  'DARTS, second order (Liu et al. 2019); quark0/darts cnn/genotypes.py'
  """
  name = str(path_or_name)
  if name in PUBLISHED:
    genotype, source = PUBLISHED[name]
    return Record(genotype, {'source': source})
  if genotype_text.mentions(name):
    return Record(from_text(name), {})
  path, label = split_name(name)
  # Without a folder and a suffix it was meant as a name.
  if path == os.path.basename(path) and not pathlib.Path(path).suffix and (
      not os.path.exists(path)):
    raise errors.UserError(
        f'{name!r} is neither a file nor a published genotype; known: '
        f'{", ".join(PUBLISHED)}{errors.near_miss(name, _of_the_method(name))}')
  text = read_text(path)
  if label or not _is_json(path, text):
    found = genotype_text.find(text, label, path)
    many = found.number > 1
    return Record(
        _from_fields(genotype_text.parse(found.text, path), path),
        {'source': f'the last of {found.number}'} if many else {})
  return _record(_parse_json(path, text), path)


def _record(value, where):
  if not isinstance(value, dict) or 'genotype' not in value:
    return Record(from_json(value, where), {})
  info = {key: item for key, item in value.items() if key != 'genotype'}
  return Record(from_json(value['genotype'], where), info)


def split_name(name: str) -> tuple[str, str]:
  """(file, NAME) of `FILE:NAME`; NAME is '' if there is none.

  >>> split_name('genotypes.py:MINE'), split_name('genotype.json')
  (('genotypes.py', 'MINE'), ('genotype.json', ''))
  """
  path, colon, label = name.rpartition(':')
  if colon and label.isidentifier() and not os.path.exists(name):
    return path, label
  return name, ''


def _of_the_method(name):
  """Published names that may be meant: none of another method's.

  PR-DARTS is no misspelling of P-DARTS.
  """
  method = _method(name)
  return [known for known in PUBLISHED
          if not (method and _method(known)) or _method(known) == method]


def _method(name):
  """A method's name, up to its 'darts' or 'nas'; '' if it has neither."""
  found = re.match('.*?(?:darts|nas)', errors.plain(name))
  return found[0] if found else ''


def _is_json(path, text):
  start = ''.join(text.split())
  if start.startswith('{'):
    return not start.startswith("{'")  # a dictionary as Python prints it
  return str(path).endswith('.json') and not genotype_text.mentions(text)


def _parse_json(path, text):
  try:
    return json.loads(text, object_pairs_hook=_once)
  except json.JSONDecodeError as error:
    raise errors.UserError(
        f'{path} is damaged: it is not valid JSON from line {error.lineno}, '
        f'column {error.colno} on') from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is not valid JSON: {error}') from error


def _once(pairs):
  """A JSON object whose fields differ."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'the field {twice!r} is given twice')
  return found


def load(path_or_name: str | os.PathLike) -> Genotype:
  """Like `read`, but returns the genotype only.

  >>> load('DARTS_V2').normal_concat
  (2, 3, 4, 5)
  """
  return read(path_or_name).genotype


_LONGEST = 2**26  # bytes of a file with a genotype


def read_text(path: str | os.PathLike) -> str:
  """The text of a file in UTF-8 or UTF-16.

  Raises:
    UserError: it cannot be read, or is no text.
  """
  data = files.read_bytes(path, _LONGEST)
  try:
    return genotype_text.decode(data)
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{path} is not a text file') from error

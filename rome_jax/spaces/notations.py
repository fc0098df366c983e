"""The notations of a cell's nodes, as papers' code writes them.

A list of nodes, each a list of (operation, predecessor) pairs; DARTS' flat
list, two pairs per node; FairDARTS' triples (operation, node, predecessor);
GDAS' pairs with a weight, (operation, predecessor, weight).
"""

from typing import Any

from rome_jax import errors


def nodes(value: Any, concat: Any, num_inputs: int, name: str) -> Any:
  """The nodes of a cell, whatever the notation.

  Args:
    value: lists or tuples of strings and numbers.
    concat: the states that form the output.
    num_inputs: input states of the cell.
    name: what messages call the cell.

  Returns:
    A tuple of nodes, tuples of pairs; what is no such list comes back as it
    is, for `genotypes.validate` to refuse.

  Raises:
    UserError: the nodes may be meant in two ways, or one has no edge.

  >>> nodes([('a', 0), ('b', 1)], [2], 2, 'normal')
  ((('a', 0), ('b', 1)),)
  >>> nodes([('a', 2, 0), ('b', 3, 2)], [2, 3], 2, 'normal')
  ((('a', 0),), (('b', 2),))
  """
  if not isinstance(value, (list, tuple)):
    return value
  if value and all(map(_is_triple, value)):
    value = _of_triples(value, concat, num_inputs, name)
  elif value and all(map(is_pair, map(_unweighted, value))):
    value = _of_flat(list(map(_unweighted, value)), concat, num_inputs, name)
  return tuple(
      tuple(as_tuple(_unweighted(pair)) for pair in node)
      if isinstance(node, (list, tuple)) else node for node in value)


def is_pair(value: Any) -> bool:
  """Whether a value is an (operation, predecessor) pair."""
  return (
      isinstance(value, (list, tuple)) and len(value) == 2
      and isinstance(value[0], str) and type(value[1]) is int)


def as_tuple(value: Any) -> Any:
  """A list as a tuple, anything else as it is."""
  return tuple(value) if isinstance(value, list) else value


def _of_flat(pairs, concat, num_inputs, name):
  """Nodes of a flat list; refused unless two pairs per node are meant."""
  if len(pairs) % 2:
    raise errors.UserError(
        f'{name} has {len(pairs)} pairs in a flat list, which must have two '
        'per node; write a list per node instead')
  why = doubt(pairs, concat, num_inputs)
  if why:
    raise errors.UserError(
        f'{name} has {len(pairs)} pairs in a flat list, {why}; write a list '
        'per node instead')
  return [pairs[i:i + 2] for i in range(0, len(pairs), 2)]


def doubt(pairs: list, concat: Any, num_inputs: int) -> str:
  """Why a flat list may not have two pairs per node; '' if it surely has.

  >>> doubt([('a', 0), ('a', 1)] * 4, [2, 3, 4, 5], 2)
  ''
  >>> doubt([('a', 0), ('a', 1)] * 7, [2, 3, 4, 5], 2)
  'which would make 7 nodes, but the last state of the output is 5, not 8'
  """
  number = len(pairs) // 2
  last = num_inputs + number - 1
  if not _is_states(concat):
    return ''  # `genotypes.validate` says what is wrong with it.
  if num_inputs <= max(concat) < last:
    return (f'which would make {number} nodes, but the last state of the '
            f'output is {max(concat)}, not {last}')
  if max(concat) == last and number > 1 and (
      [pred for _, pred in pairs] == _every_edge(number, num_inputs)):
    return ('which may have two for each node or one for each state that a '
            'node can read')
  return ''


def _is_states(concat):
  return (isinstance(concat, (list, tuple)) and len(concat) > 0
          and all(type(state) is int for state in concat))


def _every_edge(num_nodes, num_inputs):
  """Predecessors of all edges, node by node."""
  return [pred for node in range(num_nodes)
          for pred in range(num_inputs + node)]


def _of_triples(triples, concat, num_inputs, name):
  """Nodes of FairDARTS' triples; each node has an edge."""
  found = {}
  for op, node, pred in triples:
    if node < num_inputs or not 0 <= pred < node:
      raise errors.UserError(
          f'{name} has ({op!r}, {node}, {pred}); a triple is (operation, node, '
          f'predecessor), nodes count from {num_inputs} and read states before '
          'them')
    found.setdefault(node, []).append((op, pred))
  last = max([*found, *(concat if _is_states(concat) else ())])
  for state in range(num_inputs, last + 1):
    if state not in found:
      raise errors.UserError(
          f'{name} has no edge into node {state}; leave that node out and '
          'number those after it anew')
  return [found[state] for state in sorted(found)]


def _is_triple(value):
  return (isinstance(value, (list, tuple)) and len(value) == 3
          and isinstance(value[0], str)
          and all(type(state) is int for state in value[1:]))


def _unweighted(pair):
  """(operation, predecessor) of a pair with a weight."""
  weighted = (isinstance(pair, (list, tuple)) and len(pair) == 3
              and isinstance(pair[2], float))
  return pair[:2] if weighted else pair

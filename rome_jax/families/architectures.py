"""The architecture of a genotype in the supernet of its space."""

import jax.numpy as jnp
import numpy as np

from rome_jax import errors, spaces
from rome_jax.engine.archs import CellArch
from rome_jax.families import table
from rome_jax.spaces import Space, genotypes


def arch_of(genotype: genotypes.Genotype, space: Space | str,
            fewer_edges: bool = False) -> dict[str, CellArch]:
  """Where a supernet finds a genotype, for its one-shot accuracy.

  `supernet.apply({'params': theta}, images, arch_of(genotype, space))` are
  the logits of the genotype with the supernet's weights and the statistics of
  the batch.

  Args:
    genotype: of the space.
    space: a `Space`, or the name of one.
    fewer_edges: whether nodes may have fewer edges than the space keeps, as
      FairDARTS leaves them.

  Returns:
    {cell type: CellArch} whose gates are all 1. There are as many slots in any
    case: the first edge of a node stands, with gate 0, for those it lacks.

  Raises:
    UserError: the genotype is none of the space: it has other cells,
      operations, edges or outputs, or a node with another number of edges.

  >>> genotype = genotypes.load('DARTS_V2')
  >>> arch_of(genotype, 's0')['normal'].edges.tolist()
  [0, 1, 2, 3, 5, 6, 9, 11]
  """
  space = spaces.get_space(space) if isinstance(space, str) else space
  table.check_genotype(space, genotype, 'genotype')
  if space.sites == 'nodes':
    return {t: _by_nodes(space, genotype, t) for t in space.cell_types}
  return {t: _by_edges(space, genotype, t, fewer_edges)
          for t in space.cell_types}


def _by_edges(space, genotype, cell_type, fewer_edges):
  nodes, concat = genotypes.cell_of(genotype, cell_type)
  if len(nodes) != space.num_nodes:
    raise errors.UserError(
        f'genotype: cell {cell_type} has {len(nodes)} nodes, but '
        f'space={space.name} has {space.num_nodes}')
  _check_output(space, cell_type, concat)
  slots, gates = [], []
  for i, (node, degree) in enumerate(zip(nodes, space.in_degrees)):
    pairs = [pair for pair in node
             if pair[0] in space.ops or pair[0] != space.absent]
    where = f'genotype: {cell_type} node {i + 1}'
    lacking = degree - len(pairs)
    if not fewer_edges or lacking < 0:
      _check_degree(space, where, len(pairs), degree)
    # In the order of edges, as the engine wants slots.
    slots += lacking * [_first_slot(space, cell_type, i)]
    slots += sorted(_slot(space, cell_type, i, pair, where) for pair in pairs)
    gates += lacking * [0.] + len(pairs) * [1.]
  edges, ops = np.array(slots, np.int32).T
  return _cell_arch(edges, ops, jnp.array(gates))


def _first_slot(space, cell_type, node):
  edge = space.node_edges[node][0]
  return edge, space.choices(cell_type)[edge, 0]


def _slot(space, cell_type, node, pair, where):
  """(number of the edge, place of the operation) of a pair."""
  op, pred = pair
  start, stop = space.node_edges[node]
  edge = start + int(pred - space.edge_preds[start])
  allowed = space.site_ops(cell_type)[edge] if start <= edge < stop else ()
  if op not in allowed:
    raise errors.UserError(
        f'{where} has {op!r} on state {pred}, where space={space.name} has '
        f'{", ".join(allowed) or "no edge"}')
  return edge, space.ops.index(op)


def _by_nodes(space, genotype, cell_type):
  """The output is the last node: its edges stand last, it has no operation."""
  nodes, concat = genotypes.cell_of(genotype, cell_type)
  parents = [sorted(pred for _, pred in node) for node in nodes]
  edges = []
  for i, states in enumerate([*parents, sorted(concat)]):
    name = 'the output' if i == len(nodes) else f'{cell_type} node {i + 1}'
    _check_degree(
        space, f'genotype: {name}', len(states), space.in_degrees[i])
    edges += [space.node_edges[i][0] + state for state in states]
  ops = [space.ops.index(node[0][0]) for node in nodes]
  return _cell_arch(edges, ops, jnp.ones(len(edges) + len(ops)))


def _cell_arch(edges, ops, gates):
  return CellArch(jnp.asarray(edges, jnp.int32), jnp.asarray(ops, jnp.int32),
                  gates)


def _check_degree(space, where, found, wanted):
  if found != wanted:
    raise errors.UserError(
        f'{where} has {found} edges, but in space={space.name} it keeps '
        f'{wanted}')


def _check_output(space, cell_type, concat):
  stop = space.num_inputs + space.num_nodes
  first = (space.num_inputs if space.cell_types == spaces.CELL_TYPES else
           stop - 1)
  if sorted(concat) != list(range(first, stop)):
    raise errors.UserError(
        f'genotype: {cell_type}_concat={tuple(concat)} must be the states '
        f'{first} to {stop - 1} in space={space.name}')

"""Search spaces: the static, hashable description of what may be sampled.

Letters used across the package: N intermediate nodes, E edges, O operations,
M active edges ("slots") of one sampled cell, K samples, B H W C images.
"""

import dataclasses
import functools

import numpy as np

from rome_jax import errors

CELL_TYPES = ('normal', 'reduce')


@dataclasses.dataclass(frozen=True)
class Space:
  """A cell-based search space with one operation per edge.

  A cell is a DAG over `num_inputs` input states and `num_nodes` intermediate
  nodes; a node may read every state before it. Edges are numbered node by
  node and, within a node, by predecessor (DARTS, Liu et al. 2019).

  Attributes:
    name: the name in configs and files.
    ops: the O candidate operations of every edge, names of `ops.OPS`.
    num_nodes: N.
    num_inputs: input states of a cell; a reduction cell strides their edges.
    in_degree: edges that a node keeps in a derived cell (fewer where a node
      has fewer predecessors); 2 in ROME Eq. 9.
  """

  name: str
  ops: tuple[str, ...]
  num_nodes: int = 4
  num_inputs: int = 2
  in_degree: int = 2

  def __post_init__(self):
    for field in ('num_nodes', 'num_inputs', 'in_degree'):
      if getattr(self, field) < 1:
        raise errors.UserError(
            f'space {self.name}: {field}={getattr(self, field)} must be at '
            'least 1')
    if not self.ops:
      raise errors.UserError(f'space {self.name}: ops is empty')

  @functools.cached_property
  def node_edges(self) -> tuple[tuple[int, int], ...]:
    """Per node, the half-open range of its edges."""
    sizes = [self.num_inputs + i for i in range(self.num_nodes)]
    stops = np.cumsum(sizes)
    return tuple((int(b - n), int(b)) for n, b in zip(sizes, stops))

  @property
  def num_edges(self) -> int:
    """E."""
    return self.node_edges[-1][1]

  @functools.cached_property
  def edge_nodes(self) -> np.ndarray:
    """[E] int: the node (0..N-1) that each edge enters."""
    return np.concatenate([
        np.full(b - a, i) for i, (a, b) in enumerate(self.node_edges)])

  @functools.cached_property
  def edge_preds(self) -> np.ndarray:
    """[E] int: the state each edge leaves (inputs first, then nodes)."""
    return np.concatenate([np.arange(b - a) for a, b in self.node_edges])

  @functools.cached_property
  def in_degrees(self) -> tuple[int, ...]:
    """Per node, the number of edges that a derived cell keeps."""
    return tuple(min(self.in_degree, b - a) for a, b in self.node_edges)


S0 = Space('s0', (
    'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3',
    'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5'))

SPACES = {'s0': S0}


def get_space(name: str) -> Space:
  """Looks a space up by name.

  Raises:
    UserError: no space of that name.
  """
  if name not in SPACES:
    raise errors.UserError(
        f'space={name!r} must be one of {", ".join(SPACES)}'
        f'{errors.near_miss(name, SPACES)}')
  return SPACES[name]

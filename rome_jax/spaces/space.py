"""Search spaces: static, hashable descriptions of what may be sampled.

Letters used across the package: N intermediate nodes, E edges, O operations,
M active edges ("slots") of one sampled cell, S sites (a site holds an
operation: an edge, or a node), C candidates of the site that has most,
K samples, B H W C images.

A space is a row of a table. To add your own, put it into `SPACES`; see
docs/own_space.md.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from rome_jax import errors

CELL_TYPES = ('normal', 'reduce')
SITES = ('edges', 'nodes')
PARENTS = ('all', 'previous')


@dataclasses.dataclass(frozen=True)
class Space:
  """A search space of cells, each a DAG with sampled operations.

  A cell is a DAG over `num_inputs` input states and `num_nodes` intermediate
  nodes; a node may read every state before it. Edges are numbered node by
  node and, within a node, by predecessor (DARTS, Liu et al. 2019).

  Attributes:
    name: the name in configs and files.
    ops: the O candidate operations, names that the family knows
      (`operations.OPS` in most).
    num_nodes: intermediate nodes, N.
    num_inputs: input states of a cell; a reduction cell strides their edges.
    in_degree: edges that a node keeps in a derived cell (fewer where a node
      has fewer predecessors); 2 in ROME Eq. 9. One number, or one per node
      (the last is the output's where `sites` is 'nodes'), none larger than
      the node's edges. 0 keeps every edge and leaves no topology to search.
    cell_types: ('normal', 'reduce'), or ('normal',) where all cells are equal.
    edge_ops: per cell type, per site the names of its own candidates, as in
      RobustDARTS S1; () gives every site all of `ops`.
    not_derived: operations that are searched but never derived (`none` in
      RobustDARTS S3).
    absent: the operation that a genotype has on an edge that was left out;
      '' leaves the edge out of the genotype too.
    sites: what holds an operation, 'edges' or (NAS-Bench-1Shot1) 'nodes'.
      With 'nodes' the last node is the cell's output and holds none.
    parents: what a node may read: 'all' states before it, or only the
      'previous' one, as in a chain of blocks.
    family: the network around the cells, a name in `families.FAMILIES`.
    layout: what the family needs besides. 'mobile': the stages.
      'nasbench1shot1': how the cell's output takes the cell's input,
      ('concatenated',), or () for 'added'.

  >>> S0.num_edges, S0.num_sites, S0.num_choices
  (14, 14, 7)
  """

  name: str
  ops: tuple[str, ...]
  num_nodes: int = 4
  num_inputs: int = 2
  in_degree: int | tuple[int, ...] = 2
  cell_types: tuple[str, ...] = CELL_TYPES
  edge_ops: tuple[tuple[tuple[str, ...], ...], ...] = ()
  not_derived: tuple[str, ...] = ()
  absent: str = ''
  sites: str = 'edges'
  parents: str = 'all'
  family: str = 'darts'
  layout: tuple = ()

  def __post_init__(self):
    for field in ('num_nodes', 'num_inputs'):
      if getattr(self, field) < 1:
        raise errors.UserError(
            f'space {self.name}: {field}={getattr(self, field)} must be at '
            'least 1')
    if not self.ops:
      raise errors.UserError(f'space {self.name}: ops is empty')
    for field, allowed in (('sites', SITES), ('parents', PARENTS)):
      if getattr(self, field) not in allowed:
        raise errors.UserError(
            f'space {self.name}: {field}={getattr(self, field)!r} must be '
            f'one of {", ".join(allowed)}')
    if self.cell_types not in (CELL_TYPES, CELL_TYPES[:1]):
      raise errors.UserError(
          f'space {self.name}: cell_types={self.cell_types!r} must be '
          f'{CELL_TYPES} or {CELL_TYPES[:1]}')
    self._check_in_degree()
    self._check_edge_ops()
    self._check_derivable()

  def _check_in_degree(self):
    degree, fan_ins = self.in_degree, self.fan_ins
    if isinstance(degree, tuple):
      if len(degree) != self.num_nodes or min(degree) < 1:
        raise errors.UserError(
            f'space {self.name}: in_degree={degree} must have '
            f'{self.num_nodes} numbers of at least 1, one per node')
      if any(kept > edges for kept, edges in zip(degree, fan_ins)):
        raise errors.UserError(
            f'space {self.name}: in_degree={degree} must be at most {fan_ins}, '
            'the edges of each node')
    elif type(degree) is not int or degree < 0:
      raise errors.UserError(
          f'space {self.name}: in_degree={degree} must be at least 1, or 0 '
          'for every edge')

  def _check_edge_ops(self):
    if not self.edge_ops:
      return
    if len(self.edge_ops) != len(self.cell_types) or any(
        len(table) != self.num_sites for table in self.edge_ops):
      raise errors.UserError(
          f'space {self.name}: edge_ops must have, per cell type of '
          f'{self.cell_types}, {self.num_sites} tuples of operations')
    for table in self.edge_ops:
      for site, names in enumerate(table):
        unknown = [name for name in names if name not in self.ops]
        if unknown or not names:
          raise errors.UserError(
              f'space {self.name}: edge_ops of edge {site} must be some of '
              f'{", ".join(self.ops)}, not {names}')

  def _check_derivable(self):
    if len(set(self.ops)) < len(self.ops):
      raise errors.UserError(
          f'space {self.name}: ops={self.ops} has an operation twice')
    unknown = set(self.not_derived) - set(self.ops)
    if unknown:
      raise errors.UserError(
          f'space {self.name}: not_derived={self.not_derived} must be some of '
          f'{", ".join(self.ops)}')
    for cell_type in self.cell_types:
      for site, names in enumerate(self.site_ops(cell_type)):
        if set(names) <= set(self.not_derived):
          raise errors.UserError(
              f'space {self.name}: not_derived={self.not_derived} leaves '
              f'nothing to derive on edge {site}')

  @functools.cached_property
  def node_edges(self) -> tuple[tuple[int, int], ...]:
    """Per node, the half-open range of its edges.

    >>> S0.node_edges
    ((0, 2), (2, 5), (5, 9), (9, 14))
    """
    sizes = [self.num_inputs + i if self.parents == 'all' else 1
             for i in range(self.num_nodes)]
    stops = np.cumsum(sizes)
    return tuple((int(b - n), int(b)) for n, b in zip(sizes, stops))

  @property
  def num_edges(self) -> int:
    """The number of edges, E."""
    return self.node_edges[-1][1]

  @property
  def num_sites(self) -> int:
    """S, the number of rows of alpha."""
    return self.num_edges if self.sites == 'edges' else self.num_nodes - 1

  @functools.cached_property
  def edge_nodes(self) -> np.ndarray:
    """[E] int32: the node (0..N-1) that each edge enters.

    >>> NASBENCH201.edge_nodes.tolist()
    [0, 1, 1, 2, 2, 2]
    """
    return np.concatenate([
        np.full(b - a, i, np.int32)
        for i, (a, b) in enumerate(self.node_edges)])

  @functools.cached_property
  def edge_preds(self) -> np.ndarray:
    """[E] int32: the state that each edge leaves (inputs first, then nodes).

    >>> NASBENCH201.edge_preds.tolist()
    [0, 0, 1, 0, 1, 2]
    """
    return np.concatenate([
        self.num_inputs + i - (b - a) + np.arange(b - a, dtype=np.int32)
        for i, (a, b) in enumerate(self.node_edges)]).astype(np.int32)

  @functools.cached_property
  def fan_ins(self) -> tuple[int, ...]:
    """Per node, the number of its edges."""
    return tuple(b - a for a, b in self.node_edges)

  @functools.cached_property
  def in_degrees(self) -> tuple[int, ...]:
    """Per node, the number of edges that a derived cell keeps.

    >>> S0.in_degrees, NASBENCH201.in_degrees
    ((2, 2, 2, 2), (1, 2, 3))
    """
    wanted = self.in_degree
    if not isinstance(wanted, tuple):
      wanted = (wanted or self.num_edges,) * self.num_nodes
    return tuple(map(min, wanted, self.fan_ins))

  @property
  def has_topology(self) -> bool:
    """Whether any node has more edges than it keeps."""
    return self.in_degrees != self.fan_ins

  @property
  def num_choices(self) -> int:
    """C: candidates of the site that has most, the width of alpha."""
    return max(len(names) for t in self.cell_types
               for names in self.site_ops(t))

  def site_ops(self, cell_type: str) -> tuple[tuple[str, ...], ...]:
    """Per site, the names of its candidates.

    >>> S1.site_ops('normal')[0]
    ('skip_connect', 'dil_conv_3x3')
    """
    if not self.edge_ops:
      return (self.ops,) * self.num_sites
    return self.edge_ops[self.cell_types.index(cell_type)]

  def choices(self, cell_type: str) -> np.ndarray:
    """[S,C] int32: places in `ops`; -1 after the end of a shorter row."""
    table = np.full((self.num_sites, self.num_choices), -1, np.int32)
    for row, names in zip(table, self.site_ops(cell_type)):
      row[:len(names)] = [self.ops.index(name) for name in names]
    return table

  def restrict(self, **changes: Any) -> 'Space':
    """A copy with other values of some attributes."""
    return dataclasses.replace(self, **changes)

  def restrict_to(self, mask: Mapping[str, np.ndarray]) -> 'Space':
    """The part of the space that a mask keeps, under the same name.

    Operations that no site keeps are gone from `ops`, so alpha may become
    narrower and a supernet smaller.

    Args:
      mask: {cell type: bool [S,C]}, True where the candidate in that place of
        `choices` stays. Places after the end of a shorter row count for
        nothing.

    Raises:
      UserError: a mask is missing or has another shape, or a site keeps
        nothing.

    >>> keep = np.array([False, True, False])     # of none, skip, sep_conv_3x3
    >>> mask = {t: np.tile(keep, (14, 1)) for t in S3.cell_types}
    >>> S3.restrict_to(mask).ops
    ('skip_connect',)
    """
    if set(mask) != set(self.cell_types):
      raise errors.UserError(
          f'space {self.name}: a mask must have the cell types '
          f'{", ".join(self.cell_types)}, not {", ".join(sorted(mask))}')
    tables = tuple(self._kept(t, np.asarray(mask[t])) for t in self.cell_types)
    used = {name for table in tables for names in table for name in names}
    ops, not_derived = (
        tuple(name for name in names if name in used)
        for names in (self.ops, self.not_derived))
    if all(names == ops for table in tables for names in table):
      tables = ()
    return self.restrict(ops=ops, edge_ops=tables, not_derived=not_derived)

  def _kept(self, cell_type, mask):
    """Per site, the candidates of a cell type that a mask keeps."""
    shape = (self.num_sites, self.num_choices)
    if mask.shape != shape or mask.dtype != bool:
      raise errors.UserError(
          f'space {self.name}: the mask of cell type {cell_type} must be bool '
          f'{list(shape)}, not {mask.dtype} {list(mask.shape)}')
    table = tuple(
        tuple(name for name, kept in zip(names, row) if kept)
        for names, row in zip(self.site_ops(cell_type), mask))
    for site, names in enumerate(table):
      if not names:
        raise errors.UserError(
            f'space {self.name}: the mask keeps no operation on '
            f'{self.sites[:-1]} {site} of cell type {cell_type}')
    return table


_CONVS = ('sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5')
_POOLS = ('max_pool_3x3', 'avg_pool_3x3')

S0 = Space('s0', (*_POOLS, 'skip_connect', *_CONVS))
# DARTS (Liu et al., ICLR 2019): its eight operations. `none` is searched and
# never derived; ROME's S0 leaves it out.
DARTS = Space('darts', ('none', *S0.ops), not_derived=('none',))

# RobustDARTS (Zela et al., ICLR 2020), `src/spaces.py` of the authors' code:
# S1 has two operations of its own on every edge.
_SHORT = {
    'skip': 'skip_connect', 'max': 'max_pool_3x3', 'avg': 'avg_pool_3x3',
    'sep3': 'sep_conv_3x3', 'dil3': 'dil_conv_3x3', 'dil5': 'dil_conv_5x5'}


def _pairs(text):
  return tuple(tuple(_SHORT[name] for name in pair.split('/'))
               for pair in text.split())


_S1_NORMAL = _pairs(
    'skip/dil3 skip/dil5 '
    'skip/dil5 skip/sep3 skip/dil3 '
    'max/skip skip/sep3 skip/sep3 skip/dil3 '
    'skip/sep3 max/skip skip/dil3 dil3/dil5 dil3/dil5')
_S1_REDUCE = _pairs(
    'max/avg max/dil3 '
    'max/avg max/avg skip/dil5 '
    'max/avg max/sep3 skip/dil3 skip/dil5 '
    'max/avg max/avg skip/dil5 skip/dil5 skip/dil5')
S1 = Space(
    's1', (*_POOLS, 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3',
           'dil_conv_5x5'), edge_ops=(_S1_NORMAL, _S1_REDUCE))
S2 = Space('s2', ('skip_connect', 'sep_conv_3x3'))
S3 = Space('s3', ('none', 'skip_connect', 'sep_conv_3x3'),
           not_derived=('none',))
S4 = Space('s4', ('noise', 'sep_conv_3x3'))

# NAS-Bench-201 (Dong and Yang, ICLR 2020): every edge stays and `none` is one
# of the operations. With an in-degree (ROME) a genotype has `none` on an edge
# that was left out.
NASBENCH201 = Space(
    'nasbench201',
    ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3'),
    num_nodes=3, num_inputs=1, in_degree=0, cell_types=('normal',),
    absent='none', family='nasbench201')


def _one_shot_1(number, parents, ops=('max_pool_3x3', 'conv_3x3', 'conv_1x1')):
  """NAS-Bench-1Shot1 (Zela et al., ICLR 2020): parents of nodes and output."""
  return Space(
      f'nasbench1shot1_{number}', ops, num_nodes=len(parents), num_inputs=1,
      in_degree=parents, cell_types=('normal',), sites='nodes',
      family='nasbench1shot1')


_SHOT = [_one_shot_1(1, (1, 2, 2, 2, 2)), _one_shot_1(2, (1, 1, 2, 2, 3)),
         _one_shot_1(3, (1, 1, 1, 2, 2, 2))]
# ROME's Figures 3, 15 and 16: a skip instead of the 1x1 convolution.
_SHOT += [s.restrict(name=f'{s.name}_skip',
                     ops=('max_pool_3x3', 'conv_3x3', 'skip_connect'))
          for s in _SHOT]
# The first version of the authors' code (December 2019), in which the cell's
# input is concatenated with its nodes; see docs/nasbench1shot1.md.
_SHOT += [s.restrict(name=f'{s.name}_first', layout=('concatenated',))
          for s in _SHOT[:3]]

# ProxylessNAS (Cai et al., ICLR 2019): MBConv of kernel k, expansion e.
_MBCONV = tuple(f'mbconv_k{k}_e{e}' for e in (3, 6) for k in (3, 5, 7))


def mobile(name: str, stages: tuple[tuple[int, int, int], ...],
           ops: tuple[str, ...] = _MBCONV) -> Space:
  """A chain of MBConv blocks, each with its own choice of operation.

  Args:
    name: of the space.
    stages: (width, blocks, stride of the first block) of each stage.
    ops: candidates of every block; a block that keeps size and width may
      also be 'zero', which leaves its shortcut only.
  """
  rows = []
  for _, blocks, _ in stages:
    rows += [ops] + [(*ops, 'zero')] * (blocks - 1)
  return Space(
      name, (*ops, 'zero'), num_nodes=len(rows), num_inputs=1, in_degree=1,
      cell_types=('normal',), edge_ops=(tuple(rows),), parents='previous',
      family='mobile', layout=stages)


MOBILE = mobile('mobile', (
    (24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1)))
MOBILE_TINY = mobile(
    'mobile_tiny', ((24, 2, 2), (32, 1, 1)),
    ('mbconv_k3_e3', 'mbconv_k5_e3'))

# NAS-Bench-Macro (Su et al., CVPR 2021): eight blocks in three stages, each
# twice as wide as the one before.
NASBENCH_MACRO = Space(
    'nasbench_macro', ('identity', 'mbconv_k3_e3', 'mbconv_k5_e6'),
    num_nodes=8, num_inputs=1, in_degree=1, cell_types=('normal',),
    parents='previous', family='nasbench_macro',
    layout=((64, 2, 2), (128, 3, 2), (256, 3, 2)))

SPACES = {space.name: space for space in (
    S0, DARTS, S1, S2, S3, S4, NASBENCH201, *_SHOT, MOBILE, MOBILE_TINY,
    NASBENCH_MACRO)}


def get_space(name: str, *, in_degree: int = 0,
              drop_none: bool = False) -> Space:
  """Looks up a space by name.

  Args:
    name: a key of SPACES.
    in_degree: another number of edges per node; 0 leaves the space's own.
    drop_none: leave out the operation `none` (then S3 is S2).

  Raises:
    UserError: no space of that name, or it cannot be changed so.

  >>> get_space('s3', drop_none=True).ops
  ('skip_connect', 'sep_conv_3x3')
  """
  if name not in SPACES:
    raise errors.UserError(
        f'space={name!r} must be one of {", ".join(SPACES)}'
        f'{errors.near_miss(name, SPACES)}')
  space = SPACES[name]
  if space.name != name:
    raise errors.UserError(
        f'the space under {name!r} in spaces.SPACES must have that name, not '
        f'{space.name!r}')
  if in_degree:
    if isinstance(space.in_degree, tuple) or space.parents == 'previous':
      raise errors.UserError(
          f'in_degree={in_degree} must be 0 with space={name}, which fixes '
          'the edges of its nodes')
    if in_degree > max(space.fan_ins):
      raise errors.UserError(
          f'in_degree={in_degree} must be at most {max(space.fan_ins)} with '
          f'space={name}, the most edges that a node has; 0 leaves the '
          "space's own")
    space = space.restrict(in_degree=in_degree)
  if drop_none:
    if 'none' not in space.ops:
      raise errors.UserError(
          f'drop_none must be false with space={name}, which has no '
          'operation `none`')
    if space.edge_ops:
      raise errors.UserError(
          f'drop_none must be false with space={name}, whose edges have '
          'operations of their own')
    space = space.restrict(**{
        field: tuple(op for op in getattr(space, field) if op != 'none')
        for field in ('ops', 'not_derived')})
  return space

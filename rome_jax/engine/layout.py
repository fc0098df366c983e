"""All that is static in a search cell."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine import operations
from rome_jax.spaces import CELL_TYPES, Space

# Groups of the parameter tree of a search cell: edges at the cell's stride,
# and (in a reduction cell) those that leave the cell's inputs.
EDGES, STRIDED = 'edges', 'strided_edges'


# ------------------------------------------------------- branches of a cell


@dataclasses.dataclass(frozen=True)
class Variant:
  """One branch of the switch: an operation on one kind of edge.

  Attributes:
    op, group: names; together the place in the cell's parameters.
    module: the Flax module.
    bank: which array of states it reads (0 the first).
    edges: the edges it may be sampled on; the leading axis of its parameters.
    shapes: of one edge's parameters, in tree order.
    treedef: their structure.
  """

  op: str
  group: str
  module: nn.Module
  bank: int
  edges: tuple[int, ...]
  shapes: tuple[tuple[int, ...], ...]
  treedef: jax.tree_util.PyTreeDef

  @property
  def size(self):
    """Number of parameters of one edge."""
    return sum(int(np.prod(s)) for s in self.shapes)

  def unflatten(self, flat):
    """[P] (its first `size` entries) to the module's variables."""
    leaves, start = [], 0
    for shape in self.shapes:
      stop = start + int(np.prod(shape))
      leaves.append(flat[start:stop].reshape(shape))
      start = stop
    return jax.tree.unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class Layout:
  """All that is static in a search cell; hashable, so that traces are shared.

  The states of the n equal cells of a stage lie in banks, arrays of maps of one
  shape: those of normal cells in one, [R,B,H,W,C], those of a reduction cell in
  two, inputs [2,B,H,W,C] and nodes [N,B,h,w,C]. Nothing is copied out of them
  but what an operation reads, and they are what the backward pass needs of the
  cells.
  """

  space: Space
  cell_type: str
  features: int
  preprocessed: bool = True
  conv_bias: bool = False
  pool_norm: bool = True

  def __post_init__(self):
    if not self.preprocessed and (
        self.reduction or self.space.num_inputs > 1
        or not self.ends_in_last_node):
      raise ValueError(
          'reduction_prev=None is for a normal cell of one input whose output '
          f'is its last node, not for a {self.cell_type} cell of space '
          f'{self.space.name}')

  @property
  def reduction(self):
    return self.cell_type == 'reduce'

  @property
  def ends_in_last_node(self):
    """Whether the output is the last node (NAS-Bench-201), not all of them."""
    return self.space.cell_types == CELL_TYPES[:1]

  @property
  def bank_starts(self):
    """First state of each bank."""
    return (0, self.space.num_inputs) if self.reduction else (0,)

  @property
  def rows_per_cell(self):
    """Per bank, how many rows lie between a cell and the next."""
    inputs, nodes = self.space.num_inputs, self.space.num_nodes
    if self.reduction:
      return inputs, nodes
    # An input that is taken as it is, is the last node of the cell before.
    return (inputs + nodes if self.preprocessed else nodes,)

  def first_rows(self, i):
    """Per bank, the row of cell i's first state."""
    return [i * rows for rows in self.rows_per_cell]

  def output_rows(self, i):
    """(first, how many): the nodes in the last bank that are i's output."""
    start = (self.first_rows(i)[-1] + self.space.num_inputs
             - self.bank_starts[-1])
    last = self.space.num_nodes - 1
    return (start + last, 1) if self.ends_in_last_node else (start, last + 1)

  @functools.cached_property
  def variants(self) -> tuple[Variant, ...]:
    kinds = ((0, 2, STRIDED), (1, 1, EDGES)) if self.reduction else (
        (0, 1, EDGES),)
    from_input = self.space.edge_preds < self.space.num_inputs
    found = []
    for bank, stride, group in kinds:
      mine = from_input == (bank == 0) if self.reduction else (
          np.ones_like(from_input))
      for op in self.space.ops:
        edges = tuple(
            e for e, names in enumerate(self.space.site_ops(self.cell_type))
            if mine[e] and op in names)
        if not edges:
          continue
        module = operations.build(op, operations.Context(
            stride, operations.BatchStatistics, self.pool_norm, self.conv_bias))
        tree = self._init_shapes(module)
        leaves, treedef = jax.tree.flatten(tree)
        found.append(Variant(
            op, group, module, bank, edges,
            tuple(leaf.shape for leaf in leaves), treedef))
    return tuple(found)

  def _init_shapes(self, module):
    x = jax.ShapeDtypeStruct((1, 2, 2, self.features), jnp.float32)
    rngs = {name: jax.random.key(0) for name in ('params', 'noise')}
    return jax.eval_shape(module.init, rngs, x).get('params', {})

  @property
  def groups(self):
    """Names of the groups that have parameters."""
    return tuple(sorted({v.group for v in self.variants if v.size}))

  @property
  def num_parameters(self):
    """P: parameters of the largest operation, at least 1."""
    return max(1, *(v.size for v in self.variants))

  def variant_index(self, edges, ops):
    """[M] edges and operations to [M] numbers of `variants`."""
    table = np.zeros((self.space.num_edges, len(self.space.ops)), np.int32)
    for number, variant in enumerate(self.variants):
      table[list(variant.edges), self.space.ops.index(variant.op)] = number
    return jnp.asarray(table)[edges, ops]

  def gather(self, weights, edges, index):
    """The parameters of the M sampled operations of each cell, [n,M,P].

    Those behind an operation's `size` are of no meaning.

    Args:
      weights: of each of n cells, leaves [edges of the group, ...].
      edges: [M] int.
      index: [M] int, of `variants`.
    """
    rows = max(len(v.edges) for v in self.variants)
    # One table, [n,rows,.], of all operations beside each other, from which
    # windows are cut: a few large operations instead of many small ones.
    starts, width = [], 0
    position = np.zeros((len(self.variants), self.space.num_edges), np.int32)
    for number, variant in enumerate(self.variants):
      position[number, list(variant.edges)] = np.arange(len(variant.edges))
      starts.append(width)
      width += variant.size
    table = jnp.stack([
        self._table(cell, rows, self.num_parameters) for cell in weights])

    def window(index, edge):
      start = (jnp.int32(0), jnp.asarray(position)[index, edge],
               jnp.asarray(starts, jnp.int32)[index])
      return lax.dynamic_slice(
          table, start, (len(weights), 1, self.num_parameters))[:, 0]

    return jax.vmap(window, out_axes=1)(index, edges)

  def _table(self, weights, rows, pad):
    """[rows, all parameters of one edge + pad]."""
    columns = [
        jnp.pad(leaf.reshape(leaf.shape[0], -1),
                ((0, rows - leaf.shape[0]), (0, 0)))
        for variant in self.variants if variant.size
        for leaf in jax.tree.leaves(weights[variant.group][variant.op])]
    return jnp.concatenate([*columns, jnp.zeros((rows, pad))], 1)


# One plan object per key: its variants are built once.
layout_of = functools.cache(Layout)

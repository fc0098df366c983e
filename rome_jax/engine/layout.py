"""What is static in a search cell: its operations and where things lie."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

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
    op, group: names; together they find its parameters in the cell's tree.
    module: the Flax module.
    bank: the number of the bank of states that it reads.
    edges: the edges that have it; the leading axis of its parameters.
    shapes: of the parameters of one edge, in tree order.
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
  def size(self) -> int:
    """Number of parameters of one edge."""
    return sum(int(np.prod(s)) for s in self.shapes)

  @property
  def identity(self) -> bool:
    """Whether it hands on its input, and may drop parts of it."""
    return isinstance(self.module, operations.Skip) and self.module.stride == 1

  def unflatten(self, flat: jax.Array) -> Any:
    """Turns the first `size` of the numbers [P] into the parameters."""
    leaves, start = [], 0
    for shape in self.shapes:
      stop = start + int(np.prod(shape))
      leaves.append(flat[start:stop].reshape(shape))
      start = stop
    return jax.tree.unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What is static in a search cell; hashable, so that traces are shared.

  The states of the n equal cells of a stage lie in banks, arrays of maps of one
  shape. Normal cells have one bank, [R,B,H,W,C]; a reduction cell has two,
  inputs [2,B,H,W,C] and nodes [N,B,h,w,C]. Only what an operation reads is ever
  copied out of them. The backward pass needs nothing else of the cells.

  Attributes:
    space: the search space.
    cell_type: 'normal' or 'reduce'.
    features: C, channels of each state.
    preprocessed: whether the inputs are preprocessed, or one is taken as it is.
    conv_bias, pool_norm: `bias` and `pool_norm` of `operations.Context`.
    partial: k, see `operations.partial`; divides C.
    evaluator: 'listed', slot by slot, or 'batched', see that module.
  """

  space: Space
  cell_type: str
  features: int
  preprocessed: bool = True
  conv_bias: bool = False
  pool_norm: bool = True
  partial: int = 1
  evaluator: str = 'listed'

  def __post_init__(self):
    if self.partial < 1 or self.features % self.partial:
      raise ValueError(
          f'partial={self.partial} must divide the {self.features} channels')
    if not self.preprocessed and (
        self.reduction or self.space.num_inputs > 1
        or not self.ends_in_last_node):
      raise ValueError(
          'reduction_prev=None is for a normal cell of one input whose output '
          f'is its last node, not for a {self.cell_type} cell of space '
          f'{self.space.name}')

  @property
  def reduction(self) -> bool:
    return self.cell_type == 'reduce'

  @property
  def ends_in_last_node(self) -> bool:
    """Whether the output is the last node (NAS-Bench-201), not all of them."""
    return self.space.cell_types == CELL_TYPES[:1]

  @property
  def bank_starts(self) -> tuple[int, ...]:
    """First state of each bank."""
    return (0, self.space.num_inputs) if self.reduction else (0,)

  @property
  def rows_per_cell(self) -> tuple[int, ...]:
    """Per bank, how many rows lie between one cell and the next."""
    inputs, nodes = self.space.num_inputs, self.space.num_nodes
    if self.reduction:
      return inputs, nodes
    # An input taken as it is has its row already: it is the last node of the
    # cell before.
    return (inputs + nodes if self.preprocessed else nodes,)

  def first_rows(self, i: Any) -> list[Any]:
    """Per bank, the row of cell i's first state."""
    return [i * rows for rows in self.rows_per_cell]

  def output_rows(self, i: Any) -> tuple[Any, int]:
    """(first row, count) in the last bank of the nodes that cell i puts out."""
    start = (self.first_rows(i)[-1] + self.space.num_inputs
             - self.bank_starts[-1])
    last = self.space.num_nodes - 1
    return (start + last, 1) if self.ends_in_last_node else (start, last + 1)

  @functools.cached_property
  def variants(self) -> tuple[Variant, ...]:
    """Every operation of the cell, once for each kind of edge that has it."""
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
        module = operations.partial(operations.build(op, operations.Context(
            stride, operations.BatchStatistics, self.pool_norm,
            self.conv_bias)), self.partial)
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
  def groups(self) -> tuple[str, ...]:
    """Names of the groups that have any parameters."""
    return tuple(sorted({v.group for v in self.variants if v.size}))

  @property
  def num_parameters(self) -> int:
    """P: the number of parameters of the largest operation, at least 1."""
    return max(1, *(v.size for v in self.variants))

  def variant_index(self, edges: jax.Array, ops: jax.Array) -> jax.Array:
    """Per slot, the number of its variant: [M] of edges [M] and ops [M]."""
    table = np.zeros((self.space.num_edges, len(self.space.ops)), np.int32)
    for number, variant in enumerate(self.variants):
      table[list(variant.edges), self.space.ops.index(variant.op)] = number
    return jnp.asarray(table)[edges, ops]

  def gather(self, weights: Sequence[Any], edges: jax.Array,
             index: jax.Array) -> jax.Array:
    """The parameters of the M slots of each of n cells, [n,M,P].

    Entries past an operation's `size` are padding.

    Args:
      weights: per cell, its tree; leaves [edges of the variant, ...].
      edges: [M] int.
      index: [M] int, numbers of variants.
    """
    rows = max(len(v.edges) for v in self.variants)
    # Windows are cut from one table [n,rows,.] with all operations side by
    # side: a few large instructions in place of many small ones.
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
    """[rows, parameters of all variants + pad] of one cell."""
    columns = [
        jnp.pad(leaf.reshape(leaf.shape[0], -1),
                ((0, rows - leaf.shape[0]), (0, 0)))
        for variant in self.variants if variant.size
        for leaf in jax.tree.leaves(weights[variant.group][variant.op])]
    return jnp.concatenate([*columns, jnp.zeros((rows, pad))], 1)


# One object per key, so that its variants are built once.
layout_of = functools.cache(Layout)

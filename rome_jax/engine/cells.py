"""The cells of supernets and of derived networks, as Flax modules."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rome_jax.engine import batched, operations, stage
from rome_jax.engine import drop as drop_lib
from rome_jax.engine import layout as layout_lib
from rome_jax.engine.archs import CellArch
from rome_jax.spaces import Space


def run_cells(cells: Sequence['SearchCell'], *states: jax.Array,
              arch: CellArch, want_weight_grads: jax.Array | None = None,
              drop: drop_lib.Drop = drop_lib.NOTHING,
              ) -> tuple[jax.Array, ...]:
  """Runs equal cells in a row, each fed the outputs of those before it.

  They are one loop of the compiled program, which does not grow with their
  number.

  Args:
    cells: bound `SearchCell`s that differ in `reduction_prev` and name only.
    *states: the inputs of the first cell, [B,H,W,.].
    arch: the slots to evaluate, the same in all cells.
    want_weight_grads: bool, may be traced: False makes the gradients of the
      weights of operations and preprocessors zeros, which cost nothing. None
      means True. It changes no other gradient.
    drop: what is left out at random; draws from the rng stream 'noise'.

  Returns:
    As many outputs [B,h,w,N*C] (or [B,h,w,C]), of the last cells, as a cell
    has inputs; fewer if there are fewer cells.
  """
  layout = cells[0].layout
  like = jax.ShapeDtypeStruct(
      stage.output_shape(layout, states[-1].shape), states[-1].dtype)
  made = [cell.variables_of(*stage.inputs_of(layout, i, states, lambda _: like),
                            arch=arch, drop=drop)
          for i, cell in enumerate(cells)]
  if cells[0].is_initializing():
    # Compiling the cells to throw their output away would cost a minute.
    return (jnp.zeros(like.shape, like.dtype),) * min(
        len(cells), len(states))
  pairs, weights, groups, each = zip(*made)
  draws = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  flat, slots, draws = _slots(layout, groups, arch, draws)
  return stage.search_cells(
      layout, pairs, weights, flat, slots.gates, slots.edges, slots.ops, draws,
      want_weight_grads, states)


def _slots(layout, groups, arch, draws):
  """(weights, slots, draws) as the layout's evaluator has them."""
  if layout.evaluator == 'batched':
    gates, draws = batched.dense(layout, arch, draws)
    every = jnp.arange(layout.space.num_edges)
    return batched.gather(layout, groups), CellArch(every, every, gates), draws
  index = layout.variant_index(arch.edges, arch.ops)
  return stage.gather(layout, groups, arch.edges, index), arch, draws


class SearchCell(nn.Module):
  """A cell of a supernet: has all candidates' weights, runs the listed slots.

  Attributes:
    space: the search space.
    features: C, channels of each node.
    reduction: whether edges from the inputs have stride 2.
    reduction_prev: whether the cell before was a reduction. None takes the
      input as it is; only for a normal cell of one input whose output is its
      last node.
    conv_bias, pool_norm: `bias` and `pool_norm` of `operations.Context`.
    partial: k, where operations see the first 1/k of the channels only; see
      `operations.partial`.
    evaluator: 'listed' runs the listed slots one by one; 'batched' all
      operations of an edge at once, which is faster for mixtures.
  """

  space: Space
  features: int
  reduction: bool = False
  reduction_prev: bool | None = None
  conv_bias: bool = False
  pool_norm: bool = True
  partial: int = 1
  evaluator: str = 'listed'

  @property
  def layout(self) -> layout_lib.Layout:
    return layout_lib.layout_of(
        self.space, 'reduce' if self.reduction else 'normal', self.features,
        self.reduction_prev is not None, self.conv_bias, self.pool_norm,
        self.partial, self.evaluator)

  def __call__(self, *states: jax.Array, arch: CellArch,
               want_weight_grads: jax.Array | None = None,
               drop: drop_lib.Drop = drop_lib.NOTHING) -> jax.Array:
    """Inputs [B,H,W,.] and a sampled cell to [B,h,w,N*C] (or [B,h,w,C])."""
    return run_cells([self], *states, arch=arch,
                     want_weight_grads=want_weight_grads, drop=drop)[-1]

  @nn.compact
  def variables_of(self, *states: jax.Array, arch: CellArch,
                   drop: drop_lib.Drop = drop_lib.NOTHING) -> tuple[Any, ...]:
    """What `stage.search_cells` needs of this cell.

    Args:
      *states: the inputs; only shapes and dtypes matter.
      arch: the slots to evaluate.
      drop: what is left out at random.

    Returns:
      (preprocessors or None, their weights, the operations' weights, what the
      slots draw).

    Raises:
      ValueError: dropout on identities that see a part of the channels only.
    """
    if drop.skip is not None and self.partial > 1:
      raise ValueError(
          f'dropout on identities needs partial=1, not {self.partial}')
    pair: Any = None
    weights = {}
    if self.reduction_prev is not None:
      pair = stage.preprocessors(
          self.features, self.reduction_prev, stage.unnormalised)
      weights = {
          module.name: operations.parameter(
              self, module.name,
              lambda rng, x, module=module: module.init(
                  rng, jnp.zeros(x.shape, x.dtype))['params'], s)
          for module, s in zip(pair, states)}
    groups = {group: operations.parameter(self, group, _init_edges, self.layout,
                                       group)
              for group in self.layout.groups}
    draws = drop_lib.draw(
        lambda: self.make_rng('noise'), arch.edges, self.space.num_edges,
        len(states[-1]), drop, any(map(operations.draws, self.space.ops)))
    return pair, weights, groups, draws


def _init_edges(rng, layout, group):
  """Initial parameters {operation: tree}, leaves [edges of the group, ...].

  The law is that of `operations.torch_init`. One draw serves all operations,
  since each costs compile time and a supernet has a hundred kernels.
  """
  variants = [v for v in layout.variants if v.group == group and v.size]
  edges = max(len(v.edges) for v in variants)
  draw = jax.random.uniform(
      rng, (edges, sum(v.size for v in variants)), minval=-1., maxval=1.)
  tree, start = {}, 0
  for variant in variants:
    stop = start + variant.size
    drawn = jax.vmap(variant.unflatten)(
        draw[:len(variant.edges), start:stop])
    tree[variant.op] = jax.tree.map(
        # A bias starts at 0; the mean is removed after it anyway.
        lambda w: w * (operations.init_bound(w.shape[1:]) if w.ndim > 2 else 0),
        drawn)
    start = stop
  return tree


# ------------------------------------------------------------ discrete cell


class DiscreteCell(nn.Module):
  """A cell of a derived network, with one or two inputs.

  Attributes:
    nodes: per node, its (operation, predecessor) pairs.
    concat: the states whose concatenation is the output.
    features: C.
    reduction, reduction_prev: as in `SearchCell`.
    norm: function that makes a normalisation layer.
  """

  nodes: tuple[tuple[tuple[str, int], ...], ...]
  concat: tuple[int, ...]
  features: int
  reduction: bool
  reduction_prev: bool | None
  norm: Callable

  @nn.compact
  def __call__(self, *states, drop_path=None):
    """Inputs [B,H,W,.] to [B,h,w,len(concat)*C].

    Args:
      *states: outputs of the two cells before, or of the one.
      drop_path: function applied to the output of every operation but the
        identity, or None.
    """
    states = list(states)
    if self.reduction_prev is not None:
      pair = stage.preprocessors(self.features, self.reduction_prev, self.norm)
      states = [m.clone(parent=self)(s) for m, s in zip(pair, states)]
    for number, node in enumerate(self.nodes):
      terms = []
      for i, (op, pred) in enumerate(node):
        stride = 2 if self.reduction and pred < 2 else 1
        module = operations.build(op, operations.Context(stride, self.norm))
        y = module.clone(
            parent=self, name=f'node{number}_{i}_{op}')(states[pred])
        if drop_path is not None and not (
            op == 'skip_connect' and stride == 1):
          y = drop_path(y)
        terms.append(y)
      states.append(sum(terms[1:], terms[0]))
    return jnp.concatenate([states[i] for i in self.concat], -1)

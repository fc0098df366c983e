"""Search cells and discrete cells as Flax modules."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rome_jax.engine import layout as layout_lib
from rome_jax.engine import operations, stage
from rome_jax.engine.archs import CellArch
from rome_jax.spaces import Space


def run_cells(cells, *states, arch: CellArch, want_weight_grads=None):
  """The last outputs of equal cells in a row, each fed the ones before.

  They are one loop in the compiled program, whose size does not grow with
  their number.

  Args:
    cells: bound `SearchCell`s, equal but for `reduction_prev` and the name.
    *states: the inputs of the first, [B,H,W,.].
    arch: the sampled cell.
    want_weight_grads: bool, may be traced: False makes the gradients of the
      weights of operations and preprocessors zeros, which cost nothing. None
      means True. It changes no other gradient.

  Returns:
    As many outputs [B,h,w,N*C] (or [B,h,w,C]), of the last cells, as a cell
    has inputs; fewer if there are fewer cells.
  """
  plan = cells[0].plan
  like = jax.ShapeDtypeStruct(
      stage.output_shape(plan, states[-1].shape), states[-1].dtype)
  made = [cell.variables_of(*stage.inputs_of(plan, i, states, lambda _: like),
                            arch=arch)
          for i, cell in enumerate(cells)]
  if cells[0].is_initializing():
    # Compiling the cells to throw their output away would cost a minute.
    return (jnp.zeros(like.shape, like.dtype),) * min(
        len(cells), len(states))
  index = plan.variant_index(arch.edges, arch.ops)
  pairs, weights, groups, seeds = zip(*made)
  flat = stage.gather(plan, groups, arch.edges, index)
  seeds = None if seeds[0] is None else jnp.stack(seeds)
  return stage.search_cells(
      plan, pairs, weights, flat, arch.gates, arch.edges, arch.ops, seeds,
      want_weight_grads, states)


class SearchCell(nn.Module):
  """A cell of a supernet: every candidate's weights, one path evaluated.

  Attributes:
    space: the search space.
    features: C, channels of each node.
    reduction: whether edges from the inputs have stride 2.
    reduction_prev: whether the cell before was a reduction; None if the
      input is taken as it is: one only, by a normal cell whose output is its
      last node.
    conv_bias, pool_norm: see `ops.Context`.
  """

  space: Space
  features: int
  reduction: bool = False
  reduction_prev: bool | None = None
  conv_bias: bool = False
  pool_norm: bool = True

  @property
  def plan(self):
    return layout_lib.layout_of(
        self.space, 'reduce' if self.reduction else 'normal', self.features,
        self.reduction_prev is not None, self.conv_bias, self.pool_norm)

  def __call__(self, *states, arch: CellArch, want_weight_grads=None):
    """Inputs [B,H,W,.] and a sampled cell to [B,h,w,N*C] (or [B,h,w,C])."""
    return run_cells([self], *states, arch=arch,
                     want_weight_grads=want_weight_grads)[-1]

  @nn.compact
  def variables_of(self, *states, arch: CellArch):
    """What `_search_cells` needs of this cell, its inputs' shapes being known.

    Returns:
      (preprocessors or None, their weights, the operations' weights, [M] seeds
      of the operation `noise` or None).
    """
    pair, weights = None, {}
    if self.reduction_prev is not None:
      pair = stage.preprocessors(
          self.features, self.reduction_prev, stage.unnormalised)
      weights = {
          module.name: operations.parameter(
              self, module.name,
              lambda rng, x, module=module: module.init(
                  rng, jnp.zeros(x.shape, x.dtype))['params'], s)
          for module, s in zip(pair, states)}
    groups = {group: operations.parameter(self, group, _init_edges, self.plan,
                                       group)
              for group in self.plan.groups}
    seeds = None
    if 'noise' in self.space.ops:
      seeds = jax.random.bits(
          self.make_rng('noise'), arch.edges.shape, jnp.uint32)
    return pair, weights, groups, seeds


def _init_edges(rng, plan, group):
  """Initial parameters {operation: tree}, leaves [edges of the group, ...].

  The law is `ops.torch_init`'s; one draw serves all operations, since each
  draw costs compile time and a supernet has a hundred kernels.
  """
  variants = [v for v in plan.variants if v.group == group and v.size]
  edges = max(len(v.edges) for v in variants)
  draw = jax.random.uniform(
      rng, (edges, sum(v.size for v in variants)), minval=-1., maxval=1.)
  tree, start = {}, 0
  for variant in variants:
    stop = start + variant.size
    drawn = jax.vmap(variant.unflatten)(
        draw[:len(variant.edges), start:stop])
    tree[variant.op] = jax.tree.map(
        # A bias (behind which the mean is removed anyway) starts at 0.
        lambda w: w * (operations.init_bound(w.shape[1:]) if w.ndim > 2 else 0),
        drawn)
    start = stop
  return tree


# ------------------------------------------------------------ discrete cell


class DiscreteCell(nn.Module):
  """A cell of a derived network, of one or two inputs.

  Attributes:
    nodes: per node, its (operation, predecessor) pairs.
    concat: the states that form the output.
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

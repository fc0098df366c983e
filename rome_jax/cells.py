"""Cells: one sampled architecture as a compact program, and a genotype's cell.

`SearchCell` evaluates the M active edges of a sampled cell in one `lax.scan`
with a single switch over operations in its body. A direct translation (a
switch per edge, differentiated by JAX) keeps the residuals of every branch
and takes minutes to compile. Here the cell is one `custom_vjp`: the forward
pass keeps the cell's inputs and its output, and the output holds all node
states; the backward pass walks the edges in reverse and recomputes the
operation that was sampled, inside the switch. So memory is that of one path,
whatever the number of candidate operations (ROME, Sec. 4.5).

`jax.vmap` over architectures would turn the switch into a `select` that runs
every operation for every sample; `choice.one_by_one` keeps it a switch, and
all that surrounds it is batched.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax import choice, kernels
from rome_jax import ops as ops_lib
from rome_jax.sampling import CellArch
from rome_jax.spaces import CELL_TYPES, Space

# Groups of the parameter tree of a search cell: edges at the cell's stride,
# and (in a reduction cell) those that leave the cell's inputs.
EDGES, STRIDED = 'edges', 'strided_edges'


def _preprocessors(features, reduction_prev, norm):
  """The modules that bring s0 and s1 to `features` channels and one size."""
  first = ops_lib.FactorizedReduce if reduction_prev else ops_lib.ReluConvNorm
  return (first(features, norm, name='preprocess0', parent=None),
          ops_lib.ReluConvNorm(features, norm, name='preprocess1', parent=None))


# ------------------------------------------------------- branches of a cell


@dataclasses.dataclass(frozen=True)
class _Variant:
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
class _Plan:
  """All that is static in a search cell; hashable, so that traces are shared.

  A normal cell has one bank of states, [2+N,B,H,W,C]: inputs and nodes. A
  reduction cell has two, inputs [2,B,H,W,C] and nodes [N,B,h,w,C].
  """

  space: Space
  cell_type: str
  features: int
  conv_bias: bool = False
  pool_norm: bool = True

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

  @functools.cached_property
  def variants(self) -> tuple[_Variant, ...]:
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
        module = ops_lib.build(op, ops_lib.Context(
            stride, ops_lib.BatchStatistics, self.pool_norm, self.conv_bias))
        tree = self._init_shapes(module)
        leaves, treedef = jax.tree.flatten(tree)
        found.append(_Variant(
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
    """The parameters of the M sampled operations, [M,P], padded with zeros.

    Args:
      weights: the cell's parameters, leaves [edges of the group, ...].
      edges: [M] int.
      index: [M] int, of `variants`.
    """
    rows = jnp.zeros((edges.shape[0], self.num_parameters))
    for number, variant in enumerate(self.variants):
      if not (variant.size and variant.edges):
        continue
      position = np.zeros(self.space.num_edges, np.int32)
      position[list(variant.edges)] = np.arange(len(variant.edges))
      leaves = jax.tree.leaves(weights[variant.group][variant.op])
      flat = jnp.concatenate(
          [leaf.reshape(leaf.shape[0], -1) for leaf in leaves], 1)
      flat = flat[jnp.asarray(position)[edges]]
      flat = jnp.where((index == number)[:, None], flat, 0)
      rows = rows.at[:, :variant.size].add(flat)
    return rows


# One plan object per key: its variants are built once.
_plan = functools.cache(_Plan)


# ------------------------------------------------------ one sampled operation


@functools.cache
def _operation(plan):
  """y = f(w, xs, seed), per variant: the sampled operation of one edge.

  xs holds the edge's predecessor in each bank, of which the branch reads its
  own; w is [P]; seed is that of the operation `noise`, or None.
  """

  def branch(variant):
    def run(w, xs, seed):
      rngs = None if seed is None else {'noise': jax.random.key(seed)}
      return variant.module.apply(
          {'params': variant.unflatten(w)}, xs[variant.bank], rngs=rngs)
    return run

  return [branch(v) for v in plan.variants]


@functools.cache
def _forward_switch(plan):
  branches = _operation(plan)
  return choice.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


@functools.cache
def _backward_switch(plan, wants):
  """(dw or None, dgate or None, dxs) of gate * f(w, xs, seed)."""

  def branch(run):
    def pull(w, gate, xs, seed, g, trained):
      return choice.pull(
          lambda w, xs: run(w, xs, seed), wants, w, gate, xs, g, trained)
    return pull

  branches = [branch(run) for run in _operation(plan)]
  return choice.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


# ------------------------------------------------------------ the whole DAG


def _reads(plan, pred):
  """Per bank, the row that holds state `pred` (any row if it does not)."""
  starts = (*plan.bank_starts, plan.space.num_inputs + plan.space.num_nodes)
  return [jnp.clip(pred - a, 0, b - a - 1)
          for a, b in zip(starts, starts[1:])]


def _rows(banks, indices):
  return [lax.dynamic_index_in_dim(bank, i, keepdims=False)
          for bank, i in zip(banks, indices)]


def _add_to(bank, row, value):
  # Unlike bank.at[row].add, which is a scatter, this stays in place.
  old = lax.dynamic_index_in_dim(bank, row, keepdims=False)
  return lax.dynamic_update_index_in_dim(bank, old + value, row, 0)


def _edge_arrays(plan, edges, ops):
  space = plan.space
  preds = jnp.asarray(space.edge_preds)[edges]
  # The row of each edge's node in the last bank.
  rows = (jnp.asarray(space.edge_nodes)[edges] + space.num_inputs
          - plan.bank_starts[-1])
  return preds, rows, plan.variant_index(edges, ops)


def _banks(plan, inputs, nodes):
  if plan.reduction:
    return inputs, nodes
  return (jnp.concatenate([inputs, nodes]),)


@functools.partial(jax.jit, static_argnums=0)
def _run_edges(plan, weights, gates, edges, ops, seeds, inputs):
  """Node states [N,B,h,w,C] from preprocessed inputs [2,B,H,W,C]."""
  preds, rows, index = _edge_arrays(plan, edges, ops)
  slots = preds, rows, index, gates, plan.gather(weights, edges, index), seeds
  b, h, w, c = inputs.shape[1:]
  stride = 2 if plan.reduction else 1
  nodes = jnp.zeros((plan.space.num_nodes, b, -(-h // stride),
                     -(-w // stride), c), inputs.dtype)

  def body(banks, slot):
    pred, row, variant, gate, flat, seed = slot
    xs = _rows(banks, _reads(plan, pred))
    y = _forward_switch(plan)(variant, flat, xs, seed)
    *others, last = banks
    return (*others, _add_to(last, row, gate.astype(y.dtype) * y)), None

  banks, _ = lax.scan(body, _banks(plan, inputs, nodes), slots)
  return banks[-1][-plan.space.num_nodes:]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_edges(plan, wants, weights, gates, edges, ops, seeds, trained,
                inputs, nodes, g):
  """Cotangents (weights, gates, inputs) of `_run_edges` at nodes' g."""
  preds, rows, index = _edge_arrays(plan, edges, ops)
  flat, pull_gather = jax.vjp(
      lambda weights: plan.gather(weights, edges, index), weights)
  slots = preds, rows, index, gates, flat, seeds
  banks = _banks(plan, inputs, nodes)
  pull = _backward_switch(plan, wants)

  def body(cotangents, slot):
    pred, row, variant, gate, w, seed = slot
    reads = _reads(plan, pred)
    xs = _rows(banks, reads)
    g = lax.dynamic_index_in_dim(cotangents[-1], row, keepdims=False)
    dw, dgate, dxs = pull(variant, w, gate, xs, seed, g, trained)
    cotangents = tuple(map(_add_to, cotangents, reads, dxs))
    return cotangents, (dw, dgate)

  zeros = jnp.zeros_like(inputs)
  cotangents, (dflat, dgates) = lax.scan(
      body, _banks(plan, zeros, g), slots, reverse=True)
  dweights = pull_gather(dflat)[0] if wants.weights else None
  return dweights, dgates, cotangents[0][:plan.space.num_inputs]


# ------------------------------------------------------- the cell as a whole


def _preprocess(pair, weights, states):
  """[num_inputs,B,H,W,C] from the cell's inputs."""
  if pair is None:  # They have the cell's width already.
    return jnp.stack(states)
  return jnp.stack([
      module.apply({'params': weights[module.name]}, s)
      for module, s in zip(pair, states)])


def _to_output(plan, nodes):
  """[N,B,h,w,C] -> the concatenation [B,h,w,N*C], or the last node."""
  if plan.ends_in_last_node:
    return nodes[-1]
  n, b, h, w, c = nodes.shape
  return jnp.moveaxis(nodes, 0, 3).reshape(b, h, w, n * c)


def _to_nodes(plan, output):
  """[N,B,h,w,C] from the concatenation."""
  n = plan.space.num_nodes
  b, h, w, c = output.shape
  return jnp.moveaxis(output.reshape(b, h, w, n, c // n), 3, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _search_cell(plan, pair, weights, gates, edges, ops, seeds, trained,
                 states):
  return _search_cell_nodes(
      plan, pair, weights, gates, edges, ops, seeds, states)[0]


def _search_cell_nodes(plan, pair, weights, gates, edges, ops, seeds, states):
  """The output and what the backward pass needs of the nodes."""
  inputs = _preprocess(pair, weights, states)
  nodes = _run_edges(plan, weights, gates, edges, ops, seeds, inputs)
  output = _to_output(plan, nodes)
  # The concatenation is the nodes.
  return output, nodes if plan.ends_in_last_node else output


def _search_cell_fwd(plan, pair, *primals):
  wants = choice.Wants(*map(choice.perturbed, primals[:2]))
  values = choice.values(primals)
  *others, _, states = values
  output, kept = _search_cell_nodes(plan, pair, *others, states)
  return output, (wants, values, kept)


def _after(first, then):
  """`then`, which XLA cannot compute before `first`.

  XLA's CPU backend removes barriers too early for them to hinder it. So a
  zero that depends on `first` is added: the end of a loop, as XLA would see
  through arithmetic.
  """
  numbers = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(first)]
  count = sum((x != x).astype(jnp.int32) for x in numbers)
  zero = lax.while_loop(lambda i: i > 0, lambda i: i - 1, count)
  return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), then)


def _search_cell_bwd(plan, pair, residuals, g):
  wants, (weights, gates, edges, ops, seeds, trained, states), kept = residuals
  g = choice.dense(g)
  # Else XLA would find what is recomputed here equal to the forward pass's,
  # and keep all of that until now.
  states, kept = _after(g, (states, kept))
  inputs, pull_preprocess = jax.vjp(
      functools.partial(_preprocess, pair), weights, states)
  if plan.ends_in_last_node:
    nodes, dnodes = kept, jnp.zeros_like(kept).at[-1].set(g)
  else:
    nodes, dnodes = _to_nodes(plan, kept), _to_nodes(plan, g)
  dweights, dgates, dinputs = _pull_edges(
      plan, wants, weights, gates, edges, ops, seeds, trained, inputs, nodes,
      dnodes)
  with kernels.trained(trained):
    dpreprocess, dstates = pull_preprocess(dinputs)
  if wants.weights:
    # Else XLA would put the products off to the end and keep their factors.
    dstates = _after(dpreprocess, dstates)
    dweights = jax.tree.map(jnp.add, dweights, dpreprocess)
  return dweights, dgates, None, None, None, None, dstates


_search_cell.defvjp(_search_cell_fwd, _search_cell_bwd, symbolic_zeros=True)


class SearchCell(nn.Module):
  """A cell of a supernet: every candidate's weights, one path evaluated.

  Attributes:
    space: the search space.
    features: C, channels of each node.
    reduction: whether edges from the inputs have stride 2.
    reduction_prev: whether the cell before was a reduction; None if the
      inputs are taken as they are.
    conv_bias, pool_norm: see `ops.Context`.
  """

  space: Space
  features: int
  reduction: bool = False
  reduction_prev: bool | None = None
  conv_bias: bool = False
  pool_norm: bool = True

  @nn.compact
  def __call__(self, *states, arch: CellArch):
    """Inputs [B,H,W,.] and a sampled cell to [B,h,w,N*C] (or [B,h,w,C])."""
    plan = _plan(self.space, 'reduce' if self.reduction else 'normal',
                 self.features, self.conv_bias, self.pool_norm)
    pair, weights = None, {}
    if self.reduction_prev is not None:
      pair = _preprocessors(
          self.features, self.reduction_prev, ops_lib.BatchStatistics)
      weights = {
          module.name: self.param(
              module.name,
              lambda rng, x, module=module: module.init(rng, x)['params'], s)
          for module, s in zip(pair, states)}
    for group in plan.groups:
      weights[group] = self.param(group, _init_edges, plan, group)
    seeds = None
    if 'noise' in self.space.ops:
      seeds = jax.random.bits(
          self.make_rng('noise'), arch.edges.shape, jnp.uint32)
    if self.is_initializing():
      # Compiling the cell to throw its output away would cost a minute.
      return _output_like(plan, states[-1])
    return _search_cell(plan, pair, weights, arch.gates, arch.edges, arch.ops,
                        seeds, arch.trained, states)


def _output_like(plan, s1):
  b, h, w, _ = s1.shape
  stride = 2 if plan.reduction else 1
  return _to_output(plan, jnp.zeros(
      (plan.space.num_nodes, b, -(-h // stride), -(-w // stride),
       plan.features), s1.dtype))


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
        lambda w: w * (ops_lib.init_bound(w.shape[1:]) if w.ndim > 2 else 0),
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
      pair = _preprocessors(self.features, self.reduction_prev, self.norm)
      states = [m.clone(parent=self)(s) for m, s in zip(pair, states)]
    for number, node in enumerate(self.nodes):
      terms = []
      for i, (op, pred) in enumerate(node):
        stride = 2 if self.reduction and pred < 2 else 1
        module = ops_lib.build(op, ops_lib.Context(stride, self.norm))
        y = module.clone(
            parent=self, name=f'node{number}_{i}_{op}')(states[pred])
        if drop_path is not None and not (
            op == 'skip_connect' and stride == 1):
          y = drop_path(y)
        terms.append(y)
      states.append(sum(terms[1:], terms[0]))
    return jnp.concatenate([states[i] for i in self.concat], -1)

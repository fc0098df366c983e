"""Cells: one sampled architecture as a compact program, and a genotype's cell.

`SearchCell` evaluates the M active edges of a sampled cell in one `lax.scan`
with a single switch over operations in its body, and `run_cells` the equal
cells of a stage in one `lax.scan` around it, so that the program does not grow
with the number of cells. A direct translation (a switch per edge,
differentiated by JAX) keeps the residuals of every branch and takes minutes to
compile. Here a stage is one `custom_vjp`: the forward pass keeps the stage's
inputs and the banks, which hold each cell's preprocessed inputs and nodes; the
backward pass walks cells and edges in reverse and recomputes the operation
that was sampled, inside the switch. So memory is that of one path, whatever
the number of candidate operations (ROME, Sec. 4.5).

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
_plan = functools.cache(_Plan)


# ------------------------------------------------------ one sampled operation


@functools.cache
def _operation(plan):
  """Per variant, (the bank that it reads, y = f(w, x, seed)).

  w is [P], x the edge's predecessor; seed is that of the operation `noise`, or
  None.
  """

  def branch(variant):
    def run(w, x, seed):
      rngs = None if seed is None else {'noise': jax.random.key(seed)}
      return variant.module.apply(
          {'params': variant.unflatten(w)}, x, rngs=rngs)
    return variant.bank, run

  return [branch(v) for v in plan.variants]


@functools.cache
def _forward_switch(plan):
  """y of (index, w, xs, seed): xs is a predecessor's `choice.Row` per bank.

  A branch reads its own bank only.
  """

  def branch(bank, run):
    return lambda w, xs, seed: run(w, xs[bank].read(), seed)

  branches = [branch(*operation) for operation in _operation(plan)]
  return choice.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


@functools.cache
def _backward_switch(plan, wants):
  """(dw or None, dgate or None, dx per bank) of gate * f(w, x, seed)."""

  def branch(bank, run):
    def pull(w, gate, xs, seed, g, trained):
      dw, dgate, dx = choice.pull(
          lambda w, x: run(w, x, seed), wants, w, gate, xs[bank].read(),
          g.read(), trained)
      return dw, dgate, [
          dx if i == bank else jnp.zeros(x.bank.shape[1:], dx.dtype)
          for i, x in enumerate(xs)]
    return pull

  branches = [branch(*operation) for operation in _operation(plan)]
  return choice.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


# ------------------------------------------------------------ the whole DAG


def _empty_banks(plan, cells, shape, dtype):
  """Zeros for so many cells of inputs [B,H,W,.]."""
  b, h, w, _ = shape
  rows = [cells * n for n in plan.rows_per_cell]
  node = _node_shape(plan, shape)[1:]
  if plan.reduction:
    return (jnp.zeros((rows[0], b, h, w, plan.features), dtype),
            jnp.zeros((rows[1], *node), dtype))
  # Before the first cell's nodes lies its input.
  extra = 0 if plan.preprocessed else plan.space.num_inputs
  return (jnp.zeros((rows[0] + extra, *node), dtype),)


def _reads(plan, firsts, banks, pred):
  """Per bank, the `choice.Row` of state `pred` (any if it is elsewhere)."""
  starts = (*plan.bank_starts, plan.space.num_inputs + plan.space.num_nodes)
  return [
      choice.Row(bank, first + jnp.clip(pred - a, 0, b - a - 1))
      for bank, first, a, b in zip(banks, firsts, starts, starts[1:])]


def _rows(bank, start, count):
  """[count,...] of a bank."""
  return lax.dynamic_slice_in_dim(bank, start, count)


def _put(bank, start, values):
  return lax.dynamic_update_slice_in_dim(bank, values, start, 0)


def _add_to(bank, start, values):
  # Unlike bank.at[row].add, which is a scatter, this stays in place (without
  # `vmap`).
  return _put(bank, start, _rows(bank, start, len(values)) + values)


def _edge_arrays(plan, edges, ops):
  space = plan.space
  preds = jnp.asarray(space.edge_preds)[edges]
  # The row of each edge's node in the last bank.
  rows = (jnp.asarray(space.edge_nodes)[edges] + space.num_inputs
          - plan.bank_starts[-1])
  return preds, rows, plan.variant_index(edges, ops)


@functools.partial(jax.jit, static_argnums=0)
def _run_edges(plan, flat, gates, edges, ops, seeds, firsts, banks):
  """The banks with the nodes of the cell whose states start at `firsts`."""
  preds, rows, index = _edge_arrays(plan, edges, ops)
  slots = preds, rows, index, gates, flat, seeds

  def body(banks, slot):
    pred, row, variant, gate, w, seed = slot
    y = _forward_switch(plan)(
        variant, w, _reads(plan, firsts, banks, pred), seed)
    *others, last = banks
    y = gate.astype(y.dtype) * y
    return (*others, _add_to(last, firsts[-1] + row, y[None])), None

  return lax.scan(body, banks, slots)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_edges(plan, wants, flat, gates, edges, ops, seeds, trained, firsts,
                banks, dbanks):
  """`_run_edges`' cotangents: (of the banks, of flat, of gates)."""
  preds, rows, index = _edge_arrays(plan, edges, ops)
  slots = preds, rows, index, gates, flat, seeds
  pull = _backward_switch(plan, wants)

  def body(dbanks, slot):
    pred, row, variant, gate, w, seed = slot
    reads = _reads(plan, firsts, banks, pred)
    g = choice.Row(dbanks[-1], firsts[-1] + row)
    dw, dgate, dxs = pull(variant, w, gate, reads, seed, g, trained)
    dbanks = tuple(
        _add_to(dbank, read.index, dx[None])
        for dbank, read, dx in zip(dbanks, reads, dxs))
    return dbanks, (dw, dgate)

  dbanks, (dflat, dgates) = lax.scan(body, dbanks, slots, reverse=True)
  return dbanks, dflat, dgates


# --------------------------------------------------- equal cells in a row


def _unnormalised():
  """In place of a layer of normalisation, which `_search_cells` supplies.

  It normalises outside the `switch` over cells. The result is in the bank, so
  the backward pass repeats no convolution to have it.
  """
  return lambda x: x


def _preprocess(pair, weights, states):
  """A cell's inputs [B,H,W,C], not normalised yet."""
  return tuple(module.apply({'params': weights[module.name]}, s)
               for module, s in zip(pair, states))


def _node_shape(plan, shape):
  """[N,B,h,w,C] for inputs [B,H,W,.]."""
  b, h, w, _ = shape
  stride = 2 if plan.reduction else 1
  return (plan.space.num_nodes, b, -(-h // stride), -(-w // stride),
          plan.features)


def _output_shape(plan, shape):
  """[B,h,w,N*C] (or [B,h,w,C]) for inputs [B,H,W,.]."""
  n, *size, c = _node_shape(plan, shape)
  return (*size, c if plan.ends_in_last_node else n * c)


def _output(plan, i, banks):
  """Cell i's output [B,h,w,N*C], the concatenation of its nodes."""
  nodes = _rows(banks[-1], *plan.output_rows(i))
  n, b, h, w, c = nodes.shape
  return jnp.moveaxis(nodes, 0, 3).reshape(b, h, w, n * c)


def _to_nodes(plan, output):
  """[N,B,h,w,C] from their concatenation."""
  b, h, w, c = output.shape
  nodes = output.reshape(b, h, w, c // plan.features, plan.features)
  return jnp.moveaxis(nodes, 3, 0)


def _add_to_output(plan, i, dbanks, g):
  """The banks' cotangents with g [B,h,w,N*C] added to cell i's output's."""
  start, _ = plan.output_rows(i)
  return (*dbanks[:-1], _add_to(dbanks[-1], start, _to_nodes(plan, g)))


def _output_cotangents(plan, empty, gs):
  """The banks' cotangents, of those gs {cell: g [B,h,w,N*C]} of outputs.

  As one concatenation with parts of the `empty` banks, to be written once.
  """
  *others, last = empty
  parts, end = [], 0
  for i, g in gs.items():
    start, count = plan.output_rows(i)
    parts += [last[end:start], _to_nodes(plan, g)]
    end = start + count
  return (*others, jnp.concatenate([*parts, last[end:]]))


def _inputs_of(plan, i, states, output):
  """The inputs of cell i: output(j) of cells before it, or `states`."""
  n = plan.space.num_inputs
  return tuple(states[j] if j < n else output(j - n) for j in range(i, i + n))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _search_cells(plan, pairs, weights, flat, gates, edges, ops, seeds,
                  trained, states):
  """The last outputs of n equal cells; see `run_cells`.

  Args:
    plan: of all of them.
    pairs: of each cell, its preprocessors, see `_preprocess`, or None where
      the only input is taken as it is.
    weights: of each cell, those of its preprocessors.
    flat: [n,M,P], see `_Plan.gather`.
    gates, edges, ops: [M], of all cells.
    seeds: [n,M], or None; see `_operation`.
    trained: see `kernels.trained`.
    states: the inputs of the first cell.
  """
  banks, _ = _run_cells(plan, pairs, weights, flat, gates, edges, ops, seeds,
                        states)
  return _last_outputs(plan, len(pairs), banks)


def _last(plan, cells):
  """The numbers of the cells whose outputs are wanted."""
  return range(cells)[-plan.space.num_inputs:]


def _last_outputs(plan, cells, banks):
  return tuple(_output(plan, i, banks) for i in _last(plan, cells))


def _switch_cells(cells, i, branch, *args):
  """branch(i, *args), where branch needs a static i in range(cells)."""
  return lax.switch(
      i, [functools.partial(branch, j) for j in range(cells)], *args)


def _run_cells(plan, pairs, weights, flat, gates, edges, ops, seeds, states):
  """(banks, per preprocessor the [n,C] scales of its normalisation)."""
  cells = len(pairs)
  banks = _empty_banks(plan, cells, states[-1].shape, states[-1].dtype)
  if not plan.preprocessed:
    banks = (_put(banks[0], 0, jnp.stack(states)),)

  def preprocess(i, banks):
    return _preprocess(pairs[i], weights[i], _inputs_of(
        plan, i, states, lambda j: _output(plan, j, banks)))

  def body(banks, slot):
    i, flat, seeds = slot
    firsts, scales = plan.first_rows(i), []
    if plan.preprocessed:
      for j, x in enumerate(_switch_cells(cells, i, preprocess, banks)):
        y, scale = kernels.normalise(x)
        banks = (_put(banks[0], firsts[0] + j, y[None]), *banks[1:])
        scales.append(scale)
    banks = _run_edges(plan, flat, gates, edges, ops, seeds, firsts, banks)
    return banks, scales

  return lax.scan(body, banks, (jnp.arange(cells), flat, seeds))


def _search_cells_fwd(plan, pairs, *primals):
  wants = choice.Wants(*map(choice.perturbed, (primals[:2], primals[2])))
  values = choice.values(primals)
  *others, _, states = values
  kept = _run_cells(plan, pairs, *others, states)
  return _last_outputs(plan, len(pairs), kept[0]), (wants, values, kept)


def _zero_after(tree):
  """0 that XLA takes for unknown before the arrays of `tree` are there.

  What it is added to is computed after them.
  """
  numbers = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(tree)]
  return kernels.zero_after(numbers)


def _plus(tree, zero):
  return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def _search_cells_bwd(plan, pairs, residuals, gs):
  wants, values, (banks, scales) = residuals
  weights, flat, gates, edges, ops, seeds, trained, states = values
  n, cells = plan.space.num_inputs, len(pairs)
  gs = tuple(map(choice.dense, gs))
  # Else XLA would find what is recomputed here equal to the forward pass's,
  # and keep all of that until now.
  zero = _zero_after(gs)
  empty = _plus(_empty_banks(
      plan, cells, states[-1].shape, gs[-1].dtype), zero)
  dbanks = _output_cotangents(
      plan, empty, dict(zip(_last(plan, cells), gs)))

  def pull(i, g, banks, dweights, dbanks, dstates):
    """Adds what cell i's preprocessors get at g, those of their outputs."""
    inputs = _plus(_inputs_of(
        plan, i, states, lambda j: _output(plan, j, banks)), zero)
    _, pullback = jax.vjp(
        functools.partial(_preprocess, pairs[i]), weights[i], inputs)
    with kernels.trained(trained):
      dw, dinputs = pullback(g)
    if wants.weights:
      # Else XLA would put the products off to the end and keep their factors.
      dinputs = _plus(dinputs, _zero_after(dw))
      dweights = (*dweights[:i], dw, *dweights[i + 1:])
    for j, d in enumerate(dinputs, i):
      if j >= n:
        dbanks = _add_to_output(plan, j - n, dbanks, d)
      else:
        # The last cell that reads a state comes here first.
        d = d if i == min(j, cells - 1) else dstates[j] + d
        dstates = (*dstates[:j], d, *dstates[j + 1:])
    return dweights, dbanks, dstates

  def body(carry, slot):
    i, flat, seeds, scales = slot
    dweights, dbanks, dstates = carry
    # With the zero, since XLA sees through the loop over a single cell.
    firsts = plan.first_rows(i + zero)
    dbanks, dflat, dgates = _pull_edges(
        plan, wants, flat, gates, edges, ops, seeds, trained, firsts, banks,
        dbanks)
    if plan.preprocessed:
      # Row by row: XLA sees through a slice that is the whole bank, too.
      ys, dys = ([choice.Row(bank, firsts[0] + j).read() for j in range(n)]
                 for bank in (banks[0], dbanks[0]))
      g = tuple(map(kernels.pull_normalised, ys, scales, dys))
      dweights, dbanks, dstates = _switch_cells(
          cells, i, pull, g, banks, dweights, dbanks, dstates)
    return (dweights, dbanks, dstates), (dflat, dgates)

  dweights, dstates = jax.tree.map(
      lambda a: jnp.broadcast_to(zero.astype(a.dtype), a.shape),
      (weights if wants.weights else None,
       states if plan.preprocessed else None))
  (dweights, dbanks, dstates), (dflat, dgates) = lax.scan(
      body, (dweights, dbanks, dstates),
      (jnp.arange(cells), flat, seeds, scales), reverse=True)
  if not plan.preprocessed:
    dstates = tuple(dbanks[0][:n])
  if wants.gates:
    dgates = dgates.sum(0)
  return dweights, dflat, dgates, None, None, None, None, dstates


_search_cells.defvjp(_search_cells_fwd, _search_cells_bwd,
                     symbolic_zeros=True)


def run_cells(cells, *states, arch: CellArch):
  """The last outputs of equal cells in a row, each fed the ones before.

  They are one loop in the compiled program, whose size does not grow with
  their number.

  Args:
    cells: bound `SearchCell`s, equal but for `reduction_prev` and the name.
    *states: the inputs of the first, [B,H,W,.].
    arch: the sampled cell.

  Returns:
    As many outputs [B,h,w,N*C] (or [B,h,w,C]), of the last cells, as a cell
    has inputs; fewer if there are fewer cells.
  """
  plan = cells[0].plan
  like = jax.ShapeDtypeStruct(
      _output_shape(plan, states[-1].shape), states[-1].dtype)
  made = [cell.variables_of(*_inputs_of(plan, i, states, lambda _: like),
                            arch=arch)
          for i, cell in enumerate(cells)]
  if cells[0].is_initializing():
    # Compiling the cells to throw their output away would cost a minute.
    return (jnp.zeros(like.shape, like.dtype),) * min(
        len(cells), len(states))
  index = plan.variant_index(arch.edges, arch.ops)
  pairs, weights, groups, seeds = zip(*made)
  flat = _gather(plan, groups, arch.edges, index)
  seeds = None if seeds[0] is None else jnp.stack(seeds)
  return _search_cells(
      plan, pairs, weights, flat, arch.gates, arch.edges, arch.ops, seeds,
      arch.trained, states)


@functools.partial(jax.jit, static_argnums=0)
def _gather(plan, weights, edges, index):
  return plan.gather(weights, edges, index)


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
    return _plan(self.space, 'reduce' if self.reduction else 'normal',
                 self.features, self.reduction_prev is not None,
                 self.conv_bias, self.pool_norm)

  def __call__(self, *states, arch: CellArch):
    """Inputs [B,H,W,.] and a sampled cell to [B,h,w,N*C] (or [B,h,w,C])."""
    return run_cells([self], *states, arch=arch)[-1]

  @nn.compact
  def variables_of(self, *states, arch: CellArch):
    """What `_search_cells` needs of this cell, its inputs' shapes being known.

    Returns:
      (preprocessors or None, their weights, the operations' weights, [M] seeds
      of the operation `noise` or None).
    """
    pair, weights = None, {}
    if self.reduction_prev is not None:
      pair = _preprocessors(self.features, self.reduction_prev, _unnormalised)
      weights = {
          module.name: ops_lib.parameter(
              self, module.name,
              lambda rng, x, module=module: module.init(
                  rng, jnp.zeros(x.shape, x.dtype))['params'], s)
          for module, s in zip(pair, states)}
    groups = {group: ops_lib.parameter(self, group, _init_edges, self.plan,
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

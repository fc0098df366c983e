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

import functools

import jax
import jax.numpy as jnp
from jax import lax

from rome_jax.engine import kernels, operations, switch


def preprocessors(features, reduction_prev, norm):
  """The modules that bring s0 and s1 to `features` channels and one size."""
  first = (operations.FactorizedReduce if reduction_prev else
           operations.ReluConvNorm)
  return (first(features, norm, name='preprocess0', parent=None),
          operations.ReluConvNorm(
              features, norm, name='preprocess1', parent=None))


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
  return switch.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


@functools.cache
def _backward_switch(plan, wants):
  """(dw or None, dgate or None, dx per bank) of gate * f(w, x, seed)."""

  def branch(bank, run):
    def pull(w, gate, xs, seed, g, want_weight_grads):
      dw, dgate, dx = switch.pull(
          lambda w, x: run(w, x, seed), wants, w, gate, xs[bank].read(),
          g.read(), want_weight_grads)
      return dw, dgate, [
          dx if i == bank else jnp.zeros(x.bank.shape[1:], dx.dtype)
          for i, x in enumerate(xs)]
    return pull

  branches = [branch(*operation) for operation in _operation(plan)]
  return switch.one_by_one(
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
      switch.Row(bank, first + jnp.clip(pred - a, 0, b - a - 1))
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
def _pull_edges(plan, wants, flat, gates, edges, ops, seeds,
                want_weight_grads, firsts, banks, dbanks):
  """`_run_edges`' cotangents: (of the banks, of flat, of gates)."""
  preds, rows, index = _edge_arrays(plan, edges, ops)
  slots = preds, rows, index, gates, flat, seeds
  pull = _backward_switch(plan, wants)

  def body(dbanks, slot):
    pred, row, variant, gate, w, seed = slot
    reads = _reads(plan, firsts, banks, pred)
    g = switch.Row(dbanks[-1], firsts[-1] + row)
    dw, dgate, dxs = pull(
        variant, w, gate, reads, seed, g, want_weight_grads)
    dbanks = tuple(
        _add_to(dbank, read.index, dx[None])
        for dbank, read, dx in zip(dbanks, reads, dxs))
    return dbanks, (dw, dgate)

  dbanks, (dflat, dgates) = lax.scan(body, dbanks, slots, reverse=True)
  return dbanks, dflat, dgates


# --------------------------------------------------- equal cells in a row


def unnormalised():
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


def output_shape(plan, shape):
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


def inputs_of(plan, i, states, output):
  """The inputs of cell i: output(j) of cells before it, or `states`."""
  n = plan.space.num_inputs
  return tuple(states[j] if j < n else output(j - n) for j in range(i, i + n))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def search_cells(plan, pairs, weights, flat, gates, edges, ops, seeds,
                 want_weight_grads, states):
  """The last outputs of n equal cells; see `run_cells`.

  Args:
    plan: of all of them.
    pairs: of each cell, its preprocessors, see `_preprocess`, or None where
      the only input is taken as it is.
    weights: of each cell, those of its preprocessors.
    flat: [n,M,P], see `_Plan.gather`.
    gates, edges, ops: [M], of all cells.
    seeds: [n,M], or None; see `_operation`.
    want_weight_grads: see `kernels.pulled`.
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
    return _preprocess(pairs[i], weights[i], inputs_of(
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
  wants = switch.Wants(*map(switch.perturbed, (primals[:2], primals[2])))
  values = switch.values(primals)
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
  weights, flat, gates, edges, ops, seeds, want_weight_grads, states = values
  n, cells = plan.space.num_inputs, len(pairs)
  gs = tuple(map(switch.dense, gs))
  # Else XLA would find what is recomputed here equal to the forward pass's,
  # and keep all of that until now.
  zero = _zero_after(gs)
  empty = _plus(_empty_banks(
      plan, cells, states[-1].shape, gs[-1].dtype), zero)
  dbanks = _output_cotangents(
      plan, empty, dict(zip(_last(plan, cells), gs)))

  def pull(i, g, banks, dweights, dbanks, dstates):
    """Adds what cell i's preprocessors get at g, those of their outputs."""
    inputs = _plus(inputs_of(
        plan, i, states, lambda j: _output(plan, j, banks)), zero)
    _, pullback = jax.vjp(
        functools.partial(_preprocess, pairs[i]), weights[i], inputs)
    dw, dinputs = kernels.pulled(pullback, g, want_weight_grads)
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
        plan, wants, flat, gates, edges, ops, seeds, want_weight_grads, firsts,
        banks, dbanks)
    if plan.preprocessed:
      # Row by row: XLA sees through a slice that is the whole bank, too.
      ys, dys = ([switch.Row(bank, firsts[0] + j).read() for j in range(n)]
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


search_cells.defvjp(_search_cells_fwd, _search_cells_bwd,
                     symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=0)
def gather(plan, weights, edges, index):
  return plan.gather(weights, edges, index)

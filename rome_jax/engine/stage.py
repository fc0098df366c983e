"""Equal cells in a row, a stage, as one compact program with its own gradient.

One `lax.scan` evaluates the M slots of a cell, with a single switch over
operations in its body; one `lax.scan` around it runs the equal cells of a
stage, so that the program does not grow with their number. A direct
translation (a switch per edge, differentiated by JAX) keeps the residuals of
every branch and takes minutes to compile. Here a stage is one `custom_vjp`:
the forward pass keeps the stage's inputs and the banks, which hold the
preprocessed inputs and the nodes of each cell. The backward pass walks cells
and slots in reverse and recomputes each slot's operation inside the switch. So
memory is that of one path, however many candidates there are (ROME, Sec. 4.5).

`jax.vmap` over architectures would turn the switch into a `select` that runs
every operation for every sample; `switch.one_by_one` keeps it a switch, and
batches all that surrounds it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rome_jax.engine import (
    batched,
    drop,
    kernels,
    operations,
    statistics,
    switch,
)
from rome_jax.engine.layout import Layout


def preprocessors(features: int, reduction_prev: bool,
                  norm: Callable) -> tuple[nn.Module, nn.Module]:
  """The modules that give s0 and s1 `features` channels and one size."""
  first = (operations.FactorizedReduce if reduction_prev else
           operations.ReluConvNorm)
  return (first(features, norm, name='preprocess0', parent=None),
          operations.ReluConvNorm(
              features, norm, name='preprocess1', parent=None))


# ---------------------------------------------------- the operation of a slot


@functools.cache
def _operation(layout):
  """Per variant, (the bank that it reads, f) with y = f(w, x, draws).

  w is [P], x is the edge's predecessor, draws are the slot's `drop.Draws`.
  """

  def branch(variant):
    def run(w, x, draws):
      rngs = None if draws.seed is None else {
          'noise': jax.random.key(draws.seed)}
      y = variant.module.apply(
          {'params': variant.unflatten(w)}, x, rngs=rngs)
      return drop.dropout(y, draws) if variant.identity else y
    return variant.bank, run

  return [branch(v) for v in layout.variants]


@functools.cache
def _forward_switch(layout):
  """The function (index, w, xs, draws) -> y.

  xs holds a predecessor's `switch.Row` for each bank; a branch reads its own
  bank only.
  """

  def branch(bank, run):
    return lambda w, xs, draws: run(w, xs[bank].read(), draws)

  branches = [branch(*operation) for operation in _operation(layout)]
  return switch.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


def _gated_output(layout):
  """(index, w, gate, xs, draws) -> the gated output of a slot."""
  if layout.evaluator == 'batched':
    return batched.forward_switch(layout)
  forward = _forward_switch(layout)
  return lambda index, w, gate, xs, draws: switch.gated(
      gate, forward(index, w, xs, draws))


@functools.cache
def _backward_switch(layout, wants):
  """The pullback of gate * f(w, x, draws), by the number of the variant.

  Along the slot's path, if paths are dropped. It gives (dw or None, dgate or
  None, dx for each bank).
  """
  if layout.evaluator == 'batched':
    return batched.backward_switch(layout, wants)

  def branch(bank, run):
    def pull(w, gate, xs, draws, g, want_weight_grads):
      dw, dgate, dx = switch.pull(
          lambda w, x: run(w, x, draws), wants, w, gate, xs[bank].read(),
          drop.along_path(g.read(), draws), want_weight_grads)
      return dw, dgate, [
          dx if i == bank else jnp.zeros(x.bank.shape[1:], dx.dtype)
          for i, x in enumerate(xs)]
    return pull

  branches = [branch(*operation) for operation in _operation(layout)]
  return switch.one_by_one(
      lambda index, *args: lax.switch(index, branches, *args))


# ------------------------------------------------------------ the whole DAG


def _empty_banks(layout, cells, shape, dtype):
  """The banks of `cells` cells whose inputs are [B,H,W,.], as zeros."""
  b, h, w, _ = shape
  rows = [cells * n for n in layout.rows_per_cell]
  node = _node_shape(layout, shape)[1:]
  if layout.reduction:
    return (jnp.zeros((rows[0], b, h, w, layout.features), dtype),
            jnp.zeros((rows[1], *node), dtype))
  # The first cell's input lies before its nodes.
  extra = 0 if layout.preprocessed else layout.space.num_inputs
  return (jnp.zeros((rows[0] + extra, *node), dtype),)


def _reads(layout, firsts, banks, pred):
  """Per bank, the `switch.Row` of state `pred`; any row if it has none."""
  states = layout.space.num_inputs + layout.space.num_nodes
  starts = (*layout.bank_starts, states)
  return [
      switch.Row(bank, first + jnp.clip(pred - a, 0, b - a - 1))
      for bank, first, a, b in zip(banks, firsts, starts, starts[1:])]


def _rows(bank, start, count):
  """[count,...] of a bank."""
  return lax.dynamic_slice_in_dim(bank, start, count)


def _put(bank, start, values):
  return lax.dynamic_update_slice_in_dim(bank, values, start, 0)


def _add_to(bank, start, values):
  # bank.at[row].add is a scatter; without `vmap`, this stays in place.
  return _put(bank, start, _rows(bank, start, len(values)) + values)


def _slot_arrays(layout, edges, ops):
  """Per slot, its predecessor, its node's row and its variant, each [M]."""
  space = layout.space
  preds = jnp.asarray(space.edge_preds)[edges]
  # The row of each edge's node in the last bank.
  rows = (jnp.asarray(space.edge_nodes)[edges] + space.num_inputs
          - layout.bank_starts[-1])
  if layout.evaluator == 'batched':
    return preds, rows, batched.mixture_index(layout)[edges]
  return preds, rows, layout.variant_index(edges, ops)


@functools.partial(jax.jit, static_argnums=0)
def _run_slots(layout, flat, gates, edges, ops, draws, firsts, banks):
  """Adds to the banks the nodes of the cell whose states start at `firsts`.

  Slots come in the order of their edges, so a node is complete before any
  later node reads it, whether it has one operation on an edge or all of them.
  """
  preds, rows, index = _slot_arrays(layout, edges, ops)
  slots = preds, rows, index, gates, flat, draws

  def body(banks, slot):
    pred, row, variant, gate, w, draws = slot
    y = _gated_output(layout)(
        variant, w, gate, _reads(layout, firsts, banks, pred), draws)
    *others, last = banks
    y = drop.along_path(y, draws)
    return (*others, _add_to(last, firsts[-1] + row, y[None])), None

  return lax.scan(body, banks, slots)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_slots(layout, wants, flat, gates, edges, ops, draws,
                want_weight_grads, firsts, banks, dbanks):
  """`_run_slots`' cotangents: (of the banks, of flat, of gates)."""
  preds, rows, index = _slot_arrays(layout, edges, ops)
  slots = preds, rows, index, gates, flat, draws
  pull = _backward_switch(layout, wants)

  def body(dbanks, slot):
    pred, row, variant, gate, w, draws = slot
    reads = _reads(layout, firsts, banks, pred)
    g = switch.Row(dbanks[-1], firsts[-1] + row)
    dw, dgate, dxs = pull(
        variant, w, gate, reads, draws, g, want_weight_grads)
    dbanks = tuple(
        _add_to(dbank, read.index, dx[None])
        for dbank, read, dx in zip(dbanks, reads, dxs))
    return dbanks, (dw, dgate)

  dbanks, (dflat, dgates) = lax.scan(body, dbanks, slots, reverse=True)
  return dbanks, dflat, dgates


# --------------------------------------------------- equal cells in a row


def unnormalised() -> Callable[[jax.Array], jax.Array]:
  """Stands in for a normalisation layer, which `search_cells` supplies.

  It normalises outside the `switch` over cells. The result is in the bank, so
  the backward pass repeats no convolution to get it.
  """
  return lambda x: x


def _preprocess(pair, weights, states):
  """A cell's inputs [B,H,W,C] before normalisation."""
  return tuple(module.apply({'params': weights[module.name]}, s)
               for module, s in zip(pair, states))


def _node_shape(layout, shape):
  """[N,B,h,w,C] for inputs [B,H,W,.]."""
  b, h, w, _ = shape
  stride = 2 if layout.reduction else 1
  return (layout.space.num_nodes, b, -(-h // stride), -(-w // stride),
          layout.features)


def output_shape(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
  """[B,h,w,N*C] (or [B,h,w,C]) for inputs [B,H,W,.]."""
  n, *size, c = _node_shape(layout, shape)
  return (*size, c if layout.ends_in_last_node else n * c)


def _output(layout, i, banks):
  """Cell i's output [B,h,w,N*C], the concatenation of its nodes."""
  nodes = _rows(banks[-1], *layout.output_rows(i))
  n, b, h, w, c = nodes.shape
  return jnp.moveaxis(nodes, 0, 3).reshape(b, h, w, n * c)


def _to_nodes(layout, output):
  """[N,B,h,w,C] from their concatenation."""
  b, h, w, c = output.shape
  nodes = output.reshape(b, h, w, c // layout.features, layout.features)
  return jnp.moveaxis(nodes, 3, 0)


def _add_to_output(layout, i, dbanks, g):
  """Adds g [B,h,w,N*C], a cotangent of cell i's output, to the banks'."""
  start, _ = layout.output_rows(i)
  return (*dbanks[:-1], _add_to(dbanks[-1], start, _to_nodes(layout, g)))


def _output_cotangents(layout, empty, gs):
  """The banks' cotangents, where gs {cell: g [B,h,w,N*C]} are the outputs'.

  One concatenation with parts of the `empty` banks, so that all is written
  once.
  """
  *others, last = empty
  parts, end = [], 0
  for i, g in gs.items():
    start, count = layout.output_rows(i)
    parts += [last[end:start], _to_nodes(layout, g)]
    end = start + count
  return (*others, jnp.concatenate([*parts, last[end:]]))


def inputs_of(layout: Layout, i: int, states: Sequence[Any],
              output: Callable[[int], Any]) -> tuple[Any, ...]:
  """The inputs of cell i: outputs of the cells before it, or `states`."""
  n = layout.space.num_inputs
  return tuple(states[j] if j < n else output(j - n) for j in range(i, i + n))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def search_cells(layout: Layout, pairs: tuple[Any, ...],
                 weights: tuple[Any, ...], flat: jax.Array, gates: jax.Array,
                 edges: jax.Array, ops: jax.Array, draws: drop.Draws,
                 want_weight_grads: jax.Array | None,
                 states: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """The last outputs of n equal cells; see `cells.run_cells`.

  Args:
    layout: of each of them.
    pairs: per cell, its preprocessors, see `_preprocess`; or None where the
      only input is taken as it is.
    weights: per cell, those of its preprocessors.
    flat: [n,M,P], see `Layout.gather`.
    gates, edges, ops: [M], the same for all cells.
    draws: what the slots draw, leaves [n,M,...].
    want_weight_grads: see `kernels.pulled`.
    states: the inputs of the first cell.
  """
  banks, _ = _run_cells(layout, pairs, weights, flat, gates, edges, ops, draws,
                        states)
  return _last_outputs(layout, len(pairs), banks)


def _last(layout, cells):
  """The numbers of the cells whose outputs are wanted."""
  return range(cells)[-layout.space.num_inputs:]


def _last_outputs(layout, cells, banks):
  return tuple(_output(layout, i, banks) for i in _last(layout, cells))


def _switch_cells(cells, i, branch, *args):
  """branch(i, *args), where `branch` needs a static i in range(cells)."""
  return lax.switch(
      i, [functools.partial(branch, j) for j in range(cells)], *args)


def _run_cells(layout, pairs, weights, flat, gates, edges, ops, draws, states):
  """(banks, per preprocessor the scales [n,C] of its normalisation)."""
  cells = len(pairs)
  banks = _empty_banks(layout, cells, states[-1].shape, states[-1].dtype)
  if not layout.preprocessed:
    banks = (_put(banks[0], 0, jnp.stack(states)),)

  def preprocess(i, banks):
    return _preprocess(pairs[i], weights[i], inputs_of(
        layout, i, states, lambda j: _output(layout, j, banks)))

  def body(banks, slot):
    i, flat, draws = slot
    firsts, scales = layout.first_rows(i), []
    if layout.preprocessed:
      for j, x in enumerate(_switch_cells(cells, i, preprocess, banks)):
        y, scale = statistics.normalise(x)
        banks = (_put(banks[0], firsts[0] + j, y[None]), *banks[1:])
        scales.append(scale)
    banks = _run_slots(layout, flat, gates, edges, ops, draws, firsts, banks)
    return banks, scales

  return lax.scan(body, banks, (jnp.arange(cells), flat, draws))


def _search_cells_fwd(layout, pairs, *primals):
  wants = switch.Wants(*map(switch.perturbed, (primals[:2], primals[2])))
  values = switch.values(primals)
  *others, _, states = values
  kept = _run_cells(layout, pairs, *others, states)
  return _last_outputs(layout, len(pairs), kept[0]), (wants, values, kept)


def _zero_after(tree):
  """A 0 that XLA does not know before it has the arrays of `tree`.

  Whatever it is added to is computed after them.
  """
  numbers = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(tree)]
  return kernels.zero_after(numbers)


def _plus(tree, zero):
  return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def _search_cells_bwd(layout, pairs, residuals, gs):
  wants, values, (banks, scales) = residuals
  weights, flat, gates, edges, ops, draws, want_weight_grads, states = values
  n, cells = layout.space.num_inputs, len(pairs)
  gs = tuple(map(switch.dense, gs))
  # Or XLA would find that what is recomputed here equals values of the forward
  # pass, and keep all of those until now.
  zero = _zero_after(gs)
  empty = _plus(_empty_banks(
      layout, cells, states[-1].shape, gs[-1].dtype), zero)
  dbanks = _output_cotangents(
      layout, empty, dict(zip(_last(layout, cells), gs)))

  def pull(i, g, banks, dweights, dbanks, dstates):
    """Pulls g, cotangents of cell i's preprocessed inputs, to its inputs."""
    inputs = _plus(inputs_of(
        layout, i, states, lambda j: _output(layout, j, banks)), zero)
    _, pullback = jax.vjp(
        functools.partial(_preprocess, pairs[i]), weights[i], inputs)
    dw, dinputs = kernels.pulled(pullback, g, want_weight_grads)
    if wants.weights:
      # Or XLA would leave the products to the end and keep their factors.
      dinputs = _plus(dinputs, _zero_after(dw))
      dweights = (*dweights[:i], dw, *dweights[i + 1:])
    for j, d in enumerate(dinputs, i):
      if j >= n:
        dbanks = _add_to_output(layout, j - n, dbanks, d)
      else:
        # The last cell that reads a state comes here first.
        d = d if i == min(j, cells - 1) else dstates[j] + d
        dstates = (*dstates[:j], d, *dstates[j + 1:])
    return dweights, dbanks, dstates

  def body(carry, slot):
    i, flat, draws, scales = slot
    dweights, dbanks, dstates = carry
    # The zero is added since XLA sees through the loop over a single cell.
    firsts = layout.first_rows(i + zero)
    dbanks, dflat, dgates = _pull_slots(
        layout, wants, flat, gates, edges, ops, draws, want_weight_grads,
        firsts, banks, dbanks)
    if layout.preprocessed:
      # Row by row, since XLA sees through a slice of the whole bank, too.
      ys, dys = ([switch.Row(bank, firsts[0] + j).read() for j in range(n)]
                 for bank in (banks[0], dbanks[0]))
      g = tuple(map(statistics.pull_normalised, ys, scales, dys))
      dweights, dbanks, dstates = _switch_cells(
          cells, i, pull, g, banks, dweights, dbanks, dstates)
    return (dweights, dbanks, dstates), (dflat, dgates)

  dweights, dstates = jax.tree.map(
      lambda a: jnp.broadcast_to(zero.astype(a.dtype), a.shape),
      (weights if wants.weights else None,
       states if layout.preprocessed else None))
  (dweights, dbanks, dstates), (dflat, dgates) = lax.scan(
      body, (dweights, dbanks, dstates),
      (jnp.arange(cells), flat, draws, scales), reverse=True)
  if not layout.preprocessed:
    dstates = tuple(dbanks[0][:n])
  if wants.gates:
    dgates = dgates.sum(0)
  return dweights, dflat, dgates, None, None, None, None, dstates


search_cells.defvjp(_search_cells_fwd, _search_cells_bwd,
                     symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=0)
def gather(layout: Layout, weights: Sequence[Any], edges: jax.Array,
           index: jax.Array) -> jax.Array:
  """See `Layout.gather`."""
  return layout.gather(weights, edges, index)

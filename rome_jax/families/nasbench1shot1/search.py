"""The search network of NAS-Bench-1Shot1: a sampled wiring, or the mixture."""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine import kernels, layers, operations, statistics, switch
from rome_jax.engine.archs import CellArch
from rome_jax.engine.owners import Candidate
from rome_jax.engine.weights import STACKED
from rome_jax.families.images import check_images
from rome_jax.families.nasbench1shot1.layers import (
    ConvNormRelu,
    halve,
    operation,
    stacked,
)
from rome_jax.families.nasbench1shot1.wiring import (
    ADDED,
    check,
    check_stem,
    output_input,
)
from rome_jax.spaces import Sizes, Space


class _Wiring(NamedTuple):
  """A CellArch as a cell reads it.

  Attributes:
    rows: [n,N] B of the inner nodes over all states; 0 where no edge is.
    gates: [n] A of the nodes' operations; [n,O] of a mixture, 0 where a node
      has no such operation.
    ops: [n] int32; None for a mixture.
    outputs: [D] int32, the states that the output reads; None where it adds
      the cell's input.
    output_gates: [D] their B; [N] those of all states where `outputs` is
      None, 0 where no edge is.
    want_weight_grads: see `cells.run_cells`.
  """

  rows: jax.Array
  gates: jax.Array
  ops: jax.Array | None
  outputs: jax.Array | None
  output_gates: jax.Array
  want_weight_grads: jax.Array | bool | None


def wire(space: Space, arch: CellArch,
         want_weight_grads: jax.Array | bool | None = None) -> _Wiring:
  """A sampled cell as `SearchCell` reads it.

  Raises:
    ValueError: the number of edges is neither a derived cell's nor all.
  """
  m, n = arch.edges.shape[-1], space.num_nodes
  # The output's edges stand last: those of a derived cell, or all of them.
  selected = {sum(space.in_degrees): space.in_degrees[-1], space.num_edges: n}
  if m not in selected:
    raise ValueError(f'{m} edges are none of {sorted(selected)}')
  chex.assert_shape(arch.gates, (m + len(arch.ops),))
  nodes = jnp.asarray(space.edge_nodes)[arch.edges]
  preds = jnp.asarray(space.edge_preds)[arch.edges]
  dense = jnp.zeros((n, n), arch.gates.dtype)
  dense = dense.at[nodes, preds].set(arch.gates[:m])
  if output_input(space) == ADDED:
    outputs, output_gates = None, dense[-1]
  else:
    last = slice(m - selected[m], m)
    outputs, output_gates = preds[last], arch.gates[last]
  gates, ops = _node_gates(space, arch, arch.gates[m:])
  return _Wiring(
      dense[:-1], gates, ops, outputs, output_gates, want_weight_grads)


def _node_gates(space, arch, gates):
  """(gates, ops) of a _Wiring."""
  if len(arch.ops) == space.num_sites:
    return gates, arch.ops
  sites = np.nonzero(space.choices('normal') >= 0)[0]
  chex.assert_shape(arch.ops, sites.shape)
  dense = jnp.zeros((space.num_sites, len(space.ops)), gates.dtype)
  return dense.at[sites, arch.ops].set(gates), None


def _project(kernel, x):
  """Views of state 0: [V,C',C], [B,H,W,C'] -> [V,B,H,W,C]."""
  k, c_in, c = kernel.shape
  flat = jnp.moveaxis(kernel, 0, 1).reshape(c_in, k * c).astype(x.dtype)
  y = nn.relu(statistics.batch_norm(kernels.pointwise(x, flat)))
  return jnp.moveaxis(y.reshape(*x.shape[:3], k, c), 3, 0)


def _node(modules, weights, row, gate, op, own, states,
          want_weight_grads=None):
  """One inner node from its own view of state 0 and the inner states."""
  # row[0] stays as it is, so that its gradient is summed in its own dtype;
  # products of matrices sum in float32 anyway.
  total = row[0] * own + jnp.tensordot(row[1:].astype(own.dtype), states, 1)
  total = total.astype(own.dtype)
  if op is None:
    return sum(
        g.astype(total.dtype) * module.apply({'params': w}, total)
        for module, w, g in zip(modules, weights, gate))
  return switch.switch(
      modules, op, weights, gate, total, want_weight_grads)


@functools.partial(jax.jit, static_argnums=0)
def _run_nodes(modules, weights, wired, views):
  """Inner states [n,B,H,W,C], one after the other."""

  def body(states, node):
    i, w, row, gate, op, own = node
    y = _node(modules, w, row, gate, op, own, states)
    return lax.dynamic_update_index_in_dim(states, y, i, 0), None

  slots = (jnp.arange(len(views)), weights, wired.rows, wired.gates,
           wired.ops, views)
  return lax.scan(body, jnp.zeros_like(views), slots)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_nodes(modules, wants, weights, wired, views, states, g):
  """Cotangents (weights, rows, gates, views) at g of the inner states.

  Walks back over the nodes. All of them read the final states: a node's B is
  0 for itself and for those after it, and the cotangents of these entries,
  which are no edges, are read by nobody.
  """

  def body(cotangents, node):
    i, w, row, gate, op, own = node
    wanted = w if wants.weights else None, (row, gate) if wants.gates else None

    def run(wanted, own, states):
      weights, gates = wanted
      return _node(modules, w if weights is None else weights,
                   *((row, gate) if gates is None else gates), op, own, states,
                   wired.want_weight_grads)

    _, pull = jax.vjp(run, wanted, own, states)
    # A switch knows whether weights need a gradient, a mixture does not.
    (dw, dgates), down, dstates = kernels.pulled(
        pull, cotangents[i], wired.want_weight_grads)
    return cotangents + dstates, (dw, dgates, down)

  slots = (jnp.arange(len(views)), weights, wired.rows, wired.gates,
           wired.ops, views)
  _, (dweights, dgates, dviews) = lax.scan(body, g, slots, reverse=True)
  return dweights, dgates, dviews


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _states(modules, weights, wired, x):
  """What the output reads, [V,B,H,W,C]: views of state 0, inner states.

  Keeps x and the states for the backward pass, nothing of the operations.

  Args:
    modules: unbound, one per operation of the space.
    weights: (kernels [V,C',C] of the views of state 0, those of the n inner
      nodes first, then the output's; per module its parameters, leaves
      [n,...]).
    wired: a _Wiring.
    x: [B,H,W,C'].
  """
  views = _project(weights[0], x)
  n = len(wired.rows)
  states = _run_nodes(modules, weights[1], wired, views[:n])
  return jnp.concatenate([views[n:], states])


def _states_fwd(modules, *primals):
  weights, wired, _ = primals
  wants = switch.Wants(
      switch.perturbed(weights),
      switch.perturbed((wired.rows, wired.gates)))
  primals = switch.values(primals)
  states = _states(modules, *primals)
  return states, (wants, primals, states)


def _states_bwd(modules, residuals, g):
  wants, (weights, wired, x), states = residuals
  g, n = switch.dense(g), len(wired.rows)
  views, pull = jax.vjp(_project, weights[0], x)
  dnodes, dgates, dviews = _pull_nodes(
      modules, wants, weights[1], wired, views[:n], states[-n:], g[-n:])
  dkernel, dx = kernels.pulled(
      pull, jnp.concatenate([dviews, g[:-n]]), wired.want_weight_grads)
  drows, dgates = dgates if wants.gates else (None, None)
  dweights = (dkernel, dnodes) if wants.weights else None
  return dweights, _Wiring(drows, dgates, None, None, None, None), dx


_states.defvjp(_states_fwd, _states_bwd, symbolic_zeros=True)


class SearchCell(nn.Module):
  """A cell of a supernet: every candidate's weights, one path evaluated.

  Where the output concatenates the cell's input, cells hand on the D selected
  states only; the authors' code hands on all N, of which the others are zero.
  So the kernels of the 1x1 convolutions, which have rows for every state of
  the cell before, are gathered first. Where the output adds the input, every
  channel of it may hold something, and all n inner nodes are handed on.

  Attributes:
    space: the search space.
    features: C.
  """

  space: Space
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, selected: Any, wired: _Wiring) -> Any:
    """The next cell's x.

    Args:
      x: [B,H,W,.], the output of the cell before or of the stem.
      selected: [D] the states that x holds; None if it holds all there are.
      wired: the wiring of this cell.

    Returns:
      [B,H,W,D*C], or [B,H,W,n*C] where the input is added.
    """
    n = self.space.num_nodes
    width = x.shape[-1]
    if selected is not None:
      width = width // len(selected) * n
    modules = tuple(
        operation(op, self.features, operations.BatchStatistics)
        for op in self.space.ops)
    weights = self.param(STACKED, _init_nodes, self.space, modules, width,
                         self.features)
    if self.is_initializing():
      # Compiling the cell only to discard its output would take a minute.
      c = self.features * _output_blocks(wired)
      return jnp.zeros((*x.shape[:3], c), x.dtype)
    kernel = jnp.asarray(weights['input']['kernel'])
    if selected is not None:
      kernel = kernel.reshape(n, n, -1, self.features)[:, selected]
      kernel = kernel.reshape(n, x.shape[-1], self.features)
    nodes = tuple(weights.get(op, {}) for op in self.space.ops)
    states = _states(modules, (kernel, nodes), wired, x)
    y = jnp.moveaxis(_output(wired, states).astype(x.dtype), 0, 3)
    return y.reshape(*x.shape[:3], -1)


def _output_blocks(wired):
  """Into how many blocks of C channels the cell's output falls."""
  return len(wired.rows if wired.outputs is None else wired.outputs)


def _output(wired, states):
  """The output's blocks [.,B,H,W,C], of what `_states` gives."""
  # In the gates' dtype, so that their gradients, sums, are too.
  gates = wired.output_gates[:, None, None, None, None]
  if wired.outputs is not None:
    return states[wired.outputs] * gates
  views, inner = jnp.split(states, 2)
  return gates[0] * views + gates[1:] * inner


def _num_views(space):
  """How many views of state 0 a cell has, one per block that reads it."""
  n = space.num_nodes - 1
  return 2 * n if output_input(space) == ADDED else n + 1


def _init_nodes(rng: jax.Array, space: Space, modules: Any, width: int,
                features: int) -> dict[str, Any]:
  """Initial parameters {'input': tree of views, operation: tree of nodes}."""
  n = space.num_nodes
  keys = jax.random.split(rng, _num_views(space))
  tree = {'input': {'kernel': jax.vmap(
      lambda key: operations.torch_init(key, (width, features)))(keys)}}
  x = jnp.zeros((1, 2, 2, features))
  for number, (op, module) in enumerate(zip(space.ops, modules)):
    keys = jax.random.split(jax.random.fold_in(rng, number), n - 1)
    stacked = jax.vmap(lambda key, m=module: m.init(key, x))(keys)
    if 'params' in stacked:
      tree[op] = stacked['params']
  return tree


class Supernet(nn.Module):
  """All candidate weights; evaluates a sampled architecture or a mixture.

  `apply({'params': params}, images, arch)` is a pure function without state:
  BatchNorm uses the statistics of the batch, and is affine in the stem only
  (in the authors' code everywhere but after the last cell).

  Attributes:
    space: a space with sites='nodes'; `wiring.output_input` says how outputs
      take a cell's input.
    cells: number of cells, a multiple of 3 (9 in the paper).
    channels: C of the first cells (16 in the paper).
    num_classes: size of the output.
    stem: 'cifar'.
  """

  space: Space
  cells: int
  channels: int
  num_classes: int
  stem: str = 'cifar'

  @nn.compact
  def __call__(self, images, arch, want_weight_grads=None):
    """Logits [B,classes] of images [B,H,W,.] at arch {'normal'}.

    See `cells.run_cells` for `want_weight_grads`.
    """
    check_images(images)
    check(self.space, Sizes(self.cells, self.channels, self.num_classes))
    check_stem(self.stem)
    wired = wire(self.space, arch['normal'], want_weight_grads)
    x = ConvNormRelu(
        self.channels, 3, layers.AffineBatchStatistics, name='stem')(images)
    selected = None
    for i, features, smaller in stacked(self.cells, self.channels):
      x = halve(x, 'search') if smaller else x
      cell = SearchCell(self.space, features, name=f'cell{i}')
      x = cell(x, selected, wired)
      selected = wired.outputs
    if selected is not None:
      x = _spread(x, selected, self.space.num_nodes)
    x = operations.ReluConvNorm(
        features, operations.BatchStatistics, name='postprocess')(x)
    return layers.Linear(self.num_classes, name='head')(layers.pooled(x))


def _spread(x, selected, n):
  """[B,H,W,D*C] of selected states to [B,H,W,n*C], the others zero."""
  x = x.reshape(*x.shape[:3], len(selected), -1)
  full = jnp.zeros((*x.shape[:3], n, x.shape[-1]), x.dtype)
  return full.at[..., selected, :].set(x).reshape(*x.shape[:3], -1)


def candidates(theta: dict[str, Any], space: Space) -> tuple[Candidate, ...]:
  """See `engine.weights.candidates`; sites are inner nodes."""
  sites = tuple(range(space.num_sites))
  return tuple(
      Candidate((name, STACKED, op), 'normal', op, sites)
      for name in theta if name.startswith('cell')
      for op in theta[name][STACKED] if op in space.ops)

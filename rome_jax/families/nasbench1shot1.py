"""NAS-Bench-1Shot1: cells whose nodes, not edges, hold the operations.

Zela et al., ICLR 2020; the wiring is that of the authors' code
(automl/nasbench-1shot1, `optimizers/darts/model_search.py`), and of
NAS-Bench-101 where said (Ying et al., ICML 2019; google-research/nasbench,
`lib/model_builder.py`).

A cell reads one input x. State 0 is x, states 1..n are the inner nodes:

  state_i = A_i * op_i(sum_j B_ij * state_j),  j < i,

where each reader of state 0, the output too, sees it through a 1x1
convolution, normalisation and ReLU of its own. The cell's output is the
concatenation of the states that it selects, each times its B.

Letters: N nodes of the space (the output is the last), n = N - 1 inner nodes,
C channels of a node, D states that an output selects.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax import errors
from rome_jax.engine import kernels, layers, operations, switch
from rome_jax.engine.archs import CellArch
from rome_jax.engine.layout import EDGES
from rome_jax.spaces import Sizes, Space, counting, genotypes

STACKS = 3
WIDTHS = ('search', 'nasbench101')

# Convolution, normalisation, ReLU: the kernel's size. All other operations
# are rows of `ops.OPS`.
CONVS = {'conv_3x3': 3, 'conv_1x1': 1}

# The names of NAS-Bench-101.
NASBENCH101_OPS = {
    'max_pool_3x3': 'maxpool3x3', 'conv_3x3': 'conv3x3-bn-relu',
    'conv_1x1': 'conv1x1-bn-relu'}
NASBENCH101_VERTICES, NASBENCH101_EDGES = 7, 9
_INPUT, _OUTPUT = 'input', 'output'


# ------------------------------------------------------------ architectures


def topologies(space: Space) -> Iterator[tuple[tuple[int, ...], ...]]:
  """All wirings: per node the states it reads, the output's last.

  Loose ends (inner nodes that nobody reads) are counted in, as in the
  authors' `generate_with_loose_ends`: 180, 360 and 5,400 in the three spaces.
  """
  return itertools.product(*(
      itertools.combinations(range(b - a), degree)
      for (a, b), degree in zip(space.node_edges, space.in_degrees)))


def num_architectures(space: Space) -> int:
  """Topologies times operations: 14,580, 29,160 and 1,312,200."""
  wirings = sum(1 for _ in topologies(space))
  return wirings * len(space.ops)**space.num_sites


def make_genotype(parents, node_ops) -> genotypes.Genotype:
  """The genotype of a wiring.

  Args:
    parents: per inner node and then for the output, the states it reads.
    node_ops: per inner node, the name of its operation.
  """
  *inner, output = parents
  nodes = tuple(
      tuple((op, int(p)) for p in states)
      for op, states in zip(node_ops, inner, strict=True))
  return genotypes.Genotype(nodes, tuple(int(s) for s in output))


class _Node(NamedTuple):
  """An inner node that the output depends on.

  Attributes:
    op: name of its operation.
    parents: the states it reads, in rising order.
    channels: its width.
  """

  op: str
  parents: tuple[int, ...]
  channels: int


def _live_nodes(genotype, channels, widths) -> dict[int, _Node]:
  """State number to node, of the nodes that the output depends on."""
  nodes, concat = _wiring(genotype)
  alive = set(concat) - {0}
  for i in range(len(nodes), 0, -1):
    if i in alive:
      alive |= set(nodes[i - 1][1]) - {0}
  parents = {i: nodes[i - 1][1] for i in sorted(alive)}
  wide = _node_channels(parents, concat, channels, widths)
  return {i: _Node(nodes[i - 1][0], parents[i], wide[i]) for i in parents}


def _wiring(genotype):
  """([(operation, parents)] of the inner nodes, states of the output)."""
  if genotype.reduce:
    raise errors.UserError(
        'the genotype has a reduction cell; all cells of NAS-Bench-1Shot1 '
        'are equal')
  nodes = []
  for i, node in enumerate(genotype.normal, start=1):
    names = sorted({op for op, _ in node})
    states = tuple(sorted(pred for _, pred in node))
    if len(names) > 1 or len(set(states)) < len(states):
      raise errors.UserError(
          f'genotype: normal node {i}={node} must have one operation, and '
          'each state that it reads once, in a space of operations on nodes')
    nodes.append((names[0], states))
  return nodes, tuple(sorted(genotype.normal_concat))


def _node_channels(parents, concat, channels, widths):
  """State number to channels, in the way that `widths` names.

  'search': all C. 'nasbench101': the nodes that the output reads share C, the
  first ones take the remainder; any other has as many as its widest reader
  (`compute_vertex_channels`).
  """
  if widths == 'search':
    return dict.fromkeys(parents, channels)
  read = [i for i in concat if i]
  if channels < len(read):
    raise errors.UserError(
        f'channels={channels} must be at least {len(read)}, the nodes that '
        'the output reads, with widths=nasbench101')
  wide = {i: channels // len(read) + (place < channels % len(read))
          for place, i in enumerate(read)}
  for i in sorted(parents, reverse=True):
    if i not in wide:
      wide[i] = max(wide[j] for j in parents if i in parents[j])
  return wide


# ------------------------------------------------------------------- checks


def check(space: Space, sizes: Sizes) -> None:
  """Checks that networks of this space and size exist.

  Raises:
    UserError: naming the field that is wrong.
  """
  if (space.sites, space.num_inputs, space.parents, len(
      space.cell_types)) != ('nodes', 1, 'all', 1) or space.num_nodes < 2:
    raise errors.UserError(
        f'space {space.name}: family=nasbench1shot1 needs sites=nodes, '
        'num_inputs=1, parents=all, at least 2 nodes and one cell type')
  if sizes.cells < STACKS or sizes.cells % STACKS:
    raise errors.UserError(
        f'cells={sizes.cells} must be a multiple of {STACKS} with space '
        f'{space.name}')
  if sizes.channels < 1:
    raise errors.UserError(f'channels={sizes.channels} must be at least 1')


def _check_stem(stem):
  if stem != 'cifar':
    raise errors.UserError(
        f"stem={stem!r} must be 'cifar' in a network of NAS-Bench-1Shot1")


def _checked(space, sizes, stem):
  """The sizes as integers, once everything is found right."""
  check(space, sizes)
  _check_stem(stem)
  return counting.checked(sizes, stem)


def _check_widths(widths):
  if widths not in WIDTHS:
    raise errors.UserError(
        f'widths={widths!r} must be one of {", ".join(WIDTHS)}'
        f'{errors.near_miss(widths, WIDTHS)}')


# --------------------------------------------------------------- operations


class ConvNormRelu(nn.Module):
  """Convolution without bias, normalisation, ReLU: NAS-Bench-101's order."""

  features: int
  kernel: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    if self.kernel == 1:
      x = operations.Pointwise(self.features, name='conv')(x)
    else:
      x = operations.Conv(self.features, self.kernel, name='conv')(x)
    return nn.relu(self.norm(name='norm')(x))


def knows(op: str) -> bool:
  """Whether it names an operation of a node."""
  return op in CONVS or op in operations.OPS


def _operation(name, features, norm):
  """The unbound module of a node's operation; pools are not normalised."""
  if name in CONVS:
    return ConvNormRelu(features, CONVS[name], norm, parent=None)
  return operations.build(name, operations.Context(1, norm)).clone(parent=None)


def _stacked(cells, channels):
  """Per cell (number, C, whether it starts a smaller stack)."""
  for i in range(cells):
    smaller = i in counting.reductions(cells)
    channels *= 2 if smaller else 1
    yield i, channels, smaller


def _halved(size, widths):
  """Height of a map behind `_halve`."""
  return size // 2 + 1 if widths == 'search' else -(-size // 2)


def _halve(x, widths):
  """2x2 max pooling of stride 2.

  The search network pads by 1 on each side (32, 17, 9 pixels), NAS-Bench-101
  only what is missing (32, 16, 8). By comparison of the four pixels, since
  XLA's gradient of `reduce_window` is slow on the CPU; the gradient goes to
  the first maximum.
  """
  low = int(widths == 'search')
  sizes = [_halved(n, widths) for n in x.shape[1:3]]
  pads = [(low, 2 * s - low - n) for s, n in zip(sizes, x.shape[1:3])]
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  best, *others = (x[:, i::2, j::2] for i in range(2) for j in range(2))
  for pixel in others:
    best = jnp.where(pixel > best, pixel, best)
  return best


# -------------------------------------------------------------- search cell


class _Wiring(NamedTuple):
  """A CellArch as a cell reads it.

  Attributes:
    rows: [n,N] B of the inner nodes over all states; 0 where no edge is.
    gates: [n] A of the nodes' operations.
    ops: [n] int32.
    outputs: [D] int32, the states that the output reads.
    output_gates: [D] their B.
    want_weight_grads: see `cells.run_cells`.
  """

  rows: jax.Array
  gates: jax.Array
  ops: jax.Array
  outputs: jax.Array
  output_gates: jax.Array
  want_weight_grads: jax.Array | None


def _wire(space: Space, arch: CellArch, want_weight_grads=None) -> _Wiring:
  m, n = arch.edges.shape[-1], space.num_nodes
  # The output's edges stand last: those of a derived cell, or all of them.
  selected = {sum(space.in_degrees): space.in_degrees[-1], space.num_edges: n}
  if m not in selected:
    raise ValueError(f'{m} edges are none of {sorted(selected)}')
  chex.assert_shape(arch.ops, (n - 1,))
  chex.assert_shape(arch.gates, (m + n - 1,))
  nodes = jnp.asarray(space.edge_nodes)[arch.edges]
  preds = jnp.asarray(space.edge_preds)[arch.edges]
  dense = jnp.zeros((n, n), arch.gates.dtype)
  dense = dense.at[nodes, preds].set(arch.gates[:m])
  last = slice(m - selected[m], m)
  return _Wiring(
      dense[:-1], arch.gates[m:], arch.ops, preds[last], arch.gates[last],
      want_weight_grads)


def _project(kernel, x):
  """State 0 as each node sees it: [K,C',C], [B,H,W,C'] -> [K,B,H,W,C]."""
  k, c_in, c = kernel.shape
  flat = jnp.moveaxis(kernel, 0, 1).reshape(c_in, k * c).astype(x.dtype)
  y = nn.relu(kernels.batch_norm(kernels.pointwise(x, flat)))
  return jnp.moveaxis(y.reshape(*x.shape[:3], k, c), 3, 0)


def _node(modules, weights, row, gate, op, own, states,
          want_weight_grads=None):
  """One inner node from its own view of state 0 and the inner states."""
  # row[0] stays as it is, so that its gradient is summed in its own dtype;
  # products of matrices sum in float32 anyway.
  total = row[0] * own + jnp.tensordot(row[1:].astype(own.dtype), states, 1)
  return switch.switch(
      modules, op, weights, gate, total.astype(own.dtype), want_weight_grads)


@functools.partial(jax.jit, static_argnums=0)
def _run_nodes(modules, weights, wiring, views):
  """Inner states [n,B,H,W,C], one after the other."""

  def body(states, node):
    i, w, row, gate, op, own = node
    y = _node(modules, w, row, gate, op, own, states)
    return lax.dynamic_update_index_in_dim(states, y, i, 0), None

  slots = (jnp.arange(len(views)), weights, wiring.rows, wiring.gates,
           wiring.ops, views)
  return lax.scan(body, jnp.zeros_like(views), slots)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_nodes(modules, wants, weights, wiring, views, states, g):
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
                   wiring.want_weight_grads)

    _, pull = jax.vjp(run, wanted, own, states)
    (dw, dgates), down, dstates = pull(cotangents[i])
    return cotangents + dstates, (dw, dgates, down)

  slots = (jnp.arange(len(views)), weights, wiring.rows, wiring.gates,
           wiring.ops, views)
  _, (dweights, dgates, dviews) = lax.scan(body, g, slots, reverse=True)
  return dweights, dgates, dviews


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _states(modules, weights, wiring, x):
  """All states as the output reads them, [N,B,H,W,C].

  Keeps x and the states for the backward pass, nothing of the operations.

  Args:
    modules: unbound, one per operation of the space.
    weights: (kernels [N,C',C] of the views of state 0, the output's last;
      per module its parameters, leaves [n,...]).
    wiring: a _Wiring.
    x: [B,H,W,C'].
  """
  views = _project(weights[0], x)
  states = _run_nodes(modules, weights[1], wiring, views[:-1])
  return jnp.concatenate([views[-1:], states])


def _states_fwd(modules, *primals):
  weights, wiring, _ = primals
  wants = switch.Wants(
      switch.perturbed(weights),
      switch.perturbed((wiring.rows, wiring.gates)))
  primals = switch.values(primals)
  states = _states(modules, *primals)
  return states, (wants, primals, states)


def _states_bwd(modules, residuals, g):
  wants, (weights, wiring, x), states = residuals
  g = switch.dense(g)
  views, pull = jax.vjp(_project, weights[0], x)
  dnodes, dgates, dviews = _pull_nodes(
      modules, wants, weights[1], wiring, views[:-1], states[1:], g[1:])
  dkernel, dx = kernels.pulled(
      pull, jnp.concatenate([dviews, g[:1]]), wiring.want_weight_grads)
  drows, dgates = dgates if wants.gates else (None, None)
  dweights = (dkernel, dnodes) if wants.weights else None
  return dweights, _Wiring(drows, dgates, None, None, None, None), dx


_states.defvjp(_states_fwd, _states_bwd, symbolic_zeros=True)


class SearchCell(nn.Module):
  """A cell of a supernet: every candidate's weights, one path evaluated.

  The input and the output hold the D selected states only, in place of all N
  of the authors' code whose others are zero. So the kernels of the 1x1
  convolutions, which have rows for all states of the cell before, are
  gathered first.

  Attributes:
    space: the search space.
    features: C.
  """

  space: Space
  features: int

  @nn.compact
  def __call__(self, x, selected, wiring: _Wiring):
    """The next cell's x.

    Args:
      x: [B,H,W,.], D states of the cell before, or the stem's output.
      selected: [D] their numbers; None of the stem.
      wiring: of this cell.

    Returns:
      [B,H,W,D*C].
    """
    n = self.space.num_nodes
    width = x.shape[-1]
    if selected is not None:
      width = width // len(selected) * n
    modules = tuple(
        _operation(op, self.features, operations.BatchStatistics)
        for op in self.space.ops)
    weights = self.param(EDGES, _init_nodes, self.space, modules, width,
                         self.features)
    d = len(wiring.outputs)
    if self.is_initializing():
      # Compiling the cell to throw its output away would cost a minute.
      return jnp.zeros((*x.shape[:3], d * self.features), x.dtype)
    kernel = jnp.asarray(weights['input']['kernel'])
    if selected is not None:
      kernel = kernel.reshape(n, n, -1, self.features)[:, selected]
      kernel = kernel.reshape(n, x.shape[-1], self.features)
    nodes = tuple(weights.get(op, {}) for op in self.space.ops)
    states = _states(modules, (kernel, nodes), wiring, x)
    # In the gates' dtype, so that their gradients, sums, are too.
    gates = wiring.output_gates[:, None, None, None, None]
    y = (states[wiring.outputs] * gates).astype(x.dtype)
    return jnp.moveaxis(y, 0, 3).reshape(*x.shape[:3], d * self.features)


def _init_nodes(rng, space, modules, width, features) -> dict[str, Any]:
  """Initial parameters {'input' or operation: tree}, leaves [nodes,...]."""
  n = space.num_nodes
  keys = jax.random.split(rng, n)
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
  """All candidate weights; evaluates one sampled architecture.

  `apply({'params': params}, images, arch)` is a pure function without state:
  BatchNorm uses the statistics of the batch, and is affine in the stem only
  (in the authors' code everywhere but behind the last cell).

  Attributes:
    space: a row of `spaces.SPACES` with sites='nodes'.
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
    chex.assert_rank(images, 4)
    check(self.space, Sizes(self.cells, self.channels, self.num_classes))
    _check_stem(self.stem)
    wiring = _wire(self.space, arch['normal'], want_weight_grads)
    x = ConvNormRelu(
        self.channels, 3, layers.AffineBatchStatistics, name='stem')(images)
    selected = None
    for i, features, smaller in _stacked(self.cells, self.channels):
      x = _halve(x, 'search') if smaller else x
      cell = SearchCell(self.space, features, name=f'cell{i}')
      x = cell(x, selected, wiring)
      selected = wiring.outputs
    x = x.reshape(*x.shape[:3], len(selected), features)
    full = jnp.zeros((*x.shape[:3], self.space.num_nodes, features), x.dtype)
    x = full.at[..., selected, :].set(x).reshape(*x.shape[:3], -1)
    x = operations.ReluConvNorm(
        features, operations.BatchStatistics, name='postprocess')(x)
    return layers.Linear(self.num_classes, name='head')(layers.pooled(x))


# --------------------------------------------------------- discrete network


class DiscreteCell(nn.Module):
  """A cell of a derived network; nodes that nobody reads are left out.

  Attributes:
    genotype: its normal cell.
    features: C.
    norm: function that makes a normalisation layer.
    widths: 'search' or 'nasbench101'.
  """

  genotype: genotypes.Genotype
  features: int
  norm: Callable
  widths: str

  @nn.compact
  def __call__(self, x, drop_path=None):
    """[B,H,W,.] to [B,H,W,D*C], or [B,H,W,C] with widths='nasbench101'.

    Args:
      x: the output of the cell before.
      drop_path: function applied to the output of every operation but the
        identity, or None.
    """
    def view(channels, reader):
      return ConvNormRelu(
          channels, 1, self.norm, name=f'{reader}_input')(x)

    states = {}
    for i, node in _live_nodes(
        self.genotype, self.features, self.widths).items():
      terms = [states[p][..., :node.channels] if p else
               view(node.channels, f'node{i}') for p in node.parents]
      module = _operation(node.op, node.channels, self.norm)
      y = module.clone(parent=self, name=f'node{i}_{node.op}')(
          sum(terms[1:], terms[0]))
      if drop_path is not None and node.op != 'skip_connect':
        y = drop_path(y)
      states[i] = y
    concat = sorted(self.genotype.normal_concat)
    inner = [states[i] for i in concat if i]
    if concat[0] != 0:
      return jnp.concatenate(inner, -1)
    first = view(self.features, 'output')
    if self.widths == 'search':
      return jnp.concatenate([first, *inner], -1)
    return first + jnp.concatenate(inner, -1) if inner else first


class Network(nn.Module):
  """The network of a genotype, an ordinary Flax module.

  Collections and rngs are those of `networks.Network`.

  Attributes:
    genotype: a `genotypes.Genotype` of one cell type.
    cells: number of cells, a multiple of 3 (9 in the papers).
    channels: C of the first cells (16 in 1Shot1, 128 in NAS-Bench-101).
    num_classes: size of the output.
    widths: 'search', the default, is the supernet's cell: every node has C
      channels, the output is the concatenation of the states that it reads,
      and a 1x1 convolution follows the last cell. 'nasbench101' is the
      network that NAS-Bench-101's tables were made with: the nodes that the
      output reads share C, state 0 is added to them.
    remat: see `networks.rematerialised`.
  """

  genotype: genotypes.Genotype
  cells: int
  channels: int
  num_classes: int
  widths: str = 'search'
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.]; see `networks.Network`."""
    chex.assert_rank(images, 4)
    _check_widths(self.widths)
    norm = layers.batch_norm(images, train)
    run = layers.rematerialised(
        layers.with_drop_path(drop_path if train else 0), self.remat)
    x = ConvNormRelu(self.channels, 3, norm, name='stem')(images)
    for i, features, smaller in _stacked(self.cells, self.channels):
      x = _halve(x, self.widths) if smaller else x
      x = run(DiscreteCell(
          self.genotype, features, norm, self.widths, name=f'cell{i}'), x)
    if self.widths == 'search':
      x = operations.ReluConvNorm(features, norm, name='postprocess')(x)
    return layers.Linear(self.num_classes, name='head')(layers.pooled(x))


def extract(params, genotype: genotypes.Genotype) -> dict[str, Any]:
  """The `params` of a Network with widths='search' out of the supernet's.

  BatchNorm's scale is 1 and its bias 0, which the supernet has in the stem
  only.

  Args:
    params: of `Supernet`.
    genotype: one of its space.
  """
  n, concat = len(genotype.normal) + 1, sorted(genotype.normal_concat)

  def selected(kernel):
    """The rows of the states that an output selects."""
    c_in, c_out = kernel.shape[-2:]
    rows = kernel.reshape(*kernel.shape[:-2], n, c_in // n, c_out)
    return rows[..., concat, :, :].reshape(*kernel.shape[:-2], -1, c_out)

  def normed(kernel):
    c = kernel.shape[-1:]
    return {'scale': np.ones(c, np.float32), 'bias': np.zeros(c, np.float32)}

  def layer(kernel):
    return {'conv': {'kernel': kernel}, 'norm': normed(kernel)}

  def cell(edges, project):
    tree = {}
    for i, node in _live_nodes(genotype, 1, 'search').items():
      if 0 in node.parents:
        tree[f'node{i}_input'] = layer(project[i - 1])
      if node.op in CONVS:
        tree[f'node{i}_{node.op}'] = layer(
            edges[node.op]['conv']['kernel'][i - 1])
      elif node.op in edges:
        tree[f'node{i}_{node.op}'] = jax.tree.map(
            lambda leaf, row=i - 1: leaf[row], edges[node.op])
    return tree | ({'output_input': layer(project[-1])} if 0 in concat else {})

  named = {name: params[name] for name in ('stem', 'head')}
  for name in params:
    if name.startswith('cell'):
      edges = params[name][EDGES]
      kernel = edges['input']['kernel']
      # The stem gives one state to the first cell.
      named[name] = cell(
          edges, kernel if name == 'cell0' else selected(kernel))
  kernel = selected(params['postprocess']['Pointwise_0']['kernel'])
  named['postprocess'] = {
      'Pointwise_0': {'kernel': kernel}, 'BatchNorm_0': normed(kernel)}
  return named


# ------------------------------------------------------------------- counts


def _conv_cost(c_in, c_out, kernel, size, affine=True):
  """Convolution and normalisation at size x size pixels."""
  return counting.total(
      counting.conv(c_in, c_out, kernel**2, size**2),
      counting.norm(c_out, affine))


def _op_cost(op, channels, size, affine=True):
  if op in CONVS:
    return _conv_cost(channels, channels, CONVS[op], size, affine)
  return counting.OP_COUNTS[op](channels, size, 1, affine)


def _count(sizes, widths, cell_cost, states, affine=True):
  """A whole network.

  Args:
    sizes: checked.
    widths: as in `Network`.
    cell_cost: (input channels, C, height) -> Cost.
    states: how many times C a cell gives.
    affine: of the BatchNorm behind the last cell.
  """
  width, size = sizes.channels, sizes.image_size
  parts = [('stem', _conv_cost(sizes.image_channels, width, 3, size))]
  for i, c, smaller in _stacked(sizes.cells, width):
    size = _halved(size, widths) if smaller else size
    parts.append((f'cell {i}', cell_cost(width, c, size)))
    width = states * c
  if widths == 'search':
    parts.append(('postprocess', _conv_cost(width, c, 1, size, affine)))
  parts.append(('head', counting.linear(c, sizes.num_classes)))
  return counting.summed(parts)


def count(space: Space, genotype: genotypes.Genotype, sizes: Sizes,
          stem: str = 'cifar', widths: str = 'search') -> counting.Count:
  """Counts the discrete network of a genotype, exactly.

  Args:
    space: where the genotype is from.
    genotype: operations of `space`.
    sizes: of the network; cells are a multiple of 3.
    stem: 'cifar'.
    widths: as in `Network`.

  Raises:
    UserError: unknown operation, stem or widths, or a number out of range.
  """
  genotypes.validate(genotype, space.ops)
  _check_widths(widths)
  sizes = _checked(space, sizes, stem)
  concat = genotype.normal_concat

  def cell_cost(c_in, features, size):
    nodes = _live_nodes(genotype, features, widths).values()
    costs = [_op_cost(node.op, node.channels, size) for node in nodes]
    costs += [_conv_cost(c_in, node.channels, 1, size)
              for node in nodes if 0 in node.parents]
    if 0 in concat:
      costs.append(_conv_cost(c_in, features, 1, size))
    return counting.total(*costs)

  states = len(concat) if widths == 'search' else 1
  return _count(sizes, widths, cell_cost, states)


def count_supernet(space: Space, sizes: Sizes,
                   stem: str = 'cifar') -> counting.Count:
  """Counts a whole search network: every operation on every node.

  BatchNorm is affine in the stem only; architecture parameters are not
  counted. Arguments and errors are those of `count`.
  """
  sizes = _checked(space, sizes, stem)
  n = space.num_nodes

  def cell_cost(c_in, features, size):
    return counting.total(
        *n * [_conv_cost(c_in, features, 1, size, affine=False)],
        *(n - 1) * [_op_cost(op, features, size, affine=False)
                    for op in space.ops])

  return _count(sizes, 'search', cell_cost, n, affine=False)


# ------------------------------------------------------------ NAS-Bench-101


def to_nasbench101(
    genotype: genotypes.Genotype) -> tuple[np.ndarray, list[str]]:
  """The cell as NAS-Bench-101's tables ask for it.

  A cell of fewer than five inner nodes gets unused conv1x1 vertices behind
  them, at index 5 in spaces 1 and 2, as in the authors' code
  (`upscale_to_nasbench_format`).

  Returns:
    ([7,7] int, upper triangular, whose entry i, j is 1 where vertex j reads
    vertex i; 7 names, 'input' first and 'output' last).

  Raises:
    UserError: an operation, or more vertices or edges, than it can hold.
  """
  nodes, concat = _wiring(genotype)
  last = NASBENCH101_VERTICES - 1
  if len(nodes) >= last:
    raise errors.UserError(
        f'the genotype has {len(nodes)} nodes, of which NAS-Bench-101 can '
        f'hold {last - 1}')
  adjacency = np.zeros((last + 1, last + 1), np.int64)
  names = []
  for i, (op, parents) in enumerate(nodes, start=1):
    if op not in NASBENCH101_OPS:
      raise errors.UserError(
          f'the genotype has the operation {op!r}, but NAS-Bench-101 only '
          f'{", ".join(NASBENCH101_OPS)}')
    adjacency[list(parents), i] = 1
    names.append(NASBENCH101_OPS[op])
  adjacency[list(concat), last] = 1
  if adjacency.sum() > NASBENCH101_EDGES:
    raise errors.UserError(
        f'the genotype has {adjacency.sum()} edges, of which NAS-Bench-101 '
        f'can hold {NASBENCH101_EDGES}')
  names += [NASBENCH101_OPS['conv_1x1']] * (last - 1 - len(names))
  return adjacency, [_INPUT, *names, _OUTPUT]


def from_nasbench101(adjacency, names) -> genotypes.Genotype:
  """The genotype of a cell of NAS-Bench-101; unused vertices are dropped.

  Args:
    adjacency: [V,V] upper triangular 0/1, V at most 7.
    names: V names, 'input' first and 'output' last.

  Raises:
    UserError: it is no such cell, or a vertex is read that reads nothing.
  """
  adjacency, names = np.asarray(adjacency), list(names)
  _check_nasbench101(adjacency, names)
  size = len(names)
  used = [v for v in range(size) if v in (0, size - 1)
          or adjacency[v].any() or adjacency[:, v].any()]
  parents = []
  for v in used[1:]:
    read = [used.index(u) for u in np.flatnonzero(adjacency[:, v])]
    if not read:
      raise errors.UserError(
          f'vertex {v} of the NAS-Bench-101 cell reads nothing')
    parents.append(tuple(read))
  own = {name: op for op, name in NASBENCH101_OPS.items()}
  genotype = make_genotype(parents, [own[names[v]] for v in used[1:-1]])
  return genotypes.validate(genotype, where='NAS-Bench-101 cell')


def _check_nasbench101(adjacency, names):
  size = len(names)
  if not 3 <= size <= NASBENCH101_VERTICES or adjacency.shape != (size, size):
    raise errors.UserError(
        f'a NAS-Bench-101 cell must have 3 to {NASBENCH101_VERTICES} names '
        f'and as many rows and columns, not {size} and {adjacency.shape}')
  if not np.isin(adjacency, (0, 1)).all() or np.tril(adjacency).any():
    raise errors.UserError(
        'the adjacency of a NAS-Bench-101 cell must be 0 or 1 above its '
        'diagonal and 0 elsewhere')
  known = NASBENCH101_OPS.values()
  unknown = [name for name in names[1:-1] if name not in known]
  if (names[0], names[-1]) != (_INPUT, _OUTPUT) or unknown:
    raise errors.UserError(
        f'the names of a NAS-Bench-101 cell must be {_INPUT}, any of '
        f'{", ".join(known)}, {_OUTPUT}; not {names}')

"""The weights of a network: how they begin, and how to take a part of them."""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rome_jax.engine import archs, operations
from rome_jax.engine import layout as layout_lib
from rome_jax.engine.owners import Candidate
from rome_jax.spaces import Space, genotypes

# A family that stacks the weights of equal edges, nodes or blocks on a leading
# axis puts them under this name, by which `initialise` knows of the axis.
STACKED = layout_lib.EDGES


def is_stacked(path: Sequence[Any]) -> bool:
  """Whether a leaf has a leading axis of edges, nodes or blocks.

  Args:
    path: the names on the way to the leaf, from the root of the tree.
  """
  return not {layout_lib.EDGES, layout_lib.STRIDED}.isdisjoint(path)


def initialise(module: nn.Module, seed: int, *args: Any) -> Any:
  """The variables of `module.init(key, *args)`, drawn by NumPy.

  Kernels, and biases beside them, start in U(+-1/sqrt(fan_in)), which is
  PyTorch's law. `init` would compile one random draw for each kernel, which
  takes longer than training a small network; and these weights are the same on
  every device and in every version of JAX.

  Args:
    module: a Supernet or Network.
    seed: of the weights.
    *args: of the module's call; only shapes matter.

  Returns:
    {collection: tree} of NumPy float32 arrays.
  """
  key = jax.random.key(0)
  shapes = jax.eval_shape(
      module.init, {'params': key, 'noise': key}, *args)
  kernels = {path[:-1]: _one_of_stack(path, leaf.shape)
             for path, leaf in traverse_util.flatten_dict(shapes).items()
             if path[-1] == 'kernel'}

  def draw(path, leaf):
    if path[-1] in ('scale', 'var'):
      return np.ones(leaf.shape, np.float32)
    if path[:-1] not in kernels:  # BatchNorm's mean and bias
      return np.zeros(leaf.shape, np.float32)
    bound = operations.init_bound(kernels[path[:-1]])
    rng = np.random.Generator(np.random.Philox(
        key=[seed, zlib.crc32('/'.join(path).encode())]))
    return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

  flat = traverse_util.flatten_dict(shapes)
  return traverse_util.unflatten_dict(
      {path: draw(path, leaf) for path, leaf in flat.items()})


def _one_of_stack(path, shape):
  """The shape of the kernel of one edge, node or block."""
  return shape[1:] if is_stacked(path) else shape


def init_supernet(network: nn.Module, seed: int, image_size: int,
                  image_channels: int) -> Any:
  """Initial weights of a supernet for square images; see `initialise`."""
  images = jnp.zeros((1, image_size, image_size, image_channels))
  space = network.space
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  return initialise(network, seed, images, arch)['params']


# ------------------------------------------------ parts of a supernet's weights


@functools.cache
def _edges(space, cell_type):
  """{(group, operation): its edges} of the operations with parameters."""
  layout = layout_lib.layout_of(space, cell_type, 2)
  return {(v.group, v.op): v.edges for v in layout.variants if v.size}


def _cells(theta, space):
  """{name: cell type} of the trees in `theta` that are cells of the space."""
  if (space.sites, space.parents) != ('edges', 'all'):
    raise ValueError(
        f"space {space.name} must have sites='edges' and parents='all', not "
        f'sites={space.sites!r} and parents={space.parents!r}')

  def cell_type(name):
    groups = {g: theta[name][g] for g in (layout_lib.EDGES, layout_lib.STRIDED)
              if g in theta[name]}
    found = {(group, op): jax.tree.leaves(tree)[0].shape[0]
             for group, trees in groups.items() for op, tree in trees.items()}
    for t in space.cell_types:
      if found == {key: len(e) for key, e in _edges(space, t).items()}:
        return t
    raise ValueError(f'{name} has not the weights of a cell of {space.name}')

  return {name: cell_type(name) for name in theta if name.startswith('cell')}


def _rows(tree, rows):
  return jax.tree.map(lambda leaf: leaf[rows], tree)


def take(theta: dict[str, Any], space: Space,
         sub_space: Space) -> dict[str, Any]:
  """Takes the weights of a sub-space's supernet out of those of a space's.

  Args:
    theta: weights of a supernet of the family 'darts' or 'nasbench201', or
      gradients of that form.
    space: its space.
    sub_space: a space with the same edges, each with some of its operations.

  Returns:
    The weights of the sub-space's supernet of the same size.

  Raises:
    ValueError: an edge of the sub-space has an operation that `space` does not
      have there, or `theta` is not of the space.
  """
  if (space.node_edges, space.cell_types) != (
      sub_space.node_edges, sub_space.cell_types):
    raise ValueError(
        f'space {sub_space.name} has not the edges of {space.name}')
  for t in space.cell_types:
    for edge, names in enumerate(sub_space.site_ops(t)):
      if not set(names) <= set(space.site_ops(t)[edge]):
        raise ValueError(
            f'edge {edge} of {sub_space.name} has operations {names}, which '
            f'must be some of {space.site_ops(t)[edge]}')
  taken = dict(theta)
  for name, t in _cells(theta, space).items():
    cell = {key: tree for key, tree in theta[name].items()
            if not is_stacked([key])}
    for (group, op), edges in _edges(sub_space, t).items():
      place = _edges(space, t)[group, op].index
      cell.setdefault(group, {})[op] = _rows(
          theta[name][group][op], np.array([place(e) for e in edges]))
    taken[name] = cell
  return taken


def extract(theta: dict[str, Any], space: Space,
            genotype: genotypes.Genotype) -> dict[str, Any]:
  """Takes the weights of a derived network out of a supernet's.

  BatchNorm in cells starts with scale 1 and bias 0, since a supernet has none
  there. The network then computes what the supernet does on this path with the
  statistics of the batch, but for DARTS' poolings, which only a supernet
  normalises.

  Args:
    theta: weights of a supernet of the family 'darts' or 'nasbench201'.
    space: its space.
    genotype: one of the space.

  Returns:
    `params` of the family's `Network` of the same size, without an auxiliary
    head.

  Raises:
    ValueError: the genotype has an operation or edge that the space has not,
      or `theta` is not of the space.
  """
  named = dict(theta)
  for name, t in _cells(theta, space).items():
    cell = {key: _with_norm(tree) for key, tree in theta[name].items()
            if not is_stacked([key])}
    for number, node in enumerate(getattr(genotype, t)):
      for i, (op, pred) in enumerate(node):
        params = _operation(theta[name], space, t, number, op, pred)
        if params:
          cell[f'node{number}_{i}_{op}'] = params
    named[name] = cell
  return named


def _operation(cell, space, cell_type, node, op, pred):
  """Parameters of one operation of a derived cell; {} if it has none."""
  start, stop = space.node_edges[node]
  edge = start + pred
  if edge >= stop or op not in (*space.site_ops(cell_type)[edge], space.absent):
    raise ValueError(
        f'node {node} of a cell of {space.name} has no {op!r} from state '
        f'{pred}')
  strided = cell_type == 'reduce' and pred < space.num_inputs
  group = layout_lib.STRIDED if strided else layout_lib.EDGES
  edges = _edges(space, cell_type).get((group, op))
  if edges is None:
    return {}
  found = traverse_util.flatten_dict(
      _rows(cell[group][op], edges.index(edge)))
  return traverse_util.unflatten_dict({
      path: found[path] if path in found else _of_norm(path[-1], leaf.shape)
      for path, leaf in _derived_shapes(
          op, 2 if strided else 1, _channels(*found.values())).items()})


def _channels(leaf, *_):
  """C of an operation one of whose parameters is `leaf`; it keeps C."""
  return leaf.shape[-2] if leaf.ndim in (2, 4) else leaf.shape[-1]


def _derived_shapes(op, stride, channels):
  """{path: shape} of an operation's parameters in a derived network."""
  module = operations.build(op, operations.Context(
      stride, lambda: nn.BatchNorm(use_running_average=True)))
  x = jnp.zeros((1, 4, 4, channels))
  return traverse_util.flatten_dict(jax.eval_shape(
      module.init, jax.random.key(0), x)['params'])


def _of_norm(name, shape):
  """BatchNorm's 'scale' or 'bias' before any training."""
  return np.full(shape, float(name == 'scale'), np.float32)


def _with_norm(preprocessor):
  """A preprocessor's parameters with those of its BatchNorm."""
  shape = sum(leaf.shape[-1] for leaf in jax.tree.leaves(preprocessor)),
  return {**preprocessor, 'BatchNorm_0': {
      name: _of_norm(name, shape) for name in ('scale', 'bias')}}


# ------------------------------------------------------ whose weights are which


def candidates(theta: dict[str, Any], space: Space) -> tuple[Candidate, ...]:
  """Every operation with weights, of the families 'darts' and 'nasbench201'.

  Args:
    theta: weights of a supernet, or a tree like them.
    space: its space.

  Raises:
    ValueError: `theta` is not of the space.
  """
  return tuple(
      Candidate((name, group, op), t, op, edges)
      for name, t in _cells(theta, space).items()
      for (group, op), edges in _edges(space, t).items())

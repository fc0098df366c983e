"""The weights of a network: how they are named and how they begin."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rome_jax.engine import archs, operations
from rome_jax.engine import layout as layout_lib

# A family that stacks the weights of equal edges, nodes or blocks on a leading
# axis puts them under this name, by which `initialise` knows of the axis.
STACKED = layout_lib.EDGES


def is_stacked(path) -> bool:
  """Whether a leaf has a leading axis of edges, nodes or blocks.

  Args:
    path: the names on the way to the leaf, from the root of the tree.
  """
  return not {layout_lib.EDGES, layout_lib.STRIDED}.isdisjoint(path)


def initialise(module: nn.Module, seed: int, *args):
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
                  image_channels: int):
  """Initial weights of a supernet for square images; see `initialise`."""
  images = jnp.zeros((1, image_size, image_size, image_channels))
  space = network.space
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  return initialise(network, seed, images, arch)['params']

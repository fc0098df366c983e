"""The weights of a network: how they begin."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rome_jax.engine import archs, operations
from rome_jax.engine import layout as layout_lib
from rome_jax.families import darts


def initialise(module: nn.Module, seed: int, *args):
  """The variables of `module.init(key, *args)`, drawn by NumPy.

  The law is PyTorch's: kernels, and biases beside them, in
  U(+-1/sqrt(fan_in)). `init` would compile one random draw per kernel, which
  takes longer than training a small network; and these weights are the same
  on every device and version of JAX.

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
  kernels = {path[:-1]: _one_edge(path, leaf.shape)
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


def _one_edge(path, shape):
  """The kernel's shape without the leading axis of a supernet's edges."""
  stacked = {layout_lib.EDGES, layout_lib.STRIDED} & set(path)
  return shape[1:] if stacked else shape


def init_supernet(network: darts.Supernet, seed: int, image_size: int,
                  image_channels: int):
  """Initial weights of a supernet for square images; see `initialise`."""
  images = jnp.zeros((1, image_size, image_size, image_channels))
  space = network.space
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  return initialise(network, seed, images, arch)['params']

"""Layers that the supernet and the networks of NAS-Bench-1Shot1 share."""

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax

from rome_jax.engine import kernels, operations
from rome_jax.spaces import counting

# Convolution, normalisation, ReLU: the kernel's size. All other operations
# are rows of `operations.OPS`.
CONVS = {'conv_3x3': 3, 'conv_1x1': 1}


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


def operation(name: str, features: int, norm: Callable) -> nn.Module:
  """The unbound module of a node's operation; pools are not normalised."""
  if name in CONVS:
    return ConvNormRelu(features, CONVS[name], norm, parent=None)
  return operations.build(name, operations.Context(1, norm)).clone(parent=None)


def stacked(cells: int, channels: int) -> Iterator[tuple[int, int, bool]]:
  """For each cell (number, C, whether it starts a stack of smaller maps)."""
  for i in range(cells):
    smaller = i in counting.reductions(cells)
    channels *= 2 if smaller else 1
    yield i, channels, smaller


def halved(size: int, widths: str) -> int:
  """Height of a map after `halve`.

  >>> halved(32, 'search'), halved(32, 'nasbench101')
  (17, 16)
  """
  return size // 2 + 1 if widths == 'search' else -(-size // 2)


def halve(x: jax.Array, widths: str) -> jax.Array:
  """2x2 max pooling of stride 2.

  The search network pads by 1 on each side (32, 17, 9 pixels), NAS-Bench-101
  only what is missing (32, 16, 8).
  """
  return kernels.max_pool_2x2(x, low=int(widths == 'search'))

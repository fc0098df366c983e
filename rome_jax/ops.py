"""Candidate operations: one table row each, Flax modules over NHWC images.

The structures are those of DARTS (Liu et al. 2019, `operations.py` of the
authors' code). No convolution has a bias. An operation is built for a number
of channels C and a stride; it maps [B,H,W,C] to [B,ceil(H/s),ceil(W/s),C].

Normalisation differs between the phases: search cells use the statistics of
the batch, without affine and without state; discrete networks use
`flax.linen.BatchNorm`. A module takes it as `norm`, a function that makes the
layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import errors, kernels


def init_bound(shape) -> float:
  """1/sqrt(fan_in) of a kernel [..., in, out] or (depthwise) [k,k,C]."""
  fan_in = np.prod(shape[:2] if len(shape) == 3 else shape[:-1])
  return float(fan_in) ** -.5


def torch_init(rng, shape, dtype=jnp.float32):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default.

  All published figures of this field start from it.
  """
  bound = init_bound(shape)
  return jax.random.uniform(rng, shape, dtype, -bound, bound)


class BatchStatistics(nn.Module):
  """Stateless BatchNorm of search cells: batch statistics, no affine."""

  @nn.compact
  def __call__(self, x):
    return kernels.batch_norm(x)


class Pointwise(nn.Module):
  """1x1 convolution without bias to `features` channels, any stride."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    w = self.param('kernel', torch_init, (x.shape[-1], self.features))
    x = x[:, ::self.stride, ::self.stride]
    return x @ w.astype(x.dtype)


class Depthwise(nn.Module):
  """Depthwise convolution without bias."""

  kernel: int
  stride: int = 1
  dilation: int = 1

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1])
    w = self.param('kernel', torch_init, shape)
    return kernels.depthwise_conv(
        x, w.astype(x.dtype), self.stride, self.dilation)


class ReluConvNorm(nn.Module):
  """ReLU, 1x1 convolution, normalisation: the preprocessing of a cell."""

  features: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    return self.norm()(Pointwise(self.features)(nn.relu(x)))


class FactorizedReduce(nn.Module):
  """Halves the size: two strided 1x1 convolutions, one a pixel off.

  ReLU, then half of the channels from the even pixels and half from the odd
  ones, then one normalisation.
  """

  features: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    x = nn.relu(x)
    # For odd sizes the shifted map lacks its last row and column.
    odd = jnp.pad(
        x[:, 1:, 1:],
        ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    half = self.features // 2
    halves = (
        Pointwise(half, 2, name='even')(x),
        Pointwise(self.features - half, 2, name='odd')(odd))
    return self.norm()(jnp.concatenate(halves, -1))


class SepConv(nn.Module):
  """[ReLU, depthwise, 1x1, normalisation], twice; stride in the first."""

  kernel: int
  stride: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    for stride in (self.stride, 1):
      x = Depthwise(self.kernel, stride)(nn.relu(x))
      x = self.norm()(Pointwise(features)(x))
    return x


class DilConv(nn.Module):
  """ReLU, depthwise with dilation 2, 1x1, normalisation."""

  kernel: int
  stride: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    x = Depthwise(self.kernel, self.stride, 2)(nn.relu(x))
    return self.norm()(Pointwise(features)(x))


class Conv7x1(nn.Module):
  """ReLU, 1x7, 7x1, normalisation (NASNet's and AmoebaNet's operation)."""

  stride: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    features, s = x.shape[-1], self.stride
    conv = dict(features=features, use_bias=False, kernel_init=torch_init,
                dtype=x.dtype)
    x = nn.relu(x)
    x = nn.Conv(kernel_size=(1, 7), strides=(1, s),
                padding=((0, 0), (3, 3)), **conv)(x)
    x = nn.Conv(kernel_size=(7, 1), strides=(s, 1),
                padding=((3, 3), (0, 0)), **conv)(x)
    return self.norm()(x)


class Pool(nn.Module):
  """3x3 pooling, normalised in search cells only."""

  pool: Callable
  stride: int
  norm: Callable | None

  @nn.compact
  def __call__(self, x):
    x = self.pool(x, self.stride)
    return self.norm()(x) if self.norm else x


class Skip(nn.Module):
  """Identity, or `FactorizedReduce` at stride 2."""

  stride: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    if self.stride == 1:
      return x
    return FactorizedReduce(x.shape[-1], self.norm)(x)


class Context(NamedTuple):
  """What the builder of an operation may depend on.

  Attributes:
    stride: 1 or 2.
    norm: function that makes a normalisation layer.
    search: True in a supernet, False in a discrete network.
  """

  stride: int
  norm: Callable
  search: bool


def _pool(pool):
  def build(context):
    return Pool(pool, context.stride, context.norm if context.search else None)
  return build


def _conv(module, kernel):
  return lambda context: module(kernel, context.stride, context.norm)


OPS: dict[str, Callable[[Context], nn.Module]] = {
    'max_pool_3x3': _pool(kernels.max_pool),
    'avg_pool_3x3': _pool(kernels.avg_pool),
    'skip_connect': lambda context: Skip(context.stride, context.norm),
    'sep_conv_3x3': _conv(SepConv, 3),
    'sep_conv_5x5': _conv(SepConv, 5),
    'sep_conv_7x7': _conv(SepConv, 7),
    'dil_conv_3x3': _conv(DilConv, 3),
    'dil_conv_5x5': _conv(DilConv, 5),
    'conv_7x1_1x7': lambda context: Conv7x1(context.stride, context.norm),
}


def build(name: str, context: Context) -> nn.Module:
  """The module of the named operation.

  Raises:
    UserError: no such operation.
  """
  if name not in OPS:
    raise errors.UserError(
        f'operation {name!r} is unknown; known: {", ".join(OPS)}'
        f'{errors.near_miss(name, OPS)}')
  return OPS[name](context)

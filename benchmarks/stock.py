"""The candidate operations in stock JAX, to measure the package's beside.

What a user of JAX and Flax would write: `lax.conv_general_dilated` (with
`feature_group_count` where it is depthwise), Flax's pooling, BatchNorm by the
batch's mean and variance, everything differentiated by JAX. Functions (params,
x) -> y that take the parameters of the package's modules, so that both can be
compared.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def conv(x, kernel, strides=(1, 1), dilation=1, groups=1):
  """Convolution, padding d (k // 2) on each side, HWIO kernel, no bias."""
  padding = [(dilation * (n // 2),) * 2 for n in kernel.shape[:2]]
  return lax.conv_general_dilated(
      x, kernel, strides, padding, rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


def depthwise(x, kernel, stride=1, dilation=1):
  """Depthwise convolution with a kernel [k,k,C]."""
  return conv(x, kernel[:, :, None], (stride,) * 2, dilation, x.shape[-1])


def pointwise(x, kernel, stride=1):
  """1x1 convolution with a kernel [in,out]."""
  return conv(x, kernel[None, None], (stride,) * 2)


def max_pool(x, stride):
  """3x3, padding 1."""
  return nn.max_pool(x, (3, 3), (stride,) * 2, ((1, 1), (1, 1)))


def avg_pool(x, stride):
  """3x3, padding 1 that is not counted."""
  return nn.avg_pool(x, (3, 3), (stride,) * 2, ((1, 1), (1, 1)),
                     count_include_pad=False)


def batch_norm(x):
  """Statistics of the batch, no affine (as `nn.BatchNorm` computes them)."""
  mean = x.mean((0, 1, 2))
  variance = jnp.square(x).mean((0, 1, 2)) - jnp.square(mean)
  return (x - mean) * lax.rsqrt(variance + 1e-5)


def _separable(repeats, dilation=1):
  def make(stride):
    def apply(params, x):
      for i in range(repeats):
        x = depthwise(
            nn.relu(x), params[f'Depthwise_{i}']['kernel'],
            stride if i == 0 else 1, dilation)
        x = batch_norm(pointwise(x, params[f'Pointwise_{i}']['kernel']))
      return x
    return apply
  return make


def _pool(function):
  return lambda stride: lambda params, x: batch_norm(function(x, stride))


def _skip(stride):
  def reduce(params, x):
    halves = params['FactorizedReduce_0']
    x = nn.relu(x)
    return batch_norm(jnp.concatenate([
        pointwise(x, halves['even']['kernel'], 2),
        pointwise(x[:, 1:, 1:], halves['odd']['kernel'], 2)], -1))
  return reduce if stride == 2 else lambda params, x: x


def _relu_conv(stride):
  return lambda params, x: batch_norm(
      conv(nn.relu(x), params['conv']['kernel'], (stride,) * 2))


def _conv_7x1(stride):
  def apply(params, x):
    x = conv(nn.relu(x), params['Conv_0']['kernel'], (1, stride))
    return batch_norm(conv(x, params['Conv_1']['kernel'], (stride, 1)))
  return apply


def _zero(stride):
  return lambda params, x: jnp.zeros_like(x[:, ::stride, ::stride])


def _noise(stride):
  return lambda params, x: jax.random.normal(
      jax.random.key(0), x[:, ::stride, ::stride].shape, x.dtype)


# Name -> stride -> (params, x) -> y; x of even size.
OPS: dict[str, Callable] = {
    'none': _zero,
    'noise': _noise,
    'max_pool_3x3': _pool(max_pool),
    'avg_pool_3x3': _pool(avg_pool),
    'skip_connect': _skip,
    'sep_conv_3x3': _separable(2),
    'sep_conv_5x5': _separable(2),
    'sep_conv_7x7': _separable(2),
    'dil_conv_3x3': _separable(1, 2),
    'dil_conv_5x5': _separable(1, 2),
    'conv_7x1_1x7': _conv_7x1,
    'nor_conv_1x1': _relu_conv,
    'nor_conv_3x3': _relu_conv,
}

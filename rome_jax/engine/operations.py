"""Candidate operations: Flax modules over NHWC images, one table row each.

The structures are those of DARTS (Liu et al. 2019, `operations.py` of the
authors' code). Convolutions have no bias unless told so. An operation is built
for a stride s; it maps [B,H,W,C] to [B,ceil(H/s),ceil(W/s),C].

Normalisation differs between the phases: search cells use the statistics of
the batch, without affine and without state; discrete networks use
`flax.linen.BatchNorm`. So a module takes `norm`, a function that makes the
layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import errors
from rome_jax.engine import kernels, statistics
from rome_jax.spaces import counting


def wide(dtype: Any) -> np.dtype:
  """The dtype of sums over pixels or images: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def init_bound(shape: Sequence[int]) -> float:
  """1/sqrt(fan_in) of a kernel [..., in, out], or depthwise [k,k,C]."""
  fan_in = np.prod(shape[:2] if len(shape) == 3 else shape[:-1])
  return float(fan_in) ** -.5


def torch_init(rng: jax.Array, shape: Sequence[int],
               dtype: Any = jnp.float32) -> jax.Array:
  """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default.

  All published results of this field start from it.
  """
  bound = init_bound(shape)
  return jax.random.uniform(rng, shape, dtype, -bound, bound)


def parameter(module: nn.Module, name: str, init: Callable[..., Any],
              *args: Any) -> Any:
  """`module.param`, but calls `init` only if the parameter is missing.

  Flax traces `init` at every use to compare shapes, which takes a tenth of the
  time to trace a supernet.
  """
  if module.has_variable('params', name):
    return module.get_variable('params', name)
  return module.param(name, init, *args)


class BatchStatistics(nn.Module):
  """Stateless BatchNorm of search cells: batch statistics, no affine."""

  @nn.compact
  def __call__(self, x):
    return statistics.batch_norm(x)


class Pointwise(nn.Module):
  """1x1 convolution without bias to `features` channels, any stride."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    w = parameter(self, 'kernel', torch_init, (x.shape[-1], self.features))
    return kernels.pointwise(x, w.astype(x.dtype), self.stride)


class Depthwise(nn.Module):
  """Depthwise convolution without bias."""

  kernel: int
  stride: int = 1
  dilation: int = 1

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1])
    w = parameter(self, 'kernel', torch_init, shape)
    return kernels.depthwise_conv(
        x, w.astype(x.dtype), self.stride, self.dilation)


class Conv(nn.Module):
  """Full convolution that keeps the size at stride 1.

  Attributes:
    features: output channels.
    kernel: odd; of rows and columns if they differ.
    stride: 1 or 2; likewise.
    bias: whether it has one, where no affine normalisation follows.
  """

  features: int
  kernel: int | tuple[int, int]
  stride: int | tuple[int, int] = 1
  bias: bool = False

  @nn.compact
  def __call__(self, x):
    kernel, strides = (
        n if isinstance(n, tuple) else (n, n)
        for n in (self.kernel, self.stride))
    shape = (*kernel, x.shape[-1], self.features)
    w = parameter(self, 'kernel', torch_init, shape).astype(x.dtype)
    y = kernels.conv(x, w, strides)
    if self.bias:
      b = self.param('bias', nn.initializers.zeros, (self.features,))
      # In float32 at least, so that b's gradient, a sum over the batch, is too.
      y = (y + b.astype(wide(x.dtype))).astype(x.dtype)
    return y


class ReluConvNorm(nn.Module):
  """ReLU, 1x1 convolution, normalisation: the preprocessing of a cell."""

  features: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    return self.norm()(Pointwise(self.features)(nn.relu(x)))


class FactorizedReduce(nn.Module):
  """Halves the size by two strided 1x1 convolutions, one a pixel off.

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


class Separable(nn.Module):
  """[ReLU, depthwise, 1x1, normalisation], once per entry of `strides`.

  DARTS' sep_conv is two of them, the stride in the first; its dil_conv is one
  with dilation 2.
  """

  kernel: int
  strides: tuple[int, ...]
  norm: Callable
  dilation: int = 1

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    for stride in self.strides:
      x = Depthwise(self.kernel, stride, self.dilation)(nn.relu(x))
      x = self.norm()(Pointwise(features)(x))
    return x


class ReluConv(nn.Module):
  """ReLU, a full convolution, normalisation (NAS-Bench-201)."""

  kernel: int
  stride: int
  norm: Callable
  bias: bool

  @nn.compact
  def __call__(self, x):
    x = Conv(x.shape[-1], self.kernel, self.stride, self.bias,
             name='conv')(nn.relu(x))
    return self.norm()(x)


class Conv7x1(nn.Module):
  """ReLU, 1x7, 7x1, normalisation (NASNet's and AmoebaNet's operation)."""

  stride: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    features, s = x.shape[-1], self.stride
    x = Conv(features, (1, 7), (1, s))(nn.relu(x))
    x = Conv(features, (7, 1), (s, 1))(x)
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


class Zero(nn.Module):
  """Zeros of the output's shape."""

  stride: int

  @nn.compact
  def __call__(self, x):
    return jnp.zeros_like(x[:, ::self.stride, ::self.stride])


class Noise(nn.Module):
  """Fresh N(0, 1) of the output's shape, in training and in test.

  RobustDARTS S4 has it as an operation that carries no information. It draws
  from the rng stream 'noise' and has no gradient.
  """

  stride: int

  @nn.compact
  def __call__(self, x):
    shape = x[:, ::self.stride, ::self.stride].shape
    key, part = self.make_rng('noise'), statistics.part_of_batch()
    if part is not None:  # Or every part of a batch would get the same.
      key = jax.random.fold_in(key, part)
    # Drawn in float32: bfloat16 has too few numbers for a normal law.
    return jax.random.normal(key, shape, wide(x.dtype)).astype(x.dtype)


class Context(NamedTuple):
  """What the builder of an operation may depend on.

  Attributes:
    stride: 1 or 2.
    norm: function that makes a normalisation layer.
    pool_norm: whether poolings are normalised, as in DARTS' supernet.
    bias: whether full convolutions have a bias, as in NAS-Bench-201's.
  """

  stride: int
  norm: Callable
  pool_norm: bool = False
  bias: bool = False


def _pool(pool):
  def build(context):
    return Pool(
        pool, context.stride, context.norm if context.pool_norm else None)
  return build


def _separable(kernel):
  return lambda c: Separable(kernel, (c.stride, 1), c.norm)


def _dilated(kernel):
  return lambda c: Separable(kernel, (c.stride,), c.norm, dilation=2)


def _relu_conv(kernel):
  return lambda c: ReluConv(kernel, c.stride, c.norm, c.bias)


OPS: dict[str, Callable[[Context], nn.Module]] = {
    'none': lambda c: Zero(c.stride),
    'noise': lambda c: Noise(c.stride),
    'max_pool_3x3': _pool(kernels.max_pool),
    'avg_pool_3x3': _pool(kernels.avg_pool),
    'skip_connect': lambda c: Skip(c.stride, c.norm),
    'sep_conv_3x3': _separable(3),
    'sep_conv_5x5': _separable(5),
    'sep_conv_7x7': _separable(7),
    'dil_conv_3x3': _dilated(3),
    'dil_conv_5x5': _dilated(5),
    'conv_7x1_1x7': lambda c: Conv7x1(c.stride, c.norm),
    'nor_conv_1x1': _relu_conv(1),
    'nor_conv_3x3': _relu_conv(3),
}


# Names of the operations that draw random numbers. They are given the rng
# stream 'noise': in a search, one seed for each slot and step.
DRAWS: set[str] = {'noise'}


def draws(name: str) -> bool:
  """Whether the named operation draws random numbers."""
  return name in DRAWS


def build(name: str, context: Context) -> nn.Module:
  """Makes the module of the named operation.

  Raises:
    UserError: no such operation.
  """
  if name not in OPS:
    raise errors.UserError(
        f'operation {name!r} is unknown; known: {", ".join(OPS)}'
        f'{errors.near_miss(name, OPS)}')
  return OPS[name](context)


# -------------------------------------------------------- partial channels


class Partial(nn.Module):
  """An operation on the first C/k channels; the others pass it by.

  See `partial`. The parameters are those of `module`, under the same names.
  """

  module: nn.Module
  k: int

  def setup(self) -> None:
    nn.share_scope(self, self.module)

  def __call__(self, x):
    features = x.shape[-1]
    if features % self.k:
      raise ValueError(
          f'partial={self.k} must divide the {features} channels')
    y = self.module(x[..., :features // self.k])
    return shuffled(y, passed_by(x, self.k, y.shape[1:3]), self.k)


def passed_by(x: jax.Array, k: int, size: Sequence[int]) -> jax.Array:
  """The channels of x past the first C/k, pooled if `size` is not that of x."""
  rest = x[..., x.shape[-1] // k:]
  return rest if size == x.shape[1:3] else kernels.max_pool_2x2(rest)


def shuffled(y: jax.Array, rest: jax.Array, k: int) -> jax.Array:
  """The channels of y [B,h,w,C/k] and `rest`, shuffled in k groups."""
  y = jnp.concatenate([y, rest], -1)
  features = y.shape[-1]
  y = y.reshape(*y.shape[:-1], k, features // k)
  return y.swapaxes(-1, -2).reshape(*y.shape[:-2], features)


def partial(module: nn.Module, k: int) -> nn.Module:
  """Applies `module` to the first C/k channels only, as PC-DARTS does.

  The other channels pass it by, through 2x2 max pooling of stride 2 where the
  operation strides; then the channels are shuffled in k groups (Xu et al.,
  ICLR 2020, Eq. 1; `MixedOp` in `model_search.py` of the authors' code).

  There the channels pass by once per edge, here once per operation of the
  edge, each time multiplied by its gate. The sums are equal if the gates of an
  edge sum to 1 (softmax), or to the edge's own factor (softmax times beta);
  they differ for others, such as sigmoids.

  Args:
    module: [B,H,W,C/k] -> [B,ceil(H/s),ceil(W/s),C/k].
    k: a divisor of C; 1 gives `module` itself.

  Returns:
    A module [B,H,W,C] -> [B,ceil(H/s),ceil(W/s),C], which raises ValueError if
    k does not divide C.
  """
  return module if k == 1 else Partial(module, k, parent=None)


# ------------------------------------------------------ users' own operations

# By these names `weights.initialise` knows how parameters begin.
_LEAVES = ('kernel', 'scale', 'bias')
_PROBE = (2, 5, 5, 4)  # Odd sizes show a wrong stride.
# The package's own rows; its tests check them.
_PACKAGE = {name: (OPS[name], counting.OP_COUNTS[name]) for name in OPS}


def is_users(name: str) -> bool:
  """Whether any of the operation's two rows is not the package's."""
  return (OPS.get(name), counting.OP_COUNTS.get(name)) != _PACKAGE.get(name)


def check(name: str) -> None:
  """Checks the two table rows of an operation against each other.

  Traces it at both strides, with statistics of the batch and with BatchNorm;
  compiles nothing.

  Raises:
    UserError: a row is missing; or the module gives another shape, has state,
      parameters of other names or another number of them than the count says,
      or draws random numbers without being in DRAWS.
  """
  if name not in counting.OP_COUNTS:
    raise errors.UserError(
        f'operation {name!r} has no row in counting.OP_COUNTS, by which its '
        'parameters and multiply-adds are counted')
  for stride in (1, 2):
    _check_search(name, stride)
    discrete = _trace(name, Context(
        stride, lambda: nn.BatchNorm(use_running_average=True)))[1]
    _check_count(name, stride, True, discrete)


def _trace(name, context):
  """(output, variables) of an operation, shapes only."""
  module, key = build(name, context), jax.random.key(0)
  # The cells hand no other operation a key. `init` is not enough to see that:
  # it falls back on the stream 'params'.
  rngs = {'noise': key} if draws(name) else {}

  def run(x):
    variables = module.init({'params': key, **rngs}, x)
    return module.apply(variables, x, rngs=rngs, mutable=True)[0], variables

  try:
    return jax.eval_shape(run, jax.ShapeDtypeStruct(_PROBE, jnp.float32))
  except flax.errors.InvalidRngError as error:
    raise errors.UserError(
        f'operation {name!r} draws random numbers from a stream that it is '
        "not given; an operation in operations.DRAWS is given 'noise'"
    ) from error


def _check_search(name, stride):
  y, variables = _trace(name, Context(stride, BatchStatistics))
  b, h, w, c = _PROBE
  wanted = (b, -(-h // stride), -(-w // stride), c)
  if y.shape != wanted:
    raise errors.UserError(
        f'operation {name!r} with stride {stride} turns {_PROBE} into '
        f'{y.shape}; it must give {wanted}')
  state = sorted(set(variables) - {'params'})
  if state:
    raise errors.UserError(
        f'operation {name!r} keeps {", ".join(state)}; in a search it may '
        'hold nothing but parameters, so normalise by context.norm')
  for path, _ in jax.tree_util.tree_leaves_with_path(variables):
    if path[-1].key not in _LEAVES:
      raise errors.UserError(
          f'operation {name!r} has a parameter {path[-1].key!r}; its name '
          f'must be one of {", ".join(_LEAVES)}, by which it is initialised')
  _check_count(name, stride, False, variables)


def _check_count(name, stride, affine, variables):
  leaves = jax.tree.leaves(variables.get('params', {}))
  found = sum(leaf.size for leaf in leaves)
  counted = counting.OP_COUNTS[name](
      _PROBE[-1], _PROBE[1], stride, affine).params
  if counted != found:
    raise errors.UserError(
        f'counting.OP_COUNTS[{name!r}] gives {counted} parameters for '
        f'channels={_PROBE[-1]}, stride={stride}, affine={affine}, but the '
        f'operation has {found}')

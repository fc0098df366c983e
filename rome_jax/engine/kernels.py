"""Convolutions and poolings, each fast on the platform it runs on.

XLA's CPU backend runs `lax.conv_general_dilated(feature_group_count=C)` and
the gradient of `reduce_window` an order of magnitude slower than the sum (or
maximum) over k*k shifted copies of the image, which it fuses into one loop
over memory. So most functions here have two implementations: shifted copies
on the CPU, the stock operation elsewhere. `_on_cpu` and `_on_gpu` are the only
functions that choose.

All images are NHWC. Padding is d*(k//2) on each side, so that stride 1 keeps
the size and stride 2 gives ceil(H/2).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# What the program that is being traced is for: None, the default backend;
# STOCK, the stock operation everywhere; EVERY, each platform its own. Part of
# the key by which `_shared` keeps traces.
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    'target', default=None)
STOCK, EVERY = 'stock', 'every'


@contextlib.contextmanager
def traced_for(target: str) -> Iterator[None]:
  """What is traced meanwhile is for other platforms than the default backend.

  Args:
    target: STOCK, the stock operation everywhere, or EVERY, which holds the
      form of each platform and chooses where it runs.
  """
  token = _target.set(target)
  try:
    yield
  finally:
    _target.reset(token)


def _on(platforms, own, stock, args):
  target = _target.get()
  if target == EVERY:
    # Strides and the like stay static.
    own, stock = (
        functools.partial(_with_static, function, args)
        for function in (own, stock))
    return lax.platform_dependent(
        *(a for a in args if not isinstance(a, int)),
        **dict.fromkeys(platforms, own), default=stock)
  here = target is None and jax.default_backend() in platforms
  return (own if here else stock)(*args)


def _with_static(function, args, *arrays):
  """function(*args), those that are no whole numbers from `arrays`."""
  left = iter(arrays)
  return function(*(a if isinstance(a, int) else next(left) for a in args))


def _on_cpu(shifted, stock, *args):
  """Runs `shifted` on the CPU backend, else `stock`.

  The choice is the default backend's, at trace time: `lax.platform_dependent`
  would trace both for every operation of a supernet. Only exports, of a single
  network, do (`traced_for`).
  """
  return _on(('cpu',), shifted, stock, args)


def _on_gpu(own, stock, *args):
  """Runs `own` on a GPU, else `stock`; at trace time, like `_on_cpu`."""
  return _on(('gpu',) if _target.get() is None else ('cuda', 'rocm'), own,
             stock, args)


def _shared(*static):
  """Decorates a function to be traced once per shape, not once per call.

  A supernet has the same operation in many places; XLA inlines the calls.

  Args:
    *static: numbers of the arguments that are not arrays.
  """

  def decorate(function):

    def of_target(target, *args):
      del target  # A key of the trace.
      return function(*args)

    traced = jax.jit(of_target, static_argnums=(0, *(i + 1 for i in static)))

    @functools.wraps(function)
    def call(*args):
      return traced(_target.get(), *args)

    return call

  return decorate


# Whether weights get a gradient in the pullback that is being traced. Private:
# a kernel is called inside Flax modules, users' own among them, so that an
# argument would have to pass through the `__call__` of every operation.
_wanted: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar(
    'want_weight_grads', default=None)


def pulled(pullback: Callable[[Any], Any], g: Any,
           want_weight_grads: jax.Array | None = None) -> Any:
  """pullback(g), where the kernels here compute weight gradients if wanted.

  One program then serves a step of alpha and beta too, which needs no gradient
  of weights: there it is zeros and costs nothing.

  Args:
    pullback: the second value of `jax.vjp`.
    g: cotangent of the output.
    want_weight_grads: bool, may be traced; None: yes.
  """
  token = _wanted.set(want_weight_grads)
  try:
    return pullback(g)
  finally:
    _wanted.reset(token)


def _if_wanted(gradient, *args):
  """gradient(*args), or zeros of its shape; see `pulled`."""
  wanted = _wanted.get()
  if wanted is None:
    return gradient(*args)
  shape = jax.eval_shape(gradient, *args)
  return lax.cond(
      wanted, gradient, lambda *_: jnp.zeros(shape.shape, shape.dtype), *args)


def _pad(x, p, value=0.):
  return jnp.pad(
      x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=value)


def _tap(padded, i, j, stride, size):
  """The [B, *size, C] window that starts at (i, j) of a padded image."""
  h, w = size
  return lax.slice(
      padded, (0, i, j, 0),
      (padded.shape[0], i + stride * (h - 1) + 1, j + stride * (w - 1) + 1,
       padded.shape[3]),
      (1, stride, stride, 1))


def _out_size(x, stride):
  return tuple(-(-n // stride) for n in x.shape[1:3])


def _dilate(g, stride, size):
  """Puts zeros between the pixels of `g` [B,h,w,C]: [B,*size,C].

  Args:
    g: the image.
    stride: the distance of two pixels of `g` in the result; or two numbers,
      for rows and columns.
    size: height and width of the result.
  """
  strides = np.broadcast_to(stride, 2)
  if (strides == 1).all():
    return g
  low_high_interior = [
      (0, n - ((m - 1) * s + 1), s - 1)
      for n, m, s in zip(size, g.shape[1:3], strides.tolist())]
  return lax.pad(
      g, jnp.zeros((), g.dtype),
      [(0, 0, 0), *low_high_interior, (0, 0, 0)])


# --------------------------------------------------- depthwise convolution


@_shared(2, 3)
def _depthwise_shifted(x, w, stride, dilation):
  k = w.shape[0]
  size = _out_size(x, stride)
  padded = _pad(x, dilation * (k // 2))
  return sum(
      _tap(padded, i * dilation, j * dilation, stride, size) * w[i, j]
      for i in range(k) for j in range(k))


def _depthwise_stock(x, w, stride, dilation):
  p = dilation * (w.shape[0] // 2)
  return lax.conv_general_dilated(
      x, w[:, :, None, :], (stride, stride), ((p, p), (p, p)),
      rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[3])


def _pull_stock(forward, x, w, g, weight_gradient=None):
  """(dx, dw) of forward(x, w), as JAX derives them.

  Args:
    forward: the function.
    x, w: its arguments.
    g: cotangent of its value.
    weight_gradient: (x, g) -> dw, in place of JAX's own.
  """
  (dx,) = jax.vjp(lambda x: forward(x, w), x)[1](g)

  def stock(x, g):
    return jax.vjp(lambda w: forward(x, w), w)[1](g)[0]

  return dx, _if_wanted(weight_gradient or stock, x, g)


@_shared(2, 3, 4)
def _weight_gradient_shifted(x, g, k, stride, dilation):
  """Gradient of the kernel [k,k,C]: the sum of x*g at each tap.

  For each row offset and channel, one matrix product over the rows of all
  images gives the sums at all column offsets, [W',W]; the taps are k diagonals
  of it. Plain sums would read both images again for each of the k*k taps.
  """
  b, h, w, c = g.shape
  p = dilation * (k // 2)
  rows = jnp.pad(
      x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (p, p), (p, p)))
  g = g.transpose(3, 0, 1, 2).reshape(c, b * h, w)
  width = rows.shape[3]
  taps = np.stack([
      np.arange(width)[:, None] == stride * np.arange(w) + j * dilation
      for j in range(k)]).astype(x.dtype)

  def row(i):
    shifted = lax.dynamic_slice_in_dim(
        rows, i * dilation, stride * (h - 1) + 1, 2)[:, :, ::stride]
    sums = jnp.einsum('cnp,cnq->cpq', shifted.reshape(c, b * h, width), g)
    return jnp.einsum('cpq,jpq->jc', sums, taps)

  return lax.map(row, jnp.arange(k))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, w: jax.Array, stride: int = 1,
                   dilation: int = 1) -> jax.Array:
  """Depthwise convolution without bias.

  Args:
    x: [B,H,W,C] images.
    w: [k,k,C] kernel, k odd.
    stride: 1 or 2, both directions.
    dilation: spacing of the kernel's taps.

  Returns:
    [B,ceil(H/stride),ceil(W/stride),C].
  """
  return _on_cpu(_depthwise_shifted, _depthwise_stock, x, w, stride, dilation)


def _depthwise_fwd(x, w, stride, dilation):
  return depthwise_conv(x, w, stride, dilation), (x, w)


def _depthwise_bwd(stride, dilation, residuals, g):
  x, w = residuals

  def matrices(x, g):
    return _weight_gradient_shifted(x, g, w.shape[0], stride, dilation)

  def shifted(x, w, g):
    spread = _dilate(g, stride, x.shape[1:3])
    dx = _depthwise_shifted(spread, w[::-1, ::-1], 1, dilation)
    return dx, _if_wanted(matrices, x, g)

  def stock(x, w, g, weight_gradient=None):
    forward = functools.partial(
        _depthwise_stock, stride=stride, dilation=dilation)
    return _pull_stock(forward, x, w, g, weight_gradient)

  def on_gpu(x, w, g):
    # cuDNN runs the stock gradient of the weights as one convolution per
    # channel: 23 of the 61 busy ms of a step of S0 on an H100. What the
    # products of matrices take there is not measured. With a stride they
    # would slice, which XLA for GPUs does not survive; see `_strided_on_cpu`.
    return stock(x, w, g, matrices if stride == 1 else None)

  def elsewhere(x, w, g):
    return _on_gpu(on_gpu, stock, x, w, g)

  return _on_cpu(shifted, elsewhere, x, w, g)


depthwise_conv.defvjp(_depthwise_fwd, _depthwise_bwd)


def _pointwise_stock(x, w, stride):
  return lax.conv_general_dilated(
      x, w[None, None], (stride, stride), 'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _pointwise_matrices(x, w, stride):
  x = x[:, ::stride, ::stride]
  y = x.reshape(-1, x.shape[-1]) @ w
  return y.reshape(*x.shape[:-1], w.shape[1])


def _strided_on_cpu(matrices, stock, stride, *args):
  """Runs `matrices`, but `stock` where there is a stride and no CPU.

  XLA for GPUs ends the process (openxla/xla#47381) when it fuses a strided
  slice, reshaped, into a matrix product.
  """
  if stride == 1:
    return matrices(*args)
  return _on_cpu(matrices, stock, *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
  """1x1 convolution without bias.

  Args:
    x: [B,H,W,C'].
    w: [C',C].
    stride: of rows and columns.

  Returns:
    [B,ceil(H/stride),ceil(W/stride),C].
  """
  return _strided_on_cpu(
      _pointwise_matrices, _pointwise_stock, stride, x, w, stride)


def _pointwise_fwd(x, w, stride):
  return pointwise(x, w, stride), (x, w)


def _pointwise_bwd(stride, residuals, g):

  def matrices(x, w, g):
    # As matrices: XLA's CPU backend transposes images to get w's gradient.
    seen, rows = x[:, ::stride, ::stride], g.reshape(-1, g.shape[-1])
    dw = _if_wanted(
        lambda x, g: x.reshape(-1, x.shape[-1]).T @ g, seen, rows)
    return _dilate((rows @ w.T).reshape(seen.shape), stride, x.shape[1:3]), dw

  def stock(x, w, g):
    return _pull_stock(
        functools.partial(_pointwise_stock, stride=stride), x, w, g)

  return _strided_on_cpu(matrices, stock, stride, *residuals, g)


pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


# -------------------------------------------------------- full convolution


def _stock_conv(x, w, strides=(1, 1)):
  return lax.conv_general_dilated(
      x, w, strides, [(k // 2, k // 2) for k in w.shape[:2]],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, w: jax.Array,
         strides: tuple[int, int] = (1, 1)) -> jax.Array:
  """Convolution with padding k//2, without bias.

  On the CPU both gradients are again convolutions of stride 1 of NHWC images
  by HWIO kernels, of transposed arrays. Those that JAX derives have other
  layouts, which XLA's CPU backend corrects in the outermost computation only:
  in a `switch` or `scan` it runs them 10 to 100 times slower.

  Args:
    x: [B,H,W,C'].
    w: [k,k',C',C], k and k' odd.
    strides: of rows and columns.

  Returns:
    [B,ceil(H/strides[0]),ceil(W/strides[1]),C].
  """
  return _stock_conv(x, w, strides)


def _conv_fwd(x, w, strides):
  return conv(x, w, strides), (x, w)


def _conv_bwd(strides, residuals, g):
  x, w = residuals

  def canonical(x, w, g):
    g = _dilate(g, strides, x.shape[1:3])
    dx = _stock_conv(g, w[::-1, ::-1].swapaxes(2, 3))

    def gradient(x, g):
      # Channels are the images and the batch is summed over.
      dw = lax.conv_general_dilated(
          x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1),
          [(k // 2, k // 2) for k in w.shape[:2]],
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      return dw.transpose(1, 2, 0, 3)

    return dx, _if_wanted(gradient, x, g)

  def stock(x, w, g):
    return _pull_stock(
        functools.partial(_stock_conv, strides=strides), x, w, g)

  return _on_cpu(canonical, stock, x, w, g)


conv.defvjp(_conv_fwd, _conv_bwd)


# ------------------------------------------------------------------ pooling


@_shared(1)
def _max_with_tap(x, stride):
  """3x3 maximum, and the number 0..8 of the first tap that attains it."""
  size = _out_size(x, stride)
  padded = _pad(x, 1, -jnp.inf)
  best = _tap(padded, 0, 0, stride, size)
  tap = jnp.zeros(best.shape, jnp.int8)
  for t in range(1, 9):
    value = _tap(padded, t // 3, t % 3, stride, size)
    tap = jnp.where(value > best, jnp.int8(t), tap)
    best = jnp.maximum(best, value)
  return best, tap


def _max_pool_stock(x, stride):
  if _target.get() == STOCK:
    # A window that names only the pixels: converters know no other.
    return nn.max_pool(_pad(x, 1, -jnp.inf), window_shape=(3, 3),
                       strides=(stride, stride))
  return lax.reduce_window(
      x, -np.inf, lax.max, (1, 3, 3, 1),
      (1, stride, stride, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
  """3x3 max pooling with padding 1; [B,H,W,C] -> [B,ceil(H/s),ceil(W/s),C].

  The gradient goes to the first maximum of each window in row order, as in
  PyTorch.
  """
  return _on_cpu(
      lambda x: _max_with_tap(x, stride)[0],
      lambda x: _max_pool_stock(x, stride), x)


def _max_pool_fwd(x, stride):
  return max_pool(x, stride), x


def _max_pool_bwd(stride, x, g):

  def shifted(x, g):
    _, tap = _max_with_tap(x, stride)
    # Without the barrier XLA recomputes the nine comparisons at each tap.
    tap = lax.optimization_barrier(tap)
    size = x.shape[1:3]
    # A pixel is tap t of the window whose centre lies at minus t's offset.
    g = _pad(_dilate(g, stride, size), 1)
    tap = _pad(_dilate(tap + jnp.int8(1), stride, size), 1, 0)
    return (sum(
        jnp.where(_tap(tap, 2 - t // 3, 2 - t % 3, 1, size) == t + 1,
                  _tap(g, 2 - t // 3, 2 - t % 3, 1, size), 0)
        for t in range(9)),)

  def stock(x, g):
    return jax.vjp(lambda x: _max_pool_stock(x, stride), x)[1](g)

  return _on_cpu(shifted, stock, x, g)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def max_pool_2x2(x: jax.Array, low: int = 0) -> jax.Array:
  """2x2 max pooling of stride 2 that reads every pixel.

  Compares the four pixels, since XLA's gradient of `reduce_window` is slow on
  the CPU; the gradient goes to the first maximum in row order.

  Args:
    x: [B,H,W,C].
    low: 0, or 1 to pad by one pixel above and to the left, as
      NAS-Bench-1Shot1 does.

  Returns:
    [B,h,w,C], h = ceil((H + low) / 2) and w likewise.
  """
  sizes = [-(-(n + low) // 2) for n in x.shape[1:3]]
  pads = [(low, 2 * s - low - n) for s, n in zip(sizes, x.shape[1:3])]
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  best, *others = (x[:, i::2, j::2] for i in range(2) for j in range(2))
  for pixel in others:
    best = jnp.where(pixel > best, pixel, best)
  return best


@_shared(1)
def _window_sum(x, stride):
  size = _out_size(x, stride)
  padded = _pad(x, 1)
  # Rows first, then columns: six additions instead of nine.
  rows = sum(
      lax.slice_in_dim(padded, i, i + stride * (size[0] - 1) + 1, stride, 1)
      for i in range(3))
  return sum(
      lax.slice_in_dim(rows, j, j + stride * (size[1] - 1) + 1, stride, 2)
      for j in range(3))


def _window_pixels(x, stride):
  """[1,h,w,1]: how many pixels of each window lie inside the image."""
  return _window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype), stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def avg_pool(x: jax.Array, stride: int = 1) -> jax.Array:
  """3x3 average pooling; [B,H,W,C] -> [B,ceil(H/s),ceil(W/s),C].

  Padding is 1, and the mean is over the pixels inside the image only.
  """
  return _window_sum(x, stride) / _window_pixels(x, stride)


def _avg_pool_fwd(x, stride):
  # Only the shape of x is needed, but a residual must be an array; XLA drops
  # the values, which nothing reads.
  return avg_pool(x, stride), x


def _avg_pool_bwd(stride, x, g):
  g = g / _window_pixels(x, stride)
  return (_window_sum(_dilate(g, stride, x.shape[1:3]), 1),)


avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


# -------------------------------------------------------- order of execution


def zero_after(numbers: list[jax.Array]) -> jax.Array:
  """Returns an int32 0 that XLA cannot know before `numbers` are computed.

  On the CPU it is the end of a loop: XLA would see through arithmetic, and it
  removes barriers before it merges recomputed values with those of the forward
  pass. On a GPU such a loop would cost a round trip to the host.

  Args:
    numbers: list of scalars.
  """

  def loop(numbers):
    count = sum((x != x).astype(jnp.int32) for x in numbers)
    return lax.while_loop(lambda i: i > 0, lambda i: i - 1, count)

  def barrier(numbers):
    return lax.optimization_barrier((jnp.zeros((), jnp.int32), numbers))[0]

  return _on_cpu(loop, barrier, numbers)


def settled(*arrays: jax.Array) -> Any:
  """The same arrays, in memory before anything that uses one of them.

  On the CPU. There XLA fuses what computes an array into each loop that reads
  it: sums of dozens of maps are computed again and again, and a loop over
  pixels in which a row of weights is looked up is not vectorised. Elsewhere
  the arrays are returned as they are.

  The loop here never runs unless a number is NaN, which XLA cannot know; then
  it makes NaN of another. Not differentiable in reverse.

  Args:
    *arrays: of floats.

  Returns:
    A tuple of them; the array itself if there is one.
  """

  def loop(*arrays):
    firsts = [(0,) * a.ndim for a in arrays]
    count = sum((a[i] != a[i]).astype(jnp.int32)
                for a, i in zip(arrays, firsts))

    def body(state):
      count, arrays = state
      return count - 1, tuple(
          a.at[i].set(jnp.nan) for a, i in zip(arrays, firsts))

    return lax.while_loop(lambda s: s[0] > 0, body, (count, arrays))[1]

  arrays = _on_cpu(loop, lambda *arrays: arrays, *arrays)
  return arrays[0] if len(arrays) == 1 else arrays

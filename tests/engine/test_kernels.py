"""Kernels against XLA's own operations, NumPy loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from jaxprs import subjaxprs

from rome_jax.engine import kernels, statistics

SIZES = [(8, 8), (7, 9), (5, 6)]


def images(size, channels=3, batch=2, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, *size, channels)).astype(dtype)


def out_size(size, stride):
  return tuple(-(-n // stride) for n in size)


def windows(size, stride):
  """(output pixel, input pixels of its 3x3 window in row order)."""
  for i in range(out_size(size, stride)[0]):
    for j in range(out_size(size, stride)[1]):
      pixels = [(stride * i + a, stride * j + b)
                for a in (-1, 0, 1) for b in (-1, 0, 1)]
      yield (i, j), [(a, b) for a, b in pixels
                     if 0 <= a < size[0] and 0 <= b < size[1]]


@pytest.fixture
def stock(monkeypatch):
  """Takes the branch of other backends."""
  monkeypatch.setattr(
      kernels, '_on_cpu', lambda shifted, stock, *args: stock(*args))


# --------------------------------------------------- depthwise convolution


def reference_depthwise(x, w, stride, dilation):
  pad = dilation * (w.shape[0] - 1) // 2
  return lax.conv_general_dilated(
      x, w.reshape(*w.shape[:2], 1, w.shape[2]), (stride, stride),
      [(pad, pad)] * 2, rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1])


def value_and_pullback(function):
  """jit of (x, w, g) -> (value, cotangents)."""
  def run(x, w, g):
    value, pull = jax.vjp(function, x, w)
    return value, pull(g)
  return jax.jit(run)


def depthwise_case(k, stride, size):
  x = images(size)
  w = images((k, k), batch=1, seed=1)[0]
  g = images(out_size(size, stride), seed=2)
  return x, w, g


def assert_close(actual, expected, tolerance=1e-5):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
          a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [3, 5, 7])
def test_depthwise(k, stride, dilation):
  size = SIZES[(k + stride + dilation) % 2]
  args = depthwise_case(k, stride, size)
  actual = value_and_pullback(
      lambda x, w: kernels.depthwise_conv(x, w, stride, dilation))(*args)
  expected = value_and_pullback(
      lambda x, w: reference_depthwise(x, w, stride, dilation))(*args)
  assert actual[0].shape == args[2].shape
  assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_depthwise_by_hand(stride):
  # The reference above is XLA's; this one is the definition, zero padding.
  size, dilation = (5, 6), 2
  x, w, _ = depthwise_case(3, stride, size)
  expected = np.zeros((2, *out_size(size, stride), 3))
  for i, j in np.ndindex(expected.shape[1:3]):
    for a, b in np.ndindex(3, 3):
      row = stride * i + dilation * (a - 1)
      column = stride * j + dilation * (b - 1)
      if 0 <= row < size[0] and 0 <= column < size[1]:
        expected[:, i, j] += x[:, row, column] * w[a, b]
  np.testing.assert_allclose(
      kernels.depthwise_conv(x, w, stride, dilation), expected, rtol=1e-5,
      atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_stock_depthwise_equals_shifted(stride, stock):
  args = depthwise_case(3, stride, (7, 9))
  function = value_and_pullback(
      lambda x, w: kernels.depthwise_conv(x, w, stride, 2))
  assert 'conv_general_dilated' in str(jax.make_jaxpr(function)(*args))
  expected = value_and_pullback(
      lambda x, w: kernels._depthwise_shifted(x, w, stride, 2))(*args)
  assert_close(function(*args), expected, 2e-5)


def test_shifted_is_what_the_cpu_runs():
  x, w, _ = depthwise_case(3, 1, (4, 4))
  jaxpr = str(jax.make_jaxpr(kernels.depthwise_conv)(x, w))
  on_cpu = jax.default_backend() == 'cpu'
  assert ('conv_general_dilated' in jaxpr) != on_cpu


@pytest.mark.parametrize('platform, stride, matrices', [
    ('gpu', 1, True), ('gpu', 2, False), ('tpu', 1, False), ('tpu', 2, False)])
def test_depthwise_on_accelerators(platform, stride, matrices, monkeypatch):
  """Only a GPU takes products of matrices for the gradient of weights.

  The stock one is a convolution that has the channels as groups of a batch.
  """
  args = depthwise_case(3, stride, (6, 8))
  expected = value_and_pullback(
      lambda x, w: reference_depthwise(x, w, stride, 2))(*args)
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  function = value_and_pullback(
      lambda x, w: kernels.depthwise_conv(x, w, stride, 2))
  jaxpr = jax.make_jaxpr(function)(*args)
  eqns = [eqn for inner in subjaxprs(jaxpr.jaxpr) for eqn in inner.eqns]
  stock = [eqn for eqn in eqns if eqn.params.get('batch_group_count', 1) > 1]
  assert (not stock) == matrices
  assert any(e.primitive.name == 'dot_general' for e in eqns) == matrices
  assert_close(function(*args), expected, 2e-5)


# ------------------------------------------------------- 1x1 convolution


@pytest.mark.parametrize('kind', ['cpu', 'stock'])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_pointwise(size, stride, kind, request):
  if kind == 'stock':
    request.getfixturevalue('stock')
  rng = np.random.default_rng(0)
  x, w = images(size), rng.normal(size=(3, 5)).astype(np.float32)
  x = x[..., :1] + np.arange(3, dtype=np.float32)
  g = rng.normal(size=(len(x), *out_size(size, stride), 5)).astype(np.float32)
  function = value_and_pullback(
      lambda x, w: kernels.pointwise(x, w, stride))
  if kind == 'stock' and stride == 2:
    # A sliced image, reshaped, ends XLA for GPUs (openxla/xla#47381).
    assert 'dot_general' not in str(jax.make_jaxpr(function)(x, w, g))
  seen, dx = x[:, ::stride, ::stride], np.zeros_like(x)
  dx[:, ::stride, ::stride] = np.einsum('bhwd,cd->bhwc', g, w)
  expected = np.einsum('bhwc,cd->bhwd', seen, w), (
      dx, np.einsum('bhwc,bhwd->cd', seen, g))
  assert_close(function(x, w, g), expected, 1e-4)


# -------------------------------------------------------- full convolution


@pytest.mark.parametrize('kernel, strides', [
    ((3, 3), (1, 1)), ((5, 5), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (2, 2)),
    ((1, 7), (1, 2)), ((7, 1), (2, 1))])
@pytest.mark.parametrize('size', SIZES)
def test_gradients_of_the_convolution(kernel, strides, size):
  """Against those that JAX derives; in the one layout that XLA runs well."""
  rng = np.random.default_rng(0)

  def derived(x, w):
    return lax.conv_general_dilated(
        x, w, strides, [(k // 2, k // 2) for k in kernel],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def pulled(function, x, w, g):
    y, pull = jax.vjp(function, x, w)
    return y, *pull(g)

  def ours(x, w):
    return kernels.conv(x, w, strides)

  with jax.enable_x64(True):
    x, w, g = (rng.normal(size=shape) for shape in (
        (2, *size, 3), (*kernel, 3, 4),
        (2, *(-(-n // s) for n, s in zip(size, strides)), 4)))
    for actual, expected in zip(
        jax.jit(pulled, static_argnums=0)(ours, x, w, g),
        jax.jit(pulled, static_argnums=0)(derived, x, w, g)):
      np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    jaxpr = jax.make_jaxpr(pulled, static_argnums=0)(ours, x, w, g)
  found = 0
  for inner in subjaxprs(jaxpr.jaxpr):
    for eqn in inner.eqns:
      if eqn.primitive.name == 'conv_general_dilated':
        numbers = eqn.params['dimension_numbers']
        assert tuple(numbers) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        assert set(eqn.params['lhs_dilation'] + eqn.params['rhs_dilation']) == {
            1}
        found += 1
  assert found == 3


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_an_unwanted_gradient_of_weights_is_zero(strides):
  x, w = np.ones((2, 6, 6, 3)), np.ones((3, 3, 3, 4))
  y, pull = jax.vjp(lambda x, w: kernels.conv(x, w, strides), x, w)
  for flag in (True, False):
    dx, dw = kernels.pulled(pull, jnp.ones_like(y), flag)
    assert np.any(dx) and np.any(dw) == flag


# ------------------------------------------------------------- max pooling


@pytest.mark.parametrize('low, size', [
    (0, (6, 8)), (0, (5, 7)), (1, (6, 8)), (1, (5, 7))])
def test_max_pool_2x2(low, size):
  """Value and gradient by hand; equal pixels give it to the first of them."""
  x = np.round(images(size))
  shape = [-(-(n + low) // 2) for n in size]
  g = images(shape, seed=1)
  expected, dx = np.zeros(g.shape), np.zeros(x.shape)
  for b, i, j, c in np.ndindex(g.shape):
    pixels = [(p, q) for p in (2 * i - low, 2 * i - low + 1)
              for q in (2 * j - low, 2 * j - low + 1)
              if 0 <= p < size[0] and 0 <= q < size[1]]
    p, q = max(pixels, key=lambda pixel: x[b, pixel[0], pixel[1], c])
    expected[b, i, j, c] = x[b, p, q, c]
    dx[b, p, q, c] += g[b, i, j, c]
  y, pull = jax.vjp(lambda x: kernels.max_pool_2x2(x, low), x)
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_allclose(pull(g)[0], dx, rtol=1e-6, atol=1e-6)


def numpy_max_pool(x, g, stride):
  """Maximum, and the gradient to the first maximum in row order."""
  y, dx = np.zeros(g.shape), np.zeros(x.shape)
  for (i, j), pixels in windows(x.shape[1:3], stride):
    values = np.stack([x[:, a, b] for a, b in pixels])
    y[:, i, j] = values.max(0)
    for index in np.ndindex(x.shape[0], x.shape[3]):
      a, b = pixels[values[(slice(None), *index)].argmax()]
      dx[index[0], a, b, index[1]] += g[index[0], i, j, index[1]]
  return y, dx


def max_pool_case(size, stride):
  # Few different values, so that most windows have ties.
  x = np.random.default_rng(0).integers(-1, 2, (2, *size, 3))
  g = images(out_size(size, stride), seed=2)
  return x.astype(np.float32), g


def pullback(function):
  def run(x, g):
    value, pull = jax.vjp(function, x)
    return value, pull(g)[0]
  return jax.jit(run)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stride', [1, 2])
def test_max_pool_with_ties(stride, size):
  x, g = max_pool_case(size, stride)
  actual = pullback(lambda x: kernels.max_pool(x, stride))(x, g)
  assert_close(actual, numpy_max_pool(x, g, stride))


@pytest.mark.parametrize('stride', [1, 2])
def test_max_pool_equals_reduce_window(stride):
  x, g = images((7, 9)), images(out_size((7, 9), stride), seed=2)
  actual = pullback(lambda x: kernels.max_pool(x, stride))(x, g)
  expected = pullback(lambda x: lax.reduce_window(
      x, -np.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1),
      [(0, 0), (1, 1), (1, 1), (0, 0)]))(x, g)
  assert_close(actual, expected)


@pytest.mark.parametrize('stride', [1, 2])
def test_stock_max_pool_equals_shifted(stride, stock):
  x, g = max_pool_case((7, 9), stride)
  function = pullback(lambda x: kernels.max_pool(x, stride))
  assert 'reduce_window' in str(jax.make_jaxpr(function)(x, g))
  assert_close(function(x, g), numpy_max_pool(x, g, stride))


def test_max_pool_keeps_negative_values_at_the_border():
  x = -np.ones((1, 4, 4, 1), np.float32)
  np.testing.assert_array_equal(kernels.max_pool(x), x)


# --------------------------------------------------------- average pooling


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stride', [1, 2])
def test_avg_pool(stride, size):
  x, g = images(size), images(out_size(size, stride), seed=2)
  y, dx = np.zeros(g.shape), np.zeros(x.shape)
  for (i, j), pixels in windows(size, stride):
    for a, b in pixels:
      y[:, i, j] += x[:, a, b] / len(pixels)
      dx[:, a, b] += g[:, i, j] / len(pixels)
  actual = pullback(lambda x: kernels.avg_pool(x, stride))(x, g)
  assert_close(actual, (y, dx))


# ------------------------------------------------------ batch normalisation


def test_batch_norm_equals_numpy():
  x = 3 * images((4, 5)) + 7
  wide = x.astype(np.float64)
  expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(
      wide.var((0, 1, 2)) + 1e-5)
  np.testing.assert_allclose(
      statistics.batch_norm(x), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      statistics.batch_norm(x, .5),
      (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + .5),
      rtol=1e-4, atol=1e-5)


def test_batch_norm_does_not_cancel():
  # Mean of squares minus squared mean would lose all digits here.
  x = images((4, 5)) + 1e4
  assert abs(float(statistics.batch_norm(x).std()) - 1) < 1e-3


def pulled_norm(x, g):
  y, pull = jax.vjp(statistics.batch_norm, x)
  return y, *pull(g)


def test_batch_norm_of_a_batch_in_parts():
  """Values and gradient are those of the whole, and cancel no more."""
  x = images((4, 5), batch=6).reshape(3, 2, 4, 5, 3) + 1e4
  x += np.array([0, 3, 7]).reshape(3, 1, 1, 1, 1)  # the parts' means differ
  g = images((4, 5), batch=6, seed=1).reshape(x.shape)
  y, dx = jax.vmap(pulled_norm, axis_name=statistics.BATCH_AXIS)(x, g)
  wide, every = x.astype(np.float64), (0, 1, 2, 3)
  scale = 1 / np.sqrt(wide.var(every) + 1e-5)
  expected = (wide - wide.mean(every)) * scale
  # A pixel near 1e4 has a rounding error of 5e-4.
  np.testing.assert_allclose(y, expected, atol=2e-3)
  np.testing.assert_allclose(
      dx, scale * (g - g.mean(every) - expected * (g * expected).mean(every)),
      atol=2e-3)


def test_batch_norm_of_a_batch_in_parts_exchanges_once_each_way():
  x = images((4, 5))
  jaxpr = jax.make_jaxpr(
      pulled_norm, axis_env=[(statistics.BATCH_AXIS, 2)])(x, x)
  found = [eqn.primitive.name for part in subjaxprs(jaxpr.jaxpr)
           for eqn in part.eqns]
  exchanges = [n for n in found if n.startswith(('psum', 'all_', 'pmean'))]
  assert sorted(n.split('_inv')[0] for n in exchanges) == [
      'all_gather', 'psum']


def test_batch_norm_of_a_constant_is_zero():
  x = np.full((2, 3, 3, 1), 5., np.float32)
  np.testing.assert_array_equal(statistics.batch_norm(x), np.zeros_like(x))


# ------------------------------------------------------- laws of every row


ROWS = {
    'depthwise': lambda x: kernels.depthwise_conv(
        x, jnp.asarray(images((3, 3), x.shape[-1], 1)[0], x.dtype), 2, 2),
    'max_pool': lambda x: kernels.max_pool(x, 2),
    'avg_pool': lambda x: kernels.avg_pool(x, 2),
    'batch_norm': statistics.batch_norm,
}


@pytest.mark.parametrize('row', ROWS)
def test_finite_differences(row):
  with jax.enable_x64(True):
    x = jnp.asarray(images((4, 5), 2, dtype=np.float64))
    function = jax.jit(lambda x: ROWS[row](x) ** 2)
    check_grads(function, (x,), 1, ['rev'], 1e-6, 1e-6, 1e-5)


def test_finite_differences_of_the_kernel():
  with jax.enable_x64(True):
    x = jnp.asarray(images((4, 5), 2, dtype=np.float64))
    w = jnp.asarray(images((5, 5), 2, 1, dtype=np.float64)[0])
    check_grads(jax.jit(lambda w: kernels.depthwise_conv(x, w, 2, 1) ** 2),
                (w,), 1, ['rev'], 1e-6, 1e-6, 1e-5)


@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(row, dtype):
  x = jnp.asarray(images((4, 4)), dtype)
  y, pull = jax.vjp(jax.jit(ROWS[row]), x)
  assert y.dtype == dtype
  assert pull(y)[0].dtype == dtype

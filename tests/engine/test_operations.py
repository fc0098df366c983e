"""Every operation against a plain NumPy transcription of its definition."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors, spaces
from rome_jax.engine import archs, cells, operations
from rome_jax.spaces import counting

C = 4
NORM = operations.BatchStatistics


# ----------------------------------------------------- NumPy transcriptions


def norm(x):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / np.sqrt(var + 1e-5)


def relu(x):
  return np.maximum(x, 0)


def taps(x, kernel, stride, dilation, pad_value=0.):
  """[k*k, B, h, w, C]: the pixels under each tap of a window."""
  pad = dilation * (kernel // 2)
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)),
                  constant_values=pad_value)
  h, w = (-(-n // stride) for n in x.shape[1:3])
  found = []
  for i in range(kernel):
    for j in range(kernel):
      rows = [i * dilation + stride * r for r in range(h)]
      columns = [j * dilation + stride * c for c in range(w)]
      found.append(padded[:, rows][:, :, columns])
  return np.stack(found)


def depthwise(x, w, stride, dilation=1):
  k = w.shape[0]
  return np.einsum('tbhwc,tc->bhwc', taps(x, k, stride, dilation),
                   w.reshape(k * k, -1))


def separable(x, p, kernel, stride):
  for i, s in enumerate((stride, 1)):
    x = depthwise(relu(x), p[f'Depthwise_{i}']['kernel'], s)
    x = norm(x @ p[f'Pointwise_{i}']['kernel'])
  return x


def dilated(x, p, kernel, stride):
  x = depthwise(relu(x), p['Depthwise_0']['kernel'], stride, 2)
  return norm(x @ p['Pointwise_0']['kernel'])


def factorized_reduce(x, p):
  # The authors' code, x[:, :, 1:, 1:], wants even sizes; for odd ones the
  # shifted map ends in zeros.
  x = relu(x)
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  h, w = (-(-n // 2) for n in x.shape[1:3])
  even = x[:, ::2, ::2] @ p['even']['kernel']
  odd = padded[:, 1::2, 1::2][:, :h, :w] @ p['odd']['kernel']
  return norm(np.concatenate([even, odd], -1))


def conv_7x1(x, p, stride):
  x = relu(x)
  for name, axis in (('Conv_0', 2), ('Conv_1', 1)):
    w = p[name]['kernel'].reshape(7, C, C)
    pad = [(0, 0)] * 4
    pad[axis] = (3, 3)
    padded, size = np.pad(x, pad), -(-x.shape[axis] // stride)
    x = sum(
        np.take(padded, [i + stride * r for r in range(size)], axis) @ w[i]
        for i in range(7))
  return norm(x)


def skip(x, p, stride):
  return x if stride == 1 else factorized_reduce(x, p['FactorizedReduce_0'])


def full_conv(x, p, kernel, stride):
  w = p['conv']['kernel'].reshape(kernel * kernel, C, C)
  return norm(np.einsum(
      'tbhwc,tcd->bhwd', taps(relu(x), kernel, stride, 1), w))


TRANSCRIPTIONS = {
    'none': lambda x, p, s: 0 * x[:, ::s, ::s],
    'nor_conv_1x1': lambda x, p, s: full_conv(x, p, 1, s),
    'nor_conv_3x3': lambda x, p, s: full_conv(x, p, 3, s),
    'max_pool_3x3': lambda x, p, s: norm(taps(x, 3, s, 1, -np.inf).max(0)),
    'avg_pool_3x3': lambda x, p, s: norm(
        np.nanmean(taps(x, 3, s, 1, np.nan), 0)),
    'skip_connect': skip,
    'sep_conv_3x3': lambda x, p, s: separable(x, p, 3, s),
    'sep_conv_5x5': lambda x, p, s: separable(x, p, 5, s),
    'sep_conv_7x7': lambda x, p, s: separable(x, p, 7, s),
    'dil_conv_3x3': lambda x, p, s: dilated(x, p, 3, s),
    'dil_conv_5x5': lambda x, p, s: dilated(x, p, 5, s),
    'conv_7x1_1x7': conv_7x1,
}


def build(name, stride, search=True):
  return operations.build(name, operations.Context(stride, NORM, search))


def images(size=(8, 8), dtype=np.float32):
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, *size, C)).astype(dtype)


def weights_of(module, x, fill):
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return fill(shapes.get('params', {}))


def apply(module, params, x):
  return jax.jit(module.apply)({'params': params}, x)


def test_every_row_has_a_transcription():
  assert {*TRANSCRIPTIONS, 'noise'} == set(operations.OPS)


@pytest.mark.parametrize('stride', [1, 2])
def test_noise(stride):
  """Standard normal, whatever the image; fresh for each key."""
  module = build('noise', stride)
  x = np.full((64, 7, 8, C), 5., np.float32)

  def draw(x, key):
    return module.apply({}, x, rngs={'noise': jax.random.key(key)})

  y = np.asarray(draw(x, 0))
  assert y.shape == (64, -(-7 // stride), 8 // stride, C)
  # Five standard errors of a mean, 1/sqrt(n), and a variance, sqrt(2/n).
  assert abs(y.mean()) < 5 * y.size ** -.5
  assert abs(y.var() - 1) < 5 * (2 / y.size) ** .5
  np.testing.assert_array_equal(y, draw(-x, 0))
  assert abs(np.corrcoef(y.ravel(), np.ravel(draw(x, 1)))[0, 1]) < (
      5 * y.size ** -.5)
  assert not np.any(jax.grad(lambda x: draw(x, 0).sum())(x))


class Jitter(nn.Module):
  """A user's own operation that draws: x times (1 + normal numbers)."""

  stride: int

  @nn.compact
  def __call__(self, x):
    x = x[:, ::self.stride, ::self.stride]
    return x * (1 + jax.random.normal(self.make_rng('noise'), x.shape, x.dtype))


@pytest.fixture
def jitter(monkeypatch):
  """An operation of one's own, declared to draw."""
  monkeypatch.setitem(operations.OPS, 'jitter', lambda c: Jitter(c.stride))
  monkeypatch.setitem(
      counting.OP_COUNTS, 'jitter', lambda *_: counting.Cost(0, 0))
  monkeypatch.setattr(operations, 'DRAWS', {*operations.DRAWS, 'jitter'})


def test_which_operations_draw(jitter):
  found = {name for name in operations.OPS if operations.draws(name)}
  assert found == {'noise', 'jitter'}


def test_an_own_operation_may_draw(jitter):
  """Fresh numbers on each slot and for each key, the same ones backward."""
  operations.check('jitter')
  space = spaces.Space('own', ('skip_connect', 'jitter'), num_nodes=2)
  cell = cells.SearchCell(space, C, False, False)
  arch = archs.CellArch(
      np.array([0, 1, 2, 4]), np.array([1, 1, 1, 1]), np.ones(4, np.float32))
  x = images()
  weights = cell.init(
      {'params': jax.random.key(0), 'noise': jax.random.key(0)}, x, x,
      arch=arch)['params']

  @functools.partial(jax.jit, static_argnums=1)
  def run(gates, key=1):
    y = cell.apply({'params': weights}, x, x, arch=arch._replace(gates=gates),
                   rngs={'noise': jax.random.key(key)})
    return (y ** 2).sum(), y

  value, y = run(arch.gates)
  np.testing.assert_array_equal(y, run(arch.gates)[1])
  assert not np.allclose(y, run(arch.gates, 2)[1])
  # The first node reads both inputs, the second input 0 and itself not: a
  # shared draw would make edges 0 and 2 equal.
  only = np.eye(4, dtype=np.float32)
  first, third = (run(only[i])[1] for i in (0, 2))
  assert not np.allclose(first[..., :C], third[..., C:], atol=1e-3)
  # If the backward pass drew anew its gradient would be that of another value.
  slope = jax.grad(lambda gates: run(gates)[0])(arch.gates)
  for i in range(4):
    ends = [run(arch.gates + sign * 1e-2 * only[i])[0] for sign in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-2, slope[i], rtol=1e-2)
  assert value > 0


def test_an_operation_that_draws_must_say_so(jitter, monkeypatch):
  monkeypatch.setattr(operations, 'DRAWS', {'noise'})
  with pytest.raises(errors.UserError, match="'jitter' draws .*DRAWS"):
    operations.check('jitter')


def test_bias_of_full_convolutions():
  x = images()
  module = operations.build('nor_conv_3x3', operations.Context(
      1, lambda: lambda x: x, bias=True))
  params = module.init(jax.random.key(0), x)['params']['conv']
  assert params['bias'].shape == (C,)


@pytest.mark.parametrize('size', [(8, 8), (7, 5)])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', TRANSCRIPTIONS)
def test_equals_numpy(name, stride, size, fill):
  x, module = images(size), build(name, stride)
  params = weights_of(module, x, fill)
  actual = apply(module, params, x)
  expected = TRANSCRIPTIONS[name](
      x.astype(np.float64), jax.tree.map(np.float64, params), stride)
  assert actual.shape == (2, -(-size[0] // stride), -(-size[1] // stride), C)
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', TRANSCRIPTIONS)
def test_bfloat16_is_kept(name, stride, fill):
  x, module = images(), build(name, stride)
  params = weights_of(module, x, fill)
  out = jax.eval_shape(
      module.apply, {'params': params},
      jax.ShapeDtypeStruct(x.shape, jnp.bfloat16))
  assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', TRANSCRIPTIONS)
def test_number_of_parameters(name, stride, fill):
  params = weights_of(build(name, stride), images(), fill)
  actual = sum(leaf.size for leaf in jax.tree.leaves(params))
  # Written out: depthwise k*k*C, 1x1 C*C.
  expected = {
      'sep_conv_3x3': 2 * (9 * C + C * C),
      'sep_conv_5x5': 2 * (25 * C + C * C),
      'sep_conv_7x7': 2 * (49 * C + C * C),
      'dil_conv_3x3': 9 * C + C * C, 'dil_conv_5x5': 25 * C + C * C,
      'conv_7x1_1x7': 14 * C * C,
      'nor_conv_1x1': C * C, 'nor_conv_3x3': 9 * C * C,
      'skip_connect': C * C if stride == 2 else 0}.get(name, 0)
  assert actual == expected
  assert actual == counting.OP_COUNTS[name](C, 8, stride, False).params


@pytest.mark.parametrize('name', ['max_pool_3x3', 'avg_pool_3x3'])
def test_discrete_pools_have_no_norm(name):
  x = images()
  actual = apply(build(name, 1, search=False), {}, x)
  window = taps(x, 3, 1, 1, np.nan)
  reduce = np.nanmax if name == 'max_pool_3x3' else np.nanmean
  np.testing.assert_allclose(actual, reduce(window, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('module', [
    operations.ReluConvNorm(6, NORM), operations.FactorizedReduce(6, NORM),
    operations.FactorizedReduce(5, NORM)])
def test_preprocessing(module, fill):
  x = images()
  params = weights_of(module, x, fill)
  wide = x.astype(np.float64)
  if isinstance(module, operations.ReluConvNorm):
    expected = norm(relu(wide) @ params['Pointwise_0']['kernel'])
  else:
    expected = factorized_reduce(wide, params)
  assert expected.shape[-1] == module.features
  np.testing.assert_allclose(
      apply(module, params, x), expected, rtol=1e-3, atol=1e-4)


def test_unknown_operation():
  with pytest.raises(errors.UserError, match="mean 'sep_conv_3x3'"):
    build('sep_conv3x3', 1)


@pytest.mark.parametrize('shape, fan_in', [
    ((3, 3, 16), 9), ((16, 32), 16), ((3, 3, 8, 32), 72)])
def test_initial_law(shape, fan_in):
  # U(-b, b), b = 1/sqrt(fan_in): the variance is 1/(3 fan_in). Its estimate
  # from n draws has a relative standard error of sqrt(.8/n); bound 5 of them.
  w = np.concatenate([
      np.ravel(operations.torch_init(jax.random.key(i), shape))
      for i in range(8)])
  assert np.abs(w).max() <= fan_in ** -.5
  assert abs(w.var() * 3 * fan_in - 1) < 5 * (.8 / w.size) ** .5


def test_norm_is_the_callers(fill):
  module = operations.build('dil_conv_3x3', operations.Context(
      1, lambda: nn.LayerNorm(use_bias=False), False))
  params = weights_of(module, images(), fill)
  assert params['LayerNorm_0']['scale'].shape == (C,)

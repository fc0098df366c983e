"""GDAS with the gates of all operations, as its code for NAS-Bench-201 has."""

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import spaces
from rome_jax.engine.cells import SearchCell
from rome_jax.methods import gdas, laws, method
from rome_jax.methods.rows.gdas import with_scalar_gates

C = 4
SPACE = spaces.NASBENCH201.restrict(
    name='scalar gates', ops=('none', 'skip_connect', 'nor_conv_1x1'))


def norm(x):
  x = x - x.mean((0, 1, 2))
  return x / jnp.sqrt((x * x).mean((0, 1, 2)) + 1e-5)


def by_the_code(params, weights, noise, x, tau, sampled):
  """AutoDL-Projects' cell, edge by edge: h * op(x) of the sampled operation,
  plus h of each other one."""
  h = laws.gumbel_max(params.alpha['normal'], noise.alpha['normal'], tau)
  kernel = weights['edges']['nor_conv_1x1']['conv']['kernel']
  states = [x]
  for node in range(3):
    total = 0.
    for pred in range(node + 1):
      edge = node * (node + 1) // 2 + pred
      candidates = (
          jnp.zeros_like(x), states[pred],
          norm(jnp.maximum(states[pred], 0) @ kernel[edge].reshape(C, C)))
      total += sum(
          h[edge, k] * y if k == sampled[edge] else h[edge, k]
          for k, y in enumerate(candidates))
    states.append(total)
  return states[-1]


def test_equals_the_code(quick_jit, fill):
  """Output, and the gradient of alpha, weights and images."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda a: rng.normal(size=a.shape).astype(np.float32),
      gdas.init(SPACE, jax.random.key(0)))
  x = rng.normal(size=(2, 5, 5, C)).astype(np.float32)
  cell = SearchCell(SPACE, C, reduction_prev=None)
  seen = set()
  for seed in range(4):
    noise = jax.tree.map(lambda a: a[0], method.gumbel(
        params, jax.random.key(seed), 1))
    cells = with_scalar_gates(gdas).sample(SPACE, params, noise, .7)
    seen |= set(np.asarray(cells['normal'].ops))
    weights = fill(jax.eval_shape(
        cell.init, jax.random.key(0), x, arch=cells['normal']))['params']
    direction = rng.normal(size=x.shape).astype(np.float32)

    def ours(params, weights, x, noise=noise, direction=direction):
      cells = with_scalar_gates(gdas).sample(SPACE, params, noise, .7)
      y = cell.apply({'params': weights}, x, arch=cells['normal'])
      return (y * direction).sum(), y

    sampled = np.asarray(
        jax.nn.log_softmax(params.alpha['normal'])
        + noise.alpha['normal']).argmax(-1)

    def theirs(params, weights, x, noise=noise, direction=direction,
               sampled=sampled):
      y = by_the_code(params, weights, noise, x, .7, sampled)
      return (y * direction).sum(), y

    def alone(params, weights, x, noise=noise, direction=direction):
      cells = gdas.sample(SPACE, params, noise, .7)
      y = cell.apply({'params': weights}, x, arch=cells['normal'])
      return (y * direction).sum(), y

    found, expected, usual = (
        quick_jit(jax.grad(f, (0, 1, 2), has_aux=True))(params, weights, x)
        if f is not theirs else
        jax.grad(f, (0, 1, 2), has_aux=True)(params, weights, x)
        for f in (ours, theirs, alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-4), found, expected)
    # The option changes alpha's gradient and nothing else.
    np.testing.assert_allclose(found[1], usual[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0][0].alpha['normal'],
                           usual[0][0].alpha['normal'], rtol=.01)
  assert seen == {0, 1, 2}

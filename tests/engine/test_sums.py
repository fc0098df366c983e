"""Gradients over K samples, on quadratics whose gradients are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors
from rome_jax.engine import sums

RNG = np.random.default_rng(0)
THETA = RNG.normal(size=4).astype(np.float32)
K = 5
SAMPLES = {'a': RNG.normal(size=(K, 4)).astype(np.float32),
           'y': RNG.normal(size=K).astype(np.float32)}


def loss(theta, sample):
  residual = sample['a'] @ theta - sample['y']
  return .5 * residual ** 2


def one(sample):
  return jax.value_and_grad(loss)(jnp.asarray(THETA), sample)


@pytest.mark.parametrize('parallel', sums.WAYS)
def test_closed_form(parallel):
  value, grad = jax.jit(
      lambda samples: sums.sum_over_samples(one, samples, parallel))(
          SAMPLES)
  residual = SAMPLES['a'] @ THETA - SAMPLES['y']
  np.testing.assert_allclose(value, .5 * (residual ** 2).sum(), rtol=1e-5)
  np.testing.assert_allclose(
      grad, residual @ SAMPLES['a'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('parallel', sums.WAYS)
def test_python_loop(parallel):
  values, grads = zip(*(
      jax.value_and_grad(loss)(
          jnp.asarray(THETA), jax.tree.map(lambda a, k=k: a[k], SAMPLES))
      for k in range(K)))
  value, grad = sums.sum_over_samples(one, SAMPLES, parallel)
  np.testing.assert_allclose(value, sum(values), rtol=1e-6)
  np.testing.assert_allclose(grad, sum(grads), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('parallel', sums.WAYS)
def test_one_sample_and_any_tree(parallel):
  out = sums.sum_over_samples(
      lambda s: {'n': s['i'], 'pair': (s['x'], jnp.ones(2))},
      {'i': jnp.array([3]), 'x': jnp.ones((1, 2, 2), jnp.bfloat16)}, parallel)
  assert int(out['n']) == 3 and out['n'].dtype == jnp.int32
  assert out['pair'][0].dtype == jnp.bfloat16
  np.testing.assert_array_equal(out['pair'][1], np.ones(2))


def test_scan_holds_one_sample():
  """Memory of 'scan' is that of one sample, of 'vmap' of K."""

  def heavy(x):
    def body(x, _):
      return jnp.sin(x @ x), None
    return jax.grad(lambda x: jax.lax.scan(body, x, None, 8)[0].sum())(x)

  def temporary(k, parallel):
    x = jax.ShapeDtypeStruct((k, 32, 32), jnp.float32)
    compiled = jax.jit(lambda x: sums.sum_over_samples(
        heavy, x, parallel)).lower(x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8, 'scan') < 1.1 * temporary(2, 'scan')
  assert temporary(8, 'vmap') > 2 * temporary(2, 'vmap')


def test_unknown_way():
  with pytest.raises(errors.UserError, match="mean 'vmap'"):
    sums.sum_over_samples(one, SAMPLES, 'vmaps')

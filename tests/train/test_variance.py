"""The variance of gradients against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import data, spaces
from rome_jax.methods.method import ArchParams
from rome_jax.methods.rows import pada
from rome_jax.train import variance

SPACE = spaces.SPACES['nasbench201']


def test_spread_is_the_trace_of_the_covariance():
  draws = np.random.default_rng(0).normal(size=(40, 3)) + 2.
  found = variance.spread(draws)
  covariance = np.cov(draws.T)
  assert found.variance == pytest.approx(np.trace(covariance), rel=1e-5)
  mean = draws.mean(0)
  assert found.mean_square == pytest.approx(
      mean @ mean - np.trace(covariance) / 40, rel=1e-5)
  with pytest.raises(ValueError, match='draws=1 must be at least 2'):
    variance.spread(draws[:1])


def law_of(rng):
  return ArchParams({'normal': jnp.asarray(
      rng.normal(size=(6, 5)), jnp.float32)}, {'normal': jnp.zeros(0)})


def test_weights_of_paths_average_to_one():
  """Over all of the law: sum of p * (uniform / p) = 1, and by sampling."""
  arch = law_of(np.random.default_rng(1))
  p = np.asarray(jax.nn.softmax(arch.alpha['normal']))
  row = pada.pada
  noise = row.noise(SPACE, arch, jax.random.key(0), 20_000)

  def one(noise):
    cells = row.sample(SPACE, arch, noise, 1.)
    return variance.path_weight(SPACE, arch, cells), cells['normal'].ops

  weights, ops = jax.jit(jax.vmap(one))(noise)
  expected = np.prod(.2 / p[np.arange(6), np.asarray(ops)], -1)
  np.testing.assert_allclose(weights, expected, rtol=1e-3)
  error = np.std(weights) / len(weights) ** .5
  assert abs(np.mean(weights) - 1) < 5 * error


def linear(theta, cells, batch, key):
  """A loss whose gradient on an image is its x, times its weight."""
  del cells, key
  return (batch['weight'] * (batch['x'] @ theta)).mean(), {}


@pytest.mark.parametrize('weighted', [False, True])
def test_variance_of_paths_by_hand(weighted):
  """g = the operation's vector at one edge; its variance has a closed form."""
  vectors = np.random.default_rng(2).normal(size=(5, 3)).astype('f')
  arch = ArchParams({'normal': jnp.zeros((6, 5)).at[0].set(
      jnp.array([.5, -.5, 1., 0., -1.]))}, {'normal': jnp.zeros(0)})
  p = np.asarray(jax.nn.softmax(arch.alpha['normal'][0]))

  def loss(theta, cells, batch, key):
    return vectors_of(cells['normal'].ops[0]) @ theta, {}

  def vectors_of(op):
    return jnp.asarray(vectors)[op]

  gradient = jax.jit(variance.make_gradient(pada.pada, SPACE, loss, weighted))
  draws = 1500
  found = variance.spread(
      gradient(jnp.zeros(3), arch, {}, jax.random.key(i))
      for i in range(draws))
  seen = vectors * (.2 / p if weighted else np.ones(5))[:, None]
  mean = p @ seen
  expected = p @ (seen ** 2).sum(-1) - mean @ mean
  fourth = p @ ((seen - mean) ** 2).sum(-1) ** 2 - expected ** 2
  assert abs(found.variance - expected) < 5 * (fourth / draws) ** .5
  if weighted:  # Every law has the mean of the uniform one.
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-5)


def test_the_optimal_law_has_less_variance_than_the_uniform():
  """Images drawn in proportion to |x_i|, weighed by 1 / (n p_i)."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(24, 4)) * rng.gamma(.3, 3., (24, 1)) + .1
  n, b = x.shape[0], 6
  found = {}
  for name, law in (('uniform', np.ones(n)), ('optimal', np.linalg.norm(
      x, axis=-1))):
    law = law / law.sum() * n
    # Equal weights would read each image once: keep draws independent.
    law[0] *= 1 + 1e-9
    batches = data.Batches(
        data.ArraySplit(np.zeros((n, 1, 1, 1), np.uint8), np.zeros(n, int)),
        None, b, 0, lambda images, rng: images, weights=law)
    gradients = []
    for step in range(4000):
      batch = batches(step)
      gradients.append(
          (batch['weight'][:, None] * x[batch['index']]).mean(0))
    found[name] = variance.spread(gradients)
    # V of one draw, by hand, over B independent draws.
    p = law / n
    values = x / (n * p)[:, None]
    mean = x.mean(0)
    expected = (p @ (values ** 2).sum(-1) - mean @ mean) / b
    assert found[name].variance == pytest.approx(expected, rel=.1)
  assert found['optimal'].variance < .6 * found['uniform'].variance


def test_gradients_use_the_weights_of_images():
  gradient = variance.make_gradient(pada.pada, SPACE, linear, False)
  arch = pada.equal_logits(SPACE, None)
  x, weight = np.eye(3, dtype='f'), np.float32([1, 2, 3])
  found = gradient(jnp.zeros(3), arch, {'x': x, 'weight': weight},
                   jax.random.key(0))
  np.testing.assert_allclose(found, weight / 3)

"""Equations 5-18 against their NumPy transcription, and the sampling laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transcription as paper

from rome_jax import spaces
from rome_jax.engine import archs
from rome_jax.methods import laws

TAUS = [10., 1., .1]
SPACES = [
    spaces.Space('s', ('a', 'b', 'c'), num_nodes=n, in_degree=d, num_inputs=i)
    for n, d, i in [
        (4, 2, 2), (3, 1, 2), (4, 3, 2), (1, 2, 2), (2, 3, 1), (3, 2, 3)]]
# Nodes of two and three predecessors, and one of a single edge set.
SMALL = spaces.Space('small', tuple('abcdefg'), num_nodes=2)


def space_id(space):
  return f'{space.num_nodes}nodes{space.in_degree}deg{space.num_inputs}in'


def logits_and_noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=shape).astype(np.float32),
          rng.gumbel(size=shape).astype(np.float32))


def one(function):
  """Sum of squares would hide signs: a fixed random projection instead."""
  def projected(*args):
    out = function(*args)
    return (out * np.random.default_rng(9).normal(size=out.shape)).sum()
  return projected


def wide(*arrays):
  return [a.astype(np.float64) for a in arrays]


# ------------------------------------------------------ operations, Eq. 5-8


@pytest.mark.parametrize('tau', TAUS)
def test_gumbel_max(tau):
  alpha, noise = logits_and_noise(14, 7)
  hard = jax.jit(laws.gumbel_max)(alpha, noise, tau)
  # To the bit: neither 0.9999999 nor 1e-9.
  np.testing.assert_array_equal(
      hard, paper.one_hot_max(*wide(alpha, noise)).astype(np.float32))


@pytest.mark.parametrize('tau', TAUS)
def test_gradient_of_gumbel_max(tau):
  alpha, noise = logits_and_noise(7)
  actual = jax.jacobian(laws.gumbel_max)(alpha, noise, tau)
  soft = paper.relaxed(*wide(alpha, noise), tau)
  analytic = (np.diag(soft) - np.outer(soft, soft)) / tau
  np.testing.assert_allclose(actual, analytic, rtol=1e-4, atol=1e-5)
  numeric = paper.numeric_jacobian(
      lambda a: paper.relaxed(a, np.float64(noise), tau), np.float64(alpha))
  np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-7)


def test_log_softmax_and_raw_logits_are_one():
  # Shift invariance: facts of Eq. 5-6, whatever one puts in for log alpha.
  alpha, noise = logits_and_noise(200, 7)
  hard = laws.gumbel_max(alpha, noise, 1.)
  np.testing.assert_array_equal(hard.argmax(-1), (alpha + noise).argmax(-1))

  def raw(alpha):
    return jax.nn.softmax((alpha + noise) / .5)

  np.testing.assert_allclose(
      jax.grad(one(lambda a: laws.gumbel_max(a, noise, .5)))(alpha),
      jax.grad(one(raw))(alpha), rtol=1e-4, atol=1e-5)


def test_gumbel_max_law():
  logits, _ = logits_and_noise(5)
  n = 20_000
  noise = jax.random.gumbel(jax.random.key(0), (n, 5))
  counts = np.asarray(laws.gumbel_max(
      jnp.broadcast_to(logits, noise.shape), noise, 1.)).sum(0)
  assert_binomial(counts, n, paper.softmax(np.float64(logits)))


def assert_binomial(counts, n, p):
  """Each count within 5 standard deviations of Binomial(n, p)."""
  z = (counts - n * p) / np.sqrt(n * p * (1 - p))
  assert np.abs(z).max() < 5, z


# ------------------------------------------------------- edges: v1, Eq. 10-14


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('space', SPACES, ids=space_id)
def test_sample_pairs(space, tau):
  beta, noise = logits_and_noise(sum(paper.num_pairs(space)))
  hard, _ = paper.edges_v1(space, *wide(beta, noise), tau)
  np.testing.assert_array_equal(
      laws.sample_pairs(space, beta, noise, tau), hard)
  assert laws.pair_sizes(space) == tuple(paper.num_pairs(space))
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    assert hard[a:b].sum() == d  # Eq. 9


@pytest.mark.parametrize('sampler, oracle, size', [
    (laws.sample_pairs, paper.edges_v1, laws.pair_sizes),
    (laws.sample_top_k, paper.edges_v2, paper.node_sizes)])
def test_gradient_of_the_edges(sampler, oracle, size):
  space = SMALL
  beta, noise = logits_and_noise(sum(size(space)))
  jacobian = jax.jit(jax.jacobian(
      lambda beta, tau: sampler(space, beta, noise, tau)))
  for tau in (2., .2):
    expected = paper.numeric_jacobian(
        lambda b, tau=tau: oracle(space, b, np.float64(noise), tau)[1],
        np.float64(beta))
    actual = jacobian(beta, tau)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max() > .01
    if sampler is laws.sample_pairs:
      # Node 1's two predecessors make one pair: nothing to learn, exactly.
      np.testing.assert_array_equal(actual[:, 0], np.zeros(5))


def test_subsets_are_lexical():
  pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
  table = laws.subsets(4, 2)
  assert [tuple(np.flatnonzero(row)) for row in table] == pairs


# ------------------------------------------------------ edges: v2, Eq. 15-17


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('space', SPACES, ids=space_id)
def test_sample_top_k(space, tau):
  beta, noise = logits_and_noise(space.num_edges)
  hard, _ = paper.edges_v2(space, *wide(beta, noise), tau)
  np.testing.assert_array_equal(
      laws.sample_top_k(space, beta, noise, tau), hard)
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    assert hard[a:b].sum() == d  # Eq. 9


@pytest.fixture(scope='module')
def draws():
  """(logits of 5 edges, [n, 5] masks of Gumbel-Top2)."""
  logits, _ = logits_and_noise(5, seed=3)
  noise = jax.random.gumbel(jax.random.key(1), (20_000, 5))
  masks = jax.jit(jax.vmap(
      lambda g: laws.gumbel_top_k(logits, g, 1., 2)))(noise)
  return logits, np.asarray(masks)


def test_inclusion_probabilities(draws):
  # ROME Sec. 3.3: p_1 + sum_i p_i p_1 / (1 - p_i), for every edge.
  logits, masks = draws
  p = paper.softmax(np.float64(logits))
  inclusion = np.array([
      p[e] + sum(p[i] * p[e] / (1 - p[i]) for i in range(5) if i != e)
      for e in range(5)])
  assert inclusion.sum() == pytest.approx(2)
  assert_binomial(masks.sum(0), len(masks), inclusion)


def test_pair_law(draws):
  logits, masks = draws
  for pair in laws.subsets(5, 2):
    law = float(jnp.exp(laws.log_prob_top_k(logits, pair)))
    i, j = np.flatnonzero(pair)
    p = paper.softmax(np.float64(logits))
    assert law == pytest.approx(
        p[i] * p[j] / (1 - p[i]) + p[i] * p[j] / (1 - p[j]), rel=1e-5)
    assert_binomial((masks == pair).all(-1).sum(), len(masks), law)


@pytest.mark.parametrize('n, k', [(5, 1), (5, 2), (5, 3), (4, 4)])
def test_set_law_sums_to_one(n, k):
  logits, _ = logits_and_noise(n)
  law = [float(jnp.exp(laws.log_prob_top_k(logits, s)))
         for s in laws.subsets(n, k)]
  assert sum(law) == pytest.approx(1, abs=1e-5)
  if k == 1:
    np.testing.assert_allclose(
        law, paper.softmax(np.float64(logits)), rtol=1e-5)


def test_v1_can_have_the_law_of_v2():
  # With beta^(i,k) = log p(pair) ROME-v1's law, Eq. 11, is ROME-v2's.
  space, n = spaces.Space('s', ('a',), num_nodes=3), 20_000
  beta_v2, _ = logits_and_noise(space.num_edges)
  log_law = np.concatenate([
      [laws.log_prob_top_k(beta_v2[a:b], s)
       for s in laws.subsets(b - a, 2)] for a, b in space.node_edges])
  # Any shift of a node's logits leaves the law alone.
  beta_v1 = np.float32(log_law + 3.)
  drawn = []
  for sampler, beta in ((laws.sample_pairs, beta_v1),
                        (laws.sample_top_k, beta_v2)):
    noise = jax.random.gumbel(jax.random.key(len(beta)), (n, len(beta)))
    drawn.append(np.asarray(jax.jit(jax.vmap(
        lambda g, beta=beta, sampler=sampler: sampler(
            space, beta, g, 1.)))(noise)))
  a, b = space.node_edges[-1]
  exact = np.exp(log_law[-6:])
  for masks in drawn:
    counts = np.array([(masks[:, a:b] == s).all(-1).sum()
                       for s in laws.subsets(4, 2)])
    assert_binomial(counts, n, exact)


# ----------------------------------------------------------- compact, Eq. 4


@pytest.mark.parametrize('space', SPACES, ids=space_id)
def test_compact(space):
  alpha, op_noise = logits_and_noise(space.num_edges, 3)
  beta, noise = logits_and_noise(space.num_edges, seed=1)

  @jax.jit
  def sample(alpha, beta):
    return archs.compact(
        space, laws.sample_top_k(space, beta, noise, .1),
        laws.gumbel_max(alpha, op_noise, .1), space.in_degrees,
        space.choices('normal'))

  arch = sample(alpha, beta)
  mask, _ = paper.edges_v2(space, *wide(beta, noise), .1)
  np.testing.assert_array_equal(arch.edges, np.flatnonzero(mask))
  choice = paper.one_hot_max(*wide(alpha, op_noise)).argmax(-1)
  np.testing.assert_array_equal(arch.ops, choice[np.flatnonzero(mask)])
  assert arch.edges.dtype == arch.ops.dtype == np.int32
  np.testing.assert_array_equal(arch.gates, np.ones(sum(space.in_degrees)))


def test_gates_are_exactly_one():
  space, n = SMALL, 100
  rng = np.random.default_rng(0)

  @jax.jit
  @jax.vmap
  def gates(alpha, op_noise, beta, noise, tau):
    return archs.compact(
        space, laws.sample_top_k(space, beta, noise, tau),
        laws.gumbel_max(alpha, op_noise, tau), space.in_degrees,
        space.choices('normal')).gates

  for tau in (10., .1, 1e-3):
    # Standard deviation 20: saturated softmaxes too.
    found = gates(
        *(np.float32(x) for x in (
            20 * rng.normal(size=(n, 5, 7)), rng.gumbel(size=(n, 5, 7)),
            20 * rng.normal(size=(n, 5)), rng.gumbel(size=(n, 5)),
            np.full(n, tau))))
    np.testing.assert_array_equal(found, np.ones((n, 4), np.float32))


def test_gradient_of_the_gates():
  # Both factors are 1, so d(B A) = dB + dA at the chosen entries.
  space, tau = SMALL, .7
  alpha, op_noise = logits_and_noise(5, 7)
  beta, noise = logits_and_noise(5, seed=1)
  c = np.random.default_rng(5).normal(size=4)

  def objective(alpha, beta):
    arch = archs.compact(
        space, laws.sample_top_k(space, beta, noise, tau),
        laws.gumbel_max(alpha, op_noise, tau), space.in_degrees,
        space.choices('normal'))
    return (arch.gates * c).sum(), arch

  grads, arch = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(alpha, beta)
  edges, ops = np.asarray(arch.edges), np.asarray(arch.ops)
  for actual, soft, x in (
      (grads[0], lambda a: paper.relaxed(a, np.float64(op_noise), tau)[
          edges, ops], alpha),
      (grads[1], lambda b: paper.edges_v2(
          space, b, np.float64(noise), tau)[1][edges], beta)):
    jacobian = paper.numeric_jacobian(soft, np.float64(x))
    np.testing.assert_allclose(
        np.ravel(actual), c @ jacobian, rtol=1e-3, atol=1e-4)


def test_all_edges():
  edges = laws.sample_all_edges(spaces.S0, None, None, None)
  np.testing.assert_array_equal(edges, np.ones(14))


# ------------------------------------------------------------- strict fair


@pytest.mark.parametrize('rounds', [1, 3])
def test_strict_fair(rounds):
  k, edges, n = 7 * rounds, 14, 7
  ops = np.asarray(jax.jit(
      laws.strict_fair_ops, static_argnums=(1, 2, 3))(
          jax.random.key(0), k, edges, n))
  assert ops.shape == (k, edges)
  for block in ops.reshape(rounds, n, edges):
    np.testing.assert_array_equal(
        np.sort(block, 0), np.tile(np.arange(n)[:, None], (1, edges)))
  # Independent per edge and per round.
  columns = ops.reshape(rounds, n, edges).transpose(0, 2, 1).reshape(-1, n)
  assert len(np.unique(columns, axis=0)) > .9 * len(columns)


def test_strict_fair_is_uniform():
  n, keys = 3, jax.random.split(jax.random.key(0), 5000)
  ops = np.asarray(jax.vmap(
      lambda key: laws.strict_fair_ops(key, n, 1, n))(keys))[..., 0]
  counts = [(ops == p).all(-1).sum() for p in itertools.permutations(range(n))]
  assert_binomial(np.array(counts), len(keys), 1 / 6)


# ------------------------------------------------------ laws and diagnostics


def test_log_prob_ops():
  alpha, _ = logits_and_noise(14, 7)
  edges, ops = [0, 1, 3, 9], [6, 0, 2, 2]
  expected = np.log(np.prod(
      [paper.softmax(np.float64(alpha))[e, o] for e, o in zip(edges, ops)]))
  actual = laws.log_prob_ops(alpha, np.array(edges), np.array(ops))
  assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_entropy_and_margin():
  logits, _ = logits_and_noise(6, 7)
  p = paper.softmax(np.float64(logits))
  np.testing.assert_allclose(
      laws.entropy(logits), -(p * np.log(p)).sum(-1), rtol=1e-5)
  top = np.sort(p, -1)
  np.testing.assert_allclose(
      laws.margin(logits), top[:, -1] - top[:, -2], rtol=1e-4, atol=1e-6)
  assert float(laws.entropy(np.zeros(7))) == pytest.approx(np.log(7))
  np.testing.assert_array_equal(laws.margin(np.zeros((3, 1))), np.zeros(3))


def test_tau():
  # GDAS: 10 - 9.9 e / (E - 1).
  for epoch in (0, 20, 49):
    assert float(laws.tau_at(epoch / 49, 10., .1)) == pytest.approx(
        10 - 9.9 * epoch / 49)
  assert laws.tau_at(.5, 10., .1, 'exponential') == pytest.approx(1.)
  assert laws.tau_at(1., 10., .1, 'exponential') == pytest.approx(.1)
  assert laws.tau_at(.7, 3., .1, 'constant') == 3.

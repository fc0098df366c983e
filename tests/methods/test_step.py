"""The bilevel step on a quadratic, and each method's derivation.

The quadratic: theta holds one weight per (edge, operation); a network's
output f is the sum of gate * weight over its active edges in both cells, and
its loss (f - y)^2 / 2. So dL/dweight = f - y on what is active and
dL/dgate = (f - y) * weight; the rest is the relaxation's Jacobian.
"""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transcription as paper

from rome_jax import spaces
from rome_jax.engine.archs import CellArch
from rome_jax.methods import laws, table
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.train import optim

SPACE = spaces.Space('tiny', ('a', 'b', 'c'), num_nodes=2)
CELLS = spaces.CELL_TYPES
SAMPLED = ('rome_v1', 'rome_v2', 'gdas')  # those that sample one path


def beta_size(name, space):
  """ROME-v1 weighs a node's pairs of edges, v2 its edges, GDAS nothing."""
  return {'rome_v1': sum(n * (n - 1) // 2 if d == 2 else 1 if d == n else n
                         for n, d in zip(space.fan_ins, space.in_degrees)),
          'rome_v2': space.num_edges, 'gdas': 0}[name]


def params_of(name, space=SPACE, seed=0, scale=1.):
  """ArchParams of normal float32 NumPy tables."""
  rng = np.random.default_rng(seed)
  size = beta_size(name, space)
  return method_lib.ArchParams(
      {t: np.float32(scale * rng.normal(
          size=(space.num_edges, len(space.ops)))) for t in CELLS},
      {t: np.float32(scale * rng.normal(size=size)) for t in CELLS})


def noise_like(params, k, seed):
  rng = np.random.default_rng(seed)
  return method_lib.Noise(*jax.tree.map(
      lambda a: np.float32(rng.gumbel(size=(k, *a.shape))), params))


def quadratic(theta, arch, target, rng=None):
  f = sum((arch[t].gates * theta[t][arch[t].edges, arch[t].ops]).sum()
          for t in CELLS)
  return .5 * ((f - target) ** 2).mean(), {'output': f}


def theta_of(seed=7):
  rng = np.random.default_rng(seed)
  return {t: jnp.float32(rng.normal(size=(5, 3))) for t in CELLS}


# ------------------------------------------ the step, transcribed to NumPy


def numpy_sample(name, params, noise):
  """{cell: (edges, ops)} of one sample."""
  found = {}
  for t in CELLS:
    hard, _ = paper.EDGES[name](SPACE, np.float64(params.beta[t]),
                                np.float64(noise.beta[t]), 1.)
    ops = paper.one_hot_max(np.float64(params.alpha[t]),
                            np.float64(noise.alpha[t])).argmax(-1)
    edges = np.flatnonzero(hard)
    found[t] = edges, ops[edges]
  return found


def numpy_loss(theta, arch, target):
  """(loss, {cell: gradient of theta}, f - y)."""
  f = sum(theta[t][e, o].sum() for t, (e, o) in arch.items())
  grad = {t: np.zeros((5, 3)) for t in CELLS}
  for t, (e, o) in arch.items():
    grad[t][e, o] = f - target
  return .5 * (f - target) ** 2, grad, f - target


def numpy_arch_gradient(name, theta, params, noise, target, tau):
  """ArchParams of dL/dalpha and dL/dbeta of one sample (Eq. 8, 13, 16)."""
  arch = numpy_sample(name, params, noise)
  _, _, residual = numpy_loss(theta, arch, target)
  alpha, beta = {}, {}
  for t, (edges, ops) in arch.items():
    weight = residual * theta[t][edges, ops]  # dL/dgate

    def through_alpha(a, t=t, edges=edges, ops=ops, weight=weight):
      soft = paper.relaxed(a, np.float64(noise.alpha[t]), tau)
      return (weight * soft[edges, ops]).sum()

    def through_beta(b, t=t, edges=edges, weight=weight):
      _, soft = paper.EDGES[name](SPACE, b, np.float64(noise.beta[t]), tau)
      return (weight * soft[edges]).sum()

    for rows, function, x in ((alpha, through_alpha, params.alpha[t]),
                               (beta, through_beta, params.beta[t])):
      rows[t] = paper.numeric_jacobian(
          function, np.float64(x)).reshape(x.shape) if x.size else x
  return method_lib.ArchParams(alpha, beta)


class NumpyStep:
  """Algorithm 1 with PyTorch's SGD and Adam, written out."""

  def __init__(self, name, theta, params, options, *, tau, lr, clip):
    self.name, self.options, self.tau = name, options, tau
    self.lr, self.clip = lr, clip
    self.theta = jax.tree.map(np.float64, theta)
    self.params = jax.tree.map(np.float64, params)
    self.momentum = jax.tree.map(np.zeros_like, self.theta)
    self.m = jax.tree.map(np.zeros_like, self.params)
    self.v = jax.tree.map(np.zeros_like, self.params)
    self.t = 0

  def _reduce(self, grads, how):
    total = jax.tree.map(lambda *g: sum(g), *grads)
    scale = 1 / len(grads) if how == 'mean' else 1
    return jax.tree.map(lambda g: g * scale, total)

  def arch_phase(self, noise, target):
    self.t += 1
    grad = self._reduce([
        numpy_arch_gradient(
            self.name, self.theta, self.params,
            jax.tree.map(lambda a, k=k: a[k], noise), target, self.tau)
        for k in range(self.options.k)], self.options.alpha_reduce)
    grad = jax.tree.map(lambda g, p: g + 1e-3 * p, grad, self.params)
    self.m = jax.tree.map(lambda m, g: .5 * m + .5 * g, self.m, grad)
    self.v = jax.tree.map(
        lambda v, g: .999 * v + .001 * g ** 2, self.v, grad)
    self.params = jax.tree.map(
        lambda p, m, v: p - .5 * (m / (1 - .5 ** self.t)) / (
            np.sqrt(v / (1 - .999 ** self.t)) + 1e-8),
        self.params, self.m, self.v)

  def theta_phase(self, noise, target):
    archs = [
        numpy_sample(self.name, self.params,
                     jax.tree.map(lambda a, k=k: a[k], noise))
        for k in range(self.options.k)]
    losses, grads, _ = zip(*(
        numpy_loss(self.theta, arch, target) for arch in archs))
    grad = self._reduce(grads, self.options.theta_reduce)
    norm = np.sqrt(sum((g ** 2).sum() for g in grad.values()))
    factor = min(1, self.clip / norm)
    for t in CELLS:
      d = factor * grad[t] + 3e-4 * self.theta[t]
      self.momentum[t] = .9 * self.momentum[t] + d
      self.theta[t] = self.theta[t] - self.lr * self.momentum[t]
    return np.mean(losses), norm


def transformations(lr=.01, clip=5.):
  section = types.SimpleNamespace(
      clip_norm=clip, weight_decay=3e-4, momentum=.9, nesterov=False,
      alpha_lr=.5, alpha_b1=.5, alpha_b2=.999, alpha_weight_decay=1e-3,
      alpha_clip=0.)
  return (optim.sgd(lambda step: lr, section),
          optim.arch_adam(section))


def make(name, options, theta_tx, arch_tx, tau=.7):
  step = step_lib.make_step(
      table.METHODS[name], SPACE, quadratic, theta_tx, arch_tx,
      lambda step: tau, options)
  return lambda state, train, valid: step(
      state, {'train': train, 'valid': valid})


def state_of(name, theta, params, theta_tx, arch_tx):
  return step_lib.init_state(
      table.METHODS[name], SPACE, theta, params, theta_tx, arch_tx)


def noises_of(params, k, step):
  """What the two halves of a step draw, in their order, with seed 0."""
  halves = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
  return [jax.tree.map(np.asarray, method_lib.gumbel(
      params, jax.random.split(key, 3)[0], k)) for key in halves]


@pytest.mark.parametrize('name, options', [
    ('rome_v1', step_lib.Options(k=3)),
    ('rome_v2', step_lib.Options(k=3)),
    ('rome_v2', step_lib.Options(
        k=3, samples='vmap', order='theta_first', theta_reduce='mean',
        alpha_reduce='sum')),
    ('gdas', step_lib.Options(k=1, order='theta_first'))])
def test_update_equals_numpy(name, options, quick_jit):
  """Three steps: SGD and Adam keep state, the clip works on some."""
  theta, params = theta_of(), params_of(name)
  txs = transformations()
  update = quick_jit(make(name, options, *txs))
  state = state_of(name, theta, params, *txs)
  oracle = NumpyStep(name, theta, params, options, tau=.7, lr=.01, clip=5.)
  phases = [(oracle.arch_phase, -1.), (oracle.theta_phase, 2.)]
  if options.order == 'theta_first':
    phases.reverse()
  clipped = []
  for step in range(3):
    state, metrics = update(state, np.float32([2.]), np.float32([-1.]))
    for (phase, target), noise in zip(
        phases, noises_of(params, options.k, step)):
      out = phase(noise, target)
      if out is not None:
        loss, norm = out
        assert float(metrics['train_loss']) == pytest.approx(loss, rel=1e-4)
        assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-4)
        assert bool(metrics['clipped']) == (norm > 5)
        clipped.append(norm > 5)
    assert int(state.step) == step + 1
    for actual, expected in ((state.theta, oracle.theta),
                             (state.arch, oracle.params)):
      jax.tree.map(lambda a, b: np.testing.assert_allclose(
          a, b, rtol=2e-3, atol=2e-4), actual, expected)
  assert options.theta_reduce == 'mean' or any(clipped)


@pytest.mark.parametrize('name', ['rome_v1', 'rome_v2'])
def test_the_oracle_tells_the_orders_apart(name):
  """alpha moves so far that theta's samples depend on who is first."""
  found = []
  for order in (1, -1):
    oracle = NumpyStep(name, theta_of(), params_of(name), step_lib.Options(k=3),
                       tau=.7, lr=.01, clip=5.)
    noises = [noise_like(oracle.params, 3, seed) for seed in (1, 2)]
    for _ in range(3):
      for phase, noise, target in [
          (oracle.arch_phase, noises[0], -1.),
          (oracle.theta_phase, noises[1], 2.)][::order]:
        phase(noise, target)
    found.append(oracle.theta['normal'])
  assert np.abs(found[0] - found[1]).max() > .01


def test_v1_beta_of_node_1_has_no_gradient(quick_jit):
  params, theta = params_of('rome_v1'), theta_of()
  noise = jax.tree.map(lambda a: a[0], noise_like(params, 1, 3))

  def objective(params):
    arch = table.METHODS['rome_v1'].sample(SPACE, params, noise, .7)
    return quadratic(theta, arch, np.float32([3.]))[0]

  grad = quick_jit(jax.grad(objective))(params)
  for t in CELLS:
    assert float(grad.beta[t][0]) == 0.
    assert np.abs(grad.beta[t][1:]).min() > 0


# ------------------------------------------------ batches, samples and keys


@pytest.fixture(scope='module')
def step(quick_jit):
  """(update of ROME-v2 with K = 2, its first state)."""
  txs = transformations()
  return quick_jit(make('rome_v2', step_lib.Options(k=2), *txs)), (
      state_of('rome_v2', theta_of(), params_of('rome_v2'), *txs))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_each_half_has_its_use(step):
  """theta moves with its batch alone, alpha and beta with theirs."""
  update, state = step
  base, first = update(state, np.float32([1.]), np.float32([2.]))
  other_theta, _ = update(state, np.float32([5.]), np.float32([2.]))
  other_arch, last = update(state, np.float32([1.]), np.float32([5.]))
  assert_same(base.arch, other_theta.arch)
  assert not np.array_equal(base.theta['normal'], other_theta.theta['normal'])
  assert not np.array_equal(
      base.arch_opt[1][0].mu.beta['normal'],
      other_arch.arch_opt[1][0].mu.beta['normal'])
  assert float(first['valid_loss']) != float(last['valid_loss'])


def test_same_seed_and_step_same_result(step):
  update, state = step
  batches = np.float32([1.]), np.float32([2.])
  once, twice = update(state, *batches), update(state, *batches)
  assert_same(once, twice)
  for other in (dict(step=jnp.int32(1)), dict(seed=jnp.uint32(1))):
    later, _ = update(state._replace(**other), *batches)
    assert not np.array_equal(once[0].theta['normal'], later.theta['normal'])


def test_scan_equals_vmap(step, quick_jit):
  update, state = step
  other = quick_jit(make(
      'rome_v2', step_lib.Options(k=2, samples='vmap'), *transformations()))
  batches = np.float32([1.]), np.float32([2.])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), update(state, *batches),
      other(state, *batches))


def drawn_noise(monkeypatch, quick_jit):
  """f(seed, step): the noise that each phase of that step draws, [K,...]."""
  found, draw = [], method_lib.gumbel

  def recorded(params, rng, k):
    noise = draw(params, rng, k)
    jax.debug.callback(found.append, jnp.concatenate(
        [leaf.reshape(k, -1) for leaf in jax.tree.leaves(noise)], 1),
                       ordered=True)
    return noise

  monkeypatch.setattr(method_lib, 'gumbel', recorded)
  txs = transformations()
  update = quick_jit(make('rome_v2', step_lib.Options(k=4), *txs))
  state = state_of('rome_v2', theta_of(), params_of('rome_v2'), *txs)

  def noise(seed, step):
    found.clear()
    update(state._replace(seed=seed, step=step), np.float32([1.]),
           np.float32([2.]))
    jax.effects_barrier()
    return list(found)

  return lambda seed, step: noise(jnp.uint32(seed), jnp.int32(step))


def test_samples_are_fresh(monkeypatch, quick_jit):
  """K different samples, others in both phases, steps and seeds."""
  noise = drawn_noise(monkeypatch, quick_jit)
  found = [*noise(0, 0), *noise(0, 1), *noise(1, 0)]
  assert [x.shape for x in found] == 6 * [(4, 40)]
  # Floats of 23 random bits: a few of the 960 may meet, 160 would not.
  assert len(np.unique(np.concatenate(found))) > 950
  # A resumed run draws what the uninterrupted one would.
  assert_same(found[2:4], noise(0, 1))


def test_batch_is_a_mean(quick_jit):
  """One batch, shared by the K samples: metrics are means over both."""
  txs = optax.sgd(0.), optax.sgd(0.)
  batch = np.float32([0., 1., 5.])
  update = quick_jit(make('gdas', step_lib.Options(k=2), *txs))
  params = params_of('gdas', scale=0.)
  # One operation for sure: f is the same in every sample.
  for t in CELLS:
    params.alpha[t][:, 0] = 1e4
  _, metrics = update(
      state_of('gdas', theta_of(), params, *txs), batch, batch)
  f = sum(theta_of()[t][:, 0].sum() for t in CELLS)
  expected = float(.5 * ((f - batch) ** 2).mean())
  assert float(metrics['train_loss']) == pytest.approx(expected, rel=1e-4)
  assert float(metrics['valid_loss']) == pytest.approx(expected, rel=1e-4)
  assert float(metrics['train_output']) == pytest.approx(float(f), rel=1e-4)


def test_strict_fair_theta_step(quick_jit):
  """With K = O each operation of each edge is drawn once (GDAS: trained)."""
  txs = optax.sgd(1.), optax.sgd(0.)
  theta = jax.tree.map(jnp.zeros_like, theta_of())
  options = step_lib.Options(k=3, sampler='strict_fair')
  state, _ = quick_jit(make('gdas', options, *txs))(
      state_of('gdas', theta, params_of('gdas', scale=50.), *txs),
      np.float32([1.]), np.float32([1.]))
  # All weights 0: f = 0 and each active weight's gradient is -1 per sample.
  for t in CELLS:
    np.testing.assert_array_equal(state.theta[t], np.ones((5, 3)))


# ------------------------------------------------------- variance, Sec. 3.4


def test_variance_falls_as_one_over_k(quick_jit):
  """Var of the averaged alpha gradient is sigma^2 / K.

  R independent gradients per K, projected on one direction. The standard
  error of a variance estimate is sqrt((m4 - v^2) / R), m4 the fourth central
  moment; the difference K v_K - v_1 stays within 5 of its own.
  """
  repeats, params, theta = 1000, params_of('rome_v2'), theta_of()
  direction = jax.tree.map(
      lambda a: np.random.default_rng(a.size).normal(size=a.shape), params)

  def estimate(k):
    options = step_lib.Options(k=k, samples='vmap')
    txs = optax.sgd(0.), optax.sgd(1.)  # The update is minus the gradient.
    update = make('rome_v2', options, *txs)
    state = state_of('rome_v2', theta, params, *txs)

    def projected(step):
      after, _ = update(state._replace(step=step), np.float32([1.]),
                        np.float32([2.]))
      return sum(jax.tree.leaves(jax.tree.map(
          lambda a, b, d: ((b - a) * d).sum(), after.arch, params,
          direction)))

    x = np.float64(quick_jit(jax.vmap(projected))(jnp.arange(repeats)))
    centred = x - x.mean()
    v = (centred ** 2).mean()
    return x.mean(), v, np.sqrt(((centred ** 4).mean() - v ** 2) / repeats)

  mean_1, v_1, se_1 = estimate(1)
  for k in (4, 16):
    mean_k, v_k, se_k = estimate(k)
    z = (k * v_k - v_1) / np.hypot(k * se_k, se_1)
    assert abs(z) < 5
    # Unbiased: the same mean.
    assert abs(mean_k - mean_1) < 5 * np.sqrt((v_1 + v_k) / repeats)
    # The test has power: no other exponent would pass.
    assert 5 * np.hypot(k * se_k, se_1) < .6 * v_1


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize('num_nodes, in_degree', [
    (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize('name', SAMPLED)
def test_sample_of_any_space(name, num_nodes, in_degree):
  space = spaces.Space('s', ('a', 'b'), num_nodes, in_degree=in_degree)
  method, params = table.METHODS[name], params_of(name, space)
  noise = jax.tree.map(lambda a: a[0], noise_like(params, 1, 3))
  arch = method.sample(space, params, noise, 1.)
  degrees = [2 + i if name == 'gdas' else min(in_degree, 2 + i)
             for i in range(num_nodes)]
  for t in CELLS:
    edges = np.asarray(arch[t].edges)
    assert len(np.unique(edges)) == len(edges) == sum(degrees)
    np.testing.assert_array_equal(np.sort(edges), edges)
    np.testing.assert_array_equal(
        space.edge_nodes[edges], np.repeat(np.arange(num_nodes), degrees))
    assert set(np.asarray(arch[t].ops)) <= {0, 1}
    np.testing.assert_array_equal(arch[t].gates, np.ones(len(edges)))


@pytest.mark.parametrize('name', SAMPLED)
def test_sample_equals_the_equations(name, quick_jit):
  params = params_of(name)
  noise = noise_like(params, 20, 5)
  method = table.METHODS[name]
  archs = quick_jit(jax.vmap(
      lambda n: method.sample(SPACE, params, n, .5)))(noise)
  for k in range(20):
    expected = numpy_sample(
        name, params, jax.tree.map(lambda a, k=k: a[k], noise))
    for t in CELLS:
      np.testing.assert_array_equal(archs[t].edges[k], expected[t][0])
      np.testing.assert_array_equal(archs[t].ops[k], expected[t][1])


def test_sizes_of_s0():
  # 2 x 14 x 7 alphas; 40 (v1) or 28 (v2) betas over both cells.
  for name, betas in (('rome_v1', 40), ('rome_v2', 28), ('gdas', 0)):
    params = table.METHODS[name].init(spaces.S0, jax.random.key(0))
    count = [sum(x.size for x in jax.tree.leaves(p)) for p in params]
    assert count == [196, betas]


def test_initial_arch():
  space = spaces.Space('s', tuple('abcdefgh'), num_nodes=20)
  params = table.METHODS['rome_v2'].init(space, jax.random.key(0), .1, 0.)
  n = params.alpha['normal'].size
  z = (np.std(params.alpha['normal']) / .1 - 1) * np.sqrt(2 * n)
  assert abs(z) < 5  # Relative standard error 1/sqrt(2n).
  assert not np.array_equal(params.alpha['normal'], params.alpha['reduce'])
  np.testing.assert_array_equal(params.beta['normal'], 0.)


def test_noise_is_gumbel():
  params = params_of('rome_v2')
  noise = method_lib.gumbel(params, jax.random.key(0), 500)
  x = np.concatenate([np.ravel(a) for a in jax.tree.leaves(noise)])
  # Mean: Euler's constant; variance pi^2/6.
  assert abs(x.mean() - .5772) < 5 * np.sqrt(np.pi ** 2 / 6 / x.size)
  assert jax.tree.map(np.shape, (noise.alpha, noise.beta)) == (
      jax.tree.map(lambda a: (500, *a.shape), tuple(params)))


# ------------------------------------------- probability, Eq. 18; derivation


def edge_sets(space):
  """Every choice of in-degree edges per node, as one tuple of edges."""
  per_node = [
      [tuple(a + i for i in chosen) for chosen in itertools.combinations(
          range(b - a), min(space.in_degree, b - a))]
      for a, b in space.node_edges]
  return [sum(chosen, ()) for chosen in itertools.product(*per_node)]


def cells_of(space):
  """Every cell: (edges, ops)."""
  return [(edges, ops) for edges in edge_sets(space)
          for ops in itertools.product(
              range(len(space.ops)), repeat=len(edges))]


def log_prob_edges(name, space, beta, edges):
  """log of prod p(e_i; beta) of Eq. 18, from the definition."""
  beta = np.float64(beta)
  if name == 'rome_v2':
    parts = paper.split(beta, paper.node_sizes(space))
    p = np.concatenate([paper.softmax(b) for b in parts])
    return np.log(p[list(edges)]).sum()
  total = 0.
  parts = paper.split(beta, paper.num_pairs(space))
  for (a, b), logits in zip(space.node_edges, parts):
    mine = tuple(e - a for e in edges if a <= e < b)
    sets = list(itertools.combinations(range(b - a), len(mine)))
    total += np.log(paper.softmax(logits)[sets.index(mine)])
  return total


def brute_force_log_prob(name, space, params, t, edges, ops):
  """Eq. 18 of one cell."""
  log_p = np.log(paper.softmax(np.float64(params.alpha[t])))
  return log_prob_edges(name, space, params.beta[t], edges) + sum(
      log_p[e, o] for e, o in zip(edges, ops))


SMALL_SPACES = [spaces.Space('s', ('a', 'b', 'c'), 2, in_degree=d)
                for d in (1, 2)]


@pytest.mark.parametrize('name', ['rome_v1', 'rome_v2'])
@pytest.mark.parametrize('space', SMALL_SPACES, ids=['deg1', 'deg2'])
def test_log_prob(name, space):
  """Eq. 18 for every normal cell beside one reduction cell."""
  params = params_of(name, space)
  edge_law = {'rome_v1': laws.log_prob_pairs,
              'rome_v2': laws.log_prob_independent}[name]
  every = cells_of(space)
  edges, ops = (jnp.asarray(x) for x in zip(*every))
  other = CellArch(edges[7], ops[7], None)
  found = jax.jit(jax.vmap(lambda e, o: laws.log_prob(
      edge_law, space, params,
      {'normal': CellArch(e, o, None), 'reduce': other})))(edges, ops)
  normal = np.array([
      brute_force_log_prob(name, space, params, 'normal', *z) for z in every])
  reduce = brute_force_log_prob(name, space, params, 'reduce', *every[7])
  np.testing.assert_allclose(found, normal + reduce, rtol=1e-4, atol=1e-4)
  if name == 'rome_v1' or space.in_degree == 1:
    assert np.exp(normal).sum() == pytest.approx(1)


@pytest.mark.parametrize('name', ['rome_v1', 'rome_v2'])
@pytest.mark.parametrize('space', SMALL_SPACES, ids=['deg1', 'deg2'])
def test_derivation_is_the_likeliest_sample(name, space):
  """Among all (B, A): an edge set and an operation on each of the E edges.

  Edges and operations are sampled independently (Eq. 4), so this mode is
  the likeliest edge set with the likeliest operation on each of its edges.
  """
  for seed in range(5):
    params = params_of(name, space, seed)
    genotype = table.METHODS[name].derive(space, params)
    for t, nodes in (('normal', genotype.normal),
                     ('reduce', genotype.reduce)):
      log_p = np.log(paper.softmax(np.float64(params.alpha[t])))
      assignments = list(itertools.product(range(3), repeat=5))
      p_ops = [sum(log_p[e, o] for e, o in enumerate(a)) for a in assignments]
      p_edges = {edges: log_prob_edges(name, space, params.beta[t], edges)
                 for edges in edge_sets(space)}
      _, edges, ops = max(
          (p_edge + p_op, edges, ops) for edges, p_edge in p_edges.items()
          for ops, p_op in zip(assignments, p_ops))
      assert nodes == as_nodes(space, edges, [ops[e] for e in edges])


@pytest.mark.parametrize('name', ['rome_v1', 'rome_v2'])
def test_derivation_is_the_mode_of_eq_18(name):
  """Where every edge is equally sure of its operation.

  In general Eq. 18, which weighs only the active edges' operations, also
  favours edges that are surer of theirs; derivation does not.
  """
  space = SMALL_SPACES[1]
  for seed in range(5):
    rng, params = np.random.default_rng(seed), params_of(name, space, seed)
    for t in CELLS:
      params.alpha[t][:] = rng.permuted(
          np.tile(np.float32([0., .3, 1.]), (5, 1)), axis=1)
    genotype = table.METHODS[name].derive(space, params)
    for t, nodes in (('normal', genotype.normal),
                     ('reduce', genotype.reduce)):
      best = max(cells_of(space), key=lambda z, t=t: brute_force_log_prob(
          name, space, params, t, *z))
      assert nodes == as_nodes(space, *best)


def as_nodes(space, edges, ops):
  nodes = [[] for _ in range(space.num_nodes)]
  for e, o in zip(edges, ops):
    nodes[space.edge_nodes[e]].append((space.ops[o], int(space.edge_preds[e])))
  return tuple(map(tuple, nodes))


def test_top_two_is_the_likeliest_set():
  """v2's derivation also maximises the law of Gumbel-Top2 itself."""
  for seed in range(10):
    beta = np.random.default_rng(seed).normal(size=5).astype(np.float32)
    sets = laws.subsets(5, 2)
    law = [float(laws.log_prob_top_k(beta, s)) for s in sets]
    assert set(np.flatnonzero(sets[int(np.argmax(law))])) == set(
        np.argsort(beta)[-2:])


def test_derived_concat_is_every_node():
  genotype = table.METHODS['rome_v2'].derive(
      spaces.S0, params_of('rome_v2', spaces.S0))
  assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)


def test_gdas_derivation():
  """All (edge, operation) pairs of a node ranked, the best two kept."""
  params = params_of('gdas')
  p = paper.softmax(np.float64(params.alpha['reduce']))
  expected = []
  for a, b in SPACE.node_edges:
    ranked = sorted(
        ((p[e, o], SPACE.ops[o], e - a) for e in range(a, b)
         for o in range(3)), reverse=True)
    expected.append(tuple((op, pred) for _, op, pred in ranked[:2]))
  genotype = table.METHODS['gdas'].derive(SPACE, params)
  assert genotype.reduce == tuple(expected)


def test_gdas_may_take_one_edge_twice():
  params = params_of('gdas', scale=0.)
  params.alpha['normal'][3] = 5., 4.9, -9.  # .52 and .48 beat any third.
  genotype = table.METHODS['gdas'].derive(SPACE, params)
  assert genotype.normal[1] == (('a', 1), ('b', 1))


# -------------------------------------------------------------- diagnostics


@pytest.mark.parametrize('name', SAMPLED)
def test_diagnostics(name):
  params = params_of(name)
  found = {k: float(v) for k, v in
           step_lib.diagnostics(SPACE, params).items()}
  for t in CELLS:
    groups = {'alpha': list(np.float64(params.alpha[t]))}
    if name == 'rome_v1':  # Node 1 has one pair, no choice.
      groups['beta'] = [np.float64(params.beta[t][1:])]
    if name == 'rome_v2':
      groups['beta'] = [np.float64(params.beta[t][2:])]
    for symbol, logits in groups.items():
      p = [np.sort(paper.softmax(x)) for x in logits]
      assert found[f'{symbol}_entropy_{t}'] == pytest.approx(
          np.mean([-(q * np.log(q)).sum() for q in p]), rel=1e-4)
      assert found[f'{symbol}_margin_{t}'] == pytest.approx(
          np.mean([q[-1] - q[-2] for q in p]), rel=1e-4)
    assert found[f'parameterless_share_{t}'] == 0  # None is called so.
  assert ('beta_entropy_normal' in found) == (name != 'gdas')


def test_no_key_is_used_twice(monkeypatch, quick_jit):
  """A key either is split, once, or draws, once."""
  used = {'split': [], 'gumbel': [], 'permutation': []}

  def recorded(name):
    original = getattr(jax.random, name)

    def call(key, *args, **kwargs):
      # When it runs: the two halves of a step are one program.
      jax.debug.callback(
          lambda data: used[name].append(tuple(np.ravel(data).tolist())),
          jax.random.key_data(key))
      return original(key, *args, **kwargs)
    return call

  for name in used:
    monkeypatch.setattr(jax.random, name, recorded(name))
  theta_tx, arch_tx = transformations()
  update = quick_jit(make(
      'rome_v2', step_lib.Options(k=3, sampler='strict_fair'), theta_tx,
      arch_tx))
  state = state_of('rome_v2', {t: jnp.ones((5, 3)) for t in CELLS},
                   params_of('rome_v2'), theta_tx, arch_tx)
  target = np.float32([3.])
  for _ in range(3):
    state, _ = update(state, target, target)
  jax.effects_barrier()
  assert all(used.values())
  keys = [key for found in used.values() for key in found]
  assert len(set(keys)) == len(keys)

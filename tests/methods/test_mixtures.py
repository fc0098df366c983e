"""DARTS, PC-DARTS and SPOS on the quadratic, against NumPy and closed forms.

The quadratic is that of `test_step`: a network's output is the sum of gate *
weight over the slots of its cells, its loss half the squared distance to a
target. The mixtures' equations are written out here in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax import spaces
from rome_jax.methods import derive, laws, step, table
from rome_jax.methods.method import ArchParams, Noise, full_mask
from rome_jax.methods.rows import darts, single_path
from rome_jax.train import optim, recipes

SPACE = spaces.Space('tiny', ('a', 'b', 'c'), num_nodes=2)
CELLS = spaces.CELL_TYPES
NONE = Noise({}, {})


def params_of(seed=0, space=SPACE, beta=True):
  rng = np.random.default_rng(seed)
  return ArchParams(
      {t: np.float32(rng.normal(size=(space.num_sites, space.num_choices)))
       for t in space.cell_types},
      {t: np.float32(rng.normal(size=space.num_edges * beta))
       for t in space.cell_types})


def theta_of(seed=7):
  rng = np.random.default_rng(seed)
  return {t: np.float32(rng.normal(size=(5, 3))) for t in CELLS}


def quadratic(theta, arch, target, key=None):
  f = sum((arch[t].gates * theta[t][arch[t].edges, arch[t].ops]).sum()
          for t in CELLS)
  return .5 * ((f - target) ** 2).mean(), {'output': f}


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def edge_weights(beta):
  """PC-DARTS, Eq. 2: a softmax over the edges of each node (2 and 3 here)."""
  return np.concatenate([softmax(beta[:2]), softmax(beta[2:])])


def mixture(alpha, beta):
  """[E,O] factors of the candidates; beta None for DARTS."""
  gates = softmax(alpha)
  return gates if beta is None else edge_weights(beta)[:, None] * gates


def numeric(function, x, h=1e-6):
  """The gradient of a scalar function by central differences, float64."""
  grad = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[i] += h
    down[i] -= h
    grad[i] = (function(up) - function(down)) / (2 * h)
  return grad


class NumpyDarts:
  """DARTS' first-order step (Liu et al., Algorithm 1, xi = 0), written out.

  Adam with coupled L2 for the architecture on the validation batch, then SGD
  with momentum, L2 and a clipped gradient for theta on the training batch.
  """

  def __init__(self, theta, params, edges):
    self.theta = {t: np.float64(a) for t, a in theta.items()}
    self.arch = {('alpha', t): np.float64(params.alpha[t]) for t in CELLS}
    if edges:
      self.arch |= {('beta', t): np.float64(params.beta[t]) for t in CELLS}
    self.momentum = {t: 0. for t in CELLS}
    self.m = dict.fromkeys(self.arch, 0.)
    self.v = dict.fromkeys(self.arch, 0.)
    self.t = 0

  def output(self, arch=None):
    arch = arch or self.arch
    return sum((mixture(arch['alpha', t], arch.get(('beta', t)))
                * self.theta[t]).sum() for t in CELLS)

  def arch_step(self, target):
    self.t += 1
    grads = {key: numeric(
        lambda x, key=key: .5 * (
            self.output({**self.arch, key: x}) - target) ** 2, value)
             for key, value in self.arch.items()}
    for key, grad in grads.items():
      grad = grad + 1e-3 * self.arch[key]
      self.m[key] = .5 * self.m[key] + .5 * grad
      self.v[key] = .999 * self.v[key] + .001 * grad ** 2
      self.arch[key] = self.arch[key] - .5 * (
          self.m[key] / (1 - .5 ** self.t)) / (
              np.sqrt(self.v[key] / (1 - .999 ** self.t)) + 1e-8)

  def theta_step(self, target):
    residual = self.output() - target
    grads = {t: residual * mixture(
        self.arch['alpha', t], self.arch.get(('beta', t))) for t in CELLS}
    norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
    for t, grad in grads.items():
      grad = grad * min(1, 5. / norm) + 3e-4 * self.theta[t]
      self.momentum[t] = .9 * self.momentum[t] + grad
      self.theta[t] = self.theta[t] - .01 * self.momentum[t]
    return .5 * residual ** 2, norm


def transformations():
  recipe = recipes.SearchRecipe(alpha_lr=.5)  # DARTS' else.
  return optim.sgd(lambda step: .01, recipe), optim.arch_adam(recipe)


def make(row, txs, **options):
  return step.make_step(
      row, SPACE, quadratic, *txs, lambda step: 1.,
      step.Options(k=1, **options))


BATCHES = {'train': np.float32([2.]), 'valid': np.float32([-1.])}


@pytest.mark.parametrize('row', [darts.darts, darts.pc_darts],
                         ids=['darts', 'pc_darts'])
def test_the_step_equals_numpy(row, quick_jit):
  edges = row is darts.pc_darts
  theta, params, txs = theta_of(), params_of(beta=edges), transformations()
  state = step.init_state(row, SPACE, theta, params, *txs)
  update = quick_jit(make(row, txs))
  oracle = NumpyDarts(theta, params, edges)
  for _ in range(4):
    state, metrics = update(state, BATCHES)
    oracle.arch_step(-1.)
    loss, norm = oracle.theta_step(2.)
    assert float(metrics['train_loss']) == pytest.approx(loss, rel=1e-3)
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-3)
    for t in CELLS:
      np.testing.assert_allclose(state.theta[t], oracle.theta[t], rtol=2e-3,
                                 atol=2e-4)
      np.testing.assert_allclose(state.arch.alpha[t], oracle.arch['alpha', t],
                                 rtol=2e-3, atol=5e-4)
      if edges:
        np.testing.assert_allclose(state.arch.beta[t], oracle.arch['beta', t],
                                   rtol=2e-3, atol=5e-4)


def test_slots_are_every_candidate_times_its_softmax():
  params = params_of()
  for row, weights in ((darts.darts, None), (darts.pc_darts, params.beta)):
    cells = row.sample(SPACE, params, NONE, 1.)
    for t in CELLS:
      expected = mixture(np.float64(params.alpha[t]),
                         None if weights is None else np.float64(weights[t]))
      np.testing.assert_array_equal(cells[t].edges, np.repeat(np.arange(5), 3))
      np.testing.assert_array_equal(cells[t].ops, np.tile(np.arange(3), 5))
      np.testing.assert_allclose(cells[t].gates, expected.ravel(), rtol=1e-5)


def test_a_mask_leaves_candidates_out():
  params = params_of()
  mask = {t: np.array(m) for t, m in full_mask(SPACE).items()}
  mask['normal'][1] = [True, False, True]
  gates = darts.darts.sample(SPACE, params, NONE, 1., mask)['normal'].gates
  gates = np.reshape(gates, (5, 3))
  np.testing.assert_allclose(
      gates[1, [0, 2]], softmax(np.float64(params.alpha['normal'][1, [0, 2]])),
      rtol=1e-5)
  assert gates[1, 1] == 0


def test_pc_darts_with_equal_edges_is_darts():
  """beta = 0: each edge has its node's share of the mixture of DARTS."""
  params = params_of()
  params = params._replace(beta=jax.tree.map(np.zeros_like, params.beta))
  plain = darts.darts.sample(SPACE, params, NONE, 1.)
  shared = darts.pc_darts.sample(SPACE, params, NONE, 1.)
  share = np.repeat([1 / 2, 1 / 3], [6, 9])  # nodes of two and three edges
  for t in CELLS:
    np.testing.assert_allclose(shared[t].gates, share * plain[t].gates,
                               rtol=1e-6)
  assert (darts.pc_darts.derive(SPACE, params)
          == darts.darts.derive(SPACE, params))


# -------------------------------------------------------------- derivation


def by_hand(space, alpha, weights):
  """DARTS' rule, edge by edge: [(operation, predecessor)] of each node."""
  nodes = []
  for start, stop in space.node_edges:
    ranked = []
    for edge in range(start, stop):
      p = softmax(np.float64(alpha[edge])) * weights[edge]
      may = [i for i, op in enumerate(space.ops) if op != 'none']
      best = max(may, key=lambda i, p=p: p[i])
      ranked.append((-p[best], edge, space.ops[best]))
    chosen = sorted((edge, op) for _, edge, op in sorted(ranked)[:2])
    nodes.append(tuple((op, int(space.edge_preds[e])) for e, op in chosen))
  return tuple(nodes)


@pytest.mark.parametrize('seed', range(5))
def test_two_strongest(seed):
  """`none` has its share of an edge's softmax and no vote."""
  space = spaces.Space('n', ('none', 'a', 'b'), num_nodes=3,
                       not_derived=('none',))
  params = params_of(seed, space)
  found = derive.two_strongest(space, params)
  by_beta = derive.two_strongest_by_beta(space, params)
  for t in CELLS:
    ones = np.ones(space.num_edges)
    assert getattr(found, t) == by_hand(space, params.alpha[t], ones)
    beta = np.float64(params.beta[t])
    weights = np.concatenate([softmax(beta[a:b]) for a, b in space.node_edges])
    assert getattr(by_beta, t) == by_hand(space, params.alpha[t], weights)


def test_none_matters_for_the_strength_of_an_edge():
  """An edge that is sure of `none` is weak, whatever its best operation."""
  space = spaces.Space('n', ('none', 'a'), num_nodes=2, not_derived=('none',))
  params = params_of(0, space)
  for t in CELLS:
    params.alpha[t][2:] = [[5., 3.], [0., 1.], [0., 1.]]
  for t in CELLS:
    found = derive.two_strongest(space, params)
    assert [pred for _, pred in getattr(found, t)[1]] == [1, 2]


# ------------------------------------------------- when the architecture moves


def test_the_architecture_waits(quick_jit):
  """Before `arch_from` only theta moves, as alone; then both do."""
  txs = transformations()
  row, params = darts.darts, params_of(beta=False)
  update = quick_jit(make(row, txs, arch_from=2))
  state = step.init_state(row, SPACE, theta_of(), params, *txs)
  oracle = NumpyDarts(theta_of(), params, False)
  for number in range(3):
    state, _ = update(state, BATCHES)
    if number == 2:
      oracle.arch_step(-1.)
    oracle.theta_step(2.)
    for t in CELLS:
      np.testing.assert_allclose(state.theta[t], oracle.theta[t], rtol=2e-3,
                                 atol=2e-4)
      moved = not np.array_equal(state.arch.alpha[t], params.alpha[t])
      assert moved == (number == 2)


# ------------------------------------------- both programs, any optimiser


@pytest.mark.parametrize('row', ['darts', 'rome_v2'])
def test_one_program_equals_update_by_update(row, quick_jit):
  """The private optimisation for two first-order updates changes nothing."""
  method, txs = table.METHODS[row], transformations()

  def rule(objective, update, state, batches, key):  # not `first_order`
    return objective.gradient(update.params, state.theta, state.arch,
                              batches[update.batch], key, state.mask)

  other = method._replace(updates=tuple(
      u._replace(rule=rule) for u in method.updates))
  params = params_of(beta=row == 'rome_v2')
  state = step.init_state(method, SPACE, theta_of(), params, *txs)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      quick_jit(make(method, txs))(state, BATCHES),
      quick_jit(make(other, txs))(state, BATCHES))


@pytest.mark.parametrize('tx', [
    optax.lamb(.1), optax.lars(.1), optax.adafactor(.1),
    optax.adamw(.1, mask=lambda tree: jax.tree.map(
        lambda a: a.ndim > 1, tree)),
    optax.multi_transform(
        {'fast': optax.sgd(1.), 'slow': optax.sgd(.1)},
        {'normal': 'fast', 'reduce': 'slow'})],
    ids=['lamb', 'lars', 'adafactor', 'adamw_by_rank', 'by_name'])
@pytest.mark.parametrize('row', ['darts', 'spos'])
def test_an_optimiser_sees_the_tree(row, tx, quick_jit):
  """The update is Optax's own on the tree of gradients."""
  method = table.METHODS[row]
  txs = tx, optax.sgd(0.)
  params = params_of(beta=False) if row == 'darts' else ()
  theta = jax.tree.map(jnp.asarray, theta_of())
  state = step.init_state(method, SPACE, theta, params, *txs)
  after, _ = quick_jit(make(method, txs))(state, BATCHES)
  key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[
      [u.params for u in method.updates].index('theta')]
  noise = jax.tree.map(lambda a: a[0], method.noise(
      SPACE, params, jax.random.split(key, 3)[0], 1))
  cells = method.sample(SPACE, params, noise, 1.)
  grads = jax.grad(lambda theta: quadratic(
      theta, cells, BATCHES['train'])[0])(theta)
  updates, _ = tx.update(grads, tx.init(theta), theta)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      after.theta, optax.apply_updates(theta, updates))


# -------------------------------------------------------------------- SPOS


def test_paths_are_uniform(quick_jit):
  """Each edge set and each operation equally often; bound: 5 sigma."""
  n = 20_000
  noise = single_path.spos.noise(SPACE, (), jax.random.key(0), n)
  cells = quick_jit(jax.vmap(
      lambda noise: single_path.listed_path(SPACE, (), noise, 1.)))(noise)
  for t in CELLS:
    edges, ops = np.asarray(cells[t].edges), np.asarray(cells[t].ops)
    np.testing.assert_array_equal(cells[t].gates, 1.)
    counts = [
        *(((edges[:, 2] == a) & (edges[:, 3] == b)).sum() * 3
          for a, b in ((2, 3), (2, 4), (3, 4))),
        *((ops[:, m] == o).sum() * 3 for m in range(4) for o in range(3))]
    # Each event has probability 1/3.
    assert np.abs(np.array(counts) / n - 1).max() < 5 * (2 / n) ** .5
  # Cells of the two types are independent: pairs of operations are uniform.
  pair = np.asarray(cells['normal'].ops[:, 0] * 3 + cells['reduce'].ops[:, 0])
  assert np.abs(np.bincount(pair, minlength=9) * 9 / n - 1).max() < (
      5 * (8 / n) ** .5)


def test_spos_trains_the_path_alone(quick_jit):
  """One step of SGD at rate 1 from zero weights: target on the path."""
  txs = optax.sgd(1.), optax.identity()
  theta = jax.tree.map(jnp.zeros_like, theta_of())
  row = single_path.spos
  state = step.init_state(row, SPACE, theta, (), *txs)
  after, metrics = quick_jit(make(row, txs))(state, BATCHES)
  key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]
  noise = jax.tree.map(lambda a: a[0], row.noise(
      SPACE, (), jax.random.split(key, 3)[0], 1))
  cells = row.sample(SPACE, (), noise, 1.)
  for t in CELLS:
    expected = np.zeros((5, 3))
    expected[cells[t].edges, cells[t].ops] = 2.  # -dL/dw = target - 0
    np.testing.assert_allclose(after.theta[t], expected, rtol=1e-6)
  assert set(metrics) == {'tau', 'grad_norm', 'clipped', 'train_loss',
                          'train_output'}
  assert after.arch == ()


def test_spos_is_rome_with_equal_logits():
  """With alpha = beta = 0 ROME-v2 draws what SPOS draws."""
  zeros = jax.tree.map(np.zeros_like, params_of())
  noise = single_path.spos.noise(SPACE, (), jax.random.key(3), 50)
  for k in range(50):
    one = jax.tree.map(lambda a, k=k: a[k], noise)
    ours = single_path.listed_path(SPACE, (), one, 1.)
    theirs = table.METHODS['rome_v2'].sample(SPACE, zeros, one, 1.)
    for t in CELLS:
      np.testing.assert_array_equal(ours[t].edges, theirs[t].edges)
      np.testing.assert_array_equal(ours[t].ops, theirs[t].ops)


# ------------------------------------------------------------------- table


def test_a_row_of_ones_own():
  row = darts.darts._replace(name='mine')
  table.register(row)
  try:
    assert table.METHODS['mine'] is row
    with pytest.raises(ValueError, match="'mine' is in the table already"):
      table.register(row)
  finally:
    del table.METHODS['mine']


def test_masked_logits_of_a_full_mask_are_the_logits():
  alpha = np.float32([[1., 2.]])
  assert laws.masked_logits(alpha, np.ones((1, 2), bool)) is alpha

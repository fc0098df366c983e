"""Laws that hold for every search space times every method, at tiny size."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import data, families, spaces
from rome_jax.config import checks, fields
from rome_jax.config import setup as door
from rome_jax.engine import weights as weights_lib
from rome_jax.engine.layout import EDGES, STRIDED
from rome_jax.methods import laws, table
from rome_jax.methods import method as method_lib
from rome_jax.spaces import genotypes
from rome_jax.train import checkpoint, search

CLASSES, C = 3, 4
# What runs in the usual tests: each skeleton, method and kind of site; the
# other combinations compile as much again and are slow tests. Sampling and
# derivation are quick and run for all.
QUICK = {('s1', 'rome_v2'), ('s4', 'rome_v1'), ('s4', 'gdas'),
         ('nasbench201', 'gdas'), ('nasbench201_two', 'rome_v2'),
         ('nasbench1shot1_2', 'rome_v1'), ('nasbench1shot1_2', 'gdas'),
         ('mobile_tiny', 'rome_v2'), ('s1', 'darts'), ('s2', 'pc_darts'),
         ('nasbench201', 'spos'), ('nasbench201', 'darts_2nd'),
         ('nasbench201', 'snas'), ('s3', 'fair_darts'),
         ('nasbench201', 'sdarts_rs'), ('nasbench1shot1_2', 'sdarts_adv')}
LARGE = ('mobile',)
TWO_EDGES = dict(in_degree=2, drop_none=True)


def cells_of(space):
  return space.num_nodes if space.parents == 'previous' else 3


def combinations():
  found = {name: space for name, space in spaces.SPACES.items()
           if name not in LARGE}
  found['nasbench201_two'] = spaces.get_space('nasbench201', **TWO_EDGES)
  return [
      pytest.param(
          space, method, id=f'{name}-{method}',
          marks=() if (name, method) in QUICK else pytest.mark.slow)
      for name, space in found.items() for method in table.METHODS
      if allowed(space, method)]


def recipe_of(name):
  """The part of a search that a row's own check reads."""
  row = table.METHODS[name]
  return types.SimpleNamespace(k=row.recipe.get('search.k', 2),
                               channels=C * row.partial, alpha_start=0,
                               weight_decay=3e-4, cutout_ramp=False)


def allowed(space, name):
  row = table.METHODS[name]
  return row.check(row, space, recipe_of(name)) is None


# Every candidate, weighed.
SLOTS = ('darts', 'darts_2nd', 'pc_darts', 'snas', 'fair_darts', 'sdarts_rs',
         'sdarts_adv', 'darts_es', 'darts_ada', 'darts_2nd_es',
         'darts_2nd_ada', 'p_darts')


def test_what_rows_refuse():
  """Written out, so that no check refuses by accident."""
  refused = {(space.name, name) for space in spaces.SPACES.values()
             for name in table.METHODS if not allowed(space, name)}
  nodes = [n for n in spaces.SPACES if '1shot1' in n]
  chains = [n for n, s in spaces.SPACES.items() if s.parents == 'previous']
  on_edges = ('pc_darts', 'snas', 'fair_darts', 'p_darts')
  assert refused == {(n, name) for n in chains for name in SLOTS} | {
      (n, name) for n in nodes for name in on_edges}
  two = spaces.get_space('nasbench201', **TWO_EDGES)
  assert not allowed(two, 'gdas') and allowed(two, 'rome_v1')


# Their like runs too, under another name.
SLOW = ('s2', 'nasbench1shot1_1', 'nasbench1shot1_3', 'nasbench1shot1_1_skip',
        'nasbench1shot1_2_skip', 'nasbench1shot1_3_skip',
        'nasbench1shot1_1_first', 'nasbench1shot1_2_first',
        'nasbench1shot1_3_first')
EVERY_SPACE = pytest.mark.parametrize('space', [
    *(pytest.param(space, id=name,
                   marks=pytest.mark.slow if name in SLOW else ())
      for name, space in spaces.SPACES.items()),
    pytest.param(spaces.get_space('nasbench201', **TWO_EDGES),
                 id='nasbench201_two')])
EVERY_METHOD = pytest.mark.parametrize('name', table.METHODS)


def params_of(space, name, seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
      lambda: table.METHODS[name].init(space, jax.random.key(0)))
  return jax.tree.map(
      lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)


@EVERY_METHOD
@EVERY_SPACE
def test_samples_are_of_the_space(space, name):
  """Edges and operations allowed, in-degrees kept, gates as promised."""
  if not allowed(space, name):
    pytest.skip('refused')
  method, params = table.METHODS[name], params_of(space, name)
  k = 16
  noise = method.noise(space, params, jax.random.key(1), k)
  archs = jax.device_get(jax.jit(jax.vmap(
      lambda noise: method.sample(space, params, noise, 1.)))(
          noise))
  assert set(archs) == set(space.cell_types)
  degrees = space.fan_ins if name == 'gdas' else space.in_degrees
  for t, cell in archs.items():
    names = space.site_ops(t)
    assert cell.edges.dtype == cell.ops.dtype == np.int32
    if name in SLOTS:
      check_slots(space, name, cell, names)
      continue
    for edges, ops in zip(cell.edges, cell.ops):
      assert [np.sum(space.edge_nodes[edges] == i)
              for i in range(space.num_nodes)] == list(degrees)
      sites = edges if space.sites == 'edges' else range(space.num_sites)
      assert all(space.ops[o] in names[s] for s, o in zip(sites, ops))
    soft = name == 'gdas' and space.sites == 'nodes'
    hard = cell.gates[:, sum(degrees):] if soft else cell.gates
    np.testing.assert_array_equal(hard, np.ones_like(hard))
    if soft:  # A softmax where there is a choice of parents.
      totals = [cell.gates[:, a:b].sum(-1) for a, b in space.node_edges]
      wanted = [b - a if d == b - a else 1 for (a, b), d in zip(
          space.node_edges, space.in_degrees)]
      np.testing.assert_allclose(
          totals, np.repeat(np.array(wanted)[:, None], k, 1), rtol=1e-5)


def check_slots(space, name, cell, names):
  """Each candidate once, in order; gates sum to 1 per site (or node).

  Those of FairDARTS sum to nothing in particular. Where nodes hold the
  operations every edge is listed too, its gates a softmax over the parents.
  """
  sites, ops = np.array([(site, space.ops.index(op))
                         for site, row in enumerate(names) for op in row]).T
  gates, edges = cell.gates, cell.edges[0]
  assert ((gates > 0) & (gates < 1 + 1e-6)).all()
  np.testing.assert_array_equal(cell.ops[0], ops)
  if space.sites == 'nodes':
    of_edges, gates = np.split(gates, [space.num_edges], 1)
    np.testing.assert_array_equal(edges, np.arange(space.num_edges))
    for (a, b), d in zip(space.node_edges, space.in_degrees):
      np.testing.assert_allclose(
          of_edges[:, a:b].sum(-1), b - a if d == b - a else 1, rtol=1e-5)
  else:
    np.testing.assert_array_equal(edges, sites)
  totals = [gates[:, sites == site].sum(-1) for site in range(len(names))]
  if name == 'pc_darts':
    totals = [sum(totals[a:b]) for a, b in space.node_edges]
  if name != 'fair_darts':
    np.testing.assert_allclose(totals, np.ones_like(totals), rtol=1e-5)


@EVERY_METHOD
@EVERY_SPACE
def test_derived_genotypes_are_of_the_space(space, name):
  if not allowed(space, name) or table.METHODS[name].derive is None:
    pytest.skip('refused, or left to a plan')
  for seed in range(5):
    genotype = table.METHODS[name].derive(space, params_of(space, name, seed))
    check_genotype(space, genotype, fewer_edges=name == 'fair_darts')
    text = genotypes.to_text(genotype)
    assert genotypes.from_text(text) == genotype
    assert genotypes.from_json(genotypes.to_json(genotype)) == genotype


@EVERY_SPACE
def test_random_genotypes_are_of_the_space(space):
  rng = np.random.default_rng(0)
  for _ in range(20):
    check_genotype(space, genotypes.random(space, rng))


def check_genotype(space, genotype, fewer_edges=False):
  genotypes.validate(genotype, space.ops + ((space.absent,) * bool(
      space.absent)))
  families.check_genotype(space, genotype, 'here')
  assert genotypes.cell_types(genotype) == space.cell_types
  for t in space.cell_types:
    nodes, concat = genotypes.cell_of(genotype, t)
    degrees = list(space.in_degrees)
    if space.sites == 'nodes':
      assert len(concat) == degrees.pop()
      assert all(len({op for op, _ in node}) == 1 for node in nodes)
    names = space.site_ops(t)
    for i, (node, degree) in enumerate(zip(nodes, degrees, strict=True)):
      kept = [p for p in node if p[0] != space.absent or not space.absent]
      if space.absent:
        assert len(node) == space.node_edges[i][1] - space.node_edges[i][0]
        assert len(kept) <= degree
      else:
        assert len(node) == degree or (
            fewer_edges and 1 <= len(node) < degree)
      for op, pred in kept:
        assert op not in space.not_derived
        start = space.node_edges[i][0]
        first = space.edge_preds[start]
        site = i if space.sites == 'nodes' else start + pred - first
        assert op in names[site]


@pytest.mark.parametrize('name', ['s3', 's1', 'nasbench1shot1_2', 'mobile'])
def test_probabilities_of_a_chain_add_up(name):
  """log p(z) of Eq. 18 by hand: softmaxes of the rows that were chosen."""
  space, method = spaces.SPACES[name], table.METHODS['rome_v1']
  params = params_of(space, 'rome_v1')
  noise = method_lib.gumbel(params, jax.random.key(2), 1)
  arch = method.sample(space, params, jax.tree.map(
      lambda a: a[0], noise), 1.)
  total = 0.
  for t, cell in arch.items():
    choices, alpha = space.choices(t), np.float64(params.alpha[t])
    sites = cell.edges if space.sites == 'edges' else range(space.num_sites)
    for site, op in zip(sites, cell.ops):
      row = alpha[site][choices[site] >= 0]
      column = list(choices[site]).index(op)
      total += alpha[site][column] - np.log(np.exp(row).sum())
    start = 0
    for (a, b), d in zip(space.node_edges, space.in_degrees):
      chosen = laws.subsets(b - a, d)
      mask = np.isin(np.arange(a, b), cell.edges)
      beta = np.float64(params.beta[t][start:start + len(chosen)])
      index = int(np.flatnonzero((chosen == mask).all(-1))[0])
      total += beta[index] - np.log(np.exp(beta).sum())
      start += len(chosen)
  assert float(laws.log_prob(
      laws.log_prob_pairs, space, params, arch)) == (
          pytest.approx(total, rel=1e-4))


# ------------------------------------------------------------ with networks


def fake_dataset(size=8):
  rng = np.random.default_rng(0)

  def split(n):
    return data.ArraySplit(
        rng.integers(0, 256, (n, size, size, 3), np.uint8),
        (np.arange(n) % CLASSES).astype(np.int32))

  return data.Dataset('fake', split(24), split(8), CLASSES, size, 3,
                      (.5,) * 3, (.25,) * 3)


def tiny_search(space, name, monkeypatch):
  space = space.restrict(name='under test')
  monkeypatch.setitem(spaces.SPACES, 'under test', space)
  config = fields.defaults()
  config.space, config.method, config.stem = 'under test', name, 'cifar'
  checks.apply_recipe(config)
  part, sizes = config.search, recipe_of(name)
  part.cells, part.channels = cells_of(space), sizes.channels
  part.batch_size = 4
  part.k, part.alpha_start = sizes.k, 0
  part.augment, part.epochs, part.max_steps = 'none', 1, 2
  part.fraction_theta = part.fraction_alpha = .5
  checks.validate(config)
  dataset = fake_dataset()
  return search.build(
      door.make_setup(config, dataset), door.search_recipe(config), dataset,
      config.seed)


def compiled(function, *args):
  """Optimised little: these programs run two steps."""
  return jax.jit(function).lower(*args).compile(
      {'xla_backend_optimization_level': 0,
       'xla_cpu_use_fusion_emitters': False})


@pytest.mark.parametrize('space, name', combinations())
def test_two_updates(space, name, monkeypatch, tmp_path):
  """Finite, stable shapes and dtypes, one program, through a checkpoint."""
  built = tiny_search(space, name, monkeypatch)
  batches = [jax.device_put(built.phase.batches(i)) for i in range(2)]
  # One compiled program takes both steps: anything else raises.
  step = compiled(built.update, built.state, batches[0])
  state, metrics = step(built.state, batches[0])
  assert all(np.isfinite(v) for v in jax.tree.leaves(metrics))
  signature = jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)),
                           built.state)
  assert signature == jax.tree.map(lambda a: (a.shape, a.dtype), state)
  for before, after in zip(*map(jax.tree.leaves, (built.state.arch,
                                                  state.arch))):
    chosen = before.ndim == 2 or space.has_topology  # alpha, or beta in use
    assert np.any(before != after) or not before.size or not chosen

  with checkpoint.Checkpoints(tmp_path / 'checkpoints') as store:
    store.save(1, state)
    store.wait()
    found, restored = store.restore(jax.tree.map(jnp.zeros_like, state))
  assert found == 1
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  again, _ = step(state, batches[1])
  other, _ = step(restored, batches[1])
  jax.tree.map(np.testing.assert_array_equal, again, other)


@pytest.mark.parametrize('name', [
    'nasbench201', pytest.param('nasbench1shot1_2', marks=pytest.mark.slow),
    pytest.param('mobile_tiny', marks=pytest.mark.slow)])
def test_weights_without_a_gradient(name, quick_jit):
  """With False candidates' kernels have none; all else is equal."""
  space = spaces.SPACES[name]
  net = families.get(space).supernet(
      space, spaces.Sizes(cells_of(space), C, CLASSES), 'cifar')
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  # No operation without weights, or there would be nothing to see.
  conv = next(i for i, op in enumerate(space.ops) if 'conv' in op)
  ops = {t: np.argmax(space.choices(t) == conv, -1) for t in space.cell_types}
  method, params = table.METHODS['rome_v2'], params_of(space, 'rome_v2')
  noise = jax.tree.map(lambda a: a[0], method_lib.gumbel(
      params, jax.random.key(1), 1))
  arch = method.sample(space, params, noise._replace(ops=ops), 1.)
  theta = weights_lib.init_supernet(net, 0, 8, 3)

  def gradients_of(wanted):
    def loss(theta, gates):
      cells = {t: cell._replace(gates=gates[t])
               for t, cell in arch.items()}
      logits = net.apply({'params': theta}, images, cells, wanted)
      return (logits * jnp.arange(1., 1 + CLASSES)).sum() / logits.size
    return jax.grad(loss, (0, 1))(
        theta, {t: cell.gates for t, cell in arch.items()})

  def candidates(grads):
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
            if path[-1].key == 'kernel'
            and any(p.key in (EDGES, STRIDED) for p in path)]

  def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-4, atol=1e-6), a, b)

  usual = quick_jit(lambda: gradients_of(None))()
  found = quick_jit(gradients_of)
  assert_close(found(True), usual)
  without = found(False)
  assert_close(without[1], usual[1])
  assert any(leaf.any() for leaf in candidates(usual[0]))
  assert not any(leaf.any() for leaf in candidates(without[0]))

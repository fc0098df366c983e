"""DARTS and PC-DARTS of the benchmarks beside the engine and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import growth, memory, mixed, search_step
from rome_jax import spaces
from rome_jax.config import fields
from rome_jax.engine import cells as cells_lib
from rome_jax.engine import operations
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.methods import method as method_lib

SMALL = spaces.Space(
    'small', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'), num_nodes=1)


def from_engine(theta, space, edge_weights, is_reduction):
  """Weights of the mixed supernet that are those of the engine's."""
  found = {name: tree for name, tree in theta.items()
           if not name.startswith('cell')}
  for name, tree in theta.items():
    if not name.startswith('cell'):
      continue
    found[name] = {key: tree[key] for key in ('preprocess0', 'preprocess1')}
    for e in range(space.num_edges):
      for op in space.ops:
        one = edge_weights(tree, space, is_reduction(name), e, op)
        if one:
          found[name][f'edge{e}_{op}'] = one
  return found


def test_one_hot_weights_are_the_engines_single_path(
    quick_jit, tiny, cell_arch, edge_weights):
  """Every edge, one operation on each: both networks, a normal cell too."""
  sizes = dict(space=tiny, cells=3, channels=4, num_classes=3)
  engine = darts.Supernet(**sizes)
  theta = weights_lib.init_supernet(engine, 0, 8, 3)
  rng = np.random.default_rng(0)
  chosen = {t: rng.integers(len(tiny.ops), size=tiny.num_edges)
            for t in tiny.cell_types}
  images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  expected = quick_jit(engine.apply)(
      {'params': theta}, images,
      {t: cell_arch(range(tiny.num_edges), o) for t, o in chosen.items()})
  arch = {t: (np.eye(len(tiny.ops), dtype=np.float32)[o], None)
          for t, o in chosen.items()}
  actual = quick_jit(mixed.MixedSupernet(**sizes).apply)(
      {'params': from_engine(theta, tiny, edge_weights,
                             lambda name: name in ('cell1', 'cell2'))},
      images, arch)
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_a_node_is_the_weighted_sum_of_the_engines_operations(
    quick_jit, cell_arch, edge_weights):
  """One node, so that the cell is linear in its 2 x 3 weights."""
  engine = cells_lib.SearchCell(SMALL, 4, True, False)
  rng = np.random.default_rng(0)
  s = [jnp.asarray(rng.normal(size=(2, 6, 6, 4)), jnp.float32)
       for _ in range(2)]
  params = engine.init(
      jax.random.key(0), *s, arch=cell_arch([0, 1], [0, 0]))['params']
  terms = [(e, o) for e in range(2) for o in range(3)]

  def one(gates, operations):
    arch = cell_arch([0, 1], [0, 0])._replace(gates=gates, ops=operations)
    return engine.apply({'params': params}, *s, arch=arch)

  gates = jnp.array([np.eye(2)[e] for e, _ in terms], jnp.float32)
  operations = jnp.array([[o, o] for _, o in terms], jnp.int32)
  single = quick_jit(lambda *args: jax.lax.map(lambda a: one(*a), args))(
      gates, operations)
  weights = rng.random((2, 3)).astype(np.float32)
  beta = np.array([.3, .7], np.float32)
  wanted = sum(beta[e] * weights[e, o] * single[i]
               for i, (e, o) in enumerate(terms))
  mine = from_engine({'cell0': params}, SMALL, edge_weights, lambda _: True)
  actual = quick_jit(mixed.MixedCell(SMALL, 4, True, False).apply)(
      {'params': mine['cell0']}, *s, (weights, beta))
  np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('reduction', [False, True])
def test_partial_channels_pass_by_and_are_shuffled(reduction):
  """PC-DARTS in NumPy, with pooling of the first quarter as operation."""
  space = SMALL.restrict(ops=('max_pool_3x3',))
  cell = mixed.MixedCell(space, 8, reduction, False, partial=4)
  rng = np.random.default_rng(0)
  s = [rng.normal(size=(2, 4, 4, 3)).astype(np.float32) for _ in range(2)]
  ones = np.ones((2, 1), np.float32)
  beta = np.array([.25, .75], np.float32)
  actual, variables = cell.init_with_output(
      jax.random.key(0), *s, (ones, beta))

  def normal(x):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)

  def pool(x, size, stride, pad):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)),
               constant_values=-np.inf)
    places = range(0, x.shape[1] - size + 1, stride)
    return np.stack([np.stack([
        x[:, i:i + size, j:j + size].max((1, 2)) for j in places], 1)
        for i in places], 1)

  expected = 0
  for i, x in enumerate(s):
    kernel = variables['params'][f'preprocess{i}']['Pointwise_0']['kernel']
    x = normal(np.maximum(x, 0) @ np.asarray(kernel))
    y = normal(pool(x[..., :2], 3, 2 if reduction else 1, 1))
    past = pool(x[..., 2:], 2, 2, 0) if reduction else x[..., 2:]
    joined = np.concatenate([y, past], -1)
    # [B, groups, C / groups] -> [B, C / groups, groups], as in the code.
    expected += beta[i] * joined[..., [0, 2, 4, 6, 1, 3, 5, 7]]
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_operations_and_edges():
  rng = np.random.default_rng(0)
  params = method_lib.ArchParams(*(
      {t: rng.normal(size=shape) for t in mixed.SPACE.cell_types}
      for shape in ((14, 8), 14)))
  for alpha, beta in mixed.relax(mixed.SPACE, params).values():
    assert alpha.shape == (14, 8)
    np.testing.assert_allclose(alpha.sum(-1), 1, rtol=1e-5)
    for a, b in mixed.SPACE.node_edges:
      np.testing.assert_allclose(beta[a:b].sum(), 1, rtol=1e-5)
  bare = params._replace(beta=dict.fromkeys(params.beta, np.zeros(0)))
  assert mixed.relax(mixed.SPACE, bare)['normal'][1] is None


def small_step(monkeypatch, column):
  """A tiny step of a column: (problem, step, state)."""
  space = SMALL.restrict(ops=('skip_connect', 'dil_conv_3x3'))
  monkeypatch.setattr(mixed, 'SPACE', space)
  monkeypatch.setattr(memory.spaces, 'S0', space)
  return memory.make_step(column, cells=1, channels=4, batch=2, image_size=8)


def test_the_step_changes_weights_and_architecture(monkeypatch, quick_jit):
  problem, step, state = small_step(monkeypatch, 'pc_darts_k4')
  with mixed.stock_kernels():  # which compile sooner
    after, metrics = quick_jit(step)(state, *problem.batches)
  assert np.isfinite(metrics['train_loss']) and after.step == 1
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), state, after)
  assert changed.arch.alpha['reduce'] and changed.arch.beta['reduce']
  assert all(jax.tree.leaves(changed.theta))


@pytest.mark.slow
@pytest.mark.parametrize('column', ['darts', 'rome'])
def test_llvm_leaves_the_buffers_as_they_are(monkeypatch, column):
  problem, step, state = small_step(monkeypatch, column)
  quick, _ = memory.compile_step(problem, step, state)
  with mixed.stock_kernels():
    slow = jax.jit(step, donate_argnums=0).lower(
        state, *problem.batches).compile()
  for field in ('temp_size_in_bytes', 'argument_size_in_bytes'):
    sizes = [getattr(program.memory_analysis(), field)
             for program in (quick, slow)]
    assert sizes[0] == sizes[1] > 0


def test_stock_kernels_are_traced():
  """The depthwise convolution is XLA's own, and only within the context."""
  def text():
    jax.clear_caches()
    x = jnp.ones((1, 4, 4, 2))
    module = operations.Depthwise(3)
    return jax.jit(module.init_with_output).lower(
        jax.random.key(0), x).as_text()

  with mixed.stock_kernels():
    assert 'feature_group_count = 2' in text()
  assert 'feature_group_count = 2' not in text()


def temp_bytes(jit, count, whole):
  """Of the gradient of theta, one node; or the whole step, four nodes."""
  config = fields.defaults()
  config.image_size = 16
  config.search.update(
      cells=1, channels=8, batch_size=64, k=1, samples='scan')
  space = growth.space_of(count)
  if not whole:
    space = space.restrict(num_nodes=1)
  problem = search_step.make_problem(space, config)
  if whole:
    function, state = search_step.make_step(problem, config)
    args = state, *problem.batches
  else:
    function = search_step.make_gradient(problem, 'scan')
    [archs] = search_step.sample_groups(problem, config, 1)
    args = problem.theta, archs, problem.batches[0]
  return jit(function).lower(*args).compile().memory_analysis(
      ).temp_size_in_bytes


@pytest.mark.parametrize('whole', [
    False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_flat_in_the_number_of_operations(
    quick_jit, monkeypatch, whole):
  """14 candidates against 2 of them, the dearest ones: at most a tenth."""
  assert set(growth.ORDER[:7]) == set(spaces.S0.ops)
  monkeypatch.setattr(operations, 'OPS', {**operations.OPS, **growth.FURTHER})
  few, many = (temp_bytes(quick_jit, n, whole) for n in (2, 14))
  assert few <= many <= 1.1 * few

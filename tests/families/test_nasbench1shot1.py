"""NAS-Bench-1Shot1: the supernet against a plain one, counts, NAS-Bench-101.

The plain supernet is the wiring of the authors' code, node by node over full
concatenations, on JAX's stock operations and differentiated by JAX.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxprs import subjaxprs

from rome_jax import errors, families, spaces
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib
from rome_jax.families import nasbench1shot1
from rome_jax.families.nasbench1shot1 import search, wiring
from rome_jax.spaces import genotypes

C, CLASSES = 2, 3
NAMES = [f'nasbench1shot1_{i}{tail}' for i in (1, 2, 3)
         for tail in ('', '_skip')]
# Three inner nodes, every operation.
RICH = spaces.Space(
    'rich_nodes', ('max_pool_3x3', 'conv_3x3', 'conv_1x1', 'skip_connect'),
    num_nodes=4, num_inputs=1, in_degree=(1, 1, 2, 2), cell_types=('normal',),
    sites='nodes', family='nasbench1shot1')
# The authors' first version.
FIRST_RICH = RICH.restrict(layout=('concatenated',))
FORMS = [pytest.param(RICH, id='added'),
         pytest.param(FIRST_RICH, id='concatenated')]
# (parents per node, output's last; operations): loose ends, state 0 to the
# output, and two that share no operation.
ARCHS = {
    'loose': (((0,), (0,), (1, 2), (0, 1)), (1, 0, 2)),
    'deep': (((0,), (1,), (0, 2), (2, 3)), (3, 1, 0)),
}


def arch_of(space, parents, ops_of, gates=None):
  """The CellArch of a wiring; gates 1 if None."""
  starts = [a for a, _ in space.node_edges]
  edges = [a + p for a, states in zip(starts, parents) for p in states]
  if gates is None:
    gates = np.ones(len(edges) + len(ops_of), np.float32)
  return archs.CellArch(
      np.asarray(edges, np.int32), np.ravel(np.int32(ops_of)), gates)


def everything(space):
  """All edges, as GDAS samples them."""
  return tuple(tuple(range(i + 1)) for i in range(space.num_nodes))


def images(batch=3, size=6, dtype=np.float32):
  return np.random.default_rng(0).normal(
      size=(batch, size, size, 3)).astype(dtype)


def shapes_of(module, *args):
  return jax.eval_shape(module.init, jax.random.key(0), *args)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def supernet(space, cells=3, channels=C):
  return nasbench1shot1.Supernet(space, cells, channels, CLASSES)


def weights_of(net, fill, dtype=np.float32):
  arch = arch_of(net.space, everything(net.space),
                 (0,) * net.space.num_sites)
  return fill(shapes_of(net, images(), {'normal': arch})['params'],
              dtype=dtype)


# ------------------------------------------------------- the plain supernet


def conv(x, kernel):
  kernel = kernel.reshape((1, 1) * (kernel.ndim == 2) + kernel.shape)
  return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def norm(x):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / jnp.sqrt(var + 1e-5)


def conv_norm_relu(x, kernel):
  return jax.nn.relu(norm(conv(x, kernel)))


def max_pool(x, window, stride, padding):
  return lax.reduce_window(
      x, -np.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1),
      ((0, 0), padding, padding, (0, 0)))


def apply_op(name, x, weights):
  """A node's operation; weights of this node, {} if it has none."""
  if name == 'max_pool_3x3':
    return max_pool(x, 3, 1, (1, 1))
  if name == 'skip_connect':
    return x
  return conv_norm_relu(x, weights['conv']['kernel'])


def plain_supernet(space, cells, parents, ops_of, params, gates, x):
  """Nodes one by one; every cell hands on all states, unread ones as zero."""
  stem = params['stem']
  x = norm(conv(x, stem['conv']['kernel']))
  x = jax.nn.relu(x * stem['norm']['scale'] + stem['norm']['bias'])
  edge_gates = iter(gates)
  b = {(node, p): next(edge_gates) for node, states in enumerate(parents)
       for p in states}
  node_gates = list(edge_gates)
  for i in range(cells):
    left = iter(node_gates)
    if i in (cells // 3, 2 * cells // 3):
      x = max_pool(x, 2, 2, (1, 1))
    edges = params[f'cell{i}']['edges']
    project = edges['input']['kernel']
    states = [None]
    for node, choice in enumerate(ops_of):
      total = 0.
      for p in parents[node]:
        state = states[p] if p else conv_norm_relu(x, project[node])
        total = total + b[node, p] * state
      y = 0.
      for number in np.atleast_1d(choice):  # All of them in a mixture.
        name = space.ops[number]
        mine = jax.tree.map(lambda w, n=node: w[n], edges.get(name, {}))
        y = y + next(left) * apply_op(name, total, mine)
      states.append(y)
    output, first = space.num_nodes - 1, len(ops_of)
    if space.layout == ('concatenated',):
      states[0] = conv_norm_relu(x, project[first])
      x = jnp.concatenate([
          b.get((output, p), 0.) * s for p, s in enumerate(states)], -1)
    else:
      # One convolution to the channels of all inner nodes.
      wide = jnp.concatenate(list(project[first:]), -1)
      x = b.get((output, 0), 0.) * conv_norm_relu(x, wide) + jnp.concatenate([
          b.get((output, p), 0.) * states[p] for p in range(1, output + 1)],
          -1)
  x = norm(conv(
      jax.nn.relu(x), params['postprocess']['Pointwise_0']['kernel']))
  head = params['head']
  return x.mean((1, 2)) @ head['kernel'] + head['bias']


@functools.cache
def compact(space, cells):
  net = supernet(space, cells)

  def run(params, gates, x, edges, ops_of):
    arch = {'normal': archs.CellArch(edges, ops_of, gates)}
    return net.apply({'params': params}, x, arch)

  return run


def pulled(function, g, *args):
  out, pull = jax.vjp(function, *args)
  return out, pull(g)


def assert_close(actual, expected, tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.fixture
def wide():
  """Runs the test in float64."""
  with jax.enable_x64(True):
    yield np.float64


def case(name, space=RICH):
  """(parents, operations, gates off 1 so that each factor shows)."""
  parents, ops_of = ARCHS.get(name) or (everything(space), (1, 2, 0))
  if name == 'mixture':
    ops_of = (tuple(range(len(space.ops))),) * space.num_sites
  count = sum(map(len, parents)) + np.size(ops_of)
  gates = np.random.default_rng(5).uniform(.4, 1.6, count)
  return parents, ops_of, gates


@pytest.mark.parametrize('name', [*ARCHS, 'all edges', 'mixture'])
@pytest.mark.parametrize('space', FORMS)
def test_supernet_equals_the_plain_one(space, name, fill, quick_jit, wide):
  """Logits, and gradients of weights, gates and images, at any gates."""
  parents, ops_of, gates = case(name)
  arch = arch_of(space, parents, ops_of, gates)
  params = weights_of(supernet(space), fill, wide)
  g = np.random.default_rng(3).normal(size=(3, CLASSES))
  x = images(dtype=wide)
  actual = quick_jit(lambda g, params, gates, x, edges, ops_of: pulled(
      lambda *args: compact(space, 3)(*args, edges, ops_of),
      g, params, gates, x))(g, params, gates, x, arch.edges, arch.ops)
  expected = quick_jit(functools.partial(pulled, functools.partial(
      plain_supernet, space, 3, parents, ops_of)))(g, params, gates, x)
  assert actual[0].dtype == wide
  assert_close(actual, expected, 1e-9)
  # Every gate is reached, but those of nodes that nobody reads.
  dead = {'loose': {1, 2, 3, 7, 8}}.get(name, set())
  found = set(np.flatnonzero(np.abs(actual[1][1]) < 1e-12))
  assert found == dead


@pytest.mark.parametrize('name', ['deep', 'all edges'])
def test_finite_differences_of_each_gate(name, fill, quick_jit, wide):
  """Also with only the gates differentiated, as in the step of alpha."""
  parents, ops_of, gates = case(name)
  arch = arch_of(RICH, parents, ops_of, gates)
  params = weights_of(supernet(RICH), fill, wide)
  g = np.random.default_rng(3).normal(size=(3, CLASSES))
  x, eps = images(dtype=wide), 1e-6

  def loss(gates):
    return (compact(RICH, 3)(params, gates, x, arch.edges, arch.ops) * g).sum()

  slope = quick_jit(jax.grad(loss))(gates)
  run = quick_jit(loss)
  for i in range(len(gates)):
    step = eps * np.eye(len(gates))[i]
    expected = (run(gates + step) - run(gates - step)) / (2 * eps)
    np.testing.assert_allclose(slope[i], expected, rtol=1e-5, atol=1e-8)


def test_unsampled_operations_get_no_gradient(fill, quick_jit):
  parents, ops_of, _ = case('deep')
  arch = arch_of(RICH, parents, ops_of)
  params = weights_of(supernet(RICH), fill)
  grads = quick_jit(jax.grad(lambda params: compact(RICH, 3)(
      params, arch.gates, images(), arch.edges, arch.ops)[:, 0].sum()))(params)
  for i in range(3):
    edges = grads[f'cell{i}']['edges']
    for op in ('conv_3x3', 'conv_1x1'):
      for node, choice in enumerate(ops_of):
        reached = np.any(edges[op]['conv']['kernel'][node])
        assert reached == (RICH.ops[choice] == op)


# -------------------------------------------------- many architectures, jit


def test_vmap_equals_the_loop_and_compiles_once(fill, quick_jit):
  """Values and gradients over K = 3 architectures of one trace."""
  parents = [ARCHS['loose'], ARCHS['deep'], (ARCHS['deep'][0], (0, 2, 1))]
  archs = [arch_of(RICH, *pair) for pair in parents]
  params = weights_of(supernet(RICH), fill)
  traces = []

  def run(params, arch):
    traces.append(0)
    return jax.value_and_grad(
        lambda params, gates: compact(RICH, 3)(
            params, gates, images(), arch.edges, arch.ops)[:, 0].sum(),
        (0, 1))(params, arch.gates)

  one = quick_jit(run)
  loop = [one(params, arch) for arch in archs]
  assert len(traces) == 1
  batched = quick_jit(jax.vmap(run, (None, 0)))(
      params, jax.tree.map(lambda *a: np.stack(a), *archs))
  assert_close(batched, jax.tree.map(lambda *a: np.stack(a), *loop), 1e-3)
  assert len({float(value) for value, _ in loop}) == 3


def test_the_switch_survives_vmap(fill):
  """Under vmap a switch over the operations keeps a scalar index."""
  archs = jax.tree.map(lambda *a: np.stack(a), *(
      arch_of(RICH, *pair) for pair in ARCHS.values()))
  params = weights_of(supernet(RICH), fill)
  jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(
      lambda gates, arch: compact(RICH, 3)(
          params, gates, images(), arch.edges, arch.ops).sum())))(
              archs.gates, archs)
  switches = [
      eqn for inner in subjaxprs(jaxpr.jaxpr) for eqn in inner.eqns
      if eqn.primitive.name == 'cond'
      and len(eqn.params['branches']) == len(RICH.ops)]
  assert switches
  assert all(eqn.invars[0].aval.shape == () for eqn in switches)


def test_memory_does_not_grow_with_the_operations():
  """Temporary memory of a cell with 1 or 4 candidates, at most 15% more."""

  def temporary(names):
    space = RICH.restrict(ops=names)
    cell = nasbench1shot1.SearchCell(space, 8)
    arch = arch_of(space, ARCHS['deep'][0], (0, 0, 0))
    x = np.ones((8, 16, 16, 8), np.float32)
    wire = search.wire(space, arch)
    params = shapes_of(cell, x, None, wire)['params']

    def loss(params, gates, x):
      wiring = search.wire(space, arch._replace(gates=gates))
      return cell.apply({'params': params}, x, None, wiring).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        params, arch.gates, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(RICH.ops[::-1]) <= 1.15 * temporary(('conv_3x3',))


# ------------------------------------- supernet at an architecture == network


def arch_of_genotype(space, genotype):
  parents = [tuple(sorted(p for _, p in node)) for node in genotype.normal]
  parents.append(tuple(sorted(genotype.normal_concat)))
  ops_of = [space.ops.index(node[0][0]) for node in genotype.normal]
  return arch_of(space, parents, ops_of)


@pytest.mark.parametrize('name, form, seed, reads_input', [
    ('nasbench1shot1_1', 'added', 0, True),
    ('nasbench1shot1_3_skip', 'added', 2, False),
    ('nasbench1shot1_3', 'concatenated', 0, True),
    pytest.param('nasbench1shot1_2', 'added', 1, True,
                 marks=pytest.mark.slow),
    pytest.param('nasbench1shot1_1_skip', 'added', 2, False,
                 marks=pytest.mark.slow),
    pytest.param('nasbench1shot1_3_skip', 'concatenated', 1, False,
                 marks=pytest.mark.slow)])
def test_supernet_equals_network(
    name, form, seed, reads_input, fill, quick_jit):
  space = spaces.get_space(name).restrict(layout=(form,))
  genotype = genotypes.random(space, np.random.default_rng(seed))
  assert (0 in genotype.normal_concat) == reads_input
  params = weights_of(supernet(space), fill)
  net = nasbench1shot1.Network(
      genotype, 3, C, CLASSES, output_input=form)
  shapes = shapes_of(net, images())
  variables = {
      'params': nasbench1shot1.extract(params, genotype, form),
      'batch_stats': jax.tree.map(
          lambda s: np.ones(s.shape, s.dtype), shapes['batch_stats'])}
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
  expected, _ = quick_jit(lambda v, x: net.apply(
      v, x, train=True, mutable=['batch_stats']))(variables, images())
  arch = families.arch_of(genotype, space)['normal']
  jax.tree.map(
      np.testing.assert_array_equal, arch, arch_of_genotype(space, genotype))
  actual = quick_jit(compact(space, 3))(
      params, arch.gates, images(), arch.edges, arch.ops)
  assert np.std(expected) > .01
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_supernet_runs_at_samples_first_cell(fill):
  """The compact form that `sampling` gives for shapes."""
  space = spaces.get_space('nasbench1shot1_2')
  net = supernet(space)
  params = weights_lib.init_supernet(net, 0, 6, 3)
  logits = jax.eval_shape(
      net.apply, {'params': params}, images(),
      {'normal': archs.first_cell(space)})
  assert logits.shape == (3, CLASSES)


# ----------------------------------------------------------- special cases


CHAIN = nasbench1shot1.make_genotype(
    ((0,), (1,), (2,), (3,)), ('conv_3x3', 'max_pool_3x3', 'conv_1x1'))


@pytest.mark.parametrize('widths', nasbench1shot1.WIDTHS)
def test_a_chain_is_sequential(widths, fill, quick_jit):
  """One parent each: 1x1, 3x3, pool, 1x1, cell after cell."""
  net = nasbench1shot1.Network(CHAIN, 3, C, CLASSES, widths=widths)
  shapes = shapes_of(net, images(size=8))
  params = fill(shapes['params'])
  stats = jax.tree.map(
      lambda s: np.ones(s.shape, s.dtype), shapes['batch_stats'])
  actual, _ = quick_jit(lambda v, x: net.apply(
      v, x, train=True, mutable=['batch_stats']))(
          {'params': params, 'batch_stats': stats}, images(size=8))

  def layer(x, module):
    y = norm(conv(x, module['conv']['kernel']))
    return jax.nn.relu(y * module['norm']['scale'] + module['norm']['bias'])

  def sequential(x):
    x = layer(x, params['stem'])
    for i in range(3):
      if i:
        x = max_pool(x, 2, 2, (1, 1) if widths == 'search' else (0, 0))
      cell = params[f'cell{i}']
      x = layer(layer(x, cell['node1_input']), cell['node1_conv_3x3'])
      x = layer(max_pool(x, 3, 1, (1, 1)), cell['node3_conv_1x1'])
    if widths == 'search':
      post = params['postprocess']
      batch_norm = post['BatchNorm_0']
      x = norm(conv(jax.nn.relu(x), post['Pointwise_0']['kernel']))
      x = x * batch_norm['scale'] + batch_norm['bias']
    return x.mean((1, 2)) @ params['head']['kernel'] + params['head']['bias']

  np.testing.assert_allclose(
      actual, quick_jit(sequential)(images(size=8)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('widths, form, concat, width', [
    ('search', 'added', (0, 1), 3 * C),  # All of three inner nodes.
    ('search', 'added', (1, 3), 2 * C),
    ('search', 'concatenated', (0, 1), 2 * C),
    ('nasbench101', 'added', (0, 1), C)])
def test_widths_of_the_maps(widths, form, concat, width):
  genotype = nasbench1shot1.make_genotype(
      ((0,), (0,), (0,), concat), 3 * ('conv_3x3',))
  net = nasbench1shot1.Network(
      genotype, 3, C, CLASSES, widths=widths, output_input=form)
  found = jax.eval_shape(lambda x: net.init(
      jax.random.key(0), x, capture_intermediates=True)['intermediates'],
      images(size=32))
  sides = [found[f'cell{i}']['__call__'][0].shape[1:] for i in range(3)]
  assert [side[0] for side in sides] == (
      [32, 17, 9] if widths == 'search' else [32, 16, 8])
  assert [side[2] for side in sides] == [width, 2 * width, 4 * width]


def test_loose_ends_are_not_built():
  """Node 2, which nobody reads, and its view of the input."""
  genotype = nasbench1shot1.make_genotype(
      ((0,), (0, 1), (1,), (1, 3)), ('conv_3x3', 'conv_3x3', 'skip_connect'))
  network = nasbench1shot1.Network(genotype, 3, C, CLASSES)
  cell = shapes_of(network, images())['params']['cell0']
  assert set(cell) == {'node1_input', 'node1_conv_3x3'}


def test_training_mode_and_drop_path(fill, quick_jit):
  net = nasbench1shot1.Network(CHAIN, 3, C, CLASSES)
  shapes = shapes_of(net, images())
  variables = {
      'params': fill(shapes['params']),
      'batch_stats': jax.tree_util.tree_map_with_path(
          lambda path, s: np.full(
              s.shape, float(path[-1].key == 'var'), s.dtype),
          shapes['batch_stats'])}
  run = quick_jit(lambda v, x, rate, key: net.apply(
      v, x, train=True, drop_path=rate, mutable=['batch_stats'],
      rngs={'drop_path': key}))
  keys = jax.random.split(jax.random.key(0), 2)
  plain, updated = run(variables, images(), 0., keys[0])
  same, _ = run(variables, images(), 0., keys[1])
  dropped, _ = run(variables, images(), .5, keys[1])
  np.testing.assert_array_equal(plain, same)
  assert np.abs(plain - dropped).max() > 1e-3
  # The stem's mean moves by a tenth of the batch's.
  new = updated['batch_stats']['stem']['norm']['mean']
  stem = conv(images(), variables['params']['stem']['conv']['kernel'])
  np.testing.assert_allclose(
      new, .1 * stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
  evaluate = quick_jit(net.apply)
  whole = evaluate(variables | updated, images())
  # Per example: a batch's company has no say.
  alone = evaluate(variables | updated, np.repeat(images()[:1], 3, 0))
  np.testing.assert_allclose(whole[0], alone[0], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------- init


def test_initial_weights(quick_jit):
  """Own init and `networks.initialise`: one tree, U(+-1/sqrt(fan_in))."""
  space = spaces.get_space('nasbench1shot1_1')
  net = supernet(space, channels=8)
  arch = {'normal': archs.first_cell(space)}
  shapes = shapes_of(net, images(), arch)['params']
  params = weights_lib.init_supernet(net, 0, 6, 3)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  cell = nasbench1shot1.SearchCell(space, 8)
  own = quick_jit(lambda key: cell.init(
      key, images(), None, search.wire(space, arch['normal'])))(
          jax.random.key(0))['params']
  # Cell 1 has 16 channels and reads four states of 8.
  for edges, width, c in (
      (params['cell1']['edges'], 32, 16), (own['edges'], 3, 8)):
    for name, fan_in, nodes in (
        ('input', width, 8), ('conv_3x3', 9 * c, 4), ('conv_1x1', c, 4)):
      w = np.asarray(jax.tree.leaves(edges[name])[0])
      assert len(w) == nodes and len({one.tobytes() for one in w}) == nodes
      assert np.abs(w).max() <= fan_in ** -.5
      # Variance 1/(3 fan_in), relative standard error sqrt(.8/size).
      assert abs(w.var() * 3 * fan_in - 1) < 5 * (.8 / w.size) ** .5


# ------------------------------------------------------------------- counts


SIZES = dict(cells=6, channels=5, num_classes=7)
COUNTED = spaces.Sizes(**SIZES, image_size=12)


def small(cells, channels):
  return spaces.Sizes(cells, channels, 10)


@pytest.mark.parametrize('widths, form', [
    ('search', 'added'), ('search', 'concatenated'),
    ('nasbench101', 'added')])
@pytest.mark.parametrize('name', NAMES)
def test_count_is_exact(name, widths, form):
  """Parameters of an initialised network, MACs by a walk over layers."""
  space = spaces.get_space(name).restrict(layout=(form,))
  for seed in range(3):
    genotype = genotypes.random(space, np.random.default_rng(seed))
    net = nasbench1shot1.Network(
        genotype, **SIZES, widths=widths, output_input=form)
    found = nasbench1shot1.count(space, genotype, COUNTED, widths=widths)
    shapes = shapes_of(net, images(size=12))['params']
    assert found.params == size(shapes)
    assert found.macs == walk_macs(shapes, widths, 12)
    assert [sum(c) for c in zip(*(cost for _, cost in found.parts))] == [
        found.params, found.macs]


def walk_macs(params, widths, side):
  """Sum over all kernels of their size times the pixels of their map."""
  sides = {'stem': side}
  for i in range(SIZES['cells']):
    if i in (2, 4):
      side = side // 2 + 1 if widths == 'search' else side // 2
    sides[f'cell{i}'] = side
  sides |= {'postprocess': side, 'head': 1}
  return sum(
      leaf.size * sides[path[0].key]**2
      for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
      if path[-1].key == 'kernel')


@pytest.mark.parametrize('number, added, concatenated', [
    (1, 1_090_650, 1_000_794), (2, 1_090_650, 1_000_794),
    (3, 1_496_154, 1_312_858)])
def test_published_supernets(number, added, concatenated):
  """The authors' code at commits 05b378b and 39e8f3f, BatchNorm not affine."""
  space = spaces.get_space(f'nasbench1shot1_{number}')
  sizes = spaces.Sizes(cells=9, channels=16, num_classes=10)
  first = space.restrict(layout=('concatenated',))
  assert nasbench1shot1.count_supernet(space, sizes).params == added
  assert nasbench1shot1.count_supernet(first, sizes).params == concatenated


@pytest.mark.parametrize('form', nasbench1shot1.OUTPUT_INPUTS)
@pytest.mark.parametrize('name', NAMES)
def test_count_of_the_supernet(name, form):
  space = spaces.get_space(name).restrict(layout=(form,))
  net = nasbench1shot1.Supernet(space, **SIZES)
  shapes = shapes_of(net, images(), {'normal': archs.first_cell(space)})
  assert set(shapes) == {'params'}  # Stateless.
  found = nasbench1shot1.count_supernet(space, COUNTED)
  assert found.params == size(shapes)
  assert found.macs == walk_macs(shapes['params'], 'search', 12)


INCEPTION = (
    [[0, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1],
     [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1],
     [0, 0, 0, 0, 0, 0, 0]],
    ['input', 'conv1x1-bn-relu', 'conv3x3-bn-relu', 'conv3x3-bn-relu',
     'conv3x3-bn-relu', 'maxpool3x3', 'output'])
FIRST = (
    [[0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1],
     [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1],
     [0, 0, 0, 0, 0, 0, 0]],
    ['input', 'conv3x3-bn-relu', 'maxpool3x3', 'conv3x3-bn-relu',
     'conv3x3-bn-relu', 'conv1x1-bn-relu', 'output'])


@pytest.mark.parametrize('cell, params', [
    (INCEPTION, 2_694_282), (FIRST, 8_555_530)])
def test_published_counts_of_nasbench101(cell, params):
  """`trainable_parameters` of NAS-Bench-101's example and first record."""
  space = spaces.get_space('nasbench1shot1_3')
  genotype = nasbench1shot1.from_nasbench101(*cell)
  found = nasbench1shot1.count(
      space, genotype, spaces.Sizes(9, 128, 10), widths='nasbench101')
  assert found.params == params


@pytest.mark.parametrize('parents, channels, expected', [
    (((0,), (0,), (1, 2)), 15, [8, 7]),
    (((0,), (0,), (0,), (1, 2, 3)), 8, [3, 3, 2]),
    (((0,), (1,), (1,), (2, 3)), 9, [5, 5, 4]),
    (((0,), (1,), (0, 2), (1, 3)), 15, [8, 7, 7])])
def test_channels_of_nasbench101(parents, channels, expected):
  """Figures of the tests of google-research/nasbench, `model_builder`."""
  names = ['conv_1x1'] * (len(parents) - 1)
  nodes = wiring.live_nodes(
      nasbench1shot1.make_genotype(parents, names), channels, 'nasbench101')
  assert [node.channels for node in nodes.values()] == expected


# ------------------------------------------------- the spaces, NAS-Bench-101


@pytest.mark.parametrize('name, wirings, architectures', [
    ('nasbench1shot1_1', 180, 14_580), ('nasbench1shot1_2', 360, 29_160),
    ('nasbench1shot1_3', 5400, 1_312_200)])
def test_sizes_of_the_spaces(name, wirings, architectures):
  space = spaces.get_space(name)
  found = list(nasbench1shot1.topologies(space))
  assert len(set(found)) == len(found) == wirings
  assert nasbench1shot1.num_architectures(space) == architectures
  assert {tuple(map(len, parents)) for parents in found} == {space.in_degree}
  for parents in found[::37]:
    assert all(p <= i for i, states in enumerate(parents) for p in states)


@pytest.mark.parametrize('number', [1, 2, 3])
def test_round_trip_through_nasbench101(number):
  """Every wiring, and the shape that the tables ask for."""
  space = spaces.get_space(f'nasbench1shot1_{number}')
  ops = itertools.cycle(space.ops)
  for parents in nasbench1shot1.topologies(space):
    names = list(itertools.islice(ops, len(parents) - 1))
    genotype = nasbench1shot1.make_genotype(parents, names)
    adjacency, labels = nasbench1shot1.to_nasbench101(genotype)
    assert adjacency.shape == (7, 7) and len(labels) == 7
    assert not np.tril(adjacency).any() and adjacency.sum() == 9
    if number < 3:
      assert not adjacency[5].any() and not adjacency[:, 5].any()
      assert labels[5] == 'conv1x1-bn-relu'
    assert nasbench1shot1.from_nasbench101(adjacency, labels) == genotype


def test_a_cell_of_space_1_by_hand():
  genotype = nasbench1shot1.make_genotype(
      ((0,), (0, 1), (0, 2), (1, 3), (0, 4)),
      ('max_pool_3x3', 'conv_3x3', 'conv_1x1', 'conv_3x3'))
  adjacency, labels = nasbench1shot1.to_nasbench101(genotype)
  assert adjacency.tolist() == [
      [0, 1, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0],
      [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0, 0, 0]]
  assert labels == [
      'input', 'maxpool3x3', 'conv3x3-bn-relu', 'conv1x1-bn-relu',
      'conv3x3-bn-relu', 'conv1x1-bn-relu', 'output']


# ------------------------------------------------------------------- errors


def chain(*names):
  parents = tuple((i,) for i in range(len(names) + 1))
  return nasbench1shot1.make_genotype(parents, names)


@pytest.mark.parametrize('call, message', [
    (lambda: nasbench1shot1.to_nasbench101(chain('skip_connect')),
     'skip_connect'),
    (lambda: nasbench1shot1.to_nasbench101(chain(*['conv_1x1'] * 6)),
     '6 nodes'),
    (lambda: nasbench1shot1.to_nasbench101(nasbench1shot1.make_genotype(
        everything(RICH), ['conv_1x1'] * 3)), '10 edges'),
    (lambda: nasbench1shot1.to_nasbench101(genotypes.Genotype(
        ((('conv_1x1', 0),), (('conv_1x1', 0), ('conv_3x3', 1))), (2,))),
     'one operation'),
    (lambda: nasbench1shot1.to_nasbench101(genotypes.Genotype(
        ((('conv_1x1', 0), ('conv_1x1', 0)),), (1,))), 'each state'),
    (lambda: nasbench1shot1.to_nasbench101(
        genotypes.PUBLISHED['DARTS_V1'].genotype), 'reduction'),
    (lambda: nasbench1shot1.from_nasbench101(
        np.zeros((2, 3)), ['input', 'output']), 'rows and columns'),
    (lambda: nasbench1shot1.from_nasbench101(np.ones((3, 3)), list('abc')),
     'diagonal'),
    (lambda: nasbench1shot1.from_nasbench101(
        np.triu(np.ones((3, 3)), 1), ['input', 'conv5x5', 'output']),
     'conv5x5'),
    (lambda: nasbench1shot1.from_nasbench101(
        [[0, 0, 1], [0, 0, 1], [0, 0, 0]],
        ['input', 'maxpool3x3', 'output']), 'reads nothing'),
    (lambda: nasbench1shot1.Network(
        CHAIN, 3, 4, 10, output_input='add'), "did you mean 'added'"),
    (lambda: nasbench1shot1.Network(
        CHAIN, 3, 4, 10, widths='nasbench'), "did you mean 'nasbench101'"),
    (lambda: nasbench1shot1.Network(
        genotypes.PUBLISHED['DARTS_V1'].genotype, 3, 4, 10), 'reduction'),
    (lambda: nasbench1shot1.check(
        RICH.restrict(layout=('joined',)), small(3, 4)), 'layout='),
    (lambda: nasbench1shot1.check(RICH, small(8, 4)), 'cells=8'),
    (lambda: nasbench1shot1.check(RICH, small(0, 4)), 'cells=0'),
    (lambda: nasbench1shot1.check(RICH, small(3, 0)), 'channels=0'),
    (lambda: nasbench1shot1.check(spaces.S0, small(3, 4)), 'sites=nodes'),
    (lambda: nasbench1shot1.count(
        RICH, CHAIN, small(3, 4), stem='imagenet'), 'imagenet'),
    (lambda: nasbench1shot1.count(
        RICH, CHAIN, small(3, 4), widths='nasbench'), 'nasbench101'),
    (lambda: nasbench1shot1.count(
        RICH, nasbench1shot1.make_genotype(
            ((0,), (0,), (1, 2)), ['conv_1x1'] * 2),
        small(3, 1), widths='nasbench101'), 'channels=1'),
    (lambda: nasbench1shot1.count(RICH, chain('sep_conv_3x3'), small(3, 4)),
     'sep_conv_3x3'),
    (lambda: nasbench1shot1.count_supernet(RICH, small(4, 4)), 'cells=4')])
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(errors.UserError, match=message):
    call()

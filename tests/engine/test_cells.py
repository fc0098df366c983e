"""The compact search cell against a plain one: values, gradients, memory.

The plain cell is what the compact program must equal: a Python loop over the
selected edges, an operation's own module on each, differentiated by JAX.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import subjaxprs

from rome_jax import spaces
from rome_jax.engine import archs, operations
from rome_jax.engine import cells as cells_lib

C = 2
NORM = operations.BatchStatistics
# Every kind of operation: free, one kernel, and several.
RICH = spaces.Space(
    'rich', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3', 'dil_conv_3x3'),
    num_nodes=2)
# The same for float64: JAX keeps constants of a space across precisions.
WIDE = dataclasses.replace(RICH, name='wide')
# Two architectures that share no operation on an edge, then GDAS's all edges.
ARCHS = {
    'first': ((0, 1, 2, 4), (1, 0, 2, 3)),
    'second': ((0, 1, 3, 4), (0, 3, 2, 1)),
    'all edges': ((0, 1, 2, 3, 4), (1, 2, 0, 3, 0)),
}
KINDS = {
    # (reduction, reduction_prev): every preprocessing and both strides.
    'normal': (False, True),
    'reduction': (True, False),
}


def make_cell(reduction, reduction_prev, space=RICH):
  return cells_lib.SearchCell(space, C, reduction, reduction_prev)


def states(reduction_prev, dtype=np.float32, size=6, batch=2):
  rng = np.random.default_rng(0)
  previous = 2 * size if reduction_prev else size
  return (rng.normal(size=(batch, previous, previous, 3)).astype(dtype),
          rng.normal(size=(batch, size, size, 4)).astype(dtype))


def shapes_of(cell, s0, s1, arch):
  return jax.eval_shape(
      cell.init, jax.random.key(0), s0, s1, arch=arch)['params']


def plain_cell(space, reduction, reduction_prev, find, edges, ops_of,
               weights, gates, s0, s1):
  """Nodes one by one, edges one by one; edges and ops_of are static."""
  first = (operations.FactorizedReduce if reduction_prev else
           operations.ReluConvNorm)
  inputs = [
      module.apply({'params': weights[name]}, s) for name, module, s in (
          ('preprocess0', first(C, NORM), s0),
          ('preprocess1', operations.ReluConvNorm(C, NORM), s1))]
  nodes = list(inputs)
  for node in range(space.num_nodes):
    total = 0.
    for gate, e, o in zip(gates, edges, ops_of):
      if space.edge_nodes[e] != node:
        continue
      pred, op = space.edge_preds[e], space.ops[o]
      module = operations.build(op, operations.Context(
          2 if reduction and pred < 2 else 1, NORM, True))
      params = find(weights, space, reduction, e, op)
      total = total + gate * module.apply({'params': params}, nodes[pred])
    nodes.append(total)
  return jnp.concatenate(nodes[2:], -1)


def pulled(function, weights, gates, s0, s1, g):
  """(output, cotangents of all four arguments)."""
  out, pull = jax.vjp(function, weights, gates, s0, s1)
  return out, pull(g)


@pytest.fixture(scope='module')
def compact(fill, quick_jit):
  """(kind -> jitted pullback of the compact cell, its inputs)."""

  @functools.cache
  def make(kind, space=RICH):
    cell = make_cell(*KINDS[kind], space)

    @quick_jit
    def run(weights, gates, s0, s1, g, edges, ops_of):
      def function(weights, gates, s0, s1):
        return cell.apply({'params': weights}, s0, s1,
                          arch=archs.CellArch(edges, ops_of, gates))
      return pulled(function, weights, gates, s0, s1, g)

    return run

  def inputs(kind, arch, dtype):
    reduction, reduction_prev = KINDS[kind]
    s0, s1 = states(reduction_prev, dtype)
    size = 3 if reduction else 6
    weights = fill(shapes_of(
        make_cell(reduction, reduction_prev), s0, s1, arch), dtype=dtype)
    g = np.random.default_rng(3).normal(size=(2, size, size, 2 * C))
    return weights, s0, s1, g.astype(dtype)

  return make, inputs


@pytest.mark.parametrize('kind, name', [
    ('normal', 'first'), ('reduction', 'first'), ('reduction', 'second'),
    ('reduction', 'all edges')])
def test_equals_the_plain_cell(
    kind, name, compact, cell_arch, edge_weights, quick_jit):
  """Values and all gradients, float64: the same sums, only the order."""
  make, inputs = compact
  with jax.enable_x64(True):
    edges, ops_of = ARCHS[name]
    arch = cell_arch(edges, ops_of, np.float64)
    weights, s0, s1, g = inputs(kind, arch, np.float64)
    # Gates off 1, so that each factor shows.
    gates = np.linspace(.5, 1.5, len(edges))
    run = make(kind, WIDE)
    actual = run(weights, gates, s0, s1, g, arch.edges, arch.ops)
    plain = functools.partial(
        plain_cell, WIDE, *KINDS[kind], edge_weights, edges, ops_of)
    expected = quick_jit(functools.partial(pulled, plain))(
        weights, gates, s0, s1, g)
  assert jax.tree.leaves(actual)[0].dtype == np.float64
  assert_close(actual, expected, 1e-9)
  assert_unselected_are_zero(actual[1][0], kind, edges, ops_of, edge_weights)


def assert_close(actual, expected, tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance), actual, expected)


def assert_unselected_are_zero(grads, kind, edges, ops_of, find):
  """Exactly 0 on operations that were not sampled, not 0 on those that were."""
  chosen = dict(zip(edges, ops_of))
  for e in range(RICH.num_edges):
    for o, op in enumerate(RICH.ops):
      for leaf in jax.tree.leaves(
          find(grads, RICH, KINDS[kind][0], e, op)):
        assert np.any(leaf) == (chosen.get(e) == o)


@pytest.mark.parametrize('kind', KINDS)
def test_finite_differences(kind, compact, cell_arch):
  """Along a random direction of each argument, float64."""
  make, inputs = compact
  run, eps = make(kind, WIDE), 1e-6
  with jax.enable_x64(True):
    arch = cell_arch(*ARCHS['first'], np.float64)
    weights, s0, s1, g = inputs(kind, arch, np.float64)
    args = weights, arch.gates, s0, s1
    _, grads = run(*args, g, arch.edges, arch.ops)

    def loss(args):
      return (run(*args, g, arch.edges, arch.ops)[0] * g).sum()

    for number in range(4):
      rng = np.random.default_rng(number)
      direction = jax.tree.map(
          lambda a, rng=rng: rng.normal(size=a.shape), args[number])
      ends = []
      for sign in (1, -1):
        moved = list(args)
        moved[number] = jax.tree.map(
            lambda a, d, sign=sign: a + sign * eps * d, args[number],
            direction)
        ends.append(loss(moved))
      slope = sum(jax.tree.leaves(jax.tree.map(
          lambda a, d: (a * d).sum(), grads[number], direction)))
      np.testing.assert_allclose(
          (ends[0] - ends[1]) / (2 * eps), slope, rtol=1e-5)


# ------------------------------------------------ many architectures at once


@pytest.mark.parametrize('kind', KINDS)
def test_vmap_equals_the_loop(kind, compact, cell_arch):
  pairs = [ARCHS['first'], ARCHS['second']]
  archs = jax.tree.map(lambda *a: np.stack(a), *(
      cell_arch(*pair) for pair in pairs))
  make, inputs = compact
  weights, s0, s1, g = inputs(kind, cell_arch(*pairs[0]), np.float32)
  run = make(kind)
  # With the compiler's usual options: `run` hurries.
  batched = jax.jit(jax.vmap(
      run.__wrapped__, (None, 0, None, None, None, 0, 0)))
  compiled = batched.lower(
      weights, archs.gates, s0, s1, g, archs.edges, archs.ops).compile()
  actual = compiled(
      weights, archs.gates, s0, s1, g, archs.edges, archs.ops)
  for k in range(2):
    expected = run(weights, archs.gates[k], s0, s1, g, archs.edges[k],
                   archs.ops[k])
    assert_close(jax.tree.map(lambda a, k=k: a[k], actual), expected, 1e-4)
  # A conditional survives the compiler in both directions; a `select` in its
  # place would run every operation for every sample.
  banks = 2 if kind == 'reduction' else 1
  assert banks * len(RICH.ops) in conditionals(compiled.as_text())


def conditionals(hlo):
  """Numbers of branches of the conditionals in a program's text."""
  found = set()
  for line in hlo.splitlines():
    if ' conditional(' in line and 'branch_computations={' in line:
      listed = line.split('branch_computations={')[1].split('}')[0]
      found.add(listed.count(',') + 1)
  return found


@pytest.mark.parametrize('kind', ['normal', 'reduction'])
def test_the_switch_survives_vmap(kind, compact, cell_arch):
  """One switch forward and one backward, each on a scalar index."""
  make, inputs = compact
  arch = cell_arch(*ARCHS['first'])
  weights, s0, s1, g = inputs(kind, arch, np.float32)
  edges, ops_of, gates = jax.tree.map(
      lambda a: np.stack([a, a, a]), arch)
  jaxpr = jax.make_jaxpr(
      jax.vmap(make(kind).__wrapped__, (None, 0, None, None, None, 0, 0)))(
          weights, gates, s0, s1, g, edges, ops_of)
  branches = len(RICH.ops) * (2 if kind == 'reduction' else 1)
  switches, selects = [], []
  for inner in subjaxprs(jaxpr.jaxpr):
    for eqn in inner.eqns:
      if eqn.primitive.name == 'cond':
        switches.append(eqn)
      if eqn.primitive.name == 'select_n':
        selects.append(len(eqn.invars) - 1)
  many = [e for e in switches if len(e.params['branches']) == branches]
  assert len(many) == 2
  assert all(e.invars[0].aval.shape == () for e in many)
  assert max(selects) == 2  # No choice among all operations.


def test_vmap_of_vmap_of_a_row(cell_arch, fill, quick_jit):
  """The rule is also right for two batch axes (a grid of architectures)."""
  first, second = (cell_arch(*ARCHS[n]) for n in ('first', 'second'))
  s0, s1 = states(True)
  row = Stage(RICH, 3)
  weights = fill(jax.eval_shape(
      row.init, jax.random.key(0), s0, s1, first)['params'])
  grid = jax.tree.map(lambda a, b: np.stack([[a, b], [b, a]]), first, second)

  def function(arch):

    def loss(weights, gates, s0, s1):
      return sum((x ** 3).sum() for x in row.apply(
          {'params': weights}, s0, s1, arch._replace(gates=gates)))

    return jax.value_and_grad(loss, (0, 1, 2, 3))(weights, arch.gates, s0, s1)

  actual = quick_jit(jax.vmap(jax.vmap(function)))(grid)
  single = quick_jit(function)
  for cell_of in ((0, 1), (1, 1)):
    expected = single(jax.tree.map(lambda a, c=cell_of: a[c], grid))
    assert_close(jax.tree.map(lambda a, c=cell_of: a[c], actual),
                 expected, 1e-4)


# -------------------------------------------------- what is not paid for


def test_memory_does_not_grow_with_the_operations(cell_arch):
  """Temporary memory of one path: 2 or 7 candidates, at most 15% more."""
  s0, s1 = states(False, size=16, batch=16)

  def temporary(names):
    space = spaces.Space('s', names, num_nodes=2)
    cell = cells_lib.SearchCell(space, 4, False, False)
    arch = cell_arch((0, 1, 2, 4), (1, 1, 0, 0))
    params = shapes_of(cell, s0, s1, arch)

    def loss(params, arch):
      return cell.apply({'params': params}, s0, s1, arch=arch).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, arch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  two = temporary(('skip_connect', 'sep_conv_5x5'))
  assert temporary(spaces.S0.ops) <= 1.15 * two


def test_only_wanted_gradients_are_computed(compact, cell_arch):
  """alpha's phase pays for no weight gradient, theta's for no gate's."""
  _, inputs = compact
  arch = cell_arch(*ARCHS['first'])
  weights, s0, s1, _ = inputs('normal', arch, np.float32)
  cell = make_cell(*KINDS['normal'])

  def loss(weights, gates):
    return cell.apply({'params': weights}, s0, s1,
                      arch=arch._replace(gates=gates)).sum()

  size = {}
  for name, argnums in (('theta', 0), ('alpha', 1), ('both', (0, 1))):
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(weights, arch.gates)
    size[name] = sum(len(inner.eqns) for inner in subjaxprs(jaxpr.jaxpr))
  assert size['alpha'] < size['theta'] < size['both']


# ------------------------------------------------------ equal cells in a row


class Stage(nn.Module):
  """Cells that feed each other, the first behind a reduction."""

  space: spaces.Space
  number: int

  @nn.compact
  def __call__(self, s0, s1, arch):
    return cells_lib.run_cells(
        [cells_lib.SearchCell(self.space, C, False, i == 0, name=f'cell{i}')
         for i in range(self.number)], s0, s1, arch=arch)


@pytest.mark.parametrize('number', [1, 2, 4])
def test_a_row_equals_plain_cells(
    number, cell_arch, edge_weights, fill, quick_jit):
  """The last outputs and all gradients, float64; cells differ in weights."""
  edges, ops_of = ARCHS['second']
  gates = np.linspace(.5, 1.5, len(edges))
  row, rng = Stage(WIDE, number), np.random.default_rng(0)

  def function(weights, gates, s0, s1):
    return row.apply({'params': weights}, s0, s1,
                     archs.CellArch(arch.edges, arch.ops, gates))

  def plain(weights, gates, *states):
    for i in range(number):
      states = *states, plain_cell(
          WIDE, False, i == 0, edge_weights, edges, ops_of,
          weights[f'cell{i}'], gates, *states[-2:])
    return states[-min(number, 2):]

  with jax.enable_x64(True):
    arch = cell_arch(edges, ops_of, np.float64)
    s0, s1 = states(True, np.float64)
    weights = fill(jax.eval_shape(
        row.init, jax.random.key(0), s0, s1, arch)['params'],
        dtype=np.float64)
    g = tuple(rng.normal(size=(min(number, 2), 2, 6, 6, 2 * C)))
    actual, expected = (
        quick_jit(functools.partial(pulled, f))(weights, gates, s0, s1, g)
        for f in (function, plain))
  assert_close(actual, expected, 1e-9)


# One input, taken as it is, and the last node as output.
CHAIN = dataclasses.replace(
    RICH, name='chain', num_inputs=1, in_degree=0, cell_types=('normal',))


@pytest.mark.parametrize('number', [1, 2, 4])
def test_a_row_of_cells_that_end_in_a_node_equals_plain_ones(
    number, cell_arch, edge_weights, fill, quick_jit):
  """Each cell's input is a row that it shares with the one before."""
  edges, ops_of, gates = (0, 1, 2), (1, 0, 3), np.array([.5, 1.5, 2.])

  class Cells(nn.Module):

    @nn.compact
    def __call__(self, x, arch):
      return cells_lib.run_cells(
          [cells_lib.SearchCell(CHAIN, C, pool_norm=False, name=f'cell{i}')
           for i in range(number)], x, arch=arch)[-1]

  def function(weights, gates, x):
    return Cells().apply({'params': weights}, x,
                         archs.CellArch(arch.edges, arch.ops, gates))

  def plain(weights, gates, x):
    for i in range(number):
      nodes = [x, 0., 0.]
      for gate, e, o in zip(gates, edges, ops_of):
        op = CHAIN.ops[o]
        module = operations.build(op, operations.Context(1, NORM, False))
        y = module.apply({'params': edge_weights(
            weights[f'cell{i}'], CHAIN, False, e, op)},
            nodes[CHAIN.edge_preds[e]])
        nodes[1 + CHAIN.edge_nodes[e]] += gate * y
      x = nodes[-1]
    return x

  with jax.enable_x64(True):
    arch = cell_arch(edges, ops_of, np.float64)
    x, g = np.random.default_rng(0).normal(size=(2, 2, 6, 6, C))
    weights = fill(jax.eval_shape(
        Cells().init, jax.random.key(0), x, arch)['params'], dtype=np.float64)

    def pulled_at(f):
      out, pull = jax.vjp(f, weights, gates, x)
      return out, pull(g)

    actual, expected = (
        quick_jit(functools.partial(pulled_at, f))()
        for f in (function, plain))
  assert_close(actual, expected, 1e-9)


def test_an_input_as_it_is_needs_one_input_and_a_last_node():
  with pytest.raises(ValueError, match='one input whose output is its last'):
    cells_lib.SearchCell(RICH, C).layout  # noqa: B018


def test_the_program_does_not_grow_with_the_row(cell_arch):
  """Four more cells add their weights, not their operations."""
  s0, s1 = states(True)
  arch = cell_arch(*ARCHS['second'])

  def lines(number):
    row = Stage(RICH, number)
    params = jax.eval_shape(
        row.init, jax.random.key(0), s0, s1, arch)['params']

    def loss(params):
      return row.apply({'params': params}, s0, s1, arch)[-1].sum()

    return jax.jit(jax.grad(loss)).lower(params).as_text().count('\n')

  assert lines(6) < 1.5 * lines(2)


# ------------------------------------------------------------ other spaces


@pytest.mark.parametrize('space', [
    spaces.Space('one node', ('sep_conv_3x3', 'skip_connect'), num_nodes=1),
    spaces.Space('free', ('skip_connect', 'max_pool_3x3'), num_nodes=2),
    spaces.Space('one operation', ('dil_conv_3x3',), num_nodes=2,
                 in_degree=1)], ids=lambda s: s.name)
@pytest.mark.parametrize('reduction', [False, True])
def test_corner_spaces(
    space, reduction, cell_arch, edge_weights, fill, quick_jit):
  edges = np.concatenate([
      np.arange(a, a + d) for (a, _), d in zip(
          space.node_edges, space.in_degrees)])
  ops_of = np.arange(len(edges)) % len(space.ops)
  arch = cell_arch(edges, ops_of)
  s0, s1 = states(False)
  cell = make_cell(reduction, False, space)
  weights = fill(shapes_of(cell, s0, s1, arch))
  actual = quick_jit(cell.apply)({'params': weights}, s0, s1, arch=arch)
  expected = quick_jit(functools.partial(
      plain_cell, space, reduction, False, edge_weights, tuple(edges),
      tuple(ops_of)))(weights, arch.gates, s0, s1)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------- init


def test_initial_weights():
  """Each operation's own U(+-1/sqrt(fan_in)), though drawn as one array."""
  s0, s1 = states(False)
  space = spaces.Space('s', ('sep_conv_5x5', 'dil_conv_3x3'), num_nodes=4)
  arch = archs.CellArch(jnp.zeros(8, int), jnp.zeros(8, int), jnp.ones(8))
  cell = cells_lib.SearchCell(space, 8, False, False)
  params = cell.init(jax.random.key(0), s0, s1, arch=arch)['params']
  for op, layer, fan_in in (
      ('sep_conv_5x5', 'Depthwise_1', 25), ('sep_conv_5x5', 'Pointwise_0', 8),
      ('dil_conv_3x3', 'Depthwise_0', 9)):
    w = np.asarray(params['edges'][op][layer]['kernel'])
    assert w.shape[0] == space.num_edges
    assert np.abs(w).max() <= fan_in ** -.5
    # Variance 1/(3 fan_in), relative standard error sqrt(.8/n).
    assert abs(w.var() * 3 * fan_in - 1) < 5 * (.8 / w.size) ** .5
    assert len(np.unique(w[:, 0])) == w[:, 0].size


# ------------------------------------------------------------ discrete cell


def discrete(nodes, concat=(2, 3), reduction=False):
  return cells_lib.DiscreteCell(nodes, concat, C, reduction, False, functools
                            .partial(nn.BatchNorm, use_running_average=False))


def test_discrete_cell_concatenates_what_it_is_told(fill):
  """Inputs may be read twice and left out; concat picks the states."""
  nodes = ((('skip_connect', 0), ('skip_connect', 0)),
           (('max_pool_3x3', 2),))
  s0, s1 = states(False)
  cell = discrete(nodes, concat=(3, 2, 0))
  variables = jax.eval_shape(cell.init, jax.random.key(0), s0, s1)
  weights = fill(variables['params'])
  out, _ = cell.apply({'params': weights, 'batch_stats': jax.tree.map(
      lambda v: jnp.ones(v.shape), variables['batch_stats'])}, s0, s1,
      mutable=['batch_stats'])
  three, two, zero = np.split(np.asarray(out), 3, -1)
  np.testing.assert_allclose(two, 2 * zero, rtol=1e-6)
  window = np.lib.stride_tricks.sliding_window_view(
      np.pad(two, ((0, 0), (1, 1), (1, 1), (0, 0)),
             constant_values=-np.inf), (3, 3), (1, 2))
  np.testing.assert_allclose(three, window.max((-1, -2)), rtol=1e-6)


def test_drop_path_spares_the_identity(fill):
  nodes = ((('skip_connect', 0), ('skip_connect', 1)),
           (('max_pool_3x3', 0), ('sep_conv_3x3', 2)))
  s0, s1 = states(False)
  calls = {}
  for reduction in (False, True):
    cell = discrete(nodes, reduction=reduction)
    dropped = []

    def drop(y, dropped=dropped):
      dropped.append(y.shape)
      return y

    jax.eval_shape(
        lambda cell=cell, drop=drop: cell.init(
            jax.random.key(0), s0, s1, drop_path=drop))
    calls[reduction] = len(dropped)
  # A strided skip is a FactorizedReduce and may be dropped.
  assert calls == {False: 2, True: 4}

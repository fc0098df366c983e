"""All operations of all edges at once, against networks written out plainly.

The plain networks use XLA's own operations and a Python loop over edges and
candidates; JAX differentiates them. They share no code with the engine.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rome_jax import families, spaces
from rome_jax.engine import archs, operations
from rome_jax.engine import cells as cells_lib

C, CLASSES, SIZE = 4, 3, 7  # An odd size, so that strides have to round.
TINY = spaces.Space('mixture_s2', spaces.S2.ops, num_nodes=2)
# Like S1: operations of their own on every edge, here not equally many.
RAGGED = spaces.Space('mixture_s1', spaces.S1.ops, num_nodes=2, edge_ops=(
    (('skip_connect', 'dil_conv_3x3'), ('sep_conv_3x3',),
     ('max_pool_3x3', 'skip_connect', 'avg_pool_3x3'),
     ('skip_connect', 'sep_conv_3x3'), ('dil_conv_5x5',)),
    (('max_pool_3x3', 'avg_pool_3x3'), ('max_pool_3x3', 'dil_conv_3x3'),
     ('skip_connect',), ('max_pool_3x3', 'sep_conv_3x3', 'skip_connect'),
     ('avg_pool_3x3',))))
NB201 = spaces.NASBENCH201.restrict(name='mixture_201')
SPACES = {space.name: space for space in (TINY, RAGGED, NB201)}


# ------------------------------------------------------- plain operations


def conv(x, w, stride=1, dilation=1, groups=1):
  return lax.conv_general_dilated(
      x, w, (stride, stride), [(dilation * (k // 2),) * 2 for k in w.shape[:2]],
      rhs_dilation=(dilation, dilation), feature_group_count=groups,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def norm(x):
  x = x - x.mean((0, 1, 2))
  return x / jnp.sqrt((x * x).mean((0, 1, 2)) + 1e-5)


def affine(x, p):
  return norm(x) * p['scale'] + p['bias']


def relu(x):
  return jnp.maximum(x, 0)


def window(x, start, function, size, stride, pads):
  return lax.reduce_window(
      x, start, function, (1, size, size, 1), (1, stride, stride, 1),
      ((0, 0), *pads, (0, 0)))


def depthwise(x, w, stride, dilation=1):
  return conv(x, w[:, :, None], stride, dilation, x.shape[-1])


def pointwise(x, w, stride=1):
  return conv(x, w[None, None], stride)


def separable(x, p, stride):
  for i, s in enumerate((stride, 1)):
    x = depthwise(relu(x), p[f'Depthwise_{i}']['kernel'], s)
    x = norm(pointwise(x, p[f'Pointwise_{i}']['kernel']))
  return x


def dilated(x, p, stride):
  x = depthwise(relu(x), p['Depthwise_0']['kernel'], stride, 2)
  return norm(pointwise(x, p['Pointwise_0']['kernel']))


def skip(x, p, stride):
  return x if stride == 1 else reduced(x, p['FactorizedReduce_0'])


def reduced(x, p):
  x = relu(x)
  shifted = jnp.pad(
      x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
  return norm(jnp.concatenate([
      pointwise(x, p['even']['kernel'], 2),
      pointwise(shifted, p['odd']['kernel'], 2)], -1))


def max_pool(x, p, stride):
  return window(x, -np.inf, lax.max, 3, stride, ((1, 1),) * 2)


def avg_pool(x, p, stride):
  total, count = (
      window(a, 0., lax.add, 3, stride, ((1, 1),) * 2)
      for a in (x, jnp.ones_like(x)))
  return total / count


def full(x, p, stride):
  return norm(conv(relu(x), p['conv']['kernel'], stride) + p['conv']['bias'])


PLAIN = {
    'none': lambda x, p, stride: 0 * x, 'skip_connect': skip,
    'sep_conv_3x3': separable, 'dil_conv_3x3': dilated,
    'dil_conv_5x5': dilated, 'nor_conv_1x1': full, 'nor_conv_3x3': full,
    'max_pool_3x3': max_pool, 'avg_pool_3x3': avg_pool}


def operation(name, x, p, stride, pool_norm):
  y = PLAIN[name](x, p, stride)
  return norm(y) if pool_norm and 'pool' in name else y


# ------------------------------------------------- a mixture, edge by edge


def channel_shuffle(x, groups):
  """PC-DARTS, `model_search.py`, in NHWC."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, groups, c // groups)
  return jnp.transpose(x, (0, 1, 2, 4, 3)).reshape(b, h, w, c)


def mixed_op(x, gates, ops, params, stride, k, pool_norm):
  """PC-DARTS' MixedOp.forward; with k = 1 that of DARTS."""
  dim = x.shape[-1]
  xtemp, xtemp2 = x[..., :dim // k], x[..., dim // k:]
  temp1 = sum(gate * operation(name, xtemp, p, stride, pool_norm)
              for gate, name, p in zip(gates, ops, params))
  if k == 1:
    return temp1
  if stride == 2:  # nn.MaxPool2d(2, 2), but no pixel of an odd size is lost.
    pads = [(0, n % 2) for n in x.shape[1:3]]
    xtemp2 = window(xtemp2, -np.inf, lax.max, 2, 2, pads)
  return channel_shuffle(jnp.concatenate([temp1, xtemp2], -1), k)


def mixed_nodes(space, cell_type, find, weights, gates, edge_gates, states, *,
                k, pool_norm):
  """Inputs and nodes of a cell; gates [S,C] over each edge's operations."""
  edge, reduction = 0, cell_type == 'reduce'
  for node in range(space.num_nodes):
    total = 0.
    for pred in range(space.num_inputs + node):
      ops = space.site_ops(cell_type)[edge]
      params = [find(weights, space, reduction, edge, op) for op in ops]
      stride = 2 if reduction and pred < 2 else 1
      total += edge_gates[edge] * mixed_op(
          states[pred], gates[edge], ops, params, stride, k, pool_norm)
      edge += 1
    states = *states, total
  return states


def plain_darts(space, k, find, images, theta, gates, edge_gates):
  """Three cells, the second and third of which are reductions."""
  s0 = s1 = affine(conv(images, theta['stem_conv']['kernel']),
                   theta['stem_norm'])
  reduced_before = False
  for i, cell_type in enumerate(('normal', 'reduce', 'reduce')):
    cell = theta[f'cell{i}']
    a, b = cell['preprocess0'], cell['preprocess1']
    inputs = (
        reduced(s0, a) if reduced_before else
        norm(pointwise(relu(s0), a['Pointwise_0']['kernel'])),
        norm(pointwise(relu(s1), b['Pointwise_0']['kernel'])))
    nodes = mixed_nodes(
        space, cell_type, find, cell, gates[cell_type], edge_gates[cell_type],
        inputs, k=k, pool_norm=True)[2:]
    s0, s1 = s1, jnp.concatenate(nodes, -1)
    reduced_before = cell_type == 'reduce'
  return s1.mean((1, 2)) @ theta['head']['kernel'] + theta['head']['bias']


def plain_nasbench201(space, k, find, images, theta, gates, edge_gates):
  """Three stages of one cell each."""
  x = affine(conv(images, theta['stem_conv']['kernel']), theta['stem_norm'])
  for stage in range(3):
    if stage:
      p = theta[f'reduce{stage}']
      y = affine(conv(relu(x), p['conv_a']['kernel'], 2), p['norm_a'])
      y = affine(conv(relu(y), p['conv_b']['kernel']), p['norm_b'])
      even = x.shape[1] // 2 * 2
      assert even == x.shape[1]
      means = window(x, 0., lax.add, 2, 2, ((0, 0),) * 2) / 4
      x = y + conv(means, p['shortcut']['kernel'])
    x = mixed_nodes(
        space, 'normal', find, theta[f'cell{stage}_0'], gates['normal'],
        edge_gates['normal'], (x,), k=k, pool_norm=False)[-1]
  x = relu(affine(x, theta['head_norm']))
  return x.mean((1, 2)) @ theta['head']['kernel'] + theta['head']['bias']


# ------------------------------------------------------------------- tests


def problem(space, fill, k=1):
  """(the supernet, weights, images, random gates [S,C] per cell type)."""
  family = families.get(space)
  options = {'partial': k} if k > 1 else {}
  net = family.supernet(space, spaces.Sizes(3, C, CLASSES), 'cifar', **options)
  size = 8 if space.family == 'nasbench201' else SIZE
  rng = np.random.default_rng(5)
  images = rng.normal(size=(2, size, size, 3))
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  theta = fill(jax.eval_shape(
      net.init, jax.random.key(0), images, arch)['params'], dtype=np.float64)
  gates = {t: rng.uniform(.2, 1.5, space.choices(t).shape)
           for t in space.cell_types}
  return net, theta, images, gates


def pulled(network, *args):
  """(logits, gradients of a random sum of them in every argument)."""
  logits = network(*args)
  g = np.random.default_rng(9).normal(size=logits.shape)
  return logits, jax.grad(
      lambda *args: (network(*args) * g).sum(), tuple(range(len(args))))(*args)


def assert_close(actual, expected, tolerance=1e-9):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize('name, k', [
    ('mixture_s2', 1), ('mixture_s1', 1), ('mixture_201', 1),
    ('mixture_s2', 2), ('mixture_s1', 4), ('mixture_201', 2)])
def test_equals_the_plain_mixture(name, k, fill, edge_weights, quick_jit):
  """Logits and all gradients, float64; with k > 1 PC-DARTS' mixture.

  The gates of an edge are then a softmax times the edge's own factor, for
  which alone the per-operation bypass equals that of the edge.
  """
  space = SPACES[name]
  with jax.enable_x64(True):
    net, theta, images, gates = problem(space, fill, k)
    betas = {t: np.linspace(.5, 1.5, space.num_edges) for t in gates}
    found = {t: space.choices(t) >= 0 for t in gates}

    def normalised(gates):
      if k == 1:
        return gates
      return {t: jax.nn.softmax(jnp.where(found[t], g, -jnp.inf))
              for t, g in gates.items()}

    def engine(theta, gates, betas):
      gates = normalised(gates)
      return net.apply({'params': theta}, images, {
          t: archs.all_slots(space, betas[t][:, None] * gates[t], t)
          for t in gates})

    def plain(theta, gates, betas):
      network = (plain_nasbench201 if space.family == 'nasbench201' else
                 plain_darts)
      return network(space, k, edge_weights, images, theta,
                     normalised(gates), betas)

    actual, expected = (
        quick_jit(functools.partial(pulled, f))(theta, gates, betas)
        for f in (engine, plain))
  assert actual[0].dtype == np.float64
  assert_close(actual, expected)
  for leaf in jax.tree.leaves(actual[1][0]):
    assert np.any(leaf)


@pytest.mark.parametrize('name', SPACES)
def test_a_one_hot_mixture_is_the_single_path(name, fill, quick_jit):
  """Gates of 1 on a path and 0 elsewhere: its logits and weight gradients."""
  space = SPACES[name]
  rng = np.random.default_rng(2)
  with jax.enable_x64(True):
    net, theta, images, gates = problem(space, fill)
    mixture, path = {}, {}
    for t in space.cell_types:
      edge_mask = np.concatenate([
          np.arange(b - a) >= b - a - d
          for (a, b), d in zip(space.node_edges, space.in_degrees)]) * 1.
      lengths = (space.choices(t) >= 0).sum(1)
      op_mask = np.eye(space.num_choices)[rng.integers(lengths)]
      mixture[t] = archs.all_slots(space, edge_mask[:, None] * op_mask, t)
      path[t] = archs.compact(
          space, edge_mask, op_mask, space.in_degrees, space.choices(t))

    def run(arch):
      return quick_jit(functools.partial(pulled, lambda theta: net.apply(
          {'params': theta}, images, arch)))(theta)

    assert_close(run(mixture), run(path))


def test_slots_of_a_ragged_space():
  """Only operations that an edge has, in the order of edges."""
  gates = np.arange(15.).reshape(5, 3)
  arch = archs.all_slots(RAGGED, gates, 'normal')
  np.testing.assert_array_equal(arch.edges, [0, 0, 1, 2, 2, 2, 3, 3, 4])
  np.testing.assert_array_equal(arch.gates, [0, 1, 3, 6, 7, 8, 9, 10, 12])
  names = [RAGGED.ops[o] for o in arch.ops]
  assert names == [op for edge in RAGGED.edge_ops[0] for op in edge]
  assert arch.edges.dtype == arch.ops.dtype == np.int32


def test_edge_gates_are_for_operations_on_nodes():
  nodes, edges = spaces.SPACES['nasbench1shot1_1'], spaces.S2
  ones = np.ones(edges.choices('normal').shape)
  with pytest.raises(ValueError, match="sites='nodes'"):
    archs.all_slots(nodes, np.ones(nodes.choices('normal').shape))
  with pytest.raises(ValueError, match="sites='edges'"):
    archs.all_slots(edges, ones, 'normal', np.ones(14))


# -------------------------------------------------------- partial channels


def sep_conv(stride, k):
  return operations.partial(operations.build(
      'sep_conv_3x3', operations.Context(stride, operations.BatchStatistics)),
      k)


@pytest.mark.parametrize('size', [6, 7])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [2, 4])
def test_partial_is_the_mixed_operation_of_pc_darts(k, stride, size, fill):
  x = np.random.default_rng(0).normal(size=(2, size, size, 8)).astype(
      np.float32)
  module = sep_conv(stride, k)
  params = fill(jax.eval_shape(module.init, jax.random.key(0), x)['params'])
  actual = module.apply({'params': params}, x)
  expected = mixed_op(
      x, [1.], ['sep_conv_3x3'], [params], stride, k, True)
  assert actual.shape == (2, -(-size // stride), -(-size // stride), 8)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_partial_of_1_is_the_operation_itself():
  module = sep_conv(1, 1)
  assert operations.partial(module, 1) is module


def test_partial_channels_have_the_names_of_all_channels():
  """So that a rule by name, such as that of initial weights, holds for both."""
  x = jnp.zeros((1, 4, 4, 8))
  trees = [jax.eval_shape(sep_conv(1, k).init, jax.random.key(0), x)
           for k in (1, 4)]
  assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


@pytest.mark.parametrize('k', [0, 3, 8])
def test_partial_must_divide_the_channels(k):
  cell = cells_lib.SearchCell(TINY, C, False, False, partial=k)
  with pytest.raises(ValueError, match=f'partial={k} must divide the 4'):
    cell.layout  # noqa: B018

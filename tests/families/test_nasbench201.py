"""NAS-Bench-201's networks: published sizes, a transcription, one law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rome_jax import errors, families, spaces
from rome_jax.engine import archs
from rome_jax.families import nasbench201
from rome_jax.spaces import genotypes, nasbench201_forms

SPACE = spaces.NASBENCH201
SIZES = spaces.Sizes(15, 16, 10)


def cell(*ops):
  """The genotype of six operations, edges 1<-0, 2<-0, 2<-1, 3<-0, ..."""
  names = iter(ops)
  nodes = tuple(tuple((next(names), p) for p in range(i + 1))
                for i in range(3))
  return genotypes.Genotype(nodes, (3,))


NONE = 'none'
THREE, ONE = 'nor_conv_3x3', 'nor_conv_1x1'
SKIP, POOL = 'skip_connect', 'avg_pool_3x3'


@pytest.mark.parametrize('ops, params, macs', [
    (6 * (THREE,), 1_531_546, 220.12), (6 * (ONE,), 241_306, 31.38),
    (6 * (SKIP,), 73_306, 7.78),
    ((THREE, NONE, THREE, POOL, THREE, THREE), 1_045_466, 149.34)])
def test_published_sizes(ops, params, macs):
  """The sizes of the benchmark's own records, 15 cells of 16 channels."""
  count = nasbench201.count(SPACE, cell(*ops), SIZES)
  assert count.params == params
  assert round(count.macs / 1e6, 2) == macs
  assert count.params == sum(cost.params for _, cost in count.parts)


def shapes_of(module, *args):
  return jax.eval_shape(module.init, jax.random.key(0), *args)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(batch=4, side=8):
  return np.random.default_rng(0).normal(
      size=(batch, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize('ops', [
    6 * (THREE,), (ONE, NONE, SKIP, POOL, THREE, ONE)])
def test_count_is_the_size_of_the_network(ops):
  net = nasbench201.Network(cell(*ops), 6, 4, 7)
  shapes = shapes_of(net, images())
  assert size(shapes['params']) == nasbench201.count(
      SPACE, cell(*ops), spaces.Sizes(6, 4, 7)).params


def test_count_is_the_size_of_the_supernet():
  net = nasbench201.Supernet(SPACE, 6, 4, 7)
  arch = {'normal': archs.first_cell(SPACE)}
  assert size(shapes_of(net, images(), arch)) == nasbench201.count_supernet(
      SPACE, spaces.Sizes(6, 4, 7)).params


# ------------------------------------------- the network, written out plainly


def norm(x):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / jnp.sqrt(var + 1e-5)


def conv(x, p, stride=1):
  k = p['kernel'].shape[0] // 2
  y = lax.conv_general_dilated(
      x, p['kernel'], (stride, stride), ((k, k), (k, k)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return y + p.get('bias', 0.)


def relu(x):
  return jnp.maximum(x, 0)


def pool(x, k, stride, pad):
  one = jnp.ones_like(x[:, :, :, :1])
  dims, strides = (1, k, k, 1), (1, stride, stride, 1)
  padding = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  add = functools.partial(
      lax.reduce_window, init_value=0., computation=lax.add,
      window_dimensions=dims, window_strides=strides, padding=padding)
  return add(x) / add(one)


def operation(op, p, x):
  if op == NONE:
    return 0 * x
  if op == SKIP:
    return x
  if op == POOL:
    return pool(x, 3, 1, 1)
  return norm(conv(relu(x), p['conv']))


def affine(p, x):
  return norm(x) * p['scale'] + p['bias']


def block(p, x):
  y = affine(p['norm_a'], conv(relu(x), p['conv_a'], 2))
  y = affine(p['norm_b'], conv(relu(y), p['conv_b']))
  return y + conv(pool(x, 2, 2, 0), p['shortcut'])


def plain(params, x, ops, find, cells=3, gates=(1.,) * 6):
  """Three stages; `find` gives the weights of (cell, edge, operation)."""
  x = affine(params['stem_norm'], conv(x, params['stem_conv']))
  for stage in range(3):
    if stage:
      x = block(params[f'reduce{stage}'], x)
    for i in range(cells // 3):
      states, edge = [x], 0
      for node in range(3):
        total = 0.
        for pred in range(node + 1):
          p = find(params[f'cell{stage}_{i}'], edge, ops[edge])
          total = total + gates[edge] * operation(ops[edge], p, states[pred])
          edge += 1
        states.append(total)
      x = states[-1]
  x = relu(affine(params['head_norm'], x)).mean((1, 2))
  return x @ params['head']['kernel'] + params['head']['bias']


CELLS_TO_TRY = [(THREE, POOL, ONE, SKIP, THREE, NONE),
                (SKIP, THREE, SKIP, ONE, POOL, THREE)]


def find_stacked(cell, edge, op):
  return jax.tree.map(lambda w: w[edge], cell['edges'].get(op, {}))


@pytest.fixture(scope='module')
def supernet(fill, quick_jit):
  net = nasbench201.Supernet(SPACE, 3, 4, 5)
  arch = {'normal': archs.first_cell(SPACE)}
  params = fill(shapes_of(net, images(), arch)['params'])
  run = quick_jit(jax.value_and_grad(
      lambda params, gates, x, edges, ops: (net.apply(
          {'params': params}, x,
          {'normal': archs.CellArch(edges, ops, gates)})**2).sum(),
      (0, 1, 2)))
  return params, run


@pytest.mark.parametrize('ops', CELLS_TO_TRY)
def test_supernet_and_its_gradients(ops, supernet, quick_jit):
  """The engine's rule against plain reverse mode through plain code."""
  params, run = supernet
  numbers = np.array([SPACE.ops.index(op) for op in ops], np.int32)
  arch = families.arch_of(cell(*ops), SPACE)['normal']
  np.testing.assert_array_equal(arch.ops, numbers)
  value, grads = run(params, arch.gates, images(), arch.edges, arch.ops)

  def gated(params, gates, x):
    return (plain(params, x, ops, find_stacked, gates=gates)**2).sum()

  expected, slopes = quick_jit(jax.value_and_grad(gated, (0, 1, 2)))(
      params, np.ones(6, np.float32), images())
  assert float(value) == pytest.approx(float(expected), rel=1e-3)
  largest = max(float(np.abs(a).max()) for a in jax.tree.leaves(slopes))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=2e-2, atol=2e-4 * largest), grads, slopes)


@pytest.mark.parametrize('ops', CELLS_TO_TRY)
def test_network(ops, fill, quick_jit):
  """In training, against the same plain code with the norms' affine at 1, 0."""
  net = nasbench201.Network(cell(*ops), 3, 4, 5)
  shapes = shapes_of(net, images())
  params = jax.tree_util.tree_map_with_path(
      lambda path, w: np.ones_like(w) if path[-1].key == 'scale' else (
          0 * w if path[-2].key != 'head' and path[-1].key == 'bias' else w),
      fill(shapes['params']))
  stats = jax.tree.map(lambda s: np.ones(s.shape, s.dtype),
                       shapes['batch_stats'])
  logits, _ = quick_jit(lambda v, x: net.apply(
      v, x, train=True, mutable=['batch_stats']))(
          {'params': params, 'batch_stats': stats}, images())
  node_of = [(n, p) for n in range(3) for p in range(n + 1)]

  def find(weights, edge, op):
    node, pred = node_of[edge]
    return weights.get(f'node{node}_{pred}_{op}', {})

  expected = quick_jit(lambda p, x: plain(p, x, ops, find))(params, images())
  assert np.std(expected) > .01
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_edges_left_out_are_written_as_none():
  """In-degree 2: the third node loses one edge, all six are written."""
  space = spaces.get_space('nasbench201', in_degree=2, drop_none=True)
  genotype = genotypes.make(space, {
      'normal': ([0, 1, 2, 4, 5], 6 * [THREE])})
  assert genotype == cell(THREE, THREE, THREE, NONE, THREE, THREE)
  # The supernet of that space does not have the edge.
  arch = families.arch_of(genotype, space)['normal']
  assert arch.edges.tolist() == [0, 1, 2, 4, 5]
  with pytest.raises(errors.UserError, match='node 3 has 3 edges, but in'):
    families.arch_of(cell(*6 * (THREE,)), space)
  assert nasbench201_forms.to_string(genotype) == (
      '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+'
      '|none~0|nor_conv_3x3~1|nor_conv_3x3~2|')


def test_bad_sizes():
  with pytest.raises(errors.UserError, match='cells=4 must be a multiple'):
    nasbench201.count(SPACE, cell(*6 * (ONE,)), spaces.Sizes(4, 4, 10))
  with pytest.raises(errors.UserError, match='config.search.cells=4 must'):
    families.check(SPACE, 'config.search', spaces.Sizes(4, 4, 10), 'cifar')
  with pytest.raises(errors.UserError, match='has no auxiliary|have no aux'):
    families.check(SPACE, 'config.retrain', spaces.Sizes(3, 4, 10), 'cifar',
                   auxiliary=True)
  with pytest.raises(errors.UserError, match="stem='imagenet' must be cifar"):
    families.check(
        SPACE, 'config.search', spaces.Sizes(3, 4, 10), 'imagenet')
  with pytest.raises(errors.UserError, match='has the cells normal, reduce'):
    families.check_genotype(
        SPACE, genotypes.PUBLISHED['DARTS_V1'].genotype, 'here')
  with pytest.raises(errors.UserError, match='has the cells normal, but'):
    families.check_genotype(spaces.S0, cell(*6 * (ONE,)), 'here')

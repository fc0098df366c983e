"""Parts of a supernet's weights: the networks they make compute the same."""

import jax
import numpy as np
import pytest

from rome_jax import families, spaces
from rome_jax.engine import archs, weights
from rome_jax.families import darts, nasbench201
from rome_jax.spaces import genotypes

C, CLASSES = 4, 3
WIDE = spaces.Space(
    'wide', ('max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3'),
    num_nodes=2)
FEW = WIDE.restrict(name='few', ops=('dil_conv_3x3', 'skip_connect'))
# Edge by edge: some of an edge's own operations, in another order.
RAGGED = WIDE.restrict(name='ragged', edge_ops=(
    (('sep_conv_3x3', 'skip_connect'), ('skip_connect',), ('dil_conv_3x3',),
     ('max_pool_3x3', 'sep_conv_3x3'), ('skip_connect', 'dil_conv_3x3')),
    (('max_pool_3x3',), ('dil_conv_3x3', 'skip_connect'), ('skip_connect',),
     ('sep_conv_3x3',), ('dil_conv_3x3', 'sep_conv_3x3'))))
NB201 = spaces.NASBENCH201
NB201_FEW = NB201.restrict(
    name='201 few', ops=('nor_conv_3x3', 'skip_connect'))


def supernet(space):
  return families.get(space).supernet(
      space, spaces.Sizes(3, C, CLASSES), 'cifar')


def images():
  return np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def path(space, names):
  """{cell type: the first edges, with operations of these names}."""
  cells = {}
  for t in space.cell_types:
    edges = archs.first_cell(space, t).edges
    ops = np.array([space.ops.index(names[t][e]) for e in edges], np.int32)
    cells[t] = archs.CellArch(edges, ops, np.ones(len(edges), np.float32))
  return cells


@pytest.mark.parametrize('space, sub', [
    (WIDE, FEW), (WIDE, RAGGED), (RAGGED, RAGGED), (NB201, NB201_FEW)],
    ids=lambda space: space.name)
def test_a_sub_space_computes_what_the_space_does(space, sub, fill, quick_jit):
  wide, narrow = supernet(space), supernet(sub)
  names = {t: [ops[-1] for ops in sub.site_ops(t)] for t in sub.cell_types}
  archs_of = [path(s, names) for s in (space, sub)]
  theta = fill(weights.init_supernet(wide, 0, 8, 3))
  taken = weights.take(theta, space, sub)
  shapes = jax.eval_shape(
      narrow.init, jax.random.key(0), images(), archs_of[1])['params']
  assert jax.tree.map(lambda a: a.shape, taken) == jax.tree.map(
      lambda a: a.shape, shapes)
  np.testing.assert_allclose(
      quick_jit(narrow.apply)({'params': taken}, images(), archs_of[1]),
      quick_jit(wide.apply)({'params': theta}, images(), archs_of[0]),
      rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('space, sub, message', [
    (FEW, WIDE, 'edge 0 of wide has operations'),
    (WIDE, WIDE.restrict(num_nodes=3), 'has not the edges'),
    (RAGGED, WIDE, 'edge 0 of wide has operations')])
def test_take_refuses(space, sub, message):
  with pytest.raises(ValueError, match=message):
    weights.take({}, space, sub)


def test_take_sees_weights_of_another_space():
  theta = weights.init_supernet(supernet(WIDE), 0, 8, 3)
  with pytest.raises(ValueError, match='cell0 has not the weights'):
    weights.take(theta, FEW, FEW)


# Skips of either stride; nodes and inputs as predecessors.
CELL = ((('sep_conv_3x3', 0), ('skip_connect', 1)),
        (('dil_conv_3x3', 2), ('sep_conv_3x3', 1)))
REDUCE = ((('skip_connect', 0), ('sep_conv_3x3', 1)),
          (('dil_conv_3x3', 0), ('sep_conv_3x3', 2)))
CHAIN = ((('nor_conv_3x3', 0),), (('avg_pool_3x3', 0), ('nor_conv_1x1', 1)),
         (('nor_conv_1x1', 0), ('skip_connect', 1), ('none', 2)))


@pytest.mark.parametrize('space, genotype, module', [
    (WIDE, genotypes.Genotype(CELL, (2, 3), REDUCE, (2, 3)), darts.Network),
    (NB201.restrict(name='201 sparse'), genotypes.Genotype(CHAIN, (3,)),
     nasbench201.Network)], ids=lambda x: getattr(x, 'name', ''))
def test_a_derived_network_computes_what_its_path_does(
    space, genotype, module, fill, quick_jit):
  """With the statistics of the batch, as always in a supernet."""
  wide = supernet(space)
  theta = fill(weights.init_supernet(wide, 0, 8, 3))
  params = weights.extract(theta, space, genotype)
  net = module(genotype, 3, C, CLASSES)
  variables = weights.initialise(net, 0, images())
  assert jax.tree.map(np.shape, params) == jax.tree.map(
      np.shape, variables['params'])
  actual, _ = quick_jit(lambda params: net.apply(
      {**variables, 'params': params}, images(), train=True,
      mutable=['batch_stats']))(params)
  arch = {}
  for t in space.cell_types:
    slots = sorted(
        (space.node_edges[n][0] + pred, space.ops.index(op))
        for n, node in enumerate(getattr(genotype, t)) for op, pred in node)
    edges, ops = np.array(slots, np.int32).T
    arch[t] = archs.CellArch(edges, ops, np.ones(len(edges), np.float32))
  expected = quick_jit(wide.apply)({'params': theta}, images(), arch)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('cell, what', [
    (((('nor_conv_1x1', 0),), CELL[1]), "no 'nor_conv_1x1' from state 0"),
    (((('sep_conv_3x3', 2),), CELL[1]), "no 'sep_conv_3x3' from state 2")])
def test_extract_refuses_what_the_space_has_not(cell, what):
  theta = weights.init_supernet(supernet(WIDE), 0, 8, 3)
  with pytest.raises(ValueError, match=what):
    weights.extract(
        theta, WIDE, genotypes.Genotype(cell, (2, 3), REDUCE, (2, 3)))

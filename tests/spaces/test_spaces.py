"""The rows of the table of search spaces, and what a row may not be."""

import numpy as np
import pytest

from rome_jax import errors, spaces


def test_s1_is_the_published_table():
  """Predecessors and operations of RobustDARTS's `spaces.py`, edge by edge."""
  s1 = spaces.S1
  short = {'skip_connect': 'skip', 'max_pool_3x3': 'max',
           'avg_pool_3x3': 'avg', 'sep_conv_3x3': 'sep3',
           'dil_conv_3x3': 'dil3', 'dil_conv_5x5': 'dil5'}
  published = {
      0: ('skip dil3', 'max avg'), 1: ('skip dil5', 'max dil3'),
      2: ('skip dil5', 'max avg'), 3: ('skip sep3', 'max avg'),
      4: ('skip dil3', 'skip dil5'), 5: ('max skip', 'max avg'),
      6: ('skip sep3', 'max sep3'), 7: ('skip sep3', 'skip dil3'),
      8: ('skip dil3', 'skip dil5'), 9: ('skip sep3', 'max avg'),
      10: ('max skip', 'max avg'), 11: ('skip dil3', 'skip dil5'),
      12: ('dil3 dil5', 'skip dil5'), 13: ('dil3 dil5', 'skip dil5')}
  for cell, t in enumerate(spaces.CELL_TYPES):
    for e, names in enumerate(s1.site_ops(t)):
      assert ' '.join(short[n] for n in names) == published[e][cell]
  table = s1.choices('normal')
  assert table.shape == (14, 2) and table.dtype == np.int32
  assert [s1.ops[i] for i in table[5]] == ['max_pool_3x3', 'skip_connect']


def test_rows_of_different_length_are_padded():
  space = spaces.MOBILE_TINY
  table = space.choices('normal')
  keeps = [False, True, False]  # Only the second block keeps its size.
  assert [row[-1] >= 0 for row in table] == keeps
  assert space.num_choices == 3 and (table[:, :2] == [0, 1]).all()


def test_chain_of_blocks():
  space = spaces.MOBILE
  assert space.num_nodes == space.num_edges == 21
  np.testing.assert_array_equal(space.edge_preds, np.arange(21))
  np.testing.assert_array_equal(space.edge_nodes, np.arange(21))
  assert not space.has_topology
  with_zero = [names[-1] == 'zero' for names in space.site_ops('normal')]
  # All but the first block of each of the six stages.
  assert sum(with_zero) == 15 and not with_zero[0] and not with_zero[-1]


@pytest.mark.parametrize('name, topologies', [
    ('nasbench1shot1_1', 180), ('nasbench1shot1_2', 360),
    ('nasbench1shot1_3', 5400)])
def test_1shot1_topologies(name, topologies):
  """The numbers of topologies with loose ends of the paper's spaces."""
  from math import comb, prod
  space = spaces.SPACES[name]
  assert sum(space.in_degrees) == 9
  assert prod(comb(b - a, d) for (a, b), d in zip(
      space.node_edges, space.in_degrees)) == topologies
  assert space.num_sites == space.num_nodes - 1


def test_get_space_changes():
  full = spaces.get_space('nasbench201')
  assert full.in_degrees == (1, 2, 3) and not full.has_topology
  two = spaces.get_space('nasbench201', in_degree=2, drop_none=True)
  assert two.in_degrees == (1, 2, 2) and two.has_topology
  assert 'none' not in two.ops and two.absent == 'none'
  s3 = spaces.get_space('s3', drop_none=True)
  assert s3.ops == spaces.S2.ops
  for name in ('mobile', 'nasbench1shot1_1'):
    with pytest.raises(errors.UserError, match='in_degree=2 must be 0'):
      spaces.get_space(name, in_degree=2)
  with pytest.raises(errors.UserError, match='has no operation `none`'):
    spaces.get_space('s2', drop_none=True)
  with pytest.raises(errors.UserError, match="did you mean 's4'"):
    spaces.get_space('s44')


@pytest.mark.parametrize('message, fields', [
    ('num_nodes=0 must be at least 1', dict(num_nodes=0)),
    ('in_degree=-1 must be at least 1', dict(in_degree=-1)),
    ('4 numbers of at least 1', dict(in_degree=(1, 2))),
    ("sites='edge' must be one of", dict(sites='edge')),
    ("parents='last' must be one of", dict(parents='last')),
    ('cell_types=', dict(cell_types=('reduce',))),
    ('edge_ops must have', dict(edge_ops=((('a',),),))),
    ('has an operation twice', dict(ops=('a', 'a'))),
    ('not_derived=.* must be some of a', dict(not_derived=('b',))),
    ('leaves nothing to derive on edge 0', dict(not_derived=('a',))),
    ('edge 0 must be some of a, not', dict(
        num_nodes=1, edge_ops=((('b',), ('a',)),) * 2))])
def test_bad_rows(message, fields):
  with pytest.raises(errors.UserError, match=message):
    spaces.Space('mine', **{'ops': ('a',), **fields})


def test_a_row_has_its_own_name(monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'mine', spaces.S2)
  with pytest.raises(errors.UserError, match="must have that name, not 's2'"):
    spaces.get_space('mine')

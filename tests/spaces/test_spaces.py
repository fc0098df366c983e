"""The rows of the table of search spaces, and what a row may not be."""

import numpy as np
import pytest

from rome_jax import errors, spaces
from rome_jax.spaces import genotypes


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


@pytest.mark.parametrize('name, most', [
    ('s0', 5), ('darts', 5), ('s3', 5), ('nasbench201', 3)])
def test_no_node_keeps_more_edges_than_it_has(name, most):
  """A node reads every state before it: at most inputs + nodes - 1."""
  every = spaces.get_space(name, in_degree=most)
  assert every.in_degrees == every.fan_ins and max(every.fan_ins) == most
  for wrong in (most + 1, 9, 10**20):
    with pytest.raises(errors.UserError, match=(
        f'in_degree={wrong} must be at most {most} with space={name}')):
      spaces.get_space(name, in_degree=wrong)


@pytest.mark.parametrize('message, fields', [
    (r'in_degree=\(2, 2, 5, 5\) must be at most \(2, 3, 4, 5\)',
     dict(in_degree=(2, 2, 5, 5))),
    ('in_degree=2.5 must be', dict(in_degree=2.5)),
    ('in_degree=True must be', dict(in_degree=True)),
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


# ------------------------------------------------------------------ masks


def test_a_mask_gives_the_static_part_of_a_space():
  """Site by site; S1's candidates are of each edge's own."""
  rng = np.random.default_rng(0)
  mask = {t: rng.random((14, 2)) < .5 for t in spaces.CELL_TYPES}
  for rows in mask.values():
    rows[np.arange(14), rng.integers(2, size=14)] = True
  part = spaces.S1.restrict_to(mask)
  assert part.name == 's1' and part.cell_types == spaces.CELL_TYPES
  used = set()
  for t in spaces.CELL_TYPES:
    for e, names in enumerate(spaces.S1.site_ops(t)):
      expected = [name for i, name in enumerate(names) if mask[t][e, i]]
      assert list(part.site_ops(t)[e]) == expected
      used |= set(expected)
  assert part.ops == tuple(op for op in spaces.S1.ops if op in used)
  # The candidate of a place in the smaller table, found by name.
  names = [part.ops[i] for i in part.choices('reduce')[0] if i >= 0]
  assert tuple(names) == part.site_ops('reduce')[0]


def test_a_mask_that_keeps_all_gives_the_space_itself():
  for space in spaces.SPACES.values():
    mask = {t: np.ones((space.num_sites, space.num_choices), bool)
            for t in space.cell_types}
    assert space.restrict_to(mask) == space


def test_a_mask_of_few_operations_narrows_alpha():
  keep = np.isin(spaces.DARTS.ops, ('none', 'skip_connect', 'dil_conv_5x5'))
  part = spaces.DARTS.restrict_to(
      {t: np.tile(keep, (14, 1)) for t in spaces.CELL_TYPES})
  assert part == spaces.DARTS.restrict(
      ops=('none', 'skip_connect', 'dil_conv_5x5'))
  assert part.num_choices == 3 and part.edge_ops == ()


def mask_of(space, t, site, row):
  mask = {t: np.ones((space.num_sites, space.num_choices), bool)
          for t in space.cell_types}
  mask[t][site] = row
  return mask


@pytest.mark.parametrize('space, mask, message', [
    (spaces.S2, mask_of(spaces.S2, 'reduce', 3, False),
     'keeps no operation on edge 3 of cell type reduce'),
    (spaces.SPACES['nasbench1shot1_1'],
     mask_of(spaces.SPACES['nasbench1shot1_1'], 'normal', 2, False),
     'keeps no operation on node 2 of cell type normal'),
    # Only the place after the end of the first block's row.
    (spaces.MOBILE_TINY, mask_of(
        spaces.MOBILE_TINY, 'normal', 0, [False, False, True]),
     'keeps no operation on edge 0'),
    (spaces.S3, mask_of(spaces.S3, 'normal', 5, [True, False, False]),
     "not_derived=.'none',. leaves nothing to derive on edge 5"),
    (spaces.S2, {'normal': np.ones((14, 2), bool)},
     'must have the cell types normal, reduce, not normal'),
    (spaces.NASBENCH201, {'normal': np.ones((6, 4), bool)},
     r'must be bool \[6, 5\], not bool \[6, 4\]'),
    (spaces.NASBENCH201, {'normal': np.ones((6, 5))},
     r'must be bool \[6, 5\], not float64')])
def test_masks_that_leave_no_space(space, mask, message):
  with pytest.raises(errors.UserError, match=message):
    space.restrict_to(mask)


def test_darts_searches_none_and_never_derives_it():
  """The primitives of quark0/darts cnn/genotypes.py, in their order."""
  assert spaces.DARTS.ops == (
      'none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3',
      'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5')
  rng = np.random.default_rng(0)
  for _ in range(20):
    assert 'none' not in genotypes.used_ops(
        genotypes.random(spaces.DARTS, rng))

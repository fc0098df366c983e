"""Sizes of spaces against published counts, and all of their cells."""

import itertools

import numpy as np
import pytest

from rome_jax import families, spaces
from rome_jax.spaces import enumeration, genotypes
from rome_jax.spaces import nasbench201_forms as forms


@pytest.mark.parametrize('name, number', [
    # NAS-Bench-201 (Dong and Yang 2020): 5^6.
    ('nasbench201', 5**6),
    # DARTS (Liu et al. 2019, section 3.2.1): prod (k+1)k/2 * 7^2, k = 1..4,
    # for each of two cells.
    ('darts', (1 * 3 * 6 * 10 * 7**8)**2), ('s0', (180 * 7**8)**2),
    # RobustDARTS: S2 has two operations, S3 derives two of its three.
    ('s2', (180 * 2**8)**2), ('s3', (180 * 2**8)**2),
    # ProxylessNAS (Cai et al. 2019): 6 operations in the first block of each
    # of 6 stages, 7 in the other 15.
    ('mobile', 6**6 * 7**15),
    # NAS-Bench-1Shot1 (Zela et al. 2020): parents 1,1,2,2,3 of 1 to 5.
    ('nasbench1shot1_2', 1 * 2 * 3 * 6 * 10 * 3**4)])
def test_sizes_are_the_published_ones(name, number):
  assert enumeration.size(spaces.get_space(name)) == number


def test_all_cells_of_nasbench201():
  found = set(enumeration.every(spaces.NASBENCH201))
  assert {forms.to_index(g) for g in found} == set(range(15_625))


@pytest.mark.parametrize('space', [
    # Edges with operations of their own, one of which is never derived.
    spaces.Space('own', ('a', 'b', 'none'), num_nodes=2, num_inputs=1,
                 in_degree=1, cell_types=('normal',), not_derived=('none',),
                 edge_ops=((('a', 'b'), ('a', 'none'), ('b', 'a', 'none')),)),
    spaces.MOBILE_TINY, spaces.get_space('nasbench1shot1_1')],
    ids=lambda space: space.name)
def test_every_cell_comes_once_and_as_often_as_drawn(space):
  found = list(enumeration.every(space))
  assert len(set(found)) == len(found) == enumeration.size(space)
  rng = np.random.default_rng(0)
  assert {genotypes.random(space, rng) for _ in range(200)} <= set(found)
  if space.name == 'own':
    # Node 1: a or b. Node 2: a of the first edge, or b or a of the second.
    assert len(found) == 2 * (1 + 2)
  else:
    for genotype in itertools.islice(found, 0, None, 50):
      families.arch_of(genotype, space)


@pytest.mark.parametrize('number', [3, 17, 30, 1000])
def test_distinct_cells(number):
  space = spaces.MOBILE_TINY
  total = 2 * 3 * 2
  found = enumeration.distinct(space, number, np.random.default_rng(1))
  assert len(found) == len(set(found)) == min(number, total)
  assert set(found) <= set(enumeration.every(space))


def test_distinct_draws_are_uniform():
  """Each cell of 12 in 3 of 12 places: 500 draws, within 5 sigma."""
  space = spaces.MOBILE_TINY
  rng = np.random.default_rng(2)
  counts = {g: 0 for g in enumeration.every(space)}
  for _ in range(500):
    for genotype in enumeration.distinct(space, 3, rng):
      counts[genotype] += 1
  sigma = (500 * .25 * .75)**.5
  assert all(abs(n - 125) < 5 * sigma for n in counts.values())

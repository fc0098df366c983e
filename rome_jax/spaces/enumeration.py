"""How many architectures a space has, and each of them once."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from rome_jax import spaces
from rome_jax.spaces import genotypes
from rome_jax.spaces.genotypes import Genotype

# Where a draw of distinct architectures makes a list of all of them.
_LISTED = 200_000


def candidates(space: spaces.Space,
               cell_type: str) -> tuple[tuple[str, ...], ...]:
  """Per site, the names of the operations that may be derived."""
  return tuple(tuple(name for name in names if name not in space.not_derived)
               for names in space.site_ops(cell_type))


def size(space: spaces.Space) -> int:
  """The number of architectures: edges that are kept and their operations.

  Isomorphic ones count each.

  >>> size(spaces.NASBENCH201)
  15625
  """
  return math.prod(_cells(space, t) for t in space.cell_types)


def _cells(space, cell_type):
  counts = [len(names) for names in candidates(space, cell_type)]
  if space.sites == 'nodes':
    return math.prod(counts) * math.prod(
        map(math.comb, space.fan_ins, space.in_degrees))
  return math.prod(
      _products(counts[a:b], degree)
      for (a, b), degree in zip(space.node_edges, space.in_degrees))


def _products(counts, number):
  """The sum, over all choices of `number` counts, of their products."""
  sums = [1] + [0] * number
  for count in counts:
    for i in range(number, 0, -1):
      sums[i] += sums[i - 1] * count
  return sums[number]


def every(space: spaces.Space) -> Iterator[Genotype]:
  """Each architecture of a space once, in a fixed order.

  >>> len(set(every(spaces.NASBENCH201)))
  15625
  """
  cells = [list(_every_cell(space, t)) for t in space.cell_types]
  for chosen in itertools.product(*cells):
    yield genotypes.make(space, dict(zip(space.cell_types, chosen)))


def _every_cell(space, cell_type):
  """All (edges, operation per site) of a cell, '' on edges left out."""
  names = candidates(space, cell_type)
  kept_edges = [itertools.combinations(range(a, b), degree)
                for (a, b), degree in zip(space.node_edges, space.in_degrees)]
  for parts in itertools.product(*kept_edges):
    edges = [e for part in parts for e in part]
    sites = edges if space.sites == 'edges' else range(space.num_sites)
    for ops in itertools.product(*(names[site] for site in sites)):
      row = [''] * space.num_sites
      for site, op in zip(sites, ops):
        row[site] = op
      yield edges, row


def distinct(space: spaces.Space, number: int,
             rng: np.random.Generator) -> list[Genotype]:
  """Draws architectures, none twice; all of them if the space has no more.

  They are uniform where each site has as many candidates as the others.

  >>> len(distinct(spaces.NASBENCH201, 100, np.random.default_rng(0)))
  100
  """
  total = size(space)
  if 2 * number > total and total <= _LISTED:
    known = list(every(space))
    order = rng.permutation(len(known))[:number]
    return [known[i] for i in order]
  found: dict[Genotype, None] = {}
  while len(found) < min(number, total):
    found[genotypes.random(space, rng)] = None
  return list(found)

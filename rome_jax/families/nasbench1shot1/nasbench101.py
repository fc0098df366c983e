"""Cells in the form of NAS-Bench-101, and back.

Ying et al., ICML 2019; google-research/nasbench.
"""

from collections.abc import Sequence

import numpy as np

from rome_jax import errors
from rome_jax.families.nasbench1shot1.wiring import make_genotype, read_wiring
from rome_jax.spaces import genotypes

# The names of NAS-Bench-101.
NASBENCH101_OPS = {
    'max_pool_3x3': 'maxpool3x3', 'conv_3x3': 'conv3x3-bn-relu',
    'conv_1x1': 'conv1x1-bn-relu'}
NASBENCH101_VERTICES, NASBENCH101_EDGES = 7, 9
_INPUT, _OUTPUT = 'input', 'output'


def to_nasbench101(
    genotype: genotypes.Genotype) -> tuple[np.ndarray, list[str]]:
  """The cell as NAS-Bench-101's tables ask for it.

  A cell of fewer than five inner nodes gets unused conv1x1 vertices after
  them, at index 5 in spaces 1 and 2, as in the authors' code
  (`upscale_to_nasbench_format`).

  Returns:
    ([7,7] int, upper triangular, whose entry i, j is 1 where vertex j reads
    vertex i; 7 names, 'input' first and 'output' last).

  Raises:
    UserError: an operation, or more vertices or edges, than it can hold.
  """
  nodes, concat = read_wiring(genotype)
  last = NASBENCH101_VERTICES - 1
  if len(nodes) >= last:
    raise errors.UserError(
        f'the genotype has {len(nodes)} nodes, of which NAS-Bench-101 can '
        f'hold {last - 1}')
  adjacency = np.zeros((last + 1, last + 1), np.int64)
  names = []
  for i, (op, parents) in enumerate(nodes, start=1):
    if op not in NASBENCH101_OPS:
      raise errors.UserError(
          f'the genotype has the operation {op!r}, but NAS-Bench-101 only '
          f'{", ".join(NASBENCH101_OPS)}')
    adjacency[list(parents), i] = 1
    names.append(NASBENCH101_OPS[op])
  adjacency[list(concat), last] = 1
  if adjacency.sum() > NASBENCH101_EDGES:
    raise errors.UserError(
        f'the genotype has {adjacency.sum()} edges, of which NAS-Bench-101 '
        f'can hold {NASBENCH101_EDGES}')
  names += [NASBENCH101_OPS['conv_1x1']] * (last - 1 - len(names))
  return adjacency, [_INPUT, *names, _OUTPUT]


def from_nasbench101(adjacency: Sequence[Sequence[int]] | np.ndarray,
                     names: Sequence[str]) -> genotypes.Genotype:
  """The genotype of a cell of NAS-Bench-101; unused vertices are dropped.

  Args:
    adjacency: [V,V] upper triangular 0/1, V at most 7.
    names: V names, 'input' first and 'output' last.

  Raises:
    UserError: it is no such cell, or a vertex is read that reads nothing.

  >>> from_nasbench101([[0, 1, 1], [0, 0, 1], [0, 0, 0]],
  ...                  ['input', 'conv3x3-bn-relu', 'output']).normal
  ((('conv_3x3', 0),),)
  """
  adjacency, names = np.asarray(adjacency), list(names)
  _check_nasbench101(adjacency, names)
  size = len(names)
  used = [v for v in range(size) if v in (0, size - 1)
          or adjacency[v].any() or adjacency[:, v].any()]
  parents = []
  for v in used[1:]:
    read = [used.index(u) for u in np.flatnonzero(adjacency[:, v]).tolist()]
    if not read:
      raise errors.UserError(
          f'vertex {v} of the NAS-Bench-101 cell reads nothing')
    parents.append(tuple(read))
  own = {name: op for op, name in NASBENCH101_OPS.items()}
  genotype = make_genotype(parents, [own[names[v]] for v in used[1:-1]])
  return genotypes.validate(genotype, where='NAS-Bench-101 cell')


def _check_nasbench101(adjacency, names):
  size = len(names)
  if not 3 <= size <= NASBENCH101_VERTICES or adjacency.shape != (size, size):
    raise errors.UserError(
        f'a NAS-Bench-101 cell must have 3 to {NASBENCH101_VERTICES} names '
        f'and as many rows and columns, not {size} and {adjacency.shape}')
  if not np.isin(adjacency, (0, 1)).all() or np.tril(adjacency).any():
    raise errors.UserError(
        'the adjacency of a NAS-Bench-101 cell must be 0 or 1 above its '
        'diagonal and 0 elsewhere')
  known = NASBENCH101_OPS.values()
  unknown = [name for name in names[1:-1] if name not in known]
  if (names[0], names[-1]) != (_INPUT, _OUTPUT) or unknown:
    raise errors.UserError(
        f'the names of a NAS-Bench-101 cell must be {_INPUT}, any of '
        f'{", ".join(known)}, {_OUTPUT}; not {names}')

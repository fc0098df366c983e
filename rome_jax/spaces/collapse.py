"""When a derived cell has collapsed: the rule, and the words for it.

A cell has collapsed when at least three quarters of its operations have no
weights though the space offers some that have, in the same place. Operations
in places that offer none with weights (the pooling edges of S1's reduction
cell) do not count.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rome_jax import spaces
from rome_jax.spaces import genotypes
from rome_jax.spaces.genotypes import Genotype

SHARE = .75
NAMES = {'normal': 'normal', 'reduce': 'reduction'}


class Cell(NamedTuple):
  """The operations of one cell, where some with weights are offered.

  Attributes:
    free: how many have no weights.
    of: how many there are.
  """

  free: int
  of: int

  @property
  def collapsed(self) -> bool:
    """Whether at least three quarters have no weights."""
    return self.of > 0 and self.free >= SHARE * self.of


def cells(genotype: Genotype, space: spaces.Space) -> dict[str, Cell]:
  """{cell type: Cell} of a genotype of a space.

  >>> flat = 8 * [('skip_connect', 0)]
  >>> text = f'Genotype(normal={flat}, normal_concat=[2, 3, 4, 5], reduce='
  >>> text += f'{flat}, reduce_concat=[2, 3, 4, 5])'
  >>> found = cells(genotypes.from_text(text), spaces.S2)
  >>> found['normal'], found['normal'].collapsed
  (Cell(free=8, of=8), True)
  """
  return {t: _cell(genotype, space, t) for t in genotypes.cell_types(genotype)}


def _cell(genotype, space, cell_type):
  nodes, _ = genotypes.cell_of(genotype, cell_type)
  sites, free, of = space.site_ops(cell_type), 0, 0
  for i, node in enumerate(nodes):
    for op, pred in _chosen(node, space):
      site = _site(space, i, pred)
      if all(genotypes.free(name, space, site) for name in sites[site]):
        continue
      of += 1
      free += genotypes.free(op, space, site)
  return Cell(free, of)


def _chosen(node, space):
  """The pairs of a node that a search has chosen; one where nodes hold it."""
  if space.sites == 'nodes':
    return node[:1]
  left_out = '' if space.absent in space.ops else space.absent
  return [pair for pair in node if not left_out or pair[0] != left_out]


def _site(space, node, pred):
  if space.sites == 'nodes':
    return node
  start = space.node_edges[node][0]
  return start + int(pred - space.edge_preds[start])


def sentence(cell_type: str, cell: Cell, epoch: float | None = None) -> str:
  """Says that a cell has collapsed.

  Args:
    cell_type: 'normal' or 'reduce'.
    cell: its operations.
    epoch: of the search, since when; None where nobody knows.

  >>> print(sentence('reduce', Cell(7, 8), 12.))
  the reduction cell has collapsed: 7 of its 8 operations that could have \
weights have none, since epoch 12
  """
  since = '' if epoch is None else f', since epoch {epoch:.4g}'
  return (f'the {NAMES[cell_type]} cell has collapsed: {cell.free} of its '
          f'{cell.of} operations that could have weights have none{since}')


def since(rows: Iterable[Mapping[str, Any]], phase: str,
          cell_type: str) -> float | None:
  """The epoch since which a cell has been collapsed; None if it is not.

  Args:
    rows: of metrics.jsonl.
    phase: of the search.
    cell_type: 'normal' or 'reduce'.

  >>> rows = [{'phase': 'search', 'epoch': e, 'collapsed_normal': c}
  ...         for e, c in enumerate((1, 0, 1, 1))]
  >>> since(rows, 'search', 'normal')
  2
  """
  epoch = None
  for row in rows:
    if row.get('phase') == phase and f'collapsed_{cell_type}' in row:
      if not row[f'collapsed_{cell_type}']:
        epoch = None
      elif epoch is None:
        epoch = row.get('epoch')
  return epoch

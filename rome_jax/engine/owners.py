"""Whose weights are which: the candidate behind each part of a tree."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.spaces import Space


class Candidate(NamedTuple):
  """Where a supernet keeps the weights of one operation.

  Attributes:
    path: names on the way to its tree, whose leaves are [len(sites),...].
    cell_type: of the cell.
    op: name of the operation.
    sites: the edges, nodes or blocks that have it, by rows of the leaves.
  """

  path: tuple[str, ...]
  cell_type: str
  op: str
  sites: tuple[int, ...]


def site_norms(gradients: Any, found: Sequence[Candidate],
               space: Space) -> dict[str, jax.Array]:
  """How large the gradient of each candidate's weights is.

  The L2 norm of each kernel's and each bias' gradient, added up over an
  operation and over all cells of a type, as PA&DA's code does.

  Args:
    gradients: a tree like the supernet's weights.
    found: of the family's `candidates`.
    space: the search space.

  Returns:
    {cell type: [S,C]}, in the order of `space.choices`; 0 for what has no
    weights or was not sampled.
  """
  norms = {t: jnp.zeros(space.choices(t).shape) for t in space.cell_types}
  for candidate in found:
    tree = gradients
    for name in candidate.path:
      tree = tree[name]
    rows = sum(
        jnp.sqrt(jnp.square(leaf.reshape(leaf.shape[0], -1)).sum(-1))
        for leaf in jax.tree.leaves(tree))
    sites, t = np.array(candidate.sites), candidate.cell_type
    places = np.argmax(
        space.choices(t)[sites] == space.ops.index(candidate.op), -1)
    norms[t] = norms[t].at[sites, places].add(rows)
  return norms

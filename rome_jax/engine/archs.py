"""One architecture of a cell, as the list of operations to evaluate."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.spaces import Space


class CellArch(NamedTuple):
  """The M slots of a cell, node by node: each an operation on an edge.

  A single path lists the M active edges, one operation on each (`compact`). A
  mixture lists every operation of every edge (`all_slots`). A node is the sum
  of gate * operation over the slots of its edges.

  Attributes:
    edges: [M] int32, edge numbers in rising order.
    ops: [M] int32, the operation on each, its place in `space.ops`. Where
      nodes hold the operations: [S], one per node, or every candidate of
      every node.
    gates: [M] float, exactly 1 where the choice is hard; carries the gradient
      to alpha and beta. Where nodes hold the operations: the [M] of the edges
      and then those of `ops`. [M,2]: a factor and a number to add, which
      GDAS' code has for the operations that were not sampled.
  """

  edges: jax.Array
  ops: jax.Array
  gates: jax.Array


def compact(space: Space, edge_mask: jax.Array, op_mask: jax.Array,
            degrees: Sequence[int], choices: np.ndarray) -> CellArch:
  """Lists the active edges of one sampled cell.

  Args:
    space: the search space.
    edge_mask: B, [E], with `degrees[i]` ones among node i's edges.
    op_mask: A, [S,C], one-hot rows.
    degrees: active edges per node, static.
    choices: [S,C] static, `Space.choices` of the cell's type.

  Returns:
    The CellArch; gates are B * A at the chosen entries (Eq. 4).
  """
  chex.assert_shape(edge_mask, (space.num_edges,))
  chex.assert_shape(op_mask, choices.shape)
  edges = jnp.concatenate([
      a + jnp.sort(lax.top_k(lax.stop_gradient(edge_mask[a:b]), d)[1])
      for (a, b), d in zip(space.node_edges, degrees)]).astype(jnp.int32)
  sites = edges if space.sites == 'edges' else np.arange(space.num_sites)
  places = jnp.argmax(op_mask, -1)[sites]
  ops, gates = jnp.asarray(choices)[sites, places], op_mask[sites, places]
  if space.sites == 'edges':
    gates = edge_mask[edges] * gates
  else:
    gates = jnp.concatenate([edge_mask[edges], gates])
  return CellArch(edges, ops, gates)


def all_slots(space: Space, gates: jax.Array, cell_type: str = 'normal',
              edge_gates: jax.Array | None = None) -> CellArch:
  """Lists every operation of every site: the mixture of DARTS.

  Args:
    space: a search space.
    gates: [S,C], the factor of each candidate, in the order of
      `space.choices`; entries past the end of a shorter row are not read.
    cell_type: 'normal' or 'reduce'.
    edge_gates: [E], of the edges where nodes hold the operations.

  Returns:
    A CellArch of as many slots as the cell has candidates: S * C, fewer where
    sites have operations of their own. Where nodes hold the operations it
    lists every edge, `ops` the candidates node by node.

  Raises:
    ValueError: nodes hold the operations and `edge_gates` is missing, or edges
      hold them and it is given.

  >>> from rome_jax.spaces import S2
  >>> all_slots(S2, jnp.full((14, 2), .5)).ops.shape
  (28,)
  """
  choices = space.choices(cell_type)
  chex.assert_shape(gates, choices.shape)
  if (edge_gates is None) != (space.sites == 'edges'):
    raise ValueError(
        f'edge_gates are for spaces whose nodes hold the operations; '
        f'{space.name} has sites={space.sites!r}')
  sites, places = np.nonzero(choices >= 0)
  ops, chosen = jnp.asarray(choices[sites, places]), gates[sites, places]
  if edge_gates is None:
    return CellArch(jnp.asarray(sites, jnp.int32), ops, chosen)
  return CellArch(jnp.arange(space.num_edges), ops,
                  jnp.concatenate([edge_gates, chosen]))


def gate_groups(space: Space, cell_type: str = 'normal') -> np.ndarray:
  """Which gates of `all_slots` are shares of one whole, [M] int.

  The candidates of a site; where nodes hold the operations, the edges into a
  node that leaves some out, too. An edge that always stays is alone.

  >>> from rome_jax.spaces import S2
  >>> gate_groups(S2)[:4].tolist()
  [0, 0, 1, 1]
  """
  sites = np.nonzero(space.choices(cell_type) >= 0)[0]
  if space.sites == 'edges':
    return sites
  e = space.num_edges
  edges = np.concatenate([
      np.full(b - a, a) if d < b - a else np.arange(a, b)
      for (a, b), d in zip(space.node_edges, space.in_degrees)])
  return np.unique(np.concatenate([edges, e + sites]), return_inverse=True)[1]


def first_cell(space: Space, cell_type: str = 'normal') -> CellArch:
  """An example: the first edges of each node, the first operation on each."""
  edges = np.concatenate([
      a + np.arange(d)
      for (a, _), d in zip(space.node_edges, space.in_degrees)])
  edges = edges.astype(np.int32)
  ops = space.choices(cell_type)[:, 0]
  gates = len(edges)
  if space.sites == 'edges':
    ops = ops[edges]
  else:
    gates += len(ops)
  return CellArch(jnp.asarray(edges), jnp.asarray(ops), jnp.ones(gates))

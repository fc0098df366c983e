"""One sampled cell in compact form."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.spaces import Space


class CellArch(NamedTuple):
  """One sampled cell in compact form: its M active edges, node by node.

  Attributes:
    edges: [M] int32, edge numbers; a node's edges in rising order.
    ops: [M] int32, the operation on each, its place in `space.ops`. Where
      nodes hold the operations: [S], one per node.
    gates: [M] float, exactly 1 where the choice is hard; carries the gradient
      to alpha and beta. Where nodes hold the operations: [M + S], the edges'
      gates and then the nodes'.
  """

  edges: jax.Array
  ops: jax.Array
  gates: jax.Array


def compact(space: Space, edge_mask, op_mask, degrees, choices) -> CellArch:
  """Masks of one cell to the list of its active edges.

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


def first_cell(space: Space, cell_type: str = 'normal') -> CellArch:
  """An example: each node's first edges, the first operation on each."""
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

"""GDAS (Dong and Yang, CVPR 2019): every edge active, one operation on each."""

from typing import Any

import jax.numpy as jnp

from rome_jax.engine.archs import CellArch
from rome_jax.methods import derive, laws
from rome_jax.methods.method import (
    ARCH,
    THETA,
    ArchParams,
    Mask,
    Method,
    Noise,
    alpha_and_parents,
    gumbel_of_arch,
)
from rome_jax.methods.rows.rome import hard_cells, op_mask
from rome_jax.spaces import Space


def _check(method, space, section):
  if section.k != 1:
    return (f'search.k={section.k} must be 1 with method={method.name!r}, '
            'which samples one architecture a step')
  if space.absent and space.has_topology:
    return (f'method={method.name!r} needs every edge, but space={space.name} '
            f"keeps {space.in_degrees} of a node's "
            f'(in_degree={space.in_degree})')
  return None


gdas = Method(
    name='gdas',
    init=alpha_and_parents,
    sample=hard_cells(laws.sample_all_edges, lambda space: space.fan_ins),
    derive=derive.best_pairs,
    updates=(ARCH, THETA),
    noise=gumbel_of_arch,
    # One sample a step: DARTS' rate; ROME doubles it for the sum of K.
    recipe={'search.k': 1, 'search.lr': .025},
    check=_check)


def with_scalar_gates(method: Method) -> Method:
  """A method of single paths, with the gates of all operations.

  GDAS' code for NAS-Bench-201 adds to an edge's output the gates of the
  operations that were not sampled: scalars of value 0, whose gradient reaches
  alpha directly (AutoDL-Projects, `cell_operations.py`; a later version drops
  them). The output is the same; the median cosine between the two gradients
  of alpha is .59. For spaces whose edges hold the operations.
  """

  def sample(space: Space, arch: ArchParams, noise: Noise, tau: Any,
             mask: Mask | None = None) -> dict[str, CellArch]:
    cells = method.sample(space, arch, noise, tau, mask)
    return {t: _with_offsets(
        space, cell, op_mask(space, arch, noise, tau, mask, t), t)
            for t, cell in cells.items()}

  return method._replace(sample=sample)


def _with_offsets(space, cell, ops, cell_type):
  """The cell with the summed gates of each edge's other operations."""
  chosen = (jnp.asarray(space.choices(cell_type))[cell.edges]
            == cell.ops[:, None])
  others = jnp.where(chosen, 0., ops[cell.edges]).sum(-1)
  return cell._replace(gates=jnp.stack([cell.gates, others], -1))

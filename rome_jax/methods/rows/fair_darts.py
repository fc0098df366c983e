"""FairDARTS (Chu et al., ECCV 2020): operations that do not compete.

All operations of all edges are evaluated, each times its own sigmoid(alpha),
so that the rise of one is no loss to the others. Alpha moves on the validation
half along the gradient of

    L_valid(theta, alpha) + 10 L01,  L01 = -mean (sigmoid(alpha) - .5)^2

whose second term, the zero-one loss, drives each sigmoid to 0 or to 1. Alpha
begins at 0. Theta moves on the training half as in DARTS.

A derived cell keeps, of each node's two strongest edges, those whose best
operation has a sigmoid of at least .85 (`derive.above`), so that a node may
have fewer edges than in DARTS.

Departures from the authors' code (xiaomi-automl/FairDARTS):

- A node of which no edge comes to .85 keeps its strongest edge. There it has
  no input, is left out of the cell's output, and what reads it is skipped.
- The zero-one loss has no part in theta's update, where its gradient is 0.

The authors search without `none`. In a space that has it `none` has a gate
like any other operation, though it adds nothing to the sum. In NAS-Bench-201,
where every edge stays, an edge below .85 is `none`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import derive, rules
from rome_jax.methods.method import (
    ARCH,
    ArchParams,
    Mask,
    Noise,
    full_mask,
)
from rome_jax.methods.rows.darts import check_edges, darts
from rome_jax.spaces import Space


def sigmoid_slots(space: Space, arch: ArchParams, noise: Noise, tau: Any,
                  mask: Mask | None = None) -> dict[str, CellArch]:
  """FairDARTS' mixture: every candidate, its gate sigmoid(alpha)."""
  del noise, tau
  mask = mask or full_mask(space)
  return {t: archs.all_slots(
      space, jnp.where(mask[t], jax.nn.sigmoid(arch.alpha[t]), 0.), t)
          for t in space.cell_types}


fair_darts = darts._replace(
    name='fair_darts',
    sample=sigmoid_slots,
    derive=derive.above(.85),
    updates=(ARCH._replace(rule=rules.penalised(rules.zero_one, 10.)),
             darts.updates[1]),
    recipe={'search.k': 1, 'search.batch_size': 128, 'search.lr': .005,
            'search.alpha_lr': 3e-3, 'search.alpha_b1': .9,
            'search.alpha_init': 0.},
    check=check_edges)

"""SNAS (Xie et al., ICLR 2019): a concrete mixture, one level, one batch.

All operations of all edges are evaluated. The gates of an edge are a draw of
the concrete distribution, the same in all cells of a type,

    Z = softmax((log softmax(alpha) + G) / tau),  G ~ Gumbel(0, 1)

and both theta and alpha move along the gradient of one loss on one batch:

    (theta, alpha) <- (theta, alpha) - step of d L_train(theta, Z) / d(., .)

tau falls from 1 to .03 in a straight line, once an epoch. alpha begins at
N(1, .01), so its L2 pulls at it from the first step; the norm of its gradient
is clipped at 10.

Departures from the authors' code (SNAS-Series/SNAS-Series):

- Its penalty on resources is left out, and its drop path in the search.
- It derives the likeliest operation of every edge, where `none` leaves an edge
  out; here a node keeps its strongest edges as in DARTS
  (`derive.two_strongest`), which is how its cells are reported.
- alpha moves by Adam, as in its run on several devices; on one device that
  code has SGD.
- It trains on all images. A tenth is held out here, for the accuracy on
  images that neither theta nor alpha has seen.
- tau is .03 in the last epoch; there it would be in the one after.
"""

from typing import Any

import jax

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import derive, laws
from rome_jax.methods.method import (
    ArchParams,
    Mask,
    Method,
    Noise,
    Update,
    full_mask,
    gumbel_of_arch,
    normal,
)
from rome_jax.methods.rows.darts import operations_on_edges
from rome_jax.spaces import Space


def concrete_slots(space: Space, arch: ArchParams, noise: Noise, tau: Any,
                   mask: Mask | None = None) -> dict[str, CellArch]:
  """SNAS' mixture: every candidate, its gate of the concrete distribution."""
  mask = mask or full_mask(space)
  return {t: archs.all_slots(space, laws.gumbel_softmax(
      laws.masked_logits(arch.alpha[t], mask[t]), noise.alpha[t], tau), t)
          for t in space.cell_types}


def _init(space, key, alpha_std=1e-3, beta_std=1e-3):
  """alpha ~ N(1, std); the softmax does not see the 1, the L2 does."""
  arch = normal(space, key, 0, alpha_std, beta_std)
  return arch._replace(alpha=jax.tree.map(lambda a: 1 + a, arch.alpha))


def _check(method, space, section):
  if section.alpha_start:
    return (f'search.alpha_start={section.alpha_start} must be 0 with '
            f'method={method.name!r}, whose theta and alpha move together')
  return operations_on_edges(method, space)


snas = Method(
    name='snas',
    init=_init,
    sample=concrete_slots,
    derive=derive.two_strongest,
    updates=(Update('both', 'train'),),
    noise=gumbel_of_arch,
    recipe={'search.k': 1, 'search.epochs': 150, 'search.lr': .025,
            'search.tau_start': 1., 'search.tau_end': .03,
            'search.alpha_init': .01, 'search.alpha_clip': 10.,
            'search.fraction_theta': .9, 'search.fraction_alpha': .1},
    check=_check)

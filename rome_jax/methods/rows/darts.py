"""DARTS (Liu et al., ICLR 2019) and PC-DARTS (Xu et al., ICLR 2020).

All operations of all edges are evaluated, each times its softmax. A step moves
alpha by Adam on the validation half, then theta by SGD on the training half.

`darts` takes alpha's gradient at the present theta (first order, xi = 0),
`darts_2nd` one step of theta ahead (`rules.unrolled`):

    theta' = theta after one step of its optimiser on L_train(theta, alpha)
    gradient of alpha = d L_valid(theta'(alpha), alpha) / d alpha

The mixed second derivative in it is the published central difference. Unlike
the published code, the look-ahead step clips theta's gradient as the step does.
A step costs five gradients in place of two.
"""

from typing import Any

import jax

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import derive, laws, rules
from rome_jax.methods.method import (
    ARCH,
    THETA,
    ArchParams,
    Mask,
    Method,
    Noise,
    alpha_and_parents,
    full_mask,
    no_noise,
    normal,
)
from rome_jax.spaces import Space


def _softmax(space, arch, mask, cell_type):
  """[S,C], softmax(alpha) over the candidates of each edge."""
  mask = mask or full_mask(space)
  return jax.nn.softmax(laws.masked_logits(
      arch.alpha[cell_type], mask[cell_type]))


def softmax_slots(space: Space, arch: ArchParams, noise: Noise, tau: Any,
                  mask: Mask | None = None) -> dict[str, CellArch]:
  """DARTS' mixture: every candidate, its gate softmax(alpha) (Eq. 2).

  Where nodes hold the operations the edges have gates of their own, as in
  NAS-Bench-1Shot1's DARTS; see `laws.parent_weights`.
  """
  del noise, tau
  on_nodes = space.sites == 'nodes'
  return {t: archs.all_slots(
      space, _softmax(space, arch, mask, t), t,
      laws.parent_weights(space, arch.beta[t]) if on_nodes else None)
          for t in space.cell_types}


def edge_normalised_slots(space: Space, arch: ArchParams, noise: Noise,
                          tau: Any, mask: Mask | None = None,
                          ) -> dict[str, CellArch]:
  """PC-DARTS' mixture: softmax(alpha) times the edge's softmax(beta) (Eq. 2).

  The softmax of beta is over the edges that enter a node.
  """
  del noise, tau
  cells = {}
  for t in space.cell_types:
    weights = laws.edge_softmax(space, arch.beta[t])
    cells[t] = archs.all_slots(
        space, weights[:, None] * _softmax(space, arch, mask, t), t)
  return cells


def _init_alpha_beta(space, key, alpha_std=1e-3, beta_std=1e-3):
  return normal(space, key, space.num_edges, alpha_std, beta_std)


def check_slots(method: Method, space: Space, section: Any) -> str | None:
  """The check of mixtures: one sample, and edges or nodes with operations."""
  if section.k != 1:
    return (f'search.k={section.k} must be 1 with method={method.name!r}, '
            'whose mixture is the same in every sample')
  if space.parents != 'all':
    return (f'method={method.name!r} needs a space of cells, such as s0 or '
            f'nasbench201, not a chain of blocks as space={space.name}')
  return None


def check_edges(method: Method, space: Space, section: Any) -> str | None:
  """The check of mixtures of edges only."""
  wrong = check_slots(method, space, section)
  return wrong or operations_on_edges(method, space)


def operations_on_edges(method: Method, space: Space) -> str | None:
  """What is wrong with a space for a mixture on its edges, or None."""
  if space.sites == 'edges' and space.parents == 'all':
    return None
  return (f'method={method.name!r} needs a space whose edges hold the '
          f'operations, such as s0 or nasbench201, not space={space.name}')


def _check_pc_darts(method, space, section):
  wrong = check_edges(method, space, section)
  if wrong is None and section.channels % method.partial:
    wrong = (f'search.channels={section.channels} must be a multiple of '
             f'{method.partial} with method={method.name!r}')
  return wrong


darts = Method(
    name='darts',
    init=alpha_and_parents,
    sample=softmax_slots,
    derive=derive.two_strongest,
    updates=(ARCH, THETA),
    noise=no_noise,
    recipe={'search.k': 1, 'search.lr': .025},
    check=check_slots)

darts_2nd = darts._replace(
    name='darts_2nd',
    updates=(ARCH._replace(rule=rules.unrolled(epsilon=.01)), THETA))

pc_darts = darts._replace(
    name='pc_darts',
    init=_init_alpha_beta,
    sample=edge_normalised_slots,
    derive=derive.two_strongest_by_beta,
    partial=4,
    recipe={'search.k': 1, 'search.batch_size': 256, 'search.lr': .1,
            'search.lr_end': 0., 'search.alpha_lr': 6e-4,
            'search.alpha_start': 15},
    check=_check_pc_darts)

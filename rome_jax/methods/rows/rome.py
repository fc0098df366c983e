"""ROME (Wang et al., ICCV 2023): topology sampled apart from operations."""

from collections.abc import Callable
from typing import Any

import jax

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import derive, laws
from rome_jax.methods.method import (
    ARCH,
    THETA,
    ArchParams,
    Mask,
    Method,
    Noise,
    Sampler,
    full_mask,
    gumbel_of_arch,
    normal,
)
from rome_jax.spaces import Space


def op_mask(space: Space, arch: ArchParams, noise: Noise, tau: Any,
            mask: Mask | None, cell_type: str) -> jax.Array:
  """A, [S,C]: one operation of each site, straight-through (Eq. 5-8)."""
  if noise.ops is not None:
    return jax.nn.one_hot(noise.ops[cell_type], space.num_choices)
  allowed = (mask or full_mask(space))[cell_type]
  return laws.gumbel_max(
      laws.masked_logits(arch.alpha[cell_type], allowed),
      noise.alpha[cell_type], tau)


def hard_cells(sample_edges: Callable, degrees: Callable) -> Sampler:
  """The sampler of single paths: hard edges and one operation on each.

  Args:
    sample_edges: (space, beta, noise, tau) -> edge mask B, [E].
    degrees: space -> active edges of each node.
  """

  def sample(space: Space, arch: ArchParams, noise: Noise, tau: Any,
             mask: Mask | None = None) -> dict[str, CellArch]:
    return {t: archs.compact(
        space, sample_edges(space, arch.beta[t], noise.beta[t], tau),
        op_mask(space, arch, noise, tau, mask, t), degrees(space),
        space.choices(t)) for t in space.cell_types}

  return sample


def _in_degrees(space):
  return space.in_degrees


def _init_pairs(space, key, alpha_std=1e-3, beta_std=1e-3):
  return normal(space, key, sum(laws.pair_sizes(space)), alpha_std, beta_std)


def _init_edges(space, key, alpha_std=1e-3, beta_std=1e-3):
  return normal(space, key, space.num_edges, alpha_std, beta_std)


rome_v1 = Method(
    name='rome_v1',
    init=_init_pairs,
    sample=hard_cells(laws.sample_pairs, _in_degrees),
    derive=derive.by_beta(derive.likeliest_subset),
    updates=(ARCH, THETA),
    noise=gumbel_of_arch)

rome_v2 = rome_v1._replace(
    name='rome_v2',
    init=_init_edges,
    sample=hard_cells(laws.sample_top_k, _in_degrees),
    derive=derive.by_beta(derive.strongest_edges))

"""SPOS (Guo et al., ECCV 2020): uniform single paths, no architecture weights.

The supernet is trained along paths drawn uniformly; architectures are compared
afterwards, with its weights.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import laws
from rome_jax.methods.method import (
    THETA,
    Mask,
    Method,
    Noise,
    RandomSearch,
    full_mask,
    gumbel_of_space,
    no_parameters,
)
from rome_jax.spaces import Space


def uniform_path(space: Space, arch: Any, noise: Noise, tau: Any,
                 mask: Mask | None = None) -> dict[str, CellArch]:
  """An architecture of the space, uniform over edge sets and operations.

  The largest of equal logits plus Gumbel noise is uniform. Gates are 1.
  """
  del arch, tau
  mask = mask or full_mask(space)
  cells = {}
  for t in space.cell_types:
    edges = jnp.concatenate([
        jax.nn.one_hot(jax.lax.top_k(noise.beta[t][a:b], d)[1], b - a).sum(0)
        for (a, b), d in zip(space.node_edges, space.in_degrees)])
    places = (jnp.argmax(laws.masked_logits(noise.alpha[t], mask[t]), -1)
              if noise.ops is None else noise.ops[t])
    cells[t] = archs.compact(
        space, edges, jax.nn.one_hot(places, space.num_choices),
        space.in_degrees, space.choices(t))
  return cells


spos = Method(
    name='spos',
    init=no_parameters,
    sample=uniform_path,
    derive=None,
    updates=(THETA,),
    noise=gumbel_of_space,
    plan=RandomSearch(),
    recipe={'search.k': 1, 'search.lr': .025, 'search.fraction_theta': .9,
            'search.fraction_alpha': .1, 'search.candidates': 1000})

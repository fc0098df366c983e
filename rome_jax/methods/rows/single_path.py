"""SPOS and FairNAS: uniform single paths, no architecture weights.

SPOS (Guo et al., ECCV 2020): the supernet is trained along paths drawn
uniformly; architectures are compared afterwards, with its weights.

FairNAS (Chu et al., ICCV 2021): a step draws a random permutation of each
site's operations, trains the paths that these make on one batch, each operation
exactly once, and makes one update of the summed gradient, clipped after the
sum. Where sites have different numbers of operations, a step has as many paths
as the largest, and the counts at a smaller site differ by one at most.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rome_jax.engine import archs
from rome_jax.engine.archs import CellArch
from rome_jax.methods import laws
from rome_jax.methods.method import (
    THETA,
    Evolve,
    Mask,
    Method,
    Noise,
    full_mask,
    gumbel_of_space,
    no_parameters,
)
from rome_jax.spaces import Space


def listed_path(space: Space, arch: Any, noise: Noise, tau: Any,
                mask: Mask | None = None) -> dict[str, CellArch]:
  """An architecture of the space: edge sets uniform, operations by alpha.

  The largest of logits plus Gumbel noise is a draw of their softmax; without
  architecture parameters the logits are equal. Gates are 1.
  """
  del tau
  mask = mask or full_mask(space)
  cells = {}
  for t in space.cell_types:
    edges = jnp.concatenate([
        jax.nn.one_hot(jax.lax.top_k(noise.beta[t][a:b], d)[1], b - a).sum(0)
        for (a, b), d in zip(space.node_edges, space.in_degrees)])
    logits = noise.alpha[t]
    if arch:
      logits = logits + jax.lax.stop_gradient(arch.alpha[t])
    places = (jnp.argmax(laws.masked_logits(logits, mask[t]), -1)
              if noise.ops is None else noise.ops[t])
    cells[t] = archs.compact(
        space, edges, jax.nn.one_hot(places, space.num_choices),
        space.in_degrees, space.choices(t))
  return cells


spos = Method(
    name='spos',
    init=no_parameters,
    sample=listed_path,
    derive=None,
    updates=(THETA,),
    noise=gumbel_of_space,
    plan=Evolve(),
    recipe={'search.k': 1, 'search.lr': .025, 'search.fraction_theta': .9,
            'search.fraction_alpha': .1, 'search.candidates': 1000,
            'search.evolution': 'evolution'})

fairnas = spos._replace(
    name='fairnas',
    recipe={**spos.recipe, 'search.k': 0, 'search.sampler': 'strict_fair',
            'search.theta_reduce': 'sum'})

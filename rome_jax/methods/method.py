"""The row of a method, and what every method does with one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.engine import archs
from rome_jax.methods import laws
from rome_jax.spaces import Space


class ArchParams(NamedTuple):
  """Architecture parameters, shared by all cells of a type.

  Attributes:
    alpha: {cell type: [S,C]}, a row per site (edge or node).
    beta: {cell type: [size of the method's row]}.
  """

  alpha: dict[str, jax.Array]
  beta: dict[str, jax.Array]


class Method(NamedTuple):
  """One row.

  Attributes:
    beta_sizes: space -> number of topology parameters of each node; () if the
      method has none.
    degrees: space -> active edges of each node of a sampled cell.
    sample_edges: (space, beta, noise, tau) -> edge mask B, [E].
    derive_edges: (space, beta) NumPy -> the edges of the derived cell, in
      rising order; where it has beta.
    log_prob_edges: (space, beta, edges) -> log p(edges; beta), Eq. 18.
  """

  beta_sizes: Callable[[Space], tuple[int, ...]]
  degrees: Callable[[Space], tuple[int, ...]]
  sample_edges: Callable
  derive_edges: Callable
  log_prob_edges: Callable


# ------------------------------------------------- parameters and samples


def init_arch(method: Method, space: Space, rng, alpha_std=1e-3,
              beta_std=1e-3) -> ArchParams:
  """Normal alpha and beta of the given standard deviations (DARTS: 1e-3)."""
  keys = iter(jax.random.split(rng, 2 * len(space.cell_types)))

  def table(std, shape):
    return {t: std * jax.random.normal(next(keys), shape)
            for t in space.cell_types}

  return ArchParams(
      table(alpha_std, (space.num_sites, space.num_choices)),
      table(beta_std, (sum(method.beta_sizes(space)),)))


def gumbel_noise(params: ArchParams, rng, k: int) -> ArchParams:
  """Gumbel(0, 1) noise for K samples: the shapes of `params` after K."""
  leaves, treedef = jax.tree.flatten(params)
  return jax.tree.unflatten(treedef, [
      jax.random.gumbel(key, (k, *leaf.shape), leaf.dtype)
      for key, leaf in zip(jax.random.split(rng, len(leaves)), leaves)])


def sample(method: Method, space: Space, params: ArchParams,
           noise: ArchParams, tau, ops=None):
  """One sampled architecture (unbatched).

  Args:
    method: a row.
    space: the search space.
    params: alpha and beta.
    noise: the same shapes, Gumbel(0, 1).
    tau: temperature.
    ops: {cell type: [S] int}, columns of alpha, to set the operations instead
      of sampling them.

  Returns:
    {cell type: CellArch}.
  """
  arch = {}
  for t in space.cell_types:
    choices = space.choices(t)
    edge_mask = method.sample_edges(space, params.beta[t], noise.beta[t], tau)
    if ops is None:
      op_mask = laws.gumbel_max(
          laws.masked_logits(params.alpha[t], choices), noise.alpha[t],
          tau)
    else:
      op_mask = jax.nn.one_hot(ops[t], space.num_choices)
    arch[t] = archs.compact(
        space, edge_mask, op_mask, method.degrees(space), choices)
  return arch


def log_prob(method: Method, space: Space, params: ArchParams, arch):
  """log p(z; alpha, beta) of ROME Eq. 18, over all cell types."""
  total = 0.
  for t in space.cell_types:
    choices, cell = space.choices(t), arch[t]
    sites = (cell.edges if space.sites == 'edges'
             else np.arange(space.num_sites))
    places = jnp.argmax(jnp.asarray(choices)[sites] == cell.ops[:, None], -1)
    total += method.log_prob_edges(space, params.beta[t], cell.edges)
    total += laws.log_prob_ops(
        laws.masked_logits(params.alpha[t], choices), sites, places)
  return total


def diagnostics(method: Method, space: Space,
                params: ArchParams) -> dict[str, jax.Array]:
  """Entropy (nats) and top-1 margin of alpha and beta, means per cell type.

  Of alpha the mean is over edges; of beta, over nodes with a choice. Methods
  without beta have no beta entries.
  """
  scalars = {}
  for t in space.cell_types:
    alpha = laws.masked_logits(params.alpha[t], space.choices(t))
    scalars[f'alpha_entropy_{t}'] = laws.entropy(alpha).mean()
    scalars[f'alpha_margin_{t}'] = laws.margin(alpha).mean()
    groups = _beta_groups(method, space, params.beta[t])
    if groups:
      scalars[f'beta_entropy_{t}'] = jnp.stack(
          [laws.entropy(g) for g in groups]).mean()
      scalars[f'beta_margin_{t}'] = jnp.stack(
          [laws.margin(g) for g in groups]).mean()
  return scalars


def _beta_groups(method, space, beta):
  """The logits of each node that has a choice of edges."""
  sizes = method.beta_sizes(space)
  starts = np.cumsum([0, *sizes])
  kept = zip(starts, sizes, space.fan_ins, space.in_degrees)
  return [beta[a:a + size] for a, size, n, d in kept if n > d]

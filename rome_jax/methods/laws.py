"""Sampling of architectures: pure functions, noise is an argument.

Equation numbers are those of ROME (Wang et al., ICCV 2023; arXiv 2011.11233).
Everything here is for one sample and one cell ("unbatched"); `jax.vmap` over
the noise gives K samples.

A hard choice keeps the gradient of its relaxation: `hard + (soft -
stop_gradient(soft))` has exactly the hard value, since the parenthesis is
exactly zero.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine.archs import CellArch
from rome_jax.spaces import Space


def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
  """Value `hard`, gradient of `soft`."""
  return hard + (soft - lax.stop_gradient(soft))


def _perturbed(logits, noise, tau):
  """(log p + g) and its softmax at temperature tau (Eq. 5, 8, 15, 16)."""
  scores = jax.nn.log_softmax(logits) + noise
  return scores, jax.nn.softmax(scores / tau)


def gumbel_softmax(logits: jax.Array, noise: jax.Array,
                   tau: Any) -> jax.Array:
  """The relaxed choice out of n (SNAS; ROME, Eq. 8).

  Args:
    logits: [..., n].
    noise: [..., n] Gumbel(0, 1).
    tau: temperature; towards 0 it becomes one-hot.

  Returns:
    [..., n], softmax((log p + noise) / tau).
  """
  return _perturbed(logits, noise, tau)[1]


def gumbel_max(logits: jax.Array, noise: jax.Array, tau: Any) -> jax.Array:
  """One choice out of n by Gumbel-Max, straight-through (Eq. 5-8, 12, 14).

  Args:
    logits: [..., n] alpha, or beta over pairs.
    noise: [..., n] Gumbel(0, 1).
    tau: temperature of the relaxation.

  Returns:
    [..., n] one-hot, with the gradient of the Gumbel-Softmax.
  """
  scores, soft = _perturbed(logits, noise, tau)
  hard = jax.nn.one_hot(
      jnp.argmax(scores, -1), logits.shape[-1], dtype=soft.dtype)
  return straight_through(hard, soft)


def gumbel_top_k(logits: jax.Array, noise: jax.Array, tau: Any,
                 k: int) -> jax.Array:
  """k choices out of n without replacement (Eq. 15-17, Gumbel-Top-k).

  Args:
    logits: [n] beta of one node's edges.
    noise: [n] Gumbel(0, 1).
    tau: temperature of the relaxation.
    k: number of choices, at most n.

  Returns:
    [n] with k ones. The relaxation (Eq. 16) sums to 1 although k are chosen;
    only its gradient is used.
  """
  scores, soft = _perturbed(logits, noise, tau)
  hard = jax.nn.one_hot(
      lax.top_k(scores, k)[1], logits.shape[-1], dtype=soft.dtype).sum(0)
  return straight_through(hard, soft)


def subsets(n: int, k: int) -> np.ndarray:
  """[n over k, n] 0/1: the sets of k out of n edges, in lexical order.

  For k = 2 these are the pairs (i, k), i < k, of ROME-v1.
  """
  sets = list(itertools.combinations(range(n), k))
  table = np.zeros((len(sets), n), np.int32)
  for row, chosen in enumerate(sets):
    table[row, list(chosen)] = 1
  return table


# --------------------------------------------------------- edges of a cell


def sample_all_edges(space: Space, beta: jax.Array, noise: jax.Array,
                     tau: Any) -> jax.Array:
  """Every edge active: GDAS, which has no topology parameters.

  Where nodes hold the operations the edges have weights: the soft
  Gumbel-Softmax over the parents of a node, as in NAS-Bench-1Shot1's GDAS. A
  node that keeps all its parents has none to weigh.
  """
  if space.sites == 'edges':
    return jnp.ones(space.num_edges)
  return jnp.concatenate([
      jnp.ones(b - a) if d == b - a else (
          _perturbed(beta[a:b], noise[a:b], tau)[1])
      for (a, b), d in zip(space.node_edges, space.in_degrees)])


def parent_weights(space: Space, beta: jax.Array) -> jax.Array:
  """[E], the softmax of beta over the parents of a node; 1 where all stay.

  The weights of edges where nodes hold the operations (NAS-Bench-1Shot1).
  """
  return jnp.concatenate([
      jnp.ones(b - a) if d == b - a else jax.nn.softmax(beta[a:b])
      for (a, b), d in zip(space.node_edges, space.in_degrees)])


def pair_sizes(space: Space) -> tuple[int, ...]:
  """Per node, the number of its edge subsets (1, 3, 6, 10 in S0)."""
  return tuple(
      len(subsets(n, d)) for n, d in zip(space.fan_ins, space.in_degrees))


def sample_pairs(space: Space, beta: jax.Array, noise: jax.Array,
                 tau: Any) -> jax.Array:
  """ROME-v1: one pair of edges per node (Eq. 10-14).

  Args:
    space: of in-degree d; the "pairs" are its d-subsets.
    beta: [sum of pair_sizes] logits, node by node.
    noise: the same shape, Gumbel(0, 1).
    tau: temperature.

  Returns:
    B, [E]: 1 on the active edges.
  """
  masks, start = [], 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = subsets(b - a, d)
    part = slice(start, start + len(table))
    indicator = gumbel_max(beta[part], noise[part], tau)  # I_j, Eq. 12, 14
    masks.append(indicator @ table.astype(indicator.dtype))  # Eq. 13
    start += len(table)
  return jnp.concatenate(masks)


def sample_top_k(space: Space, beta: jax.Array, noise: jax.Array,
                 tau: Any) -> jax.Array:
  """ROME-v2: Gumbel-Top2 over each node's edges (Eq. 15-17).

  Args:
    space: of in-degree d.
    beta: [E] logits.
    noise: [E] Gumbel(0, 1).
    tau: temperature.

  Returns:
    B, [E]: 1 on the active edges.
  """
  return jnp.concatenate([
      gumbel_top_k(beta[a:b], noise[a:b], tau, d)
      for (a, b), d in zip(space.node_edges, space.in_degrees)])


def masked_logits(alpha: jax.Array,
                  allowed: np.ndarray | jax.Array) -> jax.Array:
  """alpha with the places that may not be chosen out of reach.

  Args:
    alpha: [S,C].
    allowed: [S,C] bool; static (NumPy) or an array of a mask.
  """
  if isinstance(allowed, np.ndarray) and allowed.all():
    return alpha
  # Not -inf: an entropy would be 0 * inf there.
  return jnp.where(allowed, alpha, jnp.asarray(-1e9, alpha.dtype))


def edge_softmax(space: Space, beta: jax.Array) -> jax.Array:
  """[E], the softmax of beta [E] over the edges of each node."""
  return jnp.concatenate(
      [jax.nn.softmax(beta[a:b]) for a, b in space.node_edges])


# ------------------------------------------------------------- strict fair


def strict_fair_ops(rng: jax.Array, num_samples: int, num_edges: int,
                    num_ops: int) -> jax.Array:
  """Each operation once per site over every `num_ops` samples.

  FairNAS's strict fairness (Chu et al. 2021), here over the K samples of one
  weight step: per site, independent random permutations of the operations.
  Where a method samples edges too (ROME), it is the assignment that is fair:
  an operation is trained in those of its samples that keep the edge.

  Args:
    rng: PRNG key.
    num_samples: K, a multiple of num_ops.
    num_edges: E.
    num_ops: O.

  Returns:
    [K,E] int32 operations.
  """
  rounds = num_samples // num_ops
  order = jnp.broadcast_to(
      jnp.arange(num_ops)[None, :, None], (rounds, num_ops, num_edges))
  return jax.random.permutation(
      rng, order, axis=1, independent=True).reshape(num_samples, num_edges)


def fair_ops(rng: jax.Array, num_samples: int, counts: np.ndarray,
             mask: jax.Array | None = None) -> jax.Array:
  """`strict_fair_ops` where sites have different numbers of operations.

  Each site goes through random permutations of its own operations, one after
  the other, cut off at K: in the K samples of a step their counts differ by
  one at most, and by none where the site's number divides K.

  Args:
    rng: PRNG key.
    num_samples: K.
    counts: [S] int, operations of each site.
    mask: bool [S,C], of these those that there are; may be traced.

  Returns:
    [K,S] int32 places in the rows of `Space.choices`.
  """
  if mask is not None:
    return _fair_ops_of(rng, num_samples, mask)
  if (counts == counts[0]).all() and num_samples % counts[0] == 0:
    return strict_fair_ops(rng, num_samples, len(counts), int(counts[0]))
  rounds = -(-num_samples // int(counts.min()))
  scores = jax.random.uniform(rng, (rounds, len(counts), int(counts.max())))
  there = np.arange(counts.max()) < counts[:, None]
  orders = jnp.argsort(jnp.where(there, scores, 2.), -1).astype(jnp.int32)
  turn, place = np.divmod(np.arange(num_samples)[:, None], counts)
  return orders[turn, np.arange(len(counts)), place]


def _fair_ops_of(rng, num_samples, mask):
  """`fair_ops` of a mask; as many rounds as a site of one operation needs."""
  scores = jax.random.uniform(rng, (num_samples, *mask.shape))
  orders = jnp.argsort(jnp.where(mask, scores, 2.), -1).astype(jnp.int32)
  turn, place = jnp.divmod(jnp.arange(num_samples)[:, None], mask.sum(-1))
  return orders[turn, np.arange(len(mask)), place]


# ------------------------------------------------------ laws and diagnostics


def log_prob_top_k(logits: jax.Array, mask: np.ndarray) -> jax.Array:
  """Log-probability that Gumbel-Top-k selects exactly the set `mask`.

  Sums over the orders in which the set can be drawn without replacement;
  for one edge it is the log-softmax, and for a pair p_i p_j/(1-p_i) +
  p_i p_j/(1-p_j) (ROME, Sec. 3.3).

  Args:
    logits: [n].
    mask: [n] static 0/1 (NumPy).
  """
  p = jax.nn.softmax(logits)
  chosen = np.flatnonzero(mask)
  total: Any = 0.
  for order in itertools.permutations(chosen):
    term: Any = 1.
    left: Any = 1.
    for i in order:
      term = term * p[i] / left
      left = left - p[i]
    total = total + term
  return jnp.log(total)


def log_prob_ops(alpha: jax.Array, sites: np.ndarray | jax.Array,
                 places: jax.Array) -> jax.Array:
  """Sum of log p(o_i | e_i; alpha) over the active edges (Eq. 18).

  Args:
    alpha: [S,C].
    sites: [M] int, its rows.
    places: [M] int, its columns.
  """
  return jax.nn.log_softmax(alpha)[sites, places].sum()


def sites_and_places(space: Space, cell_type: str,
                     cell: CellArch) -> tuple[Any, jax.Array]:
  """Where in alpha the operations of a path stand: rows [M], columns [M]."""
  sites = cell.edges if space.sites == 'edges' else np.arange(space.num_sites)
  there = jnp.asarray(space.choices(cell_type))[sites]
  return sites, jnp.argmax(there == cell.ops[:, None], -1)


def entropy(logits: jax.Array) -> jax.Array:
  """Entropy in nats of softmax(logits) over the last axis."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(-1)


def margin(logits: jax.Array) -> jax.Array:
  """p(first) - p(second) of softmax(logits); 0 for a single choice."""
  if logits.shape[-1] < 2:
    return jnp.zeros(logits.shape[:-1])
  top = lax.top_k(jax.nn.softmax(logits), 2)[0]
  return top[..., 0] - top[..., 1]


def tau_at(progress: Any, start: float, end: float,
           schedule: str = 'linear') -> Any:
  """Temperature at a progress of 0 to 1 through the search.

  'linear': GDAS's 10 -> 0.1; 'exponential': geometric; 'constant': start.
  """
  if schedule == 'linear':
    return start + (end - start) * progress
  if schedule == 'exponential':
    return start * (end / start) ** progress
  return start + 0. * progress


# ---------------------------------------------- probability of the topology


def log_prob_pairs(space: Space, beta: jax.Array,
                   edges: jax.Array) -> jax.Array:
  """log p of ROME-v1's subsets (Eq. 12) that make up `edges` [M]."""
  mask = jnp.zeros(space.num_edges).at[edges].set(1)
  total: Any = 0.
  start = 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = subsets(b - a, d)
    row = jnp.argmax((table == mask[a:b]).all(-1))
    total += jax.nn.log_softmax(beta[start:start + len(table)])[row]
    start += len(table)
  return total


def log_prob_independent(space: Space, beta: jax.Array,
                         edges: jax.Array) -> jax.Array:
  """The product of Eq. 18, p(e_i; beta) as in Eq. 15.

  It ranks architectures; the probability that Gumbel-Top2 draws a given pair
  is `log_prob_top_k`.
  """
  log_p = jnp.concatenate(
      [jax.nn.log_softmax(beta[a:b]) for a, b in space.node_edges])
  return log_p[edges].sum()


def log_prob(log_prob_edges: Callable[[Space, Any, Any], jax.Array],
             space: Space, params: Any,
             cells: Mapping[str, CellArch]) -> jax.Array:
  """log p(z; alpha, beta) of ROME Eq. 18, over all cell types.

  Args:
    log_prob_edges: `log_prob_pairs` (ROME-v1) or `log_prob_independent` (v2).
    space: the search space.
    params: alpha and beta, a `method.ArchParams`.
    cells: {cell type: CellArch}.
  """
  total: Any = 0.
  for t in space.cell_types:
    total += log_prob_edges(space, params.beta[t], cells[t].edges)
    total += log_prob_ops(
        masked_logits(params.alpha[t], space.choices(t) >= 0),
        *sites_and_places(space, t, cells[t]))
  return total

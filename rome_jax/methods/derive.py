"""Derivation rules: architecture parameters to a genotype, on the host.

Each is a published rule. All leave out what a space searches but never derives
(`Space.not_derived`) and what a mask excludes.
"""

from collections.abc import Callable

import jax
import numpy as np

from rome_jax.methods import laws
from rome_jax.methods.method import ArchParams, Mask, full_mask
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype

EdgeRule = Callable[[Space, np.ndarray], list[int]]  # (space, beta) -> edges


def likeliest_subset(space: Space, beta: np.ndarray) -> list[int]:
  """ROME-v1: each node's likeliest pair of edges (Eq. 12)."""
  edges, start = [], 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = laws.subsets(b - a, d)
    best = table[int(np.argmax(beta[start:start + len(table)]))]
    edges += [a + int(i) for i in np.flatnonzero(best)]
    start += len(table)
  return edges


def strongest_edges(space: Space, beta: np.ndarray) -> list[int]:
  """ROME-v2: each node's edges of largest beta (Eq. 15).

  They are also the likeliest set under sampling without replacement.
  """
  edges = []
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    edges += sorted(
        a + int(i) for i in np.argsort(-beta[a:b], kind='stable')[:d])
  return edges


def every_edge(space: Space, beta: np.ndarray) -> list[int]:
  """All edges: for spaces without a topology to choose."""
  del beta
  return list(range(space.num_edges))


def by_beta(edge_rule: EdgeRule) -> Callable[..., Genotype]:
  """ROME: edges by beta, then the likeliest operation on each.

  ROME returns argmax p(z). This is the mode of the law that is sampled, edges
  and operations apart (Eq. 4). Maximising the product of Eq. 18 jointly would
  prefer edges that are surer of their operation, which couples topology to
  operations again; with equally sure edges the two are the same.
  """

  def derive(space: Space, arch: ArchParams,
             mask: Mask | None = None) -> Genotype:
    alpha, beta = jax.tree.map(np.asarray, arch)
    return genotypes.make(space, {
        t: (edge_rule(space, beta[t]), _best_ops(space, alpha, t, mask))
        for t in space.cell_types})

  return derive


def best_pairs(space: Space, arch: ArchParams,
               mask: Mask | None = None) -> Genotype:
  """GDAS: a node's best (edge, operation) pairs, even two of one edge.

  Ranked by log p of the law that was sampled, in which what is never derived
  has its share. Where nodes hold the operations the edges have weights, and
  the strongest stay (NAS-Bench-1Shot1); where every edge stays (NAS-Bench-201)
  so do they all.
  """
  if space.sites == 'nodes':
    return by_beta(strongest_edges)(space, arch, mask)
  genotype = by_beta(every_edge)(space, arch, mask)
  if not space.has_topology:
    return genotype
  alpha = jax.tree.map(np.asarray, arch.alpha)
  return genotype._replace(**{
      t: _best_pairs_of(space, alpha, t, mask) for t in space.cell_types})


def _best_pairs_of(space, alpha, cell_type, mask):
  log_p = _derivable(space, alpha, cell_type, mask) - np.logaddexp.reduce(
      np.where(_allowed(space, cell_type, mask), alpha[cell_type], -np.inf),
      -1, keepdims=True)
  choices, nodes = space.choices(cell_type), []
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    best = np.argsort(-log_p[a:b].ravel(), kind='stable')[:d]
    edges, places = np.divmod(best, space.num_choices)
    nodes.append(tuple(
        (space.ops[choices[a + e, i]], int(space.edge_preds[a + e]))
        for e, i in zip(edges, places)))
  return tuple(nodes)


def two_strongest(space: Space, arch: ArchParams,
                  mask: Mask | None = None) -> Genotype:
  """DARTS: a node's edges whose best operation is strongest.

  The strength of an edge is the largest softmax(alpha) among the operations
  that may be derived, so `none` has its share of the softmax and no vote
  (Liu et al., ICLR 2019, `model_search.py: genotype`). As many edges as the
  space's in-degree, two in DARTS. Where nodes hold the operations the edges
  have weights, and the strongest stay (NAS-Bench-1Shot1).
  """
  if space.sites == 'nodes':
    return by_beta(strongest_edges)(space, arch, mask)
  return _two_strongest(space, arch, lambda beta: np.ones(space.num_edges),
                        mask)


def two_strongest_by_beta(space: Space, arch: ArchParams,
                          mask: Mask | None = None) -> Genotype:
  """PC-DARTS: as DARTS, each edge's softmax times its edge weight.

  (Xu et al., ICLR 2020, `model_search.py: genotype`.)
  """
  return _two_strongest(
      space, arch, lambda beta: np.asarray(laws.edge_softmax(space, beta)),
      mask)


def limited_skips(most: int) -> Callable[..., Genotype]:
  """P-DARTS: as DARTS, with at most so many skips in the normal cell.

  While it has more, the skip of least softmax(alpha) gets the probability 0,
  and operations and edges are chosen anew (Chen et al., ICCV 2019,
  `train_search.py: delete_min_sk_prob, keep_1_on, keep_2_branches`; the paper
  keeps 2). A skip that nothing can replace stays: one on an edge without
  another operation, into a node that needs the edge.
  """

  def derive(space: Space, arch: ArchParams,
             mask: Mask | None = None) -> Genotype:
    alpha = jax.tree.map(np.asarray, arch.alpha)
    cells = {}
    for t in space.cell_types:
      shares = _shares(space, alpha, t, mask)
      edges, ops = _strongest_of(space, t, shares)
      while t == 'normal' and (skip := _skip_to_drop(
          space, shares, edges, ops, most)):
        shares[skip] = 0.
        edges, ops = _strongest_of(space, t, shares)
      cells[t] = edges, ops
    return genotypes.make(space, cells)

  return derive


def _skip_to_drop(space, shares, edges, ops, most):
  """(edge, place) of the weakest skip, if there are too many; else None."""
  choices = space.choices('normal')
  skips = [(e, int(np.flatnonzero(
      choices[e] == space.ops.index('skip_connect'))[0]))
           for e in edges if ops[e] == 'skip_connect']
  # A skip struck out before stands for an edge that has nothing else.
  left = [skip for skip in skips if shares[skip] > 0]
  if len(skips) <= most or not left:
    return None
  return min(left, key=lambda skip: shares[skip])


def _strongest_of(space, cell_type, shares):
  """(edges, operations) by the largest share of each edge."""
  return strongest_edges(space, shares.max(-1)), _best_of(
      space, cell_type, shares)


def above(threshold: float) -> Callable[..., Genotype]:
  """FairDARTS: of a node's strongest edges those of at least a threshold.

  The strength of an edge is the largest sigmoid(alpha) among the operations
  that may be derived. Each node has as many edges as the space's in-degree at
  most (Chu et al., ECCV 2020, `utils.py: parse`, 'threshold_sparse'). An edge
  that falls short is left out, or is the space's `absent`; where it is left
  out, a node of which none would stay keeps its strongest.

  Args:
    threshold: .85 in FairDARTS.
  """

  def derive(space: Space, arch: ArchParams,
             mask: Mask | None = None) -> Genotype:
    alpha = jax.tree.map(np.asarray, arch.alpha)
    cells = {}
    for t in space.cell_types:
      logits = np.float64(_derivable(space, alpha, t, mask))
      strength = (1 / (1 + np.exp(-logits))).max(-1)
      edges = [e for e in strongest_edges(space, strength)
               if strength[e] >= threshold]
      if not space.absent:
        edges = _with_one_each(space, edges, strength)
      cells[t] = edges, _best_ops(space, alpha, t, mask)
    return genotypes.make(space, cells)

  return derive


def _with_one_each(space, edges, strength):
  """The edges, and the strongest of each node that has none of them."""
  lone = [a + int(np.argmax(strength[a:b])) for a, b in space.node_edges
          if not any(a <= e < b for e in edges)]
  return sorted([*edges, *lone])


def _two_strongest(space, arch, edge_weights, mask):
  alpha, beta = jax.tree.map(np.asarray, arch)
  cells = {}
  for t in space.cell_types:
    strength = _shares(space, alpha, t, mask).max(-1) * edge_weights(beta[t])
    cells[t] = (strongest_edges(space, strength),
                _best_ops(space, alpha, t, mask))
  return genotypes.make(space, cells)


def _shares(space, alpha, cell_type, mask):
  """[S,C] softmax(alpha); -1 where nothing may be derived."""
  logits = np.where(
      _allowed(space, cell_type, mask), np.float64(alpha[cell_type]), -np.inf)
  p = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
  return np.where(
      np.isfinite(_derivable(space, alpha, cell_type, mask)), p, -1.)


def _allowed(space, cell_type, mask):
  return np.asarray((mask or full_mask(space))[cell_type])


def _derivable(space, alpha, cell_type, mask):
  """alpha with -inf where nothing may be derived."""
  choices = space.choices(cell_type)
  barred = [i for i, op in enumerate(space.ops) if op in space.not_derived]
  return np.where(
      ~_allowed(space, cell_type, mask) | np.isin(choices, barred), -np.inf,
      alpha[cell_type])


def _best_ops(space, alpha, cell_type, mask):
  """Per site the likeliest operation."""
  return _best_of(
      space, cell_type, _derivable(space, alpha, cell_type, mask))


def _best_of(space, cell_type, values):
  """Per site the name of the operation of the largest value."""
  choices = space.choices(cell_type)
  return [space.ops[choices[i, place]]
          for i, place in enumerate(np.argmax(values, -1))]

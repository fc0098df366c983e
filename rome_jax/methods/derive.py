"""Derivation rules: architecture parameters to a genotype."""

import jax
import numpy as np

from rome_jax.methods import laws
from rome_jax.methods import method as method_lib
from rome_jax.spaces import Space, genotypes

# -------------------------------------------------------------- derivation
#
# ROME returns argmax p(z). We take the mode of the law that is sampled, edges
# and operations apart (Eq. 4): the likeliest edges by beta, then the likeliest
# operation on each. Maximising the product of Eq. 18 jointly would prefer
# edges that are surer of their operation, which couples topology to
# operations again; with equally sure edges the two are the same.


def likeliest_subset(space, beta):
  """ROME-v1: the likeliest pair of each node."""
  edges, start = [], 0
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    table = laws.subsets(b - a, d)
    best = table[int(np.argmax(beta[start:start + len(table)]))]
    edges += [a + i for i in np.flatnonzero(best)]
    start += len(table)
  return edges


def strongest_edges(space, beta):
  """ROME-v2: the two largest beta of each node.

  It is also the likeliest set under sampling without replacement.
  """
  edges = []
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    edges += sorted(a + np.argsort(-beta[a:b], kind='stable')[:d])
  return edges


def _derivable(space, alpha, cell_type):
  """alpha with -inf where nothing may be derived."""
  choices = space.choices(cell_type)
  barred = [i for i, op in enumerate(space.ops) if op in space.not_derived]
  return np.where((choices < 0) | np.isin(choices, barred), -np.inf, alpha)


def best_ops(space, alpha, cell_type):
  """Per site the likeliest operation."""
  places = np.argmax(_derivable(space, alpha, cell_type), -1)
  choices = space.choices(cell_type)
  return [space.ops[choices[i, place]] for i, place in enumerate(places)]


def best_pairs(space, alpha, cell_type):
  """GDAS: a node's best (edge, operation) pairs, even two of one edge."""
  choices, nodes = space.choices(cell_type), []
  sampled = np.where(choices < 0, -np.inf, alpha)
  # Of the law that was sampled: what is only barred has its share of it.
  log_p = _derivable(space, alpha, cell_type) - np.logaddexp.reduce(
      sampled, -1, keepdims=True)
  for (a, b), d in zip(space.node_edges, space.in_degrees):
    best = np.argsort(-log_p[a:b].ravel(), kind='stable')[:d]
    edges, places = np.divmod(best, space.num_choices)
    nodes.append(tuple(
        (space.ops[choices[a + e, i]], int(space.edge_preds[a + e]))
        for e, i in zip(edges, places)))
  return tuple(nodes)


def derive(method: method_lib.Method, space: Space,
           params: method_lib.ArchParams) -> genotypes.Genotype:
  """The genotype of the method's rule."""
  alpha, beta = jax.tree.map(np.asarray, params)
  has_beta = any(method.beta_sizes(space))
  every = range(space.num_edges)
  genotype = genotypes.make(space, {
      t: (method.derive_edges(space, beta[t]) if has_beta else every,
          best_ops(space, alpha[t], t)) for t in space.cell_types})
  if has_beta or not space.has_topology:
    return genotype
  # No topology parameters, but edges to leave out: by strength of alpha.
  return genotype._replace(**{
      t: best_pairs(space, alpha[t], t) for t in space.cell_types})

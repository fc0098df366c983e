"""ROME's equations in plain NumPy, float64, loops as the paper writes them.

The independent oracle of the tests; nothing here comes from the package.
"""

import itertools

import numpy as np


def softmax(x):
  """Eq. 1, 5, 11, 15, over the last axis."""
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def relaxed(logits, noise, tau):
  """Eq. 8, 14, 16: the Gumbel-Softmax."""
  return softmax((np.log(softmax(logits)) + noise) / tau)


def one_hot_max(logits, noise):
  """Eq. 6 and 12, on the last axis."""
  scores = np.log(softmax(logits)) + noise
  return np.eye(logits.shape[-1])[scores.argmax(-1)]


def node_sizes(space):
  """Predecessors of each node."""
  return [space.num_inputs + i for i in range(space.num_nodes)]


def pairs_to_edges(indicator, n, k):
  """Eq. 13 for one node: B from I, whose entries are in lexical order."""
  b = np.zeros(n)
  for value, chosen in zip(indicator, itertools.combinations(range(n), k)):
    for edge in chosen:
      b[edge] += value
  return b


def split(beta, sizes):
  """Cuts a flat table into the parts of the nodes."""
  return np.split(beta, np.cumsum(sizes)[:-1])


def num_pairs(space):
  return [
      len(list(itertools.combinations(range(n), min(n, space.in_degree))))
      for n in node_sizes(space)]


def edges_v1(space, beta, noise, tau):
  """(B, relaxation of B), [E] each, of ROME-v1: Eq. 10-14."""
  hard, soft = [], []
  sizes = num_pairs(space)
  for n, b, g in zip(
      node_sizes(space), split(beta, sizes), split(noise, sizes)):
    k = min(n, space.in_degree)
    hard.append(pairs_to_edges(one_hot_max(b, g), n, k))
    soft.append(pairs_to_edges(relaxed(b, g, tau), n, k))
  return np.concatenate(hard), np.concatenate(soft)


def edges_v2(space, beta, noise, tau):
  """(B, relaxation of B), [E] each, of ROME-v2: Eq. 15-17."""
  hard, soft = [], []
  sizes = node_sizes(space)
  for n, b, g in zip(sizes, split(beta, sizes), split(noise, sizes)):
    tilde = relaxed(b, g, tau)
    chosen = np.argsort(-(np.log(softmax(b)) + g))[:min(n, space.in_degree)]
    hard.append(np.isin(np.arange(n), chosen).astype(float))
    soft.append(tilde)
  return np.concatenate(hard), np.concatenate(soft)


def edges_all(space, beta, noise, tau):
  """GDAS: every edge, and nothing to learn about it."""
  ones = np.ones(sum(node_sizes(space)))
  return ones, ones


EDGES = {'rome_v1': edges_v1, 'rome_v2': edges_v2, 'gdas': edges_all}


def numeric_jacobian(function, x, eps=1e-6):
  """[out, in] central differences."""
  columns = []
  for i in range(x.size):
    step = np.zeros(x.size)
    step[i] = eps
    step = step.reshape(x.shape)
    columns.append(
        (function(x + step) - function(x - step)).ravel() / (2 * eps))
  return np.stack(columns, -1)

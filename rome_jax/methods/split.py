"""Splitting a supernet: Few-Shot NAS, and GM-NAS by gradient matching.

Where candidates of a site (an edge, node or block) disagree about the weights
that they share, they do not share them any longer: the supernet is copied, and
each copy, a leaf, keeps one group of the candidates. A leaf is a mask: every
leaf runs the same compiled program.

Few-Shot NAS (Zhao et al., ICML 2021) gives each candidate of one site a leaf of
its own. GM-NAS (Hu et al., ICLR 2022) splits into few groups, so that it can
split several sites. With one candidate active on a site at a time, it compares
the gradients of the shared weights,

    distance(i, j) = 1 - cos(gradient_i, gradient_j)

averaged over batches, and takes the partition whose groups are closest within.

Pure functions; `train.leaves` runs them.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine import sums
from rome_jax.engine.owners import Candidate
from rome_jax.methods.method import Method, State
from rome_jax.methods.step import takes
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype

# Partitions that are compared one by one; beyond, groups are found by
# average linkage.
MOST_PARTITIONS = 100_000

# What the fields `split`, `split_cells`, `split_inherit` and `split_choice` of
# a search may be.
NO_SPLIT, GM, FEW_SHOT = 'none', 'gm', 'few_shot'
SPLITS = (NO_SPLIT, GM, FEW_SHOT)
CELLS = ('normal', 'all')
NOTHING, WEIGHTS, EVERYTHING = 'nothing', 'weights', 'all'
INHERITED = (NOTHING, WEIGHTS, EVERYTHING)
VALID, TABLE, HALVING, EVOLUTION = 'valid', 'table', 'halving', 'evolution'
CHOICES = (VALID, TABLE, HALVING, EVOLUTION)

# Weights whose gradients are compared, a name of SHARED.
OPERATIONS, BODY, ALL = 'operations', 'body', 'all'
SHARED = (OPERATIONS, BODY, ALL)
_ENDS = ('stem', 'head')  # what the names of a network's ends begin with

LARGEST_BETWEEN, SMALLEST_WITHIN = 'between', 'within'
RULES = (LARGEST_BETWEEN, SMALLEST_WITHIN)

_TRIES = 16  # samples in which one is sought that keeps the site

Groups = tuple[tuple[int, ...], ...]  # places in a row of `Space.choices`
Site = tuple[str, int]  # cell type and number


class Split(NamedTuple):
  """How one supernet is split.

  Attributes:
    cell_type, site: what is split.
    groups: candidates of each child, as places in the site's row.
  """

  cell_type: str
  site: int
  groups: Groups


# ------------------------------------------------------------------ partition


def partition(distances: np.ndarray, groups: int,
              sizes: Sequence[Sequence[int]] = ()) -> Groups | None:
  """The groups of smallest sum of distances within them.

  Exact, by comparing all partitions, up to MOST_PARTITIONS of them; beyond
  that SciPy's average linkage, which takes any `sizes` only by luck.

  Args:
    distances: [n,n], symmetric.
    groups: how many.
    sizes: sizes that the groups may have together, in any order, such as
      [(2, 5), (3, 4)]; empty: any.

  Returns:
    Groups of the numbers 0 to n - 1, in order of their first; the first of
    equally good ones. None if there is no such partition.

  >>> partition(np.array([[0., 9., 1.], [9., 0., 9.], [1., 9., 0.]]), 2)
  ((0, 2), (1,))
  """
  n = len(distances)
  allowed = {tuple(sorted(size)) for size in sizes}
  if _number(n, groups) > MOST_PARTITIONS:
    found = _linked(distances, groups)
    return found if found is None or not allowed or tuple(
        sorted(map(len, found))) in allowed else None
  best, least = None, math.inf
  for found in _partitions(n, groups):
    if allowed and tuple(sorted(map(len, found))) not in allowed:
      continue
    total = within(distances, found)
    if total < least:
      best, least = found, total
  return best


def within(distances: np.ndarray, groups: Groups) -> float:
  """The sum of the distances of all pairs that share a group."""
  return float(sum(distances[i, j] for group in groups
                   for i, j in itertools.combinations(group, 2)))


def between(distances: np.ndarray, groups: Groups) -> float:
  """The sum of the distances of all pairs that a partition divides."""
  inside = sorted(itertools.chain.from_iterable(groups))
  return within(distances, (tuple(inside),)) - within(distances, groups)


def _number(n, groups):
  """Partitions of n things into so many groups (Stirling, second kind)."""
  return sum((-1) ** k * math.comb(groups, k) * (groups - k) ** n
             for k in range(groups + 1)) // math.factorial(groups)


def _partitions(n: int, groups: int) -> Iterator[Groups]:
  """Every partition of 0 to n - 1 into so many groups, once."""

  def grow(i, found):
    if n - i < groups - len(found):
      return
    if i == n:
      yield tuple(map(tuple, found))
      return
    for k, group in enumerate(found):
      yield from grow(i + 1, [*found[:k], [*group, i], *found[k + 1:]])
    if len(found) < groups:
      yield from grow(i + 1, [*found, [i]])

  return grow(0, [])


def _linked(distances, groups):
  # Takes longer to load than all else that `--help` needs.
  from scipy.cluster import hierarchy
  from scipy.spatial import distance as scipy_distance

  tree = hierarchy.average(scipy_distance.squareform(distances, checks=False))
  labels = hierarchy.fcluster(tree, groups, 'maxclust')
  found = {}
  for i, label in enumerate(labels):
    found.setdefault(label, []).append(i)
  return tuple(map(tuple, found.values())) if len(found) == groups else None


def choose(matrices: Mapping[Site, tuple[Sequence[int], np.ndarray]],
           groups: int, sizes: Sequence[Sequence[int]] = (),
           rule: str = LARGEST_BETWEEN) -> Split | None:
  """Chooses which site to split, and how.

  Args:
    matrices: {(cell type, site): (places of its candidates, distances [n,n])}.
    groups, sizes: see `partition`.
    rule: 'between': the site of the largest sum between groups (GM-NAS in
      NAS-Bench-201), or 'within': of the smallest within them (in DARTS' space
      and among MBConvs).

  Returns:
    The split; the first of equally good ones. None if no site can be split so.
  """
  best, most = None, -math.inf
  for (cell_type, site), (places, distances) in matrices.items():
    found = partition(distances, groups, sizes)
    if found is None:
      continue
    score = (between(distances, found) if rule == LARGEST_BETWEEN
             else -within(distances, found))
    if score > most:
      most = score
      best = Split(cell_type, site, tuple(
          tuple(places[i] for i in group) for group in found))
  return best


# ---------------------------------------------------------------------- masks


def unsplit(space: Space, mask: Mapping[str, np.ndarray],
            cell_types: Sequence[str]) -> list[Site]:
  """The sites that no split has touched and that have a choice.

  Args:
    space: the search space.
    mask: {cell type: bool [S,C]} of a supernet.
    cell_types: in which cells.
  """
  there = {t: space.choices(t) >= 0 for t in cell_types}
  return [(t, site) for t in cell_types for site in range(space.num_sites)
          if there[t][site].sum() > 1
          and (np.asarray(mask[t])[site] == there[t][site]).all()]


def children(mask: Mapping[str, np.ndarray],
             split: Split) -> list[dict[str, np.ndarray]]:
  """The mask of each child of a supernet, {cell type: bool [S,C]}."""
  found = []
  for group in split.groups:
    child = {t: np.array(rows) for t, rows in mask.items()}
    child[split.cell_type][split.site] = False
    child[split.cell_type][split.site, list(group)] = True
    found.append(child)
  return found


def each_operation(space: Space, cell_type: str, site: int) -> Split:
  """Few-Shot NAS: each candidate of a site is a leaf of its own."""
  return Split(cell_type, site, tuple(
      (int(place),) for place in np.flatnonzero(
          space.choices(cell_type)[site] >= 0)))


def leaf_of(space: Space, masks: Sequence[Mapping[str, np.ndarray]],
            genotype: Genotype) -> int:
  """Which leaf an architecture belongs to.

  Where an architecture keeps every edge that was split, exactly one. Where its
  topology leaves out a split edge, several leaves have it; the first counts.

  Args:
    space: the search space.
    masks: of the leaves.
    genotype: of the space.

  Raises:
    ValueError: no leaf has it.
  """
  used = _used(space, genotype)
  for number, mask in enumerate(masks):
    if all(mask[t][site, place] for t, site, place in used):
      return number
  raise ValueError(f'no leaf has {genotypes.to_text(genotype)}')


def _used(space, genotype):
  """[(cell type, site, place)] of the operations of a genotype."""
  found = []
  for t in genotypes.cell_types(genotype):
    choices = space.choices(t)
    for number, node in enumerate(getattr(genotype, t)):
      start = space.node_edges[number][0]
      for op, pred in node:
        site = number if space.sites == 'nodes' else (
            start + pred - int(space.edge_preds[start]))
        if op in space.ops:  # An edge left out may stand as `absent`.
          place = np.flatnonzero(choices[site] == space.ops.index(op))
          found += [(t, site, int(i)) for i in place]
  return found


# -------------------------------------------------------------------- scores


def cosine_distances(gradients: jax.Array) -> jax.Array:
  """[n,n], 1 - cos of every two rows of [n,d]; 1 where a row is 0.

  >>> cosine_distances(jnp.array([[1., 0.], [0., 2.], [3., 0.]])).tolist()
  [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
  """
  products = jnp.matmul(gradients, gradients.T,
                        precision=lax.Precision.HIGHEST)
  lengths = jnp.sqrt(jnp.diagonal(products))
  scale = lengths[:, None] * lengths[None, :]
  return 1. - jnp.where(scale > 0, products / jnp.where(scale > 0, scale, 1.),
                        0.)


def make_score(method: Method, space: Space, loss_fn: Callable[..., Any],
               tau_fn: Callable[[Any], Any],
               candidates: Sequence[Candidate], cell_type: str,
               shared: str = OPERATIONS, soft: bool = False,
               accumulate: int = 1) -> Callable[..., jax.Array]:
  """Builds the function that compares the candidates of one site.

  One program for all sites of a cell type and all of their candidates, which
  it takes one after another in the memory of one.

  Args:
    method: the row; its noise and its sampler make the rest of the supernet,
      the same for all candidates of a site.
    space: the search space.
    loss_fn: of the step.
    tau_fn: step -> temperature.
    candidates: where the supernet keeps the weights of each operation.
    cell_type: of the sites.
    shared: which weights are compared, those of operations of all other sites
      ('operations', GM-NAS in DARTS' space), these and all between the
      operations ('body', in NAS-Bench-201), or all but the site's own ('all',
      among MBConvs).
    soft: whether the active candidate of a mixture keeps its own gate (GM-NAS
      in DARTS' space), or has the gate that it has without the others. Only
      for methods that list every candidate.
    accumulate: parts of a batch, evaluated one after another.

  Returns:
    score(state, site, batch, key) -> distances [C,C] of the candidates of a
    site, in the places of `space.choices`; `site` may be traced. Places that
    the state's mask excludes have no meaning.
  """

  def score(state: State, site: Any, batch: Any, key: jax.Array) -> jax.Array:
    tau, mask = tau_fn(state.step), state.mask
    noise_key, op_key = jax.random.split(key)
    noise = _that_keeps(method, space, state, mask, tau, noise_key, cell_type,
                        site)
    scales = _scales(state.theta, candidates, cell_type, site, shared)

    def cells(place):
      alone = jnp.arange(space.num_choices) == place
      if not soft:
        own = jnp.asarray(mask[cell_type]).at[site].set(alone)
        return method.sample(
            space, state.arch, noise, tau, {**mask, cell_type: own})
      found = method.sample(space, state.arch, noise, tau, mask)
      cell = found[cell_type]
      op = jnp.asarray(space.choices(cell_type))[site, place]
      kept = (cell.edges != site) | (cell.ops == op)
      return {**found, cell_type: cell._replace(
          gates=jnp.where(kept, cell.gates, 0.))}

    def gradient(place):
      chosen = cells(place)
      told = {'step': state.step} if takes(loss_fn, 'step') else {}

      def of_part(kept, part, fold):
        return kept, jax.grad(lambda theta: loss_fn(
            theta, chosen, part, fold(op_key), **told)[0])(state.theta)

      gradients = sums.mean_over_parts(of_part, (), batch, accumulate)[1]
      parts = [(scale * leaf).ravel() for scale, leaf in zip(
          scales, jax.tree.leaves(gradients)) if scale is not None]
      return jnp.concatenate(parts)

    return cosine_distances(
        lax.map(gradient, jnp.arange(space.num_choices)))

  return score


def _that_keeps(method, space, state, mask, tau, key, cell_type, site):
  """The noise of the first of a few samples in which the site's edge is."""
  noise = method.noise(space, state.arch, key, _TRIES)

  def keeps(sample):
    cell = method.sample(space, state.arch, sample, tau, mask)[cell_type]
    return (cell.edges == site).any() | (space.sites == 'nodes')

  first = jnp.argmax(jax.vmap(keeps)(noise))
  return jax.tree.map(lambda leaf: leaf[first], noise)


def _scales(theta, candidates, cell_type, site, shared):
  """Per leaf of theta 0 or 1 for its rows; None: the leaf is not compared."""
  owners = {c.path: c for c in candidates}
  scales = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(theta)[0]:
    names = tuple(key.key for key in path)
    owner = next((owners[names[:n]] for n in range(len(names))
                  if names[:n] in owners), None)
    if owner is None:
      end = names[0].startswith(_ENDS)
      scales.append(None if shared == OPERATIONS or (
          shared == BODY and end) else 1.)
    elif owner.cell_type != cell_type:
      scales.append(1.)
    else:
      rows = (jnp.asarray(owner.sites) != site).astype(leaf.dtype)
      scales.append(rows.reshape(-1, *[1] * (leaf.ndim - 1)))
  return scales

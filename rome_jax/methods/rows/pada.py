"""PA&DA (Lu et al., CVPR 2023): paths and images sampled by their gradients.

A supernet trained along single paths, as SPOS, whose operations and images are
drawn in proportion to how much they add to the variance of theta's gradient.
Both laws stand for an epoch and are set anew at its end, at epoch e of E with
lambda = e / E:

    p = lambda * score / sum of scores + (1 - lambda) * uniform

PA: an operation's score is the norm of its weights' gradient after clipping,
added up over the cells and sites that hold it in the path, divided by the
number of these sites; v <- (v + score) / 2 at each step, from 0. Operations
without weights have score 0. DA: an image's score is ||softmax(logits) -
onehot||, and the mean of it and the one before where an image comes again; the
next epoch's images are drawn with replacement. Losses are not weighted.

This is the published code (ShunLu91/PA-DA), which covers NAS-Bench-201. There
one vector of probabilities serves all sites (`by_site=False`). `by_site=True`
keeps one per site, as the paper's derivation has it; a site's scores are then
its own. Of a step's equal images it counts each, in the order of the batch.

`delta` gives operations without weights a score: that share of the mean score
of the others. The published code has 0, so late in a search (lambda .996) these
are hardly ever drawn.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rome_jax.methods.method import (
    ArchParams,
    Extra,
    Method,
    Seen,
    State,
    full_mask,
)
from rome_jax.methods.rows.single_path import spos
from rome_jax.spaces import Space


class PathData(NamedTuple):
  """What PA&DA knows; [0] where it does not sample by it.

  Attributes:
    path: {cell type: [S,C]}, running scores of the epoch; of one row, [O],
      under '' if they are shared by all sites.
    score: [n], running scores of the epoch's images.
    visited: [n] bool, images seen in this epoch.
    weights: [n], by which this epoch's images are drawn.
  """

  path: dict[str, jax.Array]
  score: jax.Array
  visited: jax.Array
  weights: jax.Array


def equal_logits(space: Space, key: jax.Array, alpha_std: float = 1e-3,
                 beta_std: float = 1e-3) -> ArchParams:
  """The `ArchInit` of a law over paths that begins uniform.

  alpha is the logarithm of an operation's probability times their number.
  """
  del key, alpha_std, beta_std
  return ArchParams(
      {t: jnp.zeros((space.num_sites, space.num_choices))
       for t in space.cell_types},
      {t: jnp.zeros(0) for t in space.cell_types})


def shared_scores(space: Space, norms: dict[str, jax.Array]) -> jax.Array:
  """[O]: the mean over sites that hold an operation of its gradient's norm.

  Args:
    space: the search space.
    norms: {cell type: [S,C]}, 0 for what was not sampled.
  """
  total, count = jnp.zeros(len(space.ops)), jnp.zeros(len(space.ops))
  for t in space.cell_types:
    ops = np.maximum(space.choices(t), 0)  # Past a row's end the norm is 0.
    total = total.at[ops].add(norms[t])
    count = count.at[ops].add(norms[t] > 0)
  return total / jnp.maximum(count, 1)


def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
  """The mean of both where there is a new one; a score of nan is none."""
  return jnp.where(new > 0, (old + new) / 2, old)


def pairwise(score: jax.Array, visited: jax.Array, index: jax.Array,
             new: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Running scores once a batch's have come, one after the other.

  The first score of an image is taken as it is, each later one v as (s + v) /
  2. So of d scores of one image in a batch the last counts 1/2, the one before
  1/4, and what there was 2^-d.

  Args:
    score: [n].
    visited: [n] bool.
    index: [B] int, images.
    new: [B] scores; those that are not finite are left out.

  Returns:
    (score, visited).

  >>> pairwise(jnp.array([2., 0.]), jnp.array([True, False]),
  ...          jnp.array([0, 1, 1]), jnp.array([4., 1., 3.]))[0].tolist()
  [3.0, 2.0]
  """
  good = jnp.isfinite(new)
  same = (index[:, None] == index[None, :]) & good[:, None] & good[None, :]
  order = jnp.arange(len(index))
  later = (same & (order[None, :] > order[:, None])).sum(1)
  first = ~(same & (order[None, :] < order[:, None])).any(1)
  whole = first & ~visited[index]  # Nothing to average with.
  share = jnp.where(whole, .5 ** later, .5 ** (later + 1.))
  left = jnp.ones_like(score).at[index].multiply(jnp.where(good, .5, 1.))
  score = (score * jnp.where(visited, left, 0.)).at[index].add(
      jnp.where(good, share * new, 0.))
  return score, visited.at[index].max(good)


def probabilities(scores: jax.Array, candidates: Any,
                  mixing: Any) -> jax.Array:
  """lambda * scores / their sum + (1 - lambda) * uniform, times the number.

  Exactly 1 everywhere for lambda 0, or if all scores are 0.

  Args:
    scores: [...,m]; those that are not finite count 0.
    candidates: bool [...,m], what there is.
    mixing: lambda.

  >>> probabilities(jnp.array([3., 1.]), jnp.ones(2, bool), .5).tolist()
  [1.25, 0.75]
  """
  scores = jnp.where(candidates & jnp.isfinite(scores), scores, 0.)
  total = scores.sum(-1, keepdims=True)
  number = jnp.sum(candidates, -1, keepdims=True)
  share = jnp.where(total > 0, scores / jnp.where(total > 0, total, 1.),
                    1. / number)
  uniform = jnp.where(total > 0, 1 - mixing, 1.)
  return jnp.where(total > 0, mixing * share * number, 0.) + uniform


def extra(paths: bool = True, images: bool = True, by_site: bool = False,
          delta: float = 0., clip_norm: float = 5.) -> Extra:
  """What PA&DA notes and when its laws change.

  Args:
    paths: PA, sample operations so.
    images: DA, sample images so.
    by_site: a law for each site; else one for all.
    delta: see the module.
    clip_norm: of theta's gradient, as in the optimiser.
  """

  def init(space: Space, n: int) -> PathData:
    shapes = {t: (space.num_sites, space.num_choices)
              for t in space.cell_types} if by_site else (
                  {'': (len(space.ops),)})
    n = n if images else 0
    return PathData(
        {t: jnp.zeros(s) for t, s in shapes.items()} if paths else {},
        jnp.zeros(n), jnp.zeros(n, bool), jnp.ones(n))

  def observe(known: PathData, seen: Seen) -> PathData:
    if paths:
      norm = optax.tree.norm(seen.gradients)
      clip = jnp.minimum(1., clip_norm / jnp.maximum(norm, 1e-12))
      norms = {t: clip * a for t, a in seen.norms().items()}
      new = norms if by_site else {
          '': shared_scores(seen.space, norms)}
      known = known._replace(path=jax.tree.map(averaged, known.path, new))
    if images:
      score, visited = pairwise(
          known.score, known.visited, seen.batch['index'],
          seen.metrics['scores'])
      known = known._replace(score=score, visited=visited)
    return known

  def boundary(objective: Any, state: State, batches: Any, epoch: jax.Array,
               key: jax.Array) -> State:
    del batches, epoch, key
    known, mixing = state.extra, objective.progress()
    arch = state.arch
    if paths:
      arch = arch._replace(alpha=_logits(
          objective.space, known.path, by_site, delta, mixing, state.mask))
    draw = probabilities(
        known.score, jnp.ones(known.score.shape, bool), mixing) if images else (
            known.weights)
    known = PathData(
        jax.tree.map(jnp.zeros_like, known.path), jnp.zeros_like(known.score),
        jnp.zeros_like(known.visited), draw)
    return state._replace(arch=arch, extra=known)

  return Extra(init, observe, boundary,
               (lambda known: known.weights) if images else None)


def _logits(space, path, by_site, delta, mixing, mask=()):
  """{cell type: [S,C]}, log of the probabilities times their number."""
  if by_site:
    there = dict(mask) or full_mask(space)
    tables = {t: (path[t], jnp.asarray(there[t])) for t in space.cell_types}
  else:
    row = path['']
    tables = {t: (row, jnp.ones(row.shape, bool)) for t in space.cell_types}
  found = {}
  for t, (scores, there) in tables.items():
    law = jnp.log(probabilities(
        _with_floor(scores, there, delta), there, mixing))
    found[t] = law if by_site else law[np.maximum(space.choices(t), 0)]
  return found


def _with_floor(scores, there, delta):
  """Scores in which those of 0 are `delta` times the mean of the others."""
  positive = there & (scores > 0)
  mean = jnp.where(positive, scores, 0.).sum(-1, keepdims=True) / jnp.maximum(
      positive.sum(-1, keepdims=True), 1)
  return jnp.where(there & ~positive, delta * mean, scores)


# The rows, and what each leaves out.
ROWS: dict[str, dict[str, bool]] = {
    'pada': {}, 'pa': {'images': False}, 'da': {'paths': False}}


def with_options(method: Method, **options: Any) -> Method:
  """A row of this file with other options of `extra`.

  >>> with_options(pada, by_site=True).name
  'pada'
  """
  return method._replace(extra=extra(**ROWS[method.name], **options))


pada = with_options(spos._replace(
    name='pada', init=equal_logits,
    recipe={**spos.recipe, 'search.epochs': 250, 'search.batch_size': 256,
            'search.lr': .05, 'search.lr_end': 0.,
            'search.weight_decay': 2.5e-4}))
pa = with_options(pada._replace(name='pa'))
da = with_options(pada._replace(name='da'))

"""Splitting a supernet: distances, partitions, masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors, methods, spaces
from rome_jax.engine.owners import Candidate
from rome_jax.methods import laws, split
from rome_jax.methods.method import State, full_mask
from rome_jax.spaces import enumeration, genotypes

SPACE = spaces.Space('tiny', ('a', 'b', 'c'), num_nodes=2,
                     cell_types=('normal',))
CANDIDATES = tuple(Candidate(('cell0', 'edges', op), 'normal', op,
                             tuple(range(5))) for op in 'abc')


def symmetric(n, seed=0):
  values = np.random.default_rng(seed).uniform(size=(n, n))
  return np.triu(values, 1) + np.triu(values, 1).T


# ------------------------------------------------------------------ partition


def brute_force(distances, groups, sizes=None):
  """(least sum within, sum between) over all labellings."""
  n = len(distances)
  best = np.inf
  for labels in itertools.product(range(groups), repeat=n):
    counts = sorted(np.bincount(labels, minlength=groups))
    if 0 in counts or (sizes and tuple(counts) not in sizes):
      continue
    same = np.equal.outer(labels, labels)
    best = min(best, distances[same].sum() / 2)
  return best, distances.sum() / 2 - best


@pytest.mark.parametrize('n, groups, sizes', [
    (5, 2, ()), (5, 2, ((2, 3),)), (7, 2, ((2, 5), (3, 4))), (6, 3, ()),
    (7, 3, ((2, 2, 3),)), (4, 4, ()), (8, 2, ())])
@pytest.mark.parametrize('seed', range(3))
def test_the_partition_is_a_minimum_cut(n, groups, sizes, seed):
  distances = symmetric(n, seed)
  found = split.partition(distances, groups, sizes)
  assert sorted(itertools.chain(*found)) == list(range(n))
  assert len(found) == groups
  within, between = brute_force(distances, groups, sizes)
  assert split.within(distances, found) == pytest.approx(within, rel=1e-12)
  assert split.between(distances, found) == pytest.approx(between, rel=1e-12)


def test_what_cannot_be_split():
  assert split.partition(symmetric(2), 3) is None
  assert split.partition(symmetric(5), 2, [(3, 4)]) is None


def test_many_candidates_are_linked():
  """Three clear groups of seven among 21, whose partitions are 1.7e9."""
  labels = np.arange(21) % 3
  distances = np.where(np.equal.outer(labels, labels), .1, 1.)
  np.fill_diagonal(distances, 0)
  found = split.partition(distances, 3)
  assert {frozenset(group) for group in found} == {
      frozenset(range(i, 21, 3)) for i in range(3)}
  assert split.partition(distances, 3, [(1, 1, 19)]) is None


def test_the_number_of_partitions():
  for n, groups in ((5, 2), (6, 3), (4, 4), (7, 3)):
    listed = list(split._partitions(n, groups))
    assert len(listed) == len(set(listed)) == split._number(n, groups)


def test_the_site_to_split():
  """Both rules, on matrices whose sums are counted by hand."""
  near = np.array([[0, 1, 3], [1, 0, 3], [3, 3, 0.]])  # within 1, between 6
  far = np.array([[0, 2, 9], [2, 0, 9], [9, 9, 0.]])  # within 2, between 18
  matrices = {('normal', 0): ([0, 1, 2], near),
              ('normal', 3): ([2, 4, 5], far)}
  assert split.choose(matrices, 2, rule='between') == (
      'normal', 3, ((2, 4), (5,)))
  assert split.choose(matrices, 2, rule='within') == (
      'normal', 0, ((0, 1), (2,)))
  assert split.choose(matrices, 4) is None


# ---------------------------------------------------------------------- masks


def grown(space, splits):
  """The masks after these splits, each applied to every leaf."""
  masks = [full_mask(space)]
  for one in splits:
    masks = [child for mask in masks for child in split.children(mask, one)]
  return masks


def test_every_architecture_is_in_one_leaf():
  space = spaces.NASBENCH201
  masks = grown(space, [
      split.Split('normal', 2, ((0, 3), (1, 2, 4))),
      split.Split('normal', 5, ((0, 1), (2, 3, 4)))])
  assert sum(enumeration.size(space.restrict_to(mask)) for mask in masks) == (
      15_625)
  counts = np.zeros(len(masks), int)
  for genotype in enumeration.every(space):
    number = split.leaf_of(space, masks, genotype)
    counts[number] += 1
    # No other has it: those of the leaf are counted above.
  assert counts.tolist() == [
      enumeration.size(space.restrict_to(mask)) for mask in masks]


def test_an_edge_that_is_left_out_belongs_to_the_first():
  masks = grown(spaces.S2, [split.each_operation(spaces.S2, 'normal', 4)])
  rng = np.random.default_rng(0)
  for _ in range(50):
    genotype = genotypes.random(spaces.S2, rng)
    ops = dict((p, o) for o, p in genotype.normal[1])
    # Edge 4 is node 1's third, from state 2.
    wanted = {None: 0, 'skip_connect': 0, 'sep_conv_3x3': 1}[ops.get(2)]
    assert split.leaf_of(spaces.S2, masks, genotype) == wanted
  with pytest.raises(ValueError, match='no leaf has'):
    split.leaf_of(spaces.S2, [
        {t: np.zeros((14, 2), bool) for t in spaces.CELL_TYPES}], genotype)


def test_split_sites_are_not_split_again():
  space = spaces.MOBILE_TINY
  mask = full_mask(space)
  assert split.unsplit(space, mask, ('normal',)) == [
      ('normal', i) for i in range(3)]
  child = split.children(mask, split.Split('normal', 1, ((0, 1), (2,))))[1]
  assert split.unsplit(space, child, ('normal',)) == [
      ('normal', 0), ('normal', 2)]


def test_few_shot_gives_each_operation_a_leaf():
  found = split.each_operation(spaces.S1, 'normal', 5)
  assert found.groups == ((0,), (1,))


@pytest.mark.parametrize('name', ['rome_v1', 'rome_v2', 'gdas', 'snas', 'spos',
                                  'pada', 'darts', 'pc_darts', 'fair_darts'])
def test_a_leaf_never_samples_what_it_lacks(name):
  """10,000 draws, even where alpha prefers what is masked."""
  method, space = methods.METHODS[name], spaces.NASBENCH201
  masks = grown(space, [split.Split('normal', 2, ((0, 3), (1, 2, 4)))])
  mask = {t: jnp.asarray(rows) for t, rows in masks[1].items()}
  arch = jax.tree.map(lambda a: a + 20. * (jnp.arange(a.shape[-1]) == 3),
                      method.init(space, jax.random.key(0)))
  number = 10_000 if name not in ('darts', 'pc_darts', 'fair_darts') else 1
  noise = method.noise(space, arch, jax.random.key(1), number)
  cells = jax.vmap(lambda n: method.sample(space, arch, n, 1., mask))(noise)
  cell = cells['normal']
  barred = (cell.edges == 2) & np.isin(cell.ops, [0, 3])
  assert np.all(np.where(barred, np.asarray(cell.gates), 0.) == 0)
  if number > 1:
    assert not barred.any() or name == 'snas'
    kept = cell.ops[cell.edges == 2]
    assert {1, 2, 4} <= set(np.asarray(kept).ravel().tolist())


def test_a_leaf_is_fair_among_what_it_has():
  mask = jnp.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]], bool)
  found = np.asarray(laws.fair_ops(
      jax.random.key(0), 4, np.array([4, 4, 4]), mask))
  assert sorted(found[:, 0]) == [0, 1, 2, 3]
  assert sorted(found[:, 1]) == [1, 1, 3, 3]
  assert found[:2, 1].tolist() != [1, 1] and found[:2, 1].tolist() != [3, 3]
  assert found[:, 2].tolist() == [2, 2, 2, 2]


# -------------------------------------------------------------------- scores


def net(theta, cells, batch, key):
  """A loss in which the operations of a cell multiply each other."""
  del key
  cell = cells['normal']
  rows = jnp.stack([theta['cell0']['edges'][op]['kernel'] for op in 'abc'], 1)
  chosen = rows[cell.edges, cell.ops]  # [M,3]
  features = jnp.tanh(batch @ theta['stem']['kernel'])
  y = features * (1 + (cell.gates[:, None] * jnp.sin(chosen)).sum(0))
  return ((y @ theta['head']['kernel']) ** 2).mean(), {}


def theta_of(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return rng.normal(size=shape).astype(dtype)

  return {'stem': {'kernel': draw(4, 3)}, 'head': {'kernel': draw(3)},
          'between': {'kernel': draw(2)},
          'cell0': {'edges': {op: {'kernel': draw(5, 3)} for op in 'abc'}}}


def transcribed(theta, paths, site, batch, shared):
  """Distances in float64 by finite differences, one weight at a time."""
  theta = jax.tree.map(np.float64, theta)

  def loss(edges, ops, weights):
    features = np.tanh(batch @ weights['stem']['kernel'])
    total = sum(np.sin(weights['cell0']['edges']['abc'[o]]['kernel'][e])
                for e, o in zip(edges, ops))
    return ((features * (1 + total) @ weights['head']['kernel']) ** 2).mean()

  def gradient(edges, ops):
    parts = []
    places = [('cell0', 'edges', op, 'kernel') for op in 'abc']
    if shared == 'all':
      places += [('stem', 'kernel'), ('head', 'kernel')]
    for place in places:
      leaf = theta
      for name in place:
        leaf = leaf[name]
      for index in np.ndindex(leaf.shape):
        if place[0] == 'cell0' and index[0] == site:
          continue
        before = leaf[index]
        ends = []
        for step in (1e-6, -1e-6):
          leaf[index] = before + step
          ends.append(loss(edges, ops, theta))
        leaf[index] = before
        parts.append((ends[0] - ends[1]) / 2e-6)
    return np.array(parts)

  edges, ops = paths
  rows = []
  for op in range(3):
    rows.append(gradient(edges, np.where(edges == site, op, ops)))
  unit = np.array([row / np.linalg.norm(row) for row in rows])
  return 1 - unit @ unit.T


@pytest.mark.parametrize('name', ['gdas', 'rome_v2', 'spos'])
@pytest.mark.parametrize('shared', ['operations', 'all'])
def test_distances_are_those_of_finite_differences(name, shared):
  """The others' operations are read off a sample of the same noise."""
  method, theta = methods.METHODS[name], theta_of()
  arch = method.init(SPACE, jax.random.key(3), 1.)
  mask = {t: jnp.asarray(rows) for t, rows in full_mask(SPACE).items()}
  state = State(jnp.int32(0), jnp.uint32(0), theta, arch, (), (), mask)
  batch = np.float32(np.random.default_rng(1).normal(size=(6, 4)))
  score = jax.jit(split.make_score(
      method, SPACE, net, lambda step: 1., CANDIDATES, 'normal', shared))
  for site in (0, 3, 4):
    key = jax.random.key(site)
    found = np.asarray(score(state, site, batch, key))
    noise = split._that_keeps(
        method, SPACE, state, mask, 1., jax.random.split(key)[0], 'normal',
        site)
    cell = method.sample(SPACE, arch, noise, 1., mask)['normal']
    assert site in np.asarray(cell.edges)
    wanted = transcribed(
        theta, (np.asarray(cell.edges), np.asarray(cell.ops)), site,
        np.float64(batch), shared)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize('soft', [False, True])
def test_one_candidate_of_a_mixture_is_active(soft):
  """By the gates that the loss meets."""
  method = methods.METHODS['darts']
  met = []

  def loss(theta, cells, batch, key):
    met.append(cells['normal'])
    return net(theta, cells, batch, key)

  arch = method.init(SPACE, jax.random.key(3), 1.)
  mask = {t: jnp.asarray(rows) for t, rows in full_mask(SPACE).items()}
  state = State(jnp.int32(0), jnp.uint32(0), theta_of(), arch, (), (), mask)
  score = split.make_score(
      method, SPACE, loss, lambda step: 1., CANDIDATES, 'normal', soft=soft)
  batch = np.float32(np.ones((2, 4)))
  with jax.disable_jit():
    score(state, 3, batch, jax.random.key(0))
  softmax = np.asarray(jax.nn.softmax(arch.alpha['normal']))
  for op, cell in enumerate(met[:3]):
    gates = np.asarray(cell.gates).reshape(5, 3)
    wanted = softmax.copy()
    wanted[3] = np.where(np.arange(3) == op, softmax[3] if soft else 1., 0.)
    np.testing.assert_allclose(gates, wanted, rtol=1e-6)


def test_a_gradient_of_zero_is_far_from_all():
  found = split.cosine_distances(jnp.array([[0., 0.], [1., 0.], [2., 0.]]))
  np.testing.assert_array_equal(found[0], [1, 1, 1])
  assert found[1, 2] == 0


def test_masks_are_those_of_the_space():
  with pytest.raises(errors.UserError, match='mask'):
    spaces.S2.restrict_to({'normal': np.ones((14, 2), bool)})

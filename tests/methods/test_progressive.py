"""P-DARTS' choices, against the authors' code written anew in NumPy.

They keep a table of switches [14, 8] over DARTS' operations; so does this.
"""

import jax
import numpy as np
import pytest

from rome_jax import spaces
from rome_jax.methods import derive, table
from rome_jax.methods.method import ArchParams, full_mask
from rome_jax.spaces import genotypes
from rome_jax.train import plans

NAMES = spaces.DARTS.ops
SKIP = NAMES.index('skip_connect')
STARTS = (0, 2, 5, 9, 14)


def softmax(rows):
  rows = np.exp(rows - rows.max(-1, keepdims=True))
  return rows / rows.sum(-1, keepdims=True)


def smallest(p, count):
  """get_min_k."""
  p, found = p.copy(), []
  for _ in range(count):
    found.append(int(np.argmin(p)))
    p[found[-1]] = 1
  return found


def smallest_and_none(p, on, count):
  """get_min_k_no_zero: `none`, if it is there, and the smallest others."""
  if on[0] != 0:
    return smallest(p, count)
  return [0] + [1 + i for i in smallest(p[1:], count - 1)]


def one_each(switches, probs):
  """keep_1_on."""
  switches = switches.copy()
  for i, row in enumerate(switches):
    on = np.flatnonzero(row)
    row[on[smallest_and_none(probs[i], on, 2)]] = False
  return switches


def two_branches(switches, probs):
  """keep_2_branches."""
  switches, best, keep = switches.copy(), probs.max(-1), [0, 1]
  for a, b in zip(STARTS[1:], STARTS[2:]):
    order = sorted(range(b - a), key=lambda x: best[a + x])
    keep += [a + order[-1], a + order[-2]]
  switches[[i for i in range(14) if i not in keep]] = False
  return switches


def restricted(before, probs, most):
  """The last lines of main(), for one limit of the number of skips."""
  switches = two_branches(one_each(before, probs), probs)
  while switches[:, SKIP].sum() > most:
    weakest = [
        probs[i][before[i][:SKIP].sum()] if switches[i][SKIP] else 1.
        for i in range(14)]
    i = int(np.argmin(weakest))
    probs = probs.copy()
    probs[i][before[i][:SKIP].sum()] = 0.
    switches = two_branches(one_each(before, probs), probs)
  return switches


def cell(switches):
  """parse_network, node by node."""
  return tuple(
      tuple((NAMES[k], j - a) for j in range(a, b)
            for k in np.flatnonzero(switches[j]))
      for a, b in zip(STARTS, STARTS[1:]))


def stage(rng, space, count):
  """(mask of `count` candidates of each edge, alpha, switches) at random."""
  mask, alpha, switches = {}, {}, {}
  own = [NAMES.index(name) for name in space.ops]
  for t in space.cell_types:
    places = np.stack([np.sort(rng.choice(len(own), count, replace=False))
                       for _ in range(14)])
    mask[t] = np.zeros((14, len(own)), bool)
    np.put_along_axis(mask[t], places, True, 1)
    switches[t] = np.zeros((14, 8), bool)
    np.put_along_axis(switches[t], np.array(own)[places], True, 1)
    alpha[t] = rng.normal(size=(14, count)).astype(np.float32)
    # Make skips likely, as they are in a collapsed search.
    alpha[t] += 2. * (np.array(own)[places] == SKIP)
  return mask, alpha, switches


@pytest.mark.parametrize('space', [
    spaces.DARTS, spaces.S0, spaces.S3], ids=lambda space: space.name)
def test_the_normal_cell_has_at_most_so_many_skips(space):
  rng, changed = np.random.default_rng(0), 0
  for _ in range(60):
    mask, alpha, switches = stage(rng, space, 3)
    sub = space.restrict_to(mask)
    arch = ArchParams(alpha, {t: np.zeros(0) for t in space.cell_types})
    probs = {t: softmax(np.float64(alpha[t])) for t in alpha}
    for t in alpha:
      probs[t][switches[t][:, 0], 0] = 0.
    wanted_reduce = cell(restricted(switches['reduce'], probs['reduce'], 99))
    for most in (8, 2, 1, 0):
      found = derive.limited_skips(most)(sub, arch)
      assert found.normal == cell(
          restricted(switches['normal'], probs['normal'], most))
      assert found.reduce == wanted_reduce
    free = derive.two_strongest(sub, arch)
    assert free == derive.limited_skips(8)(sub, arch)
    changed += free != derive.limited_skips(2)(sub, arch)
  assert changed > 10


def test_a_skip_that_nothing_replaces_stays():
  """Every edge has a skip only; six of eight are too many, and stay."""
  space = spaces.S2.restrict_to({
      t: np.tile([True, False], (14, 1)) for t in spaces.CELL_TYPES})
  alpha = {t: np.zeros((14, 1), np.float32) for t in spaces.CELL_TYPES}
  found = derive.limited_skips(2)(space, ArchParams(alpha, {}))
  assert genotypes.parameterless(found)['normal'] == 8


def test_every_edge_of_nasbench201_counts():
  """Six skips: the four weakest become the next best, `none` included."""
  alpha = np.zeros((6, 5), np.float32)
  alpha[:, 1] = 2 + np.arange(6)  # skips, the last two strongest
  alpha[:3, 0], alpha[3:, 3] = 1., 1.
  space = spaces.NASBENCH201
  found = derive.limited_skips(2)(
      space, ArchParams({'normal': alpha}, {'normal': np.zeros(0)}))
  # Nodes of 1, 2 and 3 edges.
  assert [op for node in found.normal for op, _ in node] == [
      'none'] * 3 + ['nor_conv_3x3'] + ['skip_connect'] * 2


@pytest.mark.parametrize('space, count, keep', [
    (spaces.DARTS, 8, 5), (spaces.DARTS, 5, 3), (spaces.S0, 7, 5)],
    ids=['8-5', '5-3', '7-5'])
def test_the_weakest_candidates_go(space, count, keep):
  rng = np.random.default_rng(1)
  mask, alpha, switches = stage(rng, space, count)
  found = plans.strongest(space, mask, ArchParams(alpha, {}), keep)
  for t in space.cell_types:
    for i, row in enumerate(switches[t]):
      on = np.flatnonzero(row)
      row[on[smallest(softmax(alpha[t])[i], count - keep)]] = False
    columns = [NAMES.index(name) for name in space.ops]
    np.testing.assert_array_equal(found[t], switches[t][:, columns])
    assert not switches[t][:, [i for i in range(8) if i not in columns]].any()


def test_edges_with_fewer_candidates_keep_them():
  """S1 has two on each edge."""
  arch = table.p_darts.init(spaces.S1, jax.random.key(0))
  mask = full_mask(spaces.S1)
  found = plans.strongest(spaces.S1, mask, arch, 5)
  for t in mask:
    np.testing.assert_array_equal(found[t], mask[t])


def test_the_recipe_is_the_published_one():
  """train_search.py of the authors' code: its arguments and constants."""
  assert table.p_darts.recipe == {
      'search.k': 1, 'search.lr': .025, 'search.lr_end': 0.,
      'search.epochs': 25, 'search.batch_size': 96, 'search.alpha_lr': 6e-4,
      'search.alpha_start': 10, 'search.alpha_clip': 5.,
      'search.stage_skip_dropout': '.1,.4,.7'}


def test_a_skip_without_another_choice_does_not_keep_the_others():
  """Edge 0 of the first node has `none` and the skip only."""
  space = spaces.SPACES['darts'].restrict(ops=('none', 'skip_connect',
                                               'sep_conv_3x3'))
  mask = {t: np.ones((14, 3), bool) for t in space.cell_types}
  mask['normal'][0] = [True, True, False]
  sub = space.restrict_to(mask)
  alpha = {t: np.tile(np.float32([0., 2., 1.]), (14, 1))
           for t in space.cell_types}
  found = derive.limited_skips(2)(sub, ArchParams(alpha, {}))
  skips = [op for node in found.normal for op, _ in node].count('skip_connect')
  assert skips == 2

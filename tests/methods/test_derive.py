"""Derivation rules against the authors' parse functions, written anew.

Over spaces with `none` (darts, s3, nasbench201) and without (s0, s1), and with
operations of an edge's own (s1). Random tables, spread enough for every case.
"""

import numpy as np
import pytest

from rome_jax import spaces
from rome_jax.methods import derive, table
from rome_jax.methods.method import ArchParams

TWO = ('darts', 's0', 's1', 's2', 's3', 's4')
DARTS_LIKE = [name for name, row in table.METHODS.items()
              if row.derive is derive.two_strongest]


def params_of(space, seed, scale=2.):
  rng = np.random.default_rng(seed)
  return ArchParams(
      {t: scale * rng.normal(size=(space.num_edges, space.num_choices))
       for t in space.cell_types},
      {t: np.zeros(0) for t in space.cell_types})


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def parse_darts(weights, primitives, steps=4):
  """RobustDARTS' `model_search.py: _parse`, DARTS' with lists of an edge.

  [(operation, predecessor)] for each node; `primitives` per edge.
  """
  gene, start = [], 0
  for i in range(steps):
    end = start + i + 2
    w, names = weights[start:end], primitives[start:end]

    def best(j, w=w, names=names):
      k_best = None
      for k in range(len(w[j])):
        if names[j][k] != 'none' and (
            k_best is None or w[j][k] > w[j][k_best]):
          k_best = k
      return k_best

    chosen = sorted(range(i + 2), key=lambda j: -max(
        w[j][k] for k in range(len(w[j])) if names[j][k] != 'none'))[:2]
    gene.append([(names[j][best(j)], j) for j in chosen])
    start = end
  return gene


def parse_fair(weights, primitives, threshold, steps=4):
  """FairDARTS' `utils.py: parse`, 'threshold_sparse'; no `none` is known."""
  gene, start = [], 0
  for i in range(steps):
    end = start + i + 2
    w, names = weights[start:end], primitives[start:end]
    chosen = sorted(range(i + 2), key=lambda j: -max(w[j]))[:2]
    node = []
    for j in chosen:
      k_best = int(np.argmax(w[j]))
      if w[j][k_best] >= threshold:
        node.append((names[j][k_best], j))
    gene.append(node)
    start = end
  return gene


def by_node(nodes):
  """A node's pairs in the order of its predecessors."""
  return [sorted(node, key=lambda pair: pair[1]) for node in nodes]


def found_by(name, space, params):
  genotype = table.METHODS[name].derive(space, params)
  return {t: by_node(getattr(genotype, t)) for t in space.cell_types}


@pytest.mark.parametrize('space', TWO)
def test_two_strongest(space):
  space = spaces.SPACES[space]
  for seed in range(40):
    params = params_of(space, seed)
    expected = {
        t: by_node(parse_darts(softmax(params.alpha[t]), space.site_ops(t)))
        for t in space.cell_types}
    for name in DARTS_LIKE:
      assert found_by(name, space, params) == expected


def test_who_derives_like_darts():
  assert {'darts', 'darts_2nd', 'snas', 'sdarts_rs', 'sdarts_adv'} <= set(
      DARTS_LIKE)


def test_every_edge_of_nasbench201():
  """SmoothDARTS' `nasbench201/model.py: genotype`: argmax, `none` included."""
  space = spaces.NASBENCH201
  for seed in range(40):
    params = params_of(space, seed)
    best = params.alpha['normal'].argmax(-1)
    expected = [[(space.ops[best[e]], p) for p, e in enumerate(range(a, b))]
                for a, b in space.node_edges]
    for name in DARTS_LIKE:
      assert found_by(name, space, params)['normal'] == expected


# ---------------------------------------------------------------- FairDARTS


@pytest.mark.parametrize('space', ['s0', 's1', 's2', 's4'])
def test_above_a_threshold(space):
  """As published; a node that would have no edge has its strongest."""
  space, sizes = spaces.SPACES[space], set()
  for seed in range(60):
    params = params_of(space, seed, scale=1. + seed % 3)
    found = found_by('fair_darts', space, params)
    for t in space.cell_types:
      weights = sigmoid(params.alpha[t])
      published = parse_fair(weights, space.site_ops(t), .85)
      sizes |= set(map(len, published))
      lone = parse_darts(weights, space.site_ops(t))
      expected = [node or best[:1] for node, best in zip(published, lone)]
      assert found[t] == by_node(expected)
  assert sizes == {0, 1, 2}


@pytest.mark.parametrize('space', ['s3', 'darts'])
def test_above_a_threshold_none_has_no_vote(space):
  """The published rule on the columns that may be derived."""
  space = spaces.SPACES[space]
  columns = [i for i, op in enumerate(space.ops) if op != 'none']
  names = [[space.ops[i] for i in columns]] * space.num_edges
  for seed in range(40):
    params = params_of(space, seed, 3.)
    found = found_by('fair_darts', space, params)
    for t in space.cell_types:
      weights = sigmoid(params.alpha[t][:, columns])
      expected = [node or best[:1] for node, best in zip(
          parse_fair(weights, names, .85), parse_darts(weights, names))]
      assert found[t] == by_node(expected)


@pytest.mark.parametrize('in_degree, drop_none', [(0, False), (2, True)])
def test_above_a_threshold_in_nasbench201(in_degree, drop_none):
  """What falls short, or is none of the strongest, is `none`."""
  space = spaces.get_space('nasbench201', in_degree=in_degree,
                           drop_none=drop_none)
  for seed in range(40):
    params = params_of(space, seed, 2.)
    weights, expected = sigmoid(params.alpha['normal']), []
    for a, b in space.node_edges:
      kept = sorted(range(a, b), key=lambda e: -weights[e].max())[
          :in_degree or None]
      expected.append([
          (space.ops[weights[e].argmax()] if e in kept and (
              weights[e].max() >= .85) else 'none', p)
          for p, e in enumerate(range(a, b))])
    assert found_by('fair_darts', space, params)['normal'] == expected


def test_a_mask_has_no_vote():
  """Masked operations are neither derived nor do they make an edge strong."""
  space = spaces.S0
  params = params_of(space, 0)
  mask = {t: np.random.default_rng(1).random(
      (space.num_edges, space.num_choices)) < .6 for t in space.cell_types}
  for t in space.cell_types:
    mask[t][:, 2] = True
  names = {t: [[op for op, kept in zip(space.ops, row) if kept]
               for row in mask[t]] for t in space.cell_types}
  logits = {t: [a[kept] for a, kept in zip(params.alpha[t], mask[t])]
            for t in space.cell_types}
  for name, gates in (('darts', softmax), ('fair_darts', sigmoid)):
    genotype = table.METHODS[name].derive(space, params, mask)
    for t in space.cell_types:
      weights = [gates(row) for row in logits[t]]
      expected = parse_darts(weights, names[t])
      if name == 'fair_darts':
        expected = [node or best[:1] for node, best in zip(
            parse_fair(weights, names[t], .85), expected)]
      assert by_node(getattr(genotype, t)) == by_node(expected)

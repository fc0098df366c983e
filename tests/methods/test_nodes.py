"""Mixtures where nodes hold the operations (NAS-Bench-1Shot1)."""

import numpy as np
import pytest

from rome_jax import spaces
from rome_jax.engine import archs
from rome_jax.methods import laws, rules, table
from rome_jax.methods.method import ArchParams
from rome_jax.spaces import genotypes

SPACE = spaces.SPACES['nasbench1shot1_1']  # Parents 1 2 2 2, output 2.


def params():
  rng = np.random.default_rng(0)
  return ArchParams({'normal': rng.normal(size=(4, 3)).astype('f')},
                    {'normal': rng.normal(size=15).astype('f')})


def softmax(x):
  e = np.exp(np.float64(x) - np.max(x))
  return e / e.sum()


def test_the_mixture_is_that_of_the_benchmark():
  """`alphas_mixed_op`, `alphas_inputs` and `alphas_output`, each a softmax.

  Node 1 has one parent and node 2 keeps both of its own: no weights there.
  """
  arch = params()
  cell = table.METHODS['darts'].sample(SPACE, arch, None, 1.)['normal']
  np.testing.assert_array_equal(cell.edges, np.arange(15))
  beta = arch.beta['normal']
  expected = [np.ones(3), softmax(beta[3:6]), softmax(beta[6:10]),
              softmax(beta[10:15]),
              *(softmax(row) for row in arch.alpha['normal'])]
  np.testing.assert_allclose(cell.gates, np.concatenate(expected), rtol=1e-5)
  np.testing.assert_array_equal(cell.ops, np.tile(np.arange(3), 4))


def test_groups_sum_to_one():
  cell = table.METHODS['darts'].sample(SPACE, params(), None, 1.)['normal']
  groups = archs.gate_groups(SPACE)
  assert len(groups) == len(cell.gates)
  sums = np.bincount(groups, np.float64(cell.gates))
  np.testing.assert_allclose(sums, 1., rtol=1e-5)
  # Three fixed edges, three softmaxes over parents, four over operations.
  assert len(sums) == 3 + 3 + 4


def test_to_simplex_leaves_fixed_edges_alone():
  cell = table.METHODS['darts'].sample(SPACE, params(), None, 1.)['normal']
  moved = cell.gates + np.random.default_rng(1).uniform(
      -.3, .3, cell.gates.shape).astype('f')
  found = rules.to_simplex(moved, archs.gate_groups(SPACE))
  np.testing.assert_allclose(found[:3], 1., rtol=1e-6)
  np.testing.assert_allclose(
      np.bincount(archs.gate_groups(SPACE), found), 1., rtol=1e-5)


@pytest.mark.parametrize('name', ['darts', 'darts_2nd', 'sdarts_adv'])
def test_derivation_is_that_of_the_benchmark(name):
  """The likeliest operation of a node; its strongest parents, k of them."""
  arch = params()
  genotype = table.METHODS[name].derive(SPACE, arch)
  start = 0
  parents = []
  for n, k in zip((1, 2, 3, 4, 5), (1, 2, 2, 2, 2)):
    weights = arch.beta['normal'][start:start + n]
    parents.append(tuple(sorted(np.argsort(-weights)[:k].tolist())))
    start += n
  ops = [SPACE.ops[i] for i in arch.alpha['normal'].argmax(-1)]
  assert genotype == genotypes.Genotype(
      tuple(tuple((op, p) for p in states)
            for op, states in zip(ops, parents)), parents[-1])


def test_parent_weights_are_gdas_law_without_noise():
  beta = params().beta['normal']
  zeros = np.zeros_like(beta)
  np.testing.assert_allclose(
      laws.parent_weights(SPACE, beta),
      laws.sample_all_edges(SPACE, beta, zeros, 1.), rtol=1e-6)


@pytest.mark.parametrize('name', ['pc_darts', 'fair_darts', 'snas'])
def test_other_mixtures_say_no(name):
  section = type('Section', (), {'k': 1, 'alpha_start': 0, 'channels': 4})
  row = table.METHODS[name]
  assert 'whose edges hold the operations' in row.check(row, SPACE, section)


def test_a_chain_is_no_cell():
  section = type('Section', (), {'k': 1})
  chain = spaces.SPACES['mobile_tiny']
  row = table.METHODS['darts']
  assert 'not a chain of blocks' in row.check(row, chain, section)

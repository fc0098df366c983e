"""Whose weights are which: a single path's gradient lies where it should."""

import jax
import numpy as np
import pytest

from rome_jax import families, spaces
from rome_jax.engine import owners, weights
from rome_jax.methods import table

CASES = {
    's0': spaces.S0.restrict(
        ops=('max_pool_3x3', 'dil_conv_3x3', 'sep_conv_3x3'), num_nodes=2),
    'nasbench201': spaces.SPACES['nasbench201'],
    'nasbench1shot1_2': spaces.SPACES['nasbench1shot1_2'],
    'mobile_tiny': spaces.SPACES['mobile_tiny']}


@pytest.mark.parametrize('name', CASES)
def test_site_norms_of_a_path(name, quick_jit):
  """Positive for the sampled operations with weights, 0 for all others."""
  space = CASES[name]
  family = families.get(space)
  cells = space.num_nodes if space.family == 'mobile' else 3
  net = family.supernet(space, spaces.Sizes(cells, 4, 3), 'cifar')
  theta = weights.init_supernet(net, 0, 8, 3)
  spos = table.METHODS['spos']
  noise = spos.noise(space, (), jax.random.key(3), 1)
  arch = spos.sample(space, (), jax.tree.map(lambda a: a[0], noise), 1.)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype('f')

  def loss(theta):
    logits = net.apply({'params': theta}, images, arch)
    return (logits ** 2).sum()

  grads = quick_jit(jax.grad(loss))(theta)
  found = family.candidates(theta, space)
  norms = owners.site_norms(grads, found, space)
  for t in space.cell_types:
    sites = (np.array(arch[t].edges) if space.sites == 'edges'
             and space.parents == 'all' else np.arange(space.num_sites))
    sampled = np.zeros(norms[t].shape, bool)
    for site, op in zip(sites, np.array(arch[t].ops)):
      if any(c.op == space.ops[op] for c in found):
        sampled[site, list(space.choices(t)[site]).index(op)] = True
    positive = np.array(norms[t]) > 0
    assert not (positive & ~sampled).any()
    # A node that nobody reads has no gradient.
    assert positive.any() if space.sites == 'nodes' else (
        positive == sampled).all()
  # By hand, for one candidate: its row of every leaf.
  first = next(c for c in found)
  tree = grads
  for part in first.path:
    tree = tree[part]
  expected = sum(np.linalg.norm(leaf[0]) for leaf in jax.tree.leaves(tree))
  others = sum(
      np.linalg.norm(leaf[c.sites.index(first.sites[0])])
      for c in found[1:] if (c.op, c.cell_type) == (first.op, first.cell_type)
      and first.sites[0] in c.sites
      for leaf in jax.tree.leaves(_at(grads, c.path)))
  t, site = first.cell_type, first.sites[0]
  place = list(space.choices(t)[site]).index(space.ops.index(first.op))
  np.testing.assert_allclose(norms[t][site, place], expected + others,
                             rtol=1e-5)


def _at(tree, path):
  for part in path:
    tree = tree[part]
  return tree

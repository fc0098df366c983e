"""FairDARTS: its gates, its loss, its update and cells with fewer edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_cells as net

from rome_jax import errors, families, spaces
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import rules, table
from rome_jax.methods.method import ArchParams, full_mask
from rome_jax.show import cells as pictures
from rome_jax.spaces import counting, genotypes

FAIR = table.METHODS['fair_darts']
RAGGED = spaces.Space(
    'ragged', ('a', 'b', 'c'), num_nodes=1, num_inputs=2,
    edge_ops=((('a', 'b'), ('a', 'b', 'c')), (('c',), ('b', 'c'))))


def params_of(space, seed=0):
  rng = np.random.default_rng(seed)
  return ArchParams(
      {t: np.float32(rng.normal(size=(space.num_edges, space.num_choices)))
       for t in space.cell_types},
      {t: np.zeros(0, np.float32) for t in space.cell_types})


# --------------------------------------------------------- gates and penalty


def test_gates_are_sigmoids():
  """Of every candidate; those of a mask are 0."""
  params = params_of(RAGGED)
  mask = {t: np.array(m) for t, m in full_mask(RAGGED).items()}
  mask['normal'][1, 0] = False
  cells = FAIR.sample(RAGGED, params, None, 1., mask)
  for t in spaces.CELL_TYPES:
    exists = RAGGED.choices(t) >= 0
    expected = np.where(mask[t], 1 / (1 + np.exp(-np.float64(
        params.alpha[t]))), 0.)[exists]
    np.testing.assert_allclose(cells[t].gates, expected, rtol=1e-6)


@pytest.mark.parametrize('masked', [False, True])
def test_the_zero_one_loss(masked):
  """`separate_loss.py`: -mse_loss(all sigmoids, .5); its slope by hand."""
  params, mask = params_of(RAGGED), full_mask(RAGGED)
  if masked:
    mask = {t: m & (np.arange(3) != 1) for t, m in mask.items()}
  alpha = np.concatenate([np.float64(params.alpha[t])[mask[t]]
                          for t in spaces.CELL_TYPES])
  s = 1 / (1 + np.exp(-alpha))
  value, slope = jax.value_and_grad(rules.zero_one)(params, mask)
  assert float(value) == pytest.approx(-np.mean((s - .5) ** 2), rel=1e-6)
  found = np.concatenate([slope.alpha[t][mask[t]] for t in spaces.CELL_TYPES])
  np.testing.assert_allclose(
      found, -2 * (s - .5) * s * (1 - s) / len(s), rtol=1e-5, atol=1e-8)
  assert all((slope.alpha[t][~mask[t]] == 0).all() for t in spaces.CELL_TYPES)


# ------------------------------------------------------ the authors' update


def test_steps_are_those_of_the_authors(quick_jit):
  """`architect.py: step` with `ConvSeparateLoss`, then theta's step."""
  torch = pytest.importorskip('torch')
  oracle = net.Torch(torch)

  def sigmoids():
    return {t: torch.sigmoid(a) for t, a in oracle.alpha.items()}

  with jax.enable_x64(True):
    step, state = net.make(FAIR)
    step = quick_jit(step)
    for _ in range(3):
      state, metrics = step(state, net.batches_of())
      loss = oracle.loss('valid', sigmoids())
      every = torch.cat(list(sigmoids().values()))
      separate = -torch.nn.functional.mse_loss(
          every, torch.full_like(every, .5))
      oracle.step_alpha(loss + 10 * separate)
      assert float(metrics['valid_loss']) == pytest.approx(
          loss.item(), rel=1e-8)
      assert float(metrics['valid_zero_one']) == pytest.approx(
          separate.item(), rel=1e-8)
      oracle.step_theta(oracle.loss('train', sigmoids()))
      net.check(state, oracle)


# ---------------------------------------------------- cells of fewer edges


def sparse(space):
  """A derived genotype whose nodes have one edge or two."""
  for seed in range(20):
    genotype = FAIR.derive(space, params_of(space, seed))
    if {len(node) for t in genotypes.cell_types(genotype)
        for node in getattr(genotype, t)} == {1, 2}:
      return genotype
  raise AssertionError('no such genotype among 20')


SMALL = spaces.Space('small', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'),
                     num_nodes=2)
SIZES = spaces.Sizes(2, 4, 3, image_size=8)


def test_text_json_and_pictures():
  genotype = sparse(SMALL)
  assert genotypes.from_text(genotypes.to_text(genotype)) == genotype
  assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
  families.check_genotype(SMALL, genotype, 'here')
  svg = pictures.cell_svg(genotype.normal, genotype.normal_concat, 'normal')
  assert svg.count('skip') + svg.count('sep') + svg.count('max') >= sum(
      map(len, genotype.normal))


def test_the_network_and_its_count():
  """Each pair is an operation of the network; the count knows them too."""
  genotype = sparse(SMALL)
  network = families.build(genotype, SMALL, SIZES)
  images = jnp.zeros((2, 8, 8, 3))
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  assert jax.eval_shape(network.apply, shapes, images).shape == (2, 3)
  size = sum(int(np.prod(leaf.shape))
             for leaf in jax.tree.leaves(shapes['params']))
  assert size == counting.count(genotype, SIZES).params
  free = genotypes.parameterless(genotype, SMALL)
  for t in spaces.CELL_TYPES:
    names = [op for node in getattr(genotype, t) for op, _ in node]
    assert free[t] == len(names) - names.count('sep_conv_3x3')


def test_its_place_in_the_supernet(quick_jit):
  """Padded slots add nothing: the logits are those of its own slots alone."""
  genotype = sparse(SMALL)
  with pytest.raises(errors.UserError, match='has 1 edges'):
    families.arch_of(genotype, SMALL)
  padded = families.arch_of(genotype, SMALL, fewer_edges=True)
  alone = {}
  for t, arch in padded.items():
    assert len(arch.edges) == sum(SMALL.in_degrees)
    own = [(SMALL.node_edges[i][0] + pred, SMALL.ops.index(op))
           for i, node in enumerate(getattr(genotype, t))
           for op, pred in node]
    edges, ops = np.array(sorted(own), np.int32).T
    alone[t] = arch._replace(edges=edges, ops=ops, gates=np.ones(len(own),
                                                                 np.float32))
  net_ = families.supernet(SMALL, SIZES)
  theta = weights_lib.init_supernet(net_, 0, 8, 3)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype('f')
  found, expected = (quick_jit(net_.apply)({'params': theta}, images, arch)
                     for arch in (padded, alone))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  full = genotypes.random(SMALL, np.random.default_rng(0))
  jax.tree.map(np.testing.assert_array_equal, families.arch_of(full, SMALL),
               families.arch_of(full, SMALL, fewer_edges=True))


def test_a_cell_of_nasbench201_without_any_edge():
  """All `none`: a legal cell, of which the family makes slots."""
  space = spaces.get_space('nasbench201', in_degree=2, drop_none=True)
  zeros = jax.tree.map(np.zeros_like, params_of(space))
  genotype = FAIR.derive(space, zeros)
  families.check_genotype(space, genotype, 'here')
  assert genotypes.used_ops(genotype) == {'none'}
  arch = families.arch_of(genotype, space, fewer_edges=True)['normal']
  assert arch.gates.tolist() == [0.] * sum(space.in_degrees)

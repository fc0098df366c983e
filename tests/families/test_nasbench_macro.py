"""NAS-Bench-Macro: published counts, a transcription, the table's genotypes."""

import jax
import numpy as np
import pytest
from jax import lax

from rome_jax import errors, families, spaces
from rome_jax.cli import describe
from rome_jax.engine import weights
from rome_jax.families import mobile
from rome_jax.spaces import Sizes, enumeration, genotypes
from rome_jax.tables import benchmarks, macro

SPACE = spaces.NASBENCH_MACRO
SIZES = Sizes(8, 32, 10, 32, 3)


def test_published_parameters_and_multiply_adds_of_all_networks():
  """6,561 of each, as the authors counted them."""
  table = macro.load()
  assert enumeration.size(SPACE) == table.size == 6561
  for index in range(table.size):
    count = mobile.count(SPACE, macro.to_genotype(index), SIZES)
    assert (count.params, count.macs) == (
        table.cost(index, 'params'), table.cost(index, 'flops'))


def network_of(code, side=16):
  genotype = macro.to_genotype(code)
  net = families.build(genotype, SPACE, SIZES._replace(image_size=side))
  return net, weights.initialise(net, 0, np.zeros((2, side, side, 3)))


@pytest.mark.parametrize('code', ['02012100', '11111221', '00011110'])
def test_the_built_network_has_as_many(code):
  net, variables = network_of(code)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == (
      macro.load().cost(code, 'params'))


def transcribed(params, code, x):
  """`train/model.py` of xiusu/NAS-Bench-Macro, statistics of the batch."""

  def conv(x, w, stride=1, groups=1):
    w = w[None, None] if w.ndim == 2 else w
    w = w[:, :, None] if w.ndim == 3 else w
    p = w.shape[0] // 2
    return lax.conv_general_dilated(
        x, w, (stride, stride), ((p, p), (p, p)), feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def norm(x, tree):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * tree['scale'] + tree['bias']

  def relu(x):
    return np.maximum(x, 0)

  x = relu(norm(conv(x, params['stem_conv']['kernel']), params['stem_norm']))
  number = 0
  for blocks in (2, 3, 3):
    for first in [True] + [False] * (blocks - 1):
      op, stride = code[number], 2 if first else 1
      tree = params.get(f'block{number}')
      number += 1
      if op == '0':
        if first:
          x = norm(conv(x, tree['project']['kernel'], 2), tree['project_norm'])
        continue
      y = relu(norm(conv(x, tree['expand']['kernel']), tree['expand_norm']))
      y = relu(norm(conv(y, tree['depthwise']['kernel'], stride, y.shape[-1]),
                    tree['depthwise_norm']))
      y = norm(conv(y, tree['project']['kernel']), tree['project_norm'])
      x = y if first else x + y
  x = relu(norm(conv(x, params['last_conv']['kernel']), params['last_norm']))
  return x.mean((1, 2)) @ params['head']['kernel'] + params['head']['bias']


@pytest.mark.parametrize('code', ['01210201', '22022100'])
def test_values_against_a_transcription(code, fill):
  net, variables = network_of(code)
  variables['params'] = fill(variables['params'], 3, .3)
  x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  found, _ = net.apply(variables, x, train=True, mutable=['batch_stats'])
  with jax.enable_x64(True):
    wanted = transcribed(
        jax.tree.map(np.float64, variables['params']), code, np.float64(x))
  assert np.abs(wanted).max() > .1
  np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('seed', [0, 1])
def test_supernet_equals_the_network(fill, quick_jit, seed):
  genotype = genotypes.random(SPACE, np.random.default_rng(seed))
  sizes = SIZES._replace(channels=8, image_size=16)
  supernet = families.supernet(SPACE, sizes)
  params = fill(weights.init_supernet(supernet, 0, 16, 3), seed)
  network = families.build(genotype, SPACE, sizes)
  stats = weights.initialise(
      network, 0, np.zeros((2, 16, 16, 3)))['batch_stats']
  x = np.random.default_rng(seed).normal(size=(4, 16, 16, 3)).astype(
      np.float32)
  arch = families.arch_of(genotype, SPACE)
  one = quick_jit(lambda p: supernet.apply({'params': p}, x, arch))(params)
  two, _ = quick_jit(lambda p: network.apply(
      {'params': p, 'batch_stats': stats}, x, train=True,
      mutable=['batch_stats']))(mobile.extract(params, genotype))
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_genotypes_of_the_table():
  for code in ('00000000', '22212202', '01201202'):
    assert macro.from_genotype(macro.to_genotype(code)) == code
  assert benchmarks.of(SPACE).parse('5', '') == macro.to_genotype('00000012')
  accuracy = benchmarks.accuracy(SPACE, macro.to_genotype('22212202'), 'digits')
  assert accuracy == pytest.approx(macro.load().query('22212202') / 100)
  assert benchmarks.of(spaces.MOBILE) is None
  assert benchmarks.accuracy(spaces.S0, None, 'cifar10') is None
  with pytest.raises(errors.UserError, match='8 blocks of identity'):
    macro.from_genotype(mobile.chain(['zero'] * 8))


def test_the_identity_has_weights_where_a_block_changes_size():
  for code, free in (('00000000', 5), ('10010100', 4), ('22212202', 1)):
    assert genotypes.parameterless(macro.to_genotype(code), SPACE) == {
        'normal': free}


def test_codes_are_read_where_a_genotype_is_given(capsys):
  assert describe.main(['22212202', '--space=nasbench_macro']) == 0
  out = capsys.readouterr().out
  assert 'code 22212202' in out and 'rank 1 of 6561' in out
  assert benchmarks.read('5', SPACE).genotype == macro.to_genotype('00000012')
  assert benchmarks.read('5', None).info == {'space': 'nasbench201'}

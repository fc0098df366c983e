"""Tests of the exact counts against published and independent figures."""

import numpy as np
import pytest

from rome_jax import errors, spaces
from rome_jax.spaces import Sizes, counting, genotypes

CIFAR10 = Sizes(cells=20, channels=36, num_classes=10)
IMAGENET = (
    Sizes(cells=14, channels=48, num_classes=1000, image_size=224), 'imagenet')
NETWORKS = {  # (sizes, stem)
    'cifar10_20x36': (CIFAR10, 'cifar'),
    'cifar10_8x16': (Sizes(8, 16, 10), 'cifar'),
    'cifar10_20x16': (Sizes(20, 16, 10), 'cifar'),
    'cifar100_20x36': (Sizes(20, 36, 100), 'cifar'),
    'imagenet_14x48': IMAGENET,
}

# Parameters at cifar10_20x36, MACs there; parameters at cifar10_8x16,
# cifar10_20x16, cifar100_20x36, imagenet_14x48, MACs there. From a counter
# independent of this one. They agree with what is published: to the last
# digit with the training logs of GM-NAS (skhu101/GM-NAS WS-GM/checkpoint:
# 3.660166 and 3.718486 MB), to the digits printed with ROME (Tables 4 and 5:
# DARTS_V2 528M, PDARTS 532M, GDAS 519M, SNAS 422M) and with the comments of
# xiaomi-automl/FairDARTS fairdarts/genotypes.py (PC-DARTS 3.63M, PDARTS
# 3.43M, GDAS 3.36M, DARTS_V2 3.3M, SNAS 2.66M parameters).
COUNTS = {
    'DARTS_V1': (
        3169414, 500987520, 232890, 671034, 3221344, 4510432, 505864704),
    'DARTS_V2': (
        3349342, 528359040, 246106, 710682, 3401272, 4718752, 529911552),
    'PC_DARTS_cifar': (
        3634678, 556670592, 335738, 788218, 3686608, 5270560, 571137408),
    'PDARTS': (
        3433798, 532174464, 292026, 737338, 3485728, 4944352, 542819328),
    'GDAS_V1': (
        3368782, 519428736, 330330, 744282, 3420712, 4969216, 537597888),
    'SDARTS_RS_s5': (
        3606166, 562393728, 301114, 780026, 3658096, 5120320, 566762688),
    'GM_DARTS1_best': (
        3660166, 571683456, 311546, 797626, 3712096, 5193088, 575041728),
    'GM_SNAS_s3_id6': (
        3718486, 586364544, 296314, 808826, 3770416, 5193184, 582521088),
    'NASNet': (
        3830950, 603452448, 333946, 843770, 3895840, 5564320, 604031616),
    'AmoebaNet': (
        3145078, 488931552, 326330, 682938, 3184048, 4627360, 526746624),
    # Synthetic cells: every node adds the same operation on both inputs.
    'skips and max pools': (
        1370134, 227272320, 100730, 274554, 1422064, 2427232, 265396224),
    'sep_conv_3x3': (
        4701718, 711665280, 411002, 1007738, 4753648, 6548320, 712012800),
}


def uniform(normal, reduce):
  """Four nodes, each the sum of one operation on both inputs."""
  return genotypes.Genotype(
      4 * (((normal, 0), (normal, 1)),), (2, 3, 4, 5),
      4 * (((reduce, 0), (reduce, 1)),), (2, 3, 4, 5))


def get(name):
  if name == 'skips and max pools':
    return uniform('skip_connect', 'max_pool_3x3')
  if name == 'sep_conv_3x3':
    return uniform(name, name)
  return genotypes.load(name)


@pytest.mark.parametrize('name', COUNTS)
def test_published_counts(name):
  found = {
      network: counting.count(get(name), *sizes)
      for network, sizes in NETWORKS.items()}
  assert (
      found['cifar10_20x36'].params, found['cifar10_20x36'].macs,
      found['cifar10_8x16'].params, found['cifar10_20x16'].params,
      found['cifar100_20x36'].params, found['imagenet_14x48'].params,
      found['imagenet_14x48'].macs) == COUNTS[name]
  for count in found.values():
    assert type(count.params) is int and type(count.macs) is int
    for i in range(2):
      assert sum(cost[i] for _, cost in count.parts) == count[i]


def test_snas():
  # FairDARTS fairdarts/genotypes.py: 422M, 2.66M.
  snas = genotypes.load('SNAS')
  count = counting.count(snas, CIFAR10)
  assert count[:2] == (2661382, 422218368)
  count = counting.count(snas, *IMAGENET)
  assert count[:2] == (3939328, 438042432)


def test_gdas_on_imagenet():
  # ROME Table 5: GDAS with C=50 has 581M and 5.3M.
  sizes, stem = IMAGENET
  count = counting.count(
      genotypes.load('GDAS_V1'), sizes._replace(channels=50), stem)
  assert count[:2] == (5345075, 581009000)


@pytest.mark.parametrize('name, network, params, macs', [
    # FairDARTS fairdarts/genotypes.py: 599M, 3.78M; 4.02M.
    ('MdeNAS', 'cifar10_20x36', '3.78', '599'),
    ('ENASNet', 'cifar10_20x36', '4.02', None),
    # PC-DARTS (Xu et al. 2020), searched on ImageNet: 5.3M.
    ('PC_DARTS_image', 'imagenet_14x48', '5.3', None),
])
def test_counts_to_printed_digits(name, network, params, macs):
  count = counting.count(genotypes.load(name), *NETWORKS[network])
  assert f'{count.params / 1e6:.5f}'.startswith(params)
  assert macs is None or f'{count.macs / 1e6:.5f}'.startswith(macs)


@pytest.mark.parametrize('ops, classes, params', [
    # DARTS's search network, and those of the logs of RobustDARTS
    # (automl/RobustDARTS experiments/search_logs*: 0.665466, 0.688596,
    # 0.624506 and 0.647636 MB). Parameters of `none` are none.
    (spaces.S0.ops, 10, 1930618),
    (spaces.S0.ops, 100, 1953748),
    (('skip_connect', 'sep_conv_3x3'), 10, 665466),
    (('none', 'skip_connect', 'sep_conv_3x3'), 100, 688596),
    (('none', 'sep_conv_3x3'), 10, 624506),
    (('none', 'sep_conv_3x3'), 100, 647636),
])
def test_supernet_params(ops, classes, params):
  space = spaces.Space('any', ops)
  assert counting.supernet(space, Sizes(8, 16, classes)).params == params


def test_supernet_of_one_operation_is_its_only_architecture():
  # With every predecessor kept, the supernet is a discrete network; only the
  # BatchNorm of the cells differs, 2C each.
  space = spaces.Space('one', ('dil_conv_3x3',), num_nodes=3, in_degree=4)
  genotype = genotypes.random(space, np.random.default_rng(0))
  sizes = Sizes(cells=2, channels=4, num_classes=10, image_size=8)
  whole = counting.supernet(space, sizes)
  count = counting.count(genotype, sizes)
  assert whole.macs == count.macs
  norms = 2 + 9  # preprocessing layers and edges of a cell
  assert count.params - whole.params == norms * (2 * 8 + 2 * 16)


def test_auxiliary_params():
  # CIFAR-10 at 36 channels: 576 in; 128 * 576 + 256 + 4 * 128 * 768 + 1536
  # + 7690.
  darts = genotypes.load('DARTS_V2')
  assert counting.auxiliary_params(darts, CIFAR10) == 476426
  # Both reductions at cells 0 and 1: also two doublings.
  assert counting.auxiliary_params(darts, Sizes(2, 36, 10)) == 476426
  # ImageNet: no second BatchNorm, 48 * 4 * 4 = 768 in.
  assert counting.auxiliary_params(darts, *IMAGENET) == (
      768 * 128 + 256 + 4 * 128 * 768 + 769 * 1000)


def by_hand(op, size, channels, stride):
  """Counts an operation position by position and weight by weight."""
  out = len(range(0, size, stride))
  pixels = out * out
  if 'sep' in op or 'dil' in op:
    taps, repeats = int(op[-1])**2, 2 if 'sep' in op else 1
    weights = channels * taps + channels * channels
    return repeats * (weights + 2 * channels), repeats * weights * pixels
  if op == 'conv_7x1_1x7':
    weights = 7 * channels * channels
    return 2 * weights + 2 * channels, weights * (size * out + pixels)
  if op.startswith('nor_conv'):
    weights = int(op[-1])**2 * channels * channels
    return weights + 2 * channels, weights * pixels
  if op == 'skip_connect' and stride == 2:
    half = channels * (channels // 2)
    return 2 * half + 2 * channels, 2 * half * pixels
  return 0, 0


@pytest.mark.parametrize('op', counting.OP_COUNTS)
@pytest.mark.parametrize('stride', [1, 2])
def test_operations(op, stride):
  for size in (1, 7, 8):
    cost = counting.OP_COUNTS[op](6, size, stride, True)
    assert cost == by_hand(op, size, 6, stride)
    search = counting.OP_COUNTS[op](6, size, stride, False)
    assert search.macs == cost.macs and search.params <= cost.params


def test_small_grey_images():
  # One node, one cell of each place; by hand, at 8x8x1, C=4, 3 cells.
  genotype = genotypes.Genotype(
      ((('sep_conv_3x3', 1),),), (2,), ((('skip_connect', 0),),), (2,))
  count = counting.count(genotype, Sizes(
      cells=3, channels=4, num_classes=5, image_size=8, image_channels=1))
  separable = 2 * (9 * 4 + 16)
  macs = {
      'stem': 9 * 12 * 64,
      'cell 0 (normal)': 64 * (2 * 12 * 4 + separable),
      'cell 1 (reduce)': 64 * (12 * 8 + 4 * 8) + 16 * 64,
      # Its s0 is twice as large as its s1: FactorizedReduce.
      'cell 2 (reduce)': 16 * (4 * 16 + 8 * 16) + 4 * 256,
      'head': 16 * 5}
  params = {
      'stem': 9 * 12 + 24,
      'cell 0 (normal)': 2 * (12 * 4 + 8) + separable + 16,
      'cell 1 (reduce)': 12 * 8 + 4 * 8 + 64 + 48,
      'cell 2 (reduce)': 4 * 16 + 8 * 16 + 256 + 96,
      'head': 16 * 5 + 5}
  assert {name: cost.macs for name, cost in count.parts} == macs
  assert {name: cost.params for name, cost in count.parts} == params


def test_a_new_operation_is_a_row(monkeypatch):
  monkeypatch.setitem(
      counting.OP_COUNTS, 'scale',
      lambda channels, size, stride, affine: counting.Cost(channels, 0))
  sizes = Sizes(cells=1, channels=4, num_classes=10)
  free = counting.count(uniform('none', 'none'), sizes)
  scaled = counting.count(uniform('none', 'scale'), sizes)
  assert scaled.params - free.params == 8 * 8
  assert scaled.macs == free.macs


@pytest.mark.parametrize('cells, places', [
    (1, (0,)), (2, (0, 1)), (3, (1, 2)), (8, (2, 5)), (14, (4, 9)),
    (20, (6, 13))])
def test_reductions(cells, places):
  assert counting.reductions(cells) == places


@pytest.mark.parametrize('changes, message', [
    (dict(cells=0), 'cells=0'),
    (dict(cells=-3), 'cells=-3'),
    (dict(cells=2.5), 'cells=2.5'),
    (dict(channels='36'), "channels='36'"),
    (dict(channels=True), 'channels=True'),
    (dict(num_classes=0), 'num_classes=0'),
    (dict(image_size=0), 'image_size=0'),
    (dict(image_channels=0), 'image_channels=0'),
    (dict(stem='image_net'), "did you mean 'imagenet'"),
    (dict(stem='imagenet', channels=5), 'channels=5 must be even'),
])
def test_bad_sizes(changes, message):
  sizes = {name: n for name, n in changes.items() if name != 'stem'}
  stem = changes.get('stem', 'cifar')
  with pytest.raises(errors.UserError, match=message):
    counting.count(
        genotypes.load('DARTS_V2'), CIFAR10._replace(**sizes), stem)


def test_bad_genotypes_and_spaces():
  with pytest.raises(errors.UserError, match="mean 'sep_conv_3x3'"):
    counting.count(uniform('sep_conv_3x33', 'none'), CIFAR10)
  with pytest.raises(errors.UserError, match='space own: normal node 2'):
    counting.supernet(spaces.Space('own', ('mine',)), CIFAR10)
  with pytest.raises(errors.UserError, match='num_inputs=1'):
    counting.supernet(
        spaces.Space('nb201', ('none',), num_inputs=1), CIFAR10)


# The logs of RobustDARTS's searches (experiments/search_logs*), in millions
# of parameters; S2 and S3 differ by `none`, which has none.
@pytest.mark.parametrize('name, ten, hundred', [
    ('s0', 1930618, 1953748), ('darts', 1930618, 1953748),
    ('s1', 405146, 428276),
    ('s2', 665466, 688596), ('s3', 665466, 688596), ('s4', 624506, 647636)])
def test_published_supernets(name, ten, hundred):
  space = spaces.get_space(name)
  assert counting.supernet(space, Sizes(8, 16, 10)).params == ten
  assert counting.supernet(space, Sizes(8, 16, 100)).params == hundred

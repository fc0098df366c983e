"""Networks: sizes, the supernet against the discrete network, training mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax import errors, families, spaces
from rome_jax.engine import archs, kernels, layers, operations, sums
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts, nasbench201
from rome_jax.spaces import counting, genotypes

CELLS, C, CLASSES = 5, 2, 3  # Reductions at 1 and 3: every kind of cell.
RICH = spaces.Space(
    'rich', ('skip_connect', 'sep_conv_3x3', 'avg_pool_3x3', 'max_pool_3x3',
             'dil_conv_5x5'), num_nodes=2)
# Candidates of each edge's own, as in RobustDARTS S1, some with `none`.
_SEP, _DIL = 'sep_conv_3x3', 'dil_conv_5x5'
UNEVEN = spaces.Space(
    'uneven', ('none', _DIL, 'skip_connect', _SEP), num_nodes=2,
    edge_ops=(((_SEP,), ('none', _DIL), (_DIL, _SEP), ('skip_connect',),
               (_SEP, 'skip_connect', _DIL)),
              ((_DIL, 'skip_connect'), (_SEP,), (_SEP, _DIL), ('none', _SEP),
               (_DIL,))))

DARTS_V2 = genotypes.PUBLISHED['DARTS_V2'].genotype


def images(batch=4, size=8):
  return np.random.default_rng(0).normal(
      size=(batch, size, size, 3)).astype(np.float32)


def shapes_of(module, *args, **kwargs):
  return jax.eval_shape(
      functools.partial(module.init, **kwargs), jax.random.key(0), *args)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def any_arch(space):
  """An architecture, for shapes."""
  m = sum(space.in_degrees)
  arch = (jax.ShapeDtypeStruct((m,), jnp.int32),) * 2 + (
      jax.ShapeDtypeStruct((m,), jnp.float32),)
  return {t: archs.CellArch(*arch) for t in spaces.CELL_TYPES}


# ------------------------------------------------------------------- counts


@pytest.mark.parametrize('classes, params', [(10, 1_930_618), (100, 1_953_748)])
def test_supernet_size(classes, params):
  """S0's size, 8 cells of 16 channels, as the logs of DARTS print it."""
  net = darts.Supernet(spaces.S0, 8, 16, classes)
  shapes = shapes_of(net, jnp.zeros((2, 32, 32, 3)), any_arch(spaces.S0))
  assert set(shapes) == {'params'}  # Stateless.
  assert size(shapes) == params
  sizes = spaces.Sizes(8, 16, classes)
  assert size(shapes) == counting.supernet(spaces.S0, sizes).params


def test_imagenet_supernet_size():
  net = darts.Supernet(RICH, 4, 4, 7, 'imagenet')
  shapes = shapes_of(net, jnp.zeros((2, 64, 64, 3)), any_arch(RICH))
  assert size(shapes) == counting.supernet(
      RICH, spaces.Sizes(4, 4, 7), 'imagenet').params


CIFAR = dict(cells=8, channels=16, num_classes=10)
IMAGENET = dict(cells=5, channels=6, num_classes=1000, stem='imagenet')


@pytest.mark.parametrize('name, sizes, auxiliary', [
    ('DARTS_V1', CIFAR, False), ('DARTS_V1', IMAGENET, True),
    ('GDAS_V1', CIFAR, True), ('GDAS_V1', IMAGENET, False),
    ('NASNet', CIFAR, False), ('NASNet', IMAGENET, True)])
def test_network_size(name, sizes, auxiliary):
  genotype = genotypes.PUBLISHED[name].genotype
  net = darts.Network(genotype, auxiliary=auxiliary, **sizes)
  side = 32 if sizes == CIFAR else 224
  shapes = shapes_of(net, jnp.zeros((1, side, side, 3)))
  stem = sizes.get('stem', 'cifar')
  sizes = spaces.Sizes(*map(sizes.get, CIFAR), image_size=side)
  expected = counting.count(genotype, sizes, stem).params
  if auxiliary:
    expected += counting.auxiliary_params(genotype, sizes, stem)
  assert size(shapes['params']) == expected


@pytest.mark.parametrize('sizes, params', [
    (dict(cells=20, channels=36, num_classes=10), 3_169_414),
    pytest.param(dict(cells=20, channels=36, num_classes=100), 3_221_344,
                 marks=pytest.mark.slow),
    pytest.param(
        dict(cells=14, channels=48, num_classes=1000, stem='imagenet'),
        4_510_432, marks=pytest.mark.slow)],
    ids=['cifar10', 'cifar100', 'imagenet'])
def test_published_size(sizes, params):
  net = darts.Network(genotypes.PUBLISHED['DARTS_V1'].genotype, **sizes)
  side = 32 if 'stem' not in sizes else 224
  shapes = shapes_of(net, jnp.zeros((1, side, side, 3)))
  assert size(shapes['params']) == params


def test_auxiliary_size_is_published():
  """476,426 at 36 channels, four nodes, two reductions, ten classes."""
  nodes = 4 * ((('skip_connect', 0), ('skip_connect', 1)),)
  genotype = genotypes.Genotype(nodes, (2, 3, 4, 5), nodes, (2, 3, 4, 5))
  shapes = shapes_of(
      darts.Network(genotype, 3, 36, 10, auxiliary=True),
      jnp.zeros((1, 32, 32, 3)))
  assert size(shapes['params']['auxiliary']) == 476_426


@pytest.mark.parametrize('stem, norm, size_of_norm', [
    ('cifar', 'darts', 1536), ('cifar', 'pc_darts', 1536),
    ('imagenet', 'darts', 0), ('imagenet', 'pc_darts', 1536)])
def test_the_second_norm_of_the_auxiliary_head(stem, norm, size_of_norm):
  """On ImageNet the code of PC-DARTS has one of 768 channels, DARTS' none."""
  sizes = spaces.Sizes(3, 4, 7, image_size=64)
  net = families.build(DARTS_V2, 's0', sizes, stem=stem, auxiliary=True,
                       auxiliary_norm=norm)
  shapes = shapes_of(net, jnp.zeros((1, 64, 64, 3)))['params']['auxiliary']
  norms = [size(tree) for name, tree in shapes.items() if 'Norm' in name]
  assert sum(norms) == 256 + size_of_norm  # Two per channel, 128 in the first.
  assert size(shapes) == counting.auxiliary_params(
      DARTS_V2, sizes, stem, norm)


# ------------------------------------------------------- one call per network


def one(op):
  """A cell of NAS-Bench-201 with one operation."""
  return genotypes.Genotype(
      tuple(tuple((op, p) for p in range(i + 1)) for i in range(3)), (3,))


@pytest.mark.parametrize('name', [
    'darts', 's1', 'nasbench201', 'nasbench1shot1_2', 'mobile_tiny'])
def test_build_and_supernet_of_every_family(name):
  """Their parameters are those that are counted, whatever the family."""
  space = spaces.SPACES[name]
  cells = space.num_nodes if space.family == 'mobile' else 3
  sizes = spaces.Sizes(cells, 8, 5, image_size=8)
  genotype = genotypes.random(space, np.random.default_rng(0))
  row, x = families.get(space), jnp.zeros((2, 8, 8, 3))
  net = families.build(genotype, name, sizes)
  shapes = shapes_of(net, x)
  assert size(shapes['params']) == row.count(space, genotype, sizes).params
  search = families.supernet(name, sizes)
  arch = families.arch_of(genotype, space)
  shapes = shapes_of(search, x, arch)['params']
  assert size(shapes) == row.count_supernet(space, sizes).params
  logits = jax.eval_shape(search.apply, {'params': shapes}, x, arch)
  assert logits.shape == (2, 5)


def test_partial_channels_make_a_smaller_supernet():
  sizes = spaces.Sizes(3, 8, 5)
  net = families.supernet(RICH, sizes, partial=4)
  shapes = shapes_of(net, jnp.zeros((1, 8, 8, 3)), any_arch(RICH))
  assert size(shapes['params']) == counting.supernet(
      RICH, sizes, partial=4).params


@pytest.mark.parametrize('size_of_image, stem', [
    (127, 'cifar'), (128, 'imagenet')])
def test_the_stem_goes_by_the_size_of_the_images(size_of_image, stem):
  sizes = spaces.Sizes(3, 4, 5, image_size=size_of_image)
  assert families.supernet('s0', sizes).stem == stem
  assert families.build(DARTS_V2, 's0', sizes).stem == stem
  assert families.supernet('nasbench201', sizes).stem == 'cifar'
  assert families.supernet('s0', sizes, stem='cifar').stem == 'cifar'


SIZES = spaces.Sizes(cells=3, channels=4, num_classes=10)


@pytest.mark.parametrize('call, message', [
    (lambda: darts.Network(one('nor_conv_3x3'), 3, 4, 10),
     'the genotype has no reduction cell, .* families.build'),
    (lambda: darts.Network('DARTS_V2', 3, 4, 10),
     "genotype='DARTS_V2' must be a Genotype; genotypes.load"),
    (lambda: nasbench201.Network(DARTS_V2, 3, 4, 10),
     'the genotype has a reduction cell; all cells of NAS-Bench-201'),
    (lambda: families.build(one('nor_conv_3x3'), 's0', SIZES),
     'genotype: the genotype has the cells normal, but space=s0'),
    (lambda: families.build(DARTS_V2, 'nasbench201', SIZES),
     'has the cells normal, reduce, but space=nasbench201 has normal'),
    (lambda: families.build('DARTS_V2', 's0', SIZES), 'must be a Genotype'),
    (lambda: families.build(DARTS_V2, 's00', SIZES), "did you mean 's0'"),
    (lambda: families.build(DARTS_V2, None, SIZES), 'space=None must be a'),
    (lambda: families.build(DARTS_V2, 's0', dict(cells=3)),
     'must be Sizes'),
    (lambda: families.build(DARTS_V2, 's0', SIZES._replace(cells=0)),
     'cells=0 must be an integer of at least 1'),
    (lambda: families.build(DARTS_V2, 's0', SIZES._replace(channels=4.5)),
     'channels=4.5 must be an integer'),
    (lambda: families.build(
        DARTS_V2, 's0', SIZES._replace(channels='4'), stem='imagenet'),
     "channels='4' must be an integer"),
    (lambda: families.arch_of('DARTS_V2', 's0'), 'must be a Genotype'),
    (lambda: families.build(DARTS_V2, 's0', SIZES, stem='image'),
     "stem='image' must be cifar or imagenet"),
    (lambda: families.build(DARTS_V2, 's0', SIZES, remat='cell'),
     "remat='cell' must be one of none, cells; did you mean 'cells'"),
    (lambda: families.build(DARTS_V2, 's0', SIZES, auxiliary_norm='darst'),
     "auxiliary_norm='darst' must be one of darts, pc_darts; did you"),
    (lambda: families.build(
        one('nor_conv_3x3'), 'nasbench201', SIZES, auxiliary=True),
     'auxiliary must be false with space=nasbench201'),
    (lambda: families.supernet('nasbench201', SIZES._replace(cells=4)),
     'cells=4 must be a multiple of 3'),
    (lambda: families.supernet('s0', SIZES, partial=3),
     'partial=3 must divide channels=4'),
    (lambda: families.supernet('s0', SIZES, partial=0),
     'partial=0 must be an integer of at least 1'),
    (lambda: families.supernet('nasbench1shot1_1', SIZES, partial=2),
     'partial=2 must be 1 with space=nasbench1shot1_1'),
    (lambda: families.supernet(spaces.Space('own', ('sep_conv_3x33',)), SIZES),
     "operation 'sep_conv_3x33' is not known")])
def test_arguments_that_make_no_network(call, message):
  with pytest.raises(errors.UserError, match=message):
    call()


# ------------------------------------- supernet at an architecture == network


def copy_weights(params, shapes, space, genotype, chosen, find):
  """The supernet's weights of one architecture in a Network's tree.

  Args:
    params: of the supernet.
    shapes: of the network's params; what is not copied is BatchNorm's.
    space, genotype, chosen: chosen is {cell type: CellArch} of `genotype`.
    find: the fixture `edge_weights`.
  """
  out = jax.tree_util.tree_map_with_path(
      lambda path, leaf: np.full(
          leaf.shape, 1. if path[-1].key == 'scale' else 0., np.float32),
      shapes)
  out = merged(out, {k: params[k] for k in ('stem_conv', 'head')})
  out['stem_norm'] = params['stem_norm']
  for i in range(CELLS):
    name, reduction = f'cell{i}', i in (CELLS // 3, 2 * CELLS // 3)
    cell, kind = params[name], 'reduce' if reduction else 'normal'
    copied = {k: cell[k] for k in ('preprocess0', 'preprocess1')}
    seen = dict.fromkeys(range(space.num_nodes), 0)
    for e, o in zip(chosen[kind].edges, chosen[kind].ops):
      node, op = space.edge_nodes[e], space.ops[o]
      copied[f'node{node}_{seen[node]}_{op}'] = find(
          cell, space, reduction, e, op)
      seen[node] += 1
    out[name] = merged(out[name], copied)
  return out


def merged(old, new):
  """`new` laid over `old`, both nested dicts; new names are mistakes."""
  if not isinstance(old, dict):
    assert old.shape == new.shape
    return new
  # A free operation has no weights, so the network's tree lacks it.
  new = {k: v for k, v in new.items() if len(v)}
  assert set(new) <= set(old)
  return {k: merged(old[k], new[k]) if k in new else old[k] for k in old}


def random_arch(space, seed, cell_arch):
  """(genotype, {cell type: CellArch}) of the same random architecture."""
  genotype = genotypes.random(space, np.random.default_rng(seed))
  archs = {}
  for t in spaces.CELL_TYPES:
    edges, choice = [], []
    for (start, _), node in zip(space.node_edges, getattr(genotype, t)):
      for op, pred in sorted(node, key=lambda pair: pair[1]):
        edges.append(start + pred)
        choice.append(space.ops.index(op))
    archs[t] = cell_arch(edges, choice)
  ordered = {t: tuple(tuple(sorted(node, key=lambda pair: pair[1]))
                      for node in getattr(genotype, t))
             for t in spaces.CELL_TYPES}
  return genotype._replace(**ordered), archs


@pytest.fixture(scope='module')
def supernet(fill, quick_jit):
  """space -> (its params, jitted logits(params, images, arch))."""

  @functools.cache
  def make(space):
    net = darts.Supernet(space, CELLS, C, CLASSES)
    shapes = shapes_of(net, images(), any_arch(space))['params']
    run = quick_jit(
        lambda params, x, arch: net.apply({'params': params}, x, arch))
    return fill(shapes), run

  return make


@pytest.fixture
def pools_with_norm(monkeypatch):
  """Pools of discrete networks normalised as in search: the one difference.

  DARTS follows pools by BatchNorm in its search network only.
  """
  for name, pool in (('max_pool_3x3', kernels.max_pool),
                     ('avg_pool_3x3', kernels.avg_pool)):
    monkeypatch.setitem(
        operations.OPS, name,
        lambda context, pool=pool: operations.Pool(
            pool, context.stride, context.norm))


@pytest.mark.parametrize('space, seed', [
    (RICH, 0), (RICH, 1), (RICH, 2), (UNEVEN, 0), (UNEVEN, 1)],
    ids=lambda value: getattr(value, 'name', value))
def test_supernet_equals_network(
    space, seed, supernet, cell_arch, edge_weights, pools_with_norm,
    quick_jit):
  """Same logits from Supernet at an architecture and Network(train)."""
  params, run = supernet(space)
  genotype, archs = random_arch(space, seed, cell_arch)
  turned = genotype._replace(**{  # A genotype lists edges in any order.
      t: tuple(node[::-1] for node in getattr(genotype, t))
      for t in spaces.CELL_TYPES})
  found = families.arch_of(turned, space)
  jax.tree.map(np.testing.assert_array_equal, found, archs)
  net = families.build(genotype, space, spaces.Sizes(CELLS, C, CLASSES))
  shapes = shapes_of(net, images())
  copied = copy_weights(
      params, shapes['params'], space, genotype, archs, edge_weights)
  stats = jax.tree.map(lambda s: np.ones(s.shape, s.dtype),
                       shapes['batch_stats'])
  expected, _ = quick_jit(lambda v, x: net.apply(
      v, x, train=True, mutable=['batch_stats']))(
          {'params': copied, 'batch_stats': stats}, images())
  actual = run(params, images(), found)
  assert np.std(expected) > .01
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_arch_of_an_edge_that_comes_twice(supernet, cell_arch):
  """GDAS derives such nodes: the sum of two operations on one edge."""
  params, run = supernet(RICH)
  node = (('dil_conv_5x5', 1), ('sep_conv_3x3', 1))
  cell = (node, (('skip_connect', 0), ('sep_conv_3x3', 2)))
  genotype = genotypes.Genotype(cell, (2, 3), cell, (2, 3))
  slots = cell_arch([1, 1, 2, 4], [1, 4, 0, 1])
  expected = run(params, images(), dict.fromkeys(spaces.CELL_TYPES, slots))
  np.testing.assert_array_equal(
      run(params, images(), families.arch_of(genotype, RICH)), expected)
  # Each operation's share is there: without one, the logits are others.
  for gone in range(2):
    gates = np.delete(np.ones(4, np.float32), 0)
    few = archs.CellArch(
        np.delete(slots.edges, gone), np.delete(slots.ops, gone), gates)
    other = run(params, images(), dict.fromkeys(spaces.CELL_TYPES, few))
    assert np.abs(other - expected).max() > 1e-3


@pytest.mark.parametrize('genotype, space, message', [
    (DARTS_V2, spaces.S2, "normal node 1 has 'sep_conv_3x3'|'dil_conv_3x3'"),
    (DARTS_V2, spaces.S1, 'where space=s1 has skip_connect, dil_conv_3x3'),
    (DARTS_V2, RICH, 'cell normal has 4 nodes, but space=rich has 2'),
    (DARTS_V2, spaces.NASBENCH201, 'the genotype has the cells normal, red'),
    (DARTS_V2._replace(normal_concat=(3, 4, 5)), spaces.S0,
     r'normal_concat=\(3, 4, 5\) must be the states 2 to 5'),
    (DARTS_V2._replace(reduce=DARTS_V2.reduce[:3] + (
        DARTS_V2.reduce[3][:1],)), spaces.S0,
     'reduce node 4 has 1 edges, but in space=s0 it keeps 2'),
    (DARTS_V2, 's00', "did you mean 's0'")])
def test_genotypes_that_are_not_of_the_space(genotype, space, message):
  with pytest.raises(errors.UserError, match=message):
    families.arch_of(genotype, space)


# ------------------------------------------------- K architectures, one loss


@pytest.mark.parametrize('cells', [
    1, pytest.param(3, marks=pytest.mark.slow)])  # One cell: a reduction.
def test_scan_vmap_and_loop_agree(cells, fill, cell_arch, quick_jit):
  """Loss and gradients of theta and gates over K = 3, in each way."""
  space = spaces.Space(
      'small', ('skip_connect', 'sep_conv_3x3'), num_nodes=1, in_degree=1)
  net = darts.Supernet(space, cells, C, CLASSES)
  x, labels = images(), np.arange(4) % CLASSES
  params = fill(shapes_of(net, x, any_arch(space))['params'])
  samples = jax.tree.map(
      lambda *a: np.stack(a),
      *(random_arch(space, seed, cell_arch)[1] for seed in (0, 1, 6)))
  assert len(np.unique(samples['reduce'].ops)) == 2

  def loss(params, gates, arch):
    arch = {t: arch[t]._replace(gates=gates[t]) for t in arch}
    logits = net.apply({'params': params}, x, arch)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels).mean()

  def one(params, arch):
    gates = {t: arch[t].gates for t in arch}
    return jax.value_and_grad(loss, (0, 1))(params, gates, arch)

  single = quick_jit(one)
  loop = jax.tree.map(lambda *a: sum(a), *(
      single(params, jax.tree.map(lambda a, k=k: a[k], samples))
      for k in range(3)))
  for parallel in sums.WAYS:
    actual = quick_jit(
        lambda params, samples, parallel=parallel: sums.sum_over_samples(
            functools.partial(one, params), samples, parallel))(
                params, samples)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-4), actual, loop)


# ----------------------------------------------------------- discrete network


GENOTYPE = genotypes.Genotype(
    normal=((('sep_conv_3x3', 0), ('skip_connect', 1)),),
    normal_concat=(2,),
    reduce=((('max_pool_3x3', 0), ('skip_connect', 1)),),
    reduce_concat=(2,))


@pytest.fixture(scope='module')
def network(fill, quick_jit):
  """(module, variables of normal weights, jitted apply)."""
  net = darts.Network(GENOTYPE, 3, 4, CLASSES)
  shapes = shapes_of(net, images())
  variables = {
      'params': fill(shapes['params']),
      'batch_stats': jax.tree_util.tree_map_with_path(
          lambda path, s: np.full(
              s.shape, float(path[-1].key == 'var'), s.dtype),
          shapes['batch_stats'])}
  train = quick_jit(lambda v, x, rate, key: net.apply(
      v, x, train=True, drop_path=rate, mutable=['batch_stats'],
      rngs={'drop_path': key}))
  return net, variables, train, quick_jit(net.apply)


def test_three_lines_of_import(network):
  """What the README shows."""
  from rome_jax import Network
  module = Network(genotypes.PUBLISHED['DARTS_V2'].genotype, cells=3,
                   channels=2, num_classes=10)
  shapes = shapes_of(module, images())
  assert jax.eval_shape(module.apply, shapes, images()).shape == (4, 10)


def test_running_statistics(network):
  """Evaluation uses them, training moves them by a tenth, as PyTorch's."""
  _, variables, train, evaluate = network
  key = jax.random.key(0)
  logits, updated = train(variables, images(), 0., key)
  old = variables['batch_stats']['stem_norm']
  new = updated['batch_stats']['stem_norm']
  w = variables['params']['stem_conv']['kernel']
  stem = np.asarray(jax.lax.conv_general_dilated(
      images(), w, (1, 1), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
  np.testing.assert_allclose(
      new['mean'], .9 * old['mean'] + .1 * stem.mean((0, 1, 2)), rtol=1e-3,
      atol=1e-5)
  np.testing.assert_allclose(
      new['var'], .9 * old['var'] + .1 * stem.var((0, 1, 2)), rtol=1e-3)
  # Per example: a batch's company has no say.
  x = images()
  whole = evaluate(variables, x)
  alone = evaluate(variables, np.repeat(x[:1], 4, 0))
  np.testing.assert_allclose(whole[0], alone[0], rtol=1e-4, atol=1e-5)
  with_batch, _ = train(variables, np.repeat(x[:1], 4, 0), 0., key)
  assert np.abs(with_batch[0] - logits[0]).max() > 1e-3
  # And they matter.
  moved = evaluate(variables | updated, x)
  assert np.abs(moved - whole).max() > 1e-3


def test_drop_path_of_zero_changes_nothing(network):
  _, variables, train, _ = network
  one, two = (train(variables, images(), 0., jax.random.key(key))[0]
              for key in (0, 1))
  np.testing.assert_array_equal(one, two)


def test_drop_path_statistics():
  """Per example, kept with 1 - rate, rescaled to the same expectation."""
  rate, n = .3, 4000
  x = jnp.ones((n, 2, 2, 3))

  class Probe(darts.Network):
    def __call__(self, x):
      return layers.make_drop_path(self, rate)(x)

  probe = Probe(GENOTYPE, 3, 4, CLASSES)
  y = np.asarray(probe.apply({}, x, rngs={'drop_path': jax.random.key(0)}))
  per_example = y.reshape(n, -1)
  # The whole example or nothing.
  assert np.all(per_example == per_example[:, :1])
  values = np.unique(per_example)
  np.testing.assert_allclose(values, [0, 1 / (1 - rate)], rtol=1e-6)
  kept = (per_example[:, 0] > 0).sum()
  z = (kept - n * (1 - rate)) / np.sqrt(n * rate * (1 - rate))
  assert abs(z) < 5


def test_drop_path_acts_in_training_only(network):
  _, variables, train, evaluate = network
  one, _ = train(variables, images(), .5, jax.random.key(0))
  two, _ = train(variables, images(), .5, jax.random.key(1))
  assert np.abs(one - two).max() > 1e-3
  # Traced alike: the rate is not even read in evaluation.
  net = network[0]
  with_rate, without = (
      str(jax.make_jaxpr(functools.partial(net.apply, drop_path=rate))(
          variables, images())) for rate in (.5, 0.))
  assert with_rate == without
  assert evaluate(variables, images()).shape == (4, CLASSES)


def test_auxiliary_only_while_training():
  net = darts.Network(GENOTYPE, 3, 4, CLASSES, auxiliary=True)
  x = jnp.zeros((2, 32, 32, 3))
  shapes = shapes_of(net, x)
  train = functools.partial(
      net.apply, train=True, mutable=['batch_stats'])
  (logits, auxiliary), _ = jax.eval_shape(train, shapes, x)
  assert logits.shape == auxiliary.shape == (2, CLASSES)
  assert jax.eval_shape(net.apply, shapes, x).shape == (2, CLASSES)


@pytest.mark.parametrize('cells, auxiliary_cell', [(20, 13), (14, 9), (8, 5)])
def test_positions(cells, auxiliary_cell):
  """Reductions at thirds; the auxiliary head on the second of them."""
  assert counting.reductions(cells) == (cells // 3, auxiliary_cell)


def test_shapes_of_imagenet():
  """224 pixels, 14 cells: s0 56, s1 28, the cells end at 7."""
  net = darts.Network(GENOTYPE, 14, 48, 1000, 'imagenet', auxiliary=True)
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

  def run(x):
    return net.init(jax.random.key(0), x), net.init(
        jax.random.key(0), x, capture_intermediates=True)['intermediates']

  shapes, found = jax.eval_shape(run, x)
  sides = [found[f'cell{i}']['__call__'][0].shape[1] for i in range(14)]
  assert sides == [28] * 4 + [14] * 5 + [7] * 5
  assert found['stem_norm1']['__call__'][0].shape == (1, 56, 56, 48)
  assert found['stem_norm2']['__call__'][0].shape == (1, 28, 28, 48)
  assert shapes['params']['head']['kernel'].shape == (4 * 48, 1000)
  # Cell 0 halves s0, since the stem counts as a reduction.
  assert 'even' in shapes['params']['cell0']['preprocess0']


@pytest.mark.parametrize('side', [8, 12, 28])
def test_any_image_size(side):
  """Odd maps after a reduction, images of one channel."""
  net = darts.Network(GENOTYPE, 4, 2, CLASSES, auxiliary=True)
  x = jnp.zeros((2, side, side, 1))
  shapes = shapes_of(net, x)
  logits, _ = jax.eval_shape(functools.partial(
      net.apply, train=True, mutable=['batch_stats']), shapes, x)
  assert [leaf.shape for leaf in logits] == 2 * [(2, CLASSES)]


# --------------------------------------------------------------- full size


@pytest.mark.slow
def test_s0_at_full_size(fill, cell_arch):
  """The paper's supernet runs, and pays for one path only."""
  net = darts.Supernet(spaces.S0, 8, 16, 10)
  x = images(8, 32)
  params = fill(shapes_of(net, x, any_arch(spaces.S0))['params'], scale=.1)
  _, archs = random_arch(spaces.S0, 0, cell_arch)

  def loss(params, arch):
    return net.apply({'params': params}, x, arch).sum()

  compiled = jax.jit(jax.grad(loss)).lower(params, archs).compile()
  grads = compiled(params, archs)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_initialise_has_the_structure_and_law_of_init(tiny):
  """Same tree as Flax's `init`; U(+-1/sqrt(fan_in)); BatchNorm neutral."""
  network = darts.Supernet(tiny, 3, 16, 10)
  params = weights_lib.init_supernet(network, 0, 8, 3)
  cell = archs.first_cell(tiny)
  shapes = jax.eval_shape(network.init, jax.random.key(0),
                          jnp.zeros((1, 8, 8, 3)),
                          {'normal': cell, 'reduce': cell})['params']
  assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(
      lambda a: a.shape, shapes)
  edges = params['cell0']['edges']['sep_conv_3x3']
  for name, fan_in in (('Depthwise_0', 9), ('Pointwise_1', 16)):
    w = edges[name]['kernel']
    bound = fan_in ** -.5
    assert np.abs(w).max() <= bound
    # A uniform law's variance is bound^2/3; 5 standard errors of it.
    error = bound**2 / 3 * np.sqrt(.8 / w.size)
    assert abs(w.var() - bound**2 / 3) < 5 * error
    assert abs(w.mean()) < 5 * bound / np.sqrt(3 * w.size)
    assert len({edge.tobytes() for edge in w}) == len(w)  # edges differ
  np.testing.assert_array_equal(params['stem_norm']['scale'], 1)
  np.testing.assert_array_equal(params['stem_norm']['bias'], 0)
  head = params['head']
  assert 0 < np.abs(head['bias']).max() <= head['kernel'].shape[0] ** -.5
  again = weights_lib.init_supernet(network, 0, 8, 3)
  other = weights_lib.init_supernet(network, 1, 8, 3)
  np.testing.assert_array_equal(head['kernel'], again['head']['kernel'])
  assert (head['kernel'] != other['head']['kernel']).all()

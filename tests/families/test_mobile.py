"""The mobile space: published sizes, a transcription in float64, one path."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from benchmarks import mobile_step
from rome_jax import errors, families, spaces
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib
from rome_jax.families import mobile
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.spaces import genotypes

CLASSES = 3
OPS = ('mbconv_k3_e3', 'mbconv_k5_e2')
# Runs of one, three, one and two blocks; `ops` of the last run also `zero`.
CHAIN = spaces.mobile('chain', ((8, 4, 2), (16, 3, 1)), OPS)
# Compiles fast; runs of one and two blocks.
FEW = spaces.mobile('few', ((8, 3, 1),), ('mbconv_k3_e1', 'mbconv_k3_e2'))
PUBLISHED_PARAMS = {  # osmr/imgclsmob, proxylessnas.py, _test
    'proxyless_cpu': 4_361_648, 'proxyless_gpu': 7_119_848,
    'proxyless_mobile': 4_080_512, 'proxyless_mobile_14': 6_857_568}
IMAGENET = dict(num_classes=1000, stem='imagenet')
SMALL = spaces.Sizes(7, 32, 10)


def count_published(name):
  row = mobile.PROXYLESS[name]
  sizes = spaces.Sizes(21, row.channels, 1000, image_size=224)
  return mobile.count(row.space, row.genotype, sizes, 'imagenet')


def images(batch=4, size=8, seed=0):
  return np.random.default_rng(seed).normal(
      size=(batch, size, size, 3)).astype(np.float32)


def shapes_of(module, *args):
  return jax.eval_shape(module.init, jax.random.key(0), *args)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def arch_of(space, names, gates=None):
  """{'normal'} of one operation name per block."""
  n = space.num_nodes
  return {'normal': archs.CellArch(
      np.arange(n, dtype=np.int32),
      np.asarray([space.ops.index(op) for op in names], np.int32),
      np.ones(n, np.float32) if gates is None else gates)}


def supernet_of(space, stem='cifar', channels=32):
  return mobile.Supernet(space, space.num_nodes, channels, CLASSES, stem)


def random_params(fill, net, seed=0):
  """Weights and affine parameters unlike their initial values."""
  names = [row[0] for row in net.space.site_ops('normal')]
  shapes = shapes_of(net, images(), arch_of(net.space, names))
  assert set(shapes) == {'params'}  # Stateless.
  return fill(shapes['params'], seed)


def published_network(name):
  row = mobile.PROXYLESS[name]
  return mobile.Network(row.space, row.genotype, channels=row.channels,
                        **IMAGENET)


@functools.cache
def published_shapes(name):
  return shapes_of(published_network(name), jnp.zeros((1, 224, 224, 3)))


# ------------------------------------------------------- sizes and geometry


@pytest.mark.parametrize('name, stem, first, stages, last', [
    ('proxyless_cpu', 40, 24, (32, 48, 88, 104, 216, 360), 1432),
    ('proxyless_gpu', 40, 24, (32, 56, 112, 128, 256, 432), 1728),
    ('proxyless_mobile', 32, 16, (32, 40, 80, 96, 192, 320), 1280),
    ('proxyless_mobile_14', 48, 24, (40, 56, 112, 136, 256, 448), 1792)])
def test_published_widths(name, stem, first, stages, last):
  row = mobile.PROXYLESS[name]
  assert mobile.fixed_widths(row.channels) == (stem, first, last)
  chain = mobile.blocks(row.space, row.channels, 'imagenet')
  assert [chain[i].c_out for i in (0, 4, 8, 12, 16, 20)] == list(stages)


def test_widths_of_the_search_network():
  """At 32 channels as written; 1280 does not shrink with them."""
  chain = mobile.blocks(spaces.MOBILE, 32, 'imagenet')
  assert [b.c_out for b in chain] == (
      [24] * 4 + [40] * 4 + [80] * 4 + [96] * 4 + [192] * 4 + [320])
  assert mobile.fixed_widths(32) == (32, 16, 1280)
  assert mobile.fixed_widths(8) == (8, 8, 1280)


@pytest.mark.parametrize('name', PUBLISHED_PARAMS)
def test_published_parameters(name):
  """Exact, by the formula and by the network's own arrays."""
  found = count_published(name)
  assert found.params == PUBLISHED_PARAMS[name]
  assert size(published_shapes(name)['params']) == PUBLISHED_PARAMS[name]
  assert sum(cost.params for _, cost in found.parts) == found.params


@pytest.mark.parametrize('name, millions', [
    ('proxyless_mobile', 320), ('proxyless_mobile_14', 581)])
def test_published_multiply_adds(name, millions):
  """As the authors' README printed them."""
  found = count_published(name)
  assert round(found.macs / 1e6) == millions
  assert sum(cost.macs for _, cost in found.parts) == found.macs


def walked_macs(params, sides):
  """Of a network's arrays, at hand-written heights of its maps.

  Args:
    params: of a Network.
    sides: (height before, height behind) per name of a block; 'stem_conv'
      and 'last_conv' too.
  """
  total = size(params['head']['kernel'])
  for name, (before, behind) in sides.items():
    for layer, leaf in params.get(name, {}).items():
      if name in ('stem_conv', 'last_conv'):
        total += leaf.size * behind**2
      elif 'norm' not in layer:
        side = before if layer == 'expand' else behind
        total += size(leaf) * side**2
  return total


@pytest.mark.parametrize('name', PUBLISHED_PARAMS)
def test_multiply_adds_against_a_walk(name):
  behind = [56] * 4 + [28] * 4 + [14] * 8 + [7] * 5
  sides = {'stem_conv': (224, 112), 'first': (112, 112), 'last_conv': (7, 7)}
  sides |= {f'block{i}': (before, after) for i, (before, after) in enumerate(
      zip([112, *behind], behind))}
  params = published_shapes(name)['params']
  assert count_published(name).macs == walked_macs(params, sides)


def test_the_authors_log_has_the_same_layers():
  """proxyless_mobile_10_latency.txt: 20 depthwise, 42 other, 13 additions."""
  row = mobile.PROXYLESS['proxyless_mobile']
  params = published_shapes('proxyless_mobile')['params']
  paths = [tuple(key.key for key in path) for path, _ in
           jax.tree_util.tree_flatten_with_path(params)[0]]
  kernels = [path for path in paths if path[-1] == 'kernel']
  assert sum('depthwise' in path for path in kernels) == 20
  assert sum('depthwise' not in path for path in kernels) == 42
  chain = mobile.blocks(row.space, row.channels, 'imagenet')
  assert sum(block.shortcut and op != 'zero' for block, op in zip(
      chain, mobile.chosen(row.genotype))) == 13


@pytest.mark.parametrize('space, sizes, stem, side', [
    (spaces.MOBILE, (8, 3), 'cifar', 32),
    (spaces.MOBILE, (32, 1), 'imagenet', 65),
    (spaces.MOBILE_TINY, (20, 3), 'cifar', 9),
    (CHAIN, (32, 3), 'imagenet', 17)])
def test_counts_are_those_of_the_arrays(space, sizes, stem, side):
  channels, colours = sizes
  n, common = space.num_nodes, dict(
      channels=channels, num_classes=7, stem=stem)
  x = jnp.zeros((2, side, side, colours))
  genotype = genotypes.random(space, np.random.default_rng(side))
  shapes = shapes_of(mobile.Network(space, genotype, **common), x)
  sizes = spaces.Sizes(n, channels, 7, side, colours)
  assert mobile.count(space, genotype, sizes, stem).params == size(
      shapes['params'])
  first = {'normal': archs.first_cell(space)}
  shapes = shapes_of(mobile.Supernet(space, n, **common), x, first)
  found = mobile.count_supernet(space, sizes, stem)
  assert found.params == size(shapes)
  # One candidate everywhere: supernet and network are the same.
  ones = space.restrict(edge_ops=((space.ops[:1],) * n,))
  same = mobile.chain([space.ops[0]] * n)
  one, two = (mobile.count_supernet(ones, sizes, stem),
              mobile.count(ones, same, sizes, stem))
  assert one[:2] == two[:2]


@pytest.mark.parametrize('stem, side, sides', [
    ('imagenet', 224, [112, 56, 28, 14, 14, 7, 7]),
    ('cifar', 32, [32, 32, 16, 8, 8, 4, 4])])
def test_sizes_of_the_maps(stem, side, sides):
  genotype = mobile.chain(['mbconv_k3_e3'] * 21)
  net = mobile.Network(spaces.MOBILE, genotype, 8, CLASSES, stem)
  _, found = jax.eval_shape(
      lambda x: net.init_with_output(
          jax.random.key(0), x, capture_intermediates=True),
      jnp.zeros((1, side, side, 3)))
  found = found['intermediates']
  names = ['first'] + [f'block{i}' for i in (0, 4, 8, 12, 16, 20)]
  assert [found[n]['__call__'][0].shape[1] for n in names] == sides


def test_runs_share_what_is_equal():
  """Blocks 2 to n of each stage; what a user's space makes unequal is cut."""
  def lengths(space, channels=32):
    return [run.length for run in mobile.runs(
        mobile.blocks(space, channels, 'cifar'))]

  assert lengths(spaces.MOBILE) == [1, 3] * 5 + [1]
  rows = list(CHAIN.site_ops('normal'))
  rows[2] = rows[2][:1]
  assert lengths(CHAIN) == [1, 3, 1, 2]
  assert lengths(CHAIN.restrict(edge_ops=(tuple(rows),))) == [
      1, 1, 1, 1, 1, 2]


# ------------------------------- a transcription, without switch or scan


def convolve(x, w, stride, groups=1):
  pad = w.shape[0] // 2
  return lax.conv_general_dilated(
      x, w, (stride, stride), ((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


def normalise(x, tree):
  mean = x.mean((0, 1, 2))
  variance = ((x - mean)**2).mean((0, 1, 2))
  return (x - mean) / jnp.sqrt(variance + 1e-3) * tree['scale'] + tree['bias']


def mbconv(x, tree, stride):
  if 'expand' in tree:
    x = convolve(x, tree['expand']['kernel'][None, None], 1)
    x = jnp.clip(normalise(x, tree['expand_norm']), 0, 6)
  w = tree['depthwise']['kernel'][:, :, None]
  x = convolve(x, w, stride, x.shape[-1])
  x = jnp.clip(normalise(x, tree['depthwise_norm']), 0, 6)
  x = convolve(x, tree['project']['kernel'][None, None], 1)
  return normalise(x, tree['project_norm'])


def transcription(params, gates, x, names, stem):
  """CHAIN at 32 channels; `names` of the operations are static."""
  strided = stem == 'imagenet'
  x = convolve(x, params['stem_conv']['kernel'], 2 if strided else 1)
  x = jnp.clip(normalise(x, params['stem_norm']), 0, 6)
  x = mbconv(x, params['first'], 1)
  places = [('blocks0', 0), ('blocks1', 0), ('blocks1', 1), ('blocks1', 2),
            ('blocks4', 0), ('blocks5', 0), ('blocks5', 1)]
  for i, ((run, row), op) in enumerate(zip(places, names)):
    if op == 'zero':
      continue
    tree = jax.tree.map(
        lambda leaf, row=row: leaf[row], params[run]['edges'][op])
    y = gates[i] * mbconv(x, tree, 2 if i == 0 and strided else 1)
    x = y if i in (0, 4) else x + y
  x = convolve(x, params['last_conv']['kernel'][None, None], 1)
  x = jnp.clip(normalise(x, params['last_norm']), 0, 6).mean((1, 2))
  return x @ params['head']['kernel'] + params['head']['bias']


NAMES = {
    'cifar': (OPS[0], OPS[1], 'zero', OPS[0], OPS[1], 'zero', OPS[0]),
    'imagenet': (OPS[1], 'zero', OPS[1], OPS[1], OPS[0], OPS[0], 'zero')}


@pytest.mark.parametrize('stem', NAMES)
def test_values_and_gradients_against_a_transcription(fill, quick_jit, stem):
  """With respect to weights, gates and images, in float64."""
  net, names = supernet_of(CHAIN, stem), NAMES[stem]
  params = random_params(fill, net)
  with jax.enable_x64(True):
    double = jax.tree.map(lambda a: a.astype(np.float64), params)
    x = images().astype(np.float64)
    gates = np.linspace(.6, 1.3, CHAIN.num_nodes)
    cotangent = np.random.default_rng(1).normal(size=(4, CLASSES))

    def ours(params, gates, x):
      logits = net.apply({'params': params}, x, arch_of(CHAIN, names, gates))
      return (logits * cotangent).sum(), logits

    def theirs(params, gates, x):
      logits = transcription(params, gates, x, names, stem)
      return (logits * cotangent).sum(), logits

    (_, found), grads = quick_jit(jax.value_and_grad(
        ours, (0, 1, 2), has_aux=True))(double, gates, x)
    (_, expected), correct = quick_jit(jax.value_and_grad(
        theirs, (0, 1, 2), has_aux=True))(double, gates, x)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8),
      grads, correct)
  # The gate of `zero` has a gradient, of nothing; the others have some.
  zero = np.asarray([op == 'zero' for op in names])
  np.testing.assert_array_equal(grads[1][zero], 0)
  assert (np.abs(grads[1][~zero]) > 1e-6).all()
  # What was not sampled has none.
  other = OPS[1] if names[0] == OPS[0] else OPS[0]
  for leaf in jax.tree.leaves(grads[0]['blocks0']['edges'][other]):
    np.testing.assert_array_equal(leaf, 0)


# ------------------------------- supernet at an architecture == network


@pytest.mark.parametrize('space, stem, seed', [
    (CHAIN, 'cifar', 0), (CHAIN, 'imagenet', 1),
    (spaces.MOBILE_TINY, 'cifar', 2), (spaces.MOBILE_TINY, 'imagenet', 3)])
def test_supernet_equals_the_network(fill, quick_jit, space, stem, seed):
  supernet = supernet_of(space, stem)
  params = random_params(fill, supernet, seed)
  genotype = genotypes.random(space, np.random.default_rng(seed))
  network = mobile.Network(space, genotype, 32, CLASSES, stem)
  variables = shapes_of(network, images())
  mine = mobile.extract(params, genotype)
  assert jax.tree.map(np.shape, mine) == jax.tree.map(
      np.shape, variables['params'])
  stats = fill(variables['batch_stats'], seed)
  x = images(seed=seed)
  arch = arch_of(space, mobile.chosen(genotype))
  jax.tree.map(
      np.testing.assert_array_equal, families.arch_of(genotype, space), arch)
  one = quick_jit(lambda params: supernet.apply({'params': params}, x, arch))(
      params)
  two, _ = quick_jit(lambda params: network.apply(
      {'params': params, 'batch_stats': stats}, x, train=True,
      mutable=['batch_stats']))(mine)
  assert np.abs(one).max() > .1
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_vmap_over_architectures_equals_a_loop(fill, quick_jit):
  net, x = supernet_of(FEW), images()
  params = random_params(fill, net)
  rng = np.random.default_rng(0)
  archs = [arch_of(FEW, mobile.chosen(genotypes.random(FEW, rng)))
           for _ in range(3)]

  def value(params, arch):
    def loss(params, gates):
      cell = arch['normal']._replace(gates=gates)
      return (net.apply({'params': params}, x, {'normal': cell})**2).mean()
    return jax.value_and_grad(loss, (0, 1))(params, arch['normal'].gates)

  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *archs)
  together = quick_jit(jax.vmap(value, (None, 0)))(params, stacked)
  alone = quick_jit(value)
  for k, arch in enumerate(archs):
    jax.tree.map(
        lambda a, b, k=k: np.testing.assert_allclose(
            a[k], b, rtol=1e-3, atol=1e-5), together, alone(params, arch))


# ---------------------------------------------------------------- resources


def test_memory_does_not_grow_with_candidates():
  """The dearest candidate alone needs as much as all together.

  JAX's own gradient of a switch grows by 1.3, to 2.2 times this.
  """
  x = images(8, 16)

  def temp_bytes(ops):
    # The stride makes the head's maps small beside the blocks'.
    space = spaces.mobile('s', ((16, 6, 1), (8, 1, 2)), ops)
    net = supernet_of(space)
    arch = {'normal': archs.first_cell(space)}
    params = shapes_of(net, x, arch)['params']

    def loss(gates, params, x):
      cell = arch['normal']._replace(gates=gates)
      return net.apply({'params': params}, x, {'normal': cell}).sum()

    compiled = jax.jit(jax.grad(loss)).lower(
        arch['normal'].gates, params, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  one = temp_bytes(('mbconv_k3_e4',))
  assert temp_bytes(('mbconv_k3_e4', 'mbconv_k5_e4', 'mbconv_k3_e3')) < (
      1.1 * one)


# ------------------------------------------------------------------ training


def test_running_statistics(fill, quick_jit):
  """Momentum 0.9; evaluation uses them and not the batch."""
  genotype = mobile.chain(NAMES['cifar'])
  net = mobile.Network(CHAIN, genotype, 32, CLASSES)
  x = images()
  shapes = shapes_of(net, x)
  params = fill(shapes['params'])
  stats = jax.tree.map(
      lambda leaf: np.full(leaf.shape, 2., np.float32), shapes['batch_stats'])
  variables = {'params': params, 'batch_stats': stats}
  _, new = quick_jit(lambda v: net.apply(
      v, x, train=True, mutable=['batch_stats']))(variables)
  stem = np.asarray(convolve(x, params['stem_conv']['kernel'], 1))
  found = new['batch_stats']['stem_norm']
  np.testing.assert_allclose(
      found['mean'], .9 * 2 + .1 * stem.mean((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(
      found['var'], .9 * 2 + .1 * stem.var((0, 1, 2)), rtol=1e-3)
  evaluate = quick_jit(lambda v, x: net.apply(v, x))
  np.testing.assert_allclose(
      evaluate(variables, x)[:2], evaluate(variables, x[[0, 1, 1, 1]])[:2],
      rtol=1e-4, atol=1e-4)


def test_drop_path_drops_only_what_has_a_shortcut(fill, quick_jit):
  """At a rate of all but certainty, only shortcuts remain of blocks."""
  genotype = mobile.chain((OPS[0],) * 7)
  bare = mobile.chain([op if i in (0, 4) else 'zero' for i, op in enumerate(
      mobile.chosen(genotype))])
  x = images()

  def logits(genotype, params, rate):
    net = mobile.Network(CHAIN, genotype, 32, CLASSES)
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32),
                         shapes_of(net, x)['batch_stats'])
    return quick_jit(lambda params: net.apply(
        {'params': params, 'batch_stats': stats}, x, train=True,
        drop_path=rate, mutable=['batch_stats'],
        rngs={'drop_path': jax.random.key(0)})[0])(params)

  params = random_params(fill, supernet_of(CHAIN))
  full, none = (mobile.extract(params, g) for g in (genotype, bare))
  dropped = logits(genotype, full, 1 - 1e-6)
  np.testing.assert_allclose(
      dropped, logits(bare, none, 0.), rtol=1e-4, atol=1e-4)
  assert np.abs(dropped - logits(genotype, full, 0.)).max() > 1e-2


def test_initial_weights(quick_jit):
  """Their law sees one block's fan-in; BatchNorm starts neutral."""
  net = supernet_of(CHAIN)
  first = {'normal': archs.first_cell(CHAIN)}
  drawn = weights_lib.initialise(net, 0, images(), first)['params']
  flax = quick_jit(net.init)(jax.random.key(0), images(), first)['params']
  assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, flax)
  for params in (drawn, flax):
    tree = params['blocks1']['edges']['mbconv_k5_e2']
    assert {len(leaf) for leaf in jax.tree.leaves(tree)} == {3}
    for name, fan_in in (('expand', 8), ('depthwise', 25), ('project', 16)):
      w = np.asarray(tree[name]['kernel'])
      bound = fan_in ** -.5
      assert .9 * bound < np.abs(w).max() <= bound
      assert len({block.tobytes() for block in w}) == 3  # blocks differ
    np.testing.assert_array_equal(tree['expand_norm']['scale'], 1)
    np.testing.assert_array_equal(tree['expand_norm']['bias'], 0)


def test_one_update_of_a_search(quick_jit):
  """Finite; `zero` is only sampled where a block may have it."""
  row = table.METHODS['rome_v2']
  net, x = supernet_of(FEW, channels=8), images(2)
  first = {'normal': archs.first_cell(FEW)}
  theta = weights_lib.initialise(net, 0, x, first)['params']
  arch = row.init(FEW, jax.random.key(0))
  batch = {'image': x, 'label': np.array([0, 2])}

  def loss_fn(theta, arch, batch, rng):
    del rng
    logits = net.apply({'params': theta}, batch['image'], arch)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label']).mean()
    return loss, {}

  update = step_lib.make_step(
      row, FEW, loss_fn, optax.sgd(.1), optax.adam(1e-3),
      lambda step: 1., step_lib.Options(k=2))
  state = step_lib.init_state(
      row, FEW, theta, arch, optax.sgd(.1), optax.adam(1e-3))
  new, metrics = quick_jit(update)(state, {'train': batch, 'valid': batch})
  assert all(np.isfinite(v).all() for v in jax.tree.leaves((new, metrics)))
  alpha = np.asarray(new.arch.alpha['normal'] - arch.alpha['normal'])
  allowed = FEW.choices('normal') >= 0
  assert not alpha[~allowed].any() and alpha[allowed].any()
  noise = jax.vmap(lambda key: method_lib.gumbel(arch, key, 1))(
      jax.random.split(jax.random.key(1), 100))
  drawn = jax.vmap(lambda noise: row.sample(FEW, arch, noise, 1.))(
          jax.tree.map(lambda a: a[:, 0], noise))['normal']
  seen = [set(np.asarray(drawn.ops)[:, i].tolist()) for i in range(3)]
  assert seen == [{0, 1}, {0, 1, 2}, {0, 1, 2}]


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize('space, sizes, message', [
    (CHAIN, dict(cells=8), 'cells=8 must be 7 with space=chain'),
    (CHAIN, dict(channels=0), 'channels=0 must be a positive number'),
    (CHAIN, dict(channels='32'), "channels='32' must be a positive number"),
    (spaces.S0, dict(cells=4), r'space s0: layout=\(\) must list stages'),
    (CHAIN.restrict(edge_ops=()), {}, "block 0 cannot have .* 'zero'"),
    (spaces.mobile('odd', ((8, 7, 1),), ('mbconv_k4_e3',)), {},
     "operation 'mbconv_k4_e3' must be 'zero', 'identity' or mbconv_kK_eE")])
def test_spaces_that_the_skeleton_cannot_have(space, sizes, message):
  with pytest.raises(errors.UserError, match=message):
    mobile.check(space, SMALL._replace(**sizes))


@pytest.mark.parametrize('names, message', [
    ((OPS[0],) * 6, 'chain of 7 nodes'),
    (('zero',) + (OPS[0],) * 6, "block 0 cannot have the operation 'zero'"),
    (('max_pool_3x3',) * 7, "'max_pool_3x3' must be 'zero', 'identity' or")])
def test_genotypes_of_another_space(names, message):
  with pytest.raises(errors.UserError, match=message):
    mobile.count(CHAIN, mobile.chain(names), SMALL)


def test_a_stem_of_no_such_name():
  with pytest.raises(errors.UserError, match="stem='cifar10' is unknown"):
    mobile.count_supernet(CHAIN, SMALL, 'cifar10')


# ----------------------------------------------------------------- benchmark


def test_benchmark_prints_json(monkeypatch, capfd):
  one = spaces.mobile('one', ((8, 1, 1),), ('mbconv_k3_e1',))
  monkeypatch.setitem(spaces.SPACES, 'one', one)
  before = jax.config.jax_enable_compilation_cache
  try:
    assert mobile_step.main([
        '--space=one', '--k=1', '--batch=2', '--image-size=4',
        '--channels=8', '--repeats=1']) == 0
    row = json.loads(capfd.readouterr().out)
    assert mobile_step.main(['--space=s0']) == 2
    assert 'space s0: layout=() must list' in capfd.readouterr().err
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
  assert row['compile_seconds'] > row['trace_seconds'] > 0
  assert row['step_seconds'] > 0 and row['temp_bytes'] > 0
  assert row['theta_bytes'] == 4 * mobile.count_supernet(
      one, spaces.Sizes(1, 8, 10)).params

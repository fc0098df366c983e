"""bfloat16, micro-batches and recomputation: what stays equal, what is kept."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax import data, families, spaces
from rome_jax.config import checks, fields
from rome_jax.config import setup as door
from rome_jax.engine import archs, layers, sums
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.spaces import genotypes
from rome_jax.train import metrics, recipes, retrain, search

B, SIDE, CLASSES = 6, 8, 3
each_space = pytest.mark.parametrize('space', [
    spaces.Space('small', ('skip_connect', 'sep_conv_3x3', 'noise'),
                 num_nodes=1),
    *(pytest.param(space, marks=pytest.mark.slow) for space in (
        spaces.S4, spaces.NASBENCH201, spaces.SPACES['nasbench1shot1_1'],
        spaces.mobile('chain', ((8, 2, 1), (16, 2, 2)))))],
                                     ids=lambda space: space.name)


def batch(seed=0, count=B):
  rng = np.random.default_rng(seed)
  return {'image': rng.normal(size=(count, SIDE, SIDE, 3)).astype(np.float32),
          'label': (np.arange(count) % CLASSES).astype(np.int32)}


def supernet(space):
  cells = space.num_nodes if space.family == 'mobile' else 3
  net = families.get(space).supernet(
      space, spaces.Sizes(cells, 4, CLASSES), 'cifar')
  return net, weights_lib.init_supernet(net, 0, SIDE, 3)


def network(space, remat='none'):
  cells = space.num_nodes if space.family == 'mobile' else 3
  genotype = genotypes.random(space, np.random.default_rng(0))
  auxiliary = space.family == 'darts'
  net = families.get(space).network(
      space, genotype, spaces.Sizes(cells, 4, CLASSES), 'cifar',
      auxiliary=auxiliary, remat=remat)
  return net, weights_lib.initialise(net, 0, jnp.zeros((2, SIDE, SIDE, 3)))


def supernet_loss(space, dtype):
  """(loss of (theta, arch parameters, batch), theta, arch parameters)."""
  net, theta = supernet(space)
  method = table.METHODS['rome_v2']
  params = method.init(space, jax.random.key(0))
  noise = jax.tree.map(
      lambda a: a[0], method_lib.gumbel(params, jax.random.key(1), 1))
  loss_fn = search.make_loss(net, dtype)

  def loss(theta, params, batch):
    arch = method.sample(space, params, noise, 1.)
    return loss_fn(theta, arch, batch, jax.random.key(2))[0]

  return loss, theta, params


def network_loss(space, dtype, remat='none'):
  """(loss and statistics of (params, stats, batch), params, stats)."""
  net, variables = network(space, remat)

  def loss(params, stats, batch):
    outputs, updated = net.apply(
        {'params': params, 'batch_stats': stats},
        batch['image'].astype(dtype), train=True, drop_path=.3,
        mutable=['batch_stats'],
        rngs={'drop_path': jax.random.key(0), 'noise': jax.random.key(1)})
    return sum(a.astype(jnp.float32).var() for a in jax.tree.leaves(outputs)
               ), updated['batch_stats']

  return loss, variables['params'], variables['batch_stats']


# -------------------------------------------------------------------- dtypes


def equations(jaxpr):
  """Every equation, those of inner programs too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def is_map(var):
  """Whether it holds images: a batch of them, or several."""
  aval = getattr(var, 'aval', None)
  shape = getattr(aval, 'shape', ())
  return len(shape) >= 4 and B in shape[:2] and jnp.issubdtype(
      aval.dtype, jnp.floating)


def wide_products(jaxpr):
  """What is float32 and no sum: products of images, and what a loop keeps."""
  found = []
  for eqn in equations(jaxpr):
    variables = []
    if eqn.primitive.name in ('conv_general_dilated', 'dot_general'):
      variables = [*eqn.invars, *eqn.outvars]
      if not any(map(is_map, variables)):
        variables = []  # the head
    elif eqn.primitive.name in ('scan', 'while', 'cond'):
      variables = filter(is_map, eqn.outvars)
    found += [(eqn.primitive.name, v.aval.str_short()) for v in variables
              if v.aval.dtype == jnp.float32]
  return found


@each_space
def test_products_and_what_is_kept_are_bfloat16(space):
  """In the supernet and the network, forward and backward."""
  loss, theta, params = supernet_loss(space, 'bfloat16')
  program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(theta, params, batch())
  assert not wide_products(program.jaxpr)
  assert {str(a.dtype) for a in program.out_avals} == {'float32'}
  wide = supernet_loss(space, 'float32')[0]
  assert wide_products(
      jax.make_jaxpr(jax.grad(wide))(theta, params, batch()).jaxpr)

  loss, params, stats = network_loss(space, 'bfloat16')
  program = jax.make_jaxpr(jax.grad(loss, has_aux=True))(
      params, stats, batch())
  assert not wide_products(program.jaxpr)
  assert {str(a.dtype) for a in program.out_avals} == {'float32'}


@each_space
def test_outputs_of_modules_are_bfloat16_and_logits_float32(space):
  images = jnp.zeros((B, SIDE, SIDE, 3), jnp.bfloat16)
  net, theta = supernet(space)
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}
  discrete, variables = network(space)
  for module, weights, args in (
      (net, {'params': theta}, (arch,)), (discrete, variables, (True,))):
    logits, found = jax.eval_shape(lambda weights, images, module=module,
                                   args=args: module.apply(
        weights, images, *args, capture_intermediates=True,
        mutable=['intermediates', 'batch_stats'],
        rngs={'noise': jax.random.key(0)}), weights, images)
    assert {str(a.dtype) for a in jax.tree.leaves(logits)} == {'float32'}
    maps = {str(a.dtype) for a in jax.tree.leaves(found['intermediates'])
            if a.ndim == 4}
    assert maps == {'bfloat16'}


def test_drop_path_has_its_rate_in_bfloat16():
  """bfloat16 draws would be multiples of 1/128 or so."""
  rate, n = .0375, 40_000

  class Probe(nn.Module):
    def __call__(self, x):
      return layers.make_drop_path(self, rate)(x)

  y = Probe().apply({}, jnp.ones((n, 1, 1, 1), jnp.bfloat16),
                    rngs={'drop_path': jax.random.key(0)})
  assert y.dtype == jnp.bfloat16
  dropped = (np.asarray(y) == 0).sum()
  assert abs(dropped - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@each_space
def test_gradients_are_as_good_as_bfloat16_inputs_allow(space, quick_jit):
  """ReLUs and maxima that flip make a rounding of 2^-8 a change of gradients.

  So the scale is the change in float32 when every weight and pixel is off by
  a random part of 2^-8. Activations are rounded at each layer, which counts
  for more than once: at most four times it, and the same direction.
  """
  many = batch(count=24)

  def gradient(dtype):
    loss, theta, params = supernet_loss(space, dtype)
    run = quick_jit(jax.grad(loss, (0, 1)))
    return lambda theta, many: run(theta, params, many), theta

  exact, theta = gradient('float32')
  rng = np.random.default_rng(0)

  def off(tree):
    return jax.tree.map(
        lambda a: (a * (1 + 2.**-8 * rng.choice([-1, 1], a.shape))).astype(
            np.float32), tree)

  expected = exact(theta, many)
  moved = exact(off(theta), many | {'image': off(many['image'])})
  actual = gradient('bfloat16')[0](theta, many)
  for e, m, a in zip(expected, moved, actual):
    e, m, a = map(flat, (e, m, a))
    norm = np.linalg.norm(e)
    assert np.linalg.norm(a - e) < 4 * np.linalg.norm(m - e)
    assert a @ e > .9 * norm * np.linalg.norm(a)


# ------------------------------------------------------------- micro-batches


def parts_of(batch, parts):
  return [jax.tree.map(lambda a, i=i: a[i::parts], batch)
          for i in range(parts)]


def test_mean_over_parts_hands_on_the_state_in_order():
  def function(state, part, fold):
    key = jax.random.key_data(fold(jax.random.key(7)))
    return 2 * state + part['x'].sum(), (part['x'].mean(), key)

  x = {'x': jnp.arange(12.)}
  state, (mean, keys) = sums.mean_over_parts(function, 1., x, 3)
  expected = 1.
  for part in parts_of(x, 3):
    expected = 2 * expected + part['x'].sum()
  assert float(state) == float(expected)
  assert float(mean) == 5.5
  state, (mean, key) = sums.mean_over_parts(function, 1., x, 1)
  np.testing.assert_array_equal(key, jax.random.key_data(jax.random.key(7)))
  assert (float(state), float(mean)) == (2 + 66, 5.5)


def curved(theta, arch, batch, rng):
  """A loss that is no mean over examples, as with BatchNorm."""
  del rng
  y = batch['image'].reshape(len(batch['image']), -1) @ theta
  strength = sum(cell.gates.sum() for cell in arch.values())
  return strength * (y.var() + (y - batch['label']).mean()**2), {}


def linear(theta, arch, batch, rng):
  """One that is."""
  del rng
  y = batch['image'].reshape(len(batch['image']), -1) @ theta
  strength = sum(cell.gates.sum() for cell in arch.values())
  return (strength * (y - batch['label'])**2).mean(), {}


@pytest.mark.parametrize('loss_fn, parallel', [
    (curved, 'scan'),
    *(pytest.param(*both, marks=pytest.mark.slow) for both in (
        (curved, 'vmap'), (linear, 'scan'), (linear, 'vmap')))])
def test_search_step_is_the_mean_of_its_parts(
    loss_fn, parallel, tiny, quick_jit):
  """One step of plain SGD with rate 1: the difference is the gradient."""
  theta = .1 * jnp.asarray(
      np.random.default_rng(0).normal(size=SIDE * SIDE * 3), jnp.float32)
  method = table.METHODS['rome_v2']
  sgd = optax.sgd(1.)
  state = step_lib.init_state(
      method, tiny, theta, method.init(tiny, jax.random.key(0)), sgd, sgd)

  updates = {
      accumulate: quick_jit(step_lib.make_step(
          method, tiny, loss_fn, sgd, sgd, lambda step: 1.,
          step_lib.Options(k=2, samples=parallel, accumulate=accumulate)))
      for accumulate in (1, 3)}

  def step(accumulate, batch):
    # Only what comes first: theta's samples are drawn after alpha's step.
    new, scalars = updates[accumulate](
        state, {'train': batch, 'valid': batch})
    return new.arch, scalars['valid_loss']

  two = batch(1)
  arch, loss = step(3, two)
  halves = [step(1, part) for part in parts_of(two, 3)]
  mean = jax.tree.map(lambda *a: sum(a) / 3, *(h[0] for h in halves))
  np.testing.assert_allclose(flat(arch), flat(mean), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(loss, np.mean([h[1] for h in halves]), rtol=1e-5)
  whole = step(1, two)
  same = np.allclose(flat(arch), flat(whole[0]), rtol=1e-4, atol=1e-5)
  assert same == (loss_fn is linear)


class Small(nn.Module):
  """A network with or without BatchNorm, in the conventions of `Network`."""

  norm: bool

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    x = images.reshape(len(images), -1)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=.9)(x)
    return nn.Dense(CLASSES)(x)


@pytest.mark.parametrize('norm', [True, False])
def test_retraining_step_is_the_mean_of_its_parts(norm, quick_jit):
  recipe = recipes.RetrainRecipe(auxiliary=False, drop_path=0.)
  net, tx = Small(norm), optax.sgd(1.)
  variables = net.init(jax.random.key(0), batch()['image'])
  state = retrain.init_state(variables, tx)

  def step(accumulate, state, batch):
    parts = recipe._replace(accumulate=accumulate)
    return quick_jit(retrain.make_step(net, parts, tx, 10, 5))(state, batch)

  actual, scalars = step(2, state, batch())
  after, losses = state, []
  new = []
  for part in parts_of(batch(), 2):
    found, metrics = step(1, after, part)
    new.append(found.params)
    losses.append(metrics['train_loss'])
    after = after._replace(batch_stats=found.batch_stats)
  np.testing.assert_allclose(
      flat(actual.params), (flat(new[0]) + flat(new[1])) / 2, rtol=1e-5,
      atol=1e-6)
  np.testing.assert_allclose(scalars['train_loss'], np.mean(losses), rtol=1e-6)
  if norm:
    np.testing.assert_allclose(
        flat(actual.batch_stats), flat(after.batch_stats), rtol=1e-6)
  whole = step(1, state, batch())[0]
  same = np.allclose(flat(actual.params), flat(whole.params), rtol=1e-5,
                     atol=1e-6)
  assert same == (not norm)


# ------------------------------------------------------------- recomputation


def kept_bytes(loss, params, stats):
  """What the forward pass keeps of B images for the backward pass."""

  def kept(count):
    pull = jax.eval_shape(
        lambda params: jax.vjp(
            lambda p: loss(p, stats, batch(count=count))[0], params)[1],
        params)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(pull))

  return kept(2 * B) - kept(B)  # without the weights


@each_space
def test_rematerialised_cells_keep_less(space):
  losses = {how: network_loss(space, 'float32', how)
            for how in ('none', 'cells')}
  kept = {how: kept_bytes(*loss) for how, loss in losses.items()}
  assert kept['cells'] < .6 * kept['none'], kept
  # And their parameters have the same names.
  names = [jax.tree.structure(loss[1:]) for loss in losses.values()]
  assert names[0] == names[1]


@each_space
def test_rematerialised_cells_give_the_same(space, quick_jit):
  """Loss, gradients and running statistics, with dropped paths and noise."""
  found = []
  for how in ('none', 'cells'):
    loss, params, stats = network_loss(space, 'float32', how)
    found.append(quick_jit(jax.value_and_grad(loss, has_aux=True))(
        params, stats, batch()))
  one, two = map(flat, found)
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------- resuming


class StopsAfter:
  """Asks for the end once it was looked at so many times."""

  signal = types.SimpleNamespace(name='SIGTERM')

  def __init__(self, times):
    self.times = times

  @property
  def requested(self):
    self.times -= 1
    return self.times < 0


@pytest.fixture
def no_optimizations():
  """XLA without its costly passes."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def small_run():
  config = fields.defaults()
  config.space = 'tiny'
  config.checkpoint_every = config.log_every = 2
  for part in (config.search, config.retrain):
    part.update(cells=1, channels=2, batch_size=8, accumulate=2,
                dtype='bfloat16', epochs=1, augment='none', cutout=0)
  config.search.update(k=2, epochs=3, max_steps=5)
  config.retrain.update(auxiliary=False, remat='cells', drop_path=.3)
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (40, 8, 8, 3), np.uint8),
                          np.arange(40, dtype=np.int32) % 4)
  return config, data.Dataset(
      'npz', split, split, 4, 8, 3, (.5,) * 3, (.25,) * 3)


@pytest.mark.slow
def test_a_stopped_run_ends_bit_for_bit_as_the_whole(
    tmp_path, tiny, monkeypatch, no_optimizations):
  """bfloat16, micro-batches and recomputation; search and retraining."""
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)
  config, dataset = small_run()
  checks.validate(config)
  setup, recipe = door.make_setup(config, dataset), door.retrain_recipe(config)
  trainer = retrain.Trainer(setup, recipe, dataset)
  job = retrain.jobs(tiny, recipe, genotypes.random(
      tiny, np.random.default_rng(0)), config.seed)[0]

  def outcomes(name, times):
    workdir = tmp_path / name
    workdir.mkdir(exist_ok=True)
    with metrics.MetricsWriter(workdir) as writer:
      settings = door.settings(config, workdir)
      searched, _ = search.run(
          setup, door.search_recipe(config), dataset, config.seed, settings,
          writer, StopsAfter(times))
      trained = trainer.run(job, settings, writer, StopsAfter(times))
    return searched, trained

  whole = outcomes('whole', 99)
  first = outcomes('parts', 2)
  assert not any(outcome.finished for outcome in first)
  resumed = outcomes('parts', 99)
  assert all(outcome.figures['resumed_at'] for outcome in resumed)
  for one, two in zip(whole, resumed):
    assert one.finished and two.finished
    state = jax.tree.leaves(one.state)
    assert 'bfloat16' not in {str(leaf.dtype) for leaf in state}
    for a, b in zip(state, jax.tree.leaves(two.state)):
      np.testing.assert_array_equal(a, b)

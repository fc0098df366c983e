"""First-order rows against the authors' steps, written anew in PyTorch.

DARTS, P-DARTS and, between two of their boundaries, DARTS-ES and DARTS-ADA on
the net of two cells; PC-DARTS and P-DARTS' dropout on supernets of a normal
and two reduction cells. All of it is in float64.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_cells as net

from rome_jax import families, spaces
from rome_jax.engine import cells as cells_lib
from rome_jax.engine import drop as drop_lib
from rome_jax.engine import weights
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.methods.method import ArchParams
from rome_jax.train import search
from rome_jax.train.recipes import SearchRecipe


@pytest.fixture(name='torch', scope='module')
def _torch():
  return pytest.importorskip('torch')


# ------------------------------------------------------ the two-cell network


def first_order(oracle, clip=np.inf):
  """(loss, norm of alpha's gradient, of theta's) of a step."""
  of_alpha = oracle.step_alpha(oracle.loss('valid', oracle.softmax()), clip)
  loss = oracle.loss('train', oracle.softmax())
  return loss.item(), of_alpha, oracle.step_theta(loss)


@pytest.mark.parametrize('name', ['darts', 'darts_es'])
def test_steps_are_those_of_the_authors(name, torch, quick_jit):
  row, oracle = table.METHODS[name], net.Torch(torch)
  with jax.enable_x64(True):
    step, state = net.make(row)
    step = quick_jit(step)
    for _ in range(3):
      state, metrics = step(state, net.batches_of())
      loss, _, norm = first_order(oracle)
      assert float(metrics['train_loss']) == pytest.approx(loss, rel=1e-8)
      assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-8)
      net.check(state, oracle)


def test_steps_before_and_after_the_decay_is_raised(torch, quick_jit):
  """DARTS-ADA: `adjust_weight_decay` sets that of theta's optimiser."""
  row, oracle = table.METHODS['darts_ada'], net.Torch(torch)
  with jax.enable_x64(True):
    step, state = net.make(row, net.transformations(
        hyperparameters=row.extra.hyperparameters))
    step = quick_jit(step)
    for decay in (net.DECAY, 10 * net.DECAY, .03):
      state = state._replace(theta_opt=optax.tree.set(
          state.theta_opt, weight_decay=jnp.asarray(decay)))
      oracle.sgd.param_groups[0]['weight_decay'] = decay
      state, _ = step(state, net.batches_of())
      first_order(oracle)
      net.check(state, oracle)


def test_the_gradient_of_alpha_is_clipped(torch, quick_jit):
  """P-DARTS clips both at norm 5; large weights make both larger."""
  row, scale = table.METHODS['p_darts'], 4.
  clip = row.recipe['search.alpha_clip']
  oracle = net.Torch(torch, scale=scale)
  with jax.enable_x64(True):
    step, state = net.make(
        row, net.transformations(alpha_clip=clip), scale=scale)
    step = quick_jit(step)
    for _ in range(3):
      state, _ = step(state, net.batches_of())
      _, *norms = first_order(oracle, clip)
      assert min(norms) > clip == net.CLIP
      net.check(state, oracle)


# ---------------------------------------------- cells of PC-DARTS and P-DARTS

SIZE, IMAGES, CHANNELS, CLASSES = 8, 4, 8, 3
CELLS = 'normal', 'reduce', 'reduce'  # Of layers 0, 1 and 2 of 3.
STARTS = 0, 2, 5  # The edges of two nodes.


def batches_of(seed=0):
  rng = np.random.default_rng(seed)
  return {half: {'image': rng.normal(size=(IMAGES, SIZE, SIZE, 3)),
                 'label': rng.integers(0, CLASSES, IMAGES)}
          for half in ('train', 'valid')}


class Cells(net.Authors):
  """`model_search.py` of PC-DARTS, with k = 1 that of P-DARTS.

  Maps are NCHW. The weights are those of the package's supernet; `find` takes
  an edge's out of a cell's.
  """

  def __init__(self, torch, space, find, theta, arch, k):
    super().__init__(torch, theta, arch)
    self.space, self.find, self.k, self.f = space, find, k, (
        torch.nn.functional)

  def loss(self, batch, kept=None):
    """Cross entropy; kept[cell][edge]: factors of an identity, NHWC."""
    theta = self.theta
    x = self.torch.tensor(batch['image']).permute(0, 3, 1, 2)
    s0 = s1 = self.f.batch_norm(
        self.conv(x, theta['stem_conv']), None, None,
        theta['stem_norm']['scale'], theta['stem_norm']['bias'], True)
    before = 'normal'
    for number, cell in enumerate(CELLS):
      s0, s1 = s1, self.cell(
          theta[f'cell{number}'], cell, before == 'reduce', s0, s1,
          kept and kept[number])
      before = cell
    head = theta['head']
    logits = s1.mean((2, 3)) @ head['kernel'] + head['bias']
    return self.f.cross_entropy(logits, self.torch.tensor(batch['label']))

  def cell(self, weights, cell, reduction_prev, s0, s1, kept):
    a, b = weights['preprocess0'], weights['preprocess1']
    s0 = (self.factorized_reduce(s0, a) if reduction_prev else
          self.relu_conv_bn(s0, a))
    states = [s0, self.relu_conv_bn(s1, b)]
    gates = self.torch.softmax(self.arch['alpha'][cell], -1)
    for start, stop in zip(STARTS, STARTS[1:]):
      shares = self.torch.softmax(self.arch['beta'][cell][start:stop], -1) if (
          'beta' in self.arch) else [1.] * (stop - start)
      states.append(sum(
          shares[j] * self.mixed_op(
              weights, cell, start + j, states[j], gates[start + j],
              kept and kept[start + j])
          for j in range(stop - start)))
    return self.torch.cat(states[2:], 1)

  def mixed_op(self, weights, cell, edge, x, gates, kept):
    reduction = cell == 'reduce'
    stride = 2 if reduction and edge - STARTS[edge >= 2] < 2 else 1
    part = x.shape[1] // self.k
    seen, passing = x[:, :part], x[:, part:]
    y = sum(gate * self.operation(
        name, seen, self.find(weights, self.space, reduction, edge, name),
        stride, kept) for gate, name in zip(gates, self.space.ops))
    if self.k == 1:
      return y
    if stride == 2:
      passing = self.f.max_pool2d(passing, 2, 2)
    y = self.torch.cat([y, passing], 1)
    n, c, h, w = y.shape
    return y.view(n, self.k, c // self.k, h, w).transpose(1, 2).reshape(
        n, c, h, w)

  def operation(self, name, x, weights, stride, kept):
    if name == 'max_pool_3x3':
      return self.bn(self.f.max_pool2d(x, 3, stride, 1))
    if name == 'sep_conv_3x3':
      for i, s in enumerate((stride, 1)):
        depthwise = weights[f'Depthwise_{i}']['kernel'].permute(2, 0, 1)
        x = self.f.conv2d(self.f.relu(x), depthwise[:, None], None, s, 1,
                          groups=x.shape[1])
        x = self.bn(self.conv(x, weights[f'Pointwise_{i}']))
      return x
    assert name == 'skip_connect'
    if stride == 2:
      return self.factorized_reduce(x, weights['FactorizedReduce_0'])
    return x if kept is None else x * self.torch.tensor(
        kept).permute(0, 3, 1, 2)

  def factorized_reduce(self, x, weights):
    x = self.f.relu(x)
    return self.bn(self.torch.cat([
        self.conv(x, weights['even'], 2),
        self.conv(x[:, :, 1:, 1:], weights['odd'], 2)], 1))

  def relu_conv_bn(self, x, weights):
    return self.bn(self.conv(self.f.relu(x), weights['Pointwise_0']))

  def conv(self, x, weights, stride=1):
    kernel = weights['kernel']
    if kernel.ndim == 2:
      kernel = kernel[None, None]
    return self.f.conv2d(x, kernel.permute(3, 2, 0, 1), None, stride,
                         kernel.shape[0] // 2)

  def bn(self, x):
    return self.f.batch_norm(x, None, None, training=True)


def arch_of(space, beta):
  """alpha and beta far from equal, float64; beta is empty if not asked for."""
  rng = np.random.default_rng(3)
  return ArchParams(
      *({t: jnp.asarray(.5 * rng.normal(size=shape))
         for t in space.cell_types}
        for shape in ((5, len(space.ops)), (5,) if beta else (0,))))


def supernet(space, k):
  """(module, theta in float64)."""
  module = families.get(space).supernet(
      space, spaces.Sizes(len(CELLS), CHANNELS, CLASSES), 'cifar', partial=k)
  theta = weights.init_supernet(module, 0, SIZE, 3)
  return module, jax.tree.map(np.float64, theta)


def test_steps_of_pc_darts(tiny, torch, edge_weights, quick_jit):
  """`MixedOp`, `Cell`, the edges' weights, and both optimisers."""
  row = table.METHODS['pc_darts']
  with jax.enable_x64(True):
    module, theta = supernet(tiny, row.partial)
    arch, txs = arch_of(tiny, True), net.transformations()
    oracle = Cells(torch, tiny, edge_weights, theta, arch._asdict(), 4)
    state = step_lib.init_state(row, tiny, theta, arch, *txs)
    step = quick_jit(step_lib.make_step(
        row, tiny, search.make_loss(module, 'float64'), *txs, lambda step: 1.,
        step_lib.Options(k=1, steps=10)))
    for number in range(3):
      batches = batches_of(number)
      state, metrics = step(state, batches)
      oracle.step_alpha(oracle.loss(batches['valid']))
      loss = oracle.loss(batches['train'])
      norm = oracle.step_theta(loss)
      assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-9)
      assert float(metrics['train_loss']) == pytest.approx(
          loss.item(), rel=1e-9)
      net.check(state, oracle)


# Few operations compile sooner; PC-DARTS' test has those with weights.
FREE = spaces.Space('free', ('skip_connect', 'max_pool_3x3'), num_nodes=2)


class Drawn(nn.Module):
  """What the slots of each cell of the supernet draw, by the cells' names."""

  @nn.compact
  def __call__(self, arch, rate):
    x = jnp.zeros((IMAGES, 1, 1, 1))  # Only its length matters.
    return [
        cells_lib.SearchCell(
            FREE, CHANNELS << i, i > 0, i > 1, name=f'cell{i}').variables_of(
                x, x, arch=arch[cell], drop=drop_lib.Drop(skip=rate))[3]
        for i, cell in enumerate(CELLS)]


def masks_of(theta, arch, key, rate):
  """Per cell [E,B,h,w,C]: dropout of a map of ones, skip by skip."""
  drawn = Drawn().apply({'params': theta}, arch, rate, rngs={'noise': key})

  def of_cell(i, slots):
    ones = jnp.ones((IMAGES, SIZE >> i, SIZE >> i, CHANNELS << i))
    # Skips are the first of each edge's two operations.
    return jax.vmap(lambda slot: drop_lib.dropout(ones, slot))(
        jax.tree.map(lambda a: a[::2], slots))

  return [of_cell(i, slots) for i, slots in enumerate(drawn)]


def test_steps_of_p_darts_with_dropout(torch, edge_weights, quick_jit):
  """The same masks for both, at the rates of `train_search.py`.

  An epoch is a step here. Alpha moves from the second on. The factors of the
  masks are float32, rates too, hence the tolerance.
  """
  row, clip, rate = table.METHODS['p_darts'], .02, .4
  rates = rate * 2 / 3, rate, rate * math.exp(-.2)
  recipe = SearchRecipe(skip_dropout=rate, alpha_start=1)
  with jax.enable_x64(True):
    module, theta = supernet(FREE, 1)
    arch, txs = arch_of(FREE, False), net.transformations(alpha_clip=clip)
    oracle = Cells(torch, FREE, edge_weights, theta, {'alpha': arch.alpha}, 1)
    state = step_lib.init_state(row, FREE, theta, arch, *txs)
    step = quick_jit(step_lib.make_step(
        row, FREE, search.make_loss(
            module, 'float64', search.make_drop(recipe, 3, 1)),
        *txs, lambda step: 1., step_lib.Options(k=1, steps=3, arch_from=1)))
    masks = quick_jit(lambda key, rate: masks_of(
        theta, row.sample(FREE, arch, None, 1.), key, rate))

    def kept(params, number):
      key = jax.random.split(net.update_key(row, number, params), 3)[2]
      found = [list(np.array(of_cell)) for of_cell in masks(
          jax.random.split(key, 1)[0], rates[number])]
      np.testing.assert_allclose(
          np.unique(found[0][0]), [0, 1 / (1 - rates[number])], rtol=1e-6)
      return found

    for number in range(3):
      batches = batches_of(number)
      state, metrics = step(state, batches)
      if number:
        norm = oracle.step_alpha(
            oracle.loss(batches['valid'], kept('arch', number)), clip)
        assert norm > clip
      loss = oracle.loss(batches['train'], kept('theta', number))
      oracle.step_theta(loss)
      assert float(metrics['train_loss']) == pytest.approx(
          loss.item(), rel=1e-6)
      net.check(state, oracle, 1e-6, 1e-8)

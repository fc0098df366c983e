"""A net of two mixed cells, in JAX and once more in PyTorch.

Both cells read the input twice (s0 = s1 = x), as DARTS' first cell does; the
second reads the input and the first cell's output. A cell's output is the mean
of its nodes, a node the sum over its edges and operations of gate * operation.
Operations on [B,D]: the input itself, tanh(x W), and x V.

The PyTorch side is the authors' loops, in float64, and knows nothing of the
package: it takes noise as arguments and updates as the papers' code does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rome_jax import spaces
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import ArchParams
from rome_jax.train import optim, recipes

D, CLASSES, BATCH = 3, 4, 6
SPACE = spaces.Space('two cells', ('skip', 'tanh', 'linear'), num_nodes=2)
PREDS = (0, 1, 0, 1, 2)  # Two edges enter the first node, three the second.
NODES = (0, 0, 1, 1, 1)
RATE, MOMENTUM, DECAY, CLIP = .1, .9, 3e-4, 5.
ARCH_RATE, ARCH_DECAY = 3e-2, 1e-3


def theta_of(seed=0, scale=.7):
  rng = np.random.default_rng(seed)
  shapes = {f'{cell}/{op}': (5, D, D) for cell in spaces.CELL_TYPES
            for op in ('tanh', 'linear')} | {'head': (D, CLASSES)}
  return {name: scale * rng.normal(size=shape)
          for name, shape in shapes.items()}


def alpha_of(seed=1, scale=.5):
  rng = np.random.default_rng(seed)
  return {t: scale * rng.normal(size=(5, 3)) for t in spaces.CELL_TYPES}


def batches_of(seed=2):
  rng = np.random.default_rng(seed)
  return {half: {'x': rng.normal(size=(BATCH, D)),
                 'label': rng.integers(0, CLASSES, BATCH)}
          for half in ('train', 'valid')}


# -------------------------------------------------------------------- JAX


def loss_fn(theta, cells, batch, key):
  del key
  inputs = batch['x'], batch['x']
  for t in spaces.CELL_TYPES:
    arch = cells[t]
    gates = jnp.zeros((5, 3), arch.gates.dtype).at[arch.edges, arch.ops].add(
        arch.gates)
    inputs = inputs[1], _cell(theta, t, gates, *inputs)
  logits = inputs[1] @ theta['head']
  return optim.cross_entropy(logits, batch['label']).mean(), {
      'accuracy': optim.correct(logits, batch['label']).mean()}


def _cell(theta, cell, gates, s0, s1):
  states = [s0, s1]
  for node in range(2):
    total = 0.
    for e in range(5):
      if NODES[e] == node:
        x = states[PREDS[e]]
        total += (gates[e, 0] * x
                  + gates[e, 1] * jnp.tanh(x @ theta[f'{cell}/tanh'][e])
                  + gates[e, 2] * x @ theta[f'{cell}/linear'][e])
    states.append(total)
  return (states[2] + states[3]) / 2


def transformations(rate=RATE, clip=CLIP, alpha_clip=0., hyperparameters=()):
  recipe = recipes.SearchRecipe(
      clip_norm=clip, weight_decay=DECAY, momentum=MOMENTUM,
      alpha_lr=ARCH_RATE, alpha_weight_decay=ARCH_DECAY, alpha_clip=alpha_clip)
  return (optim.sgd(lambda step: rate, recipe, hyperparameters),
          optim.arch_adam(recipe))


def plain(rate=1.):
  """Gradient descent for theta and for alpha."""
  return optax.sgd(rate), optax.sgd(rate)


def make(row, txs=None, tau=1., scale=.7, **options):
  """(step, state) of a row on this net, float64 if JAX is."""
  txs = txs or transformations()
  step = step_lib.make_step(
      row, SPACE, loss_fn, *txs, lambda step: tau,
      step_lib.Options(**{'k': 1, 'steps': 10, **options}))
  theta = jax.tree.map(jnp.asarray, theta_of(scale=scale))
  arch = ArchParams(jax.tree.map(jnp.asarray, alpha_of()),
                    {t: jnp.zeros(0) for t in spaces.CELL_TYPES})
  return step, step_lib.init_state(row, SPACE, theta, arch, *txs)


def update_key(row, number, params, seed=0):
  """The key of one update of a step."""
  keys = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), number),
      max(2, len(row.updates)))
  return keys[[u.params for u in row.updates].index(params)]


# ---------------------------------------------------------------- PyTorch


class Authors:
  """theta and {'alpha': tables, ...}, with the optimisers of DARTS' code.

  Both are trees of arrays, here of tensors in float64.
  """

  def __init__(self, torch, theta, arch, rate=RATE):
    self.torch = torch
    self.theta, self.arch = jax.tree.map(
        lambda a: torch.tensor(np.float64(a), requires_grad=True),
        (theta, arch))
    self.sgd = torch.optim.SGD(
        jax.tree.leaves(self.theta), rate, momentum=MOMENTUM,
        weight_decay=DECAY)
    self.adam = torch.optim.Adam(
        jax.tree.leaves(self.arch), ARCH_RATE, betas=(.5, .999),
        weight_decay=ARCH_DECAY)

  def step_alpha(self, loss, clip=np.inf):
    """Returns the norm of the gradient before it is clipped (P-DARTS)."""
    return self._step(self.adam, self.arch, loss, clip)

  def step_theta(self, loss):
    """Returns the norm of the gradient before it is clipped."""
    return self._step(self.sgd, self.theta, loss, CLIP)

  def _step(self, optimiser, tree, loss, clip):
    """`clip_grad_norm_` without the 1e-6 that PyTorch adds to the norm."""
    optimiser.zero_grad()
    loss.backward()
    grads = [a.grad for a in jax.tree.leaves(tree) if a.grad is not None]
    norm = sum((g ** 2).sum() for g in grads).sqrt().item()
    for g in grads:
      g.mul_(min(1., clip / norm))
    optimiser.step()
    return norm


class Torch(Authors):
  """The net of two cells; its architecture is alpha."""

  def __init__(self, torch, rate=RATE, scale=.7):
    super().__init__(
        torch, theta_of(scale=scale), {'alpha': alpha_of()}, rate)
    self.alpha = self.arch['alpha']
    self.batches = {
        half: (torch.tensor(b['x']), torch.tensor(b['label']))
        for half, b in batches_of().items()}

  def softmax(self):
    return {t: self.torch.softmax(a, -1) for t, a in self.alpha.items()}

  def loss(self, half, gates, theta=None):
    x, labels = self.batches[half]
    theta = theta or self.theta
    s0 = s1 = x
    for t in ('normal', 'reduce'):
      states = [s0, s1]
      for first, last in ((0, 2), (2, 5)):
        states.append(sum(
            self.mixed_op(theta, t, e, states[e - first], gates[t][e])
            for e in range(first, last)))
      s0, s1 = s1, (states[2] + states[3]) / 2
    return self.torch.nn.functional.cross_entropy(
        s1 @ theta['head'], labels)

  def mixed_op(self, theta, cell, edge, x, gates):
    w, v = (theta[f'{cell}/{op}'][edge] for op in ('tanh', 'linear'))
    return sum(g * y for g, y in zip(gates, (x, self.torch.tanh(x @ w), x @ v)))


def check(state, oracle, rtol=1e-8, atol=1e-10):
  """The state of the search is the oracle's."""
  arch = {name: getattr(state.arch, name) for name in oracle.arch}
  jax.tree.map(
      lambda mine, theirs: np.testing.assert_allclose(
          mine, theirs.detach().numpy(), rtol=rtol, atol=atol),
      (state.theta, arch), (oracle.theta, oracle.arch))

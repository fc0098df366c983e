"""DARTS and PC-DARTS, to measure their memory beside the engine's.

Every operation of every edge is evaluated and their sum is differentiated by
JAX as it stands; nothing is recomputed. Operations, stem, head and optimisers
are those of the package. Not a part of it: nobody should search with this.

DARTS: Liu et al., ICLR 2019, `cnn/model_search.py`; PC-DARTS: Xu et al., ICLR
2020, `model_search.py` of the authors' code.
"""

import contextlib
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from benchmarks import search_step
from rome_jax.engine import layers, operations
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.spaces import S0, Space

# DARTS' eight operations: S0 and `none`.
SPACE = S0.restrict(name='darts', ops=('none', *S0.ops))


def stock_kernels():
  """A context in which programs are traced with JAX's own kernels.

  As on any backend but the CPU, for which `rome_jax.engine.kernels` has
  shifted copies: 9 to 49 operations of XLA for each of a supernet's thousand,
  hours of compiling for DARTS. Buffers differ: XLA fuses the copies with what
  is before them, where a convolution has its input in memory.
  """
  if jax.default_backend() != 'cpu':
    return contextlib.nullcontext()
  # By its name the kernels choose, when they are traced.
  return mock.patch.object(jax, 'default_backend', lambda: 'stock')


def relax(space: Space, params: method_lib.ArchParams) -> dict:
  """What each operation and each edge weighs, {cell type: (alpha, beta)}.

  Returns:
    Per cell type softmax(alpha), [E,O], and the softmax of beta over the
    edges of each node (PC-DARTS' edge normalisation), [E]; None if there is
    no beta (DARTS).
  """
  arch = {}
  for t in space.cell_types:
    beta = params.beta[t]
    edges = None
    if beta.size:
      edges = jnp.concatenate(
          [jax.nn.softmax(beta[a:b]) for a, b in space.node_edges])
    arch[t] = jax.nn.softmax(params.alpha[t]), edges
  return arch


def _shuffle(x, groups):
  """Channels (group, i) in the order (i, group); [B,H,W,C]."""
  split = x.reshape(*x.shape[:3], groups, -1)
  return jnp.swapaxes(split, 3, 4).reshape(x.shape)


def _halve(x):
  """2x2 max pooling: what passes by a strided edge of PC-DARTS."""
  return lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


class MixedCell(nn.Module):
  """A cell that evaluates all operations of all edges.

  Attributes:
    space, features, reduction, reduction_prev: as in `cells.SearchCell`.
    partial: the mixed operation has 1/partial of the channels, the others
      pass by (PC-DARTS); 1: all of them (DARTS).
  """

  space: Space
  features: int
  reduction: bool
  reduction_prev: bool
  partial: int = 1

  @nn.compact
  def __call__(self, s0, s1, arch):
    """Inputs [B,H,W,.] and a cell of `relax` to [B,h,w,N*C]."""
    alpha, beta = arch
    first = (operations.FactorizedReduce if self.reduction_prev else
             operations.ReluConvNorm)
    states = [
        first(self.features, operations.BatchStatistics,
              name='preprocess0')(s0),
        operations.ReluConvNorm(
            self.features, operations.BatchStatistics, name='preprocess1')(s1)]
    for start, stop in self.space.node_edges:
      terms = []
      for e in range(start, stop):
        y = self._edge(e, states[self.space.edge_preds[e]], alpha[e])
        terms.append(y if beta is None else beta[e] * y)
      states.append(sum(terms[1:], terms[0]))
    return jnp.concatenate(states[self.space.num_inputs:], -1)

  def _edge(self, e, x, weights):
    strided = self.reduction and self.space.edge_preds[e] < 2
    width = self.features // self.partial
    inside, past = x[..., :width], x[..., width:]
    y = self._mix(e, inside, weights, 2 if strided else 1)
    if self.partial == 1:
      return y
    past = _halve(past) if strided else past
    return _shuffle(jnp.concatenate([y, past], -1), self.partial)

  def _mix(self, e, x, weights, stride):
    context = operations.Context(
        stride, operations.BatchStatistics, pool_norm=True)
    terms = [
        w * operations.build(op, context).clone(
            parent=self, name=f'edge{e}_{op}')(x)
        for w, op in zip(weights, self.space.ops)]
    return sum(terms[1:], terms[0])


class MixedSupernet(nn.Module):
  """DARTS' search network (CIFAR stem); attributes as `networks.Supernet`."""

  space: Space
  cells: int
  channels: int
  num_classes: int
  partial: int = 1

  @nn.compact
  def __call__(self, images, arch, want_weight_grads=None):
    """Logits [B,classes] of images [B,H,W,.] at `relax`'s arch."""
    del want_weight_grads  # JAX differentiates what is asked for.

    def make_cell(i, features, reduction, reduction_prev):
      cell = MixedCell(self.space, features, reduction, reduction_prev,
                       self.partial, name=f'cell{i}')
      kind = 'reduce' if reduction else 'normal'
      return functools.partial(cell, arch=arch[kind])

    outputs = darts.stack(
        images, stem='cifar', channels=self.channels, cells=self.cells,
        stem_norm=layers.AffineBatchStatistics, make_cell=make_cell)
    return layers.Linear(self.num_classes, name='head')(
        outputs[self.cells - 1].mean((1, 2)))


def make_problem(network: MixedSupernet, batch_size: int,
                 image_size: int) -> search_step.Problem:
  """The supernet on random images with random labels."""
  # Methods whose beta is none, and one per edge.
  method = table.METHODS['gdas' if network.partial == 1 else 'rome_v2']
  return search_step.problem_of(
      network, method, batch_size, image_size, init=_init)


def _init(network, seed, image_size, image_channels):
  space = network.space
  images = jnp.zeros((1, image_size, image_size, image_channels))
  arch = {t: (jnp.ones((space.num_edges, len(space.ops))),
              jnp.ones(space.num_edges)) for t in space.cell_types}
  return weights_lib.initialise(network, seed, images, arch)['params']


def make_step(problem: search_step.Problem, config):
  """(DARTS' first order step, not yet jitted, and the state before it).

  The step is alpha's and beta's on one batch, then theta's on the other;
  (methods.State, batch_theta, batch_alpha) -> (State, metrics).
  """
  theta_tx, arch_tx = optimisers = search_step.make_optimisers(config)

  def loss(theta, params, batch):
    arch = relax(problem.space, params)
    return problem.loss_fn(theta, arch, batch, jax.random.key(0))[0]

  def update(state, batch_theta, batch_alpha):
    valid, grads = jax.value_and_grad(loss, 1)(
        state.theta, state.arch, batch_alpha)
    updates, arch_opt = arch_tx.update(grads, state.arch_opt, state.arch)
    arch = optax.apply_updates(state.arch, updates)
    train, grads = jax.value_and_grad(loss)(state.theta, arch, batch_theta)
    vector, unravel = ravel_pytree(state.theta)
    updates, theta_opt = theta_tx.update(
        ravel_pytree(grads)[0], state.theta_opt, vector)
    return step_lib.State(
        state.step + 1, state.seed,
        unravel(optax.apply_updates(vector, updates)), arch, theta_opt,
        arch_opt), {
            'train_loss': train, 'valid_loss': valid}

  return update, search_step.init_state(problem, optimisers)

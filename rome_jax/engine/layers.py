"""Layers that supernets and discrete networks of every family share."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rome_jax.engine import kernels, operations


def pooled(x):
  """[B,C], the mean over all pixels of [B,H,W,C]; float32 at least."""
  return x.mean((1, 2), dtype=operations.wide(x.dtype))


def batch_norm(images, train, momentum=.9, epsilon=1e-5):
  """The function that makes a discrete network's normalisation layers.

  Args:
    images: what the network is applied to; without their dtype Flax would
      promote every activation to that of scale and bias.
    train: statistics of the batch instead of the running ones.
    momentum: of the running statistics.
    epsilon: added to the variance.
  """
  return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=momentum,
      epsilon=epsilon, dtype=images.dtype)


def rematerialised(run: Callable, how: str) -> Callable:
  """run(module, *states), whose inside is recomputed in the backward pass.

  Args:
    run: a function of a bound module and arrays; its rngs must be those of
      that module.
    how: 'cells', or 'none' for `run` as it is.
  """
  return nn.remat(run) if how == 'cells' else run


class Linear(nn.Module):
  """Linear layer; weights and bias start in U(+-1/sqrt(fan_in))."""

  features: int

  @nn.compact
  def __call__(self, x):
    bound = x.shape[-1] ** -.5

    def bias_init(rng, shape, dtype=jnp.float32):
      return jax.random.uniform(rng, shape, dtype, -bound, bound)

    w = self.param(
        'kernel', operations.torch_init, (x.shape[-1], self.features))
    b = self.param('bias', bias_init, (self.features,))
    return x @ w.astype(x.dtype) + b.astype(x.dtype)


def in_order(cells, *states):
  """The outputs of cells, each fed those of the ones before it."""
  outputs = list(states)
  for i, cell in enumerate(cells):
    outputs.append(cell(*outputs[i:]))
  return outputs[len(states):]


@functools.partial(jax.checkpoint, prevent_cse=False)
def _affine(x, scale, bias):
  """In float32, so that both gradients, sums over the batch, are too.

  What is kept for them is x as it is.
  """
  return (x.astype(operations.wide(x.dtype)) * scale + bias).astype(x.dtype)


class AffineBatchStatistics(nn.Module):
  """Stateless BatchNorm with affine: the stem of a supernet."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    return _affine(kernels.batch_norm(x, self.epsilon), scale, bias)


def make_drop_path(module: nn.Module, rate):
  """x -> x with each example's path dropped at `rate`, None for a rate of 0.

  Args:
    module: whose rng stream 'drop_path' is used.
    rate: a number, may be traced.
  """
  if isinstance(rate, (int, float)) and rate == 0:
    return None

  def drop(x):
    keep = 1 - jnp.asarray(rate, operations.wide(x.dtype))
    mask = jax.random.bernoulli(
        module.make_rng('drop_path'), keep, (x.shape[0], 1, 1, 1))
    return jnp.where(mask, (x / keep).astype(x.dtype), 0)
  return drop


def with_drop_path(rate):
  """(cell, *states) -> its output, paths dropped by the cell's own rng."""

  def run(cell, *states):
    return cell(*states, drop_path=make_drop_path(cell, rate))
  return run

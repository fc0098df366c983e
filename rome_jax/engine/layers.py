"""Layers that the supernets and networks of every family share."""

import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rome_jax.engine import operations, statistics


def pooled(x: jax.Array) -> jax.Array:
  """[B,C], the mean over all pixels of [B,H,W,C]; float32 at least."""
  return x.mean((1, 2), dtype=operations.wide(x.dtype))


def batch_norm(images: jax.Array, train: bool, momentum: float = .9,
               epsilon: float = 1e-5) -> Callable[..., nn.Module]:
  """A function that makes the normalisation layers of a derived network.

  Args:
    images: the network's input. Its dtype becomes that of the activations,
      which Flax would else promote to that of scale and bias.
    train: whether to use the statistics of the batch, not the running ones.
    momentum: of the running statistics.
    epsilon: added to the variance.
  """
  return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=momentum,
      epsilon=epsilon, dtype=images.dtype)


def rematerialised(run: Callable, how: str) -> Callable:
  """Makes the backward pass recompute what is inside run(module, *states).

  Args:
    run: a function of a bound module and arrays, which draws from the rngs of
      that module only.
    how: 'cells', or 'none' to return `run` unchanged.
  """
  return nn.remat(run) if how == 'cells' else run


class Linear(nn.Module):
  """Linear layer whose weights and bias start in U(+-1/sqrt(fan_in))."""

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


def in_order(cells: Iterable[Callable[..., jax.Array]],
             *states: jax.Array) -> list[jax.Array]:
  """The outputs of cells, each fed the outputs of those before it."""
  outputs = list(states)
  for i, cell in enumerate(cells):
    outputs.append(cell(*outputs[i:]))
  return outputs[len(states):]


FEATURES = 'features'  # what networks sow: the output of each cell


def observed(module: nn.Module) -> Callable[..., list[jax.Array]]:
  """`in_order` that also lets `families.features` see the outputs."""

  def run(cells, *states):
    outputs = in_order(cells, *states)
    for x in outputs:
      module.sow('intermediates', FEATURES, x)
    return outputs
  return run


@functools.partial(jax.checkpoint, prevent_cse=False)
def _affine(x, scale, bias):
  """x * scale + bias in float32, so that the gradients are float32 too.

  They are sums over the batch. The backward pass keeps x in its own dtype.
  """
  return (x.astype(operations.wide(x.dtype)) * scale + bias).astype(x.dtype)


class AffineBatchStatistics(nn.Module):
  """Stateless BatchNorm with affine, for the stem of a supernet."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    return _affine(statistics.batch_norm(x, self.epsilon), scale, bias)


def make_drop_path(module: nn.Module, rate: float | jax.Array,
                   ) -> Callable[[jax.Array], jax.Array] | None:
  """x -> x with the path of each example dropped at `rate`.

  Args:
    module: draws from its rng stream 'drop_path'.
    rate: a probability, may be traced.

  Returns:
    The function, or None if the rate is the number 0.
  """
  if isinstance(rate, (int, float)) and rate == 0:
    return None

  def drop(x):
    keep = 1 - jnp.asarray(rate, operations.wide(x.dtype))
    mask = jax.random.bernoulli(
        module.make_rng('drop_path'), keep, (x.shape[0], 1, 1, 1))
    return jnp.where(mask, (x / keep).astype(x.dtype), 0)
  return drop


def with_drop_path(rate: float | jax.Array) -> Callable[..., jax.Array]:
  """(cell, *states) -> output, paths dropped with the cell's own rng."""

  def run(cell, *states):
    return cell(*states, drop_path=make_drop_path(cell, rate))
  return run

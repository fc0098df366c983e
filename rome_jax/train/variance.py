"""The variance of theta's gradient over sampled paths and images.

PA&DA's claim is that drawing paths and images by their gradients lowers it.
Here it is measured at fixed weights: many gradients are drawn under a law, and
the trace of their covariance is

    V = (mean of |g|^2 - |mean of g|^2) * R / (R - 1),   R draws.

Without weights, as the published code trains, another law also has another
mean, so V is given beside |mean|^2. With weights (an image's loss times 1 / (n
p), a path's times the ratio of the uniform law to its own) every law has the
same mean, and the best law the least V.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from rome_jax.engine.archs import CellArch
from rome_jax.methods import laws
from rome_jax.methods.method import ArchParams, Method
from rome_jax.spaces import Space


class Spread(NamedTuple):
  """How far gradients lie apart.

  Attributes:
    variance: V, the trace of their covariance.
    mean_square: |mean of g|^2, without the share that V / R has in it.
    draws: R.
  """

  variance: float
  mean_square: float
  draws: int


def spread(gradients: Iterable[Any]) -> Spread:
  """The `Spread` of gradients [P], drawn independently.

  Raises:
    ValueError: there are fewer than two.

  >>> spread([np.array([1., 0.]), np.array([3., 0.])])
  Spread(variance=2.0, mean_square=3.0, draws=2)
  """
  total: Any = 0.
  squares, draws = 0., 0
  for gradient in gradients:
    total = total + gradient
    squares += float(jnp.vdot(gradient, gradient))
    draws += 1
  if draws < 2:
    raise ValueError(f'draws={draws} must be at least 2')
  mean = np.asarray(total, np.float64) / draws
  square = float(mean @ mean)
  variance = max(squares / draws - square, 0.) * draws / (draws - 1)
  return Spread(variance, max(square - variance / draws, 0.), draws)


def path_weight(space: Space, arch: ArchParams,
                cells: Mapping[str, CellArch]) -> jax.Array:
  """The uniform law of a path's operations by that of alpha.

  Args:
    space: the search space.
    arch: alpha [S,C] are the logits that operations are drawn by.
    cells: a path; edges are uniform.

  >>> from rome_jax.methods.rows import pada
  >>> from rome_jax.spaces import NASBENCH201 as space
  >>> arch = pada.equal_logits(space, None)
  >>> noise = pada.pada.noise(space, arch, jax.random.key(0), 1)
  >>> path = pada.pada.sample(
  ...     space, arch, jax.tree.map(lambda a: a[0], noise), 1.)
  >>> round(float(path_weight(space, arch, path)), 5)
  1.0
  """
  log_weight: Any = 0.
  for t, cell in cells.items():
    there = space.choices(t) >= 0
    sites, places = laws.sites_and_places(space, t, cell)
    log_weight -= laws.log_prob_ops(
        laws.masked_logits(arch.alpha[t], there), sites, places)
    log_weight -= jnp.log(jnp.asarray(there.sum(-1))[sites]).sum()
  return jnp.exp(log_weight)


def make_gradient(method: Method, space: Space, loss_fn: Callable,
                  weighted: bool) -> Callable[..., jax.Array]:
  """(theta, arch, batch, key) -> the gradient [P] of one path on one batch.

  Args:
    method: a row that samples single paths by alpha, such as `pada`.
    space: the search space.
    loss_fn: as of `step.make_step`; it weighs images itself.
    weighted: whether the path's gradient is multiplied by `path_weight`.
  """

  def gradient(theta, arch, batch, key):
    noise_key, op_key = jax.random.split(key)
    noise = jax.tree.map(
        lambda leaf: leaf[0], method.noise(space, arch, noise_key, 1))
    cells = method.sample(space, arch, noise, 1.)
    grads = jax.grad(lambda theta: loss_fn(
        theta, cells, batch, op_key)[0])(theta)
    weight = path_weight(space, arch, cells) if weighted else 1.
    return ravel_pytree(grads)[0] * weight

  return gradient

"""What a search leaves out at random: the paths of edges, parts of identities.

Both are regularisers of a supernet's training. Masks depend on the key, the
edge or slot, and the number of an image in the whole batch, so a batch that is
cut over devices has the masks that it has on one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rome_jax.engine import statistics


class Drop(NamedTuple):
  """Rates of what is left out; None, the default, compiles nothing.

  Attributes:
    path: probability to drop all that an edge hands on, for each image and
      edge (RobustDARTS, Zela et al., ICLR 2020). May be traced; below 1.
    skip: probability to drop a number that passes an identity, a
      `skip_connect` of stride 1 (P-DARTS, Chen et al., ICCV 2019). What stays
      is divided by the probability to stay, here and above.
  """

  path: Any = None
  skip: Any = None


NOTHING = Drop()


class Draws(NamedTuple):
  """What slots draw; each is None or has the leading axes of the slots.

  Attributes:
    seed: [...] uint32, for operations that draw random numbers.
    path: [...,B], the factor of each image: 0, or 1 / (1 - rate).
    skip: [...] rate of the dropout on identities.
  """

  seed: Any = None
  path: Any = None
  skip: Any = None


def draw(make_key: Callable[[], jax.Array], edges: jax.Array, num_edges: int,
         images: int, drop: Drop, seeds: bool) -> Draws:
  """What the M slots of one cell draw.

  Args:
    make_key: gives a new key at each call; called only if one is needed.
    edges: [M], the edge of each slot. Those of one edge share its path.
    num_edges: E.
    images: B, on this device.
    drop: the rates.
    seeds: whether any operation draws random numbers.
  """
  seed = path = skip = None
  if seeds or drop.skip is not None:
    seed = jax.random.bits(make_key(), edges.shape, jnp.uint32)
  if drop.path is not None:
    path = _kept(make_key(), drop.path, images, (num_edges,)).T[edges]
  if drop.skip is not None:
    skip = jnp.broadcast_to(jnp.asarray(drop.skip, jnp.float32), edges.shape)
  return Draws(seed, path, skip)


def _kept(key, rate, images, shape):
  """[images, *shape]: 0 at `rate`, else what makes the mean 1."""
  keep = 1 - jnp.asarray(rate, jnp.float32)

  def one(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), keep, shape)

  return jax.vmap(one)(statistics.rows(images)) / keep


def dropout(x: jax.Array, draws: Draws) -> jax.Array:
  """[B,H,W,C] with its numbers dropped at `draws.skip`; x where that is None.

  Args:
    x: the output of an identity.
    draws: of one slot.
  """
  if draws.skip is None:
    return x
  kept = _kept(jax.random.key(draws.seed), draws.skip, len(x), x.shape[1:])
  return (x * kept).astype(x.dtype)


def along_path(y: jax.Array, draws: Draws) -> jax.Array:
  """[B,H,W,C] as it is or dropped, image by image; y where no path is drawn.

  Linear, so it pulls cotangents too.
  """
  if draws.path is None:
    return y
  return y * draws.path[:, None, None, None].astype(y.dtype)

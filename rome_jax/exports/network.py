"""A trained network as a function, and what goes with every export."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from rome_jax import errors

TOLERANCE = 1e-4  # of logits, relative to the largest


class Exportable(NamedTuple):
  """What is exported.

  Attributes:
    network: a module whose `apply(variables, images)` gives logits.
    variables: {collection: tree}.
    image_size, image_channels: of its images.
    facts: JSON values that go with it: preprocessing, class names, genotype.
  """

  network: nn.Module
  variables: Mapping[str, Any]
  image_size: int
  image_channels: int
  facts: Mapping[str, Any]


def function_of(item: Exportable) -> Callable[[Any], jax.Array]:
  """images [B,H,W,C] -> logits [B,classes], the weights inside.

  Operations that draw noise (S4 of RobustDARTS) draw the same each time.
  """
  variables = jax.tree.map(np.asarray, dict(item.variables))

  def logits(images):
    return item.network.apply(
        variables, images, rngs={'noise': jax.random.key(0)})

  return logits


@contextlib.contextmanager
def tracing(name: str) -> Iterator[None]:
  """Says in one sentence what a converter cannot do.

  Args:
    name: of the format.

  Raises:
    UserError: whatever tracing for any batch size raises.
  """
  try:
    yield
  except errors.UserError:
    raise
  # Converters raise whatever an operation of a user's makes them stumble over.
  except Exception as error:
    first = str(error).strip().split('\n')[0]
    raise errors.UserError(
        f'this network cannot become {name} for any batch size: '
        f'{type(error).__name__}: {first}') from error


def example(item: Exportable, number: int, seed: int = 0) -> np.ndarray:
  """Random images of a network, [number,H,W,C] float32."""
  shape = (number, item.image_size, item.image_size, item.image_channels)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(item: Exportable, run: Callable[[np.ndarray], Any], what: str,
          sizes: Sequence[int] = (1, 3), precision: str | None = None,
          ) -> float:
  """Compares an exported program with the network; the largest difference.

  Args:
    item: what was exported.
    run: images -> logits of the exported program.
    what: its name in an error.
    sizes: of the batches.
    precision: of the network's products; None: the device's usual one.

  Raises:
    UserError: they differ by more than TOLERANCE.
  """
  function, worst = jax.jit(function_of(item)), 0.
  for number in sizes:
    images = example(item, number, number)
    with jax.default_matmul_precision(precision):
      wanted = np.asarray(function(images))
    found = np.asarray(run(images))
    if found.shape != wanted.shape:
      raise errors.UserError(
          f'{what} gives logits of shape {list(found.shape)}, the network '
          f'{list(wanted.shape)}; nothing is written')
    scale = max(1., float(np.abs(wanted).max()))
    worst = max(worst, float(np.abs(found - wanted).max()) / scale)
  if not worst <= TOLERANCE:
    raise errors.UserError(
        f'{what} differs from the network by {worst:.2g} of the largest logit, '
        f'more than {TOLERANCE:g}; nothing is written')
  return worst

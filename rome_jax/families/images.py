"""What every network and supernet asks of its images."""

import jax
import jax.numpy as jnp

from rome_jax import errors


def check_images(images: jax.Array) -> None:
  """Refuses what is no batch of float images, before a layer trips over it.

  Integers are refused rather than converted: how to scale them depends on the
  data (`data.augment.make_transform` subtracts the mean of a data set and
  divides by its deviation).

  Args:
    images: [B,H,W,channels], floating point.

  Raises:
    UserError: another number of axes, or another type.

  >>> check_images(jnp.zeros((2, 8, 8, 3)))
  >>> check_images(jnp.zeros((2, 8, 8, 3), jnp.uint8))
  Traceback (most recent call last):
  rome_jax.errors.UserError: images have the dtype uint8; a network takes \
floating-point images, such as (images / 255 - mean) / deviation
  """
  shape = jnp.shape(images)
  if len(shape) != 4:
    raise errors.UserError(
        f'images have the shape {list(shape)}; a network takes a batch of '
        'images [batch, height, width, channels]')
  dtype = jnp.result_type(images)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise errors.UserError(
        f'images have the dtype {dtype.name}; a network takes floating-point '
        'images, such as (images / 255 - mean) / deviation')

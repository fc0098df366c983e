"""BatchNorm by the statistics of a batch, on one device or spread over many."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# The mesh axis over which the images of a batch are spread.
BATCH_AXIS = 'data'
# An axis whose size is the number of rows that statistics are measured on.
_CALIBRATION_AXIS = 'calibration'


def measured_on(rows: int, function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, in which the first images of a batch measure the statistics.

  All images of a batch are normalised by them, so the first are treated as in
  training and the others by moments that do not depend on them: BatchNorm that
  is recalibrated for whatever architecture runs.

  Args:
    rows: how many images measure, at least 1.
    function: of arrays; applies supernets, forward only.
  """
  # The size of a bound axis is all that is wanted: nothing is mapped. JAX
  # tells traces by it, as it could not by a variable.
  return jax.vmap(function, in_axes=None, out_axes=None,
                  axis_name=_CALIBRATION_AXIS, axis_size=rows)


def measuring(x: jax.Array) -> jax.Array:
  """The images of x that measure the statistics."""
  try:
    return x[:lax.axis_size(_CALIBRATION_AXIS)]
  except NameError:
    return x


def part_of_batch() -> jax.Array | None:
  """The number of this device's part of the batch; None if it is whole."""
  try:
    return lax.axis_index(BATCH_AXIS)
  except NameError:
    return None


def rows(count: int) -> jax.Array:
  """[count] the places in the whole batch of the images of this part."""
  part = part_of_batch()
  return jnp.arange(count) + (0 if part is None else part * count)


def _mean(x):
  return x.mean((0, 1, 2))


def _moments(x):
  """(x - mean, variance [C]), of the whole batch.

  A batch is cut where a `shard_map` has bound BATCH_AXIS, and only there. One
  exchange then serves both, since it costs the latency of a link however
  little is sent. The variance is the sum of that within the parts and that
  between their means, so that nothing cancels.
  """
  mean = _mean(measuring(x))
  centred = x - mean
  variance = _mean(measuring(centred * centred))
  if part_of_batch() is None:
    return centred, variance
  means, variances = lax.all_gather(
      jnp.stack([mean, variance]), BATCH_AXIS, axis=1)
  whole = means.mean(0)
  between = means - whole
  return centred + (mean - whole), (variances + between * between).mean(0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def batch_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
  """Normalises each channel by the statistics of this batch, without affine.

  Args:
    x: [B,H,W,C]; computed in float32 at least.
    epsilon: added to the (biased) variance.

  Returns:
    The same shape and dtype.
  """
  return normalise(x, epsilon)[0]


@functools.partial(jax.jit, static_argnums=1)  # Traced once per shape.
def normalise(x: jax.Array,
              epsilon: float = 1e-5) -> tuple[jax.Array, jax.Array]:
  """(`batch_norm(x)`, scales [C]), as `pull_normalised` needs them.

  A scale is 1 / sqrt(variance + epsilon).
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred, variance = _moments(wide)
  scale = lax.rsqrt(variance + epsilon)
  return (centred * scale).astype(x.dtype), scale


def pull_normalised(y: jax.Array, scale: jax.Array, g: jax.Array) -> jax.Array:
  """The cotangent of x; y, scale = normalise(x) and g is y's cotangent."""
  wide_y, wide_g = y.astype(scale.dtype), g.astype(scale.dtype)
  # If the batch is in parts, g belongs to the sum of the parts' losses; each
  # part learns of the others' through these means.
  mean, projection = _mean(wide_g), _mean(wide_g * wide_y)
  if part_of_batch() is not None:
    mean, projection = lax.pmean(jnp.stack([mean, projection]), BATCH_AXIS)
  dx = scale * (wide_g - mean - wide_y * projection)
  return dx.astype(y.dtype)


def _batch_norm_fwd(x, epsilon):
  if measuring(x) is not x:
    raise NotImplementedError('statistics of a part of the batch have no '
                              'gradient; measured_on is forward only')
  y, scale = normalise(x, epsilon)
  return y, (y, scale)


def _batch_norm_bwd(epsilon, residuals, g):
  del epsilon
  return (pull_normalised(*residuals, g),)


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)

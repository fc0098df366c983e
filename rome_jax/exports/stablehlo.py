"""StableHLO through `jax.export`: one file for cpu, cuda and tpu.

Any batch size. Each platform gets its own form of the kernels, whatever machine
exports.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export as jax_export

from rome_jax.engine import kernels
from rome_jax.exports import network as network_lib
from rome_jax.exports.network import Exportable

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(item: Exportable,
           platforms: Sequence[str] = PLATFORMS) -> tuple[bytes, float]:
  """(what `jax.export.deserialize` reads, largest difference on this machine).

  Args:
    item: the network.
    platforms: where it is to run.

  Raises:
    UserError: the program differs from the network on this machine.
  """
  batch, = jax_export.symbolic_shape('b')
  shape = (batch, item.image_size, item.image_size, item.image_channels)
  function = network_lib.function_of(item)
  with kernels.traced_for(kernels.EVERY), network_lib.tracing('StableHLO'):
    exported = jax_export.export(
        # A new function: no trace for this backend is found again.
        jax.jit(lambda images: function(images)), platforms=tuple(platforms))(
            jax.ShapeDtypeStruct(shape, jnp.float32))
  data = exported.serialize()
  difference = 0.
  if jax.default_backend().replace('gpu', 'cuda') in platforms:
    difference = network_lib.check(
        item, jax_export.deserialize(data).call, 'the StableHLO program')
  return bytes(data), difference

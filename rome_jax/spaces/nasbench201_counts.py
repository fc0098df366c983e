"""Parameters and multiply-adds of NAS-Bench-201's networks; no JAX.

The network is that of `families.nasbench201`: a stem, three stages of cells
at C, 2C and 4C channels with a residual block of stride 2 between them, and a
linear head (Dong and Yang, ICLR 2020).
"""

from collections.abc import Sequence

from rome_jax.spaces import counting
from rome_jax.spaces.sizes import Sizes

STAGES = 3


def parts(nodes: Sequence, sizes: Sizes, *, search: bool = False
          ) -> list[tuple[str, counting.Cost]]:
  """(name, Cost) of stem, cells, residual blocks and head.

  Args:
    nodes: of the cell, as in a genotype.
    sizes: of the network; `cells` counts those of all stages.
    search: whether it is a supernet, whose BatchNorm in cells has no affine
      and whose convolutions have a bias.

  >>> sizes = Sizes(cells=15, channels=16, num_classes=10)
  >>> counting.summed(parts((), sizes)).macs
  7783040
  """
  c, size, channels = counting, sizes.image_size, int(sizes.channels)
  found = [('stem', c.total(
      c.conv(sizes.image_channels, channels, 9, size**2), c.norm(channels)))]
  for stage in range(STAGES):
    width = channels * 2**stage
    if stage:
      size = c.strided(size, 2)
      before = width // 2
      found.append((f'residual block {stage}', c.total(
          c.conv(before, width, 9, size**2), c.norm(width),
          c.conv(width, width, 9, size**2), c.norm(width),
          c.conv(before, width, 1, size**2))))
    costs = [_op_cost(op, width, size, search)
             for node in nodes for op, _ in node]
    for i in range(sizes.cells // STAGES):
      found.append((f'cell {stage}.{i}', c.total(c.Cost(0, 0), *costs)))
  head = c.total(c.norm(width), c.linear(width, sizes.num_classes))
  return [*found, ('head', head)]


def _op_cost(op, width, size, search):
  cost = counting.OP_COUNTS[op](width, size, 1, not search)
  if search and op.startswith('nor_conv'):
    cost = counting.total(cost, counting.Cost(width, 0))  # its bias
  return cost

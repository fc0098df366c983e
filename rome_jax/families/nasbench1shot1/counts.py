"""Exact counts of NAS-Bench-1Shot1's networks."""

from rome_jax.families.nasbench1shot1.layers import CONVS, halved, stacked
from rome_jax.families.nasbench1shot1.wiring import (
    ADDED,
    check_widths,
    checked,
    live_nodes,
    output_input,
)
from rome_jax.spaces import Sizes, Space, counting, genotypes


def _conv_cost(c_in, c_out, kernel, size, affine=True):
  """Convolution and normalisation at size x size pixels."""
  return counting.total(
      counting.conv(c_in, c_out, kernel**2, size**2),
      counting.norm(c_out, affine))


def _op_cost(op, channels, size, affine=True):
  if op in CONVS:
    return _conv_cost(channels, channels, CONVS[op], size, affine)
  return counting.OP_COUNTS[op](channels, size, 1, affine)


def _count(sizes, widths, cell_cost, blocks, affine=True):
  """A whole network.

  Args:
    sizes: checked.
    widths: as in `Network`.
    cell_cost: (input channels, C, height) -> Cost.
    blocks: how many times C channels a cell gives.
    affine: of the BatchNorm after the last cell.
  """
  width, size = sizes.channels, sizes.image_size
  parts = [('stem', _conv_cost(sizes.image_channels, width, 3, size))]
  for i, c, smaller in stacked(sizes.cells, width):
    size = halved(size, widths) if smaller else size
    parts.append((f'cell {i}', cell_cost(width, c, size)))
    width = blocks * c
  if widths == 'search':
    parts.append(('postprocess', _conv_cost(width, c, 1, size, affine)))
  parts.append(('head', counting.linear(c, sizes.num_classes)))
  return counting.summed(parts)


def count(space: Space, genotype: genotypes.Genotype, sizes: Sizes,
          stem: str = 'cifar', widths: str = 'search') -> counting.Count:
  """Counts the discrete network of a genotype, exactly.

  Args:
    space: where the genotype is from.
    genotype: operations of `space`.
    sizes: of the network; cells are a multiple of 3.
    stem: 'cifar'.
    widths: as in `Network`.

  Raises:
    UserError: unknown operation, stem or widths, or a number out of range.
  """
  genotypes.validate(genotype, space.ops)
  check_widths(widths)
  sizes = checked(space, sizes, stem)
  concat = genotype.normal_concat
  added = widths == 'search' and output_input(space) == ADDED
  # Into how many times C channels a cell's output falls.
  blocks = 1 if widths == 'nasbench101' else len(concat)
  if added and 0 in concat:
    blocks = len(genotype.normal)

  def cell_cost(c_in, features, size):
    nodes = live_nodes(genotype, features, widths).values()
    costs = [_op_cost(node.op, node.channels, size) for node in nodes]
    costs += [_conv_cost(c_in, node.channels, 1, size)
              for node in nodes if 0 in node.parents]
    if 0 in concat:
      costs.append(_conv_cost(
          c_in, blocks * features if added else features, 1, size))
    return counting.total(*costs)

  return _count(sizes, widths, cell_cost, blocks)


def count_supernet(space: Space, sizes: Sizes,
                   stem: str = 'cifar') -> counting.Count:
  """Counts a whole search network: every operation on every node.

  BatchNorm is affine in the stem only; architecture parameters are not
  counted. Arguments and errors are those of `count`.
  """
  sizes = checked(space, sizes, stem)
  n = space.num_nodes - 1
  # Views of the cell's input: the nodes' and the output's. Blocks of C
  # channels of the output.
  views, blocks = (
      (2 * n, n) if output_input(space) == ADDED else (n + 1, n + 1))

  def cell_cost(c_in, features, size):
    return counting.total(
        *views * [_conv_cost(c_in, features, 1, size, affine=False)],
        *n * [_op_cost(op, features, size, affine=False)
              for op in space.ops])

  return _count(sizes, 'search', cell_cost, blocks, affine=False)

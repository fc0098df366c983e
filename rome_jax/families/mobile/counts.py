"""Exact counts of the mobile family's networks."""

from rome_jax.families.mobile import geometry
from rome_jax.families.mobile.geometry import (
    IDENTITY,
    blocks,
    fixed_widths,
    kernel_and_expansion,
)
from rome_jax.spaces import Sizes, Space, counting
from rome_jax.spaces.genotypes import Genotype


def _mbconv(kernel, expansion, c_in, c_out, stride, size):
  """Cost of an MBConv at an input of `size` pixels squared."""
  inner, positions = c_in * expansion, counting.strided(size, stride)**2
  costs = [
      counting.depthwise(inner, kernel**2, positions), counting.norm(inner),
      counting.conv(inner, c_out, 1, positions), counting.norm(c_out)]
  if expansion > 1:
    costs += [counting.conv(c_in, inner, 1, size**2), counting.norm(inner)]
  return counting.total(*costs)


def _operation(op, block, size):
  if geometry.free(block, op):
    return counting.Cost(0, 0)
  if op == IDENTITY:
    positions = counting.strided(size, block.stride)**2
    return counting.total(
        counting.conv(block.c_in, block.c_out, 1, positions),
        counting.norm(block.c_out))
  return _mbconv(
      *kernel_and_expansion(op), block.c_in, block.c_out, block.stride, size)


def _count(stages, names, sizes, stem):
  """Counts the network whose block i holds all operations of names[i]."""
  widths = fixed_widths(sizes.channels)
  size = counting.strided(sizes.image_size, 1 if stem == 'cifar' else 2)
  parts = [
      ('stem', counting.total(
          counting.conv(sizes.image_channels, widths.stem, 9, size**2),
          counting.norm(widths.stem)))]
  if stages[0].style.first:
    parts.append(('first', _mbconv(3, 1, widths.stem, widths.first, 1, size)))
  for i, (block, row) in enumerate(zip(stages, names, strict=True)):
    parts.append((
        f'block {i} ({", ".join(row)})',
        counting.total(*(_operation(op, block, size) for op in row))))
    size = counting.strided(size, block.stride)
  c_in = stages[-1].c_out
  parts.append(('head', counting.total(
      counting.conv(c_in, widths.last, 1, size**2),
      counting.norm(widths.last),
      counting.linear(widths.last, sizes.num_classes))))
  return counting.summed(parts)


def _checked(space, sizes, stem):
  """(blocks, sizes as integers) once everything is found right."""
  geometry.check(space, sizes)
  channels = sizes.channels
  # The stem's width is what the rule of even channels asks for.
  stem_width = fixed_widths(channels).stem
  sizes = counting.checked(sizes._replace(channels=stem_width), stem)
  return blocks(space, channels, stem), sizes._replace(channels=channels)


def count(space: Space, genotype: Genotype, sizes: Sizes,
          stem: str = 'cifar') -> counting.Count:
  """Counts the discrete network of a genotype.

  Args:
    space: gives the layout.
    genotype: one operation per block.
    sizes: of the network; cells are the blocks, `space.num_nodes`.
    stem: 'cifar' or 'imagenet'.

  Raises:
    UserError: unknown operation or stem, a genotype of another length, or a
      number out of range.
  """
  stages, sizes = _checked(space, sizes, stem)
  names = geometry.checked_names(space, genotype)
  for i, (block, op) in enumerate(zip(stages, names)):
    geometry.check_block(f'genotype: block {i}', block, (op,))
  return _count(stages, [(op,) for op in names], sizes, stem)


def count_supernet(space: Space, sizes: Sizes,
                   stem: str = 'cifar') -> counting.Count:
  """Counts the whole search network: every candidate of every block.

  Arguments and errors are those of `count`.
  """
  stages, sizes = _checked(space, sizes, stem)
  return _count(stages, [block.ops for block in stages], sizes, stem)

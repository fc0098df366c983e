"""Exact parameter and multiply-add counts, computed without running anything.

Multiply-adds (MACs) are those of convolutions and linear layers of one image;
BatchNorm, pooling, activations, additions and biases are not counted as MACs.
Maps are square; a stride of 2 takes H to ceil(H / 2). No convolution has a
bias. `count` and `supernet` are those of the DARTS family (Liu et al. 2019;
quark0/darts cnn/model.py); other families use the rows and layers here.
"""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rome_jax import errors, spaces
from rome_jax.spaces import genotypes
from rome_jax.spaces.sizes import Sizes

STEMS = ('cifar', 'imagenet')
# Whose auxiliary head on ImageNet; see `auxiliary_params`.
AUXILIARY_NORMS = ('darts', 'pc_darts')


class Cost(NamedTuple):
  """Parameters and multiply-adds of a part."""

  params: int
  macs: int


class Count(NamedTuple):
  """Counts of a network without its auxiliary head.

  Attributes:
    params: trainable parameters.
    macs: multiply-adds for one image.
    parts: (name, cost) of the stem, each cell and the head, in order; their
      sums are the totals.
  """

  params: int
  macs: int
  parts: tuple[tuple[str, Cost], ...]


def total(*costs: Cost) -> Cost:
  """The sum of several parts.

  >>> total(Cost(1, 10), Cost(2, 20))
  Cost(params=3, macs=30)
  """
  return Cost(*(sum(column) for column in zip(*costs, strict=True)))


# --- Layers


def conv(c_in: int, c_out: int, taps: int, positions: int) -> Cost:
  """A convolution of `taps` kernel positions at `positions` output pixels.

  >>> conv(3, 16, 9, 32**2)
  Cost(params=432, macs=442368)
  """
  return Cost(c_in * c_out * taps, c_in * c_out * taps * positions)


def depthwise(channels: int, taps: int, positions: int) -> Cost:
  """A depthwise convolution."""
  return Cost(channels * taps, channels * taps * positions)


def norm(channels: int, affine: bool = True) -> Cost:
  """BatchNorm."""
  return Cost(2 * channels if affine else 0, 0)


def linear(c_in: int, c_out: int) -> Cost:
  """A linear layer with bias."""
  return Cost((c_in + 1) * c_out, c_in * c_out)


def strided(size: int, stride: int) -> int:
  """Height of a map after a stride.

  >>> strided(7, 2)
  4
  """
  return -(-size // stride)


def _conv_1x1(c_in, c_out, size, affine):
  """ReLU, 1x1 convolution, BatchNorm; also FactorizedReduce.

  FactorizedReduce runs two strided convolutions of c_out / 2 channels, which
  costs the same at the same output size.
  """
  return total(conv(c_in, c_out, 1, size**2), norm(c_out, affine))


# --- Operations


def _free(channels, size, stride, affine):
  # In search BatchNorm follows a pooling, but it is never affine.
  del channels, size, stride, affine
  return Cost(0, 0)


def _skip(channels, size, stride, affine):
  if stride == 1:
    return Cost(0, 0)
  return _conv_1x1(channels, channels, strided(size, stride), affine)


def _separable(kernel, repeats):
  """ReLU, depthwise, 1x1, BatchNorm, `repeats` times, strided once."""

  def cost(channels, size, stride, affine):
    positions = strided(size, stride)**2
    return total(*repeats * (
        depthwise(channels, kernel**2, positions),
        conv(channels, channels, 1, positions),
        norm(channels, affine)))

  return cost


def _conv_7x1_1x7(channels, size, stride, affine):
  """ReLU, 1x7 strided in width, 7x1 strided in height, BatchNorm."""
  out = strided(size, stride)
  return total(
      conv(channels, channels, 7, size * out),
      conv(channels, channels, 7, out**2),
      norm(channels, affine))


def _relu_conv(kernel):
  """ReLU, a full convolution, BatchNorm (NAS-Bench-201)."""

  def cost(channels, size, stride, affine):
    positions = strided(size, stride)**2
    return total(conv(channels, channels, kernel**2, positions),
                  norm(channels, affine))

  return cost


# One row per operation: (channels, input height, stride, affine) -> Cost.
OP_COUNTS: dict[str, Callable[[int, int, int, bool], Cost]] = {
    'none': _free,
    'noise': _free,
    'max_pool_3x3': _free,
    'avg_pool_3x3': _free,
    'skip_connect': _skip,
    'sep_conv_3x3': _separable(3, 2),
    'sep_conv_5x5': _separable(5, 2),
    'sep_conv_7x7': _separable(7, 2),
    'dil_conv_3x3': _separable(3, 1),
    'dil_conv_5x5': _separable(5, 1),
    'conv_7x1_1x7': _conv_7x1_1x7,
    'nor_conv_1x1': _relu_conv(1),
    'nor_conv_3x3': _relu_conv(3),
}


# --- Family


class _State(NamedTuple):
  """A map between cells: its channels and height."""

  channels: int
  size: int


def _stem(stem, channels, image_size, image_channels):
  """Returns the stem's cost and the two states that the first cell reads."""
  if stem == 'cifar':
    out = _State(3 * channels, image_size)
    cost = total(
        conv(image_channels, out.channels, 9, out.size**2),
        norm(out.channels))
    return cost, out, out
  cost, states, c_in, size = Cost(0, 0), [], image_channels, image_size
  for c_out in (channels // 2, channels, channels):
    size = strided(size, 2)
    cost = total(cost, conv(c_in, c_out, 9, size**2), norm(c_out))
    states.append(_State(c_out, size))
    c_in = c_out
  return cost, states[1], states[2]


def _cell(nodes, channels, s0, s1, reduction, affine, partial):
  """Cost of the two preprocessing layers and of all operations of a cell."""
  # s0 is brought to the size of s1, by FactorizedReduce where it is larger.
  costs = [
      _conv_1x1(s0.channels, channels, s1.size, affine),
      _conv_1x1(s1.channels, channels, s1.size, affine)]
  inner = strided(s1.size, 2 if reduction else 1)
  for node in nodes:
    for op, pred in node:
      # A reduction strides the edges that leave the cell's inputs.
      size, stride = (s1.size, 2) if reduction and pred < 2 else (inner, 1)
      costs.append(OP_COUNTS[op](channels // partial, size, stride, affine))
  return total(*costs)


def _count(genotype, sizes, stem, affine=True, partial=1) -> Count:
  """`count` without checks; a search network has other `affine`, `partial`."""
  channels = sizes.channels
  cost, s0, s1 = _stem(
      stem, channels, sizes.image_size, sizes.image_channels)
  parts = [('stem', cost)]
  for i in range(sizes.cells):
    reduction = i in reductions(sizes.cells)
    channels *= 2 if reduction else 1
    cell = 'reduce' if reduction else 'normal'
    cost = _cell(
        getattr(genotype, cell), channels, s0, s1, reduction, affine,
        partial)
    parts.append((f'cell {i} ({cell})', cost))
    width = len(getattr(genotype, f'{cell}_concat')) * channels
    size = strided(s1.size, 2 if reduction else 1)
    s0, s1 = s1, _State(width, size)
  parts.append(('head', linear(s1.channels, sizes.num_classes)))
  return summed(parts)


def summed(parts: Sequence[tuple[str, Cost]]) -> Count:
  """The count of (name, cost) parts."""
  return Count(*total(*(cost for _, cost in parts)), tuple(parts))


def reductions(cells: int) -> tuple[int, ...]:
  """Positions of the reduction cells: 1/3 and 2/3 of the depth.

  >>> reductions(8), reductions(20)
  ((2, 5), (6, 13))
  """
  return tuple(sorted({cells // 3, 2 * cells // 3}))


# --- Public counts


def count(genotype: genotypes.Genotype, sizes: Sizes,
          stem: str = 'cifar') -> Count:
  """Counts the discrete network of a genotype, without auxiliary head.

  Args:
    genotype: cells whose operations are rows of `OP_COUNTS`.
    sizes: of the network; a cell gives len(concat) * C channels.
    stem: 'cifar' (3x3, stride 1, 3C channels) or 'imagenet' (three strided
      3x3, C even).

  Raises:
    UserError: unknown operation or stem, or a number out of range.

  >>> genotype = genotypes.load('DARTS_V2')
  >>> count(genotype, Sizes(cells=20, channels=36, num_classes=10)).params
  3349342
  """
  genotypes.validate(genotype, tuple(OP_COUNTS))
  if not genotype.reduce:
    raise errors.UserError(
        'the genotype has no reduction cell, which this network needs')
  return _count(genotype, checked(sizes, stem), stem)


def check(space: spaces.Space, sizes: Sizes) -> None:
  """Checks that networks of this space and size exist.

  Raises:
    UserError: a size is no integer of at least 1, or the space has no cells
      to stack as DARTS does.
  """
  integers(sizes)
  for field, wanted in (
      ('num_inputs', 2), ('cell_types', spaces.CELL_TYPES),
      ('sites', 'edges'), ('parents', 'all')):
    value = getattr(space, field)
    if value != wanted:
      raise errors.UserError(
          f'space {space.name}: {field}={value!r} must be {wanted!r} with '
          f'family={spaces.S0.family}')


def supernet(space: spaces.Space, sizes: Sizes, stem: str = 'cifar',
             partial: int = 1) -> Count:
  """Counts a whole search network: every operation on every edge.

  BatchNorm is affine in the stem only; architecture parameters are not
  counted. Operations see 1/partial of the channels. Other arguments and
  errors are those of `count`.

  >>> supernet(spaces.S0, Sizes(cells=8, channels=16, num_classes=10)).params
  1930618
  """
  check(space, sizes)
  concat = tuple(range(2, 2 + space.num_nodes))
  normal, reduce = (all_operations(space, t) for t in spaces.CELL_TYPES)
  everything = genotypes.Genotype(normal, concat, reduce, concat)
  genotypes.validate(
      everything, tuple(OP_COUNTS), where=f'space {space.name}')
  return _count(everything, checked(sizes, stem), stem, False, partial)


def all_operations(space: spaces.Space, cell_type: str) -> tuple:
  """Nodes of a cell with every candidate of every edge."""
  names = space.site_ops(cell_type)
  return tuple(
      tuple((op, int(space.edge_preds[e])) for e in range(start, stop)
            for op in names[e])
      for start, stop in space.node_edges)


def auxiliary_params(genotype: genotypes.Genotype, sizes: Sizes,
                     stem: str = 'cifar',
                     auxiliary_norm: str = 'darts') -> int:
  """Parameters of the auxiliary head after cell 2 * cells // 3.

  1x1 convolution to 128, 2x2 convolution to 768, linear; a BatchNorm after
  each convolution. On ImageNet the code of DARTS has no second BatchNorm,
  that of PC-DARTS, P-DARTS and GDAS has one: `auxiliary_norm` 'darts' or
  'pc_darts'. The number does not depend on the image size.

  Raises:
    UserError: unknown stem or `auxiliary_norm`, or a number out of range.

  >>> sizes = Sizes(cells=20, channels=36, num_classes=10)
  >>> auxiliary_params(genotypes.load('DARTS_V2'), sizes)
  476426
  """
  if auxiliary_norm not in AUXILIARY_NORMS:
    raise errors.UserError(
        f'auxiliary_norm={auxiliary_norm!r} must be one of '
        f'{", ".join(AUXILIARY_NORMS)}'
        f'{errors.near_miss(auxiliary_norm, AUXILIARY_NORMS)}')
  sizes = checked(sizes, stem)
  position = 2 * sizes.cells // 3
  doublings = sum(i <= position for i in reductions(sizes.cells))
  # That cell is always a reduction.
  width = len(genotype.reduce_concat) * sizes.channels * 2**doublings
  costs = [
      conv(width, 128, 1, 1), norm(128), conv(128, 768, 4, 1),
      linear(768, sizes.num_classes)]
  if stem == 'cifar' or auxiliary_norm == 'pc_darts':
    costs.append(norm(768))
  return total(*costs).params


def checked(sizes: Sizes, stem: str) -> Sizes:
  """The sizes as integers, once they and the stem's name are found right.

  Raises:
    UserError: unknown stem, a size that is no integer of at least 1, or odd
      channels with the ImageNet stem.
  """
  if stem not in STEMS:
    raise errors.UserError(
        f'stem={stem!r} is unknown; known: {", ".join(STEMS)}'
        f'{errors.near_miss(stem, STEMS)}')
  sizes = integers(sizes)
  if stem == 'imagenet' and sizes.channels % 2:
    raise errors.UserError(
        f'channels={sizes.channels} must be even with stem=imagenet')
  return sizes


def integers(sizes: Sizes) -> Sizes:
  """The sizes as integers.

  Raises:
    UserError: one is no integer of at least 1.

  >>> integers(Sizes(cells=8, channels=16.5, num_classes=10))
  Traceback (most recent call last):
  rome_jax.errors.UserError: channels=16.5 must be an integer
  """
  return Sizes(*map(_at_least_one, sizes._fields, sizes))


def _at_least_one(name, value):
  try:
    number = operator.index(value)
  except TypeError as error:
    raise errors.UserError(f'{name}={value!r} must be an integer') from error
  if number < 1 or isinstance(value, bool):
    raise errors.UserError(
        f'{name}={value!r} must be an integer of at least 1')
  return number

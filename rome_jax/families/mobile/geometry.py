"""What a chain of blocks looks like: widths, strides, operations, checks."""

import itertools
import numbers
import re
from collections.abc import Iterable
from typing import NamedTuple

from rome_jax import errors
from rome_jax.spaces import Sizes, Space, counting
from rome_jax.spaces.genotypes import Genotype

ZERO, IDENTITY = 'zero', 'identity'
_STEM, _FIRST, _LAST = 32, 16, 1280


class Style(NamedTuple):
  """What two published skeletons of MBConv blocks differ in.

  Attributes:
    first: whether a fixed MBConv to 16 channels follows the stem.
    activation: a name in `flax.linen`.
    epsilon, momentum: of BatchNorm.
  """

  first: bool
  activation: str
  epsilon: float
  momentum: float


# ProxylessNAS sets epsilon in supernet and network (`bn_param=(0.1, 1e-3)`; its
# momentum of 0.1 is Flax's 0.9). NAS-Bench-Macro has PyTorch's defaults.
STYLES = {'mobile': Style(True, 'relu6', 1e-3, .9),
          'nasbench_macro': Style(False, 'relu', 1e-5, .9)}


class Block(NamedTuple):
  """A searchable block.

  Attributes:
    c_in, c_out: channels.
    stride: 1 or 2.
    shortcut: whether the input is added: stride 1 and equal channels.
    ops: names of its candidates.
    style: of the network.
  """

  c_in: int
  c_out: int
  stride: int
  shortcut: bool
  ops: tuple[str, ...]
  style: Style = STYLES['mobile']


class Run(NamedTuple):
  """Equal neighbours, which share one program.

  Attributes:
    start: number of the first block.
    length: how many.
    block: what each of them is.
  """

  start: int
  length: int
  block: Block

  @property
  def name(self) -> str:
    """Where the supernet keeps their parameters."""
    return f'blocks{self.start}'


class Widths(NamedTuple):
  """Channels of the fixed parts: stem, first MBConv, last 1x1."""

  stem: int
  first: int
  last: int


def scaled(width: int, channels: float) -> int:
  """width * channels / 32 as a multiple of 8 that loses at most a tenth.

  MobileNet's `make_divisible`.

  >>> scaled(24, 32), scaled(24, 16)
  (24, 16)
  """
  exact = width * channels / _STEM
  rounded = max(8, int(exact + 4) // 8 * 8)
  return rounded + 8 if rounded < .9 * exact else rounded


def fixed_widths(channels: float) -> Widths:
  """Widths of the fixed parts; as in MobileNetV2 the last one only widens.

  >>> fixed_widths(16)
  Widths(stem=16, first=8, last=1280)
  """
  return Widths(scaled(_STEM, channels), scaled(_FIRST, channels),
                scaled(_LAST, max(channels, _STEM)))


def blocks(space: Space, channels: float, stem: str) -> tuple[Block, ...]:
  """The searchable blocks in order."""
  rows, style = iter(space.site_ops('normal')), STYLES[space.family]
  widths, found = fixed_widths(channels), []
  c_in = widths.first if style.first else widths.stem
  for stage, (width, number, first_stride) in enumerate(space.layout):
    c_out = scaled(width, channels)
    for i in range(number):
      keeps = style.first and stem == 'cifar' and stage == 0
      strides = i == 0 and not keeps
      stride = first_stride if strides else 1
      found.append(Block(
          c_in, c_out, stride, stride == 1 and c_in == c_out, next(rows),
          style))
      c_in = c_out
  return tuple(found)


def runs(stages: tuple[Block, ...]) -> tuple[Run, ...]:
  """Cuts the blocks wherever one differs from the one before."""
  found, start = [], 0
  for block, equal in itertools.groupby(stages):
    length = len(list(equal))
    # Only what keeps its shape can go around a loop.
    keeps = block.stride == 1 and block.c_in == block.c_out
    pieces = [length] if keeps else [1] * length
    for piece in pieces:
      found.append(Run(start, piece, block))
      start += piece
  return tuple(found)


def free(block: Block, op: str) -> bool:
  """Whether an operation of a block has no weights."""
  return op == ZERO or (op == IDENTITY and block.shortcut)


# --------------------------------------------------------------- operations


def knows(op: str) -> bool:
  """Whether it names a candidate of a block."""
  try:
    return op in (ZERO, IDENTITY) or bool(kernel_and_expansion(op))
  except errors.UserError:
    return False


def kernel_and_expansion(op: str) -> tuple[int, int]:
  """The kernel and the expansion in a name.

  Raises:
    UserError: no such name, or an even kernel.

  >>> kernel_and_expansion('mbconv_k3_e6')
  (3, 6)
  """
  match = re.fullmatch(r'mbconv_k(\d*[13579])_e([1-9]\d*)', op)
  if not match:
    raise errors.UserError(
        f'operation {op!r} must be {ZERO!r}, {IDENTITY!r} or mbconv_kK_eE '
        'with an odd kernel K and an expansion E of at least 1')
  return int(match[1]), int(match[2])


# ------------------------------------------------------ genotypes and checks


def chain(ops_of_blocks: Iterable[str]) -> Genotype:
  """The genotype of one operation per block.

  >>> chain(['mbconv_k3_e6', 'zero']).normal
  ((('mbconv_k3_e6', 0),), (('zero', 1),))
  """
  names = tuple(ops_of_blocks)
  return Genotype(
      tuple(((op, i),) for i, op in enumerate(names)), (len(names),), (), ())


def chosen(genotype: Genotype) -> tuple[str, ...]:
  """The operation of each block.

  >>> chosen(chain(['mbconv_k3_e6', 'zero']))
  ('mbconv_k3_e6', 'zero')
  """
  return tuple(node[0][0] for node in genotype.normal)


def checked_names(space: Space, genotype: Genotype) -> tuple[str, ...]:
  """The operation of each block.

  Raises:
    UserError: the genotype does not have one operation for each block.
  """
  nodes = genotype.normal
  if len(nodes) != space.num_nodes or any(
      len(node) != 1 or node[0][1] != i for i, node in enumerate(nodes)):
    raise errors.UserError(
        f'the genotype must be a chain of {space.num_nodes} nodes with '
        f'space={space.name}, node i with one operation that reads state i')
  return chosen(genotype)


def check(space: Space, sizes: Sizes) -> None:
  """Checks that networks of this space and size exist.

  Raises:
    UserError: the number of blocks is not the space's, `channels` is no
      positive number, another size no positive integer, the space no chain
      of stages, or a block has a candidate that it cannot have.
  """
  number = sum(blocks for _, blocks, _ in space.layout)
  if space.parents != 'previous' or number != space.num_nodes:
    raise errors.UserError(
        f'space {space.name}: layout={space.layout} must list stages of '
        f'{space.num_nodes} blocks, each of which reads the previous one')
  if sizes.cells != space.num_nodes:
    raise errors.UserError(
        f'cells={sizes.cells} must be {space.num_nodes} with '
        f'space={space.name}, its number of blocks')
  channels = sizes.channels
  counting.integers(sizes._replace(channels=_STEM))
  if (not isinstance(channels, numbers.Real) or isinstance(channels, bool)
      or not 0 < channels < float('inf')):
    raise errors.UserError(
        f'channels={channels!r} must be a positive number; 32 is the '
        'published width')
  for i, block in enumerate(blocks(space, channels, 'imagenet')):
    check_block(f'space {space.name}: block {i}', block, block.ops)


def check_block(where: str, block: Block, names: tuple[str, ...]) -> None:
  """Raises UserError for an operation that a block cannot have."""
  for op in names:
    if op == IDENTITY:
      continue
    if op != ZERO:
      kernel_and_expansion(op)
    elif not block.shortcut:
      raise errors.UserError(
          f'{where} cannot have the operation {ZERO!r}, because it changes '
          'size or width')

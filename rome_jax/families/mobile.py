"""The mobile space: a chain of MBConv blocks in MobileNetV2's skeleton.

ProxylessNAS (Cai et al., ICLR 2019; mit-han-lab/proxylessnas,
`search/models/super_nets/super_proxyless.py`):

    3x3 convolution to 32, BatchNorm, ReLU6
    MBConv of expansion 1 and kernel 3 to 16
    the searchable blocks, in stages (`Space.layout`)
    1x1 convolution to 1280, BatchNorm, ReLU6; mean over pixels; linear

MBConv is a 1x1 expansion and a depthwise convolution, each with BatchNorm and
ReLU6, and a 1x1 projection with BatchNorm. A block that keeps size and width
adds its input; there `zero` may be chosen, of which only that shortcut stays.

`channels` scales the widths: they are those of the paper times channels / 32
(MobileNet's width multiplier), rounded to multiples of 8; `channels=32` is
the paper's network. It need not be an integer: ProxylessNAS-GPU has 43.2.

The stem 'imagenet' strides, as published: 224 pixels end at 7. 'cifar' is for
small images: neither the stem nor the first stage strides, so that 32 pixels
end at 4.

Parameters of the supernet: equal neighbours ("runs": in MOBILE the blocks 2
to n of a stage) are stacked, `blocks{first block}/edges/{operation}/...` with
leaves [blocks of the run, ...]. The discrete network has `block{i}/...`
instead, and nothing for a block of `zero`. `extract` takes one from the
other; all other names are common.
"""

import functools
import itertools
import numbers
import re
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax import errors, spaces
from rome_jax.engine import layers, operations, switch
from rome_jax.engine.layout import EDGES
from rome_jax.spaces import Sizes, Space, counting
from rome_jax.spaces.genotypes import Genotype

# ProxylessNAS sets both in supernet and network (`bn_param=(0.1, 1e-3)`; its
# momentum of 0.1 is Flax's 0.9).
EPSILON = 1e-3
MOMENTUM = .9
ZERO = 'zero'
_STEM, _FIRST, _LAST = 32, 16, 1280


# ------------------------------------------------------------- the geometry


class Block(NamedTuple):
  """A searchable block.

  Attributes:
    c_in, c_out: channels.
    stride: 1 or 2.
    shortcut: whether the input is added: stride 1 and equal channels.
    ops: names of its candidates.
  """

  c_in: int
  c_out: int
  stride: int
  shortcut: bool
  ops: tuple[str, ...]


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
    """Of their parameters in the supernet."""
    return f'blocks{self.start}'


class Widths(NamedTuple):
  """Channels of the fixed parts: stem, first MBConv, last 1x1."""

  stem: int
  first: int
  last: int


def scaled(width: int, channels: float) -> int:
  """width * channels / 32 as a multiple of 8 that loses at most a tenth.

  MobileNet's `make_divisible`.
  """
  exact = width * channels / _STEM
  rounded = max(8, int(exact + 4) // 8 * 8)
  return rounded + 8 if rounded < .9 * exact else rounded


def fixed_widths(channels: float) -> Widths:
  """As in MobileNetV2, the last convolution only widens."""
  return Widths(scaled(_STEM, channels), scaled(_FIRST, channels),
                scaled(_LAST, max(channels, _STEM)))


def blocks(space: Space, channels: float, stem: str) -> tuple[Block, ...]:
  """The searchable blocks in order."""
  rows = iter(space.site_ops('normal'))
  c_in, found = fixed_widths(channels).first, []
  for stage, (width, number, first_stride) in enumerate(space.layout):
    c_out = scaled(width, channels)
    for i in range(number):
      strides = i == 0 and not (stem == 'cifar' and stage == 0)
      stride = first_stride if strides else 1
      found.append(Block(
          c_in, c_out, stride, stride == 1 and c_in == c_out, next(rows)))
      c_in = c_out
  return tuple(found)


def runs(stages: tuple[Block, ...]) -> tuple[Run, ...]:
  """The blocks cut where one differs from the one before."""
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


# --------------------------------------------------------------- operations


def knows(op: str) -> bool:
  """Whether it names a candidate of a block."""
  try:
    return op == ZERO or bool(kernel_and_expansion(op))
  except errors.UserError:
    return False


def kernel_and_expansion(op: str) -> tuple[int, int]:
  """(3, 6) of 'mbconv_k3_e6'.

  Raises:
    UserError: not such a name, or an even kernel.
  """
  match = re.fullmatch(r'mbconv_k(\d*[13579])_e([1-9]\d*)', op)
  if not match:
    raise errors.UserError(
        f'operation {op!r} must be {ZERO!r} or mbconv_kK_eE with an odd '
        'kernel K and an expansion E of at least 1')
  return int(match[1]), int(match[2])


# ProxylessNAS trains the affine of its supernet's norms.
_search_norm = functools.partial(
    layers.AffineBatchStatistics, epsilon=EPSILON)


class MBConv(nn.Module):
  """Expansion, depthwise convolution, projection; no shortcut.

  Attributes:
    kernel: of the depthwise convolution, odd.
    expansion: channels in between over channels before; 1 has no expansion
      layer.
    features: channels behind it.
    stride: of the depthwise convolution.
    norm: function that makes a normalisation layer of a given name.
  """

  kernel: int
  expansion: int
  features: int
  stride: int
  norm: type | functools.partial

  @nn.compact
  def __call__(self, x):
    if self.expansion > 1:
      x = operations.Pointwise(self.expansion * x.shape[-1], name='expand')(x)
      x = nn.relu6(self.norm(name='expand_norm')(x))
    x = operations.Depthwise(self.kernel, self.stride, name='depthwise')(x)
    x = nn.relu6(self.norm(name='depthwise_norm')(x))
    x = operations.Pointwise(self.features, name='project')(x)
    return self.norm(name='project_norm')(x)


@functools.cache
def _candidates(block):
  """The block's modules; cached, since they key compiled switches."""
  # Without `parent=None` Flax would adopt them into the module that asks.
  return tuple(
      operations.Zero(block.stride, parent=None) if op == ZERO else
      MBConv(*kernel_and_expansion(op), block.c_out, block.stride,
             _search_norm, parent=None)
      for op in block.ops)


# ----------------------------------------------------------------- networks


def _skeleton(images, body, *, channels, num_classes, stem, norm):
  """Logits; `body` maps the first MBConv's output through the blocks."""
  widths = fixed_widths(channels)
  stride = 1 if stem == 'cifar' else 2
  x = operations.Conv(widths.stem, 3, stride, name='stem_conv')(images)
  x = nn.relu6(norm(name='stem_norm')(x))
  x = body(MBConv(3, 1, widths.first, 1, norm, name='first')(x))
  x = operations.Pointwise(widths.last, name='last_conv')(x)
  x = nn.relu6(norm(name='last_norm')(x))
  return layers.Linear(num_classes, name='head')(layers.pooled(x))


def _init_run(rng, run):
  """{EDGES: {operation: tree}}, leaves [blocks of the run, ...].

  The law is that of the modules' own initialisers, but goes by names, because
  Flax asks for these shapes whenever it traces the network; and one draw
  serves all kernels, since each draw costs compile time.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(_shapes(run.block))
  sizes = [leaf.size for _, leaf in paths]
  draw = jax.random.uniform(
      rng, (run.length, sum(sizes)), minval=-1., maxval=1.)
  leaves = []
  for (path, leaf), part in zip(
      paths, jnp.split(draw, np.cumsum(sizes)[:-1], 1)):
    shape = (run.length, *leaf.shape)
    if path[-1].key == 'kernel':
      leaves.append(part.reshape(shape) * operations.init_bound(leaf.shape))
    else:
      leaves.append(jnp.full(shape, float(path[-1].key == 'scale')))
  return {EDGES: jax.tree.unflatten(treedef, leaves)}


@functools.cache
def _shapes(block):
  """{operation: tree of shapes} of one block's candidates with parameters."""
  x = jax.ShapeDtypeStruct((1, 2, 2, block.c_in), jnp.float32)
  return {
      op: jax.eval_shape(module.init, jax.random.key(0), x)['params']
      for op, module in zip(block.ops, _candidates(block)) if op != ZERO}


def _apply_run(run, weights, index, gates, x, want_weight_grads):
  """The chosen operations of a run, one after the other.

  Args:
    run: the blocks.
    weights: {operation: leaves [length, ...]}.
    index: [length] int32, places in the block's `ops`.
    gates: [length].
    x: [B,H,W,c_in].
    want_weight_grads: see `cells.run_cells`.
  """

  def step(x, slot):
    y = switch.switch(_candidates(run.block), *slot, x, want_weight_grads)
    return (x + y if run.block.shortcut else y), None

  slots = index, tuple(weights.get(op, {}) for op in run.block.ops), gates
  if run.length == 1:
    return step(x, jax.tree.map(lambda a: a[0], slots))[0]
  return lax.scan(step, x, slots)[0]


def _places(space, block):
  """[O] int32: places of the space's operations in the block's own list."""
  table = np.zeros(len(space.ops), np.int32)
  table[[space.ops.index(op) for op in block.ops]] = np.arange(len(block.ops))
  return jnp.asarray(table)


class Supernet(nn.Module):
  """All candidate weights; evaluates one sampled architecture.

  `apply({'params': params}, images, arch)` is a pure function without state:
  BatchNorm uses the statistics of the batch. The backward pass keeps one
  image batch per block and recomputes the operation that was sampled, so its
  memory is that of one path.

  Attributes:
    space: a `spaces.mobile`.
    cells: number of blocks, `space.num_nodes`.
    channels: of the stem; scales all widths, 32 is the paper's.
    num_classes: size of the output.
    stem: 'cifar' or 'imagenet'.
  """

  space: Space
  cells: int
  channels: float
  num_classes: int
  stem: str = 'cifar'

  @nn.compact
  def __call__(self, images, arch, want_weight_grads=None):
    """Logits [B,classes] of images [B,H,W,.] at arch {'normal'}.

    Of `arch['normal']` ops [N] and gates [N] count; edges are the chain's.
    See `cells.run_cells` for `want_weight_grads`.
    """
    chex.assert_rank(images, 4)

    def body(x):
      for run in runs(blocks(self.space, self.channels, self.stem)):
        x = self._run(run, arch['normal'], x, want_weight_grads)
      return x

    return _skeleton(
        images, body, channels=self.channels, num_classes=self.num_classes,
        stem=self.stem, norm=_search_norm)

  def _run(self, run, cell, x, want_weight_grads):
    weights = self.param(run.name, _init_run, run)[EDGES]
    if self.is_initializing():
      # Tracing the candidates to throw their output away would take long.
      size = [counting.strided(n, run.block.stride) for n in x.shape[1:3]]
      return jnp.zeros((x.shape[0], *size, run.block.c_out), x.dtype)
    part = slice(run.start, run.start + run.length)
    index = _places(self.space, run.block)[cell.ops[part]]
    return _apply_run(
        run, weights, index, cell.gates[part], x, want_weight_grads)


def _with_shortcut(block, rate):
  """(module, x) -> the block's output, its path dropped at `rate`."""

  def run(module, x):
    y = module(x)
    if not block.shortcut:
      return y
    drop = layers.make_drop_path(module, rate)
    return x + (drop(y) if drop else y)
  return run


class Network(nn.Module):
  """The network of a genotype, an ordinary Flax module.

  Collections: `params` and `batch_stats`. With `train`, pass
  `mutable=['batch_stats']` and, with drop_path > 0, an rng 'drop_path'.
  There is no auxiliary head and no dropout.

  Attributes:
    space: a `spaces.mobile`; its layout counts, not its candidates.
    genotype: one operation per block.
    channels, num_classes, stem: as in `Supernet`.
    remat: see `networks.rematerialised`, of blocks.
  """

  space: Space
  genotype: Genotype
  channels: float
  num_classes: int
  stem: str = 'cifar'
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.].

    Args:
      images: float images, NHWC.
      train: batch statistics and drop path instead of running statistics.
      drop_path: probability of dropping the operation of a block that has a
        shortcut, per example; may be traced.
    """
    chex.assert_rank(images, 4)
    norm = layers.batch_norm(images, train, MOMENTUM, EPSILON)
    rate = drop_path if train else 0

    def body(x):
      stages = blocks(self.space, self.channels, self.stem)
      for i, (block, op) in enumerate(
          zip(stages, chosen(self.genotype), strict=True)):
        if op == ZERO:
          continue
        module = MBConv(*kernel_and_expansion(op), block.c_out, block.stride,
                        norm, name=f'block{i}')
        x = layers.rematerialised(
            _with_shortcut(block, rate), self.remat)(module, x)
      return x

    return _skeleton(
        images, body, channels=self.channels, num_classes=self.num_classes,
        stem=self.stem, norm=norm)


def extract(params, genotype: Genotype):
  """The discrete network's `params` out of the supernet's.

  Args:
    params: of `Supernet`, or gradients of that form.
    genotype: one operation per block.
  """
  starts = sorted(int(name.removeprefix('blocks'))
                  for name in params if name.startswith('blocks'))
  named = {name: tree for name, tree in params.items()
           if not name.startswith('blocks')}
  for i, op in enumerate(chosen(genotype)):
    if op == ZERO:
      continue
    start = max(s for s in starts if s <= i)
    stacked = params[f'blocks{start}'][EDGES][op]
    named[f'block{i}'] = jax.tree.map(
        lambda leaf, row=i - start: leaf[row], stacked)
  return named


# ------------------------------------------------------ genotypes and checks


def chain(ops_of_blocks) -> Genotype:
  """The genotype of one operation per block."""
  names = tuple(ops_of_blocks)
  return Genotype(
      tuple(((op, i),) for i, op in enumerate(names)), (len(names),), (), ())


def chosen(genotype: Genotype) -> tuple[str, ...]:
  """The operation of each block."""
  return tuple(node[0][0] for node in genotype.normal)


def _checked_names(space, genotype):
  """Refuses a genotype that is not one operation for each block."""
  nodes = genotype.normal
  if len(nodes) != space.num_nodes or any(
      len(node) != 1 or node[0][1] != i for i, node in enumerate(nodes)):
    raise errors.UserError(
        f'the genotype must be a chain of {space.num_nodes} nodes with '
        f'space={space.name}, node i with one operation that reads state i')
  return chosen(genotype)


def check(space: Space, sizes: Sizes) -> None:
  """Refuses what the skeleton cannot have.

  Raises:
    UserError: a number of blocks that is not the space's, widths that are no
      positive number, a space that is no chain of stages, or a candidate
      that a block cannot have.
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
  if (not isinstance(channels, numbers.Real) or isinstance(channels, bool)
      or not 0 < channels < float('inf')):
    raise errors.UserError(
        f'channels={channels!r} must be a positive number; 32 is the '
        'published width')
  for i, block in enumerate(blocks(space, channels, 'imagenet')):
    _check_block(f'space {space.name}: block {i}', block, block.ops)


def _check_block(where, block, names):
  for op in names:
    if op != ZERO:
      kernel_and_expansion(op)
    elif not block.shortcut:
      raise errors.UserError(
          f'{where} cannot have the operation {ZERO!r}, because it changes '
          'size or width')


# ------------------------------------------------------------------- counts


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
  if op == ZERO:
    return counting.Cost(0, 0)
  return _mbconv(
      *kernel_and_expansion(op), block.c_in, block.c_out, block.stride, size)


def _count(stages, names, sizes, stem):
  """Counts the network whose block i holds all operations of names[i]."""
  widths = fixed_widths(sizes.channels)
  size = counting.strided(sizes.image_size, 1 if stem == 'cifar' else 2)
  parts = [
      ('stem', counting.total(
          counting.conv(sizes.image_channels, widths.stem, 9, size**2),
          counting.norm(widths.stem))),
      ('first', _mbconv(3, 1, widths.stem, widths.first, 1, size))]
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
  check(space, sizes)
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
  names = _checked_names(space, genotype)
  for i, (block, op) in enumerate(zip(stages, names)):
    _check_block(f'genotype: block {i}', block, (op,))
  return _count(stages, [(op,) for op in names], sizes, stem)


def count_supernet(space: Space, sizes: Sizes,
                   stem: str = 'cifar') -> counting.Count:
  """Counts the whole search network: every candidate of every block.

  Arguments and errors are those of `count`.
  """
  stages, sizes = _checked(space, sizes, stem)
  return _count(stages, [block.ops for block in stages], sizes, stem)


# -------------------------------------------------------- published networks


class Published(NamedTuple):
  """A published network of this skeleton, for 224 pixels and 1000 classes.

  Attributes:
    space: the layout.
    genotype: one operation per block.
    channels: 32 times the width multiplier.
  """

  space: Space
  genotype: Genotype
  channels: float


def _read(text):
  """'k3e6' is mbconv_k3_e6 and '-' is zero."""
  return chain(
      ZERO if word == '-' else re.sub(r'k(\d)e(\d)', r'mbconv_k\1_e\2', word)
      for word in text.split())


# Operations and widths as in osmr/imgclsmob@86c1d36,
# `pytorch/pytorchcv/models/proxylessnas.py`; those of `proxyless_mobile` are
# also in the authors' own `logs/proxyless_mobile_10_latency.txt`. Found in
# MOBILE at width multipliers 1.12 and 1.35; the two mobile ones have a first
# stage of their own width (and the larger one another fifth stage).
_MOBILE_STAGES = (
    (32, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
_MOBILE_14_STAGES = (
    (28, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (184, 4, 2), (320, 1, 1))
_MOBILE_OPS = _read('''
    k5e3 k3e3 - -  k7e3 k3e3 k5e3 k5e3  k7e6 k5e3 k5e3 k5e3
    k5e6 k5e3 k5e3 k5e3  k7e6 k7e6 k7e3 k7e3  k7e6''')

PROXYLESS = {
    'proxyless_cpu': Published(spaces.MOBILE, _read('''
        k3e6 k3e3 k3e3 k3e3  k3e6 k3e3 k3e3 k5e3  k3e6 - - k3e3
        k5e6 k3e3 k3e3 k3e3  k5e6 k5e3 k5e3 k3e3  k5e6'''), 32 * 1.12),
    'proxyless_gpu': Published(spaces.MOBILE, _read('''
        k5e3 - - -  k7e3 - - k3e3  k7e6 - - k5e3
        k5e6 - k3e3 k5e3  k7e6 k7e6 k7e6 k5e6  k7e6'''), 32 * 1.35),
    'proxyless_mobile': Published(
        spaces.mobile('proxyless_mobile', _MOBILE_STAGES), _MOBILE_OPS, 32),
    'proxyless_mobile_14': Published(
        spaces.mobile('proxyless_mobile_14', _MOBILE_14_STAGES), _MOBILE_OPS,
        32 * 1.4)}

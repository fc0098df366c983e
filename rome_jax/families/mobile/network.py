"""The mobile family: MBConv blocks, the supernet, the network of a genotype.

Parameters of the supernet: equal neighbours ("runs": in MOBILE the blocks 2
to n of a stage) are stacked, `blocks{first block}/edges/{operation}/...` with
leaves [blocks of the run, ...]. The discrete network has `block{i}/...`
instead, and nothing for a block of `zero`. `extract` takes one from the
other; all other names are common.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rome_jax.engine import layers, operations, switch
from rome_jax.engine.owners import Candidate
from rome_jax.engine.weights import STACKED
from rome_jax.families.images import check_images
from rome_jax.families.mobile import geometry
from rome_jax.families.mobile.geometry import (
    IDENTITY,
    STYLES,
    blocks,
    chosen,
    fixed_widths,
    free,
    kernel_and_expansion,
    runs,
)
from rome_jax.spaces import Space, counting
from rome_jax.spaces.genotypes import Genotype

EPSILON, MOMENTUM = STYLES['mobile'].epsilon, STYLES['mobile'].momentum


@functools.cache
def _search_norm(style):
  """ProxylessNAS trains the affine of its supernet's norms."""
  return functools.partial(
      layers.AffineBatchStatistics, epsilon=style.epsilon)


class MBConv(nn.Module):
  """Expansion, depthwise convolution, projection; no shortcut.

  Attributes:
    kernel: of the depthwise convolution, odd.
    expansion: inner channels over input channels; with 1 there is no
      expansion layer.
    features: output channels.
    stride: of the depthwise convolution.
    norm: function that makes a normalisation layer of a given name.
    activation: a name in `flax.linen`.
  """

  kernel: int
  expansion: int
  features: int
  stride: int
  norm: type | functools.partial
  activation: str = 'relu6'

  @nn.compact
  def __call__(self, x):
    activate = getattr(nn, self.activation)
    if self.expansion > 1:
      x = operations.Pointwise(self.expansion * x.shape[-1], name='expand')(x)
      x = activate(self.norm(name='expand_norm')(x))
    x = operations.Depthwise(self.kernel, self.stride, name='depthwise')(x)
    x = activate(self.norm(name='depthwise_norm')(x))
    x = operations.Pointwise(self.features, name='project')(x)
    return self.norm(name='project_norm')(x)


class Downsample(nn.Module):
  """What stands for the identity where a block changes size or width.

  Attributes:
    features: output channels.
    stride: of the convolution.
    norm: as in `MBConv`.
  """

  features: int
  stride: int
  norm: type | functools.partial

  @nn.compact
  def __call__(self, x):
    x = operations.Pointwise(self.features, self.stride, name='project')(x)
    return self.norm(name='project_norm')(x)


def _operation(block, op, norm, **options):
  """The module of one candidate of a block."""
  if free(block, op):
    return operations.Zero(block.stride, **options)
  if op == IDENTITY:
    return Downsample(block.c_out, block.stride, norm, **options)
  return MBConv(*kernel_and_expansion(op), block.c_out, block.stride, norm,
                block.style.activation, **options)


@functools.cache
def _candidates(block):
  """The block's modules; cached, since they key compiled switches."""
  # Without `parent=None` Flax would adopt them into the module that asks.
  return tuple(_operation(block, op, _search_norm(block.style), parent=None)
               for op in block.ops)


def _skeleton(images, body, *, space, channels, num_classes, stem, norm):
  """Logits; `body` maps what goes before the blocks through them."""
  widths, style = fixed_widths(channels), STYLES[space.family]
  activate = getattr(nn, style.activation)
  stride = 1 if stem == 'cifar' else 2
  x = operations.Conv(widths.stem, 3, stride, name='stem_conv')(images)
  x = activate(norm(name='stem_norm')(x))
  if style.first:
    x = MBConv(3, 1, widths.first, 1, norm, name='first')(x)
  x = body(x)
  x = operations.Pointwise(widths.last, name='last_conv')(x)
  x = activate(norm(name='last_norm')(x))
  return layers.Linear(num_classes, name='head')(layers.pooled(x))


def _init_run(rng, run):
  """{STACKED: {operation: tree}}, leaves [blocks of the run, ...].

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
  return {STACKED: jax.tree.unflatten(treedef, leaves)}


@functools.cache
def _shapes(block):
  """{operation: tree of shapes} of one block's candidates with parameters."""
  x = jax.ShapeDtypeStruct((1, 2, 2, block.c_in), jnp.float32)
  return {
      op: jax.eval_shape(module.init, jax.random.key(0), x)['params']
      for op, module in zip(block.ops, _candidates(block))
      if not free(block, op)}


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
    channels: of the stem; scales all widths (32: the paper's).
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

    Of `arch['normal']` it reads ops [N] and gates [N]; the edges are always
    the chain's. See `cells.run_cells` for `want_weight_grads`.
    """
    check_images(images)

    def body(x):
      for run in runs(blocks(self.space, self.channels, self.stem)):
        x = self._run(run, arch['normal'], x, want_weight_grads)
      return x

    return _skeleton(
        images, body, space=self.space, channels=self.channels,
        num_classes=self.num_classes, stem=self.stem,
        norm=_search_norm(STYLES[self.space.family]))

  def _run(self, run, cell, x, want_weight_grads):
    weights = self.param(run.name, _init_run, run)[STACKED]
    if self.is_initializing():
      # Tracing the candidates only to discard their output would take long.
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
  It has neither an auxiliary head nor dropout.

  Attributes:
    space: a `spaces.mobile`; its layout counts, not its candidates.
    genotype: one operation per block.
    channels, num_classes, stem: as in `Supernet`.
    remat: see `layers.rematerialised`; of blocks.
  """

  space: Space
  genotype: Genotype
  channels: float
  num_classes: int
  stem: str = 'cifar'
  remat: str = 'none'

  def __post_init__(self):
    geometry.checked_names(self.space, self.genotype)
    super().__post_init__()

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.].

    Args:
      images: float images, NHWC.
      train: batch statistics and drop path instead of running statistics.
      drop_path: probability of dropping the operation of a block that has a
        shortcut, per example; may be traced.
    """
    check_images(images)
    style = STYLES[self.space.family]
    norm = layers.batch_norm(images, train, style.momentum, style.epsilon)
    rate = drop_path if train else 0

    def body(x):
      stages = blocks(self.space, self.channels, self.stem)
      for i, (block, op) in enumerate(
          zip(stages, chosen(self.genotype), strict=True)):
        if free(block, op):
          continue
        module = _operation(block, op, norm, name=f'block{i}')
        x = layers.rematerialised(
            _with_shortcut(block, rate), self.remat)(module, x)
        self.sow('intermediates', layers.FEATURES, x)
      return x

    return _skeleton(
        images, body, space=self.space, channels=self.channels,
        num_classes=self.num_classes, stem=self.stem, norm=norm)


def candidates(theta: dict[str, Any], space: Space) -> tuple[Candidate, ...]:
  """See `engine.weights.candidates`; sites are blocks."""
  del space
  found = []
  for name in theta:
    if name.startswith('blocks'):
      start = int(name.removeprefix('blocks'))
      for op, tree in theta[name][STACKED].items():
        length = jax.tree.leaves(tree)[0].shape[0]
        found.append(Candidate((name, STACKED, op), 'normal', op,
                               tuple(range(start, start + length))))
  return tuple(found)


def extract(params: dict[str, Any], genotype: Genotype) -> dict[str, Any]:
  """Takes the discrete network's `params` out of the supernet's.

  Args:
    params: of `Supernet`, or gradients of that form.
    genotype: one operation per block.
  """
  starts = sorted(int(name.removeprefix('blocks'))
                  for name in params if name.startswith('blocks'))
  named = {name: tree for name, tree in params.items()
           if not name.startswith('blocks')}
  for i, op in enumerate(chosen(genotype)):
    start = max(s for s in starts if s <= i)
    stacked = params[f'blocks{start}'][STACKED].get(op)
    if stacked is None:  # It has no weights.
      continue
    named[f'block{i}'] = jax.tree.map(
        lambda leaf, row=i - start: leaf[row], stacked)
  return named

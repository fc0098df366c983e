"""Networks: stem, a stack of cells, head; supernet and discrete network.

Both are one skeleton with another kind of cell (DARTS, Liu et al. 2019,
`model_search.py`, `model.py`): two stems, reduction cells at a third and two
thirds of the depth that double the channels, global average pooling and a
linear layer.

The dtype of the images is that of all activations, in every family: modules
cast their (float32) parameters to it where they use them. What stays float32
with bfloat16 images: parameters, statistics and affine of BatchNorm, and all
behind the pooling, so the logits.
"""

import functools
import zlib
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rome_jax import cells as cells_lib
from rome_jax import genotypes, kernels, ops, sampling
from rome_jax.counting import reductions
from rome_jax.spaces import Space

STEM_MULTIPLIER = 3


def pooled(x):
  """[B,C], the mean over all pixels of [B,H,W,C]; float32 at least."""
  return x.mean((1, 2), dtype=ops.wide(x.dtype))


def batch_norm(images, train, momentum=.9, epsilon=1e-5):
  """The function that makes a discrete network's normalisation layers.

  Args:
    images: what the network is applied to; without their dtype Flax would
      promote every activation to that of scale and bias.
    train: statistics of the batch instead of the running ones.
    momentum: of the running statistics.
    epsilon: added to the variance.
  """
  return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=momentum,
      epsilon=epsilon, dtype=images.dtype)


def rematerialised(run: Callable, how: str) -> Callable:
  """run(module, *states), whose inside is recomputed in the backward pass.

  Args:
    run: a function of a bound module and arrays; its rngs must be those of
      that module.
    how: 'cells', or 'none' for `run` as it is.
  """
  return nn.remat(run) if how == 'cells' else run


class Linear(nn.Module):
  """Linear layer; weights and bias start in U(+-1/sqrt(fan_in))."""

  features: int

  @nn.compact
  def __call__(self, x):
    bound = x.shape[-1] ** -.5

    def bias_init(rng, shape, dtype=jnp.float32):
      return jax.random.uniform(rng, shape, dtype, -bound, bound)

    w = self.param(
        'kernel', ops.torch_init, (x.shape[-1], self.features))
    b = self.param('bias', bias_init, (self.features,))
    return x @ w.astype(x.dtype) + b.astype(x.dtype)


def _cifar_stem(x, channels, norm):
  """3x3 convolution to 3C and normalisation; both cell inputs."""
  x = norm(name='stem_norm')(
      ops.Conv(STEM_MULTIPLIER * channels, 3, name='stem_conv')(x))
  return x, x, False


def _imagenet_stem(x, channels, norm):
  """Strided 3x3 convolutions: s0 at a quarter of the size, s1 at an eighth."""
  x = norm(name='stem_norm0')(
      ops.Conv(channels // 2, 3, 2, name='stem_conv0')(x))
  s0 = norm(name='stem_norm1')(
      ops.Conv(channels, 3, 2, name='stem_conv1')(nn.relu(x)))
  s1 = norm(name='stem_norm2')(
      ops.Conv(channels, 3, 2, name='stem_conv2')(nn.relu(s0)))
  return s0, s1, True


# Each: (images, C, norm) -> (s0, s1, whether s1 is half the size of s0).
STEMS: dict[str, Callable] = {
    'cifar': _cifar_stem, 'imagenet': _imagenet_stem}


def _stage_ends(cells):
  """Where runs of equal cells end: before and behind each reduction cell."""
  reduced = reductions(cells)
  return sorted({*reduced, *(i + 1 for i in reduced), cells} - {0})


def in_order(cells, *states):
  """The outputs of cells, each fed those of the ones before it."""
  outputs = list(states)
  for i, cell in enumerate(cells):
    outputs.append(cell(*outputs[i:]))
  return outputs[len(states):]


def stack(images, *, stem, channels, cells, stem_norm, make_cell,
          run=in_order):
  """{number of a cell: its output}; call it in a compact module.

  Where `run` gives the last outputs of a stage only, the others are left out.

  Args:
    images: [B,H,W,.].
    stem: name in STEMS.
    channels: C of the first cells.
    cells: number of cells.
    stem_norm: function that makes the stem's normalisation.
    make_cell: (i, features, reduction, reduction_prev) -> f(s0, s1).
    run: (equal cells, s0, s1) -> the outputs of all or of the last two.
  """
  s0, s1, reduction_prev = STEMS[stem](images, channels, stem_norm)
  outputs, start = {}, 0
  for stop in _stage_ends(cells):
    reduction = start in reductions(cells)
    channels *= 2 if reduction else 1
    made = []
    for i in range(start, stop):
      made.append(make_cell(i, channels, reduction, reduction_prev))
      reduction_prev = reduction
    found = run(made, s0, s1)
    s0, s1 = (s0, s1, *found)[-2:]
    outputs |= dict(zip(range(stop)[-len(found):], found))
    start = stop
  return outputs


@functools.partial(jax.checkpoint, prevent_cse=False)
def _affine(x, scale, bias):
  """In float32, so that both gradients, sums over the batch, are too.

  What is kept for them is x as it is.
  """
  return (x.astype(ops.wide(x.dtype)) * scale + bias).astype(x.dtype)


class AffineBatchStatistics(nn.Module):
  """Stateless BatchNorm with affine: the stem of a supernet."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    return _affine(kernels.batch_norm(x, self.epsilon), scale, bias)


class Supernet(nn.Module):
  """All candidate weights; evaluates one sampled architecture.

  `apply({'params': params}, images, arch)` is a pure function without state:
  BatchNorm uses the statistics of the batch.

  Attributes:
    space: the search space.
    cells: number of cells (8 in the papers).
    channels: C (16 in the papers).
    num_classes: size of the output.
    stem: 'cifar' or 'imagenet'.
  """

  space: Space
  cells: int
  channels: int
  num_classes: int
  stem: str = 'cifar'

  @nn.compact
  def __call__(self, images, arch):
    """Logits [B,classes] of images [B,H,W,.] at arch {'normal','reduce'}."""
    chex.assert_rank(images, 4)

    def make_cell(i, features, reduction, reduction_prev):
      return cells_lib.SearchCell(
          self.space, features, reduction, reduction_prev, name=f'cell{i}')

    def run(cells, *states):
      kind = 'reduce' if cells[0].reduction else 'normal'
      return cells_lib.run_cells(cells, *states, arch=arch[kind])

    outputs = stack(
        images, stem=self.stem, channels=self.channels, cells=self.cells,
        stem_norm=AffineBatchStatistics, make_cell=make_cell, run=run)
    return Linear(self.num_classes, name='head')(
        pooled(outputs[self.cells - 1]))


def make_drop_path(module: nn.Module, rate):
  """x -> x with each example's path dropped at `rate`, None for a rate of 0.

  Args:
    module: whose rng stream 'drop_path' is used.
    rate: a number, may be traced.
  """
  if isinstance(rate, (int, float)) and rate == 0:
    return None

  def drop(x):
    keep = 1 - jnp.asarray(rate, ops.wide(x.dtype))
    mask = jax.random.bernoulli(
        module.make_rng('drop_path'), keep, (x.shape[0], 1, 1, 1))
    return jnp.where(mask, (x / keep).astype(x.dtype), 0)
  return drop


def with_drop_path(rate):
  """(cell, *states) -> its output, paths dropped by the cell's own rng."""

  def run(cell, *states):
    return cell(*states, drop_path=make_drop_path(cell, rate))
  return run


class AuxiliaryHead(nn.Module):
  """The auxiliary classifier after the second reduction cell.

  ReLU, 5x5 average pooling, 1x1 to 128, 2x2 to 768, linear (DARTS,
  `model.py`). The ImageNet form strides by 2 and, as in the published code,
  lacks the second normalisation.
  """

  num_classes: int
  stem: str
  norm: Callable

  @nn.compact
  def __call__(self, x):
    imagenet = self.stem == 'imagenet'
    stride = 2 if imagenet else 3
    x = nn.relu(x)
    size = min(5, x.shape[1], x.shape[2])
    x = nn.avg_pool(x, (size, size), (stride, stride))
    x = nn.relu(self.norm()(ops.Pointwise(128, name='conv0')(x)))
    # Small images leave one pixel; then the 2x2 convolution sees padding.
    pad = tuple((0, max(0, 2 - n)) for n in x.shape[1:3])
    x = nn.Conv(768, (2, 2), padding=pad, use_bias=False, dtype=x.dtype,
                kernel_init=ops.torch_init, name='conv1')(x)
    x = nn.relu(x if imagenet else self.norm()(x))
    # The published head sees a 1x1 map at 32 (224) pixels; a mean keeps it
    # the same there and defines it for other sizes.
    return Linear(self.num_classes, name='head')(pooled(x))


class Network(nn.Module):
  """The network of a genotype, an ordinary Flax module.

  Collections: `params` and, for BatchNorm, `batch_stats`. With `train`, pass
  `mutable=['batch_stats']` and, with drop_path > 0, an rng 'drop_path'.

  Attributes:
    genotype: a `genotypes.Genotype`.
    cells: number of cells (20 on CIFAR, 14 on ImageNet).
    channels: C (36 on CIFAR, 48 on ImageNet).
    num_classes: size of the output.
    stem: 'cifar' or 'imagenet'.
    auxiliary: whether training returns auxiliary logits too.
    remat: see `rematerialised`.
  """

  genotype: genotypes.Genotype
  cells: int
  channels: int
  num_classes: int
  stem: str = 'cifar'
  auxiliary: bool = False
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.].

    Args:
      images: float images, NHWC.
      train: batch statistics and drop path instead of running statistics.
      drop_path: probability of dropping an operation's output, per example;
        may be traced.

    Returns:
      logits, or (logits, auxiliary logits) with `train` and `auxiliary`.
    """
    chex.assert_rank(images, 4)
    norm = batch_norm(images, train)
    run = rematerialised(with_drop_path(drop_path if train else 0),
                         self.remat)

    def make_cell(i, features, reduction, reduction_prev):
      g = self.genotype
      nodes, concat = ((g.reduce, g.reduce_concat) if reduction else
                       (g.normal, g.normal_concat))
      cell = cells_lib.DiscreteCell(
          nodes, concat, features, reduction, reduction_prev, norm,
          name=f'cell{i}')
      return functools.partial(run, cell)

    outputs = stack(
        images, stem=self.stem, channels=self.channels, cells=self.cells,
        stem_norm=norm, make_cell=make_cell)
    logits = Linear(self.num_classes, name='head')(
        pooled(outputs[self.cells - 1]))
    if not self.auxiliary:
      return logits
    # Built in evaluation too, so that `init` makes its parameters.
    auxiliary = AuxiliaryHead(
        self.num_classes, self.stem, norm, name='auxiliary')(
            outputs[2 * self.cells // 3])
    return (logits, auxiliary) if train else logits


def initialise(module: nn.Module, seed: int, *args):
  """The variables of `module.init(key, *args)`, drawn by NumPy.

  The law is PyTorch's: kernels, and biases beside them, in
  U(+-1/sqrt(fan_in)). `init` would compile one random draw per kernel, which
  takes longer than training a small network; and these weights are the same
  on every device and version of JAX.

  Args:
    module: a Supernet or Network.
    seed: of the weights.
    *args: of the module's call; only shapes matter.

  Returns:
    {collection: tree} of NumPy float32 arrays.
  """
  key = jax.random.key(0)
  shapes = jax.eval_shape(
      module.init, {'params': key, 'noise': key}, *args)
  kernels = {path[:-1]: _one_edge(path, leaf.shape)
             for path, leaf in traverse_util.flatten_dict(shapes).items()
             if path[-1] == 'kernel'}

  def draw(path, leaf):
    if path[-1] in ('scale', 'var'):
      return np.ones(leaf.shape, np.float32)
    if path[:-1] not in kernels:  # BatchNorm's mean and bias
      return np.zeros(leaf.shape, np.float32)
    bound = ops.init_bound(kernels[path[:-1]])
    rng = np.random.Generator(np.random.Philox(
        key=[seed, zlib.crc32('/'.join(path).encode())]))
    return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

  flat = traverse_util.flatten_dict(shapes)
  return traverse_util.unflatten_dict(
      {path: draw(path, leaf) for path, leaf in flat.items()})


def _one_edge(path, shape):
  """The kernel's shape without the leading axis of a supernet's edges."""
  stacked = {cells_lib.EDGES, cells_lib.STRIDED} & set(path)
  return shape[1:] if stacked else shape


def init_supernet(network: Supernet, seed: int, image_size: int,
                  image_channels: int):
  """Initial weights of a supernet for square images; see `initialise`."""
  images = jnp.zeros((1, image_size, image_size, image_channels))
  space = network.space
  arch = {t: sampling.first_cell(space, t) for t in space.cell_types}
  return initialise(network, seed, images, arch)['params']

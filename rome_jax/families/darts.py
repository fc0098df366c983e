"""The networks of the DARTS family: stem, a stack of cells, head.

BatchNorm's running variance is that of the batch as it is (biased); PyTorch
keeps n / (n - 1) of it.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from rome_jax import errors
from rome_jax.engine import cells as cells_lib
from rome_jax.engine import drop as drop_lib
from rome_jax.engine import layers, operations
from rome_jax.families.images import check_images
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.counting import AUXILIARY_NORMS, reductions

__all__ = ['AUXILIARY_NORMS', 'STEMS', 'STEM_MULTIPLIER', 'AuxiliaryHead',
           'Network', 'Supernet', 'stack']

STEM_MULTIPLIER = 3


def _cifar_stem(x, channels, norm):
  """3x3 convolution to 3C and normalisation; both cell inputs."""
  x = norm(name='stem_norm')(
      operations.Conv(STEM_MULTIPLIER * channels, 3, name='stem_conv')(x))
  return x, x, False


def _imagenet_stem(x, channels, norm):
  """Strided 3x3 convolutions: s0 at a quarter of the size, s1 at an eighth."""
  x = norm(name='stem_norm0')(
      operations.Conv(channels // 2, 3, 2, name='stem_conv0')(x))
  s0 = norm(name='stem_norm1')(
      operations.Conv(channels, 3, 2, name='stem_conv1')(nn.relu(x)))
  s1 = norm(name='stem_norm2')(
      operations.Conv(channels, 3, 2, name='stem_conv2')(nn.relu(s0)))
  return s0, s1, True


# Each: (images, C, norm) -> (s0, s1, whether s1 is half the size of s0).
STEMS: dict[str, Callable] = {
    'cifar': _cifar_stem, 'imagenet': _imagenet_stem}


def _stage_ends(cells):
  """Where runs of equal cells end: before and after each reduction cell."""
  reduced = reductions(cells)
  return sorted({*reduced, *(i + 1 for i in reduced), cells} - {0})


def stack(images: jax.Array, *, stem: str, channels: int, cells: int,
          stem_norm: Callable, make_cell: Callable,
          run: Callable = layers.in_order) -> dict[int, jax.Array]:
  """{number of a cell: its output}; call it in a compact module.

  Where `run` gives only the last outputs of a stage, the others are missing.

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
  outputs: dict[int, jax.Array] = {}
  start = 0
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
    partial: k, where operations see 1/k of the channels (PC-DARTS); see
      `operations.partial`.
    evaluator: 'listed' or 'batched', see `cells.SearchCell`.

  >>> from rome_jax.spaces import S2
  >>> Supernet(S2, cells=8, channels=16, num_classes=10).stem
  'cifar'
  """

  space: Space
  cells: int
  channels: int
  num_classes: int
  stem: str = 'cifar'
  partial: int = 1
  evaluator: str = 'listed'

  @nn.compact
  def __call__(self, images, arch, want_weight_grads=None,
               drop=drop_lib.NOTHING):
    """Logits [B,classes] of images [B,H,W,.] at arch {'normal','reduce'}.

    See `cells.run_cells` for `want_weight_grads` and `drop`.
    """
    check_images(images)

    def make_cell(i, features, reduction, reduction_prev):
      return cells_lib.SearchCell(
          self.space, features, reduction, reduction_prev,
          partial=self.partial, evaluator=self.evaluator, name=f'cell{i}')

    def run(cells, *states):
      kind = 'reduce' if cells[0].reduction else 'normal'
      return cells_lib.run_cells(
          cells, *states, arch=arch[kind],
          want_weight_grads=want_weight_grads, drop=drop)

    outputs = stack(
        images, stem=self.stem, channels=self.channels, cells=self.cells,
        stem_norm=layers.AffineBatchStatistics, make_cell=make_cell, run=run)
    return layers.Linear(self.num_classes, name='head')(
        layers.pooled(outputs[self.cells - 1]))


class AuxiliaryHead(nn.Module):
  """The auxiliary classifier after the second reduction cell.

  ReLU, 5x5 average pooling, 1x1 to 128, 2x2 to 768, linear (DARTS,
  `model.py`), a normalisation after each convolution. The ImageNet form
  strides by 2.

  Attributes:
    num_classes: outputs.
    stem: 'cifar' or 'imagenet'.
    norm: function that makes a normalisation layer.
    second_norm: on ImageNet, 'pc_darts' normalises after the second
      convolution too, as the code of PC-DARTS, P-DARTS and GDAS does; that of
      DARTS, 'darts', does not. On CIFAR all of them do.
  """

  num_classes: int
  stem: str
  norm: Callable
  second_norm: str = 'darts'

  @nn.compact
  def __call__(self, x):
    imagenet = self.stem == 'imagenet'
    stride = 2 if imagenet else 3
    x = nn.relu(x)
    size = min(5, x.shape[1], x.shape[2])
    x = nn.avg_pool(x, (size, size), (stride, stride))
    x = nn.relu(self.norm()(operations.Pointwise(128, name='conv0')(x)))
    # Small images leave one pixel; then the 2x2 convolution sees padding.
    pad = tuple((0, max(0, 2 - n)) for n in x.shape[1:3])
    x = nn.Conv(768, (2, 2), padding=pad, use_bias=False, dtype=x.dtype,
                kernel_init=operations.torch_init, name='conv1')(x)
    if not imagenet or self.second_norm == 'pc_darts':
      x = self.norm()(x)
    x = nn.relu(x)
    # The published head sees a 1x1 map at 32 (224) pixels. The mean changes
    # nothing there and defines the head for other sizes.
    return layers.Linear(self.num_classes, name='head')(layers.pooled(x))


def _check_cells(genotype):
  """Refuses what is no genotype of two cells, as of NAS-Bench-201."""
  genotypes.validate(genotype)
  if not genotype.reduce:
    raise errors.UserError(
        'the genotype has no reduction cell, which this network needs; '
        'families.build(genotype, space, sizes) makes the network of any space')


class Network(nn.Module):
  """The network of a genotype, an ordinary Flax module.

  Collections: `params` and, for BatchNorm, `batch_stats`. With `train`, pass
  `mutable=['batch_stats']` and, with drop_path > 0, an rng 'drop_path'.

  Attributes:
    genotype: two cells, normal and reduction.
    cells: number of cells (20 on CIFAR, 14 on ImageNet).
    channels: C (36 on CIFAR, 48 on ImageNet).
    num_classes: size of the output.
    stem: 'cifar' or 'imagenet'.
    auxiliary: whether training returns auxiliary logits too.
    remat: see `layers.rematerialised`.
    auxiliary_norm: `second_norm` of `AuxiliaryHead`.

  Raises:
    UserError: the genotype is none, or has no reduction cell.

  >>> cell = genotypes.load('DARTS_V2')
  >>> network = Network(cell, cells=3, channels=4, num_classes=10)
  >>> images = jax.numpy.zeros((2, 32, 32, 3))
  >>> shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  >>> jax.eval_shape(network.apply, shapes, images).shape
  (2, 10)
  """

  genotype: genotypes.Genotype
  cells: int
  channels: int
  num_classes: int
  stem: str = 'cifar'
  auxiliary: bool = False
  remat: str = 'none'
  auxiliary_norm: str = 'darts'

  def __post_init__(self):
    _check_cells(self.genotype)
    super().__post_init__()

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
    check_images(images)
    norm = layers.batch_norm(images, train)
    run = layers.rematerialised(
        layers.with_drop_path(drop_path if train else 0), self.remat)

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
        stem_norm=norm, make_cell=make_cell, run=layers.observed(self))
    logits = layers.Linear(self.num_classes, name='head')(
        layers.pooled(outputs[self.cells - 1]))
    if not self.auxiliary:
      return logits
    # Built in evaluation too, so that `init` makes its parameters.
    auxiliary = AuxiliaryHead(
        self.num_classes, self.stem, norm, self.auxiliary_norm,
        name='auxiliary')(outputs[2 * self.cells // 3])
    return (logits, auxiliary) if train else logits

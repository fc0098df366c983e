"""NAS-Bench-201: cells of full convolutions in a residual skeleton.

A 3x3 convolution to C channels and BatchNorm; three stages of cells at C, 2C
and 4C channels; between them a basic residual block of stride 2; BatchNorm,
ReLU, global average pooling, a linear layer (Dong and Yang, ICLR 2020;
`models/cell_infers/tiny_network.py` of the authors' code). A node is the sum
over its predecessors, the cell's output its last node. `cells` counts the
cells of all stages: 15 in the benchmark.
"""

import functools
from collections.abc import Callable

import flax.linen as nn

from rome_jax import errors
from rome_jax.engine import cells as cells_lib
from rome_jax.engine import drop as drop_lib
from rome_jax.engine import layers, operations
from rome_jax.families.images import check_images
from rome_jax.spaces import (
    Sizes,
    Space,
    counting,
    genotypes,
    nasbench201_counts,
)
from rome_jax.spaces.nasbench201_counts import STAGES


class ResidualBlock(nn.Module):
  """Two ReLU-conv-BN of 3x3, the first strided; shortcut avgpool 2, 1x1.

  Attributes:
    features: output channels.
    norm: function that makes a normalisation layer.
  """

  features: int
  norm: Callable

  @nn.compact
  def __call__(self, x):
    y = self.norm(name='norm_a')(
        operations.Conv(self.features, 3, 2, name='conv_a')(nn.relu(x)))
    y = self.norm(name='norm_b')(
        operations.Conv(self.features, 3, name='conv_b')(nn.relu(y)))
    # At odd sizes the strided convolution gives ceil(n / 2); so must this.
    pad = tuple((0, n % 2) for n in x.shape[1:3])
    shortcut = nn.avg_pool(
        x, window_shape=(2, 2), strides=(2, 2), padding=pad)
    return y + operations.Conv(self.features, 1, name='shortcut')(shortcut)


def _skeleton(images, *, channels, cells, num_classes, norm, block, make_cell,
              run=layers.in_order):
  """Logits of the macro skeleton.

  Args:
    images: [B,H,W,.].
    channels: C.
    cells: in all, a multiple of STAGES.
    num_classes: outputs.
    norm: makes the normalisation of stem and head.
    block: (features, name) -> residual block.
    make_cell: (features, name) -> function of one state.
    run: (equal cells, state) -> the outputs of all or of the last.
  """
  x = norm(name='stem_norm')(
      operations.Conv(channels, 3, name='stem_conv')(images))
  for stage in range(STAGES):
    features = channels * 2**stage
    if stage:
      x = block(features, f'reduce{stage}')(x)
    x = run([make_cell(features, f'cell{stage}_{i}')
             for i in range(cells // STAGES)], x)[-1]
  x = nn.relu(norm(name='head_norm')(x))
  return layers.Linear(num_classes, name='head')(layers.pooled(x))


class Supernet(nn.Module):
  """All candidate weights; evaluates one sampled architecture.

  As in the benchmark's search code, BatchNorm in cells has no affine and
  their convolutions have a bias; stem, residual blocks and head are those of
  the final network. Every BatchNorm uses the statistics of the batch.
  Attributes are those of `darts.Supernet`.
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
    """Logits [B,classes] of images [B,H,W,.] at arch {'normal'}.

    See `cells.run_cells` for `want_weight_grads` and `drop`.
    """
    check_images(images)

    def make_cell(features, name):
      return cells_lib.SearchCell(
          self.space, features, conv_bias=True, pool_norm=False,
          partial=self.partial, evaluator=self.evaluator, name=name)

    def block(features, name):
      return ResidualBlock(
          features, layers.AffineBatchStatistics, name=name)

    return _skeleton(
        images, channels=self.channels, cells=self.cells,
        num_classes=self.num_classes, norm=layers.AffineBatchStatistics,
        block=block, make_cell=make_cell,
        run=functools.partial(
            cells_lib.run_cells, arch=arch['normal'],
            want_weight_grads=want_weight_grads, drop=drop))


class Network(nn.Module):
  """The network of a genotype; see `darts.Network` for the conventions.

  Raises:
    UserError: the genotype is none of one cell type.
  """

  genotype: genotypes.Genotype
  cells: int
  channels: int
  num_classes: int
  remat: str = 'none'

  def __post_init__(self):
    genotypes.validate(self.genotype)
    if self.genotype.reduce:
      raise errors.UserError(
          'the genotype has a reduction cell; all cells of NAS-Bench-201 are '
          'equal')
    super().__post_init__()

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.]."""
    check_images(images)
    norm = layers.batch_norm(images, train)
    run = layers.rematerialised(
        layers.with_drop_path(drop_path if train else 0), self.remat)

    def make_cell(features, name):
      cell = cells_lib.DiscreteCell(
          self.genotype.normal, self.genotype.normal_concat, features,
          False, None, norm, name=name)
      return functools.partial(run, cell)

    return _skeleton(
        images, channels=self.channels, cells=self.cells,
        num_classes=self.num_classes, norm=norm,
        block=lambda features, name: ResidualBlock(features, norm, name=name),
        make_cell=make_cell, run=layers.observed(self))


# ------------------------------------------------------------------- counts


def check(space: Space, sizes: Sizes) -> None:
  """Checks that networks of this space and size exist.

  Raises:
    UserError: naming the field that is wrong.
  """
  counting.integers(sizes)
  shape = space.num_inputs, space.cell_types, space.sites, space.parents
  if shape != (1, ('normal',), 'edges', 'all'):
    raise errors.UserError(
        f"space {space.name}: with family='nasbench201' a space has "
        "num_inputs=1, cell_types=('normal',), sites='edges' and "
        "parents='all'")
  if sizes.cells % STAGES:
    raise errors.UserError(
        f'cells={sizes.cells} must be a multiple of {STAGES} with '
        f'space={space.name}, which has {STAGES} stages')


def count(space: Space, genotype: genotypes.Genotype, sizes: Sizes,
          stem: str = 'cifar') -> counting.Count:
  """Counts the network of a genotype; arguments as `counting.count`."""
  check(space, sizes)
  sizes = counting.checked(sizes, stem)
  return counting.summed(nasbench201_counts.parts(genotype.normal, sizes))


def count_supernet(space: Space, sizes: Sizes,
                   stem: str = 'cifar') -> counting.Count:
  """Counts the supernet, alpha and beta not included."""
  check(space, sizes)
  sizes = counting.checked(sizes, stem)
  everything = counting.all_operations(space, 'normal')
  return counting.summed(
      nasbench201_counts.parts(everything, sizes, search=True))

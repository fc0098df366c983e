"""One call each for a supernet and for a network, whatever the space."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from rome_jax import errors, spaces
from rome_jax.engine import layers
from rome_jax.families import darts, table
from rome_jax.spaces import Sizes, Space, genotypes

AUTO = 'auto'
REMATS = ('none', 'cells')


def supernet(space: Space | str, sizes: Sizes, stem: str = AUTO,
             partial: int = 1, evaluator: str = 'listed') -> nn.Module:
  """The search network of a space: all candidate weights, one forward pass.

  Args:
    space: a `Space`, or the name of one.
    sizes: of the network.
    stem: 'cifar' or 'imagenet'; 'auto' chooses by the size of the images, see
      `resolve_stem`.
    partial: k, where operations see 1/k of the channels only (PC-DARTS, Xu et
      al. 2020); it must divide C.
    evaluator: 'listed' runs the listed slots one by one, in the memory of
      one; 'batched' all operations of an edge at once, which is faster where
      every slot is listed, as in DARTS. The families 'darts' and
      'nasbench201' have both.

  Returns:
    A Flax module: `apply({'params': theta}, images, arch)` are the logits
    [B,num_classes] of images [B,H,W,image_channels] at `arch` {cell type:
    CellArch}; `engine.weights.init_supernet` makes theta.

  Raises:
    UserError: naming the argument, its value and what is allowed.

  >>> supernet('s2', Sizes(cells=8, channels=16, num_classes=10)).stem
  'cifar'
  """
  known, stem = _resolved(space, sizes, stem)
  table.check_operations(known)
  table.check(known, '', sizes, stem)
  table.check_evaluator(known, evaluator)
  options = _partial(known, sizes, partial)
  if evaluator != 'listed':  # Not every family has the option.
    options['evaluator'] = evaluator
  return table.get(known).supernet(known, sizes, stem, **options)


def build(genotype: genotypes.Genotype, space: Space | str, sizes: Sizes, *,
          stem: str = AUTO, auxiliary: bool = False,
          auxiliary_norm: str = 'darts', remat: str = 'none') -> nn.Module:
  """The network of a genotype, whatever its space.

  Args:
    genotype: a cell of the space; in the DARTS family of any such space.
    space: a `Space`, or the name of one; decides on the network around the
      cells.
    sizes: of the network.
    stem: 'cifar' or 'imagenet'; 'auto' chooses by the size of the images, see
      `resolve_stem`.
    auxiliary: whether training returns auxiliary logits too (DARTS family).
    auxiliary_norm: normalisation of the auxiliary head's second convolution
      on ImageNet: 'darts' or 'pc_darts', see `darts.AuxiliaryHead`.
    remat: 'cells' recomputes each cell in the backward pass, 'none' nothing.

  Returns:
    A Flax module; see `darts.Network` for how to call it.

  Raises:
    UserError: naming the argument, its value and what is allowed.

  >>> genotype = genotypes.load('DARTS_V2')
  >>> build(genotype, 's0', Sizes(14, 48, 1000, image_size=224)).stem
  'imagenet'
  """
  known, stem = _resolved(space, sizes, stem)
  table.check(known, '', sizes, stem, auxiliary)
  table.check_genotype(known, genotype, 'genotype')
  _check_choice('auxiliary_norm', auxiliary_norm, darts.AUXILIARY_NORMS)
  _check_choice('remat', remat, REMATS)
  return table.get(known).network(
      known, genotype, sizes, stem, auxiliary=auxiliary,
      auxiliary_norm=auxiliary_norm, remat=remat)


def features(network: nn.Module, variables: Mapping[str, Any],
             images: jax.Array) -> tuple[jax.Array, ...]:
  """Feature maps of a network, one per resolution, the finest first.

  What segmentation and detection put their own heads on: of all cells (or
  blocks) of one resolution, the output of the last.

  Args:
    network: of `build` or `rome_jax.load`, not a supernet.
    variables: its {collection: tree}.
    images: [B,H,W,.], as the network takes them.

  Returns:
    Arrays [B,h,w,C], h and w falling; the last is what the classifier pools,
    in the DARTS family.

  Raises:
    UserError: it is no network of a genotype.

  >>> network = build(genotypes.load('DARTS_V2'), 's0', Sizes(6, 8, 10))
  >>> images = jax.numpy.zeros((2, 32, 32, 3))
  >>> variables = network.init(jax.random.key(0), images)
  >>> [maps.shape for maps in features(network, variables, images)]
  [(2, 32, 32, 32), (2, 16, 16, 64), (2, 8, 8, 128)]
  """
  if not hasattr(network, 'genotype'):
    raise errors.UserError(
        f'network={type(network).__name__} must be one of rome_jax.build or '
        'rome_jax.load')
  _, kept = network.apply(variables, images, mutable=['intermediates'])
  found = kept['intermediates'][layers.FEATURES]
  by_size = {maps.shape[1:3]: maps for maps in found}
  return tuple(by_size.values())


def _resolved(space, sizes, stem):
  """(Space, stem) of what a caller gave."""
  if isinstance(space, str):
    space = spaces.get_space(space)
  if not isinstance(space, Space):
    raise errors.UserError(
        f'space={space!r} must be a Space or one of '
        f'{", ".join(spaces.SPACES)}')
  if not isinstance(sizes, Sizes):
    raise errors.UserError(
        f'sizes={sizes!r} must be Sizes(cells, channels, num_classes, ...)')
  return space, table.resolve_stem(space, stem, sizes.image_size)


def _partial(space, sizes, partial):
  """The option of a row's supernet, {} where all channels pass."""
  if type(partial) is not int or partial < 1:
    raise errors.UserError(
        f'partial={partial!r} must be an integer of at least 1')
  if partial > 1 and sizes.channels % partial:
    raise errors.UserError(
        f'partial={partial} must divide channels={sizes.channels}')
  if partial == 1:
    return {}
  if not table.get(space).partial:
    raise errors.UserError(
        f'partial={partial} must be 1 with space={space.name}, whose cells '
        'have no partial channels')
  return {'partial': partial}


def _check_choice(name, value, choices):
  if value not in choices:
    raise errors.UserError(
        f'{name}={value!r} must be one of {", ".join(choices)}'
        f'{errors.near_miss(value, choices)}')

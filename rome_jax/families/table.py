"""The families of networks around the cells: a table with a row for each.

A space names its family; drivers have no other way to a network or to its
counts.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from rome_jax import errors
from rome_jax.engine import operations, owners, weights
from rome_jax.families import darts, mobile, nasbench1shot1, nasbench201
from rome_jax.spaces import Sizes, Space, counting, genotypes

# How slots are evaluated: one by one, or all operations of an edge at once.
EVALUATORS = ('listed', 'batched')


class Family(NamedTuple):
  """One row.

  Attributes:
    supernet: `(space, sizes, stem, **options)` -> flax module,
      `apply({'params': theta}, images, arch)` -> logits. Options: partial.
    network: `(space, genotype, sizes, stem, **options)` -> flax module, see
      `darts.Network` for its conventions. Options: auxiliary,
      auxiliary_norm, remat.
    count: (space, genotype, sizes, stem) -> counting.Count of the network.
    count_supernet: (space, sizes, stem) -> counting.Count of the supernet.
    check: (space, sizes) -> None; UserError for sizes that it cannot have.
    stems: stems it has.
    auxiliary: whether the network can have an auxiliary head.
    partial: whether the supernet can have partial channels.
    drops: whether it can leave out paths and parts of identities.
    evaluators: how it can evaluate slots, see `engine.cells.SearchCell`.
    knows: name -> whether its cells can hold the operation.
    compared: whose gradients GM-NAS compares, a name of `split.SHARED`.
    candidates: (theta, space) -> where the supernet keeps the weights of each
      operation, an `owners.Candidate` each.
  """

  supernet: Callable[..., nn.Module]
  network: Callable[..., nn.Module]
  # tuple.count, which is never called, is hidden.
  count: Callable[..., counting.Count]  # type: ignore[assignment]
  count_supernet: Callable[..., counting.Count]
  check: Callable[[Space, Sizes], None]
  stems: tuple[str, ...] = ('cifar',)
  auxiliary: bool = False
  partial: bool = False
  drops: bool = False
  evaluators: tuple[str, ...] = EVALUATORS[:1]
  knows: Callable[[str], bool] = lambda name: name in operations.OPS
  compared: str = 'operations'
  candidates: Callable[..., tuple[owners.Candidate, ...]] = weights.candidates


def _supernet(module):
  """A row's `supernet` of a module (space, cells, channels, ...)."""

  def make(space, sizes, stem, **options):
    return module(
        space, sizes.cells, sizes.channels, sizes.num_classes, stem, **options)

  return make


def _darts_network(space, genotype, sizes, stem, **options):
  del space
  return darts.Network(
      genotype, sizes.cells, sizes.channels, sizes.num_classes, stem,
      **options)


def _nasbench201_network(space, genotype, sizes, stem, auxiliary=False,
                         auxiliary_norm='darts', remat='none'):
  del space, stem, auxiliary, auxiliary_norm
  return nasbench201.Network(
      genotype, sizes.cells, sizes.channels, sizes.num_classes, remat=remat)


def _nasbench1shot1_network(space, genotype, sizes, stem, auxiliary=False,
                            auxiliary_norm='darts', remat='none'):
  del stem, auxiliary, auxiliary_norm
  return nasbench1shot1.Network(
      genotype, sizes.cells, sizes.channels, sizes.num_classes, remat=remat,
      output_input=nasbench1shot1.output_input(space))


def _mobile_network(space, genotype, sizes, stem, auxiliary=False,
                    auxiliary_norm='darts', remat='none'):
  del auxiliary, auxiliary_norm
  return mobile.Network(
      space, genotype, sizes.channels, sizes.num_classes, stem, remat)


def _darts_count(space, genotype, sizes, stem='cifar'):
  del space
  return counting.count(genotype, sizes, stem)


FAMILIES: dict[str, Family] = {
    'darts': Family(
        _supernet(darts.Supernet), _darts_network, _darts_count,
        counting.supernet, counting.check,
        stems=('cifar', 'imagenet'), auxiliary=True, partial=True,
        drops=True, evaluators=EVALUATORS),
    'nasbench201': Family(
        _supernet(nasbench201.Supernet), _nasbench201_network,
        nasbench201.count, nasbench201.count_supernet, nasbench201.check,
        partial=True, drops=True, evaluators=EVALUATORS, compared='body'),
    'nasbench1shot1': Family(
        _supernet(nasbench1shot1.Supernet), _nasbench1shot1_network,
        nasbench1shot1.count, nasbench1shot1.count_supernet,
        nasbench1shot1.check, knows=nasbench1shot1.knows,
        candidates=nasbench1shot1.candidates),
    'mobile': Family(
        _supernet(mobile.Supernet), _mobile_network, mobile.count,
        mobile.count_supernet, mobile.check, stems=('cifar', 'imagenet'),
        knows=mobile.knows, compared='all', candidates=mobile.candidates),
    'nasbench_macro': Family(
        _supernet(mobile.Supernet), _mobile_network, mobile.count,
        mobile.count_supernet, mobile.check, knows=mobile.knows,
        compared='all', candidates=mobile.candidates),
}


def get(space: Space) -> Family:
  """The row of a space.

  Raises:
    UserError: the space names a family that is not in the table.
  """
  if space.family not in FAMILIES:
    raise errors.UserError(
        f'space {space.name}: family={space.family!r} must be one of '
        f'{", ".join(FAMILIES)}'
        f'{errors.near_miss(space.family, FAMILIES)}')
  return FAMILIES[space.family]


# From this size on images are strided to a quarter before the first cell.
LARGE_IMAGES = 128


def resolve_stem(space: Space, stem: str, image_size: int) -> str:
  """What the stem 'auto' is; any other name as it is.

  'imagenet' from 128 pixels on if the family has it, else 'cifar'.
  """
  if stem != 'auto':
    return stem
  large = image_size >= LARGE_IMAGES and 'imagenet' in get(space).stems
  return 'imagenet' if large else 'cifar'


def check(space: Space, where: str, sizes: Sizes, stem: str,
          auxiliary: bool = False) -> None:
  """Checks the sizes of a supernet or network before anything is built.

  Args:
    space: the search space.
    where: what the message calls the section of the config; '' for none.
    sizes: of the network.
    stem: a name, no 'auto'.
    auxiliary: whether an auxiliary head is asked for.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  row, prefix = get(space), f'{where}.' if where else ''
  if stem not in row.stems:
    raise errors.UserError(
        f'stem={stem!r} must be {" or ".join(row.stems)} with '
        f'space={space.name}')
  if auxiliary and not row.auxiliary:
    raise errors.UserError(
        f'{prefix}auxiliary must be false with space={space.name}, whose '
        'networks have no auxiliary head')
  try:
    row.check(space, sizes)
  except errors.UserError as error:
    # Those of a size begin with its name.
    field = str(error).startswith(tuple(f'{f}=' for f in Sizes._fields))
    raise errors.UserError(f'{prefix}{error}' if field else str(error)) from (
        None)
  # DARTS' ImageNet stem has half of the channels in its first layer.
  if stem == 'imagenet' and space.family == 'darts' and sizes.channels % 2:
    raise errors.UserError(
        f'{prefix}channels={sizes.channels} must be even with the ImageNet '
        'stem')


def check_evaluator(space: Space, evaluator: str, where: str = '') -> None:
  """Checks that the supernet of a space has an evaluator.

  Args:
    space: the search space.
    evaluator: a name.
    where: what the message calls the section of the config; '' for none.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  known = get(space).evaluators
  if evaluator not in known:
    raise errors.UserError(
        f"{where and where + '.'}evaluator={evaluator!r} must be "
        f"{' or '.join(map(repr, known))} with space={space.name}"
        f'{errors.near_miss(evaluator, known)}')


def check_genotype(space: Space, genotype: genotypes.Genotype,
                   where: str) -> None:
  """Checks that a genotype fits the networks of a space.

  In the DARTS family operations and wiring are free, so that published cells
  of other spaces can be retrained; elsewhere the genotype must be one of the
  space.

  Raises:
    UserError: naming what does not fit.
  """
  genotypes.validate(genotype, where=where)
  types = genotypes.cell_types(genotype)
  if types != space.cell_types:
    raise errors.UserError(
        f'{where}: the genotype has the cells {", ".join(types)}, but '
        f'space={space.name} has {", ".join(space.cell_types)}')
  if space.family == 'darts':
    genotypes.validate(genotype, tuple(operations.OPS), where=where)
    return
  absent = {space.absent} - {'', *space.ops}
  genotypes.validate(genotype, (*space.ops, *absent), where=where)
  inner = space.num_nodes - (space.sites == 'nodes')
  if len(genotype.normal) != inner:
    raise errors.UserError(
        f'{where}: the genotype has {len(genotype.normal)} nodes, but '
        f'space={space.name} has {inner}')
  for i, node in enumerate(genotype.normal):
    _check_node(space, i, node, f'{where}: normal node {i + 1}')


def _check_node(space, i, node, where):
  """Refuses a node that reads what it may not, or by other operations."""
  start, stop = space.node_edges[i]
  may_read = [int(p) for p in space.edge_preds[start:stop]]
  preds = [pred for _, pred in node]
  every = space.absent or space.parents == 'previous'
  if len(set(preds)) < len(preds) or not set(preds) <= set(may_read) or (
      every and len(preds) < len(may_read)):
    raise errors.UserError(
        f'{where} reads {preds}; in space={space.name} it reads '
        f'{"each" if every else "some"} of {may_read} once')
  if space.sites == 'nodes':
    names = {op for op, _ in node}
    if len(names) > 1:
      raise errors.UserError(
          f'{where} has the operations {", ".join(sorted(names))}; in '
          f'space={space.name} a node has one')
    return
  for op, pred in node:
    allowed = space.site_ops('normal')[start + may_read.index(pred)]
    if op not in allowed and op != space.absent:
      raise errors.UserError(
          f'{where} has {op!r} where space={space.name} has '
          f'{", ".join(allowed)}')


def check_operations(space: Space) -> None:
  """Checks that a space's family knows all of its operations.

  Raises:
    UserError: naming the first that it does not know.
  """
  row = get(space)
  for name in (*space.ops, *filter(None, [space.absent])):
    if not row.knows(name):
      raise errors.UserError(
          f'space {space.name}: operation {name!r} is not known to '
          f'family={space.family}{errors.near_miss(name, operations.OPS)}')

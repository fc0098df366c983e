"""Cells of NAS-Bench-1Shot1 as wirings: what reads what, and how wide it is."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rome_jax import errors
from rome_jax.spaces import Sizes, Space, counting, genotypes

STACKS = 3
WIDTHS = ('search', 'nasbench101')
# How a cell's output takes the cell's input, if it reads that; see
# docs/nasbench1shot1.md.
ADDED, CONCATENATED = OUTPUT_INPUTS = ('added', 'concatenated')


def output_input(space: Space) -> str:
  """How outputs of a space take the cell's input: a name in OUTPUT_INPUTS.

  Raises:
    UserError: `space.layout` is neither () nor one of these names.

  >>> from rome_jax import spaces
  >>> output_input(spaces.SPACES['nasbench1shot1_1'])
  'added'
  """
  given = space.layout or (ADDED,)
  if len(given) != 1 or given[0] not in OUTPUT_INPUTS:
    raise errors.UserError(
        f'space {space.name}: layout={space.layout} must be () or one of '
        f'{", ".join(map(repr, OUTPUT_INPUTS))} in a tuple with '
        f'family={space.family}')
  return given[0]


def check_output_input(name: str) -> None:
  """Raises UserError for no name in OUTPUT_INPUTS."""
  if name not in OUTPUT_INPUTS:
    raise errors.UserError(
        f'output_input={name!r} must be one of {", ".join(OUTPUT_INPUTS)}'
        f'{errors.near_miss(name, OUTPUT_INPUTS)}')


def topologies(space: Space) -> Iterator[tuple[tuple[int, ...], ...]]:
  """All wirings: per node the states that it reads, the output's last.

  They include loose ends (inner nodes that nobody reads), as the authors'
  `generate_with_loose_ends` does: 180, 360 and 5,400 in the three spaces.

  >>> from rome_jax import spaces
  >>> next(topologies(spaces.SPACES['nasbench1shot1_1']))
  ((0,), (0, 1), (0, 1), (0, 1), (0, 1))
  """
  return itertools.product(*(
      itertools.combinations(range(b - a), degree)
      for (a, b), degree in zip(space.node_edges, space.in_degrees)))


def num_architectures(space: Space) -> int:
  """Topologies times operations.

  >>> from rome_jax import spaces
  >>> num_architectures(spaces.SPACES['nasbench1shot1_1'])
  14580
  """
  wirings = sum(1 for _ in topologies(space))
  return wirings * len(space.ops)**space.num_sites


def make_genotype(parents: Sequence[Sequence[int]],
                  node_ops: Sequence[str]) -> genotypes.Genotype:
  """The genotype of a wiring.

  Args:
    parents: the states that each inner node and, last, the output reads.
    node_ops: the name of each inner node's operation.

  >>> make_genotype([(0,), (0, 1)], ['conv_3x3'])
  Genotype(normal=((('conv_3x3', 0),),), normal_concat=(0, 1), reduce=(), \
reduce_concat=())
  """
  *inner, output = parents
  nodes = tuple(
      tuple((op, int(p)) for p in states)
      for op, states in zip(node_ops, inner, strict=True))
  return genotypes.Genotype(nodes, tuple(int(s) for s in output))


class Node(NamedTuple):
  """An inner node that the output depends on.

  Attributes:
    op: name of its operation.
    parents: the states it reads, in rising order.
    channels: its width.
  """

  op: str
  parents: tuple[int, ...]
  channels: int


def live_nodes(genotype: genotypes.Genotype, channels: int,
               widths: str) -> dict[int, Node]:
  """{state: node} of the nodes that the output depends on."""
  nodes, concat = read_wiring(genotype)
  alive = set(concat) - {0}
  for i in range(len(nodes), 0, -1):
    if i in alive:
      alive |= set(nodes[i - 1][1]) - {0}
  parents = {i: nodes[i - 1][1] for i in sorted(alive)}
  wide = _node_channels(parents, concat, channels, widths)
  return {i: Node(nodes[i - 1][0], parents[i], wide[i]) for i in parents}


def read_wiring(genotype: genotypes.Genotype) -> tuple[
    list[tuple[str, tuple[int, ...]]], tuple[int, ...]]:
  """([(operation, parents)] of the inner nodes, states of the output).

  Raises:
    UserError: the genotype has a reduction cell, or a node with several
      operations.
  """
  if genotype.reduce:
    raise errors.UserError(
        'the genotype has a reduction cell; all cells of NAS-Bench-1Shot1 '
        'are equal')
  nodes = []
  for i, node in enumerate(genotype.normal, start=1):
    names = sorted({op for op, _ in node})
    states = tuple(sorted(pred for _, pred in node))
    if len(names) > 1 or len(set(states)) < len(states):
      raise errors.UserError(
          f'genotype: normal node {i}={node} must have one operation, and '
          'each state that it reads once, in a space of operations on nodes')
    nodes.append((names[0], states))
  return nodes, tuple(sorted(genotype.normal_concat))


def _node_channels(parents, concat, channels, widths):
  """{state: channels}, by the rule that `widths` names.

  'search': all have C. 'nasbench101': the nodes that the output reads share
  C, the first ones take the remainder, and any other node has as many as its
  widest reader (`compute_vertex_channels`).
  """
  if widths == 'search':
    return dict.fromkeys(parents, channels)
  read = [i for i in concat if i]
  if channels < len(read):
    raise errors.UserError(
        f'channels={channels} must be at least {len(read)}, the nodes that '
        'the output reads, with widths=nasbench101')
  wide = {i: channels // len(read) + (place < channels % len(read))
          for place, i in enumerate(read)}
  for i in sorted(parents, reverse=True):
    if i not in wide:
      wide[i] = max(wide[j] for j in parents if i in parents[j])
  return wide


# ------------------------------------------------------------------- checks


def check(space: Space, sizes: Sizes) -> None:
  """Checks that networks of this space and size exist.

  Raises:
    UserError: naming the field that is wrong.
  """
  if (space.sites, space.num_inputs, space.parents, len(
      space.cell_types)) != ('nodes', 1, 'all', 1) or space.num_nodes < 2:
    raise errors.UserError(
        f'space {space.name}: family=nasbench1shot1 needs sites=nodes, '
        'num_inputs=1, parents=all, at least 2 nodes and one cell type')
  output_input(space)
  counting.integers(sizes)
  if sizes.cells < STACKS or sizes.cells % STACKS:
    raise errors.UserError(
        f'cells={sizes.cells} must be a multiple of {STACKS} with space '
        f'{space.name}')


def check_stem(stem: str) -> None:
  """Raises UserError for any stem but 'cifar'."""
  if stem != 'cifar':
    raise errors.UserError(
        f"stem={stem!r} must be 'cifar' in a network of NAS-Bench-1Shot1")


def checked(space: Space, sizes: Sizes, stem: str) -> Sizes:
  """The sizes as integers, once everything is found right."""
  check(space, sizes)
  check_stem(stem)
  return counting.checked(sizes, stem)


def check_widths(widths: str) -> None:
  """Raises UserError for no name in WIDTHS."""
  if widths not in WIDTHS:
    raise errors.UserError(
        f'widths={widths!r} must be one of {", ".join(WIDTHS)}'
        f'{errors.near_miss(widths, WIDTHS)}')

"""Which spaces have a complete table, and what it says of a genotype."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rome_jax.spaces import NASBENCH_MACRO, Space, genotypes
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.spaces.genotypes import Genotype
from rome_jax.tables import macro, nasbench201
from rome_jax.tables.table import Table


class Benchmark(NamedTuple):
  """A table of all architectures of a space.

  Attributes:
    title: as people call it.
    load: () -> the table.
    name_of: genotype -> text that the table takes.
    parse: (text, where) -> genotype; UserError names `where`.
    report: genotype -> what result.json says of it.
  """

  title: str
  load: Callable[[], Table]
  name_of: Callable[[Genotype], str]
  parse: Callable[[str, str], Genotype]
  report: Callable[[Genotype], dict[str, Any]]


def _parse_cell(text, where):
  # Digits are a code if there are six, else an index.
  index = text.isdecimal() and len(text) != len(forms.EDGES)
  return forms.to_genotype(forms.parse(int(text) if index else text, where))


def _parse_network(text, where):
  index = text.isdecimal() and len(text) != macro.NUM_BLOCKS
  return macro.to_genotype(macro.parse(int(text) if index else text, where))


NASBENCH201 = Benchmark('NAS-Bench-201', nasbench201.load, forms.to_string,
                        _parse_cell, nasbench201.report)
MACRO = Benchmark('NAS-Bench-Macro', macro.load, macro.from_genotype,
                  _parse_network, macro.report)


def of(space: Space) -> Benchmark | None:
  """The table of all architectures of a space; None if there is none.

  >>> from rome_jax import spaces
  >>> of(spaces.NASBENCH_MACRO).title, of(spaces.S0)
  ('NAS-Bench-Macro', None)
  """
  if forms.covers(space):
    return NASBENCH201
  same = (space.family, space.layout, space.num_nodes) == (
      NASBENCH_MACRO.family, NASBENCH_MACRO.layout, NASBENCH_MACRO.num_nodes)
  return MACRO if same and set(space.ops) <= set(macro.BLOCKS) else None


def read(text: str, space: Space | None) -> genotypes.Record:
  """A genotype in any form, in the code of a space's table too.

  Digits are a code or an index of the table of the space; of NAS-Bench-201
  where it is unknown.

  Args:
    text: as `nasbench201_forms.read` takes it.
    space: the search space, or None.

  Raises:
    UserError: it cannot be read.
  """
  if space is not None and of(space) is MACRO and text.isdecimal():
    return genotypes.Record(
        MACRO.parse(text, 'genotype'), {'space': space.name})
  return forms.read(text)


def accuracy(space: Space, genotype: Genotype, dataset: str) -> float | None:
  """The test accuracy that a space's table has of a genotype, as a share.

  Args:
    space: the search space.
    genotype: of the space.
    dataset: its name; one that the table lacks counts as CIFAR-10.

  Returns:
    None if the space has no table.
  """
  if (known := of(space)) is None:
    return None
  table = known.load()
  return table.query(known.name_of(genotype), (
      dataset if dataset in table.datasets else 'cifar10')) / 100

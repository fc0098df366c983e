"""NAS-Bench-Macro, complete: 6,561 chains of eight blocks on CIFAR-10.

X. Su et al., Prioritized Architecture Sampling with Monto-Carlo Tree Search,
CVPR 2021. A network is eight digits, one per block: 0 is the identity (a
strided 1x1 convolution where the block changes the size), 1 an MBConv with
kernel 3 and expansion 3, 2 an MBConv with kernel 5 and expansion 6. The blocks
form stages of 2, 3 and 3; the first block of each stage has stride 2.

A network can be given as the code '22212202', as its index (the code read in
base 3) or as eight integers.
"""

import functools
import numbers
import reprlib
from typing import Any

from rome_jax import errors
from rome_jax.spaces.genotypes import Genotype
from rome_jax.tables import table

FILE = 'macro.npz'
BLOCKS = ('identity', 'mbconv_k3_e3', 'mbconv_k5_e6')
STAGES = (2, 3, 3)
NUM_BLOCKS = sum(STAGES)
NUM_NETWORKS = len(BLOCKS) ** NUM_BLOCKS


def parse(network: Any, where: str = 'cell') -> tuple[int, ...]:
  """Reads a network in any of its forms.

  Returns:
    Eight integers from 0 to 2.

  Raises:
    UserError: it has none of these forms.

  >>> parse(5), parse('00000012')
  ((0, 0, 0, 0, 0, 0, 1, 2), (0, 0, 0, 0, 0, 0, 1, 2))
  """
  if isinstance(network, numbers.Integral) and not isinstance(network, bool):
    if not 0 <= network < NUM_NETWORKS:
      raise errors.UserError(
          f'{where}={network!r} must be an index of 0 to {NUM_NETWORKS - 1}')
    digits, number = [], int(network)
    for _ in range(NUM_BLOCKS):
      number, digit = divmod(number, len(BLOCKS))
      digits.append(digit)
    return tuple(reversed(digits))
  try:
    digits = [str(digit) for digit in network]
  except TypeError:
    digits = []
  if len(digits) != NUM_BLOCKS or set(digits) - set('012'):
    raise errors.UserError(
        f'{where}={reprlib.repr(network)} must be {NUM_BLOCKS} digits of 0 to '
        f'{len(BLOCKS) - 1}, or an index')
  return tuple(map(int, digits))


def to_code(network: Any) -> str:
  """Returns the code, eight digits."""
  return ''.join(map(str, parse(network)))


def to_index(network: Any) -> int:
  """Returns the code read in base 3, 0 to 6,560."""
  return int(to_code(network), len(BLOCKS))


def to_canonical(network: Any) -> str:
  """Returns the code under which the authors trained this network.

  An identity after the first block of a stage does nothing. The authors moved
  such identities to the end of the stage and trained each of the 3,969
  distinct networks once (`get_real_arch` in `train_benchmark.py`).

  >>> to_canonical('20102102')
  '20120120'
  """
  digits, code = to_code(network), ''
  for length in STAGES:
    first, rest = digits[0], digits[1:length].replace('0', '')
    code += (first + rest).ljust(length, '0')
    digits = digits[length:]
  return code


def from_genotype(genotype: Genotype) -> str:
  """The code of a genotype of the space `nasbench_macro`.

  Raises:
    UserError: it is none.

  >>> from_genotype(to_genotype('22212202'))
  '22212202'
  """
  names = [op for node in genotype.normal for op, _ in node]
  if len(names) != NUM_BLOCKS or not set(names) <= set(BLOCKS):
    raise errors.UserError(
        f'the genotype must have {NUM_BLOCKS} blocks of '
        f'{", ".join(BLOCKS)}, not {", ".join(names)}')
  return ''.join(str(BLOCKS.index(name)) for name in names)


def to_genotype(network: Any) -> Genotype:
  """The genotype of a network in the space `nasbench_macro`."""
  return Genotype(
      tuple(((BLOCKS[digit], i),) for i, digit in enumerate(parse(network))),
      (NUM_BLOCKS,), (), ())


def report(genotype: Genotype) -> dict[str, Any]:
  """What the table says about a genotype, a JSON object.

  Returns:
    table, code, num_cells, params; for the data set cifar10 the mean test
    accuracy of three trainings, rank, regret, the best such accuracy in the
    table and the multiply-adds.

  Raises:
    UserError: it is no network of NAS-Bench-Macro.

  >>> round(report(to_genotype('22212202'))['datasets']['cifar10']['test'], 1)
  92.7
  """
  known, code = load(), from_genotype(genotype)
  return {
      'table': known.name, 'code': code, 'string': code,
      'num_cells': known.size, 'params': int(known.cost(code, 'params')),
      'datasets': {'cifar10': {
          'test': known.query(code), 'rank': known.rank(code),
          'regret': known.regret(code), 'best_test': known.best().value,
          'macs': int(known.cost(code, 'flops'))}}}


@functools.cache
def load() -> table.Table:
  """Returns the table; reads it once and verifies its checksum.

  Raises:
    UserError: the package's file is missing or damaged.
  """
  return table.unpack(table.DATA / FILE, to_index, to_code)

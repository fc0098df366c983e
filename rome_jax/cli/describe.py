"""Describes a genotype: its cells as text, its size, its free operations.

  python -m rome_jax describe runs/c10/genotype.json --cells=20 --channels=36
  python -m rome_jax describe DARTS_V2 --stem=imagenet --json
  python -m rome_jax describe search/log.txt
  python -m rome_jax describe genotypes.py:MINE
  python -m rome_jax describe '|nor_conv_3x3~0|+|none~0|...'
  python -m rome_jax describe runs/own/genotype.json --config=my_search.py
  python -m rome_jax describe --list

The target is a run's genotype file, a text file with `Genotype(...)` in the
notation of DARTS (of a log, the last one; of a Python file, the one assigned
to a name), that text itself, a published name, or a string, code or index of
NAS-Bench-201. Cells of NAS-Bench-201 come with their row of the
benchmark's table. Nothing is run: the counts are exact and need no
accelerator. A mistake gives one sentence on stderr and exit code 2.
"""

import json
import sys

from rome_jax import cli, errors, spaces
from rome_jax.spaces import Sizes, Space, counting, genotypes
from rome_jax.tables import benchmarks

# Defaults of the flags: the papers' retrained networks, by family and stem.
# The first stem is the family's own. A chain of blocks has as many cells as
# its space has nodes.
RECIPES = {
    'darts': {
        'cifar': Sizes(cells=20, channels=36, num_classes=10),
        'imagenet': Sizes(
            cells=14, channels=48, num_classes=1000, image_size=224)},
    'nasbench201': {
        'cifar': Sizes(cells=15, channels=16, num_classes=10)},
    'nasbench1shot1': {
        'cifar': Sizes(cells=9, channels=16, num_classes=10)},
    'mobile': {
        'imagenet': Sizes(
            cells=21, channels=32, num_classes=1000, image_size=224),
        'cifar': Sizes(cells=21, channels=32, num_classes=10)},
    'nasbench_macro': {
        'cifar': Sizes(cells=8, channels=32, num_classes=10)},
}
_HELP = {
    'cells': 'number of cells',
    'channels': 'channels of the first normal cells',
    'num_classes': 'number of classes',
    'image_size': 'height and width of the images',
}


def _parser():
  parser = cli.Parser(
      prog='rome-jax describe', allow_abbrev=False,
      description='Draws and counts a genotype without running it.')
  parser.add_argument(
      'target', nargs='?', metavar='PATH|NAME',
      help='a genotype file or the name of a published genotype')
  parser.add_argument(
      '--space', help='the search space, which also decides on the network '
      f'around the cells ({", ".join(spaces.SPACES)}); a file of a run knows '
      'its own')
  parser.add_argument(
      '--config', metavar='FILE',
      help='a config file, run first for the operations and spaces of your '
      'own that it adds')
  parser.add_argument(
      '--stem', choices=counting.STEMS,
      help='cifar: for small images (the default except in mobile spaces); '
      'imagenet: strided')
  for name, text in _HELP.items():
    defaults = '; '.join(
        f'{family}, {stem}: {getattr(sizes, name)}'
        for family, stems in RECIPES.items()
        for stem, sizes in stems.items())
    parser.add_argument(
        f'--{name}', type=cli.at_least(1), metavar='N',
        help=f'{text} ({defaults})')
  parser.add_argument(
      '--image_channels', type=cli.at_least(1), metavar='N',
      help='1 for grey images, 3 for colour (default)')
  parser.add_argument(
      '--list', action='store_true', help='list the published genotypes')
  parser.add_argument('--json', action='store_true', help='print JSON')
  return parser


def _parse(argv):
  """Arguments; UserError for unknown flags."""
  args = cli.parse(_parser(), sys.argv[1:] if argv is None else argv)
  if args.target is None and not args.list:
    raise errors.UserError(
        'name a genotype file or a published genotype, or give --list')
  if args.target is not None and args.list:
    raise errors.UserError(
        f'--list takes no genotype, but {args.target!r} was given')
  return args


def _sizes(args, space):
  """(Sizes, stem) of the flags, the recipe's where a flag is not given."""
  # A user's own family has no recipe here, but its flags can be given.
  recipes = RECIPES.get(space and space.family, RECIPES['darts'])
  stem = args.stem or next(iter(recipes))
  if stem not in recipes:
    raise errors.UserError(
        f'--stem={stem} must be {" or ".join(recipes)} with '
        f'space={space.name}')
  recipe = recipes[stem]
  if space and space.parents == 'previous':
    recipe = recipe._replace(cells=space.num_nodes)
  given = {name: getattr(args, name) for name in Sizes._fields}
  return recipe._replace(**{
      name: value for name, value in given.items() if value is not None}), stem


def _find_space(args, record):
  """(space or None, its name or None).

  The space is the flag's, else the file's, else the first with such cells,
  else None (NASNet). A file may name a space that is not known here.

  Raises:
    UserError: the genotype is not of that space, or its network is unknown.
  """
  recorded = record.info.get('space')
  if not isinstance(recorded, (str, type(None))):
    raise errors.UserError(
        f'{args.target}: space={recorded!r} must be the name of a space')
  name = args.space or recorded
  if args.space is None and recorded not in spaces.SPACES:
    space = None if recorded else _fitting(record.genotype)
    if space is None:
      _check_free(args.target, record.genotype, recorded)
    return space, recorded or (space and space.name)
  space = spaces.get_space(name)
  where = f'{args.target} in space {name}'
  if space.family == 'darts':
    _check_cells(space, record.genotype, where)
    genotypes.validate(record.genotype, space.ops, where=where)
  else:
    _families().check_genotype(space, record.genotype, where)
  return space, name


def _fitting(genotype):
  """The first space with cells of such a size and such operations."""
  for space in spaces.SPACES.values():
    nodes = space.num_nodes - (space.sites == 'nodes')
    if (genotypes.cell_types(genotype) == space.cell_types
        and len(genotype.normal) == nodes
        and genotypes.used_ops(genotype) <= set(space.ops)):
      return space
  return None


def _check_free(target, genotype, recorded):
  """Refuses a genotype of no known space that DARTS' network cannot hold."""
  unknown = sorted(genotypes.used_ops(genotype) - set(counting.OP_COUNTS))
  if recorded and (unknown or not genotype.reduce):
    raise errors.UserError(
        f'{target}: space={recorded!r} is unknown here; name the file that '
        'adds it with --config=FILE')
  if not genotype.reduce:
    raise errors.UserError(
        f'{target}: the genotype has one cell, as in no known space with '
        'these operations; name its space with --space')
  genotypes.validate(genotype, tuple(counting.OP_COUNTS), where=target)


def _check_cells(space, genotype, where):
  types = genotypes.cell_types(genotype)
  if types != space.cell_types:
    raise errors.UserError(
        f'{where}: the genotype has the cells {", ".join(types)}, but the '
        f'space has {", ".join(space.cell_types)}')


def _families():
  # Imported late: it loads JAX, which DARTS' networks do not need here.
  from rome_jax import families
  return families


def _count(space, genotype, sizes, stem):
  if space is None or space.family == 'darts':
    return counting.count(genotype, sizes, stem)
  return _families().get(space).count(space, genotype, sizes, stem)


def summary(record: genotypes.Record, space: Space | None, sizes: Sizes,
            stem: str) -> dict:
  """Counts a genotype; the result is a JSON object.

  Args:
    record: the genotype and its origin.
    space: its `Space`, which decides on the network; None means DARTS'.
    sizes: of the network.
    stem: 'cifar' or 'imagenet'.
  """
  genotype = record.genotype
  count = _count(space, genotype, sizes, stem)
  values = {**sizes._asdict(), 'stem': stem, 'params': count.params,
            'macs': count.macs}
  if space is None or space.family == 'darts':
    values['auxiliary_params'] = counting.auxiliary_params(
        genotype, sizes, stem)
  values |= {
      'parameterless': genotypes.parameterless(genotype, space),
      'genotype': genotypes.to_json(genotype),
      'text': genotypes.to_text(genotype),
      'info': record.info,
      'parts': [
          {'name': name, **cost._asdict()} for name, cost in count.parts]}
  known = space and benchmarks.of(space)
  if known:
    values['table'] = known.report(genotype)
  return values


def draw(genotype: genotypes.Genotype, space: Space | None = None) -> str:
  """Draws the cells as text, a line per node.

  Args:
    genotype: the value.
    space: its `Space`; where nodes hold the operations, an operation is
      applied to the sum of what its node reads.

  >>> print(draw(genotypes.Genotype(
  ...     ((('skip_connect', 0),), (('conv', 0), ('conv', 1))), (2,))))
  cell
    node 1 = skip_connect(cell k-1)
    node 2 = conv(cell k-1) + conv(node 1)
    output = node 2
  """
  if space is not None and space.parents == 'previous':
    return '\n'.join(['blocks', *(
        f'  block {i} = {node[0][0]}'
        for i, node in enumerate(genotype.normal))])
  by_node = space is not None and space.sites == 'nodes'
  inputs = ('cell k-2', 'cell k-1')[-genotype.num_inputs:]

  def state(index):
    return inputs[index] if index < len(inputs) else f'node {index}'

  lines = []
  for cell, title in _titles(genotype).items():
    nodes, concat = genotypes.cell_of(genotype, cell)
    lines.append(title)
    for i, node in enumerate(nodes, start=len(inputs)):
      terms = ' + '.join(state(pred) for _, pred in node)
      terms = f'{node[0][0]}({terms})' if by_node else ' + '.join(
          f'{op}({state(pred)})' for op, pred in node)
      lines.append(f'  {state(i)} = {terms}')
    output = ', '.join(map(state, concat))
    lines.append('  output = ' + (
        output if len(concat) == 1 else f'concat({output})'))
  return '\n'.join(lines)


def _titles(genotype):
  """{cell type: what it is called}."""
  if not genotype.reduce:
    return {'normal': 'cell'}
  return {'normal': 'normal cell', 'reduce': 'reduction cell'}


def _text(target, space, name, record, values):
  """The report for people."""
  names = genotypes.operations(record.genotype, space)
  free = ', '.join(
      f'{values["parameterless"][cell]} of {len(names[cell])} in the {title}'
      for cell, title in _titles(record.genotype).items())
  origin = ', '.join(
      f'{key} {record.info[key]}'
      for key in ('source', 'method', 'dataset', 'seed', 'step')
      if record.info.get(key) is not None)
  size, auxiliary = values['image_size'], values.get('auxiliary_params')
  return '\n'.join([
      f'{target}' + (f' ({origin})' if origin else ''),
      f'space: {name or "of its own"}', '',
      draw(record.genotype, space), '',
      f'network: {values["cells"]} cells, {values["channels"]} channels, '
      f'{values["stem"]} stem, {values["num_classes"]} classes, '
      f'{size}x{size}x{values["image_channels"]} images',
      f'parameters: {values["params"]:,}' + (
          '' if auxiliary is None else f' (auxiliary head: {auxiliary:,} '
          'more)'),
      f'multiply-adds: {values["macs"]:,} ({values["macs"] / 1e6:.2f}M)',
      f'parameterless operations: {free}', '',
      *_table_lines(values.get('table')),
      values['text']])


def _table_lines(table):
  """What the benchmark's table says about the cell."""
  if table is None:
    return []
  lines = [f'{table["table"]}: ' + ', '.join(
      f'{key} {table[key]}' for key in ('index', 'code') if key in table)
           + f', {table["string"]}' * (table['string'] != table['code'])]
  after = ' after 200 epochs' if 'index' in table else ''
  lines += [
      f'  {name}: {row["test"]:.2f}% test accuracy{after}, rank '
      f'{row["rank"]} of '
      f'{table["num_cells"]}, regret {row["regret"]:.2f}'
      for name, row in table['datasets'].items()]
  return [*lines, '']


def _list(sizes, stem, as_json):
  """All published genotypes with their counts at one size."""
  rows = []
  for name, (genotype, source) in genotypes.PUBLISHED.items():
    count = counting.count(genotype, sizes, stem)
    rows.append({
        'name': name, 'params': count.params, 'macs': count.macs,
        'source': source})
  if as_json:
    return json.dumps(rows, indent=2)
  width = max(len(row['name']) for row in rows)
  lines = [
      f'{row["name"]:{width}} {row["params"]:>11,} {row["macs"] / 1e6:>8.2f}M'
      f'  {row["source"]}' for row in rows]
  return '\n'.join([
      f'{"name":{width}} {"parameters":>11} {"mult-adds":>9}  source', *lines])


def _report(args):
  if args.config is not None:
    from rome_jax.config import command_line  # Takes a while to import.
    command_line.load([f'--config={args.config}'])
  if args.list:
    return _list(*_sizes(args, None), args.json)
  record = benchmarks.read(args.target, spaces.SPACES.get(args.space or ''))
  space, name = _find_space(args, record)
  complaint = genotypes.complaint(record.genotype)
  if complaint:
    print(f'warning: {complaint}', file=sys.stderr)
  values = summary(record, space, *_sizes(args, space))
  if args.json:
    return json.dumps(
        {'target': args.target, 'space': name, **values}, indent=2)
  return _text(args.target, space, name, record, values)


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code: 0, or 2 for a mistake."""
  try:
    print(_report(_parse(argv)))
    return cli.printed()
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code

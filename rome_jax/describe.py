"""Describes a genotype: its cells as text, its size, its free operations.

  python -m rome_jax.describe runs/c10/genotype.json --cells=20 --channels=36
  python -m rome_jax.describe DARTS_V2 --stem=imagenet --json
  python -m rome_jax.describe --list

The target is a run's genotype file, a text file with `Genotype(...)` in the
notation of DARTS, that text itself, or a published name. Nothing is run: the
counts are exact and need no accelerator. A mistake is one sentence on stderr
and exit code 2.
"""

import argparse
import json
import sys

from rome_jax import counting, errors, genotypes, spaces

# The evaluation networks of DARTS: what a flag is when it is not given.
RECIPES = {
    'cifar': dict(cells=20, channels=36, num_classes=10, image_size=32),
    'imagenet': dict(cells=14, channels=48, num_classes=1000, image_size=224),
}
_HELP = {
    'cells': 'number of cells',
    'channels': 'channels of the first normal cells',
    'num_classes': 'number of classes',
    'image_size': 'height and width of the images',
}
_CELL_TITLES = {'normal': 'normal cell', 'reduce': 'reduction cell'}


class _Parser(argparse.ArgumentParser):

  def error(self, message):
    raise errors.UserError(message)


def _at_least_one(text):
  try:
    value = int(text)
  except ValueError:
    value = 0
  if value < 1:
    raise argparse.ArgumentTypeError(
        f'{text!r} must be an integer of at least 1')
  return value


def _parser():
  parser = _Parser(
      prog='python -m rome_jax.describe', allow_abbrev=False,
      description='Draws and counts a genotype without running it.')
  parser.add_argument(
      'target', nargs='?', metavar='PATH|NAME',
      help='a genotype file or the name of a published genotype')
  parser.add_argument(
      '--space', help='check that the operations are of this search space '
      f'({", ".join(spaces.SPACES)}); a file of a run knows its own')
  parser.add_argument(
      '--stem', choices=counting.STEMS, default='cifar',
      help='cifar: 3x3, stride 1 (default); imagenet: three strided 3x3')
  for name, text in _HELP.items():
    defaults = '; '.join(f'{stem}: {RECIPES[stem][name]}' for stem in RECIPES)
    parser.add_argument(
        f'--{name}', type=_at_least_one, metavar='N',
        help=f'{text} ({defaults})')
  parser.add_argument(
      '--image_channels', type=_at_least_one, metavar='N', default=3,
      help='1 for grey images, 3 for colour (default)')
  parser.add_argument(
      '--list', action='store_true', help='list the published genotypes')
  parser.add_argument('--json', action='store_true', help='print JSON')
  return parser


def _parse(argv):
  """Arguments with the recipe filled in; UserError for unknown flags."""
  parser = _parser()
  args, unknown = parser.parse_known_args(argv)
  if unknown:
    flags = [f'--{name}' for name in vars(args) if name != 'target']
    name = unknown[0].split('=')[0]
    raise errors.UserError(
        f'unknown argument {unknown[0]!r}{errors.near_miss(name, flags)}')
  for name, value in RECIPES[args.stem].items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  if args.target is None and not args.list:
    raise errors.UserError(
        'name a genotype file or a published genotype, or give --list')
  if args.target is not None and args.list:
    raise errors.UserError(
        f'--list takes no genotype, but {args.target!r} was given')
  return args


def _space_name(args, record):
  """Name of the space, once the operations are known to be of it.

  The space is the flag's, else the file's, else s0 if that has all the
  operations, else None (NASNet).
  """
  recorded = record.info.get('space')
  if not isinstance(recorded, (str, type(None))):
    raise errors.UserError(
        f'{args.target}: space={recorded!r} must be the name of a space')
  if args.space is not None:
    space = spaces.get_space(args.space)
  elif recorded is not None and recorded not in spaces.SPACES:
    return recorded  # A space of the user's own, unknown here.
  else:
    space = spaces.SPACES[recorded or 's0']
    used = genotypes.used_ops(record.genotype)
    if recorded is None and not used <= set(space.ops):
      return None
  genotypes.validate(
      record.genotype, space.ops, where=f'{args.target} in space {space.name}')
  return space.name


def summary(record: genotypes.Record, **sizes) -> dict:
  """Counts of a genotype as a JSON object.

  Args:
    record: the genotype and its origin.
    **sizes: `cells`, `channels` and more arguments of `counting.count`.
  """
  count = counting.count(record.genotype, **sizes)
  auxiliary = counting.auxiliary_params(record.genotype, **{
      name: sizes[name]
      for name in ('cells', 'channels', 'num_classes', 'stem')})
  return {
      **sizes,
      'params': count.params,
      'macs': count.macs,
      'auxiliary_params': auxiliary,
      'parameterless': genotypes.parameterless(record.genotype),
      'genotype': genotypes.to_json(record.genotype),
      'text': genotypes.to_text(record.genotype),
      'info': record.info,
      'parts': [
          {'name': name, **cost._asdict()} for name, cost in count.parts],
  }


def draw(genotype: genotypes.Genotype) -> str:
  """Both cells as text, a line per node."""

  def state(index):
    return ('cell k-2', 'cell k-1')[index] if index < 2 else f'node {index}'

  lines = []
  for cell in spaces.CELL_TYPES:
    lines.append(_CELL_TITLES[cell])
    for i, node in enumerate(getattr(genotype, cell), start=2):
      inputs = ' + '.join(f'{op}({state(pred)})' for op, pred in node)
      lines.append(f'  {state(i)} = {inputs}')
    concat = ', '.join(map(state, getattr(genotype, f'{cell}_concat')))
    lines.append(f'  output = concat({concat})')
  return '\n'.join(lines)


def _text(target, space, record, values):
  """The report for people."""
  totals = {
      cell: sum(map(len, getattr(record.genotype, cell)))
      for cell in spaces.CELL_TYPES}
  free = ', '.join(
      f'{values["parameterless"][cell]} of {totals[cell]} in the {title}'
      for cell, title in _CELL_TITLES.items())
  origin = ', '.join(
      f'{key} {value}' for key, value in record.info.items()
      if key in ('source', 'seed', 'step'))
  size = values['image_size']
  return '\n'.join([
      f'{target}' + (f' ({origin})' if origin else ''),
      f'space: {space or "of its own"}', '',
      draw(record.genotype), '',
      f'network: {values["cells"]} cells, {values["channels"]} channels, '
      f'{values["stem"]} stem, {values["num_classes"]} classes, '
      f'{size}x{size}x{values["image_channels"]} images',
      f'parameters: {values["params"]:,} '
      f'(auxiliary head: {values["auxiliary_params"]:,} more)',
      f'multiply-adds: {values["macs"]:,} ({values["macs"] / 1e6:.2f}M)',
      f'parameterless operations: {free}', '',
      values['text']])


def _list(sizes, as_json):
  """All published genotypes with their counts at one size."""
  rows = []
  for name, (genotype, source) in genotypes.PUBLISHED.items():
    count = counting.count(genotype, **sizes)
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
  sizes = {
      name: getattr(args, name)
      for name in (*_HELP, 'image_channels', 'stem')}
  if args.list:
    return _list(sizes, args.json)
  record = genotypes.read(args.target)
  space = _space_name(args, record)
  values = summary(record, **sizes)
  if args.json:
    return json.dumps(
        {'target': args.target, 'space': space, **values}, indent=2)
  return _text(args.target, space, record, values)


def main(argv=None) -> int:
  """Runs the command; returns the exit code: 0, or 2 for a mistake."""
  try:
    print(_report(_parse(argv)))
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main())

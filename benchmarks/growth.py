"""The cost of growth: the search step against each of its sizes.

  python -m benchmarks.growth [--json] [--out=FILE] [--limit-seconds=N]
      [--axes=k,cells,channels,batch,ops] [--repeats=5]

One size at a time moves away from a base point (K = 4, 8 cells, 16 channels,
batch 64, 7 operations); every point is a process of its own and measures what
`benchmarks.search_step` does:

  trace_seconds, compile_seconds   cold; compiling includes tracing.
  temp_bytes                       temporary memory of the complete step.
  step_seconds                     median over the repeats.

`ops` is the number of candidate operations, the first so many of ORDER: 7 are
S0. The dearest two in memory are in every set, so that what is left is the
cost of choosing among more; theta, which grows with the operations in any
method, is not temporary, its gradient is. The time of a step is that of the
operations it happens to sample, so it moves with their mean.
"""

import sys

from benchmarks import grid, search_step
from rome_jax import spaces
from rome_jax.config import checks, fields
from rome_jax.engine import operations

# Operations of one's own, see docs/own_space.md.
FURTHER = {
    'sep_conv_1x1': lambda c: operations.Separable(1, (c.stride, 1), c.norm),
    'dil_conv_1x1': lambda c: operations.Separable(1, (c.stride,), c.norm, 2),
    'sep_dil_conv_3x3': lambda c: operations.Separable(
        3, (c.stride, 1), c.norm, 2)}
ORDER = ('dil_conv_5x5', 'sep_conv_5x5', 'max_pool_3x3', 'skip_connect',
         'avg_pool_3x3', 'sep_conv_3x3', 'dil_conv_3x3', 'none', 'noise',
         'nor_conv_1x1', 'nor_conv_3x3', *FURTHER)
BASE = {'k': 4, 'cells': 8, 'channels': 16, 'batch': 64, 'ops': 7}
AXES = {'k': (1, 2, 4, 7, 14), 'cells': (2, 5, 8, 14, 20),
        'channels': (4, 8, 16, 32), 'batch': (16, 64, 256),
        'ops': (2, 4, 7, 14)}
_QUICK_BASE = {'k': 1, 'cells': 1, 'channels': 2, 'batch': 2, 'ops': 2}
_COLUMNS = {**dict.fromkeys(BASE, 'd'), 'trace_seconds': '.1f',
            'compile_seconds': '.1f', 'temp_bytes': ',d',
            'step_seconds': '.3f'}


def space_of(count: int) -> spaces.Space:
  """The DARTS cell with the first `count` operations of ORDER."""
  return spaces.Space('growth', ORDER[:count])


def _config(cell):
  config = fields.defaults()
  config.image_size = cell['image_size']
  config.search.update(
      cells=cell['cells'], channels=cell['channels'],
      batch_size=cell['batch'], k=cell['k'], samples=cell['parallel'])
  checks.validate(config)
  return config


def measure(cell: dict) -> dict:
  """The row of a cell, see the module's docstring."""
  keys = ('trace_seconds', 'compile_seconds', 'temp_bytes', 'step_seconds')
  row = {**cell, **dict.fromkeys(keys), **grid.environment(), 'error': None}
  config = _config(cell)
  operations.OPS.update(FURTHER)
  with search_step.lack_of_memory_in(row):
    problem = search_step.make_problem(space_of(cell['ops']), config)
    search_step.fill_step(row, problem, config, cell['repeats'])
  return row


def make_cells(args) -> list[dict]:
  """The base point, then every axis away from it."""
  grid.check_names('axes', args.axes, AXES)
  base, fixed = BASE, {'image_size': args.image_size}
  axes = {name: AXES[name] for name in args.axes}
  if args.quick:
    base, fixed = _QUICK_BASE, {'image_size': 4}
    axes = {'k': (2,), 'ops': (4,)}
  fixed |= {'parallel': args.parallel,
            'repeats': 1 if args.quick else args.repeats}
  points = [base] + [{**base, name: value} for name, values in axes.items()
                     for value in values if value != base[name]]
  cells = [{**point, **fixed} for point in points]
  for cell in cells:
    _config(cell)
  return cells


def _parse(argv):
  parser = grid.parser('benchmarks.growth', __doc__)
  parser.add_argument('--axes', type=grid.names, default=list(AXES))
  parser.add_argument('--parallel', default='scan')
  for name, default in (('image-size', 32), ('repeats', 5)):
    parser.add_argument(f'--{name}', type=int, default=default)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; see `grid.run` for the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return grid.run(
      'benchmarks.growth', _parse(argv), argv, make_cells, measure,
      lambda rows: grid.text_table(rows, _COLUMNS))


if __name__ == '__main__':
  sys.exit(main())

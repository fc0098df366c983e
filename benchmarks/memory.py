"""The memory table of the paper (ROME, Table 3), from this code.

  python -m benchmarks.memory [--json] [--out=FILE] [--limit-seconds=N]
      [--columns=darts,gdas,pc_darts_k4,pc_darts_k2,rome] [--batch=64] ...

One row per column of that table, batch 64, 8 cells, 16 channels: DARTS and
PC-DARTS as plain autodiff over all operations (`benchmarks.mixed`), GDAS (K =
1) and ROME (K = 7) by the engine; each the complete first order search step,
architecture and weights.

  temp_bytes      of the compiled step on this backend: buffers beside its
                  arguments and results.
  argument_bytes  weights, architecture, optimisers' states and both batches.
  theta_bytes     the weights among them.
  peak_bytes      the most that the device had in use after two steps; null
                  where the backend does not count it (the CPU).

On the CPU nothing is run, so that DARTS needs no machine that could hold it;
LLVM's optimisations, which leave the buffers as they are, are off, and all
columns have JAX's own kernels, as on other backends, instead of those that a
search has on a CPU (`mixed.stock_kernels`): with those DARTS would take hours
to compile. So the columns compare with each other, and not with the temporary
memory of `benchmarks.search_step`. The paper's figures are those of PyTorch
on a GPU, its allocator's blocks and cuDNN's workspace included.
"""

import sys

import jax

from benchmarks import grid, mixed, search_step
from rome_jax import spaces
from rome_jax.config import fields
from rome_jax.families import darts
from rome_jax.methods import table

# {column: (method or channels that pass by, K, GB in the paper)}
COLUMNS = {
    'darts': (1, 1, 9.4), 'gdas': ('gdas', 1, 3.1),
    'pc_darts_k4': (4, 1, 3.7), 'pc_darts_k2': (2, 1, 5.7),
    'rome': ('rome_v2', 7, 2.3)}
SIZES = ('cells', 'channels', 'batch', 'image_size')
_SHOWN = {'column': '', 'compile_seconds': '.1f', 'temp_bytes': ',d',
          'argument_bytes': ',d', 'theta_bytes': ',d', 'peak_bytes': ',d',
          'paper_bytes': ',.0f'}


def make_step(column: str, cells: int, channels: int, batch: int,
              image_size: int):
  """(problem, the step, the state before it) of a column."""
  kind, k, _ = COLUMNS[column]
  config = fields.defaults()
  config.search.update(k=k, samples='scan')
  if kind in table.METHODS:
    network = darts.Supernet(
        spaces.S0, cells, channels, search_step.NUM_CLASSES)
    problem = search_step.problem_of(
        network, table.METHODS[kind], batch, image_size)
    return problem, *search_step.make_step(problem, config)
  network = mixed.MixedSupernet(
      mixed.SPACE, cells, channels, search_step.NUM_CLASSES, kind)
  problem = mixed.make_problem(network, batch, image_size)
  return problem, *mixed.make_step(problem, config)


def compile_step(problem, step, state):
  """(compiled, seconds); its memory is that of the optimised program."""
  options = {}
  if jax.default_backend() == 'cpu':
    options['compiler_options'] = {'xla_backend_optimization_level': 0}
  with mixed.stock_kernels():
    compiled, _, seconds = search_step.compile_cold(
        step, state, *problem.batches, donate_argnums=0, **options)
  return compiled, seconds


def peak_bytes() -> int | None:
  """The most that the first device had in use; None where it is unknown."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use')


def measure(cell: dict) -> dict:
  """The row of a cell, see the module's docstring."""
  problem, step, state = make_step(
      cell['column'], *(cell[name] for name in SIZES))
  compiled, seconds = compile_step(problem, step, state)
  memory = compiled.memory_analysis()
  row = {
      **cell, 'paper_bytes': 1e9 * COLUMNS[cell['column']][2],
      'compile_seconds': seconds, 'temp_bytes': memory.temp_size_in_bytes,
      'argument_bytes': memory.argument_size_in_bytes,
      'theta_bytes': sum(
          leaf.nbytes for leaf in jax.tree.leaves(problem.theta)),
      'peak_bytes': None, **grid.environment(), 'error': None}
  if jax.default_backend() != 'cpu':
    with search_step.lack_of_memory_in(row):
      search_step.check_memory(compiled)
      search_step.time_step(compiled, state, problem.batches, 1)
      row['peak_bytes'] = peak_bytes()
  return row


def make_cells(args) -> list[dict]:
  """The columns asked for."""
  grid.check_names('columns', args.columns, COLUMNS)
  sizes = {name: getattr(args, name) for name in SIZES}
  columns = args.columns
  if args.quick:
    columns = ['darts', 'rome']
    sizes = {'cells': 1, 'channels': 4, 'batch': 2, 'image_size': 8}
  return [{'column': column, **sizes} for column in columns]


def _parse(argv):
  parser = grid.parser('benchmarks.memory', __doc__)
  parser.add_argument('--columns', type=grid.names, default=list(COLUMNS))
  for name, default in (('cells', 8), ('channels', 16), ('batch', 64),
                        ('image-size', 32)):
    parser.add_argument(f'--{name}', type=int, default=default)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; see `grid.run` for the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return grid.run(
      'benchmarks.memory', _parse(argv), argv, make_cells, measure,
      lambda rows: grid.text_table(rows, _SHOWN))


if __name__ == '__main__':
  sys.exit(main())

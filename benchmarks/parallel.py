"""Ways of evaluating K architectures: time and memory over K and the batch.

  python -m benchmarks.parallel [--json] [--out=FILE] [--limit-seconds=N]
      [--ways=scan,vmap,devices] [--k=1,4,7,14] [--batch=64,256,1024] ...

Ways are those of `rome_jax.engine.sums.WAYS` and `devices`: one sample per
device (`mesh.sample` = K). On the CPU these are forced devices that share the
cores and the memory of one machine: a test of the form, not of its speed.

One row per cell, each in a process of its own:

  compile_seconds   tracing and compiling the complete search step, cold.
  temp_bytes        its temporary memory, of all `devices` together.
  gradient_seconds  loss and gradient with respect to theta, summed over K
                    architectures: the median, per architecture and image.
                    All cells evaluate the same architectures in groups of K.

A cell that needs more memory than there is, or longer than the limit, is
recorded as such and not run.
"""

import sys

import jax

from benchmarks import grid, search_step, timing
from rome_jax import errors, spaces
from rome_jax.config import checks, fields
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import sums

DEVICES = 'devices'
WAYS = (*sums.WAYS, DEVICES)
COLUMNS = {'way': '', 'k': 'd', 'batch': 'd', 'compile_seconds': '.1f',
           'temp_bytes': ',d', 'gradient_seconds': '.2e'}


def _config(cell):
  config = fields.defaults()
  config.method, config.image_size = cell['method'], cell['image_size']
  config.search.update(
      cells=cell['cells'], channels=cell['channels'],
      batch_size=cell['batch'], k=cell['k'],
      samples='scan' if cell['way'] == DEVICES else cell['way'])
  checks.validate(config)
  return config


def _placed(mesh, *trees):
  """The trees, on every device of the mesh."""
  if mesh is None:
    return trees
  return mesh_lib.place(trees, mesh_lib.replicated(mesh))


def _compile(row, mesh, function, *args, **options):
  """Compiles, or raises NotEnoughMemory; (compiled, seconds, bytes)."""
  compiled, _, seconds = search_step.compile_cold(
      function, *_placed(mesh, *args), **options)
  temp = compiled.memory_analysis().temp_size_in_bytes * row['devices']
  return compiled, seconds, temp


def _fill(row, config):
  mesh = None
  if row['devices'] > 1:
    mesh = mesh_lib.make_mesh(data=1, sample=row['devices'])
  problem = search_step.make_problem(spaces.get_space(row['space']), config)
  update, state = search_step.make_step(problem, config, mesh)
  step, row['compile_seconds'], row['temp_bytes'] = _compile(
      row, mesh, update, state, *problem.batches, donate_argnums=0)
  search_step.check_memory(step, row['devices'])
  del step, state
  groups = search_step.sample_groups(problem, config, row['architectures'])
  gradient, _, _ = _compile(
      row, mesh,
      search_step.make_gradient(problem, config.search.samples, mesh),
      problem.theta, groups[0], problem.batches[0])
  search_step.check_memory(gradient, row['devices'])
  theta, batch, *groups = _placed(
      mesh, problem.theta, problem.batches[0], *groups)

  def all_groups():
    for group in groups:
      jax.block_until_ready(gradient(theta, group, batch))

  seconds = timing.interleaved({'ours': all_groups}, row['repeats'])
  samples = len(groups) * config.search.k
  row['gradient_seconds'] = (
      seconds['ours']['median'] / (samples * config.search.batch_size))


def measure(cell: dict) -> dict:
  """The row of a cell, see the module's docstring."""
  row = {**cell, 'compile_seconds': None, 'temp_bytes': None,
         'gradient_seconds': None, **grid.environment(), 'error': None}
  with search_step.lack_of_memory_in(row):
    _fill(row, _config(cell))
  return row


def make_cells(args) -> list[dict]:
  """Every way, K and batch asked for; quick cells for `--quick`."""
  sizes = {'cells': args.cells, 'channels': args.channels,
           'image_size': args.image_size, 'space': args.space,
           'method': args.method, 'repeats': args.repeats,
           'architectures': args.architectures}
  ks, batches = args.k, args.batch
  if args.quick:
    ks, batches = [2], [2]
    sizes |= {'cells': 1, 'channels': 2, 'image_size': 4, 'space': 's2',
              'repeats': 1, 'architectures': 1}
  grid.check_names('ways', args.ways, WAYS)
  if min(ks) < 1:
    raise errors.UserError(f'--k={min(ks)} must be at least 1')
  cells = [
      {'way': way, 'k': k, 'batch': batch,
       'devices': k if way == DEVICES else 1, **sizes}
      for batch in batches for k in ks for way in args.ways
      if (way, k) != (DEVICES, 1)]  # which is `scan`
  spaces.get_space(sizes['space'])
  for cell in cells:
    _config(cell)
  return cells


def _parse(argv):
  parser = grid.parser('benchmarks.parallel', __doc__)
  parser.add_argument('--ways', type=grid.names, default=list(WAYS))
  parser.add_argument('--k', type=grid.numbers, default=[1, 4, 7, 14])
  parser.add_argument('--batch', type=grid.numbers, default=[64, 256, 1024])
  for name, default in (('cells', 8), ('channels', 16), ('image-size', 32),
                        ('repeats', 3), ('architectures', 14)):
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--space', default='s0')
  parser.add_argument('--method', default='rome_v2')
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; see `grid.run` for the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return grid.run(
      'benchmarks.parallel', _parse(argv), argv, make_cells, measure,
      lambda rows: grid.text_table(rows, COLUMNS))


if __name__ == '__main__':
  sys.exit(main())

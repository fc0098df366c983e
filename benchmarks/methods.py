"""One row per method: time, memory and compile time of its whole step.

  python -m benchmarks.methods [--json] [--methods=rome_v2,darts] [--batch=64]
      [--cells=8] [--channels=16] [--image-size=32] [--repeats=3] [--no-time]

The step is the method's own: every update of its row with the K of its recipe
(7 for ROME), float32, S0, optimisers and all, on random images. `temp_bytes`
is XLA's temporary memory, beside weights, optimiser state and images. All
methods run at one batch size, so that rows compare; PC-DARTS searches with
256 in its paper.
"""

import argparse
import json
import sys

import jax

from benchmarks import grid, search_step
from rome_jax import errors, families, spaces
from rome_jax.config import checks, fields
from rome_jax.methods import METHODS

MEASURED = ('trace_seconds', 'compile_seconds', 'temp_bytes', 'step_seconds')


def _config(args, name):
  """The validated config of a method's recipe at the sizes asked for."""
  config = fields.defaults()
  config.method = name
  checks.apply_recipe(config)
  config.search.update(
      cells=args.cells, channels=args.channels, batch_size=args.batch,
      samples='scan')
  checks.validate(config)
  return config


def measure(args, name: str) -> dict:
  """The row of one method; `error` is None or says what was not run."""
  config, method, space = _config(args, name), METHODS[name], spaces.S0
  row = {'method': name, 'k': config.search.k, 'batch': args.batch,
         'updates': len(method.updates), 'partial': method.partial,
         **dict.fromkeys(MEASURED), 'cells': args.cells,
         'channels': args.channels, 'image_size': args.image_size,
         'space': space.name, **grid.environment(), 'error': None}
  network = families.supernet(
      space, spaces.Sizes(args.cells, args.channels, search_step.NUM_CLASSES,
                          args.image_size), partial=method.partial)
  problem = search_step.problem_of(
      network, method, args.batch, args.image_size)
  with search_step.lack_of_memory_in(row):
    step, state = search_step.make_step(problem, config)
    compiled, row['trace_seconds'], row['compile_seconds'] = (
        search_step.compile_cold(
            step, state, *problem.batches, donate_argnums=0))
    row['temp_bytes'] = compiled.memory_analysis().temp_size_in_bytes
    search_step.check_memory(compiled)
    if not args.no_time:
      row['step_seconds'] = search_step.time_step(
          compiled, state, problem.batches, args.repeats)
  return row


def _table(rows):
  lines = [f'{"method":10} {"K":>2} {"compile":>8} {"memory":>9} {"step":>8}']
  for row in rows:
    step = (f'{row["step_seconds"]:7.2f}s' if row['step_seconds']
            else f'{"-":>8}')
    lines.append(
        f'{row["method"]:10} {row["k"]:2d} {row["compile_seconds"]:7.1f}s '
        f'{row["temp_bytes"] / 1e6:6.0f} MB {step}')
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.methods', description=__doc__.splitlines()[0])
  parser.add_argument('--json', action='store_true', help='print JSON')
  parser.add_argument('--no-time', action='store_true',
                      help='compile only: memory and compile time')
  parser.add_argument('--methods', type=grid.names, default=list(METHODS),
                      help='names, comma-separated')
  for name, default in (('batch', 64), ('cells', 8), ('channels', 16),
                        ('image-size', 32), ('repeats', 3)):
    parser.add_argument(f'--{name}', type=int, default=default)
  args = parser.parse_args(argv)
  try:
    grid.check_names('methods', args.methods, METHODS)
    grid.check_counts(args, 'image_size', 'repeats')
    jax.config.update('jax_enable_compilation_cache', False)
    rows = []
    for name in args.methods:
      rows.append(measure(args, name))
      print(_table(rows[-1:]), file=sys.stderr, flush=True)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(rows, indent=2) if args.json else _table(rows))
  return 0


if __name__ == '__main__':
  sys.exit(main())

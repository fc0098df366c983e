"""One row per method: time, memory and compile time of its whole step.

  python -m benchmarks.methods [--json] [--methods=rome_v2,darts] [--batch=64]
      [--cells=8] [--channels=16] [--image-size=32] [--repeats=3] [--no-time]
      [--evaluator=auto]

The step is the method's own: every update of its row with the K of its recipe
(7 for ROME), float32, S0, optimisers and all, on random images. `temp_bytes`
is XLA's temporary memory, beside weights, optimiser state and images. All
methods run at one batch size, so that rows compare; PC-DARTS searches with
256 in its paper.

For DARTS and PC-DARTS `torch_ratio` is our time over that of an eager PyTorch
step that does the same work (`torch_reference.MixedSearch`), in the faster of
its two layouts; all three take turns, and the fastest of the repeats counts.
`torch_bytes` is what such a step adds to the memory of a fresh process, in the
leaner layout. Both are null for other methods, without PyTorch, and where JAX
does not run on the CPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np

from benchmarks import grid, search_step, timing
from rome_jax import errors, families, spaces
from rome_jax.config import checks, fields
from rome_jax.methods import METHODS
from rome_jax.train import search

MEASURED = ('trace_seconds', 'compile_seconds', 'temp_bytes', 'step_seconds',
            'torch_ratio', 'torch_bytes')
# Methods whose step `torch_reference` has.
IN_TORCH = ('darts', 'pc_darts')


def _config(args, name):
  """The validated config of a method's recipe at the sizes asked for."""
  config = fields.defaults()
  config.method = name
  checks.apply_recipe(config)
  config.search.update(
      cells=args.cells, channels=args.channels, batch_size=args.batch,
      samples='scan')
  checks.validate(config)
  config.search.k = checks.samples(config)
  return config


def _torch_steps(args, partial, batches):
  """{layout: a step of the PyTorch reference}."""
  import torch

  from benchmarks import torch_reference

  torch.set_num_threads(os.cpu_count())
  steps = {}
  for layout in search_step.LAYOUTS:
    form = (torch.channels_last if layout == 'channels_last' else
            torch.contiguous_format)
    reference = torch_reference.MixedSearch(
        spaces.S0, args.cells, args.channels, search_step.NUM_CLASSES,
        partial, form)
    both = [(torch.tensor(np.asarray(b['image']).transpose(0, 3, 1, 2))
             .contiguous(memory_format=form),
             torch.tensor(np.asarray(b['label']), dtype=torch.int64))
            for b in batches]
    steps[layout] = lambda r=reference, both=both: r.step(*both)
  return steps


def _torch_bytes(args, partial):
  """The memory of the reference's step in its leaner layout."""
  found = [subprocess.run(
      [sys.executable, '-m', 'benchmarks.torch_reference', *map(str, (
          partial, args.cells, args.channels, args.batch, args.image_size,
          last))], check=True, capture_output=True).stdout for last in (0, 1)]
  return min(map(int, found))


def _fill_times(row, args, compiled, state, batches):
  """Writes step_seconds, and what there is in PyTorch beside it."""
  carried = [state]

  def ours():
    carried[0], metrics = compiled(carried[0], *batches)
    jax.block_until_ready((carried[0], metrics))

  steps = {'ours': ours}
  if (row['method'] in IN_TORCH and jax.default_backend() == 'cpu'
      and importlib.util.find_spec('torch') is not None):
    row['torch_bytes'] = _torch_bytes(args, row['partial'])
    steps |= _torch_steps(args, row['partial'], batches)
  times = timing.interleaved(steps, args.repeats)
  own = times.pop('ours')
  row['step_seconds'] = own['median']
  if times:
    row['torch_ratio'] = own['min'] / min(t['min'] for t in times.values())


def measure(args, name: str) -> dict:
  """The row of one method; `error` is None or says what was not run."""
  config, method, space = _config(args, name), METHODS[name], spaces.S0
  row = {'method': name, 'k': checks.samples(config), 'batch': args.batch,
         'updates': len(method.updates), 'partial': method.partial,
         'evaluator': search.choose_evaluator(space, method, args.evaluator),
         **dict.fromkeys(MEASURED), 'cells': args.cells,
         'channels': args.channels, 'image_size': args.image_size,
         'space': space.name, **grid.environment(), 'error': None}
  network = families.supernet(
      space, spaces.Sizes(args.cells, args.channels, search_step.NUM_CLASSES,
                          args.image_size),
      partial=method.partial, evaluator=row['evaluator'])
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
      _fill_times(row, args, compiled, state, problem.batches)
  return row


def _table(rows):
  lines = [f'{"method":14} {"evaluator":9} {"K":>2} {"compile":>8} '
           f'{"memory":>9} {"step":>8} {"/torch":>7}']
  for row in rows:
    step = (f'{row["step_seconds"]:7.2f}s' if row['step_seconds']
            else f'{"-":>8}')
    ratio = f'{row["torch_ratio"]:7.2f}' if row['torch_ratio'] else ''
    lines.append(
        f'{row["method"]:14} {row["evaluator"]:9} {row["k"]:2d} '
        f'{row["compile_seconds"]:7.1f}s {row["temp_bytes"] / 1e6:6.0f} MB '
        f'{step} {ratio}')
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
  parser.add_argument('--evaluator', default='auto',
                      help="'auto', 'listed' or 'batched'")
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

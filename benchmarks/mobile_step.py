"""The search step on the mobile space: compile time, memory, speed.

  python -m benchmarks.mobile_step [--space=mobile] [--k=2] [--batch=32]
     [--image-size=32] [--channels=32] [--stem=cifar] [--parallel=scan] ...

Prints one JSON object and nothing else on stdout:

  trace_seconds     Python to StableHLO of the complete step (Algorithm 1: K
                    samples for alpha and beta, K fresh ones for theta).
  compile_seconds   tracing and compiling it, the persistent cache off.
  temp_bytes        its `memory_analysis().temp_size_in_bytes`: buffers beside
                    arguments (weights, optimiser, images) and results.
  step_seconds      median over the repeats, after one that is not counted.
  theta_bytes       the supernet's weights in float32.

beside the sizes that were asked for, the backend and the machine.
"""

import argparse
import json
import sys

import jax

from benchmarks import grid, search_step, timing
from rome_jax import errors, spaces
from rome_jax.config import fields
from rome_jax.engine import sums
from rome_jax.families import mobile
from rome_jax.methods import table


def make_problem(args) -> search_step.Problem:
  """The supernet on random images with random labels."""
  space = spaces.get_space(args.space)
  mobile.check(space, spaces.Sizes(
      space.num_nodes, args.channels, search_step.NUM_CLASSES))
  network = mobile.Supernet(
      space, space.num_nodes, args.channels, search_step.NUM_CLASSES,
      args.stem)
  return search_step.problem_of(
      network, table.METHODS[args.method], args.batch, args.image_size)


def measure(args) -> dict:
  """The numbers of the module's docstring."""
  config = fields.defaults()
  config.search.update(k=args.k, samples=args.parallel)
  problem, row = make_problem(args), {}
  search_step.fill_step(row, problem, config, args.repeats)
  return {
      **row,
      'theta_bytes': sum(
          leaf.nbytes for leaf in jax.tree.leaves(problem.theta)),
      **vars(args), 'backend': jax.default_backend(),
      'machine': timing.machine()}


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.mobile_step',
      description=__doc__.splitlines()[0])
  for name, default, meaning in (
      ('k', 2, 'architectures per half step'),
      ('batch', 32, 'images per step'),
      ('image-size', 32, 'pixels'),
      ('repeats', 3, 'timed steps')):
    parser.add_argument(f'--{name}', type=int, default=default,
                        help=f'{meaning} ({default})')
  parser.add_argument('--channels', type=float, default=32.,
                      help='of the stem; scales all widths (32)')
  for name, default, choices in (
      ('space', 'mobile', None), ('method', 'rome_v2', list(table.METHODS)),
      ('stem', 'cifar', ['cifar', 'imagenet']),
      ('parallel', 'scan', list(sums.WAYS))):
    parser.add_argument(f'--{name}', default=default, choices=choices,
                        help=f'({default})')
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  args = _parse(argv)
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    grid.check_counts(args, 'k', 'batch', 'image_size', 'repeats')
    row = measure(args)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(row, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""The comparison of `rome_jax compare` over a Ray cluster: a task for each run.

  python -m launch.compare_ray --config=compare_nb201 --workdir=DIR --gpus=1 \\
      [--address=auto] ...

Flags, folders, files and exit codes are those of `rome_jax compare`, without
--workers; those of Ray, and what every node needs, are in `launch.sweep_ray`.
Rankings run here, after all runs.
"""

import sys

from launch import sweep_ray
from rome_jax import errors
from rome_jax.cli import compare, sweep
from rome_jax.cli import flags as flags_lib
from rome_jax.config import checks, comparison


def main(argv=None, program=sweep.PROGRAM) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  try:
    parser = flags_lib.compare('python -m launch.compare_ray')
    args, flags = sweep_ray.with_ray(parser).parse_known_args(argv)
    found = compare.with_seeds(comparison.load(args.config), args.seeds)
    folder = checks.local_path('--workdir', args.workdir)
    runs = compare.plan(found, folder, flags)
    ray = sweep_ray.import_ray()
    sweep_ray.connect(ray, args.address)
    codes = sweep_ray.at_once(ray, runs, args, program)
    done = [run for run in runs if codes.get(run.name) == 0]
    codes |= compare.run_all(done, 1, found.rank, lambda: None, program)
    return compare.finish(folder, found, runs, codes)
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())

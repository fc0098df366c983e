"""The sweep of `rome_jax sweep` over a Ray cluster: a task for each run.

  python -m launch.sweep_ray --config=configs/cifar10_s0.py --workdir=DIR \
      --seeds=0,1,2,3 --gpus=1 [--address=auto] ...

Flags, folders, sweep.json and exit codes are those of `rome_jax sweep`.
Every node needs Ray and the packages of rome_jax; this repository, the data
and DIR must be under the same paths everywhere (shared storage). A run whose
node is lost starts again on another and continues in its folder.
"""

import os
import pathlib
import sys

from rome_jax import errors
from rome_jax.cli import flags, sweep
from rome_jax.devices import interrupt

LOST = 4  # As of rome_jax.main: the same command continues.


def make_parser():
  """The flags of a sweep and those that are Ray's."""
  return with_ray(flags.sweep('python -m launch.sweep_ray'))


def with_ray(parser):
  """Adds the flags that are Ray's to a parser; returns it."""
  parser.add_argument(
      '--address', default='auto',
      help='of the cluster; auto: the one this machine is in; local: start '
      'one on this machine (auto)')
  for name, kind, default, meaning in (
      ('cpus', float, 1, 'CPU cores of a run'),
      ('gpus', float, 0, 'GPUs of a run'),
      ('tpus', float, 0, 'TPU chips of a run'),
      ('retries', int, 3, 'how often a run that lost its node starts again')):
    parser.add_argument(f'--{name}', type=kind, default=default,
                        help=f'{meaning} ({default})')
  return parser


def import_ray():
  """Ray.

  Raises:
    UserError: it is not installed.
  """
  try:
    import ray
  except ImportError as error:
    raise errors.UserError(
        "Ray is not installed: pip install 'rome_jax[ray]', or use "
        'python -m rome_jax sweep') from error
  return ray


def connect(ray, address):
  """Joins or starts a cluster.

  Raises:
    UserError: there is none.
  """
  # So that a worker finds the package where it is not installed.
  package = pathlib.Path(sweep.__file__).resolve().parents[2]
  paths = [str(package), os.environ.get('PYTHONPATH')]
  try:
    ray.init(address=address, runtime_env={'env_vars': {
        'PYTHONPATH': os.pathsep.join(filter(None, paths))}})
  except (ConnectionError, ValueError) as error:
    raise errors.UserError(
        f'--address={address}: no Ray cluster found there; start one with '
        '`ray start --head` or use --address=local') from error


def at_once(ray, runs, args, program=sweep.PROGRAM) -> dict[str, int]:
  """Runs as many at once as the cluster has room for; {name: exit code}."""
  cwd = os.getcwd()

  def task(run):
    with interrupt.Interrupt() as stop:  # Cancelled, or the node shuts down.
      return sweep.execute(run, stop, program, cwd)

  remote = ray.remote(
      num_cpus=args.cpus, num_gpus=args.gpus, max_retries=args.retries,
      resources={'TPU': args.tpus} if args.tpus else None)(task)
  names = {remote.options(name=run.name).remote(run): run.name for run in runs}
  codes, waiting, cancelled = {}, list(names), False
  with interrupt.Interrupt() as stop:
    while waiting:
      done, waiting = ray.wait(waiting, timeout=1)
      for ref in done:
        codes[names[ref]] = _code(ray, ref, names[ref])
      if stop.requested and not cancelled:
        cancelled = True
        for ref in waiting:
          ray.cancel(ref)
  return codes


def _code(ray, ref, name):
  try:
    return ray.get(ref)
  except ray.exceptions.TaskCancelledError:
    return 0  # Asked to stop, or never started; its folder says the rest.
  except ray.exceptions.RayTaskError as error:
    print(f'{name}: {error.cause}', file=sys.stderr)
    return 1
  except ray.exceptions.RayError as error:
    print(f'{name}: {str(error).splitlines()[0]}', file=sys.stderr)
    return LOST


def main(argv=None, program=sweep.PROGRAM) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  try:
    args, flags = make_parser().parse_known_args(argv)
    runs = sweep.plan(args, flags)
    ray = import_ray()
    connect(ray, args.address)
    return sweep.finish(runs, at_once(ray, runs, args, program), args.workdir,
                        args.choose)
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())

"""Every benchmark by one command.

  python -m benchmarks.all --quick [--out=DIR]
  python -m benchmarks.all [--out=docs/results] [--parts=growth,memory]

Prints one JSON object, {part: {result, machine, date, seconds, error}}; the
part's progress goes to stderr. Each part is a process of its own; where one
fails its result is null (or what it has measured) and `error` says why, the
others go on, and the exit code is 1.

With `--quick` every part has tiny sizes, XLA optimises little and a part runs
on each core: that they work is shown in a few minutes, the figures mean
nothing. Without, the parts run one after the other at their own sizes, hours
in all on a CPU; DIR/PART.json is written as rows come, and continued when the
command is given again.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import grid, timing
from rome_jax import errors


class Part(NamedTuple):
  """A benchmark, `python -m benchmarks.NAME`, that prints JSON.

  Attributes:
    quick: its options for `--quick`.
    full: its options otherwise.
    continues: whether it takes `--out FILE` and goes on from there.
    kept: whether its result becomes a file under `--out`; the others have
      documents, and files, of their own form.
  """

  quick: tuple[str, ...] = ('--json', '--quick')
  full: tuple[str, ...] = ('--json',)
  continues: bool = False
  kept: bool = True


PARTS: dict[str, Part] = {
    'search_step': Part((
        '--json', '--space=s2', '--cells=1', '--channels=2', '--image-size=4',
        '--batch=2', '--k=2', '--parallel=scan', '--repeats=1',
        '--architectures=2')),
    'ops': Part(continues=True),
    'parallel': Part(continues=True),
    'growth': Part(continues=True),
    'memory': Part(continues=True),
    'mobile_step': Part(
        ('--space=mobile_tiny', '--k=1', '--batch=2', '--image-size=8',
         '--channels=8', '--repeats=1'), ()),
    'precision': Part(('--quick',), (), kept=False),
    'scaling': Part(('--devices=1,2', '--repeats=1', '--no-full'), (),
                    kept=False),
    'augment': Part(('--json', '--repeats=5')),
    'loading': Part(('--quick',), (), kept=False),
    'tables': Part(('--repeats=1',), ()),
}


def run_part(name: str, part: Part, quick: bool, out: str | None) -> dict:
  """Runs a part.

  Args:
    name: its module.
    part: its row.
    quick: whether at tiny size.
    out: the folder of the files of results, or None.

  Returns:
    {'result', 'machine', 'date', 'seconds', 'error'}.
  """
  flags = list(part.quick if quick else part.full)
  path = None if out is None else pathlib.Path(out, f'{name}.json').absolute()
  if path and part.continues:
    flags.append(f'--out={path}')
  start = time.perf_counter()
  done = subprocess.run(
      [sys.executable, '-m', f'benchmarks.{name}', *flags], cwd=grid.ROOT,
      env=_environment(quick), stdout=subprocess.PIPE, text=True)
  seconds = time.perf_counter() - start
  result, error = _result(done)
  if path and not error and part.kept and not part.continues:
    grid.write(path, grid.command(f'benchmarks.{name}', flags),
               result if isinstance(result, list) else [result])
  machine = timing.machine()
  return {'result': result, 'machine': machine, 'date': machine['date'],
          'seconds': round(seconds, 1), 'error': error}


def _environment(quick):
  if not quick:
    return None
  flags = os.environ.get('XLA_FLAGS', '')
  return {**os.environ,
          'XLA_FLAGS': f'{flags} --xla_backend_optimization_level=0'.strip(),
          # Several processes may share an accelerator.
          'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}


def _result(done):
  """(what a process printed, why it failed or None)."""
  try:
    result = json.loads(done.stdout)
  except ValueError:
    return None, f'exit code {done.returncode}, and no JSON on stdout'
  if done.returncode:
    rows = result if isinstance(result, list) else []
    said = [row['error'] for row in rows if row.get('error')]
    return result, '; '.join([f'exit code {done.returncode}', *said])
  return result, None


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.all', description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='tiny sizes')
  parser.add_argument('--parts', type=grid.names, default=list(PARTS),
                      help='some of them, comma-separated')
  parser.add_argument('--out', metavar='DIR',
                      help='folder of the files of results')
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the parts; returns 0, 1 if one failed, 2 for a user's mistake."""
  args = _parse(argv)
  try:
    grid.check_names('parts', args.parts, PARTS)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code

  def run(name):
    print(f'{name} ...', file=sys.stderr, flush=True)
    return run_part(name, PARTS[name], args.quick, args.out)

  workers = os.cpu_count() if args.quick else 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    results = dict(zip(args.parts, pool.map(run, args.parts)))
  print(json.dumps(results, indent=2))
  return int(any(part['error'] for part in results.values()))


if __name__ == '__main__':
  sys.exit(main())

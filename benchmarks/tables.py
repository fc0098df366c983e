"""Time and memory of the shipped tables, each in a fresh process.

  python -m benchmarks.tables [--repeats=5]

Prints JSON: per table the size of its file, the seconds of importing NumPy,
of importing the table's module after it and of loading the table, the peak
resident memory after each (Linux), and the microseconds of a lookup; medians
over the repeats.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from rome_jax.tables import macro, nasbench201, table

ROOT = pathlib.Path(__file__).parents[1]
TABLES = {
    'nasbench201': (nasbench201.FILE, '333311'),
    'macro': (macro.FILE, '22212202'),
}
_LOOKUPS = 2000

# Run by a fresh interpreter, so that nothing is imported or cached before.
_CHILD = '''
import json, sys, time
def peak():
  # Not getrusage, which begins with the peak of the process that forked.
  with open('/proc/self/status') as file:
    line = next(line for line in file if line.startswith('VmHWM'))
  return int(line.split()[1]) / 1024
out = {{'start_mib': peak()}}
clock = time.perf_counter()
def lap(name):
  global clock
  now = time.perf_counter()
  out[name + '_s'], out[name + '_mib'] = now - clock, peak()
  clock = time.perf_counter()
import numpy; lap('numpy')
from rome_jax.tables import {module}; lap('import')
table = {module}.load(); lap('load')
table.query({cell!r}); lap('first_lookup')
for _ in range({lookups}):
  table.query({cell!r})
lap('lookups')
table.rank({cell!r}); lap('rank')
out['jax'] = 'jax' in sys.modules or 'torch' in sys.modules
print(json.dumps(out))
'''


def measure(module, cell) -> dict:
  """The child's figures for one table."""
  code = _CHILD.format(module=module, cell=cell, lookups=_LOOKUPS)
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True,
                        capture_output=True, text=True)
  return json.loads(done.stdout)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args(argv)
  result = {}
  for module, (name, cell) in TABLES.items():
    runs = [measure(module, cell) for _ in range(args.repeats)]
    median = {key: round(statistics.median(run[key] for run in runs), 5)
              for key in runs[0] if key != 'jax'}
    median['lookup_us'] = round(
        1e6 * median.pop('lookups_s') / _LOOKUPS, 2)
    median.pop('lookups_mib')
    result[module] = {
        'file_bytes': (table.DATA / name).stat().st_size, **median,
        'loads_jax_or_torch': any(run['jax'] for run in runs)}
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  main()

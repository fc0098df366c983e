"""A campaign of faults: what the promises of the README bear.

  python -m benchmarks.faults [--part=inputs,hostile,...] [--short] [--seed=0]
      [--state=DIR] [--out=FILE] [--collect] [--again]

Tries each fault, checks that nothing is lost, nothing is executed and a
mistake ends with one sentence, and prints JSON of every case. Resumable: what
has passed is kept in the state folder and not tried again; what has failed is.
--again tries all of it again. --collect tries nothing and says what is there.
Exit code 1 if anything fails. docs/reliability.md says what came out.
"""

import argparse
import datetime
import importlib
import json
import os
import pathlib
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.faults import campaign
from rome_jax import files

# In the order of their cost; each is a module with `cases(context)`.
PARTS = ('hostile', 'inputs', 'damage', 'signals', 'disk', 'kills', 'hosts',
         'scale')


def run(names: Sequence[str], context: campaign.Context,
        tell: Any = print, collect: bool = False, again: bool = False,
        ) -> dict[str, Any]:
  """Runs parts; returns what the JSON says.

  Args:
    names: of PARTS.
    context: see there.
    tell: gets a line for each case.
    collect: whether to run nothing; cases that are not done are 'not_run', as
      are those that cannot be run here.
    again: whether to run what has passed, too.
  """
  form = 'short' if context.short else 'long'
  log = campaign.Log(context.state / f'cases-{form}-{context.seed}.jsonl')
  rows: list[dict[str, Any]] = []
  left: list[dict[str, Any]] = []
  for name in names:
    cases = list(importlib.import_module(
        f'benchmarks.faults.{name}').cases(context))
    if collect:
      left += [{'part': name, 'group': case.group, 'case': case.name}
               for case in cases if (name, case.name) not in log.rows]
      cases = [case for case in cases if (name, case.name) in log.rows]
      rows += [log.rows[name, case.name] for case in cases]
    else:
      done, not_run = campaign.run(name, cases, log, tell, again)
      rows, left = rows + done, left + not_run
  return {'date': datetime.date.today().isoformat(), 'machine': machine(),
          'seed': context.seed, 'short': context.short, 'cases': rows,
          'not_run': left}


def machine() -> str:
  """The processor, its cores and the memory."""
  facts = dict(
      line.split(':', 1) for line in
      pathlib.Path('/proc/cpuinfo').read_text().splitlines() if ':' in line)
  name = next((value.strip() for key, value in facts.items()
               if key.strip() == 'model name'), platform.machine())
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return f'{os.cpu_count()} cores of {name}, {memory:.0f} GB'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m benchmarks.faults')
  parser.add_argument('--part', default=','.join(PARTS))
  parser.add_argument('--short', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--state', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--collect', action='store_true')
  parser.add_argument('--again', action='store_true')
  args = parser.parse_args(argv)
  names = args.part.split(',')
  if not set(names) <= set(PARTS):
    print(f'benchmarks.faults: --part={args.part} must be some of '
          f'{",".join(PARTS)}', file=sys.stderr)
    return 2
  with tempfile.TemporaryDirectory() as temporary:
    state = (args.state or pathlib.Path(temporary)).absolute()
    state.mkdir(parents=True, exist_ok=True)
    found = run(
        names, campaign.Context(state, args.seed, args.short),
        lambda line: print(line, file=sys.stderr, flush=True), args.collect,
        args.again)
  if args.out:
    files.write_json(args.out, found)
  else:
    print(json.dumps(found, indent=1))
  return int(any(not row['ok'] for row in found['cases']))


if __name__ == '__main__':
  # A shell's background job ignores SIGINT, and so would all that it starts.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.exit(main())

"""A benchmark of many cells: rows are written as they come, and continued.

A cell is a dict of JSON values that says what to measure; its row begins with
the cell and goes on with what was measured. `error` is None, or says why
values are missing: 'not run: ...' is a result (no memory, over the limit),
'failed: ...' is a fault, which the next run of the command tries again.

A file of results is {"commands": [...], "rows": [...]}. It is replaced
atomically after every cell, so a run that was cut off has lost one cell, and
the same command goes on from there. Delete the file to measure anew.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax

from benchmarks import timing
from rome_jax import errors, files

NOT_RUN, FAILED = 'not run: ', 'failed: '
ROOT = pathlib.Path(__file__).parents[1]


def failed(row: dict) -> bool:
  """Whether a row shows a fault of the benchmark."""
  return (row['error'] or '').startswith(FAILED)


def environment() -> dict:
  """What every row says of where it was measured; starts JAX's backend."""
  return {'backend': jax.default_backend(),
          'device': jax.local_devices()[0].device_kind,
          'machine': timing.machine()}


def numbers(text: str) -> list[int]:
  """The type of an option: '1,4,7' -> [1, 4, 7]."""
  return [int(part) for part in text.split(',')]


def names(text: str) -> list[str]:
  """The type of an option: 'a,b' -> ['a', 'b']."""
  return text.split(',')


def check_names(option: str, chosen: Sequence[str], known) -> None:
  """UserError unless all that was chosen is known."""
  if set(chosen) - set(known):
    raise errors.UserError(
        f'--{option}={",".join(chosen)} must be some of {", ".join(known)}')


def check_counts(args, *options: str) -> None:
  """UserError unless these options are at least 1."""
  for name in options:
    if getattr(args, name) < 1:
      raise errors.UserError(
          f'--{name.replace("_", "-")}={getattr(args, name)} must be at least '
          '1')


def parser(module: str, doc: str) -> argparse.ArgumentParser:
  """A parser with the options that all these benchmarks share."""
  made = argparse.ArgumentParser(
      prog=f'python -m {module}', description=doc.splitlines()[0])
  made.add_argument('--json', action='store_true', help='print JSON')
  made.add_argument('--quick', action='store_true',
                    help='tiny sizes: whether it works, not how fast')
  made.add_argument('--out', metavar='FILE',
                    help='write rows there as they come, and continue it')
  made.add_argument('--limit-seconds', type=float, metavar='N',
                    help='give up on a cell after so long')
  made.add_argument('--cell', type=json.loads, help=argparse.SUPPRESS)
  return made


def child(module: str, limit_seconds: float | None = None) -> Callable:
  """Measures a cell in a fresh process: `python -m module --cell JSON`.

  So that a cell begins with empty caches, can be given up on, and takes none
  of the others with it. A cell with `devices` above 1 gets so many CPU
  devices.

  Returns:
    cell -> row.
  """

  def measure(cell):
    try:
      done = subprocess.run(
          [sys.executable, '-m', module, '--cell', json.dumps(cell)],
          cwd=ROOT, env=_child_environment(cell), capture_output=True,
          text=True, timeout=limit_seconds)
    except subprocess.TimeoutExpired:
      return _without(cell, f'{NOT_RUN}took more than {limit_seconds:g} s')
    if done.returncode == 0:
      return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip() or 'no message').splitlines()[-1]
    kind = NOT_RUN if done.returncode == errors.UserError.exit_code else (
        f'{FAILED}exit code {done.returncode}: ')
    return _without(cell, kind + last)

  return measure


def _child_environment(cell):
  flags = os.environ.get('XLA_FLAGS', '')
  if cell.get('devices', 1) > 1:
    flags += f' --xla_force_host_platform_device_count={cell["devices"]}'
  return {**os.environ, 'XLA_FLAGS': flags.strip()}


def _without(cell, error):
  # Nothing of JAX: this process must not take the accelerator.
  return {**cell, 'backend': None, 'device': None,
          'machine': timing.machine(), 'error': error}


def measure_all(cells: Sequence[dict], measure: Callable,
                out: str | None = None, command: str = '') -> list[dict]:
  """The rows of all cells, in order.

  Args:
    cells: what to measure.
    measure: cell -> row, which begins with the cell.
    out: file whose rows are taken as they are and to which new ones are
      added; None for no file. Rows of other cells in it stay.
    command: noted there.

  Raises:
    UserError: the file cannot be read or written, or is of another form.
  """
  stored = _stored(out)
  if command and command not in stored['commands']:
    stored['commands'].append(command)
  rows = []
  for number, cell in enumerate(cells, 1):
    row = next((row for row in stored['rows'] if not failed(row)
                and cell.items() <= row.items()), None)
    if row is None:
      print(f'{number}/{len(cells)}: {_text(cell)} ...', file=sys.stderr,
            flush=True)
      row = measure(cell)
      print(f'  {row["error"] or "done"}', file=sys.stderr, flush=True)
      stored['rows'] = [old for old in stored['rows']
                        if not cell.items() <= old.items()] + [row]
      if out is not None:
        files.write_json(out, stored)
    rows.append(row)
  return rows


def _stored(out):
  if out is None or not pathlib.Path(out).exists():
    return {'commands': [], 'rows': []}
  stored = files.read_json(out)
  if not isinstance(stored, dict) or set(stored) != {'commands', 'rows'}:
    raise errors.UserError(
        f'--out={out} must be a file of results (commands, rows) or a new one')
  return stored


def _text(cell):
  return ', '.join(f'{name}={value}' for name, value in cell.items())


def write(path, command: str, rows: list[dict]) -> None:
  """Writes a whole file of results.

  Raises:
    UserError: it cannot be written.
  """
  files.write_json(path, {'commands': [command], 'rows': rows})


def command(module: str, argv: Sequence[str]) -> str:
  """The command, without options that change no row."""
  kept, skip = [], False
  for word in argv:
    if not skip and word != '--json' and not word.startswith('--out'):
      kept.append(word)
    skip = word == '--out'
  return shlex.join(['python', '-m', module, *kept])


def run(module: str, args, argv: Sequence[str], make_cells: Callable,
        measure: Callable, table: Callable, in_process=False) -> int:
  """What `main` of these benchmarks does.

  Args:
    module: its name.
    args: parsed by a `parser`.
    argv: what was parsed.
    make_cells: args -> cells; UserError for mistakes.
    measure: cell -> row.
    table: rows -> text.
    in_process: whether one process measures all cells.

  Returns:
    The exit code: 0; 1 if a cell failed; 2 for a user's mistake.
  """
  try:
    if args.cell is not None:
      jax.config.update('jax_enable_compilation_cache', False)
      print(json.dumps(measure(args.cell)))
      return 0
    each = measure if in_process else child(module, args.limit_seconds)
    rows = measure_all(
        make_cells(args), each, args.out, command(module, argv))
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(rows, indent=2) if args.json else table(rows))
  return int(any(map(failed, rows)))


def text_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
  """Rows for people.

  Args:
    rows: of any benchmark.
    columns: {key of a row: format of its value, such as '.1f'}.
  """
  body = [[('-' if row.get(key) is None else format(row[key], form))
           for key, form in columns.items()] for row in rows]
  widths = [max(map(len, column))
            for column in zip(list(columns), *body)]
  lines = [' '.join(text.rjust(width) for text, width in zip(line, widths))
           for line in [list(columns), *body]]
  for i in range(len(rows), 0, -1):  # from below, so that places stay
    if rows[i - 1]['error']:
      lines.insert(i + 1, f'  {rows[i - 1]["error"]}')
  return '\n'.join(lines)

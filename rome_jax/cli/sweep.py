"""`python -m rome_jax sweep --seeds=0,1,2 ...`: many runs and their spread.

  python -m rome_jax sweep --config=configs/quickstart.py --workdir=DIR \
      --seeds=0,1,2 [--vary=FIELD=A,B ...] [--config.FIELD=VALUE ...]

Starts one run of `rome_jax.main` for each combination of the values, one after
another, each in a folder (DIR/seed-0) and a process of its own, so that the
crash of one does not end the others. The same command continues unfinished
runs and leaves finished ones alone. At the end it writes DIR/sweep.json and
prints a table. `--vary=config=A.py,B.py` varies the config file. Commas inside
brackets or quotes do not separate values, so `--vary=genotype=` takes the
texts of genotypes; all are checked before the first run starts.

`--choose=derived` chooses the values of the largest mean accuracy of derived
networks, over seeds and retrainings, and prints the command that retrains what
was found with them. It needs config.retrain.holdout, the share of the training
images that the accuracies are then of. R-DARTS (Zela et al., ICLR 2020) is such
a sweep of DARTS:

  python -m rome_jax sweep --config=configs/robustdarts.py:method=darts \
      --workdir=DIR --config.retrain.holdout=.2 --choose=derived \
      --vary=search.weight_decay=3e-4,9e-4,27e-4,81e-4,243e-4

Exit codes: 0 if every run is done, or stopped on request with everything
saved; else the exit code of the first run that failed.
"""

import argparse
import hashlib
import itertools
import operator
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rome_jax import cli, errors, files
from rome_jax.cli import flags as flags_lib
from rome_jax.cli import prepare
from rome_jax.config import checks, command_line
from rome_jax.devices import interrupt
from rome_jax.show import report

FILENAME = 'sweep.json'
# What the interpreter runs; a script of your own if you add spaces or
# operations.
PROGRAM = ('-m', 'rome_jax.main')


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: of its folder.
    values: {varied field: its value here}.
    workdir: its folder.
    argv: its command line.
  """

  name: str
  values: dict[str, Any]
  workdir: str
  argv: list[str]


def plan(args: argparse.Namespace, flags: list[str]) -> list[Run]:
  """The runs of a sweep, the config of each checked.

  Args:
    args: workdir, seeds, vary, choose; see `flags.sweep`.
    flags: all other flags, given to every run.

  Raises:
    UserError: nothing is varied, a field is varied twice, two runs would
      share a folder, a run's config is wrong, or it holds out no images to
      choose by.
  """
  seeds = [f'seed={args.seeds}'] if args.seeds else []
  varied = {}
  for text in args.vary + seeds:
    field, equals, values = text.partition('=')
    if not (field and values):
      raise errors.UserError(f'--vary={text} must be FIELD=VALUE,VALUE')
    if field in varied:
      raise errors.UserError(f'{field} is varied twice')
    varied[field] = split_values(field, values)
  if not varied:
    raise errors.UserError('--seeds=0,1,2 or --vary=FIELD=A,B is missing')
  folder = checks.local_path('--workdir', args.workdir)
  runs = [_run(folder, dict(zip(varied, values)), flags, args.choose)
          for values in itertools.product(*varied.values())]
  for run, other in itertools.combinations(runs, 2):
    if run.name == other.name:
      raise errors.UserError(f'two runs would share the folder {run.name}')
  return runs


def split_values(field: str, text: str) -> list[str]:
  """The values of one `--vary`, cut at commas.

  A comma inside brackets or quotes is part of its value, so a genotype can
  vary as Python text; so is one before a KEY=VALUE of a config's argument.

  Args:
    field: what is varied.
    text: the values.

  >>> split_values('genotype', "G(a=[('x', 0)], b=[2, 3]),DARTS_V2")
  ["G(a=[('x', 0)], b=[2, 3])", 'DARTS_V2']
  >>> split_values('config', 'a.py:k=1,lr=2,b.py')
  ['a.py:k=1,lr=2', 'b.py']
  """
  values, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not quote and depth == 0:
      values.append('')
    else:
      values[-1] += letter
  if quote or depth:
    raise errors.UserError(
        f'--vary={field}={text} has a bracket or quote that does not close')
  values = [value.strip() for value in values]
  return _with_arguments(values) if field == 'config' else values


def _with_arguments(values):
  """Joins the arguments of config files, which have commas between them."""
  joined = values[:1]
  for value in values[1:]:
    if re.match(r'\w+=', value) and ':' in joined[-1]:
      joined[-1] += f',{value}'
    else:
      joined.append(value)
  return joined


def _run(folder, texts, flags, choose):
  """One run, from {varied field: text}."""
  argv = flags + [
      f'--{"" if field == "config" else "config."}{field}={text}'
      for field, text in texts.items()]
  loaded = command_line.load(argv)
  for flag, given in (('check', loaded.options.check),
                      ('dry-run', loaded.options.dry_run)):
    if given:
      raise errors.UserError(
          f'--{flag} is for one run: python -m rome_jax run --{flag}')
  prepare.given_genotype(loaded.config)
  if choose and not loaded.config.retrain.holdout:
    raise errors.UserError(
        f'--choose={choose} needs config.retrain.holdout above 0: without '
        'images that are held out, the test images would choose')
  values = {
      field: text if field == 'config'
      else operator.attrgetter(field)(loaded.config)
      for field, text in texts.items()}
  name = _folder_name(texts)
  return Run(name, values, str(pathlib.Path(folder, name)), argv)


def _folder_name(texts):
  """A run's folder; a long one, of a genotype say, ends in a digest."""
  whole = '_'.join(f'{field}-{text}' for field, text in texts.items())
  name = re.sub(r'[^\w.+-]+', '_', whole)
  if len(os.fsencode(name)) <= _LONGEST_NAME:
    return name
  digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
  return f'{name[:_LONGEST_NAME // 4]}-{digest}'


_LONGEST_NAME = 160  # bytes; file systems allow 255


def execute(run: Run, stop: interrupt.Interrupt,
            program: Sequence[str] = PROGRAM,
            cwd: str | None = None) -> int:
  """Runs one in a process of its own; returns its exit code.

  Args:
    run: what to run.
    stop: once it is requested, the run is asked to save and stop.
    program: see PROGRAM.
    cwd: where relative paths begin; None: here.

  Returns:
    Its exit code, or 128 + the number of the signal that ended it.
  """
  return follow([*program, *run.argv, f'--workdir={run.workdir}'], stop,
                cwd=cwd)


def follow(argv: Sequence[str], stop: Any, *, cwd: str | None = None,
           environment: Mapping[str, str] | None = None, output: Any = None,
           ) -> int:
  """Runs the interpreter in a process of its own; returns its exit code.

  Args:
    argv: its arguments.
    stop: once it is requested, the process is asked to save and stop.
    cwd: where relative paths begin; None: here.
    environment: its variables; None: those of this process.
    output: a file for what it prints; None: where this process prints.

  Returns:
    Its exit code, or 128 + the number of the signal that ended it; 0 if that
    was our request to stop, which came before it had anything to save.
  """
  # A session of its own: a Ctrl-C must reach it once, through us, as a second
  # signal would end it before everything is saved.
  own = os.environ if environment is None else environment
  process = subprocess.Popen(
      [sys.executable, *argv], cwd=cwd, start_new_session=True,
      env={**own, interrupt.PARENT: str(os.getpid())}, stdout=output,
      stderr=output)
  try:
    code = _wait(process, stop)
  except BaseException:
    process.kill()
    process.wait()
    raise
  return code if code >= 0 else 128 - code


def _wait(process, stop):
  told = False
  while True:
    try:
      code = process.wait(.2)
      return 0 if told and code == -signal.SIGTERM else code
    except subprocess.TimeoutExpired:
      if stop.requested and not told:
        process.terminate()
        told = True


def shown(code: int) -> str:
  """An exit code, with the name of the signal that it stands for.

  >>> shown(3), shown(137)
  ('exit code 3', 'exit code 137 (SIGKILL)')
  """
  known = {128 + number: number.name for number in signal.Signals}
  return f'exit code {code}' + (f' ({known[code]})' if code in known else '')


def one_by_one(runs: list[Run],
               program: Sequence[str] = PROGRAM) -> dict[str, int]:
  """Runs one after another; {name: exit code} of those that were started."""
  codes = {}
  with interrupt.Interrupt() as stop:
    for run in runs:
      if stop.requested:
        break
      print(f'\n{run.name}:', flush=True)
      codes[run.name] = execute(run, stop, program)
  return codes


def collect(runs: list[Run], codes: dict[str, int]) -> dict:
  """What sweep.json says, read from the result.json of each run.

  Args:
    runs: all of them.
    codes: {name: exit code} of those that were started.

  Returns:
    'runs': a row each with name, values, workdir, exit_code, state ('done',
      'stopped', 'failed' or 'not run'), genotype, parameterless (operations
      without weights per cell type) and accuracies ({kind: mean over the
      run's retrainings}, of a complete table too).
    'summary': {values but the seed, as text: {kind: n, mean, std, best over
      the runs}}.
  """
  rows = [_row(run, codes.get(run.name)) for run in runs]
  groups = {}
  for row in rows:
    groups.setdefault(_label(row['values']), []).extend(
        {'kind': kind, 'test_accuracy': value}
        for kind, value in row['accuracies'].items())
  return {'format': 1, 'runs': rows, 'summary': {
      label: report.summarise(group) for label, group in groups.items()}}


def _label(values):
  """Values but the seed, as text."""
  return ', '.join(f'{field}={value}' for field, value in values.items()
                   if field != 'seed')


def chosen(runs: list[Run], found: dict, kind: str,
           folder: str) -> dict | None:
  """The values of the largest mean accuracy; None until every run is done.

  Args:
    runs: all of them.
    found: see `collect`.
    kind: of the networks that count.
    folder: of the sweep.

  Returns:
    'kind', 'label' (see 'summary' of `collect`), 'mean', and 'commands': per
    run with these values the command that retrains its genotype on all
    training images and tests it on the test images.
  """
  means = {label: kinds[kind]['mean']
           for label, kinds in found['summary'].items() if kind in kinds}
  if not means or any(row['state'] != 'done' for row in found['runs']):
    return None
  label = max(means, key=means.__getitem__)
  return {'kind': kind, 'label': label, 'mean': means[label], 'commands': [
      _retraining(run, folder) for run in runs if _label(run.values) == label]}


def _retraining(run, folder):
  own = ('--config.retrain.holdout=', '--config.genotype=')
  return shlex.join([
      'python', '-m', 'rome_jax', 'run',
      *(word for word in run.argv if not word.startswith(own)),
      f'--config.genotype={pathlib.Path(run.workdir, "genotype.json")}',
      '--config.retrain.holdout=0.',
      f'--workdir={pathlib.Path(folder, "chosen", run.name)}'])


def _row(run, code):
  path = pathlib.Path(run.workdir, 'result.json')
  states = {None: 'not run', 0: 'done' if path.exists() else 'stopped'}
  row = {'name': run.name, 'values': run.values, 'workdir': run.workdir,
         'exit_code': code, 'state': states.get(code, 'failed'),
         'genotype': None, 'parameterless': None, 'accuracies': {}}
  if row['state'] != 'done':
    return row
  result = files.read_json(path)
  tables = result.get('table', {}).get('datasets', {})
  return row | {
      'genotype': result['genotype'],
      'parameterless': result.get('search', {}).get('parameterless'),
      'accuracies': {
          **{kind: part['mean'] for kind, part in result['summary'].items()},
          **{f'table of {name}': part['test'] / 100
             for name, part in tables.items()}}}


def to_text(found: dict) -> str:
  """The table for people."""
  lines = []
  for row in found['runs']:
    failed = (f' with {shown(row["exit_code"])}'
              if row['state'] == 'failed' else '')
    parts = [f'{row["name"]}: {row["state"]}{failed}']
    if row['parameterless']:
      parts.append('parameterless operations ' + ', '.join(
          f'{cell} {n}' for cell, n in row['parameterless'].items()))
    parts += [f'{kind} {100 * value:.2f}%'
              for kind, value in row['accuracies'].items()]
    lines.append('; '.join(parts))
    if row['genotype']:
      lines.append(f'  {row["genotype"]}')
  choice = found.get('chosen') or {}
  for label, kinds in found['summary'].items():
    mark = ' <- chosen' * (label == choice.get('label'))
    lines += [f'{label}{": " if label else ""}{report.accuracy(kind, part)}'
              f'{mark * (kind == choice.get("kind"))}'
              for kind, part in kinds.items()]
  if choice:
    lines += ['these are accuracies on held out training images; to retrain '
              'on all of them and test:', *choice['commands']]
  elif 'chosen' in found:
    lines.append('nothing is chosen before every run is done')
  return '\n'.join(lines)


def finish(runs: list[Run], codes: dict[str, int],
           folder: str | os.PathLike, choose: str = '') -> int:
  """Writes sweep.json, prints the table; returns the exit code.

  Args:
    runs: all of them.
    codes: {name: exit code} of those that were started.
    folder: of the sweep.
    choose: the kind of `chosen`; '' chooses nothing.
  """
  folder = checks.local_path('--workdir', os.fspath(folder))
  found = collect(runs, codes)
  if choose:
    found['chosen'] = chosen(runs, found, choose, folder)
  files.write_json(pathlib.Path(folder, FILENAME), found)
  print(f'\n{to_text(found)}\n{pathlib.Path(folder, FILENAME)}')
  return next((code for code in codes.values() if code), 0)


def main(argv: Sequence[str] | None = None,
         program: Sequence[str] = PROGRAM) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args, flags = flags_lib.sweep().parse_known_args(argv)
    runs = plan(args, flags)
    with files.only_one(checks.local_path('--workdir', args.workdir)):
      return finish(
          runs, one_by_one(runs, program), args.workdir, args.choose)
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code

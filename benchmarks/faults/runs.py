"""Real processes of the campaign, and whether two runs are the same."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.faults import campaign, inputs
from rome_jax import files
from rome_jax.train import checkpoint, metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('tiny.py')
LIMIT = 900  # seconds that any process may take
# What the clock decides, in lines of metrics, results and notes.
TIMES = frozenset((
    'time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms',
    'input_wait_share',
    'compile_seconds', 'test_seconds', 'test_compile_seconds', 'created',
    'train_seconds', 'peak_memory_bytes', 'resumed_at', 'split_seconds',
    'temp_bytes', 'memory_bytes', 'cells_per_second', 'search_seconds'))


def environment(context: campaign.Context, **more: str) -> dict[str, str]:
  """Variables of a process: a CPU, one cache of programs for all."""
  return os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'XDG_CACHE_HOME': str(context.state / 'cache'),
      'PYTHONPATH': str(ROOT)} | more


def command(kind: str, workdir: pathlib.Path, *flags: str) -> list[str]:
  """The command line of a tiny run; see `tiny`."""
  return [sys.executable, '-m', 'rome_jax.main',
          f'--config={CONFIG}:kind={kind}', f'--workdir={workdir}',
          *retrained(kind), *flags]


def retrained(kind: str) -> list[str]:
  """The flags of a run that only retrains."""
  if kind != 'retrain':
    return []
  return ["--config.genotype=Genotype(normal=[[('skip_connect', 0), "
          "('sep_conv_3x3', 1)], [('max_pool_3x3', 0), ('sep_conv_3x3', 2)]], "
          'normal_concat=[2, 3], reduce='
          "[[('skip_connect', 0), ('sep_conv_3x3', 1)], [('max_pool_3x3', 0), "
          "('sep_conv_3x3', 2)]], reduce_concat=[2, 3])",
          '--config.retrain.epochs=2']


def start(context: campaign.Context, argv: Sequence[str], log: pathlib.Path,
          **variables: str) -> subprocess.Popen:
  """Starts a process, in a session of its own, that prints to a file."""
  log.parent.mkdir(parents=True, exist_ok=True)
  with open(log, 'ab') as output:
    return subprocess.Popen(
        list(argv), env=environment(context, **variables), stdout=output,
        stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        cwd=ROOT)


def finish(context: campaign.Context, argv: Sequence[str],
           log: pathlib.Path, **variables: str) -> tuple[int, str]:
  """Runs a process to its end; (exit code, what it printed)."""
  log.unlink(missing_ok=True)
  process = start(context, argv, log, **variables)
  try:
    code = process.wait(LIMIT)
  finally:
    kill(process)
  return code, log.read_text(errors='replace')


def kill(process: subprocess.Popen) -> None:
  """Ends a process and all that it started."""
  try:
    os.killpg(process.pid, 9)
  except ProcessLookupError:
    pass
  process.wait()


def until(seen: Callable[[], Any], process: subprocess.Popen,
          limit: float = LIMIT) -> bool:
  """Waits until something is seen; False if the process ended before."""
  deadline = time.monotonic() + limit
  while time.monotonic() < deadline:
    if seen():
      return True
    if process.poll() is not None:
      return bool(seen())
    time.sleep(.002)
  return False


def reach(what: str, seen: Callable[[], Any], process: subprocess.Popen,
          log: pathlib.Path) -> None:
  """Waits until something is seen.

  Args:
    what: its name, for the message.
    seen, process: as in `until`.
    log: what the process prints to.

  Raises:
    Bad: the process ended before, or the time is over.
  """
  if not until(seen, process):
    said = log.read_text(errors='replace') if log.exists() else ''
    raise inputs.Bad(f'never at {what}: {said[-400:]}')


def sentence(code: int, said: str, *words: str, wanted: int = 2) -> str:
  """The one sentence of a process that ended with a mistake.

  Raises:
    Bad: another code, a traceback, no sentence or several, words missing.
  """
  lines = [line for line in said.splitlines() if line.startswith('rome_jax: ')
           and 'warning: ' not in line]
  if code != wanted or len(lines) != 1 or 'Traceback' in said:
    raise inputs.Bad(f'code {code}, {len(lines)} sentences: {said[-700:]}')
  if missing := [word for word in words if word not in lines[0]]:
    raise inputs.Bad(f'{missing} not in {lines[0]}')
  return lines[0]


def success(code: int, said: str) -> None:
  """Checks that a process ended well.

  Raises:
    Bad: it did not, or printed a traceback.
  """
  if code or 'Traceback' in said:
    raise inputs.Bad(f'code {code}: {said[-700:]}')


def kill_at(context: campaign.Context, argv: Sequence[str], log: pathlib.Path,
            what: str, seen: Callable[[], Any]) -> None:
  """Starts a process and kills it once something is seen.

  Args:
    context, argv: as in `finish`.
    log, what, seen: as in `reach`.

  Raises:
    Bad: as `reach`.
  """
  process = start(context, argv, log)
  try:
    reach(what, seen, process, log)
  finally:
    kill(process)


def continued(context: campaign.Context, argv: Sequence[str],
              log: pathlib.Path, workdir: pathlib.Path, damaged: int = 0,
              **variables: str) -> str:
  """Runs a command to its end from where it was interrupted.

  Args:
    context, argv, log, variables: as in `finish`.
    workdir: its folder.
    damaged: as in `marks`.

  Returns:
    What it printed.

  Raises:
    Bad: it did not end well, or did not go on from where it had been.
  """
  before = marks(workdir, damaged)
  code, said = finish(context, argv, log, **variables)
  success(code, said)
  went_on(before)
  return said


def whole(context: campaign.Context, kind: str) -> tuple[pathlib.Path, float]:
  """(folder of an uninterrupted run, its seconds with all programs cached)."""
  folder = context.state / 'whole' / kind
  note = folder.with_suffix('.json')
  if not note.exists():
    for workdir in (folder.with_name(f'{kind}-first'), folder):
      shutil.rmtree(workdir, ignore_errors=True)
      began = time.monotonic()
      success(*finish(context, command(kind, workdir),
                      folder.with_suffix('.log')))
      seconds = time.monotonic() - began
    differs = difference(folder.with_name(f'{kind}-first'), folder)
    if differs:
      raise inputs.Bad(f'two uninterrupted runs differ: {differs}')
    note.write_text(json.dumps(seconds))
  return folder, json.loads(note.read_text())


def timeless(value: Any) -> Any:
  """A JSON value without what the clock decides."""
  if isinstance(value, dict):
    return {key: timeless(item) for key, item in value.items()
            if key not in TIMES}
  if isinstance(value, list):
    return [timeless(item) for item in value]
  return value


def arrays(folder: pathlib.Path) -> dict[str, bytes]:
  """{leaf: bytes} of the newest checkpoint in a folder."""
  with checkpoint.Checkpoints(folder) as store:
    step = store.steps()[-1]
    manifest = files.read_json(folder / f'{step:08d}' / 'manifest.json')
    # Types that NumPy alone does not know by name come with jax.
    found = store.read(step, {
        name: np.empty(shape, dtype)
        for name, shape, dtype in manifest['body']['leaves']})
  return {'step': str(step).encode()} | {
      name: array.tobytes() for name, array in found.items()}


# --- Where an interrupted run was, and whether the next start went on there

Marks = Mapping[tuple[pathlib.Path, str], int]


def marks(root: pathlib.Path, damaged: int = 0) -> Marks:
  """Where the next start of the same command has to go on.

  A start from the first step would end with the same bits; only what a run
  notes of a phase, the step that it resumed from, tells them apart.

  Args:
    root: folder of a run, or of a comparison's runs.
    damaged: how many of the newest checkpoints cannot be read.

  Returns:
    {(folder of a run, phase that is not done): the newest complete step}.
  """
  steps: dict[tuple[pathlib.Path, str], list[int]] = {}
  for path in _listed(root, 'checkpoints/**/manifest.json'):
    if path.parent.name.isdigit():  # Not one that is being written.
      run, phase = _phase(path.parent.parent)
      if not phase.startswith('best/') and not _note(run, phase).exists():
        steps.setdefault((run, phase), []).append(int(path.parent.name))
  return {key: sorted(found)[-1 - damaged] for key, found in steps.items()
          if len(found) > damaged}


def went_on(before: Marks, ended: bool = True) -> None:
  """Checks that a run went on from where it had been.

  Args:
    before: `marks` before its start.
    ended: whether all its phases must be done; those of a run that was
      interrupted again must have lost nothing.

  Raises:
    Bad: it began again, or went on from an older checkpoint.
  """
  for (run, phase), step in before.items():
    note = _note(run, phase)
    if note.exists():
      at = files.read_json(note)['resumed_at']
      if at is None or at < step:
        raise inputs.Bad(
            f'{phase} resumed at step {at}, not at {step} or later')
    elif ended:
      raise inputs.Bad(f'{note} is missing')
    elif marks(run).get((run, phase), -1) < step:
      raise inputs.Bad(f'the checkpoint of step {step} of {phase} is lost')


def _phase(folder):
  """(folder of the run, phase) of a folder of checkpoints."""
  place = next(p for p in folder.parents if p.name == 'checkpoints')
  return place.parent, folder.relative_to(place).as_posix()


def _note(run, phase):
  """What a run writes once a phase is done."""
  return run / 'phases' / f'{phase.removeprefix("retrain/")}.json'


# Before: also between two phases.
KINDS = TRAINING, WRITING, BEFORE = ('training', 'writing', 'before')


class Place(NamedTuple):
  """Where a process was.

  Attributes:
    kind: of KINDS.
    text: with its phase and step.
  """

  kind: str
  text: str


_LAST_FILES = ('result.json', 'report.html', '*.svg', 'compare.json',
               'compare.html', '.network*', 'network*')


def place(root: pathlib.Path, since: float) -> Place:
  """Where a process that began at a time was, by the files that it wrote.

  Args:
    root: folder of a run, of a comparison's runs, or of an export.
    since: seconds since the epoch.
  """
  for path in _new(root, 'checkpoints/**/*.partial', since):
    _, phase = _phase(path.parent)
    return Place(WRITING, f'saving {phase} step {int(path.name.split(".")[0])}')
  last = max(_rows(root, since), key=lambda found: found[0], default=None)
  for name in _LAST_FILES:
    for path in _new(root, name, since):
      # A comparison goes on with its next run once one has its report.
      done = path.parent != root and (path.parent / 'report.html').exists()
      if not done and (last is None or path.stat().st_mtime > last[0]):
        return Place(WRITING, f'writing {path.name}')
  if last is None:
    return Place(BEFORE, 'before the first step')
  _, run, phase, step = last
  if _note(run, phase).exists():
    return Place(BEFORE, f'after {phase} step {step}')
  return Place(TRAINING, f'{phase} step {step}')


def _listed(root, pattern):
  while True:
    try:
      return sorted(root.rglob(pattern))
    except FileNotFoundError:
      continue  # A folder went while it was listed.


def _new(root, pattern, since) -> Iterator[pathlib.Path]:
  for path in _listed(root, pattern):
    try:
      new = path.stat().st_mtime >= since
    except FileNotFoundError:
      continue  # Renamed since.
    if new:
      yield path


def _rows(root, since):
  """(time, run, phase, step) of each new line of metrics."""
  for path in _new(root, metrics.FILENAME, since):
    try:
      rows = metrics.read(path.parent)
    except ValueError:
      continue  # It is being written.
    for row in rows:
      if row['time'] >= since:
        yield row['time'], path.parent, row['phase'], row['step']


# --- Whether two runs are the same


def difference(ours: pathlib.Path, theirs: pathlib.Path) -> str:
  """In what two runs differ, but for times; '' if in nothing."""
  for name in ('result.json', 'genotype.json', 'split.json', 'evolution.json'):
    if (ours / name).exists() != (theirs / name).exists():
      return f'{name} is only in one'
    if (theirs / name).exists() and timeless(json.loads(
        (ours / name).read_text())) != timeless(json.loads(
            (theirs / name).read_text())):
      return name
  if [timeless(row) for row in metrics.read(ours)] != [
      timeless(row) for row in metrics.read(theirs)]:
    return 'metrics.jsonl'
  phases = {path.parent.relative_to(theirs / 'checkpoints')
            for path in (theirs / 'checkpoints').rglob('0*')
            if (path / 'manifest.json').exists()}
  for phase in sorted(phases):
    if arrays(ours / 'checkpoints' / phase) != arrays(
        theirs / 'checkpoints' / phase):
      return f'the last checkpoint of {phase}'
  return ''


def same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  """Checks that two runs are the same, bit for bit.

  Raises:
    Bad: they differ.
  """
  if differs := difference(ours, theirs):
    raise inputs.Bad(f'differs from the uninterrupted run in {differs}')


def fresh(context: campaign.Context, part: str, name: str) -> pathlib.Path:
  """An empty folder of a case."""
  folder = context.state / part / name
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  return folder

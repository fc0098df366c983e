"""Real processes of the campaign, and whether two runs are the same."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

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

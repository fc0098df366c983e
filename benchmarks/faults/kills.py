"""kill -9 at random moments, in six kinds of work; the same end, bit for bit.

A chain is one piece of work: it is killed, started again, killed again, ...
and at last left alone. The first kill of a chain is at a named moment (a file
that has just been written); the others are uniform in the time that the
uninterrupted work takes. Work that ends before its next kill is compared, and
the chain goes on with a new one until it has had all its kills.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.faults import campaign, inputs, runs
from rome_jax import files

_KILLS = 5  # in a chain
_CHAINS = {'search': 4, 'retrain': 4, 'split': 3, 'pada': 3, 'compare': 3,
           'export': 3}
_FIRST = {
    'search': ('checkpoints/search/*.partial', 'genotype.json',
               'result.json', 'metrics.jsonl'),
    'retrain': ('checkpoints/retrain/*/*.partial', 'phases/*', 'result.json',
                'dataset.json'),
    'split': ('checkpoints/search/root/*.partial', 'split.json',
              'checkpoints/search/leaf-02/0*'),
    'pada': ('checkpoints/search/*.partial', 'evolution.json', 'phases/*'),
    'compare': ('*/*/checkpoints/search/*.partial', 'compare.json',
                'gdas/*/config.json'),
    'export': ('.network*', 'network', 'network.json'),
}


def _argv(context, kind, folder):
  if kind == 'compare':
    return [sys.executable, '-m', 'rome_jax', 'compare',
            f'--config={runs.CONFIG}', f'--workdir={folder}']
  if kind == 'export':
    return [sys.executable, '-m', 'rome_jax', 'export',
            str(runs.whole(context, 'retrain')[0]), '--to=stablehlo',
            f'--config={runs.CONFIG}',
            f'--out={folder / "network"}']
  return runs.command(kind, folder)


def _whole(context, kind):
  """(folder of the uninterrupted work, its seconds)."""
  if kind not in ('compare', 'export'):
    return runs.whole(context, kind)
  folder = context.state / 'whole' / kind
  note = folder.with_suffix('.json')
  if not note.exists():
    for _ in range(2):  # The second finds all programs in the cache.
      shutil.rmtree(folder, ignore_errors=True)
      folder.mkdir(parents=True)
      began = time.monotonic()
      runs.success(*runs.finish(
          context, _argv(context, kind, folder), folder.with_suffix('.log')))
    files.write_json(note, time.monotonic() - began)
  return folder, json.loads(note.read_text())


def _difference(kind, ours, theirs):
  if kind == 'export':
    names = {path.name for path in theirs.iterdir()}
    for name in names:
      if _digest(ours / name) != _digest(theirs / name):
        return name
    return ''
  if kind == 'compare':
    for path in sorted(theirs.glob('*/*')):
      if path.is_dir() and (found := runs.difference(
          ours / path.relative_to(theirs), path)):
        return f'{path.name}: {found}'
    a, b = (runs.timeless(files.read_json(folder / 'compare.json'))
            for folder in (ours, theirs))
    return '' if a == b else 'compare.json'
  return runs.difference(ours, theirs)


def _digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _end(process, alone):
  """kill -9 of a process, and of those it started unless it dies alone."""
  children = [] if alone else _children(process.pid)
  for pid in (process.pid, *children):
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
  process.wait()


def _children(pid):
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      text = path.read_text()
    except OSError:
      continue
    if int(text.rpartition(')')[2].split()[1]) == pid:
      found.append(int(path.parent.name))
  return found


def _chain(context, kind, number):
  theirs, seconds = _whole(context, kind)
  rng = np.random.default_rng([context.seed, list(_CHAINS).index(kind), number])
  folder = runs.fresh(context, 'kills', f'{kind}-{number}')
  work, log = folder / 'work', folder / 'log'
  argv = _argv(context, kind, work)
  first = _FIRST[kind][number % len(_FIRST[kind])]
  moments = []
  while len(moments) < _KILLS:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    ended = False
    while not ended:
      log.unlink(missing_ok=True)
      process = runs.start(context, argv, log)
      if not moments:
        where = first
        runs.until(lambda: any(work.glob(first)), process)
      else:
        moment = rng.uniform(0, seconds)
        where = f'{moment:.1f} s'
        _wait(process, moment if len(moments) < _KILLS else runs.LIMIT)
      ended = process.poll() is not None
      if not ended and len(moments) == _KILLS:
        raise inputs.Bad(f'no end within {runs.LIMIT} s after {moments}')
      if not ended:
        # Of a comparison, now and then the parent alone, as the OOM killer may.
        _end(process, alone=kind == 'compare' and bool(rng.random() < .5))
        moments.append(where)
    said = log.read_text(errors='replace')
    if process.returncode or 'Traceback' in said:
      raise inputs.Bad(
          f'code {process.returncode} after {moments}: {said[-600:]}')
    if differs := _difference(kind, work, theirs):
      raise inputs.Bad(f'{differs} differs after {moments}')
  shutil.rmtree(folder)
  return campaign.Seen(
      True, f'killed at {", ".join(moments)}; the same end',
      {'kills': len(moments)})


def _wait(process, seconds):
  try:
    process.wait(seconds)
  except subprocess.TimeoutExpired:
    pass


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Chains of every kind, in turn; none in the short form.

  tests/cli/test_run.py kills a search and a retraining.
  """
  if context.short:
    return
  for number in range(max(_CHAINS.values())):
    for kind, count in _CHAINS.items():
      if number < count:
        yield campaign.Case(
            f'{kind}-{number}', kind,
            lambda k=kind, n=number: _chain(context, k, n))

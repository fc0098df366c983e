"""kill -9 at random moments, in six kinds of work; the same end, bit for bit.

A chain is one piece of work: it is killed, started again, killed again, ...
and at last left alone. The first kill of a chain is at a named moment (a file
that has just been written); the others are uniform in the time that the
uninterrupted work takes. If none of them left a checkpoint to go on from, the
last waits for a step after one. Work that ends before its next kill is
compared, and the chain goes on with a new one until it has had all its kills.
Each start must go on from where the one before was (`runs.went_on`).
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
_STARTS = 20  # of a chain; more mean that its kills never come
_TRIES = 3  # to see a first moment, which may be short
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
    # kill -9 leaves the hidden file that was being written.
    names = [{path.name for path in folder.iterdir()
              if not path.name.startswith('.network.')}
             for folder in (ours, theirs)]
    if only := names[0] ^ names[1]:
      return f'{sorted(only)}, only in one,'
    for name in sorted(names[1]):
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
  chain = _Chain(context, kind, number, seconds)
  done = False
  while not done:
    if chain.starts == _STARTS:
      raise inputs.Bad(f'no end in {_STARTS} starts after {chain.told()}')
    if chain.start():
      if differs := _difference(kind, chain.work, theirs):
        raise inputs.Bad(f'{differs} differs after {chain.told()}')
      done = len(chain.kills) == _KILLS
      chain.begin()
  shutil.rmtree(chain.work.parent)
  places = [at for _, at in chain.kills]
  return campaign.Seen(
      True, f'killed at {chain.told()}; the same end',
      {'kills': len(places), 'starts': chain.starts,
       'at': [at.text for at in places],
       **{kind: sum(at.kind == kind for at in places)
          for kind in runs.KINDS}})


class _Chain:
  """The mutable part of a chain: its work, its starts and its kills.

  Attributes:
    work: folder of the work.
    starts: of processes.
    kills: (the moment that was asked for, `runs.Place` where it fell).
  """

  def __init__(self, context, kind, number, seconds):
    self._context, self._kind, self._seconds = context, kind, seconds
    self._rng = np.random.default_rng(
        [context.seed, list(_CHAINS).index(kind), number])
    self._first = _FIRST[kind][number % len(_FIRST[kind])]
    folder = runs.fresh(context, 'kills', f'{kind}-{number}')
    self.work, self._log = folder / 'work', folder / 'log'
    self._argv = _argv(context, kind, self.work)
    self._missed = self.starts = 0
    # Whether a kill in training has left a checkpoint to go on from.
    self._tells = kind == 'export'
    self.kills: list[tuple[str, runs.Place]] = []
    self.begin()

  def begin(self) -> None:
    """Fresh work."""
    shutil.rmtree(self.work, ignore_errors=True)
    self.work.mkdir()
    self._marks, self._fresh = {}, True

  def told(self) -> str:
    """The kills, in words."""
    return ', '.join(f'{asked} ({at.text})' for asked, at in self.kills)

  def start(self) -> bool:
    """Starts the work once; whether it ended, and was not killed.

    Raises:
      Bad: it ended badly, did not go on from where it was, or never came to
        the first moment.
    """
    self.starts += 1
    self._log.unlink(missing_ok=True)
    since = time.time()
    process = runs.start(self._context, self._argv, self._log)
    try:
      asked = self._wait(process, since)
      if asked and self._kill(process, asked, since):
        return False
      if process.poll() is None:
        raise inputs.Bad(f'no end within {runs.LIMIT} s after {self.told()}')
    finally:
      if process.poll() is None:
        runs.kill(process)
    if self._fresh:  # The machine may be less busy than it was.
      self._seconds = min(self._seconds, time.time() - since)
    try:
      runs.success(process.returncode, self._log.read_text(errors='replace'))
      runs.went_on(self._marks)
    except inputs.Bad as error:
      raise inputs.Bad(f'{error}; after {self.told()}') from error
    if not self.kills:
      self._missed += 1
      if self._missed == _TRIES:
        raise inputs.Bad(f'never at {self._first}')
    return True

  def _wait(self, process, since):
    """Waits for the next moment; its name, or '' if the work ended before."""
    if len(self.kills) == _KILLS:
      _ends(process, runs.LIMIT)
      return ''
    if not self.kills:
      asked, seen = self._first, lambda: any(self.work.glob(self._first))
    elif len(self.kills) == _KILLS - 1 and not self._tells:
      asked, seen = 'a step after a checkpoint', lambda: (
          runs.place(self.work, since).kind == runs.TRAINING
          and runs.marks(self.work))
    else:
      moment = self._rng.uniform(0, self._seconds)
      return '' if _ends(process, moment) else f'{moment:.1f} s'
    # What is seen once the process is gone cannot be killed at any more.
    return asked if runs.until(seen, process) and (
        process.poll() is None) else ''

  def _kill(self, process, asked, since):
    """Whether the process was there to be killed."""
    # Of a comparison, now and then the parent alone, as the OOM killer may.
    alone = self._kind == 'compare' and bool(self._rng.random() < .5) and (
        self._tells or len(self.kills) < _KILLS - 1)
    _end(process, alone)
    if process.returncode != -signal.SIGKILL:
      return False
    at = runs.place(self.work, since)
    self.kills.append((asked, at))
    runs.went_on(self._marks, ended=False)
    if not alone:  # A run that is left saves and stops; it may be at that.
      self._marks = runs.marks(self.work)
      self._tells |= bool(self._marks) and at.kind != runs.BEFORE
    self._fresh = False
    return True


def _ends(process, seconds):
  """Whether a process ends within a time."""
  try:
    process.wait(seconds)
  except subprocess.TimeoutExpired:
    return False
  return True


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

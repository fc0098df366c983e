"""Checkpoints damaged file by file, clocks set back, counters that leap."""

import logging
import os
import shutil
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.faults import campaign, inputs, runs
from rome_jax import errors, files
from rome_jax.train import checkpoint

_BITS = 20  # flipped in each file, one at a time
_SETS_CLOCK = '''
import datetime, sys, time
real = time.time
time.time = lambda: real() - 4e7
time.time_ns = lambda: int(time.time() * 1e9)
from rome_jax.cli import run
sys.exit(run.main(sys.argv[1:]))
'''


def _stopped(context, kind='search'):
  """A folder with a run that was killed after two checkpoints."""
  folder = context.state / 'stopped' / kind
  if not (folder / 'made').exists():
    shutil.rmtree(folder, ignore_errors=True)
    workdir = folder / 'run'
    place = workdir / 'checkpoints' / ('search' if kind == 'search' else '')
    runs.kill_at(context, runs.command(kind, workdir), folder / 'log',
                 'step 12', (place / '00000012').exists)
    if (workdir / 'result.json').exists() or len(_complete(place)) < 2 or (
        not runs.marks(workdir)):
      raise inputs.Bad('the run to damage was not killed in its search')
    (folder / 'made').touch()
  return folder / 'run'


def _complete(folder):
  return sorted(path for path in folder.glob('0*[0-9]')
                if (path / 'manifest.json').exists())


def _small(folder):
  """Two checkpoints of a small state, for what needs no run."""
  state = {'w': np.random.default_rng(0).normal(size=(20, 7)).astype('f4'),
           'step': np.array(1, np.int32), 'none': np.zeros((0, 2))}
  with checkpoint.Checkpoints(folder) as store:
    for step in (1, 2):
      store.save(step, {**state, 'step': np.array(step, np.int32)})
      store.wait()


def _truncate(path, rng):
  path.write_bytes(path.read_bytes()[:int(rng.integers(path.stat().st_size))])


def _empty(path, rng):
  path.write_bytes(b'')


def _flip(path, rng):
  data = bytearray(path.read_bytes())
  at = int(rng.integers(len(data)))
  data[at] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)


def _remove(path, rng):
  path.unlink()


def _longer(path, rng):
  path.write_bytes(path.read_bytes() + b'\0')


_DAMAGES = {'truncated': _truncate, 'emptied': _empty, 'one bit flipped': _flip,
            'removed': _remove, 'a byte longer': _longer}


class _Warnings(logging.Handler):
  def __init__(self):
    super().__init__(logging.WARNING)
    self.texts = []

  def emit(self, record):
    self.texts.append(record.getMessage())


def _each_file(context, what, source):
  """One damage to each file of the newest checkpoint, one file at a time."""
  rng = np.random.default_rng([context.seed, len(what)])
  folder = runs.fresh(context, 'damage', what.replace(' ', '-'))
  copy = folder / 'checkpoints'
  tried = 0
  newest = max(path.name for path in source.iterdir() if path.name.isdigit())
  older = max(path.name for path in source.iterdir()
              if path.name.isdigit() and path.name != newest)
  manifest = files.read_json(source / older / 'manifest.json')
  target = {name: np.empty(shape, dtype)
            for name, shape, dtype in manifest['body']['leaves']}
  with checkpoint.Checkpoints(source) as store:
    wanted = store.read(int(older), target)
  logger = logging.getLogger(checkpoint.__name__)
  for path in sorted(p for p in (source / newest).rglob('*') if p.is_file()):
    if not path.stat().st_size:
      continue
    repeats = (2 if context.short else _BITS) if 'flipped' in what else 1
    for _ in range(repeats):
      shutil.copytree(source, copy)
      _DAMAGES[what](copy / path.relative_to(source), rng)
      handler = _Warnings()
      logger.addHandler(handler)
      logger.propagate = False
      try:
        with checkpoint.Checkpoints(copy) as store:
          step, state = store.restore(target)
      finally:
        logger.removeHandler(handler)
        logger.propagate = True
      if step != int(older) or len(handler.texts) != 1 or any(
          state[name].tobytes() != array.tobytes()
          for name, array in wanted.items()):
        raise inputs.Bad(f'{path.name}: step {step}, said {handler.texts}')
      tried += 1
      shutil.rmtree(copy)
  return campaign.Seen(True, f'{tried} times the older one was taken, and it '
                       'was said', {'tried': tried})


def _leap(context, source):
  """A checkpoint under the number of a later step."""
  folder = runs.fresh(context, 'damage', 'leap')
  shutil.copytree(source, folder / 'checkpoints')
  steps = sorted(p.name for p in source.iterdir() if p.name.isdigit())[-2:]
  (folder / 'checkpoints' / steps[-1]).rename(
      folder / 'checkpoints' / f'{int(steps[-1]) + 16:08d}')
  manifest = files.read_json(source / steps[0] / 'manifest.json')
  target = {name: np.empty(shape, dtype)
            for name, shape, dtype in manifest['body']['leaves']}
  with checkpoint.Checkpoints(folder / 'checkpoints') as store:
    step, _ = store.restore(target)
    if step != int(steps[0]) or not store.damaged:
      raise inputs.Bad(f'step {step} was taken')
    said = store.damaged[0][1]
  try:
    checkpoint.read_tree(folder / 'checkpoints', 'state')
    raise inputs.Bad('read_tree took it')
  except errors.UserError:
    pass
  return campaign.Seen(True, said)


def _continued(context, name, change, *words, code='', damaged=0, **variables):
  """Something done to a stopped run; then it ends as the uninterrupted one."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'damage', name)
  workdir = folder / 'run'
  shutil.copytree(_stopped(context), workdir)
  change(workdir)
  argv = runs.command('search', workdir)
  if code:
    argv[1:3] = ['-c', code]
  said = runs.continued(
      context, argv, folder / 'log', workdir, damaged, **variables)
  if missing := [word for word in words if word not in said]:
    raise inputs.Bad(f'{missing} not in {said[-500:]}')
  runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, 'the same end, bit for bit')


def _newest(workdir):
  return _complete(workdir / 'checkpoints' / 'search')[-1]


def _whole_folder(workdir):
  for path in _newest(workdir).rglob('*'):
    if path.is_file():
      path.write_bytes(b'')


def _future(workdir):
  for path in workdir.rglob('*'):
    os.utime(path, (time.time() + 3e7,) * 2)


def _rename(workdir):
  newest = _newest(workdir)
  newest.rename(newest.with_name('00000028'))


def _later_lines(workdir):
  with open(workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"phase": "search", "step": 999, "time": 1, "tau": 1}\n')


def _half_a_line(workdir):
  with open(workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"phase": "search", "st')


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Each file in each way; whole runs, which the short form leaves out."""
  def source():
    if not context.short:
      return _stopped(context) / 'checkpoints' / 'search'
    small = context.state / 'damage' / 'small'
    if not small.exists():
      _small(small)
    return small

  for what in _DAMAGES:
    yield campaign.Case(what, 'each file of a checkpoint',
                        lambda what=what: _each_file(context, what, source()))
  yield campaign.Case('leap', 'clock and counter',
                      lambda: _leap(context, source()))
  if context.short:
    return
  said = ('is damaged', 'trying the one before it')
  for name, change, words in (
      ('run-emptied', _whole_folder, said), ('run-leap', _rename, said),
      ('run-later-lines', _later_lines, ()),
      ('run-half-a-line', _half_a_line, ()), ('run-future-files', _future, ())):
    yield campaign.Case(
        name, 'clock and counter' if 'leap' in name or 'future' in name
        or 'later' in name else 'a run goes on',
        lambda n=name, c=change, w=words: _continued(
            context, n, c, *w, damaged=int(w == said)))
  yield campaign.Case(
      'run-clock-back', 'clock and counter', lambda: _continued(
          context, 'run-clock-back', lambda workdir: None, code=_SETS_CLOCK))
  yield campaign.Case('run-no-cache', 'programs in the cache', lambda: (
      _continued(context, 'no-cache', lambda workdir: _hurt_cache(context),
                 XDG_CACHE_HOME=str(context.state / 'hurt'))))


def _hurt_cache(context):
  """Every compiled program cut short, as kill -9 may leave one."""
  hurt = context.state / 'hurt'
  shutil.rmtree(hurt, ignore_errors=True)
  shutil.copytree(context.state / 'cache', hurt)
  for path in hurt.rglob('*'):
    if path.is_file() and path.stat().st_size:
      path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])

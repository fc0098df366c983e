"""Full and read-only disks, and folders on different file systems.

Needs the right to mount; without it the cases are not run.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.faults import campaign, inputs, runs

_SPACE = 48  # MB of the small disk


@contextlib.contextmanager
def _disk(folder, megabytes=_SPACE):
  """A small disk of its own."""
  folder.mkdir(parents=True, exist_ok=True)
  subprocess.run(['umount', '-q', str(folder)], check=False,
                 capture_output=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs',
                  str(folder)], check=True, capture_output=True)
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True,
                   capture_output=True)


@contextlib.contextmanager
def _read_only(folder):
  subprocess.run(['mount', '--bind', folder, folder], check=True)
  try:
    subprocess.run(['mount', '-o', 'remount,ro,bind', folder], check=True)
    yield
  finally:
    subprocess.run(['umount', '-l', folder], check=True)


def may_mount(context: campaign.Context) -> bool:
  """Whether this process may mount a disk."""
  try:
    with _disk(context.state / 'disk' / 'probe', 1):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


def _full(context, moment, kind='search', flags=()):
  """The disk is full before `moment`; then there is space again."""
  theirs, _ = runs.whole(context, kind)
  folder = runs.fresh(context, 'disk', f'{moment}-{kind}')
  with _disk(folder / 'small') as disk:
    workdir = disk / 'run'
    argv = runs.command(kind, workdir, *flags)
    ballast = disk / 'ballast'
    filled = [sys.executable, '-m', 'benchmarks.faults.full', moment,
              str(ballast), 'rome_jax.cli.run', *argv[3:]]
    code, said = runs.finish(context, filled, folder / 'log')
    if not ballast.exists():
      raise inputs.Bad(f'never at {moment}: {said[-300:]}')
    text = runs.sentence(code, said, 'cannot write', 'No space left on device')
    ballast.unlink()
    runs.continued(context, argv, folder / 'log', workdir)
    if not flags:
      runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, text)


def _full_at_start(context):
  """No space for the first file: nothing is compiled, only the lock is left."""
  folder = runs.fresh(context, 'disk', 'at-start')
  with _disk(folder / 'small', 1) as disk:
    workdir, ballast = disk / 'run', disk / 'ballast'
    code, said = runs.finish(context, [
        sys.executable, '-m', 'benchmarks.faults.full', 'config.json',
        str(ballast), 'rome_jax.cli.run',
        *runs.command('search', workdir)[3:]], folder / 'log')
    text = runs.sentence(code, said, 'cannot write', 'No space left on device')
    left = [path.name for path in workdir.iterdir()]
    if 'compiling' in said or left != ['.lock']:
      raise inputs.Bad(f'it compiled, or left {left}')
  return campaign.Seen(True, text)


def _full_export(context, to):
  """An export to a full disk; then there is space again."""
  theirs, _ = runs.whole(context, 'retrain')
  folder = runs.fresh(context, 'disk', f'export-{to}')
  with _disk(folder / 'small') as disk:
    out = disk / 'network'
    argv = ['export', str(theirs), f'--to={to}', f'--out={out}',
            f'--config={runs.CONFIG}']
    ballast = disk / 'ballast'
    code, said = runs.finish(context, [
        sys.executable, '-m', 'benchmarks.faults.full', 'network', str(ballast),
        'rome_jax.cli.export', *argv[1:]], folder / 'log')
    text = runs.sentence(code, said, 'No space left on device')
    if left := [path.name for path in disk.iterdir() if path != ballast]:
      raise inputs.Bad(f'{left} is left')
    ballast.unlink()
    runs.success(*runs.finish(
        context, [sys.executable, '-m', 'rome_jax', *argv], folder / 'log'))
  shutil.rmtree(folder)
  return campaign.Seen(True, text)


def _full_comparison(context):
  """A comparison whose page does not fit."""
  folder = runs.fresh(context, 'disk', 'compare')
  with _disk(folder / 'small') as disk:
    ballast = disk / 'ballast'
    flags = [f'--config={runs.CONFIG}', f'--workdir={disk / "run"}',
             '--config.search.max_steps=6']
    code, said = runs.finish(context, [
        sys.executable, '-m', 'benchmarks.faults.full', 'compare.json',
        str(ballast), 'rome_jax.cli.compare', *flags], folder / 'log')
    text = runs.sentence(code, said, 'No space left on device')
    ballast.unlink()
    runs.continued(
        context, [sys.executable, '-m', 'rome_jax', 'compare', *flags],
        folder / 'log', disk / 'run')
    if not (disk / 'run' / 'compare.html').exists():
      raise inputs.Bad('no page')
  shutil.rmtree(folder)
  return campaign.Seen(True, text)


def _full_log(context):
  """What the run prints goes to the full disk, too."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'disk', 'log')
  with _disk(folder / 'small') as disk:
    workdir, ballast = disk / 'run', disk / 'ballast'
    argv = runs.command('search', workdir)
    process = runs.start(context, [
        sys.executable, '-m', 'benchmarks.faults.full', 'arrays', str(ballast),
        'rome_jax.cli.run', *argv[3:]], disk / 'log')
    try:
      code = process.wait(runs.LIMIT)
    finally:
      runs.kill(process)
    if code != 2:
      raise inputs.Bad(f'code {code}: {(disk / "log").read_text()[-500:]}')
    ballast.unlink()
    runs.continued(context, argv, disk / 'log', workdir)
    runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, 'code 2, then the same end')


def _read_only_workdir(context, begun):
  """A workdir that cannot be written, then can."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'disk', f'read-only-{begun}')
  place = folder / 'place'
  place.mkdir()
  workdir = place / 'run'
  argv = runs.command('search', workdir)
  if begun:
    runs.kill_at(context, argv, folder / 'log', 'step 8', (
        workdir / 'checkpoints' / 'search' / '00000008').exists)
    if not runs.marks(workdir):
      raise inputs.Bad('the run was not killed in its search')
  with _read_only(str(place)):
    code, said = runs.finish(context, argv, folder / 'log')
    text = runs.sentence(code, said, str(workdir))
    if 'compiling' in said:
      raise inputs.Bad('it compiled first')
  runs.continued(context, argv, folder / 'log', workdir)
  runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, text)


def _finished_read_only(context):
  """A finished run on a disk that cannot be written, as an archive is."""
  theirs, _ = runs.whole(context, 'search')
  with _read_only(str(theirs)):
    code, said = runs.finish(
        context, runs.command('search', theirs), context.state / 'disk' / 'log')
  runs.success(code, said)
  return campaign.Seen(True, 'finished; it says so')


def _other_file_system(context, what):
  """Temporary folder, workdir or cache on a disk of its own."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'disk', f'other-{what}')
  with _disk(folder / 'small', 1 if what == 'XDG_CACHE_HOME' else 64) as disk:
    workdir = disk / 'run' if what == 'workdir' else folder / 'run'
    more = {} if what == 'workdir' else {what: str(disk)}
    runs.success(*runs.finish(
        context, runs.command('search', workdir), folder / 'log', **more))
    runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, 'the same end')


_MOMENTS = ('config.json', 'dataset.json', 'arrays', 'manifest.json', 'line',
            'genotype.json', 'search.json', 'cell_normal.svg', 'result.json',
            'report.html')


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Ten moments of a run, exports, a comparison; read-only; other disks."""
  for case in _cases(context):
    yield case._replace(run=lambda run=case.run: _mounted(context, run))


def _mounted(context, run):
  if not may_mount(context):
    raise campaign.NotRunError('no right to mount')
  return run()


def _cases(context):
  if context.short:
    yield campaign.Case('full-at-start', 'full disk',
                        lambda: _full_at_start(context))
    return
  for moment in _MOMENTS:
    yield campaign.Case(f'full-{moment}', 'full disk',
                        lambda moment=moment: _full(context, moment))
  yield campaign.Case('full-split.json', 'full disk', lambda: _full(
      context, 'split.json', 'split'))
  yield campaign.Case('full-retraining', 'full disk', lambda: _full(
      context, 'arrays', 'retrain'))
  for to in ('stablehlo', 'safetensors'):
    yield campaign.Case(f'full-export-{to}', 'full disk',
                        lambda to=to: _full_export(context, to))
  yield campaign.Case('full-compare', 'full disk',
                      lambda: _full_comparison(context))
  yield campaign.Case('full-log', 'full disk', lambda: _full_log(context))
  for begun in (False, True):
    yield campaign.Case(f'read-only-{"begun" if begun else "new"}', 'read-only',
                        lambda b=begun: _read_only_workdir(context, b))
  yield campaign.Case('read-only-finished', 'read-only',
                      lambda: _finished_read_only(context))
  for what in ('workdir', 'TMPDIR', 'XDG_CACHE_HOME'):
    yield campaign.Case(f'other-{what}', 'other file systems',
                        lambda what=what: _other_file_system(context, what))

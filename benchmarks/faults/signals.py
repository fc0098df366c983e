"""Signals at bad moments, and two processes in one workdir."""

import shutil
import signal
import sys
import time
from collections.abc import Iterator

from benchmarks.faults import campaign, inputs, runs

_KINDS = ('SIGTERM', 'SIGINT')


def _log_has(log, words):
  return lambda: log.exists() and words in log.read_text(errors='replace')


def _partial(workdir):
  """A checkpoint that is being written."""
  folder = workdir / 'checkpoints' / 'search'
  return lambda: folder.exists() and any(folder.glob('0*.partial'))


_MOMENTS = {
    'compiling': lambda workdir, log: _log_has(log, 'search: compiling'),
    'checkpoint': lambda workdir, log: _partial(workdir),
    'start': lambda workdir, log: lambda: True,
    'report': lambda workdir, log: (workdir / 'result.json').exists,
}


def _signalled(context, name, moment, times, wait):
  """A signal, or two, then the same command: the uninterrupted run's end."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'signals', f'{name}-{moment}-{times}')
  workdir, log = folder / 'run', folder / 'log'
  number = getattr(signal, name)
  argv = runs.command('search', workdir)
  process = runs.start(context, argv, log)
  try:
    runs.reach(moment, _MOMENTS[moment](workdir, log), process, log)
    time.sleep(wait)
    began = time.monotonic()
    process.send_signal(number)
    for _ in range(times - 1):
      time.sleep(.3)
      process.send_signal(number)
    code = process.wait(120)
    took = time.monotonic() - began
  finally:
    runs.kill(process)
  said = log.read_text()
  # A first request ends the run saved; a second, or one before there is
  # anything to save, at once.
  wanted = {0} if times == 1 and moment != 'start' else {0, 130, -number}
  if code not in wanted or 'Traceback' in said:
    raise inputs.Bad(f'code {code}: {said[-500:]}')
  _stopped(name, moment, code, said, workdir)
  runs.continued(context, argv, log, workdir)
  runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(
      True, f'code {code} after {took:.1f} s, then the same end',
      {'end_seconds': round(took, 2)})


def _stopped(name, moment, code, said, workdir):
  """Checks that a signal ended a run early: a tiny one would end by itself."""
  if moment == 'report':  # It may as well write the last file.
    return
  if (workdir / 'result.json').exists():
    raise inputs.Bad(f'it went on after {name} to its end')
  if not code and f'stopped by {name}' not in said:
    raise inputs.Bad(f'it does not say that {name} stopped it: {said[-300:]}')
  if not code and moment == 'checkpoint' and not runs.marks(workdir):
    raise inputs.Bad('it left no checkpoint')


def _second_process(context):
  """A second process while the first one compiles, and while it trains."""
  theirs, _ = runs.whole(context, 'search')
  folder = runs.fresh(context, 'signals', 'second')
  workdir, log = folder / 'run', folder / 'log'
  argv = runs.command('search', workdir)
  first = runs.start(context, argv, log)
  try:
    runs.reach('its lock', (workdir / '.lock').exists, first, log)
    began = time.monotonic()
    code, said = runs.finish(context, argv, folder / 'second')
    took = time.monotonic() - began
    text = runs.sentence(code, said, 'another process is running', str(workdir))
    if 'compiling' in said:
      raise inputs.Bad('it compiled first')
    runs.success(first.wait(runs.LIMIT), log.read_text())
  finally:
    runs.kill(first)
  runs.same(workdir, theirs)
  shutil.rmtree(folder)
  return campaign.Seen(True, f'{text} ({took:.1f} s)')


def _second_comparison(context, what):
  """A second comparison or sweep in the same folder."""
  folder = runs.fresh(context, 'signals', f'second-{what}')
  log, workdir = folder / 'log', folder / 'run'
  flags = [] if what == 'compare' else ['--seeds=0,1']
  argv = [sys.executable, '-m', 'rome_jax', what, f'--config={runs.CONFIG}',
          f'--workdir={workdir}', '--config.search.max_steps=6', *flags]
  first = runs.start(context, argv, log)
  try:
    runs.reach('its lock', lambda: any(workdir.glob('**/.lock')), first, log)
    code, said = runs.finish(context, argv, folder / 'second')
    text = runs.sentence(code, said, 'another process is running', str(workdir))
    runs.success(first.wait(runs.LIMIT), log.read_text())
  finally:
    runs.kill(first)
  shutil.rmtree(folder)
  return campaign.Seen(True, text)


def _stopped_comparison(context, name):
  """A signal to a comparison reaches its run, and the same command ends it."""
  folder = runs.fresh(context, 'signals', f'compare-{name}')
  log, workdir = folder / 'log', folder / 'run'
  argv = [sys.executable, '-m', 'rome_jax', 'compare',
          f'--config={runs.CONFIG}', f'--workdir={workdir}',
          '--config.search.max_steps=6']
  process = runs.start(context, argv, log)
  try:
    runs.reach('a lock', lambda: any(workdir.glob('*/*/.lock')), process, log)
    process.send_signal(getattr(signal, name))
    code = process.wait(120)
  finally:
    runs.kill(process)
  said = log.read_text()
  if code or 'Traceback' in said:
    raise inputs.Bad(f'code {code}: {said[-500:]}')
  if len(list(workdir.glob('*/*/result.json'))) == 2:
    raise inputs.Bad(f'both runs went on after {name} to their ends')
  runs.continued(context, argv, log, workdir)
  if len(list(workdir.glob('*/*/result.json'))) != 2:
    raise inputs.Bad('a run is missing')
  shutil.rmtree(folder)
  return campaign.Seen(True, 'both arms are done after the second start')


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Moments for each signal, and second processes.

  None in the short form: tests/cli/test_run.py has one of each.
  """
  if context.short:
    return
  yield campaign.Case('second-run', 'two processes',
                      lambda: _second_process(context))
  for what in ('compare', 'sweep'):
    yield campaign.Case(f'second-{what}', 'two processes',
                        lambda what=what: _second_comparison(context, what))
  for name in _KINDS:
    yield campaign.Case(f'{name}-compare', 'signals',
                        lambda name=name: _stopped_comparison(context, name))
    for moment, times, wait in (
        ('start', 1, .7), ('start', 1, 2.), ('compiling', 1, .1),
        ('compiling', 2, .1), ('checkpoint', 1, 0.), ('checkpoint', 2, 0.),
        ('report', 1, 0.)):
      yield campaign.Case(
          f'{name}-{moment}-{times}-{wait}', 'signals',
          lambda n=name, m=moment, t=times, w=wait: _signalled(
              context, n, m, t, w))

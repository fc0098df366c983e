"""Several processes: one is killed; the others end, and the run goes on."""

import shutil
import signal
import socket
import time
from collections.abc import Iterator

from benchmarks.faults import campaign, inputs, runs
from rome_jax import files

_HEARTBEAT = 15
_WITHIN = 60  # seconds
# Sums over devices round differently, and what differs grows with the steps; in
# so few, with alphas so far apart, no choice is a matter of rounding.
_FLAGS = ('--config.retrain.seeds=1', '--config.search.max_steps=12',
          '--config.search.alpha_lr=.05')
_PHASES = {
    'start': (lambda workdir, log: lambda: True),
    'compiling': (lambda workdir, log: lambda: 'compiling' in _text(log)),
    'search': (lambda workdir, log: (
        workdir / 'checkpoints/search/00000004').exists),
    'checkpoint': (lambda workdir, log: lambda: any(
        workdir.glob('checkpoints/search/*.partial'))),
    'genotype': (lambda workdir, log: (workdir / 'phases/search.json').exists),
    'retraining': (lambda workdir, log: lambda: any(
        workdir.glob('checkpoints/retrain/*/0*'))),
    'report': (lambda workdir, log: (workdir / 'result.json').exists)}


def _text(log):
  return log.read_text(errors='replace') if log.exists() else ''


def _devices(count):
  return {'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}


def _free_port():
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]


def _whole(context):
  """The genotype of one process with two devices."""
  folder = context.state / 'whole' / 'hosts'
  if not (folder / 'report.html').exists():
    runs.success(*runs.finish(
        context, runs.command('search', folder, *_FLAGS),
        folder.with_suffix('.log'), **_devices(2)))
  return files.read_json(folder / 'genotype.json')


def _killed(context, phase, which, then):
  """One of two is killed in a phase; `then` devices continue."""
  wanted = _whole(context)
  folder = runs.fresh(context, 'hosts', f'{phase}-{which}')
  workdir, port = folder / 'run', _free_port()
  argv = runs.command('search', workdir, *_FLAGS)
  logs = [folder / f'log-{i}' for i in range(2)]
  processes = [runs.start(context, [
      *argv, f'--coordinator=localhost:{port}', '--processes=2',
      f'--process={i}', f'--heartbeat={_HEARTBEAT}'], logs[i], **_devices(1))
      for i in range(2)]
  other = processes[1 - which]
  try:
    runs.reach(phase, _PHASES[phase](workdir, logs[0]), processes[0], logs[0])
    processes[which].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code = other.wait(_WITHIN + 60)
    took = time.monotonic() - began
  finally:
    for process in processes:
      runs.kill(process)
  said = _text(logs[1 - which])
  # Process 0 may have written all there is before process 1 died.
  finished = code == 0 and (workdir / 'report.html').exists()
  lines = [line for line in said.splitlines() if line.startswith('rome_jax: ')]
  # JAX itself ends the others with process 0, which holds its service.
  by_jax = which == 0 and code == -signal.SIGABRT
  # 2: not all had met; 4: one is lost.
  if not (finished or by_jax) and (
      code not in (2, 4) or len(lines) != 1 or 'Traceback' in said):
    raise inputs.Bad(f'code {code}, {len(lines)} sentences: {said[-600:]}')
  if took > _WITHIN:
    raise inputs.Bad(f'the other ended after {took:.0f} s')
  runs.continued(context, argv, folder / 'then', workdir, **_devices(then))
  found = files.read_json(workdir / 'genotype.json')
  if found != wanted:
    raise inputs.Bad(f'another genotype: {found}')
  shutil.rmtree(folder)
  return campaign.Seen(True, f'code {code} after {took:.0f} s; {then} devices '
                       f'end with the same genotype ({"".join(lines)[:200]})',
                       {'end_seconds': round(took, 1)})


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Every phase and either process; none in the short form.

  tests/devices/test_hosts_runs.py kills one of two that train a toy.
  """
  if context.short:
    return
  for i, phase in enumerate(_PHASES):
    for which in (1, 0):
      yield campaign.Case(
          f'{phase}-{which}', f'process {which} is killed',
          lambda p=phase, w=which, n=(1, 2, 4)[i % 3]: _killed(
              context, p, w, n))

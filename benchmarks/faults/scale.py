"""Many classes, images, steps and runs."""

import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.faults import campaign, inputs, runs
from rome_jax import files
from rome_jax.train import metrics

_STEPS = 100_000
_PATIENCE = 3000  # seconds for the steps
_GROWTH = 1.05  # of memory from a tenth to the end
_RESIDENT = ('VmRSS',)
# Of its own, whether in memory or swapped; what is resident shrinks by itself
# when others need memory.
_OWN = ('RssAnon', 'VmSwap')


def _memory(pid, names=_RESIDENT):
  """Bytes of a process, by names of /proc/PID/status; 0 once it is gone."""
  try:
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return 0
  return sum(1024 * int(line.split()[1]) for line in text.splitlines()
             if line.partition(':')[0] in names)


def _run(context, folder, argv, limit=1500.):
  """(seconds, most resident bytes) of a process that ends well."""
  began, most, log = time.monotonic(), 0, folder / 'log'
  process = runs.start(context, argv, log)
  try:
    while process.poll() is None:
      most = max(most, _memory(process.pid))
      if time.monotonic() - began > limit:
        raise inputs.Bad(f'more than {limit:.0f} s: {log.read_text()[-300:]}')
      time.sleep(.1)
  finally:
    runs.kill(process)
  runs.success(process.returncode, log.read_text())
  return time.monotonic() - began, most


def _images(path, count, classes):
  rng = np.random.default_rng(0)
  np.savez(path, x_train=rng.integers(0, 256, (count, 8, 8, 1), np.uint8),
           y_train=np.arange(count) % classes,
           x_test=rng.integers(0, 256, (2 * classes, 8, 8, 1), np.uint8),
           y_test=np.arange(2 * classes) % classes)


def _many_images(context, count, classes, *flags):
  folder = runs.fresh(context, 'scale', f'{count}-{classes}')
  _images(folder / 'images.npz', count, classes)
  seconds, most = _run(context, folder, runs.command(
      'search', folder / 'run', '--config.dataset=npz',
      f'--config.data_dir={folder / "images.npz"}',
      '--config.search.max_steps=12', *flags))
  result = files.read_json(folder / 'run' / 'result.json')
  shutil.rmtree(folder)
  return campaign.Seen(
      True, f'{count:,} images of {classes:,} classes: {seconds:.0f} s, '
      f'{most / 1e9:.2f} GB', {'run_seconds': round(seconds), 'bytes': most,
                               'steps': result['search']['steps']})


def _many_folders(context, classes=2000):
  from PIL import Image

  folder = runs.fresh(context, 'scale', 'folders')
  rng = np.random.default_rng(0)
  for c in range(classes):
    (folder / 'images' / f'class-{c:04d}').mkdir(parents=True)
    for i in range(3):
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
          folder / 'images' / f'class-{c:04d}' / f'{i}.png')
  seconds, most = _run(context, folder, runs.command(
      'search', folder / 'run', '--config.dataset=folder',
      f'--config.data_dir={folder / "images"}',
      '--config.search.max_steps=12', '--config.retrain.seeds=1'))
  shutil.rmtree(folder)
  return campaign.Seen(True, f'{classes:,} folders: {seconds:.0f} s, '
                       f'{most / 1e9:.2f} GB',
                       {'run_seconds': round(seconds), 'bytes': most})


def _many_steps(context):
  """The memory of a search of many steps, at a tenth and at the end."""
  folder = runs.fresh(context, 'scale', 'steps')
  workdir, log = folder / 'run', folder / 'log'
  argv = runs.command(
      'search', workdir, '--config.space=one_node', '--config.method=gdas',
      '--config.search.epochs=300', f'--config.search.max_steps={_STEPS}',
      '--config.search.cells=1',
      '--config.search.batch_size=2', '--config.log_every=500',
      '--config.checkpoint_every=5000', '--config.search.augment=none')
  began = time.monotonic()
  process = runs.start(context, argv, log)
  seen = []  # (step, bytes)
  try:
    while process.poll() is None and time.monotonic() - began < _PATIENCE:
      step = _last_step(workdir)
      if step and (not seen or seen[-1][0] < step):
        seen.append((step, _memory(process.pid, _OWN)))
      time.sleep(.5)
  finally:
    done = process.poll() is not None
    runs.kill(process)
  if not done:
    raise inputs.Bad(f'{_last_step(workdir):,} steps in {_PATIENCE} s')
  runs.success(process.returncode, log.read_text())
  seen = [pair for pair in seen if pair[1]]
  first, last = seen[0][0], seen[-1][0]
  tenth = min(seen, key=lambda pair: abs(
      pair[0] - (first + (last - first) // 10)))
  growth = seen[-1][1] / tenth[1]
  ended = _last_step(workdir)
  shutil.rmtree(folder)
  return campaign.Seen(
      growth < _GROWTH and ended == _STEPS and last > .9 * _STEPS,
      f'{last:,} steps in {time.monotonic() - began:.0f} s: '
      f'{tenth[1] / 1e6:.0f} MB after {tenth[0]:,} steps, '
      f'{seen[-1][1] / 1e6:.0f} MB after {last:,}',
      {'steps': last, 'bytes': seen[-1][1], 'growth': round(growth, 4)})


def _last_step(workdir):
  try:
    rows = metrics.read(workdir)
  except ValueError:
    return 0
  return rows[-1]['step'] if rows else 0


_METHODS = ('gdas', 'rome_v1', 'rome_v2', 'darts', 'snas', 'fair_darts',
            'pc_darts', 'spos', 'fairnas', 'pa')


def _many_runs(context):
  """Ten methods with five seeds each, in one comparison."""
  folder = context.state / 'scale' / 'runs'
  folder.mkdir(parents=True, exist_ok=True)
  config = folder / 'fifty.py'
  arms = {name: [
      f'--config={runs.CONFIG}', f'--config.method={name}',
      '--config.search.max_steps=2', '--config.search.batch_size=16',
      '--config.search.alpha_start=0', '--config.search.cells=1',
      '--config.search.channels=4', *(['--config.search.candidates=2'] if name
                                      in ('spos', 'fairnas', 'pa') else [])]
          for name in _METHODS}
  config.write_text(
      'from rome_jax import config\n'
      'def get_comparison():\n'
      f"  return config.Comparison('fifty', {arms!r}, seeds=range(5))\n"
      .replace('range(5)', '(0, 1, 2, 3, 4)'))
  seconds, _ = _run(context, folder, [
      sys.executable, '-m', 'rome_jax', 'compare', f'--config={config}',
      f'--workdir={folder / "run"}'], 6000.)
  found = json.loads((folder / 'run' / 'compare.json').read_text())
  done = sum(row['state'] == 'done' for row in found['runs'])
  page = (folder / 'run' / 'compare.html').stat().st_size
  shutil.rmtree(folder)
  return campaign.Seen(
      done == 50, f'{done} runs in {seconds:.0f} s, the page {page / 1e6:.1f} '
      'MB', {'runs': done, 'run_seconds': round(seconds)})


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Five sizes; none in the short form."""
  if context.short:
    return
  yield campaign.Case('classes', '2,000 classes', lambda: _many_images(
      context, 8000, 2000, '--config.retrain.seeds=1'))
  yield campaign.Case('folders', '2,000 classes',
                      lambda: _many_folders(context))
  yield campaign.Case('steps', '100,000 steps', lambda: _many_steps(context))
  yield campaign.Case('images', '1,000,000 images', lambda: _many_images(
      context, 1_000_000, 10))
  yield campaign.Case('runs', '50 runs in a comparison',
                      lambda: _many_runs(context))

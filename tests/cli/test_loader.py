"""A run that is killed under grain and goes on with threads, and back."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny_run import CONFIG, final_arrays

from rome_jax.train import metrics

TESTS = pathlib.Path(__file__).parents[1]
# Of a line of metrics: what the clock decides.
TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')
GRAIN = ('--config.loader=grain', '--config.loader_workers=2')


@pytest.fixture
def begin(tmp_path):
  """Starts the run of a folder with some flags, in some workdir."""
  rng = np.random.default_rng(0)
  for i in range(80):
    for part in ('train', 'val'):
      path = tmp_path / 'images' / part / 'ab'[i % 2] / f'{i:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(path)
  config = tmp_path / 'tiny.py'
  config.write_text(CONFIG.format(cache=str(tmp_path / 'cache')))
  flags = ['--config.dataset=folder', f'--config.data_dir={tmp_path}/images',
           '--config.image_size=8', '--config.method=pada',
           '--config.search.k=1', '--config.search.max_steps=8',
           '--config.search.evolution=random',
           '--config.search.candidates=2', '--config.search.batch_size=8',
           '--config.checkpoint_every=2', '--config.search.augment=imagenet',
           '--config.retrain.augment=imagenet',
           '--config.retrain.batch_size=16']

  def start(workdir, *more):
    return subprocess.Popen(
        [sys.executable, str(TESTS / 'runner.py'), f'--config={config}',
         f'--workdir={tmp_path / workdir}', *flags, *more], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {'JAX_PLATFORMS': 'cpu',
                          'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'})

  return start


def ends_well(process):
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return out


def when(process, path):
  deadline = time.monotonic() + 240
  while not path.exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(.005)


@pytest.mark.slow
def test_loaders_take_turns_in_one_run(begin, tmp_path):
  """PA&DA's weighted draws, killed and then stopped; equal to the bit."""
  pytest.importorskip('grain')
  ends_well(begin('whole'))
  checkpoints = tmp_path / 'turns' / 'checkpoints'
  process = begin('turns', *GRAIN)
  when(process, checkpoints / 'search' / '00000004')
  process.kill()
  process.communicate()
  process = begin('turns', '--config.loader_workers=1')
  when(process, checkpoints / 'search' / '00000006')
  process.send_signal(signal.SIGTERM)
  ends_well(process)
  ends_well(begin('turns', *GRAIN))
  for phase in ('search', 'retrain/derived-0'):
    assert final_arrays(tmp_path / 'turns', phase) == final_arrays(
        tmp_path / 'whole', phase)
  ours, theirs = ([{k: v for k, v in row.items() if k not in TIMES}
                   for row in metrics.read(tmp_path / name)]
                  for name in ('turns', 'whole'))
  assert ours == theirs
  result = json.loads((tmp_path / 'turns' / 'result.json').read_text())
  for part in (result['search'], *result['evaluations']):
    assert 0 <= part['input_wait_share'] <= 1

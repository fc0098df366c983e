"""Batches of grain's processes are those of a plain loop, and they end."""

import concurrent.futures
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from rome_jax import data, errors
from rome_jax.data import processes, splits
from rome_jax.devices import mesh as mesh_lib
from rome_jax.train import search

ROOT = pathlib.Path(__file__).parents[2]


def make_folder(root, count=24):
  """Two classes of JPEGs of several sizes, in train/ and val/."""
  rng = np.random.default_rng(0)
  for i in range(count):
    for part in ('train', 'val'):
      path = root / part / 'ab'[i % 2] / f'{i:02d}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      shape = (*rng.integers(12, 30, 2), 3)
      Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
  return root


def open_folder(root, loader='grain', workers=2):
  dataset = data.load('folder', str(root), image_size=16, lazy=True)
  return splits.read_by(dataset, splits.Reading(loader, workers))


def same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    if isinstance(value, dict):
      same(found[name], value)
    else:
      assert found[name].dtype == value.dtype, name
      np.testing.assert_array_equal(found[name], value, name)


def halves(dataset):
  """What a search with weighted draws and rising cutout reads."""
  transform = data.make_transform('imagenet', dataset, train=True)
  theta, alpha = data.halves(dataset.train.labels, .5, .5, 0)
  return search.Halves(
      data.Batches(dataset.train, theta, 4, 1, transform).weighted(
          np.random.default_rng(2).random(len(theta))),
      data.RampedBatches(dataset.train, alpha, 4, 2, transform, side=6,
                         chance=lambda step: step / 10))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp('images'))


def test_a_search_that_goes_on_in_the_middle_of_an_epoch(folder):
  """Weighted and ramped; from step 2 of 3, beyond the epoch's end."""
  pytest.importorskip('grain')
  plain = halves(open_folder(folder, 'threads'))
  with data.prefetch(halves(open_folder(folder)), 2, 9) as ahead:
    for step, batch in enumerate(ahead, 2):
      same(batch, plain(step))
      assert type(batch['train']['image']) is np.ndarray
    assert step == 8 and ahead.wait_seconds > 0


class Rows:
  """As `mesh.ShardedBatches` of the process that has some rows."""

  def __init__(self, batches, rows):
    self.host = mesh_lib.LocalBatches(batches, np.array(rows))

  def placed(self, batch):
    return jax.tree.map(jax.numpy.asarray, batch)


def test_the_rows_of_one_of_several_hosts_in_a_retraining(folder):
  """The processes make no others; devices are this process' affair."""
  pytest.importorskip('grain')
  dataset = open_folder(folder)
  batches = data.Batches(
      dataset.train, None, 6, 3, data.make_transform(
          'imagenet', dataset, train=True, cutout=4), drop_last=False)
  stream = processes.Stream(Rows(batches, [1, 2, 5]), 3, 5, 1)
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    for step in (3, 4):
      found = thread.submit(stream, step).result()
      assert isinstance(found['image'], jax.Array)
      whole = batches(step)
      same(jax.device_get(found),
           {name: value[[1, 2, 5]] for name, value in whole.items()})
    stream.close()
  # This thread still hears what stops a run.
  assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_sharded_batches_have_both_sides(folder):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  dataset = open_folder(folder, 'threads')
  plain = data.evaluation_batches(
      dataset.test, 7, data.make_transform('imagenet', dataset, train=False))
  placed = mesh_lib.sharded(plain, sharding, 7)
  made = placed.host(3)
  same(made, plain(3))
  same(jax.device_get(placed.placed(made)), jax.device_get(placed(3)))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
  pytest.importorskip('grain')
  dataset = open_folder(make_folder(tmp_path), workers=1)
  path = tmp_path / 'train' / 'b' / '05.jpg'
  path.write_bytes(path.read_bytes()[:200])
  batches = data.Batches(
      dataset.train, np.array([0, 1, 13, 14]), 1, 0,
      data.make_transform('none', dataset, train=True))
  at = [batches.batch_indices(step).tolist() for step in range(4)]
  broken = next(i for i, (image,) in enumerate(at)
                if '05.jpg' in dataset.train.stored(image).name)
  with data.prefetch(batches, 0, 4) as ahead:
    for _ in range(broken):
      next(ahead)
    with pytest.raises(errors.UserError, match='05.jpg is not a readable'):
      next(ahead)


def test_a_run_without_grain_is_told_what_to_install(monkeypatch, folder):
  monkeypatch.setitem(sys.modules, 'grain', None)
  with pytest.raises(errors.UserError, match=(
      r"loader='grain' needs grain.*pip install 'rome_jax\[grain\]'")):
    open_folder(folder)


def test_images_in_memory_stay_with_the_threads():
  dataset = data.from_arrays(
      (np.zeros((8, 4, 4, 1), np.uint8), np.arange(8) % 2))
  assert splits.read_by(dataset, splits.Reading('grain', 2)).train is (
      dataset.train)


def test_how_many_work(monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  assert splits.Reading().count() == 8
  assert splits.Reading('grain').count() == 64
  assert splits.Reading('grain', 3).count() == 3
  split = dataclasses.replace(
      splits.LazySplit(None, np.arange(4)), reading=splits.Reading('grain', 3))
  assert splits.take(split, np.array([1])).reading.workers == 3


# ------------------------------------------------------ how processes end

SCRIPT = '''
import os, signal, sys, time
import numpy as np
from jax._src import xla_bridge
from rome_jax import data, errors
from rome_jax.data import splits


class Slow:
  split = splits.LazySplit(None, None, reading=splits.Reading('grain', 2))

  def __call__(self, step):
    time.sleep(.02)
    return {'step': np.array(step), 'pid': np.array(os.getpid()),
            'devices': np.array(xla_bridge.backends_are_initialized())}


if __name__ == '__main__':
  asked = []
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(number))
  what = sys.argv[1]
  with data.prefetch(Slow(), 0, 60) as ahead:
    if what == 'stop':
      os.killpg(0, signal.SIGTERM)  # before the processes have begun
    first = next(ahead)
    pids = {int(first['pid']), int(next(ahead)['pid'])}
    print(*pids, flush=True)
    if what == 'wait':
      time.sleep(60)
    if what == 'kill':
      os.kill(int(first['pid']), signal.SIGKILL)
    try:
      for count, batch in enumerate(ahead, 3):
        if what == 'stop' and count == 10:
          os.killpg(0, signal.SIGTERM)
          os.killpg(0, signal.SIGINT)
    except errors.UserError as error:
      print(error)
    else:
      print(count, len(asked), bool(batch['devices']))
'''


@pytest.fixture
def script(tmp_path):
  pytest.importorskip('grain')
  path = tmp_path / 'script.py'
  path.write_text(SCRIPT)

  def begin(what):
    return subprocess.Popen(
        [sys.executable, str(path), what], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(ROOT)})

  return begin


def gone(pids, limit=20):
  deadline = time.monotonic() + limit
  while time.monotonic() < deadline:
    if not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids):
      return True
    time.sleep(.1)
  return False


@pytest.mark.slow
def test_signals_reach_the_run_alone_and_no_device_is_used(script):
  process = script('stop')
  out, err = process.communicate(timeout=120)
  pids, found = out.splitlines()
  assert found == '60 3 False' and 'Traceback' not in err
  assert gone(pids.split())


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_a_sentence(script):
  process = script('kill')
  out, _ = process.communicate(timeout=120)
  pids, found = out.splitlines()
  assert "config.loader='grain' ended with exit code -9" in found
  assert gone(pids.split())


@pytest.mark.slow
def test_a_run_that_is_killed_takes_its_processes_along(script):
  process = script('wait')
  pids = process.stdout.readline().split()
  assert all(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert gone(pids)

"""Runs of several real processes on this machine, with CPU collectives."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import some_hosts
from tiny_run import CONFIG, final_arrays

from rome_jax.train import metrics

TESTS = pathlib.Path(__file__).parents[1]

# Shorter than `tiny_run`'s: a search of 12 steps and no retraining.
SHORT = ['--config.search.max_steps=12', '--config.retrain.seeds=0']
LONG = '--config.search.max_steps=400'


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('config')
  path = folder / 'tiny.py'
  path.write_text(CONFIG.format(cache=str(folder / 'cache')))
  return path


def start(program, *flags, devices=1):
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'PYTHONPATH': str(TESTS.parent),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return subprocess.Popen(
      [sys.executable, str(TESTS / program), *map(str, flags)], text=True,
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port():
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]


class Run:
  """Processes of one run; `ends` is [(exit code, stdout, stderr)]."""

  def __init__(self, count, config_file, workdir, *flags, devices=1):
    workdirs = workdir if isinstance(workdir, list) else [workdir] * count
    together = [] if count == 1 else [
        f'--coordinator=localhost:{free_port()}', f'--processes={count}',
        '--heartbeat=60']
    self.processes = [
        start('runner.py', f'--config={config_file}', f'--workdir={where}',
              *together, *(together and [f'--process={i}']), *SHORT, *flags,
              devices=devices)
        for i, where in enumerate(workdirs)]

  def end(self):
    """Waits for all; returns their exit codes."""
    self.ends = []
    try:
      for process in self.processes:
        out, err = process.communicate(timeout=600)
        self.ends.append((process.returncode, out, err))
    finally:
      for process in self.processes:
        process.kill()
    return [code for code, *_ in self.ends]

  def send(self, which, number, path):
    """A signal to one process as soon as `path` exists."""
    process = self.processes[which]
    deadline = time.monotonic() + 500
    while not path.exists() and time.monotonic() < deadline:
      assert process.poll() is None, self.end()
      time.sleep(.005)
    process.send_signal(number)


@pytest.fixture(scope='module')
def one_process(config_file, tmp_path_factory):
  """The uninterrupted run of one process with two devices."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  run = Run(1, config_file, workdir, devices=2)
  assert run.end() == [0], run.ends
  return workdir


def search_lines(workdir):
  return [row for row in metrics.read(workdir) if row['phase'] == 'search']


def check_equal(workdir, expected, bound):
  """The same run: genotype, and losses and final state within `bound`.

  Had one sampled architecture differed, the weights would be far apart.
  """
  ours, theirs = (json.loads((w / 'genotype.json').read_text())
                  for w in (workdir, expected))
  assert ours == theirs
  lines, wanted = search_lines(workdir), search_lines(expected)
  assert [r['step'] for r in lines] == [r['step'] for r in wanted]
  for name in ('train_loss', 'valid_loss', 'grad_norm', 'tau'):
    np.testing.assert_allclose(
        [r[name] for r in lines], [r[name] for r in wanted], rtol=bound)
  for (name, a), (_, b) in zip(final_arrays(workdir, 'search')[1],
                               final_arrays(expected, 'search')[1]):
    a, b = (np.frombuffer(x, np.float32) for x in (a, b))
    if len(a) > 1:
      scale = np.abs(b[np.isfinite(b)]).max(initial=1e-3)
      assert np.abs(a - b).max() <= bound * scale, name


@pytest.mark.slow
def test_two_processes_are_one_with_two_devices(
    config_file, one_process, tmp_path):
  """Sums of two parts do not depend on where they are added."""
  run = Run(2, config_file, tmp_path / 'run')
  assert run.end() == [0, 0], run.ends
  check_equal(tmp_path / 'run', one_process, 1e-6)
  (_, out, err), (_, silent_out, silent_err) = run.ends
  assert 'genotype: ' in out and 'search (scan over K): compiled in' in err
  # All but a line of the collectives' own library.
  assert 'genotype' not in silent_out and 'search' not in silent_err


def start_toy(what, workdir, count, devices=1):
  port = free_port()
  return [start('some_hosts.py', what, workdir, port, count, i,
                devices=devices) for i in range(count)]


def ends_of(processes):
  """[(exit code, the JSON printed or None, stderr)]."""
  found = []
  for process in processes:
    out, err = process.communicate(timeout=300)
    lines = [line for line in out.splitlines() if line.startswith('{')]
    found.append((process.returncode, json.loads(lines[-1]) if lines else None,
                  err))
  return found


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_process_reads_its_rows_only(count):
  """Global batches to the bit; of the mesh 1xN the search needs all rows."""
  for i, (code, found, err) in enumerate(ends_of(
      start_toy('read', '', count))):
    assert code == 0, err
    share = 8 // count
    own = list(range(i * share, (i + 1) * share))
    for name, entry in found.items():
      assert entry['equal'] and entry['shape'] == [8, 9, 9, 3]
      whole = name == f'search 1x{count}'
      assert entry['places'] == (list(range(8)) if whole else own), name


def until(path, process):
  deadline = time.monotonic() + 200
  while not path.exists() and time.monotonic() < deadline:
    assert process.poll() is None, process.communicate()
    time.sleep(.005)


def toy_weights():
  """The toy's end, by NumPy in float64."""
  w = np.zeros(3)
  for step in range(some_hosts.STEPS):
    w -= some_hosts.RATE * (w - some_hosts.vectors(step, None)).mean(0)
  return w


def test_stopped_by_one_continued_by_another_number(tmp_path):
  """SIGTERM to process 1 stops both after one step; one process goes on."""
  processes = start_toy('train', tmp_path, 2)
  until(tmp_path / 'checkpoints/toy/00000010', processes[0])
  processes[1].send_signal(signal.SIGTERM)
  (code, found, err), other = ends_of(processes)
  assert (code, other[0]) == (0, 0), (err, other)
  assert not found['finished'] and 10 < found['step'] < some_hosts.STEPS
  assert not found['caches']  # See `hosts._ordered_collectives`.
  assert other[1] == found
  assert (tmp_path / 'checkpoints/toy' / f'{found["step"]:08}').exists()
  (code, found, err), = ends_of(start_toy('train', tmp_path, 1, devices=2))
  assert code == 0, err
  assert found['finished'] and found['step'] == some_hosts.STEPS
  assert not found['caches']
  np.testing.assert_allclose(found['w'], toy_weights(), rtol=1e-5)
  rows = metrics.read(tmp_path)  # one writer, and nothing twice
  assert [row['step'] for row in rows] == [10, 20, 30, 40, 50, 60]


def test_a_process_with_another_state_ends_all_and_nothing_is_saved(tmp_path):
  for code, found, err in ends_of(start_toy('stray', tmp_path, 2)):
    assert code == 4 and found is None
    assert 'process 1 has a different state at step 10 than process 0' in err
    assert err.count('rome_jax: ') == 1 and 'Traceback' not in err
  assert not (tmp_path / 'checkpoints').exists()


def test_a_killed_process_ends_the_other(tmp_path):
  processes = start_toy('train', tmp_path, 2)
  until(tmp_path / 'checkpoints/toy/00000010', processes[0])
  processes[1].kill()
  began = time.monotonic()
  (code, _, err), _ = ends_of(processes)
  assert code == 4 and time.monotonic() - began < 60, err
  assert err.count('rome_jax: ') == 1 and 'lost another process' in err


@pytest.mark.slow
def test_a_killed_process_ends_all_and_another_number_continues(
    config_file, one_process, tmp_path):
  workdir = tmp_path / 'run'
  run = Run(4, config_file, workdir, '--config.mesh.sample=2')
  run.send(2, signal.SIGKILL, workdir / 'checkpoints/search/00000004')
  began = time.monotonic()
  codes = run.end()
  assert codes[2] == -signal.SIGKILL
  assert {codes[0], codes[1], codes[3]} == {4}, run.ends
  assert time.monotonic() - began < 60
  for i in (0, 1, 3):
    assert run.ends[i][2].count('rome_jax: ') == 1
    assert 'lost' in run.ends[i][2] and 'continues' in run.ends[i][2]
  assert not (workdir / 'result.json').exists()
  run = Run(2, config_file, workdir)
  assert run.end() == [0, 0], run.ends
  check_equal(workdir, one_process, 2e-5)


@pytest.mark.slow
def test_losing_process_0_ends_the_others(config_file, tmp_path):
  workdir = tmp_path / 'run'
  run = Run(2, config_file, workdir, LONG)
  run.send(0, signal.SIGKILL, workdir / 'checkpoints/search/00000004')
  code = run.end()[1]
  assert code in (4, -signal.SIGABRT), run.ends


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_the_same_step(
    config_file, one_process, tmp_path):
  workdir = tmp_path / 'run'
  run = Run(2, config_file, workdir)
  run.send(1, signal.SIGTERM, workdir / '.lock')
  assert run.end() == [0, 0], run.ends
  assert 'stopped by SIGTERM' in run.ends[0][1]
  assert not (workdir / 'result.json').exists()
  run = Run(1, config_file, workdir, devices=2)
  assert run.end() == [0], run.ends
  check_equal(workdir, one_process, 1e-6)


@pytest.mark.slow
def test_four_processes_search_and_retrain(config_file, tmp_path):
  """Meshes of 2x2 with one device each, and of one process."""
  flags = ['--config.mesh.sample=2', '--config.retrain.seeds=1']
  run = Run(4, config_file, tmp_path / 'four', *flags)
  assert run.end() == [0] * 4, run.ends
  run = Run(1, config_file, tmp_path / 'one', *flags, devices=4)
  assert run.end() == [0], run.ends
  check_equal(tmp_path / 'four', tmp_path / 'one', 2e-5)
  ours, theirs = (json.loads((tmp_path / name / 'result.json').read_text())
                  for name in ('four', 'one'))
  for key in ('train_loss', 'test_loss', 'test_accuracy'):
    np.testing.assert_allclose(ours['evaluations'][0][key],
                               theirs['evaluations'][0][key], rtol=2e-2)


@pytest.mark.slow
def test_a_second_run_of_the_same_programs(config_file, tmp_path):
  """With programs of the cache, Gloo ended process 1 at the retraining."""
  for name in 'first', 'second':
    run = Run(2, config_file, tmp_path / name, '--config.search.k=1',
              '--config.retrain.seeds=1')
    assert run.end() == [0, 0], run.ends
  check_equal(tmp_path / 'second', tmp_path / 'first', 0)


@pytest.mark.slow
def test_mistakes_of_one_process_end_all(config_file, tmp_path):
  run = Run(2, config_file, [tmp_path / 'a', tmp_path / 'b'])
  assert run.end() == [2, 2]
  for _, _, err in run.ends:
    assert 'storage that all processes share' in err
    assert 'Traceback' not in err and err.count('rome_jax: ') == 1


@pytest.mark.slow
def test_wrong_starts_get_one_sentence(config_file, tmp_path):
  common = [f'--config={config_file}', f'--workdir={tmp_path / "run"}',
            '--heartbeat=4', '--processes=2']
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    port = taken.getsockname()[1]
    for flags, words in (
        (['--process=0', f'--coordinator=localhost:{port}'],
         'cannot listen on port'),
        (['--process=1', f'--coordinator=localhost:{port}'],
         'not all processes had met'),
        (['--process=0', f'--coordinator=localhost:{free_port()}'],
         'not all processes had met'),
        (['--process=1', '--coordinator=no.such.host.invalid:4000'],
         'not all processes had met')):
      process = start('runner.py', *common, *flags)
      _, err = process.communicate(timeout=300)
      assert process.returncode == 2, err
      assert words in err and 'Traceback' not in err
  process = start('runner.py', *common[:2], '--distributed')
  _, err = process.communicate(timeout=300)
  assert process.returncode == 2 and 'SLURM' in err
  assert not (tmp_path / 'run').exists()

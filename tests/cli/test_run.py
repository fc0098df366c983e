"""Whole runs, as real processes: results, resuming, stopping, mistakes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_run import CONFIG, final_arrays

from rome_jax import spaces
from rome_jax.cli import run as run_lib
from rome_jax.spaces import genotypes
from rome_jax.train import checkpoint, metrics

TESTS = pathlib.Path(__file__).parents[1]

# Of a line of metrics: what the clock decides.
TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('config')
  path = folder / 'tiny.py'
  path.write_text(CONFIG.format(cache=str(folder / 'cache')))
  return path


def command(config_file, workdir, *flags):
  return [sys.executable, str(TESTS / 'runner.py'), f'--config={config_file}',
          f'--workdir={workdir}', *flags]


def start(config_file, workdir, *flags):
  # Without XLA's costly passes: most of a tiny run is compilation.
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  return subprocess.Popen(
      command(config_file, workdir, *flags), env=environment, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(config_file, workdir, *flags):
  process = start(config_file, workdir, *flags)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.fixture(scope='module')
def finished(config_file, tmp_path_factory):
  """An uninterrupted run with a random architecture beside the derived."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  code, out, err = run(config_file, workdir,
                       '--config.retrain.random_architectures=1')
  assert code == 0, err
  return workdir, out


def timeless(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


def test_a_run_leaves_everything_behind(finished):
  workdir, out = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
      'config.json', 'metrics.jsonl', 'events', 'genotype.json',
      'cell_normal.svg', 'cell_normal.png', 'cell_reduce.svg',
      'cell_reduce.png', 'search.svg', 'search.png', 'training.svg',
      'result.json', 'report.html', 'checkpoints'}
  result = json.loads((workdir / 'result.json').read_text())
  assert [e['name'] for e in result['evaluations']] == [
      'derived-0', 'random-0']
  for entry in result['evaluations']:
    assert 0 < entry['test_accuracy'] <= 1
    assert entry['params'] > 0 and entry['macs'] > 0
    assert entry['train_seconds'] > 0
  assert result['search']['steps'] == 30
  assert result['search']['samples'] == 'scan'
  assert 0 <= result['search']['valid_accuracy'] <= 1
  assert result['summary']['random']['n'] == 1
  assert result['versions']['jax'] and result['device']
  record = json.loads((workdir / 'genotype.json').read_text())
  assert record['space'] == 'tiny' and record['step'] == 30
  assert genotypes.to_text(genotypes.load(str(workdir / 'genotype.json'))) == (
      result['genotype'])
  assert 'test accuracy' in out
  assert re.search(r'^seconds: compiling \d+, searching \d+, retraining \d+, '
                   r'testing \d+, writing \d+, all else \d+$', out, re.M)


def test_metrics_have_the_diagnostics(finished):
  rows = [r for r in metrics.read(finished[0]) if r['phase'] == 'search']
  assert [r['step'] for r in rows] == list(range(3, 31, 3))
  for name in (
      'train_loss', 'valid_loss', 'tau', 'lr', 'clip_rate', 'grad_norm',
      'alpha_entropy_normal', 'alpha_margin_reduce', 'beta_entropy_normal',
      'parameterless_normal', 'genotype_changes', 'images_per_second',
      'step_ms', 'input_wait_ms'):
    assert np.isfinite(rows[-1][name]), name
  assert rows[0]['tau'] > rows[-1]['tau'] or rows[0]['epoch'] < 1


def test_a_finished_run_does_nothing(config_file, finished):
  workdir, _ = finished
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  code, out, _ = run(config_file, workdir,
                     '--config.retrain.random_architectures=1')
  assert code == 0
  assert 'finished' in out
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}


def test_a_changed_config_is_refused(config_file, finished):
  code, _, err = run(config_file, finished[0], '--config.search.k=3')
  assert code == 2
  assert 'search.k' in err and err.count('\n') == 1


def kill_when(process, path, limit=240):
  """Sends SIGKILL as soon as `path` exists."""
  deadline = time.monotonic() + limit
  while time.monotonic() < deadline and process.poll() is None:
    if path.exists():
      process.send_signal(signal.SIGKILL)
      process.communicate()
      return
    time.sleep(.005)
  process.kill()
  raise AssertionError(process.communicate())


def test_killed_runs_end_as_the_uninterrupted_one(config_file, finished,
                                                  tmp_path):
  """kill -9 in the search and again in the retraining; equal to the bit."""
  whole, _ = finished
  workdir = tmp_path / 'run'
  flags = ['--config.retrain.random_architectures=1']
  for place in ('search/00000008', 'retrain/derived-0/00000012'):
    process = start(config_file, workdir, *flags)
    kill_when(process, workdir / 'checkpoints' / place)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / 'result.json').exists()
  code, _, err = run(config_file, workdir, *flags)
  assert code == 0, err
  for phase in ('search', 'retrain/derived-0', 'retrain/random-0'):
    assert final_arrays(workdir, phase) == final_arrays(whole, phase)
  assert timeless(workdir) == timeless(whole)
  assert (workdir / 'genotype.json').read_text() == (
      whole / 'genotype.json').read_text()
  ours, theirs = (json.loads((w / 'result.json').read_text())
                  for w in (workdir, whole))
  assert [e['test_accuracy'] for e in ours['evaluations']] == [
      e['test_accuracy'] for e in theirs['evaluations']]
  assert ours['evaluations'][0]['resumed_at'] is not None


def test_sigterm_saves_and_a_damaged_checkpoint_falls_back(
    config_file, finished, tmp_path):
  workdir = tmp_path / 'run'
  flags = ['--config.retrain.random_architectures=1']
  process = start(config_file, workdir, *flags)
  target = workdir / 'checkpoints' / 'search' / '00000008'
  deadline = time.monotonic() + 240
  while not target.exists() and time.monotonic() < deadline:
    time.sleep(.005)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert 'same command continues' in out
  assert not (workdir / 'result.json').exists()

  newest = sorted((workdir / 'checkpoints' / 'search').iterdir())[-1]
  damaged = max((p for p in newest.rglob('*') if p.is_file()),
                key=lambda p: p.stat().st_size)
  damaged.write_bytes(damaged.read_bytes()[:10])
  code, _, err = run(config_file, workdir, *flags)
  assert code == 0, err
  assert newest.name.lstrip('0') in err  # it says which one it left out
  assert final_arrays(workdir, 'search') == final_arrays(finished[0], 'search')
  assert timeless(workdir) == timeless(finished[0])


def test_all_checkpoints_damaged(config_file, tmp_path):
  workdir = tmp_path / 'run'
  process = start(config_file, workdir)
  kill_when(process, workdir / 'checkpoints' / 'search' / '00000004')
  for path in (workdir / 'checkpoints' / 'search').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  code, _, err = run(config_file, workdir)
  assert code == 2
  assert 'checkpoint' in err and 'Traceback' not in err


def test_divergence_ends_with_3(config_file, tmp_path):
  code, _, err = run(config_file, tmp_path / 'run',
                     '--config.search.lr=1e30', '--config.search.lr_end=1e30',
                     '--config.search.clip_norm=1e30')
  assert code == 3, err
  assert 'diverged' in err and 'Traceback' not in err
  assert not (tmp_path / 'run' / 'result.json').exists()


def test_a_given_genotype_skips_the_search(config_file, finished, tmp_path):
  path = finished[0] / 'genotype.json'
  code, out, err = run(config_file, tmp_path / 'run',
                       f'--config.genotype={path}')
  assert code == 0, err
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert 'search' not in result
  assert result['evaluations'][0]['kind'] == 'given'
  assert 'parameters' in out


def test_a_workdir_in_use_is_refused(config_file, tmp_path, capsys,
                                     tiny_registered):
  import fcntl

  workdir = tmp_path / 'run'
  workdir.mkdir()
  with open(workdir / '.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = run_lib.main([f'--config={config_file}', f'--workdir={workdir}'])
  assert code == 2
  assert 'another process' in capsys.readouterr().err


def test_a_genotype_of_no_known_space(config_file, tmp_path, tiny_registered):
  """NASNet's operations are in no search space; its counts are still given."""
  workdir = tmp_path / 'run'
  assert run_lib.main([
      f'--config={config_file}', f'--workdir={workdir}',
      '--config.genotype=NASNet', '--config.retrain.seeds=0']) == 0
  assert json.loads((workdir / 'genotype.json').read_text())['space'] is None
  result = json.loads((workdir / 'result.json').read_text())
  assert result['params'] > 0 and result['evaluations'] == []


@pytest.mark.parametrize('flags, words', [
    (['--config.search.kk=3'], ['search.kk', 'did you mean']),
    (['--config.search.k=0'], ['search.k', '0', 'at least 1']),
    (['--config.search.tau_end=0'], ['search.tau_end', '0']),
    (['--config.search.k=x'], ['search.k', 'x', 'whole number']),
    (['--config.method=rome_v3'], ['method', 'rome_v3', 'rome_v2']),
    (['--config.space=s9'], ['space', 's9']),
    (['--config.dataset=cifar11', '--config.data_dir=/nowhere'],
     ['cifar11', 'cifar10']),
    (['--config.dataset=cifar10', '--config.data_dir=/nowhere'],
     ['/nowhere']),
    (['--config.genotype=DARTS_V3'], ['DARTS_V3', 'DARTS_V']),
    (['--config.search.batch_size=5000'], ['batch_size', '5000']),
    (['--workdir=/proc/nowhere'], ['/proc/nowhere']),
    ([f'--workdir=/tmp/{"x" * 300}'], ['workdir']),
])
def test_mistakes_get_one_sentence_and_exit_2(config_file, tmp_path, capsys,
                                              flags, words, tiny_registered):
  workdir = tmp_path / 'run'
  code = run_lib.main(
      [f'--config={config_file}', f'--workdir={workdir}', *flags])
  err = capsys.readouterr().err
  assert code == 2
  assert err.count('\n') == 1, err
  for word in words:
    assert word in err
  assert not workdir.exists()


@pytest.fixture
def tiny_registered(tiny, monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)


def test_checkpoint_module_is_the_one_in_use(finished):
  with checkpoint.Checkpoints(
      finished[0] / 'checkpoints' / 'search', 2) as store:
    assert store.steps()[-1] == 30

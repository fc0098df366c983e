"""Whole runs, as real processes: results, resuming, stopping, mistakes."""

import json
import os
import pathlib
import re
import shutil
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

# Without XLA's costly passes: most of a tiny run is compilation.
ENVIRONMENT = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
FULL = '/dev/full' if os.path.exists('/dev/full') else os.devnull
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
  return subprocess.Popen(
      command(config_file, workdir, *flags), env=ENVIRONMENT, text=True,
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
  """Nothing is written, so that it may lie on a read-only disk."""
  workdir, _ = finished
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  code, out, _ = run(config_file, workdir,
                     '--config.retrain.random_architectures=1',
                     '--config.compilation_cache=')
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
  with open(FULL, 'w') as full:  # A log that is full ends no run.
    code = subprocess.call(command(config_file, workdir, *flags),
                           env=ENVIRONMENT, stdout=full, stderr=full)
  assert code == 0
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


@pytest.fixture
def copied(finished, tmp_path):
  """A copy of the finished run, to damage."""
  return pathlib.Path(shutil.copytree(finished[0], tmp_path / 'run'))


AGAIN = '--config.retrain.random_architectures=1'


def again(config_file, workdir, capsys):
  """Runs in this process; (exit code, what it said on stderr)."""
  code = run_lib.main(
      [f'--config={config_file}', f'--workdir={workdir}', AGAIN])
  return code, capsys.readouterr().err


@pytest.mark.parametrize('also', [(), ('report.html',), ('result.json',)])
def test_a_deleted_genotype_is_written_again(config_file, finished, copied,
                                             also, capsys, tiny_registered):
  for name in ('genotype.json', *also):
    (copied / name).unlink()
  code, err = again(config_file, copied, capsys)
  assert code == 0 and 'genotype.json was missing; it is written again' in err
  assert (copied / 'genotype.json').read_text() == (
      finished[0] / 'genotype.json').read_text()
  assert (copied / 'report.html').exists()


@pytest.mark.parametrize('change', [
    ('sep_conv_3x3', 'max_pool_3x3'), ('skip_connect', 'sep_conv_3x3')])
def test_a_changed_genotype_is_refused(config_file, copied, change, capsys,
                                       tiny_registered):
  path = copied / 'genotype.json'
  path.write_text(path.read_text().replace(*change))
  (copied / 'result.json').unlink()
  code, err = again(config_file, copied, capsys)
  assert code == 2
  # After the line that says what was read, one sentence.
  assert 'is not the genotype that the search' in err.splitlines()[1]
  assert len(err.splitlines()) == 2


def test_metrics_lost_after_the_end_are_said(config_file, finished, copied,
                                             capsys, tiny_registered):
  """The accuracies are those that were noted."""
  (copied / 'metrics.jsonl').unlink()
  (copied / 'result.json').unlink()
  code, err = again(config_file, copied, capsys)
  assert code == 0
  for phase in ('search', 'retrain/derived-0', 'retrain/random-0'):
    assert f'metrics.jsonl lacks the last lines of {phase}' in err
  assert accuracies(copied) == accuracies(finished[0])


@pytest.mark.parametrize('kept', [0, 3, -1])
def test_metrics_lost_before_the_end_are_refused(config_file, finished, copied,
                                                 kept, capsys,
                                                 tiny_registered):
  """The process died after the last checkpoint of the last retraining."""
  (copied / 'result.json').unlink()
  (copied / 'phases' / 'random-0.json').unlink()
  path = copied / 'metrics.jsonl'
  whole = path.read_bytes()
  path.write_bytes(b''.join(whole.splitlines(keepends=True)[:kept]))
  code, err = again(config_file, copied, capsys)
  assert code == 2 and not (copied / 'result.json').exists()
  assert 'lacks the line of step 29 of retrain/random-0' in err
  path.write_bytes(whole)
  code, err = again(config_file, copied, capsys)
  assert code == 0
  assert accuracies(copied) == accuracies(finished[0])


@pytest.mark.parametrize('name', ['config.json', 'dataset.json'])
def test_a_run_that_lost_what_it_began_with_is_refused(
    config_file, copied, name, capsys, tiny_registered):
  """It would go on under any config, or with any data, without a word."""
  (copied / name).unlink()
  (copied / 'report.html').unlink()
  code, text = again(config_file, copied, capsys)
  assert code == 2 and name in text and 'put that file back' in text
  assert not (copied / name).exists()


def test_a_wrong_start_leaves_nothing_behind(config_file, tmp_path, capsys,
                                             tiny_registered):
  code = run_lib.main([
      f'--config={config_file}', f'--workdir={tmp_path / "run"}',
      '--config.genotype=DARTS_V2', f'--config.retrain.init_from={tmp_path}'])
  assert code == 2
  assert 'must be the folder of a finished run' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def accuracies(workdir):
  result = json.loads((workdir / 'result.json').read_text())
  return [row['test_accuracy'] for row in result['evaluations']]


def quick(config_file, workdir, **environment):
  """The last line on stderr and the exit code of a run without training."""
  process = subprocess.run(
      command(config_file, workdir, '--config.genotype=DARTS_V2',
              '--config.retrain.seeds=0', '--config.compilation_cache=auto'),
      env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
      capture_output=True, text=True)
  return process.returncode, process.stdout, process.stderr


def test_a_name_that_the_terminal_cannot_show(config_file, tmp_path):
  code, out, err = quick(config_file, tmp_path / 'r\xe9sum\u4e2d',
                         PYTHONIOENCODING='ascii')
  assert code == 0, err
  assert 'r\\xe9sum\\u4e2d/report.html' in out
  assert (tmp_path / 'r\xe9sum\u4e2d' / 'report.html').exists()


def test_an_ascii_locale_is_refused_before_anything_is_written(config_file,
                                                               tmp_path):
  code, _, err = quick(config_file, tmp_path / 'r\xe9', LC_ALL='C',
                       PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
  assert code == 2 and 'PYTHONUTF8=1' in err and 'Traceback' not in err
  assert not list(tmp_path.iterdir())


def test_without_a_home_nothing_is_cached(monkeypatch):
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  updates = []
  monkeypatch.setattr(run_lib.jax.config, 'update',
                      lambda name, value: updates.append(value))
  run_lib.use_compilation_cache('auto')
  assert updates == []
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  run_lib.use_compilation_cache('auto')
  run_lib.use_compilation_cache('gs://bucket/programs')
  assert updates[0].startswith('/cache/rome_jax/')
  assert updates[1] == 'gs://bucket/programs'


def test_an_unknown_user_without_home(config_file, tmp_path):
  """As a container with `--user=54321` has it."""
  if os.geteuid() or not shutil.which('setpriv'):
    pytest.skip('needs root and setpriv')
  program = ('import os, pathlib\n'
             'from rome_jax.cli import run\n'
             'os.environ.pop("HOME", None)\n'
             'os.setuid(54321)\n'
             'run.use_compilation_cache("auto")\n'
             'print(run.main(["--config=quickstart", "--workdir=~/x"]))\n')
  process = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      cwd=TESTS.parent)
  assert process.stdout == '2\n', process.stderr
  assert '--workdir=~/x begins with ~' in process.stderr


def test_paths_of_other_fields(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'cell.txt').write_text(
      genotypes.to_text(genotypes.load('DARTS_V2')))
  flags = ['--config=quickstart', '--check', '--config.retrain.seeds=1']
  assert run_lib.main([*flags, '--config.genotype=~/cell.txt']) == 0
  capsys.readouterr()
  for field, value in (('genotype', 'gs://bucket/cell.json'),
                       ('data_dir', 'gs://bucket/images')):
    assert run_lib.main([*flags, '--config.dataset=folder',
                         f'--config.{field}={value}']) == 2
    assert f'config.{field}={value} must be a path' in capsys.readouterr().err


@pytest.mark.parametrize('flags, words', [
    (['--config.search.batch_size=720'],
     'config.search.batch_size=720 must be at most 719: the share '
     'config.search.fraction_theta=0.5 of the 1,438 training images'),
    (['--config.search.batch_size=400', '--config.search.fraction_theta=.75',
      '--config.search.fraction_alpha=.25'],
     'config.search.batch_size=400 must be at most 360: the share '
     'config.search.fraction_alpha=0.25 of the 1,438 training images'),
    (['--config.retrain.batch_size=1439'],
     'config.retrain.batch_size=1439 must be at most 1,438: the number of '
     'training images'),
    (['--config.genotype=DARTS_V2', '--config.search.batch_size=5000'], '')])
def test_a_batch_larger_than_the_data(flags, words, capsys):
  """scikit-learn's 1,797 digits, of which 359 are for the test."""
  code = run_lib.main(['--config=quickstart', '--check', *flags])
  assert code == (2 if words else 0)
  assert words in capsys.readouterr().err


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
  # Its config and data are the other's, too.
  assert [path.name for path in workdir.iterdir()] == ['.lock']


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
    (['--config.search.k=-1'], ['search.k', '-1', 'at least 0']),
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

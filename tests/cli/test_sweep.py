"""Sweeps: which runs, what becomes of them, what is reported; over Ray too."""

import importlib.util
import json
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time

import pytest

from launch import sweep_ray
from rome_jax import errors, files
from rome_jax.cli import compare, sweep
from rome_jax.cli import flags as flags_lib
from rome_jax.config import command_line
from rome_jax.spaces import genotypes

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f'--config={ROOT / "configs" / "quickstart.py"}'

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='needs Ray')

# Stands for a run: what it does is up to its seed.
STUB = """
import json, os, pathlib, signal, sys, time
flags = dict(word.lstrip('-').split('=', 1) for word in sys.argv[1:])
folder, seed = pathlib.Path(flags['workdir']), int(flags['config.seed'])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / 'calls', 'a') as calls:
  calls.write('x')
if seed == 3:
  sys.exit(3)
if seed == 9:
  os.kill(os.getpid(), signal.SIGKILL)
if seed == 77 and (folder / 'calls').read_text() == 'x':
  os.kill(os.getppid(), signal.SIGKILL)
if seed == 15:
  signals = []
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: signals.append(number))
  (folder / 'ready').touch()
  while not signals:
    time.sleep(.02)
  time.sleep(.5)  # for a second one
  (folder / 'signals').write_text(' '.join(map(str, map(int, signals))))
  sys.exit(0)
method = flags.get('config.method', 'rome_v2')
mean = .5 + .1 * seed + .01 * (method == 'rome_v1')
(folder / 'result.json').write_text(json.dumps({
    'genotype': f'genotype {seed}',
    'search': {'parameterless': {'normal': seed, 'reduce': 0}},
    'table': {'datasets': {'cifar10': {'test': 90 + seed}}},
    'summary': {'derived': {'n': 2, 'mean': mean, 'std': .1, 'best': .9},
                'random': {'n': 1, 'mean': .4, 'std': None, 'best': .4}}}))
"""

# A sweep in a process of its own: `python driver.py MODULE PROGRAM FLAGS`.
DRIVER = f"""
import importlib, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import runner  # its space
module = importlib.import_module(sys.argv[1])
if __name__ == '__main__':
  sys.exit(module.main(sys.argv[3:], program=(sys.argv[2],)))
"""


@pytest.fixture
def stub(tmp_path):
  path = tmp_path / 'stub.py'
  path.write_text(STUB)
  return str(path)


def start(tmp_path, module, program, *flags):
  driver = tmp_path / 'driver.py'
  driver.write_text(DRIVER)
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'RAY_USAGE_STATS_ENABLED': '0'}
  return subprocess.Popen(
      [sys.executable, str(driver), module, str(program), *flags],
      env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, start_new_session=True)


def planned(*flags):
  args, rest = flags_lib.sweep('sweep').parse_known_args(
      ['--workdir=runs', *flags])
  return sweep.plan(args, rest)


def test_every_combination_is_a_run():
  runs = planned(CONFIG, '--vary=search.k=2,4', '--seeds=0,7',
                 '--config.dataset=digits')
  assert [run.name for run in runs] == [
      'search.k-2_seed-0', 'search.k-2_seed-7', 'search.k-4_seed-0',
      'search.k-4_seed-7']
  assert runs[1].values == {'search.k': 2, 'seed': 7}
  assert runs[1].workdir == 'runs/search.k-2_seed-7'
  assert runs[1].argv == [
      CONFIG, '--config.dataset=digits', '--config.search.k=2',
      '--config.seed=7']


def test_the_config_file_can_vary():
  reduced = 'configs/cifar10_reduced.py:method='
  runs = planned(f'--vary=config={reduced}rome_v2,{reduced}gdas')
  assert runs[1].argv == [f'--config={reduced}gdas']
  assert runs[1].name == 'config-configs_cifar10_reduced.py_method_gdas'


@pytest.mark.parametrize('flags, words', [
    ([CONFIG], '--seeds'),
    ([CONFIG, '--vary=seed'], 'FIELD=VALUE'),
    ([CONFIG, '--vary=seed=1', '--seeds=2'], 'twice'),
    ([CONFIG, '--seeds=1,1'], 'seed-1'),
    ([CONFIG, '--seeds=1,x'], "config.seed='x'"),
    ([CONFIG, '--vary=method=rome_v2,rome'], "config.method='rome'"),
    ([CONFIG, '--seed=1', '--seeds=1'], 'config.seed'),
    ([CONFIG, '--seeds=1', '--check'], '--check is for one run'),
    ([CONFIG, '--seeds=1', '--dry-run'], '--dry-run')])
def test_mistakes_are_found_before_anything_runs(flags, words, tmp_path):
  with pytest.raises(errors.UserError, match=words):
    planned(*flags)
  assert sweep.main(['--workdir', str(tmp_path / 'runs'), *flags]) == 2
  assert not (tmp_path / 'runs').exists()


def test_a_crash_does_not_take_the_others_along(stub, tmp_path, capsys):
  folder = tmp_path / 'runs'
  command = [CONFIG, f'--workdir={folder}', '--seeds=0,3,9,1',
             '--vary=method=rome_v1,rome_v2']
  assert sweep.main(command, program=(stub,)) == 3
  found = json.loads((folder / 'sweep.json').read_text())
  assert [(row['name'], row['exit_code'], row['state'])
          for row in found['runs'][:4]] == [
      ('method-rome_v1_seed-0', 0, 'done'),
      ('method-rome_v1_seed-3', 3, 'failed'),
      ('method-rome_v1_seed-9', 137, 'failed'),
      ('method-rome_v1_seed-1', 0, 'done')]
  assert found['runs'][3]['genotype'] == 'genotype 1'
  assert found['runs'][3]['parameterless'] == {'normal': 1, 'reduce': 0}
  assert found['runs'][1]['accuracies'] == {}
  assert set(found['summary']) == {'method=rome_v1', 'method=rome_v2'}
  derived = found['summary']['method=rome_v1']['derived']
  assert derived['n'] == 2 and derived['best'] == pytest.approx(.61)
  assert derived['mean'] == pytest.approx(.56)
  assert derived['std'] == pytest.approx(statistics.stdev([.51, .61]))
  table = found['summary']['method=rome_v2']['table of cifar10']
  assert table['mean'] == pytest.approx(.905)
  out = capsys.readouterr().out
  assert 'method-rome_v1_seed-9: failed with exit code 137 (SIGKILL)' in out
  assert 'method=rome_v2: test accuracy, derived: 55.00% +- 7.07 (n=2' in out


def wait_for(path, process, limit=60):
  deadline = time.monotonic() + limit
  while not path.exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(.02)


def test_ctrl_c_reaches_the_run_once_and_starts_no_other(stub, tmp_path):
  process = start(tmp_path, 'rome_jax.cli.sweep', stub, CONFIG,
                  '--workdir=runs', '--seeds=15,0')
  wait_for(tmp_path / 'runs' / 'seed-15' / 'ready', process)
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does
  out, err = process.communicate(timeout=30)
  assert process.returncode == 0, err
  assert (tmp_path / 'runs' / 'seed-15' / 'signals').read_text() == '15'
  found = json.loads((tmp_path / 'runs' / 'sweep.json').read_text())
  assert [row['state'] for row in found['runs']] == ['stopped', 'not run']
  assert 'seed-0: not run' in out


def test_without_ray_one_sentence(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'ray', None)
  assert sweep_ray.main(
      [CONFIG, f'--workdir={tmp_path}', '--seeds=0']) == 2
  assert 'rome_jax[ray]' in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_over_ray_a_lost_worker_starts_again(stub, tmp_path):
  process = start(tmp_path, 'launch.sweep_ray', stub, CONFIG,
                  '--workdir=runs', '--seeds=0,3,77', '--address=local')
  out, err = process.communicate(timeout=120)
  assert process.returncode == 3, err
  found = json.loads((tmp_path / 'runs' / 'sweep.json').read_text())
  assert [row['state'] for row in found['runs']] == ['done', 'failed', 'done']
  assert (tmp_path / 'runs' / 'seed-77' / 'calls').read_text() == 'xx'
  assert (tmp_path / 'runs' / 'seed-3' / 'calls').read_text() == 'x'


@needs_ray
@pytest.mark.slow
def test_a_request_to_stop_reaches_the_runs_over_ray(stub, tmp_path):
  process = start(tmp_path, 'launch.sweep_ray', stub, CONFIG,
                  '--workdir=runs', '--seeds=15', '--address=local')
  wait_for(tmp_path / 'runs' / 'seed-15' / 'ready', process)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert (tmp_path / 'runs' / 'seed-15' / 'signals').read_text() == '15'
  found = json.loads((tmp_path / 'runs' / 'sweep.json').read_text())
  assert found['runs'][0]['state'] == 'stopped'


@needs_ray
@pytest.mark.slow
def test_no_cluster_is_one_sentence(stub, tmp_path):
  process = start(tmp_path, 'launch.sweep_ray', stub, CONFIG,
                  '--workdir=runs', '--seeds=0', '--address=auto')
  _, err = process.communicate(timeout=60)
  assert process.returncode == 2
  assert 'ray start --head' in err


@needs_ray
@pytest.mark.slow
def test_real_searches_alike_one_by_one_and_over_ray(tmp_path):
  from tiny_run import CONFIG as TINY
  (tmp_path / 'tiny.py').write_text(
      TINY.format(cache=str(tmp_path / 'cache')))
  found = {}
  for module, flags in (('rome_jax.cli.sweep', ()),
                        ('launch.sweep_ray', ('--address=local',))):
    command = (tmp_path, module, ROOT / 'tests' / 'runner.py',
               '--config=tiny.py', f'--workdir={module}', '--seeds=0,1',
               *flags)
    process = start(*command)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    path = tmp_path / module / 'sweep.json'
    found[module] = json.loads(path.read_text())
  first = found['rome_jax.cli.sweep']
  assert [row['state'] for row in first['runs']] == ['done', 'done']
  assert first['summary']['']['derived']['n'] == 2
  for row, other in zip(first['runs'], found['launch.sweep_ray']['runs']):
    assert {**row, 'workdir': ''} == {**other, 'workdir': ''}
  # Finished runs are left alone.
  before = path.read_text()
  times = [p.stat().st_mtime_ns for p in path.parent.glob('*/result.json')]
  process = start(*command)
  process.communicate(timeout=200)
  assert process.returncode == 0
  assert path.read_text() == before
  assert times == [
      p.stat().st_mtime_ns for p in path.parent.glob('*/result.json')]


CELL = ("Genotype(normal=[('skip_connect', 0), ('none', 1)], "
        'normal_concat=[2, 3], reduce=[], reduce_concat=range(2, 6))')


@pytest.mark.parametrize('field, text, values', [
    ('seed', '0,1,2', ['0', '1', '2']),
    ('genotype', f'{CELL},DARTS_V2, {CELL}', [CELL, 'DARTS_V2', CELL]),
    ('name', '"a, b",c', ['"a, b"', 'c']),
    ('config', 'a.py:k=1,lr=2,b.py,c.py:k=3', [
        'a.py:k=1,lr=2', 'b.py', 'c.py:k=3']),
    ('config', 'a.py,b=1.py', ['a.py', 'b=1.py']),
    ('name', 'a,k=1', ['a', 'k=1'])])
def test_commas_inside_a_value_do_not_cut(field, text, values):
  assert sweep.split_values(field, text) == values


@pytest.mark.parametrize('text', ['Genotype(normal=[1, 2),a', "'a,b", 'a(,b'])
def test_a_value_must_close_its_brackets(text):
  with pytest.raises(errors.UserError, match='--vary=genotype=.*close'):
    planned(CONFIG, f'--vary=genotype={text}')


def test_genotypes_vary_in_folders_with_short_names():
  """PC-DARTS's cell as text is longer than a file's name may be."""
  text = genotypes.to_text(genotypes.load('PC_DARTS_cifar'))
  other = text.replace("'sep_conv_5x5'", "'sep_conv_3x3'")
  assert len(text) > 255 and text != other
  runs = planned(CONFIG, f'--vary=genotype={text},{other},DARTS_V2')
  assert [run.values['genotype'] for run in runs] == [text, other, 'DARTS_V2']
  assert runs[0].argv[-1] == f'--config.genotype={text}'
  names = [run.name for run in runs]
  assert len(set(names)) == 3 and max(map(len, names)) < 100
  assert names[2] == 'genotype-DARTS_V2'


@pytest.mark.parametrize('value, words', [
    ('DARTS_V2,DARTS_V9', 'DARTS_V9'),
    ('DARTS_V2,no_such_file.json', 'no_such_file.json'),
    ('DARTS_V2,https://host/cell.json', 'https://host/cell.json'),
    ('DARTS_V2,Genotype(normal=[])', 'normal_concat')])
def test_later_genotypes_are_read_before_the_first_run(value, words, tmp_path,
                                                       stub, capsys):
  code = sweep.main([CONFIG, f'--workdir={tmp_path / "runs"}',
                     f'--vary=genotype={value}'], program=(stub,))
  err = capsys.readouterr().err
  assert code == 2 and words in err and err.count('\n') == 1
  assert not (tmp_path / 'runs').exists()


def test_the_folder_of_a_sweep_may_be_in_the_home(stub, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert sweep.main([CONFIG, '--workdir=~/runs', '--seeds=0'],
                    program=(stub,)) == 0
  assert (tmp_path / 'runs' / 'sweep.json').exists()
  assert (tmp_path / 'runs' / 'seed-0' / 'result.json').exists()
  assert not (tmp_path / '~').exists()


HELD = '--config.retrain.holdout=.2'


def test_the_best_values_are_chosen_by_their_mean(stub, tmp_path, capsys):
  """rome_v1 is .01 better in each seed; its two runs are retrained."""
  folder = tmp_path / 'runs'
  assert sweep.main([
      CONFIG, f'--workdir={folder}', '--seeds=0,1', HELD, '--choose=derived',
      '--vary=method=rome_v2,rome_v1'], program=(stub,)) == 0
  found = json.loads((folder / 'sweep.json').read_text())['chosen']
  assert found['label'] == 'method=rome_v1' and found['kind'] == 'derived'
  assert found['mean'] == pytest.approx(.56)
  assert [shlex.split(command) for command in found['commands']] == [
      ['python', '-m', 'rome_jax', 'run', CONFIG, '--config.method=rome_v1',
       f'--config.seed={seed}',
       f'--config.genotype={folder}/method-rome_v1_seed-{seed}/genotype.json',
       '--config.retrain.holdout=0.',
       f'--workdir={folder}/chosen/method-rome_v1_seed-{seed}']
      for seed in (0, 1)]
  out = capsys.readouterr().out
  marked = [line for line in out.splitlines() if '<- chosen' in line]
  assert len(marked) == 1 and marked[0].startswith(
      'method=rome_v1: test accuracy, derived: 56.00%')
  assert all(command in out.splitlines() for command in found['commands'])


def test_the_command_is_one_of_the_program(tmp_path):
  """As it is printed, apart from the file of the genotype."""
  [run] = planned(CONFIG, '--vary=search.weight_decay=9e-4', HELD,
                  '--choose=derived')
  found = {'runs': [{'state': 'done'}],
           'summary': {'search.weight_decay=0.0009': {'derived': {'mean': .5}}}}
  command = sweep.chosen([run], found, 'derived', 'runs')['commands'][0]
  words = [word.replace(f'{run.workdir}/genotype.json', 'DARTS_V2')
           for word in shlex.split(command)]
  config = command_line.load(words[4:]).config
  assert (config.genotype, config.retrain.holdout) == ('DARTS_V2', 0.)
  assert config.search.weight_decay == 9e-4


def test_nothing_is_chosen_before_every_run_is_done(stub, tmp_path, capsys):
  assert sweep.main([
      CONFIG, f'--workdir={tmp_path / "runs"}', '--seeds=0,3', HELD,
      '--choose=derived'], program=(stub,)) == 3
  found = json.loads((tmp_path / 'runs' / 'sweep.json').read_text())
  assert found['chosen'] is None
  assert 'nothing is chosen' in capsys.readouterr().out


def test_test_images_choose_nothing():
  with pytest.raises(errors.UserError, match='--choose=derived needs '
                     'config.retrain.holdout above 0'):
    planned(CONFIG, '--seeds=0,1', '--choose=derived')


@pytest.mark.parametrize('command', ['sweep', 'compare'])
def test_a_second_one_in_the_same_folder_is_refused(command, tmp_path, capsys):
  (tmp_path / 'compare_x.py').write_text(
      'from rome_jax import config\n'
      'def get_comparison():\n'
      "  return config.Comparison('x', {'a': ['--config=quickstart']})\n")
  main = {'sweep': sweep.main, 'compare': compare.main}[command]
  config = CONFIG if command == 'sweep' else (
      f'--config={tmp_path / "compare_x.py"}')
  with files.only_one(tmp_path / 'out'):
    assert main([config, f'--workdir={tmp_path / "out"}',
                 '--seeds=0,1']) == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'another process is running in' in err


def test_a_run_stops_and_saves_once_its_sweep_is_killed(tmp_path):
  """kill -9 reaches the sweep alone; its run would go on unseen."""
  program = (
      'import pathlib, sys, time\n'
      'from rome_jax.devices import interrupt\n'
      'with interrupt.Interrupt() as stop:\n'
      "  pathlib.Path('begun').touch()\n"
      '  while not stop.requested:\n'
      '    time.sleep(.05)\n'
      "pathlib.Path('saved').write_text(stop.signal.name)\n")
  sweeping = (
      'import sys\n'
      'from rome_jax.cli import sweep\n'
      'class Stop:\n'
      '  requested = False\n'
      "sweep.follow(['-c', sys.argv[1]], Stop())\n")
  process = subprocess.Popen([sys.executable, '-c', sweeping, program],
                             cwd=tmp_path, env=os.environ | {
                                 'PYTHONPATH': str(ROOT)})
  wait_for(tmp_path / 'begun', process)
  process.kill()
  process.wait()
  deadline = time.monotonic() + 120
  while not (tmp_path / 'saved').exists() and time.monotonic() < deadline:
    time.sleep(.1)
  time.sleep(.2)
  assert (tmp_path / 'saved').read_text() == 'SIGHUP'

"""Comparisons: which runs, what becomes of them, statistics, the page."""

import csv
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from rome_jax.cli import compare
from rome_jax.config import command_line, comparison, fields
from rome_jax.show import comparison as page
from rome_jax.tables import nasbench201, scores

ROOT = pathlib.Path(__file__).parents[2]
FILE = '''
from rome_jax import config as config_lib


def get_comparison(text=''):
  return config_lib.Comparison(
      name='Two <methods>', against='nothing',
      arms={'GDAS': ['--config=every_method:space=nasbench201,method=gdas'],
            'ROME, K = 7': [
                '--config=every_method:space=nasbench201,method=rome_v2']},
      seeds=(0, 1, 2))
'''

# Stands for a run: what it gives is up to its method and seed.
STUB = '''
import json, pathlib, sys
flags = dict(word.lstrip('-').split('=', 1) for word in sys.argv[1:])
folder, seed = pathlib.Path(flags['workdir']), int(flags['config.seed'])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / 'calls', 'a') as calls:
  calls.write('x')
rome = 'rome' in flags['config']
if rome and seed == 2 and (folder / 'calls').read_text() == 'x':
  sys.exit(3)
print('hello')
accuracy = 90 + seed + rome * (2 + .1 * seed)
(folder / 'metrics.jsonl').write_text(''.join(json.dumps({
    'phase': 'search', 'step': step, 'table_accuracy': accuracy / 100,
    'parameterless_normal': 3, 'parameterless_share_normal': .5}) + chr(10)
    for step in (10, 20)))
(folder / 'result.json').write_text(json.dumps({
    'genotype': f'genotype {seed}', 'space': 'nasbench201',
    'dataset': 'cifar10', 'params': 5, 'device': 'a device',
    'search': {'parameterless': {'normal': seed}, 'seconds': 2. + seed,
               'images': 1_800_000, 'steps': 20, 'temp_bytes': 2**20},
    'summary': {},
    'table': {'table': 'nasbench201', 'datasets': {'cifar10': {
        'test': accuracy, 'rank': 7, 'regret': 1.}}}}))
(folder / 'report.html').write_text('')
'''


@pytest.fixture
def given(tmp_path, monkeypatch):
  """(file of the comparison, its folder, the program of its runs)."""
  monkeypatch.chdir(ROOT)
  (tmp_path / 'pair.py').write_text(FILE)
  (tmp_path / 'stub.py').write_text(STUB)
  return tmp_path / 'pair.py', tmp_path / 'out', (str(tmp_path / 'stub.py'),)


def go(given, *flags):
  file, folder, program = given
  return compare.main(
      [f'--config={file}', f'--workdir={folder}', *flags], program)


def test_a_comparison_from_its_first_run_to_its_page(given, capsys):
  _, folder, _ = given
  assert go(given) == 3  # One run failed once.
  assert json.loads((folder / 'compare.json').read_text())['runs'][5][
      'state'] == 'unfinished'
  assert '5 of 6 runs are done' in (folder / 'compare.html').read_text()
  assert go(given, '--workers=3') == 0
  out = capsys.readouterr().out
  # Finished ones are left alone.
  assert {path.read_text() for path in folder.glob('*/*/calls')} == {
      'x', 'xx'}
  found = json.loads((folder / 'compare.json').read_text())
  assert [row['arm'] for row in found['runs'][:2]] == ['GDAS', 'ROME, K = 7']
  assert found['arms']['GDAS']['accuracy']['values'] == [.9, .91, .92]
  part = found['differences']['ROME, K = 7']['accuracy']
  known = stats.ttest_rel([.92, .931, .942], [.9, .91, .92])
  interval = known.confidence_interval(.95)
  assert (part['mean'], part['low'], part['high']) == pytest.approx(
      (.021, interval.low, interval.high))
  assert ('ROME, K = 7 against GDAS, accuracy: +2.10 points, 95 % interval '
          '+1.85 points to +2.35 points of 3 seeds; ROME, K = 7 is higher') in (
              out)
  assert 'operations without weights, normal cell: +0.000' in out
  rows = list(csv.DictReader(
      (folder / 'compare.csv').read_text().splitlines()))
  assert len(rows) == 6 and rows[1]['seconds'] == '2.0'
  assert (folder / 'GDAS' / 'seed-0' / 'output.txt').read_text() == 'hello\n'


def test_the_page_is_one_file_and_the_same_again(given):
  _, folder, _ = given
  go(given)
  go(given)
  text = (folder / 'compare.html').read_text()
  assert '<script' not in text and 'src=' not in text
  assert 'Two &lt;methods&gt;' in text and '<methods>' not in text
  assert text.count('<svg') == 2
  for words in ('the best of nasbench201', 'a random one of nasbench201',
                'What would speak against',
                'the best of 3 random cells by their 12th epoch, the budget of '
                'GDAS, ROME, K = 7',
                'cannot be told apart'):
    assert words in text
  before = {path.name: path.read_bytes() for path in folder.glob('compare*')}
  assert len(before) == 7
  go(given, '--page')
  assert before == {
      path.name: path.read_bytes() for path in folder.glob('compare*')}


def test_references_against_the_table(given):
  _, folder, _ = given
  go(given)
  best, one, some = json.loads((folder / 'compare.json').read_text())[
      'references']
  values = nasbench201.load().values('cifar10')
  assert best['accuracy']['mean'] == values.max() / 100
  assert one['accuracy']['mean'] == pytest.approx(values.mean() / 100)
  assert one['parameterless'] == pytest.approx(6 * 3 / 5)  # By symmetry.
  assert one['accuracy']['mean'] < some['accuracy']['mean'] < values.max() / 100


def test_the_interval_covers_as_often_as_it_says():
  """Of 2,000 samples of five normal pairs: 95 % within 5 sigma."""
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(2000):
    part = scores.paired_difference(rng.normal(1., 2., 5), rng.normal(0, 1, 5))
    hits += part['low'] <= 1. <= part['high']
  assert abs(hits / 2000 - .95) < 5 * (.95 * .05 / 2000) ** .5
  single = scores.paired_difference([1.], [3.])
  assert (single['mean'], single['low'], single['high']) == (-2., None, None)
  assert 'of 1 seed, too few to tell' in page.sentence(
      'a', 'b', 'accuracy', single)


@pytest.mark.parametrize('old, new, words', [
    ('', None, 'does not exist'),
    ('seeds=(0, 1, 2)', 'seeds=(0, 0)', 'seeds=(0, 0) must be a list'),
    ('seeds=(0, 1, 2)', 'seeds=3', 'seeds=3 must be a list'),
    ("against='nothing'", "baseline='GDS'", "did you mean 'GDAS'?"),
    ("against='nothing'", 'against=3', 'against=3 must be a text'),
    ("'ROME, K = 7'", "'GDAS '", 'share the folder GDAS'),
    ("'ROME, K = 7'", '7', 'the label 7 must be a text'),
    ("['--config=every_method:space=nasbench201,method=gdas']", 'None',
     'must be a list of texts'),
    ('method=rome_v2', 'method=rome_v3', "arm 'ROME, K = 7': "),
    ('method=rome_v2', 'method=p_darts', "rank=['--cells=8'] must be empty"),
    ('get_comparison', 'get_config', 'has no function get_comparison()'),
    ('config_lib.Comparison(', 'dict(', 'must return a'),
    ("against='nothing'", 'rank=8', 'rank=8 must be a list of texts')])
def test_mistakes(given, capsys, old, new, words):
  file, folder, _ = given
  text = FILE.replace(
      'seeds=', "rank=['--cells=8'], seeds=") if 'p_darts' in str(
      new) else FILE
  if new is None:
    file.unlink()
  else:
    assert old in text
    file.write_text(text.replace(old, new))
  assert go(given) == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and err.startswith('rome_jax: ') and words in err
  assert not folder.exists()


@pytest.mark.parametrize('flag', ['--check', '--config.seed=7'])
def test_flags_of_a_single_run_are_refused(given, capsys, flag):
  assert go(given, flag) == 2
  assert f'{flag} is not for a comparison' in capsys.readouterr().err


@pytest.mark.parametrize('name, text, words', [
    ('config.json', '{}', 'holds a single run'),
    ('compare.json', '{"name": "other"}', "holds the comparison 'other', not "),
    ('compare.json', '[]', 'compare.json')])
def test_a_page_is_not_written_among_others_files(
    given, capsys, name, text, words):
  _, folder, _ = given
  folder.mkdir()
  (folder / name).write_text(text)
  assert go(given, '--page') == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and words in err
  assert [path.name for path in folder.iterdir()] == [name]


def test_a_run_of_another_config_is_refused(given, capsys):
  """Its numbers would stand beside flags that it never had."""
  _, folder, _ = given
  workdir = folder / 'GDAS' / 'seed-1'
  workdir.mkdir(parents=True)
  config = fields.to_json(command_line.load(
      ['--config=every_method:space=nasbench201,method=gdas',
       '--config.seed=1', '--config.search.epochs=77']).config)
  (workdir / 'config.json').write_text(json.dumps(config))
  assert go(given) == 2
  assert 'search.epochs (77 there, 25 now)' in capsys.readouterr().err


def test_a_failure_says_what_the_run_said(given, capsys):
  file, folder, program = given
  pathlib.Path(program[0]).write_text(
      'import sys; print("noise"); print("the reason"); sys.exit(2)')
  assert go(given) == 2
  out = capsys.readouterr().out
  assert '[1/6] GDAS/seed-0: exit code 2: the reason (' in out
  assert str(folder / 'GDAS' / 'seed-0' / 'output.txt') in out


def test_a_folder_that_is_a_file(given, capsys):
  _, folder, _ = given
  folder.write_text('')
  assert go(given) == 2
  assert 'cannot use' in capsys.readouterr().err


@pytest.mark.parametrize('handler', [
    'lambda *args: sys.exit(0)',
    'signal.SIG_DFL'])  # as of a run that still loads its libraries
def test_a_signal_stops_the_running(handler, given, monkeypatch, capsys):
  """A child is asked to stop, and nothing is started after it."""
  file, folder, program = given
  pathlib.Path(program[0]).write_text(
      'import signal, sys, time\n'
      f'signal.signal(signal.SIGTERM, {handler})\n'
      'print("ready", flush=True)\ntime.sleep(60)\n')
  ready = folder / 'GDAS' / 'seed-0' / 'output.txt'

  class Soon:
    def __enter__(self):
      return self

    def __exit__(self, *args):
      pass

    @property
    def requested(self):
      return ready.exists() and 'ready' in ready.read_text()

  monkeypatch.setattr(compare.interrupt, 'Interrupt', Soon)
  assert go(given) == 0
  assert '[1/6] GDAS/seed-0: stopped' in capsys.readouterr().out
  assert not (folder / 'ROME_K_7').exists()


def test_a_signal_that_ends_a_run_is_named(given, capsys):
  file, folder, program = given
  pathlib.Path(program[0]).write_text(
      'import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n')
  assert go(given) == 143
  assert ('GDAS/seed-0: exit code 143 (SIGTERM): it printed nothing ('
          ) in capsys.readouterr().out


@pytest.mark.parametrize('given_gpus, workers, wanted', [
    ('4,5', 2, ['4', '5', '4']), ('', 2, ['', '', '']), ('4,5', 1, ['4,5'])])
def test_workers_take_turns_on_gpus(monkeypatch, given_gpus, workers, wanted):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given_gpus)
  assert [compare._environment(i, workers)['CUDA_VISIBLE_DEVICES']
          for i in range(len(wanted))] == wanted


def test_bad_seeds(given, capsys):
  assert go(given, '--seeds=1,1') == 2
  assert '--seeds=1,1 must be whole numbers' in capsys.readouterr().err


@pytest.mark.parametrize('name, number', [
    ('compare_nb201:scale=small', 18), ('compare_nb201:scale=full', 18),
    ('compare_ranking', 25), ('compare_leaves', 9),
    ('compare_collapse', 21), ('compare_collapse:question=rates', 12),
    ('compare_collapse:question=rome', 12)])
def test_shipped_comparisons_validate(name, number, monkeypatch):
  monkeypatch.chdir(ROOT)
  runs = compare.plan(comparison.load(name), 'runs/compare', [])
  assert len(runs) == number


@pytest.mark.slow
def test_real_runs(tmp_path):
  """Two searches of seconds and a ranking, in processes of their own."""
  file = tmp_path / 'pair.py'
  flags = ['--config.dataset=digits', '--config.image_size=8',
           '--config.search.max_steps=4', '--config.search.batch_size=16']
  file.write_text(
      'from rome_jax import config as config_lib\n\n\n'
      'def get_comparison():\n'
      '  return config_lib.Comparison("real", {\n'
      '      m: ["--config=every_method:space=nasbench201,method=" + m]\n'
      '      for m in ("gdas", "spos")}, seeds=(0,), rank=["--cells=8"])\n')
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax', 'compare', f'--config={file}',
       f'--workdir={tmp_path / "out"}', *flags], cwd=ROOT, check=False,
      capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'out' / 'compare.json').read_text())
  assert {row['state'] for row in found['runs']} == {'done'}
  assert re.search(r'\[2/2\] spos/seed-0: done', done.stdout)
  assert found['runs'][0]['trajectory']


@pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='needs Ray')
@pytest.mark.slow
def test_over_ray(given):
  """A task for each run; what failed goes on with the same command."""
  file, folder, program = given
  command = [sys.executable, '-m', 'launch.compare_ray', f'--config={file}',
             f'--workdir={folder}', '--address=local']
  driver = ('import sys; from launch import compare_ray; '
            f'sys.exit(compare_ray.main(sys.argv[1:], {program!r}))')
  for wanted in (3, 0):
    done = subprocess.run(
        [sys.executable, '-c', driver, *command[3:]], cwd=ROOT, check=False,
        capture_output=True, text=True, timeout=300)
    assert done.returncode == wanted, done.stderr
  found = json.loads((folder / 'compare.json').read_text())
  assert {row['state'] for row in found['runs']} == {'done'}

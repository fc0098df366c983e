"""`rome-jax rank`: a tiny run, ranked, stopped, continued and misused."""

import itertools
import json
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from tiny_run import CONFIG

from rome_jax import data, families, spaces
from rome_jax.cli import rank, run
from rome_jax.config import checks
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import nasbench201
from rome_jax.train import checkpoint, ranking

FLAGS = ['--cells=40', '--batch-size=60', '--batches=2', '--seed=3',
         '--block=16']


@pytest.fixture(scope='module', autouse=True)
def quickly():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a search of four steps in NAS-Bench-201, on digits."""
  folder = tmp_path_factory.mktemp('rank')
  path = folder / 'tiny.py'
  path.write_text(CONFIG.format(cache=''))
  assert run.main([
      f'--config={path}', f'--workdir={folder / "run"}',
      '--config.space=nasbench201', '--config.method=spos',
      '--config.search.cells=3', '--config.search.max_steps=4',
      '--config.search.k=1',
      '--config.search.batch_size=16', '--config.search.fraction_theta=.5',
      '--config.search.fraction_alpha=.5', '--config.search.candidates=1',
      '--config.retrain.cells=3', '--config.retrain.seeds=0']) == 0
  return folder / 'run'


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy that a test may change."""
  shutil.copytree(finished, tmp_path / 'run')
  return tmp_path / 'run'


def ranked(capsys, workdir, *argv):
  """(exit code, stdout, stderr)."""
  capsys.readouterr()
  code = rank.main([str(workdir), *argv])
  return code, *capsys.readouterr()


def test_a_run_is_ranked(capsys, workdir):
  """Accuracies one network at a time, from the files that the run left."""
  code, out, err = ranked(capsys, workdir, *FLAGS, '--table=cifar10')
  found = json.loads((workdir / 'ranking.json').read_text())
  columns = found['scores']
  assert code == 0 and 'cell 40/40' in err
  assert out.startswith('ranked 40 architectures of nasbench201 at ')
  assert 'on 120 valid images, norm=batch: Kendall tau ' in out
  assert len(set(columns['cell'])) == 40 == found['cells']
  assert found['step'] == 4 and found['cells_per_second'] > 0
  config = checks.from_json(json.loads((workdir / 'config.json').read_text()))
  theta = checkpoint.read_tree(
      workdir / 'checkpoints' / 'search', 'state')['theta']
  network = families.supernet('nasbench201', spaces.Sizes(3, 2, 10, 8, 1))
  images = data.load('digits', test_fraction=config.test_fraction,
                     seed=config.split_seed)
  indices = data.halves(images.train.labels, .5, .5, config.seed)[1]
  plain = data.Batches(images.train, indices, 60, 3, data.make_transform(
      'shift', images, train=False))
  apply = jax.jit(network.apply)
  for cell, accuracy in itertools.islice(
      zip(columns['cell'], columns['accuracy']), 3):
    arch = families.arch_of(
        forms.to_genotype(cell), spaces.NASBENCH201)
    right = [np.asarray(apply({'params': theta}, plain(i)['image'], arch)
                        ).argmax(-1) == plain(i)['label'] for i in range(2)]
    assert accuracy == pytest.approx(np.mean(right))
  assert columns['table'] == [
      nasbench201.load().query(cell, 'cifar10') for cell in columns['cell']]
  assert columns['cell'][int(np.argmax(columns['accuracy']))] == found['best']
  page = (workdir / 'report.html').read_text()
  assert '<h2>Ranking</h2>' in page and 'kendall tau better half' in page
  for suffix in ('svg', 'png'):
    assert (workdir / f'ranking.{suffix}').stat().st_size > 1000


def test_a_stopped_ranking_goes_on(capsys, workdir, monkeypatch, tmp_path):
  """SIGTERM after the first of three blocks; the same scores in the end."""
  shutil.copytree(workdir, tmp_path / 'whole')
  ranked(capsys, tmp_path / 'whole', *FLAGS)
  append = ranking._append

  def stopping(path, rows):
    append(path, rows)
    signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(ranking, '_append', stopping)
  code, out, _ = ranked(capsys, workdir, *FLAGS)
  assert code == 0 and out == (
      'stopped by SIGTERM after 16 of 40 architectures; the same command '
      'continues\n')
  assert not (workdir / 'ranking.json').exists()
  lines = []
  monkeypatch.setattr(
      ranking, '_append',
      lambda path, rows: lines.append(len(rows)) or append(path, rows))
  code, out, _ = ranked(capsys, workdir, *FLAGS)
  assert code == 0 and lines == [16, 8]
  # Digits are no data set of the table, so there is nothing to compare.
  assert 'the best has' in out and 'Kendall' not in out
  scores = [json.loads((folder / 'ranking.json').read_text())['scores']
            for folder in (workdir, tmp_path / 'whole')]
  assert scores[0] == scores[1]
  assert 'Kendall' not in (workdir / 'report.html').read_text()


def test_cells_of_a_file_on_test_images_recalibrated(
    capsys, workdir, tmp_path):
  path = tmp_path / 'cells.txt'
  path.write_text('# best and worst\n421211\n0\n\n'
                  "Genotype(normal=[[('none', 0)], [('none', 0), ('none', 1)],"
                  " [('none', 0), ('none', 1), ('nor_conv_1x1', 2)]], "
                  'normal_concat=[3])\n'
                  '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n')
  code, out, _ = ranked(
      capsys, workdir, f'--cells={path}', '--images=test', '--batches=1',
      '--norm=recalibrated', '--calibration=50', '--table=cifar100')
  found = json.loads((workdir / 'ranking.json').read_text())
  assert code == 0 and found['calibration'] == 50
  assert found['norm'] == 'recalibrated' and found['images'] == 'test'
  assert list(map(forms.to_code, found['scores']['cell'])) == [
      '421211', '421211', '000002', '000000']
  accuracy = found['scores']['accuracy']
  assert accuracy[0] == accuracy[1]  # the same cell in two forms
  # A cell that sees nothing has the same logits for all images.
  assert accuracy[2] == accuracy[3] < .25
  assert found['table']['dataset'] == 'cifar100'


def test_a_ranking_of_every_architecture():
  found = rank.architectures(spaces.MOBILE_TINY, 'all', 0)
  assert len(set(found)) == 12
  assert set(rank.architectures(spaces.MOBILE_TINY, '1000', 5)) == set(found)
  some = rank.architectures(spaces.S0, '20', 5)
  assert len(set(some)) == 20 == len(
      set(some) & set(rank.architectures(spaces.S0, '20', 5)))
  assert not set(some) & set(rank.architectures(spaces.S0, '20', 6))


def test_measures_against_their_definitions():
  """Pair by pair, and shares of sorted lists, for 60 cells and noisy scores."""
  rng = np.random.default_rng(0)
  table = nasbench201.load()
  # Cells whose accuracies differ, so that there are no ties.
  first = np.unique(table.values('cifar10'), return_index=True)[1]
  cells = rng.choice(first, 60, replace=False).tolist()
  values = table.values('cifar10')[cells]
  scores = values + rng.normal(0, 5, 60)
  found = rank.compare(table, 'cifar10', cells, scores)

  def tau(some):
    pairs = [np.sign(scores[i] - scores[j]) * np.sign(values[i] - values[j])
             for i, j in itertools.combinations(some, 2)]
    return np.mean(pairs)

  assert found['kendall_tau'] == pytest.approx(tau(range(60)))
  better = np.argsort(values)[30:]
  assert found['kendall_tau_better_half'] == pytest.approx(tau(better))
  by_score, by_value = np.argsort(-scores), np.argsort(-values)
  for share, k in (('1%', 1), ('5%', 3), ('10%', 6)):
    both = set(by_score[:k]) & set(by_value[:k])
    assert found['precision'][share] == pytest.approx(len(both) / k)
    assert found['regret_at'][share] == pytest.approx(
        values.max() - values[by_score[:k]].max())
  assert found['regret'] == pytest.approx(
      table.values('cifar10').max() - values[by_score[0]])
  assert rank.compare(table, 'cifar10', ['421211', 0], np.ones(2)) is None


@pytest.mark.parametrize('argv, sentence', [
    (['--cells=nothing.txt'], 'must be all, a number or a file'),
    (['--cells=0'], '--cells=0 must be at least 1'),
    (['--batch-size=9999'], '--batch-size=9999 must be at most '),
    (['--batches=99'], '--batches=99 must be at most '),
    (['--norm=running'], 'keeps no running statistics'),
    (['--norm=recalibrated', '--calibration=9999'], 'must be at most '),
    (['--table=cifar11'], "did you mean 'cifar10'"),
    (['--images=train'], 'invalid choice'),
    (['--batchsize=3'], "did you mean '--batch-size'"),
    (['--seed=x'], "'x' must be an integer of at least 0")])
def test_mistakes_end_in_a_sentence(capsys, finished, argv, sentence):
  code, out, err = ranked(capsys, finished, *argv)
  assert code == 2 and not out and sentence in err.splitlines()[-1]


def test_a_folder_that_cannot_be_ranked(capsys, workdir, tmp_path):
  code, _, err = ranked(capsys, tmp_path)
  assert code == 2 and 'is not the folder of a run' in err
  config = json.loads((workdir / 'config.json').read_text())
  shutil.rmtree(workdir / 'checkpoints' / 'search')
  code, _, err = ranked(capsys, workdir)
  assert code == 2 and 'holds no checkpoint' in err
  config['genotype'] = 'DARTS_V2'
  (workdir / 'config.json').write_text(json.dumps(config))
  code, _, err = ranked(capsys, workdir)
  assert code == 2 and 'has no supernet' in err
  assert 'Traceback' not in err and pathlib.Path(workdir).exists()


def test_the_page_runs(capsys):
  """docs/ranking.md, block after block."""
  page = (pathlib.Path(__file__).parents[2] / 'docs' / 'ranking.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', page, re.S)
  assert len(blocks) == 2
  session = {}
  for block in blocks:
    exec(compile(block, 'docs/ranking.md', 'exec'), session)
  tau, found = capsys.readouterr().out.splitlines()
  assert -1 <= float(tau) <= 1
  # The best cell of at most a million parameters, by going through all.
  table = nasbench201.load()
  small = table.cost_values('params') <= 1_000_000
  best = table.values('cifar10')[small].max()
  accuracy, params = re.fullmatch(
      r'([\d.]+) % with ([\d,]+) parameters', found).groups()
  assert best - .1 < float(accuracy) <= round(best, 2)
  assert int(params.replace(',', '')) <= 1_000_000

"""DARTS' random search, and what a retraining holds out."""

import json

import numpy as np
import pytest
from stopping import StopAfter
from tiny_run import CONFIG, final_arrays

from rome_jax import data, errors, families, spaces
from rome_jax.cli import run as run_lib
from rome_jax.config import checks, fields
from rome_jax.methods import table
from rome_jax.spaces import Sizes, genotypes
from rome_jax.train import candidates, loop, metrics, plans, recipes, retrain
from rome_jax.train.setup import Setup

CLASSES = 3
pytestmark = pytest.mark.usefixtures('compiles_once')
TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')
RECIPE = recipes.SearchRecipe(candidates=3, epochs=2, k=1)
RETRAINING = recipes.RetrainRecipe(
    cells=1, channels=2, epochs=9, batch_size=4, augment='none', cutout=0,
    auxiliary=False, drop_path=.2, holdout=.5)


def dataset(n=24):
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
                          np.arange(n, dtype=np.int32) % CLASSES)
  return data.Dataset('npz', split, split, CLASSES, 8, 3, (.5,) * 3, (.25,) * 3)


@pytest.fixture(scope='module')
def setup():
  space = spaces.Space('trained', ('skip_connect', 'avg_pool_3x3',
                                   'nor_conv_1x1'), num_nodes=1)
  return Setup(space, families.get(space), table.random_search,
               Sizes(1, 2, CLASSES, 8), 'cifar')


def go(setup, workdir, stop=None):
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return plans.run(
        setup, RECIPE, RETRAINING, dataset(), 5,
        loop.Settings(workdir, 2, 2, 2), writer, StopAfter(stop))


def lines(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


@pytest.fixture(scope='module')
def whole(setup, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, go(setup, workdir)


NAMES = [f'search/candidate-0{i}' for i in range(3)]


def test_the_most_accurate_is_derived(setup, whole):
  workdir, found = whole
  drawn = candidates.draw(setup.space, 3, 5)
  notes = [json.loads((workdir / 'phases' / f'{name}.json').read_text())
           for name in NAMES]
  assert [genotypes.from_text(note['genotype']) for note in notes] == drawn
  scores = [note['test_accuracy'] for note in notes]
  assert found.genotype == drawn[int(np.argmax(scores))]
  assert found.figures['candidate_accuracy'] == max(scores)
  assert found.figures['candidate_accuracy_mean'] == pytest.approx(
      np.mean(scores))
  assert found.scalars['valid_accuracy'] == max(scores)
  assert found.figures['seconds'] == pytest.approx(
      sum(note['seconds'] for note in notes))
  assert genotypes.load(str(workdir / 'genotype.json')) == found.genotype
  # 12 images to train on, batches of 4, 2 epochs: 6 steps each.
  steps = [(row['phase'], row['step']) for row in lines(workdir)]
  assert {name for name, _ in steps} == set(NAMES)
  assert max(step for _, step in steps) == 6


def test_a_candidate_is_trained_as_one_is_retrained(setup, whole, tmp_path):
  """By `Trainer` on images cut here by hand: the same bits."""
  workdir, _ = whole
  theta, alpha = data.halves(dataset().train.labels, .5, .5, 5)
  assert set(theta).isdisjoint(alpha) and len(theta) == len(alpha) == 12
  images, labels = dataset().train.images, dataset().train.labels
  cut = dataset()._replace(
      train=data.ArraySplit(images[theta], labels[theta]),
      test=data.ArraySplit(images[alpha], labels[alpha]))
  trainer = retrain.Trainer(
      setup, RETRAINING._replace(epochs=2, holdout=0.), cut)
  genotype = candidates.draw(setup.space, 3, 5)[1]
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    trainer.run(retrain.Job('x', 'candidate', genotype, 6),
                loop.Settings(tmp_path, 2, 2, 2), writer, StopAfter())
  assert final_arrays(tmp_path, 'retrain/x') == final_arrays(
      workdir, NAMES[1])


def test_a_run_continues_in_its_candidate(setup, whole, tmp_path):
  workdir, wanted = whole
  for steps in (2, 8):
    assert not go(setup, tmp_path, steps).finished
  found = go(setup, tmp_path)
  assert found.genotype == wanted.genotype
  assert lines(tmp_path) == lines(workdir)
  for name in NAMES:
    assert final_arrays(tmp_path, name) == final_arrays(workdir, name)


def test_held_out_images_are_a_share_of_each_class():
  labels = np.repeat(np.arange(4, dtype=np.int32), [40, 20, 10, 3])
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
  split = data.ArraySplit(np.broadcast_to(images, (73, 8, 8, 3)), labels)
  whole = dataset()._replace(train=split)
  found = retrain.held_out(whole, .2)
  test, train = found.test.images[:, 0, 0, 0], found.train.images[:, 0, 0, 0]
  assert sorted([*test, *train]) == list(range(73))
  assert np.bincount(found.test.labels).tolist() == [8, 4, 2, 1]
  np.testing.assert_array_equal(labels[test], found.test.labels)
  again = retrain.held_out(whole, .2)
  np.testing.assert_array_equal(again.test.images, found.test.images)


def test_a_retraining_holds_out(setup):
  trainer = retrain.Trainer(setup, RETRAINING, dataset())
  assert len(trainer.dataset.train) == len(trainer.dataset.test) == 12
  assert trainer.steps == 9 * 3
  without = retrain.Trainer(setup, RETRAINING._replace(holdout=0.), dataset())
  assert len(without.dataset.train) == 24


def test_no_epochs_are_no_search(setup):
  with pytest.raises(errors.UserError, match='config.search.epochs=0'):
    candidates.trainer(setup, RECIPE, RETRAINING, dataset(), 5, 0)


def test_no_candidates_are_no_search():
  config = fields.defaults()
  config.method = 'random_search'
  checks.apply_recipe(config)
  assert (config.search.candidates, config.search.epochs) == (24, 100)
  config.search.candidates = 0
  with pytest.raises(errors.UserError, match='search.candidates=0 must be at'):
    checks.validate(config)


@pytest.mark.parametrize('method', [
    'random_search', pytest.param('p_darts', marks=pytest.mark.slow)])
def test_a_whole_run(method, setup, monkeypatch, tmp_path, capsys):
  """Search, derive, retrain, report; a second start finds it finished."""
  monkeypatch.setitem(spaces.SPACES, 'tiny', setup.space.restrict(name='tiny'))
  path, workdir = tmp_path / 'tiny.py', tmp_path / 'run'
  path.write_text(CONFIG.format(cache=''))
  flags = [
      f'--config={path}', f'--workdir={workdir}', f'--config.method={method}',
      '--config.search.epochs=1', '--config.search.candidates=2',
      '--config.search.batch_size=16', '--config.search.alpha_start=0',
      '--config.search.stage_cells=1,2', '--config.search.stage_keep=2',
      '--config.search.stage_skip_dropout=.1,.4', '--config.retrain.holdout=.25'
  ]
  assert run_lib.main([*flags, '--check']) == 0
  told = capsys.readouterr().out
  assert ('2 random architectures' if method == 'random_search' else
          'search/stage-2: ') in told
  assert run_lib.main(flags) == 0
  found = json.loads((workdir / 'result.json').read_text())
  assert found['method'] == method and found['holdout'] == .25
  assert found['search']['valid_accuracy'] is not None
  assert genotypes.to_text(genotypes.load(
      str(workdir / 'genotype.json'))) == found['genotype']
  assert 'which was held out' in capsys.readouterr().out
  # Killed before the report: nothing is trained again.
  (workdir / 'report.html').unlink()
  assert run_lib.main(flags) == 0
  told = capsys.readouterr()
  assert 'compiling' not in told.err and 'lacks the last lines' not in told.err
  assert json.loads((workdir / 'result.json').read_text())['search'] == (
      found['search'])

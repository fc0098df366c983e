"""Training on from another run's network; the mean, and the best, of steps."""

import json
import shutil
import types

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from tiny_run import final_arrays

import rome_jax as rj
from rome_jax import errors
from rome_jax.cli import run as run_lib
from rome_jax.config import checks
from rome_jax.train import notes, retrain


def config_of(**fields):
  config = rj.config.defaults()
  config.space, config.dataset, config.genotype = 's2', 'arrays', GENOTYPE
  config.retrain.update(
      epochs=1, auxiliary=False, cutout=0, cells=1, channels=4, batch_size=8,
      augment='none', drop_path=0., lr=.1, **fields)
  return config


CELL = [[('skip_connect', 0), ('sep_conv_3x3', 1)]] * 4
GENOTYPE = (f'Genotype(normal={CELL}, normal_concat=[2, 3, 4, 5], '
            f'reduce={CELL}, reduce_concat=[2, 3, 4, 5])')


def dataset(classes):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
  return rj.data.from_arrays((images, np.arange(24) % classes))


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('tuned') / 'first'
  run_lib.run(config_of(), workdir, dataset(2))
  return workdir


@pytest.mark.parametrize('classes', [2, 3])
def test_weights_are_those_of_the_other_run(first, tmp_path, classes):
  """One step of rate 0 changes nothing; a head of other classes is fresh."""
  config = config_of(init_from=str(first))
  config.retrain.lr, config.retrain.weight_decay = 1e-30, 0.
  run_lib.run(config, tmp_path / 'run', dataset(classes))
  old, new = (
      {key: value for key, value in final_arrays(
          path, f'retrain/{json.loads(note.read_text())["name"]}')[1]
       if 'state.params' in key}
      for path in (first, tmp_path / 'run')
      for note in [next((path / 'phases').glob('given-*.json'))])
  assert old.keys() == new.keys() and len(old) > 5
  differing = {key for key in old if old[key] != new[key]}
  assert all('head' in key for key in differing)
  assert bool(differing) == (classes == 3)


def test_another_network_is_refused(first):
  start = retrain.read_start(str(first))
  variables, genotype = start.variables, start.genotype
  wider = jax.tree.map(lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 1)),
                       variables)
  less = {**variables, 'params': {
      name: tree for name, tree in variables['params'].items()
      if name != 'cell0'}}
  for other in (wider, less):  # The source has other weights, or more.
    with pytest.raises(errors.UserError, match='is another network: .*cell'):
      retrain.started(other, start, genotype)
  # Its parameters would fit, and mean something else.
  turned = genotype._replace(normal=tuple(
      tuple((op, 1 - pred) for op, pred in node) for node in genotype.normal))
  with pytest.raises(errors.UserError, match='has another genotype'):
    retrain.started(variables, start, turned)


def test_a_run_that_goes_on_does_not_need_the_other(first, tmp_path):
  """Its own checkpoint has all; and the phase says where it began."""
  other = tmp_path / 'other'
  shutil.copytree(first, other)
  config = config_of(init_from=str(other))
  config.checkpoint_every = 1
  workdir = tmp_path / 'run'
  run_lib.run(config, workdir, dataset(2))
  note = json.loads((workdir / 'phases' / 'given-0.json').read_text())
  assert note['init_from'] == f'{other}, given-0'
  before = final_arrays(workdir, 'retrain/given-0')
  shutil.rmtree(other)
  for path in ('result.json', 'report.html', 'phases/given-0.json'):
    (workdir / path).unlink()
  run_lib.run(config, workdir, dataset(2))
  assert final_arrays(workdir, 'retrain/given-0') == before


def test_mistakes(first, tmp_path):
  config = config_of(init_from=str(first))
  config.genotype = ''
  with pytest.raises(errors.UserError, match='init_from=.* needs'):
    checks.validate(config)
  with pytest.raises(errors.UserError, match='must be the folder of a finish'):
    retrain.read_start(str(tmp_path / 'none'))
  config = config_of(init_from=str(first), random_architectures=1)
  with pytest.raises(errors.UserError, match='random_architectures=1 must'):
    checks.validate(config)
  with pytest.raises(errors.UserError, match='seeds=0 must be at least 1'):
    checks.validate(config_of(init_from=str(first), seeds=0))


class Tiny(nn.Module):
  """A layer and a BatchNorm, with the call of a network."""

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    x = nn.BatchNorm(use_running_average=not train, momentum=.9)(
        images.mean((1, 2)))
    return nn.Dense(2, name='head')(x)


def test_the_mean_over_the_steps():
  """m <- d m + (1 - d) x of weights and statistics, from the fresh ones.

  d is .1, 2/11 and 3/12 in the first three steps.
  """
  recipe = retrain.RetrainRecipe(
      ema=.75, auxiliary=False, drop_path=0., epochs=1)
  images = np.random.default_rng(0).normal(size=(3, 8, 4, 4, 3)).astype('f')
  network = Tiny()
  variables = network.init(jax.random.key(0), images[0])
  tx = optax.sgd(.5)
  step = jax.jit(retrain.make_step(network, recipe, tx, 3, 3))
  state = retrain.init_state(variables, tx, 0, ema=True)
  mean = jax.tree.map(np.float64, (state.params, state.batch_stats))
  for batch, d in zip(images, (1 / 10, 2 / 11, 3 / 12)):
    state, _ = step(state, {'image': batch, 'label': np.arange(8) % 2})
    mean = jax.tree.map(lambda m, x, d=d: d * m + (1 - d) * np.float64(x), mean,
                        (state.params, state.batch_stats))
  chex.assert_trees_all_close(state.tested, mean, rtol=1e-5)
  assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(mean[0])))


def test_the_mean_is_tested_and_loaded(tmp_path):
  run_lib.run(config_of(ema=.5), tmp_path / 'run', dataset(2))
  trained = rj.load(tmp_path / 'run')
  kept = dict(final_arrays(tmp_path / 'run', 'retrain/given-0')[1])
  leaves = {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(
      trained.variables['params'])}
  assert leaves <= {value for key, value in kept.items() if '.ema.' in key}
  assert not leaves <= {
      value for key, value in kept.items() if '.params.' in key}
  test, about = dataset(2).test, trained.about
  images = ((test.images / 255 - about.mean) / about.std).astype(np.float32)
  logits = trained.network.apply(trained.variables, images)
  assert about.figures['test_accuracy'] == pytest.approx(
      (np.argmax(logits, -1) == test.labels).mean())


class State(types.SimpleNamespace):

  @property
  def tested(self):
    return {'w': np.full(3, float(self.step))}, {}


def after_tests(accuracies, folder, steps, fresh=False):
  """The figures of `Best` after the tests of some steps."""
  best = retrain.Best(folder, fresh)
  for step in steps:
    best(State(step=step), {
        'test_accuracy': accuracies[step], 'test_loss': step / 8})
  return best.figures


def kept(workdir):
  return retrain.read_variables(workdir, 'derived-0', best=True)['params']['w']


# The first of two equals counts; a kill sets a run back to an earlier step.
@pytest.mark.parametrize('parts', [
    [range(5)], [range(3), range(1, 5)], [range(5), range(5)],
    [range(4), range(4, 5)]])
def test_the_first_of_the_largest_wherever_it_stops(parts, tmp_path):
  folder = retrain.best_folder(tmp_path, 'derived-0')
  for steps in parts:
    figures = after_tests([.5, .25, .75, .75, .5], folder, steps)
  assert figures == {'best_test_accuracy': .75, 'best_test_loss': .25,
                     'best_step': 2}
  np.testing.assert_array_equal(kept(tmp_path), [2., 2., 2.])


def test_weights_belong_to_the_figures_if_a_replay_differs(tmp_path):
  """On other devices the last bits may differ, and with them the best."""
  folder = retrain.best_folder(tmp_path, 'derived-0')
  after_tests([.5, .6, .8], folder, range(3))
  figures = after_tests([.5, .81, .8], folder, range(1, 3))
  assert figures['best_step'] == 1
  np.testing.assert_array_equal(kept(tmp_path), [1., 1., 1.])
  # A retraining that begins anew forgets what another has kept.
  assert after_tests([.4], folder, [0], fresh=True)['best_step'] == 0
  np.testing.assert_array_equal(kept(tmp_path), [0., 0., 0.])


def test_damage_is_said_and_nothing_deleted(tmp_path):
  folder = retrain.best_folder(tmp_path, 'derived-0')
  after_tests([.5, .75], folder, range(2))
  [manifest] = folder.glob('*/manifest.json')
  manifest.write_text(manifest.read_text()[:50])
  with pytest.raises(errors.UserError, match='put a backup there, or delete'):
    after_tests([.5, .4], folder, range(2))
  assert manifest.exists()


def test_the_best_of_several_retrainings(tmp_path):
  """By the accuracy of the weights that are asked for."""
  (tmp_path / 'phases').mkdir()
  for name, last, best in (('derived-0', .6, .7), ('derived-1', .5, .9)):
    (tmp_path / 'phases' / f'{name}.json').write_text(json.dumps(
        {'name': name, 'kind': 'derived', 'test_accuracy': last,
         'best_test_accuracy': best}))
  assert notes.retraining(tmp_path)['name'] == 'derived-0'
  assert notes.retraining(
      tmp_path, by='best_test_accuracy')['name'] == 'derived-1'


def best_config():
  config = config_of(keep_best=True)
  config.retrain.epochs, config.checkpoint_every = 4, 1
  return config


@pytest.fixture(scope='module')
def best_run(tmp_path_factory):
  """Four epochs, each tested."""
  config = best_config()
  workdir = tmp_path_factory.mktemp('best') / 'run'
  run_lib.run(config, workdir, dataset(2))
  return workdir


def test_what_is_loaded_has_the_accuracy_that_is_said(best_run):
  lines = [json.loads(line)
           for line in (best_run / 'metrics.jsonl').read_text().splitlines()]
  tested = [(line['test_accuracy'], -line['step'], line['test_loss'])
            for line in lines if line.get('test_accuracy') is not None]
  accuracy, step, loss = max(tested)
  network, variables, about = rj.load(best_run, best=True)
  figures = about.figures
  assert len(tested) == 4 and 'train_loss' not in figures
  assert (figures['test_accuracy'], -figures['steps'], figures['test_loss'],
          figures['weights']) == (accuracy, step, loss, 'best')
  split = dataset(2).test
  images = (split.images / 255 - about.mean) / about.std
  logits = jax.jit(network.apply)(variables, images.astype(np.float32))
  assert (logits.argmax(-1) == split.labels).mean() == accuracy
  assert 'of the most accurate test' in (best_run / 'report.html').read_text()


def test_a_retraining_that_was_stopped_keeps_the_same(best_run, tmp_path):
  """Set back to the first of its checkpoints, behind the best test."""
  run = tmp_path / 'run'
  shutil.copytree(best_run, run)
  before = (json.loads((run / 'phases' / 'given-0.json').read_text()),
            retrain.read_variables(run, 'given-0', best=True))
  last = sorted((run / 'checkpoints' / 'retrain' / 'given-0').iterdir())[-1]
  shutil.rmtree(last)
  for path in ('result.json', 'report.html', 'phases/given-0.json'):
    (run / path).unlink()
  run_lib.run(best_config(), run, dataset(2))
  after = json.loads((run / 'phases' / 'given-0.json').read_text())
  assert {k: v for k, v in after.items() if 'best' in k} == {
      k: v for k, v in before[0].items() if 'best' in k}
  chex.assert_trees_all_equal(
      retrain.read_variables(run, 'given-0', best=True), before[1])


def test_without_it_there_is_none(first):
  with pytest.raises(rj.UserError, match='no retraining with config.retrain.k'):
    rj.load(first, best=True)


def test_a_folder_may_be_relative(best_run, monkeypatch):
  monkeypatch.chdir(best_run.parent)
  for best in (False, True):
    _, variables, _ = rj.load(best_run.name, best=best)
    assert variables['params']['head']['kernel'].shape[-1] == 2

"""The public face: every name has an example, and every example runs."""

import ast
import doctest
import inspect
import pathlib

import jax
import numpy as np
import optax
import pytest

import rome_jax as rj
from rome_jax import api

NAMES = [name for name in rj.__all__ if not name.startswith('_')]
THINGS = [name for name in NAMES if callable(getattr(rj, name))]


def test_the_face_is_listed():
  assert set(rj.__all__) == set(dir(rj))
  assert {'spaces', 'methods', 'supernet', 'make_step', 'init', 'run', 'load',
          'build', 'data'} <= set(NAMES)
  with pytest.raises(AttributeError, match="no attribute 'supernett'"):
    _ = rj.supernett


def test_type_checkers_see_the_same_names():
  tree = ast.parse(pathlib.Path(rj.__file__).read_text())
  [block] = [node for node in tree.body if isinstance(node, ast.If)]
  typed = {alias.asname for node in block.body for alias in node.names}
  assert typed | {'__version__'} == set(rj.__all__)


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
  """What the examples of `run` and `load` begin with."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
  config = rj.config.defaults()
  config.space, config.dataset = 's2', 'arrays'
  small = dict(cells=1, channels=4, batch_size=8, augment='none')
  config.search.update(k=1, max_steps=2, **small)
  config.retrain.update(epochs=1, auxiliary=False, cutout=0, **small)
  return {'config': config, 'workdir': tmp_path_factory.mktemp('api') / 'run',
          'dataset': rj.data.from_arrays(
              (images, np.arange(40) % 2), class_names=('cat', 'dog'))}


@pytest.mark.parametrize('name', THINGS)
def test_every_name_has_an_example_that_runs(name, run_of):
  if name in ('load', 'export', 'predict'):
    rj.run(run_of['config'], run_of['workdir'], dataset=run_of['dataset'])
  thing = getattr(rj, name)
  module = inspect.getmodule(thing)
  found = doctest.DocTestFinder(recurse=False).find(
      thing, name, module, vars(module) | {
          **run_of, 'jax': jax, 'jnp': jax.numpy, 'optax': optax})
  assert sum(len(test.examples) for test in found) > 0
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    for test in found:
      runner = doctest.DocTestRunner()
      runner.run(test)
      assert runner.summarize(verbose=False).failed == 0
  finally:
    jax.config.update('jax_disable_most_optimizations', False)


BATCH = {'image': np.zeros((2, 8, 8, 3), np.float32),
         'label': np.zeros(2, np.int32)}


@pytest.mark.parametrize('call, words', [
    (lambda make: make('rome_v3'), "method 'rome_v3' must be one of"),
    (lambda make: make('darts', k=-1), 'k=-1 must be a whole number'),
    (lambda make: make('darts', sampels='scan'), "did you mean 'samples'"),
    (lambda make: make('darts', space=rj.spaces.S0),
     'space=s0 must be that of the network, s2'),
    (lambda make: make('darts')(None, {'train': BATCH}),
     r"batches\['valid'\] is missing"),
    (lambda make: make('spos')(None, {'train': {'images': 0, 'label': 0}}),
     r"batches\['train'\]\['image'\] is missing; there are 'images'")])
def test_mistakes_are_one_sentence(call, words):
  net = rj.supernet('s2', rj.Sizes(cells=1, channels=4, num_classes=2))
  txs = optax.sgd(.1), optax.sgd(.1)
  with pytest.raises(ValueError, match=words):
    call(lambda method, **given: rj.make_step(method, net, *txs, **given))


@pytest.mark.parametrize('labels', [
    np.float32([0., 1.]), np.zeros((2, 1), np.int32), np.zeros(3, np.int32)])
def test_labels_are_one_integer_per_image(labels):
  with pytest.raises(ValueError, match='must be 2 integers, one per image'):
    api.cross_entropy(np.zeros((2, 4), np.float32), {'label': labels})


def test_a_label_that_is_no_class_is_no_success():
  for label in (4, -1):
    loss, _ = api.cross_entropy(
        np.zeros((2, 4), np.float32), {'label': np.array([0, label])})
    assert np.isnan(loss)


@pytest.mark.parametrize('given, words', [
    (dict(dataset=5), 'from_arrays'), (dict(writers=[print]), 'write')])
def test_run_is_told_what_it_needs(given, words, tmp_path):
  with pytest.raises(rj.UserError, match=words):
    rj.run(rj.config.defaults(), tmp_path / 'none', **given)
  assert not (tmp_path / 'none').exists()


def test_the_partial_channels_of_net_and_method_agree():
  net = rj.supernet(rj.spaces.S2, rj.Sizes(cells=1, channels=8, num_classes=2))
  with pytest.raises(ValueError, match='partial=1 of the supernet must be 4'):
    rj.make_step(rj.methods.pc_darts, net, optax.sgd(.1), optax.sgd(.1))


@pytest.mark.parametrize('call, words', [
    (lambda net, txs: rj.make_step(rj.methods.darts, net, *txs), 'space is'),
    (lambda net, txs: rj.init(rj.methods.darts, net, *txs,
                              space=rj.spaces.S2), 'theta is missing')])
def test_a_network_of_ones_own_brings_what_it_needs(call, words):
  with pytest.raises(ValueError, match=words):
    call(lambda theta, cells, batch, key: 0., (optax.sgd(.1),) * 2)


@pytest.mark.parametrize('name, words', [
    (None, 'is not the folder of a run'), ('x', 'is not the folder of a run')])
def test_loading_what_is_no_run(tmp_path, name, words):
  with pytest.raises(rj.UserError, match=words):
    rj.load(tmp_path, name)


def test_the_loaded_network_is_the_tested_one(run_of, capsys):
  """Its accuracy on the test split is the one that the run wrote down."""
  result = rj.run(run_of['config'], run_of['workdir'],
                  dataset=run_of['dataset'])
  capsys.readouterr()
  network, variables, about = rj.load(run_of['workdir'])
  assert about.genotype == result.genotype
  test = run_of['dataset'].test
  inputs = (test.images / 255 - about.mean) / about.std
  logits = network.apply(variables, inputs.astype(np.float32))
  accuracy = (np.argmax(logits, -1) == test.labels).mean()
  assert accuracy == pytest.approx(about.figures['test_accuracy'], abs=1e-6)
  with pytest.raises(rj.UserError, match="'derived-9'; there are derived-0"):
    rj.load(run_of['workdir'], 'derived-9')


def test_a_result_shows_itself(run_of, capsys):
  result = rj.run(run_of['config'], run_of['workdir'],
                  dataset=run_of['dataset'])
  capsys.readouterr()
  shown = result._repr_html_()
  assert '<svg' in shown and 'test accuracy, derived' in shown
  assert 'Genotype(normal=' in shown and '<script' not in shown
  assert 'not finished' in result._replace(
      finished=False, figures={}, genotype=None)._repr_html_()


@pytest.mark.parametrize('pairs', [1, 2])
def test_arrays_as_a_data_set(pairs):
  images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
  given = (images, labels) if pairs == 1 else ((images, labels),) * 2
  found = api._dataset_of(given)
  assert (len(found.train), len(found.test)) == ((16, 4), (20, 20))[pairs - 1]


def test_a_finished_run_is_of_its_data(run_of, capsys):
  rj.run(run_of['config'], run_of['workdir'], dataset=run_of['dataset'])
  train, test = run_of['dataset'].train, run_of['dataset'].test
  other = rj.data.from_arrays(
      (255 - train.images, train.labels), (test.images, test.labels),
      class_names=('cat', 'dog'))
  with pytest.raises(rj.UserError, match='began with other data'):
    rj.run(run_of['config'], run_of['workdir'], dataset=other)
  capsys.readouterr()


def test_writers_get_every_line(run_of, tmp_path, capsys):
  lines = []

  class Writer:
    def write(self, phase, step, scalars):
      lines.append((phase, step, set(scalars)))

  rj.run(run_of['config'], tmp_path / 'other', dataset=run_of['dataset'],
         writers=[Writer()])
  capsys.readouterr()
  assert [(phase, step) for phase, step, _ in lines] == [
      ('search', 2), ('retrain/derived-0', 4)]
  assert {'train_loss', 'valid_loss', 'alpha_entropy_normal'} <= lines[0][2]


def test_no_module_hides_a_name():
  """`import rome_jax.x` sets an attribute; a function x would be lost."""
  folder = pathlib.Path(rj.__file__).parent
  modules = {path.stem for path in folder.glob('*.py')} | {
      path.name for path in folder.iterdir() if path.is_dir()}
  hidden = {name for name in NAMES if name in modules
            and rj._LAZY[name][1]}
  assert not hidden

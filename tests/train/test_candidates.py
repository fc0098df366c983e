"""The choice among architectures with a supernet's weights."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAfter
from tiny_run import CONFIG

from rome_jax import data, errors, families, spaces
from rome_jax.cli import run as run_lib
from rome_jax.methods import table
from rome_jax.methods.method import full_mask
from rome_jax.spaces import Sizes, counting, genotypes
from rome_jax.train import candidates, plans, recipes, search
from rome_jax.train.setup import Setup

CLASSES = 3


def dataset(n=24):
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
                          np.arange(n, dtype=np.int32) % CLASSES)
  return data.Dataset('npz', split, split, CLASSES, 8, 3, (.5,) * 3, (.25,) * 3)


def convolutions(genotype):
  return sum(op == 'sep_conv_3x3' for nodes in (
      genotype.normal, genotype.reduce) for node in nodes for op, _ in node)


@pytest.fixture
def chosen(tiny, tmp_path, monkeypatch):
  """f(recipe fields, stop): chooses with a network whose accuracy is the
  number of its separable convolutions, in a folder of the test's."""

  def apply(variables, images, cells, rngs):
    place = tiny.ops.index('sep_conv_3x3')
    count = sum((cell.ops == place).sum() for cell in cells.values())
    right = jnp.arange(len(images)) < count
    return jax.nn.one_hot(jnp.where(right, 0, 1), CLASSES)

  monkeypatch.setattr(search, 'make_supernet', lambda *args: (
      types.SimpleNamespace(space=tiny, apply=apply)))
  found = dataset(48)
  split = data.ArraySplit(found.train.images, np.zeros(48, np.int32))
  setup = Setup(tiny, families.get(tiny), table.METHODS['spos'],
                Sizes(2, 4, CLASSES, 8), 'cifar')

  def choose(stop=None, theta=0., folder='run', **fields):
    recipe = recipes.SearchRecipe(
        augment='none', batch_size=8, **{'population': 12, 'crossover': 5,
                                         'mutation': 5, **fields})
    (tmp_path / folder).mkdir(exist_ok=True)
    return candidates.choose(
        setup, recipe, RETRAINING,
        [candidates.Leaf(full_mask(tiny), {'w': np.array(theta)})],
        found._replace(train=split), 0, tmp_path / folder, stop or StopAfter())

  return choose


RETRAINING = recipes.RetrainRecipe(cells=3, channels=4, auxiliary=False)


@pytest.mark.parametrize('way', ['random', 'evolution', 'local'])
def test_the_best_is_derived(chosen, tmp_path, way):
  genotype, figures = chosen(candidates=40, evolution=way)
  rows = json.loads((tmp_path / 'run' / 'evolution.json').read_text())
  scored = [(genotypes.from_json(value), score)
            for row in rows['state']['rounds']
            for value, score in zip(row['genotypes'], row['scores'])]
  assert len({genotype for genotype, _ in scored}) == 40
  counts = [convolutions(genotype) for genotype, _ in scored]
  assert [score for _, score in scored] == [n / 8 for n in counts]
  assert convolutions(genotype) == max(counts)
  assert figures == {
      'candidates': 40, 'candidate_accuracy': max(counts) / 8,
      'candidate_accuracy_mean': pytest.approx(np.mean(counts) / 8)}
  assert [row['scored'] for row in rows['history']] == [12, 24, 36, 40]


def test_evolution_finds_more_than_random_search(chosen):
  """All 8 operations are convolutions in 1 of 6,561 architectures."""
  best = {way: chosen(candidates=120, evolution=way, folder=way).figures[
      'candidate_accuracy'] for way in ('random', 'evolution', 'local')}
  assert best['evolution'] > best['random'] < best['local']


def test_a_choice_goes_on_where_it_was_stopped(chosen, tmp_path):
  whole = chosen(candidates=40, evolution='evolution', folder='whole')
  assert chosen(StopAfter(3), candidates=40, evolution='evolution') is None
  rows = json.loads((tmp_path / 'run' / 'evolution.json').read_text())
  assert len(rows['history']) == 2
  assert chosen(candidates=40, evolution='evolution') == whole
  assert (tmp_path / 'run' / 'evolution.json').read_bytes() == (
      tmp_path / 'whole' / 'evolution.json').read_bytes()


def test_a_choice_with_other_weights_begins_anew(chosen, tmp_path):
  chosen(candidates=24, evolution='random')
  stop = StopAfter(2)
  assert chosen(stop, theta=1., candidates=24, evolution='random') is None
  rows = json.loads((tmp_path / 'run' / 'evolution.json').read_text())
  assert len(rows['history']) == 1


def test_budgets_are_those_of_the_retrained_network(chosen, tmp_path):
  """Of 3 cells of 4 channels; the supernet of the search has 2."""
  limit = 3000
  chosen(candidates=24, evolution='evolution', max_params=limit)
  rows = json.loads((tmp_path / 'run' / 'evolution.json').read_text())
  sizes = [counting.count(
      genotypes.from_json(value), Sizes(3, 4, CLASSES, 8)).params
           for row in rows['state']['rounds'] for value in row['genotypes']]
  assert len(sizes) == 24 and max(sizes) <= limit


def test_mistakes_are_found_before_a_supernet_is_trained(tiny):
  space = tiny.restrict(num_nodes=1)
  setup = Setup(space, families.get(space), table.METHODS['spos'],
                Sizes(2, 4, CLASSES, 8), 'cifar')
  for fields, sentence in (
      ({'max_macs': 5}, 'config.search: no architecture of space=tiny'),
      ({'calibration': 25}, 'calibration=25 must be at most 24')):
    with pytest.raises(errors.UserError, match=sentence):
      candidates.check(
          setup, recipes.SearchRecipe(candidates=50, **fields), RETRAINING, 24,
          0)
  with pytest.raises(errors.UserError, match=(
      'config.search.crossover=40 and mutation=25 must add up')):
    plans.check(tiny, table.METHODS['spos'],
                recipes.SearchRecipe(candidates=50, crossover=40))


def test_draws_are_uniform_and_depend_on_the_seed(tiny):
  drawn = candidates.draw(tiny, 400, 7)
  assert drawn == candidates.draw(tiny, 400, 7)
  assert drawn != candidates.draw(tiny, 400, 8)
  # Node 2 keeps 2 of 3 edges: each predecessor in 2/3 of the cells; the
  # standard deviation of the mean of 400 is .024.
  for pred in range(3):
    share = np.mean([pred in dict((p, op) for op, p in g.normal[1])
                     for g in drawn])
    assert share == pytest.approx(2 / 3, abs=.1)


def test_a_search_without_parameters_ends_in_a_genotype(
    tiny, monkeypatch, tmp_path):
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)
  path, workdir = tmp_path / 'tiny.py', tmp_path / 'run'
  path.write_text(CONFIG.format(cache=''))
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    assert run_lib.main([
        f'--config={path}', f'--workdir={workdir}', '--config.method=spos',
        '--config.search.max_steps=4', '--config.search.candidates=6',
      '--config.search.population=4', '--config.search.crossover=2',
      '--config.search.mutation=1', '--config.search.calibration=20',
      '--config.retrain.seeds=0']) == 0
  finally:
    jax.config.update('jax_disable_most_optimizations', False)
  found = json.loads((workdir / 'result.json').read_text())['search']
  assert found['candidates'] == 6 and found['valid_loss'] is None
  assert 0 <= found['candidate_accuracy_mean'] <= found['candidate_accuracy']
  record = json.loads((workdir / 'genotype.json').read_text())
  assert (record['method'], record['step']) == ('spos', 4)
  rows = json.loads((workdir / 'evolution.json').read_text())
  assert [row['scored'] for row in rows['history']] == [4, 6]
  assert genotypes.load(str(workdir / 'genotype.json')) == genotypes.from_text(
      rows['history'][-1]['genotype'])
  page = (workdir / 'report.html').read_text()
  assert '<h2>Search over architectures</h2>' in page
  assert 'best of a round' in (workdir / 'evolution.svg').read_text()

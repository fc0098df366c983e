"""Searches that split: their parts, what leaves inherit, how they resume."""

import json

import chex
import jax
import numpy as np
import pytest
import scripts
import tiny_plan
from tiny_run import final_arrays

from rome_jax import errors, spaces
from rome_jax.methods import split, table
from rome_jax.methods.method import mask_from_names
from rome_jax.spaces import genotypes
from rome_jax.train import leaves, plans, recipes, search

SPACE = spaces.Space(
    'split', ('avg_pool_3x3', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3'),
    num_nodes=1)
# 2 steps an epoch: 8 images of each half, batches of 4.
RECIPE = recipes.SearchRecipe(
    cells=1, channels=2, epochs=2, batch_size=4, k=1, lr=.025, lr_end=0.,
    alpha_lr=.1, augment='none', split='gm', split_epochs='1,2',
    split_sizes='2+2,1+3', split_cells='all', split_batches=2)
pytestmark = pytest.mark.usefixtures('compiles_once')
PARTS = ['search/root', 'search/root-1', 'search/root-2',
         *(f'search/leaf-{i:02d}' for i in (1, 2, 3, 4))]


def go(workdir, method=table.gdas, stop=None, recipe=RECIPE, space=SPACE,
       **options):
  return tiny_plan.go(workdir, method, space, recipe, stop, **options)


def read(workdir):
  return json.loads((workdir / leaves.FILENAME).read_text())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(folder, what an uninterrupted search with four leaves gave)."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, go(workdir)


def test_a_supernet_splits_in_two_levels(whole):
  workdir, found = whole
  assert found.finished
  assert [(row['phase'], row['step']) for row in tiny_plan.lines(workdir)] == [
      ('search/root', 2), ('search/root-1', 4), ('search/root-2', 4),
      *((name, step) for name in PARTS[3:] for step in (2, 4))]
  tree = read(workdir)
  assert [row['name'] for row in tree['splits']] == PARTS[:3]
  for row in tree['splits']:
    assert sorted(map(len, row['groups'])) in ([2, 2], [1, 3])
    assert sorted(sum(row['groups'], [])) == sorted(SPACE.ops) == sorted(
        row['ops'])
    distances = np.array(row['distances'])
    np.testing.assert_allclose(distances, distances.T, atol=1e-6)
    assert distances.min() > -1e-6 and distances.max() <= 2
    by_rule = max(
        (split.between(np.array(s['distances']), split.partition(
            np.array(s['distances']), 2, [(2, 2), (1, 3)])), s['site'])
        for s in row['sites'])
    chosen = [s for s in row['sites'] if (s['cell_type'], s['site']) == (
        row['cell_type'], row['site'])]
    assert chosen and by_rule[0] == pytest.approx(split.between(
        distances, split.partition(distances, 2, [(2, 2), (1, 3)])))
  # A split site is not among those that its children compare.
  first = tree['splits'][0]
  for row in tree['splits'][1:]:
    assert len(first['sites']) == 4 and len(row['sites']) == 3
    assert (first['cell_type'], first['site']) not in [
        (s['cell_type'], s['site']) for s in row['sites']]


def test_leaves_divide_the_space(whole):
  workdir, found = whole
  masks = [mask_from_names(SPACE, row['kept'])
           for row in read(workdir)['leaves']]
  sizes = [spaces.enumeration.size(SPACE.restrict_to(mask)) for mask in masks]
  assert sum(sizes) == spaces.enumeration.size(SPACE)
  rows = read(workdir)['leaves']
  for i, row in enumerate(rows):
    genotype = genotypes.from_text(row['genotype'])
    assert split.leaf_of(SPACE, masks, genotype) == i
  [best] = [row for row in rows if row['chosen']]
  assert best['score'] == max(row['score'] for row in rows)
  assert genotypes.to_text(found.genotype) == best['genotype']
  assert genotypes.load(str(workdir / 'genotype.json')) == found.genotype
  assert found.figures['leaf'] == found.figures['phase'] == best['name']


def test_the_architecture_stays_until_the_leaves(whole):
  workdir, _ = whole
  alpha = {name: [value for key, value in final_arrays(workdir, name)[1]
                  if 'state.arch.alpha' in key] for name in PARTS}
  assert alpha['search/root'] == alpha['search/root-1'] == alpha[
      'search/root-2']
  assert alpha['search/leaf-01'] != alpha['search/root']


def noted_starts(monkeypatch):
  """{phase: its first state}, filled while searches are prepared."""
  begun, prepare = {}, search.prepare

  def noted(*args):
    found = prepare(*args)
    begun[args[4].name] = jax.device_get(found.carry.state)
    return found

  monkeypatch.setattr(search, 'prepare', noted)
  return begun


def test_children_go_on_from_their_parent(monkeypatch, tmp_path):
  """The weights, the optimiser and the step of the parent's end."""
  begun = noted_starts(monkeypatch)
  go(tmp_path)
  parent = sorted(
      value for key, value in final_arrays(tmp_path, 'search/root')[1]
      if value and 'state' in key and 'mask' not in key)
  for child in ('search/root-1', 'search/root-2'):
    state = begun[child]
    assert state.step == 2
    assert sorted(filter(None, (
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(
            state._replace(mask=()))))) == parent
  # The leaves begin anew, all alike.
  first = begun['search/leaf-01']._replace(mask=())
  assert first.step == 0
  chex.assert_trees_all_equal(
      first, begun['search/leaf-04']._replace(mask=()))


@pytest.mark.parametrize('stops', [
    [2, 9], *(pytest.param(stops, marks=pytest.mark.slow)
              for stops in ([1], [4], [5, 7], [13], [20, 3]))])
def test_a_run_continues_where_it_was(whole, stops, tmp_path):
  """Stopped while it grows, while it compares gradients, and in a leaf."""
  workdir, wanted = whole
  for looks in stops:
    assert not go(tmp_path, stop=looks).finished
  found = go(tmp_path)
  assert found.genotype == wanted.genotype
  assert tiny_plan.lines(tmp_path) == tiny_plan.lines(workdir)
  assert read(tmp_path) == read(workdir)
  for name in PARTS:
    assert final_arrays(tmp_path, name) == final_arrays(workdir, name)


@pytest.mark.parametrize('name', [
    'gdas', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'rome_v2', 'darts', 'snas', 'spos', 'pada'))])
def test_one_leaf_is_no_split(name, tmp_path, monkeypatch):
  """A 'split' into one group, all inherited: the search as it is."""
  method = table.METHODS[name]
  recipe = RECIPE._replace(
      epochs=4, split_inherit='all', split_epochs='2', alpha_start=2,
      candidates=4, evolution='random', split_choice='evolution')
  monkeypatch.setattr(leaves._Score, '__call__', lambda *args: {
      'cell_type': 'normal', 'site': 0, 'groups': [list(SPACE.ops)]})
  found = go(tmp_path / 'leaf', method, recipe=recipe)
  plain = go(tmp_path / 'plain', method, recipe=recipe._replace(split='none'))
  if method.derive is None:
    assert found.genotype == plain.genotype

  def arrays(folder, phase):
    return [value for key, value in final_arrays(tmp_path / folder, phase)[1]
            if 'state' in key and 'mask' not in key]

  assert arrays('leaf', 'search/leaf-01') == arrays('plain', 'search')


@pytest.mark.parametrize('name', ['snas', 'darts', 'spos'])
def test_weights_train_while_alpha_stays(name, tmp_path):
  """SNAS moves both in one update."""
  method = table.METHODS[name]
  recipe = RECIPE._replace(
      split='few_shot', split_epochs='1', candidates=2, evolution='random',
      split_choice='evolution' if method.derive is None else 'valid')
  go(tmp_path, method, recipe=recipe)
  arrays = dict(final_arrays(tmp_path, 'search/root')[1])
  setup = tiny_plan.setup_of(method, SPACE)
  begun = search.build(setup, recipe._replace(split='none'),
                       tiny_plan.dataset(), 5).state
  ends = {part: [value for key, value in arrays.items()
                 if value and f'state.{part}.' in key]
          for part in ('theta', 'arch')}
  same = {part: sorted(filter(None, (
      np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(
          getattr(begun, part))))) == sorted(ends[part])
          for part in ('theta', 'arch')}
  assert ends['theta'] and same == {'theta': False, 'arch': True}
  [line] = [row for row in tiny_plan.lines(tmp_path)
            if row['phase'] == 'search/root']
  assert line['train_loss'] > 0 and line['grad_norm'] > 0


def test_what_leaves_inherit(tmp_path, monkeypatch):
  """Weights without the optimiser, and everything."""
  begun = noted_starts(monkeypatch)
  few = RECIPE._replace(split='few_shot', split_epochs='1', split_site=1)
  found = {}
  for inherit, first in (('weights', 0), ('all', 2)):
    recipe = few._replace(split_inherit=inherit, epochs=2)
    go(tmp_path / inherit, recipe=recipe)
    rows = [row for row in tiny_plan.lines(tmp_path / inherit)
            if row['phase'] == 'search/leaf-01']
    assert [row['step'] for row in rows][-1] == 4
    assert all(row['step'] > first for row in rows)
    found[inherit] = begun.pop('search/leaf-02')
    assert len(read(tmp_path / inherit)['leaves']) == 4
  parent = begun['search/root']
  weights, everything = found['weights'], found['all']
  chex.assert_trees_all_equal(weights.theta, everything.theta)
  assert weights.step == 0 and everything.step == 2
  moved = [np.any(a != b) for a, b in zip(
      jax.tree.leaves(weights.theta), jax.tree.leaves(parent.theta))]
  assert any(moved)
  fresh = jax.tree.leaves(parent.theta_opt)
  for a, b in zip(jax.tree.leaves(weights.theta_opt), fresh, strict=True):
    np.testing.assert_array_equal(a, b)
  assert any(np.any(a != b) for a, b in zip(
      jax.tree.leaves(everything.theta_opt), fresh))


def test_a_split_before_any_training(tmp_path):
  recipe = RECIPE._replace(split_epochs='0', epochs=1)
  found = go(tmp_path, recipe=recipe)
  assert found.finished
  assert {row['phase'] for row in tiny_plan.lines(tmp_path)} == {
      'search/leaf-01', 'search/leaf-02'}


def test_methods_without_alpha_search_over_all_leaves(tmp_path):
  recipe = RECIPE._replace(
      split_epochs='1', candidates=20, evolution='random', population=5,
      crossover=2, mutation=2, split_choice='evolution')
  found = go(tmp_path, table.spos, recipe=recipe)
  state = json.loads((tmp_path / 'evolution.json').read_text())['state']
  scored = [genotypes.from_json(value) for row in state['rounds']
            for value in row['genotypes']]
  masks = [mask_from_names(SPACE, row['kept'])
           for row in read(tmp_path)['leaves']]
  counts = np.bincount([split.leaf_of(SPACE, masks, g) for g in scored])
  assert counts.min() > 0 and counts.sum() == 20
  assert found.figures['candidates'] == 20


def test_each_architecture_is_scored_by_its_leaf(whole):
  """Against the supernet applied to each, leaf by leaf."""
  from rome_jax import data, families
  from rome_jax.train import candidates
  workdir, _ = whole
  setup = tiny_plan.setup_of(table.gdas, SPACE)
  known = [candidates.Leaf(mask, state['theta'])
           for mask, state in leaves.read(workdir, SPACE)]
  dataset = tiny_plan.dataset()
  scorer = candidates.LeafScorer(candidates.make_scorer(
      setup, RECIPE, known[0].theta, dataset, 5, block=3), known)
  found = list(spaces.enumeration.every(SPACE))[::9]
  scores = scorer(found).accuracy
  halves = search.make_halves(setup, RECIPE, dataset, 5)
  plain = data.Batches(
      halves.valid.split, halves.valid.indices, 4, halves.valid.seed,
      data.make_transform('none', dataset, train=False))
  network = search.make_supernet(setup, RECIPE)
  apply = jax.jit(lambda theta, images, arch: network.apply(
      {'params': theta}, images, arch))
  for genotype, score in zip(found[:6], scores):
    leaf = known[split.leaf_of(SPACE, [k.mask for k in known], genotype)]
    right = [apply(leaf.theta, plain(i)['image'], families.arch_of(
        genotype, SPACE)).argmax(-1) == plain(i)['label'] for i in (0, 1)]
    assert score == pytest.approx(np.mean(right))


def test_halving_keeps_the_better_half(tmp_path, monkeypatch):
  """Four leaves, three rungs: 4, 2 and 1 trainings go on."""
  accuracies = {1: .5, 2: .2, 3: .7, 4: .6}
  trained = []

  class Trainer:
    def run(self, job, settings, writer, stop, epochs):
      number = int(job.name[-2:])
      trained.append((number, epochs))
      value = accuracies[number] + (.4 if number == 1 and epochs == 9 else 0)
      return leaves.loop.Outcome(
          True, None, {'test_accuracy': value}, {'seconds': 100. * epochs})

  monkeypatch.setattr(
      leaves.candidates, 'trainer', lambda *args: Trainer())
  recipe = RECIPE._replace(split_choice='halving', split_rungs='3,6,9')
  found = go(tmp_path, recipe=recipe)
  assert trained == [(1, 3), (2, 3), (3, 3), (4, 3), (3, 6), (4, 6), (3, 9)]
  assert found.figures['leaf'] == 'search/leaf-03'
  # Of each the rung that it came to: 9, 6, 3 and 3 epochs.
  assert 2100 <= found.figures['seconds'] < 2200
  trained.clear()
  assert go(tmp_path, recipe=recipe).genotype == found.genotype
  assert not trained  # Each rung has its note.


@pytest.mark.slow
def test_a_halved_training_goes_on_from_its_rung(tmp_path):
  """Paused at a rung, it ends as one that never paused."""
  retraining = recipes.RetrainRecipe(
      cells=1, channels=2, batch_size=4, auxiliary=False, augment='none',
      cutout=0, drop_path=0.)
  recipe = RECIPE._replace(
      split_epochs='1', split_choice='halving', split_rungs='1,3')
  go(tmp_path / 'paused', recipe=recipe, retraining=retraining)
  go(tmp_path / 'whole', recipe=recipe._replace(split_rungs='3'),
     retraining=retraining)
  [winner] = [row for row in notes_of(tmp_path / 'paused') if 'rung-2' in row]
  name = f'search/halving-{winner[-2:]}'
  assert final_arrays(tmp_path / 'paused', name) == final_arrays(
      tmp_path / 'whole', name)


def notes_of(workdir):
  return sorted(path.stem for path in (workdir / 'phases/search').iterdir())


@pytest.mark.parametrize('fields, message', [
    ({'split_epochs': ''}, "split_epochs='' must be at least one"),
    ({'split_epochs': '4,2'}, 'rising'),
    ({'split_epochs': '1,x'}, "whole numbers of at least 0.*not 'x'"),
    ({'split_groups': '2,2,2'}, "='2,2,2' must be one number, or 2"),
    ({'split_groups': '1'}, 'at least 2'),
    ({'split_sizes': '2+x'}, 'must be sizes such as'),
    ({'split_sizes': '2+5'}, 'fits too few sites.*they have 4 candidates'),
    ({'split_groups': '5', 'split_sizes': ''}, 'fits too few sites'),
    ({'split_epochs': '0,1,2,3,4'}, 'fits too few sites of.*for 5 splits'),
    ({'max_steps': 4}, 'max_steps=4 must be 0'),
    ({'split_soft': True}, "split_soft must be false.*'gdas'"),
    ({'split_rungs': '3'}, "split_rungs='3' must be ''"),
    ({'split': 'none'}, "split_epochs='1,2' must be ''"),
    ({'split': 'none', 'split_epochs': '', 'split_together': True},
     'split_together=True must be False'),
    ({'split_inherit': 'all'}, 'must end below config.search.epochs=2'),
    ({'split': 'few_shot'}, 'must be one number'),
    ({'split': 'few_shot', 'split_epochs': '1', 'split_site': 2},
     'split_site=2 must be below 2, the edges'),
    ({'split_choice': 'table'}, 'which has no complete table'),
    ({'split_choice': 'evolution'}, 'candidates=0 must be at least 1'),
    ({'split_choice': 'halving'}, "split_rungs='' must be at least one"),
])
def test_mistakes(fields, message):
  with pytest.raises(errors.UserError, match=message):
    plans.check(SPACE, table.gdas, RECIPE._replace(**fields))


@pytest.mark.parametrize('name', ['p_darts', 'random_search', 'darts_es',
                                  'darts_ada'])
def test_methods_that_cannot_be_split(name):
  with pytest.raises(errors.UserError, match="split='gm' must be none"):
    plans.check(SPACE, table.METHODS[name], RECIPE)


def test_an_unsplit_search_checks_no_field_of_a_split():
  plans.check(SPACE, table.p_darts, RECIPE._replace(
      split='none', split_epochs='', stage_keep='3,2'))


def test_the_number_of_leaves():
  assert leaves.number(SPACE, RECIPE) == 4
  assert leaves.number(SPACE, RECIPE._replace(split_groups='2,3')) == 6
  assert leaves.number(SPACE, RECIPE._replace(split='none')) == 1


@pytest.mark.slow
def test_leaves_side_by_side_are_those_in_turn():
  """In a process of two devices."""
  found = scripts.printed('four_leaves.py', timeout=600)
  assert len(found) == 6 and all(found.values()), found
